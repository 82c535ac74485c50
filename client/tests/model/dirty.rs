//! Sharing slots is invisible in the dirty log, and costs no dirty page.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::common::{
    self, Gate, PAGE, PAGES, Reference, Step, batched, changes, limits, map_all, on_model, ram,
    step,
};
use kvm_memslots::backend::model::events;
use kvm_memslots::backend::model::memory::{Call, DirtyTracking, Fault, ModelConfig};
use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::device::{Bus, Device, Doorbell};
use kvm_memslots::{
    Changes, DirtyBitmap, Errno, Error, ErrorKind, Executor, HolePolicy, RegionId, RegionSpec, Vm,
    at,
};
use proptest::prelude::*;

struct Run {
    vm: Vm,
    model: MemoryModel,
    reference: Reference,
}

impl Run {
    fn new(unmerged: bool, manual: bool, policy: HolePolicy, batch: Option<u32>) -> Self {
        let tracking = if manual {
            DirtyTracking::ManualProtect { initially_set: false }
        } else {
            DirtyTracking::Bitmap
        };
        let config = ModelConfig::new(batched(limits(), batch)).dirty_tracking(tracking);
        let builder = Vm::builder().holes(policy).manual_dirty_log(manual);
        let (vm, model) = on_model(builder, MemoryModel::with_config(config));
        Self { vm, model, reference: Reference { unmerged, ..Reference::default() } }
    }

    fn apply(&mut self, steps: &[Step]) -> Result<(), Error> {
        let before = self.reference.clone();
        let mut c = Changes::new();
        for step in steps {
            self.reference.take(&self.vm, &mut c, step);
        }
        let result = self.vm.apply(c);
        if result.is_err() {
            self.reference = before;
        }
        result.map(|_| ())
    }

    fn write(&self, pages: &[u64]) {
        for page in pages {
            self.model.guest_write(0, page * PAGE, 1);
        }
    }

    /// The dirty pages of region number `n`, from the region's start; clears
    /// every other one of them where that is a step of its own.
    fn log(&self, n: usize, manual: bool) -> Option<Vec<u64>> {
        let reg = *self.reference.regions.get(n)?;
        if !reg.is_logged() {
            let error = self.vm.dirty_log(reg.id).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::NotLogged), "{error}");
            return None;
        }
        let dirty = self.vm.dirty_log(reg.id).unwrap();
        assert_eq!(dirty.pages(), reg.pages);
        if manual {
            let mut half = DirtyBitmap::new(reg.pages);
            dirty.iter().step_by(2).for_each(|page| half.set(page, 1));
            self.vm.clear_dirty_log(reg.id, 0, &half).unwrap();
        }
        Some(dirty.iter().collect())
    }

    /// The dirty pages of a region.
    fn dirty(&self, id: RegionId) -> Vec<u64> {
        self.vm.dirty_log(id).unwrap().iter().collect()
    }
}

/// A round: a set of changes, guest writes, reads of some regions' logs.
type Round = (Vec<Step>, Vec<u64>, Vec<usize>);

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let writes = prop::collection::vec(0..PAGES, 0..40);
    let reads = prop::collection::vec(0..12_usize, 0..6);
    prop::collection::vec((prop::collection::vec(step(), 0..10), writes, reads), 1..8)
}

fn gate() -> HolePolicy {
    HolePolicy::Gate(Arc::new(Gate::default()))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(250) })]

    #[test]
    fn logs_of_merged_and_unmerged_runs_are_equal(
        rounds in rounds(),
        manual: bool,
        batch in prop::option::of(Just(4096)),
    ) {
        let mut merged = Run::new(false, manual, gate(), batch);
        let mut unmerged = Run::new(true, manual, gate(), batch);
        for (mut steps, writes, reads) in rounds {
            // Memory that moves and is mapped anew in one set may be one move to KVM,
            // which takes its log along: what was dirty is so once more.
            if steps.iter().any(|step| matches!(step, Step::Move(..))) {
                steps.retain(|step| !matches!(step, Step::Remap(_) | Step::Recut(..)));
            }
            merged.apply(&steps).unwrap();
            unmerged.apply(&steps).unwrap();
            merged.write(&writes);
            unmerged.write(&writes);
            for n in reads {
                prop_assert_eq!(merged.log(n, manual), unmerged.log(n, manual), "region {}", n);
            }
        }
    }
}

/// Two logged regions in one slot, and dirty pages in both.
fn shared(policy: HolePolicy) -> (Run, RegionId, RegionId) {
    let run = Run::new(false, false, policy, None);
    let [a, b] = map_all(&run.vm, [0, 10].map(|page| ram(page, 10).permanent().log_dirty()));
    assert_eq!(run.vm.slots(0).len(), 1);
    run.write(&[3, 12, 19]);
    (run, a, b)
}

#[test]
fn a_gate_keeps_the_log_exact() {
    let gate = Arc::new(Gate::default());
    let (run, a, b) = shared(HolePolicy::Gate(gate.clone()));
    let report = run.vm.apply(changes(|c| c.resize(b, 5 * PAGE))).unwrap();
    assert!(report.vcpus_paused);
    assert_eq!(gate.pauses(), 1);
    assert_eq!((run.dirty(a), run.dirty(b)), (vec![3], vec![2]));
    assert_eq!(run.dirty(a), [0_u64; 0], "read means cleared");
}

#[test]
fn where_no_vcpu_runs_the_log_is_exact() {
    let (run, a, b) = shared(HolePolicy::NoVcpuRuns);
    run.vm.apply(changes(|c| c.resize(b, 5 * PAGE))).unwrap();
    assert_eq!((run.dirty(a), run.dirty(b)), (vec![3], vec![2]));
}

/// What is replaced while vCPUs run is all dirty: who knows what they wrote.
#[test]
fn what_was_replaced_while_vcpus_run_is_all_dirty() {
    let run = Run::new(false, false, HolePolicy::Named, None);
    let [a, b] = map_all(&run.vm, [0, 10].map(|page| ram(page, 10).log_dirty()));
    assert_eq!(run.vm.slots(0).len(), 2);
    run.write(&[3, 12, 19]);
    run.vm.apply(changes(|c| c.resize(b, 5 * PAGE))).unwrap();
    assert_eq!((run.dirty(a), run.dirty(b)), (vec![3], Vec::from_iter(0..5)));
}

#[test]
fn what_may_not_be_replaced_is_not_and_keeps_its_log() {
    for policy in [HolePolicy::Refuse, HolePolicy::Named] {
        let (run, a, b) = shared(policy);
        let before = run.model.counts();
        let error = run.vm.apply(changes(|c| c.resize(b, 5 * PAGE))).unwrap_err();
        let ErrorKind::Hole { range, .. } = error.kind() else { panic!("{error}") };
        assert_eq!(range.gpa(), 0);
        assert_eq!(run.model.counts(), before);
        assert_eq!(run.vm.region(b).unwrap().range.size(), 10 * PAGE);
        assert_eq!((run.dirty(a), run.dirty(b)), (vec![3], vec![2, 9]));
    }
}

#[test]
fn a_batch_needs_no_gate_and_keeps_the_log_exact() {
    let run = Run::new(false, false, HolePolicy::Refuse, Some(64));
    assert_eq!(run.vm.executor(), Executor::Batch);
    let [id] = map_all(&run.vm, [ram(0, 20).log_dirty()]);
    run.write(&[3, 15]);
    let mut c = Changes::new();
    let tail = c.split(id, 10 * PAGE);
    c.set_read_only(tail, true);
    let report = run.vm.apply(c).unwrap();
    assert_eq!((report.ioctls, report.grace_periods), (1, 2));
    assert_eq!((run.dirty(id), run.dirty(tail)), (vec![3], vec![5]));
}

type Read = fn(&Vm, RegionId) -> Result<(), Error>;

#[test]
fn a_log_that_cannot_be_read_loses_nothing() {
    let run = Run::new(false, false, HolePolicy::Refuse, None);
    let grown = RegionId::new();
    let mut c = Changes::new();
    let memory = common::memory(common::HVA, 20 * PAGE);
    c.map_as(grown, RegionSpec::ram(0..10 * PAGE, memory).log_dirty());
    run.vm.apply(c).unwrap();
    // A second slot for what is new: two logs to read.
    run.vm.apply(changes(|c| c.resize(grown, 20 * PAGE))).unwrap();
    assert_eq!(run.vm.slots(0).len(), 2);
    let reads: [Read; 3] = [
        |vm, id| vm.dirty_log(id).map(drop),
        |vm, _| vm.dirty_logs().map(drop),
        |vm, _| vm.for_each_dirty_log(|_, _| {}),
    ];
    for read in reads {
        run.write(&[1, 11]);
        run.model.inject(Fault::nth(2, Errno::ENOMEM).only(Call::GetDirtyLog));
        let error = read(&run.vm, grown).unwrap_err();
        let lost = matches!(error.kind(), ErrorKind::DirtyLog { .. });
        assert!(lost && error.errno() == Errno::ENOMEM, "{error}");
        assert_eq!(run.dirty(grown), [1, 11]);

        // EFAULT comes after KVM has cleared its log: all of that slot is dirty.
        run.write(&[1]);
        run.model.inject(Fault::nth(2, Errno::EFAULT).only(Call::GetDirtyLog));
        read(&run.vm, grown).unwrap_err();
        let all_of_it = Vec::from_iter(std::iter::once(1).chain(10..20));
        assert_eq!(run.dirty(grown), all_of_it);

        // So it is where a backend panics, which may have cleared it.
        for panicking in [Fault::panicking, Fault::panicking_after] {
            run.write(&[1]);
            let second = Fault::nth(2, Errno::ENOMEM).only(Call::GetDirtyLog);
            run.model.inject(panicking(second));
            catch_unwind(AssertUnwindSafe(|| read(&run.vm, grown))).unwrap_err();
            assert_eq!(run.dirty(grown), all_of_it);
        }
    }
}

#[test]
fn with_manual_protection_a_read_leaves_the_log_until_it_is_cleared() {
    let run = Run::new(false, true, gate(), None);
    let [id] = map_all(&run.vm, [ram(0, 10).log_dirty()]);
    run.write(&[2, 3]);
    // The slot is replaced: what was dirty is only known here from now on.
    run.vm.apply(changes(|c| c.resize(id, 5 * PAGE))).unwrap();
    assert_eq!(run.dirty(id), [2, 3]);
    assert_eq!(run.dirty(id), [2, 3]);
    let mut cleared = DirtyBitmap::new(5);
    cleared.set(2, 1);
    run.vm.clear_dirty_log(id, 0, &cleared).unwrap();
    assert_eq!(run.dirty(id), [3]);
}

#[test]
fn what_was_dirty_before_logging_went_off_is_not_dirty_when_it_comes_on() {
    let (run, a, b) = shared(HolePolicy::NoVcpuRuns);
    // Reading the one takes what the other has along, as they share a slot.
    assert_eq!(run.dirty(a), [3]);
    for on in [false, true] {
        let c = changes(|c| [a, b].into_iter().for_each(|id| c.set_log_dirty(id, on)));
        run.vm.apply(c).unwrap();
    }
    assert_eq!(run.dirty(b), [0_u64; 0]);
}

#[test]
fn logging_that_goes_off_and_on_in_one_set_stays_as_it_is() {
    let (run, a, b) = shared(HolePolicy::Refuse);
    assert_eq!(run.dirty(a), [3]);
    let c = changes(|c| [false, true].into_iter().for_each(|on| c.set_log_dirty(b, on)));
    assert_eq!(run.vm.apply(c).unwrap().ioctls, 0);
    assert_eq!(run.dirty(b), [2, 9]);
}

/// A loop moves a logged slot by one call, and KVM keeps the log.
#[test]
fn a_move_costs_what_kvms_does_and_keeps_the_log_exact() {
    for policy in common::policies() {
        let run = Run::new(false, false, policy, None);
        let [a] = map_all(&run.vm, [ram(0, 4).log_dirty()]);
        run.write(&[1]);
        let report = run.vm.apply(changes(|c| c.move_to(a, 20 * PAGE))).unwrap();
        assert_eq!((report.ioctls, report.grace_periods, report.vcpus_paused), (1, 2, false));
        run.write(&[23]);
        assert_eq!(run.dirty(a), [1, 3]);
    }
}

/// A region whose memory is mapped elsewhere in the same set keeps its dirty pages
/// where it stays: its slot must not move there with the log.
#[test]
fn what_is_mapped_twice_keeps_the_log_of_each() {
    for batch in [None, Some(64)] {
        for policy in &common::policies()[1..] {
            let run = Run::new(false, false, policy.clone(), batch);
            let memory = || common::memory(common::HVA, 8 * PAGE);
            let spec = |gpa: u64| RegionSpec::ram(at(gpa, 4 * PAGE), memory()).log_dirty();
            let [a, b] = map_all(&run.vm, [spec(40 * PAGE).alone(), spec(0)]);
            run.write(&[40]);
            // Either grows or shrinks, and needs another slot.
            run.vm
                .apply(changes(|c| {
                    c.move_to(b, 24 * PAGE);
                    c.resize(a, 5 * PAGE);
                }))
                .unwrap();
            assert!(run.dirty(a).contains(&0), "{batch:?} {policy:?}");
            run.dirty(b);
            run.write(&[41, 25]);
            run.vm
                .apply(changes(|c| {
                    c.map(RegionSpec::ram(at(0, 5 * PAGE), memory()).log_dirty());
                    c.resize(a, 2 * PAGE);
                }))
                .unwrap();
            assert!(run.dirty(a).contains(&1) && run.dirty(b).contains(&1));
        }
    }
}

/// A region that moves takes its dirty pages along: which of its pages the guest
/// wrote does not depend on where they are.
#[test]
fn a_region_that_moves_takes_its_dirty_pages_along() {
    for batch in [None, Some(64)] {
        for policy in &common::policies()[1..] {
            let (exact, policy) = (!matches!(policy, HolePolicy::Named), policy.clone());
            let run = Run::new(false, false, policy, batch);
            let [a, b] = map_all(&run.vm, [0, 10].map(|page| ram(page, 4).log_dirty()));
            run.write(&[1, 12]);
            let swap = changes(|c| {
                c.move_to(a, 20 * PAGE);
                c.move_to(b, 0);
            });
            run.vm.apply(swap).unwrap();
            let (a, b) = (run.dirty(a), run.dirty(b));
            if exact {
                assert_eq!((a, b), (vec![1], vec![2]));
            } else {
                assert!(a.contains(&1) && b.contains(&2), "{a:?} {b:?}");
            }
        }
    }
}

/// What was done is undone when something behind it fails: devices, another address
/// space. The log that went with a slot does not come back with it.
#[test]
fn no_page_is_lost_where_something_behind_memory_fails() {
    type Set = fn(&mut Changes, RegionId);
    let sets: [Set; 3] = [
        |c, id| c.resize(id, PAGE),
        |c, id| c.set_log_dirty(id, false),
        |c, id| {
            c.unmap(id);
            c.map(ram(0, 4));
        },
    ];
    for (set, batch, policy) in sets.into_iter().flat_map(|set| {
        let policies = [HolePolicy::Named, HolePolicy::NoVcpuRuns];
        let all =
            move |policy| [None, Some(8)].map(|batch| (set, batch, HolePolicy::clone(&policy)));
        policies.into_iter().flat_map(all)
    }) {
        for device in [false, true] {
            let limits = batched(limits().with_address_spaces(2), batch);
            let (model, events) = (MemoryModel::new(limits), EventModel::new(Irqchip::Split));
            let builder = Vm::builder().holes(policy.clone());
            let vm = builder.open_on(Arc::new(model.clone()), Arc::new(events.clone())).unwrap();
            let [id] = map_all(&vm, [ram(0, 4).log_dirty()]);
            model.guest_write(0, 3 * PAGE, 1);
            let mut c = changes(|c| set(c, id));
            if device {
                let doorbell = Doorbell::at(Bus::Mmio, 0xd000_0000).len(2);
                c.attach(Device::new("net").ioeventfd(doorbell, 5));
                events.inject(events::Fault::every(Errno::ENOSPC));
            } else {
                c.map(ram(1 << 50, 1).address_space(1));
            }
            let error = vm.apply(c).unwrap_err();
            let refused =
                matches!(error.kind(), ErrorKind::EventRefused { .. } | ErrorKind::Refused { .. });
            assert!(refused, "{error}");
            assert!(vm.dirty_log(id).unwrap().is_dirty(3), "{batch:?} {device}");
        }
    }
}
