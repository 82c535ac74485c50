//! Code of the guides that does more than compile.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kvm_memslots::backend::Yes;
use kvm_memslots::{Access, Backing, Limits, RegionSpec, at};

include!("guide/together.rs");

#[test]
fn the_guide_has_just_this_code() {
    let guide = include_str!("../../docs/guide/adopting-rust.md");
    assert!(guide.contains(include_str!("guide/together.rs")));
}

/// A callback that maps a page.
fn map_page(vm: &Vm, n: u64) {
    // SAFETY: that backend maps nothing.
    let memory = unsafe { Backing::borrowed(0x7000_0000, 0x1000, Access::ReadWrite) };
    record(vm, |changes| changes.map(RegionSpec::ram(at(n * 0x1000, 0x1000), memory))).unwrap();
}

#[test]
fn a_set_that_panics_is_closed_and_forgotten() {
    let yes = Arc::new(Yes::new(Limits::x86()));
    let vm = Vm::builder().open_on(yes.clone(), yes).unwrap();
    let panicking = || {
        together(&vm, || {
            map_page(&vm, 1);
            together(&vm, || panic!("on purpose")).unwrap()
        })
    };
    assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
    assert!(SET.with_borrow(|(depth, changes)| *depth == 0 && changes.is_empty()));
    assert_eq!(vm.regions().len(), 0);
    let mapped = together(&vm, || {
        (2..4).for_each(|n| map_page(&vm, n));
        vm.regions().len()
    });
    assert_eq!((mapped.unwrap(), vm.regions().len()), (0, 2));
    map_page(&vm, 4);
    assert_eq!(vm.regions().len(), 3);
}
