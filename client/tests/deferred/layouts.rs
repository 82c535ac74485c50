//! Random sets of changes, promotions and accesses: a guest finds the memory that
//! the regions say, with a slot or without, and its writes are in the log.

use std::collections::{BTreeMap, BTreeSet};

use kvm_memslots::backend::MemoryModel;
use kvm_memslots::backend::model::memory::GuestAccess;
use kvm_memslots::deferred::Deferred;
use kvm_memslots::{Changes, MemFlags, RegionId, Vm};
use proptest::prelude::*;

use crate::memory::{Memory, PAGE, open, ram};

const PAGES: u64 = 24;

#[derive(Debug, Clone)]
enum Step {
    Map { page: u64, pages: u64, host: u64, deferrable: bool, flags: MemFlags },
    Unmap(usize),
    Split(usize),
    Log(usize, bool),
    Commit,
    Abandon,
    Promote,
    Write { at: u64, data: Vec<u8> },
    Dirty(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![
        3 => Just(MemFlags::empty()),
        3 => Just(MemFlags::LOG_DIRTY_PAGES),
        1 => Just(MemFlags::READONLY),
    ];
    let map = (0..PAGES, 1..5_u64, 0..PAGES, prop::bool::weighted(0.7), flags).prop_map(
        |(page, pages, host, deferrable, flags)| Step::Map { page, pages, host, deferrable, flags },
    );
    let which = || 0..16_usize;
    let data = prop::collection::vec(any::<u8>(), 1..16);
    prop_oneof![
        4 => map,
        2 => which().prop_map(Step::Unmap),
        1 => which().prop_map(Step::Split),
        1 => (which(), any::<bool>()).prop_map(|(n, on)| Step::Log(n, on)),
        3 => Just(Step::Commit),
        1 => Just(Step::Abandon),
        1 => Just(Step::Promote),
        8 => (0..PAGES, -8..8_i64, data)
            .prop_map(|(page, off, data)| Step::Write {
                at: (page * PAGE).saturating_add_signed(off),
                data,
            }),
        2 => which().prop_map(Step::Dirty),
    ]
}

#[derive(Debug, Clone, Copy)]
struct Reg {
    id: RegionId,
    page: u64,
    pages: u64,
    host: u64,
    flags: MemFlags,
}

/// Regions as a list, and what was written to logged pages since their log was
/// read.
#[derive(Debug, Clone, Default)]
struct Reference {
    regions: Vec<Reg>,
    written: BTreeSet<u64>,
}

impl Reference {
    fn at(&self, page: u64) -> Option<(&Reg, u64)> {
        let reg = self.regions.iter().find(|r| (r.page..r.page + r.pages).contains(&page))?;
        Some((reg, reg.host + (page - reg.page)))
    }

    fn is_logged(&self, page: u64) -> bool {
        self.at(page).is_some_and(|(reg, _)| reg.flags.contains(MemFlags::LOG_DIRTY_PAGES))
    }
}

struct World {
    // Before the memory that it maps.
    vm: Vm,
    model: MemoryModel,
    exits: Deferred,
    memory: Memory,
    now: Reference,
    /// With the steps that are not committed.
    next: Reference,
    pending: Vec<Step>,
}

impl World {
    fn new() -> Self {
        let (vm, model) = open(3);
        let exits = vm.deferred(0).unwrap();
        let memory = Memory::new(2 * PAGES);
        let (now, next) = Default::default();
        Self { vm, model, exits, memory, now, next, pending: Vec::new() }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Map { .. } | Step::Unmap(_) | Step::Split(_) | Step::Log(..) => {
                self.pending.push(step.clone());
            }
            Step::Commit => self.transact(true),
            Step::Abandon => self.transact(false),
            Step::Promote => {
                let waiting = self.vm.deferred_count();
                let report = self.vm.promote().unwrap();
                assert_eq!(report.is_some(), waiting > 0);
                assert_eq!(self.vm.deferred_count(), 0);
            }
            Step::Write { at, data } => self.guest_writes(*at, data),
            Step::Dirty(n) => self.check_log(*n),
        }
    }

    /// The pending steps, in one set.
    fn transact(&mut self, commit: bool) {
        let mut next = self.now.clone();
        let hva = self.memory.hva();
        let mut c = Changes::new();
        for step in self.pending.drain(..) {
            apply(&mut next, &mut c, hva, &step);
        }
        if commit {
            self.vm.apply(c).unwrap();
            let logged = |page: &u64| next.is_logged(*page);
            let same = |page: &u64| {
                self.now.at(*page).map(|(_, host)| host) == next.at(*page).map(|(_, host)| host)
            };
            next.written =
                self.now.written.iter().copied().filter(|p| logged(p) && same(p)).collect();
            self.now = next;
        }
        self.next = self.now.clone();
    }

    /// Writes as KVM and the VMM would: byte by byte what has a slot, the rest
    /// as an exit.
    fn guest_writes(&mut self, at: u64, data: &[u8]) {
        for (gpa, byte) in (at..).zip(data) {
            let page = gpa / PAGE;
            let mut device = false;
            let pieces = self.model.guest_write(0, gpa, 1);
            if let GuestAccess::Ram { hva } = pieces[0].access {
                self.memory.write(hva - self.memory.hva(), &[*byte]);
            } else {
                let _ = self.exits.write(gpa, &[*byte], |_, _| device = true);
            }
            let writable = self.now.at(page).filter(|(r, _)| !r.flags.contains(MemFlags::READONLY));
            let deferrable = writable.is_some();
            assert_eq!(device, !deferrable, "a write to {gpa:#x}");
            if let Some((_, host)) = writable {
                let found = self.memory.read(host * PAGE + gpa % PAGE, 1);
                assert_eq!(found, [*byte], "a write to {gpa:#x}");
                if self.now.is_logged(page) {
                    self.now.written.insert(page);
                }
            }
        }
    }

    /// Reads a byte of every page, and an access over its end.
    fn check_reads(&self) {
        for page in 0..PAGES {
            let gpa = page * PAGE + (page * 37) % PAGE;
            let mut found = [0];
            let mut device = false;
            match self.model.guest_at(0, gpa) {
                GuestAccess::Ram { hva } => {
                    found.copy_from_slice(&self.memory.read(hva - self.memory.hva(), 1));
                }
                _ => _ = self.exits.read(gpa, &mut found, |_, _| device = true),
            }
            match self.now.at(page) {
                None => assert!(device, "page {page} is nobody's"),
                Some((_, host)) => {
                    let expected = self.memory.read(host * PAGE + gpa % PAGE, 1);
                    assert_eq!((device, &found[..]), (false, &expected[..]), "page {page}");
                }
            }
        }
    }

    fn check_log(&mut self, n: usize) {
        let logged: Vec<Reg> = self
            .now
            .regions
            .iter()
            .copied()
            .filter(|reg| reg.flags.contains(MemFlags::LOG_DIRTY_PAGES))
            .collect();
        let Some(reg) = logged.get(n % logged.len().max(1)) else { return };
        let reported: BTreeSet<u64> =
            self.vm.dirty_log(reg.id).unwrap().iter().map(|page| reg.page + page).collect();
        let pages = reg.page..reg.page + reg.pages;
        for page in pages.clone().filter(|page| self.now.written.contains(page)) {
            assert!(reported.contains(&page), "page {page} was written and is not in the log");
        }
        self.now.written.retain(|page| !pages.contains(page));
    }
}

fn apply(next: &mut Reference, c: &mut Changes, hva: u64, step: &Step) {
    let count = next.regions.len();
    match *step {
        Step::Map { page, pages, host, deferrable, flags } => {
            let free = (page..page + pages).all(|page| next.at(page).is_none());
            if !free || page + pages > PAGES {
                return;
            }
            let mut spec = ram(page * PAGE, pages * PAGE, hva + host * PAGE);
            if flags.contains(MemFlags::READONLY) {
                spec = spec.read_only();
            }
            if flags.contains(MemFlags::LOG_DIRTY_PAGES) {
                spec = spec.log_dirty();
            }
            let spec = if deferrable { spec.deferrable() } else { spec };
            next.regions.push(Reg { id: c.map(spec), page, pages, host, flags });
        }
        Step::Unmap(n) if count > 0 => c.unmap(next.regions.remove(n % count).id),
        Step::Split(n) if count > 0 => {
            let whole = next.regions[n % count];
            if whole.pages < 2 {
                return;
            }
            let id = c.split(whole.id, PAGE);
            next.regions[n % count].pages = 1;
            next.regions.push(Reg {
                id,
                page: whole.page + 1,
                pages: whole.pages - 1,
                host: whole.host + 1,
                ..whole
            });
        }
        Step::Log(n, on) if count > 0 => {
            let reg = &mut next.regions[n % count];
            reg.flags.set(MemFlags::LOG_DIRTY_PAGES, on);
            c.set_log_dirty(reg.id, on);
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn a_guest_cannot_tell_what_waits(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.check_reads();
        }
        let waiting: BTreeMap<u64, bool> =
            world.vm.regions().iter().map(|r| (r.range.gpa(), r.deferred)).collect();
        for slot in world.vm.slots(0) {
            let whole = slot.mapping.range();
            prop_assert!(waiting.range(whole.gpa()..whole.end()).all(|(_, waits)| !waits));
        }
    }
}
