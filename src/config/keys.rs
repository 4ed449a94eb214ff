//! The table of keys: everything that is known about each key, in one block a key.
//!
//! The walk over the document takes from here which keys a section has, what stands for one that is not written, and
//! which values it accepts; `config/reference.toml` is this table rendered. To add a key, add its block here and the
//! field in `values.rs`; a test fails until the reference is rendered anew.
//!
//! Also here: how many services, listeners, pools and backends one file may have, so that everything that is built
//! from a configuration is bounded before it is built.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::key::{About, Accepts, Default, Key, Section};
use super::read;
use super::values::{
    Admin, ClientCertificate, Listen, Policy, Probe, ProxyProtocol, Secret, TlsVersion, Verify, Workers,
};
use crate::base::id::Transport;

/// Workers of one process: each has a ring to each other, so rings grow with the square.
pub const WORKERS_MAX: usize = 256;
/// Core numbers are less than this.
pub const CORES_MAX: usize = 1_024;
/// Certificates in one file.
pub const CERTIFICATES_MAX: usize = 1_024;
/// Services in one file.
pub const SERVICES_MAX: usize = 256;
/// Listening addresses in one file; each is a socket and a set of receive buffers per worker.
pub const LISTENS_MAX: usize = 256;
/// Pools in one file.
pub const POOLS_MAX: usize = 1_024;
/// Backends in one pool; 16 entries of the Maglev table for each, on average.
pub const BACKENDS_MAX: usize = 4_096;
/// Backends in one file: their indices have 16 bits, and one value means none.
pub const BACKENDS_TOTAL_MAX: usize = 65_534;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const TEN_MINUTES: Duration = Duration::from_secs(600);
const HOUR: Duration = Duration::from_secs(3_600);
const WEEK: Duration = Duration::from_secs(7 * 86_400);

/// Declares each key as a static and lists what is known about all of them in [`ALL`].
macro_rules! keys {
    ($($(#[$attr:meta])* $id:ident: $type:ty {
        $section:ident . $name:literal, default: $default:expr, accepts: $accepts:expr, unit: $unit:literal,
        read: $read:expr, doc: $doc:literal, cost: $cost:literal,
    })*) => {
        $(
            #[doc = $doc]
            pub static $id: Key<$type> = Key {
                about: About {
                    section: Section::$section,
                    name: $name,
                    default: $default,
                    accepts: $accepts,
                    unit: $unit,
                    doc: $doc,
                    cost: $cost,
                },
                read: $read,
            };
        )*

        /// What is known about every key, in the order of the reference.
        pub static ALL: &[&About] = &[$(&$id.about),*];
    };
}

keys! {
    NODE_NAME: String {
        Node."name", default: Default::Absent("the host name of the machine", "\"lb1\""),
        accepts: Accepts::Form("1 to 63 letters, digits, '-', '_' and '.'"), unit: "", read: read::name,
        doc: "Name in logs and reports.",
        cost: "",
    }
    WORKERS: Workers {
        Node."workers", default: Default::Literal("\"auto\""),
        accepts: Accepts::Form("\"auto\", a number of workers from 1 to 256, or a list of cores such as [2, 3]"),
        unit: "", read: read::workers,
        doc: "Which cores forward messages, one pinned worker on each. \"auto\" is every core this process may use, \
              less the control core on a machine with more than two.",
        cost: "each worker has its own buffers and binding table, and a ring to each other worker",
    }
    CONTROL_CORE: Option<usize> {
        Node."control_core", default: Default::Literal("\"auto\""),
        accepts: Accepts::Form("\"auto\" or the number of a core"), unit: "", read: read::control_core,
        doc: "The core of the control thread, which probes backends and reloads. \"auto\" is the first core that \
              has no worker, or the first core when all have one.",
        cost: "sharing it with a worker adds some microseconds to that worker's latency now and then",
    }
    SECRET: Secret {
        Node."secret",
        default: Default::Absent("drawn at start, so that dialogs do not survive a restart", "\"32 hexadecimal digits\""),
        accepts: Accepts::Form("32 hexadecimal digits in quotes"), unit: "", read: read::secret,
        doc: "The key that signs Via branches and Record-Route. Nodes that share an address share it; whoever knows \
              it can steer calls.",
        cost: "",
    }
    SECRET_FILE: PathBuf {
        Node."secret_file", default: Default::Absent("the secret is in this file or drawn", "\"/etc/tandem/secret\""),
        accepts: Accepts::Form("the path of a file that holds 32 hexadecimal digits"), unit: "", read: read::path,
        doc: "Instead of secret: a file that holds it; a relative path starts at the directory of this file.",
        cost: "",
    }
    SECRET_PREVIOUS: Secret {
        Node."secret_previous", default: Default::Absent("no other secret is accepted", "\"32 hexadecimal digits\""),
        accepts: Accepts::Form("32 hexadecimal digits in quotes"), unit: "", read: read::secret,
        doc: "The secret before the last change: what it signed is still accepted, so that dialogs live on. \
              Where nodes share a secret, write the next one here on all of them before the first signs with it.",
        cost: "a second check of each signature that the first does not fit",
    }
    SECRET_PREVIOUS_FILE: PathBuf {
        Node."secret_previous_file",
        default: Default::Absent("no other secret is accepted", "\"/etc/tandem/secret.previous\""),
        accepts: Accepts::Form("the path of a file that holds 32 hexadecimal digits"), unit: "", read: read::path,
        doc: "Instead of secret_previous: a file that holds it.",
        cost: "",
    }
    NAMES: Vec<String> {
        Node."names", default: Default::Literal("[]"),
        accepts: Accepts::Form("a list of host names such as [\"sip.example.com\"]"), unit: "", read: read::host_names,
        doc: "Host names by which phones and backends call this node in Route headers and Request-URIs. Listening \
              addresses are known already.",
        cost: "a name that is missing here makes messages to it be treated as meant for somebody else",
    }
    CONTROL_SOCKET: PathBuf {
        Node."control_socket", default: Default::Absent("no `tandem ctl`, only signals", "\"/run/tandem/lb1.sock\""),
        accepts: Accepts::Form("the path of a file that is made at start"), unit: "", read: read::path,
        doc: "Where `tandem ctl` speaks to this node: a Unix socket that its owner alone may use; a relative path starts at \
              the directory of this file.",
        cost: "",
    }
    SPIN: Duration {
        Node."spin", default: Default::Literal("\"0us\""),
        accepts: Accepts::Duration(Duration::ZERO, Duration::from_millis(100)), unit: "", read: read::duration,
        doc: "How long an idle worker polls before it sleeps.",
        cost: "CPU time while idle, for some microseconds less latency",
    }

    BINDINGS_MAX: usize {
        Limits."bindings_max", default: Default::Literal("262144"),
        accepts: Accepts::Number(16, 16_777_216), unit: "bindings per worker", read: read::number,
        doc: "Affinity bindings: which backend has which dialog. Count calls in progress, times two, over workers.",
        cost: "64 bytes each, per worker; when the table is full, what has no cookie is chosen anew by hash",
    }
    MESSAGE_BYTES_MAX: usize {
        Limits."message_bytes_max", default: Default::Literal("65507"),
        accepts: Accepts::Size(1_500, 65_507), unit: "", read: read::size,
        doc: "The largest message accepted; 65507 is the largest UDP payload over IPv4. A larger one is refused and \
              counted.",
        cost: "",
    }
    HEADERS_MAX: usize {
        Limits."headers_max", default: Default::Literal("256"),
        accepts: Accepts::Number(16, 1_024), unit: "header lines", read: read::number,
        doc: "Header lines accepted in one message.",
        cost: "",
    }
    RECEIVE_BUFFERS: usize {
        Limits."receive_buffers", default: Default::Literal("1024"),
        accepts: Accepts::PowerOfTwo(64, 32_768), unit: "buffers per listener and worker", read: read::number,
        doc: "Datagrams that may be received in one burst before the worker looks.",
        cost: "68 KiB of address space each, per listener and worker, and the pages that were ever written to: one \
               for an ordinary message",
    }
    HANDOFF_RING: usize {
        Limits."handoff_ring", default: Default::Literal("\"1MiB\""),
        accepts: Accepts::PowerOfTwoSize(65_536, 1 << 30), unit: "", read: read::size,
        doc: "The ring in which one worker hands messages to another. A full ring sheds and counts.",
        cost: "as much for each ordered pair of workers: workers * (workers - 1)",
    }
    SOCKET_BUFFER: usize {
        Limits."socket_buffer", default: Default::Literal("\"8MiB\""),
        accepts: Accepts::Size(65_536, 1 << 30), unit: "", read: read::size,
        doc: "SO_RCVBUF and SO_SNDBUF of each UDP socket. The kernel caps them at net.core.rmem_max and wmem_max.",
        cost: "kernel memory for what is queued, twice this in each direction at most, per listener and worker",
    }
    CONNECTIONS_MAX: usize {
        Limits."connections_max", default: Default::Literal("32768"),
        accepts: Accepts::Number(16, 1 << 20), unit: "connections per worker", read: read::number,
        doc: "Connections of clients and to backends. One more is closed as soon as it is accepted, and counted. The \
              limit on open files (LimitNOFILE=) must allow for as many, times workers.",
        cost: "for each that is open its TLS session and what waits to be written to it",
    }
    CONNECTIONS_PER_SOURCE: usize {
        Limits."connections_per_source", default: Default::Literal("4096"),
        accepts: Accepts::Number(1, 1 << 20), unit: "connections per worker and IP address", read: read::number,
        doc: "Connections accepted from one IP address. Networks behind one NAT share an address; so do all clients \
              of a load balancer in front that sends no PROXY header.",
        cost: "too many lets one machine use up connections_max",
    }
    STREAM_BUFFERS: usize {
        Limits."stream_buffers", default: Default::Literal("256"),
        accepts: Accepts::PowerOfTwo(16, 32_768), unit: "buffers per worker", read: read::number,
        doc: "Receive buffers that all connections of a worker share; each holds what one read brought until the \
              worker looks.",
        cost: "16 KiB each",
    }
    WRITE_QUEUE: usize {
        Limits."write_queue", default: Default::Literal("\"256KiB\""),
        accepts: Accepts::Size(131_072, 64 << 20), unit: "", read: read::size,
        doc: "What may wait to be written to one connection whose peer does not read. More closes it.",
        cost: "as much for each connection whose peer is stuck",
    }
    HANDSHAKES_MAX: usize {
        Limits."handshakes_max", default: Default::Literal("512"),
        accepts: Accepts::Number(1, 1 << 20), unit: "handshakes per worker", read: read::number,
        doc: "TLS and WebSocket handshakes under way at once. One more connection is closed and counted, so that a \
              storm of them leaves time for those that are established.",
        cost: "the CPU time of a key exchange each; after a restart all clients come at once",
    }

    BINDING_EARLY: Duration {
        Timers."binding_early", default: Default::Literal("\"5m\""),
        accepts: Accepts::Duration(Duration::from_secs(200), Duration::from_secs(86_400)), unit: "", read: read::duration,
        doc: "How long a binding lives whose INVITE has no final answer. More than Timer C, 3 minutes (RFC 3261 \
              section 16.6).",
        cost: "a binding each, for as long",
    }
    BINDING_DIALOG: Duration {
        Timers."binding_dialog", default: Default::Literal("\"1h\""),
        accepts: Accepts::Duration(MINUTE, WEEK), unit: "",
        read: read::duration,
        doc: "How long the binding of an established dialog lives after its last message. Session timers refresh it; \
              a cookie outlives it.",
        cost: "a binding each, for as long",
    }
    BINDING_LINGER: Duration {
        Timers."binding_linger", default: Default::Literal("\"32s\""),
        accepts: Accepts::Duration(Duration::from_secs(32), HOUR), unit: "", read: read::duration,
        doc: "How long a binding lives after BYE, or after a final answer that made no dialog: 64*T1 for what is \
              still retransmitted (RFC 3261 section 16.11).",
        cost: "a binding each, for as long",
    }
    MESSAGE_TIMEOUT: Duration {
        Timers."message_timeout", default: Default::Literal("\"10s\""),
        accepts: Accepts::Duration(Duration::from_millis(100), TEN_MINUTES), unit: "", read: read::duration,
        doc: "How long a message on a connection, or a PROXY header, may take from its first byte to its last. Then \
              the connection is closed.",
        cost: "too long lets a peer that sends byte by byte hold memory",
    }
    IDLE_TIMEOUT: Duration {
        Timers."idle_timeout", default: Default::Literal("\"1h\""),
        accepts: Accepts::Duration(Duration::from_secs(10), WEEK), unit: "", read: read::duration,
        doc: "How long a connection may be silent. Keep-alives count as something said; clients send them every two \
              minutes at least (RFC 5626 section 4.4.1).",
        cost: "too short cuts phones off between two registrations; too long keeps connections of the dead",
    }
    WRITE_TIMEOUT: Duration {
        Timers."write_timeout", default: Default::Literal("\"10s\""),
        accepts: Accepts::Duration(Duration::from_millis(100), TEN_MINUTES), unit: "", read: read::duration,
        doc: "How long a peer may take nothing of what waits to be written to it. Then the connection is closed.",
        cost: "write_queue for as long",
    }
    HANDSHAKE_TIMEOUT: Duration {
        Timers."handshake_timeout", default: Default::Literal("\"5s\""),
        accepts: Accepts::Duration(Duration::from_millis(100), TEN_MINUTES), unit: "", read: read::duration,
        doc: "How long the TLS and WebSocket handshakes of a connection may take together.",
        cost: "one of handshakes_max for as long",
    }
    CONNECT_TIMEOUT: Duration {
        Timers."connect_timeout", default: Default::Literal("\"3s\""),
        accepts: Accepts::Duration(Duration::from_millis(100), MINUTE), unit: "", read: read::duration,
        doc: "How long a TCP connection to a backend may take to come about.",
        cost: "what waits for the connection waits as long",
    }

    CHAIN: PathBuf {
        Certificate."chain", default: Default::Required("\"/etc/tandem/sip.example.com.pem\""),
        accepts: Accepts::Form("the path of a PEM file"), unit: "", read: read::path,
        doc: "The certificate, followed by its intermediates; a relative path starts at the directory of this file.",
        cost: "",
    }
    KEY: PathBuf {
        Certificate."key", default: Default::Required("\"/etc/tandem/sip.example.com.key\""),
        accepts: Accepts::Form("the path of a PEM file"), unit: "", read: read::path,
        doc: "Its private key, without a passphrase.",
        cost: "",
    }
    CERTIFICATE_NAMES: Vec<String> {
        Certificate."names", default: Default::Literal("[]"),
        accepts: Accepts::Form("a list of host names such as [\"sip.example.com\", \"*.example.com\"]"), unit: "",
        read: read::certificate_names,
        doc: "The host names for which it is shown; an empty list means the DNS names in the certificate. \"*.\" \
              stands for one label.",
        cost: "",
    }

    SERVICE_NAME: String {
        Service."name", default: Default::Required("\"voice\""),
        accepts: Accepts::Form("1 to 63 letters, digits, '-', '_' and '.'"), unit: "", read: read::name,
        doc: "Unique name of the service.",
        cost: "",
    }
    LISTEN: Vec<Listen> {
        Service."listen", default: Default::Required("[\"udp:127.0.0.1:5060\", \"tcp:127.0.0.1:5060\"]"),
        accepts: Accepts::Form("a list of addresses such as [\"udp:192.0.2.10:5060\", \"tls:[2001:db8::1]:5061\"]"),
        unit: "", read: read::listens,
        doc: "The addresses of this machine that clients send to, over udp, tcp, tls, ws or wss; never a wildcard, as \
              answers leave from the address that was asked. Backends are sent to from here too.",
        cost: "one socket each, per worker; for udp a set of receive buffers too",
    }
    SERVICE_POOL: String {
        Service."pool", default: Default::Required("\"pbx\""),
        accepts: Accepts::Form("the name of a pool"), unit: "", read: read::name,
        doc: "The pool that serves.",
        cost: "",
    }
    RECORD_ROUTE: bool {
        Service."record_route", default: Default::Literal("true"), accepts: Accepts::Flag, unit: "", read: read::flag,
        doc: "Whether dialogs stay on Tandem (Record-Route, RFC 3261 section 16.6 item 4).",
        cost: "one header; without it, what follows in a dialog goes past Tandem when both sides can reach each other",
    }
    STRIP_IDENTITY: bool {
        Service."strip_identity", default: Default::Literal("false"), accepts: Accepts::Flag, unit: "",
        read: read::flag,
        doc: "Whether the trust domain of RFC 3325 ends here. Then P-Asserted-Identity is taken out of all that \
              clients send, and, where Privacy asks for \"id\", of what backends send to clients. \
              P-Preferred-Identity passes.",
        cost: "whoever does not send from the address of a backend is a client, a trunk included",
    }
    PROXY_PROTOCOL_FROM: Vec<IpNet> {
        Service."proxy_protocol_from", default: Default::Literal("[]"),
        accepts: Accepts::Form("a list of networks such as [\"192.0.2.0/28\", \"2001:db8::5/128\"]"), unit: "",
        read: read::networks,
        doc: "The load balancers in front: connections from these networks must begin with a PROXY protocol header, \
              version 1 or 2, and the address in it is the client's. From elsewhere none is looked for.",
        cost: "whoever is in these networks can claim to be anybody",
    }
    ORIGINS: Vec<String> {
        Service."origins", default: Default::Literal("[]"),
        accepts: Accepts::Form("a list of origins such as [\"https://phone.example.com\"]"), unit: "",
        read: read::origins,
        doc: "The web pages that may open a WebSocket (Origin of RFC 6455); an empty list lets any, and clients \
              that send no Origin.",
        cost: "without it any page that a user visits can speak SIP from the user's address",
    }
    SIPS_OVER_PLAIN: bool {
        Service."sips_over_plain", default: Default::Literal("true"), accepts: Accepts::Flag, unit: "",
        read: read::flag,
        doc: "Whether a request to a sips: URI may go on to a backend over udp or tcp: what protects it inside a domain is \
              for the domain to say (RFC 3261 section 26.2.2). With false such a request is answered 480.",
        cost: "with true, callers rely on the network between Tandem and its backends",
    }

    CLIENT_CERTIFICATE: ClientCertificate {
        ServiceTls."client_certificate", default: Default::Literal("\"none\""),
        accepts: Accepts::Words(&["none", "optional", "required"]), unit: "", read: read::word,
        doc: "Whether clients show a certificate: \"optional\" asks and checks one that comes; \"required\" refuses \
              clients without.",
        cost: "",
    }
    CLIENT_CA: PathBuf {
        ServiceTls."client_ca", default: Default::Absent("no client certificate is accepted", "\"/etc/tandem/clients.pem\""),
        accepts: Accepts::Form("the path of a PEM file"), unit: "", read: read::path,
        doc: "The authorities that sign client certificates.",
        cost: "",
    }
    MIN_VERSION: TlsVersion {
        ServiceTls."min_version", default: Default::Literal("\"1.2\""),
        accepts: Accepts::Words(&["1.2", "1.3"]), unit: "", read: read::word,
        doc: "The oldest version of TLS that is spoken.",
        cost: "many desk phones have no 1.3",
    }

    POOL_NAME: String {
        Pool."name", default: Default::Required("\"pbx\""),
        accepts: Accepts::Form("1 to 63 letters, digits, '-', '_' and '.'"), unit: "", read: read::name,
        doc: "Unique name of the pool.",
        cost: "",
    }
    POLICY: Policy {
        Pool."policy", default: Default::Literal("\"consistent-hash\""),
        accepts: Accepts::Words(&["consistent-hash"]), unit: "", read: read::word,
        doc: "How new dialogs are spread: \"consistent-hash\" is weighted Maglev over the Call-ID.",
        cost: "131 KB a pool",
    }
    RETRY_AFTER: Duration {
        Pool."retry_after", default: Default::Literal("\"5s\""),
        accepts: Accepts::Seconds(SECOND, HOUR), unit: "", read: read::duration,
        doc: "Retry-After of the 503 that is answered while no backend of the pool can serve.",
        cost: "too short brings every caller back at once",
    }
    UDP_BYTES_MAX: usize {
        Pool."udp_bytes_max", default: Default::Literal("1300"),
        accepts: Accepts::Size(500, 65_507), unit: "", read: read::size,
        doc: "The largest request sent to a backend over UDP when it has a large_address, where a larger one goes \
              (RFC 3261 section 18.1.1).",
        cost: "what is larger than the path's MTU is sent in fragments, which many networks drop",
    }

    PROBE: Probe {
        Health."probe", default: Default::Literal("\"options\""),
        accepts: Accepts::Words(&["options", "none"]), unit: "", read: read::word,
        doc: "What is sent: \"options\" is SIP OPTIONS; \"none\" counts every backend as healthy.",
        cost: "",
    }
    INTERVAL: Duration {
        Health."interval", default: Default::Literal("\"2s\""),
        accepts: Accepts::Duration(Duration::from_millis(100), HOUR), unit: "", read: read::duration,
        doc: "Time between two probes of one backend.",
        cost: "a dead backend is found after about fall * interval",
    }
    JITTER: Duration {
        Health."jitter", default: Default::Literal("\"200ms\""),
        accepts: Accepts::Duration(Duration::ZERO, HOUR), unit: "", read: read::duration,
        doc: "Up to this much is added to or taken from each interval, so that probes do not march in step; less than \
              interval.",
        cost: "",
    }
    TIMEOUT: Duration {
        Health."timeout", default: Default::Literal("\"1s\""),
        accepts: Accepts::Duration(Duration::from_millis(10), HOUR), unit: "", read: read::duration,
        doc: "How long the answer to a probe may take; less than interval.",
        cost: "too short takes out a backend that is merely busy",
    }
    RISE: u32 {
        Health."rise", default: Default::Literal("2"),
        accepts: Accepts::Number(1, 100), unit: "probes", read: read::number,
        doc: "Good probes in a row that bring a backend back.",
        cost: "",
    }
    FALL: u32 {
        Health."fall", default: Default::Literal("3"),
        accepts: Accepts::Number(1, 100), unit: "probes", read: read::number,
        doc: "Bad probes in a row that take a backend out.",
        cost: "with 1, one lost datagram takes a backend out",
    }

    VERIFY: Verify {
        PoolTls."verify", default: Default::Literal("\"full\""),
        accepts: Accepts::Words(&["full", "pinned", "none"]), unit: "", read: read::word,
        doc: "How a backend's certificate is checked: \"full\" by authority, time and name; \"pinned\" by pins alone; \
              \"none\" not at all.",
        cost: "with \"none\" whoever is on the way can read and change every call",
    }
    CA: PathBuf {
        PoolTls."ca", default: Default::Absent("the authorities that the system trusts", "\"/etc/tandem/backends.pem\""),
        accepts: Accepts::Form("the path of a PEM file"), unit: "", read: read::path,
        doc: "The authorities that sign backend certificates, instead of the system's.",
        cost: "",
    }
    SERVER_NAME: String {
        PoolTls."server_name",
        default: Default::Absent("the backend's IP address, and no SNI", "\"pbx.example.com\""),
        accepts: Accepts::Form("a host name such as \"pbx.example.com\""), unit: "", read: read::host_name,
        doc: "The name that is asked for (SNI), and that a backend's certificate must have.",
        cost: "",
    }
    PINS: Vec<[u8; 32]> {
        PoolTls."pins", default: Default::Literal("[]"),
        accepts: Accepts::Form("a list of SHA-256 digests of 64 hexadecimal digits"), unit: "", read: read::pins,
        doc: "With verify = \"pinned\": the certificates accepted, as `openssl x509 -in FILE -outform DER | sha256sum` \
              prints them.",
        cost: "a backend with a new certificate is down until it is listed",
    }
    CLIENT_CHAIN: PathBuf {
        PoolTls."certificate", default: Default::Absent("none is shown", "\"/etc/tandem/lb1.pem\""),
        accepts: Accepts::Form("the path of a PEM file"), unit: "", read: read::path,
        doc: "The certificate that is shown to backends that ask for one, followed by its intermediates.",
        cost: "",
    }
    CLIENT_KEY: PathBuf {
        PoolTls."key", default: Default::Absent("none is shown", "\"/etc/tandem/lb1.key\""),
        accepts: Accepts::Form("the path of a PEM file"), unit: "", read: read::path,
        doc: "Its private key, without a passphrase.",
        cost: "",
    }

    BACKEND_NAME: String {
        Backend."name", default: Default::Required("\"pbx1\""),
        accepts: Accepts::Form("1 to 63 letters, digits, '-', '_' and '.'"), unit: "", read: read::name,
        doc: "Name, unique over all pools. Cookies carry its hash, so a new name is a new backend to live dialogs.",
        cost: "",
    }
    BACKEND_ADDRESS: (Transport, SocketAddr) {
        Backend."address", default: Default::Required("\"udp:127.0.0.1:5071\""),
        accepts: Accepts::Form("an address such as \"udp:192.0.2.10:5060\""), unit: "", read: read::backend_address,
        doc: "Where it listens, over udp, tcp or tls; unique over all pools.",
        cost: "",
    }
    LARGE_ADDRESS: (Transport, SocketAddr) {
        Backend."large_address",
        default: Default::Absent("large requests go over UDP too", "\"tcp:127.0.0.1:5071\""),
        accepts: Accepts::Form("an address such as \"tcp:192.0.2.10:5060\""), unit: "", read: read::large_address,
        doc: "Where a udp backend takes requests over udp_bytes_max, over tcp or tls.",
        cost: "a connection from each worker that has such a request",
    }
    PROXY_PROTOCOL: ProxyProtocol {
        Backend."proxy_protocol", default: Default::Literal("\"none\""),
        accepts: Accepts::Words(&["none", "v1", "v2"]), unit: "", read: read::word,
        doc: "The PROXY protocol header with which connections to it begin, for tcp and tls: each client has a connection \
              of its own then, and the header its address.",
        cost: "a connection for each client and worker instead of one for all; they end when idle for idle_timeout",
    }
    WEIGHT: u32 {
        Backend."weight", default: Default::Literal("100"),
        accepts: Accepts::Number(0, 65_535), unit: "", read: read::number,
        doc: "Share of new dialogs, relative to the other backends of its priority; 0 takes no new dialogs and keeps \
              its own.",
        cost: "",
    }
    PRIORITY: u8 {
        Backend."priority", default: Default::Literal("0"),
        accepts: Accepts::Number(0, 255), unit: "", read: read::number,
        doc: "Tier: the lowest number that has a healthy backend serves alone.",
        cost: "",
    }
    ADMIN: Admin {
        Backend."admin", default: Default::Literal("\"enabled\""),
        accepts: Accepts::Words(&["enabled", "drained", "disabled"]), unit: "", read: read::word,
        doc: "What the operator wants: \"enabled\"; \"drained\" keeps its dialogs and takes no new ones; \"disabled\" \
              takes nothing and is not probed.",
        cost: "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_one_block_that_says_something() {
        for (index, about) in ALL.iter().enumerate() {
            let is_same = |other: &&&About| other.section == about.section && other.name == about.name;
            assert_eq!(ALL.iter().position(|other| is_same(&other)), Some(index), "{}", about.name);
            assert!(about.doc.ends_with('.'), "{}", about.name);
            assert!(!about.cost.ends_with('.'), "{}", about.name);
        }
    }

    #[test]
    fn every_word_of_the_table_has_a_meaning() {
        use super::super::read::Word;
        let words = |about: &About| if let Accepts::Words(words) = about.accepts { words } else { &[] };
        assert!(words(&POLICY.about).iter().all(|word| Policy::from_word(word).is_some()));
        assert!(words(&PROBE.about).iter().all(|word| Probe::from_word(word).is_some()));
        assert!(words(&ADMIN.about).iter().all(|word| Admin::from_word(word).is_some()));
        assert!(words(&CLIENT_CERTIFICATE.about).iter().all(|word| ClientCertificate::from_word(word).is_some()));
        assert!(words(&MIN_VERSION.about).iter().all(|word| TlsVersion::from_word(word).is_some()));
        assert!(words(&VERIFY.about).iter().all(|word| Verify::from_word(word).is_some()));
        assert!(words(&PROXY_PROTOCOL.about).iter().all(|word| ProxyProtocol::from_word(word).is_some()));
    }
}
