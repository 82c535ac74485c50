//! Whatever is done to logged memory, and whatever fails, a page that the guest wrote
//! is in a log, or in the last pages of a report.
//!
//! `MEMSLOTS_DIRTY_SEED` makes other ones, `MEMSLOTS_DIRTY_CASES` makes it longer.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::common::{self, PAGE, PAGES, Reference, Reg, Step, batched, limits, on_model, step};
use kvm_memslots::backend::MemoryModel;
use kvm_memslots::backend::model::memory::{Call, Fault};
use kvm_memslots::{
    Changes, DirtyBitmap, Errno, ErrorKind, HolePolicy, MemFlags, RegionId, Report, Vm,
};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

/// What the guest wrote of a region since its log was read, by page.
#[derive(Clone)]
struct Log {
    /// What has to be in the log.
    owed: BTreeSet<u64>,
    /// What may be in it; `None` where it shares memory with another region, whose
    /// slot may become its own with a log that was read.
    may: Option<BTreeSet<u64>>,
}

impl Default for Log {
    fn default() -> Self {
        Self { owed: BTreeSet::new(), may: Some(BTreeSet::new()) }
    }
}

impl Log {
    fn write(&mut self, page: u64) {
        self.owed.insert(page);
        self.may.iter_mut().for_each(|may| _ = may.insert(page));
    }

    /// The part from page `at` on, which goes.
    fn split_off(&mut self, at: u64) -> Self {
        let tail = |pages: &mut BTreeSet<u64>| {
            pages.split_off(&at).into_iter().map(|page| page - at).collect()
        };
        Self { owed: tail(&mut self.owed), may: self.may.as_mut().map(tail) }
    }

    fn check(&self, id: RegionId, dirty: &DirtyBitmap, exact: bool) {
        for page in &self.owed {
            assert!(dirty.is_dirty(*page), "page {page} of {id} is lost");
        }
        if let (Some(may), true) = (&self.may, exact) {
            for page in dirty.iter() {
                assert!(may.contains(&page), "nobody wrote page {page} of {id}");
            }
        }
    }
}

struct World {
    vm: Vm,
    model: MemoryModel,
    reference: Reference,
    logs: HashMap<RegionId, Log>,
    /// Whether no more is reported than was written.
    exact: bool,
    /// Pages that regions lost in the last set and that the guest had written, by their
    /// host addresses.
    cut: HashSet<u64>,
}

fn overlaps(a: &Reg, b: &Reg) -> bool {
    a.hva < b.hva + b.pages * PAGE && b.hva < a.hva + a.pages * PAGE
}

impl World {
    fn apply(&mut self, steps: &[Step]) {
        let (before, logs) = (self.reference.clone(), self.logs.clone());
        let mut c = Changes::new();
        // What goes, and what has memory that it had not.
        let (mut last, mut fresh) = (HashMap::new(), HashSet::new());
        self.cut.clear();
        for step in steps {
            let was = self.reference.clone();
            self.reference.take(&self.vm, &mut c, step);
            self.follow(&was, step, &mut last, &mut fresh);
        }
        match self.vm.apply(c) {
            Ok(report) => {
                self.note_shared(&before, &fresh, &mut last);
                self.check_last(&report, last);
            }
            Err(error) => {
                (self.reference, self.logs) = (before, logs);
                if matches!(error.kind(), ErrorKind::Stuck { .. }) {
                    self.model.clear_faults();
                    self.vm.apply(Changes::new()).unwrap();
                }
            }
        }
    }

    /// What the step means for what is owed.
    fn follow(
        &mut self,
        was: &Reference,
        step: &Step,
        last: &mut HashMap<RegionId, Log>,
        fresh: &mut HashSet<RegionId>,
    ) {
        let (old, new) = (&was.regions, &self.reference.regions);
        let is_split = matches!(step, Step::Split(..));
        let again = step.makes_anew(was);
        let stays = |id| again != Some(id) && old.iter().any(|o| o.id == id);
        let come = || new.iter().filter(|r| !stays(r.id));
        if !is_split {
            fresh.extend(come().map(|r| r.id));
        }
        for before in old {
            let now = new.iter().find(|r| r.id == before.id);
            let Some(now) = now.filter(|r| stays(r.id)) else {
                let log = self.logs.remove(&before.id).unwrap_or_default();
                last.entry(before.id).or_insert(log);
                continue;
            };
            let log = self.logs.entry(now.id).or_default();
            if now.hva != before.hva {
                self.cut.extend(log.owed.iter().map(|page| before.hva + page * PAGE));
            }
            if now.hva != before.hva || !now.is_logged() {
                log.owed.clear();
            }
            if now.hva != before.hva {
                fresh.insert(now.id);
            }
            if now.pages == before.pages {
                continue;
            }
            match come().next().filter(|_| is_split) {
                Some(part) => {
                    let tail = log.split_off(now.pages);
                    self.logs.insert(part.id, tail);
                    if fresh.contains(&now.id) {
                        fresh.insert(part.id);
                    }
                }
                None if now.pages < before.pages => {
                    let cut = log.owed.split_off(&now.pages);
                    self.cut.extend(cut.iter().map(|page| before.hva + page * PAGE));
                }
                None => {}
            }
        }
    }

    /// Which logs may have pages of another region.
    fn note_shared(
        &mut self,
        before: &Reference,
        fresh: &HashSet<RegionId>,
        last: &mut HashMap<RegionId, Log>,
    ) {
        let (old, new) = (&before.regions, &self.reference.regions);
        let beside = |all: &[Reg], r: &Reg| all.iter().any(|o| o.id != r.id && overlaps(r, o));
        let came = |r: &&Reg| fresh.contains(&r.id);
        let was_there = |r: &Reg| old.iter().any(|other| overlaps(r, other));
        for reg in new.iter().filter(|r| beside(new, r) || came(r) && was_there(r)) {
            self.logs.entry(reg.id).or_default().may = None;
        }
        let is_new = |r: &Reg| new.iter().filter(came).any(|other| overlaps(r, other));
        for reg in old.iter().filter(|r| beside(old, r) || is_new(r)) {
            let log = match last.get_mut(&reg.id) {
                Some(log) => log,
                None => self.logs.entry(reg.id).or_default(),
            };
            log.may = None;
        }
    }

    /// The last pages of all that went are in the report.
    fn check_last(&self, report: &Report, mut last: HashMap<RegionId, Log>) {
        let mut reported = HashSet::new();
        for (region, dirty) in &report.last_dirty {
            assert_eq!(dirty.pages() * PAGE, region.range.size());
            reported.extend(dirty.iter().map(|page| region.hva + page * PAGE));
            match last.remove(&region.id) {
                Some(log) => log.check(region.id, dirty, self.exact),
                // It has lost some of its memory.
                None => assert!(self.vm.region(region.id).is_ok(), "{} twice", region.id),
            }
        }
        // What is there again has a log.
        let there = |hva: u64| self.vm.region_at_hva(0, hva).is_some();
        let lost = self.cut.iter().find(|hva| !reported.contains(*hva) && !there(**hva));
        assert_eq!(lost, None, "cut off, and in no report");
        for (id, log) in last {
            assert!(log.owed.is_empty(), "{:?} of {id} are lost", log.owed);
        }
    }

    fn write(&mut self, pages: &[u64]) {
        for page in pages {
            self.model.guest_write(0, page * PAGE, 1);
            let there = |r: &&Reg| (r.page..r.page + r.pages).contains(page);
            let Some(reg) = self.reference.regions.iter().find(there) else { continue };
            if reg.is_logged() && !reg.flags.contains(MemFlags::READONLY) {
                self.logs.entry(reg.id).or_default().write(page - reg.page);
            }
        }
    }

    fn read(&mut self, n: usize) {
        let Some(reg) = self.reference.regions.get(n).filter(|reg| reg.is_logged()) else { return };
        let dirty = self.vm.dirty_log(reg.id).unwrap();
        assert_eq!(dirty.pages(), reg.pages);
        let log = self.logs.insert(reg.id, Log::default()).unwrap_or_default();
        log.check(reg.id, &dirty, self.exact);
    }

    fn read_all(&mut self) {
        let logs = self.vm.dirty_logs().unwrap();
        let mut found: HashMap<_, _> = logs.iter().map(|(id, dirty)| (*id, dirty)).collect();
        assert_eq!(found.len(), logs.len());
        for reg in self.reference.regions.iter().filter(|reg| reg.is_logged()) {
            let log = self.logs.insert(reg.id, Log::default()).unwrap_or_default();
            match found.remove(&reg.id) {
                Some(dirty) => {
                    assert!(dirty.count() > 0, "{} is clean", reg.id);
                    log.check(reg.id, dirty, self.exact);
                }
                None => log.check(reg.id, &DirtyBitmap::new(reg.pages), self.exact),
            }
        }
        assert!(found.is_empty(), "not logged: {:?}", found.keys());
    }
}

/// A round: a set of changes, guest writes, reads of some regions' logs or, where
/// there are none, of all.
type Round = (Vec<Step>, Vec<u64>, Vec<usize>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let logged = |step| match step {
        Step::Map { page, pages, arena, flags, alone, permanent } => {
            let flags = flags | MemFlags::LOG_DIRTY_PAGES;
            Step::Map { page, pages, arena, flags, alone, permanent }
        }
        other => other,
    };
    let any = || 0..64_usize;
    let step = prop_oneof![
        4 => step(),
        8 => step().prop_map(logged),
        2 => any().prop_map(Step::Unmap),
        2 => (any(), 0..8_u64).prop_map(|(n, at)| Step::Split(n, at)),
        2 => (any(), 0..PAGES).prop_map(|(n, page)| Step::Move(n, page)),
        2 => (any(), 0..PAGES).prop_map(|(n, page)| Step::Alias(n, page)),
    ];
    prop::collection::vec(step, 0..10)
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let writes = prop::collection::vec(0..PAGES, 0..40);
    let reads = prop::collection::vec(0..12_usize, 0..4);
    prop::collection::vec((steps(), writes, reads), 1..8)
}

/// The call that fails from then on, or alone.
type Failing = Option<(u64, bool)>;

fn run(rounds: Vec<Round>, policy: usize, batch: bool, failing: Failing) {
    let policy = common::policies()[policy + 1].clone();
    let named = matches!(policy, HolePolicy::Named);
    let model = MemoryModel::new(batched(limits(), batch.then_some(64)));
    let (vm, model) = on_model(Vm::builder().holes(policy), model);
    if let Some((k, stay)) = failing {
        let errno = Errno::ENOMEM;
        let fault = if stay { Fault::from_nth(k, errno) } else { Fault::nth(k, errno) };
        model.inject(fault.only(if batch { Call::SetRegions } else { Call::SetRegion }));
    }
    let (reference, logs) = (Reference::default(), HashMap::new());
    let exact = failing.is_none() && !named;
    let mut world = World { vm, model, reference, logs, exact, cut: HashSet::new() };
    for (mut steps, writes, reads) in rounds {
        for step in &mut steps {
            // A set can't be tried when it is refused for its hole.
            if let Step::Map { permanent, .. } = step {
                *permanent &= !named;
            }
        }
        world.apply(&steps);
        world.write(&writes);
        if reads.is_empty() {
            world.read_all();
        }
        for n in reads {
            world.read(n);
        }
    }
    world.read_all();
    // Nothing is left.
    world.model.clear_faults();
    world.write(&Vec::from_iter((0..PAGES).step_by(3)));
    let all = vec![Step::Unmap(0); world.reference.regions.len()];
    world.apply(&all);
    assert!(world.reference.regions.is_empty() && world.vm.slots(0).is_empty());
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn no_dirty_page_is_lost() {
    let seed = number("MEMSLOTS_DIRTY_SEED").unwrap_or(1);
    println!("MEMSLOTS_DIRTY_SEED={seed}");
    let cases = number("MEMSLOTS_DIRTY_CASES").unwrap_or(100) as u32;
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let failing = prop::option::of((1..12_u64, any::<bool>()));
    let all = (rounds(), 0..3_usize, any::<bool>(), failing);
    let ran =
        TestRunner::new_with_rng(config, rng).run(&all, |(rounds, policy, batch, failing)| {
            run(rounds, policy, batch, failing);
            Ok(())
        });
    ran.unwrap_or_else(|error| panic!("{error}"));
}
