//! What an engine wants sent: messages written one behind the other into one arena, emptied by the shell after
//! every batch.
//!
//! Invariant: while [`Outbox::has_room`] holds, any one message can be handled: its output fits. Bound: the arena and
//! the list have fixed sizes.

use crate::base::span::Span;
use crate::route::verdict::Hop;

//= rfc3261#section-18.1.1 largest
//# Datagrams up to the largest of UDP are read, and sent on while they still fit.
/// The largest UDP payload over IPv4; over IPv6 20 bytes more would fit.
pub const DATAGRAM_MAX: usize = 65_507;

/// One message to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// How it leaves.
    pub hop: Hop,
    /// Where its bytes are in the arena.
    pub span: Span,
}

/// The messages of one batch.
#[derive(Debug)]
pub struct Outbox {
    arena: Box<[u8]>,
    used: usize,
    transmits: Vec<Transmit>,
    transmits_max: usize,
}

impl Outbox {
    /// Room for `transmits_max` datagrams of `arena` bytes together; at least one of the largest.
    pub fn with_capacity(transmits_max: usize, arena: usize) -> Self {
        Outbox {
            arena: vec![0; arena.max(DATAGRAM_MAX)].into(),
            used: 0,
            transmits: Vec::with_capacity(transmits_max),
            transmits_max,
        }
    }

    /// Is there room for whatever one message leads to?
    pub fn has_room(&self) -> bool {
        self.arena.len() - self.used >= DATAGRAM_MAX && self.transmits.len() < self.transmits_max
    }

    /// Is there nothing to send?
    pub fn is_empty(&self) -> bool {
        self.transmits.is_empty()
    }

    /// What is to be sent, in order.
    pub fn transmits(&self) -> &[Transmit] {
        &self.transmits
    }

    /// The bytes of a datagram.
    pub fn bytes(&self, transmit: &Transmit) -> &[u8] {
        transmit.span.of(&self.arena)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.used = 0;
        self.transmits.clear();
    }

    /// Where the next datagram is to be written; at most one of the largest.
    pub(super) fn buffer(&mut self) -> &mut [u8] {
        let end = (self.used + DATAGRAM_MAX).min(self.arena.len());
        &mut self.arena[self.used..end]
    }

    /// Queues the first `len` bytes of the buffer.
    pub(super) fn commit(&mut self, len: usize, hop: Hop) {
        let span = Span::new(self.used, self.used + len);
        // The next datagram starts on its own cache line.
        self.used = (self.used + len).next_multiple_of(64).min(self.arena.len());
        self.transmits.push(Transmit { hop, span });
    }
}
