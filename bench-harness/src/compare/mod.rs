//! Comparison: several proxies under the same load, in turn, round after round.
//!
//! In every round each arm is started afresh on its core, warmed up, measured for a window and ended; the order
//! rotates from round to round, so that a drift of the machine meets all arms alike. The generator runs on the other
//! core, in this process. The result is CPU time of the arm's whole process group per forwarded message.
//!
//! Over connections all arms have as many from callers, kept alive and spread over all calls, and TLS of one version and
//! cipher suite with the same certificate; the report has how many connections each arm made to the backends.
//!
//! The bare forwarder is about as fast as the generator, so it may not be saturated: see the busy share beside it. A
//! proxy that waits pays for more wake-ups per message, so a floor measured like that is, if anything, too high.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::certificates::write_files;
use crate::generator::{self, Edge, Load, Mix, Options};
use crate::sys;
use crate::transport::Transport;

pub mod arm;
pub mod record;
pub mod summary;

use arm::{Arm, Bench, Usage};
use summary::{FAILED_SHARE_MAX, Measurement};

/// Callers over connections: enough that no proxy sees one long stream, few enough that each is busy.
const STREAM_CALLERS: u16 = 16;

/// What `compare` is asked for.
#[derive(clap::Args)]
pub struct Arguments {
    /// How often every arm is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of a measuring window in seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Load before each window, in seconds.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Closed loop: calls always in progress.
    #[arg(long, default_value_t = 64)]
    window: usize,
    /// Open loop instead: calls started per second.
    #[arg(long, conflicts_with = "window")]
    rate: Option<f64>,
    /// Let the generator sleep when it has nothing to do, at the cost of the proxy that wakes it.
    #[arg(long)]
    sleep: bool,
    /// Relative weights of what is sent.
    #[arg(long, default_value = "invite=1,register=0,options=0")]
    mix: Mix,
    /// What callers and backends speak, with all arms.
    #[arg(long, default_value_t)]
    transport: Transport,
    /// What backends speak instead.
    #[arg(long)]
    backend_transport: Option<Transport>,
    /// Callers, each with a socket or connection of its own [default: 1 over udp, 16 over tcp and tls].
    #[arg(long)]
    callers: Option<u16>,
    /// Number of backends.
    #[arg(long, default_value_t = 2)]
    backends: u8,
    /// Tandem's binary [default: target/release/tandem of this repository].
    #[arg(long)]
    tandem: Option<PathBuf>,
    /// Which proxies, joined by commas.
    #[arg(long, value_delimiter = ',', default_value = "bare,tandem,kamailio")]
    arms: Vec<Arm>,
    /// The core that the proxies run on.
    #[arg(long, default_value_t = 0)]
    proxy_core: usize,
    /// The core that the generator runs on, and Tandem's control thread.
    #[arg(long, default_value_t = 1)]
    generator_core: usize,
    /// Where records go [default: perf/record of this repository].
    #[arg(long)]
    record: Option<PathBuf>,
    /// Write no record.
    #[arg(long)]
    no_record: bool,
}

/// A directory that goes when this value goes.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it being gone.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Measures, prints the table and writes the record.
///
/// # Errors
/// When an arm is missing or does not start, when a signal came, or when no round of some arm was valid.
pub fn run(arguments: &Arguments) -> Result<()> {
    let root = repository();
    let scratch = Scratch(std::env::temp_dir().join(format!("bench-harness-{}", std::process::id())));
    std::fs::create_dir_all(&scratch.0).context("cannot make a temporary directory")?;
    let transports = (arguments.transport, arguments.backend_transport.unwrap_or(arguments.transport));
    if transports.0 != transports.1 && transports.0.is_stream() && transports.1.is_stream() {
        // Every arm listens on one port, which is one of them or the other.
        bail!("--transport and --backend-transport: tcp on one side and tls on the other is not compared");
    }
    let has_tls = transports.0 == Transport::Tls || transports.1 == Transport::Tls;
    let certificates = has_tls.then(|| write_files(&scratch.0, &["127.0.0.1"])).transpose()?;
    let bench = Bench {
        tandem: arguments.tandem.clone().unwrap_or_else(|| root.join("target/release/tandem")),
        scratch: scratch.0.clone(),
        proxy_core: arguments.proxy_core,
        generator_core: arguments.generator_core,
        transport: transports.0,
        backend_transport: transports.1,
        certificates,
    };
    let counts = [arguments.rounds, arguments.arms.len(), arguments.backends.into(), arguments.window];
    if counts.contains(&0) || arguments.callers == Some(0) {
        bail!("--rounds, --arms, --backends, --window and --callers are at least 1");
    }
    for &arm in &arguments.arms {
        bench.check(arm)?;
    }
    let setup = record::Setup::new(&root, &bench, &arguments.arms, arguments.callers());
    let core = arguments.generator_core;
    sys::pin(&[core]).with_context(|| format!("cannot pin the generator to core {core}: the comparison needs two"))?;
    let all = measure_all(arguments, &bench)?;
    let lines = summary::summarize(&arguments.arms, &all);
    let table = summary::table(&lines);
    print!("\n{table}");
    if !arguments.no_record {
        let directory = arguments.record.clone().unwrap_or_else(|| root.join("perf/record"));
        let place = record::write(&directory, &setup, &lines, &all, &table)?;
        println!("Record: {}", place.strip_prefix(&root).unwrap_or(&place).display());
    }
    match lines.iter().find(|line| line.valid == 0) {
        Some(line) => bail!("{}: no valid round", line.arm.name()),
        None => Ok(()),
    }
}

impl Arguments {
    fn callers(&self) -> usize {
        let usual = if self.transport.is_stream() { STREAM_CALLERS } else { 1 };
        self.callers.unwrap_or(usual).into()
    }
}

fn measure_all(arguments: &Arguments, bench: &Bench) -> Result<Vec<Measurement>> {
    let (arms, mut all) = (&arguments.arms, Vec::new());
    for round in 1..=arguments.rounds {
        for turn in 0..arms.len() {
            let arm = arms[(turn + round - 1) % arms.len()];
            let measured = measure(arguments, bench, arm, round)?;
            let verdict = measured.invalid.as_ref().map_or(String::new(), |why| format!("  INVALID: {why}"));
            println!(
                "[{:>3}/{}] round {round} {:<12}{:6.2} us/message {:>8.0} messages/s  busy {:3.0} %  failed {}{verdict}",
                all.len() + 1,
                arms.len() * arguments.rounds,
                arm.name(),
                measured.cpu_us_per_message,
                measured.report.messages_per_second,
                measured.busy_percent,
                measured.report.failed
            );
            all.push(measured);
        }
    }
    Ok(all)
}

fn measure(arguments: &Arguments, bench: &Bench, arm: Arm, round: usize) -> Result<Measurement> {
    let ports = free_addresses(1 + usize::from(arguments.backends))?;
    let (listen, backends) = (ports[0], &ports[1..]);
    let running = bench.start(arm, listen, backends)?;
    let seconds = |value: f64| Duration::try_from_secs_f64(value).context("--seconds and --warmup are times");
    let options = Options {
        target: listen,
        callers: arguments.callers(),
        backends: backends.to_vec(),
        wires: bench.wires()?,
        load: arguments.rate.map_or(Load::Closed(arguments.window), Load::Open),
        mix: arguments.mix,
        warmup: seconds(arguments.warmup)?,
        window: seconds(arguments.seconds)?.max(Duration::from_millis(10)),
        hold: Duration::ZERO,
        timeout: Duration::from_secs(2),
        t1: None,
        concurrency_max: 0,
        is_spinning: !arguments.sleep,
    };
    let (mut edges, clock) = (Vec::with_capacity(2), std::time::Instant::now());
    let report = generator::run(&options, |edge| {
        let usage = running.usage();
        edges.push((edge, usage, clock.elapsed()));
    })
    .with_context(|| format!("round {round} of {}", arm.name()))?;
    let [(Edge::Opens, before, from), (Edge::Closes, after, to)] = &edges[..] else {
        bail!("the generator did not report both edges of its window");
    };
    let failed_share = report.failed as f64 / (report.started as f64).max(1.0);
    let invalid = if before.pids != after.pids || after.pids.is_empty() {
        Some("its processes changed while it was measured".to_owned())
    } else if report.window_messages == 0 {
        Some("it forwarded nothing".to_owned())
    } else if failed_share > FAILED_SHARE_MAX {
        Some(format!("{:.2} % of the calls failed", failed_share * 100.0))
    } else {
        None
    };
    Ok(measurement(round, arm, (before, after), (*to - *from).as_secs_f64(), invalid, report))
}

fn measurement(
    round: usize,
    arm: Arm,
    (before, after): (&Usage, &Usage),
    wall_seconds: f64,
    invalid: Option<String>,
    report: crate::report::Report,
) -> Measurement {
    let cpu_seconds = after.cpu_ns.saturating_sub(before.cpu_ns) as f64 / 1e9;
    Measurement {
        round,
        arm,
        cpu_us_per_message: cpu_seconds * 1e6 / (report.window_messages as f64).max(1.0),
        cpu_seconds,
        user_seconds: after.user.saturating_sub(before.user).as_secs_f64(),
        system_seconds: after.system.saturating_sub(before.system).as_secs_f64(),
        busy_percent: cpu_seconds * 100.0 / wall_seconds.max(1e-9),
        invalid,
        report,
    }
}

/// Loopback addresses that are free now for datagrams and for connections; all are held until all are known, so that
/// they differ.
fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let (mut held, mut tries) = (Vec::with_capacity(count), 0);
    while held.len() < count {
        let listener = TcpListener::bind("127.0.0.1:0").context("no free port")?;
        let address = listener.local_addr().context("no local address")?;
        match UdpSocket::bind(address) {
            Ok(socket) => held.push((address, listener, socket)),
            Err(error) if tries > 100 => return Err(error).context("no free port"),
            Err(_) => tries += 1,
        }
    }
    Ok(held.into_iter().map(|(address, ..)| address).collect())
}

/// The repository: from cargo, else the nearest directory above with a `bench-harness` in it, else here.
fn repository() -> PathBuf {
    let from_cargo = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let start = from_cargo.or_else(|| std::env::current_dir().ok()).unwrap_or_default();
    let found = start.ancestors().find(|path| path.join("bench-harness/Cargo.toml").is_file());
    found.unwrap_or(Path::new(".")).to_path_buf()
}
