//! A demo backend: one thread, one UDP socket on loopback, one [`Uas`].
//!
//! Taking it down is what `kill -9` does to a server: the socket closes and every dialog is forgotten. Bringing it up
//! binds the same address again. It counts the new calls that landed on it, so that shares are measured where the
//! calls arrive and not where they were decided.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::pause;
use super::uas::Uas;

/// How long a thread of the demo waits for a datagram before it looks at its timers and orders.
const POLL: Duration = Duration::from_millis(10);

/// One of the built-in backends.
pub(super) struct Backend {
    /// Its name in Tandem's configuration.
    pub(super) name: &'static str,
    /// Its share of new calls relative to the others.
    pub(super) weight: u32,
    /// Where it answers while it is up.
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    is_wanted_up: AtomicBool,
    is_stopping: AtomicBool,
    calls: AtomicU64,
}

impl Backend {
    /// Binds a free loopback port and starts answering.
    ///
    /// # Errors
    /// When no socket or thread can be had.
    pub(super) fn start(name: &'static str, weight: u32) -> io::Result<Backend> {
        let socket = bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let address = socket.local_addr()?;
        let shared = Arc::new(Shared {
            is_wanted_up: AtomicBool::new(true),
            is_stopping: AtomicBool::new(false),
            calls: AtomicU64::new(0),
        });
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || live(socket, address, &of_thread))?;
        Ok(Backend { name, weight, address, shared, thread: Some(thread) })
    }

    /// Closes the socket and forgets every dialog, within [`POLL`].
    pub(super) fn take_down(&self) {
        self.shared.is_wanted_up.store(false, Ordering::Relaxed);
    }

    /// Binds the same address again, within [`POLL`], or as soon as it is free.
    pub(super) fn bring_up(&self) {
        self.shared.is_wanted_up.store(true, Ordering::Relaxed);
    }

    /// The new calls that ever landed here.
    pub(super) fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::Relaxed)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves, stays away while it is down, serves again, until the demo ends.
fn live(first: UdpSocket, address: SocketAddr, shared: &Shared) {
    let mut socket = Some(first);
    while !shared.is_stopping.load(Ordering::Relaxed) {
        match socket.take() {
            Some(socket) => serve(socket, address, shared),
            None if shared.is_wanted_up.load(Ordering::Relaxed) => socket = bind(address).ok(),
            None => {}
        }
        if socket.is_none() {
            pause(POLL);
        }
    }
}

/// Answers until told to stop; the socket closes on return.
fn serve(socket: UdpSocket, address: SocketAddr, shared: &Shared) {
    let mut uas = Uas::new(address);
    let mut buffer = vec![0; 65_536];
    let mut out = Vec::new();
    while shared.is_wanted_up.load(Ordering::Relaxed) && !shared.is_stopping.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, source)) => {
                if uas.handle(Instant::now(), &buffer[..length], source, &mut out) {
                    shared.calls.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(error) if is_idle(&error) => {}
            Err(_) => pause(POLL),
        }
        uas.handle_timeout(Instant::now(), &mut out);
        for (bytes, to) in out.drain(..) {
            // A datagram that cannot be sent is a lost datagram: retransmission makes up for it.
            let _ = socket.send_to(&bytes, to);
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(POLL))?;
    Ok(socket)
}

/// Whether a receive ended without a datagram for an everyday reason.
pub(super) fn is_idle(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted | ErrorKind::ConnectionRefused
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: &[u8] = b"OPTIONS sip:x SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1;rport\r\nFrom: <sip:a>;tag=1\r\n\
        To: <sip:x>\r\nCall-ID: c\r\nCSeq: 1 OPTIONS\r\n\r\n";

    fn answers(backend: &Backend) -> bool {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket.send_to(OPTIONS, backend.address).unwrap();
        socket.recv(&mut [0; 2048]).is_ok()
    }

    fn within_two_seconds(condition: impl Fn() -> bool) -> bool {
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            if condition() {
                return true;
            }
        }
        false
    }

    #[test]
    fn backend_stops_answering_and_comes_back() {
        let backend = Backend::start("demo1", 1).unwrap();
        assert!(within_two_seconds(|| answers(&backend)));
        backend.take_down();
        assert!(within_two_seconds(|| !answers(&backend)));
        assert!(UdpSocket::bind(backend.address).is_ok(), "the socket is closed, not just silent");
        backend.bring_up();
        assert!(within_two_seconds(|| answers(&backend)));
    }
}
