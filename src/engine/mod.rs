//! The engine of one worker: bytes in, verdict, bytes out.
//!
//! [`Engine::handle`] is a deterministic function of the engine's state, the time it is told and the datagram it is
//! given. It owns the worker's bindings and counters and nothing else; sockets, clocks and other workers are outside.
//! The contract: after any call, drain the [`Outbox`]; call [`Engine::handle_timeout`] about once a second; call
//! [`Engine::apply_snapshot`] between batches. The engine neither allocates nor panics on a message.
//!
//! ```text
//!   datagram -> scan -> owner? --no--> Outcome::HandOver
//!                         |yes
//!              request: Request::decode -> decide -> Edit -> Outbox        engine/request.rs
//!              response: our Via? branch signed? -> pop -> Outbox          engine/response.rs
//!              anything else: 400 where safe, or dropped and counted       engine/answer.rs
//! ```

mod answer;
mod identity;
pub mod outbox;
mod request;
mod response;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::base::id::{BackendId, FlowId};
use crate::base::time::Instant;
use crate::metrics::{Counters, Reason};
use crate::route::bindings::Bindings;
use crate::route::key::{CallHasher, CallKey};
use crate::route::snapshot::{ListenerIndex, Snapshot};
use crate::route::verdict::Hop;
use crate::sip::edit::Edit;
use crate::sip::reply::Status;
use crate::sip::scan::{Scan, ScanError, StartLine};
use outbox::Outbox;

/// Bindings and wheel slots that one [`Engine::handle_timeout`] looks at: well under a millisecond.
const EXPIRE_BUDGET: u32 = 4096;

/// A message from a socket, a connection or another worker.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// A datagram's payload, or one message as it was framed.
    pub bytes: &'a [u8],
    /// Who sent it.
    pub source: SocketAddr,
    /// The listener it came to; on a connection that was opened from here, the one whose address that has.
    pub listener: ListenerIndex,
    /// The connection it came on; `None` for a datagram.
    pub flow: Option<FlowId>,
    /// Did another worker hand it over? Then this one is the owner.
    pub is_taken_over: bool,
}

/// A scanned datagram of this worker, and the time and the picture it is judged by.
#[derive(Clone, Copy)]
struct Message<'a> {
    now: Instant,
    snapshot: &'a Snapshot,
    rx: &'a Received<'a>,
    scan: &'a Scan,
    key: CallKey,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was dealt with; what is to be sent is in the outbox.
    Done,
    /// It belongs to another worker.
    HandOver(u16),
}

/// Fixed capacities of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Bindings.
    pub bindings: usize,
    /// Header lines in a message.
    pub headers: usize,
    /// Bytes in a message.
    pub message_bytes: usize,
}

/// What one backend was given, by this worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounters {
    /// New dialogs and standalone requests that selection gave it.
    pub selected: u64,
    /// All requests sent to it.
    pub requests: u64,
}

/// The engine; see the module head.
#[derive(Debug)]
pub struct Engine {
    worker: u16,
    snapshot: Arc<Snapshot>,
    hasher: CallHasher,
    capacity: Capacity,
    scan: Scan,
    state: State,
}

/// What changes while a message is handled; apart, so that the scan and the snapshot can be read meanwhile.
#[derive(Debug)]
struct State {
    bindings: Bindings,
    edit: Edit,
    counters: Counters,
    backends: Vec<(BackendId, BackendCounters)>,
}

impl Engine {
    /// An engine for worker number `worker`. All workers of a process share `hasher`.
    pub fn new(worker: u16, snapshot: Arc<Snapshot>, hasher: CallHasher, capacity: Capacity) -> Self {
        let backends = snapshot.backends.iter().map(|b| (b.id, BackendCounters::default())).collect();
        let state = State {
            bindings: Bindings::with_capacity(capacity.bindings, snapshot.lifetimes),
            edit: Edit::default(),
            counters: Counters::default(),
            backends,
        };
        Engine { worker, snapshot, hasher, capacity, scan: Scan::with_capacity(capacity.headers), state }
    }

    /// Deals with one datagram. `outbox` must have room.
    pub fn handle(&mut self, now: Instant, rx: &Received<'_>, outbox: &mut Outbox) -> Outcome {
        let Engine { scan, state, snapshot, .. } = self;
        if rx.is_taken_over {
            state.counters.taken_over += 1;
        } else {
            state.counters.received += 1;
        }
        if let Err(error) = scan.scan(rx.bytes) {
            state.handle_malformed(snapshot, rx, scan, reason_of(error), outbox);
            return Outcome::Done;
        }
        let key = self.hasher.hash_message(rx.bytes, scan);
        let owner = snapshot.owner(key.owner_hash());
        if owner != self.worker && !rx.is_taken_over {
            state.counters.handed_over += 1;
            return Outcome::HandOver(owner);
        }
        if rx.bytes.len() > self.capacity.message_bytes {
            state.handle_malformed(snapshot, rx, scan, Reason::TooLarge, outbox);
            return Outcome::Done;
        }
        let message = Message { now, snapshot, rx, scan, key };
        match scan.start_line() {
            Some(StartLine::Request { method, uri }) => state.handle_request(&message, method, uri, outbox),
            Some(StartLine::Response { status }) => state.handle_response(&message, status, outbox),
            None => state.counters.count_dropped(Reason::StartLine),
        }
        Outcome::Done
    }

    /// Answers what cannot be framed, where its head is whole, and counts it. The connection has to be closed.
    pub fn handle_broken_frame(&mut self, head: Option<&Received<'_>>, reason: Reason, outbox: &mut Outbox) {
        let Engine { scan, state, snapshot, .. } = self;
        state.counters.received += 1;
        let Some(rx) = head else { return state.counters.count_dropped(reason) };
        match scan.scan(rx.bytes) {
            Err(ScanError::Empty | ScanError::StartLine) => state.counters.count_dropped(reason),
            _ => state.handle_malformed(snapshot, rx, scan, reason, outbox),
        }
    }

    //= rfc3261#section-16.9 connect-failed
    //# A request that could not be sent is answered as the next hop would with 503; a response is lost.
    /// A message that could not leave by its hop: a request is answered in the name of the next hop, so that its client
    /// need not wait for a timeout (RFC 3261 16.9); anything else is lost and counted.
    pub fn handle_undeliverable(&mut self, now: Instant, bytes: &[u8], hop: &Hop, reason: Reason, outbox: &mut Outbox) {
        // Of a client that can be reached by its connection alone that connection is the fault (RFC 5626 5.3).
        let status = if hop.may_connect { Status::ServiceUnavailable } else { Status::FlowFailed };
        self.state.counters.count_undeliverable(reason);
        let Ok(()) = self.scan.scan(bytes) else { return };
        if let Some(answer) = self.state.answer_for_next_hop(&self.snapshot, bytes, &self.scan, status, hop) {
            let source = hop.destination;
            // Any worker can take it back; only the binding of another one does not learn of it.
            let rx = Received { bytes: &answer, source, listener: hop.listener, flow: None, is_taken_over: true };
            self.handle(now, &rx, outbox);
            self.state.counters.taken_over -= 1;
            self.state.counters.received += 1;
        }
    }

    /// A hand-over that did not fit its ring, of the message that was just looked at. Over UDP it is lost, and comes again; on
    /// a connection nothing is sent twice, so a request is answered.
    pub fn handle_full_ring(&mut self, rx: &Received<'_>, outbox: &mut Outbox) {
        let Engine { scan, state, snapshot, .. } = self;
        state.counters.handed_over -= 1;
        let is_to_answer = match scan.start_line() {
            Some(StartLine::Request { method, .. }) => rx.flow.is_some() && method.of(rx.bytes) != b"ACK",
            _ => false,
        };
        match is_to_answer {
            true => state.answer(snapshot, rx, scan, (Status::ServiceUnavailable, Reason::HandOverFull), outbox),
            false => state.counters.count_dropped(Reason::HandOverFull),
        }
    }

    /// Lets bindings expire; bounded work, to be called about once a second.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.state.counters.bindings_expired += self.state.bindings.expire(now, EXPIRE_BUDGET);
    }

    /// Installs a new picture of the world; the counters of backends that stay are kept.
    pub fn apply_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        let known = std::mem::take(&mut self.state.backends);
        let kept = |id| known.iter().find(|(known, _)| *known == id).map_or(BackendCounters::default(), |(_, c)| *c);
        self.state.backends = snapshot.backends.iter().map(|b| (b.id, kept(b.id))).collect();
        self.state.bindings.set_lifetimes(snapshot.lifetimes);
        self.snapshot = snapshot;
    }

    /// The shell's own counters are kept here too.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.state.counters
    }

    /// The counters, gauges included.
    pub fn counters(&self) -> Counters {
        Counters { bindings: self.state.bindings.len() as u64, ..self.state.counters.clone() }
    }

    /// What each backend was given.
    pub fn backend_counters(&self) -> &[(BackendId, BackendCounters)] {
        &self.state.backends
    }

    /// The picture it works by.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// The affinity table.
    pub fn bindings(&self) -> &Bindings {
        &self.state.bindings
    }

    /// The key of a Call-ID and the worker that owns it.
    pub fn owner_of(&self, call_id: &[u8]) -> (CallKey, u16) {
        let key = self.hasher.hash(call_id);
        (key, self.snapshot.owner(key.owner_hash()))
    }
}

/// A transaction as bindings keep it: the low byte of its CSeq number, and 24 bits of the MAC in its branch.
fn transaction_hash(branch: &[u8], cseq: u32) -> u32 {
    let text = branch.get(15..19).and_then(|text| text.try_into().ok()).map_or(0, u32::from_be_bytes);
    // Four characters of base64 have 24 bits; the multiplication brings them together in the upper ones.
    cseq << 24 | text.wrapping_mul(0x9E37_79B1) >> 8
}

/// Did the transaction `one` begin before `other` of the same Call-ID? Numbers wrap, so half of them lie before.
fn is_earlier(one: u32, other: u32) -> bool {
    (1..128).contains(&((other >> 24) as u8).wrapping_sub((one >> 24) as u8))
}

fn reason_of(error: ScanError) -> Reason {
    match error {
        ScanError::Empty => Reason::KeepAlive,
        ScanError::StartLine => Reason::StartLine,
        ScanError::Version => Reason::Version,
        ScanError::HeaderLine => Reason::HeaderLine,
        ScanError::TooManyHeaders => Reason::TooManyHeaders,
        ScanError::Unterminated => Reason::Unterminated,
        ScanError::ContentLength => Reason::ContentLength,
    }
}
