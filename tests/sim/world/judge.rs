//! What the world has to say to a run besides the checks on single datagrams: whether nodes agree, whether calls
//! succeed once the faults are over, whether the tables empty, and what was seen at all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tandem::base::time::Instant;
use tandem::engine::Received;
use tandem::metrics::{Counters, Reason};
use tandem::route::snapshot::{Backend, Snapshot};

use super::World;
use crate::agent::MS;
use crate::checks::{BRANCH_OUTLIVES_ROTATION, Output, Violation, broken};
use crate::message::Message;
use crate::node;
use crate::planted::{Bug, Hints};

impl World {
    pub(super) fn tamper(
        &mut self,
        node: usize,
        rx: &Received<'_>,
        clock: Instant,
        snapshot: &Arc<Snapshot>,
        counters: [&Counters; 2],
        outputs: &mut Vec<Output>,
    ) -> Counters {
        let [before, after] = counters;
        if self.options.bug == Bug::None {
            return after.clone();
        }
        self.stateless.apply_snapshot(Arc::clone(snapshot));
        let source = rx.source;
        let rx = Received { is_taken_over: true, ..*rx };
        let (_, forgetful) = node::handle(&mut self.stateless, clock, &rx, &mut self.outbox);
        let backends = |is_meant: &dyn Fn(&Backend) -> bool| -> Vec<SocketAddr> {
            snapshot.backends.iter().filter(|b| is_meant(b)).map(|b| b.address).collect()
        };
        let hints = Hints {
            forgetful: &forgetful,
            serving: &backends(&|b| b.keeps_dialogs()),
            taking: &backends(&Backend::takes_new),
            node,
            refusing: &backends(&|b| b.keeps_dialogs() && !b.takes_new()),
            is_from_backend: snapshot.backend_by_address(source).is_some(),
            is_selected: after.selected > before.selected,
            tokens: &self.checks.tokens,
        };
        self.options.bug.tamper(&mut self.prng, rx.bytes, outputs, counters, &hints)
    }

    /// Every other node with the same picture says the same to what no binding decides; to what one does, it would mint
    /// the same branch.
    pub(super) fn check_twins(
        &mut self,
        [number, worker]: [usize; 2],
        rx: &Received<'_>,
        snapshot: &Snapshot,
        is_bound: bool,
        outputs: &[Output],
    ) -> Result<(), Violation> {
        let secrets = self.nodes[number].known[worker];
        for other in (0..self.nodes.len()).filter(|other| *other != number) {
            let theirs = Arc::clone(self.nodes[other].engines[worker].snapshot());
            if !is_alike(snapshot, &theirs) || secrets != self.nodes[other].known[worker] {
                continue;
            }
            self.see("twin asked");
            self.stateless.apply_snapshot(theirs);
            let clock = self.nodes[other].clock(self.now);
            let rx = Received { is_taken_over: true, ..*rx };
            let (_, twin) = node::handle(&mut self.stateless, clock, &rx, &mut self.outbox);
            let branches = |outputs: &[Output]| -> Vec<String> {
                outputs.iter().filter_map(|o| Some(Message::parse(&o.bytes)?.branch().to_owned())).collect()
            };
            let is_equal = if is_bound {
                twin.first().is_none_or(is_answer) || branches(&twin) == branches(outputs)
            } else {
                twin == outputs
            };
            if !is_equal {
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
            ("text", is_by_text(before, after)),
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

    /// Liveness, and what the users have to complain about.
    pub(super) fn check_calls(&self) -> Result<(), Violation> {
        for user in &self.users {
            if let Some(complaint) = user.agent.complaints.first() {
                return broken("response", complaint.clone());
            }
            for (id, call) in user.calls.iter().filter(|(_, call)| call.plan.must_succeed) {
                // To the other side a BYE under another branch is a second one.
                let is_ended = call.ended == 200 || (call.ended == 481 && !BRANCH_OUTLIVES_ROTATION);
                if call.status != 200 || !is_ended {
                    return broken("liveness", format!("{id} ended with {} and {}", call.status, call.ended));
                }
            }
        }
        Ok(())
    }

    /// All workers together account for everything that was delivered.
    pub(super) fn check_sums(&self) -> Result<(), Violation> {
        let counters: Vec<_> =
            self.nodes.iter().flat_map(|node| &node.engines).map(|engine| engine.counters()).collect();
        let sum = |of: &dyn Fn(&Counters) -> u64| counters.iter().map(of).sum::<u64>();
        let received = sum(&|c| c.received);
        let waiting = self.nodes.iter().flat_map(|node| &node.rings).map(|ring| ring.len() as u64).sum::<u64>();
        let [given, taken] = [sum(&|c| c.handed_over), sum(&|c| c.taken_over)];
        if received != self.delivered || given != taken + waiting || sum(&Counters::outcomes) != received + taken {
            return broken(
                "counters",
                format!(
                    "{} delivered, {received} received, {given} given, {taken} taken, {waiting} wait",
                    self.delivered
                ),
            );
        }
        Ok(())
    }

    /// Once nobody speaks, the tables empty.
    pub(super) fn check_idle(&mut self) -> Result<(), Violation> {
        let timers = &self.whole.timers;
        let longest = timers.binding_early.max(timers.binding_dialog).max(timers.binding_linger);
        for _ in 0..(longest + Duration::from_secs(5)).as_secs() {
            self.now += 1_000 * MS;
            self.tick();
        }
        let engines = self.nodes.iter().flat_map(|node| &node.engines);
        match engines.map(|engine| engine.bindings().len()).sum::<usize>() {
            0 => Ok(()),
            left => broken("bindings", format!("{left} bindings are left when all is over")),
        }
    }
}

fn is_answer(output: &Output) -> bool {
    output.bytes.starts_with(b"SIP/")
}

/// Neither cookie nor binding nor selection decided.
fn is_by_text(before: &Counters, after: &Counters) -> bool {
    let routed = |c: &Counters| c.routed_by_cookie + c.routed_by_binding + c.selected;
    after.requests_forwarded > before.requests_forwarded && routed(after) == routed(before)
}

/// Do two nodes see the same backends in the same state?
fn is_alike(a: &Snapshot, b: &Snapshot) -> bool {
    a.backends.len() == b.backends.len()
        && a.backends
            .iter()
            .zip(&b.backends)
            .all(|(a, b)| (a.id, a.address, a.weight, a.status) == (b.id, b.address, b.weight, b.status))
}
