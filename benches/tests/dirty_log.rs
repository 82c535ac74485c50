//! Merging is invisible: the same guest writes, to regions that share slots and
//! to regions that don't, give the same dirty logs, region by region. Real
//! guest code on real KVM.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{Random, guest_or_skip, vm_or_skip};
use kvm_memslots::{
    Access as HostAccess, Backing, Changes, Executor, GateError, HolePolicy, RegionId, RegionSpec,
    VcpuGate, Vm, at, vm_fd,
};
use kvm_memslots_kit::guest::{Access, Outcome, Prober};
use kvm_memslots_kit::host::{HostMemory, Pages, SMALL_PAGE};

const OWN_SLOT: u16 = 0;
const GPA: u64 = 0x200_0000;
const REGIONS: usize = 24;
const ROUNDS: usize = 40;

/// The prober runs on the thread that commits, so it never runs meanwhile.
struct NobodyRuns;

impl VcpuGate for NobodyRuns {
    fn pause(&self) -> Result<(), GateError> {
        Ok(())
    }
    fn resume(&self) {}
}

/// A region as both VMs have it.
#[derive(Debug, Clone, Copy)]
struct Shape {
    gpa: u64,
    pages: u64,
    offset: u64,
    logged: bool,
}

/// One of the two VMs.
struct Side {
    // Before the memory, which they use.
    prober: Prober,
    space: Vm,
    memory: HostMemory,
    alone: bool,
    ids: Vec<Option<RegionId>>,
}

impl Side {
    fn new(test: &str, alone: bool, bytes: u64) -> Option<Self> {
        let vm = vm_or_skip(test)?;
        let prober = guest_or_skip(test, Prober::new(&vm, OWN_SLOT))?;
        let space = Vm::builder()
            .executor(Executor::PerRegion)
            .reserve_slots(0, OWN_SLOT..=OWN_SLOT)
            .holes(HolePolicy::Gate(Arc::new(NobodyRuns)))
            .open(vm_fd(&vm))
            .unwrap();
        let memory = HostMemory::reserve(bytes, Pages::Small).unwrap();
        Some(Self { prober, space, memory, alone, ids: vec![None; REGIONS] })
    }

    /// Makes these changes, in one set.
    fn commit(&mut self, changes: &[(usize, Change)]) {
        let mut set = Changes::new();
        for (index, change) in changes {
            let id = self.ids[*index];
            match *change {
                Change::Map(shape) => {
                    let hva = self.memory.hva() + shape.offset;
                    let size = shape.pages * SMALL_PAGE;
                    // SAFETY: the memory outlives the prober, which alone runs
                    // the VM, and is accessed atomically only.
                    let backing = unsafe { Backing::borrowed(hva, size, HostAccess::ReadWrite) };
                    let mut spec = RegionSpec::ram(at(shape.gpa, size), backing);
                    if shape.logged {
                        spec = spec.log_dirty();
                    }
                    spec = if self.alone { spec.alone() } else { spec.permanent() };
                    self.ids[*index] = Some(set.map(spec));
                }
                Change::Unmap => {
                    set.unmap(id.unwrap());
                    self.ids[*index] = None;
                }
                Change::Shrink(pages) => set.resize(id.unwrap(), pages * SMALL_PAGE),
                Change::Log(on) => set.set_log_dirty(id.unwrap(), on),
            }
        }
        self.space.apply(set).unwrap();
    }

    fn dirty(&mut self, index: usize) -> Vec<u64> {
        self.space.dirty_log(self.ids[index].unwrap()).unwrap().iter().collect()
    }

    fn write(&mut self, accesses: &[Access]) {
        let outcomes = self.prober.probe(accesses).unwrap();
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Written), "{outcomes:?}");
    }
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Map(Shape),
    Unmap,
    Shrink(u64),
    Log(bool),
}

/// What is mapped, and which pages are dirty: what both sides have to agree on.
struct Truth {
    shapes: Vec<Option<Shape>>,
    originals: Vec<Shape>,
    dirty: Vec<BTreeSet<u64>>,
}

impl Truth {
    /// Regions that follow each other in guest and host, some unaligned to the
    /// 64 pages of a word of the log.
    fn new(random: &mut Random) -> Self {
        let mut offset = 0;
        let originals: Vec<_> = (0..REGIONS)
            .map(|_| {
                let pages = 1 + random.below(150);
                let shape = Shape { gpa: GPA + offset, pages, offset, logged: true };
                offset += pages * SMALL_PAGE;
                shape
            })
            .collect();
        Self { shapes: vec![None; REGIONS], originals, dirty: vec![BTreeSet::new(); REGIONS] }
    }

    fn bytes(&self) -> u64 {
        self.originals.iter().map(|shape| shape.pages * SMALL_PAGE).sum()
    }

    /// A random change that is possible.
    fn change(&mut self, index: usize, random: &mut Random) -> Change {
        let Some(shape) = &mut self.shapes[index] else {
            self.shapes[index] = Some(self.originals[index]);
            self.dirty[index].clear();
            return Change::Map(self.originals[index]);
        };
        match random.below(4) {
            0 => {
                self.shapes[index] = None;
                Change::Unmap
            }
            1 if shape.pages > 1 => {
                shape.pages = 1 + random.below(shape.pages - 1);
                let pages = shape.pages;
                self.dirty[index].retain(|page| *page < pages);
                Change::Shrink(pages)
            }
            _ => {
                shape.logged = !shape.logged;
                // KVM frees the log with the flag.
                self.dirty[index].clear();
                Change::Log(shape.logged)
            }
        }
    }

    fn mapped(&self) -> Vec<(usize, Shape)> {
        let mapped = self.shapes.iter().enumerate();
        mapped.filter_map(|(index, shape)| Some((index, (*shape)?))).collect()
    }

    fn writes(&mut self, random: &mut Random) -> Vec<Access> {
        let mapped = self.mapped();
        if mapped.is_empty() {
            return Vec::new();
        }
        let count = random.below(60);
        let mut write = |_| {
            let (index, shape) = mapped[random.below(mapped.len() as u64) as usize];
            let page = random.below(shape.pages);
            if shape.logged {
                self.dirty[index].insert(page);
            }
            Access::Write(shape.gpa + page * SMALL_PAGE + 8 * random.below(512), random.below(99))
        };
        (0..count).map(&mut write).collect()
    }
}

fn merged_and_unmerged_agree(test: &str, seed: u64) -> Option<usize> {
    let mut random = Random(seed);
    let mut truth = Truth::new(&mut random);
    let mut merged = Side::new(test, false, truth.bytes())?;
    let mut unmerged = Side::new(test, true, truth.bytes())?;
    let all: Vec<_> = (0..REGIONS).map(|index| (index, truth.change(index, &mut random))).collect();
    merged.commit(&all);
    unmerged.commit(&all);
    let mut shared = 0;
    for round in 0..ROUNDS {
        let writes = truth.writes(&mut random);
        merged.write(&writes);
        unmerged.write(&writes);

        // Some regions, in an order that is none.
        let mut logged: Vec<_> = truth.mapped();
        logged.retain(|(_, shape)| shape.logged);
        for _ in 0..random.below(logged.len() as u64 + 1) {
            let (index, _) = logged.swap_remove(random.below(logged.len() as u64) as usize);
            let at = format!("seed {seed}, round {round}, region {index}");
            let apart = unmerged.dirty(index);
            assert_eq!(merged.dirty(index), apart, "merged and unmerged, {at}");
            let wrote: Vec<_> = std::mem::take(&mut truth.dirty[index]).into_iter().collect();
            assert_eq!(apart, wrote, "reported and written, {at}");
        }

        let mut changes = Vec::new();
        for index in 0..REGIONS {
            if random.below(10) == 0 {
                changes.push((index, truth.change(index, &mut random)));
            }
        }
        merged.commit(&changes);
        unmerged.commit(&changes);
        shared += unmerged.space.slots(0).len() - merged.space.slots(0).len();
    }
    Some(shared)
}

#[test]
fn merging_is_invisible_in_dirty_logs() {
    let test = "merging_is_invisible_in_dirty_logs";
    for seed in [1, 22, 333, 4444, 55_555, 666_666] {
        let Some(shared) = merged_and_unmerged_agree(test, seed) else { return };
        // Else nothing was shown.
        assert!(shared > ROUNDS, "seed {seed}: {shared} slots saved over all rounds");
    }
}
