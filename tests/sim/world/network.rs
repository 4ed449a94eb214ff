//! The network between the nodes, the servers and the phones: who a datagram reaches, and what the weather does to it.

use std::net::SocketAddr;

use tandem::base::id::stable_hash;
use tandem::engine::Received;
use tandem::route::snapshot::ListenerIndex;

use super::{Event, World};
use crate::agent::{Datagram, Io, MS};
use crate::checks::Violation;
use crate::faults::Weather;
use crate::node::{self, WORKERS};
use crate::planted::Bug;
use crate::user::User;

impl World {
    pub(super) fn deliver(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Result<(), Violation> {
        let line = format!("{} {} {from} {to}", self.report.digest, self.now);
        self.report.digest = stable_hash(line.as_bytes(), bytes);
        if let Some(wanted) = &self.traced {
            let text = String::from_utf8_lossy(bytes);
            if text.contains(wanted) {
                println!("--- {} ms: {from} to {to}\n{text}", self.now / MS);
            }
        }
        if let Some(listener) = node::listeners().iter().position(|listener| *listener == to) {
            let path = stable_hash(b"path", format!("{from} {to}").as_bytes());
            let (node, worker) = (path as usize % self.nodes.len(), (path >> 32) as usize % WORKERS);
            let listener = ListenerIndex(listener as u16);
            self.delivered += 1;
            return self.handle(
                node,
                worker,
                &Received { bytes, source: from, listener, flow: None, is_taken_over: false },
            );
        }
        if let Some(number) = self.nodes.iter().position(|node| node.probe_sources.contains(&to)) {
            return self.deliver_probe_answer(number, from, bytes);
        }
        if let Some(user) = self.parties.get(&to).copied() {
            self.with_user(user, |user, io| user.handle(io, bytes));
        }
        Ok(())
    }

    fn deliver_probe_answer(&mut self, number: usize, from: SocketAddr, bytes: &[u8]) -> Result<(), Violation> {
        let node = &mut self.nodes[number];
        let timeout = self.whole.pools[0].health.timeout;
        self.probes.note_answer([self.now, node.ahead], number, from, bytes, timeout);
        // Late by less than what would pass for a stall.
        let late = if self.options.bug == Bug::LateReading { 251 * MS } else { 0 };
        node.control.handle_answer(node.clock(self.now + late), from, bytes);
        self.drain_control(number)
    }

    pub(super) fn with_user(&mut self, number: usize, act: impl FnOnce(&mut User, &mut Io<'_>)) {
        let mut io = Io { now: self.now, prng: &mut self.prng, sends: Vec::new(), timers: Vec::new() };
        if !self.users[number].is_up {
            return;
        }
        act(&mut self.users[number], &mut io);
        let Io { sends, timers, .. } = io;
        for Datagram { from, to, bytes } in sends {
            self.send(from, to, bytes);
        }
        for (after, timer) in timers {
            self.at(self.now + after, Event::Timer { user: number, timer });
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
