//! Verdicts on backends, held against what became of the probes in the network.
//!
//! A probe counts as answered in time when its answer reached the node within the timeout of the world's clock. When
//! the node's own clock leapt in between by less than the timeout, the node cannot tell that from time which passed, and
//! the probe counts neither way; a longer leap is a stall, which the node has to see through.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tandem::config::Health;
use tandem::control::STALL;
use tandem::control::health::State;

use super::{Violation, check};
use crate::message::Message;

struct Probe {
    branch: String,
    sent: u64,
    ahead: u64,
    is_answered: bool,
    is_in_time: bool,
}

/// All probes, by node and backend.
#[derive(Default)]
pub struct Probes(BTreeMap<(usize, SocketAddr), Vec<Probe>>);

impl Probes {
    /// A node probes a backend; its clock is ahead of the world's.
    pub fn note_probe(&mut self, node: usize, backend: SocketAddr, branch: &str, now: u64, ahead: u64) {
        let probe = Probe { branch: branch.to_owned(), sent: now, ahead, is_answered: false, is_in_time: false };
        self.0.entry((node, backend)).or_default().push(probe);
    }

    /// An answer reaches the node. One that was cut short may be good enough, but need not be.
    pub fn note_answer(
        &mut self,
        [now, ahead]: [u64; 2],
        node: usize,
        backend: SocketAddr,
        bytes: &[u8],
        timeout: Duration,
    ) {
        let probes = self.0.entry((node, backend)).or_default();
        let names = |probe: &Probe| bytes.windows(probe.branch.len()).any(|text| text == probe.branch.as_bytes());
        let Some(probe) = probes.iter_mut().rfind(|probe| names(probe)) else { return };
        let timeout = timeout.as_nanos() as u64;
        let (took, leap) = (now - probe.sent, ahead - probe.ahead);
        let is_plain = took + leap < timeout || leap > timeout + STALL.as_nanos() as u64;
        probe.is_answered = true;
        probe.is_in_time |= Message::parse(bytes).is_some() && took < timeout && is_plain;
    }

    /// A node has changed its mind about a backend.
    pub fn check_verdict(
        &self,
        node: usize,
        backend: SocketAddr,
        [from, to]: [State; 2],
        health: &Health,
    ) -> Result<(), Violation> {
        let probes = self.0.get(&(node, backend)).map_or(&[][..], Vec::as_slice);
        let needed = match (from, to) {
            (State::Unproven, _) => 1,
            (_, State::Down) => health.fall as usize,
            _ => health.rise as usize,
        };
        let last = &probes[probes.len().saturating_sub(needed)..];
        let is_earned = last.len() == needed
            && last.iter().all(|probe| if to == State::Down { !probe.is_in_time } else { probe.is_answered });
        check(is_earned, "health", || {
            let seen: Vec<_> = last.iter().map(|probe| (probe.is_answered, probe.is_in_time)).collect();
            format!("node {node} says {backend} went from {from} to {to}; answered, in time: {seen:?}")
        })
    }
}
