//! The affinity table of one worker: which backend serves a Call-ID, for as long as that must not change.
//!
//! RFC 3261 16.11: the target of a stateless element must not change while a transaction can live. The key is a
//! 128-bit keyed hash of the Call-ID, so that nobody can build collisions and no text is stored. Entries live in a
//! slab; a bucket array of heads points into it and entries chain through `next`: nothing moves, nothing is
//! rehashed, and a delete leaves no tombstone, so no operation ever stalls.
//!
//! ```text
//!   buckets [ 3 | - | 0 | ...]      2 x capacity rounded up to a power of two, 4 bytes each
//!   entries [ key | backend | transaction | next | lasts ]   32 bytes each, 12 more in the wheel
//! ```
//!
//! Bound: at most 64 bytes a binding ([`BYTES_EACH`]), all taken at construction; a full table refuses, counted by
//! the caller. Expiry: a wheel of one-second ticks; a binding that was refreshed is moved when its old deadline
//! comes up.

use std::time::Duration;

use crate::base::id::BackendId;
use crate::base::time::Instant;
use crate::base::wheel::Wheel;

/// What a binding costs at most, in bytes: entry, wheel link and buckets.
pub const BYTES_EACH: usize = size_of::<Entry>() + 12 + 4 * 4;

const _: () = assert!(BYTES_EACH <= 64);

const NONE: u32 = u32::MAX;

/// How long a binding must last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// An INVITE without final answer.
    Early,
    /// An established dialog.
    Dialog,
    /// A transaction that is over or made no dialog.
    Linger,
}

/// The durations behind [`Lasting`].
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// [`Lasting::Early`]
    pub early: Duration,
    /// [`Lasting::Dialog`]
    pub dialog: Duration,
    /// [`Lasting::Linger`]
    pub linger: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: [u64; 2],
    backend: BackendId,
    transaction: u32,
    /// Chain of the bucket, or of the free list.
    next: u32,
    /// Last tick on which the binding holds; 30 bits, and how it lasts in the upper two.
    expires: u32,
}

/// What the table knows of a Call-ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The backend.
    pub backend: BackendId,
    /// Hash of the transaction that was last sent there by this binding.
    pub transaction: u32,
    /// How it lasts.
    pub lasting: Lasting,
    slot: u32,
}

/// The table; see the module head.
#[derive(Debug)]
pub struct Bindings {
    entries: Box<[Entry]>,
    buckets: Box<[u32]>,
    wheel: Wheel,
    free: u32,
    len: usize,
    lifetimes: Lifetimes,
}

impl Bindings {
    /// Room for `capacity` bindings.
    pub fn with_capacity(capacity: usize, lifetimes: Lifetimes) -> Self {
        let entry = |i: usize| Entry {
            key: [0; 2],
            backend: BackendId(0),
            transaction: 0,
            next: if i + 1 < capacity { i as u32 + 1 } else { NONE },
            expires: 0,
        };
        Bindings {
            entries: (0..capacity).map(entry).collect(),
            buckets: vec![NONE; (capacity * 2).next_power_of_two()].into(),
            wheel: Wheel::with_capacity(capacity),
            free: if capacity > 0 { 0 } else { NONE },
            len: 0,
            lifetimes,
        }
    }

    /// Bindings held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bindings it can hold.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// How many chains there are of each length, for reports and tests: the first number counts empty buckets.
    pub fn chain_lengths(&self) -> Vec<usize> {
        let next = |slot: &u32| Some(self.entries[*slot as usize].next).filter(|next| *next != NONE);
        let mut lengths = vec![0];
        for head in &self.buckets {
            let len = std::iter::successors(Some(*head).filter(|slot| *slot != NONE), next).count();
            lengths.resize(lengths.len().max(len + 1), 0);
            lengths[len] += 1;
        }
        lengths
    }

    /// Sets the durations for what is refreshed from here on.
    pub fn set_lifetimes(&mut self, lifetimes: Lifetimes) {
        self.lifetimes = lifetimes;
    }

    /// The binding of a key.
    #[inline]
    pub fn get(&self, key: u128) -> Option<Binding> {
        let key = split(key);
        let mut slot = self.buckets[self.bucket(key)];
        while slot != NONE {
            let entry = &self.entries[slot as usize];
            if entry.key == key {
                let lasting = lasting(entry.expires);
                return Some(Binding { backend: entry.backend, transaction: entry.transaction, lasting, slot });
            }
            slot = entry.next;
        }
        None
    }

    /// Binds a key, replacing what it was bound to; `false` when the table is full.
    pub fn bind(&mut self, now: Instant, key: u128, backend: BackendId, transaction: u32, lasting: Lasting) -> bool {
        let expires = self.expiry(now, lasting);
        if let Some(known) = self.get(key) {
            let entry = &mut self.entries[known.slot as usize];
            (entry.backend, entry.transaction, entry.expires) = (backend, transaction, expires);
            self.wheel.schedule(known.slot, tick(expires));
            return true;
        }
        let slot = self.free;
        if slot == NONE {
            return false;
        }
        let key = split(key);
        let bucket = self.bucket(key);
        let entry = &mut self.entries[slot as usize];
        self.free = entry.next;
        *entry = Entry { key, backend, transaction, next: self.buckets[bucket], expires };
        self.buckets[bucket] = slot;
        self.wheel.schedule(slot, tick(expires));
        self.len += 1;
        true
    }

    /// Lets a binding last from `now` on. Lengthening costs one write; the wheel catches up by itself.
    pub fn refresh(&mut self, now: Instant, binding: Binding, lasting: Lasting) {
        let expires = self.expiry(now, lasting);
        let entry = &mut self.entries[binding.slot as usize];
        let is_sooner = tick(expires) < tick(entry.expires);
        entry.expires = expires;
        if is_sooner {
            self.wheel.schedule(binding.slot, tick(expires));
        }
    }

    /// Removes bindings that are over, doing at most `budget` steps; returns how many it removed.
    pub fn expire(&mut self, now: Instant, mut budget: u32) -> u64 {
        let now = now_tick(now);
        let mut removed = 0;
        while let Some(slot) = self.wheel.pop_expired(now, &mut budget) {
            let expires = tick(self.entries[slot as usize].expires);
            if expires > now {
                self.wheel.schedule(slot, expires);
            } else {
                self.remove(slot);
                removed += 1;
            }
        }
        removed
    }

    fn remove(&mut self, slot: u32) {
        let Entry { key, next, .. } = self.entries[slot as usize];
        let bucket = self.bucket(key);
        if self.buckets[bucket] == slot {
            self.buckets[bucket] = next;
        } else {
            let mut before = self.buckets[bucket];
            while before != NONE && self.entries[before as usize].next != slot {
                before = self.entries[before as usize].next;
            }
            debug_assert_ne!(before, NONE, "a bound entry is in its bucket's chain");
            if before != NONE {
                self.entries[before as usize].next = next;
            }
        }
        self.entries[slot as usize].next = self.free;
        self.free = slot;
        self.len -= 1;
    }

    fn bucket(&self, key: [u64; 2]) -> usize {
        key[1] as usize & (self.buckets.len() - 1)
    }

    fn expiry(&self, now: Instant, lasting: Lasting) -> u32 {
        let (duration, kind) = match lasting {
            Lasting::Early => (self.lifetimes.early, 0),
            Lasting::Dialog => (self.lifetimes.dialog, 1),
            Lasting::Linger => (self.lifetimes.linger, 2),
        };
        // The running second is not over, hence one more.
        (now_tick(now + duration) + 1) & TICK_MASK | kind << 30
    }
}

const TICK_MASK: u32 = (1 << 30) - 1;

/// Seconds since start: 30 bits last 34 years.
fn now_tick(now: Instant) -> u32 {
    (now.as_millis() / 1000) as u32 & TICK_MASK
}

const fn tick(expires: u32) -> u32 {
    expires & TICK_MASK
}

const fn lasting(expires: u32) -> Lasting {
    match expires >> 30 {
        0 => Lasting::Early,
        1 => Lasting::Dialog,
        _ => Lasting::Linger,
    }
}

const fn split(key: u128) -> [u64; 2] {
    [(key >> 64) as u64, key as u64]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const LIFETIMES: Lifetimes = Lifetimes {
        early: Duration::from_secs(300),
        dialog: Duration::from_secs(3600),
        linger: Duration::from_secs(32),
    };

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
    }

    #[test]
    fn a_binding_outlives_its_time_and_not_much_more() {
        let mut table = Bindings::with_capacity(4, LIFETIMES);
        assert!(table.bind(at(10), 7, BackendId(1), 0, Lasting::Linger));
        table.expire(at(42), 10_000);
        assert!(table.get(7).is_some(), "32 seconds are not over");
        table.expire(at(44), 10_000);
        assert_eq!((table.get(7), table.len()), (None, 0));
    }

    #[test]
    fn refreshing_lengthens_and_shortens() {
        let mut table = Bindings::with_capacity(4, LIFETIMES);
        table.bind(at(0), 7, BackendId(1), 0, Lasting::Early);
        table.refresh(at(100), table.get(7).unwrap(), Lasting::Dialog);
        table.expire(at(3000), 10_000);
        assert_eq!(table.get(7).unwrap().lasting, Lasting::Dialog);
        table.refresh(at(3000), table.get(7).unwrap(), Lasting::Linger);
        table.expire(at(3040), 10_000);
        assert_eq!(table.get(7), None);
    }

    #[test]
    fn chains_are_counted_by_their_length() {
        let mut table = Bindings::with_capacity(4, LIFETIMES);
        // Eight buckets, by the lowest bits of the key.
        for key in [1, 9, 2, 17] {
            table.bind(at(0), key, BackendId(1), 0, Lasting::Linger);
        }
        assert_eq!(table.chain_lengths(), [6, 1, 0, 1]);
    }

    #[test]
    fn a_full_table_refuses_and_recovers() {
        let mut table = Bindings::with_capacity(2, LIFETIMES);
        assert!(table.bind(at(0), 1, BackendId(1), 0, Lasting::Linger));
        assert!(table.bind(at(0), 2, BackendId(1), 0, Lasting::Linger));
        assert!(!table.bind(at(0), 3, BackendId(1), 0, Lasting::Linger));
        assert!(table.bind(at(0), 2, BackendId(9), 0, Lasting::Linger), "rebinding needs no room");
        assert_eq!(table.expire(at(60), 10_000), 2);
        assert!(table.bind(at(60), 3, BackendId(1), 0, Lasting::Linger));
    }

    proptest! {
        /// The slow twin: a map from key to backend and expiry.
        #[test]
        fn behaves_like_a_map(steps in proptest::collection::vec((0u128..12, 0u32..9, 0u64..50, 0u8..5), 1..300)) {
            let mut table = Bindings::with_capacity(8, LIFETIMES);
            let mut twin: BTreeMap<u128, (u32, u64)> = BTreeMap::new();
            let mut now = 0;
            for (key, backend, pass, what) in steps {
                let last = |lasting| now + match lasting { Lasting::Early => 300, Lasting::Dialog => 3600, Lasting::Linger => 32 } + 1;
                match what {
                    0 | 1 => {
                        let lasting = if what == 0 { Lasting::Early } else { Lasting::Linger };
                        let fits = twin.contains_key(&key) || twin.len() < 8;
                        prop_assert_eq!(table.bind(at(now), key, BackendId(backend), 0, lasting), fits);
                        if fits { twin.insert(key, (backend, last(lasting))); }
                    }
                    2 => if let Some(binding) = table.get(key) {
                        table.refresh(at(now), binding, Lasting::Dialog);
                        twin.get_mut(&key).unwrap().1 = last(Lasting::Dialog);
                    },
                    _ => {
                        now += pass;
                        table.expire(at(now), u32::MAX);
                        twin.retain(|_, (_, expires)| *expires > now);
                    }
                }
                prop_assert_eq!(table.len(), twin.len());
                for key in 0..12 {
                    prop_assert_eq!(table.get(key).map(|b| b.backend.0), twin.get(&key).map(|(b, _)| *b));
                }
            }
        }
    }
}
