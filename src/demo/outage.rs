//! When the demo takes a backend down and up again, and what is known of each outage.
//!
//! Pure: the time since the first call and the backend's health as Tandem shows it come in, orders to take the
//! backend down or bring it up come out. An outage has four moments, in this order, as far as it got:
//!
//! ```text
//! down (announced, socket closes) -> detected (Tandem took it out) -> up (answers again) -> back (Tandem uses it)
//! ```
//!
//! A failed call is **inside** the outage when any part of its life, from its first INVITE to its failure, lies
//! between down and back; every other failed call is outside and a fault. At most [`OUTAGES_MAX`] outages are made.

use std::time::Duration;

/// Outages in one run, a day of them at one a minute; after that the backend is left alone.
const OUTAGES_MAX: usize = 1_440;

/// One outage; all times since the first call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Outage {
    /// Announced, just before the socket closes.
    pub(super) down_at: Duration,
    /// Tandem shows the backend as unhealthy.
    pub(super) detected_at: Option<Duration>,
    /// The socket is open again.
    pub(super) up_at: Option<Duration>,
    /// Tandem shows the backend as healthy again.
    pub(super) back_at: Option<Duration>,
}

impl Outage {
    /// Whether a life from `began` to `ended` touches the time from down to back.
    pub(super) fn covers(&self, began: Duration, ended: Duration) -> bool {
        ended >= self.down_at && self.back_at.is_none_or(|back_at| began <= back_at)
    }
}

/// What to do to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Close its socket.
    TakeDown,
    /// Open it again.
    BringUp,
}

/// Where the show stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// All backends answer; the time to the next outage, if there will be one.
    Steady(Option<Duration>),
    /// Down, not noticed yet.
    Down,
    /// Down, and Tandem uses the others.
    Out,
    /// Up, not noticed yet.
    Up,
}

/// When outages happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// From the first call, or from the start of each period, to the outage.
    pub(super) down_after: Duration,
    /// How long the backend stays down.
    pub(super) length: Duration,
    /// Time from one outage to the next; `None` for a single one.
    pub(super) period: Option<Duration>,
}

impl Plan {
    /// One outage half-way of `total`; without an end, one every minute.
    pub(super) fn new(total: Option<Duration>) -> Plan {
        let limits = (Duration::from_millis(2_500), Duration::from_secs(10));
        match total {
            Some(total) => Plan { down_after: total / 2, length: (total / 5).clamp(limits.0, limits.1), period: None },
            None => {
                Plan { down_after: Duration::from_secs(20), length: limits.1, period: Some(Duration::from_secs(60)) }
            }
        }
    }
}

/// The outages of one run.
pub(super) struct Outages {
    plan: Plan,
    /// When the next one begins.
    next_at: Option<Duration>,
    past: Vec<Outage>,
}

impl Outages {
    /// Nothing happened yet.
    pub(super) fn new(plan: Plan) -> Outages {
        Outages { plan, next_at: Some(plan.down_after), past: Vec::new() }
    }

    /// Begins no further outage; the one in progress is watched to its end.
    pub(super) fn finish(&mut self) {
        self.next_at = None;
    }

    /// Notes what happened by `now` and tells what to do; call it several times a second.
    pub(super) fn advance(&mut self, now: Duration, is_healthy: bool) -> Option<Order> {
        if let Some(open) = self.past.last_mut().filter(|outage| outage.back_at.is_none()) {
            if open.up_at.is_none() {
                if !is_healthy && open.detected_at.is_none() {
                    open.detected_at = Some(now);
                }
                if now >= open.down_at + self.plan.length {
                    open.up_at = Some(now);
                    return Some(Order::BringUp);
                }
            } else if is_healthy {
                open.back_at = Some(now);
            }
            return None;
        }
        if now < self.next_at? {
            return None;
        }
        self.past.push(Outage { down_at: now, detected_at: None, up_at: None, back_at: None });
        self.next_at = self.plan.period.filter(|_| self.past.len() < OUTAGES_MAX).map(|period| now + period);
        Some(Order::TakeDown)
    }

    /// All outages so far, oldest first.
    pub(super) fn past(&self) -> &[Outage] {
        &self.past
    }

    /// Whether a failed call is excused by an outage.
    pub(super) fn cover(&self, began: Duration, ended: Duration) -> bool {
        self.past.iter().rev().any(|outage| outage.covers(began, ended))
    }

    /// Whether at that time Tandem had taken the backend out and it did not answer again yet.
    pub(super) fn is_out(&self, at: Duration) -> bool {
        self.past.iter().rev().any(|outage| {
            outage.detected_at.is_some_and(|detected_at| at > detected_at)
                && outage.up_at.is_none_or(|up_at| at < up_at)
        })
    }

    /// Where the show stands.
    pub(super) fn phase(&self, now: Duration) -> Phase {
        match self.past.last() {
            Some(Outage { up_at: None, detected_at: None, .. }) => Phase::Down,
            Some(Outage { up_at: None, .. }) => Phase::Out,
            Some(Outage { back_at: None, .. }) => Phase::Up,
            _ => Phase::Steady(self.next_at.map(|next_at| next_at.saturating_sub(now))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn outage_goes_through_its_four_moments() {
        let mut outages = Outages::new(Plan::new(Some(s(20))));
        assert_eq!(outages.advance(s(9), true), None);
        assert_eq!(outages.phase(s(9)), Phase::Steady(Some(s(1))));
        assert_eq!(outages.advance(s(10), true), Some(Order::TakeDown));
        assert_eq!((outages.advance(s(10), true), outages.phase(s(10))), (None, Phase::Down));
        assert_eq!((outages.advance(s(11), false), outages.phase(s(11))), (None, Phase::Out));
        assert_eq!(outages.advance(s(14), false), Some(Order::BringUp));
        assert_eq!((outages.advance(s(14), false), outages.phase(s(14))), (None, Phase::Up));
        assert_eq!((outages.advance(s(15), true), outages.phase(s(15))), (None, Phase::Steady(None)));
        assert_eq!(outages.advance(s(500), true), None);
        let outage = Outage { down_at: s(10), detected_at: Some(s(11)), up_at: Some(s(14)), back_at: Some(s(15)) };
        assert_eq!(outages.past(), [outage]);
        assert_eq!([10, 11, 12, 14].map(|second| outages.is_out(s(second))), [false, false, true, false]);
    }

    #[test]
    fn only_lives_that_touch_the_outage_are_inside() {
        let outage = Outage { down_at: s(10), detected_at: Some(s(11)), up_at: Some(s(14)), back_at: Some(s(15)) };
        let inside = [(5, 10), (9, 12), (12, 13), (14, 20), (5, 20)];
        let outside = [(5, 9), (16, 20)];
        assert!(inside.iter().all(|&(began, ended)| outage.covers(s(began), s(ended))));
        assert!(!outside.iter().any(|&(began, ended)| outage.covers(s(began), s(ended))));
        assert!(Outage { back_at: None, ..outage }.covers(s(100), s(101)));
    }

    #[test]
    fn endless_run_repeats_until_finished() {
        let mut outages = Outages::new(Plan::new(None));
        let mut orders = Vec::new();
        for second in 0..100 {
            orders.extend(outages.advance(s(second), true).map(|order| (second, order)));
        }
        let (down, up) = (Order::TakeDown, Order::BringUp);
        assert_eq!(orders, [(20, down), (30, up), (80, down), (90, up)]);
        outages.finish();
        assert!((100..300).all(|second| outages.advance(s(second), true).is_none()));
    }

    #[test]
    fn unnoticed_outage_stays_unnoticed() {
        let mut outages = Outages::new(Plan::new(Some(s(10))));
        for second in 0..20 {
            outages.advance(s(second), true);
        }
        assert_eq!(outages.past()[0].detected_at, None);
        assert!(outages.past()[0].back_at.is_some());
    }
}
