//! The calling side: opens calls, keeps their dialogs and ends them, as a user agent client does.
//!
//! Read RFC 3261 sections 12.2 and 17.1 first. Each answer must come back with our Via alone on it and with the CSeq
//! of the transaction that is open; anything else is counted as unexpected and changes nothing. Requests in a dialog
//! always go to the proxy's address, with the route set in Route lines; a 2xx without Record-Route is counted, and
//! its ACK goes to the proxy all the same (a bare forwarder adds no Record-Route).
//!
//! Timers, when on, are coarser than RFC 3261's: INVITE and BYE are sent again at T1, 2*T1, … until a final answer,
//! the INVITE also after a provisional one, which stands in for a UAS that repeats its 2xx.

use std::collections::VecDeque;

use crate::ledger::{Failure, Kind, Ledger, Phase, Slot};
use crate::message::{Scan, Writer, has_tag, scan, value};
use crate::network::Outlet;
use crate::template::{CallKey, SDP, Texts, Transaction, decode_call_id, is_our_via};

/// One caller: what it sends, without what carries it.
pub struct Caller {
    /// The messages it sends.
    pub texts: Texts,
}

/// Calls that are to be hung up, in the order of their time.
pub struct Hangups {
    /// How long a call lasts between its ACK and its BYE, in ns.
    pub hold_ns: u64,
    /// When, and which; capacity is the number of slots.
    pub queue: VecDeque<(u64, CallKey)>,
}

impl Caller {
    /// Sends the first request of a call that the ledger has just opened.
    pub fn start(&self, ledger: &mut Ledger, key: CallKey, kind: Kind, out: &mut Outlet<'_>) {
        let template = match kind {
            Kind::Call => &self.texts.invite,
            Kind::Register => &self.texts.register,
            Kind::Options => &self.texts.options,
        };
        let is_queued = out.push(|buffer| {
            let mut writer = Writer::new(buffer);
            template.write(key, &mut writer);
            writer.finish()
        });
        ledger.counters.unsent += u64::from(!is_queued);
    }

    /// Handles one message that arrived for this caller.
    pub fn receive(&self, ledger: &mut Ledger, hangups: &mut Hangups, message: &[u8], out: &mut Outlet<'_>) {
        ledger.counters.received += 1;
        let Some(answer) = scan(message) else {
            ledger.counters.unexpected += 1;
            return;
        };
        let (Some(status), Some(key)) = (answer.status(), decode_call_id(value(answer.call_id), ledger.seed)) else {
            ledger.counters.unexpected += 1;
            return;
        };
        let Some(slot) = ledger.live(key).copied() else {
            ledger.counters.late += 1;
            return;
        };
        let is_ours = |transaction| {
            answer.via.as_slice().len() == 1 && is_our_via(answer.via.as_slice()[0], ledger.seed, key.call, transaction)
        };
        match (slot.phase, answer.method()) {
            (Phase::Inviting, b"INVITE") if is_ours(Transaction::Invite) => match status {
                100..200 => {}
                200..300 => self.establish(ledger, hangups, (key, slot), &answer, out),
                _ => self.give_up(ledger, key, &answer, status, out),
            },
            (Phase::Talking | Phase::Leaving, b"INVITE") if is_ours(Transaction::Invite) => match status {
                200..300 => {
                    ledger.counters.duplicates += 1;
                    self.send_in_dialog(ledger, key, Transaction::Ack, out);
                }
                _ if ledger.t1_ns > 0 => ledger.counters.duplicates += 1,
                _ => ledger.counters.unexpected += 1,
            },
            (Phase::Leaving, b"BYE") if is_ours(Transaction::Bye) => finish(ledger, key, status),
            (Phase::Single, b"REGISTER" | b"OPTIONS") if is_ours(Transaction::Single) => finish(ledger, key, status),
            _ => ledger.counters.unexpected += 1,
        }
    }

    /// Sends BYE, if the call is still up.
    pub fn hang_up(&self, ledger: &mut Ledger, key: CallKey, out: &mut Outlet<'_>) {
        let (now_ns, t1_ns) = (ledger.now_ns, ledger.t1_ns);
        let Some(slot) = ledger.live(key) else { return };
        slot.phase = Phase::Leaving;
        slot.sent_ns = now_ns;
        (slot.again_ns, slot.again_after_ns) = (now_ns + t1_ns, t1_ns);
        self.send_in_dialog(ledger, key, Transaction::Bye, out);
    }

    /// Sends the open request of a call again.
    pub fn retransmit(&self, ledger: &mut Ledger, key: CallKey, out: &mut Outlet<'_>) {
        let now_ns = ledger.now_ns;
        let Some(slot) = ledger.live(key) else { return };
        slot.again_after_ns = (slot.again_after_ns * 2).min(4_000_000_000);
        slot.again_ns = now_ns + slot.again_after_ns;
        let (phase, kind) = (slot.phase, slot.kind);
        ledger.counters.retransmissions += 1;
        match phase {
            Phase::Inviting | Phase::Single => self.start(ledger, key, kind, out),
            Phase::Leaving => self.send_in_dialog(ledger, key, Transaction::Bye, out),
            Phase::Talking | Phase::Free => {}
        }
    }

    fn establish(
        &self,
        l: &mut Ledger,
        hangups: &mut Hangups,
        (key, slot): (CallKey, Slot),
        answer: &Scan<'_>,
        out: &mut Outlet<'_>,
    ) {
        if !has_tag(answer.to) || l.dialog(key.slot).learn(answer).is_none() {
            return l.fail(key, Failure::Unusable);
        }
        l.counters.damaged += u64::from(answer.body != SDP.as_bytes());
        l.counters.unrouted += u64::from(answer.record_route.as_slice().is_empty());
        if slot.is_measured {
            let micros = (l.now_ns - slot.intended_ns) / 1000;
            l.latencies.setup.saturating_record(micros);
        }
        l.slot(key.slot).phase = Phase::Talking;
        self.send_in_dialog(l, key, Transaction::Ack, out);
        if hangups.hold_ns == 0 {
            self.hang_up(l, key, out);
        } else {
            hangups.queue.push_back((l.now_ns + hangups.hold_ns, key));
        }
    }

    fn give_up(&self, ledger: &mut Ledger, key: CallKey, answer: &Scan<'_>, status: u16, out: &mut Outlet<'_>) {
        let (texts, to) = (&self.texts, value(answer.to));
        let is_queued = out.push(|buffer| texts.ack_failure.render(key, texts.target_uri.as_bytes(), b"", to, buffer));
        ledger.counters.unsent += u64::from(!is_queued);
        finish(ledger, key, status);
    }

    fn send_in_dialog(&self, ledger: &mut Ledger, key: CallKey, transaction: Transaction, out: &mut Outlet<'_>) {
        let request = if transaction == Transaction::Ack { &self.texts.ack } else { &self.texts.bye };
        let dialog = ledger.dialog(key.slot);
        let is_queued = out.push(|buffer| {
            let (target, routes, to) = (dialog.target.as_slice(), dialog.routes.as_slice(), dialog.to.as_slice());
            request.render(key, target, routes, to, buffer)
        });
        ledger.counters.unsent += u64::from(!is_queued);
    }
}

/// Ends a call by the final answer to its last request; provisional answers change nothing.
fn finish(ledger: &mut Ledger, key: CallKey, status: u16) {
    match status {
        0..200 => {}
        200..300 => ledger.complete(key),
        _ => {
            if let Some(count) = ledger.statuses.get_mut(usize::from(status)) {
                *count += 1;
            }
            ledger.fail(key, Failure::Rejected);
        }
    }
}
