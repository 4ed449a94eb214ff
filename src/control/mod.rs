//! The control core: it owns the truth about backends and turns it into snapshots. Pure; [`crate::shell`] runs it.
//!
//! Inputs are `handle_*`, `apply_config` and `set_admin`, each with the time; outputs come from [`Control::poll_event`].
//! The contract: after every input (or a batch of them) drain the events, then wait until [`Control::next_deadline`].
//!
//! Three states are kept apart for each backend and joined only in a snapshot: what the file says, what the operator
//! set at run time (survives a reload unless the file's own word for that backend changed), and what the probes say
//! (survives a reload that leaves name and address alone). The generation grows with every publication and stamps
//! every probe; a result from before a reload that changed its backend is dropped.
//!
//! Bound: one record, one timer and one outstanding probe a backend; a few events a backend between two drains.
//! Cost: O(log backends) an input; a snapshot is built once a drain however many backends changed.

pub mod diff;
mod event;
pub mod health;
pub mod probe;
mod watch;

use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ahash::AHashMap;

use crate::base::id::BackendId;
use crate::base::prng::Prng;
use crate::base::time::Instant;
use crate::config::{Admin, Config};
use crate::control::diff::{Diff, Refusal};
use crate::control::health::{State, Transition};
use crate::control::probe::{Answer, ProbeKeys, encode_probe};
use crate::control::watch::{Answered, Overdue, Watch};
use crate::route::snapshot::{BackendStatus, Snapshot};

pub use crate::control::event::{Counters, Event, SendError, UnknownBackend};
pub use crate::control::watch::{BackendView, STALL};

/// Backends that are new begin to be probed this far apart, or evenly over one interval if that is shorter.
const START_STEP: Duration = Duration::from_millis(5);

/// Probes begun by one call; what is due beyond that (after a stall) follows [`START_STEP`] apart.
const STARTS_MAX: usize = 32;

/// The control core; see the module head.
#[derive(Debug)]
pub struct Control {
    config: Config,
    workers: usize,
    generation: u64,
    /// Something changed since the snapshot of the generation before was built.
    is_unpublished: bool,
    /// In the order of the configuration.
    watches: Vec<Watch>,
    by_id: AHashMap<BackendId, usize>,
    by_source: AHashMap<(IpAddr, u16), usize>,
    /// The one deadline of each backend that has any.
    timers: BTreeSet<(Instant, BackendId)>,
    armed: AHashMap<BackendId, Instant>,
    /// Where probes are sent from, for IPv4 and IPv6.
    probe_sources: [Option<SocketAddr>; 2],
    keys: ProbeKeys,
    prng: Prng,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Control {
    /// Starts with `config` for `workers` workers; the first event is the first snapshot, generation 1.
    ///
    /// `seed` decides jitter and probe branches; draw it from the system's entropy, so that branches cannot be guessed.
    pub fn new(config: Config, workers: usize, seed: u64, now: Instant) -> Self {
        let mut prng = Prng::new(seed);
        let mut control = Control {
            config,
            workers,
            generation: 0,
            is_unpublished: false,
            watches: Vec::new(),
            by_id: AHashMap::new(),
            by_source: AHashMap::new(),
            timers: BTreeSet::new(),
            armed: AHashMap::new(),
            probe_sources: [None; 2],
            keys: ProbeKeys::new(&mut prng),
            prng,
            events: VecDeque::new(),
            counters: Counters::default(),
        };
        control.advance();
        control.install(now);
        control
    }

    /// Tells from which address probes of its family leave: the sent-by of their Via. Until told, none are sent.
    pub fn set_probe_source(&mut self, source: SocketAddr) {
        self.probe_sources[usize::from(source.is_ipv6())] = Some(source);
    }

    /// Replaces the configuration, keeping what was observed and set at run time; see the module head.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when `config` changes what is fixed until a restart; nothing is changed then.
    pub fn apply_config(&mut self, now: Instant, config: Config) -> Result<Diff, Refusal> {
        let diff = Diff::between(&self.config, &config)?;
        if config != self.config {
            self.advance();
            self.config = config;
            self.install(now);
        }
        Ok(diff)
    }

    /// Sets what the operator wants of the backend called `name`; gives back what it was.
    ///
    /// # Errors
    ///
    /// [`UnknownBackend`].
    pub fn set_admin(&mut self, now: Instant, name: &str, admin: Admin) -> Result<Admin, UnknownBackend> {
        let index = self.watches.iter().position(|w| w.backend.name == name);
        let index = index.ok_or_else(|| UnknownBackend(name.to_owned()))?;
        let before = self.watches[index].admin();
        if before != admin {
            self.advance();
        }
        if self.watches[index].set_admin(admin, self.generation) {
            self.spread(now, &[index]);
        }
        self.arm(now, index);
        Ok(before)
    }

    /// Does what is due at `now`: ends probes without an answer, begins new ones.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut starts = 0;
        let mut left_over = Vec::new();
        while let Some((at, id)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, id));
            self.armed.remove(&id);
            let Some(index) = self.by_id.get(&id).copied() else { continue };
            if self.watches[index].is_outstanding() {
                self.end_unanswered(now, index);
            } else if starts < STARTS_MAX {
                starts += 1;
                self.begin_probe(now, index);
            } else {
                left_over.push(index);
                continue;
            }
            self.arm(now, index);
        }
        self.spread(now + START_STEP, &left_over);
    }

    /// Takes in a datagram that the probe socket got from `source`, read at `received_at`.
    pub fn handle_answer(&mut self, received_at: Instant, source: SocketAddr, bytes: &[u8]) {
        let index = self.by_source.get(&(source.ip(), source.port())).copied();
        self.handle_answer_of(received_at, index, bytes);
    }

    /// Takes in a message that came on the connection over which `backend` is probed, read at `received_at`.
    pub fn handle_stream_answer(&mut self, received_at: Instant, backend: BackendId, bytes: &[u8]) {
        let index = self.by_id.get(&backend).copied();
        self.handle_answer_of(received_at, index, bytes);
    }

    fn handle_answer_of(&mut self, received_at: Instant, index: Option<usize>, bytes: &[u8]) {
        let Ok(answer) = Answer::decode(bytes) else {
            self.counters.answers_malformed += 1;
            return;
        };
        let (Some(index), Some(key)) = (index, answer.key()) else {
            self.counters.answers_unmatched += 1;
            return;
        };
        match self.watches[index].handle_answer(received_at, &key, answer.status) {
            Answered::Recorded(transition) => {
                self.counters.answers += 1;
                self.note(index, transition);
            }
            Answered::Provisional => {}
            Answered::Late => self.counters.answers_late += 1,
            Answered::Stale => self.counters.results_stale += 1,
            Answered::Unmatched => self.counters.answers_unmatched += 1,
        }
        self.arm(received_at, index);
    }

    /// Takes in that the probe of `backend` could not be sent.
    pub fn handle_send_error(&mut self, now: Instant, backend: BackendId, error: SendError) {
        let Some(index) = self.by_id.get(&backend).copied() else { return };
        if error == SendError::Local {
            self.counters.probes_unsent += 1;
        }
        let transition = self.watches[index].handle_send_error(error == SendError::Unreachable);
        self.note(index, transition);
        self.arm(now, index);
    }

    /// Takes in that a worker's connection to `backend` could not be opened, or broke: it is probed at once, and that
    /// decides. What a worker met may have been the fault of this node.
    pub fn handle_connection_failure(&mut self, now: Instant, backend: BackendId) {
        let Some(index) = self.by_id.get(&backend).copied() else { return };
        self.watches[index].plan(now);
        self.arm(now, index);
    }

    /// The next thing to do, in order; a snapshot comes last and holds all changes so far.
    pub fn poll_event(&mut self) -> Option<Event> {
        if self.events.is_empty() && self.is_unpublished {
            self.publish();
        }
        self.events.pop_front()
    }

    /// When [`Control::handle_timeout`] is next needed.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The generation of the last snapshot, or of the one that the next drain gives.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Counts since start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Every backend in the order of the configuration.
    pub fn view(&self) -> Vec<BackendView> {
        self.watches.iter().map(|w| w.view(&self.config.pools[w.pool].name)).collect()
    }

    /// Which families have backends that are probed: IPv4, IPv6.
    pub fn probed_families(&self) -> [bool; 2] {
        [false, true].map(|v6| self.watches.iter().any(|w| w.is_probed() && w.backend.address.is_ipv6() == v6))
    }

    /// Makes the watches those of the configuration: keeps, adds and drops.
    fn install(&mut self, now: Instant) {
        let mut kept: AHashMap<BackendId, Watch> = self.watches.drain(..).map(|w| (w.backend.id(), w)).collect();
        let mut to_plan = Vec::new();
        for (pool, configured) in self.config.pools.iter().enumerate() {
            for backend in &configured.backends {
                let (backend, health) = (backend.clone(), configured.health.clone());
                let (watch, is_to_plan) = match kept.remove(&backend.id()) {
                    Some(mut watch) => {
                        let is_to_plan = watch.adopt(backend, pool, health, self.generation);
                        (watch, is_to_plan)
                    }
                    None => (Watch::new(backend, pool, health, self.generation), true),
                };
                if is_to_plan {
                    to_plan.push(self.watches.len());
                }
                self.watches.push(watch);
            }
        }
        let indexed = || self.watches.iter().enumerate();
        self.by_id = indexed().map(|(i, w)| (w.backend.id(), i)).collect();
        let datagrams = indexed().filter(|(_, w)| !w.backend.transport.is_stream());
        self.by_source = datagrams.map(|(i, w)| ((w.backend.address.ip(), w.backend.address.port()), i)).collect();
        self.timers.clear();
        self.armed.clear();
        self.spread(now, &to_plan);
        for index in 0..self.watches.len() {
            self.arm(now, index);
        }
    }

    /// Plans the next probes of these backends from `from` on, so that they do not march in step.
    fn spread(&mut self, from: Instant, indices: &[usize]) {
        let count = indices.len().max(1) as u64;
        for (position, index) in indices.iter().enumerate() {
            let window = self.watches[*index].interval().as_nanos() as u64;
            let step = (window / count).min(START_STEP.as_nanos() as u64);
            let offset = step * position as u64 + self.prng.below(step);
            self.watches[*index].plan(from + Duration::from_nanos(offset));
            self.arm(from, *index);
        }
    }

    /// Sets the one timer of a backend to what it next waits for.
    fn arm(&mut self, now: Instant, index: usize) {
        let watch = &self.watches[index];
        let id = watch.backend.id();
        let due = watch.due(now);
        let before = match due {
            Some(at) => self.armed.insert(id, at),
            None => self.armed.remove(&id),
        };
        if before == due {
            return;
        }
        if let Some(at) = before {
            self.timers.remove(&(at, id));
        }
        if let Some(at) = due {
            self.timers.insert((at, id));
        }
    }

    fn begin_probe(&mut self, now: Instant, index: usize) {
        let key = self.keys.draw();
        let watch = &mut self.watches[index];
        watch.begin(now, self.generation, key, &mut self.prng);
        let to = watch.backend.address;
        let Some(source) = self.probe_sources[usize::from(to.is_ipv6())] else {
            watch.handle_send_error(false);
            self.counters.probes_unsent += 1;
            return;
        };
        self.counters.probes_sent += 1;
        let transport = watch.backend.transport;
        let bytes = encode_probe(&key, source, transport, to);
        self.events.push_back(Event::Probe { backend: watch.backend.id(), transport, to, bytes });
    }

    fn end_unanswered(&mut self, now: Instant, index: usize) {
        match self.watches[index].handle_overdue(now) {
            Overdue::Recorded(transition) => self.note(index, transition),
            Overdue::Rearmed => self.counters.probes_rearmed += 1,
            Overdue::Stale => self.counters.results_stale += 1,
        }
    }

    /// Tells of a change of state, and has a snapshot built when it changes who gets traffic.
    fn note(&mut self, index: usize, transition: Option<Transition>) {
        let Some(Transition { from, to, reason }) = transition else { return };
        let name = self.watches[index].backend.name.clone();
        self.events.push_back(Event::BackendChanged { name, from, to, reason });
        if (from == State::Down) != (to == State::Down) && !self.is_unpublished {
            self.advance();
        }
    }

    /// Opens the next generation. What the one before still owes is published first, so that a probe begun before
    /// this moment is always of an older generation.
    fn advance(&mut self) {
        if self.is_unpublished {
            self.publish();
        }
        self.generation += 1;
        self.is_unpublished = true;
    }

    fn publish(&mut self) {
        self.is_unpublished = false;
        let snapshot = Snapshot::build(&self.config, self.generation, self.workers, |backend| {
            match self.by_id.get(&backend.id()).map(|index| &self.watches[*index]) {
                Some(watch) => BackendStatus { admin: watch.admin(), is_healthy: watch.is_healthy() },
                None => BackendStatus { admin: backend.admin, is_healthy: true },
            }
        });
        self.events.push_back(Event::Publish(Arc::new(snapshot)));
    }
}

#[cfg(test)]
pub(crate) mod tests;
