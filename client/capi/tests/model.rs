//! The C interface on models that Rust has hold of: what a guest writes, what a
//! kernel of tomorrow has, what panics.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)]

use std::ffi::{CStr, c_void};
use std::mem::zeroed;
use std::ptr::{null, null_mut};
use std::sync::Arc;

use kvm_memslots::backend::model::memory::{DirtyTracking, ModelConfig};
use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel, Yes};
use kvm_memslots::{Builder, Errno, Limits, Observer, Region};
use kvm_memslots_client::*;

/// A structure that is all defaults.
fn init<T>() -> T {
    // SAFETY: the structures of the header are numbers and pointers.
    let mut value: T = unsafe { zeroed() };
    // SAFETY: they begin with their size.
    unsafe { (&raw mut value).cast::<usize>().write(size_of::<T>()) };
    value
}

fn last() -> String {
    // SAFETY: the message lives until the next call on this thread fails.
    unsafe { CStr::from_ptr(kvm_memslots_last_error()) }.to_str().unwrap().to_owned()
}

fn open(builder: Builder, dirty: DirtyTracking) -> (MemoryModel, *mut Handle<Vm>) {
    let memory = MemoryModel::with_config(ModelConfig::new(Limits::x86()).dirty_tracking(dirty));
    let events = EventModel::new(Irqchip::Split);
    let vm = builder.open_on(Arc::new(memory.clone()), Arc::new(events)).unwrap();
    (memory, give(vm))
}

fn map(changes: *mut Handle<CChanges>, gpa: u64, len: u64, flags: u32) -> u64 {
    let backing = CBacking { hva: 0x7f00_0000_0000 + gpa, ..init() };
    let spec = CSpec { gpa, len, flags, backing: &raw const backing, ..init() };
    let mut id = 0;
    // SAFETY: the model touches no memory; everything lives for the call.
    assert_eq!(unsafe { kvm_memslots_map(changes, &raw const spec, &raw mut id) }, 0);
    id
}

/// The dirty pages of each region, in the order in which they came.
type Logs = Vec<(u64, Vec<u64>)>;

unsafe extern "C" fn keep(opaque: *mut c_void, id: u64, words: *const u64, pages: u64) {
    // SAFETY: `opaque` is a `Logs` in these tests.
    let logs = unsafe { &mut *opaque.cast::<Logs>() };
    // SAFETY: as the header says.
    let words = unsafe { std::slice::from_raw_parts(words, pages.div_ceil(64) as usize) };
    let dirty = (0..pages).filter(|page| words[*page as usize / 64] >> (page % 64) & 1 == 1);
    logs.push((id, dirty.collect()));
}

/// The same of a region that is gone.
unsafe extern "C" fn keep_last(
    opaque: *mut c_void,
    region: *const CRegion,
    words: *const u64,
    pages: u64,
) {
    // SAFETY: as the header says.
    let CRegion { id, len, flags, .. } = unsafe { *region };
    assert_eq!((len, flags & KVM_MEMSLOTS_LOG_DIRTY), (pages * 4096, KVM_MEMSLOTS_LOG_DIRTY));
    // SAFETY: as the caller says.
    unsafe { keep(opaque, id, words, pages) }
}

#[test]
fn what_the_guest_writes_is_reported_by_region() {
    let (memory, vm) = open(Vm::builder(), DirtyTracking::Bitmap);
    let changes = kvm_memslots_changes_new();
    // Both in one slot.
    let low = map(changes, 0, 100 * 4096, KVM_MEMSLOTS_PERMANENT | KVM_MEMSLOTS_LOG_DIRTY);
    let high =
        map(changes, 100 * 4096, 100 * 4096, KVM_MEMSLOTS_PERMANENT | KVM_MEMSLOTS_LOG_DIRTY);
    // SAFETY: the handles are good, and what is pointed to lives for the call.
    assert_eq!(unsafe { kvm_memslots_apply(vm, changes, null_mut()) }, 0);
    assert_eq!(memory.slot_count(0), 1);
    let dirty = |page: u64| _ = memory.guest_write(0, page * 4096, 8);

    [3, 70, 101, 199].into_iter().for_each(dirty);
    let mut logs = Logs::new();
    // SAFETY: as above.
    let ret = unsafe { kvm_memslots_dirty_logs(vm, Some(keep), (&raw mut logs).cast()) };
    assert_eq!((ret, logs), (0, vec![(low, vec![3, 70]), (high, vec![1, 99])]));

    // Regions without dirty pages are left out, and so are other address spaces.
    dirty(150);
    let of = |as_id| {
        let mut logs = Logs::new();
        let opaque = (&raw mut logs).cast();
        // SAFETY: as above.
        let ret = unsafe { kvm_memslots_dirty_logs_in(vm, as_id, Some(keep), opaque) };
        (ret, logs)
    };
    assert_eq!(of(1), (-Errno::EINVAL.raw(), vec![]));
    assert_eq!(of(0), (0, vec![(high, vec![50])]));

    [64, 65, 100].into_iter().for_each(dirty);
    let mut words = [0; 2];
    // SAFETY: as above.
    let of = unsafe { kvm_memslots_dirty_log_of(vm, low, 65, 35, words.as_mut_ptr(), 2) };
    assert_eq!((of, words), (0, [1, 0]));
    // SAFETY: as above.
    let all = unsafe { kvm_memslots_dirty_log(vm, low, words.as_mut_ptr(), 2) };
    assert_eq!((all, words), (0, [0, 1]));

    // What goes has its last pages with the report.
    let changes = kvm_memslots_changes_new();
    let mut logs = Logs::new();
    let opaque = (&raw mut logs).cast();
    let mut report = CReport { last_dirty: Some(keep_last), opaque, ..init() };
    // SAFETY: as above.
    assert_eq!(unsafe { kvm_memslots_unmap(changes, low) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { kvm_memslots_unmap(changes, high) }, 0);
    [7, 109].into_iter().for_each(dirty);
    // SAFETY: as above.
    assert_eq!(unsafe { kvm_memslots_apply(vm, changes, &raw mut report) }, 0);
    assert_eq!(logs, [(low, vec![7]), (high, vec![0, 9])]);
    // SAFETY: as above.
    assert_eq!(unsafe { kvm_memslots_close(vm, null_mut()) }, 0);
}

/// No machine has a bitmap of 128 TiB.
#[test]
fn a_log_that_is_too_large_is_an_error() {
    // KVM, and the model, would not take the addresses.
    let yes = Arc::new(Yes::new(Limits::x86().with_slot_pages(1 << 51)));
    let vm = give(Vm::builder().open_on(yes.clone(), yes).unwrap());
    let changes = kvm_memslots_changes_new();
    let id = map(changes, 0, 1 << 62, KVM_MEMSLOTS_LOG_DIRTY);
    // SAFETY: the handles are good, and what is pointed to lives for the calls.
    unsafe {
        assert_eq!(kvm_memslots_apply(vm, changes, null_mut()), 0);
        // Its pages would be looked at before it moves.
        let changes = kvm_memslots_changes_new();
        assert_eq!(kvm_memslots_move_to(changes, id, 1 << 62), 0);
        assert_eq!(kvm_memslots_apply(vm, changes, null_mut()), -Errno::ENOMEM.raw());
        assert!(last().contains("parts of it (kvm_memslots_dirty_log_of())"), "{}", last());
        let mut error: CError = init();
        assert_eq!(kvm_memslots_last_error_info(&raw mut error), 0);
        assert_eq!((error.region, error.flags), (id, 0));
        // What is unmapped goes all the same.
        assert_eq!(kvm_memslots_close(vm, null_mut()), 0);
    }
}

#[test]
fn a_manual_log_stays_until_it_is_cleared() {
    let options = COptions { flags: 1, ..init() };
    let mut vm = null_mut();
    // SAFETY: what is pointed to lives for the call.
    assert_eq!(unsafe { kvm_memslots_open_model(&raw const options, null(), &raw mut vm) }, 0);
    let changes = kvm_memslots_changes_new();
    let id = map(changes, 0, 4096, KVM_MEMSLOTS_LOG_DIRTY);
    // SAFETY: as above, and the handles are good.
    unsafe {
        // A model that is not manual itself would refuse this.
        assert_eq!(kvm_memslots_apply(vm, changes, null_mut()), 0);
        assert_eq!(kvm_memslots_clear_dirty_log(vm, id, 0, 1, [1].as_ptr(), 1), 0, "{}", last());
        assert_eq!(kvm_memslots_close(vm, null_mut()), 0);
    }

    let manual = DirtyTracking::ManualProtect { initially_set: false };
    let (memory, vm) = open(Vm::builder().manual_dirty_log(true), manual);
    let changes = kvm_memslots_changes_new();
    let id = map(changes, 0, 100 * 4096, KVM_MEMSLOTS_LOG_DIRTY);
    // SAFETY: the handles are good, and what is pointed to lives for the call.
    assert_eq!(unsafe { kvm_memslots_apply(vm, changes, null_mut()) }, 0);
    let read = || {
        let mut words = [0; 2];
        // SAFETY: as above.
        let ret = unsafe { kvm_memslots_dirty_log(vm, id, words.as_mut_ptr(), 2) };
        assert_eq!(ret, 0);
        words
    };
    for page in [1, 65, 66] {
        memory.guest_write(0, page * 4096, 8);
    }
    assert_eq!(read(), [2, 6]);
    assert_eq!(read(), [2, 6]);
    // Page 65, and bits beyond what is asked for.
    let clear = [!0 << 1];
    // SAFETY: as above.
    let ret = unsafe { kvm_memslots_clear_dirty_log(vm, id, 64, 2, clear.as_ptr(), 1) };
    assert_eq!((ret, read()), (0, [2, 4]));
    // SAFETY: as above.
    assert_eq!(unsafe { kvm_memslots_close(vm, null_mut()) }, 0);
}

#[test]
fn a_model_has_what_is_asked_for() {
    let asked = CLimits { batch: 64, slots: 100, address_spaces: 2, flags: 0b101, ..init() };
    let options = COptions { executor: 1, ..init() };
    let mut vm = null_mut();
    // SAFETY: what is pointed to lives for the calls, here and below.
    unsafe {
        let open = |asked: &CLimits, vm: &mut *mut Handle<Vm>| {
            kvm_memslots_open_model(&raw const options, asked, vm)
        };
        assert_eq!(open(&init(), &mut vm), -Errno::EOPNOTSUPP.raw());
        assert!(last().contains("KVM_MEMSLOTS_EXECUTOR_AUTO"), "{}", last());
        assert_eq!(open(&CLimits { page_size: 5, ..asked }, &mut vm), -Errno::EINVAL.raw());
        assert_eq!(open(&CLimits { flags: 1 << 9, ..asked }, &mut vm), -Errno::EINVAL.raw());
        assert_eq!(open(&asked, &mut vm), 0);
        let mut limits: CLimits = init();
        assert_eq!(kvm_memslots_limits(vm, &raw mut limits), 0);
        assert_eq!((limits.batch, limits.slots, limits.address_spaces), (64, 100, 2));
        assert_eq!((limits.page_size, limits.flags), (4096, 0b101));

        // Two address spaces and a trap, in one set.
        let changes = kvm_memslots_changes_new();
        let trapped = map(changes, 0, 4096, 1 << 15);
        let backing = CBacking { hva: 0x7f00_0000_0000, ..init() };
        let spec = CSpec { as_id: 1, len: 4096, backing: &raw const backing, ..init() };
        assert_eq!(kvm_memslots_map(changes, &raw const spec, null_mut()), 0);
        assert_eq!(kvm_memslots_set_trap(changes, trapped, 0), 0);
        assert_eq!(kvm_memslots_set_trap(changes, trapped, 5), 0);
        assert_eq!(kvm_memslots_apply(vm, changes, null_mut()), 0);
        let mut region: CRegion = init();
        assert_eq!(kvm_memslots_region(vm, trapped, &raw mut region), 0);
        assert_eq!(region.flags, 1 << 15 | 1 << 16);
        assert_eq!(kvm_memslots_region_at(vm, 1, 0, &raw mut region), 0);
        assert_eq!(region.as_id, 1);
        assert_eq!(kvm_memslots_close(vm, null_mut()), 0);
    }
}

struct Panics;

impl Observer for Panics {
    fn unmapping(&self, _: &Region) {}

    fn mapped(&self, _: &Region) {
        panic!("on purpose");
    }
}

#[test]
fn no_panic_leaves_the_library_and_the_vm_goes_on() {
    let (memory, vm) = open(Vm::builder().observer(Arc::new(Panics)), DirtyTracking::Bitmap);
    let changes = kvm_memslots_changes_new();
    let id = map(changes, 0, 4096, 0);
    // SAFETY: the handles are good, and what is pointed to lives for the calls.
    unsafe {
        assert_eq!(kvm_memslots_apply(vm, changes, null_mut()), -Errno::ENOTRECOVERABLE.raw());
        assert_eq!(last(), "please report this: on purpose");
        assert_eq!(memory.slot_count(0), 1);
        let mut region: CRegion = init();
        assert_eq!(kvm_memslots_region(vm, id, &raw mut region), 0);
        assert_eq!(kvm_memslots_close(vm, null_mut()), 0);
    }
    assert_eq!(memory.slot_count(0), 0);
}
