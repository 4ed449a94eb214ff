//! How other threads talk to the control thread: a bounded channel of commands and a shared status.
//!
//! The handle's own methods wait for the answer and are for plain threads (the main thread on SIGHUP, a test). An
//! asynchronous server takes [`Handle::commands`] and awaits the replies itself.
//!
//! Bound: [`COMMANDS_MAX`] commands wait; one more is refused at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{Notify, mpsc, oneshot};

use crate::config::Admin;
use crate::control::diff::Diff;
use crate::control::{BackendView, Counters, UnknownBackend};

/// Commands that may wait; one more is refused.
pub const COMMANDS_MAX: usize = 64;

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
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) stop: Arc<Notify>,
    pub(super) status: Arc<Mutex<Vec<BackendView>>>,
    pub(super) thread: JoinHandle<()>,
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
