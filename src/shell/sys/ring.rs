//! The ring of one worker: datagrams in and out, ticks, wake-ups; what concerns connections is in `stream.rs`.
//!
//! Read `io_uring_prep_recvmsg_multishot(3)` first.
//!
//! Invariants
//! - The ring is made, used and dropped on one thread (SINGLE_ISSUER), which never leaves it.
//! - A buffer belongs to the kernel, except between its completion and the end of the closure that reads it.
//! - A send carries MSG_DONTWAIT: it succeeds or fails while it is submitted, so that nothing refers to the caller's
//!   bytes once [`Ring::send_batch`] returns. A full socket buffer is a failed send, counted.
//! - One datagram a buffer; each buffer spans the largest datagram, so that none is ever cut.

use std::collections::VecDeque;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::time::Duration;

use ahash::AHashMap;
use io_uring::types::{Fd, Fixed, RecvMsgOut, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::address::{decode_address, encode_address, socket_drops};
use super::buffers::{BUFFER_BYTES, BufferGroup};
use super::stream::{STREAM_BUFFER_BYTES, StreamEvent};
use super::{Waker, is_passing};

/// Datagrams or stream writes submitted by one system call.
pub const SENDS_MAX: usize = 256;

/// What an operation is, in the upper byte of its user data; the rest says of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Receive on a UDP socket.
    Datagram,
    /// Send of a datagram.
    Send,
    Tick,
    Wake,
    Accept,
    /// Receive on a connection.
    Receive,
    /// Send on a connection.
    Write,
    Connect,
    Writable,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::Datagram,
        Kind::Send,
        Kind::Tick,
        Kind::Wake,
        Kind::Accept,
        Kind::Receive,
        Kind::Write,
        Kind::Connect,
        Kind::Writable,
    ];

    /// The user data of an operation on `what`, which is below 2^56.
    pub(super) const fn of(self, what: u64) -> u64 {
        (self as u64) << 56 | what
    }

    fn split(user_data: u64) -> (Option<Kind>, u64) {
        (Kind::ALL.get((user_data >> 56) as usize).copied(), user_data & ((1 << 56) - 1))
    }
}

/// What a ring is made of.
pub struct RingSetup {
    /// Sockets whose datagrams are polled for.
    pub sockets: Vec<UdpSocket>,
    /// Sockets whose connections are accepted.
    pub listeners: Vec<TcpListener>,
    /// Buffers a UDP socket, a power of two.
    pub datagram_buffers: usize,
    /// Buffers of all connections together, a power of two; 0 where there are none.
    pub stream_buffers: usize,
    /// A tick completes this often.
    pub tick: Duration,
    /// Ends a sleep.
    pub waker: Waker,
}

/// What happened to connections and waits; one event leads to one read at most, so this bounds a turn.
const EVENTS_MAX: usize = 128;

/// What a [`Ring::poll`] saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Polled {
    /// Datagrams given to the closure.
    pub datagrams: usize,
    /// Sends that the kernel refused since the last poll.
    pub sends_failed: u64,
    /// Times the kernel found no buffer.
    pub buffers_exhausted: u64,
    /// Did the periodic tick come?
    pub has_ticked: bool,
}

/// The ring of one worker and its sockets.
pub struct Ring {
    // Dropped first: the kernel lets go of buffers and sockets before they go.
    pub(super) ring: IoUring,
    sockets: Vec<UdpSocket>,
    pub(super) listeners: Vec<TcpListener>,
    groups: Vec<BufferGroup>,
    /// The group that all connections share, after those of the sockets.
    pub(super) stream_group: Option<BufferGroup>,
    /// What happened to connections and was not asked for yet.
    pub(super) events: VecDeque<StreamEvent>,
    /// Addresses that connects in progress refer to, by token.
    pub(super) connecting: AHashMap<u64, Box<libc::sockaddr_storage>>,
    /// Sockets whose receive has ended.
    rearm: Vec<usize>,
    /// Read by every multishot receive for as long as it is armed, hence its fixed place.
    receive_header: Box<libc::msghdr>,
    tick: Box<Timespec>,
    waker: Waker,
    /// Where the pending read of the waker puts its count.
    wakes: Box<[u8; 8]>,
    addresses: Box<[libc::sockaddr_storage]>,
}

impl Ring {
    /// Arms a receive on each socket and an accept on each listener. Must be called on the thread that will use it.
    ///
    /// # Errors
    ///
    /// When io_uring is not to be had (kernel before 6.1, `kernel.io_uring_disabled`, a container's seccomp filter) or
    /// memory is short.
    pub fn new(setup: RingSetup) -> io::Result<Self> {
        let RingSetup { sockets, listeners, datagram_buffers, stream_buffers, tick, waker } = setup;
        let completions = sockets.len() * datagram_buffers * 2 + stream_buffers * 4;
        let completions = completions.next_power_of_two().clamp(1024, 65_536);
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(completions as u32)
            .build((SENDS_MAX * 2) as u32)?;
        let fds: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        if !fds.is_empty() {
            ring.submitter().register_files(&fds)?;
        }
        // SAFETY: all zeroes is a valid msghdr without name, data or control.
        let mut receive_header: Box<libc::msghdr> = Box::new(unsafe { zeroed() });
        receive_header.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
        let group = |group| BufferGroup::register(&ring, group as u16, datagram_buffers, BUFFER_BYTES);
        let groups = (0..sockets.len()).map(group).collect::<io::Result<Vec<_>>>()?;
        let stream_group = match stream_buffers {
            0 => None,
            buffers => Some(BufferGroup::register(&ring, sockets.len() as u16, buffers, STREAM_BUFFER_BYTES)?),
        };
        let tick = Box::new(Timespec::new().sec(tick.as_secs()).nsec(tick.subsec_nanos()));
        // SAFETY: all zeroes is a valid sockaddr_storage (AF_UNSPEC).
        let addresses = vec![unsafe { zeroed() }; SENDS_MAX].into();
        let mut this = Ring {
            ring,
            rearm: Vec::with_capacity(sockets.len()),
            sockets,
            listeners,
            groups,
            stream_group,
            events: VecDeque::with_capacity(EVENTS_MAX),
            connecting: AHashMap::new(),
            receive_header,
            tick,
            waker,
            wakes: Box::new([0; 8]),
            addresses,
        };
        for socket in 0..this.sockets.len() {
            this.arm_receive(socket)?;
        }
        for listener in 0..this.listeners.len() {
            this.arm_accept(listener)?;
        }
        this.arm_tick()?;
        this.arm_waker()?;
        this.ring.submit()?;
        Ok(this)
    }

    /// Sleeps until there is something to poll for: a datagram, a tick, or a call of [`Waker::wake`].
    ///
    /// # Errors
    ///
    /// As `io_uring_enter(2)`.
    pub fn sleep(&mut self) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Err(error) if !is_passing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives the datagrams that have come to `take`, at most `datagrams_max` of them, until it says `false`. What has come
    /// of connections waits for [`Ring::next_event`].
    ///
    /// # Errors
    ///
    /// As `io_uring_enter(2)`; a ring in this state is of no more use.
    pub fn poll(
        &mut self,
        datagrams_max: usize,
        mut take: impl FnMut(usize, SocketAddr, &[u8]) -> bool,
    ) -> io::Result<Polled> {
        let mut polled = Polled::default();
        if self.ring.completion().is_empty() {
            self.enter()?;
        }
        let mut has_woken = false;
        let mut completions = self.ring.completion();
        let mut goes_on = true;
        while goes_on && polled.datagrams < datagrams_max && self.events.len() < EVENTS_MAX {
            let Some(completion) = completions.next() else { break };
            let (kind, what) = Kind::split(completion.user_data());
            match kind {
                Some(Kind::Tick) => polled.has_ticked = true,
                Some(Kind::Wake) => has_woken = true,
                Some(Kind::Send) => polled.sends_failed += u64::from(completion.result() < 0),
                Some(Kind::Datagram) => {
                    let socket = what as usize;
                    if !cqueue::more(completion.flags()) {
                        self.rearm.push(socket);
                    }
                    polled.buffers_exhausted += u64::from(completion.result() == -libc::ENOBUFS);
                    let Some(buffer) = cqueue::buffer_select(completion.flags()) else { continue };
                    let group = &mut self.groups[socket];
                    if completion.result() >= 0 {
                        let bytes = group.buffer(buffer, completion.result() as usize);
                        if let Ok(datagram) = RecvMsgOut::parse(bytes, &self.receive_header)
                            && let Some(source) = decode_address(datagram.name_data())
                        {
                            polled.datagrams += 1;
                            goes_on = take(socket, source, datagram.payload_data());
                        }
                    }
                    group.give_back(buffer);
                }
                Some(kind) => {
                    if kind == Kind::Connect {
                        self.connecting.remove(&what);
                    }
                    let event = StreamEvent::of(kind, what, completion.result(), completion.flags());
                    polled.buffers_exhausted += u64::from(matches!(event, Some(StreamEvent::Starved { .. })));
                    self.events.extend(event);
                }
                None => {}
            }
        }
        drop(completions);
        self.groups.iter_mut().for_each(BufferGroup::publish);
        while let Some(socket) = self.rearm.pop() {
            self.arm_receive(socket)?;
        }
        if polled.has_ticked {
            self.arm_tick()?;
        }
        if has_woken {
            self.arm_waker()?;
        }
        Ok(polled)
    }

    /// Sends `(socket, destination, bytes)`, all but those that the kernel refuses, which the next poll reports.
    /// Between system calls stand up to [`SENDS_MAX`] datagrams.
    ///
    /// # Errors
    ///
    /// As `io_uring_enter(2)`.
    pub fn send_batch<'a>(&mut self, datagrams: impl Iterator<Item = (usize, SocketAddr, &'a [u8])>) -> io::Result<()> {
        let mut queued = 0;
        for (socket, destination, bytes) in datagrams {
            if queued == SENDS_MAX {
                self.submit_all()?;
                queued = 0;
            }
            let address = &mut self.addresses[queued];
            let address_len = encode_address(destination, address);
            let send = opcode::Send::new(Fixed(socket as u32), bytes.as_ptr(), bytes.len() as u32)
                .flags(libc::MSG_DONTWAIT)
                .dest_addr(ptr::from_ref(address).cast())
                .dest_addr_len(address_len)
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS)
                .user_data(Kind::Send.of(0));
            // SAFETY: address and bytes stay where they are until `submit_all` returns, and MSG_DONTWAIT makes the
            // kernel finish with them within it.
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

    /// Submits what is queued.
    ///
    /// # Errors
    ///
    /// As `io_uring_enter(2)`.
    pub fn submit_now(&mut self) -> io::Result<()> {
        self.submit_all()
    }

    /// How many UDP sockets it has.
    pub(super) fn datagram_sockets(&self) -> usize {
        self.sockets.len()
    }

    /// Datagrams that the kernel dropped at these sockets since their buffers were full.
    pub fn kernel_drops(&self) -> u64 {
        self.sockets.iter().map(|socket| u64::from(socket_drops(socket.as_raw_fd()))).sum()
    }

    /// Submits until the queue is empty: what is left in it would refer to bytes that are about to go.
    pub(super) fn submit_all(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Ok(_) if self.ring.submission().is_empty() => return Ok(()),
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Submits what is queued and lets the kernel run the work it deferred to us.
    fn enter(&mut self) -> io::Result<()> {
        match self.ring.submit() {
            Err(error) if !is_passing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn arm_receive(&mut self, socket: usize) -> io::Result<()> {
        let header: *const libc::msghdr = &*self.receive_header;
        let receive = opcode::RecvMsgMulti::new(Fixed(socket as u32), header, socket as u16);
        self.push(&receive.build().user_data(Kind::Datagram.of(socket as u64)))
    }

    fn arm_tick(&mut self) -> io::Result<()> {
        let tick: *const Timespec = &*self.tick;
        self.push(&opcode::Timeout::new(tick).build().user_data(Kind::Tick.of(0)))
    }

    fn arm_waker(&mut self) -> io::Result<()> {
        let read = opcode::Read::new(Fd(self.waker.fd()), self.wakes.as_mut_ptr(), 8);
        self.push(&read.build().user_data(Kind::Wake.of(0)))
    }

    pub(super) fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: what the entry refers to is boxed in `self`, which outlives the ring's operations.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.submit_all()?;
        }
        Ok(())
    }
}
