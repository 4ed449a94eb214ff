//! Sequences of what can happen to a node of two workers: messages of every kind, backends that go and come, secrets
//! rotated, time passing, hand-overs that fit or do not.
//!
//! The input is a list of operations, each a byte that says which and some that say how ([`Feed`]). After each the model
//! beside the engines is asked whether what left may have left. What it knows is little and certain:
//!
//! - a request goes to a backend that is not disabled; elsewhere only if a backend sent it and its text says so, or
//!   the address is that of a client whose dialog-making request was forwarded before;
//! - a response goes to the host of a forwarded request, and its topmost Via is one that we wrote under a secret that
//!   is live;
//! - what belongs to the latest transaction of a Call-ID leaves for where that went, byte for byte alike if it is a
//!   retransmission, whatever the backends do meanwhile short of being disabled (RFC 3261 16.11);
//! - every datagram ends in one outcome, and what one worker hands over another takes;
//! - once all lifetimes are over, no binding is left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::bench::{Bench, Fate, ROTATIONS, Sent, WORKERS, config, snapshot};
use super::feed::Feed;
use super::message::{Datagram, Request, in_dialog, response};
use crate::base::span::Span;
use crate::base::time::Instant;
use crate::engine::Received;
use crate::route::snapshot::ListenerIndex;
use crate::sip::scan::{HeaderName, Scan, StartLine};
use crate::sip::uri::Uri;
use crate::sip::values::values;
use crate::sip::via::{DEFAULT_PORT, Via};

/// Few, so that the table gets full.
const BINDINGS: usize = 6;

/// Operations of one input; what follows is not read.
const STEPS_MAX: usize = 32;

/// Forwarded requests that later operations can refer to.
const PAST_MAX: usize = 8;

/// Header lines of what may leave: some more than of what may come.
const HEADERS_MAX: usize = 300;

const RAW: u8 = 11;

/// One sequence.
///
/// # Panics
///
/// When the engines do what the model does not allow.
pub fn engine(bytes: &[u8]) {
    let mut feed = Feed::new(bytes);
    let mut node = Node::new();
    for _ in 0..STEPS_MAX {
        if feed.is_empty() {
            break;
        }
        node.step(&mut feed);
    }
    node.finish();
}

/// The input that delivers `message` alone, for seeds.
pub fn engine_input(message: &[u8]) -> Vec<u8> {
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let [high, low] = len.to_be_bytes();
    [&[RAW, 0, 0, high, low], message, &[0; 2]].concat()
}

/// A request that was forwarded.
#[derive(Clone)]
struct Past {
    /// How it was made; `None` when it is not of the grammar.
    request: Option<Request>,
    source: SocketAddr,
    sent: Sent,
}

/// The latest transaction of a Call-ID.
#[derive(Clone)]
struct Latest {
    request: Option<Request>,
    sent: Sent,
    at: Instant,
    rotation: usize,
}

/// Two workers and the model beside them.
struct Node {
    benches: [Bench; WORKERS],
    worlds: [(usize, usize); WORKERS],
    rotation: usize,
    now: Instant,
    delivered: u64,
    /// Is the ring between the workers full?
    is_ring_full: bool,
    past: Vec<Past>,
    latest: BTreeMap<Vec<u8>, Latest>,
    /// Hosts of forwarded requests.
    hosts: BTreeSet<IpAddr>,
    /// Where a dialog-making request came from, or went at the word of a backend.
    clients: BTreeSet<SocketAddr>,
    /// Our branches, and by which secrets each was signed.
    branches: BTreeSet<(Vec<u8>, usize)>,
}

impl Node {
    fn new() -> Self {
        Node {
            benches: [0, 1].map(|worker| Bench::new(worker, snapshot(0, 0), BINDINGS)),
            worlds: [(0, 0); WORKERS],
            rotation: 0,
            now: Instant(0),
            delivered: 0,
            is_ring_full: false,
            past: Vec::new(),
            latest: BTreeMap::new(),
            hosts: BTreeSet::new(),
            clients: BTreeSet::new(),
            branches: BTreeSet::new(),
        }
    }

    fn step(&mut self, feed: &mut Feed<'_>) {
        match feed.byte() % 16 {
            0..=4 => self.request(feed),
            5..=7 => self.respond(feed),
            8 => self.follow(feed),
            9 | 10 => self.repeat(feed),
            RAW => {
                let datagram = Datagram::arbitrary(feed);
                self.deliver(feed, &datagram, None);
            }
            12 | 13 => self.change(feed),
            14 => self.pass(feed),
            _ => self.is_ring_full = !self.is_ring_full,
        }
    }

    fn request(&mut self, feed: &mut Feed<'_>) {
        let recorded = self.pick_past(feed).and_then(|past| recorded(&past.sent.bytes));
        let request = Request::any(feed, recorded.as_deref());
        let mut datagram = request.datagram();
        let before = datagram.clone();
        datagram.mutate(feed);
        let is_whole = datagram == before;
        self.deliver(feed, &datagram, is_whole.then_some(&request));
    }

    fn respond(&mut self, feed: &mut Feed<'_>) {
        let Some(past) = self.pick_past(feed) else { return };
        let at = self.benches[0].engine.snapshot().listener(past.sent.listener).listen.address;
        let mut datagram = response(feed, &past.sent.bytes, past.sent.to, at);
        datagram.mutate(feed);
        self.deliver(feed, &datagram, None);
    }

    fn follow(&mut self, feed: &mut Feed<'_>) {
        let Some(past) = self.pick_past(feed) else { return };
        let mut datagram = in_dialog(feed, &past.sent.bytes, past.source, past.sent.to);
        datagram.mutate(feed);
        self.deliver(feed, &datagram, None);
    }

    /// A retransmission, CANCEL or ACK of a past request.
    fn repeat(&mut self, feed: &mut Feed<'_>) {
        let Some(Past { request: Some(request), .. }) = self.pick_past(feed) else { return };
        let request = request.same_transaction(feed);
        self.deliver(feed, &request.datagram(), Some(&request));
    }

    fn pick_past(&self, feed: &mut Feed<'_>) -> Option<Past> {
        if self.past.is_empty() { None } else { self.past.get(feed.below(self.past.len())).cloned() }
    }

    /// A new picture, for one worker or for both: they are never swapped at the same moment.
    fn change(&mut self, feed: &mut Feed<'_>) {
        let (how, world) = (feed.byte(), usize::from(feed.byte()));
        if how & 28 == 0 && self.rotation + 1 < ROTATIONS {
            self.rotation += 1;
        }
        for (worker, bench) in self.benches.iter_mut().enumerate() {
            if how & 3 != worker as u8 + 1 {
                self.worlds[worker] = (world, self.rotation);
                bench.engine.apply_snapshot(snapshot(world, self.rotation));
            }
        }
    }

    fn pass(&mut self, feed: &mut Feed<'_>) {
        let units = [1, 100, 1_000, 10_000].map(Duration::from_millis);
        let time = units[feed.below(units.len())] * u32::from(feed.byte());
        self.now = self.now + time;
        if feed.below(4) > 0 {
            self.benches.iter_mut().for_each(|bench| bench.engine.handle_timeout(self.now));
        }
    }

    /// A datagram arrives at the worker that the kernel picks, and goes on to its owner.
    fn deliver(&mut self, feed: &mut Feed<'_>, datagram: &Datagram, request: Option<&Request>) {
        let first = feed.below(WORKERS);
        let listeners = &self.benches[first].engine.snapshot().listeners;
        let listener = listeners.iter().position(|l| l.listen.address == datagram.at).expect("an address of the node");
        let listener = ListenerIndex(listener as u16);
        let Datagram { source, ref bytes, .. } = *datagram;
        self.delivered += 1;
        let mut rx = Received { bytes, source, listener, flow: None, is_taken_over: false };
        match self.benches[first].handle(self.now, &rx) {
            Fate::HandOver(owner) => {
                let owner = usize::from(owner);
                assert_ne!(owner, first, "handed over to itself");
                if self.is_ring_full {
                    let before = self.benches[first].engine.counters().outcomes();
                    self.benches[first].refuse_hand_over(&rx);
                    assert_eq!(self.benches[first].engine.counters().outcomes(), before, "still one outcome");
                    return;
                }
                rx.is_taken_over = true;
                let fate = self.benches[owner].handle(self.now, &rx);
                self.judge(owner, &rx, &fate, request);
            }
            fate => self.judge(first, &rx, &fate, request),
        }
    }

    fn judge(&mut self, worker: usize, rx: &Received<'_>, fate: &Fate, request: Option<&Request>) {
        match fate {
            Fate::Request(sent) => {
                self.judge_request(worker, rx, sent);
                self.judge_affinity(worker, rx, sent, request);
                self.learn(worker, rx, sent, request);
            }
            Fate::Response(sent) => self.judge_response(worker, rx, sent),
            Fate::Answered(_) | Fate::Dropped | Fate::HandOver(_) => {}
        }
    }

    /// Never an open relay.
    fn judge_request(&self, worker: usize, rx: &Received<'_>, sent: &Sent) {
        let snapshot = self.benches[worker].engine.snapshot();
        let is_from_backend = snapshot.backend_by_address(rx.source).is_some();
        let backend = snapshot.backend_by_address(sent.to).map(|index| snapshot.backend(index));
        let is_serving = backend.is_some_and(|backend| backend.keeps_dialogs());
        let is_client = self.clients.contains(&sent.to);
        let is_told = is_from_backend && names(rx.bytes, sent.to);
        assert!(is_serving || is_client || is_told, "a request of {} is relayed to {}", rx.source, sent.to);
        let mut scan = Scan::with_capacity(HEADERS_MAX);
        assert_eq!(scan.scan(&sent.bytes), Ok(()), "what was forwarded cannot be read");
    }

    fn judge_response(&self, worker: usize, rx: &Received<'_>, sent: &Sent) {
        assert!(self.hosts.contains(&sent.to.ip()), "a response is relayed to {}, which asked nothing", sent.to);
        let branch = own_branch(rx.bytes).expect("a response without a branch is relayed");
        let (_, rotation) = self.worlds[worker];
        let live = [Some(rotation), rotation.checked_sub(1)];
        let is_ours = live.iter().flatten().any(|secret| self.branches.contains(&(branch.clone(), *secret)));
        assert!(is_ours, "a response is relayed for {}, which we did not write", branch.escape_ascii());
    }

    /// RFC 3261 16.11: the target of a transaction does not change.
    fn judge_affinity(&self, worker: usize, rx: &Received<'_>, sent: &Sent, request: Option<&Request>) {
        let bench = &self.benches[worker];
        let Some(latest) = call_id(rx.bytes).and_then(|id| self.latest.get(id)) else { return };
        let (Some(request), Some(first)) = (request, &latest.request) else { return };
        let snapshot = bench.engine.snapshot();
        let backend = snapshot.backend_by_address(latest.sent.to).map(|index| snapshot.backend(index));
        let is_fresh = self.now.since(latest.at) < snapshot.lifetimes.linger;
        let holds = first.is_bound()
            && snapshot.backend_by_address(first.source).is_none()
            && backend.is_some_and(|backend| backend.keeps_dialogs())
            && bench.engine.counters().bindings_refused == 0;
        if !holds || !is_fresh || latest.rotation != self.worlds[worker].1 || !request.is_of_transaction(first) {
            return;
        }
        assert_eq!(sent.to, latest.sent.to, "{} leaves the target of its transaction", request.method);
        assert_eq!(
            own_branch(&sent.bytes),
            own_branch(&latest.sent.bytes),
            "{} has a branch of its own",
            request.method
        );
        if request.method == first.method {
            assert_eq!(sent.bytes.escape_ascii().to_string(), latest.sent.bytes.escape_ascii().to_string());
        }
    }

    fn learn(&mut self, worker: usize, rx: &Received<'_>, sent: &Sent, request: Option<&Request>) {
        let snapshot = self.benches[worker].engine.snapshot();
        self.hosts.insert(rx.source.ip());
        self.clients.insert(rx.source);
        if snapshot.backend_by_address(rx.source).is_some() {
            self.clients.insert(sent.to);
        }
        let (_, rotation) = self.worlds[worker];
        let branch = own_branch(&sent.bytes).expect("what was forwarded has our branch");
        self.branches.insert((branch.clone(), rotation));
        if self.past.len() == PAST_MAX {
            self.past.remove(0);
        }
        self.past.push(Past { request: request.cloned(), source: rx.source, sent: sent.clone() });
        let id = call_id(rx.bytes).expect("what was forwarded has a Call-ID");
        let known = self.latest.get(id).filter(|latest| own_branch(&latest.sent.bytes) == Some(branch));
        let begins = request.is_none_or(|request| !matches!(request.method, "ACK" | "CANCEL"));
        match known {
            // Neither a retransmission nor CANCEL or ACK lengthens what the first one was promised.
            Some(latest) if latest.sent.to == sent.to => {}
            // Its backend is disabled: CANCEL and ACK find another, and nothing is promised to what follows.
            Some(_) if !begins => drop(self.latest.remove(id)),
            _ => {
                let latest = Latest { request: request.cloned(), sent: sent.clone(), at: self.now, rotation };
                self.latest.insert(id.to_vec(), latest);
            }
        }
    }

    /// Nothing lasts for ever and nothing is lost.
    fn finish(&mut self) {
        let (mut received, mut handed_over, mut taken_over) = (0, 0, 0);
        let timers = &config().timers;
        self.now = self.now + timers.binding_dialog + timers.binding_early + timers.binding_linger;
        for bench in &mut self.benches {
            let counters = bench.engine.counters();
            received += counters.received;
            handed_over += counters.handed_over;
            taken_over += counters.taken_over;
            // The wheel does a bounded number of seconds a call.
            for _ in 0..=self.now.as_millis() / 1_000_000 {
                bench.engine.handle_timeout(self.now);
            }
            assert_eq!(bench.engine.bindings().len(), 0, "a binding outlives every lifetime");
        }
        assert_eq!(received, self.delivered, "each datagram is received once");
        assert_eq!(handed_over, taken_over, "what one worker hands over another takes");
    }
}

/// The first Route that our Record-Route in a message would become.
fn recorded(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().find_map(|line| line.strip_prefix("Record-Route: ")).map(str::to_owned)
}

fn scanned(bytes: &[u8]) -> Option<Scan> {
    let mut scan = Scan::with_capacity(HEADERS_MAX);
    scan.scan(bytes).ok().map(|()| scan)
}

fn call_id(bytes: &[u8]) -> Option<&[u8]> {
    Some(scanned(bytes)?.first(HeaderName::CallId)?.value.of(bytes))
}

/// The branch of the topmost Via.
fn own_branch(bytes: &[u8]) -> Option<Vec<u8>> {
    let via = Via::decode(bytes, scanned(bytes)?.first(HeaderName::Via)?.value).ok()?;
    Some(via.branch?.of(bytes).to_vec())
}

/// Does the Request-URI or a Route of the request name `address`?
fn names(bytes: &[u8], address: SocketAddr) -> bool {
    let Some(scan) = scanned(bytes) else { return false };
    let routes = values(bytes, &scan, HeaderName::Route).flatten().map(|value| value.name_addr.uri);
    let target = match scan.start_line() {
        Some(StartLine::Request { uri, .. }) => Some(uri),
        _ => None,
    };
    let is_it = |span: Span| {
        Uri::decode(bytes, span).is_ok_and(|uri| {
            uri.ip(bytes).is_some_and(|ip| SocketAddr::new(ip, uri.port.unwrap_or(DEFAULT_PORT)) == address)
        })
    };
    routes.chain(target).any(is_it)
}
