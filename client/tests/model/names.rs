//! Finding regions and slots: by name, tag, guest and host address and slot page,
//! over what is applied and over a set of changes.

use std::sync::{Arc, Mutex, OnceLock, Weak};

use crate::common::{self, HVA, PAGE, changes, map_all, memory, on_model, ram};
use kvm_memslots::backend::MemoryModel;
use kvm_memslots::device::Device;
use proptest::prelude::*;

use kvm_memslots::{
    Changes, Kind, Limits, MemFlags, Observer, Range, Region, RegionId, RegionSpec, Vm, at,
};

fn ids(regions: &[Region]) -> Vec<RegionId> {
    regions.iter().map(|region| region.id).collect()
}

#[test]
fn by_tag() {
    let (vm, _) = common::vm(Limits::x86().with_address_spaces(2));
    let spec = |page, tag| ram(page, 1).tag(tag);
    let [a, b, c, smm] =
        map_all(&vm, [spec(9, 7), spec(0, 7), spec(4, 8), spec(2, 7).address_space(1)]);
    let [untagged] = map_all(&vm, [ram(20, 1)]);
    let tagged = |tag| {
        let mut ids = ids(&vm.tagged(tag));
        ids.sort_unstable();
        ids
    };
    assert_eq!((tagged(7), tagged(8), tagged(9)), (vec![a, b, smm], vec![c], vec![]));
    assert_eq!(vm.region(untagged).unwrap().tag, None);
    // It stays with the region, whatever becomes of that, and with its parts.
    let mut set = changes(|set| {
        set.move_to(a, 100 * PAGE);
        set.replace(a, memory(HVA + 0x1000_0000, 4 * PAGE));
        set.resize(a, 4 * PAGE);
        set.unmap(b);
    });
    let upper = set.split(a, PAGE);
    vm.apply(set).unwrap();
    assert_eq!(tagged(7), [a, smm, upper]);
    assert_eq!(vm.region(upper).unwrap().tag, Some(7));
}

#[test]
fn by_guest_address() {
    let (vm, _) = common::vm(Limits::x86().with_address_spaces(2));
    let [low, high, smm] = map_all(&vm, [ram(0, 4), ram(4, 2), ram(0, 1).address_space(1)]);
    let found = |as_id, gpa| vm.region_at(as_id, gpa).map(|region| region.id);
    for (as_id, gpa, expected) in [
        (0, 0, Some(low)),
        (0, 4 * PAGE - 1, Some(low)),
        (0, 4 * PAGE, Some(high)),
        (0, 6 * PAGE, None),
        (0, u64::MAX, None),
        (1, PAGE - 1, Some(smm)),
        (1, PAGE, None),
        (2, 0, None),
    ] {
        assert_eq!(found(as_id, gpa), expected, "{as_id} {gpa:#x}");
    }
    assert_eq!(ids(&vm.regions()), [low, high, smm], "by address space and address");
}

#[test]
fn by_host_address() {
    let (vm, _) = common::vm(Limits::x86().with_address_spaces(2));
    let [a] = map_all(&vm, [ram(0, 4)]);
    let found = |hva| vm.region_at_hva(0, hva).map(|(region, offset)| (region.id, offset));
    assert_eq!(found(HVA), Some((a, 0)));
    assert_eq!(found(HVA + 4 * PAGE - 1), Some((a, 4 * PAGE - 1)));
    assert_eq!((found(HVA - 1), found(HVA + 4 * PAGE), found(u64::MAX)), (None, None, None));
    // It follows what is changed since it was first asked for.
    let [b] = map_all(&vm, [ram(10, 1)]);
    assert_eq!(found(HVA + 10 * PAGE + 5), Some((b, 5)));
    vm.apply(changes(|c| {
        c.move_to(a, 50 * PAGE);
        c.replace(b, memory(HVA + 0x1000_0000, PAGE));
    }))
    .unwrap();
    assert_eq!(found(HVA + PAGE), Some((a, PAGE)));
    assert_eq!((found(HVA + 10 * PAGE), found(HVA + 0x1000_0000)), (None, Some((b, 0))));
    vm.apply(changes(|c| c.resize(a, PAGE))).unwrap();
    assert_eq!(found(HVA + PAGE), None);
    // The same memory at two guest addresses: the one that starts last.
    let [whole, part] = map_all(
        &vm,
        [
            RegionSpec::ram(at(100 * PAGE, 4 * PAGE), memory(HVA + 0x2000_0000, 4 * PAGE)),
            RegionSpec::ram(at(200 * PAGE, PAGE), memory(HVA + 0x2000_0000 + PAGE, PAGE)),
        ],
    );
    assert_eq!(found(HVA + 0x2000_0000), Some((whole, 0)));
    assert_eq!(found(HVA + 0x2000_0000 + PAGE), Some((part, 0)));
    vm.apply(changes(|c| c.unmap(part))).unwrap();
    assert_eq!(found(HVA + 0x2000_0000 + PAGE), Some((whole, PAGE)));
    // Each address space has its own.
    let smram = memory(HVA + 0x2000_0000 + PAGE, PAGE);
    let smram = RegionSpec::ram(at(0, PAGE), smram).address_space(1);
    let [smm] = map_all(&vm, [smram]);
    assert_eq!(found(HVA + 0x2000_0000 + PAGE), Some((whole, PAGE)));
    let in_smm = |hva| vm.region_at_hva(1, hva).map(|(region, offset)| (region.id, offset));
    assert_eq!(in_smm(HVA + 0x2000_0000 + PAGE), Some((smm, 0)));
    assert_eq!((in_smm(HVA + 0x2000_0000), vm.region_at_hva(2, HVA)), (None, None));
}

#[test]
fn by_slot_page() {
    let (vm, model) = common::vm(Limits::x86());
    let [a, b] = map_all(&vm, [ram(10, 4).permanent(), ram(14, 2).permanent()]);
    let slot = model.slots(0)[0].id;
    let found = |page| vm.region_at_slot(0, slot, page).map(|(region, page)| (region.id, page));
    assert_eq!(
        (found(0), found(3), found(4), found(5)),
        (Some((a, 0)), Some((a, 3)), Some((b, 0)), Some((b, 1)))
    );
    assert_eq!((found(6), found(u64::MAX)), (None, None));
    assert_eq!(vm.region_at_slot(0, slot + 1, 0), None);
    assert_eq!(vm.region_at_slot(1, slot, 0), None);
}

#[test]
fn over_a_set_of_changes() {
    let bar = RegionId::new();
    let mut c = Changes::new();
    let low = c.map(ram(0, 4).tag(1));
    let high = c.map(ram(4, 2).tag(2));
    c.attach(Device::new("nic").region(bar, ram(100, 1).tag(2)));
    let smm = c.map(ram(0, 1).address_space(1));
    let all: Vec<_> = c.regions().map(|(id, _)| id).collect();
    assert_eq!(all, [low, high, bar, smm]);
    let tagged = |tag| c.tagged(tag).map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!((tagged(1), tagged(2), tagged(3)), (vec![low], vec![high, bar], vec![]));
    let at = |as_id, gpa| c.region_at(as_id, gpa).map(|(id, _)| id);
    assert_eq!((at(0, 4 * PAGE - 1), at(0, 4 * PAGE)), (Some(low), Some(high)));
    assert_eq!((at(0, 6 * PAGE), at(0, 100 * PAGE)), (None, Some(bar)));
    assert_eq!((at(1, 0), at(1, PAGE)), (Some(smm), None));
    let at_hva = |as_id, hva| c.region_at_hva(as_id, hva).map(|(id, spec)| (id, spec.span()));
    assert_eq!(at_hva(0, HVA + 5 * PAGE), Some((high, kvm_memslots::at(4 * PAGE, 2 * PAGE))));
    assert_eq!(at_hva(1, HVA), Some((smm, kvm_memslots::at(0, PAGE))));
    assert_eq!((at_hva(1, HVA + 5 * PAGE), at_hva(0, HVA + 50 * PAGE)), (None, None));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Map { page: u64, tag: u64, space: u16 },
    Attach { page: u64 },
    Detach(usize),
    Unmap(usize),
    Move(usize, u64),
    Split(usize, u64),
    Resize(usize, u64),
    ReadOnly(usize),
    Replace(usize, u64),
}

/// What lookups find in a set is what they find in a VM to which it was applied.
#[test]
fn over_a_set_that_changes_what_it_maps() {
    let page = || 0..32_u64;
    let which = || 0..12_usize;
    let step = prop_oneof![
        4 => (page(), 0..3_u64, 0..2_u16)
            .prop_map(|(page, tag, space)| Step::Map { page, tag, space }),
        1 => page().prop_map(|page| Step::Attach { page }),
        1 => which().prop_map(Step::Detach),
        1 => which().prop_map(Step::Unmap),
        3 => (which(), page()).prop_map(|(n, page)| Step::Move(n, page)),
        2 => (which(), 1..4_u64).prop_map(|(n, pages)| Step::Split(n, pages)),
        1 => (which(), 1..5_u64).prop_map(|(n, pages)| Step::Resize(n, pages)),
        1 => which().prop_map(Step::ReadOnly),
        1 => (which(), page()).prop_map(|(n, page)| Step::Replace(n, page)),
    ];
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) };
    proptest!(config, |(steps in prop::collection::vec(step, 1..24))| {
        let (vm, _) = common::vm(Limits::x86().with_address_spaces(2));
        let (mut c, mut ids, mut devices) = (Changes::new(), Vec::new(), Vec::new());
        for step in steps {
            // What can't be is left out.
            let (before, known) = (c.clone(), ids.len());
            let pick = |n: usize| ids.get(n).copied().unwrap_or_else(RegionId::new);
            match step {
                Step::Map { page, tag, space } => {
                    ids.push(c.map(ram(page, 4).tag(tag).address_space(space)));
                }
                Step::Attach { page } => {
                    ids.push(RegionId::new());
                    let bar = ram(page, 4).tag(1);
                    devices.push(c.attach(Device::new("nic").region(ids[known], bar)));
                }
                Step::Detach(n) => devices.get(n).into_iter().for_each(|id| c.detach(*id)),
                Step::Unmap(n) => c.unmap(pick(n)),
                Step::Move(n, page) => c.move_to(pick(n), page * PAGE),
                Step::Split(n, pages) => {
                    let upper = c.split(pick(n), pages * PAGE);
                    ids.push(upper);
                }
                Step::Resize(n, pages) => c.resize(pick(n), pages * PAGE),
                Step::ReadOnly(n) => c.set_read_only(pick(n), true),
                Step::Replace(n, page) => {
                    c.replace(pick(n), memory(HVA + page * PAGE, 4 * PAGE));
                }
            }
            if vm.preview(&c).is_err() {
                c = before;
                ids.truncate(known);
            }
        }
        vm.apply(c.clone()).unwrap();
        let of_region = |r: Region| (r.id, r.range.gpa(), r.range.size(), r.hva, r.flags);
        let of_spec = |(id, spec): (RegionId, RegionSpec)| {
            let (at, hva) = (spec.span(), spec.backing().hva());
            (id, at.gpa, at.size, hva, spec.flags())
        };
        let sorted = |mut all: Vec<(RegionId, u64, u64, u64, MemFlags)>| {
            all.sort_unstable_by_key(|region| region.0);
            all
        };
        let all = |specs: Vec<(RegionId, RegionSpec)>| {
            sorted(specs.into_iter().map(of_spec).collect())
        };
        let applied = |regions: Vec<Region>| sorted(regions.into_iter().map(of_region).collect());
        prop_assert_eq!(all(c.regions().collect()), applied(vm.regions()));
        for tag in 0..3 {
            prop_assert_eq!(all(c.tagged(tag).collect()), applied(vm.tagged(tag)));
        }
        for (space, page) in (0..2).flat_map(|space| (0..40).map(move |page| (space, page))) {
            let at = page * PAGE + 5;
            let there = c.region_at(space, at).map(of_spec);
            prop_assert_eq!(there, vm.region_at(space, at).map(of_region));
            let start = |hva| vm.region_at_hva(space, hva).map(|(region, _)| region.hva);
            let there = c.region_at_hva(space, HVA + at).map(|(_, spec)| spec.backing().hva());
            prop_assert_eq!(there, start(HVA + at));
        }
    });
}

#[test]
fn what_a_region_says_of_itself() {
    let (vm, _) = common::vm(Limits::x86());
    let backing = memory(HVA, 4 * PAGE).with_file(std::io::stderr(), 0x3000);
    let spec = RegionSpec::device(at(8 * PAGE, 2 * PAGE), backing);
    let [id] = map_all(&vm, [spec.log_dirty().alone().label("bar0").tag(3)]);
    let region = vm.region(id).unwrap();
    assert_eq!(region.range, Range::new(8 * PAGE, 2 * PAGE).unwrap());
    assert_eq!((region.hva, region.kind, region.as_id), (HVA, Kind::Device, 0));
    assert_eq!(region.flags, MemFlags::LOG_DIRTY_PAGES);
    assert_eq!((region.alone, region.permanent, region.deferrable), (true, false, false));
    assert_eq!((region.label.as_deref(), region.tag), (Some("bar0"), Some(3)));
    let file = region.file.unwrap();
    assert_eq!((file.fd, file.offset), (libc::STDERR_FILENO, 0x3000));
}

/// Looks the layout up whenever it is told of something.
#[derive(Default)]
struct Looker {
    vm: OnceLock<Weak<Vm>>,
    seen: Mutex<Vec<Vec<RegionId>>>,
}

impl Looker {
    fn look(&self) {
        let Some(vm) = self.vm.get().and_then(Weak::upgrade) else { return };
        self.seen.lock().unwrap().push(ids(&vm.regions()));
    }
}

impl Observer for Looker {
    fn check(
        &self,
        _: &[Region],
        _: &[Region],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.look();
        Ok(())
    }

    fn unmapping(&self, _: &Region) {
        self.look();
    }

    fn mapped(&self, _: &Region) {
        self.look();
    }
}

/// From within a change, one finds what was there before, and in the end what is
/// there afterwards.
#[test]
fn from_within_a_change() {
    let looker = Arc::new(Looker::default());
    let builder = Vm::builder().observer(looker.clone());
    let (vm, _) = on_model(builder, MemoryModel::new(Limits::x86()));
    let vm = Arc::new(vm);
    let [old] = map_all(&vm, [ram(0, 1)]);
    looker.vm.set(Arc::downgrade(&vm)).unwrap();
    let mut c = changes(|c| c.unmap(old));
    let new = c.map(ram(4, 1));
    vm.apply(c).unwrap();
    assert_eq!(*looker.seen.lock().unwrap(), [[old], [old], [new]]);
}
