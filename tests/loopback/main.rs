//! The real binary on loopback: callers, Tandem, backends, each with SIPp or by hand, over UDP, TCP, TLS and WebSocket.
//!
//! Each test starts `tandem run` on free ports with a file of its own, drives it from outside and judges by what the
//! peers saw and by the counters that the process reports. One test runs at a time, since each wants the whole
//! machine; every wait is bounded, and every process is ended by its id when its owner goes out of scope.
//!
//! SIPp and stunnel come with Debian's packages `sip-tester` and `stunnel4`, Node for the browser phone with `nodejs` and
//! `npm` (tests/packages.txt); the phone's libraries are fetched from the npm registry once. The sizes fit a continuous
//! build, about three minutes in all; `TANDEM_FULL=1 cargo test --test loopback` takes those of the acceptance: 5,000
//! calls in each run over UDP, 1,000 between every two transports, 2,000 slow peers. A test that fails keeps its folder
//! of logs and message traces and says where it is.

#![allow(unreachable_pub, reason = "a test exports nothing; `pub` marks what its files share")]
#![allow(clippy::disallowed_methods, reason = "a test waits for processes")]

mod bed;
mod bridge;
mod browser;
mod callee;
mod calls;
mod certificates;
mod datagrams;
mod endings;
mod endpoint;
mod front_end;
mod hostile;
mod lifecycle;
mod node;
mod ownership;
mod phone;
mod process;
mod regress;
mod secure_backends;
mod sipp;
mod slow_peers;
mod storm;
mod streams;
mod stunnel;

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The machine for one test, and a folder for what it writes.
pub struct Place {
    folder: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Place {
    /// Waits for its turn.
    pub fn take(name: &str) -> Place {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder in target/tmp");
        Place { folder, _turn: turn }
    }

    /// Where it writes.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("logs and traces are kept in {}", self.folder.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// Calls of a run with SIPp: as the acceptance asks, or fewer where that would take a build too long.
pub fn calls(few: u32) -> u32 {
    if is_full() { 5_000 } else { few }
}

/// Is the size that the acceptance asks for wanted?
pub fn is_full() -> bool {
    std::env::var_os("TANDEM_FULL").is_some()
}

/// Numbers without end from one seed (xorshift64).
pub struct Random(pub u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.draw() >> 24) as u8).collect()
    }

    /// Up to `max` places in `len` bytes, in order.
    pub fn cuts(&mut self, len: usize, max: usize) -> Vec<usize> {
        let mut cuts: Vec<usize> = (0..max).map(|_| (self.draw() >> 24) as usize % len).collect();
        cuts.sort_unstable();
        cuts
    }
}

/// Asks again and again until there is an answer.
///
/// # Panics
///
/// When there is none in time.
pub fn await_some<T>(what: &str, max: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < max, "waited {max:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Seconds since 1970, as SIPp writes them into its traces.
pub fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs_f64()
}

fn is_free(port: u16) -> bool {
    UdpSocket::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// A port that nothing is bound to, UDP or TCP, below those that the system picks by itself; each is given once, with three
/// free ones above it, since SIPp takes neighbours for media.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..2_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 97;
        let port = 12_000 + (step % 4_500) as u16 * 4;
        if (port..port + 4).all(is_free) {
            return port;
        }
    }
    panic!("no four free ports in a row between 12000 and 30000");
}
