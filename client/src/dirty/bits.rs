//! Runs of bits between bitmaps of different alignment. Bit 0 is the lowest of
//! the first word.

/// Calls `f` with (destination word, mask, bits) for `n` bits of `src` from
/// bit `src_at` on, as they come to lie from bit `dst_at` on.
fn for_words(dst_at: u64, src: &[u64], src_at: u64, n: u64, mut f: impl FnMut(usize, u64, u64)) {
    let mut done = 0;
    while done < n {
        let (to, from) = (dst_at + done, src_at + done);
        let step = (64 - to % 64).min(64 - from % 64).min(n - done);
        let mask = !0 >> (64 - step);
        let bits = (src[(from / 64) as usize] >> (from % 64)) & mask;
        f((to / 64) as usize, mask << (to % 64), bits << (to % 64));
        done += step;
    }
}

/// `dst[dst_at..] |= src[src_at..]`, `n` bits.
pub(super) fn or(dst: &mut [u64], dst_at: u64, src: &[u64], src_at: u64, n: u64) {
    for_words(dst_at, src, src_at, n, |word, _, bits| dst[word] |= bits);
}

/// `dst[dst_at..] &= !src[src_at..]`, `n` bits.
pub(super) fn and_not(dst: &mut [u64], dst_at: u64, src: &[u64], src_at: u64, n: u64) {
    for_words(dst_at, src, src_at, n, |word, _, bits| dst[word] &= !bits);
}

/// Calls `f` with (word, mask) for the `n` bits from bit `at` on.
fn for_masks(at: u64, n: u64, mut f: impl FnMut(usize, u64)) {
    let mut done = 0;
    while done < n {
        let to = at + done;
        let step = (64 - to % 64).min(n - done);
        f((to / 64) as usize, (!0 >> (64 - step)) << (to % 64));
        done += step;
    }
}

/// Sets `n` bits from bit `at` on.
pub(super) fn set(dst: &mut [u64], at: u64, n: u64) {
    for_masks(at, n, |word, mask| dst[word] |= mask);
}

/// Clears `n` bits from bit `at` on.
pub(super) fn clear(dst: &mut [u64], at: u64, n: u64) {
    for_masks(at, n, |word, mask| dst[word] &= !mask);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(words: &[u64], bit: u64) -> bool {
        words[(bit / 64) as usize] >> (bit % 64) & 1 == 1
    }

    proptest! {
        #[test]
        fn same_as_bit_by_bit(
            dst in prop::collection::vec(any::<u64>(), 4),
            src in prop::collection::vec(any::<u64>(), 4),
            dst_at in 0..128_u64,
            src_at in 0..128_u64,
            n in 0..=128_u64,
        ) {
            let mut results = vec![dst.clone(); 4];
            or(&mut results[0], dst_at, &src, src_at, n);
            and_not(&mut results[1], dst_at, &src, src_at, n);
            set(&mut results[2], dst_at, n);
            clear(&mut results[3], dst_at, n);
            for bit in 0..256 {
                let old = get(&dst, bit);
                let inside = (dst_at..dst_at + n).contains(&bit);
                let other = inside && get(&src, bit - dst_at + src_at);
                let expected = [old || other, old && !other, old || inside, old && !inside];
                for (result, expected) in results.iter().zip(expected) {
                    prop_assert_eq!(get(result, bit), expected, "bit {}", bit);
                }
            }
        }
    }
}
