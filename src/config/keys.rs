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

use super::key::{About, Accepts, Default, Key, Section};
use super::read;
use super::values::{Admin, Listen, Policy, Probe, Secret, Workers};
use crate::base::id::Transport;

/// Workers of one process: each has a ring to each other, so rings grow with the square.
pub const WORKERS_MAX: usize = 256;
/// Core numbers are less than this.
pub const CORES_MAX: usize = 1_024;
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
const HOUR: Duration = Duration::from_secs(3_600);

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
        doc: "The secret before the last change: what it signed is still accepted, so that dialogs live on.",
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

    BINDING_EARLY: Duration {
        Timers."binding_early", default: Default::Literal("\"5m\""),
        accepts: Accepts::Duration(Duration::from_secs(200), Duration::from_secs(86_400)), unit: "", read: read::duration,
        doc: "How long a binding lives whose INVITE has no final answer. More than Timer C, 3 minutes (RFC 3261 \
              section 16.6).",
        cost: "a binding each, for as long",
    }
    BINDING_DIALOG: Duration {
        Timers."binding_dialog", default: Default::Literal("\"1h\""),
        accepts: Accepts::Duration(Duration::from_secs(60), Duration::from_secs(7 * 86_400)), unit: "",
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

    SERVICE_NAME: String {
        Service."name", default: Default::Required("\"voice\""),
        accepts: Accepts::Form("1 to 63 letters, digits, '-', '_' and '.'"), unit: "", read: read::name,
        doc: "Unique name of the service.",
        cost: "",
    }
    LISTEN: Vec<Listen> {
        Service."listen", default: Default::Required("[\"udp:127.0.0.1:5060\"]"),
        accepts: Accepts::Form("a list of addresses such as [\"udp:192.0.2.10:5060\", \"udp:[2001:db8::1]:5060\"]"),
        unit: "", read: read::listens,
        doc: "The addresses of this machine that clients send to; never a wildcard, as answers leave from the address \
              that was asked.",
        cost: "one socket and one set of receive buffers each, per worker",
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

    BACKEND_NAME: String {
        Backend."name", default: Default::Required("\"pbx1\""),
        accepts: Accepts::Form("1 to 63 letters, digits, '-', '_' and '.'"), unit: "", read: read::name,
        doc: "Name, unique over all pools. Cookies carry its hash, so a new name is a new backend to live dialogs.",
        cost: "",
    }
    BACKEND_ADDRESS: (Transport, SocketAddr) {
        Backend."address", default: Default::Required("\"udp:127.0.0.1:5071\""),
        accepts: Accepts::Form("an address such as \"udp:192.0.2.10:5060\""), unit: "", read: read::backend_address,
        doc: "Where it listens, unique over all pools.",
        cost: "",
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
    }
}
