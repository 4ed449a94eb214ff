//! The bare forwarder for connections: the least that a proxy can do between two sockets.
//!
//! One thread. A connection that comes in gets one to a backend, in turn, and from then on bytes pass both ways as
//! they are: nothing is parsed, nothing decrypted, so over TLS it is the floor of moving the ciphertext alone. What
//! it lacks as a proxy is what makes it a floor: a connection is nailed to one backend, and there are as many connections
//! behind as in front.
//!
//! Bound: `PAIRS_MAX` connections; what the slower side does not take stays unread on the faster one.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const PAIRS_MAX: usize = 4096;
const READ_BYTES: usize = 65_536;
const LISTENER: Token = Token(usize::MAX);

struct Side {
    socket: TcpStream,
    is_readable: bool,
    is_writable: bool,
    is_ending: bool,
    /// What this side has not taken yet of what the other one sent.
    waiting: Vec<u8>,
}

/// Forwards until a signal ends the process.
///
/// # Errors
/// When the address cannot be bound, there is no backend, or the kernel refuses to tell what is ready.
pub fn run(listen: SocketAddr, backends: &[SocketAddr]) -> io::Result<std::convert::Infallible> {
    if backends.is_empty() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "no backend to forward to"));
    }
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(256));
    let mut listener = TcpListener::bind(listen)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    // A pair has two numbers, of which one is the other's with the last bit turned.
    let mut sides: Vec<Side> = Vec::new();
    let (mut scratch, mut busy) = (vec![0; READ_BYTES], Vec::new());
    loop {
        let timeout = if busy.is_empty() { None } else { Some(std::time::Duration::ZERO) };
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((client, _)) = listener.accept() {
                    let Ok(backend) = TcpStream::connect(backends[sides.len() / 2 % backends.len()]) else { continue };
                    for mut socket in if sides.len() < 2 * PAIRS_MAX { vec![client, backend] } else { vec![] } {
                        socket.set_nodelay(true)?;
                        let token = Token(sides.len());
                        poll.registry().register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
                        let waiting = Vec::new();
                        sides.push(Side { socket, is_readable: false, is_writable: false, is_ending: false, waiting });
                    }
                }
                continue;
            }
            let Token(index) = event.token();
            let side = &mut sides[index];
            side.is_ending |= event.is_read_closed() || event.is_error();
            side.is_readable |= event.is_readable() || side.is_ending;
            side.is_writable |= event.is_writable();
            // What came for this side, and what came from it.
            busy.extend([index ^ 1, index]);
        }
        busy.sort_unstable();
        busy.dedup();
        busy.retain(|&from| {
            let (low, high) = sides.split_at_mut(from | 1);
            let (even, odd) = (&mut low[from & !1], &mut high[0]);
            if from % 2 == 0 { pass(even, odd, &mut scratch) } else { pass(odd, even, &mut scratch) }
        });
    }
}

/// Passes on one read. Returns whether there is more to pass at once.
fn pass(from: &mut Side, to: &mut Side, scratch: &mut [u8]) -> bool {
    if !to.is_writable {
        return false;
    }
    if !to.waiting.is_empty() {
        let waiting = std::mem::take(&mut to.waiting);
        write(to, &waiting);
    }
    if !to.waiting.is_empty() || !from.is_readable {
        return false;
    }
    match from.socket.read(scratch) {
        Ok(0) => end(from, to),
        Ok(len) => {
            from.is_readable = from.is_ending || len == scratch.len();
            write(to, &scratch[..len]);
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => from.is_readable = false,
        Err(error) if error.kind() == ErrorKind::Interrupted => {}
        Err(_) => end(from, to),
    }
    from.is_readable && to.is_writable
}

fn write(to: &mut Side, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match to.socket.write(bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                to.is_writable = false;
                if error.kind() == ErrorKind::WouldBlock {
                    to.waiting.extend_from_slice(bytes);
                }
                return;
            }
        }
    }
}

fn end(from: &mut Side, to: &mut Side) {
    from.is_readable = false;
    // Whoever is gone already needs no telling.
    let _ = to.socket.shutdown(std::net::Shutdown::Write);
}
