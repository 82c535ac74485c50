//! What serving an exit from a deferred region takes, beyond the exit.
#![allow(missing_docs)]

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

use criterion::{Criterion, criterion_group, criterion_main};
use kvm_memslots::backend::Model;
use kvm_memslots::deferred::{Costs, Deferral, Policy};
use kvm_memslots::{AddressSpace, Limits, RegionSpec};
use kvm_memslots_bench::host::{HostMemory, Pages, SMALL_PAGE};

/// An address space with `regions` deferrable pages, two apart.
fn space(deferral: Deferral, memory: &HostMemory, regions: u64) -> AddressSpace {
    let model = Box::new(Model::new(Limits::x86()));
    let mut space =
        AddressSpace::builder().deferral(deferral).open_on(model).expect("an address space");
    let mut tx = space.begin();
    for n in 0..regions {
        let (gpa, hva) = (2 * n * SMALL_PAGE, memory.hva() + n * SMALL_PAGE);
        // SAFETY: the memory outlives the address space.
        unsafe { tx.map(RegionSpec::device(gpa, SMALL_PAGE, hva).deferrable()) }.expect("free");
    }
    tx.commit().expect("the model");
    space
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
            let space = space(deferral, &memory, regions);
            let exits = space.deferred();
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
    let space = space(deferral, &memory, 1);
    let (exits, other) = (space.deferred(), space.deferred());
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

criterion_group!(benches, serve, contended);
criterion_main!(benches);
