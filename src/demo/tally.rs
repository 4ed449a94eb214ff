//! Counts of what became of the demo's calls: for the whole run, and for the last second of the live table.
//!
//! Set-up time is from the first INVITE to the 200, in microseconds, kept in hdrhistogram to three significant digits.
//! The figures of the run leave out calls that an outage touched, so that they tell what Tandem adds and not how long
//! the retransmissions to a dead backend took.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::call::Failure;
use super::caller::Ended;

/// The longest set-up time that is told apart, in microseconds: a minute, far more than a call waits.
const SETUP_MAX_US: u64 = 60_000_000;

/// What became of the calls.
pub(super) struct Tally {
    /// Calls that went from INVITE to the 200 of the BYE.
    pub(super) completed: u64,
    /// Failed calls that an outage touched.
    pub(super) failed_inside: u64,
    /// Those of them that were placed when Tandem had taken the dead backend out: there should be none.
    pub(super) failed_while_out: u64,
    /// Failed calls with no such excuse.
    pub(super) failed_outside: u64,
    /// Why calls failed, both kinds together.
    pub(super) failures: BTreeMap<Failure, u64>,
    setup: Histogram<u64>,
    recent_setup: Histogram<u64>,
}

/// Percentiles of the set-up time; zero when there was no call.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub(super) struct Latency {
    /// Median, in milliseconds.
    pub(super) p50_ms: f64,
    /// 99th percentile, in milliseconds.
    pub(super) p99_ms: f64,
}

impl Tally {
    /// # Errors
    /// Never with the bounds given here; hdrhistogram checks them at run time.
    pub(super) fn new() -> anyhow::Result<Tally> {
        let setup = Histogram::new_with_bounds(1, SETUP_MAX_US, 3)?;
        Ok(Tally {
            completed: 0,
            failed_inside: 0,
            failed_while_out: 0,
            failed_outside: 0,
            failures: BTreeMap::new(),
            recent_setup: setup.clone(),
            setup,
        })
    }

    /// Counts one call; `is_inside` tells whether an outage touched its life.
    pub(super) fn note(&mut self, call: &Ended, is_inside: bool) {
        match call.outcome {
            Ok(()) => self.completed += 1,
            Err(failure) => {
                *self.failures.entry(failure).or_default() += 1;
                *if is_inside { &mut self.failed_inside } else { &mut self.failed_outside } += 1;
            }
        }
        let Some(setup) = call.setup else { return };
        let setup_us = u64::try_from(setup.as_micros()).unwrap_or(u64::MAX);
        self.recent_setup.saturating_record(setup_us);
        if !is_inside {
            self.setup.saturating_record(setup_us);
        }
    }

    /// Set-up time over the run, without calls that an outage touched.
    pub(super) fn latency(&self) -> Latency {
        latency(&self.setup)
    }

    /// Set-up time of all calls since this was last asked.
    pub(super) fn take_recent_latency(&mut self) -> Latency {
        let recent = latency(&self.recent_setup);
        self.recent_setup.reset();
        recent
    }

    /// Calls that are over.
    pub(super) fn ended(&self) -> u64 {
        self.completed + self.failed_inside + self.failed_outside
    }
}

fn latency(histogram: &Histogram<u64>) -> Latency {
    if histogram.is_empty() {
        return Latency::default();
    }
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
    Latency { p50_ms: at(0.5), p99_ms: at(0.99) }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn calls_that_an_outage_touched_do_not_count_as_latency() {
        let mut tally = Tally::new().unwrap();
        let now = Instant::now();
        let call =
            |setup_ms, outcome| Ended { began: now, ended: now, setup: Some(Duration::from_millis(setup_ms)), outcome };
        for _ in 0..99 {
            tally.note(&call(2, Ok(())), false);
        }
        tally.note(&call(3_500, Ok(())), true);
        tally.note(&Ended { setup: None, ..call(0, Err(Failure::InviteUnanswered)) }, true);
        tally.note(&call(2, Err(Failure::ByeRefused(481))), false);
        assert_eq!((tally.completed, tally.failed_inside, tally.failed_outside), (100, 1, 1));
        assert_eq!(tally.ended(), 102);
        assert!(tally.latency().p99_ms < 3.0);
        let recent = tally.take_recent_latency();
        assert!(recent.p50_ms < 3.0 && recent.p99_ms < 3_600.0);
        assert_eq!(tally.take_recent_latency(), Latency::default());
    }
}
