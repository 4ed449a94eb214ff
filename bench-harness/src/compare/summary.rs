//! Rounds, and what they amount to: medians, spread and ratios.
//!
//! A ratio is taken within a round, where both arms met the same machine, and the median of these ratios is what is
//! reported; a ratio of medians would mix different moments. A round with more than 0.1 % failed calls counts for
//! nothing and is reported as invalid.

use std::fmt::Write as _;

use serde::Serialize;

use super::arm::Arm;
use crate::report::Report;

/// Share of failed calls above which a measurement is invalid.
pub const FAILED_SHARE_MAX: f64 = 0.001;

/// One arm in one round.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// From 1.
    pub round: usize,
    /// Which proxy.
    pub arm: Arm,
    /// CPU time per forwarded message, in µs.
    pub cpu_us_per_message: f64,
    /// CPU time of the whole process group in the window, in s.
    pub cpu_seconds: f64,
    /// User part, in the grain of clock ticks.
    pub user_seconds: f64,
    /// System part, likewise.
    pub system_seconds: f64,
    /// CPU time by wall time, in percent of one core.
    pub busy_percent: f64,
    /// Why it does not count, if so.
    pub invalid: Option<String>,
    /// What the generator saw.
    pub report: Report,
}

/// Median and spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of `values`; `None` when there are none.
    pub fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (min, max, half) = (*values.first()?, *values.last()?, values.len() / 2);
        let median = if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 };
        Some(Spread { median, min, max })
    }
}

/// One arm over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Which proxy.
    pub arm: Arm,
    /// Rounds that count.
    pub valid: usize,
    /// Rounds that do not.
    pub invalid: usize,
    /// CPU time per forwarded message, in µs.
    pub cpu_us: Option<Spread>,
    /// The same, by the bare forwarder's of the same round.
    pub to_bare: Option<Spread>,
    /// The same, by Kamailio's of the same round.
    pub to_kamailio: Option<Spread>,
    /// Forwarded messages a second.
    pub messages_per_second: Option<Spread>,
    /// Busy share of the proxy's core, in percent.
    pub busy_percent: Option<Spread>,
    /// Share of the CPU time spent in user mode, in percent.
    pub user_percent: Option<Spread>,
    /// Median call setup time, in µs.
    pub setup_p50_us: Option<Spread>,
    /// 99th percentile of the call setup time, in µs.
    pub setup_p99_us: Option<Spread>,
    /// Failed calls in all rounds.
    pub failed: u64,
    /// Dialogs that moved, unexpected and damaged messages in all rounds.
    pub faults: u64,
}

/// Sums up all rounds, one line an arm, in the order of `arms`.
pub fn summarize(arms: &[Arm], all: &[Measurement]) -> Vec<Line> {
    arms.iter().map(|&arm| Line::of(arm, all)).collect()
}

impl Line {
    fn of(arm: Arm, all: &[Measurement]) -> Line {
        let mine: Vec<&Measurement> = all.iter().filter(|m| m.arm == arm).collect();
        let valid: Vec<&Measurement> = mine.iter().copied().filter(|m| m.invalid.is_none()).collect();
        let spread = |value: &dyn Fn(&Measurement) -> f64| Spread::of(valid.iter().map(|m| value(m)).collect());
        let ratio_to = |other: Arm| {
            let pairs = valid.iter().filter_map(|m| {
                let base = all.iter().find(|o| o.arm == other && o.round == m.round && o.invalid.is_none())?;
                Some(m.cpu_us_per_message / base.cpu_us_per_message)
            });
            Spread::of(pairs.collect())
        };
        Line {
            arm,
            valid: valid.len(),
            invalid: mine.len() - valid.len(),
            cpu_us: spread(&|m| m.cpu_us_per_message),
            to_bare: ratio_to(Arm::Bare),
            to_kamailio: ratio_to(Arm::Kamailio),
            messages_per_second: spread(&|m| m.report.messages_per_second),
            busy_percent: spread(&|m| m.busy_percent),
            user_percent: spread(&|m| m.user_seconds * 100.0 / (m.user_seconds + m.system_seconds).max(1e-9)),
            setup_p50_us: spread(&|m| m.report.setup_us.p50 as f64),
            setup_p99_us: spread(&|m| m.report.setup_us.p99 as f64),
            failed: mine.iter().map(|m| m.report.failed).sum(),
            faults: mine.iter().map(|m| m.report.moved + m.report.unexpected + m.report.damaged).sum(),
        }
    }
}

/// The table that people read.
pub fn table(lines: &[Line]) -> String {
    let mut text = String::new();
    let cell = |spread: Option<Spread>, digits: usize| match spread {
        Some(s) => format!("{:.digits$} ({:.digits$}-{:.digits$})", s.median, s.min, s.max),
        None => "-".into(),
    };
    let middle = |spread: Option<Spread>| spread.map_or("-".into(), |s| format!("{:.0}", s.median));
    let _ = writeln!(
        text,
        "{:<12}{:>21}{:>21}{:>21}{:>9}{:>7}{:>7}{:>10}{:>10}{:>8}{:>8}{:>8}",
        "arm",
        "CPU us/message",
        "x bare",
        "x kamailio",
        "msgs/s",
        "busy%",
        "user%",
        "p50 us",
        "p99 us",
        "failed",
        "faults",
        "rounds"
    );
    for line in lines {
        let _ = writeln!(
            text,
            "{:<12}{:>21}{:>21}{:>21}{:>9}{:>7}{:>7}{:>10}{:>10}{:>8}{:>8}{:>8}",
            line.arm.name(),
            cell(line.cpu_us, 2),
            cell(line.to_bare, 2),
            cell(line.to_kamailio, 2),
            middle(line.messages_per_second),
            middle(line.busy_percent),
            middle(line.user_percent),
            middle(line.setup_p50_us),
            middle(line.setup_p99_us),
            line.failed,
            line.faults,
            format!("{}/{}", line.valid, line.valid + line.invalid)
        );
    }
    text.push_str("Medians, with the least and the largest round; ratios are taken within a round.\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_counts() {
        let odd = Spread::of(vec![3.0, 1.0, 2.0]).expect("some");
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of(vec![1.0, 2.0]).map(|s| s.median), Some(1.5));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
