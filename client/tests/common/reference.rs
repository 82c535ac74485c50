//! Random sets of changes, and a reference that knows regions only.

use std::collections::BTreeMap;

use kvm_memslots::{Changes, ErrorKind, MemFlags, RegionId, RegionSpec, Vm, at};
use proptest::prelude::*;

use super::{HVA, PAGE, PAGES, REACH, memory};

/// One step of a set of changes. Regions are named by their place in the list of
/// those mapped, modulo its length.
#[derive(Debug, Clone)]
pub enum Step {
    Map {
        page: u64,
        pages: u64,
        arena: u64,
        flags: MemFlags,
        alone: bool,
        permanent: bool,
    },
    Unmap(usize),
    Resize(usize, u64),
    Split(usize, u64),
    Log(usize, bool),
    ReadOnly(usize, bool),
    /// Unmap, and map the same again, under its own name or another.
    Remap(usize),
    /// Unmap, and map the same again as two, the first under the old name.
    Recut(usize, u64),
    Move(usize, u64),
    /// Other memory behind it.
    Replace(usize, u64),
    Join(usize),
    /// The same memory a second time; not among those of [`step`].
    Alias(usize, u64),
}

impl Step {
    /// The region that it unmaps and maps again, which is another one then, also under
    /// its old name.
    pub fn makes_anew(&self, before: &Reference) -> Option<RegionId> {
        match *self {
            Self::Remap(n) | Self::Recut(n, _) => Some(before.regions[before.pick(n)?].id),
            _ => None,
        }
    }
}

fn flags() -> impl Strategy<Value = MemFlags> {
    prop_oneof![
        5 => Just(MemFlags::empty()),
        4 => Just(MemFlags::LOG_DIRTY_PAGES),
        1 => Just(MemFlags::READONLY),
    ]
}

pub fn step() -> impl Strategy<Value = Step> {
    let map = (
        0..PAGES,
        1..8_u64,
        0..2_u64,
        flags(),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.6),
    );
    let map = map.prop_map(|(page, pages, arena, flags, alone, permanent)| Step::Map {
        page,
        pages,
        arena,
        flags,
        alone,
        permanent,
    });
    let any = || 0..64_usize;
    prop_oneof![
        12 => map,
        3 => any().prop_map(Step::Unmap),
        3 => (any(), 0..18_u64).prop_map(|(n, pages)| Step::Resize(n, pages)),
        3 => (any(), 0..8_u64).prop_map(|(n, at)| Step::Split(n, at)),
        2 => (any(), prop::bool::ANY).prop_map(|(n, on)| Step::Log(n, on)),
        1 => (any(), prop::bool::ANY).prop_map(|(n, on)| Step::ReadOnly(n, on)),
        1 => any().prop_map(Step::Remap),
        1 => (any(), 0..8_u64).prop_map(|(n, at)| Step::Recut(n, at)),
        2 => (any(), 0..PAGES).prop_map(|(n, page)| Step::Move(n, page)),
        1 => (any(), 2..4_u64).prop_map(|(n, arena)| Step::Replace(n, arena)),
        1 => any().prop_map(Step::Join),
    ]
}

pub fn sets() -> impl Strategy<Value = Vec<Vec<Step>>> {
    prop::collection::vec(prop::collection::vec(step(), 0..14), 1..8)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg {
    pub id: RegionId,
    pub page: u64,
    pub pages: u64,
    pub hva: u64,
    /// Pages of the backing that it may grow to.
    pub reach: u64,
    pub flags: MemFlags,
    pub alone: bool,
    pub permanent: bool,
}

impl Reg {
    pub fn spec(&self) -> RegionSpec {
        let backing = memory(self.hva, self.reach * PAGE);
        let mut spec = RegionSpec::ram(at(self.page * PAGE, self.pages * PAGE), backing);
        if self.flags.contains(MemFlags::READONLY) {
            spec = spec.read_only();
        }
        if self.flags.contains(MemFlags::LOG_DIRTY_PAGES) {
            spec = spec.log_dirty();
        }
        if self.permanent {
            spec = spec.permanent();
        }
        if self.alone { spec.alone() } else { spec }
    }

    pub fn is_logged(&self) -> bool {
        self.flags.contains(MemFlags::LOG_DIRTY_PAGES)
    }
}

/// The regions as a list, in order of mapping.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reference {
    pub regions: Vec<Reg>,
    /// Map everything in slots of its own.
    pub unmerged: bool,
}

/// What a step should be refused with.
type Refusal = fn(&ErrorKind) -> bool;

const OVERLAP: Refusal = |kind| matches!(kind, ErrorKind::Overlap { .. });

impl Reference {
    pub fn pick(&self, n: usize) -> Option<usize> {
        (!self.regions.is_empty()).then(|| n % self.regions.len())
    }

    fn is_free(&self, page: u64, pages: u64, except: Option<usize>) -> bool {
        self.regions.iter().enumerate().all(|(index, r)| {
            Some(index) == except || page >= r.page + r.pages || r.page >= page + pages
        })
    }

    /// Adds the step to `c` and makes it here. One that can't be is only tried:
    /// the VM has to find that out, and which change it is.
    pub fn take(&mut self, vm: &Vm, c: &mut Changes, step: &Step) {
        let mut with = c.clone();
        let before = self.clone();
        if let Some(refusal) = self.make(&mut with, step) {
            let error = vm.preview(&with).unwrap_err();
            assert!(refusal(error.kind()), "{step:?}: {error}");
            assert_eq!(error.change(), Some(with.len() - 1), "{error}");
            *self = before;
        } else {
            *c = with;
        }
    }

    /// Adds the step to `c` and makes it here, if it can be.
    pub fn try_take(&mut self, c: &mut Changes, step: &Step) -> bool {
        self.make(c, step).is_none()
    }

    /// Makes the step in `c` and here; with what it is refused if it can't be.
    #[allow(clippy::too_many_lines)] // A step an arm.
    fn make(&mut self, c: &mut Changes, step: &Step) -> Option<Refusal> {
        match *step {
            Step::Map { page, pages, arena, flags, alone, permanent } => {
                let hva = HVA + arena * 0x1000_0000 + page * PAGE;
                let id = RegionId::new();
                let (alone, reach) = (alone || self.unmerged, REACH);
                let reg = Reg { id, page, pages, hva, reach, flags, alone, permanent };
                let free = self.is_free(page, pages, None);
                c.map_as(id, reg.spec());
                self.regions.push(reg);
                (!free).then_some(OVERLAP)
            }
            Step::Unmap(n) => {
                let n = self.pick(n)?;
                c.unmap(self.regions.remove(n).id);
                None
            }
            Step::Resize(n, pages) => {
                let n = self.pick(n)?;
                let Reg { id, page, reach, pages: old, .. } = self.regions[n];
                c.resize(id, pages * PAGE);
                self.regions[n].pages = pages;
                if pages < old {
                    self.regions[n].reach = pages;
                }
                match pages {
                    0 => Some(|kind| matches!(kind, ErrorKind::Empty)),
                    _ if pages > reach => {
                        Some(|kind| matches!(kind, ErrorKind::OutsideBacking { .. }))
                    }
                    _ => (!self.is_free(page, pages, Some(n))).then_some(OVERLAP),
                }
            }
            Step::Split(n, at) => {
                let n = self.pick(n)?;
                let whole = self.regions[n];
                let id = c.split(whole.id, at * PAGE);
                if at == 0 || at >= whole.pages {
                    return Some(|kind| matches!(kind, ErrorKind::SplitOutside { .. }));
                }
                (self.regions[n].pages, self.regions[n].reach) = (at, at);
                self.regions.push(Reg {
                    id,
                    page: whole.page + at,
                    pages: whole.pages - at,
                    hva: whole.hva + at * PAGE,
                    reach: whole.reach - at,
                    ..whole
                });
                None
            }
            Step::Log(n, on) => {
                let n = self.pick(n)?;
                c.set_log_dirty(self.regions[n].id, on);
                self.regions[n].flags.set(MemFlags::LOG_DIRTY_PAGES, on);
                None
            }
            Step::ReadOnly(n, on) => {
                let n = self.pick(n)?;
                c.set_read_only(self.regions[n].id, on);
                self.regions[n].flags.set(MemFlags::READONLY, on);
                None
            }
            Step::Remap(n) => {
                let n = self.pick(n)?;
                let mut reg = self.regions.remove(n);
                c.unmap(reg.id);
                if reg.page % 2 == 0 {
                    c.map_as(reg.id, reg.spec());
                } else {
                    reg.id = c.map(reg.spec());
                }
                self.regions.push(reg);
                None
            }
            Step::Recut(n, at) => {
                let n = self.pick(n)?;
                let old = self.regions[n];
                let at = at.min(old.pages - 1);
                self.regions.remove(n);
                c.unmap(old.id);
                for (from, to) in [(0, at), (at, old.pages)].into_iter().filter(|(a, b)| a < b) {
                    let (page, hva) = (old.page + from, old.hva + from * PAGE);
                    let (pages, reach) = (to - from, REACH);
                    let id = if from == 0 { old.id } else { RegionId::new() };
                    let reg = Reg { id, page, pages, hva, reach, ..old };
                    c.map_as(id, reg.spec());
                    self.regions.push(reg);
                }
                None
            }
            Step::Move(n, page) => {
                let n = self.pick(n)?;
                let Reg { id, pages, .. } = self.regions[n];
                c.move_to(id, page * PAGE);
                self.regions[n].page = page;
                (!self.is_free(page, pages, Some(n))).then_some(OVERLAP)
            }
            Step::Replace(n, arena) => {
                let n = self.pick(n)?;
                let reg = &mut self.regions[n];
                reg.hva = HVA + arena * 0x1000_0000 + reg.page * PAGE;
                reg.reach = REACH.max(reg.pages);
                c.replace(reg.id, memory(reg.hva, reg.reach * PAGE));
                None
            }
            Step::Join(n) => {
                c.join(self.regions[self.pick(n)?].id);
                None
            }
            Step::Alias(n, page) => {
                let reg = Reg { id: RegionId::new(), page, ..self.regions[self.pick(n)?] };
                let free = self.is_free(page, reg.pages, None);
                c.map_as(reg.id, reg.spec());
                self.regions.push(reg);
                (!free).then_some(OVERLAP)
            }
        }
    }

    /// What a guest should find at each page: the host address and the flags.
    pub fn pages(&self) -> BTreeMap<u64, (u64, MemFlags)> {
        let page = |r: &Reg, n: u64| (r.page + n, (r.hva + n * PAGE, r.flags));
        self.regions.iter().flat_map(|r| (0..r.pages).map(move |n| page(r, n))).collect()
    }

    /// The regions of the VM are these.
    pub fn assert_regions(&self, vm: &Vm) {
        for expected in &self.regions {
            let region = vm.region(expected.id).unwrap();
            assert_eq!(region.range.gpa(), expected.page * PAGE);
            assert_eq!(region.range.size(), expected.pages * PAGE);
            assert_eq!(region.hva, expected.hva);
            assert_eq!(region.flags, expected.flags);
        }
        assert_eq!(vm.regions().len(), self.regions.len());
    }
}
