//! The course of the demo: warm up, place calls, take one backend down and up again, finish, sum up.
//!
//! Everything is decided in one thread that looks around every [`TICK`]: it takes the calls that ended, asks Tandem for
//! the backends' health, moves the outage on and draws. The caller and each backend have threads of their own. Ctrl-C
//! or SIGTERM ends the placing and lets the calls in progress finish; the second one cuts them off.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::backend::Backend;
use super::caller::Caller;
use super::outage::{Order, Outages, Phase, Plan};
use super::screen::{Row, Screen, View};
use super::summary::{BackendCount, Counts, Summary};
use super::tally::{Latency, Tally};
use super::{Options, Tandem};

/// How often the main thread looks around; the resolution of the outage's moments.
const TICK: Duration = Duration::from_millis(25);

/// How often the table is drawn.
const REDRAW: Duration = Duration::from_millis(250);

/// How long all backends may take to become healthy at the start.
const WARM_UP_MAX: Duration = Duration::from_secs(10);

/// The backend that is taken down: neither the largest nor the smallest.
pub(super) const VICTIM: usize = 1;

/// Plays the demo to its end.
///
/// # Errors
/// When Tandem does not get its backends healthy, when sockets or threads cannot be had, or when standard output is
/// gone.
pub(super) async fn play(options: &Options, tandem: &Tandem, backends: &[Backend]) -> anyhow::Result<Summary> {
    let mut interrupts = Interrupts {
        interrupt: signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?,
        terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
    };
    tokio::select! {
        warm = warm_up(tandem, backends) => warm?,
        () = interrupts.next() => bail!("interrupted before the first call"),
    }
    let mut show = Show::start(options, tandem, backends)?;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = ticks.tick() => show.tick()?,
            () = interrupts.next() => {
                if show.placing.is_some() {
                    break;
                }
                show.finish();
            }
        }
        if show.is_over {
            break;
        }
    }
    Ok(show.sum_up())
}

/// Waits until Tandem sees all backends as healthy.
async fn warm_up(tandem: &Tandem, backends: &[Backend]) -> anyhow::Result<()> {
    let end = Instant::now() + WARM_UP_MAX;
    while !tandem.is_healthy(backends).into_iter().all(|is_healthy| is_healthy) {
        if Instant::now() > end {
            bail!("the demo backends did not become healthy within {} s", WARM_UP_MAX.as_secs());
        }
        sleep(TICK).await;
    }
    Ok(())
}

/// Ctrl-C and SIGTERM.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The demo while calls flow.
struct Show<'a> {
    options: &'a Options,
    tandem: &'a Tandem,
    backends: &'a [Backend],
    caller: Caller,
    start: Instant,
    /// How long calls were placed, once that is over.
    placing: Option<Duration>,
    is_over: bool,
    outages: Outages,
    /// Whether the victim's socket is open.
    is_victim_up: bool,
    /// New calls of each backend before the first outage.
    calls_before: Option<Vec<u64>>,
    tally: Tally,
    screen: Option<Screen>,
    drawn_at: Option<Duration>,
    recent: Recent,
}

/// The last full second of the live table.
struct Recent {
    /// When it ended, and what the totals were then.
    at: Duration,
    completed: u64,
    calls: Vec<u64>,
    /// What came in during it.
    calls_per_second: f64,
    percents: Vec<f64>,
    latency: Latency,
}

impl<'a> Show<'a> {
    fn start(options: &'a Options, tandem: &'a Tandem, backends: &'a [Backend]) -> anyhow::Result<Show<'a>> {
        let tally = Tally::new()?;
        let start = Instant::now();
        Ok(Show {
            options,
            tandem,
            backends,
            caller: Caller::start(tandem.address, options.rate).context("cannot start the demo caller")?,
            start,
            placing: None,
            is_over: false,
            outages: Outages::new(Plan::new(options.duration)),
            is_victim_up: true,
            calls_before: None,
            tally,
            screen: (!options.is_json).then(Screen::new),
            drawn_at: None,
            recent: Recent {
                at: Duration::ZERO,
                completed: 0,
                calls: vec![0; backends.len()],
                calls_per_second: 0.0,
                percents: vec![0.0; backends.len()],
                latency: Latency::default(),
            },
        })
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        // Asked before the calls are taken, so that no call ends unseen between the two.
        let is_finished = self.caller.is_finished();
        self.take_ended_calls();
        let now = self.start.elapsed();
        let is_healthy = self.tandem.is_healthy(self.backends);
        match self.outages.advance(now, is_healthy[VICTIM]) {
            Some(Order::TakeDown) => {
                self.calls_before.get_or_insert_with(|| self.backends.iter().map(Backend::calls).collect());
                self.backends[VICTIM].take_down();
                self.is_victim_up = false;
            }
            Some(Order::BringUp) => {
                self.backends[VICTIM].bring_up();
                self.is_victim_up = true;
            }
            None => {}
        }
        if self.placing.is_none() && self.options.duration.is_some_and(|duration| now >= duration) {
            self.finish();
        }
        self.is_over = is_finished;
        self.draw(now, &is_healthy)
    }

    /// Places no more calls and begins no more outages.
    fn finish(&mut self) {
        self.placing.get_or_insert(self.start.elapsed());
        self.caller.stop_placing();
        self.outages.finish();
    }

    fn take_ended_calls(&mut self) {
        for call in self.caller.ended.try_iter() {
            let since_start = |at: Instant| at.saturating_duration_since(self.start);
            let is_inside = self.outages.cover(since_start(call.began), since_start(call.ended));
            self.tally.note(&call, is_inside);
            if call.outcome.is_err() && self.outages.is_out(since_start(call.began)) {
                self.tally.failed_while_out += 1;
            }
        }
    }

    fn draw(&mut self, now: Duration, is_healthy: &[bool]) -> anyhow::Result<()> {
        if now >= self.recent.at + Duration::from_secs(1) {
            self.recent.turn(now, &mut self.tally, self.backends);
        }
        if !self.is_over && self.drawn_at.is_some_and(|drawn_at| now < drawn_at + REDRAW) {
            return Ok(());
        }
        self.drawn_at = Some(now);
        let Some(mut screen) = self.screen.take() else { return Ok(()) };
        screen.show(&self.view(now, is_healthy)).context("cannot write to standard output")?;
        self.screen = Some(screen);
        Ok(())
    }

    fn view(&self, now: Duration, is_healthy: &[bool]) -> View {
        let sum: u32 = self.backends.iter().map(|backend| backend.weight).sum();
        let rows = self.backends.iter().enumerate().map(|(index, backend)| Row {
            name: backend.name,
            address: backend.address,
            expected_percent: 100.0 * f64::from(backend.weight) / f64::from(sum.max(1)),
            recent_percent: self.recent.percents[index],
            calls: backend.calls(),
            state: match (index != VICTIM || self.is_victim_up, is_healthy[index]) {
                (true, true) => "up",
                (true, false) => "up, still out",
                (false, true) => "down, unnoticed",
                (false, false) => "down, out",
            },
        });
        View {
            address: self.tandem.address,
            workers: self.tandem.workers,
            elapsed: now,
            total: self.options.duration,
            phase: self.phase(now),
            rows: rows.collect(),
            calls_per_second: self.recent.calls_per_second,
            completed: self.tally.completed,
            in_progress: self.caller.placed().saturating_sub(self.tally.ended()),
            failed_outside: self.tally.failed_outside,
            failed_inside: self.tally.failed_inside,
            latency: self.recent.latency,
        }
    }

    fn phase(&self, now: Duration) -> String {
        let victim = self.backends[VICTIM].name;
        match self.outages.phase(now) {
            _ if self.placing.is_some() => "finishing calls in progress".to_owned(),
            Phase::Steady(Some(next_in)) => format!("steady, {victim} down in {} s", next_in.as_secs() + 1),
            Phase::Steady(None) => format!("steady, {victim} is back"),
            Phase::Down => format!("{victim} down, not noticed yet"),
            Phase::Out => format!("{victim} out, the others serve"),
            Phase::Up => format!("{victim} up, not used again yet"),
        }
    }

    fn sum_up(mut self) -> Summary {
        self.take_ended_calls();
        let watched = self.start.elapsed();
        let calls: Vec<u64> = self.backends.iter().map(Backend::calls).collect();
        let before = self.calls_before.as_ref().unwrap_or(&calls);
        let backends = self.backends.iter().enumerate().map(|(index, backend)| BackendCount {
            name: backend.name,
            weight: backend.weight,
            calls_before_outage: before[index],
            calls: calls[index],
        });
        Summary::new(&Counts {
            rate: self.options.rate,
            placing: self.placing.unwrap_or(watched),
            watched,
            placed: self.caller.placed(),
            tally: &self.tally,
            backends: backends.collect(),
            victim: self.backends[VICTIM].name,
            outages: self.outages.past(),
        })
    }
}

impl Recent {
    /// Ends the second: what came in since the last one is what the table shows until the next.
    fn turn(&mut self, now: Duration, tally: &mut Tally, backends: &[Backend]) {
        let calls: Vec<u64> = backends.iter().map(Backend::calls).collect();
        let gained: Vec<u64> = calls.iter().zip(&self.calls).map(|(after, before)| after - before).collect();
        let sum = gained.iter().sum::<u64>().max(1);
        self.percents = gained.iter().map(|gained| 100.0 * *gained as f64 / sum as f64).collect();
        self.calls_per_second = (tally.completed - self.completed) as f64 / (now - self.at).as_secs_f64();
        self.latency = tally.take_recent_latency();
        (self.at, self.completed, self.calls) = (now, tally.completed, calls);
    }
}
