//! Weighted Maglev: a table of 65,537 slots that names a backend for every hash.
//!
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4. Each
//! backend walks its own permutation of the slots and takes the next free one whenever it is its turn. Turns are
//! dealt by weight: a backend earns its weight in credit each round and pays the largest weight for a turn, so
//! shares follow the weights to within a slot or two and no table of percentages limits how many backends fit.
//!
//! Invariants: the table depends on ids and weights alone, not on their order, so every node builds the same one;
//! removing a backend hands its slots to all others in proportion and moves few of the rest. Cost: 128 KiB a pool,
//! built in about a millisecond per few backends on the control core; a look-up is one remainder and one load.

use crate::base::id::{BackendId, stable_hash};

/// Slots in a table; prime, so that every step width visits every slot, and large enough that a share of one in a
/// thousand still has 65 slots.
pub const SLOTS: usize = 65_537;

const EMPTY: u16 = u16::MAX;

/// A candidate for a share of the table.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Index that look-ups return.
    pub index: u16,
    /// Seeds the permutation.
    pub id: BackendId,
    /// Share relative to the others; candidates of weight 0 get no slot.
    pub weight: u32,
}

/// The table; empty when no candidate has weight.
#[derive(Clone, Debug, Default)]
pub struct Maglev {
    slots: Box<[u16]>,
}

struct Turn {
    index: u16,
    weight: u64,
    credit: u64,
    next: usize,
    step: usize,
}

impl Maglev {
    /// Builds the table for `candidates`.
    pub fn new(candidates: &[Candidate]) -> Self {
        let mut turns: Vec<(BackendId, Turn)> = candidates
            .iter()
            .filter(|c| c.weight > 0)
            .map(|c| {
                let offset = stable_hash(b"maglev-offset", &c.id.0.to_be_bytes());
                let step = stable_hash(b"maglev-step", &c.id.0.to_be_bytes());
                let next = (offset % SLOTS as u64) as usize;
                let step = (step % (SLOTS as u64 - 1)) as usize + 1;
                (c.id, Turn { index: c.index, weight: u64::from(c.weight), credit: 0, next, step })
            })
            .collect();
        turns.sort_by_key(|(id, _)| *id);
        let Some(price) = turns.iter().map(|(_, t)| t.weight).max() else {
            return Maglev::default();
        };
        let mut slots = vec![EMPTY; SLOTS].into_boxed_slice();
        let mut free = SLOTS;
        while free > 0 {
            for (_, turn) in &mut turns {
                turn.credit += turn.weight;
                if turn.credit < price || free == 0 {
                    continue;
                }
                turn.credit -= price;
                while slots[turn.next] != EMPTY {
                    turn.next = (turn.next + turn.step) % SLOTS;
                }
                slots[turn.next] = turn.index;
                free -= 1;
            }
        }
        Maglev { slots }
    }

    /// The backend for a hash, or `None` when the table is empty.
    pub fn get(&self, hash: u64) -> Option<u16> {
        self.slots.get((hash % SLOTS as u64) as usize).copied()
    }

    /// How many slots each index holds, for reports and tests: `(index, slots)` in ascending order of index.
    pub fn shares(&self) -> Vec<(u16, usize)> {
        let mut counts = std::collections::BTreeMap::new();
        for &slot in &self.slots {
            *counts.entry(slot).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(weights: &[u32]) -> Vec<Candidate> {
        weights
            .iter()
            .enumerate()
            .map(|(i, &weight)| Candidate { index: i as u16, id: BackendId::from_name(&format!("b{i}")), weight })
            .collect()
    }

    fn shares(table: &Maglev) -> Vec<f64> {
        table.shares().iter().map(|&(_, n)| n as f64 / SLOTS as f64).collect()
    }

    #[test]
    fn shares_follow_the_weights() {
        for (got, want) in shares(&Maglev::new(&pool(&[50, 30, 20]))).iter().zip([0.5, 0.3, 0.2]) {
            assert!((got - want).abs() < 0.0005, "{got} is not {want}");
        }
        let uneven = Maglev::new(&pool(&[65_535, 1]));
        assert_eq!(uneven.shares()[1].1, 1);
    }

    #[test]
    fn a_thousand_backends_each_get_their_share() {
        let table = Maglev::new(&pool(&[1; 1000]));
        assert_eq!(table.shares().len(), 1000);
        assert!(table.shares().iter().all(|&(_, n)| n == 65 || n == 66));
    }

    #[test]
    fn a_lost_backend_moves_its_own_share_and_little_else() {
        let all = pool(&[10; 10]);
        let before = Maglev::new(&all);
        let after = Maglev::new(&all[..9]);
        let mut moved_others = 0;
        let mut heirs = [0usize; 10];
        for hash in 0..SLOTS as u64 {
            let (was, is) = (before.get(hash).unwrap(), after.get(hash).unwrap());
            if was == 9 {
                heirs[is as usize] += 1;
            } else if was != is {
                moved_others += 1;
            }
        }
        assert!((moved_others as f64) < 0.05 * SLOTS as f64, "{moved_others} slots moved needlessly");
        let fair = SLOTS / 10 / 9;
        assert!(heirs[..9].iter().all(|&n| n > fair / 2 && n < fair * 2), "unfair heirs: {heirs:?}");
    }

    #[test]
    fn the_order_of_candidates_does_not_matter() {
        let forward = pool(&[5, 7, 9]);
        let backward: Vec<_> = forward.iter().rev().copied().collect();
        let (a, b) = (Maglev::new(&forward), Maglev::new(&backward));
        assert!((0..SLOTS as u64).all(|h| a.get(h) == b.get(h)));
    }

    #[test]
    fn without_weight_there_is_no_answer() {
        assert_eq!(Maglev::new(&[]).get(7), None);
        assert_eq!(Maglev::new(&pool(&[0, 0])).get(7), None);
    }
}
