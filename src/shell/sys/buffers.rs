//! Buffers that the kernel picks from when something arrives: io_uring's provided buffer rings.
//!
//! Read `io_uring_register_buf_ring(3)` first. A buffer belongs to the kernel except between the completion that names
//! it and [`BufferGroup::give_back`]. It is address space: memory is taken for what was ever written into it.

use std::io;
use std::mem::size_of;
use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// Address space of one buffer: the header and name that precede a datagram, the largest datagram, and an odd page
/// so that neighbouring buffers do not compete for the same cache sets.
pub const BUFFER_BYTES: usize = 17 * 4096;

/// The buffers of one group.
pub(super) struct BufferGroup {
    entries: Mapping,
    memory: Mapping,
    buffer_bytes: usize,
    mask: u16,
    tail: u16,
}

impl BufferGroup {
    /// Registers `buffers` (a power of two) of `buffer_bytes` each as group number `group`.
    pub(super) fn register(ring: &IoUring, group: u16, buffers: usize, buffer_bytes: usize) -> io::Result<Self> {
        let entries = Mapping::new(buffers * size_of::<BufRingEntry>())?;
        let memory = Mapping::new(buffers * buffer_bytes)?;
        // SAFETY: the entries are page-aligned, large enough for `buffers` (a power of two) and live as long as the
        // group, which outlives the ring's operations.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries.start as u64, buffers as u16, group, 0)? };
        let mut this = BufferGroup { entries, memory, buffer_bytes, mask: (buffers - 1) as u16, tail: 0 };
        for buffer in 0..buffers {
            this.give_back(buffer as u16);
        }
        this.publish();
        Ok(this)
    }

    /// The first `len` bytes of a buffer that the kernel has filled.
    pub(super) fn buffer(&self, buffer: u16, len: usize) -> &[u8] {
        let offset = usize::from(buffer & self.mask) * self.buffer_bytes;
        let len = len.min(self.buffer_bytes);
        // SAFETY: inside the mapping; the kernel gave this buffer up with its completion and gets it back only by
        // `give_back`, which needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.memory.start.add(offset), len) }
    }

    /// Gives a buffer to the kernel, which sees it with the next [`BufferGroup::publish`].
    pub(super) fn give_back(&mut self, buffer: u16) {
        let entries: *mut BufRingEntry = self.entries.start.cast();
        let offset = usize::from(buffer & self.mask) * self.buffer_bytes;
        // SAFETY: the index is inside the ring by the mask, and the kernel reads the entry only after `publish`.
        unsafe {
            let entry = &mut *entries.add(usize::from(self.tail & self.mask));
            entry.set_addr(self.memory.start.add(offset) as u64);
            entry.set_len(self.buffer_bytes as u32);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel what was given back.
    pub(super) fn publish(&mut self) {
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
