//! Pages of a guest, against a set of them.

use std::collections::BTreeSet;

use kvm_memslots_shim::Pages;
use proptest::prelude::*;

/// Pages that are kept together.
const CHUNK: u64 = 512 * 64;

#[derive(Debug, Clone)]
enum Step {
    Set(u64, u64),
    Or(u64, u64, u64),
    OrPages(u64, u64, u64),
    AndNot(u64, u64, u64),
    Clear(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let run = || (0..CHUNK * 3, 0..CHUNK * 2);
    prop_oneof![
        run().prop_map(|(gfn, n)| Step::Set(gfn, n)),
        (run(), any::<u64>()).prop_map(|((gfn, n), pattern)| Step::Or(gfn, n, pattern)),
        (run(), any::<u64>()).prop_map(|((gfn, n), pattern)| Step::AndNot(gfn, n, pattern)),
        (run(), 0..CHUNK).prop_map(|((gfn, n), from)| Step::OrPages(gfn, n, from)),
        run().prop_map(|(gfn, n)| Step::Clear(gfn, n)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]
    #[test]
    fn same_as_a_set(steps in prop::collection::vec(step(), 0..12)) {
        let mut marked = Pages::default();
        let mut set = BTreeSet::new();
        let hit = |pattern: u64, page: u64| pattern >> (page % 64) & 1 == 1;
        let words = |pattern: u64, n: u64| vec![pattern; n.div_ceil(64) as usize];
        for step in steps {
            match step {
                Step::Set(gfn, n) => {
                    marked.set(gfn, n);
                    set.extend(gfn..gfn + n);
                }
                Step::Or(gfn, n, p) => {
                    marked.or(gfn, &words(p, n), 0, n);
                    set.extend((0..n).filter(|page| hit(p, *page)).map(|page| gfn + page));
                }
                Step::OrPages(gfn, n, from) => {
                    let other = marked.clone();
                    marked.or_pages(gfn, &other, from, n);
                    let there = (0..n).filter(|page| set.contains(&(from + page)));
                    let there: Vec<u64> = there.map(|page| gfn + page).collect();
                    set.extend(there);
                }
                Step::AndNot(gfn, n, p) => {
                    marked.and_not(gfn, &words(p, n), n);
                    set.retain(|page| !((gfn..gfn + n).contains(page) && hit(p, page - gfn)));
                }
                Step::Clear(gfn, n) => {
                    marked.clear(gfn, n);
                    set.retain(|page| !(gfn..gfn + n).contains(page));
                }
            }
        }
        let pages = CHUNK * 5;
        let mut got = vec![0; (pages / 64) as usize];
        marked.copy_to(0, &mut got, pages);
        let mut expected = vec![0_u64; (pages / 64) as usize];
        for page in &set {
            expected[(page / 64) as usize] |= 1 << (page % 64);
        }
        prop_assert!(got == expected);
        if set.is_empty() {
            prop_assert!(marked.is_empty(), "empty chunks are kept");
        }
    }
}
