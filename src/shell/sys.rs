//! The kernel interface of a worker: UDP through a raw io_uring, an eventfd that ends its sleep, socket counters.
//!
//! Read `io_uring_prep_recvmsg_multishot(3)` and `io_uring_register_buf_ring(3)` first. This is the one file with
//! `unsafe`; what it offers outside is safe.
//!
//! ```text
//!   socket 0 --multishot recvmsg--> buffers of group 0 --CQE--> poll(|socket, source, bytes|) --> buffer goes back
//!   send_batch(datagrams) --one SQE each--> io_uring_enter, executed inline --> CQE only on failure
//! ```
//!
//! Invariants
//! - The ring is made, used and dropped on one thread (SINGLE_ISSUER), which never leaves it.
//! - A buffer belongs to the kernel, except between its completion and the end of the closure that reads it.
//! - A send carries MSG_DONTWAIT: it succeeds or fails while it is submitted, so that nothing refers to the caller's
//!   bytes once [`UdpRing::send_batch`] returns. A full socket buffer is a failed send, counted.
//! - One datagram a buffer; each buffer spans the largest datagram, so that none is ever cut. A buffer is address
//!   space: memory is taken for what was ever written into it.

#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, Fd, Fixed, RecvMsgOut, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

/// Address space of one buffer: the header and name that precede a datagram, the largest datagram, and an odd page
/// so that neighbouring buffers do not compete for the same cache sets.
pub const BUFFER_BYTES: usize = 17 * 4096;

/// Datagrams sent by one system call.
pub const SENDS_MAX: usize = 256;

// What is no socket number.
const TICK: u64 = u64::MAX;
const SEND: u64 = u64::MAX - 1;
const WAKE: u64 = u64::MAX - 2;

/// An eventfd: anybody wakes, one sleeps.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A new one, in blocking mode: an io_uring read of it waits.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
        // SAFETY: `fd` is open and owned by nobody else.
        Ok(Waker(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Wakes the sleeper, or lets its next sleep end at once.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight readable bytes. The call fails only when the counter would overflow: it is awake then.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

/// What a [`UdpRing::poll`] saw.
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
pub struct UdpRing {
    // Dropped first: the kernel lets go of buffers and sockets before they go.
    ring: IoUring,
    sockets: Vec<UdpSocket>,
    groups: Vec<BufferGroup>,
    /// Read by every multishot receive for as long as it is armed, hence its fixed place.
    receive_header: Box<libc::msghdr>,
    tick: Box<Timespec>,
    waker: Waker,
    /// Where the pending read of the waker puts its count.
    wakes: Box<[u8; 8]>,
    addresses: Box<[libc::sockaddr_storage]>,
}

impl UdpRing {
    /// Takes the sockets and arms a receive on each, with `buffers` (a power of two) buffers. Must be called on the
    /// thread that will use it. A tick completes every `tick`; `waker` ends a sleep.
    ///
    /// # Errors
    ///
    /// When io_uring is not to be had (kernel before 6.1, `kernel.io_uring_disabled`, a container's seccomp filter) or
    /// memory is short.
    pub fn new(sockets: Vec<UdpSocket>, buffers: usize, tick: Duration, waker: Waker) -> io::Result<Self> {
        let completions = (sockets.len() * buffers * 2).next_power_of_two().clamp(1024, 65_536);
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(completions as u32)
            .build((SENDS_MAX * 2) as u32)?;
        let fds: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        ring.submitter().register_files(&fds)?;
        // SAFETY: all zeroes is a valid msghdr without name, data or control.
        let mut receive_header: Box<libc::msghdr> = Box::new(unsafe { zeroed() });
        receive_header.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
        let groups = (0..sockets.len()).map(|group| BufferGroup::register(&ring, group as u16, buffers));
        let groups = groups.collect::<io::Result<Vec<_>>>()?;
        let tick = Box::new(Timespec::new().sec(tick.as_secs()).nsec(tick.subsec_nanos()));
        // SAFETY: all zeroes is a valid sockaddr_storage (AF_UNSPEC).
        let addresses = vec![unsafe { zeroed() }; SENDS_MAX].into();
        let wakes = Box::new([0; 8]);
        let mut this = UdpRing { ring, sockets, groups, receive_header, tick, waker, wakes, addresses };
        for socket in 0..this.sockets.len() {
            this.arm_receive(socket)?;
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

    /// Gives the datagrams that have come to `take`, at most `datagrams_max` of them, until it says `false`.
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
        let mut rearm = 0u64;
        let mut has_woken = false;
        let mut completions = self.ring.completion();
        let mut goes_on = true;
        while goes_on && polled.datagrams < datagrams_max {
            let Some(completion) = completions.next() else { break };
            match completion.user_data() {
                TICK => polled.has_ticked = true,
                WAKE => has_woken = true,
                SEND => polled.sends_failed += u64::from(completion.result() < 0),
                socket => {
                    let socket = socket as usize;
                    if !cqueue::more(completion.flags()) {
                        rearm |= 1 << socket;
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
            }
        }
        drop(completions);
        self.groups.iter_mut().for_each(BufferGroup::publish);
        for socket in (0..self.sockets.len()).filter(|socket| rearm & 1 << socket != 0) {
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
                .user_data(SEND);
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

    /// Datagrams that the kernel dropped at these sockets since their buffers were full.
    pub fn kernel_drops(&self) -> u64 {
        self.sockets.iter().map(|socket| u64::from(socket_drops(socket.as_raw_fd()))).sum()
    }

    /// Submits until the queue is empty: what is left in it would refer to bytes that are about to go.
    fn submit_all(&mut self) -> io::Result<()> {
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
        self.push(&receive.build().user_data(socket as u64))
    }

    fn arm_tick(&mut self) -> io::Result<()> {
        let tick: *const Timespec = &*self.tick;
        self.push(&opcode::Timeout::new(tick).build().user_data(TICK))
    }

    fn arm_waker(&mut self) -> io::Result<()> {
        let read = opcode::Read::new(Fd(self.waker.0.as_raw_fd()), self.wakes.as_mut_ptr(), 8);
        self.push(&read.build().user_data(WAKE))
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: what the entry refers to is boxed in `self`, which outlives the ring's operations.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.submit_all()?;
        }
        Ok(())
    }
}

/// The buffers that the kernel picks from for one socket.
struct BufferGroup {
    entries: Mapping,
    memory: Mapping,
    mask: u16,
    tail: u16,
}

impl BufferGroup {
    fn register(ring: &IoUring, group: u16, buffers: usize) -> io::Result<Self> {
        let entries = Mapping::new(buffers * size_of::<BufRingEntry>())?;
        let memory = Mapping::new(buffers * BUFFER_BYTES)?;
        // SAFETY: the entries are page-aligned, large enough for `buffers` (a power of two) and live as long as the
        // group, which outlives the ring's operations.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries.start as u64, buffers as u16, group, 0)? };
        let mut this = BufferGroup { entries, memory, mask: (buffers - 1) as u16, tail: 0 };
        for buffer in 0..buffers {
            this.give_back(buffer as u16);
        }
        this.publish();
        Ok(this)
    }

    /// The first `len` bytes of a buffer that the kernel has filled.
    fn buffer(&self, buffer: u16, len: usize) -> &[u8] {
        let offset = usize::from(buffer & self.mask) * BUFFER_BYTES;
        let len = len.min(BUFFER_BYTES);
        // SAFETY: inside the mapping; the kernel gave this buffer up with its completion and gets it back only by
        // `give_back`, which needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.memory.start.add(offset), len) }
    }

    fn give_back(&mut self, buffer: u16) {
        let entries: *mut BufRingEntry = self.entries.start.cast();
        let offset = usize::from(buffer & self.mask) * BUFFER_BYTES;
        // SAFETY: the index is inside the ring by the mask, and the kernel reads the entry only after `publish`.
        unsafe {
            let entry = &mut *entries.add(usize::from(self.tail & self.mask));
            entry.set_addr(self.memory.start.add(offset) as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&mut self) {
        let entries: *const BufRingEntry = self.entries.start.cast();
        // SAFETY: the tail lies inside the first entry of the mapping, is two-byte aligned, and the kernel reads it
        // with acquire order.
        unsafe { (*BufRingEntry::tail(entries).cast::<AtomicU16>()).store(self.tail, Ordering::Release) };
    }
}

/// Private anonymous memory, zero until written.
struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { start: start.cast(), len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// Interrupted, or the completion queue is full: try again after reaping.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Writes a socket address as the kernel reads it; returns its length.
fn encode_address(address: SocketAddr, out: &mut libc::sockaddr_storage) -> u32 {
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: sockaddr_storage is larger than and as aligned as any socket address.
            let out = unsafe { &mut *ptr::from_mut(out).cast::<libc::sockaddr_in>() };
            out.sin_family = libc::AF_INET as u16;
            out.sin_port = v4.port().to_be();
            out.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            size_of::<libc::sockaddr_in>() as u32
        }
        SocketAddr::V6(v6) => {
            // SAFETY: as above.
            let out = unsafe { &mut *ptr::from_mut(out).cast::<libc::sockaddr_in6>() };
            out.sin6_family = libc::AF_INET6 as u16;
            out.sin6_port = v6.port().to_be();
            out.sin6_flowinfo = 0;
            out.sin6_addr.s6_addr = v6.ip().octets();
            out.sin6_scope_id = v6.scope_id();
            size_of::<libc::sockaddr_in6>() as u32
        }
    }
}

/// Reads a socket address as the kernel writes it.
fn decode_address(raw: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes([*raw.first()?, *raw.get(1)?]);
    let port = u16::from_be_bytes([*raw.get(2)?, *raw.get(3)?]);
    let ip = match i32::from(family) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(raw.get(4..8)?).ok()?)),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(raw.get(8..24)?).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// SK_MEMINFO_DROPS of a socket; 0 when the kernel does not tell.
fn socket_drops(fd: RawFd) -> u32 {
    const SO_MEMINFO: i32 = 55;
    const DROPS: usize = 8;
    let mut info = [0u32; 9];
    let mut len = size_of::<[u32; 9]>() as u32;
    // SAFETY: the buffer has the length that is told.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_MEMINFO, info.as_mut_ptr().cast(), &raw mut len) };
    if result == 0 { info[DROPS] } else { 0 }
}

/// Sets a socket buffer size beyond the system's limit when the process may, and up to the limit otherwise.
///
/// # Errors
///
/// As `setsockopt(2)`.
pub fn set_socket_buffers(socket: &socket2::Socket, bytes: usize) -> io::Result<()> {
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        let set = |option: i32| {
            // SAFETY: an int option with an int's length.
            check(unsafe {
                libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const bytes).cast(), 4)
            })
        };
        if set(force).is_err() {
            set(plain)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_of_every_size_come_and_go_whole() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut ring = UdpRing::new(vec![socket], 64, Duration::from_secs(60), Waker::new().unwrap()).unwrap();
        for len in [0usize, 1, 900, 4096, 65_507] {
            let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
            peer.send_to(&payload, address).unwrap();
            let mut seen = None;
            while seen.is_none() {
                let poll = |socket, source, bytes: &[u8]| {
                    seen = Some((socket, source, bytes.to_vec()));
                    true
                };
                ring.poll(64, poll).unwrap();
            }
            let (socket, source, bytes) = seen.unwrap();
            assert_eq!((socket, source), (0, peer.local_addr().unwrap()));
            assert_eq!(bytes, payload);
            ring.send_batch([(0, source, &bytes[..])].into_iter()).unwrap();
            let mut back = vec![0; 70_000];
            let (n, from) = peer.recv_from(&mut back).unwrap();
            assert_eq!((&back[..n], from), (&payload[..], address));
        }
    }

    #[test]
    fn more_datagrams_than_buffers_are_all_received() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut ring = UdpRing::new(vec![socket], 4, Duration::from_secs(60), Waker::new().unwrap()).unwrap();
        (0..100u8).for_each(|i| assert_eq!(peer.send_to(&[i], address).unwrap(), 1));
        let (mut seen, mut exhausted) = (Vec::new(), 0);
        for _ in 0..1000 {
            let poll = |_, _, bytes: &[u8]| {
                seen.push(bytes[0]);
                true
            };
            exhausted += ring.poll(3, poll).unwrap().buffers_exhausted;
        }
        assert_eq!(seen, (0..100).collect::<Vec<u8>>());
        assert!(exhausted > 0, "the ring was meant to run dry");
    }

    #[test]
    fn a_sleeper_wakes_however_often_it_is_woken() {
        let waker = Waker::new().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (turn, turns) = std::sync::mpsc::sync_channel(0);
        let sleeper = std::thread::spawn({
            let waker = waker.clone();
            move || {
                let mut ring = UdpRing::new(vec![socket], 4, Duration::from_secs(60), waker).unwrap();
                for _ in 0..2000 {
                    turn.send(()).unwrap();
                    ring.sleep().unwrap();
                    ring.poll(4, |_, _, _| true).unwrap();
                }
            }
        });
        for () in turns {
            waker.wake();
        }
        sleeper.join().unwrap();
    }

    #[test]
    fn a_refused_send_is_reported() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut ring = UdpRing::new(vec![socket], 4, Duration::from_secs(60), Waker::new().unwrap()).unwrap();
        let too_large = vec![0; 65_508];
        ring.send_batch([(0, "127.0.0.1:9".parse().unwrap(), &too_large[..])].into_iter()).unwrap();
        let failed: u64 = (0..10).map(|_| ring.poll(4, |_, _, _| true).unwrap().sends_failed).sum();
        assert_eq!(failed, 1);
    }
}
