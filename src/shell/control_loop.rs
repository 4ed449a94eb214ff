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
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc};

use crate::base::id::BackendId;
use crate::base::time::Instant;
use crate::config::Config;
use crate::control::diff::Diff;
use crate::control::health::{Reason, State};
use crate::control::{BackendView, Control, Event, SendError};
use crate::route::snapshot::Snapshot;
use crate::shell::control_handle::{COMMANDS_MAX, Command, Handle, Status};
use crate::shell::probe_socket::{classify, open_socket, readable};

/// Answers read from one socket before timers and commands get their turn again.
pub const ANSWERS_PER_ROUND: usize = 256;

const REFRESH: Duration = Duration::from_millis(100);

/// Loads the configuration anew; the error is text for the operator.
pub type Load = Box<dyn FnMut() -> Result<Config, String> + Send>;

/// Takes each snapshot to the workers; called on the control thread, must not block.
pub type Publish = Box<dyn FnMut(Arc<Snapshot>) + Send>;

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
    status: Arc<Mutex<Vec<BackendView>>>,
    /// When the shared status is next to be refreshed; `None` while it is up to date.
    refresh_at: Option<Instant>,
    /// Pools without any backend for new dialogs.
    empty_pools: BTreeSet<Box<str>>,
}

impl ControlLoop {
    fn new(options: Options, status: Arc<Mutex<Vec<BackendView>>>) -> Self {
        // The standard library's hash keys come from the system's entropy.
        let seed = options.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        ControlLoop {
            control: Control::new(options.config, options.workers, seed, Instant::default()),
            origin: std::time::Instant::now(),
            sockets: [None, None],
            buffer: vec![0; 65_536],
            load: options.load,
            publish: options.publish,
            status,
            refresh_at: None,
            empty_pools: BTreeSet::new(),
        }
    }

    async fn run(&mut self, mut inbox: mpsc::Receiver<Command>, stop: &Notify) {
        loop {
            let wake = [self.control.next_deadline(), self.refresh_at].into_iter().flatten().min();
            let [v4, v6] = &self.sockets;
            let command = tokio::select! {
                () = stop.notified() => return,
                command = inbox.recv() => match command {
                    Some(command) => Some(command),
                    None => return,
                },
                () = readable(v4.as_ref()) => None,
                () = readable(v6.as_ref()) => None,
                () = sleep_until(self.origin, wake) => None,
            };
            let woke_at = self.now();
            if let Some(command) = command {
                self.handle_command(command).await;
            }
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
        let result = loaded.and_then(|config| self.control.apply_config(now, config).map_err(|r| r.to_string()));
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

    /// Drains the events and refreshes the status when it is time.
    fn finish_round(&mut self) {
        while let Some(event) = self.control.poll_event() {
            match event {
                Event::Probe { backend, to, bytes } => self.send_probe(backend, to, &bytes),
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
            let config = self.control.config();
            let listens = config.services.iter().flat_map(|service| &service.listen);
            let ours = listens.map(|listen| listen.address.ip()).find(|ip| usize::from(ip.is_ipv6()) == family);
            match open_socket(family, ours, config.limits.socket_buffer_bytes).await {
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
