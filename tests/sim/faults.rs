//! What goes wrong in a run, drawn from the seed before it begins: weather, crashes, reloads, rotations of secrets, clocks.
//!
//! Everything is over at [`CALM`]; from then on the network is clean, every backend runs and is configured again.

use std::net::SocketAddr;

use tandem::base::prng::Prng;
use tandem::config::{Admin, Pool};

use crate::agent::MS;
use crate::node::{Secrets, look_alike};

/// When the last fault ends.
pub const CALM: u64 = 30_000 * MS;

/// How the network behaves; chances are out of 1,000.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Lost.
    pub loss: u64,
    /// Delivered twice.
    pub duplicate: u64,
    /// Cut short.
    pub truncate: u64,
    /// Held back for up to two seconds.
    pub straggle: u64,
    /// Everything else takes up to this long, which reorders.
    pub delay: u64,
}

impl Weather {
    /// A clean network.
    pub const FAIR: Weather = Weather { loss: 0, duplicate: 0, truncate: 0, straggle: 0, delay: 3 * MS };

    fn draw(prng: &mut Prng) -> Self {
        let [loss, duplicate, truncate, straggle] = [250, 200, 60, 100].map(|most| prng.below(most));
        Weather { loss, duplicate, truncate, straggle, delay: (1 + prng.below(150)) * MS }
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The weather changes.
    Weather(Weather),
    /// A backend loses its memory and its voice.
    Crash(usize),
    /// It starts again.
    Return(usize),
    /// The operator changes one backend: admin state and weight, or takes it out of the file altogether.
    Change(usize, Option<(Admin, u32)>),
    /// The operator rotates the secrets.
    Rotate(Rotation),
    /// The clock of a node leaps.
    ClockStep { node: usize, by: u64 },
    /// Somebody outside tries something.
    Attack(Attack),
}

/// A step of a rotation of secrets, for all nodes; each takes it in its own moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// What the new secret will sign is accepted.
    Announce(Secrets),
    /// The new secret signs, what the old one signed is accepted. Without an announcement before it, a node that
    /// still waits for this step does not understand one that took it.
    Switch(Secrets),
    /// What the old secret signed is refused.
    Forget(Secrets),
}

impl Rotation {
    /// What a node has after the step.
    pub fn secrets(self) -> Secrets {
        let (Rotation::Announce(secrets) | Rotation::Switch(secrets) | Rotation::Forget(secrets)) = self;
        secrets
    }
}

/// What strangers send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// A response with a branch that was never minted, naming a caller below it.
    ForgedResponse,
    /// A request with a forged token in its Route, and a victim behind it.
    ForgedRoute,
    /// A request with the token of somebody else's call in its Route.
    StolenRoute,
    /// Bytes.
    Noise,
    /// A request that cannot be served and has a short answer.
    Nonsense,
}

impl Attack {
    /// A datagram to `service` that would harm `victim`, and who claims to send it. `stolen` is a token of a call that
    /// lives.
    pub fn datagram(
        self,
        prng: &mut Prng,
        service: SocketAddr,
        victim: SocketAddr,
        stolen: &str,
    ) -> (SocketAddr, Vec<u8>) {
        let stranger: SocketAddr = ([203, 0, 113, 1 + prng.below(3) as u8], 5060).into();
        let n = prng.next_u64();
        let head = format!("From: <sip:x@y>;tag={n}\r\nTo: <sip:z@y>\r\nCall-ID: {n}\r\nContent-Length: 0\r\n");
        let via = format!("Via: SIP/2.0/UDP {stranger};branch=z9hG4bK{n};rport");
        let text = match self {
            Attack::ForgedResponse => format!(
                "SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP {service};branch=z9hG4bKEwAB{:012x}\r\n\
                 Via: SIP/2.0/UDP {victim};branch=z9hG4bKx\r\n{head}CSeq: 1 INVITE\r\n\r\n",
                n >> 16
            ),
            Attack::ForgedRoute => format!(
                "BYE sip:a@{victim} SIP/2.0\r\n{via}\r\nRoute: <sip:{service};lr;tk=EwAA{n:030x}>\r\n\
                 Route: <sip:{victim};lr>\r\n{head}CSeq: 1 BYE\r\n\r\n"
            ),
            Attack::StolenRoute => format!(
                "BYE sip:a@{victim} SIP/2.0\r\n{via}\r\nRoute: <sip:{service};lr;tk={stolen}>\r\n{head}CSeq: 1 BYE\r\n\r\n"
            ),
            Attack::Noise => (0..n % 300)
                .map(|i| [' ', '\r', '\n', ':', 'V', ';', '<', '\0'][(n >> (i % 60)) as usize % 8])
                .collect(),
            Attack::Nonsense => format!(
                "INVITE sip:a@{service} SIP/2.0\r\n{via}\r\nMax-Forwards: 0\r\n{head}CSeq: 1 INVITE\r\nX-Pad: {n:0100}\r\n\r\n"
            ),
        };
        (stranger, text.into_bytes())
    }
}

/// The faults of a run, each with its time. `sets_change` tells whether the set of backends may change.
pub fn draw(prng: &mut Prng, nodes: usize, backends: usize, sets_change: bool) -> Vec<(u64, Fault)> {
    let mut faults = vec![(0, Fault::Weather(Weather::draw(prng)))];
    let mut time = 0;
    loop {
        time += (200 + prng.below(2_500)) * MS;
        if time >= CALM {
            break;
        }
        let backend = prng.below(backends as u64) as usize;
        let node = prng.below(nodes as u64) as usize;
        let fault = match prng.below(10) {
            0 | 1 => Fault::Weather(Weather::draw(prng)),
            2 | 3 if sets_change => {
                let back = (time + (500 + prng.below(8_000)) * MS).min(CALM - 1);
                faults.push((back, Fault::Return(backend)));
                Fault::Crash(backend)
            }
            4..7 if sets_change => Fault::Change(backend, draw_change(prng)),
            7 => Fault::ClockStep { node, by: (100 + prng.below(8_000)) * MS },
            8 => Fault::Attack(Attack::Nonsense),
            _ => {
                let others = [Attack::ForgedResponse, Attack::ForgedRoute, Attack::StolenRoute, Attack::Noise];
                Fault::Attack(others[prng.below(4) as usize])
            }
        };
        faults.push((time, fault));
    }
    faults
}

/// A rotation of secrets that begins at `start` and lets so much time pass before the old secret goes; with or without
/// an announcement. A node may be `skew` behind another in taking a step.
pub fn draw_rotation(
    prng: &mut Prng,
    old: [u8; 16],
    is_announced: bool,
    [start, skew, overlap]: [u64; 3],
) -> [Option<(u64, Fault)>; 3] {
    let mut current = old;
    while look_alike(current, old) {
        current = [0; 16];
        current[..8].copy_from_slice(&prng.next_u64().to_be_bytes());
    }
    let switch = start + if is_announced { skew + MS } else { 0 };
    let announced = Rotation::Announce(Secrets { current: old, previous: Some(current) });
    [
        is_announced.then_some((start, Fault::Rotate(announced))),
        Some((switch, Fault::Rotate(Rotation::Switch(Secrets { current, previous: Some(old) })))),
        Some((switch + skew + overlap, Fault::Rotate(Rotation::Forget(Secrets { current, previous: None })))),
    ]
}

fn draw_change(prng: &mut Prng) -> Option<(Admin, u32)> {
    let admin = match prng.below(8) {
        0 => return None,
        1 | 2 => Admin::Drained,
        3 => Admin::Disabled,
        _ => Admin::Enabled,
    };
    Some((admin, [0, 1, 50, 100, 400][prng.below(5) as usize]))
}

/// The pools with one backend changed. Unless they may be left without one that serves, the last such is left alone;
/// the last one of all always is, as a file without any is refused.
pub fn change(
    pools: &[Pool],
    whole: &[Pool],
    backend: usize,
    to: Option<(Admin, u32)>,
    may_be_empty: bool,
) -> Vec<Pool> {
    let mut changed = pools.to_vec();
    let wanted = &whole[0].backends[backend];
    let backends = &mut changed[0].backends;
    backends.retain(|b| b.name != wanted.name);
    if let Some((admin, weight)) = to {
        let mut again = wanted.clone();
        (again.admin, again.weight) = (admin, weight);
        backends.insert(backend.min(backends.len()), again);
    }
    let serves = |b: &tandem::config::Backend| b.admin == Admin::Enabled && b.weight > 0;
    let is_allowed = backends.iter().any(serves) || (may_be_empty && !backends.is_empty());
    if is_allowed { changed } else { pools.to_vec() }
}
