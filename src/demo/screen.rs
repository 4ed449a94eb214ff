//! What a watcher sees while calls flow: a table that is drawn in place on a terminal, or a line a second elsewhere.
//!
//! Plain ANSI (cursor up, erase line) and 80 columns; no colour, nothing but ASCII. A write that fails, such as to a
//! closed pipe, is an error that ends the demo.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::time::Duration;

use super::tally::Latency;

/// Columns that lines are cut to.
const COLUMNS: usize = 80;

/// The length of the progress bar.
const BAR: usize = 48;

/// Everything on the screen at one moment.
pub(super) struct View {
    /// Tandem's listening address.
    pub(super) address: SocketAddr,
    /// Its workers.
    pub(super) workers: usize,
    /// Since the first call.
    pub(super) elapsed: Duration,
    /// How long calls are placed; `None` until Ctrl-C.
    pub(super) total: Option<Duration>,
    /// What is going on, in at most 30 characters.
    pub(super) phase: String,
    /// One row a backend.
    pub(super) rows: Vec<Row>,
    /// Calls completed in the last second.
    pub(super) calls_per_second: f64,
    /// Calls completed so far.
    pub(super) completed: u64,
    /// Calls neither completed nor failed yet.
    pub(super) in_progress: u64,
    /// Failed calls without the excuse of an outage.
    pub(super) failed_outside: u64,
    /// Failed calls that an outage touched.
    pub(super) failed_inside: u64,
    /// Set-up time over the last second.
    pub(super) latency: Latency,
}

/// One backend on the screen.
pub(super) struct Row {
    /// Its name.
    pub(super) name: &'static str,
    /// Where it answers.
    pub(super) address: SocketAddr,
    /// The share of new calls that its weight gives it, in percent.
    pub(super) expected_percent: f64,
    /// Its share of the new calls of the last second, in percent.
    pub(super) recent_percent: f64,
    /// New calls so far.
    pub(super) calls: u64,
    /// Whether it answers and whether Tandem uses it, in words.
    pub(super) state: &'static str,
}

/// Standard output, and how much of it is the last table.
pub(super) struct Screen {
    is_terminal: bool,
    /// Lines of the table that is on the terminal.
    lines_drawn: usize,
    /// When the last plain line was written.
    line_at: Option<Duration>,
}

impl Screen {
    /// Nothing is drawn yet.
    pub(super) fn new() -> Screen {
        Screen { is_terminal: io::stdout().is_terminal(), lines_drawn: 0, line_at: None }
    }

    /// Shows the view: at once on a terminal, at most once a second elsewhere.
    ///
    /// # Errors
    /// When standard output is gone.
    pub(super) fn show(&mut self, view: &View) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if !self.is_terminal {
            if self.line_at.is_some_and(|line_at| view.elapsed.as_secs() == line_at.as_secs()) {
                return Ok(());
            }
            if self.line_at.is_none() {
                writeln!(out, "Tandem on udp:{}, workers: {}", view.address, view.workers)?;
                writeln!(out, "   s calls/s  shares in % failed excused p99 ms  phase")?;
            }
            self.line_at = Some(view.elapsed);
            writeln!(out, "{}", cut(&line(view)))?;
            return out.flush();
        }
        let lines = table(view);
        if self.lines_drawn > 0 {
            write!(out, "\x1b[{}A", self.lines_drawn)?;
        }
        for text in &lines {
            write!(out, "\x1b[2K{}\r\n", cut(text))?;
        }
        self.lines_drawn = lines.len();
        out.flush()
    }
}

/// What fits on the screen; every text is ASCII.
fn cut(text: &str) -> &str {
    text.get(..COLUMNS - 1).unwrap_or(text)
}

/// The view in one line.
fn line(view: &View) -> String {
    let shares: Vec<_> = view.rows.iter().map(|row| format!("{:>3.0}", row.recent_percent)).collect();
    format!(
        "{:>4} {:>7.0}  {:<11} {:>6} {:>6} {:>7.2}  {}",
        view.elapsed.as_secs(),
        view.calls_per_second,
        shares.join("/"),
        view.failed_outside,
        view.failed_inside,
        view.latency.p99_ms,
        view.phase
    )
}

/// The view as a table.
fn table(view: &View) -> Vec<String> {
    let seconds = view.elapsed.as_secs();
    let mut lines = vec![
        format!("Tandem on udp:{}, workers: {}     Ctrl-C ends the demo", view.address, view.workers),
        String::new(),
        match view.total {
            Some(total) => format!("  [{}] {seconds:>4} s of {} s", bar(view.elapsed, total), total.as_secs()),
            None => format!("  {} {seconds} s", ["|", "/", "-", "\\"][(view.elapsed.as_millis() / 250 % 4) as usize]),
        },
        format!("  {}", view.phase),
        String::new(),
        "  backend   address           expected  last second     calls  state".to_owned(),
    ];
    for row in &view.rows {
        lines.push(format!(
            "  {:<8}  {:<16}  {:>6.1} %  {:>9.1} %  {:>8}  {}",
            row.name,
            row.address.to_string(),
            row.expected_percent,
            row.recent_percent,
            row.calls,
            row.state
        ));
    }
    lines.push(String::new());
    lines.push(format!(
        "  {:.0} calls/s, {} completed, {} in progress",
        view.calls_per_second, view.completed, view.in_progress
    ));
    lines.push(format!("  failed: {} outside the outage, {} inside it", view.failed_outside, view.failed_inside));
    let Latency { p50_ms, p99_ms } = view.latency;
    lines.push(format!("  set-up time in the last second: p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms"));
    lines
}

fn bar(elapsed: Duration, total: Duration) -> String {
    let part = elapsed.as_secs_f64() / total.as_secs_f64().max(0.001);
    let full = ((part * BAR as f64) as usize).min(BAR);
    format!("{}{}", "#".repeat(full), ".".repeat(BAR - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_fits_80_columns() {
        let address: SocketAddr = "127.0.0.1:65535".parse().unwrap();
        let row = |name| Row {
            name,
            address,
            expected_percent: 50.0,
            recent_percent: 100.0,
            calls: 10_000_000,
            state: "down, unnoticed",
        };
        let view = View {
            address,
            workers: 2,
            elapsed: Duration::from_secs(9_999),
            total: Some(Duration::from_secs(9_999)),
            phase: "demo2 down, not noticed yet".to_owned(),
            rows: vec![row("demo1"), row("demo2"), row("demo3")],
            calls_per_second: 5_000.0,
            completed: 10_000_000,
            in_progress: 20_000,
            failed_outside: 99_999,
            failed_inside: 99_999,
            latency: Latency { p50_ms: 100.0, p99_ms: 999.0 },
        };
        for text in table(&view).iter().chain([&line(&view)]) {
            assert!(text.len() < COLUMNS && text.is_ascii(), "{} columns: {text}", text.len());
        }
        assert_eq!(bar(Duration::from_secs(1), Duration::from_secs(2)).matches('#').count(), BAR / 2);
        assert_eq!(bar(Duration::from_secs(3), Duration::ZERO).len(), BAR);
    }
}
