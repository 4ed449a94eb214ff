//! One backend under watch: its configuration, its one outstanding probe, and what came of the earlier ones.
//!
//! ```text
//!   planned --begin--> outstanding --answer in time--------------> recorded --> planned + interval +- jitter
//!                          |------- deadline -----------------> recorded as Timeout
//!                          |------- deadline, found late -----> re-armed once
//! ```
//!
//! Three results are not recorded. *Late*: an answer after its deadline. *Stale*: the probe began before a reload
//! that changed where or how this backend is probed. *Stalled*: when the deadline is looked at more than [`STALL`]
//! too late, this process was not running, the answer may sit unread in the socket, and the probe gets a second
//! full timeout; for the same reason an answer read while the deadline is that much overdue is a good one. Our own
//! overload must not look like the death of a backend. Once is enough: what came in during the stall has been read
//! by the second deadline, so a control thread that is always late still sees the dead.
//!
//! Bound: at most one outstanding probe a backend.

use core::time::Duration;
use std::net::SocketAddr;

use crate::base::prng::Prng;
use crate::base::time::Instant;
use crate::config::{Admin, Backend, Health, Probe};
use crate::control::health::{Hysteresis, Outcome, State, Transition};
use crate::control::probe::ProbeKey;

/// A deadline looked at later than this was missed by us and says nothing of the backend. Far above the lateness of
/// timers on a loaded core, far below any sensible probe timeout.
pub const STALL: Duration = Duration::from_millis(20);

const INTERVAL_MIN: Duration = Duration::from_millis(10);
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// What an operator wants to see of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendView {
    /// Configured name.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Name of its pool.
    pub pool: String,
    /// Configured weight.
    pub weight: u32,
    /// Configured tier.
    pub priority: u8,
    /// What the operator wants: set at run time, else configured.
    pub admin: Admin,
    /// Whether it is probed at all.
    pub is_probed: bool,
    /// What the probes say.
    pub state: State,
    /// Whether new dialogs may go there as far as health is concerned.
    pub is_healthy: bool,
    /// How the last recorded probe ended.
    pub last: Option<Outcome>,
    /// Time from the last answered probe to its answer.
    pub latency: Option<Duration>,
    /// Good probes since it was added.
    pub probes_ok: u64,
    /// Failed probes since it was added.
    pub probes_failed: u64,
}

/// What came of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// The probe is over and the outcome recorded.
    Recorded(Option<Transition>),
    /// A provisional answer.
    Provisional,
    /// After the deadline.
    Late,
    /// Of a generation that is over.
    Stale,
    /// Belongs to no probe of this backend.
    Unmatched,
}

/// What came of a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The probe is over and the timeout recorded.
    Recorded(Option<Transition>),
    /// We were late ourselves; the probe has a new deadline.
    Rearmed,
    /// Of a generation that is over.
    Stale,
}

#[derive(Clone, Debug)]
struct Outstanding {
    key: ProbeKey,
    generation: u64,
    sent_at: Instant,
    deadline: Instant,
    is_rearmed: bool,
}

/// A backend under watch; see the module head.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub(super) backend: Backend,
    pub(super) pool: usize,
    health: Health,
    /// Set at run time; wins over the file until the file changes its mind.
    admin_set: Option<Admin>,
    hysteresis: Hysteresis,
    /// Results of probes that began in an earlier generation are dropped.
    since: u64,
    outstanding: Option<Outstanding>,
    /// The last probe that timed out, to know its late answer.
    missed: Option<ProbeKey>,
    /// When the next probe may begin.
    planned: Instant,
    last: Option<Outcome>,
    latency: Option<Duration>,
    probes_ok: u64,
    probes_failed: u64,
}

impl Watch {
    pub(super) fn new(backend: Backend, pool: usize, health: Health, generation: u64) -> Self {
        Watch {
            backend,
            pool,
            health,
            admin_set: None,
            hysteresis: Hysteresis::default(),
            since: generation,
            outstanding: None,
            missed: None,
            planned: Instant::default(),
            last: None,
            latency: None,
            probes_ok: 0,
            probes_failed: 0,
        }
    }

    /// Installs what a reload says of this backend (same name). True when its next probe has to be planned anew.
    pub(super) fn adopt(&mut self, backend: Backend, pool: usize, health: Health, generation: u64) -> bool {
        if backend.address != self.backend.address || backend.transport != self.backend.transport {
            let admin_set = self.admin_set.filter(|_| backend.admin == self.backend.admin);
            *self = Watch { admin_set, ..Watch::new(backend, pool, health, generation) };
            return true;
        }
        let was_probed = self.is_probed();
        let is_other_health = health != self.health;
        if backend.admin != self.backend.admin {
            self.admin_set = None;
        }
        if health.probe != self.health.probe {
            self.hysteresis = Hysteresis::default();
        }
        self.backend = backend;
        self.pool = pool;
        self.health = health;
        self.handle_probed_change(was_probed, generation);
        if is_other_health {
            self.since = generation;
        }
        is_other_health || was_probed != self.is_probed()
    }

    /// Sets the admin state at run time. True when its next probe has to be planned anew.
    pub(super) fn set_admin(&mut self, admin: Admin, generation: u64) -> bool {
        let was_probed = self.is_probed();
        self.admin_set = Some(admin);
        self.handle_probed_change(was_probed, generation);
        was_probed != self.is_probed()
    }

    pub(super) fn plan(&mut self, at: Instant) {
        self.planned = at;
    }

    /// Starts a probe at `now` and plans the next one.
    pub(super) fn begin(&mut self, now: Instant, generation: u64, key: ProbeKey, prng: &mut Prng) {
        let deadline = now + self.health.timeout.max(TIMEOUT_MIN);
        self.outstanding = Some(Outstanding { key, generation, sent_at: now, deadline, is_rearmed: false });
        self.planned = now + gap(&self.health, prng);
    }

    /// Takes in an answer with `status` (100 to 699) to `key`, read from the socket at `received_at`.
    pub(super) fn handle_answer(&mut self, received_at: Instant, key: &ProbeKey, status: u16) -> Answered {
        let Some(probe) = self.outstanding.take_if(|probe| probe.key == *key) else {
            let is_missed = self.missed.as_ref() == Some(key);
            return if is_missed { Answered::Late } else { Answered::Unmatched };
        };
        let lateness = received_at.since(probe.deadline);
        if lateness > Duration::ZERO && (lateness <= STALL || probe.is_rearmed) {
            self.outstanding = Some(probe);
            return Answered::Late;
        }
        if status < 200 {
            self.outstanding = Some(probe);
            return Answered::Provisional;
        }
        if probe.generation < self.since {
            return Answered::Stale;
        }
        self.latency = Some(received_at.since(probe.sent_at));
        Answered::Recorded(self.record(Outcome::Answered(status)))
    }

    /// Takes in that the deadline of the outstanding probe has passed.
    pub(super) fn handle_overdue(&mut self, now: Instant) -> Overdue {
        let Some(mut probe) = self.outstanding.take() else { return Overdue::Stale };
        if probe.generation < self.since {
            return Overdue::Stale;
        }
        if now.since(probe.deadline) > STALL && !probe.is_rearmed {
            probe.is_rearmed = true;
            probe.deadline = now + self.health.timeout.max(TIMEOUT_MIN);
            self.outstanding = Some(probe);
            return Overdue::Rearmed;
        }
        self.missed = Some(probe.key);
        Overdue::Recorded(self.record(Outcome::Timeout))
    }

    /// Takes in that the probe could not be sent: by the network's fault, or by ours, which says nothing.
    pub(super) fn handle_send_error(&mut self, is_unreachable: bool) -> Option<Transition> {
        let probe = self.outstanding.take()?;
        if !is_unreachable || probe.generation < self.since {
            return None;
        }
        self.record(Outcome::Unreachable)
    }

    /// When this backend next wants attention; never while it is neither probed nor waited for.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match &self.outstanding {
            Some(probe) => Some(probe.deadline),
            None => self.is_probed().then(|| self.planned.max(now)),
        }
    }

    pub(super) fn is_outstanding(&self) -> bool {
        self.outstanding.is_some()
    }

    pub(super) fn is_probed(&self) -> bool {
        self.health.probe == Probe::Options && self.admin() != Admin::Disabled
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.health.probe == Probe::None || self.hysteresis.is_healthy()
    }

    pub(super) fn admin(&self) -> Admin {
        self.admin_set.unwrap_or(self.backend.admin)
    }

    /// The configured interval, at least 10 ms.
    pub(super) fn interval(&self) -> Duration {
        self.health.interval.max(INTERVAL_MIN)
    }

    pub(super) fn view(&self, pool: &str) -> BackendView {
        BackendView {
            name: self.backend.name.clone(),
            address: self.backend.address,
            pool: pool.to_owned(),
            weight: self.backend.weight,
            priority: self.backend.priority,
            admin: self.admin(),
            is_probed: self.is_probed(),
            state: self.hysteresis.state(),
            is_healthy: self.is_healthy(),
            last: self.last,
            latency: self.latency,
            probes_ok: self.probes_ok,
            probes_failed: self.probes_failed,
        }
    }

    fn record(&mut self, outcome: Outcome) -> Option<Transition> {
        self.last = Some(outcome);
        let count = if outcome.is_alive() { &mut self.probes_ok } else { &mut self.probes_failed };
        *count = count.saturating_add(1);
        self.hysteresis.record(outcome, self.health.rise, self.health.fall)
    }

    fn handle_probed_change(&mut self, was_probed: bool, generation: u64) {
        if was_probed != self.is_probed() {
            self.hysteresis.unprove();
            self.since = generation;
        }
    }
}

/// Interval plus or minus up to the jitter, which is cut at half the interval.
fn gap(health: &Health, prng: &mut Prng) -> Duration {
    let interval = health.interval.max(INTERVAL_MIN);
    let jitter = health.jitter.min(interval / 2);
    let width = u64::try_from(jitter.as_nanos()).unwrap_or(u64::MAX / 4).saturating_mul(2);
    interval - jitter + Duration::from_nanos(prng.below(width.saturating_add(1)))
}
