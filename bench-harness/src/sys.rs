//! The harness's only unsafe code: batched datagram I/O, pinning, polling, signals and CPU clocks.
//!
//! Everything else in the harness is safe Rust over these few types. [`Inbox`] and [`Outbox`] hold the arrays that
//! `recvmmsg(2)` and `sendmmsg(2)` want; they are allocated once and their pointers refer to boxed memory that
//! never moves or shrinks while the box lives, so moving the owner is harmless.
//!
//! Bound: a batch never exceeds the capacity given at construction; a full [`Outbox`] refuses, it does not grow.
//! Cost: one system call per batch, no allocation after construction.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A socket address as the kernel wants it: room for IPv6, or for IPv4 in its first 16 bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Peer {
    raw: libc::sockaddr_in6,
    len: libc::socklen_t,
}

impl Peer {
    /// An address of no family; sending to it fails.
    pub fn none() -> Peer {
        // SAFETY: sockaddr_in6 is plain old data for which all zero bytes is a valid value (family AF_UNSPEC).
        Peer { raw: unsafe { mem::zeroed() }, len: mem::size_of::<libc::sockaddr_in6>() as libc::socklen_t }
    }

    /// Back to the standard library's type; `None` when the family is neither IPv4 nor IPv6.
    pub fn address(&self) -> Option<SocketAddr> {
        match i32::from(self.raw.sin6_family) {
            libc::AF_INET => {
                // SAFETY: the family says that the kernel or `from` wrote a sockaddr_in at this place, and
                // sockaddr_in6 is larger and at least as strictly aligned.
                let v4 = unsafe { *(&raw const self.raw).cast::<libc::sockaddr_in>() };
                Some((Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)), u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                Some((Ipv6Addr::from(self.raw.sin6_addr.s6_addr), u16::from_be(self.raw.sin6_port)).into())
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Peer {
        let mut peer = Peer::none();
        match address {
            SocketAddr::V4(v4) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_in fits into sockaddr_in6 and needs no stricter alignment.
                unsafe { (&raw mut peer.raw).cast::<libc::sockaddr_in>().write(raw) };
                peer.len = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(v6) => {
                peer.raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                peer.raw.sin6_port = v6.port().to_be();
                peer.raw.sin6_addr.s6_addr = v6.ip().octets();
                peer.raw.sin6_scope_id = v6.scope_id();
            }
        }
        peer
    }
}

/// Buffers and headers of one batch; the pointers in `headers` lead to the other boxes of the same value.
struct Batch {
    buffers: Box<[u8]>,
    vectors: Box<[libc::iovec]>,
    peers: Box<[Peer]>,
    headers: Box<[libc::mmsghdr]>,
    bytes_each: usize,
}

impl Batch {
    fn new(messages: usize, bytes_each: usize) -> Batch {
        let mut buffers = vec![0u8; messages * bytes_each].into_boxed_slice();
        let mut vectors: Box<[libc::iovec]> = buffers
            .chunks_exact_mut(bytes_each)
            .map(|chunk| libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: bytes_each })
            .collect();
        let mut peers = vec![Peer::none(); messages].into_boxed_slice();
        // SAFETY: mmsghdr is plain old data; all zero bytes means null pointers and zero lengths.
        let mut headers = vec![unsafe { mem::zeroed::<libc::mmsghdr>() }; messages].into_boxed_slice();
        for ((header, vector), peer) in headers.iter_mut().zip(vectors.iter_mut()).zip(peers.iter_mut()) {
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = (&raw mut peer.raw).cast();
            header.msg_hdr.msg_namelen = peer.len;
        }
        Batch { buffers, vectors, peers, headers, bytes_each }
    }
}

/// A batch of received datagrams.
pub struct Inbox {
    batch: Batch,
    filled: usize,
    replies: Box<[libc::mmsghdr]>,
}

impl Inbox {
    /// Room for `messages` datagrams of at most `bytes_each` bytes; longer ones are cut.
    pub fn new(messages: usize, bytes_each: usize) -> Inbox {
        // SAFETY: mmsghdr is plain old data; all zero bytes means null pointers and zero lengths.
        let replies = vec![unsafe { mem::zeroed::<libc::mmsghdr>() }; messages].into_boxed_slice();
        Inbox { batch: Batch::new(messages, bytes_each), filled: 0, replies }
    }

    /// Receives what is there, at most one batch. With `wait`, sleeps for the first datagram.
    ///
    /// Returns how many datagrams arrived; 0 when there was none or a signal came.
    ///
    /// # Errors
    /// What `recvmmsg(2)` reports, but for EAGAIN, EINTR and the ICMP error ECONNREFUSED.
    pub fn receive(&mut self, socket: &UdpSocket, wait: bool) -> io::Result<usize> {
        for (header, vector) in self.batch.headers.iter_mut().zip(self.batch.vectors.iter_mut()) {
            vector.iov_len = self.batch.bytes_each;
            header.msg_hdr.msg_namelen = mem::size_of::<libc::sockaddr_in6>() as libc::socklen_t;
        }
        let flags = if wait { libc::MSG_WAITFORONE } else { libc::MSG_DONTWAIT };
        let count = self.batch.headers.len() as libc::c_uint;
        // SAFETY: every header points to one iovec, one buffer of `bytes_each` bytes and one Peer, all owned by
        // `self.batch` and exclusively borrowed here; a null timeout is allowed.
        let result = unsafe {
            libc::recvmmsg(socket.as_raw_fd(), self.batch.headers.as_mut_ptr(), count, flags, std::ptr::null_mut())
        };
        self.filled = match usize::try_from(result) {
            Ok(filled) => filled,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => 0,
                error if error.kind() == io::ErrorKind::Interrupted => 0,
                error if error.kind() == io::ErrorKind::ConnectionRefused => 0,
                error => return Err(error),
            },
        };
        for (header, peer) in self.batch.headers.iter().zip(self.batch.peers.iter_mut()).take(self.filled) {
            peer.len = header.msg_hdr.msg_namelen;
        }
        Ok(self.filled)
    }

    /// Datagram `index` of the last batch and who sent it.
    ///
    /// # Panics
    /// When `index` is not below what [`Inbox::receive`] returned.
    pub fn message(&self, index: usize) -> (&[u8], Peer) {
        assert!(index < self.filled, "datagram {index} of {}", self.filled);
        let start = index * self.batch.bytes_each;
        let len = (self.batch.headers[index].msg_len as usize).min(self.batch.bytes_each);
        (&self.batch.buffers[start..start + len], self.batch.peers[index])
    }

    /// Sends the datagrams of the last batch on, unchanged and without a copy, each to where `route` says; `None`
    /// drops it. Returns how many were sent.
    pub fn forward(&mut self, socket: &UdpSocket, mut route: impl FnMut(&[u8], Peer) -> Option<Peer>) -> usize {
        let mut count = 0;
        for index in 0..self.filled {
            let (message, from) = self.message(index);
            let len = message.len();
            let Some(to) = route(message, from) else { continue };
            self.batch.peers[index] = to;
            self.batch.vectors[index].iov_len = len;
            self.replies[count] = self.batch.headers[index];
            self.replies[count].msg_hdr.msg_namelen = to.len;
            count += 1;
        }
        send_all(socket, &mut self.replies[..count])
    }
}

/// A batch of datagrams to send.
pub struct Outbox {
    batch: Batch,
    queued: usize,
}

impl Outbox {
    /// Room for `messages` datagrams of at most `bytes_each` bytes.
    pub fn new(messages: usize, bytes_each: usize) -> Outbox {
        Outbox { batch: Batch::new(messages, bytes_each), queued: 0 }
    }

    /// How many more datagrams fit before a flush.
    pub fn room(&self) -> usize {
        self.batch.headers.len() - self.queued
    }

    /// Lets `render` write the next datagram in place and queues it for `to`. `render` returns the length, or `None`
    /// when the text did not fit. Returns whether something was queued; false also when the batch is full.
    pub fn push(&mut self, to: &Peer, render: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        if self.room() == 0 {
            return false;
        }
        let (index, each) = (self.queued, self.batch.bytes_each);
        let Some(len) = render(&mut self.batch.buffers[index * each..(index + 1) * each]) else { return false };
        self.batch.vectors[index].iov_len = len.min(each);
        self.batch.peers[index] = *to;
        self.batch.headers[index].msg_hdr.msg_namelen = to.len;
        self.queued += 1;
        true
    }

    /// Sends all that is queued. Returns how many the kernel took; the rest is dropped.
    pub fn flush(&mut self, socket: &UdpSocket) -> usize {
        let queued = mem::take(&mut self.queued);
        send_all(socket, &mut self.batch.headers[..queued])
    }
}

/// Sends `headers` in order, skipping over datagrams that the kernel refuses. Returns how many it took.
fn send_all(socket: &UdpSocket, headers: &mut [libc::mmsghdr]) -> usize {
    let (mut done, mut sent) = (0, 0);
    while done < headers.len() {
        let rest = &mut headers[done..];
        // SAFETY: the headers belong to a Batch (or are copies of such), whose iovecs, buffers and peers outlive
        // this call; sendmmsg writes msg_len of the headers only.
        let taken = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as libc::c_uint, 0) };
        match usize::try_from(taken) {
            Ok(taken) if taken > 0 => {
                done += taken;
                sent += taken;
            }
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => done += 1,
        }
    }
    sent
}

/// Binds a UDP socket with receive and send buffers of `buffer_bytes`; past the system's limit when privileged.
///
/// # Errors
/// What binding reports, with the address.
pub fn bind(address: SocketAddr, buffer_bytes: i32) -> io::Result<UdpSocket> {
    let socket =
        UdpSocket::bind(address).map_err(|error| io::Error::new(error.kind(), format!("bind {address}: {error}")))?;
    for (forced, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        if set_option(&socket, forced, buffer_bytes).is_err() {
            set_option(&socket, plain, buffer_bytes)?;
        }
    }
    Ok(socket)
}

fn set_option(socket: &UdpSocket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointer leads to an int that lives during the call, and `len` is its size.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A set of descriptors to sleep on.
pub struct Poll(Vec<libc::pollfd>);

impl Poll {
    /// Watches `descriptors` for something to read. They must stay open as long as this value is used; a closed one
    /// only makes [`Poll::wait`] return at once.
    pub fn new(descriptors: impl Iterator<Item = RawFd>) -> Poll {
        Poll(descriptors.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect())
    }

    /// Sleeps until something is there, a signal comes, or `timeout` has passed.
    pub fn wait(&mut self, timeout: Duration) {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
        };
        // SAFETY: the array is exclusively borrowed and its length is right; a null signal mask is allowed.
        unsafe { libc::ppoll(self.0.as_mut_ptr(), self.0.len() as libc::nfds_t, &timeout, std::ptr::null()) };
    }
}

/// Sleeps for `time`, or less when a signal comes.
pub fn pause(time: Duration) {
    Poll(Vec::new()).wait(time);
}

/// Pins the calling thread to `cores` and lets its timers fire without slack.
///
/// # Errors
/// When a core does not exist or the process may not use it.
pub fn pin(cores: &[usize]) -> io::Result<()> {
    // SAFETY: cpu_set_t is a bit array for which all zero bytes means the empty set; CPU_SET checks its index; the
    // set outlives the calls.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        for &core in cores {
            libc::CPU_SET(core, &mut set);
        }
        if libc::sched_setaffinity(0, mem::size_of_val(&set), &set) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong, 0, 0, 0);
    }
    Ok(())
}

/// Makes `command` start in a process group of its own, on `cores`, and end by SIGTERM if this thread dies.
pub fn isolate(command: &mut Command, cores: &[usize]) {
    let cores = cores.to_vec();
    command.process_group(0);
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe system calls; `cores` was
    // allocated before the fork.
    unsafe {
        command.pre_exec(move || {
            pin(&cores)?;
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as libc::c_ulong, 0, 0, 0);
            Ok(())
        });
    }
}

/// Sends `signal` to the process group that [`isolate`] made for the process `leader`. Gone already is fine.
pub fn signal_group(leader: u32, signal: i32) {
    let Ok(group) = libc::pid_t::try_from(leader) else { return };
    if group > 1 {
        // SAFETY: kill has no memory effects; the group is one of our own children's, never 0 or 1.
        unsafe { libc::kill(-group, signal) };
    }
}

/// CPU time of a process so far, all its threads, also those that ended.
///
/// # Errors
/// When the process is gone.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: both calls write to a local variable of the right type.
    let (result, time) = unsafe {
        let mut time: libc::timespec = mem::zeroed();
        let mut result = libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock);
        if result == 0 && libc::clock_gettime(clock, &mut time) != 0 {
            result = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
        }
        (result, time)
    };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// CPU time of the calling thread so far: what others on the machine do does not count.
pub fn thread_cpu_time() -> Duration {
    // SAFETY: the call writes to a local variable of the right type.
    let time = unsafe {
        let mut time: libc::timespec = mem::zeroed();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time);
        time
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Lets this process open as many files as the system allows it.
///
/// # Errors
/// When not even the present limit can be told or set.
pub fn raise_open_files() -> io::Result<u64> {
    let set = |limit: libc::rlimit| {
        // SAFETY: the pointer leads to a local variable of the right type.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } == 0 { Ok(limit.rlim_cur) } else { Err(()) }
    };
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer leads to a local variable of the right type.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Past the hard limit only when privileged.
    let most = limit.rlim_max.max(1 << 20);
    set(libc::rlimit { rlim_cur: most, rlim_max: most })
        .or_else(|()| set(libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max }))
        .map_err(|()| io::Error::last_os_error())
}

/// Clock ticks per second in `/proc/PID/stat`.
pub fn ticks_per_second() -> u64 {
    // SAFETY: sysconf has no memory effects.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100).max(1)
}

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn request_stop(_signal: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// From here on SIGINT and SIGTERM only set the flag that [`stop_requested`] reads, so that guards run.
pub fn catch_stop_signals() {
    let handler = request_stop as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, handler) };
    }
}

/// Whether SIGINT or SIGTERM came.
pub fn stop_requested() -> bool {
    STOP.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests;
