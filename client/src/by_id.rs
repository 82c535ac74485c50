//! Small things by id.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Ids are numbers that count up. Sixteen in a row stay together, so that those
/// that came last, which mostly change next, are near each other in the table;
/// multiplying spreads the rest well enough.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 << 8 | u64::from(*byte));
        }
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        /// What a table compares before it looks at an entry.
        const TAG: u64 = 0x7f << 57;
        let sixteen = (n / 16).wrapping_mul(SPREAD) >> 32;
        let place = sixteen * 16 + n % 16;
        self.0 = n.wrapping_mul(SPREAD) & TAG | place & !TAG;
    }
}

pub(crate) type ById<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;
