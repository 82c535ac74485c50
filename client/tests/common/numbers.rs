//! What random programs choose, and which of them run.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::ops::Range;

/// Pseudorandom, the same everywhere; or what a fuzzer's input says.
pub struct Numbers(u64, Option<std::vec::IntoIter<u8>>);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d, None)
    }

    /// A byte for each number, of two where it can be larger; zeroes behind the end.
    pub fn of(input: Vec<u8>) -> Self {
        Self(0, Some(input.into_iter()))
    }

    /// Whether an input is at its end.
    pub fn is_over(&self) -> bool {
        self.1.as_ref().is_some_and(|input| input.len() == 0)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        if let Some(input) = &mut self.1 {
            let mut byte = || u64::from(input.next().unwrap_or(0));
            return (if end > 256 { byte() << 8 | byte() } else { byte() }) % end;
        }
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    /// One time of `of`.
    pub fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// The seeds that the variable `of` asks for, as in `0..100000`; else the first few.
pub fn seeds(of: &str, few: u64) -> Range<u64> {
    let Ok(seeds) = std::env::var(of) else { return 0..few };
    let (from, to) = seeds.split_once("..").unwrap();
    from.parse().unwrap()..to.parse().unwrap()
}
