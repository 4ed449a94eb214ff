//! The kernel interface of a worker: a raw io_uring for datagrams and connections, an eventfd that ends its sleep,
//! socket addresses and options. This folder alone has `unsafe`; what it offers outside is safe.
//!
//! ```text
//!   UDP socket --multishot recvmsg--> buffers of its group --> poll(|socket, source, bytes|) --> buffer goes back
//!   send_batch(datagrams) --one SQE each--> io_uring_enter, executed inline --> CQE only on failure
//!   TCP socket --multishot accept--> StreamEvent::Accepted
//!   connection --multishot recv--> buffers of the one stream group --> StreamEvent::Data --> give_back
//! ```

#![allow(unsafe_code)]

mod address;
mod buffers;
mod ring;
mod stream;
mod waker;

use std::io;

pub use address::set_socket_buffers;
pub use buffers::BUFFER_BYTES;
pub use ring::{Polled, Ring, RingSetup, SENDS_MAX};
pub use stream::{STREAM_BUFFER_BYTES, StreamBuffer, StreamEvent, shut_down};
pub use waker::Waker;

/// Interrupted, or the completion queue is full: try again after reaping.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests;
