//! All that a set of changes can do, at once, on a VM of two address spaces or of few
//! slots, where any call may fail or panic, and so may an observer. Afterwards all is
//! as the set says, or as it was. No dirty page is lost.
//!
//! `MEMSLOTS_EVERYTHING_SEEDS=0..100000` runs more.
//! What things cost is said, not measured: a seed ends the same in each run.

mod checked;
mod chosen;
mod expected;
mod guest;
mod world;

use std::ops::AddAssign;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use kvm_memslots::{Changes, ErrorKind, Preview, Report, Vm};

use self::expected::Expected;
use self::world::{World, may_be_refused, unless_refused};
use crate::common::numbers::{Numbers, seeds};

const STEPS: u64 = 40;

/// What is said of a run that fails.
struct Told {
    seed: u64,
    steps: Vec<String>,
}

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.steps.len().saturating_sub(30);
            eprintln!("seed {}, the last of it: {:#?}", self.seed, &self.steps[from..]);
        }
    }
}

/// How many sets ended how.
#[derive(Debug, Default)]
struct Ends {
    applied: u64,
    refused: u64,
    stuck: u64,
    panicked: u64,
}

impl AddAssign for Ends {
    fn add_assign(&mut self, other: Self) {
        self.applied += other.applied;
        self.refused += other.refused;
        self.stuck += other.stuck;
        self.panicked += other.panicked;
    }
}

fn run(seed: u64) -> Ends {
    let mut n = Numbers::new(seed);
    let world = World::new(&mut n);
    let mut told = Told { seed, steps: vec![format!("{world:?}")] };
    let (mut now, mut ends) = (Expected::default(), Ends::default());
    for step in 0..STEPS {
        let (mut next, mut c) = (now.clone(), Changes::new());
        let most = if n.chance(3) { 12 } else { 3 };
        for _ in 0..=n.below(most) {
            let what = chosen::change(&mut n, &world, &mut c, &mut next);
            told.steps.extend(what.map(|what| format!("{step}: {what}")));
        }
        let before = world.seen();
        let preview = world.vm.preview(&c);
        assert_eq!(world.seen(), before, "a preview changes nothing");
        let fault = n.chance(3).then(|| world.inject(&mut n));
        told.steps.extend(fault.iter().flat_map(|(faults, _)| faults.clone()));
        let done = catch_unwind(AssertUnwindSafe(|| world.vm.apply(c)));
        world.clear_faults();
        told.steps.push(format!("{step} ends: {done:?}"));
        match done {
            Ok(Ok(report)) => {
                ends.applied += 1;
                if fault.is_none() {
                    as_foreseen(&preview.unwrap(), &report);
                }
                guest::check_last(&report, &next.gone);
                now = next;
            }
            Ok(Err(error)) if matches!(error.kind(), ErrorKind::Stuck { .. }) => {
                ends.stuck += 1;
                world.repair();
            }
            Ok(Err(error)) => {
                ends.refused += 1;
                assert_eq!(world.seen(), before, "refused, and changed: {error}");
                if fault.is_none() {
                    assert_eq!(preview.unwrap_err().to_string(), error.to_string());
                    assert!(may_be_refused(&error), "{error}");
                }
            }
            Err(panic) => {
                ends.panicked += 1;
                if !fault.is_some_and(|(_, panics)| panics) {
                    resume_unwind(panic);
                }
                world.repair();
                // Either; the report with the last dirty pages went with the panic.
                if checked::found(&world) == next.wanted() {
                    now = next;
                }
            }
        }
        now.gone.clear();
        if n.chance(6) {
            let _ = world.may_fail(&mut n, |vm| unless_refused(vm.promote()));
            world.repair();
        }
        checked::check(&world, &now);
        guest::writes(&mut n, &world, &mut now);
        guest::reads(&mut n, &world, &mut now);
        checked::check(&world, &now);
    }
    if world.may_fail(&mut n, Vm::close).is_none() {
        world.vm.close().unwrap();
    }
    checked::check(&world, &Expected::default());
    ends
}

fn as_foreseen(preview: &Preview, report: &Report) {
    assert_eq!(
        (preview.ioctls, preview.grace_periods, preview.events, preview.slots),
        (report.ioctls, report.grace_periods, report.events, report.slots)
    );
    assert!(report.last_dirty_lost.is_empty());
}

#[test]
fn any_set_of_any_changes_is_made_as_a_whole_or_not_at_all() {
    let mut ends = Ends::default();
    let seeds = seeds("MEMSLOTS_EVERYTHING_SEEDS", 50);
    let many = seeds.end - seeds.start >= 50;
    seeds.for_each(|seed| ends += run(seed));
    // The program reaches what it is for.
    let all = [ends.applied / 10, ends.refused, ends.stuck, ends.panicked];
    assert!(!many || all.iter().all(|count| *count > 5), "{ends:?}");
}
