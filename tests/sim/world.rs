//! The world: a virtual clock, a network, two nodes, servers and phones, all in one thread from one seed.
//!
//! ```text
//!   queue (time, order) -> event -> node | caller | backend -> datagrams, timers -> weather -> queue
//!                                    |
//!                                 checks, on every datagram that an engine deals with
//! ```
//!
//! Nothing reads a clock, a thread or the entropy of the machine, and everything is kept in ordered maps: equal seeds
//! give equal runs, which [`Report::digest`] proves. A source and a destination always meet the same node and
//! worker, as ECMP and SO_REUSEPORT have it.

mod judge;
mod network;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tandem::base::prng::Prng;
use tandem::config::{Config, Probe, Secret};
use tandem::control::Event as ControlEvent;
use tandem::engine::outbox::Outbox;
use tandem::engine::{Engine, Outcome, Received};
use tandem::route::snapshot::Snapshot;

use crate::agent::{Agent, MS, Timer};
use crate::backend::Backend;
use crate::caller::{Caller, Plan};
use crate::checks::{Checks, Output, Step, Violation, broken};
use crate::faults::{self, CALM, Fault, Weather};
use crate::node::{self, Given, Node, WORKERS};
use crate::planted::Bug;
use network::Party;

/// Calls that begin here have to succeed: 5 seconds after the last fault.
const LIVE: u64 = CALM + 5_000 * MS;
/// By then every call has ended.
const END: u64 = LIVE + 50_000 * MS;
const TICK: u64 = 500 * MS;

/// How a world is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything follows from it.
    pub seed: u64,
    /// Nodes that share addresses and secret.
    pub nodes: usize,
    /// Backends.
    pub backends: usize,
    /// Callers.
    pub callers: usize,
    /// The planted defect.
    pub bug: Bug,
}

/// What a run saw, to tell that it saw something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How often what happened.
    pub seen: BTreeMap<String, u64>,
    /// A hash of every datagram delivered and when.
    pub digest: u64,
}

enum Event {
    Deliver { from: SocketAddr, to: SocketAddr, bytes: Vec<u8> },
    Take { node: usize, worker: usize },
    Apply { node: usize, worker: usize, snapshot: Arc<Snapshot> },
    Control(usize),
    Tick,
    Timer { party: usize, timer: Timer },
    Start { caller: usize, plan: Plan },
    Fault(Fault),
    Reload { node: usize, config: Box<Config> },
}

/// The world; see the module head.
pub struct World {
    options: Options,
    now: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Event>,
    prng: Prng,
    weather: Weather,
    whole: Config,
    config: Config,
    nodes: Vec<Node>,
    backends: Vec<Backend>,
    callers: Vec<Caller>,
    /// Backends first, then callers.
    parties: BTreeMap<SocketAddr, usize>,
    ring_places: usize,
    /// An engine that never remembers, to ask what another node would say.
    stateless: Engine,
    outbox: Outbox,
    checks: Checks,
    report: Report,
}

impl World {
    /// A world before its first moment.
    pub fn new(options: Options) -> Self {
        let mut prng = Prng::new(options.seed);
        // With a table too small for the calls only the hash finds the way: then the set of backends has to stay.
        let is_small = prng.below(6) == 0;
        let mut whole = node::config(options.backends, if is_small { 4 } else { 1_024 });
        if is_small {
            whole.pools[0].health.probe = Probe::None;
        }
        let mut nodes = Vec::new();
        for number in 0..options.nodes {
            let mut config = whole.clone();
            if options.bug == Bug::NodesDisagree && number > 0 {
                config.node.secret = Some(Secret([9; 16]));
            }
            nodes.push(Node::new(number, &config, prng.next_u64()));
        }
        let backends: Vec<Backend> =
            (0..options.backends).map(|i| Backend::new(Agent::new(node::backend_address(i)))).collect();
        let callers: Vec<Caller> = (0..options.callers).map(new_caller).collect();
        let addresses = backends.iter().map(|b| b.agent.address).chain(callers.iter().map(|c| c.agent.address));
        let parties = addresses.enumerate().map(|(party, address)| (address, party)).collect();
        let mut checks = Checks::default();
        checks.callers.extend(callers.iter().map(|c| c.agent.address));
        checks.fleet.extend(backends.iter().map(|b| b.agent.address));
        let stateless = node::engine(0, nodes[0].engines[0].snapshot(), &whole, 0);
        let mut world = World {
            options,
            now: 0,
            order: 0,
            queue: BTreeMap::new(),
            ring_places: 1 + prng.below(8) as usize,
            prng,
            weather: Weather::FAIR,
            config: whole.clone(),
            whole,
            nodes,
            backends,
            callers,
            parties,
            stateless,
            outbox: node::outbox(),
            checks,
            report: Report::default(),
        };
        world.plan(!is_small);
        world
    }

    /// Runs to the end of time.
    pub fn run(mut self) -> Result<Report, Violation> {
        (0..self.nodes.len()).for_each(|node| self.drain_control(node));
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            if at > END {
                break;
            }
            self.step(event)?;
        }
        self.check_calls()?;
        self.check_idle()?;
        for call in self.callers.iter().flat_map(|c| c.calls.values()) {
            *self.report.seen.entry(format!("{} {}", call.plan.method, call.status)).or_default() += 1;
        }
        Ok(self.report)
    }

    /// Writes the whole course of events into the queue.
    fn plan(&mut self, sets_change: bool) {
        for (at, fault) in faults::draw(&mut self.prng, self.options.nodes, self.options.backends, sets_change) {
            self.at(at, Event::Fault(fault));
        }
        for caller in 0..self.options.callers {
            for _ in 0..6 {
                let plan = draw_plan(&mut self.prng);
                let at = self.prng.below(CALM);
                self.at(at, Event::Start { caller, plan });
            }
            let plan =
                Plan { method: "INVITE", cancel_after: None, reinvites: true, hold: 2_000 * MS, must_succeed: true };
            self.at(LIVE + caller as u64 * 10 * MS, Event::Start { caller, plan });
        }
        // In some runs one backend stays dead, and calls have to succeed without it.
        let dead = (sets_change && self.prng.below(2) == 0).then(|| self.prng.below(self.options.backends as u64));
        for backend in 0..self.options.backends {
            let is_dead = dead == Some(backend as u64);
            self.at(CALM, Event::Fault(if is_dead { Fault::Crash(backend) } else { Fault::Return(backend) }));
        }
        self.at(CALM, Event::Fault(Fault::Weather(Weather::FAIR)));
        for node in 0..self.options.nodes {
            let config = Box::new(self.nodes[node].control.config().clone());
            self.at(CALM + node as u64 * MS, Event::Reload { node, config });
        }
        self.at(TICK, Event::Tick);
    }

    fn at(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.queue.insert((time, self.order), event);
    }

    fn step(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Deliver { from, to, bytes } => return self.deliver(from, to, &bytes),
            Event::Take { node, worker } => {
                if let Some(given) = self.nodes[node].rings[worker].pop_front() {
                    let Given { bytes, source, listener } = given;
                    let rx = Received { bytes: &bytes, source, listener, flow: None, is_taken_over: true };
                    return self.handle(node, worker, &rx);
                }
            }
            Event::Apply { node, worker, snapshot } => {
                if self.options.bug != Bug::DeafToHealth {
                    self.checks.note_snapshot(self.now, node * WORKERS + worker, &snapshot);
                    self.nodes[node].engines[worker].apply_snapshot(snapshot);
                }
            }
            Event::Control(number) => {
                let node = &mut self.nodes[number];
                node.wakes_at = None;
                node.control.handle_timeout(node.clock(self.now));
                self.drain_control(number);
            }
            Event::Tick => {
                if self.options.bug != Bug::BindingLeak {
                    let now = self.now;
                    self.nodes.iter_mut().for_each(|node| {
                        let clock = node.clock(now);
                        node.engines.iter_mut().for_each(|engine| engine.handle_timeout(clock));
                    });
                }
                self.at(self.now + TICK, Event::Tick);
            }
            Event::Timer { party, timer } => self.with_party(party, |party, io| match party {
                Party::Backend(backend) => backend.handle_timer(io, timer),
                Party::Caller(caller) => caller.handle_timer(io, timer),
            }),
            Event::Start { caller, plan } => self.with_party(self.backends.len() + caller, |party, io| {
                if let Party::Caller(caller) = party {
                    caller.start(io, plan);
                }
            }),
            Event::Fault(fault) => self.strike(fault),
            Event::Reload { node: number, config } => {
                let node = &mut self.nodes[number];
                let clock = node.clock(self.now);
                if let Err(refusal) = node.control.apply_config(clock, *config) {
                    return broken("reload", refusal.to_string());
                }
                self.drain_control(number);
            }
        }
        Ok(())
    }

    fn strike(&mut self, fault: Fault) {
        self.see(match &fault {
            Fault::Weather(_) => "weather",
            Fault::Crash(_) => "crash",
            Fault::Return(_) => "return",
            Fault::Change(..) => "change",
            Fault::ClockStep { .. } => "clock step",
            Fault::Attack(_) => "attack",
        });
        match fault {
            Fault::Weather(weather) => self.weather = weather,
            Fault::Crash(backend) => self.backends[backend].crash(),
            Fault::Return(backend) => self.backends[backend].is_up = true,
            Fault::Change(backend, to) => {
                self.config = faults::change(&self.config, &self.whole, backend, to);
                for node in 0..self.nodes.len() {
                    let mut config = self.config.clone();
                    config.node = self.nodes[node].control.config().node.clone();
                    let at = self.now + node as u64 * self.prng.below(400) * MS;
                    if at < CALM {
                        self.at(at, Event::Reload { node, config: Box::new(config) });
                    }
                }
            }
            Fault::ClockStep { node, by } => {
                self.nodes[node].ahead += by;
                self.drain_control(node);
            }
            Fault::Attack(attack) => {
                let (service, victim) = (node::listeners()[0], self.callers[0].agent.address);
                let (from, bytes) = attack.datagram(&mut self.prng, service, victim);
                self.at(self.now, Event::Deliver { from, to: service, bytes });
            }
        }
    }

    /// One datagram at one worker, as the shell does it, and everything that is to be checked then.
    fn handle(&mut self, number: usize, worker: usize, rx: &Received<'_>) -> Result<(), Violation> {
        let node = &mut self.nodes[number];
        let clock = node.clock(self.now);
        let before = node.engines[worker].counters();
        let (outcome, mut outputs) = node::handle(&mut node.engines[worker], clock, rx, &mut self.outbox);
        let mut has_full_ring = false;
        if let Outcome::HandOver(owner) = outcome {
            let ring = &mut node.rings[usize::from(owner)];
            has_full_ring = ring.len() == self.ring_places;
            if has_full_ring {
                node.engines[worker].handle_full_ring();
            } else {
                ring.push_back(Given { bytes: rx.bytes.to_vec(), source: rx.source, listener: rx.listener });
                let at = self.now + self.prng.below(30 * MS);
                self.at(at, Event::Take { node: number, worker: usize::from(owner) });
            }
        }
        let engine = &self.nodes[number].engines[worker];
        let (after, snapshot) = (engine.counters(), Arc::clone(engine.snapshot()));
        self.see_outcome(&before, &after, has_full_ring);
        if outcome == Outcome::Done {
            self.tamper(rx, clock, &snapshot, &mut outputs);
        }
        if engine_is_over_full(&self.nodes[number].engines[worker]) {
            return broken("bindings", "more bindings than the table holds");
        }
        let counters = [&before, &after];
        let (now, bytes, source) = (self.now, rx.bytes, rx.source);
        self.checks.check(&Step { now, snapshot: &snapshot, bytes, source, counters, outputs: &outputs })?;
        if outcome == Outcome::Done && after.routed_by_binding == before.routed_by_binding {
            self.check_twins(number, worker, rx, &snapshot, &outputs)?;
        }
        for Output { from, to, bytes } in outputs {
            self.send(from, to, bytes);
        }
        Ok(())
    }

    fn drain_control(&mut self, number: usize) {
        while let Some(event) = self.nodes[number].control.poll_event() {
            match event {
                ControlEvent::Probe { to, bytes, .. } => {
                    let from = self.nodes[number].probe_sources[usize::from(to.is_ipv6())];
                    self.send(from, to, bytes);
                }
                ControlEvent::Publish(snapshot) => {
                    for worker in 0..WORKERS {
                        let node = &mut self.nodes[number];
                        let at = node.applied_at.max(self.now + self.prng.below(5 * MS));
                        node.applied_at = at;
                        let snapshot = Arc::clone(&snapshot);
                        self.at(at, Event::Apply { node: number, worker, snapshot });
                    }
                }
                ControlEvent::BackendChanged { to, .. } => self.see(&format!("backend {to}")),
            }
        }
        let node = &mut self.nodes[number];
        let Some(deadline) = node.control.next_deadline() else { return };
        let at = deadline.0.saturating_sub(node.ahead).max(self.now);
        if node.wakes_at.is_none_or(|wakes_at| at < wakes_at) {
            node.wakes_at = Some(at);
            self.at(at, Event::Control(number));
        }
    }

    fn see(&mut self, what: &str) {
        *self.report.seen.entry(what.to_owned()).or_default() += 1;
    }
}

/// Every second pair of callers speaks IPv6.
fn new_caller(number: usize) -> Caller {
    let host = 1 + number as u8;
    let address = match number % 4 {
        1 => format!("[2001:db8:c::{host}]:5062").parse().expect("an address"),
        _ => SocketAddr::from(([203, 0, 113, 100 + host], 5060 + number as u16)),
    };
    Caller::new(number, address, node::listeners()[usize::from(address.is_ipv6())])
}

fn draw_plan(prng: &mut Prng) -> Plan {
    let method = ["INVITE", "INVITE", "INVITE", "INVITE", "REGISTER", "OPTIONS", "MESSAGE"][prng.below(7) as usize];
    Plan {
        method,
        cancel_after: (prng.below(4) == 0).then(|| prng.below(1_500) * MS),
        reinvites: prng.below(3) == 0,
        hold: (500 + prng.below(9_000)) * MS,
        must_succeed: false,
    }
}

fn engine_is_over_full(engine: &Engine) -> bool {
    engine.bindings().len() > engine.bindings().capacity()
}
