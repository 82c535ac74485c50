//! Sets of changes, most of them wrong, against a list of regions.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvm_memslots::backend::model::memory::{Fault, GuestAccess};
use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::{
    Access, Backing, Changes, Errno, ErrorKind, Executor, HolePolicy, Limits, MemFlags, RegionId,
    RegionSpec, Vm, at,
};

use super::engine::{Numbers, corpus, fuzz};

const HVA: u64 = 0x7000_0000_0000;
const PAGE: u64 = 4096;

/// Guest address, size, host address, flags.
type Regions = BTreeMap<RegionId, (u64, u64, u64, MemFlags)>;

fn memory(hva: u64, len: u64) -> Backing {
    // SAFETY: only ever mapped into a model, which touches nothing.
    unsafe { Backing::borrowed(hva, len, Access::ReadWrite) }
}

/// One change, into both; an `id` may be of a region that is not there.
fn change(
    numbers: &mut Numbers<'_>,
    ids: &mut Vec<RegionId>,
    c: &mut Changes,
    regions: &mut Regions,
) {
    let kind = numbers.byte() % 8;
    let number = usize::from(numbers.byte());
    let id = ids.get(number % ids.len().max(1)).copied().unwrap_or_else(RegionId::new);
    let old = regions.get(&id).copied();
    let (first, second) = (numbers.bytes(), numbers.bytes());
    match kind {
        0 | 1 => {
            // Neighbours may share a slot, or not.
            let hva = HVA + (first % (1 << 40)) * u64::from(1 + kind);
            let spec = RegionSpec::ram(at(first, second), memory(hva, second));
            let spec = if number & 1 == 0 { spec } else { spec.permanent() };
            let (spec, flags) = match number & 6 {
                2 => (spec.log_dirty(), MemFlags::LOG_DIRTY_PAGES),
                4 => (spec.read_only(), MemFlags::READONLY),
                _ => (spec, MemFlags::empty()),
            };
            let id = c.map(spec);
            ids.push(id);
            regions.insert(id, (first, second, hva, flags));
        }
        2 => {
            c.unmap(id);
            regions.remove(&id);
        }
        3 => {
            c.resize(id, first);
            regions.extend(old.map(|(gpa, _, hva, flags)| (id, (gpa, first, hva, flags))));
        }
        4 => {
            let rest = c.split(id, first);
            ids.push(rest);
            if let Some((gpa, size, hva, flags)) = old {
                regions.insert(id, (gpa, first, hva, flags));
                let behind = size.wrapping_sub(first);
                let (gpa, hva) = (gpa.wrapping_add(first), hva.wrapping_add(first));
                regions.insert(rest, (gpa, behind, hva, flags));
            }
        }
        5 => {
            c.set_log_dirty(id, number & 1 == 0);
            let set = |mut flags: MemFlags| {
                flags.set(MemFlags::LOG_DIRTY_PAGES, number & 1 == 0);
                flags
            };
            regions.extend(old.map(|(gpa, size, hva, flags)| (id, (gpa, size, hva, set(flags)))));
        }
        6 => {
            c.move_to(id, first);
            regions.extend(old.map(|(_, size, hva, flags)| (id, (first, size, hva, flags))));
        }
        _ => {
            let size = old.map_or(second, |(_, size, ..)| size);
            let hva = HVA + (first % (1 << 40));
            c.replace(id, memory(hva, size));
            regions.extend(old.map(|(gpa, size, _, flags)| (id, (gpa, size, hva, flags))));
        }
    }
}

fn regions_of(vm: &Vm) -> Regions {
    let all = vm.regions().into_iter();
    all.map(|region| {
        let range = region.range;
        (region.id, (range.gpa(), range.size(), region.hva, region.flags))
    })
    .collect()
}

/// What the guest sees at both ends of each region is that region, as far as the
/// model has slots: exactly the regions' pages.
fn check(vm: &Vm, model: &MemoryModel, regions: &Regions) {
    assert_eq!(&regions_of(vm), regions);
    assert_eq!(vm.slots(0), model.slots(0));
    for (gpa, size, hva, _) in regions.values() {
        for offset in [0, size - PAGE] {
            let seen = model.guest_at(0, gpa + offset);
            assert!(
                matches!(seen, GuestAccess::Ram { hva: seen } if seen == hva + offset),
                "{seen:?}"
            );
        }
    }
    let mapped: u64 = model.slots(0).iter().map(|slot| slot.mapping.range().size()).sum();
    assert_eq!(mapped, regions.values().map(|(_, size, ..)| size).sum::<u64>());
}

fn apply(input: &[u8]) {
    let mut numbers = Numbers(input);
    let (executor, limits) = match numbers.byte() % 3 {
        0 => (Executor::PerRegion, Limits::x86().with_slots(24)),
        1 => (Executor::Batch, Limits::x86().with_slots(24).with_batch(64)),
        _ => (Executor::Batch, Limits::x86().with_slots(24).with_batch(2)),
    };
    let model = MemoryModel::new(limits);
    let events = Arc::new(EventModel::new(Irqchip::Split));
    let builder = Vm::builder().executor(executor).holes(HolePolicy::NoVcpuRuns);
    let vm = builder.open_on(Arc::new(model.clone()), events).unwrap();
    let (mut ids, mut regions) = (Vec::new(), Regions::new());
    while !numbers.is_empty() {
        let (mut c, mut wanted) = (Changes::new(), regions.clone());
        let head = numbers.byte();
        for _ in 0..=head % 6 {
            change(&mut numbers, &mut ids, &mut c, &mut wanted);
        }
        // Now and then KVM has no memory.
        let failing = head >= 200;
        let preview = vm.preview(&c).map_err(|error| error.to_string());
        if failing {
            model.inject(Fault::nth(u64::from(head % 5) + 1, Errno::ENOMEM));
        }
        let applied = vm.apply(c);
        model.clear_faults();
        match applied {
            Ok(_) => {
                assert!(preview.is_ok(), "{preview:?}");
                regions = wanted;
            }
            Err(error) => {
                // How many address bits there are, only KVM knows.
                let stuck = matches!(error.kind(), ErrorKind::Stuck { .. });
                let by_kvm = stuck || matches!(error.kind(), ErrorKind::Refused { .. });
                assert!(
                    failing || by_kvm || preview == Err(error.to_string()),
                    "{error}, {preview:?}"
                );
                assert!(failing || error.errno() != Errno::ENOMEM, "{error}");
                // The one injected fault can hit the undoing of what KVM refused.
                if stuck {
                    vm.apply(Changes::new()).unwrap();
                }
            }
        }
        check(&vm, &model, &regions);
    }
}

#[test]
fn changes_are_made_or_refused() {
    fuzz("changes", &corpus("changes"), &[], apply);
}
