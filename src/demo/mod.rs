//! `tandem demo`: Tandem in front of three built-in backends, with calls flowing and one outage to watch.
//!
//! It needs no file, no root and no network beyond loopback. A node of the real thing is started in this process, on a
//! free port and on an embedded configuration; `caller.rs` places calls through it at a fixed rate, each `backend.rs`
//! answers them, and half-way one backend is taken down, as if killed, and up again, so that one can watch the probes
//! take it out and bring it back. The two ends read SIP with a reader of their own (`message.rs`), hold Tandem to the
//! rules of RFC 3261, and count; `summary.rs` judges.
//!
//! ```text
//! caller (call.rs)  ->  Tandem (shell::node)  ->  demo1, demo2, demo3 (backend.rs, uas.rs)
//!        \______ ended calls ____ run.rs ____ new calls ____/      outage.rs, tally.rs -> screen.rs, summary.rs
//! ```
//!
//! Bound: about 40 s worth of calls are held in memory at each end.

mod backend;
mod call;
mod caller;
mod message;
mod outage;
mod run;
mod screen;
mod summary;
mod tally;
mod uas;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use self::backend::Backend;
use crate::base::id::Transport;
use crate::config::{self, Config};
use crate::shell::node::Node;

/// RFC 3261 17.1.1.1: the estimate of the round-trip time.
const T1: Duration = Duration::from_millis(500);

/// RFC 3261 17.1.2.2: the longest interval between retransmissions of a non-INVITE request or of a 2xx.
const T2: Duration = Duration::from_secs(4);

/// The built-in backends and their weights.
const BACKENDS: [(&str, u32); 3] = [("demo1", 50), ("demo2", 30), ("demo3", 20)];

/// What the user may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long calls are placed; `None`: until Ctrl-C, with an outage every minute.
    pub duration: Option<Duration>,
    /// Print one JSON object at the end and nothing else.
    pub is_json: bool,
    /// Calls placed per second, 1 to 5,000.
    pub rate: u32,
}

/// Runs the demo to its end and prints the summary; true when all went as promised.
///
/// # Errors
/// When the node, a socket or a thread cannot be started, when the backends do not become healthy, or when standard
/// output is gone.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    if !options.is_json {
        announce(options).context("cannot write to standard output")?;
    }
    let backends = BACKENDS
        .iter()
        .map(|&(name, weight)| Backend::start(name, weight))
        .collect::<io::Result<Vec<_>>>()
        .context("cannot start the demo backends")?;
    let tandem = Tandem::start(&backends, options.rate)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let summary = runtime.block_on(run::play(options, &tandem, &backends));
    tandem.stop();
    let summary = summary?;
    let text = if options.is_json { serde_json::to_string_pretty(&summary)? + "\n" } else { summary.text() };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")?;
    Ok(summary.ok)
}

/// The first words, while the node warms up.
fn announce(options: &Options) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let until = options.duration.map_or("until Ctrl-C".to_owned(), |duration| format!("for {} s", duration.as_secs()));
    writeln!(out, "Tandem in front of {} demo backends, {} calls/s {until}", BACKENDS.len(), options.rate)?;
    writeln!(out, "warm-up: waiting for the first probes")?;
    out.flush()
}

/// The node under demonstration; the only place that knows how one is started and asked.
struct Tandem {
    node: Node,
    address: SocketAddr,
    workers: usize,
}

impl Tandem {
    fn start(backends: &[Backend], rate: u32) -> anyhow::Result<Tandem> {
        let address = free_address().context("cannot find a free loopback port")?;
        let workers = thread::available_parallelism().map_or(1, |cores| cores.get().min(2));
        let node = Node::start(configuration(address, workers, backends, rate), None)
            .with_context(|| format!("cannot start Tandem on udp:{address}"))?;
        Ok(Tandem { node, address, workers })
    }

    /// Whether Tandem uses each backend, in their order.
    fn is_healthy(&self, backends: &[Backend]) -> Vec<bool> {
        let status = self.node.status();
        let of = |name| status.backends.iter().find(|view| view.name == name).is_some_and(|view| view.is_healthy);
        backends.iter().map(|backend| of(backend.name)).collect()
    }

    fn stop(self) {
        let _report = self.node.stop();
    }
}

/// Waits, on a thread of the demo's own ends.
#[expect(clippy::disallowed_methods, reason = "the demo's callers and backends are no workers and may wait")]
fn pause(duration: Duration) {
    thread::sleep(duration);
}

/// A loopback address that was free a moment ago.
fn free_address() -> io::Result<SocketAddr> {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// The configuration of the demo: one service, one pool, quick probes, tables for `rate` calls a second.
fn configuration(address: SocketAddr, workers: usize, backends: &[Backend], rate: u32) -> Config {
    let binding_linger = Duration::from_secs(32);
    // What lingers, with room to spare for calls that died with their backend.
    let bindings_max = (rate as usize * 4 * binding_linger.as_secs() as usize).next_power_of_two().max(16_384);
    Config {
        node: config::Node {
            name: "demo".to_owned(),
            workers: config::Workers::Count(workers),
            control_core: None,
            secret: None,
            secret_previous: None,
            names: Vec::new(),
            control_socket: None,
            spin: Duration::ZERO,
        },
        limits: config::Limits {
            bindings_max,
            message_bytes_max: 65_507,
            headers_max: 128,
            receive_buffers: 512,
            handoff_ring_bytes: 1 << 20,
            socket_buffer_bytes: 212_992,
            connections_max: 1_024,
            connections_per_source: 1_024,
            stream_buffers: 16,
            write_queue_bytes: 262_144,
            handshakes_max: 64,
        },
        timers: config::Timers {
            binding_early: Duration::from_secs(200),
            binding_dialog: Duration::from_secs(600),
            binding_linger,
            message_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3_600),
            write_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(3),
        },
        certificates: Vec::new(),
        services: vec![config::Service {
            name: "demo".to_owned(),
            listen: vec![config::Listen { transport: Transport::Udp, address }],
            pool: 0,
            record_route: true,
            proxy_protocol_from: Vec::new(),
            origins: Vec::new(),
            sips_over_plain: false,
            tls: config::ServiceTls::default(),
            strip_identity: false,
        }],
        pools: vec![config::Pool {
            name: "demo".to_owned(),
            policy: config::Policy::ConsistentHash,
            retry_after: Duration::from_secs(5),
            udp_bytes_max: 1_300,
            tls: config::PoolTls::default(),
            health: config::Health {
                probe: config::Probe::Options,
                interval: Duration::from_millis(500),
                jitter: Duration::from_millis(50),
                timeout: Duration::from_millis(300),
                rise: 2,
                fall: 2,
            },
            backends: backends.iter().map(backend_configuration).collect(),
        }],
    }
}

fn backend_configuration(backend: &Backend) -> config::Backend {
    config::Backend {
        name: backend.name.to_owned(),
        transport: Transport::Udp,
        address: backend.address,
        large_address: None,
        proxy_protocol: config::ProxyProtocol::None,
        weight: backend.weight,
        priority: 0,
        admin: config::Admin::Enabled,
    }
}

/// A plain audio offer or answer; nobody sends media.
fn sdp(address: SocketAddr) -> String {
    let ip = address.ip();
    format!(
        "v=0\r\no=demo 1 1 IN IP4 {ip}\r\ns=-\r\nc=IN IP4 {ip}\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0 8\r\n\
         a=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\na=sendrecv\r\n"
    )
}
