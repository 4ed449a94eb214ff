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
//! when a backend changes state. Bound: [`COMMANDS_MAX`] waiting commands; [`ANSWERS_PER_ROUND`] answers a round.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::base::id::BackendId;
use crate::base::time::Instant;
use crate::config::{Admin, Config};
use crate::control::diff::Diff;
use crate::control::health::{Reason, State};
use crate::control::{BackendView, Control, Counters, Event, SendError, UnknownBackend};
use crate::route::snapshot::Snapshot;

/// Commands that may wait; one more is refused.
pub const COMMANDS_MAX: usize = 64;

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

/// What can be asked of the control thread.
#[derive(Debug)]
pub enum Command {
    /// Load the configuration and apply what changed; answers with that, or with why the old one stays.
    Reload(oneshot::Sender<Result<Diff, String>>),
    /// Set what the operator wants of a backend; answers with what it was.
    SetAdmin {
        /// Configured name.
        backend: String,
        /// The new state.
        admin: Admin,
        /// Where to answer.
        reply: oneshot::Sender<Result<Admin, UnknownBackend>>,
    },
    /// Tell the present state.
    Status(oneshot::Sender<Status>),
}

/// The state of the control core.
#[derive(Clone, Debug)]
pub struct Status {
    /// Of the last snapshot.
    pub generation: u64,
    /// In the order of the configuration.
    pub backends: Vec<BackendView>,
    /// Counts since start.
    pub counters: Counters,
}

/// Why a command got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// [`COMMANDS_MAX`] commands wait already.
    #[error("the control thread is busy; try again")]
    Busy,
    /// The thread has ended.
    #[error("the control thread is not running")]
    Stopped,
    /// The command was understood and refused.
    #[error("{0}")]
    Refused(String),
}

/// The running control thread. Dropping it ends the thread without waiting for it.
#[derive(Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    stop: Arc<Notify>,
    status: Arc<Mutex<Vec<BackendView>>>,
    thread: JoinHandle<()>,
}

impl Handle {
    /// Loads and applies the configuration anew, and waits for it. Not for use inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`CommandError::Refused`] with the reason when the old configuration stays.
    pub fn reload(&self) -> Result<Diff, CommandError> {
        self.ask(Command::Reload)?.map_err(CommandError::Refused)
    }

    /// Sets the admin state of a backend; gives back what it was. Not for use inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`CommandError::Refused`] when no backend has that name.
    pub fn set_admin(&self, backend: &str, admin: Admin) -> Result<Admin, CommandError> {
        let backend = backend.to_owned();
        let answer = self.ask(|reply| Command::SetAdmin { backend, admin, reply })?;
        answer.map_err(|unknown| CommandError::Refused(unknown.to_string()))
    }

    /// Asks for the exact present state. Not for use inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`CommandError`] when there is nobody to answer.
    pub fn ask_status(&self) -> Result<Status, CommandError> {
        self.ask(Command::Status)
    }

    /// The state of all backends, at most 100 ms old. Cheap, from any thread.
    pub fn status(&self) -> Vec<BackendView> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The place behind [`Handle::status`], for those who outlive the handle.
    pub fn shared_status(&self) -> Arc<Mutex<Vec<BackendView>>> {
        Arc::clone(&self.status)
    }

    /// For those who send commands themselves, such as an asynchronous server.
    pub fn commands(&self) -> mpsc::Sender<Command> {
        self.commands.clone()
    }

    /// Whether the thread still runs. It ends by itself only by a defect of ours.
    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Ends the thread and waits for it.
    ///
    /// # Errors
    ///
    /// [`CommandError::Stopped`] when it had ended by a panic.
    pub fn stop(self) -> Result<(), CommandError> {
        self.stop.notify_one();
        self.thread.join().map_err(|_| CommandError::Stopped)
    }

    fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CommandError::Busy,
            mpsc::error::TrySendError::Closed(_) => CommandError::Stopped,
        })?;
        answer.blocking_recv().map_err(|_| CommandError::Stopped)
    }
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
            // Lets the runtime look at the sockets, so that an answer that is there is read before its timeout.
            tokio::task::yield_now().await;
            self.read_answers();
            if let Some(command) = command {
                self.handle_command(command).await;
            }
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

    /// Reads what waits in the probe sockets.
    fn read_answers(&mut self) {
        let origin = self.origin;
        for socket in self.sockets.iter().flatten() {
            for _ in 0..ANSWERS_PER_ROUND {
                match socket.try_recv_from(&mut self.buffer) {
                    Ok((length, source)) => {
                        let received_at = since(origin);
                        self.control.handle_answer(received_at, source, &self.buffer[..length]);
                        self.refresh_at.get_or_insert(received_at + REFRESH);
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
        since(self.origin)
    }
}

/// The socket for one family, and the address that its probes name as theirs.
async fn open_socket(family: usize, ours: Option<IpAddr>, buffer: usize) -> io::Result<(UdpSocket, SocketAddr)> {
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)][family];
    let ip = ours.unwrap_or(any);
    let socket = match std::net::UdpSocket::bind((ip, 0)) {
        Err(error) if ip != any => {
            tracing::warn!(%ip, %error, "cannot probe from the listener's address; the system picks one");
            std::net::UdpSocket::bind((any, 0))?
        }
        result => result?,
    };
    socket.set_nonblocking(true)?;
    if let Err(error) = socket2::SockRef::from(&socket).set_recv_buffer_size(buffer) {
        tracing::debug!(%error, "receive buffer of the probe socket");
    }
    let port = socket.local_addr()?.port();
    let socket = UdpSocket::from_std(socket)?;
    // The runtime has to have seen the socket writable once before `try_send_to` tries.
    socket.writable().await?;
    Ok((socket, SocketAddr::new(ip, port)))
}

/// Whose fault it is that a probe was not sent. Where the network or a filter says no, calls fare no better.
fn classify(error: &io::Error) -> SendError {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::NetworkUnreachable | Kind::HostUnreachable | Kind::NetworkDown => SendError::Unreachable,
        Kind::ConnectionRefused | Kind::PermissionDenied | Kind::InvalidInput => SendError::Unreachable,
        _ => SendError::Local,
    }
}

fn log_change(name: &str, from: State, to: State, reason: Reason) {
    match (from, to) {
        (_, State::Down) => tracing::warn!(backend = name, "backend taken out: {reason}"),
        (State::Down, _) => tracing::info!(backend = name, "backend brought back: {reason}"),
        _ => tracing::info!(backend = name, "backend answers: {reason}"),
    }
}

fn since(origin: std::time::Instant) -> Instant {
    Instant(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

async fn readable(socket: Option<&UdpSocket>) {
    match socket {
        // An error shows again when the socket is read.
        Some(socket) => drop(socket.readable().await),
        None => std::future::pending().await,
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
