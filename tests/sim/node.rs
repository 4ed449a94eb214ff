//! One node: the real engines and the real control core, with what the shell puts between them: a clock of its own,
//! hand-over rings with few places, and snapshots that reach each worker at another moment.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tandem::base::id::{ListenerId, Transport};
use tandem::base::time::Instant;
use tandem::config::{
    Admin, Backend, Config, Health, Limits, Listen, Node as NodeConfig, Policy, Pool, PoolTls, Probe, ProxyProtocol,
    Secret, Service, ServiceTls, Timers, Workers,
};
use tandem::control::Control;
use tandem::engine::outbox::{DATAGRAM_MAX, Outbox};
use tandem::engine::{Capacity, Engine, Outcome, Received};
use tandem::route::cookie::{BRANCH_LEN, BranchInput, Keys};
use tandem::route::key::CallHasher;
use tandem::route::snapshot::{BackendStatus, ListenerIndex, Snapshot};

use crate::checks::Output;

/// Workers of each node.
pub const WORKERS: usize = 2;

const SECOND: Duration = Duration::from_secs(1);

/// The secrets that sign, and whose signatures are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secrets {
    /// Signs, and is accepted.
    pub current: [u8; 16],
    /// Is accepted.
    pub previous: Option<[u8; 16]>,
}

impl Secrets {
    /// What a node begins with.
    pub const FIRST: Secrets = Secrets { current: [7; 16], previous: None };

    /// Is what this secret signed accepted?
    pub fn accepts(&self, secret: [u8; 16]) -> bool {
        self.current == secret || self.previous == Some(secret)
    }

    /// Which of them signed a branch: secrets are drawn so that the heads of what they sign differ.
    pub fn signer_of(&self, branch: &str) -> [u8; 16] {
        let has_head = |secret: &[u8; 16]| head_of(branch.as_bytes()) == head_of(&any_branch(*secret));
        [Some(self.current), self.previous].into_iter().flatten().find(has_head).unwrap_or(self.current)
    }
}

/// Do two secrets sign with the same head?
pub fn look_alike(one: [u8; 16], other: [u8; 16]) -> bool {
    head_of(&any_branch(one)) == head_of(&any_branch(other))
}

fn any_branch(secret: [u8; 16]) -> [u8; BRANCH_LEN] {
    let input = BranchInput { branch: b"", host: b"", port: 0, address: [0; 4].into(), call_id: b"", cseq: 0 };
    Keys::new(&Secret(secret), None).encode_branch(ListenerId(0), &input)
}

/// Version and epoch: the first eight bits after the magic cookie.
fn head_of(branch: &[u8]) -> Option<usize> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let six_bits = |at: usize| alphabet.iter().position(|c| Some(c) == branch.get(at));
    Some(six_bits(7)? << 2 | six_bits(8)? >> 4)
}

/// A datagram on its way from one worker to another.
pub struct Given {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Who sent it.
    pub source: SocketAddr,
    /// The listener it came to.
    pub listener: ListenerIndex,
}

/// The node; see the module head.
pub struct Node {
    /// One a worker.
    pub engines: Vec<Engine>,
    /// The control core.
    pub control: Control,
    /// Where each worker's hand-overs wait.
    pub rings: Vec<VecDeque<Given>>,
    /// How far its clock is ahead of the world's, in nanoseconds.
    pub ahead: u64,
    /// When the control core is next called.
    pub wakes_at: Option<u64>,
    /// No snapshot overtakes another: the last one arrives then.
    pub applied_at: u64,
    /// Where probes come from.
    pub probe_sources: [SocketAddr; 2],
    /// What the operator told it.
    pub secrets: Secrets,
    /// What each worker goes by.
    pub known: [Secrets; WORKERS],
}

impl Node {
    /// Node `number`, started at time zero.
    pub fn new(number: usize, config: &Config, seed: u64) -> Self {
        let healthy = |backend: &Backend| BackendStatus { admin: backend.admin, is_healthy: true };
        let snapshot = Arc::new(Snapshot::build(config, 0, WORKERS, healthy));
        let engines = (0..WORKERS).map(|worker| engine(worker as u16, &snapshot, config, config.limits.bindings_max));
        let mut control = Control::new(config.clone(), WORKERS, seed, Instant(0));
        let host = 201 + number as u8;
        let probe_sources: [SocketAddr; 2] =
            [SocketAddr::from(([192, 0, 2, host], 40_000)), format!("[2001:db8::{host}]:40000").parse().unwrap()];
        probe_sources.iter().for_each(|source| control.set_probe_source(*source));
        Node {
            engines: engines.collect(),
            control,
            rings: (0..WORKERS).map(|_| VecDeque::new()).collect(),
            ahead: 0,
            wakes_at: None,
            applied_at: 0,
            probe_sources,
            secrets: Secrets::FIRST,
            known: [Secrets::FIRST; WORKERS],
        }
    }

    /// What its clock shows.
    pub fn clock(&self, now: u64) -> Instant {
        Instant(now + self.ahead)
    }
}

/// An engine with room for so many bindings.
pub fn engine(worker: u16, snapshot: &Arc<Snapshot>, config: &Config, bindings: usize) -> Engine {
    let hasher = CallHasher::new(config.node.secret.as_ref().expect("the simulator's secret"));
    let capacity =
        Capacity { bindings, headers: config.limits.headers_max, message_bytes: config.limits.message_bytes_max };
    Engine::new(worker, Arc::clone(snapshot), hasher, capacity)
}

/// Lets an engine deal with one datagram.
pub fn handle(engine: &mut Engine, now: Instant, rx: &Received<'_>, outbox: &mut Outbox) -> (Outcome, Vec<Output>) {
    outbox.clear();
    let outcome = engine.handle(now, rx, outbox);
    let from = |listener: ListenerIndex| engine.snapshot().listener(listener).listen.address;
    let output = |t: &tandem::engine::outbox::Transmit| Output {
        from: from(t.hop.listener),
        to: t.hop.destination,
        bytes: outbox.bytes(t).to_vec(),
    };
    (outcome, outbox.transmits().iter().map(output).collect())
}

/// An outbox as the shell makes it.
pub fn outbox() -> Outbox {
    Outbox::with_capacity(128, 4 * DATAGRAM_MAX)
}

/// The addresses that clients see, for IPv4 and IPv6.
pub fn listeners() -> [SocketAddr; 2] {
    ["192.0.2.10:5060".parse().unwrap(), "[2001:db8::10]:5060".parse().unwrap()]
}

/// Where backend `number` listens; the third has IPv6 alone.
pub fn backend_address(number: usize) -> SocketAddr {
    let host = 11 + number as u8;
    match number % 3 {
        2 => format!("[2001:db8:b::{host}]:5060").parse().unwrap(),
        _ => SocketAddr::from(([198, 51, 100, host], 5060 + number as u16)),
    }
}

/// Where requests of backend `number` within dialogs come from: the second has another interface for them.
pub fn dialog_address(number: usize) -> SocketAddr {
    let mut address = backend_address(number);
    if number % 3 == 1 {
        address.set_ip([198, 51, 100, 111 + number as u8].into());
    }
    address
}

/// The configuration of both nodes.
pub fn config(backends: usize, bindings: usize) -> Config {
    let backend = |number: usize| Backend {
        name: format!("pbx{number}"),
        transport: Transport::Udp,
        address: backend_address(number),
        large_address: None,
        proxy_protocol: ProxyProtocol::None,
        weight: 100,
        priority: 0,
        admin: Admin::Enabled,
    };
    Config {
        node: NodeConfig {
            name: "sim".into(),
            workers: Workers::Count(WORKERS),
            control_core: None,
            secret: Some(Secret(Secrets::FIRST.current)),
            secret_previous: None,
            names: vec!["sip.example.com".into()],
            control_socket: None,
            spin: Duration::ZERO,
        },
        limits: Limits {
            bindings_max: bindings,
            message_bytes_max: DATAGRAM_MAX,
            headers_max: 64,
            receive_buffers: 64,
            handoff_ring_bytes: 65_536,
            socket_buffer_bytes: 65_536,
            connections_max: 1_024,
            connections_per_source: 1_024,
            stream_buffers: 16,
            write_queue_bytes: 262_144,
            handshakes_max: 64,
        },
        // Shorter than the defaults, for dialogs to outlive their bindings; longer than a clock step and 64*T1.
        timers: Timers {
            binding_early: 200 * SECOND,
            binding_dialog: 60 * SECOND,
            binding_linger: 50 * SECOND,
            message_timeout: 10 * SECOND,
            idle_timeout: 3_600 * SECOND,
            write_timeout: 10 * SECOND,
            handshake_timeout: 5 * SECOND,
            connect_timeout: 3 * SECOND,
        },
        certificates: Vec::new(),
        services: vec![Service {
            name: "voice".into(),
            listen: listeners().map(|address| Listen { transport: Transport::Udp, address }).to_vec(),
            pool: 0,
            record_route: true,
            proxy_protocol_from: Vec::new(),
            origins: Vec::new(),
            sips_over_plain: false,
            tls: ServiceTls::default(),
            strip_identity: false,
        }],
        pools: vec![Pool {
            name: "pbx".into(),
            policy: Policy::ConsistentHash,
            retry_after: 5 * SECOND,
            udp_bytes_max: 1_300,
            tls: PoolTls::default(),
            health: Health {
                probe: Probe::Options,
                interval: SECOND / 2,
                jitter: SECOND / 20,
                timeout: SECOND / 4,
                rise: 2,
                fall: 3,
            },
            backends: (0..backends).map(backend).collect(),
        }],
    }
}
