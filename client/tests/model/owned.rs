//! Memory that regions own is held for as long as KVM maps it, and no longer.

use std::sync::Arc;

use crate::common::{HVA, PAGE, Paper, changes, map_all, on_model, ram};
use kvm_memslots::backend::MemoryModel;
use kvm_memslots::backend::model::memory::{Call, Fault};
use kvm_memslots::{Backing, Changes, Errno, ErrorKind, HolePolicy, Limits, RegionSpec, Vm, at};

/// A VM with a region that nobody owns, and memory of which parts can be mapped.
fn fixture() -> (Vm, MemoryModel, Arc<Paper>) {
    let builder = Vm::builder().holes(HolePolicy::NoVcpuRuns);
    let (vm, model) = on_model(builder, MemoryModel::new(Limits::x86()));
    map_all(&vm, [ram(16, 16)]);
    (vm, model, Arc::new(Paper(HVA, 4 * PAGE)))
}

/// `pages` pages of `memory` at page `page`, from page `from` of it on.
fn part(memory: &Arc<Paper>, page: u64, pages: u64, from: u64) -> RegionSpec {
    let backing = Backing::owned(memory.clone(), from * PAGE);
    RegionSpec::ram(at(page * PAGE, pages * PAGE), backing)
}

#[test]
fn only_what_there_is_can_be_mapped() {
    let (vm, model, memory) = fixture();
    let counts = model.counts();
    for spec in [
        part(&memory, 2, 3, 2),
        part(&memory, 4, 1, 4),
        part(&memory, 0, 1, 5),
        part(&memory, 0, 1, u64::MAX / PAGE),
    ] {
        let error = vm.apply(changes(|c| _ = c.map(spec))).unwrap_err();
        let refused =
            matches!(error.kind(), ErrorKind::OutsideBacking { .. } | ErrorKind::Unaligned { .. });
        assert!(refused && error.errno() == Errno::EINVAL, "{error}");
    }
    assert_eq!(model.counts(), counts);
    let [owned] = map_all(&vm, [part(&memory, 1, 2, 1)]);
    let error = vm.apply(changes(|c| c.resize(owned, 4 * PAGE))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OutsideBacking { len: 0x3000, .. }), "{error}");
    assert!(error.to_string().contains("size 0x4000"), "{error}");
    // It grows again to where it was: it is held all along.
    for pages in [1, 3] {
        vm.apply(changes(|c| c.resize(owned, pages * PAGE))).unwrap();
    }
}

#[test]
fn it_is_held_while_mapped_wherever_the_region_went() {
    let (vm, model, memory) = fixture();
    let mut c = Changes::new();
    let owned = c.map(part(&memory, 1, 2, 0));
    vm.apply(c).unwrap();
    assert!(Arc::strong_count(&memory) > 1);
    let mut c = Changes::new();
    let tail = c.split(owned, PAGE);
    c.move_to(tail, 100 * PAGE);
    vm.apply(c).unwrap();
    vm.apply(changes(|c| c.unmap(owned))).unwrap();
    assert!(Arc::strong_count(&memory) > 1);
    model.inject(Fault::every(Errno::ENOMEM).only(Call::SetRegion));
    vm.apply(changes(|c| c.unmap(tail))).unwrap_err();
    assert!(Arc::strong_count(&memory) > 1, "still mapped");
    drop(vm);
    assert!(Arc::strong_count(&memory) > 1, "leaked: the slot may be live");
}

#[test]
fn it_is_let_go_with_the_change_that_unmaps_it() {
    let (vm, model, memory) = fixture();
    let other = Arc::new(Paper(HVA + 0x10_0000, PAGE));
    let [id] = map_all(&vm, [part(&memory, 0, 1, 0)]);
    // Other memory behind the same region.
    vm.apply(changes(|c| c.replace(id, Backing::owned(other.clone(), 0)))).unwrap();
    assert_eq!((Arc::strong_count(&memory), Arc::strong_count(&other)), (1, 2));
    assert_eq!(model.slots(0)[0].mapping.hva(), other.0);
    // A set that is refused holds nothing.
    let mut c = changes(|c| _ = c.map(part(&memory, 4, 1, 0)));
    c.unmap(kvm_memslots::RegionId::new());
    vm.apply(c).unwrap_err();
    assert_eq!(Arc::strong_count(&memory), 1);
    vm.close().unwrap();
    assert_eq!(Arc::strong_count(&other), 1);
}

#[test]
fn memory_of_a_set_that_got_stuck_is_kept_until_it_is_repaired() {
    let (vm, model, memory) = fixture();
    let before = (vm.regions(), model.slots(0));
    let mut c = Changes::new();
    c.map(part(&memory, 0, 1, 0));
    c.map(part(&memory, 2, 1, 0));
    model.inject(Fault::from_nth(2, Errno::ENOMEM).only(Call::SetRegion));
    let error = vm.apply(c).unwrap_err();
    let stuck = matches!(error.kind(), ErrorKind::Stuck { live, .. } if live.len() == 1);
    assert!(stuck && error.errno() == Errno::ENOMEM, "{error}");
    assert!(Arc::strong_count(&memory) > 1, "a slot over it is live");
    model.clear_faults();
    vm.apply(Changes::new()).unwrap();
    assert_eq!(Arc::strong_count(&memory), 1);
    assert_eq!((vm.regions(), model.slots(0)), before);
}

#[test]
fn dropping_a_vm_unmaps_what_it_owns() {
    let (vm, model, memory) = fixture();
    map_all(&vm, [part(&memory, 1, 2, 0)]);
    assert_eq!(model.slot_count(0), 2);
    drop(vm);
    assert_eq!(model.slot_count(0), 1, "the caller answers for the other one");
    assert_eq!(Arc::strong_count(&memory), 1);
}
