//! The load generator: callers and backends in one thread, around one proxy.
//!
//! ```text
//!   callers --INVITE, ACK, BYE--> proxy --> backends
//!           <--100, 180, 200-----       <--
//! ```
//!
//! Either side speaks UDP, TCP or TLS ([`Wires`]); over connections, calls are spread over all of them and pipelined, and
//! the clock starts when all are up.
//!
//! Open loop: calls start at fixed times whatever the proxy does, and latency counts from when a call *should* have
//! started, so a stalled proxy cannot hide its stall. Closed loop: a fixed number of calls is always in progress.
//! Each turn of the loop receives a batch per socket, handles it and sends the answers as one batch.
//!
//! Bound: calls in progress are limited by [`Options::concurrency_max`]; what is due beyond waits, and its waiting
//! counts. Cost: no allocation per message; about 1 µs of user time per message. One thread, which sleeps
//! when there is nothing to do unless told to spin. TLS costs it a copy and the cipher's time more per message.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::caller::{Caller, Hangups};
use crate::ledger::{Counters, Failure, Kind, Ledger, Phase};
use crate::network::{BATCH, Network, Party};
use crate::report::{Connections, Report};
use crate::sys;
use crate::template::{CallKey, Texts};
use crate::transport::Wires;

/// How calls are started.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// So many calls a second.
    Open(f64),
    /// So many calls in progress.
    Closed(usize),
}

/// Relative weights of what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// INVITE calls.
    pub invite: u32,
    /// REGISTER.
    pub register: u32,
    /// OPTIONS.
    pub options: u32,
}

impl std::str::FromStr for Mix {
    type Err = String;

    /// Reads `invite=1,register=0,options=0`; what is not named weighs 0.
    fn from_str(text: &str) -> Result<Mix, String> {
        let mut mix = Mix { invite: 0, register: 0, options: 0 };
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').ok_or_else(|| format!("`{part}`: write name=weight"))?;
            let weight: u16 = weight.parse().map_err(|_| format!("`{weight}`: a weight is a number up to 65535"))?;
            match name {
                "invite" => mix.invite = weight.into(),
                "register" => mix.register = weight.into(),
                "options" => mix.options = weight.into(),
                _ => return Err(format!("`{name}`: one of invite, register, options")),
            }
        }
        if mix.invite + mix.register + mix.options == 0 { Err("all weights are 0".into()) } else { Ok(mix) }
    }
}

/// What a run does.
#[derive(Clone, Debug)]
pub struct Options {
    /// The proxy.
    pub target: SocketAddr,
    /// How many callers, each with a socket or connection of its own; at least 1.
    pub callers: usize,
    /// Addresses of the backends; 1 to 254.
    pub backends: Vec<SocketAddr>,
    /// How callers and backends are reached.
    pub wires: Wires,
    /// How calls start.
    pub load: Load,
    /// What they are.
    pub mix: Mix,
    /// Load before the measuring window.
    pub warmup: Duration,
    /// The measuring window.
    pub window: Duration,
    /// How long a call lasts between ACK and BYE.
    pub hold: Duration,
    /// When a request without a final answer fails.
    pub timeout: Duration,
    /// T1, when messages are to be sent again; over connections they never are.
    pub t1: Option<Duration>,
    /// Calls in progress at most, in open loop; 0 derives it from the rate.
    pub concurrency_max: usize,
    /// Never sleep. A sender pays for waking a receiver that sleeps, so a generator that sleeps makes a slow proxy
    /// look slower still.
    pub is_spinning: bool,
}

/// The edges of the measuring window, told to the observer of [`run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// The warm-up is over.
    Opens,
    /// The window is over; no further calls start.
    Closes,
}

struct Generator {
    options: Options,
    ledger: Ledger,
    callers: Vec<Caller>,
    backends: Vec<Backend>,
    hangups: Hangups,
    network: Network,
    clock: Instant,
    /// Calls due so far, in open loop.
    due: u64,
    swept: u32,
    swept_ns: u64,
    random: u64,
    window_ns: std::ops::Range<u64>,
}

/// Runs one load and reports. `observe` is called at both edges of the window and should return quickly.
///
/// # Errors
/// When a socket cannot be bound or fails, a connection does not come about, or SIGINT or SIGTERM came (see [`sys::catch_stop_signals`]).
pub fn run(options: &Options, mut observe: impl FnMut(Edge)) -> io::Result<Report> {
    let mut generator = Generator::new(options.clone())?;
    let mut edges: [Option<Counters>; 2] = [None, None];
    loop {
        if sys::stop_requested() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "stopped by a signal"));
        }
        let now_ns = generator.tick();
        if edges[0].is_none() && now_ns >= generator.window_ns.start {
            observe(Edge::Opens);
            edges[0] = Some(generator.ledger.counters);
        }
        if edges[1].is_none() && now_ns >= generator.window_ns.end {
            observe(Edge::Closes);
            edges[1] = Some(generator.ledger.counters);
        }
        let is_over = edges[1].is_some();
        let received = generator.exchange()?;
        let started = if is_over { 0 } else { generator.start_calls() };
        generator.hang_up_due();
        generator.sweep();
        if is_over && generator.ledger.busy() == 0 {
            break;
        }
        if received == 0 && started == 0 && !generator.options.is_spinning {
            let timeout = generator.idle_time(is_over);
            generator.network.wait(timeout);
        }
    }
    let [opened, closed] = edges.map(Option::unwrap_or_default);
    let connections = Connections { accepted: generator.network.accepted(), lost: generator.network.lost() };
    let backlog = generator.backlog();
    Ok(Report::new(&generator.options, &generator.ledger, [&opened, &closed], backlog, connections))
}

impl Generator {
    fn new(options: Options) -> io::Result<Generator> {
        let seed = std::process::id().wrapping_mul(0x9e37_79b1) ^ clock_seed();
        let (callers, backends) = (options.callers.max(1), options.backends.len().min(usize::from(u8::MAX) - 1));
        let wires = &options.wires;
        let mut network = Network::new(options.target, callers, &options.backends[..backends], wires)?;
        network.connect()?;
        let calling = |index| {
            let local = network.caller_address(index)?;
            Ok(Caller { texts: Texts::new(local, options.target, wires.callers, seed) })
        };
        let callers = (0..callers).map(calling).collect::<io::Result<Vec<_>>>()?;
        let answering = |index| Ok(Backend::new(index, network.backend_address(index)?, wires.backends));
        let backends = (0..backends).map(answering).collect::<io::Result<Vec<_>>>()?;
        let t1 = options.t1.filter(|_| !wires.callers.is_stream());
        let slots = match options.load {
            Load::Closed(window) => window.max(1),
            Load::Open(_) if options.concurrency_max > 0 => options.concurrency_max,
            Load::Open(rate) => {
                let seconds = options.timeout.as_secs_f64() + options.hold.as_secs_f64();
                ((rate * seconds * 1.1) as usize).clamp(1024, 1 << 20)
            }
        };
        let nanos = |time: Duration| time.as_nanos() as u64;
        let start_ns = nanos(options.warmup);
        Ok(Generator {
            ledger: Ledger::new(slots, backends.len(), seed, t1.map_or(0, nanos)),
            hangups: Hangups { hold_ns: nanos(options.hold), queue: std::collections::VecDeque::with_capacity(slots) },
            network,
            clock: Instant::now(),
            due: 0,
            swept: 0,
            swept_ns: 0,
            random: u64::from(seed) | 1,
            window_ns: start_ns..start_ns + nanos(options.window),
            callers,
            backends,
            options,
        })
    }

    fn tick(&mut self) -> u64 {
        self.ledger.now_ns = self.clock.elapsed().as_nanos() as u64;
        self.ledger.now_ns
    }

    /// One turn of the network, and what follows from it. Returns how many messages came.
    fn exchange(&mut self) -> io::Result<usize> {
        let Generator { network, callers, backends, ledger, hangups, .. } = self;
        let count = network.exchange(|party, message, out| match party {
            Party::Caller(index) => callers[index].receive(ledger, hangups, message, out),
            Party::Backend(index) => backends[index].receive(ledger, message, out),
        })?;
        ledger.counters.unsent += network.take_unsent();
        Ok(count)
    }

    /// Starts what is due. Returns how many started.
    fn start_calls(&mut self) -> usize {
        let now_ns = self.ledger.now_ns;
        let mut started = 0;
        while started < BATCH {
            let intended_ns = match self.options.load {
                Load::Closed(_) => now_ns,
                Load::Open(rate) => (self.due as f64 * 1e9 / rate) as u64,
            };
            if intended_ns > now_ns || intended_ns >= self.window_ns.end {
                break;
            }
            let is_measured = self.window_ns.contains(&intended_ns);
            let kind = if self.ledger.busy() < self.ledger.capacity() { self.draw_kind() } else { break };
            let Some(key) = self.ledger.open(kind, self.callers.len(), intended_ns, is_measured) else { break };
            let caller = usize::from(self.ledger.slot(key.slot).caller);
            self.callers[caller].start(&mut self.ledger, key, kind, &mut self.network.outlet(caller));
            self.due += 1;
            started += 1;
        }
        self.network.flush_callers();
        started
    }

    fn draw_kind(&mut self) -> Kind {
        let mix = self.options.mix;
        if mix.register == 0 && mix.options == 0 {
            return Kind::Call;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let draw = (self.random % u64::from(mix.invite + mix.register + mix.options)) as u32;
        match draw {
            draw if draw < mix.invite => Kind::Call,
            draw if draw < mix.invite + mix.register => Kind::Register,
            _ => Kind::Options,
        }
    }

    fn hang_up_due(&mut self) {
        let now_ns = self.ledger.now_ns;
        let mut count = 0;
        while let Some(&(at_ns, key)) = self.hangups.queue.front()
            && at_ns <= now_ns
            && count < BATCH
        {
            self.hangups.queue.pop_front();
            let caller = usize::from(self.ledger.slot(key.slot).caller);
            self.callers[caller].hang_up(&mut self.ledger, key, &mut self.network.outlet(caller));
            count += 1;
        }
        if count > 0 {
            self.network.flush_callers();
        }
    }

    /// Looks at some slots each ms, at all of them every 64 ms: fails what timed out, sends again what is due.
    fn sweep(&mut self) {
        let (now_ns, capacity) = (self.ledger.now_ns, self.ledger.capacity() as u32);
        if now_ns - self.swept_ns < 1_000_000 {
            return;
        }
        self.swept_ns = now_ns;
        let timeout_ns = self.options.timeout.as_nanos() as u64;
        for _ in 0..capacity.div_ceil(64) {
            let index = self.swept;
            self.swept = (self.swept + 1) % capacity;
            let slot = *self.ledger.slot(index);
            let key = CallKey { call: slot.call, slot: index };
            match slot.phase {
                Phase::Free | Phase::Talking => {}
                _ if now_ns - slot.sent_ns > timeout_ns => self.ledger.fail(key, Failure::Timeout),
                _ if self.ledger.t1_ns > 0 && now_ns >= slot.again_ns => {
                    let caller = usize::from(slot.caller);
                    let mut out = self.network.outlet(caller);
                    if out.has_room() {
                        self.callers[caller].retransmit(&mut self.ledger, key, &mut out);
                    }
                }
                _ => {}
            }
        }
        self.network.flush_callers();
    }

    /// How long nothing is due: at most 1 ms, the grain of the sweep.
    fn idle_time(&self, is_over: bool) -> Duration {
        let next_ns = match self.options.load {
            Load::Open(rate) if !is_over => (self.due as f64 * 1e9 / rate) as u64,
            _ => u64::MAX,
        };
        let hangup_ns = self.hangups.queue.front().map_or(u64::MAX, |&(at_ns, _)| at_ns);
        Duration::from_nanos(next_ns.min(hangup_ns).saturating_sub(self.ledger.now_ns).min(1_000_000))
    }

    /// Calls that were due in the window and never started.
    fn backlog(&self) -> u64 {
        match self.options.load {
            Load::Open(rate) => ((self.window_ns.end as f64 * rate / 1e9).ceil() as u64).saturating_sub(self.due),
            Load::Closed(_) => 0,
        }
    }
}

fn clock_seed() -> u32 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |time| time.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_is_read_or_refused_with_a_reason() {
        assert_eq!("invite=3,options=1".parse(), Ok(Mix { invite: 3, register: 0, options: 1 }));
        for wrong in ["", "invite", "invite=x", "refer=1", "invite=0"] {
            assert!(wrong.parse::<Mix>().is_err(), "{wrong}");
        }
    }
}
