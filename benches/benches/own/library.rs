//! Sets of changes, beside what KVM takes for the same.

use std::sync::Arc;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_memslots::backend::{EventCalls, EventOp, Kvm, KvmOptions, MemoryCalls, Yes};
use kvm_memslots::device::{Device, Msi, Route};
use kvm_memslots::vm_fd;
use kvm_memslots::{Access, Backing, Changes, Limits, RegionId, RegionSpec, Vm, at};
use kvm_memslots_kit::host::{HostMemory, Pages, SMALL_PAGE};
use kvm_memslots_kit::raw::{OnKvm, RawCalls};
use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;

use crate::{Timed, compare, each};

const BLOCK: u64 = 2 << 20;
const BLOCKS: u64 = 4096;

/// A page in guest and host, no neighbour of another one.
fn page(n: u64) -> RegionSpec {
    let hva = 0x7000_0000_0000 + 2 * n * SMALL_PAGE;
    // SAFETY: there is no guest.
    let memory = unsafe { Backing::borrowed(hva, SMALL_PAGE, Access::ReadWrite) };
    RegionSpec::ram(at(2 * n * SMALL_PAGE, SMALL_PAGE), memory)
}

fn filled(regions: u64) -> (Vm, Vec<RegionId>) {
    let yes = Arc::new(Yes::new(Limits::x86()));
    let vm = Vm::builder().open_on(yes.clone(), yes).expect("it says yes");
    let mut changes = Changes::new();
    let ids = (0..regions).map(|n| changes.map(page(n))).collect();
    vm.apply(changes).expect("they fit");
    (vm, ids)
}

/// A page mapped and unmapped: two sets of one change, and two ioctls.
fn one_change() {
    let own = |regions| {
        let (vm, _) = filled(regions);
        let mut n = 0;
        each(format!("own, beside {regions} regions"), move || {
            n = (n + 7919) % 64;
            let mut changes = Changes::new();
            let id = changes.map(page(regions + 1 + n));
            vm.apply(changes).expect("it fits");
            let mut changes = Changes::new();
            changes.unmap(id);
            vm.apply(changes).expect("it is there");
        })
    };
    let mut ways: Vec<Timed<'_>> = [3, 1_000, 32_000].map(own).into();
    match kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(fd) => {
            let memory = HostMemory::reserve(SMALL_PAGE, Pages::Small).expect("memory");
            let raw = OnKvm::new(&fd).expect("a VM");
            let mut entry =
                kvm_userspace_memory_region2 { userspace_addr: memory.hva(), ..Default::default() };
            ways.push(each("KVM's, idle VM", move || {
                // It goes with this way, and so does the VM.
                let _memory = &memory;
                for size in [SMALL_PAGE, 0] {
                    entry.memory_size = size;
                    // SAFETY: the memory outlives the VM's use of it.
                    unsafe { raw.set_region(&entry) }.expect("KVM takes it");
                }
            }));
        }
        Err(error) => eprintln!("SKIPPED KVM's share: {error}"),
    }
    compare("map and unmap one page", ways);
}

/// One page goes and another one comes, in a set, with nearly all slots in use.
fn nearly_full() {
    let own = |regions| {
        let (vm, mut ids) = filled(regions);
        let mut at = regions;
        each(format!("own, {regions} slots in use"), move || {
            let victim = (at * 7919 % regions) as usize;
            let mut changes = Changes::new();
            changes.unmap(ids[victim]);
            at = regions + (at + 1 - regions) % 1_000_000;
            ids[victim] = changes.map(page(at));
            vm.apply(changes).expect("it fits");
        })
    };
    compare("unmap a page and map another one", [1_000, 32_763].map(own).into());
}

const VECTORS: u32 = 2048;

fn message(data: u32) -> Msi {
    Msi { address: 0xfee0_0000, data, devid: None }
}

/// One vector of many gets another message: one table of routes.
fn one_vector() {
    let yes = Arc::new(Yes::new(Limits::x86()));
    let vm = Vm::builder().open_on(yes.clone(), yes).expect("it says yes");
    let mut changes = Changes::new();
    let nic = (0..VECTORS)
        .fold(Device::new("nic"), |nic, n| nic.vector(n.cast_signed(), Some(message(n))));
    let id = changes.attach(nic);
    vm.apply(changes).expect("they fit");
    let set = |data| {
        let mut changes = Changes::new();
        changes.set_vector(id, 1000, Some(message(data)));
        vm.apply(changes).expect("it fits");
    };
    let mut data = 0;
    let other = each("own", || {
        data += 1;
        set(data);
    });
    // Whatever the vector has: all but the first of these are no change.
    let mut ways = vec![other, each("own, no change", || set(0))];
    let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    cap.args[0] = 24;
    match kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(fd) if fd.enable_cap(&cap).is_ok() => {
            let kvm = Kvm::open(vm_fd(&fd), KvmOptions::default()).expect("a VM");
            let set = EventOp::routes((0..VECTORS).map(|n| Route::msi(24 + n, message(n))));
            let change = move || EventCalls::change(&kvm, &set).expect("KVM takes it");
            ways.push(each("KVM_SET_GSI_ROUTING", change));
        }
        _ => eprintln!("SKIPPED KVM's share: no VM with an interrupt controller"),
    }
    compare(&format!("one vector of {VECTORS} is programmed"), ways);
}

/// Blocks that share a slot, logged: all their logs, and KVM's one.
fn dirty_logs() {
    let fd = match kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(fd) => fd,
        Err(error) => return eprintln!("SKIPPED dirty logs: {error}"),
    };
    let memory = HostMemory::reserve(BLOCKS * BLOCK, Pages::Small).expect("memory");
    let vm = Vm::open(vm_fd(&fd)).expect("a VM");
    let mut changes = Changes::new();
    for n in 0..BLOCKS {
        // SAFETY: the memory outlives the VM's use of it.
        let block =
            unsafe { Backing::borrowed(memory.hva() + n * BLOCK, BLOCK, Access::ReadWrite) };
        changes.map(RegionSpec::ram(at(n * BLOCK, BLOCK), block).permanent().log_dirty());
    }
    vm.apply(changes).expect("they fit");
    let slots = vm.slots(0);
    let [slot] = slots[..] else { panic!("{} slots", slots.len()) };
    let kvm = Kvm::open(vm_fd(&fd), KvmOptions::default()).expect("a VM");
    let ways = vec![
        each("all regions", || vm.for_each_dirty_log(|_, _| ()).expect("logged")),
        each("KVM_GET_DIRTY_LOG", || kvm.dirty_log(0, &slot, &mut |_| ()).expect("logged")),
    ];
    compare(&format!("dirty logs of {BLOCKS} blocks in a slot"), ways);
    vm.close().expect("KVM lets go");
}

pub(crate) fn all() {
    one_change();
    nearly_full();
    one_vector();
    dirty_logs();
}
