//! A place inside a message: two offsets, resolved against the message's bytes only when somebody looks.
//!
//! Spans never own and never borrow, so a scan can be kept, reused and compared without lifetimes. A span that does
//! not fit the bytes it is resolved against reads as empty; there is no way to panic with one.

/// `start..end` in bytes from the beginning of the datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte; never before `start`.
    pub end: u32,
}

impl Span {
    /// The span from `start` to `end`; messages are at most 64 KiB, so offsets fit.
    pub const fn new(start: usize, end: usize) -> Span {
        Span { start: start as u32, end: end as u32 }
    }

    /// The bytes it names; empty when it does not fit.
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// Length in bytes.
    pub const fn len(self) -> usize {
        self.end.saturating_sub(self.start) as usize
    }

    /// Is it empty?
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }
}
