//! A node for the bodies to drive: pictures of the world, an engine, and what must hold for whatever it sends.
//!
//! The configuration is that of the message fixtures, so that these are good seeds. Building a picture costs
//! milliseconds, so each is built once a process and shared; it never changes. Engines are made anew for each input.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::base::id::Transport;
use crate::base::time::Instant;
use crate::config::{Admin, Backend, Config, Secret, Surroundings, parse_in};
use crate::engine::outbox::{Outbox, Transmit};
use crate::engine::{Capacity, Engine, Outcome, Received};
use crate::route::decide::is_forbidden;
use crate::route::key::CallHasher;
use crate::route::snapshot::{BackendStatus, ListenerIndex, Snapshot};

const NODE: &str = include_str!("../../tests/data/messages/node.toml");

/// Workers of the node.
pub(super) const WORKERS: usize = 2;

/// What a backend may be; each backend of the node has some of these, apart from the others.
const STATES: [BackendStatus; 4] = [
    BackendStatus { admin: Admin::Enabled, is_healthy: true },
    BackendStatus { admin: Admin::Enabled, is_healthy: false },
    BackendStatus { admin: Admin::Drained, is_healthy: true },
    BackendStatus { admin: Admin::Disabled, is_healthy: true },
];

/// How many worlds [`snapshot`] knows.
pub(super) const WORLDS: usize = 64;

/// How many times the secret can be rotated.
pub(super) const ROTATIONS: usize = 3;

/// The configuration of the node.
pub(super) fn config() -> &'static Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let no_file = |_: &Path| Err("there are no files here".to_owned());
        let surroundings = Surroundings { host_name: "fuzz".to_owned(), read_secret: &no_file };
        parse_in(NODE, "node.toml", &surroundings).expect("the fixtures' configuration is good").config
    })
}

/// The picture of world `world`, signed by secret number `rotation` and, after the first, the one before it.
///
/// World 0 has every backend enabled and healthy but the one that the file disables.
pub(super) fn snapshot(world: usize, rotation: usize) -> Arc<Snapshot> {
    static SNAPSHOTS: [OnceLock<Arc<Snapshot>>; WORLDS * ROTATIONS] = [const { OnceLock::new() }; WORLDS * ROTATIONS];
    let (world, rotation) = (world % WORLDS, rotation % ROTATIONS);
    let cell = &SNAPSHOTS[world * ROTATIONS + rotation];
    cell.get_or_init(|| {
        let mut config = config().clone();
        config.node.secret = Some(secret(rotation));
        config.node.secret_previous = rotation.checked_sub(1).map(secret);
        let status = |backend: &Backend| match &*backend.name {
            "pbx1" => STATES[world % 4],
            "pbx2" => STATES[world / 4 % 4],
            "pbx3" => STATES[world / 16 % 2],
            "six1" => STATES[world / 32],
            _ => BackendStatus { admin: backend.admin, is_healthy: true },
        };
        let generation = (world * ROTATIONS + rotation) as u64 + 1;
        Arc::new(Snapshot::build(&config, generation, WORKERS, status))
    })
    .clone()
}

fn secret(rotation: usize) -> Secret {
    match config().node.secret {
        Some(Secret(bytes)) => Secret(bytes.map(|byte| byte.wrapping_add(rotation as u8))),
        None => unreachable!("the fixtures' configuration has a secret"),
    }
}

/// The index of a listening address of the node.
pub(super) fn listener(address: &str) -> ListenerIndex {
    let address = self::address(address);
    let position = config().services.iter().flat_map(|s| &s.listen).position(|l| l.address == address);
    ListenerIndex(position.expect("an address of the node") as u16)
}

/// An address written in a body.
pub(super) fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// For people; a difference in bytes that are no text is a difference in this too.
pub(super) fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// A datagram that left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// The listener that it leaves from.
    pub(super) listener: ListenerIndex,
    /// Where to.
    pub(super) to: SocketAddr,
    /// What it travels by.
    pub(super) transport: Transport,
    /// Its payload.
    pub(super) bytes: Vec<u8>,
}

/// What became of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// A request sent on.
    Request(Sent),
    /// A response sent on.
    Response(Sent),
    /// Answered here.
    Answered(Sent),
    /// Gone.
    Dropped,
    /// For another worker.
    HandOver(u16),
}

/// One engine.
pub(super) struct Bench {
    /// The engine.
    pub(super) engine: Engine,
    outbox: Outbox,
}

impl Bench {
    /// An engine for worker `worker` that works by `snapshot`, with room for `bindings`.
    pub(super) fn new(worker: u16, snapshot: Arc<Snapshot>, bindings: usize) -> Bench {
        let limits = &config().limits;
        let capacity = Capacity { bindings, headers: limits.headers_max, message_bytes: limits.message_bytes_max };
        // The hasher keeps the first secret through rotations.
        let hasher = CallHasher::new(&secret(0));
        Bench { engine: Engine::new(worker, snapshot, hasher, capacity), outbox: Outbox::with_capacity(2, 0) }
    }

    /// Hands a datagram in, says what became of it, and checks what must hold for any.
    pub(super) fn handle(&mut self, now: Instant, rx: &Received<'_>) -> Fate {
        let before = self.engine.counters();
        assert!(self.outbox.has_room(), "the outbox is empty");
        let outcome = self.engine.handle(now, rx, &mut self.outbox);
        let after = self.engine.counters();
        assert_eq!(after.outcomes(), before.outcomes() + 1, "one datagram, one outcome");
        assert_eq!(after.outcomes(), after.received + after.taken_over, "nothing is lost");
        let bindings = self.engine.bindings();
        assert!(bindings.len() <= bindings.capacity(), "more bindings than there is room for");
        assert!(self.outbox.transmits().len() <= 1, "one datagram in, at most one out");
        let sent = self.outbox.transmits().first().map(|transmit| self.take(transmit));
        self.outbox.clear();
        if let Some(sent) = &sent {
            self.check_sent(sent);
        }
        let sum = |counts: &[u64]| counts.iter().sum::<u64>();
        let answered = sum(&after.answered) > sum(&before.answered);
        let requests = after.requests_forwarded > before.requests_forwarded;
        let responses = after.responses_forwarded > before.responses_forwarded;
        match (outcome, sent) {
            (Outcome::HandOver(worker), None) => {
                assert!(!rx.is_taken_over, "a message is handed over once");
                Fate::HandOver(worker)
            }
            (Outcome::Done, Some(sent)) if answered => {
                check_answer(rx, &sent);
                Fate::Answered(sent)
            }
            (Outcome::Done, Some(sent)) if requests => Fate::Request(sent),
            (Outcome::Done, Some(sent)) if responses => Fate::Response(sent),
            (Outcome::Done, None) if !answered && !requests && !responses => Fate::Dropped,
            (outcome, sent) => panic!("{outcome:?} with {sent:?} is counted as something else"),
        }
    }

    /// The ring to the owner of the message that was just handed in is full.
    pub(super) fn refuse_hand_over(&mut self, rx: &Received<'_>) {
        self.engine.handle_full_ring(rx, &mut self.outbox);
        assert!(self.outbox.is_empty(), "a datagram that is not handed over is lost");
    }

    fn take(&self, transmit: &Transmit) -> Sent {
        let bytes = self.outbox.bytes(transmit).to_vec();
        Sent { listener: transmit.hop.listener, to: transmit.hop.destination, transport: transmit.hop.transport, bytes }
    }

    fn check_sent(&self, sent: &Sent) {
        let snapshot = self.engine.snapshot();
        assert!(!is_forbidden(snapshot, sent.to), "sent to {}", sent.to);
        let from = snapshot.listener(sent.listener).listen.address;
        assert_eq!(from.is_ipv4(), sent.to.is_ipv4(), "{from} cannot send to {}: {}", sent.to, show(&sent.bytes));
    }
}

/// RFC 3261 8.2.7 and 16.11: stateless answers must not be worth forging a source for.
fn check_answer(rx: &Received<'_>, sent: &Sent) {
    assert!(sent.bytes.len() <= rx.bytes.len(), "an answer larger than its request");
    assert_eq!(sent.to.ip(), rx.source.ip(), "an answer to somebody else");
    assert_eq!(sent.listener, rx.listener, "an answer from another address than was asked");
    assert!(sent.bytes.starts_with(b"SIP/2.0 "), "an answer is a response");
    let start = rx.bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    let line = &rx.bytes[start..];
    let is_response = line.len() >= 4 && line[..4].eq_ignore_ascii_case(b"SIP/");
    assert!(!is_response && !line.starts_with(b"ACK "), "an answer to what is never answered");
}
