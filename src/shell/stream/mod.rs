//! The connections of one worker: accepted and opened ones in one table, each with its buffers, its deadline and its
//! layers.
//!
//! ```text
//!   ring event --> Streams::handle_event --> Inbox (messages that came) --> engine
//!   outbox     --> Streams::send ----------> output of a connection -----> Streams::flush --> ring
//!   tick       --> Streams::handle_tick ---> deadlines, links that are to stand again, accepts that had ended
//! ```
//!
//! A connection belongs to the worker that accepted or opened it, for life. It is named by its [`FlowId`]: place and
//! generation, so that what was meant for an earlier connection at the same place is known as that.
//!
//! Bounds: `connections_max` places; one source at most `connections_per_source` of them; what a peer has not taken,
//! `write_queue_bytes` and the share of one turn; what has come of a message, `message_bytes_max`; handshakes in
//! progress, `handshakes_max`. An idle connection holds no buffer: those are taken when bytes come and given back when
//! they are used up. A peer that does not read or does not finish what it began is closed by its deadline and holds up
//! nobody.

mod accept;
mod alias;
mod connection;
mod inbox;
mod link;
mod policy;
mod write;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use ahash::AHashMap;

use super::sys::{Ring, StreamBuffer, StreamEvent, shut_down};
use crate::base::id::{BackendId, FlowId};
use crate::base::time::Instant;
use crate::base::wheel::Wheel;
use crate::metrics::{Counters, Reason};
use crate::route::snapshot::{ListenerIndex, Snapshot};
use crate::route::verdict::Hop;
use alias::Aliases;
use connection::{Connection, Ending, Stage};
use inbox::Framing;
pub use inbox::{Inbox, Step};
use link::Links;
pub use policy::{Acceptance, StreamPolicy};

/// Places that one tick looks at.
const DEADLINE_BUDGET: u32 = 16_384;

/// Buffers kept for the next connection that needs one.
const SPARES_MAX: usize = 64;

/// The largest buffer worth keeping.
const SPARE_BYTES_MAX: usize = 128 << 10;

/// Milliseconds in a tick of the deadlines.
const TICK_MS: u64 = 100;

/// A message that could not be sent.
#[derive(Debug)]
pub struct Undelivered {
    /// How it was to leave.
    pub hop: Hop,
    /// The message.
    pub bytes: Vec<u8>,
    /// Why it did not.
    pub reason: Reason,
}

/// What became of a message that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// It leaves with the next flush, or when its connection stands.
    Queued,
    /// It goes on this connection, which is another worker's.
    Elsewhere(FlowId),
    /// It does not leave.
    Failed(Reason),
}

/// The table; see the module head.
pub struct Streams {
    worker: u16,
    policy: Rc<StreamPolicy>,
    places: Vec<Option<Box<Connection>>>,
    /// Generation of the next connection at each place.
    generations: Vec<u32>,
    free: Vec<u32>,
    deadlines: Wheel,
    per_source: AHashMap<IpAddr, u32>,
    links: Links,
    aliases: Aliases,
    /// Connections with something to write.
    dirty: Vec<FlowId>,
    undelivered: VecDeque<Undelivered>,
    failed_backends: Vec<BackendId>,
    /// Listening sockets that accept nothing until they are armed again.
    deaf: Vec<usize>,
    /// Which listener each listening socket is.
    listeners: Vec<ListenerIndex>,
    /// Descriptors that go once the ring has seen what refers to them.
    closing: Vec<OwnedFd>,
    spares: Vec<Vec<u8>>,
    handshakes: usize,
    now: Instant,
}

impl Streams {
    /// A table for worker number `worker`, whose listening sockets are those `listeners`; generations count from `seed`.
    pub fn new(worker: u16, policy: StreamPolicy, listeners: Vec<ListenerIndex>, seed: u32) -> Self {
        let capacity = policy.connections_max;
        Streams {
            worker,
            places: (0..capacity).map(|_| None).collect(),
            generations: (0..capacity as u32).map(|place| seed.wrapping_mul(place | 1).wrapping_add(seed)).collect(),
            free: (0..capacity as u32).rev().collect(),
            deadlines: Wheel::with_capacity(capacity),
            per_source: AHashMap::new(),
            links: Links::default(),
            aliases: Aliases::default(),
            dirty: Vec::with_capacity(256),
            undelivered: VecDeque::new(),
            failed_backends: Vec::new(),
            deaf: Vec::new(),
            listeners,
            closing: Vec::new(),
            spares: Vec::with_capacity(SPARES_MAX),
            handshakes: 0,
            now: Instant::default(),
            policy: Rc::new(policy),
        }
    }

    /// Installs what a reload has changed; connections that stand go on as they began.
    pub fn apply_policy(&mut self, policy: StreamPolicy) {
        self.policy = Rc::new(policy);
    }

    /// Tells the time of what follows.
    pub fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// Connections that stand or are being opened.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A message that could not be sent, if there is one.
    pub fn next_undelivered(&mut self) -> Option<Undelivered> {
        self.undelivered.pop_front()
    }

    /// Backends to which a connection could not be opened, or broke, since the last call.
    pub fn failed_backends(&mut self) -> std::vec::Drain<'_, BackendId> {
        self.failed_backends.drain(..)
    }

    /// Deals with something that happened; what it brought of messages is in the inbox, which has to be given back by
    /// [`Streams::put_back`].
    ///
    /// # Errors
    ///
    /// As `io_uring_enter(2)`.
    pub fn handle_event(
        &mut self,
        event: StreamEvent,
        ring: &mut Ring,
        snapshot: &Snapshot,
        counters: &mut Counters,
    ) -> io::Result<Option<Inbox>> {
        match event {
            StreamEvent::Accepted { listener, stream, has_ended } => {
                if has_ended {
                    ring.arm_accept(listener)?;
                }
                self.accept(listener, stream, ring, counters)?;
            }
            StreamEvent::AcceptEnded { listener, error } => {
                // Out of descriptors, most likely: an accept armed at once would end at once.
                tracing::debug!(error, "accept ended");
                counters.accepts_failed += 1;
                self.deaf.push(listener);
            }
            StreamEvent::Data { token, buffer, has_ended } => {
                return self.receive(token, buffer, has_ended, ring, counters);
            }
            StreamEvent::Starved { token } => {
                if let Some(connection) = self.of_token(token) {
                    ring.arm_stream_receive(token, connection.stream.as_fd())?;
                }
            }
            StreamEvent::End { token, error } => {
                if let Some(connection) = self.of_token(token) {
                    let id = connection.id;
                    let ending = if error == 0 { Ending::Peer } else { Ending::Broken };
                    self.close(id, ending, counters);
                }
            }
            StreamEvent::Written { token, result } => self.handle_written(token, result, ring, counters)?,
            StreamEvent::Writable { token } => {
                if let Some(connection) = self.of_token(token) {
                    (connection.is_writing, connection.is_blocked) = (false, false);
                    let id = connection.id;
                    self.mark_dirty(id);
                }
            }
            StreamEvent::Connected { token, error } => self.handle_connected(token, error, ring, snapshot, counters)?,
        }
        Ok(None)
    }

    /// Takes back an inbox whose messages have been dealt with.
    pub fn put_back(&mut self, inbox: Inbox, counters: &mut Counters) {
        let Inbox { id, mut bytes, at, framing, pings, is_broken, has_ended, .. } = inbox;
        // Of a connection that is at its end nothing is kept.
        let Some(connection) = self.of_id(id).filter(|connection| connection.takes_messages()) else {
            return self.spare(bytes);
        };
        bytes.drain(..at);
        if let Framing::Stream(framer) = framing {
            connection.framer = framer;
        }
        // What waits for the rest of its message takes no more room than it needs.
        let is_roomy = bytes.capacity() > 2 * bytes.len() + 1024;
        if !bytes.is_empty() && !is_roomy {
            connection.input = std::mem::take(&mut bytes);
        } else {
            connection.input.extend_from_slice(&bytes);
        }
        (0..pings).for_each(|_| connection.queue_raw(b"\r\n"));
        self.spare(bytes);
        if is_broken || has_ended {
            counters.connections_broken += u64::from(is_broken);
            self.finish(id, if is_broken { Ending::Broken } else { Ending::Peer });
            return;
        }
        if pings > 0 {
            self.handle_own_words(id);
        }
        self.time_message(id, at > 0);
    }

    /// Closes what is overdue, opens links again, and accepts again where accepting had ended.
    ///
    /// # Errors
    ///
    /// As `io_uring_enter(2)`.
    pub fn handle_tick(&mut self, ring: &mut Ring, snapshot: &Snapshot, counters: &mut Counters) -> io::Result<()> {
        while let Some(listener) = self.deaf.pop() {
            ring.arm_accept(listener)?;
        }
        let now = self.tick();
        let mut budget = DEADLINE_BUDGET;
        while let Some(place) = self.deadlines.pop_expired(now, &mut budget) {
            let Some(connection) = self.places[place as usize].as_deref() else { continue };
            let (id, deadline) = (connection.id, connection.deadline(&self.policy));
            if deadline > now {
                self.deadlines.schedule(place, deadline);
                continue;
            }
            // Why one drains has been counted.
            counters.connections_timed_out += u64::from(connection.takes_messages());
            self.close(id, Ending::Timeout, counters);
        }
        self.keep_links(ring, snapshot);
        Ok(())
    }

    /// Ends all connections, each with what its peer is told about that, before the worker itself ends.
    ///
    /// # Errors
    ///
    /// As `io_uring_enter(2)`.
    pub fn finish_all(&mut self, ring: &mut Ring) -> io::Result<()> {
        let all: Vec<FlowId> = self.places.iter().flatten().map(|connection| connection.id).collect();
        for id in all {
            self.finish(id, Ending::Peer);
        }
        self.flush(ring)
    }

    fn receive(
        &mut self,
        token: u64,
        buffer: StreamBuffer,
        has_ended: bool,
        ring: &mut Ring,
        counters: &mut Counters,
    ) -> io::Result<Option<Inbox>> {
        let now = self.tick();
        let mut spare = self.spares.pop().unwrap_or_default();
        let Some(connection) = self.of_token(token) else {
            ring.give_back(buffer);
            self.spare(spare);
            return Ok(None);
        };
        let id = connection.id;
        connection.last_active = now;
        let was_in = connection.stage;
        let was_handshaking = was_in == Stage::Handshake;
        if has_ended {
            ring.arm_stream_receive(token, connection.stream.as_fd())?;
        }
        let result = connection.receive(ring.stream_bytes(&buffer), &mut spare);
        let is_named = connection.source.is_some_and(|source| source != connection.peer.ip());
        let is_handshaking = connection.stage == Stage::Handshake;
        let (has_output, stage) = (!connection.output.is_empty(), connection.stage);
        ring.give_back(buffer);
        self.spare(spare);
        self.handshakes = self.handshakes + usize::from(is_handshaking) - usize::from(was_handshaking);
        if has_output {
            self.handle_own_words(id);
        }
        if stage != was_in {
            self.hasten(id);
        }
        if is_named && !self.recount(id) {
            counters.connections_refused += 1;
            self.close(id, Ending::Broken, counters);
            return Ok(None);
        }
        match result {
            Ok(inbox) => {
                if was_handshaking && stage == Stage::Open {
                    self.handle_open(id);
                }
                // What brings messages is timed when they have been dealt with.
                if inbox.is_none() {
                    self.time_message(id, false);
                }
                Ok(inbox)
            }
            Err(ending) => {
                self.end_politely(id, ending, counters);
                Ok(None)
            }
        }
    }

    /// Ends a connection after what is queued has been written; gives back the stage it was in.
    fn finish(&mut self, id: FlowId, ending: Ending) -> Option<Stage> {
        self.of_id(id)?.say_goodbye();
        let stage = self.retire(id, ending)?;
        let connection = self.of_id(id)?;
        if connection.output.is_empty() {
            shut_down(connection.stream.as_fd(), true);
        }
        self.mark_dirty(id);
        self.hasten(id);
        Some(stage)
    }

    /// Ends a connection whatever is queued; the ring reports the end.
    fn finish_now(&mut self, id: FlowId) {
        self.retire(id, Ending::Broken);
        if let Some(connection) = self.of_id(id) {
            shut_down(connection.stream.as_fd(), false);
        }
        self.hasten(id);
    }

    /// After a fault of the peer: an alert or an HTTP error that is queued still goes out.
    fn end_politely(&mut self, id: FlowId, ending: Ending, counters: &mut Counters) {
        let has_last_words = self.of_id(id).is_some_and(|connection| !connection.output.is_empty());
        if has_last_words && ending != Ending::Broken {
            let stage = self.finish(id, ending);
            count_ending(stage, ending, counters);
        } else {
            self.close(id, ending, counters);
        }
    }

    /// From here on a connection takes part in nothing but its own end: its handshake is over, the next message to its
    /// target opens another, and what waited for it fails now. Gives back the stage it was in.
    fn retire(&mut self, id: FlowId, ending: Ending) -> Option<Stage> {
        let now = self.tick();
        let mut undelivered = std::mem::take(&mut self.undelivered);
        let retired = self.of_id(id).map(|connection| {
            connection.fail_waiting(&mut undelivered);
            (connection.retire(now), connection.target())
        });
        self.undelivered = undelivered;
        let (stage, target) = retired?;
        if stage == Stage::Handshake {
            self.handshakes -= 1;
        }
        self.unlink(id, target, ending, stage == Stage::Open);
        Some(stage)
    }

    /// Removes a connection. Its descriptor goes with the next flush.
    fn close(&mut self, id: FlowId, ending: Ending, counters: &mut Counters) {
        let Some(stage) = self.retire(id, ending) else { return };
        count_ending(Some(stage), ending, counters);
        let place = id.slot();
        let Some(connection) = self.places[place as usize].take() else { return };
        self.deadlines.cancel(place);
        self.free.push(place);
        let Connection { stream, source, input, output, .. } = *connection;
        shut_down(stream.as_fd(), false);
        self.closing.push(stream);
        if let Some(source) = source {
            self.uncount(source);
        }
        self.spare(input);
        self.spare(output);
    }

    /// Notes since when a message has been coming. It began after those that `were_whole`: on a busy connection there is
    /// always one.
    fn time_message(&mut self, id: FlowId, were_whole: bool) {
        let now = self.tick();
        let Some(connection) = self.of_id(id) else { return };
        let since = connection.input_since.filter(|_| !were_whole);
        let is_mid_message = connection.stage == Stage::Open && connection.is_mid_message();
        connection.input_since = is_mid_message.then(|| since.unwrap_or(now));
        if is_mid_message && since.is_none() {
            self.hasten(id);
        }
    }

    /// A deadline may have come nearer.
    fn hasten(&mut self, id: FlowId) {
        let policy = Rc::clone(&self.policy);
        if let Some(connection) = self.of_id(id) {
            let deadline = connection.deadline(&policy);
            self.deadlines.schedule(id.slot(), deadline);
        }
    }

    fn mark_dirty(&mut self, id: FlowId) {
        if let Some(connection) = self.of_id(id)
            && !std::mem::replace(&mut connection.is_dirty, true)
        {
            self.dirty.push(id);
        }
    }

    fn of_id(&mut self, id: FlowId) -> Option<&mut Connection> {
        self.places.get_mut(id.slot() as usize)?.as_deref_mut().filter(|connection| connection.id == id)
    }

    /// The connection of a token, if it is still the one that the token was made for.
    fn of_token(&mut self, token: u64) -> Option<&mut Connection> {
        let place = (token >> 24) as usize & 0xFF_FFFF;
        let generation = token as u32 & 0xFF_FFFF;
        let connection = self.places.get_mut(place)?.as_deref_mut()?;
        (connection.id.generation() == generation).then_some(connection)
    }

    fn spare(&mut self, mut buffer: Vec<u8>) {
        if self.spares.len() < SPARES_MAX && (1..=SPARE_BYTES_MAX).contains(&buffer.capacity()) {
            buffer.clear();
            self.spares.push(buffer);
        }
    }

    fn tick(&self) -> u32 {
        (self.now.as_millis() / TICK_MS) as u32
    }
}

/// Counts a connection that ended before it was open, or that its peer broke.
fn count_ending(stage: Option<Stage>, ending: Ending, counters: &mut Counters) {
    match stage {
        Some(Stage::Connecting) => counters.connects_failed += 1,
        Some(Stage::Handshake) => counters.handshakes_failed += 1,
        Some(Stage::Proxy | Stage::Open) if ending == Ending::Refused => counters.connections_broken += 1,
        _ => {}
    }
}

/// Place and generation: what the ring brings back.
const fn token(id: FlowId) -> u64 {
    id.0 & 0xFFFF_FFFF_FFFF
}

/// A socket address for logs.
fn show(peer: SocketAddr) -> String {
    peer.to_string()
}
