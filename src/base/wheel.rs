//! A hashed timer wheel over a fixed set of ids.
//!
//! Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (SOSP 1987), scheme 6. Time comes in ticks; the slot
//! of a deadline is `deadline % slots`; an id whose deadline lies a full turn or more ahead is met once a turn and
//! left in place. Lists are doubly linked through one array, so that scheduling and cancelling cost a few writes.
//!
//! ```text
//!   slot    0     1     2     3   ...  SLOTS-1
//!           |     |     |
//!           7     -     4 <-> 9 <-> 2          ids, linked through `links`
//! ```
//!
//! Invariants: an id is in at most one list; `links[id].deadline` decides which. Deadlines may be moved later for
//! free by the owner, who looks when the id comes up. Bound: 12 bytes an id and 4 bytes a slot, all at construction.

const NONE: u32 = u32::MAX;
const SLOTS: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Link {
    next: u32,
    prev: u32,
    deadline: u32,
}

/// The wheel; see the module head.
#[derive(Debug)]
pub struct Wheel {
    slots: Box<[u32]>,
    links: Box<[Link]>,
    /// Every tick before this one has been dealt with.
    tick: u32,
    /// The id to look at next in the slot of `tick`; `NONE` with `in_slot` unset means at the head.
    cursor: u32,
    in_slot: bool,
}

/// The link of an id that is in no list points `prev` at itself.
impl Wheel {
    /// A wheel for the ids `0..capacity`, at tick 0.
    pub fn with_capacity(capacity: usize) -> Self {
        let links = (0..capacity).map(|id| Link { next: NONE, prev: id as u32, deadline: 0 }).collect();
        Wheel { slots: vec![NONE; SLOTS].into(), links, tick: 0, cursor: NONE, in_slot: false }
    }

    /// Sets the deadline of `id`, replacing an earlier one. A deadline in the past comes up at once.
    pub fn schedule(&mut self, id: u32, deadline: u32) {
        self.cancel(id);
        let deadline = deadline.max(self.tick);
        let slot = deadline as usize % SLOTS;
        let next = self.slots[slot];
        self.links[id as usize] = Link { next, prev: NONE, deadline };
        if next != NONE {
            self.links[next as usize].prev = id;
        }
        self.slots[slot] = id;
    }

    /// Takes `id` out, if it is in.
    pub fn cancel(&mut self, id: u32) {
        let link = self.links[id as usize];
        if link.prev == id {
            return;
        }
        match link.prev {
            NONE => self.slots[link.deadline as usize % SLOTS] = link.next,
            prev => self.links[prev as usize].next = link.next,
        }
        if link.next != NONE {
            self.links[link.next as usize].prev = link.prev;
        }
        if self.cursor == id {
            self.cursor = link.next;
        }
        self.links[id as usize].prev = id;
    }

    /// Takes out and returns an id whose deadline is at or before `now`; `None` when there is none left. Each call
    /// does bounded work: it looks at no more than `budget` ids and slots.
    pub fn pop_expired(&mut self, now: u32, budget: &mut u32) -> Option<u32> {
        while self.tick <= now && *budget > 0 {
            *budget -= 1;
            if !self.in_slot {
                self.cursor = self.slots[self.tick as usize % SLOTS];
                self.in_slot = true;
            }
            let id = self.cursor;
            if id == NONE {
                self.in_slot = false;
                self.tick += 1;
                continue;
            }
            let link = self.links[id as usize];
            self.cursor = link.next;
            if link.deadline <= now {
                self.cancel(id);
                return Some(id);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn drain(wheel: &mut Wheel, now: u32) -> Vec<u32> {
        let mut budget = u32::MAX;
        let mut ids: Vec<u32> = std::iter::from_fn(|| wheel.pop_expired(now, &mut budget)).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn deadlines_beyond_a_turn_wait_for_their_turn() {
        let mut wheel = Wheel::with_capacity(3);
        wheel.schedule(0, 5);
        wheel.schedule(1, 5 + SLOTS as u32);
        wheel.schedule(2, 5);
        assert!(drain(&mut wheel, 4).is_empty());
        assert_eq!(drain(&mut wheel, 5), [0, 2]);
        assert!(drain(&mut wheel, SLOTS as u32).is_empty());
        assert_eq!(drain(&mut wheel, SLOTS as u32 + 5), [1]);
    }

    #[test]
    fn the_budget_bounds_one_call() {
        let mut wheel = Wheel::with_capacity(100);
        (0..100).for_each(|id| wheel.schedule(id, 0));
        let mut budget = 10;
        let popped = std::iter::from_fn(|| wheel.pop_expired(9, &mut budget)).count();
        assert_eq!(popped, 10);
        assert_eq!(drain(&mut wheel, 9).len(), 90);
    }

    proptest! {
        /// The slow twin: a sorted map from id to deadline.
        #[test]
        fn behaves_like_a_sorted_map(steps in proptest::collection::vec((0u32..20, 0u32..9000, 0u32..600, 0u8..4), 1..200)) {
            let mut wheel = Wheel::with_capacity(20);
            let mut twin = BTreeMap::new();
            let mut now = 0;
            for (id, ahead, pass, what) in steps {
                match what {
                    0 => { wheel.cancel(id); twin.remove(&id); }
                    1 | 2 => { wheel.schedule(id, now + ahead); twin.insert(id, now + ahead); }
                    _ => {
                        now += pass;
                        let due: Vec<u32> = twin.iter().filter(|(_, d)| **d <= now).map(|(id, _)| *id).collect();
                        twin.retain(|_, d| *d > now);
                        prop_assert_eq!(drain(&mut wheel, now), due);
                    }
                }
            }
        }
    }
}
