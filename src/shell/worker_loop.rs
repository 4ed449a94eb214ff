//! One worker: a loop on a pinned core that turns received messages into sent ones.
//!
//! ```text
//!   poll the ring ----> datagrams, messages of connections --> engine.handle --> outbox --> send_batch, streams
//!   take over rings --/        \--> hand over to the owner's ring, ring its doorbell
//!   commands: new snapshot, report, stop          tick: expiry, deadlines
//!   nothing to do: spin a while, then sleep in the ring
//! ```
//!
//! Invariants: one batch is at most [`BATCH`] datagrams from sockets, a bounded number of reads from connections, and as
//! many records from each other worker, so that none starves another; everything in the outbox is sent before the next
//! batch; commands are looked at every turn. Nothing here allocates while there is UDP traffic.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use crossbeam_channel::{Receiver, Sender};
use hdrhistogram::Histogram;

use super::handover::{Doorbell, Giver, Handed, Taker};
use super::stream::{Inbox, Sending, Step, StreamPolicy, Streams};
use super::sys::Ring;
use crate::base::id::BackendId;
use crate::base::time::Instant;
use crate::engine::outbox::{DATAGRAM_MAX, Outbox, Transmit};
use crate::engine::{BackendCounters, Engine, Outcome, Received};
use crate::metrics::{Counters, Reason};
use crate::route::snapshot::{ListenerIndex, Snapshot};
use crate::route::verdict::Hop;

/// Datagrams handled between two system calls.
pub const BATCH: usize = 64;

/// A stopping worker that sees nothing for this long is done.
const QUIET: Duration = Duration::from_millis(50);

/// A stopping worker stops at last.
const STOP_MAX: Duration = Duration::from_secs(2);

/// The period of the tick: binding expiry and the like.
pub const TICK: Duration = Duration::from_millis(500);

/// What the control core tells a worker.
#[derive(Debug)]
pub enum Command {
    /// Work by this picture from here on.
    Apply(Arc<Snapshot>),
    /// Treat new connections so from here on.
    ApplyPolicy(Arc<StreamPolicy>),
    /// Send a [`Report`].
    Report(Sender<Report>),
    /// Finish what has arrived, then end.
    Stop,
}

/// What a worker tells of itself.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its number.
    pub worker: u16,
    /// Its counters.
    pub counters: Counters,
    /// What it gave each backend.
    pub backends: Vec<(BackendId, BackendCounters)>,
    /// Nanoseconds from the reception of a batch to the end of its sending, one value a datagram.
    pub dwell_ns: Histogram<u64>,
}

/// All that a worker needs, made before its thread.
pub struct Setup {
    /// Its number.
    pub worker: u16,
    /// Dropped when the worker ends, which the node notices.
    pub alive: Sender<()>,
    /// The start of the process's time.
    pub epoch: Clock,
    /// Its engine.
    pub engine: Engine,
    /// Its commands.
    pub commands: Receiver<Command>,
    /// How it is woken.
    pub doorbell: Doorbell,
    /// Rings to the other workers, by number; `None` at its own.
    pub givers: Vec<Option<Giver>>,
    /// Rings from the other workers.
    pub takers: Vec<Taker>,
    /// How long it spins before it sleeps.
    pub spin: Duration,
    /// Which listener each UDP socket of the ring is.
    pub sockets: Vec<ListenerIndex>,
    /// Which listener each listening TCP socket of the ring is.
    pub stream_sockets: Vec<ListenerIndex>,
    /// How connections are treated.
    pub policy: Arc<StreamPolicy>,
    /// What connections' generations count from; drawn at start.
    pub seed: u32,
    /// Told of each backend to which a connection failed.
    pub failures: Box<dyn Fn(BackendId) + Send>,
}

pub(super) struct Worker {
    setup: Setup,
    ring: Ring,
    streams: Streams,
    outbox: Outbox,
    /// The engine's, at hand while the engine is at work.
    snapshot: Arc<Snapshot>,
    /// The UDP socket of each listener that is one.
    socket_of: Vec<Option<usize>>,
    dwell_ns: Histogram<u64>,
    /// When the worker was told to stop, and when it last saw a message after that.
    stopping: Option<(Clock, Clock)>,
}

impl Worker {
    /// # Errors
    ///
    /// When memory is short.
    pub(super) fn new(setup: Setup, ring: Ring) -> anyhow::Result<Self> {
        let outbox = Outbox::with_capacity(2 * BATCH, 4 * DATAGRAM_MAX);
        let dwell_ns = Histogram::new_with_bounds(100, 10_000_000_000, 2)?;
        let snapshot = Arc::clone(setup.engine.snapshot());
        let socket = |listener: usize| setup.sockets.iter().position(|l| usize::from(l.0) == listener);
        let socket_of = (0..snapshot.listeners.len()).map(socket).collect();
        let policy = StreamPolicy::clone(&setup.policy);
        let streams = Streams::new(setup.worker, policy, setup.stream_sockets.clone(), setup.seed);
        Ok(Worker { setup, ring, streams, outbox, snapshot, socket_of, dwell_ns, stopping: None })
    }

    /// Runs until told to stop; returns the last report.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to go on with the ring.
    pub(super) fn run(mut self) -> anyhow::Result<Report> {
        let mut idle_since = None;
        loop {
            let begun = Clock::now();
            let handled = self.turn(begun)?;
            if handled > 0 {
                let dwell = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.dwell_ns.saturating_record_n(dwell, handled as u64);
            }
            self.handle_commands(begun);
            if let Some((told, quiet_since)) = &mut self.stopping {
                if handled > 0 {
                    *quiet_since = begun;
                }
                if quiet_since.elapsed() > QUIET || told.elapsed() > STOP_MAX {
                    let report = self.report();
                    self.streams.finish_all(&mut self.ring)?;
                    return Ok(report);
                }
            } else if handled == 0 && begun.duration_since(*idle_since.get_or_insert(begun)) >= self.setup.spin {
                self.sleep()?;
                idle_since = None;
            } else if handled > 0 {
                idle_since = None;
            }
        }
    }

    /// One batch from the sockets and one from the other workers; returns how many messages that were.
    fn turn(&mut self, begun: Clock) -> anyhow::Result<usize> {
        let now = Instant(u64::try_from(begun.duration_since(self.setup.epoch).as_nanos()).unwrap_or(u64::MAX));
        self.streams.set_now(now);
        let taken = self.take_over(now)?;
        let Worker { setup, ring, outbox, .. } = self;
        let Setup { engine, givers, sockets, .. } = setup;
        let polled = ring.poll(BATCH, |socket, source, bytes| {
            let rx = Received { bytes, source, listener: sockets[socket], flow: None, is_taken_over: false };
            handle(engine, givers, now, &rx, outbox);
            outbox.has_room()
        })?;
        let mut handled = taken + polled.datagrams;
        while let Some(event) = self.ring.next_event() {
            let counters = self.setup.engine.counters_mut();
            let inbox = self.streams.handle_event(event, &mut self.ring, &self.snapshot, counters)?;
            if let Some(inbox) = inbox {
                handled += self.handle_inbox(now, inbox)?;
            }
        }
        self.handle_undelivered(now)?;
        self.setup.givers.iter_mut().flatten().for_each(Giver::ring_if_given);
        self.flush()?;
        let counters = self.setup.engine.counters_mut();
        counters.sends_failed += polled.sends_failed;
        counters.receive_buffers_exhausted += polled.buffers_exhausted;
        if polled.has_ticked {
            counters.kernel_drops = self.ring.kernel_drops();
            self.streams.handle_tick(&mut self.ring, &self.snapshot, counters)?;
            self.setup.engine.handle_timeout(now);
        }
        Ok(handled)
    }

    /// What other workers have for this one.
    fn take_over(&mut self, now: Instant) -> anyhow::Result<usize> {
        let mut taken = 0;
        for number in 0..self.setup.takers.len() {
            // A share for each ring, so that a busy one does not starve the others.
            for _ in 0..BATCH {
                let Worker { setup, ring, streams, outbox, snapshot, .. } = self;
                let Setup { engine, takers, .. } = setup;
                let has_taken = takers[number].take(|handed| match handed {
                    Handed::Message(rx) => {
                        engine.handle(now, &rx, outbox);
                    }
                    Handed::Alias(address, flow) => streams.note_alias(address, flow),
                    Handed::Transmit(hop, bytes) => {
                        if let Sending::Failed(reason) = streams.send(&hop, bytes, ring, snapshot) {
                            streams.refuse(hop, bytes, reason);
                        }
                    }
                });
                if !has_taken {
                    break;
                }
                taken += 1;
                if !self.outbox.has_room() {
                    self.flush()?;
                }
            }
            self.flush()?;
        }
        Ok(taken)
    }

    /// The messages that came on a connection.
    fn handle_inbox(&mut self, now: Instant, mut inbox: Inbox) -> io::Result<usize> {
        let mut handled = 0;
        loop {
            let Setup { engine, givers, .. } = &mut self.setup;
            match inbox.take() {
                Step::Message(rx) => {
                    if let Some((address, flow)) = self.streams.learn_alias(&rx) {
                        // A worker that cannot be told opens a connection of its own.
                        givers.iter_mut().flatten().for_each(|giver| {
                            giver.give_alias(address, flow);
                        });
                    }
                    handle(engine, givers, now, &rx, &mut self.outbox);
                }
                Step::Broken(reason, head) => engine.handle_broken_frame(head.as_ref(), reason, &mut self.outbox),
                Step::Done => break,
            }
            handled += 1;
            if !self.outbox.has_room() {
                self.flush()?;
            }
        }
        // An answer to what was broken leaves before the connection ends.
        self.queue_outbox()?;
        self.streams.put_back(inbox, self.setup.engine.counters_mut());
        Ok(handled)
    }

    /// Requests that could not leave are answered, which may in turn not be deliverable; that ends here.
    fn handle_undelivered(&mut self, now: Instant) -> io::Result<()> {
        while let Some(failed) = self.streams.next_undelivered() {
            let (hop, reason) = (failed.hop, failed.reason);
            self.setup.engine.handle_undeliverable(now, &failed.bytes, &hop, reason, &mut self.outbox);
            self.flush()?;
        }
        for backend in self.streams.failed_backends() {
            (self.setup.failures)(backend);
        }
        Ok(())
    }

    /// Sends everything that is queued.
    fn flush(&mut self) -> io::Result<()> {
        self.queue_outbox()?;
        self.streams.flush(&mut self.ring)
    }

    /// Sends the datagrams of the outbox and queues the rest on their connections.
    fn queue_outbox(&mut self) -> io::Result<()> {
        let Worker { ring, outbox, streams, socket_of, snapshot, setup, .. } = self;
        if outbox.is_empty() {
            return Ok(());
        }
        let is_stream = |t: &Transmit| t.hop.transport.is_stream();
        let datagrams = outbox.transmits().iter().filter(|t| !is_stream(t)).filter_map(|t| {
            let socket = socket_of.get(usize::from(t.hop.listener.0)).copied().flatten()?;
            Some((socket, t.hop.destination, outbox.bytes(t)))
        });
        ring.send_batch(datagrams)?;
        for transmit in outbox.transmits().iter().filter(|t| is_stream(t)) {
            let (hop, bytes) = (&transmit.hop, outbox.bytes(transmit));
            let reason = match streams.send(hop, bytes, ring, snapshot) {
                Sending::Queued => continue,
                Sending::Failed(reason) => reason,
                Sending::Elsewhere(flow) => {
                    // Named from here on, so that its owner does not look for another one.
                    let hop = Hop { flow: Some(flow), ..*hop };
                    match setup.givers.get_mut(usize::from(flow.worker())).and_then(Option::as_mut) {
                        Some(giver) => match giver.give_transmit(&hop, bytes) {
                            true => continue,
                            false => Reason::HandOverFull,
                        },
                        // Of an earlier process, which had more workers.
                        None => Reason::FlowGone,
                    }
                }
            };
            streams.refuse(*hop, bytes, reason);
        }
        outbox.clear();
        Ok(())
    }

    fn handle_commands(&mut self, now: Clock) {
        while let Ok(command) = self.setup.commands.try_recv() {
            match command {
                Command::Apply(snapshot) => {
                    self.streams.apply_snapshot(&self.snapshot, &snapshot);
                    self.snapshot = Arc::clone(&snapshot);
                    self.setup.engine.apply_snapshot(snapshot);
                }
                Command::ApplyPolicy(policy) => self.streams.apply_policy(StreamPolicy::clone(&policy)),
                // Nobody waits for it any more: nothing to do.
                Command::Report(reply) => drop(reply.try_send(self.report())),
                Command::Stop => self.stopping = Some((now, now)),
            }
        }
    }

    fn report(&self) -> Report {
        Report {
            worker: self.setup.worker,
            counters: Counters { connections: self.streams.len() as u64, ..self.setup.engine.counters() },
            backends: self.setup.engine.backend_counters().to_vec(),
            dwell_ns: self.dwell_ns.clone(),
        }
    }

    /// Sleeps until a completion, a hand-over or a command.
    fn sleep(&mut self) -> std::io::Result<()> {
        self.setup.doorbell.announce_sleep();
        // Whatever came before the announcement is seen here; whatever comes after rings.
        let has_work = !self.setup.commands.is_empty() || self.setup.takers.iter().any(|taker| !taker.is_empty());
        if !has_work {
            self.ring.sleep()?;
        }
        self.setup.doorbell.announce_waking();
        Ok(())
    }
}

/// Deals with a message or hands it to its owner.
fn handle(engine: &mut Engine, givers: &mut [Option<Giver>], now: Instant, rx: &Received<'_>, outbox: &mut Outbox) {
    if let Outcome::HandOver(owner) = engine.handle(now, rx, outbox) {
        let is_given = givers.get_mut(usize::from(owner)).and_then(Option::as_mut).is_some_and(|g| g.give(rx));
        if !is_given {
            engine.handle_full_ring(rx, outbox);
        }
    }
}
