//! Address spaces of one VM beside each other, private memory, other crates'
//! memory, and a real VM.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)]

mod common;

use std::os::fd::{AsRawFd, BorrowedFd};

use common::{HVA, PAGE};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use kvm_memslots::backend::{Errno, Model};
use kvm_memslots::{
    AddressSpace, CommitReport, Error, Executor, GuestMemfd, HolePolicy, Kind, Limits, MemFlags,
    Range, RegionSpec, Slot,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A VMM's threads may hand it to each other.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<AddressSpace>();
};

#[test]
fn two_address_spaces_of_one_vm_share_addresses_and_ids() {
    let limits = Limits { address_spaces: 2, ..Limits::x86() };
    let model = Model::new(limits).shared();
    let mut spaces = [0, 1].map(|as_id| {
        let builder = AddressSpace::builder().address_space(as_id);
        builder.open_on(Box::new(model.clone())).unwrap()
    });
    for (n, space) in (0..).zip(&mut spaces) {
        let mut tx = space.begin();
        // SAFETY: the model maps nothing.
        unsafe { tx.map(RegionSpec::ram(0, 4 * PAGE, HVA + n * 4 * PAGE)) }.unwrap();
        tx.commit().unwrap();
    }
    for (as_id, space) in (0..).zip(&spaces) {
        let real: Vec<Slot> = model.lock().slots(as_id).collect();
        assert_eq!(Vec::from_iter(space.slots()), real);
        assert_eq!(real[0].mapping.hva, HVA + u64::from(as_id) * 4 * PAGE);
        assert_eq!(real[0].id, 0);
    }
}

#[test]
fn private_memory_merges_only_where_its_offsets_carry_on() {
    let limits = Limits { guest_memfd: true, ..Limits::x86() };
    let mut model = Model::new(limits);
    model.add_guest_memfd(7, 1 << 20);
    model.add_guest_memfd(8, 1 << 20);
    let model = model.shared();
    let mut space = AddressSpace::builder().open_on(Box::new(model.clone())).unwrap();
    let spec = |n: u64, fd, offset| {
        RegionSpec::ram(n * PAGE, PAGE, HVA + n * PAGE).guest_memfd(fd, offset * PAGE)
    };
    let mut tx = space.begin();
    // SAFETY: the model maps nothing.
    let ids = unsafe {
        [spec(0, 7, 0), spec(1, 7, 1), spec(2, 7, 9), spec(3, 8, 10), spec(4, 8, 11)]
            .map(|spec| tx.map(spec).unwrap())
    };
    let report = tx.commit().unwrap();
    assert_eq!((report.ioctls, report.regions_merged), (3, 2));
    let sizes: Vec<u64> = space.slots().map(|slot| slot.mapping.range.size / PAGE).collect();
    assert_eq!(sizes, [2, 1, 2]);
    let region = space.region(ids[4]).unwrap();
    assert_eq!(region.guest_memfd, Some(GuestMemfd { fd: 8, offset: 11 * PAGE }));
    assert!(region.flags.contains(MemFlags::GUEST_MEMFD));
}

#[test]
fn kinds_and_regions_that_change_alone_keep_to_themselves() {
    let model = Model::new(Limits::x86()).shared();
    let mut space = AddressSpace::builder().open_on(Box::new(model.clone())).unwrap();
    let at = |n: u64| (n * PAGE, PAGE, HVA + n * PAGE);
    let new = |make: fn(u64, u64, u64) -> RegionSpec, n| {
        let (gpa, size, hva) = at(n);
        make(gpa, size, hva)
    };
    let mut tx = space.begin();
    // SAFETY: the model maps nothing.
    let framebuffer = unsafe {
        tx.map(new(RegionSpec::ram, 0)).unwrap();
        tx.map(new(RegionSpec::ram, 1)).unwrap();
        let framebuffer = tx.map(new(RegionSpec::device, 2).alone().label("fb")).unwrap();
        tx.map(new(RegionSpec::device, 3)).unwrap();
        tx.map(new(RegionSpec::device, 4)).unwrap();
        tx.map(new(RegionSpec::rom, 5)).unwrap();
        framebuffer
    };
    tx.commit().unwrap();
    let slots: Vec<_> =
        space.slots().map(|s| (s.mapping.range.size / PAGE, s.mapping.kind)).collect();
    assert_eq!(slots, [(2, Kind::Ram), (1, Kind::Device), (2, Kind::Device), (1, Kind::Rom)]);
    let mut tx = space.begin();
    tx.set_flags(framebuffer, MemFlags::LOG_DIRTY_PAGES).unwrap();
    let report = tx.commit().unwrap();
    assert_eq!((report.ioctls, report.grace_periods), (1, 1));
}

/// A VM, or none, said aloud.
fn vm(test: &str) -> Option<VmFd> {
    match Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(vm) => Some(vm),
        Err(error) => {
            eprintln!("SKIPPED {test}: no usable /dev/kvm ({error})");
            None
        }
    }
}

fn fd(vm: &VmFd) -> BorrowedFd<'_> {
    // SAFETY: `vm` keeps the descriptor open while it is borrowed.
    unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) }
}

/// How many calls a commit takes that takes `single` where the kernel has no
/// batch ioctl.
fn ioctls(report: &CommitReport, single: u64) -> u64 {
    if report.executor == Executor::Batch { 1 } else { single }
}

#[test]
fn beside_the_slots_of_a_vm_fd() {
    let Some(vm) = vm("beside_the_slots_of_a_vm_fd") else { return };
    let own = |slot: u32, page: u64| kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: page * PAGE,
        memory_size: PAGE,
        userspace_addr: HVA,
    };
    // SAFETY: nothing of this process is at HVA, and no vCPU runs.
    unsafe { vm.set_user_memory_region(own(0, 100)) }.unwrap();

    let builder = AddressSpace::builder().reserve_slots(0..=0).holes(HolePolicy::NoVcpuRuns);
    let mut space = builder.open(fd(&vm)).unwrap();
    let mut tx = space.begin();
    // SAFETY: as above.
    let ids: Vec<_> = (0..8)
        .map(|n| unsafe { tx.map(RegionSpec::ram(n * PAGE, PAGE, HVA + n * PAGE)) }.unwrap())
        .collect();
    let report: CommitReport = tx.commit().unwrap();
    assert_eq!((report.ioctls, report.backend, report.regions_merged), (1, "kvm", 7));
    assert!(space.slots().all(|slot| slot.id != 0));

    // Over a slot that the space does not know.
    let mut tx = space.begin();
    tx.unmap(ids[3]).unwrap();
    // SAFETY: as above.
    unsafe { tx.map(RegionSpec::ram(100 * PAGE, PAGE, HVA).label("taken")) }.unwrap();
    let error = tx.commit().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Refused { errno: Errno::EEXIST, .. }), "{text}");
    assert!(text.contains("\"taken\""), "{text}");
    // It was undone: the slot in the middle can be replaced still.
    assert_eq!(space.region(ids[3]).unwrap().range, Range::new(3 * PAGE, PAGE));
    let mut tx = space.begin();
    tx.unmap(ids[3]).unwrap();
    let report = tx.commit().unwrap();
    assert_eq!((report.ioctls, report.slots), (ioctls(&report, 3), 2));

    let mut tx = space.begin();
    tx.set_flags(ids[5], MemFlags::LOG_DIRTY_PAGES).unwrap();
    tx.commit().unwrap();
    assert_eq!(space.dirty_log(ids[5]).unwrap().count(), 0);
    assert_eq!(space.close().unwrap().slots, 0);
}

#[test]
fn vm_memory_is_mapped_safely_and_kept_alive() {
    let Some(vm) = vm("vm_memory_is_mapped_safely_and_kept_alive") else { return };
    let ranges = [(GuestAddress(0), 0xa_0000), (GuestAddress(0x10_0000), 0x20_0000)];
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    let mut space = AddressSpace::open(fd(&vm)).unwrap();
    let mut tx = space.begin();
    let ids = kvm_memslots::map_guest_memory(&mut tx, &memory).unwrap();
    let report = tx.commit().unwrap();
    assert_eq!(report.ioctls, ioctls(&report, 2));
    let hva = space.region(ids[1]).unwrap().hva as *const u64;
    memory.write_obj(0x1234_u64, GuestAddress(0x10_0000)).unwrap();
    drop(memory);
    // SAFETY: the space keeps the mapping alive, and nobody writes to it.
    assert_eq!(unsafe { hva.read_volatile() }, 0x1234);
}
