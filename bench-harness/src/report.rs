//! What a run of the generator found, for people and for programs.
//!
//! Counts of faults cover the whole run, warm-up and drain included: one lost call in the warm-up is a lost call.
//! Rates and latencies cover the measuring window alone. Latencies are in µs, exact to three digits, and stop at 60 s.

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::generator::{Load, Options};
use crate::ledger::{Counters, Failure, Ledger};
use crate::proc_fs;
use crate::transport::Transport;

/// The outcome of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `open` or `closed`.
    pub mode: &'static str,
    /// Calls a second asked for (open loop), or calls in progress (closed loop).
    pub load: f64,
    /// Length of the measuring window in s.
    pub window_seconds: f64,
    /// Calls, REGISTERs and OPTIONS started in the whole run.
    pub started: u64,
    /// Of these, ended well.
    pub completed: u64,
    /// Of these, failed.
    pub failed: u64,
    /// Due in the window and never started.
    pub backlog: u64,
    /// Why what failed did.
    pub failures: Failures,
    /// Requests that reached another backend than the first of their call.
    pub moved: u64,
    /// Messages that no user agent expects: wrong Via, CSeq, role or order, or unreadable.
    pub unexpected: u64,
    /// Messages of calls that were over.
    pub late: u64,
    /// Messages received twice.
    pub duplicates: u64,
    /// Messages whose body changed on the way.
    pub damaged: u64,
    /// Dialogs whose 2xx carried no Record-Route.
    pub without_record_route: u64,
    /// Messages sent again after a timer.
    pub retransmissions: u64,
    /// What carried the callers' messages.
    pub transport: Transport,
    /// What carried the backends' messages.
    pub backend_transport: Transport,
    /// Callers, each with a socket or connection of its own.
    pub callers: usize,
    /// Connections that the proxy made to backends.
    pub backend_connections: usize,
    /// Connections that ended while they were needed.
    pub connections_lost: usize,
    /// Messages that the generator could not send.
    pub unsent: u64,
    /// Health probes that backends answered.
    pub probes: u64,
    /// Datagrams that full socket buffers dropped, at the proxy and at the generator.
    pub buffer_drops: u64,
    /// Messages received in the window by either role: what the proxy forwarded.
    pub window_messages: u64,
    /// The same a second.
    pub messages_per_second: f64,
    /// Calls and transactions ended well in the window, a second.
    pub completed_per_second: f64,
    /// One entry a backend.
    pub backends: Vec<BackendShare>,
    /// INVITE to 200, from when the call should have started.
    pub setup_us: Latency,
    /// BYE to 200.
    pub bye_us: Latency,
    /// REGISTER and OPTIONS to 200, from when they should have started.
    pub single_us: Latency,
}

/// Failed calls by reason.
#[derive(Clone, Debug, Serialize)]
pub struct Failures {
    /// No final answer in time.
    pub timeout: u64,
    /// A final answer other than 2xx.
    pub rejected: u64,
    /// An answer that makes no dialog.
    pub unusable: u64,
    /// The call ended, and no backend saw its ACK.
    pub ack_lost: u64,
    /// Rejections by status code.
    pub statuses: Vec<(u16, u32)>,
}

/// What one backend got.
#[derive(Clone, Debug, Serialize)]
pub struct BackendShare {
    /// Its address.
    pub address: String,
    /// Calls, REGISTERs and OPTIONS that it saw first.
    pub opened: u64,
    /// Their share of all, in percent.
    pub share_percent: f64,
}

/// Percentiles in µs.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// The largest.
    pub max: u64,
}

impl From<&Histogram<u64>> for Latency {
    fn from(histogram: &Histogram<u64>) -> Latency {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Latency {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }
}

/// What became of connections in a run.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    /// Those that the proxy made to backends.
    pub accepted: usize,
    /// Those that ended, on either side.
    pub lost: usize,
}

impl Report {
    /// Puts a run together from its ledger and the counts at both edges of the window.
    pub fn new(
        options: &Options,
        ledger: &Ledger,
        [opened, closed]: [&Counters; 2],
        backlog: u64,
        connections: Connections,
    ) -> Report {
        let counters = &ledger.counters;
        let seconds = options.window.as_secs_f64();
        let window_messages = closed.received - opened.received;
        let all: u64 = ledger.opened.iter().sum();
        let share = |opened: u64| if all == 0 { 0.0 } else { opened as f64 * 100.0 / all as f64 };
        let (mode, load) = match options.load {
            Load::Open(rate) => ("open", rate),
            Load::Closed(window) => ("closed", window as f64),
        };
        Report {
            mode,
            load,
            window_seconds: seconds,
            started: counters.started,
            completed: counters.completed,
            failed: ledger.failed(),
            backlog,
            failures: Failures::new(ledger),
            moved: counters.moved,
            unexpected: counters.unexpected,
            late: counters.late,
            duplicates: counters.duplicates,
            damaged: counters.damaged,
            without_record_route: counters.unrouted,
            retransmissions: counters.retransmissions,
            transport: options.wires.callers,
            backend_transport: options.wires.backends,
            callers: options.callers.max(1),
            backend_connections: connections.accepted,
            connections_lost: connections.lost,
            unsent: counters.unsent,
            probes: counters.probes,
            buffer_drops: (std::iter::once(&options.target).chain(&options.backends))
                .map(|a| proc_fs::udp_drops(*a))
                .sum(),
            window_messages,
            messages_per_second: window_messages as f64 / seconds,
            completed_per_second: (closed.completed - opened.completed) as f64 / seconds,
            backends: (options.backends.iter().zip(&ledger.opened))
                .map(|(address, &opened)| BackendShare {
                    address: address.to_string(),
                    opened,
                    share_percent: share(opened),
                })
                .collect(),
            setup_us: (&ledger.latencies.setup).into(),
            bye_us: (&ledger.latencies.bye).into(),
            single_us: (&ledger.latencies.single).into(),
        }
    }

    /// Whether everything that was started ended well and nothing strange was seen.
    pub fn is_clean(&self) -> bool {
        let faults = self.failed + self.backlog + self.moved + self.unexpected + self.damaged;
        faults == 0 && self.connections_lost == 0 && self.completed > 0
    }
}

impl Failures {
    fn new(ledger: &Ledger) -> Failures {
        let of = |why: Failure| ledger.counters.failures[why as usize];
        let statuses = ledger.statuses.iter().enumerate().filter(|(_, count)| **count > 0);
        Failures {
            timeout: of(Failure::Timeout),
            rejected: of(Failure::Rejected),
            unusable: of(Failure::Unusable),
            ack_lost: of(Failure::AckLost),
            statuses: statuses.map(|(status, count)| (status as u16, *count)).collect(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.mode == "open" { "calls/s" } else { "calls in progress" };
        writeln!(f, "load        {} loop, {} {unit}, {} s", self.mode, self.load, self.window_seconds)?;
        writeln!(
            f,
            "calls       {} started, {} completed, {} failed, {} never started",
            self.started, self.completed, self.failed, self.backlog
        )?;
        if self.failed > 0 {
            let why = &self.failures;
            write!(f, "failures    {} timeout, {} rejected, ", why.timeout, why.rejected)?;
            writeln!(f, "{} unusable, {} ACK lost; by status {:?}", why.unusable, why.ack_lost, why.statuses)?;
        }
        writeln!(
            f,
            "messages    {:.0}/s forwarded, {:.0} calls/s completed",
            self.messages_per_second, self.completed_per_second
        )?;
        writeln!(
            f,
            "faults      {} moved, {} unexpected, {} damaged, {} late, {} duplicate",
            self.moved, self.unexpected, self.damaged, self.late, self.duplicates
        )?;
        if self.transport.is_stream() || self.backend_transport.is_stream() {
            writeln!(
                f,
                "connections {} callers over {}, {} to backends over {}, {} lost",
                self.callers, self.transport, self.backend_connections, self.backend_transport, self.connections_lost
            )?;
        }
        writeln!(
            f,
            "transport   {} retransmitted, {} unsent, {} dropped by full buffers, {} probes, {} dialogs without Record-Route",
            self.retransmissions, self.unsent, self.buffer_drops, self.probes, self.without_record_route
        )?;
        for backend in &self.backends {
            writeln!(f, "backend     {:<22}{:>9} {:6.2} %", backend.address, backend.opened, backend.share_percent)?;
        }
        for (name, l) in [("setup", &self.setup_us), ("bye", &self.bye_us), ("single", &self.single_us)] {
            if l.count > 0 {
                writeln!(
                    f,
                    "{name:<12}p50 {} us, p90 {} us, p99 {} us, p99.9 {} us, max {} us",
                    l.p50, l.p90, l.p99, l.p999, l.max
                )?;
            }
        }
        Ok(())
    }
}
