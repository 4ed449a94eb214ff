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

mod course;
mod judge;
mod network;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tandem::base::prng::Prng;
use tandem::config::{Config, Pool, Probe, Secret};
use tandem::control::Event as ControlEvent;
use tandem::control::health::State;
use tandem::engine::outbox::Outbox;
use tandem::engine::{Engine, Outcome, Received};
use tandem::route::snapshot::Snapshot;

use crate::agent::{MS, Timer};
use crate::checks::{Checks, Output, Probes, Step, Violation, broken};
use crate::faults::{self, CALM, Fault, Weather};
use crate::message::Message;
use crate::node::{self, Given, Node, Secrets, WORKERS};
use crate::planted::Bug;
use crate::user::{Plan, User};
use course::{END, TICK};

/// How a world is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything follows from it.
    pub seed: u64,
    /// Nodes that share addresses and secret.
    pub nodes: usize,
    /// Backends.
    pub backends: usize,
    /// Phones.
    pub phones: usize,
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
    Apply { node: usize, worker: usize, snapshot: Arc<Snapshot>, secrets: Secrets },
    Control(usize),
    Tick,
    Timer { user: usize, timer: Timer },
    Start { user: usize, plan: Plan },
    Fault(Fault),
    Reload { node: usize, reload: Reload },
}

/// The part of a node's file that the operator has changed.
enum Reload {
    Pools(Vec<Pool>),
    Secrets(Secrets),
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
    /// What the operator wants of the pools.
    pools: Vec<Pool>,
    /// May the operator take every backend away?
    may_be_empty: bool,
    nodes: Vec<Node>,
    /// Servers first, then phones.
    users: Vec<User>,
    /// Whose an address is.
    parties: BTreeMap<SocketAddr, usize>,
    ring_places: usize,
    /// Datagrams that reached a node.
    delivered: u64,
    /// An engine that never remembers, to ask what another node would say.
    stateless: Engine,
    outbox: Outbox,
    checks: Checks,
    probes: Probes,
    report: Report,
    /// Datagrams with this text in them are printed as they arrive.
    traced: Option<String>,
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
        let mut users: Vec<User> = (0..options.backends).map(course::new_server).collect();
        users.extend((0..options.phones).map(course::new_phone));
        let (mut checks, mut parties) = (Checks::default(), BTreeMap::new());
        for (number, user) in users.iter_mut().enumerate() {
            let agent = &mut user.agent;
            agent.is_strict = prng.below(4) == 0;
            parties.extend([(agent.address, number), (agent.dialog_address, number)]);
            let is_server = number < options.backends;
            if is_server { &mut checks.fleet } else { &mut checks.phones }.insert(agent.address);
            if agent.dialog_address != agent.address {
                checks.interfaces.insert(agent.dialog_address, agent.address);
            }
        }
        let stateless = node::engine(0, nodes[0].engines[0].snapshot(), &whole, 0);
        let mut world = World {
            options,
            now: 0,
            order: 0,
            queue: BTreeMap::new(),
            ring_places: 1 + prng.below(8) as usize,
            may_be_empty: prng.below(3) == 0,
            prng,
            weather: Weather::FAIR,
            pools: whole.pools.clone(),
            whole,
            nodes,
            users,
            parties,
            delivered: 0,
            stateless,
            outbox: node::outbox(),
            checks,
            probes: Probes::default(),
            report: Report::default(),
            traced: std::env::var("SIM_TRACE").ok(),
        };
        world.plan(!is_small);
        world
    }

    /// Runs to the end of time.
    pub fn run(mut self) -> Result<Report, Violation> {
        for node in 0..self.nodes.len() {
            self.drain_control(node)?;
        }
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            if at > END {
                break;
            }
            self.step(event)?;
        }
        self.check_sums()?;
        self.check_calls()?;
        self.check_idle()?;
        let seen = &mut self.report.seen;
        for (number, user) in self.users.iter().enumerate() {
            for call in user.calls.values() {
                let what = if number < self.options.backends { "call of a server" } else { call.plan.method };
                *seen.entry(format!("{what} {}", call.status)).or_default() += 1;
            }
        }
        let noted = self.users.iter().flat_map(|user| &user.agent.noted).chain(&self.checks.seen);
        noted.filter(|(_, n)| **n > 0).for_each(|(what, n)| *seen.entry((*what).to_owned()).or_default() += n);
        let rearmed: u64 = self.nodes.iter().map(|node| node.control.counters().probes_rearmed).sum();
        if rearmed > 0 {
            seen.insert("stall seen through".to_owned(), rearmed);
        }
        Ok(self.report)
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
            Event::Apply { node, worker, snapshot, secrets } => {
                if self.options.bug != Bug::DeafToHealth {
                    self.checks.note_snapshot(self.now, node * WORKERS + worker, &snapshot);
                    self.nodes[node].known[worker] = secrets;
                    self.nodes[node].engines[worker].apply_snapshot(snapshot);
                }
            }
            Event::Control(number) => {
                let node = &mut self.nodes[number];
                node.wakes_at = None;
                node.control.handle_timeout(node.clock(self.now));
                return self.drain_control(number);
            }
            Event::Tick => {
                self.tick();
                self.at(self.now + TICK, Event::Tick);
            }
            Event::Timer { user, timer } => self.with_user(user, |user, io| user.handle_timer(io, timer)),
            Event::Start { user, plan } => self.with_user(user, |user, io| user.start(io, plan)),
            Event::Fault(fault) => return self.strike(fault),
            Event::Reload { node, reload } => return self.reload(node, reload),
        }
        Ok(())
    }

    /// Lets bindings expire, as every worker does now and then.
    fn tick(&mut self) {
        if self.options.bug == Bug::BindingLeak {
            return;
        }
        for node in &mut self.nodes {
            let clock = node.clock(self.now);
            node.engines.iter_mut().for_each(|engine| engine.handle_timeout(clock));
        }
    }

    fn reload(&mut self, number: usize, reload: Reload) -> Result<(), Violation> {
        let node = &mut self.nodes[number];
        let mut config = node.control.config().clone();
        match reload {
            Reload::Pools(pools) => config.pools = pools,
            Reload::Secrets(secrets) => {
                node.secrets = secrets;
                config.node.secret = Some(Secret(secrets.current));
                let previous = secrets.previous.filter(|_| self.options.bug != Bug::PreviousRefused);
                config.node.secret_previous = previous.map(Secret);
            }
        }
        let clock = node.clock(self.now);
        if let Err(refusal) = node.control.apply_config(clock, config) {
            return broken("reload", refusal.to_string());
        }
        self.drain_control(number)
    }

    fn strike(&mut self, fault: Fault) -> Result<(), Violation> {
        self.see(match &fault {
            Fault::Weather(_) => "weather",
            Fault::Crash(_) => "crash",
            Fault::Return(_) => "return",
            Fault::Change(..) => "change",
            Fault::Rotate(_) => "rotation",
            Fault::ClockStep { .. } => "clock step",
            Fault::Attack(_) => "attack",
        });
        match fault {
            Fault::Weather(weather) => self.weather = weather,
            Fault::Crash(backend) => self.users[backend].crash(),
            Fault::Return(backend) => self.users[backend].is_up = true,
            Fault::Change(backend, to) => {
                self.pools = faults::change(&self.pools, &self.whole.pools, backend, to, self.may_be_empty);
                for node in 0..self.nodes.len() {
                    let at = self.now + node as u64 * self.prng.below(400) * MS;
                    if at < CALM {
                        self.at(at, Event::Reload { node, reload: Reload::Pools(self.pools.clone()) });
                    }
                }
            }
            // Each node has its own moment for it; see `course.rs`.
            Fault::Rotate(_) => {}
            Fault::ClockStep { node, by } => {
                self.nodes[node].ahead += by;
                return self.drain_control(node);
            }
            Fault::Attack(attack) => {
                let (service, victim) = (node::listeners()[0], self.users[self.options.backends].agent.address);
                let tokens: Vec<&String> = self.checks.tokens.keys().collect();
                let stolen = tokens.get(self.prng.below(tokens.len() as u64) as usize);
                let stolen = stolen.map_or_else(String::new, |token| (*token).clone());
                let (from, bytes) = attack.datagram(&mut self.prng, service, victim, &stolen);
                self.at(self.now, Event::Deliver { from, to: service, bytes });
            }
        }
        Ok(())
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
                node.engines[worker].handle_full_ring(rx, &mut self.outbox);
            } else if self.options.bug != Bug::HandOverLost {
                ring.push_back(Given { bytes: rx.bytes.to_vec(), source: rx.source, listener: rx.listener });
                let at = self.now + self.prng.below(30 * MS);
                self.at(at, Event::Take { node: number, worker: usize::from(owner) });
            }
        }
        let engine = &self.nodes[number].engines[worker];
        let (mut after, snapshot) = (engine.counters(), Arc::clone(engine.snapshot()));
        if engine.bindings().len() > engine.bindings().capacity() {
            return broken("bindings", "more bindings than the table holds");
        }
        self.see_outcome(&before, &after, has_full_ring);
        if outcome == Outcome::Done {
            after = self.tamper(number, rx, clock, &snapshot, [&before, &after], &mut outputs);
        }
        let (now, bytes, source, secrets) = (self.now, rx.bytes, rx.source, self.nodes[number].known[worker]);
        let is_rotated = self.checks.is_from_before_rotation(secrets, bytes);
        let (counters, outputs_of) = ([&before, &after], &outputs);
        let engine = number * WORKERS + worker;
        let step = Step { engine, now, snapshot: &snapshot, secrets, bytes, source, counters, outputs: outputs_of };
        self.checks.check(&step)?;
        if outcome == Outcome::Done && !is_rotated {
            let is_bound = after.routed_by_binding > before.routed_by_binding;
            self.check_twins([number, worker], rx, &snapshot, is_bound, &outputs)?;
        }
        for Output { from, to, bytes } in outputs {
            self.send(from, to, bytes);
        }
        Ok(())
    }

    fn drain_control(&mut self, number: usize) -> Result<(), Violation> {
        while let Some(event) = self.nodes[number].control.poll_event() {
            match event {
                ControlEvent::Probe { to, bytes, .. } => {
                    let (from, ahead) =
                        (self.nodes[number].probe_sources[usize::from(to.is_ipv6())], self.nodes[number].ahead);
                    let branch = Message::parse(&bytes).map_or_else(String::new, |m| m.branch().to_owned());
                    self.probes.note_probe(number, to, &branch, self.now, ahead);
                    self.send(from, to, bytes);
                }
                ControlEvent::Publish(snapshot) => {
                    for worker in 0..WORKERS {
                        let node = &mut self.nodes[number];
                        let at = node.applied_at.max(self.now + self.prng.below(5 * MS));
                        node.applied_at = at;
                        let (snapshot, secrets) = (Arc::clone(&snapshot), node.secrets);
                        self.at(at, Event::Apply { node: number, worker, snapshot, secrets });
                    }
                }
                ControlEvent::BackendChanged { name, from, to, .. } => {
                    self.see(&format!("backend {to}"));
                    self.check_verdict(number, &name, [from, to])?;
                }
            }
        }
        let node = &mut self.nodes[number];
        let Some(deadline) = node.control.next_deadline() else { return Ok(()) };
        let at = deadline.0.saturating_sub(node.ahead).max(self.now);
        if node.wakes_at.is_none_or(|wakes_at| at < wakes_at) {
            node.wakes_at = Some(at);
            self.at(at, Event::Control(number));
        }
        Ok(())
    }

    fn check_verdict(&self, node: usize, name: &str, change: [State; 2]) -> Result<(), Violation> {
        let pool = &self.whole.pools[0];
        let Some(backend) = pool.backends.iter().find(|backend| backend.name == name) else { return Ok(()) };
        self.probes.check_verdict(node, backend.address, change, &pool.health)
    }

    fn see(&mut self, what: &str) {
        *self.report.seen.entry(what.to_owned()).or_default() += 1;
    }
}
