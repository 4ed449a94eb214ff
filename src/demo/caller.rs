//! The built-in caller: one thread and one UDP socket that place calls at a fixed rate, whatever happens to them.
//!
//! Open loop: call `n` is placed at `start + n / rate`, so a proxy that stalls is seen as latency and failures and not
//! as a lower rate. After a stall of this thread itself it catches up [`CATCH_UP_MAX`] calls at a time, so that
//! responses are read in between. What becomes of each call goes to the demo's main thread over a bounded channel.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::backend::is_idle;
use super::call::{Call, Line, Outcome};
use super::message::Message;
use super::pause;

/// Calls placed in a row before the socket is looked at again.
const CATCH_UP_MAX: u32 = 16;

/// The longest wait for a datagram; bounds how late a call is placed or a timer fires.
const POLL: Duration = Duration::from_millis(1);

/// Ended calls that may wait for the main thread, which takes them many times a second.
const ENDED_MAX: usize = 65_536;

/// A call that is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    /// When its INVITE was first sent.
    pub(super) began: Instant,
    /// When it completed or failed.
    pub(super) ended: Instant,
    /// From the first INVITE to the 200, if there was one.
    pub(super) setup: Option<Duration>,
    /// What became of it.
    pub(super) outcome: Outcome,
}

/// The caller's thread.
pub(super) struct Caller {
    /// Calls that are over, in the order in which they ended.
    pub(super) ended: Receiver<Ended>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    is_placing: AtomicBool,
    is_stopping: AtomicBool,
    placed: AtomicU64,
}

impl Caller {
    /// Starts to call `proxy`, `rate` times a second.
    ///
    /// # Errors
    /// When no socket or thread can be had.
    pub(super) fn start(proxy: SocketAddr, rate: u32) -> io::Result<Caller> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(POLL))?;
        let line = Line { proxy, local: socket.local_addr()?, seed: RandomState::new().build_hasher().finish() };
        let shared = Arc::new(Shared {
            is_placing: AtomicBool::new(true),
            is_stopping: AtomicBool::new(false),
            placed: AtomicU64::new(0),
        });
        let (sender, ended) = bounded(ENDED_MAX);
        let of_thread = Arc::clone(&shared);
        let work = move || Calling::new(socket, line, sender).run(rate.max(1), &of_thread);
        let thread = thread::Builder::new().name("caller".to_owned()).spawn(work)?;
        Ok(Caller { ended, shared, thread: Some(thread) })
    }

    /// Places no more calls; those in progress go on.
    pub(super) fn stop_placing(&self) {
        self.shared.is_placing.store(false, Ordering::Relaxed);
    }

    /// Calls placed so far.
    pub(super) fn placed(&self) -> u64 {
        self.shared.placed.load(Ordering::Relaxed)
    }

    /// Whether placing was stopped and every call is over.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
        // The thread may be waiting for room in the channel: make some until it is gone.
        while !self.is_finished() {
            while self.ended.try_recv().is_ok() {}
            pause(POLL);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The state of the caller's thread.
struct Calling {
    socket: UdpSocket,
    line: Line,
    calls: HashMap<u64, Call>,
    /// When to look at which call; an entry whose time is not the call's `wake` is stale and skipped.
    wakes: BinaryHeap<Reverse<(Instant, u64)>>,
    ended: Sender<Ended>,
    out: Vec<Vec<u8>>,
}

impl Calling {
    fn new(socket: UdpSocket, line: Line, ended: Sender<Ended>) -> Calling {
        Calling { socket, line, calls: HashMap::new(), wakes: BinaryHeap::new(), ended, out: Vec::new() }
    }

    fn run(mut self, rate: u32, shared: &Shared) {
        let start = Instant::now();
        let mut placed = 0;
        let mut buffer = vec![0; 65_536];
        while !shared.is_stopping.load(Ordering::Relaxed) {
            let now = Instant::now();
            if shared.is_placing.load(Ordering::Relaxed) {
                placed = self.place_due(start, now, placed, rate);
                shared.placed.store(placed, Ordering::Relaxed);
            } else if self.calls.is_empty() {
                return;
            }
            self.handle_timeouts(now);
            self.flush();
            match self.socket.recv_from(&mut buffer) {
                Ok((length, source)) if source == self.line.proxy => self.handle_datagram(&buffer[..length]),
                Ok(_) => {}
                Err(error) if is_idle(&error) => {}
                Err(_) => pause(POLL),
            }
            self.flush();
        }
    }

    /// Places the calls whose time has come, numbered from `placed`; returns the number of the next.
    fn place_due(&mut self, start: Instant, now: Instant, placed: u64, rate: u32) -> u64 {
        let due = ((now - start).as_secs_f64() * f64::from(rate)) as u64 + 1;
        let until = due.min(placed + u64::from(CATCH_UP_MAX)).max(placed);
        for number in placed..until {
            let call = Call::start(&self.line, number, now, &mut self.out);
            self.wakes.push(Reverse((call.wake, number)));
            self.calls.insert(number, call);
        }
        until
    }

    fn handle_timeouts(&mut self, now: Instant) {
        while let Some(&Reverse((at, number))) = self.wakes.peek()
            && at <= now
        {
            self.wakes.pop();
            let Some(call) = self.calls.get_mut(&number).filter(|call| call.wake == at) else { continue };
            let outcome = call.handle_timeout(now, &mut self.out);
            self.settle(now, number, outcome);
        }
    }

    fn handle_datagram(&mut self, bytes: &[u8]) {
        let now = Instant::now();
        let Some(response) = Message::parse(bytes) else { return };
        let Some(number) = response.header("Call-ID").and_then(|call_id| self.line.call_number(call_id)) else {
            return;
        };
        let Some(call) = self.calls.get_mut(&number) else { return };
        let wake = call.wake;
        let outcome = call.handle_response(&self.line, now, &response, &mut self.out);
        if outcome.is_some() || call.wake != wake {
            self.settle(now, number, outcome);
        }
    }

    /// After a call moved: reports it when it is over, notes its next wake otherwise.
    fn settle(&mut self, now: Instant, number: u64, outcome: Option<Outcome>) {
        let Some(outcome) = outcome else {
            if let Some(call) = self.calls.get(&number) {
                self.wakes.push(Reverse((call.wake, number)));
            }
            return;
        };
        if let Some(Call { began, setup, .. }) = self.calls.remove(&number) {
            // Fails only when the demo is over and nobody counts any more.
            let _ = self.ended.send(Ended { began, ended: now, setup, outcome });
        }
    }

    fn flush(&mut self) {
        for bytes in self.out.drain(..) {
            // A datagram that cannot be sent is a lost datagram: retransmission makes up for it.
            let _ = self.socket.send_to(&bytes, self.line.proxy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::backend::Backend;
    use super::*;

    #[test]
    fn caller_and_backend_complete_calls_with_nobody_between() {
        let backend = Backend::start("demo1", 1).unwrap();
        let caller = Caller::start(backend.address, 200).unwrap();
        pause(Duration::from_millis(500));
        caller.stop_placing();
        while !caller.is_finished() {
            pause(POLL);
        }
        let ended: Vec<Ended> = caller.ended.try_iter().collect();
        assert!(ended.iter().all(|call| call.outcome == Ok(()) && call.setup.is_some()), "{ended:?}");
        assert!(ended.len() >= 50, "{} of about 100", ended.len());
        assert_eq!((ended.len() as u64, backend.calls()), (caller.placed(), caller.placed()));
    }

    #[test]
    fn dropping_the_caller_ends_it_with_calls_in_progress() {
        let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
        let caller = Caller::start(nobody.local_addr().unwrap(), 1_000).unwrap();
        pause(Duration::from_millis(50));
        let began = Instant::now();
        drop(caller);
        assert!(began.elapsed() < Duration::from_secs(1));
    }
}
