//! The course of events of a run, drawn from the seed before it begins: who calls whom and when, which faults strike,
//! and what has to succeed once they are over.

use std::net::SocketAddr;

use tandem::base::prng::Prng;

use super::{Event, Reload, World};
use crate::agent::MS;
use crate::faults::{self, CALM, Fault, Weather};
use crate::node::{self, Secrets};
use crate::user::{Plan, User};

/// Calls that begin here have to succeed: 5 seconds after the last fault.
const LIVE: u64 = CALM + 5_000 * MS;
/// By then every call has ended.
pub(super) const END: u64 = LIVE + 50_000 * MS;
pub(super) const TICK: u64 = 500 * MS;

impl World {
    /// Writes the whole course of events into the queue.
    pub(super) fn plan(&mut self, sets_change: bool) {
        let (nodes, backends) = (self.nodes.len(), self.options.backends);
        for (at, fault) in faults::draw(&mut self.prng, nodes, backends, sets_change) {
            self.at(at, Event::Fault(fault));
        }
        for user in 0..self.users.len() {
            let is_server = user < backends;
            for _ in 0..if is_server { 4 } else { 6 } {
                let callee = self.draw_callee(is_server);
                let plan = draw_plan(&mut self.prng, callee);
                let at = self.prng.below(CALM);
                self.at(at, Event::Start { user, plan });
            }
            let callee = self.draw_callee(is_server);
            let (cancel_after, hold) = (None, 2_000 * MS);
            let plan = Plan { method: "INVITE", callee, cancel_after, reinvites: true, hold, must_succeed: true };
            self.at(LIVE + user as u64 * 10 * MS, Event::Start { user, plan });
        }
        // In some runs one backend stays dead, and calls have to succeed without it.
        let dead = (sets_change && self.prng.below(2) == 0).then(|| self.prng.below(backends as u64));
        for backend in 0..backends {
            let is_dead = dead == Some(backend as u64);
            self.at(CALM, Event::Fault(if is_dead { Fault::Crash(backend) } else { Fault::Return(backend) }));
        }
        self.at(CALM, Event::Fault(Fault::Weather(Weather::FAIR)));
        for node in 0..nodes {
            self.at(CALM + node as u64 * MS, Event::Reload { node, reload: Reload::Pools(self.whole.pools.clone()) });
        }
        if sets_change {
            self.plan_rotations();
        }
        self.at(TICK, Event::Tick);
    }

    /// One rotation among the faults, in any manner, and one in the middle of the calls that have to succeed. Without
    /// change of the set nothing but the hash finds the way, and that is the secret's.
    fn plan_rotations(&mut self) {
        let mut secret = Secrets::FIRST.current;
        if self.prng.below(4) > 0 {
            let is_announced = self.prng.below(2) == 0;
            let skew = self.prng.below(2_000) * MS;
            let times = [(1_000 + self.prng.below(15_000)) * MS, skew, self.prng.below(8_000) * MS];
            secret = self.plan_rotation(secret, is_announced, times);
        }
        // Dialogs that began before it end after it, and before what they were signed with goes.
        let start = LIVE + self.prng.below(4_000) * MS;
        self.plan_rotation(secret, true, [start, 200 * MS, 15_000 * MS]);
    }

    fn plan_rotation(&mut self, old: [u8; 16], is_announced: bool, times: [u64; 3]) -> [u8; 16] {
        let mut secret = old;
        for (at, fault) in faults::draw_rotation(&mut self.prng, old, is_announced, times).into_iter().flatten() {
            let Fault::Rotate(rotation) = &fault else { continue };
            secret = rotation.secrets().current;
            for node in 0..self.nodes.len() {
                // No step overtakes the one before it.
                let at = at + if node == 0 { 0 } else { self.prng.below(times[1].max(1)) };
                self.at(at, Event::Reload { node, reload: Reload::Secrets(rotation.secrets()) });
            }
            self.at(at, Event::Fault(fault));
        }
        secret
    }

    /// Servers call phones, phones call the service.
    fn draw_callee(&mut self, is_server: bool) -> Option<SocketAddr> {
        let phones = self.users[self.options.backends..].iter().filter(|phone| phone.is_reachable());
        let phones: Vec<SocketAddr> = phones.map(|phone| phone.agent.address).collect();
        is_server.then(|| phones[self.prng.below(phones.len() as u64) as usize])
    }
}

/// Every second pair of phones speaks IPv6.
pub(super) fn new_phone(number: usize) -> User {
    let host = 1 + number as u8;
    let address = match number % 4 {
        1 => format!("[2001:db8:c::{host}]:5062").parse().expect("an address"),
        _ => SocketAddr::from(([203, 0, 113, 100 + host], 5060 + number as u16)),
    };
    User::phone(number, address, node::listeners()[usize::from(address.is_ipv6())])
}

pub(super) fn new_server(number: usize) -> User {
    let address = node::backend_address(number);
    let service = node::listeners()[usize::from(address.is_ipv6())];
    User::server(number, address, node::dialog_address(number), service)
}

fn draw_plan(prng: &mut Prng, callee: Option<SocketAddr>) -> Plan {
    let methods = ["INVITE", "INVITE", "INVITE", "INVITE", "MESSAGE", "OPTIONS", "REGISTER"];
    // Nobody registers at a phone.
    let method = methods[prng.below(if callee.is_some() { 6 } else { 7 }) as usize];
    Plan {
        method,
        callee,
        cancel_after: (prng.below(4) == 0).then(|| prng.below(1_500) * MS),
        reinvites: prng.below(3) == 0,
        hold: (500 + prng.below(9_000)) * MS,
        must_succeed: false,
    }
}
