//! The end of the demo: what was seen, whether it is what Tandem promises, as JSON for scripts or as text.
//!
//! The run is **ok** when calls completed, none failed outside the announced outages, the shares before the first
//! outage lie within the tolerance of the weights (judged from [`JUDGED_CALLS_MIN`] calls on), and every outage that
//! ran its course was noticed and ended.
//!
//! The tolerance is 3 points, or 3.75 standard deviations of a binomial draw where so few calls were made that chance
//! alone would now and then exceed 3 points; at 4,000 calls and more it is 3 points.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::outage::Outage;
use super::tally::{Latency, Tally};

/// Calls before the outage from which shares are judged.
const JUDGED_CALLS_MIN: u64 = 1_000;

/// How far a share may be from the weight, in percentage points.
const SHARE_TOLERANCE_POINTS: f64 = 3.0;

/// Standard deviations that chance is granted when calls are few.
const SIGMAS: f64 = 3.75;

/// How long after it is up a backend must be back, at the latest.
const RETURN_MAX: Duration = Duration::from_secs(3);

/// What the demo counted about one backend.
pub(super) struct BackendCount {
    /// Its name.
    pub(super) name: &'static str,
    /// Its configured weight.
    pub(super) weight: u32,
    /// New calls before the first outage, or in the whole run when there was none.
    pub(super) calls_before_outage: u64,
    /// New calls in the whole run.
    pub(super) calls: u64,
}

/// What the demo counted.
pub(super) struct Counts<'a> {
    /// Calls a second that were asked for.
    pub(super) rate: u32,
    /// How long calls were placed.
    pub(super) placing: Duration,
    /// Until the last look at the backends' health, since the first call.
    pub(super) watched: Duration,
    /// Calls placed.
    pub(super) placed: u64,
    /// What became of them.
    pub(super) tally: &'a Tally,
    /// One entry a backend.
    pub(super) backends: Vec<BackendCount>,
    /// The one that is taken down.
    pub(super) victim: &'static str,
    /// Its outages.
    pub(super) outages: &'a [Outage],
}

/// The demo's last word.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    /// Whether all is as promised.
    pub(super) ok: bool,
    /// What is not, one sentence each.
    problems: Vec<String>,
    /// How long calls were placed.
    seconds: f64,
    calls_per_second_wanted: u32,
    /// Completed calls over the time of placing.
    calls_per_second: f64,
    calls_placed: u64,
    calls_completed: u64,
    calls_failed_outside_outage: u64,
    calls_failed_inside_outage: u64,
    /// Those of them that were placed after detection and before the backend was up again.
    calls_failed_placed_after_detection: u64,
    /// Cut off by a second Ctrl-C.
    calls_unfinished: u64,
    failures: BTreeMap<String, u64>,
    /// From the first INVITE to the 200; calls that an outage touched are left out.
    setup: Latency,
    share_tolerance_points: f64,
    backends: Vec<BackendSummary>,
    outages: Vec<OutageSummary>,
}

#[derive(Debug, Serialize)]
struct BackendSummary {
    name: &'static str,
    weight: u32,
    expected_share_percent: f64,
    /// `null` when there were no calls.
    share_before_outage_percent: Option<f64>,
    calls_before_outage: u64,
    calls: u64,
}

/// Seconds since the first call; `null` for what did not happen.
#[derive(Debug, Serialize)]
struct OutageSummary {
    backend: &'static str,
    down_at_s: f64,
    detected_at_s: Option<f64>,
    up_at_s: Option<f64>,
    back_at_s: Option<f64>,
}

impl Summary {
    /// Judges what was counted.
    pub(super) fn new(counts: &Counts<'_>) -> Summary {
        let tally = counts.tally;
        let before: u64 = counts.backends.iter().map(|backend| backend.calls_before_outage).sum();
        let tolerance = round(share_tolerance_points(before, &counts.backends));
        let backends: Vec<_> = counts.backends.iter().map(|backend| backend.summary(before, counts)).collect();
        let mut problems = Vec::new();
        if tally.completed == 0 {
            problems.push("no call was completed".to_owned());
        }
        if tally.failed_outside > 0 {
            problems.push(format!("{} calls failed outside the announced outage", tally.failed_outside));
        }
        for backend in backends.iter().filter(|_| before >= JUDGED_CALLS_MIN) {
            let share = backend.share_before_outage_percent.unwrap_or(0.0);
            if (share - backend.expected_share_percent).abs() > tolerance {
                problems.push(format!(
                    "{} got {share:.1} % of the calls, its weight says {:.1} %",
                    backend.name, backend.expected_share_percent
                ));
            }
        }
        problems.extend(counts.outages.iter().filter_map(|outage| problem_with(outage, counts)));
        Summary {
            ok: problems.is_empty(),
            problems,
            seconds: round(counts.placing.as_secs_f64()),
            calls_per_second_wanted: counts.rate,
            calls_per_second: round(tally.completed as f64 / counts.placing.as_secs_f64().max(0.001)),
            calls_placed: counts.placed,
            calls_completed: tally.completed,
            calls_failed_outside_outage: tally.failed_outside,
            calls_failed_inside_outage: tally.failed_inside,
            calls_failed_placed_after_detection: tally.failed_while_out,
            calls_unfinished: counts.placed.saturating_sub(tally.ended()),
            failures: tally.failures.iter().map(|(failure, count)| (failure.to_string(), *count)).collect(),
            setup: tally.latency(),
            share_tolerance_points: tolerance,
            backends,
            outages: counts.outages.iter().map(|outage| OutageSummary::new(counts.victim, outage)).collect(),
        }
    }

    /// The summary as text for a person, at most 80 columns wide but for long lists of problems.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\nSummary of {:.0} s", self.seconds)?;
        writeln!(
            text,
            "  calls        {} placed, {} completed ({:.1}/s)",
            self.calls_placed, self.calls_completed, self.calls_per_second
        )?;
        writeln!(
            text,
            "  failed       {} outside the outage, {} inside it",
            self.calls_failed_outside_outage, self.calls_failed_inside_outage
        )?;
        if self.calls_failed_placed_after_detection > 0 {
            let count = self.calls_failed_placed_after_detection;
            writeln!(text, "                 {count} of these were placed after the probes noticed")?;
        }
        for (reason, count) in &self.failures {
            writeln!(text, "                 {count} x {reason}")?;
        }
        if self.calls_unfinished > 0 {
            writeln!(text, "  cut off      {}", self.calls_unfinished)?;
        }
        let Latency { p50_ms, p99_ms } = self.setup;
        writeln!(text, "  set-up time  p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms (INVITE to 200, outside the outage)")?;
        writeln!(text, "  shares of the calls before the outage")?;
        for backend in &self.backends {
            let share = backend.share_before_outage_percent.unwrap_or(0.0);
            let expected = backend.expected_share_percent;
            writeln!(text, "    {:<10} {share:>5.1} %  (weight says {expected:.1} %)", backend.name)?;
        }
        let shown = self.outages.len().saturating_sub(3);
        for outage in &self.outages[shown..] {
            outage.write(text)?;
        }
        for problem in &self.problems {
            writeln!(text, "  PROBLEM      {problem}")?;
        }
        writeln!(text, "  result       {}", if self.ok { "ok" } else { "NOT ok" })
    }
}

impl BackendCount {
    fn summary(&self, before: u64, counts: &Counts<'_>) -> BackendSummary {
        BackendSummary {
            name: self.name,
            weight: self.weight,
            expected_share_percent: round(100.0 * expected_share(self, &counts.backends)),
            share_before_outage_percent: (before > 0)
                .then(|| round(100.0 * self.calls_before_outage as f64 / before as f64)),
            calls_before_outage: self.calls_before_outage,
            calls: self.calls,
        }
    }
}

impl OutageSummary {
    fn new(backend: &'static str, outage: &Outage) -> OutageSummary {
        let seconds = |at: Duration| round(at.as_secs_f64());
        OutageSummary {
            backend,
            down_at_s: seconds(outage.down_at),
            detected_at_s: outage.detected_at.map(seconds),
            up_at_s: outage.up_at.map(seconds),
            back_at_s: outage.back_at.map(seconds),
        }
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "  outage of {}", self.backend)?;
        writeln!(text, "    {:>8.2} s  stops answering", self.down_at_s)?;
        if let Some(at) = self.detected_at_s {
            writeln!(text, "    {at:>8.2} s  taken out by the probes, {:.2} s later", at - self.down_at_s)?;
        }
        if let Some(up_at) = self.up_at_s {
            writeln!(text, "    {up_at:>8.2} s  answers again")?;
            if let Some(at) = self.back_at_s.filter(|_| self.detected_at_s.is_some()) {
                writeln!(text, "    {at:>8.2} s  brought back by the probes, {:.2} s later", at - up_at)?;
            }
        }
        Ok(())
    }
}

/// What an outage shows to be wrong; nothing is said about one that the end of the run cut short.
fn problem_with(outage: &Outage, counts: &Counts<'_>) -> Option<String> {
    let (victim, up_at) = (counts.victim, outage.up_at?);
    if outage.detected_at.is_none() {
        let length = (up_at - outage.down_at).as_secs_f64();
        return Some(format!("{victim} was down for {length:.1} s and was not taken out"));
    }
    let is_overdue = outage.back_at.unwrap_or(counts.watched) > up_at + RETURN_MAX;
    is_overdue.then(|| format!("{victim} was not brought back within {} s", RETURN_MAX.as_secs()))
}

fn expected_share(backend: &BackendCount, all: &[BackendCount]) -> f64 {
    let sum: u32 = all.iter().map(|backend| backend.weight).sum();
    f64::from(backend.weight) / f64::from(sum.max(1))
}

fn share_tolerance_points(calls: u64, backends: &[BackendCount]) -> f64 {
    let widest = backends
        .iter()
        .map(|backend| expected_share(backend, backends))
        .map(|share| (share * (1.0 - share) / calls.max(1) as f64).sqrt())
        .fold(0.0, f64::max);
    // A few calls fewer than 4,000 are still 4,000 in spirit: the first two digits of the deviation decide.
    SHARE_TOLERANCE_POINTS.max((100.0 * SIGMAS * widest * 10.0).floor() / 10.0)
}

/// To three decimals, so that the JSON is readable.
fn round(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::call::Failure;
    use super::super::caller::Ended;
    use super::*;

    const OUTAGE: Outage = Outage {
        down_at: Duration::from_secs(10),
        detected_at: Some(Duration::from_secs(11)),
        up_at: Some(Duration::from_secs(14)),
        back_at: Some(Duration::from_secs(15)),
    };

    fn tally(completed: u64) -> Tally {
        let mut tally = Tally::new().unwrap();
        let now = Instant::now();
        for _ in 0..completed {
            tally
                .note(&Ended { began: now, ended: now, setup: Some(Duration::from_millis(1)), outcome: Ok(()) }, false);
        }
        tally
    }

    fn summary(tally: &Tally, before: [u64; 3], outages: &[Outage]) -> Summary {
        let backends = [("demo1", 50), ("demo2", 30), ("demo3", 20)]
            .into_iter()
            .zip(before)
            .map(|((name, weight), calls)| BackendCount { name, weight, calls_before_outage: calls, calls })
            .collect();
        let seconds = Duration::from_secs(20);
        Summary::new(&Counts {
            rate: 400,
            placing: seconds,
            watched: seconds,
            placed: tally.ended(),
            tally,
            backends,
            victim: "demo2",
            outages,
        })
    }

    #[test]
    fn good_run_is_ok_and_reads_well() {
        let summary = summary(&tally(8_000), [2_050, 1_180, 770], &[OUTAGE]);
        assert!(summary.ok, "{:?}", summary.problems);
        assert_eq!(summary.share_tolerance_points, 3.0);
        assert_eq!(summary.calls_per_second, 400.0);
        assert!(summary.text().lines().all(|line| line.len() <= 80), "{}", summary.text());
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["outages"][0]["detected_at_s"], 11.0);
        assert_eq!(json["backends"][0]["share_before_outage_percent"], 51.25);
    }

    #[test]
    fn each_broken_promise_is_a_problem() {
        assert!(!summary(&tally(0), [0; 3], &[]).ok);
        assert!(!summary(&tally(10), [2_200, 1_100, 700], &[]).ok, "55 % instead of 50");
        assert!(summary(&tally(10), [110, 55, 35], &[]).ok, "too few to judge");
        assert!(!summary(&tally(10), [0; 3], &[Outage { detected_at: None, ..OUTAGE }]).ok);
        assert!(!summary(&tally(10), [0; 3], &[Outage { back_at: None, ..OUTAGE }]).ok);
        assert!(summary(&tally(10), [0; 3], &[Outage { detected_at: None, up_at: None, back_at: None, ..OUTAGE }]).ok);
        let mut failed = tally(10);
        let now = Instant::now();
        let call = Ended { began: now, ended: now, setup: None, outcome: Err(Failure::InviteRefused(500)) };
        failed.note(&call, true);
        assert!(summary(&failed, [0; 3], &[OUTAGE]).ok);
        failed.note(&call, false);
        assert!(!summary(&failed, [0; 3], &[OUTAGE]).ok);
    }
}
