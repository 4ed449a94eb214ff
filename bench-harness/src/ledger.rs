//! The table of calls in progress and what was counted about them: the generator's whole memory.
//!
//! Both roles write here: callers move a call from phase to phase, backends note which of them saw its messages. A
//! call lives in one slot; its number, which never repeats within a run, tells a late message of an earlier call
//! from one of the present one.
//!
//! Bound: as many calls as slots, fixed at start; a slot costs under 1.2 KiB. No allocation afterwards.
//! Invariant: `free` holds exactly the slots whose phase is [`Phase::Free`].

use hdrhistogram::Histogram;

use crate::message::{Scan, contact_uri, name_addrs, value};
use crate::template::CallKey;

/// What a slot's transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// INVITE, ACK, BYE.
    Call,
    /// REGISTER.
    Register,
    /// OPTIONS.
    Options,
}

/// How far a call has come, as its caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No call here.
    Free,
    /// INVITE sent, no final answer.
    Inviting,
    /// ACK sent, waiting to hang up.
    Talking,
    /// BYE sent.
    Leaving,
    /// REGISTER or OPTIONS sent.
    Single,
}

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No final answer in time.
    Timeout,
    /// A final answer other than 2xx.
    Rejected,
    /// An answer without what a dialog needs, or too large to keep.
    Unusable,
    /// The call was over and no backend had seen its ACK.
    AckLost,
}

/// The backend of a call that no backend has seen yet.
pub const NO_BACKEND: u8 = u8::MAX;

/// One call.
#[derive(Clone, Copy)]
pub struct Slot {
    /// The call's number; 0 before the first.
    pub call: u32,
    /// What it is.
    pub kind: Kind,
    /// How far it is.
    pub phase: Phase,
    /// Which backend saw it first, or [`NO_BACKEND`].
    pub backend: u8,
    /// Whether a backend saw the ACK.
    pub is_acked: bool,
    /// Whether it was to start inside the measuring window.
    pub is_measured: bool,
    /// Which caller makes it.
    pub caller: u16,
    /// When it should have started, in ns of the run's clock.
    pub intended_ns: u64,
    /// When its present transaction was sent.
    pub sent_ns: u64,
    /// When the present transaction is sent again.
    pub again_ns: u64,
    /// The interval that led to `again_ns`.
    pub again_after_ns: u64,
}

/// Text of bounded length.
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    start: usize,
    end: usize,
}

impl<const N: usize> Text<N> {
    const EMPTY: Text<N> = Text { bytes: [0; N], start: 0, end: 0 };

    fn set(&mut self, text: &[u8]) -> Option<()> {
        self.bytes.get_mut(..text.len())?.copy_from_slice(text);
        (self.start, self.end) = (0, text.len());
        Some(())
    }

    /// Empties it for [`Text::prepend`].
    fn clear_at_end(&mut self) {
        (self.start, self.end) = (N, N);
    }

    fn prepend(&mut self, parts: [&[u8]; 3]) -> Option<()> {
        for part in parts.into_iter().rev() {
            let start = self.start.checked_sub(part.len())?;
            self.bytes[start..self.start].copy_from_slice(part);
            self.start = start;
        }
        Some(())
    }

    /// The text.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
}

/// What the caller must remember of a dialog (RFC 3261 12.1.2).
#[derive(Clone, Copy)]
pub struct Dialog {
    /// The remote target: the Contact of the 2xx.
    pub target: Text<192>,
    /// The route set as whole Route lines, nearest hop first.
    pub routes: Text<640>,
    /// The value of To, with the remote tag.
    pub to: Text<192>,
}

impl Dialog {
    const EMPTY: Dialog = Dialog { target: Text::EMPTY, routes: Text::EMPTY, to: Text::EMPTY };

    /// Learns the dialog from a 2xx: the route set is its Record-Route list in reverse. `None` when the Contact is
    /// missing or something is too long.
    pub fn learn(&mut self, answer: &Scan<'_>) -> Option<()> {
        let target = contact_uri(answer.contact);
        if target.is_empty() {
            return None;
        }
        self.target.set(target)?;
        self.to.set(value(answer.to))?;
        self.routes.clear_at_end();
        let mut fits = Some(());
        for line in answer.record_route.as_slice() {
            name_addrs(value(line), |route| {
                fits = fits.and(self.routes.prepend([b"Route: ", route, b"\r\n"]));
            });
        }
        fits
    }
}

/// What was counted over the whole run, warm-up included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Calls and single transactions started.
    pub started: u64,
    /// Of these, ended well.
    pub completed: u64,
    /// INVITE calls ended well.
    pub calls_completed: u64,
    /// Failures, by [`Failure`].
    pub failures: [u64; 4],
    /// Requests of a call that reached another backend than its first one.
    pub moved: u64,
    /// Messages that no user agent expects here: wrong Via, wrong CSeq, wrong role, out of order, unreadable.
    pub unexpected: u64,
    /// Messages of calls that were over.
    pub late: u64,
    /// Messages that had been received before.
    pub duplicates: u64,
    /// Messages whose body was not what the other side sent.
    pub damaged: u64,
    /// Messages sent again after a timer.
    pub retransmissions: u64,
    /// Requests to a backend from outside the run: health probes.
    pub probes: u64,
    /// Dialogs without any Record-Route.
    pub unrouted: u64,
    /// Messages received by callers and backends, probes left out.
    pub received: u64,
    /// Messages that could not be queued or that the kernel refused.
    pub unsent: u64,
}

/// Latencies in µs of what was to start in the measuring window, counted from when it was to start.
pub struct Latencies {
    /// INVITE to 200.
    pub setup: Histogram<u64>,
    /// BYE to 200; from its sending.
    pub bye: Histogram<u64>,
    /// REGISTER and OPTIONS to 200.
    pub single: Histogram<u64>,
}

/// The table and the counts.
pub struct Ledger {
    /// The run's number, part of every identifier.
    pub seed: u32,
    /// Now, in ns of the run's clock; the loop sets it once a turn.
    pub now_ns: u64,
    /// Counts.
    pub counters: Counters,
    /// Status codes of rejections, indexed by code.
    pub statuses: Box<[u32; 700]>,
    /// Requests that opened something new, per backend.
    pub opened: Vec<u64>,
    /// Latencies.
    pub latencies: Latencies,
    /// How long to wait before the first retransmission (T1), in ns; 0 never retransmits.
    pub t1_ns: u64,
    slots: Box<[Slot]>,
    dialogs: Box<[Dialog]>,
    free: Vec<u32>,
    calls: u32,
}

impl Ledger {
    /// A ledger of `slots` calls in progress and `backends` backends.
    ///
    /// # Panics
    /// When `slots` does not fit 32 bits.
    pub fn new(slots: usize, backends: usize, seed: u32, t1_ns: u64) -> Ledger {
        let unused = Slot {
            call: 0,
            kind: Kind::Call,
            phase: Phase::Free,
            backend: NO_BACKEND,
            is_acked: false,
            is_measured: false,
            caller: 0,
            intended_ns: 0,
            sent_ns: 0,
            again_ns: 0,
            again_after_ns: 0,
        };
        let micros = || {
            let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds are in order");
            histogram.auto(false);
            histogram
        };
        Ledger {
            seed,
            now_ns: 0,
            counters: Counters::default(),
            statuses: Box::new([0; 700]),
            opened: vec![0; backends],
            latencies: Latencies { setup: micros(), bye: micros(), single: micros() },
            t1_ns,
            slots: vec![unused; slots].into_boxed_slice(),
            dialogs: vec![Dialog::EMPTY; slots].into_boxed_slice(),
            free: (0..u32::try_from(slots).expect("slots fit 32 bits")).rev().collect(),
            calls: 0,
        }
    }

    /// Opens a call that was to start at `intended_ns`; `None` when all slots are busy.
    pub fn open(&mut self, kind: Kind, callers: usize, intended_ns: u64, is_measured: bool) -> Option<CallKey> {
        let slot = self.free.pop()?;
        self.calls += 1;
        self.counters.started += 1;
        self.slots[slot as usize] = Slot {
            call: self.calls,
            kind,
            phase: if kind == Kind::Call { Phase::Inviting } else { Phase::Single },
            backend: NO_BACKEND,
            is_acked: false,
            is_measured,
            caller: (self.calls as usize % callers) as u16,
            intended_ns,
            sent_ns: self.now_ns,
            again_ns: self.now_ns + self.t1_ns,
            again_after_ns: self.t1_ns,
        };
        Some(CallKey { call: self.calls, slot })
    }

    /// Ends a call well.
    pub fn complete(&mut self, key: CallKey) {
        let slot = *self.slot(key.slot);
        if slot.kind == Kind::Call && !slot.is_acked {
            return self.fail(key, Failure::AckLost);
        }
        self.counters.completed += 1;
        self.counters.calls_completed += u64::from(slot.kind == Kind::Call);
        if slot.is_measured {
            let micros = (self.now_ns - slot.sent_ns) / 1000;
            match slot.kind {
                Kind::Call => self.latencies.bye.saturating_record(micros),
                _ => self.latencies.single.saturating_record((self.now_ns - slot.intended_ns) / 1000),
            }
        }
        self.release(key);
    }

    /// Ends a call badly.
    pub fn fail(&mut self, key: CallKey, why: Failure) {
        self.counters.failures[why as usize] += 1;
        self.release(key);
    }

    fn release(&mut self, key: CallKey) {
        self.slots[key.slot as usize].phase = Phase::Free;
        self.free.push(key.slot);
    }

    /// The slot that `key` names, if its call is the present one and not over.
    pub fn live(&mut self, key: CallKey) -> Option<&mut Slot> {
        self.slots.get_mut(key.slot as usize).filter(|slot| slot.call == key.call && slot.phase != Phase::Free)
    }

    /// Slot number `index`.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn slot(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }

    /// The dialog in slot number `index`.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn dialog(&mut self, index: u32) -> &mut Dialog {
        &mut self.dialogs[index as usize]
    }

    /// Notes that `backend` saw a request of the call: a first one is counted for it, one elsewhere as moved.
    pub fn note_backend(&mut self, key: CallKey, backend: usize) {
        let Some(slot) = self.live(key) else { return };
        let seen = slot.backend;
        if seen == NO_BACKEND {
            slot.backend = backend as u8;
            self.opened[backend] += 1;
        } else if usize::from(seen) != backend {
            self.counters.moved += 1;
        }
    }

    /// Calls in progress.
    pub fn busy(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many slots there are.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// All that failed.
    pub fn failed(&self) -> u64 {
        self.counters.failures.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::scan;

    #[test]
    fn route_set_is_record_route_reversed() {
        let answer =
            b"SIP/2.0 200 OK\r\nVia: x\r\nRecord-Route: <sip:far;lr>, <sip:mid;lr>\r\nRecord-Route: <sip:near>\r\n\
            From: a\r\nTo: b;tag=c\r\nCall-ID: i\r\nCSeq: 1 INVITE\r\nContact: <sip:t>\r\n\r\n";
        let mut dialog = Dialog::EMPTY;
        dialog.learn(&scan(answer).expect("whole")).expect("learned");
        let routes = b"Route: <sip:near>\r\nRoute: <sip:mid;lr>\r\nRoute: <sip:far;lr>\r\n";
        assert_eq!(dialog.routes.as_slice(), routes);
        assert_eq!((dialog.target.as_slice(), dialog.to.as_slice()), (&b"sip:t"[..], &b"b;tag=c"[..]));
    }

    #[test]
    fn slots_are_reused_and_old_calls_are_not_live() {
        let mut ledger = Ledger::new(1, 2, 1, 0);
        let first = ledger.open(Kind::Options, 1, 0, true).expect("free");
        assert!(ledger.open(Kind::Options, 1, 0, true).is_none());
        ledger.note_backend(first, 1);
        ledger.note_backend(first, 0);
        ledger.complete(first);
        let second = ledger.open(Kind::Call, 1, 0, true).expect("free");
        assert!(ledger.live(first).is_none() && ledger.live(second).is_some());
        ledger.complete(second);
        assert_eq!((ledger.counters.completed, ledger.failed(), ledger.counters.moved), (1, 1, 1));
        assert_eq!((ledger.opened.as_slice(), ledger.busy()), (&[0, 1][..], 0));
    }
}
