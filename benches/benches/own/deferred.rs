//! What serving an exit from a deferred region takes, beyond the exit.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_memslots::backend::MemoryModel;
use kvm_memslots::deferred::{Costs, Deferral, Policy};
use kvm_memslots::{Access, Backing, Changes, Limits, RegionSpec, Vm, at};
use kvm_memslots_bench::rig::model_vm;
use kvm_memslots_kit::host::{HostMemory, Pages, SMALL_PAGE};

use crate::{compare, each};

/// A VM with `regions` deferrable pages, two apart.
fn vm(deferral: Deferral, memory: &HostMemory, regions: u64) -> Arc<Vm> {
    let model = MemoryModel::new(Limits::x86());
    let vm = model_vm(&model, Vm::builder().deferral(deferral)).expect("a VM");
    let mut changes = Changes::new();
    for n in 0..regions {
        let (gpa, hva) = (2 * n * SMALL_PAGE, memory.hva() + n * SMALL_PAGE);
        // SAFETY: the memory outlives the VM, and is anonymous.
        let page = unsafe { Backing::borrowed(hva, SMALL_PAGE, Access::ReadWrite) };
        // SAFETY: anonymous memory, which no access faults on.
        let page = unsafe { page.never_faults() };
        changes.map(RegionSpec::device(at(gpa, SMALL_PAGE), page).deferrable());
    }
    vm.apply(changes).expect("the model");
    vm
}

fn serve() {
    let never = Policy::Fixed { exits: u64::MAX };
    let told = Costs { exit_ns: 1, ..Costs::UNMEASURED };
    for regions in [1, 64, 4096] {
        let memory = HostMemory::reserve(regions * SMALL_PAGE, Pages::Small).expect("memory");
        let gpa = 2 * (regions / 2) * SMALL_PAGE + 64;
        let mut ways = Vec::new();
        for (name, deferral) in [
            ("costs measured", Deferral::default().policy(never)),
            ("costs told", Deferral::default().policy(never).costs(told)),
        ] {
            let vm = vm(deferral, &memory, regions);
            let exits = vm.deferred(0).expect("address space 0");
            let (vm, reader) = (Arc::clone(&vm), exits.clone());
            ways.push(each(format!("read, {name}"), move || {
                let _vm = &vm;
                _ = reader.read(black_box(gpa), black_box(&mut [0; 8]), |_, _| {});
            }));
            ways.push(each(format!("write, {name}"), move || {
                _ = exits.write(black_box(gpa), black_box(&[1; 8]), |_, _| {});
            }));
        }
        compare(&format!("an exit served, {regions} regions"), ways);
    }
}

/// The same while another vCPU thread does nothing else.
fn contended() {
    let memory = HostMemory::reserve(SMALL_PAGE, Pages::Small).expect("memory");
    let deferral = Deferral::default().policy(Policy::Fixed { exits: u64::MAX });
    let vm = vm(deferral, &memory, 1);
    let exits = vm.deferred(0).expect("address space 0");
    let other = exits.clone();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let other = other;
            while !stop.load(Ordering::Relaxed) {
                let _ = black_box(other.read(512, &mut [0; 8], |_, _| {}));
            }
        });
        let read = || _ = exits.read(black_box(64), black_box(&mut [0; 8]), |_, _| {});
        compare("an exit served, another thread at it", vec![each("read", read)]);
        stop.store(true, Ordering::Relaxed);
    });
}

/// A deferrable page that comes and goes beside others, which costs no call.
fn change() {
    let memory = HostMemory::reserve(SMALL_PAGE, Pages::Small).expect("memory");
    let beside = |regions| {
        let (vm, memory, mut n) = (many(&memory, regions), &memory, 0);
        each(format!("beside {regions}"), move || {
            n = (n + 7919) % regions;
            let mut changes = Changes::new();
            let id = changes.map(page(memory, 2 * n + 1));
            vm.apply(changes).expect("the model");
            let mut changes = Changes::new();
            changes.unmap(id);
            vm.apply(changes).expect("the model");
        })
    };
    let ways = [10, 1_000, 16_000].map(beside).into();
    compare("a deferrable region mapped and unmapped", ways);
}

/// Page `n` of the guest's, the same memory for all.
fn page(memory: &HostMemory, n: u64) -> RegionSpec {
    // SAFETY: the memory outlives the VM, and is anonymous.
    let page = unsafe { Backing::borrowed(memory.hva(), SMALL_PAGE, Access::ReadWrite) };
    RegionSpec::device(at(n * SMALL_PAGE, SMALL_PAGE), page).deferrable()
}

fn many(memory: &HostMemory, regions: u64) -> Arc<Vm> {
    let model = MemoryModel::new(Limits::x86());
    let deferral = Deferral::default().policy(Policy::Fixed { exits: u64::MAX });
    let vm = model_vm(&model, Vm::builder().deferral(deferral)).expect("a VM");
    let mut changes = Changes::new();
    (0..regions).for_each(|n| _ = changes.map(page(memory, 2 * n)));
    vm.apply(changes).expect("the model");
    vm
}

pub(crate) fn all() {
    serve();
    contended();
    change();
}
