//! Call-IDs that are one to a hash without a key: 2^20 texts with one FNV-1a-32, and 2^20 with one CRC-32.
//!
//! FNV-1a goes over its text byte by byte, with 32 bits of state. From any state, two blocks that lead to one state are
//! found by a birthday search over some 2^16 blocks; twenty such pairs one behind the other give 2^20 texts that end in
//! one state, and whatever follows keeps them there (Joux, "Multicollisions in Iterated Hash Functions", 2004).
//!
//! CRC-32 is linear: a set of bit changes adds up, by exclusive or, to the changes that each makes alone. Of 54 bits
//! that may change in 18 letters, at least 22 independent sets change nothing in the 32 bits of the result; Gaussian
//! elimination finds them, and the sums of twenty of them give 2^20 texts.

use std::collections::HashMap;

use tandem::base::prng::Prng;

/// How many texts of a family there are.
pub const MANY: u32 = 1 << PAIRS;

const PAIRS: usize = 20;
const BLOCK: usize = 6;

/// FNV-1a with 32 bits (RFC 9923), from a state on.
fn fnv_from(state: u32, text: &[u8]) -> u32 {
    text.iter().fold(state, |state, byte| (state ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// FNV-1a with 32 bits.
pub fn fnv(text: &[u8]) -> u32 {
    fnv_from(0x811c_9dc5, text)
}

/// CRC-32 as Ethernet and zip have it, bit by bit.
pub fn crc(text: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1));
    !text.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// Pairs of blocks; text `i` takes of pair `k` the block that bit `k` of `i` says.
pub struct FnvFamily([[[u8; BLOCK]; 2]; PAIRS]);

impl FnvFamily {
    pub fn find(prng: &mut Prng) -> FnvFamily {
        let mut state = fnv(b"");
        FnvFamily(std::array::from_fn(|_| {
            let mut seen: HashMap<u32, [u8; BLOCK]> = HashMap::new();
            loop {
                let drawn = prng.next_u64();
                let block = std::array::from_fn(|i| b'a' + (drawn >> (8 * i)) as u8 % 26);
                let reached = fnv_from(state, &block);
                if let Some(other) = seen.insert(reached, block).filter(|other| *other != block) {
                    state = reached;
                    return [other, block];
                }
            }
        }))
    }

    pub fn text(&self, i: u32, out: &mut Vec<u8>) {
        out.clear();
        for (k, pair) in self.0.iter().enumerate() {
            out.extend_from_slice(&pair[(i >> k) as usize & 1]);
        }
        out.extend_from_slice(b"@example.net");
    }
}

/// Letters of which each may change in its three lowest bits and stays one: `h` to `o`.
const LETTERS: usize = 18;

/// Sets of bit changes; text `i` makes those of its bits.
pub struct CrcFamily([u64; PAIRS]);

impl CrcFamily {
    pub fn find() -> CrcFamily {
        let nothing = crc(&letters(0));
        // A row is a set of changes and what it does to the result; combined until what it does is nothing.
        let mut basis: [Option<(u32, u64)>; 32] = [None; 32];
        let mut harmless = Vec::new();
        for bit in 0..3 * LETTERS {
            let (mut effect, mut changes) = (crc(&letters(1 << bit)) ^ nothing, 1u64 << bit);
            while effect != 0 {
                let top = 31 - effect.leading_zeros() as usize;
                match basis[top] {
                    Some((known, others)) => (effect, changes) = (effect ^ known, changes ^ others),
                    None => {
                        basis[top] = Some((effect, changes));
                        break;
                    }
                }
            }
            if effect == 0 {
                harmless.push(changes);
            }
        }
        CrcFamily(std::array::from_fn(|k| harmless[k]))
    }

    pub fn text(&self, i: u32, out: &mut Vec<u8>) {
        let changes = (0..PAIRS).filter(|k| i >> k & 1 == 1).fold(0, |changes, k| changes ^ self.0[k]);
        out.clear();
        out.extend_from_slice(&letters(changes));
        out.extend_from_slice(b"@example.net");
    }
}

fn letters(changes: u64) -> [u8; LETTERS] {
    std::array::from_fn(|i| b'h' + (changes >> (3 * i)) as u8 % 8)
}

/// Text `i` of as many that have nothing in common with a hash, as long as the others.
pub fn random(i: u32, like: usize, out: &mut Vec<u8>) {
    let mut prng = Prng::new(u64::from(i) << 8 | 0x51);
    out.clear();
    out.extend((0..like).map(|_| b'a' + prng.below(26) as u8));
}
