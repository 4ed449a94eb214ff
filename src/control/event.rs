//! What the control core says to the shell and hears from it besides datagrams and time.
//!
//! The words between a pure core and its thin shell: [`Event`] goes out, [`SendError`] comes back, [`Counters`] are
//! read for reports.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::base::id::{BackendId, Transport};
use crate::control::health::{Reason, State};
use crate::route::snapshot::Snapshot;

/// What the shell has to do.
#[derive(Clone, Debug)]
pub enum Event {
    /// Send these bytes; if that fails, say so with `Control::handle_send_error`.
    Probe {
        /// Who is probed.
        backend: BackendId,
        /// What it speaks.
        transport: Transport,
        /// Where to.
        to: SocketAddr,
        /// The request.
        bytes: Vec<u8>,
    },
    /// Give this to every worker.
    Publish(Arc<Snapshot>),
    /// For the log.
    BackendChanged {
        /// Configured name.
        name: String,
        /// Before.
        from: State,
        /// After.
        to: State,
        /// What did it.
        reason: Reason,
    },
}

/// Why a probe was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The network says there is no way to it: counts as a failed probe.
    Unreachable,
    /// Our own trouble, such as a full socket buffer or no socket: says nothing of the backend.
    Local,
}

/// Counts since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Probes begun.
    pub probes_sent: u64,
    /// Probes that could not be sent by our own fault.
    pub probes_unsent: u64,
    /// Probes that got a second timeout since we were late.
    pub probes_rearmed: u64,
    /// Answers that ended a probe.
    pub answers: u64,
    /// Answers after their deadline.
    pub answers_late: u64,
    /// Results of probes begun before their backend changed.
    pub results_stale: u64,
    /// Answers to no probe of the backend they came from.
    pub answers_unmatched: u64,
    /// Datagrams that are no answer.
    pub answers_malformed: u64,
}

/// No backend has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no backend is named {0:?}")]
pub struct UnknownBackend(pub String);
