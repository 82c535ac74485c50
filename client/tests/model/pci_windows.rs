//! Memory of BARs that the guest puts in a window is placed there; what can't be
//! is refused, and nobody else's trouble. Nothing of it needs KVM.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::common::host::{Peek, eventfd, numbered, page_size};
use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::pci::{BarSpec, FunctionId, FunctionSpec, PciBars, PciError};
use kvm_memslots::window::{Contents, Gap, Window, WindowErrorKind, WindowSpec};
use kvm_memslots::{Access, Backing, Changes, Errno, HolePolicy, Limits, RegionSpec, Vm, at};
use proptest::prelude::*;

/// Where the window is, how many pages it has, and where it is not.
const WINDOW: u64 = 0x10_0000_0000;
const PAGES: u64 = 16;
const OUTSIDE: u64 = 0x20_0000_0000;
/// Pages of each BAR; one after the other in a file whose pages hold 1, 2, ...
const SIZES: [u64; 3] = [4, 2, 1];

fn memory(gpa: u64, pages: u64) -> RegionSpec {
    let size = pages * page_size();
    // SAFETY: the model touches no memory.
    let backing = unsafe { Backing::borrowed(0x7000_0000_0000, size, Access::ReadWrite) };
    RegionSpec::device(at(gpa, size), backing)
}

fn in_file(spec: &RegionSpec, file: impl AsFd + Send + Sync + 'static, page: u64) -> RegionSpec {
    let backing = spec.backing().clone().with_file(file, page * page_size());
    RegionSpec::device(spec.span(), backing)
}

struct World {
    vm: Vm,
    model: MemoryModel,
    window: Window,
    bars: PciBars,
    file: Arc<File>,
    peek: Peek,
}

impl World {
    fn new() -> Self {
        let limits = Limits::x86().with_page_size(page_size());
        let (model, events) = (MemoryModel::new(limits), EventModel::new(Irqchip::Split));
        let builder = Vm::builder().holes(HolePolicy::NoVcpuRuns);
        let vm = builder.open_on(Arc::new(model.clone()), Arc::new(events)).unwrap();
        let spec = WindowSpec::new(at(WINDOW, PAGES * page_size())).gap(Gap::Fault);
        let window = Window::new(spec).unwrap();
        let mut c = Changes::new();
        c.map(window.region());
        vm.apply(c).unwrap();
        let bars = PciBars::new(40).in_window(window.clone());
        Self { vm, model, window, bars, file: Arc::new(numbered(16)), peek: Peek::new() }
    }

    fn add(&mut self, bar: BarSpec) -> FunctionId {
        self.bars.add(&self.vm, FunctionSpec::new().bar(0, bar)).unwrap()
    }

    /// A BAR that is memory from a page of the file on.
    fn in_file(&mut self, page: u64, pages: u64) -> FunctionId {
        let spec = in_file(&memory(0, pages), Arc::clone(&self.file), page);
        self.add(BarSpec::memory64(pages * page_size()).prefetchable().window(spec))
    }

    /// All registers as they are to be; KVM's calls.
    fn put(&mut self, id: FunctionId, gpa: u64, decodes: bool) -> u64 {
        self.bars.note_write(id, 4, &[0]).unwrap();
        self.bars.note_write(id, 0x10, &gpa.to_le_bytes()).unwrap();
        let report = self.bars.config_write(&self.vm, id, 4, &[u8::from(decodes) << 1]).unwrap();
        report.map_or(0, |report| report.calls())
    }

    fn refused(&self, id: FunctionId) -> Option<Errno> {
        self.bars.refusal(id, Some(0)).map(PciError::errno)
    }
}

/// What is in the window: pages of the file from `from` on, at `page`.
fn with(parts: &[(u64, u64, u64)]) -> Vec<Option<u8>> {
    let mut pages = vec![None; PAGES as usize];
    for (page, count, from) in parts {
        (0..*count).for_each(|n| pages[(page + n) as usize] = Some((from + n + 1) as u8));
    }
    pages
}

#[test]
fn a_bar_comes_goes_and_moves_in_a_window_without_a_call() {
    let mut world = World::new();
    let page = page_size();
    let (four, two) = (world.in_file(0, 4), world.in_file(4, 2));
    let slots = world.model.slot_count(0);
    assert_eq!(world.put(four, WINDOW, true), 0);
    assert_eq!(world.put(two, WINDOW + 6 * page, true), 0);
    assert_eq!(world.peek.pages(&world.window), with(&[(0, 4, 0), (6, 2, 4)]));
    let [(0, placement)] = world.bars.placed(two, Some(0))[..] else { panic!("one window") };
    assert_eq!((placement.offset, placement.len), (6 * page, 2 * page));
    assert_eq!((placement.file_offset, placement.access), (Some(4 * page), Access::ReadWrite));
    assert_eq!(world.put(four, WINDOW, false), 0);
    assert_eq!(world.peek.pages(&world.window), with(&[(6, 2, 4)]));
    // They swap places, in one set.
    world.put(four, WINDOW + 4 * page, true);
    for (id, gpa) in [(four, WINDOW), (two, WINDOW + 4 * page)] {
        world.bars.note_write(id, 0x10, &gpa.to_le_bytes()).unwrap();
    }
    assert!(world.bars.sync(&world.vm).unwrap().is_none());
    assert_eq!(world.peek.pages(&world.window), with(&[(0, 4, 0), (4, 2, 4)]));
    assert_eq!(world.model.slot_count(0), slots);
    // Out of it, into a slot, and back.
    assert_eq!(world.put(four, OUTSIDE, true), 1);
    assert_eq!(world.peek.pages(&world.window), with(&[(4, 2, 4)]));
    assert_eq!(world.bars.regions(four, Some(0)).len(), 1);
    assert_eq!(world.put(four, WINDOW + 8 * page, true), 1);
    assert!(world.bars.regions(four, Some(0)).is_empty());
    assert_eq!(world.peek.pages(&world.window), with(&[(4, 2, 4), (8, 4, 0)]));
    // The VMM's descriptor may be gone by now.
    world.file = Arc::new(numbered(16));
    assert_eq!(world.put(two, WINDOW, true), 0);
    world.bars.remove(&world.vm, two).unwrap();
    world.bars.reset(&world.vm, four).unwrap();
    assert_eq!(world.peek.pages(&world.window), with(&[]));
    assert!(world.window.placed().is_empty());
}

#[test]
fn what_can_not_be_placed_is_that_bars_trouble() {
    let mut world = World::new();
    let page = page_size();
    let good = world.in_file(0, 4);
    let bare = world.add(BarSpec::memory64(page).window(memory(0, 1)));
    let spec = in_file(&memory(0, 1), eventfd(), 0);
    let no_file = world.add(BarSpec::memory64(page).window(spec));
    let bell = world.add(BarSpec::memory64(page).ioeventfd(8, 4, None, eventfd()));
    world.put(good, WINDOW, true);
    let cases = [
        (bare, Errno::ENODEV, "with_file"),
        (no_file, Errno::ENODEV, "not a file"),
        (bell, Errno::EEXIST, "doorbell"),
    ];
    for (id, errno, text) in cases {
        assert_eq!(world.put(id, WINDOW + 8 * page, true), 0);
        let refusal = world.bars.refusal(id, Some(0)).unwrap();
        assert_eq!(refusal.errno(), errno, "{refusal}");
        assert!(refusal.to_string().contains(text), "{text:?} is not in {refusal}");
        assert_eq!(world.peek.pages(&world.window), with(&[(0, 4, 0)]));
        // It comes right when the guest moves it.
        assert_eq!(world.put(id, OUTSIDE, true), 1);
        assert_eq!(world.refused(id), None);
        world.put(id, OUTSIDE, false);
    }
    // Something that is no BAR's is there.
    world.window.place(9 * page, page, Contents::anonymous()).unwrap();
    world.put(good, WINDOW + 8 * page, true);
    let Some(PciError::Window(error)) = world.bars.refusal(good, Some(0)) else { panic!("taken") };
    assert!(matches!(error.kind(), WindowErrorKind::Taken { .. }), "{error}");
    let two = world.in_file(4, 2);
    world.put(two, WINDOW, true);
    assert_eq!(world.refused(two), None);
    world.window.remove(9 * page, page).unwrap();
    world.bars.sync(&world.vm).unwrap();
    assert_eq!(world.peek.pages(&world.window), with(&[(0, 2, 4), (8, 4, 0)]));
    // Somebody else removes what is a BAR's.
    world.window.remove(9 * page, page).unwrap();
    world.put(good, WINDOW + 8 * page, false);
    assert_eq!(world.window.placed().len(), 3);
}

/// A part of the window is logged, or it is in two places: what matters is where the
/// window's bytes are.
#[test]
fn a_window_whose_region_was_split_is_one() {
    let mut world = World::new();
    let four = world.in_file(0, 4);
    let region = world.vm.region_at(0, WINDOW).unwrap().id;
    let mut c = Changes::new();
    let upper = c.split(region, 6 * page_size());
    c.set_log_dirty(upper, true);
    world.vm.apply(c).unwrap();
    assert_eq!(world.model.slot_count(0), 2);
    assert_eq!(world.put(four, WINDOW + 4 * page_size(), true), 0);
    assert_eq!(world.peek.pages(&world.window), with(&[(4, 4, 0)]));
    assert_eq!(world.refused(four), None);
    // Once the upper part is elsewhere, no BAR is across its start.
    world.put(four, WINDOW, false);
    let mut c = Changes::new();
    c.move_to(upper, OUTSIDE);
    world.vm.apply(c).unwrap();
    world.put(four, WINDOW + 4 * page_size(), true);
    assert_eq!(world.refused(four), Some(Errno::EEXIST));
    world.put(four, OUTSIDE, true);
    assert_eq!(world.peek.pages(&world.window), with(&[(6, 4, 0)]));
}

#[test]
fn without_slots_what_is_outside_exits() {
    let mut world = World::new();
    world.bars = PciBars::new(40).in_window(world.window.clone()).without_slots();
    let good = world.in_file(0, 4);
    let bell = world.add(BarSpec::memory64(page_size()).ioeventfd(8, 4, None, eventfd()));
    assert_eq!(world.put(good, OUTSIDE, true), 0);
    assert_eq!(world.refused(good), Some(Errno::ENOSPC));
    assert_eq!(world.bars.base(good, Some(0)), Some(OUTSIDE));
    assert_eq!(world.put(bell, OUTSIDE + (1 << 20), true), 1);
    assert_eq!(world.put(good, WINDOW, true), 0);
    assert_eq!((world.refused(good), world.peek.pages(&world.window)), (None, with(&[(0, 4, 0)])));
}

/// A config write: of which function, and where its BAR is to be then, in pages
/// from below the window on; `None`: nowhere.
type Op = (usize, Option<u64>);

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_window_has_what_the_registers_say(
        ops in prop::collection::vec((0..3_usize, prop::option::of(0..2 * PAGES)), 1..30),
    ) {
        let ops: Vec<Op> = ops;
        let (mut world, page) = (World::new(), page_size());
        let from = [0, SIZES[0], SIZES[0] + SIZES[1]];
        let ids = [0, 1, 2].map(|n| world.in_file(from[n], SIZES[n]));
        let mut wanted: [Option<u64>; 3] = [None; 3];
        for (n, place) in ops {
            // BARs are aligned to their size.
            let place = place.map(|page| page / SIZES[n] * SIZES[n]);
            let gpa = place.map_or(0, |at| WINDOW - 8 * page + at * page);
            world.put(ids[n], gpa, place.is_some());
            wanted[n] = place;
            let mut taken = vec![false; 3 * PAGES as usize];
            let mut parts = Vec::new();
            for (n, place) in wanted.iter().enumerate() {
                let Some(at) = *place else { continue };
                let pages = &mut taken[at as usize..(at + SIZES[n]) as usize];
                if pages.contains(&true) {
                    continue;
                }
                pages.fill(true);
                if (8..8 + PAGES).contains(&at) {
                    parts.push((at - 8, SIZES[n], from[n]));
                }
            }
            prop_assert_eq!(world.peek.pages(&world.window), with(&parts));
            for (n, id) in ids.iter().enumerate() {
                let regions = world.bars.regions(*id, Some(0)).len();
                let there = wanted[n].is_some_and(|at| !(8..8 + PAGES).contains(&at));
                prop_assert!(regions <= usize::from(there));
            }
        }
    }
}
