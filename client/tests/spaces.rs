//! Address spaces of one VM beside each other, private memory, other crates'
//! memory, and a real VM.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, Weak};

use common::{HVA, PAGE, changes, map_all, memory, on_model, ram};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use kvm_memslots::backend::{KvmOptions, MemoryModel};
use kvm_memslots::{
    Access, Backing, Changes, Errno, ErrorKind, Executor, GuestMemfd, HolePolicy, Kind, Limits,
    MemFlags, Range, RegionId, RegionSpec, Report, Vm, at, vm_fd,
};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

/// A VMM's threads share it; a set of changes goes from one to another.
const _: () = {
    const fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Vm>();
    is_send_and_sync::<Changes>();
};

#[test]
fn two_address_spaces_of_one_vm_share_addresses_and_ids() {
    let limits = Limits::x86().with_address_spaces(2);
    let (vm, model) = common::vm(limits);
    let spec = |n: u16| {
        let hva = HVA + u64::from(n) * 4 * PAGE;
        RegionSpec::ram(at(0, 4 * PAGE), memory(hva, 4 * PAGE)).address_space(n)
    };
    let ids = map_all(&vm, [spec(0), spec(1)]);
    for as_id in [0, 1] {
        let real = model.slots(as_id);
        assert_eq!(vm.slots(as_id), real);
        assert_eq!(real[0].mapping.hva(), HVA + u64::from(as_id) * 4 * PAGE);
        assert_eq!(real[0].id, 0);
        let region = vm.region_at(as_id, PAGE).unwrap();
        assert_eq!((region.id, region.as_id), (ids[usize::from(as_id)], as_id));
        assert_eq!(vm.slot_usage(as_id).unwrap().used, 1);
    }
    let error = vm.apply(changes(|c| _ = c.map(spec(2)))).unwrap_err();
    let missing = ErrorKind::NoSuchAddressSpace { asked: 2, available: 2 };
    assert_eq!(format!("{:?}", error.kind()), format!("{missing:?}"));
    // All or nothing, over both.
    let taken = changes(|c| {
        c.unmap(ids[0]);
        c.map(spec(1));
    });
    let error = vm.apply(taken).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Overlap { .. }), "{error}");
    assert_eq!((vm.regions().len(), model.slot_count(0), model.slot_count(1)), (2, 1, 1));
}

#[test]
fn private_memory_shares_no_slot() {
    for limits in [Limits::x86().with_guest_memfd(), Limits::x86().with_guest_memfd().with_batch(9)]
    {
        let model = MemoryModel::new(limits);
        model.add_guest_memfd(7, 1 << 20);
        let (vm, model) = on_model(Vm::builder().holes(HolePolicy::NoVcpuRuns), model);
        let spec = |n: u64| {
            let backing = memory(HVA + n * PAGE, PAGE).with_guest_memfd(7, n * PAGE);
            RegionSpec::ram(at(n * PAGE, PAGE), backing).permanent()
        };
        let ids = map_all(&vm, [0, 1, 2].map(spec));
        assert_eq!(vm.slots(0).len(), 3, "although their offsets carry on");
        let region = vm.region(ids[2]).unwrap();
        assert_eq!(region.guest_memfd, Some(GuestMemfd { fd: 7, offset: 2 * PAGE }));
        assert!(region.flags.contains(MemFlags::GUEST_MEMFD));
        // So none is replaced for another's sake: what is in it would be gone.
        let before = model.slots(0);
        let report = vm.apply(changes(|c| c.unmap(ids[1]))).unwrap();
        assert_eq!((report.ioctls, report.grace_periods), (1, 2));
        assert_eq!(model.slots(0), [before[0], before[2]]);
    }
}

#[test]
fn kinds_and_regions_that_change_alone_keep_to_themselves() {
    for limits in [Limits::x86(), Limits::x86().with_batch(64)] {
        let (vm, _) = common::vm(limits);
        let new = |make: fn(kvm_memslots::Span, Backing) -> RegionSpec, n: u64| {
            make(at(n * PAGE, PAGE), memory(HVA + n * PAGE, PAGE)).permanent()
        };
        let [_, _, framebuffer, ..] = map_all(
            &vm,
            [
                new(RegionSpec::ram, 0),
                new(RegionSpec::ram, 1),
                new(RegionSpec::device, 2).alone().label("fb"),
                new(RegionSpec::device, 3),
                new(RegionSpec::device, 4),
                new(RegionSpec::rom, 5),
            ],
        );
        let of =
            |slot: kvm_memslots::Slot| (slot.mapping.range().size() / PAGE, slot.mapping.kind());
        let slots: Vec<_> = vm.slots(0).into_iter().map(of).collect();
        assert_eq!(slots, [(2, Kind::Ram), (1, Kind::Device), (2, Kind::Device), (1, Kind::Rom)]);
        let report = vm.apply(changes(|c| c.set_log_dirty(framebuffer, true))).unwrap();
        assert_eq!((report.ioctls, report.grace_periods), (1, 1));
    }
}

/// A VM, or none, said aloud.
fn kvm(test: &str) -> Option<VmFd> {
    match Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(vm) => Some(vm),
        Err(error) => {
            eprintln!("SKIPPED {test}: no usable /dev/kvm ({error})");
            None
        }
    }
}

/// How many calls a set takes that takes `single` where the kernel has no batch
/// ioctl.
fn ioctls(report: &Report, single: u64) -> u64 {
    if report.executor == Executor::Batch { 1 } else { single }
}

#[test]
fn beside_the_slots_of_a_vm_fd() {
    let Some(fd) = kvm("beside_the_slots_of_a_vm_fd") else { return };
    let own = |slot: u32, page: u64| kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: page * PAGE,
        memory_size: PAGE,
        userspace_addr: HVA,
    };
    // SAFETY: nothing of this process is at HVA, and no vCPU runs.
    unsafe { fd.set_user_memory_region(own(0, 100)) }.unwrap();

    let builder = Vm::builder().reserve_slots(0, 0..=0).holes(HolePolicy::NoVcpuRuns);
    let vm = builder.open(vm_fd(&fd)).unwrap();
    let backend = kvm_memslots::backend::Kvm::open(vm_fd(&fd), KvmOptions::default()).unwrap();
    if backend.same_vm(vm_fd(&fd)).is_some() {
        let again = Vm::open(vm_fd(&fd)).unwrap_err();
        assert!(matches!(again.kind(), ErrorKind::AlreadyOpen), "{again}");
    } else {
        eprintln!("SKIPPED that it is opened once: this kernel has no kcmp");
    }
    drop(backend);
    // Nothing of this process is at HVA, as above.
    let mut c = Changes::new();
    let ids: Vec<RegionId> = (0..8).map(|n| c.map(ram(n, 1).permanent())).collect();
    let report: Report = vm.apply(c).unwrap();
    assert_eq!((report.ioctls, report.backend, report.regions_merged), (1, "kvm", 7));
    assert!(vm.slots(0).iter().all(|slot| slot.id != 0));

    // Over a slot that the VM does not know.
    let mut c = Changes::new();
    c.unmap(ids[3]);
    c.map(RegionSpec::ram(at(100 * PAGE, PAGE), memory(HVA, PAGE)).label("taken"));
    let error = vm.apply(c).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error.kind(), ErrorKind::Refused { .. }), "{text}");
    assert_eq!((error.errno(), error.change()), (Errno::EEXIST, Some(1)), "{text}");
    assert!(text.contains("\"taken\""), "{text}");
    // It was undone: the slot in the middle can be replaced still.
    assert_eq!(vm.region(ids[3]).unwrap().range, Range::new(3 * PAGE, PAGE).unwrap());
    let report = vm.apply(changes(|c| c.unmap(ids[3]))).unwrap();
    assert_eq!((report.ioctls, report.slots), (ioctls(&report, 3), 2));

    vm.apply(changes(|c| c.set_log_dirty(ids[5], true))).unwrap();
    assert_eq!(vm.dirty_log(ids[5]).unwrap().count(), 0);
    assert_eq!(vm.close().unwrap().slots, 0);
    drop(vm);
    Vm::open(vm_fd(&fd)).unwrap();
}

#[test]
fn vm_memory_is_mapped_safely_and_kept_alive() {
    let Some(fd) = kvm("vm_memory_is_mapped_safely_and_kept_alive") else { return };
    let vm = Vm::open(vm_fd(&fd)).unwrap();
    let regions = [(0, 0xa_0000), (0x10_0000, 0x20_0000)].map(guest_region);
    let ids = map_all(&vm, [0, 1].map(|n| RegionSpec::vm_memory(&regions[n]).unwrap()));
    assert_eq!(vm.slots(0).len(), 2);
    let hva = vm.region(ids[1]).unwrap().hva as *const u64;
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_arc_regions(regions.to_vec()).unwrap();
    memory.write_obj(0x1234_u64, GuestAddress(0x10_0000)).unwrap();
    drop((memory, regions));
    // SAFETY: the VM keeps the mapping alive, and nobody writes to it.
    assert_eq!(unsafe { hva.read_volatile() }, 0x1234);
}

fn guest_region((gpa, size): (u64, usize)) -> Arc<GuestRegionMmap> {
    let mapping = MmapRegion::new(size).unwrap();
    Arc::new(GuestRegionMmap::new(mapping, GuestAddress(gpa)).unwrap())
}

/// Each region of `vm-memory` is held by itself: unplugging one frees it, and no
/// other.
#[test]
fn vm_memory_regions_are_freed_one_by_one() {
    let (vm, _) = common::vm(Limits::x86());
    let regions = [(0, 0x1_0000), (0x1_0000, 0x1_0000), (0x10_0000, 0x2_0000)].map(guest_region);
    let weak: Vec<Weak<MmapRegion>> =
        regions.iter().map(|region| Arc::downgrade(&region.get_mmap())).collect();
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_arc_regions(regions.to_vec()).unwrap();
    let ids = map_all(&vm, [0, 1, 2].map(|n| RegionSpec::vm_memory(&regions[n]).unwrap()));
    drop(regions);
    // The VMM's own table goes on without it.
    let (rest, _) = memory.remove_region(GuestAddress(0x1_0000), 0x1_0000).unwrap();
    drop(memory);
    let alive = || weak.iter().map(|weak| weak.upgrade().is_some()).collect::<Vec<_>>();
    assert_eq!(alive(), [true, true, true], "KVM maps it still");
    vm.apply(changes(|c| c.unmap(ids[1]))).unwrap();
    assert_eq!(alive(), [true, false, true]);
    assert_eq!(rest.num_regions(), 2);
    drop(rest);
    assert_eq!(alive(), [true, false, true]);
    vm.apply(changes(|c| c.resize(ids[2], 0x1_0000))).unwrap();
    assert_eq!(alive(), [true, false, true], "a part of it is mapped");
    drop(vm);
    assert_eq!(alive(), [false, false, false]);
}

/// What VMMs have: a table that does not say in which `Arc` its regions are.
#[test]
fn a_table_of_vm_memory_is_mapped_as_it_is() {
    let (vm, _) = common::vm(Limits::x86());
    let ranges = [(GuestAddress(0), 0x1_0000), (GuestAddress(0x10_0000), 0x2_0000)];
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    let mut c = Changes::new();
    memory.iter().for_each(|region| _ = c.map(RegionSpec::vm_memory(region).unwrap()));
    vm.apply(c).unwrap();
    let mapped = vm.regions();
    for (region, (gpa, size)) in mapped.iter().zip(ranges) {
        assert_eq!((region.range.gpa(), region.range.size()), (gpa.0, size as u64));
        assert_eq!(region.hva, memory.get_host_address(gpa).unwrap() as u64);
    }
    let weak = memory.iter().map(|region| Arc::downgrade(&region.get_mmap()));
    let weak: Vec<Weak<MmapRegion>> = weak.collect();
    drop(memory);
    assert!(weak.iter().all(|weak| weak.upgrade().is_some()), "KVM maps it still");
    vm.close().unwrap();
    assert!(weak.iter().all(|weak| weak.upgrade().is_none()));
}

/// A kind of region that is not `vm-memory`'s own.
struct Other(GuestRegionMmap);

impl vm_memory::GuestMemoryRegionBytes for Other {}

impl GuestMemoryRegion for Other {
    type B = ();

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.0.start_addr()
    }

    fn bitmap(&self) -> vm_memory::bitmap::BS<'_, ()> {}

    fn get_host_address(
        &self,
        addr: vm_memory::MemoryRegionAddress,
    ) -> Result<*mut u8, vm_memory::GuestMemoryError> {
        self.0.get_host_address(addr)
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        self.0.file_offset()
    }
}

#[test]
fn any_kind_of_vm_memory_region() {
    let (vm, _) = common::vm(Limits::x86());
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let mapping = MmapRegion::build(
        Some(FileOffset::new(file, 0x1000)),
        0x2000,
        libc::PROT_READ,
        libc::MAP_PRIVATE,
    );
    let region = GuestRegionMmap::new(mapping.unwrap(), GuestAddress(0)).unwrap();
    let region = Arc::new(Other(region));
    // SAFETY: it is an `MmapRegion`, and nobody refers to it.
    let backing = unsafe { Backing::vm_memory_region(&region) }.unwrap().read_only();
    assert_eq!((backing.len(), backing.access()), (0x2000, Access::Read));
    let [id] = map_all(&vm, [RegionSpec::ram(at(0, 0x2000), backing)]);
    let file = vm.region(id).unwrap().file.unwrap();
    assert_eq!(file.offset, 0x1000);
    assert!(vm.region(id).unwrap().flags.contains(MemFlags::READONLY));
    assert_eq!(Arc::strong_count(&region), 2);
    vm.close().unwrap();
    assert_eq!(Arc::strong_count(&region), 1);
}
