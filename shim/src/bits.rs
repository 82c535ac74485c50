//! Runs of bits between bitmaps of different alignment. Bit 0 is the lowest of
//! the first word.
//!
//! Bits beyond the end of a slice are not there: a run ends where either of its
//! slices does.

/// Calls `f` with (destination word, mask, bits) for `n` bits of `src` from
/// bit `src_at` on, as they come to lie from bit `dst_at` on.
fn for_words(
    dst: &mut [u64],
    dst_at: u64,
    src: &[u64],
    src_at: u64,
    n: u64,
    mut f: impl FnMut(&mut u64, u64, u64),
) {
    let n = n.min(left(dst, dst_at)).min(left(src, src_at));
    let mut done = 0;
    while done < n {
        let (to, from) = (dst_at + done, src_at + done);
        let step = (64 - to % 64).min(64 - from % 64).min(n - done);
        let mask = !0 >> (64 - step);
        let bits = (src[(from / 64) as usize] >> (from % 64)) & mask;
        f(&mut dst[(to / 64) as usize], mask << (to % 64), bits << (to % 64));
        done += step;
    }
}

/// Bits from bit `at` on.
const fn left(words: &[u64], at: u64) -> u64 {
    (words.len() as u64 * 64).saturating_sub(at)
}

/// `dst[dst_at..] |= src[src_at..]`, `n` bits.
pub fn or(dst: &mut [u64], dst_at: u64, src: &[u64], src_at: u64, n: u64) {
    for_words(dst, dst_at, src, src_at, n, |word, _, bits| *word |= bits);
}

/// `dst[dst_at..] &= !src[src_at..]`, `n` bits.
pub fn and_not(dst: &mut [u64], dst_at: u64, src: &[u64], src_at: u64, n: u64) {
    for_words(dst, dst_at, src, src_at, n, |word, _, bits| *word &= !bits);
}

/// `dst[dst_at..] = src[src_at..]`, `n` bits.
pub fn copy(dst: &mut [u64], dst_at: u64, src: &[u64], src_at: u64, n: u64) {
    for_words(dst, dst_at, src, src_at, n, |word, mask, bits| *word = *word & !mask | bits);
}

/// (word, mask) for each word of the `n` bits from bit `at` on.
fn masks(words: &[u64], at: u64, n: u64) -> impl Iterator<Item = (usize, u64)> + use<> {
    let mut at = at;
    let mut left = n.min(left(words, at));
    std::iter::from_fn(move || {
        let step = (64 - at % 64).min(left);
        let mask = (step > 0).then(|| (!0 >> (64 - step)) << (at % 64))?;
        let word = (at / 64) as usize;
        at += step;
        left -= step;
        Some((word, mask))
    })
}

/// Sets `n` bits from bit `at` on.
pub fn set(words: &mut [u64], at: u64, n: u64) {
    masks(words, at, n).for_each(|(word, mask)| words[word] |= mask);
}

/// Clears `n` bits from bit `at` on.
pub fn clear(words: &mut [u64], at: u64, n: u64) {
    masks(words, at, n).for_each(|(word, mask)| words[word] &= !mask);
}

/// The first bit that is set of the `n` bits from bit `at` on. Runs of zeroes are
/// skipped at the speed of memory.
#[must_use]
pub fn first(words: &[u64], at: u64, n: u64) -> Option<u64> {
    /// Words that are looked at together.
    const STRIDE: usize = 16;
    let end = at.saturating_add(n.min(left(words, at)));
    let found = |word: usize, bits: u64| {
        let bit = word as u64 * 64 + u64::from(bits.trailing_zeros());
        (bits != 0 && bit < end).then_some(bit)
    };
    if at >= end {
        return None;
    }
    let mut word = (at / 64) as usize;
    if let Some(bit) = found(word, words[word] & !0 << (at % 64)) {
        return Some(bit);
    }
    word += 1;
    let words = &words[..end.div_ceil(64) as usize];
    while let Some(stride) = words.get(word..word + STRIDE) {
        if stride.iter().fold(0, |all, bits| all | bits) != 0 {
            break;
        }
        word += STRIDE;
    }
    (word..words.len()).find_map(|word| found(word, words[word]))
}

/// Whether any of the `n` bits from bit `at` on is set.
#[must_use]
pub fn any(words: &[u64], at: u64, n: u64) -> bool {
    masks(words, at, n).any(|(word, mask)| words[word] & mask != 0)
}
