//! What the ring does with connections: accept, connect, receive, write.
//!
//! Read `io_uring_prep_multishot_accept(3)` and `io_uring_prep_recv_multishot(3)` first. A connection is named by a token of
//! its owner, below 2^56, which comes back with everything that happens to it; a token is not used again while an
//! operation with it may be under way, or its owner tells old from new by a generation in it.
//!
//! Invariants: a buffer of [`StreamEvent::Data`] belongs to whoever has the event until [`Ring::give_back`]; a write
//! carries MSG_DONTWAIT and refers to nothing once [`Ring::write_batch`] returns, its result comes as an event.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use io_uring::types::Fd;
use io_uring::{cqueue, opcode};

use super::address::encode_address;
use super::ring::{Kind, Ring, SENDS_MAX};

/// Bytes that one read of a connection yields at most.
pub const STREAM_BUFFER_BYTES: usize = 16 << 10;

/// A filled buffer of the stream group.
#[derive(Debug)]
#[must_use = "it has to be given back"]
pub struct StreamBuffer {
    id: u16,
    len: u32,
}

/// Something that happened to a connection or to a listening socket.
#[derive(Debug)]
pub enum StreamEvent {
    /// A connection was accepted.
    Accepted {
        /// Index of the listening socket.
        listener: usize,
        /// The connection.
        stream: OwnedFd,
        /// Has the accept ended, so that it must be armed again?
        has_ended: bool,
    },
    /// No more connections are accepted until it is armed again.
    AcceptEnded {
        /// Index of the listening socket.
        listener: usize,
        /// The error's number.
        error: i32,
    },
    /// Bytes came.
    Data {
        /// Of which connection.
        token: u64,
        /// Where they are.
        buffer: StreamBuffer,
        /// Has the receive ended, so that it must be armed again?
        has_ended: bool,
    },
    /// There was no buffer for what came; the receive must be armed again.
    Starved {
        /// Of which connection.
        token: u64,
    },
    /// No more bytes will come.
    End {
        /// Of which connection.
        token: u64,
        /// The error's number; 0 when the peer closed its side.
        error: i32,
    },
    /// A write was tried.
    Written {
        /// On which connection.
        token: u64,
        /// Bytes taken, or the error's number.
        result: Result<usize, i32>,
    },
    /// A connect has ended.
    Connected {
        /// Which.
        token: u64,
        /// The error's number; 0 when it stands.
        error: i32,
    },
    /// There is room to write again.
    Writable {
        /// On which connection.
        token: u64,
    },
}

impl StreamEvent {
    /// The event behind a completion.
    pub(super) fn of(kind: Kind, what: u64, result: i32, flags: u32) -> Option<Self> {
        let has_ended = !cqueue::more(flags);
        let token = what;
        Some(match kind {
            Kind::Accept if result >= 0 => {
                // SAFETY: the kernel has just made this descriptor for us, nobody else knows it.
                let stream = unsafe { OwnedFd::from_raw_fd(result) };
                StreamEvent::Accepted { listener: what as usize, stream, has_ended }
            }
            Kind::Accept => StreamEvent::AcceptEnded { listener: what as usize, error: -result },
            Kind::Receive => match (cqueue::buffer_select(flags), result) {
                (Some(id), 1..) => {
                    StreamEvent::Data { token, buffer: StreamBuffer { id, len: result as u32 }, has_ended }
                }
                (_, error) if error == -libc::ENOBUFS => StreamEvent::Starved { token },
                (_, result) => StreamEvent::End { token, error: -result },
            },
            Kind::Write => StreamEvent::Written { token, result: usize::try_from(result).map_err(|_| -result) },
            Kind::Connect => StreamEvent::Connected { token, error: -result },
            Kind::Writable => StreamEvent::Writable { token },
            Kind::Datagram | Kind::Send | Kind::Tick | Kind::Wake => return None,
        })
    }
}

impl Ring {
    /// What happened to connections, in order, after a poll has seen it.
    pub fn next_event(&mut self) -> Option<StreamEvent> {
        self.events.pop_front()
    }

    /// The bytes of a buffer.
    pub fn stream_bytes(&self, buffer: &StreamBuffer) -> &[u8] {
        self.stream_group.as_ref().map_or(&[], |group| group.buffer(buffer.id, buffer.len as usize))
    }

    /// Lets the kernel use a buffer again.
    pub fn give_back(&mut self, buffer: StreamBuffer) {
        if let Some(group) = &mut self.stream_group {
            group.give_back(buffer.id);
            group.publish();
        }
    }

    /// Accepts connections of a listening socket until an event says that this has ended.
    ///
    /// # Errors
    ///
    /// As `io_uring_enter(2)`.
    pub fn arm_accept(&mut self, listener: usize) -> io::Result<()> {
        let fd = Fd(self.listeners[listener].as_raw_fd());
        let accept = opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC);
        self.push(&accept.build().user_data(Kind::Accept.of(listener as u64)))
    }

    /// Receives what comes on a connection until an event says that this has ended.
    ///
    /// # Errors
    ///
    /// As `io_uring_enter(2)`.
    pub fn arm_stream_receive(&mut self, token: u64, stream: BorrowedFd<'_>) -> io::Result<()> {
        let receive = opcode::RecvMulti::new(Fd(stream.as_raw_fd()), self.datagram_sockets() as u16);
        self.push(&receive.build().user_data(Kind::Receive.of(token)))
    }

    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// As `io_uring_enter(2)`.
    pub fn connect(&mut self, token: u64, stream: BorrowedFd<'_>, to: SocketAddr) -> io::Result<()> {
        // SAFETY: all zeroes is a valid sockaddr_storage (AF_UNSPEC).
        let mut address: Box<libc::sockaddr_storage> = Box::new(unsafe { std::mem::zeroed() });
        let len = encode_address(to, &mut address);
        let connect = opcode::Connect::new(Fd(stream.as_raw_fd()), ptr::from_ref(&*address).cast(), len);
        // The address stays until the connect has completed.
        self.connecting.insert(token, address);
        self.push(&connect.build().user_data(Kind::Connect.of(token)))
    }

    /// Says when there is room to write again.
    ///
    /// # Errors
    ///
    /// As `io_uring_enter(2)`.
    pub fn arm_writable(&mut self, token: u64, stream: BorrowedFd<'_>) -> io::Result<()> {
        let poll = opcode::PollAdd::new(Fd(stream.as_raw_fd()), libc::POLLOUT as u32);
        self.push(&poll.build().user_data(Kind::Writable.of(token)))
    }

    /// Writes `(token, connection, bytes)` as far as the socket buffers take them; the results come as events.
    ///
    /// # Errors
    ///
    /// As `io_uring_enter(2)`.
    pub fn write_batch<'a>(&mut self, writes: impl Iterator<Item = (u64, BorrowedFd<'a>, &'a [u8])>) -> io::Result<()> {
        let mut queued = 0;
        for (token, stream, bytes) in writes {
            if queued == SENDS_MAX {
                self.submit_all()?;
                queued = 0;
            }
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let send = opcode::Send::new(Fd(stream.as_raw_fd()), bytes.as_ptr(), len)
                .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                .build()
                .user_data(Kind::Write.of(token));
            // SAFETY: the bytes stay where they are until `submit_all` returns, and MSG_DONTWAIT makes the kernel finish
            // with them within it.
            while unsafe { self.ring.submission().push(&send) }.is_err() {
                self.submit_all()?;
            }
            queued += 1;
        }
        if queued > 0 {
            self.submit_all()?;
        }
        Ok(())
    }
}

/// Ends a connection in both directions or for writing alone: operations on it complete, the peer is told.
pub fn shut_down(stream: BorrowedFd<'_>, only_writes: bool) {
    let how = if only_writes { libc::SHUT_WR } else { libc::SHUT_RDWR };
    // SAFETY: an open descriptor and a constant. It fails only when the connection has ended already.
    unsafe { libc::shutdown(stream.as_raw_fd(), how) };
}
