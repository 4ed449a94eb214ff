//! The typed values of a configuration, already checked.
//!
//! Everything downstream of [`load`](super::load) reads these and needs to check nothing again: every number is in
//! the range that [`keys`](super::keys) states, every name is unique, every index points at something. Durations and
//! sizes carry no unit here because their types do (`Duration`, bytes as `usize`).
//!
//! A [`Config`] is made once at start and once per reload; nothing on the message path reads it. Its size is bounded
//! by the counts in [`keys`](super::keys): at most `BACKENDS_TOTAL_MAX` backends.

use std::net::SocketAddr;
use std::time::Duration;

use crate::base::id::{BackendId, ListenerId, Transport};

/// The whole configuration of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[node]`
    pub node: Node,
    /// `[limits]`
    pub limits: Limits,
    /// `[timers]`
    pub timers: Timers,
    /// `[[service]]`, at least one.
    pub services: Vec<Service>,
    /// `[[pool]]`, at least one.
    pub pools: Vec<Pool>,
}

/// `[node]`: who this process is and where it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name in logs and reports.
    pub name: String,
    /// Which cores forward messages.
    pub workers: Workers,
    /// The core of the control thread; `None` picks one: core 0 unless every core is a worker's, then shared.
    pub control_core: Option<usize>,
    /// The key under which branches and Record-Route cookies are signed. `None`: drawn at start, so dialogs
    /// do not survive a restart and two nodes do not understand each other.
    pub secret: Option<Secret>,
    /// The secret before the last rotation; what it signed is still accepted.
    pub secret_previous: Option<Secret>,
    /// Host names by which phones and backends call this node in Route headers and Request-URIs; lower case.
    pub names: Vec<String>,
    /// How long an idle worker polls before it sleeps. Costs CPU, saves wake-up latency.
    pub spin: Duration,
}

/// Which cores run a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Workers {
    /// One per available core; on machines with more than two cores the control core is left out.
    Auto,
    /// That many, on the first cores that are not the control core (sharing it when there are too few).
    Count(usize),
    /// Exactly these cores.
    Cores(Vec<usize>),
}

/// A signing secret: 16 bytes, written as 32 hexadecimal digits.
#[derive(Clone, PartialEq)]
pub struct Secret(pub [u8; 16]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// `[limits]`: every capacity. Nothing grows past these; a full table or ring is a verdict and a counter.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Affinity bindings per worker; each costs at most 64 bytes.
    pub bindings_max: usize,
    /// The largest message accepted, in bytes; at most 65,507, the largest UDP payload over IPv4.
    pub message_bytes_max: usize,
    /// Header lines accepted in one message.
    pub headers_max: usize,
    /// Receive buffers per listener and worker; a power of two. Each reserves 68 KiB of address space and costs
    /// memory for what was ever written into it (one page for an ordinary message).
    pub receive_buffers: usize,
    /// Bytes in each ring that hands messages from one worker to another; a power of two.
    pub handoff_ring_bytes: usize,
    /// SO_RCVBUF and SO_SNDBUF of each UDP socket, in bytes.
    pub socket_buffer_bytes: usize,
}

/// `[timers]`: how long affinity is remembered.
#[derive(Clone, Debug, PartialEq)]
pub struct Timers {
    /// A binding whose INVITE has no final answer yet. More than Timer C (3 minutes, RFC 3261 16.6).
    pub binding_early: Duration,
    /// A binding of an established dialog, counted from its last message.
    pub binding_dialog: Duration,
    /// A binding after a final answer that made no dialog, or after BYE: 64*T1 (RFC 3261 16.11).
    pub binding_linger: Duration,
}

/// `[[service]]`: a virtual service, the addresses that clients see.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Unique name.
    pub name: String,
    /// Addresses to listen on; unique over all services; never a wildcard address.
    pub listen: Vec<Listen>,
    /// Index into [`Config::pools`].
    pub pool: usize,
    /// Whether dialogs stay on Tandem (Record-Route, RFC 3261 16.6 item 4).
    pub record_route: bool,
    /// Whether the trust domain ends here: asserted identities do not cross (RFC 3325).
    pub strip_identity: bool,
}

/// One listening address, written `udp:192.0.2.10:5060` or `udp:[2001:db8::1]:5060`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Transport.
    pub transport: Transport,
    /// Address and port.
    pub address: SocketAddr,
}

impl Listen {
    /// The id that branches and cookies carry.
    pub fn id(&self) -> ListenerId {
        ListenerId::from_address(self.transport, self.address)
    }
}

/// `[[pool]]`: backends that can stand in for each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Unique name.
    pub name: String,
    /// How new dialogs are spread.
    pub policy: Policy,
    /// Retry-After of the 503 that an empty pool answers with.
    pub retry_after: Duration,
    /// `[pool.health]`
    pub health: Health,
    /// `[[pool.backend]]`, at least one.
    pub backends: Vec<Backend>,
}

/// How a pool spreads new dialogs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Weighted Maglev over the service's key.
    ConsistentHash,
}

/// `[pool.health]`: how backends are watched.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// What is sent.
    pub probe: Probe,
    /// Time between two probes of one backend.
    pub interval: Duration,
    /// Up to this much is added to or taken from each interval, so that probes do not march in step.
    pub jitter: Duration,
    /// How long an answer may take; shorter than `interval`.
    pub timeout: Duration,
    /// Good probes in a row that bring a backend back.
    pub rise: u32,
    /// Bad probes in a row that take a backend out.
    pub fall: u32,
}

/// The kind of probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// None: the backend always counts as healthy.
    None,
    /// SIP OPTIONS; any final answer but 408, 5xx other than 501, and 6xx counts as alive.
    Options,
}

/// `[[pool.backend]]`: one SIP server.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Name, unique over all pools: cookies carry its hash.
    pub name: String,
    /// Transport.
    pub transport: Transport,
    /// Address and port; unique over all pools.
    pub address: SocketAddr,
    /// Share of new dialogs relative to the others; 0 to 65,535; 0 takes no new dialogs and keeps its own.
    pub weight: u32,
    /// Tier: the lowest number with a healthy backend serves.
    pub priority: u8,
    /// What the operator wants of it.
    pub admin: Admin,
}

impl Backend {
    /// The id that cookies and bindings carry.
    pub fn id(&self) -> BackendId {
        BackendId::from_name(&self.name)
    }
}

/// What the operator wants of a backend, whatever its health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admin {
    /// Takes new dialogs while healthy.
    Enabled,
    /// Keeps its dialogs, takes no new ones.
    Drained,
    /// Takes nothing; is not probed.
    Disabled,
}
