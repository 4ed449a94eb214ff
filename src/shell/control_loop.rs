//! The control thread: sockets, timers and commands around the pure [`crate::control::Control`].
//!
//! ```text
//!   commands (bounded) --\                        /--> publish(Arc<Snapshot>) to the workers
//!   probe sockets --------> one select, one round ---> probes out
//!   next_deadline --------/                       \--> log, status
//! ```
//!
//! One std thread, pinned if asked, runs a tokio current_thread runtime. Each round reads every waiting answer
//! before it handles timeouts, then drains the events. Probes leave from the address of a listener (any port), so
//! that the backends' access lists see the address they know; one socket a family.
//!
//! Nothing here is on the message path. The status behind a mutex is refreshed at most every 100 ms, and at once
//! when a backend changes state. Bound: `COMMANDS_MAX` waiting commands; [`ANSWERS_PER_ROUND`] answers a round.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc};

use crate::base::id::{BackendId, Transport};
use crate::base::time::Instant;
use crate::config::Config;
use crate::control::diff::Diff;
use crate::control::health::{Reason, State};
use crate::control::{BackendView, Control, Event, SendError};
use crate::route::snapshot::Snapshot;
use crate::shell::control_handle::{COMMANDS_MAX, Command, Handle, Status};
use crate::shell::probe_socket::{classify, open_socket, readable};
use crate::shell::probe_stream::{Report, StreamProber, Target};
use crate::shell::stream::StreamPolicy;

/// Answers read from one socket before timers and commands get their turn again.
pub const ANSWERS_PER_ROUND: usize = 256;

const REFRESH: Duration = Duration::from_millis(100);

/// Loads the configuration anew, with the certificates and keys that it names; the error is text for the operator.
pub type Load = Box<dyn FnMut() -> Result<(Config, StreamPolicy), String> + Send>;

/// Takes each snapshot to the workers; called on the control thread, must not block.
pub type Publish = Box<dyn FnMut(Arc<Snapshot>) + Send>;

/// Takes each policy to the workers; as [`Publish`].
pub type PublishPolicy = Box<dyn FnMut(&Arc<StreamPolicy>) + Send>;

/// What the control thread needs.
pub struct Options {
    /// The configuration to start with.
    pub config: Config,
    /// How many workers share the Call-ID space, at least 1.
    pub workers: usize,
    /// The core to pin the thread to; `None` leaves it to the scheduler.
    pub core: Option<usize>,
    /// Decides jitter and branches; `None` draws it from the system.
    pub seed: Option<u64>,
    /// Called on reload.
    pub load: Load,
    /// Called with each snapshot; the first time before [`spawn`] returns.
    pub publish: Publish,
    /// Backends to which a worker's connection failed.
    pub failed: mpsc::Receiver<BackendId>,
    /// How connections are treated.
    pub policy: Arc<StreamPolicy>,
    /// Called with each policy that a reload brings; must not block.
    pub publish_policy: PublishPolicy,
}

/// Starts the control thread. When this returns, the first snapshot has been published and probing has begun.
///
/// # Errors
///
/// When the system gives no thread or no runtime. A probe socket that cannot be had is a warning in the log.
pub fn spawn(options: Options) -> io::Result<Handle> {
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let stop = Arc::new(Notify::new());
    let status = Arc::new(Mutex::new(Vec::new()));
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    let (stopped, shared) = (Arc::clone(&stop), Arc::clone(&status));
    let thread = std::thread::Builder::new().name("tandem-control".to_owned()).spawn(move || {
        if let Some(core) = options.core
            && !core_affinity::set_for_current(core_affinity::CoreId { id: core })
        {
            tracing::warn!(core, "cannot pin the control thread to its core; the scheduler places it");
        }
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(error))),
        };
        runtime.block_on(async move {
            let mut control = ControlLoop::new(options, shared);
            control.open_sockets().await;
            control.finish_round();
            if ready.send(Ok(())).is_ok() {
                control.run(inbox, &stopped).await;
            }
        });
    })?;
    is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("the control thread ended at its start")))?;
    Ok(Handle { commands, stop, status, thread })
}

struct ControlLoop {
    control: Control,
    origin: std::time::Instant,
    /// For IPv4 and IPv6 backends.
    sockets: [Option<UdpSocket>; 2],
    buffer: Vec<u8>,
    load: Load,
    publish: Publish,
    failed: mpsc::Receiver<BackendId>,
    policy: Arc<StreamPolicy>,
    publish_policy: PublishPolicy,
    prober: StreamProber,
    reports: mpsc::Receiver<Report>,
    status: Arc<Mutex<Vec<BackendView>>>,
    /// When the shared status is next to be refreshed; `None` while it is up to date.
    refresh_at: Option<Instant>,
    /// Pools without any backend for new dialogs.
    empty_pools: BTreeSet<Box<str>>,
}

impl ControlLoop {
    fn new(options: Options, status: Arc<Mutex<Vec<BackendView>>>) -> Self {
        // The standard library's hash keys come from the system's entropy.
        let (reporter, reports) = mpsc::channel(ANSWERS_PER_ROUND);
        let seed = options.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        ControlLoop {
            control: Control::new(options.config, options.workers, seed, Instant::default()),
            origin: std::time::Instant::now(),
            sockets: [None, None],
            buffer: vec![0; 65_536],
            load: options.load,
            publish: options.publish,
            failed: options.failed,
            policy: options.policy,
            publish_policy: options.publish_policy,
            prober: StreamProber::new(reporter),
            reports,
            status,
            refresh_at: None,
            empty_pools: BTreeSet::new(),
        }
    }

    async fn run(&mut self, mut inbox: mpsc::Receiver<Command>, stop: &Notify) {
        loop {
            let wake = [self.control.next_deadline(), self.refresh_at].into_iter().flatten().min();
            let [v4, v6] = &self.sockets;
            let (mut failed, mut report) = (None, None);
            let command = tokio::select! {
                () = stop.notified() => return,
                command = inbox.recv() => match command {
                    Some(command) => Some(command),
                    None => return,
                },
                Some(backend) = self.failed.recv() => {
                    failed = Some(backend);
                    None
                }
                Some(said) = self.reports.recv() => {
                    report = Some(said);
                    None
                }
                () = readable(v4.as_ref()) => None,
                () = readable(v6.as_ref()) => None,
                () = sleep_until(self.origin, wake) => None,
            };
            let woke_at = self.now();
            if let Some(command) = command {
                self.handle_command(command).await;
            }
            if let Some(backend) = failed {
                self.control.handle_connection_failure(woke_at, backend);
            }
            self.read_reports(woke_at, report);
            // Lets the runtime look at the sockets, so that an answer that is there is read before its timeout.
            tokio::task::yield_now().await;
            self.read_answers(woke_at);
            let now = self.now();
            if self.control.next_deadline().is_some_and(|at| at <= now) {
                self.control.handle_timeout(now);
                self.refresh_at.get_or_insert(now + REFRESH);
            }
            self.finish_round();
        }
    }

    async fn handle_command(&mut self, command: Command) {
        // Whoever asked may be gone by now; what was asked is done all the same.
        match command {
            Command::Reload(reply) => {
                let result = self.reload();
                self.open_sockets().await;
                self.finish_round();
                let _ = reply.send(result);
            }
            Command::SetAdmin { backend, admin, reply } => {
                let result = self.control.set_admin(self.now(), &backend, admin);
                if let Ok(before) = &result {
                    tracing::info!(backend, from = ?before, to = ?admin, "admin state set");
                }
                self.finish_round();
                self.refresh();
                let _ = reply.send(result);
            }
            Command::Status(reply) => {
                let (generation, counters) = (self.control.generation(), self.control.counters());
                let _ = reply.send(Status { generation, backends: self.control.view(), counters });
            }
        }
    }

    fn reload(&mut self) -> Result<Diff, String> {
        let loaded = (self.load)();
        let now = self.now();
        let result = loaded.and_then(|(config, policy)| {
            let diff = self.control.apply_config(now, config).map_err(|refusal| refusal.to_string())?;
            // Certificates may have changed where the file has not.
            self.policy = Arc::new(policy);
            self.prober.restart();
            (self.publish_policy)(&self.policy);
            Ok(diff)
        });
        match &result {
            Ok(diff) => tracing::info!(changes = %diff, "configuration reloaded"),
            Err(reason) => tracing::error!("reload refused, the old configuration stays in force: {reason}"),
        }
        result
    }

    /// Reads what waits in the probe sockets. It came at `woke_at` as far as we can tell: how long a command took
    /// after that is not held against a backend.
    fn read_answers(&mut self, woke_at: Instant) {
        for socket in self.sockets.iter().flatten() {
            for _ in 0..ANSWERS_PER_ROUND {
                match socket.try_recv_from(&mut self.buffer) {
                    Ok((length, source)) => {
                        self.control.handle_answer(woke_at, source, &self.buffer[..length]);
                        self.refresh_at.get_or_insert(woke_at + REFRESH);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => tracing::debug!(%error, "probe socket"),
                }
            }
        }
    }

    /// Takes in what the probers say: `first`, and what has come since.
    fn read_reports(&mut self, woke_at: Instant, first: Option<Report>) {
        let mut next = first;
        while let Some(report) = next {
            match report {
                Report::Answer(backend, bytes) => self.control.handle_stream_answer(woke_at, backend, &bytes),
                Report::Failed(backend, error) => self.control.handle_send_error(woke_at, backend, error),
            }
            self.refresh_at.get_or_insert(woke_at + REFRESH);
            next = self.reports.try_recv().ok();
        }
    }

    /// Drains the events and refreshes the status when it is time.
    fn finish_round(&mut self) {
        while let Some(event) = self.control.poll_event() {
            match event {
                Event::Probe { backend, transport, to, bytes } if transport.is_stream() => {
                    self.send_stream_probe(backend, transport, to, bytes);
                }
                Event::Probe { backend, to, bytes, .. } => self.send_probe(backend, to, &bytes),
                Event::Publish(snapshot) => {
                    self.log_empty_pools(&snapshot);
                    tracing::debug!(generation = snapshot.generation, "snapshot published");
                    (self.publish)(snapshot);
                    self.refresh_at = Some(Instant::default());
                }
                Event::BackendChanged { name, from, to, reason } => {
                    log_change(&name, from, to, reason);
                    self.refresh_at = Some(Instant::default());
                }
            }
        }
        if self.refresh_at.is_some_and(|at| at <= self.now()) {
            self.refresh();
        }
    }

    fn refresh(&mut self) {
        let view = self.control.view();
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = view;
        self.refresh_at = None;
    }

    fn send_probe(&mut self, backend: BackendId, to: SocketAddr, bytes: &[u8]) {
        let error = match self.sockets[usize::from(to.is_ipv6())].as_ref().map(|s| s.try_send_to(bytes, to)) {
            Some(Ok(_)) => return,
            Some(Err(error)) => {
                tracing::debug!(%to, %error, "probe not sent");
                classify(&error)
            }
            None => SendError::Local,
        };
        self.control.handle_send_error(self.now(), backend, error);
    }

    fn send_stream_probe(&mut self, backend: BackendId, transport: Transport, to: SocketAddr, bytes: Vec<u8>) {
        let config = self.control.config();
        let has_it = |pool: &crate::config::Pool| pool.backends.iter().any(|b| b.id() == backend);
        let pool = config.pools.iter().position(has_it).unwrap_or_default();
        let source = self.listener_ip(to.is_ipv6());
        let target = Target { backend, transport, address: to, pool, source };
        if let Err(error) = self.prober.send(target, &self.policy, bytes) {
            self.control.handle_send_error(self.now(), backend, error);
        }
    }

    /// The address of the first listener of a family, which backends know.
    fn listener_ip(&self, is_ipv6: bool) -> Option<IpAddr> {
        let listens = self.control.config().services.iter().flat_map(|service| &service.listen);
        listens.map(|listen| listen.address.ip()).find(|ip| ip.is_ipv6() == is_ipv6)
    }

    fn log_empty_pools(&mut self, snapshot: &Snapshot) {
        for (index, pool) in snapshot.pools.iter().enumerate() {
            let is_empty = !snapshot.backends.iter().any(|b| b.pool == index && b.takes_new());
            if is_empty && self.empty_pools.insert(pool.name.clone()) {
                tracing::error!(pool = %pool.name, "no backend for new dialogs; they are answered 503");
            } else if !is_empty && self.empty_pools.remove(&pool.name) {
                tracing::info!(pool = %pool.name, "new dialogs are served again");
            }
        }
    }

    /// Opens the probe sockets that the configuration needs and that are not there yet.
    async fn open_sockets(&mut self) {
        for (family, is_needed) in self.control.probed_families().into_iter().enumerate() {
            if !is_needed || self.sockets[family].is_some() {
                continue;
            }
            let ours = self.listener_ip(family == 1);
            match open_socket(family, ours, self.control.config().limits.socket_buffer_bytes).await {
                Ok((socket, source)) => {
                    tracing::debug!(%source, "probes leave from here");
                    self.control.set_probe_source(source);
                    self.sockets[family] = Some(socket);
                }
                Err(error) => tracing::error!(
                    %error,
                    "no socket for {} probes: those backends count as healthy, unwatched",
                    ["IPv4", "IPv6"][family]
                ),
            }
        }
    }

    fn now(&self) -> Instant {
        Instant(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

fn log_change(name: &str, from: State, to: State, reason: Reason) {
    match (from, to) {
        (_, State::Down) => tracing::warn!(backend = name, "backend taken out: {reason}"),
        (State::Down, _) => tracing::info!(backend = name, "backend brought back: {reason}"),
        _ => tracing::info!(backend = name, "backend answers: {reason}"),
    }
}

async fn sleep_until(origin: std::time::Instant, at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until((origin + Duration::from_nanos(at.0)).into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "control_loop_tests.rs"]
mod tests;
