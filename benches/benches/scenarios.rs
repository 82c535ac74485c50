//! Every scenario with every strategy, on KVM where there is one, else on the
//! model: all steps, from a VM in which the setup has been made. `memslots`
//! makes the same comparison with busy vCPUs too.
#![allow(missing_docs)]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kvm_memslots_bench::rig::{Rig, Target, Vcpus};
use kvm_memslots_bench::scenario::Workload;
use kvm_memslots_bench::strategy::Strategy;

fn scenarios(criterion: &mut Criterion) {
    let kvm = Target::Kvm.limits();
    let target = if kvm.is_ok() { Target::Kvm } else { Target::Model };
    let has_batch = target == Target::Model || kvm.is_ok_and(|limits| limits.batch.is_some());
    for workload in Workload::USUAL {
        let scenario = workload.generate(workload.default_regions(true));
        let name = format!("{workload} {}, {target}", scenario.regions);
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).measurement_time(Duration::from_secs(3));
        for strategy in Strategy::USUAL {
            if strategy.needs_batch() && !has_batch {
                continue;
            }
            group.bench_function(BenchmarkId::from_parameter(strategy), |bencher| {
                bencher.iter_custom(|iterations| {
                    let run = |_| {
                        let mut rig =
                            Rig::new(&scenario, strategy, target, Vcpus::NONE).expect("a VM");
                        rig.time(&scenario.steps).expect("all steps").1
                    };
                    (0..iterations).map(run).sum()
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, scenarios);
criterion_main!(benches);
