//! `tandem run -c FILE`: the service.
//!
//! What `tandem ctl` asks comes through `node.control_socket`. Signals: SIGHUP loads the file again, SIGUSR1 prints the counters, SIGTERM and SIGINT stop gracefully. A node one of
//! whose threads has ended stops as a whole and fails, so that a supervisor starts it anew.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::load_or_explain;
use crate::shell::control_socket::{Asked, ControlSocket};
use crate::shell::node::Node;

/// How often the node's threads are looked after.
const WATCH: Duration = Duration::from_secs(1);

/// Arguments of `tandem run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Print the counters at the end, in Prometheus' text format
    #[arg(long)]
    pub report: bool,
}

enum Wish {
    Reload,
    Report,
    Stop,
    LookAfter,
    Serve(Asked),
}

struct Signals {
    hangup: Signal,
    user: Signal,
    terminate: Signal,
    interrupt: Signal,
}

/// Serves until told to stop.
///
/// # Errors
///
/// When the node does not start or one of its threads fails.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let config = load_or_explain(&args.config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before anything serves, so that no signal meets the default action.
    let mut signals = runtime.block_on(async { Signals::new() }).context("cannot listen to signals")?;
    let socket =
        runtime.block_on(async { config.node.control_socket.as_deref().map(ControlSocket::bind).transpose() })?;
    let listen: Vec<String> = config
        .services
        .iter()
        .flat_map(|service| service.listen.iter().map(|l| format!("{}:{}", l.transport, l.address)))
        .collect();
    let name = config.node.name.clone();
    let node = Node::start(config, Some(args.config.clone()))?;
    let placement = node.placement();
    tracing::info!(
        node = name,
        listen = listen.join(" "),
        workers = ?placement.workers,
        control = placement.control,
        "serving"
    );
    loop {
        match runtime.block_on(signals.next(socket.as_ref())) {
            Wish::Serve(asked) => {
                let answer = asked.obey(&node);
                runtime.block_on(asked.answer(&answer));
            }
            Wish::Reload => match node.reload() {
                Ok(diff) => tracing::info!("reloaded {}: {diff}", args.config.display()),
                Err(error) => tracing::error!("reload refused, the old configuration goes on: {error}"),
            },
            Wish::Report => print(&node.report().render()),
            Wish::Stop => break,
            Wish::LookAfter if node.is_running() => {}
            Wish::LookAfter => {
                let failed = node.stop();
                bail!("a thread has ended: {:#}", failed.err().unwrap_or_else(|| anyhow::anyhow!("no reason given")));
            }
        }
    }
    tracing::info!("stopping: forwarding what has arrived");
    let report = node.stop()?;
    if args.report {
        print(&report.render());
    }
    let (received, forwarded) = report.workers.iter().fold((0, 0), |(received, forwarded), worker| {
        let c = &worker.counters;
        (received + c.received, forwarded + c.requests_forwarded + c.responses_forwarded)
    });
    tracing::info!(received, forwarded, "stopped");
    Ok(ExitCode::SUCCESS)
}

/// Nobody reads what cannot be written.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self, socket: Option<&ControlSocket>) -> Wish {
        let asked = async {
            match socket {
                Some(socket) => socket.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.hangup.recv() => Wish::Reload,
            _ = self.user.recv() => Wish::Report,
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            asked = asked => Wish::Serve(asked),
            () = tokio::time::sleep(WATCH) => Wish::LookAfter,
        }
    }
}
