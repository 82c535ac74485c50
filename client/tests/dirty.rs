//! Merging is invisible in the dirty log, and no dirty page is lost.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::{HVA, PAGE, PAGES, Reference, limits, on_model, step};
use kvm_memslots::backend::model::{Call, DirtyTracking, Fault, ModelConfig, SharedModel};
use kvm_memslots::backend::{Errno, Model};
use kvm_memslots::{
    AddressSpace, Error, Executor, GateError, HolePolicy, MemFlags, RegionId, RegionSpec, VcpuGate,
};
use proptest::prelude::*;

/// A gate that counts.
#[derive(Default)]
struct Gate {
    paused: AtomicU32,
    resumed: AtomicU32,
}

impl VcpuGate for Gate {
    fn pause(&self) -> Result<(), GateError> {
        assert_eq!(self.paused.fetch_add(1, Ordering::SeqCst), self.resumed.load(Ordering::SeqCst));
        Ok(())
    }

    fn resume(&self) {
        assert_eq!(
            self.resumed.fetch_add(1, Ordering::SeqCst) + 1,
            self.paused.load(Ordering::SeqCst)
        );
    }
}

struct Run {
    space: AddressSpace,
    model: SharedModel,
    reference: Reference,
}

impl Run {
    fn new(unmerged: bool, manual: bool, policy: HolePolicy, batch: Option<u32>) -> Self {
        let tracking = if manual {
            DirtyTracking::ManualProtect { initially_set: false }
        } else {
            DirtyTracking::Bitmap
        };
        let limits = kvm_memslots::Limits { batch, ..limits() };
        let model = Model::with_config(ModelConfig::new(limits).dirty_tracking(tracking));
        let builder = AddressSpace::builder().holes(policy).manual_dirty_log(manual);
        let (space, model) = on_model(builder, model);
        Self { space, model, reference: Reference { unmerged, ..Reference::default() } }
    }

    fn transaction(&mut self, steps: &[common::Step]) -> Result<u64, Error> {
        let before = self.reference.clone();
        let mut tx = self.space.begin();
        for step in steps {
            self.reference.apply(&mut tx, step);
        }
        let result = tx.commit().map(|report| report.ioctls);
        if result.is_err() {
            self.reference = before;
        }
        result
    }

    fn write(&self, pages: &[u64]) {
        for page in pages {
            self.model.lock().guest_write(0, page * PAGE, 1);
        }
    }

    /// The dirty pages of region number `n`, from the region's start; clears
    /// every other one of them where that is a step of its own.
    fn log(&mut self, n: usize, manual: bool) -> Option<Vec<u64>> {
        let reg = *self.reference.regions.get(n)?;
        if !reg.flags.contains(MemFlags::LOG_DIRTY_PAGES) {
            let error = self.space.dirty_log(reg.id).unwrap_err();
            assert!(matches!(error, Error::NotLogged { .. }), "{error}");
            return None;
        }
        let dirty = self.space.dirty_log(reg.id).unwrap();
        assert_eq!(dirty.pages(), reg.pages);
        if manual {
            let mut half = kvm_memslots::DirtyBitmap::new(reg.pages);
            dirty.iter().step_by(2).for_each(|page| half.set(page, 1));
            self.space.clear_dirty_log(reg.id, &half).unwrap();
        }
        Some(dirty.iter().collect())
    }
}

/// A round: a transaction, guest writes, reads of some regions' logs.
type Round = (Vec<common::Step>, Vec<u64>, Vec<usize>);

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let writes = prop::collection::vec(0..PAGES, 0..40);
    let reads = prop::collection::vec(0..12_usize, 0..6);
    prop::collection::vec((prop::collection::vec(step(), 0..10), writes, reads), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(250) })]

    #[test]
    fn logs_of_merged_and_unmerged_runs_are_equal(
        rounds in rounds(),
        manual: bool,
        batch in prop::option::of(Just(4096)),
    ) {
        let gate = || HolePolicy::Gate(Arc::new(Gate::default()));
        let mut merged = Run::new(false, manual, gate(), batch);
        let mut unmerged = Run::new(true, manual, gate(), batch);
        for (steps, writes, reads) in rounds {
            merged.transaction(&steps).unwrap();
            unmerged.transaction(&steps).unwrap();
            merged.write(&writes);
            unmerged.write(&writes);
            for n in reads {
                prop_assert_eq!(merged.log(n, manual), unmerged.log(n, manual), "region {}", n);
            }
        }
    }

    /// Whatever fails, and with or without a gate, a page that was written
    /// since its region's log was read is in the log.
    #[test]
    fn no_dirty_page_is_lost(
        rounds in rounds(),
        gate: bool,
        fault in prop::option::of((1..12_u64, any::<bool>())),
    ) {
        let policy = if gate {
            HolePolicy::Gate(Arc::new(Gate::default()))
        } else {
            HolePolicy::NoVcpuRuns
        };
        let mut run = Run::new(false, false, policy, None);
        if let Some((k, stay)) = fault {
            let fault = if stay { Fault::from_nth(k, Errno::ENOMEM) } else { Fault::nth(k, Errno::ENOMEM) };
            run.model.lock().inject(fault.only(Call::SetRegion));
        }
        // Pages written while their region was logged, and not yet reported.
        let mut owed: Vec<(RegionId, u64)> = Vec::new();
        for (steps, writes, reads) in rounds {
            if let Err(Error::Stuck { .. }) = run.transaction(&steps) {
                run.model.lock().clear_faults();
                run.space.begin().commit().unwrap();
            }
            let regions = run.reference.regions.clone();
            let logged = |r: &&common::Reg| r.flags.contains(MemFlags::LOG_DIRTY_PAGES);
            // What was split off, unmapped, or is not logged any more is not owed.
            owed.retain(|(id, page)| {
                regions.iter().filter(logged).any(|r| r.id == *id && *page < r.pages)
            });
            run.write(&writes);
            for r in regions.iter().filter(logged) {
                let inside = writes.iter().filter(|page| (r.page..r.page + r.pages).contains(page));
                owed.extend(inside.map(|page| (r.id, page - r.page)));
            }
            for n in reads {
                let Some(dirty) = run.log(n, false) else { continue };
                let id = run.reference.regions[n].id;
                for (_, page) in owed.iter().filter(|(region, _)| *region == id) {
                    prop_assert!(dirty.contains(page), "page {} of {}", page, id);
                }
                owed.retain(|(region, _)| *region != id);
            }
        }
    }
}

/// Two logged regions in one slot, of which the second is then resized.
fn replace_logged(policy: HolePolicy) -> (Run, RegionId, RegionId) {
    let mut run = Run::new(false, false, policy, None);
    let mut tx = run.space.begin();
    let spec = |n: u64| RegionSpec::ram(n * 10 * PAGE, 10 * PAGE, HVA + n * 10 * PAGE).log_dirty();
    // SAFETY: the model maps nothing.
    let (a, b) = unsafe { (tx.map(spec(0)).unwrap(), tx.map(spec(1)).unwrap()) };
    tx.commit().unwrap();
    assert_eq!(run.space.slot_count(), 1);
    run.write(&[3, 12, 19]);
    (run, a, b)
}

#[test]
fn a_gate_keeps_the_log_exact() {
    let gate = Arc::new(Gate::default());
    let (mut run, a, b) = replace_logged(HolePolicy::Gate(gate.clone()));
    let mut tx = run.space.begin();
    tx.shrink(b, 5 * PAGE).unwrap();
    assert!(tx.commit().unwrap().vcpus_paused);
    assert_eq!(gate.paused.load(Ordering::SeqCst), 1);
    assert_eq!(gate.resumed.load(Ordering::SeqCst), 1);
    assert_eq!(Vec::from_iter(run.space.dirty_log(a).unwrap().iter()), [3]);
    assert_eq!(Vec::from_iter(run.space.dirty_log(b).unwrap().iter()), [2]);
    assert_eq!(run.space.dirty_log(a).unwrap().count(), 0, "read means cleared");
}

#[test]
fn without_a_gate_what_was_replaced_is_all_dirty() {
    let (mut run, a, b) = replace_logged(HolePolicy::NoVcpuRuns);
    let mut tx = run.space.begin();
    tx.shrink(b, 5 * PAGE).unwrap();
    tx.commit().unwrap();
    assert_eq!(run.space.dirty_log(a).unwrap().count(), 10);
    assert_eq!(run.space.dirty_log(b).unwrap().count(), 5);
}

#[test]
fn without_either_nothing_is_replaced() {
    let (mut run, a, b) = replace_logged(HolePolicy::Refuse);
    let before = run.model.lock().counts();
    let mut tx = run.space.begin();
    tx.shrink(b, 5 * PAGE).unwrap();
    let error = tx.commit().unwrap_err();
    assert!(matches!(&error, Error::Hole { range, .. } if range.gpa == 0), "{error}");
    assert_eq!(run.model.lock().counts(), before);
    assert_eq!(run.space.region(b).unwrap().range.size, 10 * PAGE);
    assert_eq!(Vec::from_iter(run.space.dirty_log(a).unwrap().iter()), [3]);
}

#[test]
fn a_batch_needs_no_gate_and_keeps_the_log_exact() {
    let mut run = Run::new(false, false, HolePolicy::Refuse, Some(64));
    assert_eq!(run.space.executor(), Executor::Batch);
    let mut tx = run.space.begin();
    // SAFETY: the model maps nothing.
    let id = unsafe { tx.map(RegionSpec::ram(0, 20 * PAGE, HVA).log_dirty()) }.unwrap();
    tx.commit().unwrap();
    run.write(&[3, 15]);
    let mut tx = run.space.begin();
    let tail = tx.split(id, 10 * PAGE).unwrap();
    tx.set_flags(tail, MemFlags::LOG_DIRTY_PAGES | MemFlags::READONLY).unwrap();
    let report = tx.commit().unwrap();
    assert_eq!((report.ioctls, report.grace_periods), (1, 2));
    assert_eq!(Vec::from_iter(run.space.dirty_log(id).unwrap().iter()), [3]);
    assert_eq!(Vec::from_iter(run.space.dirty_log(tail).unwrap().iter()), [5]);
}

#[test]
fn a_log_that_cannot_be_read_loses_nothing() {
    let mut run = Run::new(false, false, HolePolicy::Refuse, None);
    let mut tx = run.space.begin();
    // SAFETY: the model maps nothing.
    let id = unsafe { tx.map(RegionSpec::ram(0, 10 * PAGE, HVA).log_dirty()) }.unwrap();
    tx.commit().unwrap();
    // A second slot for what is new: two logs to read.
    let mut tx = run.space.begin();
    // SAFETY: the model maps nothing.
    unsafe { tx.resize(id, 20 * PAGE) }.unwrap();
    tx.commit().unwrap();
    assert_eq!(run.space.slot_count(), 2);
    run.write(&[1, 11]);
    run.model.lock().inject(Fault::nth(2, Errno::ENOMEM).only(Call::GetDirtyLog));
    let error = run.space.dirty_log(id).unwrap_err();
    assert!(matches!(error, Error::DirtyLog { errno: Errno::ENOMEM, .. }), "{error}");
    assert_eq!(Vec::from_iter(run.space.dirty_log(id).unwrap().iter()), [1, 11]);

    // EFAULT comes after KVM has cleared its log: all of that slot is dirty.
    run.write(&[1]);
    run.model.lock().inject(Fault::nth(2, Errno::EFAULT).only(Call::GetDirtyLog));
    run.space.dirty_log(id).unwrap_err();
    let dirty = Vec::from_iter(run.space.dirty_log(id).unwrap().iter());
    assert_eq!(dirty, Vec::from_iter(std::iter::once(1).chain(10..20)));
}

#[test]
fn with_manual_protection_a_read_leaves_the_log_until_it_is_cleared() {
    let gate = HolePolicy::Gate(Arc::new(Gate::default()));
    let mut run = Run::new(false, true, gate, None);
    let mut tx = run.space.begin();
    // SAFETY: the model maps nothing.
    let id = unsafe { tx.map(RegionSpec::ram(0, 10 * PAGE, HVA).log_dirty()) }.unwrap();
    tx.commit().unwrap();
    run.write(&[2, 3]);
    // The slot is replaced: what was dirty is only known here from now on.
    let mut tx = run.space.begin();
    tx.shrink(id, 5 * PAGE).unwrap();
    tx.commit().unwrap();
    let dirty = run.space.dirty_log(id).unwrap();
    assert_eq!(Vec::from_iter(dirty.iter()), [2, 3]);
    assert_eq!(run.space.dirty_log(id).unwrap(), dirty);
    let mut cleared = kvm_memslots::DirtyBitmap::new(5);
    cleared.set(2, 1);
    run.space.clear_dirty_log(id, &cleared).unwrap();
    assert_eq!(Vec::from_iter(run.space.dirty_log(id).unwrap().iter()), [3]);
}

#[test]
fn what_was_dirty_before_logging_went_off_is_not_dirty_when_it_comes_on() {
    let (mut run, a, b) = replace_logged(HolePolicy::NoVcpuRuns);
    // Reading the one takes what the other has along, as they share a slot.
    assert_eq!(Vec::from_iter(run.space.dirty_log(a).unwrap().iter()), [3]);
    for flags in [MemFlags::empty(), MemFlags::LOG_DIRTY_PAGES] {
        let mut tx = run.space.begin();
        tx.set_flags(a, flags).unwrap();
        tx.set_flags(b, flags).unwrap();
        tx.commit().unwrap();
    }
    assert_eq!(run.space.dirty_log(b).unwrap().count(), 0);
}

#[test]
fn logging_that_goes_off_and_on_in_one_transaction_stays_as_it_is() {
    let (mut run, a, b) = replace_logged(HolePolicy::Refuse);
    assert_eq!(run.space.dirty_log(a).unwrap().count(), 1);
    let mut tx = run.space.begin();
    tx.set_flags(b, MemFlags::empty()).unwrap();
    tx.set_flags(b, MemFlags::LOG_DIRTY_PAGES).unwrap();
    assert_eq!(tx.commit().unwrap().ioctls, 0);
    assert_eq!(Vec::from_iter(run.space.dirty_log(b).unwrap().iter()), [2, 9]);
}
