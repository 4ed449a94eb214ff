//! The network between the nodes, the servers and the phones: who a datagram reaches, and what the weather does to it.

use std::net::SocketAddr;

use tandem::base::id::stable_hash;
use tandem::engine::Received;
use tandem::route::snapshot::ListenerIndex;

use super::{Event, World};
use crate::agent::{Io, MS};
use crate::backend::Backend;
use crate::caller::Caller;
use crate::checks::Violation;
use crate::faults::Weather;
use crate::node::{self, WORKERS};

/// Who is called.
pub(super) enum Party<'a> {
    Backend(&'a mut Backend),
    Caller(&'a mut Caller),
}

impl World {
    pub(super) fn deliver(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Result<(), Violation> {
        let line = format!("{} {} {from} {to}", self.report.digest, self.now);
        self.report.digest = stable_hash(line.as_bytes(), bytes);
        if let Some(listener) = node::listeners().iter().position(|listener| *listener == to) {
            let path = stable_hash(b"path", format!("{from} {to}").as_bytes());
            let (node, worker) = (path as usize % self.nodes.len(), (path >> 32) as usize % WORKERS);
            let listener = ListenerIndex(listener as u16);
            return self.handle(
                node,
                worker,
                &Received { bytes, source: from, listener, flow: None, is_taken_over: false },
            );
        }
        if let Some(number) = self.nodes.iter().position(|node| node.probe_sources.contains(&to)) {
            let node = &mut self.nodes[number];
            node.control.handle_answer(node.clock(self.now), from, bytes);
            self.drain_control(number);
            return Ok(());
        }
        if let Some(party) = self.parties.get(&to).copied() {
            self.with_party(party, |party, io| match party {
                Party::Backend(backend) => backend.handle(io, bytes),
                Party::Caller(caller) => caller.handle(io, bytes),
            });
        }
        Ok(())
    }

    pub(super) fn with_party(&mut self, party: usize, act: impl FnOnce(Party<'_>, &mut Io<'_>)) {
        let mut io = Io { now: self.now, prng: &mut self.prng, sends: Vec::new(), timers: Vec::new() };
        let backends = self.backends.len();
        let from = match party.checked_sub(backends) {
            Some(caller) => {
                act(Party::Caller(&mut self.callers[caller]), &mut io);
                self.callers[caller].agent.address
            }
            None if self.backends[party].is_up => {
                act(Party::Backend(&mut self.backends[party]), &mut io);
                self.backends[party].agent.address
            }
            None => return,
        };
        let Io { sends, timers, .. } = io;
        for (to, bytes) in sends {
            self.send(from, to, bytes);
        }
        for (after, timer) in timers {
            self.at(self.now + after, Event::Timer { party, timer });
        }
    }

    /// Puts a datagram into the network, as the weather allows.
    pub(super) fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let Weather { loss, duplicate, truncate, straggle, delay } = self.weather;
        let mut chance = |out_of_1000: u64| self.prng.below(1_000) < out_of_1000;
        if chance(loss) {
            return;
        }
        let copies = 1 + usize::from(chance(duplicate));
        for _ in 0..copies {
            let mut bytes = bytes.clone();
            if self.prng.below(1_000) < truncate {
                bytes.truncate(self.prng.below(bytes.len() as u64) as usize);
            }
            let late = if self.prng.below(1_000) < straggle { self.prng.below(2_000 * MS) } else { 0 };
            let at = self.now + MS / 10 + self.prng.below(delay) + late;
            self.at(at, Event::Deliver { from, to, bytes });
        }
    }
}
