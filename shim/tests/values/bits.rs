//! Runs of bits, against one bit after the other.

use kvm_memslots_shim::bits::{and_not, any, clear, copy, first, or, set};
use proptest::prelude::{ProptestConfig, any as arbitrary, prop, prop_assert_eq, proptest};

fn get(words: &[u64], bit: u64) -> bool {
    words[(bit / 64) as usize] >> (bit % 64) & 1 == 1
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn same_as_bit_by_bit(
        dst in prop::collection::vec(arbitrary::<u64>(), 4),
        src in prop::collection::vec(arbitrary::<u64>(), 4),
        dst_at in 0..128_u64,
        src_at in 0..128_u64,
        n in 0..=128_u64,
    ) {
        let mut results = vec![dst.clone(); 5];
        or(&mut results[0], dst_at, &src, src_at, n);
        and_not(&mut results[1], dst_at, &src, src_at, n);
        set(&mut results[2], dst_at, n);
        clear(&mut results[3], dst_at, n);
        copy(&mut results[4], dst_at, &src, src_at, n);
        let sparse: Vec<u64> = (0..40).map(|k| if k == 37 { src[0] } else { 0 }).collect();
        for (words, at, n) in [(&dst, dst_at, n), (&sparse, dst_at, n * 20)] {
            let bits = words.len() as u64 * 64;
            let expected = (at..(at + n).min(bits)).find(|bit| get(words, *bit));
            prop_assert_eq!(first(words, at, n), expected);
        }
        prop_assert_eq!(any(&dst, dst_at, n), (dst_at..dst_at + n).any(|bit| get(&dst, bit)));
        for bit in 0..256 {
            let old = get(&dst, bit);
            let inside = (dst_at..dst_at + n).contains(&bit);
            let other = inside && get(&src, bit - dst_at + src_at);
            let copied = if inside { other } else { old };
            let expected =
                [old || other, old && !other, old || inside, old && !inside, copied];
            for (result, expected) in results.iter().zip(expected) {
                prop_assert_eq!(get(result, bit), expected, "bit {}", bit);
            }
        }
    }
}

#[test]
fn a_run_ends_where_its_slices_do() {
    let mut words = [0; 2];
    set(&mut words, 120, u64::MAX);
    assert_eq!(words, [0, 0xff << 56]);
    assert!(!any(&words, 128, 1) && !any(&[], 0, 64) && any(&words, 0, u64::MAX));
    clear(&mut words, 124, 64);
    copy(&mut words, 0, &[!0], 60, 64);
    assert_eq!(words, [0xf, 0xf << 56]);
    or(&mut words, u64::MAX, &[!0], 0, 64);
    and_not(&mut words, 0, &[!0], u64::MAX, 64);
    assert_eq!(words, [0xf, 0xf << 56]);
}
