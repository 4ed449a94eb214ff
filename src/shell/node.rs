//! A running node: sockets bound, workers pinned, control thread going.
//!
//! It starts or refuses to start: every address is bound and every ring made before the first datagram is read, and
//! an address that another process listens on is an error although SO_REUSEPORT would let us share it. From then on
//! nothing here is on the message path: snapshots go to the workers over channels, reports come back on request.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use anyhow::{Context, bail};
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement as CpuPlacement, PoolPlacement};

use super::bind::{Sockets, bind_all};
use super::control_handle::{CommandError, Handle};
use super::control_loop::{self, Options};
use super::handover::{self, Doorbell, Giver, Taker};
use super::stream::StreamPolicy;
use super::sys::{Ring, RingSetup, Waker};
use super::tls::TlsMaterial;
use super::worker_loop::{Command, Report, Setup, TICK, Worker};
use crate::base::id::BackendId;
use crate::config::{Admin, Config, Limits, Placement, Problem, Secret, load};
use crate::control::BackendView;
use crate::control::diff::Diff;
use crate::engine::{Capacity, Engine};
use crate::metrics::{Counters, prometheus};
use crate::route::key::CallHasher;
use crate::route::snapshot::{BackendStatus, Snapshot};

/// Commands that may wait at a worker; it looks every turn, so a full queue means that it hangs.
const COMMANDS_MAX: usize = 64;

/// Words of failed connections that may wait at the control core.
const FAILURES_MAX: usize = 1024;

/// How long a report is waited for.
const REPORT_MAX: Duration = Duration::from_millis(500);

/// A worker is one future that never yields, since glommio 0.9.0 goes to sleep on a task that can run when its preempt
/// timer fires before the task does (`run_one_task_queue` breaks off, and `run` takes that for idleness).
const PREEMPT_NEVER: Duration = Duration::from_secs(365 * 86_400);

/// glommio's own rings: we do no file I/O with them, so the least it takes.
const IO_MEMORY: usize = 64 << 10;

/// What the control thread knows of the node.
#[derive(Clone, Debug)]
pub struct Status {
    /// All backends, in the order of the configuration.
    pub backends: Vec<BackendView>,
}

/// What the workers did since they started.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// One report a worker, by number.
    pub workers: Vec<Report>,
    /// The backends that the reports name.
    pub backends: Vec<(BackendId, String)>,
}

/// A running node. Dropping it ends its threads without waiting for them.
pub struct Node {
    control: Handle,
    lines: Vec<Line>,
    threads: Vec<ExecutorJoinHandle<anyhow::Result<Report>>>,
    placement: Placement,
}

/// The way to a worker.
#[derive(Clone)]
struct Line {
    commands: Sender<Command>,
    doorbell: Doorbell,
    /// Disconnected when the worker has ended.
    life: Receiver<()>,
}

impl Line {
    fn send(&self, command: Command) -> bool {
        let is_sent = self.commands.try_send(command).is_ok();
        self.doorbell.ring();
        is_sent
    }
}

impl Node {
    /// Binds everything and starts workers and control thread; returns when the node serves. `file` is read again on
    /// [`Node::reload`].
    ///
    /// # Errors
    ///
    /// An address that cannot be bound, a core that cannot be had, io_uring that is switched off; the text says what
    /// to do.
    pub fn start(mut config: Config, file: Option<PathBuf>) -> anyhow::Result<Node> {
        let placement = Placement::of(&config.node, &available_cores());
        let workers = placement.workers.len();
        if workers == 0 {
            bail!("none of the cores in node.workers can be used by this process");
        }
        let drawn = match config.node.secret {
            Some(_) => None,
            None => Some(Secret(random()?)),
        };
        config.node.secret = config.node.secret.or_else(|| drawn.clone());
        let healthy = |backend: &crate::config::Backend| BackendStatus { admin: backend.admin, is_healthy: true };
        let snapshot = Arc::new(Snapshot::build(&config, 0, workers, healthy));
        allow_connections(&config, workers);
        let sockets = bind_all(&config, workers)?;
        let mut material = load_material(&config, None).map_err(anyhow::Error::msg)?;
        let policy = Arc::new(StreamPolicy::new(&config, Arc::clone(&material)));
        let (failures, failed) = tokio::sync::mpsc::channel(FAILURES_MAX);
        let doorbells = (0..workers).map(|_| Waker::new().map(Doorbell::new)).collect::<io::Result<Vec<_>>>()?;
        let (givers, takers) = handover_rings(&doorbells, config.limits.handoff_ring_bytes);
        let hasher = CallHasher::new(config.node.secret.as_ref().context("a secret was just drawn")?);
        let epoch = Clock::now();
        let (mut lines, mut threads) = (Vec::new(), Vec::new());
        let parts = sockets.into_iter().zip(givers).zip(takers).zip(doorbells).enumerate();
        for (worker, (((sockets, givers), takers), doorbell)) in parts {
            let (commands, inbox) = bounded(COMMANDS_MAX);
            let capacity = Capacity {
                bindings: config.limits.bindings_max,
                headers: config.limits.headers_max,
                message_bytes: config.limits.message_bytes_max,
            };
            let worker = worker as u16;
            let engine = Engine::new(worker, Arc::clone(&snapshot), hasher, capacity);
            let (alive, life) = bounded(0);
            lines.push(Line { commands, doorbell: doorbell.clone(), life });
            let failures = failures.clone();
            let setup = Setup {
                worker,
                alive,
                epoch,
                engine,
                commands: inbox,
                doorbell,
                givers,
                takers,
                spin: config.node.spin,
                sockets: sockets.datagrams.iter().map(|(listener, _)| *listener).collect(),
                stream_sockets: sockets.streams.iter().map(|(listener, _)| *listener).collect(),
                policy: Arc::clone(&policy),
                seed: u32::from_ne_bytes(random()?),
                // When many fail at once, one word of each is enough.
                failures: Box::new(move |backend| {
                    let _ = failures.try_send(backend);
                }),
            };
            let core = placement.workers[usize::from(worker)];
            threads.push(start_worker(setup, sockets, &config.limits, core)?);
        }
        let (publish_lines, policy_lines) = (lines.clone(), lines.clone());
        let options = Options {
            config,
            workers,
            core: Some(placement.control),
            seed: None,
            load: Box::new(move || reload_file(file.as_ref(), drawn.as_ref(), &mut material)),
            publish: Box::new(move |snapshot| publish(&publish_lines, || Command::Apply(Arc::clone(&snapshot)))),
            failed,
            policy,
            publish_policy: Box::new(move |policy| {
                publish(&policy_lines, || Command::ApplyPolicy(Arc::clone(policy)));
            }),
        };
        let control = control_loop::spawn(options).context("cannot start the control thread")?;
        Ok(Node { control, lines, threads, placement })
    }

    /// Loads the file again and applies what changed.
    ///
    /// # Errors
    ///
    /// Why the old configuration stays.
    pub fn reload(&self) -> Result<Diff, CommandError> {
        self.control.reload()
    }

    /// Sets what the operator wants of a backend; gives back what it was.
    ///
    /// # Errors
    ///
    /// When no backend has that name.
    pub fn set_admin(&self, backend: &str, admin: Admin) -> Result<Admin, CommandError> {
        self.control.set_admin(backend, admin)
    }

    /// The state of all backends, at most 100 ms old; cheap.
    pub fn status(&self) -> Status {
        Status { backends: self.control.status() }
    }

    /// Which core does what.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Does every thread still run? None ends by itself but by a defect or a kernel that refuses to go on.
    pub fn is_running(&self) -> bool {
        self.control.is_running() && self.lines.iter().all(|line| line.life.try_recv() == Err(TryRecvError::Empty))
    }

    /// Asks every worker for its report and waits at most half a second for each.
    pub fn report(&self) -> NodeReport {
        let replies: Vec<Receiver<Report>> = self.lines.iter().map(ask_report).collect();
        let workers = replies.iter().filter_map(|reply| reply.recv_timeout(REPORT_MAX).ok()).collect();
        NodeReport { workers, backends: self.names() }
    }

    /// Stops gracefully: no new probes, what has arrived is forwarded, then the threads end.
    ///
    /// # Errors
    ///
    /// When a thread had failed.
    pub fn stop(self) -> anyhow::Result<NodeReport> {
        let backends = self.names();
        let control = self.control.stop();
        for line in &self.lines {
            line.send(Command::Stop);
        }
        let mut workers = Vec::new();
        for thread in self.threads {
            workers.push(thread.join().map_err(|error| anyhow::anyhow!("a worker panicked: {error}"))??);
        }
        control.context("the control thread failed")?;
        Ok(NodeReport { workers, backends })
    }

    fn names(&self) -> Vec<(BackendId, String)> {
        let name = |view: BackendView| (BackendId::from_name(&view.name), view.name);
        self.control.status().into_iter().map(name).collect()
    }
}

impl NodeReport {
    /// The counters in Prometheus' exposition format.
    pub fn render(&self) -> String {
        let counters: Vec<Counters> = self.workers.iter().map(|w| w.counters.clone()).collect();
        let mut text = prometheus::render(&counters);
        let name = |id| self.backends.iter().find(|(known, _)| *known == id).map_or("removed", |(_, name)| name);
        for (metric, help) in
            [("backend_selected_total", "New dialogs given."), ("backend_requests_total", "Requests sent.")]
        {
            prometheus::render_head(&mut text, metric, help, "counter");
            for report in &self.workers {
                for (id, counted) in &report.backends {
                    let value = if metric == "backend_selected_total" { counted.selected } else { counted.requests };
                    prometheus::render_backend(&mut text, metric, report.worker, name(*id), value);
                }
            }
        }
        prometheus::render_head(
            &mut text,
            "dwell_seconds",
            "Reception of a batch to the end of its sending.",
            "summary",
        );
        for report in &self.workers {
            for quantile in [0.5, 0.99, 0.999] {
                let seconds = report.dwell_ns.value_at_quantile(quantile) as f64 / 1e9;
                prometheus::render_quantile(&mut text, "dwell_seconds", report.worker, quantile, seconds);
            }
        }
        text
    }
}

/// The cores that this process may use, in ascending order; core 0 when the machine will not say.
pub fn available_cores() -> Vec<usize> {
    let mut cores: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    cores.sort_unstable();
    if cores.is_empty() { vec![0] } else { cores }
}

fn ask_report(line: &Line) -> Receiver<Report> {
    let (reply, receiver) = bounded(1);
    line.send(Command::Report(reply));
    receiver
}

fn publish(lines: &[Line], command: impl Fn() -> Command) {
    for (worker, line) in lines.iter().enumerate() {
        if !line.send(command()) {
            tracing::error!(worker, "the worker takes no news: its queue is full or it has ended");
        }
    }
}

/// A connection is a file to the kernel: takes all that the process may have, and says when that is less than the file of
/// configuration promises.
fn allow_connections(config: &Config, workers: usize) {
    let is_stream = |listen: &crate::config::Listen| listen.transport.is_stream();
    if !config.services.iter().flat_map(|service| &service.listen).any(is_stream) {
        return;
    }
    let promised = (config.limits.connections_max * workers) as u64;
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(most) if most < promised => tracing::warn!(
            "limits.connections_max promises {promised} connections and the process may have {most} open files; raise \
             LimitNOFILE (ulimit -Hn), or lower the promise"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot tell how many connections there may be"),
    }
}

/// The certificates and keys that a configuration names; an error is a line for each file that cannot be used.
fn load_material(config: &Config, previous: Option<&TlsMaterial>) -> Result<Arc<TlsMaterial>, String> {
    let (material, warnings) = TlsMaterial::load(config, previous).map_err(lines)?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    Ok(Arc::new(material))
}

fn lines(problems: Vec<Problem>) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The file again, with what it names; `material` is what was loaded before, and becomes what was loaded.
fn reload_file(
    file: Option<&PathBuf>,
    drawn: Option<&Secret>,
    material: &mut Arc<TlsMaterial>,
) -> Result<(Config, StreamPolicy), String> {
    let Some(file) = file else { return Err("this node was started without a file".to_owned()) };
    let loaded = load(file).map_err(lines)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let mut config = loaded.config;
    config.node.secret = config.node.secret.or_else(|| drawn.cloned());
    *material = load_material(&config, Some(material))?;
    let policy = StreamPolicy::new(&config, Arc::clone(material));
    Ok((config, policy))
}

/// Random bytes from the system.
fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
    Ok(bytes)
}

/// For each worker the giving ends by owner and the taking ends.
#[allow(clippy::type_complexity, reason = "two tables of rings, named at the only call")]
fn handover_rings(doorbells: &[Doorbell], bytes: usize) -> (Vec<Vec<Option<Giver>>>, Vec<Vec<Taker>>) {
    let workers = doorbells.len();
    let mut takers: Vec<Vec<Taker>> = (0..workers).map(|_| Vec::new()).collect();
    let mut givers = Vec::new();
    for from in 0..workers {
        let mut row = Vec::new();
        for (to, doorbell) in doorbells.iter().enumerate() {
            row.push((from != to).then(|| {
                let (giver, taker) = handover::ring(bytes, doorbell.clone());
                takers[to].push(taker);
                giver
            }));
        }
        givers.push(row);
    }
    (givers, takers)
}

fn start_worker(
    setup: Setup,
    sockets: Sockets,
    limits: &Limits,
    core: usize,
) -> anyhow::Result<ExecutorJoinHandle<anyhow::Result<Report>>> {
    let name = format!("tandem-worker-{}", setup.worker);
    let (ready, is_ready) = bounded(1);
    let ring = RingSetup {
        sockets: sockets.datagrams.into_iter().map(|(_, socket)| socket).collect(),
        listeners: sockets.streams.into_iter().map(|(_, listener)| listener).collect(),
        datagram_buffers: limits.receive_buffers,
        stream_buffers: limits.stream_buffers,
        tick: TICK,
        waker: setup.doorbell.waker().clone(),
    };
    let thread = LocalExecutorBuilder::new(CpuPlacement::Fixed(core))
        .name(&name)
        .io_memory(IO_MEMORY)
        .preempt_timer(PREEMPT_NEVER)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .spawn(move || async move {
            match Ring::new(ring) {
                Ok(ring) => {
                    let worker = Worker::new(setup, ring)?;
                    drop(ready.send(Ok(())));
                    worker.run()
                }
                Err(error) => {
                    drop(ready.send(Err(error)));
                    bail!("no ring")
                }
            }
        })
        .map_err(|error| {
            anyhow::anyhow!(
                "cannot start a worker on core {core}: {error}; glommio needs io_uring (see kernel.io_uring_disabled and \
                 the container's seccomp profile) and 512 KiB of locked memory (ulimit -l)"
            )
        })?;
    match is_ready.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error).context(
            "cannot make an io_uring; it needs Linux 6.1 or later and kernel.io_uring_disabled = 0, also inside a \
             container's seccomp profile",
        ),
        Err(_) => bail!("the worker on core {core} ended before it was ready"),
    }
}
