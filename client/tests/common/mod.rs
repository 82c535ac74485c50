//! Random transactions, a reference that knows regions only, and what a guest
//! sees of either.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;

use kvm_memslots::backend::model::{GuestAccess, SharedModel};
use kvm_memslots::backend::{Memslots, Model};
use kvm_memslots::{
    AddressSpace, Builder, Error, Limits, MemFlags, RegionId, RegionSpec, Transaction,
};
use proptest::prelude::*;

pub const PAGE: u64 = 4096;
pub const PAGES: u64 = 64;
pub const HVA: u64 = 0x7000_0000_0000;

/// One step of a transaction. Regions are named by their place in the list of
/// those mapped, modulo its length.
#[derive(Debug, Clone)]
pub enum Step {
    Map {
        page: u64,
        pages: u64,
        arena: u64,
        flags: MemFlags,
        alone: bool,
    },
    Unmap(usize),
    Resize(usize, u64),
    Split(usize, u64),
    SetFlags(usize, MemFlags),
    /// Unmap, and map the same again.
    Remap(usize),
    /// Unmap, and map the same memory elsewhere.
    Move(usize, u64),
}

fn flags() -> impl Strategy<Value = MemFlags> {
    prop_oneof![
        5 => Just(MemFlags::empty()),
        4 => Just(MemFlags::LOG_DIRTY_PAGES),
        1 => Just(MemFlags::READONLY),
    ]
}

pub fn step() -> impl Strategy<Value = Step> {
    let map = (0..PAGES, 1..8_u64, 0..2_u64, flags(), prop::bool::weighted(0.1)).prop_map(
        |(page, pages, arena, flags, alone)| Step::Map { page, pages, arena, flags, alone },
    );
    let any = || 0..64_usize;
    prop_oneof![
        12 => map,
        3 => any().prop_map(Step::Unmap),
        3 => (any(), 0..12_u64).prop_map(|(n, pages)| Step::Resize(n, pages)),
        3 => (any(), 0..8_u64).prop_map(|(n, at)| Step::Split(n, at)),
        3 => (any(), flags()).prop_map(|(n, flags)| Step::SetFlags(n, flags)),
        1 => any().prop_map(Step::Remap),
        1 => (any(), 0..PAGES).prop_map(|(n, page)| Step::Move(n, page)),
    ]
}

pub fn transactions() -> impl Strategy<Value = Vec<Vec<Step>>> {
    prop::collection::vec(prop::collection::vec(step(), 0..14), 1..8)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg {
    pub id: RegionId,
    pub page: u64,
    pub pages: u64,
    pub hva: u64,
    pub flags: MemFlags,
    pub alone: bool,
}

impl Reg {
    fn spec(&self) -> RegionSpec {
        let mut spec = RegionSpec::ram(self.page * PAGE, self.pages * PAGE, self.hva);
        if self.flags.contains(MemFlags::READONLY) {
            spec = spec.read_only();
        }
        if self.flags.contains(MemFlags::LOG_DIRTY_PAGES) {
            spec = spec.log_dirty();
        }
        if self.alone { spec.alone() } else { spec }
    }
}

/// The regions as a list, in order of mapping.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reference {
    pub regions: Vec<Reg>,
    /// Map everything in slots of its own.
    pub unmerged: bool,
}

impl Reference {
    fn pick(&self, n: usize) -> Option<usize> {
        (!self.regions.is_empty()).then(|| n % self.regions.len())
    }

    fn is_free(&self, page: u64, pages: u64, except: Option<usize>) -> bool {
        self.regions.iter().enumerate().all(|(index, r)| {
            Some(index) == except || page >= r.page + r.pages || r.page >= page + pages
        })
    }

    fn map(&mut self, tx: &mut Transaction<'_>, mut reg: Reg) {
        reg.alone |= self.unmerged;
        // SAFETY: the model maps nothing.
        let result = unsafe { tx.map(reg.spec()) };
        if self.is_free(reg.page, reg.pages, None) {
            reg.id = result.unwrap();
            self.regions.push(reg);
        } else {
            assert!(matches!(result, Err(Error::Overlap { .. })), "{result:?}");
        }
    }

    /// Makes the step in `tx` and here, and holds the one against the other.
    pub fn apply(&mut self, tx: &mut Transaction<'_>, step: &Step) {
        match *step {
            Step::Map { page, pages, arena, flags, alone } => {
                let id = RegionId::from_raw(0, 0, 0);
                let hva = HVA + arena * 0x1000_0000 + page * PAGE;
                self.map(tx, Reg { id, page, pages, hva, flags, alone });
            }
            Step::Unmap(n) => {
                let Some(n) = self.pick(n) else { return };
                tx.unmap(self.regions.remove(n).id).unwrap();
            }
            Step::Resize(n, pages) => {
                let Some(n) = self.pick(n) else { return };
                let Reg { id, page, .. } = self.regions[n];
                // SAFETY: the model maps nothing.
                let result = unsafe { tx.resize(id, pages * PAGE) };
                if pages == 0 {
                    assert!(matches!(result, Err(Error::Empty { .. })), "{result:?}");
                } else if self.is_free(page, pages, Some(n)) {
                    result.unwrap();
                    self.regions[n].pages = pages;
                } else {
                    assert!(matches!(result, Err(Error::Overlap { .. })), "{result:?}");
                }
            }
            Step::Split(n, at) => {
                let Some(n) = self.pick(n) else { return };
                let whole = self.regions[n];
                let result = tx.split(whole.id, at * PAGE);
                if at == 0 || at >= whole.pages {
                    assert!(matches!(result, Err(Error::SplitOutside { .. })), "{result:?}");
                    return;
                }
                self.regions[n].pages = at;
                self.regions.push(Reg {
                    id: result.unwrap(),
                    page: whole.page + at,
                    pages: whole.pages - at,
                    hva: whole.hva + at * PAGE,
                    ..whole
                });
            }
            Step::SetFlags(n, flags) => {
                let Some(n) = self.pick(n) else { return };
                tx.set_flags(self.regions[n].id, flags).unwrap();
                self.regions[n].flags = flags;
            }
            Step::Remap(n) => {
                let Some(n) = self.pick(n) else { return };
                let reg = self.regions.remove(n);
                tx.unmap(reg.id).unwrap();
                self.map(tx, reg);
            }
            Step::Move(n, page) => {
                let Some(n) = self.pick(n) else { return };
                let reg = self.regions.remove(n);
                tx.unmap(reg.id).unwrap();
                self.map(tx, Reg { page, ..reg });
            }
        }
    }

    /// What a guest should find at each page: the host address and the flags.
    pub fn pages(&self) -> BTreeMap<u64, (u64, MemFlags)> {
        let page = |r: &Reg, n: u64| (r.page + n, (r.hva + n * PAGE, r.flags));
        self.regions.iter().flat_map(|r| (0..r.pages).map(move |n| page(r, n))).collect()
    }

    /// How many calls one for each region would have taken to get here from
    /// `before`: what is new is created, what is gone deleted, what has another
    /// size or is read-only or not any more deleted and created, and dirty
    /// logging is switched.
    pub fn calls_from(&self, before: &Self) -> u64 {
        let find = |all: &[Reg], id| all.iter().find(|r| r.id == id).copied();
        let gone = before.regions.iter().filter(|r| find(&self.regions, r.id).is_none()).count();
        let made = |r: &Reg| match find(&before.regions, r.id) {
            None => 1,
            Some(old) if old.pages != r.pages => 2,
            Some(old) if (old.flags ^ r.flags).contains(MemFlags::READONLY) => 2,
            Some(old) => u64::from(old.flags != r.flags),
        };
        gone as u64 + self.regions.iter().map(made).sum::<u64>()
    }
}

pub fn limits() -> Limits {
    Limits::x86()
}

/// An address space on a model, and a handle to look at what the model has.
pub fn on_model(builder: Builder, model: Model) -> (AddressSpace, SharedModel) {
    let model = model.shared();
    let backend: Box<dyn Memslots> = Box::new(model.clone());
    (builder.open_on(backend).unwrap(), model)
}

/// What a guest finds at each page.
pub fn guest_pages(model: &SharedModel) -> BTreeMap<u64, (u64, MemFlags)> {
    let model = model.lock();
    (0..PAGES * 2)
        .filter_map(|page| match model.guest_at(0, page * PAGE) {
            GuestAccess::Ram { hva } => {
                let over = model.slots(0).find(|slot| {
                    let range = slot.mapping.range;
                    (range.gpa..range.end()).contains(&(page * PAGE))
                });
                Some((page, (hva, over.unwrap().mapping.flags)))
            }
            _ => None,
        })
        .collect()
}

/// The slots of `space` are those of the model; the model knows no kinds.
pub fn assert_same_slots(space: &AddressSpace, model: &SharedModel) {
    let own: Vec<_> = space.slots().collect();
    let real: Vec<_> = model.lock().slots(space.as_id()).collect();
    assert_eq!(own, real);
    assert_eq!(space.slot_count(), real.len());
}

/// And each of them leads back to a region.
pub fn assert_slots_have_regions(space: &AddressSpace) {
    for slot in space.slots() {
        let (region, page) = space.region_at_slot(slot.id, 0).unwrap();
        assert_eq!(region.range.gpa + page * PAGE, slot.mapping.range.gpa);
    }
}
