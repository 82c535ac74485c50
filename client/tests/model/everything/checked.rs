//! What there is, and whether all agree about it: the library, the models, an observer.

use std::collections::BTreeSet;

use kvm_memslots::device::RouteTarget;
use kvm_memslots::{Region, Slot};

use super::expected::{Expected, SPACE, Wanted};
use super::world::{World, place};
use crate::common::PAGE;

/// Regions and devices to the library; what the guest has of devices to the model.
pub(super) fn found(world: &World) -> Wanted {
    let state = world.events.state();
    let irqs = state.irqfds().map(|irqfd| {
        let signalled = world.events.signalled(irqfd.fd);
        let is_line = matches!(signalled[..], [RouteTarget::Irqchip { .. }]);
        (irqfd.fd, (is_line.then_some(irqfd.gsi), signalled))
    });
    let regions = world.vm.regions().into_iter();
    Wanted {
        regions: regions.map(|region| (region.id, (place(&region), region.flags))).collect(),
        devices: world.vm.devices().into_iter().collect(),
        bells: state.ioeventfds().map(|i| (i.addr, i.len, i.datamatch, i.fd)).collect(),
        zones: state.zones().map(|zone| (zone.addr, zone.len)).collect(),
        irqs: irqs.collect(),
    }
}

pub(super) fn check(world: &World, now: &Expected) {
    assert_eq!(found(world), now.wanted());
    let state = world.events.state();
    assert_eq!(world.vm.event_state().unwrap(), state);
    let gsis = BTreeSet::from_iter(state.irqfds().map(|irqfd| irqfd.gsi));
    assert_eq!(gsis.len(), state.irqfds().count(), "a GSI is one descriptor's");
    let regions = world.vm.regions();
    for space in world.spaces() {
        slots(world, space, &regions);
    }
    if let Some(observer) = &world.observer {
        let told: Vec<String> = observer.wrong.lock().unwrap().clone();
        assert!(told.is_empty(), "the observer was told {told:?}");
        let regions = regions.iter().map(|region| (region.id, place(region))).collect();
        assert_eq!(*observer.mapped.lock().unwrap(), regions);
    }
}

/// The guest finds at each page what the regions say, or an exit where one is deferred.
fn slots(world: &World, space: u16, regions: &[Region]) {
    let slots = world.memory.slots(space);
    // KVM knows no kinds, and its model neither.
    let plain = |slots: &[Slot]| -> Vec<_> {
        let plain = |s: &Slot| (s.id, s.mapping.range(), s.mapping.hva(), s.mapping.flags());
        slots.iter().map(plain).collect()
    };
    assert_eq!(plain(&world.vm.slots(space)), plain(&slots));
    let usage = world.vm.slot_usage(space).unwrap();
    assert_eq!(usage.used as usize, slots.len());
    assert_eq!(usage.used + usage.available, usage.capacity);
    for gpa in (0..SPACE).map(|page| page * PAGE) {
        let region = regions.iter().find(|r| r.as_id == space && r.range.contains(gpa));
        let slot = slots.iter().find(|slot| slot.mapping.range().contains(gpa));
        let (region, slot) = match (region, slot) {
            (Some(region), Some(slot)) if !region.deferred => (region, slot),
            (None, None) => continue,
            (Some(region), None) if region.deferred => continue,
            other => panic!("{gpa:#x} is {other:?}"),
        };
        let range = slot.mapping.range();
        assert_eq!(slot.mapping.flags(), region.flags);
        let (in_slot, in_region) = (gpa - range.gpa(), gpa - region.range.gpa());
        assert_eq!(slot.mapping.hva() + in_slot, region.hva + in_region);
        let there = slot.mapping.guest_memfd().map(|memfd| (memfd.fd, memfd.offset + in_slot));
        assert_eq!(there, region.guest_memfd.map(|memfd| (memfd.fd, memfd.offset + in_region)));
        let within = region.range.contains(range.gpa()) && range.end() <= region.range.end();
        assert!(within || !region.alone, "{region:?} shares {slot:?}");
        let back = world.vm.region_at_slot(space, slot.id, in_slot / PAGE).unwrap();
        assert_eq!((back.0.id, back.1), (region.id, in_region / PAGE));
    }
}
