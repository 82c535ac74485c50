//! Logged regions of a size that no bitmap should be made for at once.

use std::sync::Arc;

use kvm_memslots::backend::model::memory::ModelConfig;
use kvm_memslots::backend::{MemoryModel, Yes};
use kvm_memslots::deferred::{Deferral, Policy};
use kvm_memslots::{Changes, ErrorKind, Limits, Vm};

use crate::memory::{Memory, PAGE, device, map_now, open, open_with, ram, unmap_now};

const GIB: u64 = 1 << 30;

#[test]
fn the_last_page_of_a_large_region_is_the_one_that_is_dirty() {
    let memory = Memory::new(1);
    let (vm, _) = open(u64::MAX);
    // Its last page is the one that is there.
    let size = 64 * GIB;
    let spec = device(0, size, memory.hva() + PAGE - size);
    let id = map_now(&vm, spec.deferrable().log_dirty());
    let exits = vm.deferred(0).unwrap();
    let served = exits.write(size - 8, &[1; 8], |_, _| {});
    assert_eq!((served.bytes, memory.read(PAGE - 8, 8)), (8, vec![1; 8]));
    let last = size / PAGE - 1;
    assert!(vm.dirty_log(id).unwrap().iter().eq([last]));
    assert!(vm.dirty_log(id).unwrap().iter().next().is_none());
    let _ = exits.write(size - 4, &[2; 4], |_, _| {});
    let report = unmap_now(&vm, id);
    let [(of, pages)] = &report.last_dirty[..] else { panic!("{:?}", report.last_dirty) };
    assert!(of.id == id && pages.iter().eq([last]));
}

#[test]
fn what_is_deferrable_and_logged_is_no_larger_than_a_slot() {
    let limits = Limits::x86().with_slot_pages(1 << 20);
    let policy = Policy::Fixed { exits: u64::MAX };
    let (vm, _) = open_with(Deferral::default().policy(policy), limits);
    let slot = limits.slot_bytes();
    let (hva, size) = (0x7000_0000_0000, slot + PAGE);
    let too_large = |c: Changes| {
        let error = vm.apply(c).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NotDeferrable { .. }), "{error}");
    };
    let mut c = Changes::new();
    c.map(device(0, size, hva).deferrable().log_dirty());
    too_large(c);
    assert_eq!(vm.deferred_count(), 0);
    // Each is fine by itself; so is the largest slot.
    let large = map_now(&vm, device(0, size, hva).deferrable());
    let mut c = Changes::new();
    c.set_log_dirty(large, true);
    too_large(c);
    assert!(vm.region(large).unwrap().flags.is_empty());
    unmap_now(&vm, large);
    let mut c = Changes::new();
    let grows = c.map(device(0, size, hva).deferrable());
    c.resize(grows, slot);
    c.set_log_dirty(grows, true);
    vm.apply(c).unwrap();
    unmap_now(&vm, grows);
}

/// No machine has a bitmap of 128 TiB.
#[test]
fn a_log_that_no_memory_is_large_enough_for_is_an_error() {
    let limits = Limits::x86().with_slot_pages(1 << 51);
    // KVM would not take the addresses.
    let config = ModelConfig::new(limits).guest_physical_bits(64).hva_end(u64::MAX);
    let memory = Arc::new(MemoryModel::with_config(config));
    let vm = Vm::builder().open_on(memory, Arc::new(Yes::new(limits))).unwrap();
    let (hva, size) = (PAGE, 1 << 62);
    let id = map_now(&vm, ram(0, size, hva).log_dirty());
    let error = vm.dirty_log(id).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoMemory(bytes) if *bytes == 1 << 47));
    assert_eq!(error.region().map(|region| region.id), Some(id));
    vm.dirty_logs().unwrap_err();
    let mut c = Changes::new();
    c.move_to(id, size);
    let error = vm.apply(c).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoMemory { .. }), "{error}");
    let region = vm.region(id).unwrap();
    assert!(region.range.gpa() == 0 && !region.flags.is_empty() && vm.slots(0).len() == 1);
    // Unmapping takes no log: beside one that has its last pages.
    let small = map_now(&vm, ram(size, 64 * PAGE, hva).log_dirty());
    let mut c = Changes::new();
    c.unmap(id);
    c.unmap(small);
    let report = vm.apply(c).unwrap();
    let [(of, _)] = &report.last_dirty[..] else { panic!("{:?}", report.last_dirty) };
    assert_eq!((of.id, &report.last_dirty_lost[..]), (small, &[region][..]));
    assert!(vm.slots(0).is_empty() && vm.regions().is_empty());
}
