//! The real binary on loopback: SIPp callers, Tandem, SIPp backends.
//!
//! Each test starts `tandem run` on free ports with a file of its own, drives it from outside and judges by what the
//! peers saw and by the counters that the process reports. One test runs at a time, since each wants the whole
//! machine; every wait is bounded, and every process is ended by its id when its owner goes out of scope.
//!
//! SIPp comes with Debian's package `sip-tester`, Node for the browser phone with `nodejs` and `npm` (tests/packages.txt);
//! the phone's libraries are fetched from the npm registry once. The sizes fit a continuous build, about two
//! minutes in all; `TANDEM_FULL=1 cargo test --test loopback` makes 5,000 calls in each of the runs with SIPp. A test
//! that fails keeps its folder of logs and message traces and says where it is.

#![allow(unreachable_pub, reason = "a test exports nothing; `pub` marks what its files share")]
#![allow(clippy::disallowed_methods, reason = "a test waits for processes")]

mod bed;
mod browser;
mod calls;
mod datagrams;
mod endings;
mod endpoint;
mod hostile;
mod node;
mod ownership;
mod process;
mod sipp;
mod storm;

use std::net::UdpSocket;
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
    if std::env::var_os("TANDEM_FULL").is_some() { 5_000 } else { few }
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

/// A UDP port that nothing is bound to, below those that the system picks by itself; each is given once, with three
/// free ones above it, since SIPp takes neighbours for media.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..2_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 97;
        let port = 12_000 + (step % 4_500) as u16 * 4;
        if (port..port + 4).all(|port| UdpSocket::bind(("127.0.0.1", port)).is_ok()) {
            return port;
        }
    }
    panic!("no four free UDP ports in a row between 12000 and 30000");
}
