//! What the world has to say to a run besides the checks on single datagrams: whether nodes agree, whether calls
//! succeed once the faults are over, whether the tables empty, and what was seen at all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tandem::base::time::Instant;
use tandem::engine::Received;
use tandem::metrics::{Counters, Reason};
use tandem::route::snapshot::Snapshot;

use super::{Event, World};
use crate::agent::MS;
use crate::checks::{Output, Violation, broken};
use crate::node;
use crate::planted::Bug;

impl World {
    pub(super) fn tamper(
        &mut self,
        rx: &Received<'_>,
        clock: Instant,
        snapshot: &Arc<Snapshot>,
        outputs: &mut Vec<Output>,
    ) {
        if self.options.bug == Bug::None {
            return;
        }
        self.stateless.apply_snapshot(Arc::clone(snapshot));
        let rx = Received { is_taken_over: true, ..*rx };
        let (_, forgetful) = node::handle(&mut self.stateless, clock, &rx, &mut self.outbox);
        let others: Vec<SocketAddr> =
            snapshot.backends.iter().filter(|b| b.keeps_dialogs()).map(|b| b.address).collect();
        self.options.bug.tamper(&mut self.prng, rx.bytes, outputs, &forgetful, &others);
    }

    /// Every other node with the same picture says the same to what no binding decides.
    pub(super) fn check_twins(
        &mut self,
        number: usize,
        worker: usize,
        rx: &Received<'_>,
        snapshot: &Snapshot,
        outputs: &[Output],
    ) -> Result<(), Violation> {
        for other in (0..self.nodes.len()).filter(|other| *other != number) {
            let theirs = Arc::clone(self.nodes[other].engines[worker].snapshot());
            if !is_alike(snapshot, &theirs) {
                continue;
            }
            self.see("twin asked");
            self.stateless.apply_snapshot(theirs);
            let clock = self.nodes[other].clock(self.now);
            let rx = Received { is_taken_over: true, ..*rx };
            let (_, twin) = node::handle(&mut self.stateless, clock, &rx, &mut self.outbox);
            if twin != outputs {
                let show = |outputs: &[Output]| {
                    let text = |o: &Output| format!("to {}: {}", o.to, String::from_utf8_lossy(&o.bytes));
                    outputs.iter().map(text).collect::<Vec<_>>().join("\n")
                };
                return broken("twin", format!("{}\nand the other node\n{}", show(outputs), show(&twin)));
            }
        }
        Ok(())
    }

    pub(super) fn see_outcome(&mut self, before: &Counters, after: &Counters, has_full_ring: bool) {
        let pairs = [
            ("cookie", after.routed_by_cookie > before.routed_by_cookie),
            ("binding", after.routed_by_binding > before.routed_by_binding),
            ("selection", after.selected > before.selected),
            ("response", after.responses_forwarded > before.responses_forwarded),
            ("hand-over", after.handed_over > before.handed_over),
            ("full ring", has_full_ring),
            ("full table", after.bindings_refused > before.bindings_refused),
            ("forged cookie", after.cookies_refused > before.cookies_refused),
        ];
        pairs.iter().filter(|(_, is_seen)| *is_seen).for_each(|(what, _)| self.see(what));
        for reason in Reason::ALL {
            let at = *reason as usize;
            if after.answered[at] > before.answered[at] || after.dropped[at] > before.dropped[at] {
                self.see(reason.label());
            }
        }
    }

    /// Liveness, and what the callers have to complain about.
    pub(super) fn check_calls(&self) -> Result<(), Violation> {
        for caller in &self.callers {
            if let Some(complaint) = caller.agent.complaints.first() {
                return broken("response", complaint.clone());
            }
            for (id, call) in caller.calls.iter().filter(|(_, call)| call.plan.must_succeed) {
                if call.status != 200 || call.ended != 200 {
                    return broken("liveness", format!("{id} ended with {} and {}", call.status, call.ended));
                }
            }
        }
        Ok(())
    }

    /// Once nobody speaks, the tables empty.
    pub(super) fn check_idle(&mut self) -> Result<(), Violation> {
        let timers = &self.whole.timers;
        let longest = timers.binding_early.max(timers.binding_dialog).max(timers.binding_linger);
        for _ in 0..(longest + Duration::from_secs(5)).as_secs() {
            self.now += 1_000 * MS;
            self.step(Event::Tick)?;
        }
        let engines = self.nodes.iter().flat_map(|node| &node.engines);
        match engines.map(|engine| engine.bindings().len()).sum::<usize>() {
            0 => Ok(()),
            left => broken("bindings", format!("{left} bindings are left when all is over")),
        }
    }
}

/// Do two nodes see the same backends in the same state?
fn is_alike(a: &Snapshot, b: &Snapshot) -> bool {
    a.backends.len() == b.backends.len()
        && a.backends
            .iter()
            .zip(&b.backends)
            .all(|(a, b)| (a.id, a.address, a.weight, a.status) == (b.id, b.address, b.weight, b.status))
}
