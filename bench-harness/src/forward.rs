//! The bare forwarder: the least that a UDP proxy can do, and the floor that others are measured against.
//!
//! One thread, one socket, recvmmsg and sendmmsg. A datagram that starts `SIP/2.0` goes to where the Call-ID's
//! requests came from, any other to the backend that a hash of the Call-ID picks. The Call-ID is found by a substring
//! search; nothing is parsed and no byte is changed, so there is no Via, no Record-Route and no safety: for
//! measurements on loopback only.
//!
//! Bound: a table of 65,536 source addresses, overwritten on collision. No allocation per message.

use std::io;
use std::net::SocketAddr;

use crate::sys::{self, Inbox, Peer};

const BATCH: usize = 32;
const MESSAGE_BYTES_MAX: usize = 4096;
const SOURCES: usize = 1 << 16;
const SOCKET_BUFFER_BYTES: i32 = 8 << 20;

/// Forwards until a signal ends the process.
///
/// # Errors
/// When the socket cannot be bound or fails, or there is no backend.
pub fn run(listen: SocketAddr, backends: &[SocketAddr]) -> io::Result<std::convert::Infallible> {
    let backends: Vec<Peer> = backends.iter().copied().map(Peer::from).collect();
    if backends.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no backend to forward to"));
    }
    let socket = sys::bind(listen, SOCKET_BUFFER_BYTES)?;
    let mut sources = vec![Peer::none(); SOURCES];
    let mut inbox = Inbox::new(BATCH, MESSAGE_BYTES_MAX);
    loop {
        inbox.receive(&socket, true)?;
        inbox.forward(&socket, |message, from| {
            let hash = hash_call_id(message);
            let source = &mut sources[hash as usize % SOURCES];
            if message.starts_with(b"SIP/2.0") {
                return source.address().is_some().then_some(*source);
            }
            *source = from;
            Some(backends[(hash >> 32) as usize % backends.len()])
        });
    }
}

/// FNV-1a over the value of Call-ID, with a last multiplication so that all bits depend on all bytes.
fn hash_call_id(message: &[u8]) -> u64 {
    let start = memchr::memmem::find(message, b"\nCall-ID: ").map_or(message.len(), |at| at + 10);
    let value = message[start..].iter().take_while(|byte| **byte != b'\r');
    let hash = value
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash ^ hash >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_depends_on_the_call_id_alone() {
        let one = hash_call_id(b"INVITE x\r\nCall-ID: abc\r\nCSeq: 1 INVITE\r\n\r\n");
        assert_eq!(one, hash_call_id(b"SIP/2.0 200 OK\r\nVia: y\r\nCall-ID: abc\r\n\r\n"));
        assert_ne!(one, hash_call_id(b"INVITE x\r\nCall-ID: abd\r\nCSeq: 1 INVITE\r\n\r\n"));
        hash_call_id(b"");
    }

    #[test]
    fn numbered_call_ids_spread_evenly() {
        let ours = |n: u32| format!("\nCall-ID: 01234567-{n:08x}-{:08x}@h\r\n", n % 48);
        let first = (0..10_000).filter(|n| hash_call_id(ours(*n).as_bytes()) >> 32 & 1 == 0).count();
        assert!((4_700..5_300).contains(&first), "{first}");
    }
}
