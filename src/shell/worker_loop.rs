//! One worker: a loop on a pinned core that turns received datagrams into sent ones.
//!
//! ```text
//!   poll the ring ----> engine.handle ---> outbox --> send_batch
//!   take over rings --/        \--> hand over to the owner's ring, ring its doorbell
//!   commands: new snapshot, report, stop          tick: expiry
//!   nothing to do: spin a while, then sleep in the ring
//! ```
//!
//! Invariants: one batch is at most [`BATCH`] datagrams from sockets and as many from each other worker, so that none
//! starves another; everything in the outbox is sent before the next batch; commands are looked at every turn.
//! Nothing here allocates while there is traffic.

use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use crossbeam_channel::{Receiver, Sender};
use hdrhistogram::Histogram;

use super::handover::{Doorbell, Giver, Taker};
use super::sys::UdpRing;
use crate::base::id::BackendId;
use crate::base::time::Instant;
use crate::engine::outbox::{DATAGRAM_MAX, Outbox};
use crate::engine::{BackendCounters, Engine, Outcome, Received};
use crate::metrics::Counters;
use crate::route::snapshot::{ListenerIndex, Snapshot};

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
}

pub(super) struct Worker {
    setup: Setup,
    ring: UdpRing,
    outbox: Outbox,
    dwell_ns: Histogram<u64>,
    /// When the worker was told to stop, and when it last saw a datagram after that.
    stopping: Option<(Clock, Clock)>,
}

impl Worker {
    /// # Errors
    ///
    /// When memory is short.
    pub(super) fn new(setup: Setup, ring: UdpRing) -> anyhow::Result<Self> {
        let outbox = Outbox::with_capacity(2 * BATCH, 4 * DATAGRAM_MAX);
        let dwell_ns = Histogram::new_with_bounds(100, 10_000_000_000, 2)?;
        Ok(Worker { setup, ring, outbox, dwell_ns, stopping: None })
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
                    return Ok(self.report());
                }
            } else if handled == 0 && begun.duration_since(*idle_since.get_or_insert(begun)) >= self.setup.spin {
                self.sleep()?;
                idle_since = None;
            } else if handled > 0 {
                idle_since = None;
            }
        }
    }

    /// One batch from the sockets and one from the other workers; returns how many datagrams that were.
    fn turn(&mut self, begun: Clock) -> anyhow::Result<usize> {
        let now = Instant(u64::try_from(begun.duration_since(self.setup.epoch).as_nanos()).unwrap_or(u64::MAX));
        let Worker { setup, ring, outbox, .. } = self;
        let Setup { engine, givers, takers, .. } = setup;
        let mut taken = 0;
        for taker in takers {
            // A share for each ring, so that a busy one does not starve the others.
            let mut share = BATCH;
            let mut handle = |rx: &Received<'_>, outbox: &mut Outbox| {
                engine.handle(now, rx, outbox);
            };
            while share > 0 && outbox.has_room() && taker.take(|rx| handle(rx, outbox)) {
                share -= 1;
                taken += 1;
            }
            flush(ring, outbox)?;
        }
        let polled = ring.poll(BATCH, |socket, source, bytes| {
            let rx = Received { bytes, source, listener: ListenerIndex(socket as u16), is_taken_over: false };
            if let Outcome::HandOver(owner) = engine.handle(now, &rx, outbox) {
                let is_given = givers.get_mut(usize::from(owner)).and_then(Option::as_mut).is_some_and(|g| g.give(&rx));
                if !is_given {
                    engine.handle_full_ring();
                }
            }
            outbox.has_room()
        })?;
        givers.iter_mut().flatten().for_each(Giver::ring_if_given);
        flush(ring, outbox)?;
        let counters = engine.counters_mut();
        counters.sends_failed += polled.sends_failed;
        counters.receive_buffers_exhausted += polled.buffers_exhausted;
        if polled.has_ticked {
            counters.kernel_drops = ring.kernel_drops();
            engine.handle_timeout(now);
        }
        Ok(taken + polled.datagrams)
    }

    fn handle_commands(&mut self, now: Clock) {
        while let Ok(command) = self.setup.commands.try_recv() {
            match command {
                Command::Apply(snapshot) => self.setup.engine.apply_snapshot(snapshot),
                // Nobody waits for it any more: nothing to do.
                Command::Report(reply) => drop(reply.try_send(self.report())),
                Command::Stop => self.stopping = Some((now, now)),
            }
        }
    }

    fn report(&self) -> Report {
        Report {
            worker: self.setup.worker,
            counters: self.setup.engine.counters(),
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

fn flush(ring: &mut UdpRing, outbox: &mut Outbox) -> std::io::Result<()> {
    if outbox.is_empty() {
        return Ok(());
    }
    let datagrams = outbox.transmits().iter();
    ring.send_batch(datagrams.map(|t| (usize::from(t.listener.0), t.destination, outbox.bytes(t))))?;
    outbox.clear();
    Ok(())
}
