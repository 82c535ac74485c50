//! What serving an exit from a deferred region takes, beyond the exit.
#![allow(missing_docs)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use criterion::{Criterion, criterion_group, criterion_main};
use kvm_memslots::backend::MemoryModel;
use kvm_memslots::deferred::{Costs, Deferral, Policy};
use kvm_memslots::{Access, Backing, Changes, Limits, RegionSpec, Vm, at};
use kvm_memslots_bench::rig::model_vm;
use kvm_memslots_kit::host::{HostMemory, Pages, SMALL_PAGE};

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

fn serve(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("an exit served");
    let never = Policy::Fixed { exits: u64::MAX };
    let told = Costs { exit_ns: 1, ..Costs::UNMEASURED };
    for (name, deferral) in [
        ("costs measured", Deferral::default().policy(never)),
        ("costs told", Deferral::default().policy(never).costs(told)),
    ] {
        for regions in [1, 64, 4096] {
            let memory = HostMemory::reserve(regions * SMALL_PAGE, Pages::Small).expect("memory");
            let vm = vm(deferral, &memory, regions);
            let exits = vm.deferred(0).expect("address space 0");
            let gpa = 2 * (regions / 2) * SMALL_PAGE + 64;
            group.bench_function(format!("read, {name}, {regions} regions"), |bencher| {
                let mut data = [0; 8];
                bencher.iter(|| exits.read(black_box(gpa), black_box(&mut data), |_, _| {}));
            });
            group.bench_function(format!("write, {name}, {regions} regions"), |bencher| {
                bencher.iter(|| exits.write(black_box(gpa), black_box(&[1; 8]), |_, _| {}));
            });
        }
    }
    group.finish();
}

/// The same while another vCPU thread does nothing else.
fn contended(criterion: &mut Criterion) {
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
        criterion.bench_function("an exit served/read, another thread at it", |bencher| {
            let mut data = [0; 8];
            bencher.iter(|| exits.read(black_box(64), black_box(&mut data), |_, _| {}));
        });
        stop.store(true, Ordering::Relaxed);
    });
}

/// A deferrable page that comes and goes beside others, which costs no call.
fn change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a deferrable region mapped and unmapped");
    for regions in [10, 1_000, 16_000] {
        let memory = HostMemory::reserve(SMALL_PAGE, Pages::Small).expect("memory");
        let vm = many(&memory, regions);
        group.bench_function(format!("beside {regions}"), |bencher| {
            let mut n = 0;
            bencher.iter(|| {
                n = (n + 7919) % regions;
                let mut changes = Changes::new();
                let id = changes.map(page(&memory, 2 * n + 1));
                vm.apply(changes).expect("the model");
                let mut changes = Changes::new();
                changes.unmap(id);
                vm.apply(changes).expect("the model");
            });
        });
    }
    group.finish();
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

criterion_group!(benches, serve, contended, change);
criterion_main!(benches);
