//! The typed values of a configuration, already checked.
//!
//! Everything downstream of [`load`](super::load) reads these and needs to check nothing again: every number is in
//! the range that [`keys`](super::keys) states, every name is unique, every index points at something. Durations and
//! sizes carry no unit here because their types do (`Duration`, bytes as `usize`).
//!
//! A [`Config`] is made once at start and once per reload; nothing on the message path reads it. Its size is bounded
//! by the counts in [`keys`](super::keys): at most `BACKENDS_TOTAL_MAX` backends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

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
    /// `[[certificate]]`; the first answers a client that names no host, or one that no certificate has. At least one
    /// where a service listens on TLS or WSS.
    pub certificates: Vec<Certificate>,
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
    /// Where `tandem ctl` speaks to this node.
    pub control_socket: Option<PathBuf>,
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
    /// Connections per worker, accepted and made; one more is refused.
    pub connections_max: usize,
    /// Accepted connections per worker and source IP address.
    pub connections_per_source: usize,
    /// Receive buffers that the connections of a worker share; a power of two; 16 KiB each.
    pub stream_buffers: usize,
    /// Bytes that may wait to be written to one connection; more closes it.
    pub write_queue_bytes: usize,
    /// TLS and WebSocket handshakes under way at once, per worker.
    pub handshakes_max: usize,
}

/// `[timers]`: how long affinity is remembered, and how long a connection may keep us waiting.
#[derive(Clone, Debug, PartialEq)]
pub struct Timers {
    /// A binding whose INVITE has no final answer yet. More than Timer C (3 minutes, RFC 3261 16.6).
    pub binding_early: Duration,
    /// A binding of an established dialog, counted from its last message.
    pub binding_dialog: Duration,
    /// A binding after a final answer that made no dialog, or after BYE: 64*T1 (RFC 3261 16.11).
    pub binding_linger: Duration,
    /// From the first byte of a message on a stream, or of a PROXY header, to its last.
    pub message_timeout: Duration,
    /// A connection on which nothing was received for so long is closed.
    pub idle_timeout: Duration,
    /// A connection whose peer takes nothing of what is to be written for so long is closed.
    pub write_timeout: Duration,
    /// From accept or connect to the end of the TLS and WebSocket handshakes.
    pub handshake_timeout: Duration,
    /// A TCP connection to a backend.
    pub connect_timeout: Duration,
}

/// `[[certificate]]`: what Tandem shows to TLS and WSS clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// PEM file: the certificate, then its intermediates. Not opened by the configuration; see `shell/tls.rs`.
    pub chain: PathBuf,
    /// PEM file: the private key of the first certificate in `chain`.
    pub key: PathBuf,
    /// Host names it answers to, lower case, each exact or `*.` and a domain. Empty: the DNS names in the certificate.
    pub names: Vec<String>,
}

/// `[[service]]`: a virtual service, the addresses that clients see.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Unique name.
    pub name: String,
    /// Addresses to listen on; unique over all services, no two on one TCP port; never a wildcard address.
    pub listen: Vec<Listen>,
    /// Index into [`Config::pools`].
    pub pool: usize,
    /// Whether dialogs stay on Tandem (Record-Route, RFC 3261 16.6 item 4).
    pub record_route: bool,
    /// Whose connections must begin with a PROXY protocol header, which tells the client's address.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Values of Origin that a WebSocket handshake may have, lower case; empty: any, or none.
    pub origins: Vec<String>,
    /// Whether a sips: request may be forwarded over UDP or TCP, which RFC 5630 forbids.
    pub sips_over_plain: bool,
    /// `[service.tls]`
    pub tls: ServiceTls,
    /// Whether the trust domain ends here: asserted identities do not cross (RFC 3325).
    pub strip_identity: bool,
}

/// `[service.tls]`: what the TLS and WSS listeners of a service ask of clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTls {
    /// Whether a client shows a certificate.
    pub client_certificate: ClientCertificate,
    /// PEM file of the authorities that sign client certificates; there whenever one is asked for.
    pub client_ca: Option<PathBuf>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
}

/// Whether a TLS client must show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificate {
    /// None is asked for.
    #[default]
    None,
    /// One is asked for, and checked when it comes.
    Optional,
    /// No handshake without one.
    Required,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246.
    #[default]
    V12,
    /// RFC 8446.
    V13,
}

/// One listening address, written `udp:192.0.2.10:5060` or `tls:[2001:db8::1]:5061`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Transport.
    pub transport: Transport,
    /// Address and port.
    pub address: SocketAddr,
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&super::show_address(self.transport, self.address))
    }
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
    /// The largest request sent to a backend over UDP where it has a `large_address`, in bytes (RFC 3261 18.1.1).
    pub udp_bytes_max: usize,
    /// `[pool.health]`
    pub health: Health,
    /// `[pool.tls]`
    pub tls: PoolTls,
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

/// `[pool.tls]`: how TLS backends of the pool are spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolTls {
    /// How their certificate is checked.
    pub verify: Verify,
    /// PEM file of the authorities that sign backend certificates. `None`: those that the system trusts.
    pub ca: Option<PathBuf>,
    /// The name sent as SNI and looked for in the certificate. `None`: the backend's IP address, and no SNI.
    pub server_name: Option<String>,
    /// SHA-256 of the certificates accepted by [`Verify::Pinned`], over the DER of the leaf.
    pub pins: Vec<[u8; 32]>,
    /// PEM file: the certificate that Tandem shows when it is asked, then its intermediates.
    pub certificate: Option<PathBuf>,
    /// PEM file: its private key; there exactly when `certificate` is.
    pub key: Option<PathBuf>,
}

/// How the certificate of a backend is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Signed by an authority, in time, and for the right name.
    #[default]
    Full,
    /// One of the pinned certificates; nothing else about it counts.
    Pinned,
    /// Not at all.
    None,
}

/// `[[pool.backend]]`: one SIP server.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Name, unique over all pools: cookies carry its hash.
    pub name: String,
    /// Transport: UDP, TCP or TLS.
    pub transport: Transport,
    /// Address and port; unique over all pools, with the transport.
    pub address: SocketAddr,
    /// Where a UDP backend takes requests over [`Pool::udp_bytes_max`]: TCP or TLS, and of the same family.
    pub large_address: Option<(Transport, SocketAddr)>,
    /// What connections to it begin with; a backend without a TCP or TLS address has none.
    pub proxy_protocol: ProxyProtocol,
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

/// The PROXY protocol header with which a connection to a backend begins, to tell it the client's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// None.
    #[default]
    None,
    /// Version 1, a line of text.
    V1,
    /// Version 2, binary.
    V2,
}
