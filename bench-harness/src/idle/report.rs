//! What a run of idle connections found, for people and for programs.
//!
//! The target is measured at four moments: before, when all connections are open, when that has settled, and after the
//! hold. What lies between two of them is divided by the connections that were open, or by the time.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::Options;

/// The outcome of one run. Bytes and CPU time of the target are `None` when its process was not named.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `tcp`, `tls`, `ws` or `wss`.
    pub scheme: &'static str,
    /// Connections asked for.
    pub connections: usize,
    /// Of these, opened.
    pub opened: usize,
    /// Of these, ended or out of time before they were open.
    pub refused: usize,
    /// Opened connections that ended while idle.
    pub lost_idle: usize,
    /// Opened connections that ended before the end.
    pub lost: usize,
    /// How long opening took, in s.
    pub opening_seconds: f64,
    /// How long all were idle, in s.
    pub idle_seconds: f64,
    /// OPTIONS sent.
    pub asked: usize,
    /// Final answers by status.
    pub answers: BTreeMap<u16, usize>,
    /// Messages that were no answer to what was asked on their connection.
    pub unexpected: usize,
    /// What the connections cost this process, in bytes of resident memory.
    pub own_bytes: u64,
    /// Resident memory of the target before, in bytes.
    pub resident_before: Option<u64>,
    /// Resident memory of the target with all connections open and idle, in bytes.
    pub resident_after: Option<u64>,
    /// What each connection added to it.
    pub bytes_per_connection: Option<f64>,
    /// CPU time of the target for each connection's opening, in µs.
    pub opening_cpu_us: Option<f64>,
    /// CPU time of the target in a minute of idleness, in ms.
    pub idle_cpu_ms_per_minute: Option<f64>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Report {
        Report {
            scheme: options.target.scheme(),
            connections: options.connections,
            opened: 0,
            refused: 0,
            lost_idle: 0,
            lost: 0,
            opening_seconds: 0.0,
            idle_seconds: 0.0,
            asked: 0,
            answers: BTreeMap::new(),
            unexpected: 0,
            own_bytes: 0,
            resident_before: None,
            resident_after: None,
            bytes_per_connection: None,
            opening_cpu_us: None,
            idle_cpu_ms_per_minute: None,
        }
    }

    pub(super) fn note_answer(&mut self, status: u16) {
        *self.answers.entry(status).or_default() += 1;
    }

    /// Takes the target's resident bytes and CPU time: before, when all were open, when that had settled, after the hold.
    pub(super) fn measure(&mut self, at: [Option<(u64, Duration)>; 4]) {
        let [Some(before), Some(opened), Some(settled), Some(held)] = at else { return };
        let each = (self.opened as f64).max(1.0);
        self.resident_before = Some(before.0);
        self.resident_after = Some(settled.0);
        self.bytes_per_connection = Some((settled.0 as f64 - before.0 as f64) / each);
        self.opening_cpu_us = Some((opened.1 - before.1).as_secs_f64() * 1e6 / each);
        self.idle_cpu_ms_per_minute = Some((held.1 - settled.1).as_secs_f64() * 6e4 / self.idle_seconds.max(1e-9));
    }

    /// Final answers.
    pub fn answered(&self) -> usize {
        self.answers.values().sum()
    }

    /// Whether every connection came about, lasted, and answered.
    pub fn is_clean(&self) -> bool {
        self.opened == self.connections && self.lost + self.unexpected == 0 && self.answered() == self.connections
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "idle: {} of {} {} connections open in {:.1} s, {} refused; {} lost in {:.1} s of idleness",
            self.opened,
            self.connections,
            self.scheme,
            self.opening_seconds,
            self.refused,
            self.lost_idle,
            self.idle_seconds
        )?;
        if let (Some(before), Some(after), Some(each), Some(opening), Some(idle)) = (
            self.resident_before,
            self.resident_after,
            self.bytes_per_connection,
            self.opening_cpu_us,
            self.idle_cpu_ms_per_minute,
        ) {
            writeln!(
                f,
                "idle: target RSS {:.1} to {:.1} MiB, {each:.0} bytes of RSS per connection; {idle:.1} CPU ms per idle \
                 minute; {opening:.0} CPU us to open each",
                before as f64 / f64::from(1 << 20),
                after as f64 / f64::from(1 << 20)
            )?;
        }
        let own = self.own_bytes as f64 / (self.opened as f64).max(1.0);
        writeln!(
            f,
            "idle: {} of {} OPTIONS answered, by status {:?}, {} unexpected; {own:.0} bytes of our own per connection",
            self.answered(),
            self.asked,
            self.answers,
            self.unexpected
        )
    }
}
