//! Is a backend alive? From single probe outcomes to a state with hysteresis.
//!
//! A backend starts `Unproven`: it gets traffic at once, because a restart of Tandem must not be an outage, but the
//! first probe decides. One failed probe takes out a backend that has never answered; one answer makes it `Up`.
//! From then on it takes `fall` failed probes in a row to take it out and `rise` good ones to bring it back.
//!
//! What an answer to OPTIONS says (RFC 3261 section 11: "200 if it would accept a call, 486 if it is busy, ..."):
//!
//! | answer | alive | because |
//! |---|---|---|
//! | 1xx | - | no final answer; the probe goes on waiting |
//! | 2xx, 3xx | yes | served, or sends elsewhere |
//! | 4xx but 408 | yes | 401, 403, 404, 405, 420, 481, 483, 486: it read the request and has an opinion |
//! | 408 | no | a proxy in front answers for a server that did not |
//! | 501 | yes | it does not do OPTIONS, and says so: the rest of it works |
//! | 503 | no | overloaded or in maintenance: it asks not to be sent traffic (RFC 3261 21.5.4) |
//! | 500, 502, 504 | no | broken, or what stands behind it is |
//! | other 5xx | no | 505 does not speak SIP/2.0; 513, 580 in answer to an empty OPTIONS are broken |
//! | 6xx | no | it refuses on behalf of everybody (RFC 3261 21.6): calls would fare no better |
//! | none in time | no | dead, unreachable, or too slow to serve |

use std::fmt;

/// What is known of a backend's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No probe has ended since it was added, moved or enabled. Counts as healthy.
    Unproven,
    /// Alive.
    Up,
    /// Taken out: gets no new dialogs.
    Down,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Unproven => "unproven",
            State::Up => "up",
            State::Down => "down",
        })
    }
}

/// How one probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A final answer in time; its status code, 200 to 699.
    Answered(u16),
    /// No final answer in time.
    Timeout,
    /// The network refused to carry the probe: no route, host or port unreachable.
    Unreachable,
}

impl Outcome {
    /// Whether it counts as a good probe; the table in the module head.
    pub const fn is_alive(self) -> bool {
        match self {
            Outcome::Answered(status) => matches!(status, 200..=407 | 409..=499 | 501),
            Outcome::Timeout | Outcome::Unreachable => false,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Answered(status) => write!(f, "answer {status}"),
            Outcome::Timeout => f.write_str("no answer in time"),
            Outcome::Unreachable => f.write_str("unreachable"),
        }
    }
}

/// Why a state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The first probe was good.
    FirstAnswered(Outcome),
    /// The first probe failed.
    FirstFailed(Outcome),
    /// So many probes in a row failed, the last one like this.
    Fell(u32, Outcome),
    /// So many probes in a row were good, the last one like this.
    Rose(u32, Outcome),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::FirstAnswered(last) => write!(f, "the first probe was good: {last}"),
            Reason::FirstFailed(last) => write!(f, "the first probe failed: {last}"),
            Reason::Fell(probes, last) => write!(f, "{probes} probes in a row failed, last: {last}"),
            Reason::Rose(probes, last) => write!(f, "{probes} probes in a row were good, last: {last}"),
        }
    }
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// What did it.
    pub reason: Reason,
}

/// The state of one backend and the run of equal outcomes that may change it.
#[derive(Clone, Copy, Debug)]
pub struct Hysteresis {
    state: State,
    /// Outcomes in a row that were unlike `state`; 0 as soon as one is like it.
    run: u32,
}

impl Default for Hysteresis {
    fn default() -> Self {
        Hysteresis { state: State::Unproven, run: 0 }
    }
}

impl Hysteresis {
    /// Takes in how a probe ended. `rise` and `fall` count from 1; 0 acts as 1.
    pub fn record(&mut self, outcome: Outcome, rise: u32, fall: u32) -> Option<Transition> {
        let is_alive = outcome.is_alive();
        let (needed, to) = match (self.state, is_alive) {
            (State::Unproven, true) => (1, State::Up),
            (State::Unproven, false) => (1, State::Down),
            (State::Down, true) => (rise, State::Up),
            (State::Up, false) => (fall, State::Down),
            (State::Up, true) | (State::Down, false) => {
                self.run = 0;
                return None;
            }
        };
        self.run = self.run.saturating_add(1);
        if self.run < needed {
            return None;
        }
        let reason = match (self.state, is_alive) {
            (State::Unproven, true) => Reason::FirstAnswered(outcome),
            (State::Unproven, false) => Reason::FirstFailed(outcome),
            (_, true) => Reason::Rose(self.run, outcome),
            (_, false) => Reason::Fell(self.run, outcome),
        };
        let from = std::mem::replace(self, Hysteresis { state: to, run: 0 }).state;
        Some(Transition { from, to, reason })
    }

    /// After a time without probes: what was up has to prove it again, what was down stays down until it rises.
    pub fn unprove(&mut self) {
        self.run = 0;
        if self.state == State::Up {
            self.state = State::Unproven;
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether new dialogs may go there.
    pub fn is_healthy(&self) -> bool {
        self.state != State::Down
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Outcome = Outcome::Answered(200);
    const BAD: Outcome = Outcome::Timeout;

    #[test]
    fn first_probe_decides_about_a_backend_never_seen() {
        let mut h = Hysteresis::default();
        assert!(h.is_healthy());
        assert_eq!(h.record(BAD, 2, 3).unwrap().reason, Reason::FirstFailed(BAD));
        assert!(!h.is_healthy());
        let mut h = Hysteresis::default();
        assert_eq!(h.record(GOOD, 2, 3).unwrap().to, State::Up);
    }

    #[test]
    fn fall_and_rise_count_outcomes_in_a_row() {
        let mut h = Hysteresis::default();
        h.record(GOOD, 2, 3);
        for outcome in [BAD, BAD, GOOD, BAD, BAD] {
            assert_eq!(h.record(outcome, 2, 3), None);
        }
        let fell = h.record(Outcome::Answered(503), 2, 3).unwrap();
        assert_eq!((fell.from, fell.to), (State::Up, State::Down));
        assert_eq!(fell.reason.to_string(), "3 probes in a row failed, last: answer 503");
        for outcome in [GOOD, BAD, GOOD] {
            assert_eq!(h.record(outcome, 2, 3), None);
        }
        assert_eq!(h.record(GOOD, 2, 3).unwrap().reason, Reason::Rose(2, GOOD));
    }

    #[test]
    fn unproved_keeps_the_dead_dead() {
        let mut h = Hysteresis::default();
        h.record(BAD, 2, 3);
        h.unprove();
        assert_eq!(h.state(), State::Down);
        let mut h = Hysteresis::default();
        h.record(GOOD, 2, 3);
        h.unprove();
        assert_eq!(h.state(), State::Unproven);
    }

    #[test]
    fn answers_count_as_the_table_says() {
        for status in [200, 202, 302, 401, 404, 405, 407, 409, 420, 481, 483, 486, 499, 501] {
            assert!(Outcome::Answered(status).is_alive(), "{status}");
        }
        for status in [408, 500, 502, 503, 504, 505, 513, 580, 600, 603, 606, 699] {
            assert!(!Outcome::Answered(status).is_alive(), "{status}");
        }
    }
}
