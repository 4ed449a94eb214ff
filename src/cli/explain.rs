//! `tandem explain -c FILE < message`: what would become of a message, and why.
//!
//! Runs the message through the same decision and the same engine as `run`, with every enabled backend healthy and no
//! call known before, and prints key, owner, verdict, reason, backend and the bytes that would leave. With
//! `node.secret` in the file, tokens and branches of the running node are understood and the owner is the real one.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};

use super::load_or_explain;
use crate::base::id::FlowId;
use crate::base::time::Instant;
use crate::config::{Config, Placement, Secret, show_address};
use crate::engine::outbox::{DATAGRAM_MAX, Outbox};
use crate::engine::{Capacity, Engine, Received};
use crate::metrics::{Counters, Reason};
use crate::route::decide::{Scene, decide};
use crate::route::key::CallHasher;
use crate::route::request::Request;
use crate::route::snapshot::{BackendStatus, Listener, ListenerIndex, Snapshot};
use crate::route::verdict::{Forward, Verdict};
use crate::shell::node::available_cores;
use crate::sip::scan::{HeaderName, Scan, StartLine};

/// Arguments of `tandem explain`.
#[derive(Clone, Debug, clap::Args)]
pub struct ExplainArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Where the message comes from, IP:PORT
    #[arg(long, value_name = "IP:PORT", default_value = "203.0.113.1:5060")]
    pub source: SocketAddr,
    /// The listening address it comes to, as in listen or without its transport; the first of the file if not given
    #[arg(long, value_name = "[TRANSPORT:]IP:PORT")]
    pub listener: Option<String>,
}

/// Reads a message from standard input and explains it.
///
/// # Errors
///
/// When the file or the listener is not one to work with.
pub fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let config = load_or_explain(&args.config)?;
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(DATAGRAM_MAX as u64 + 1).read_to_end(&mut bytes).context("cannot read the message")?;
    let text = explain(config, args.source, args.listener.as_deref(), &bytes)?;
    std::io::stdout().lock().write_all(&text).context("cannot write")?;
    Ok(ExitCode::SUCCESS)
}

/// The explanation as text, the bytes that would leave as they are.
///
/// # Errors
///
/// When `listener` is none of the configured addresses.
pub fn explain(
    mut config: Config,
    source: SocketAddr,
    listener: Option<&str>,
    bytes: &[u8],
) -> anyhow::Result<Vec<u8>> {
    let has_secret = config.node.secret.is_some();
    let secret = config.node.secret.get_or_insert(Secret([0; 16])).clone();
    let workers = Placement::of(&config.node, &available_cores()).workers.len();
    let healthy = |backend: &crate::config::Backend| BackendStatus { admin: backend.admin, is_healthy: true };
    let snapshot = Arc::new(Snapshot::build(&config, 0, workers, healthy));
    let position = match listener {
        None => 0,
        Some(text) => {
            let is_meant = |l: &Listener| text == l.listen.address.to_string() || text == l.listen.to_string();
            match snapshot.listeners.iter().position(is_meant) {
                Some(position) => position,
                None => bail!("{text} is no listening address of this file"),
            }
        }
    };
    let transport = snapshot.listeners[position].listen.transport;
    let flow = transport.is_stream().then(|| FlowId::new(0, transport, 0, 0));
    let rx = Received { bytes, source, listener: ListenerIndex(position as u16), flow, is_taken_over: true };
    let capacity =
        Capacity { bindings: 1, headers: config.limits.headers_max, message_bytes: config.limits.message_bytes_max };
    let mut engine = Engine::new(0, Arc::clone(&snapshot), CallHasher::new(&secret), capacity);
    let mut text = String::new();
    let _ = writeln!(text, "received   {} bytes from {source} at {}", bytes.len(), snapshot.listeners[position].listen);
    describe_decision(&mut text, &engine, &snapshot, &rx, config.limits.headers_max);
    if !has_secret {
        let _ =
            writeln!(text, "note       the file has no node.secret: owner, token and branch differ in a running node");
    }
    let mut outbox = Outbox::with_capacity(1, DATAGRAM_MAX);
    engine.handle(Instant(0), &rx, &mut outbox);
    describe_outcome(&mut text, &engine.counters());
    let mut out = text.into_bytes();
    for transmit in outbox.transmits() {
        let datagram = outbox.bytes(transmit);
        let hop = transmit.hop;
        let from = snapshot.listener(hop.listener).listen.address;
        let (len, to) = (datagram.len(), show_address(hop.transport, hop.destination));
        match hop.transport.is_stream() {
            false => write!(out, "sent       {len} bytes from {from} to {to}\n\n")?,
            true => write!(out, "sent       {len} bytes to {to}\n\n")?,
        }
        out.extend_from_slice(datagram);
    }
    Ok(out)
}

/// What the scan finds and what [`decide`] says.
fn describe_decision(text: &mut String, engine: &Engine, snapshot: &Snapshot, rx: &Received<'_>, headers_max: usize) {
    let mut scan = Scan::with_capacity(headers_max);
    if scan.scan(rx.bytes).is_err() {
        return;
    }
    let call_id = scan.first(HeaderName::CallId).map_or(&[][..], |h| h.value.of(rx.bytes));
    let (key, owner) = engine.owner_of(call_id);
    let _ = writeln!(text, "key        {:032x} of Call-ID {}", key.0, String::from_utf8_lossy(call_id));
    let _ = writeln!(text, "owner      worker {owner}");
    let Some(StartLine::Request { method, uri }) = scan.start_line() else { return };
    let Ok(request) = Request::decode(rx.bytes, &scan, method, uri) else { return };
    let scene =
        Scene { snapshot, ingress: rx.listener, source: rx.source, flow: rx.flow, binding: None, transaction: 0 };
    let (verdict, is_forged) = decide(&scene, &request);
    if is_forged {
        let _ = writeln!(text, "token      refused: forged, of another call, or signed by another secret");
    }
    let _ = match verdict {
        Verdict::Forward(forward) => describe_forward(text, snapshot, &forward),
        Verdict::Answer(status, _) => writeln!(text, "verdict    answer {} {}", status.code(), status.phrase()),
        Verdict::Drop(_) => writeln!(text, "verdict    drop"),
    };
}

fn describe_forward(text: &mut String, snapshot: &Snapshot, forward: &Forward) -> std::fmt::Result {
    writeln!(text, "verdict    forward, decided by {}", forward.why.label())?;
    match forward.backend {
        Some(index) => {
            let backend = snapshot.backend(index);
            let pool = &snapshot.pools[backend.pool];
            writeln!(text, "backend    {} of pool {}, weight {}", backend.name, pool.name, backend.weight)?;
        }
        None => writeln!(text, "backend    none: it goes to a client")?,
    }
    let route = forward.route;
    if route.own_count() > 0 || route.restores_request_uri || route.next_is_strict {
        let restored = if route.restores_request_uri { ", Request-URI restored from the last Route" } else { "" };
        let strict = if route.next_is_strict { ", next hop is a strict router" } else { "" };
        writeln!(text, "route      {} of ours removed{restored}{strict}", route.own_count())?;
    }
    match forward.record {
        Some(_) => writeln!(text, "record     Tandem stays on the path of the dialog"),
        None => Ok(()),
    }
}

/// The reason that the engine counted.
fn describe_outcome(text: &mut String, counters: &Counters) {
    for (what, counts) in [("answered", &counters.answered), ("dropped", &counters.dropped)] {
        for (reason, _) in Reason::ALL.iter().zip(counts).filter(|(_, count)| **count > 0) {
            let _ = writeln!(text, "{what:<10} {}: {}", reason.label(), reason.text());
        }
    }
}
