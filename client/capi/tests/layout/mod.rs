//! The structures of the header as Rust has them.

use std::mem::{offset_of, size_of};

use kvm_memslots_client::{
    CBacking, CBar, CBarDoorbell, CBarRange, CDeferral, CDeferralUsage, CDoorbell, CError,
    CEventLimits, CEventState, CFunction, CGate, CGsiRange, CIoeventfd, CIrqfd, CLimits, CLine,
    CMsi, CONSTANTS, CObserver, COptions, CPlacement, CPreview, CRegion, CReport, CRomState,
    CServed, CSlot, CSlotRange, CSlotUsage, CSpec, CWindowSpec, CZone, CZoneWrite,
};

fn size_of_field<T, F>(_: fn(&T) -> *const F) -> usize {
    size_of::<F>()
}

macro_rules! layout {
    ($facts:ident, $ty:ty, $name:literal, $($field:ident),+) => {
        $facts.push((format!("sizeof(struct {})", $name), size_of::<$ty>()));
        // A structure must not grow into padding, which C need not have written.
        let fields = 0 $(+ size_of_field(|it: &$ty| &raw const it.$field))+;
        assert_eq!(fields, size_of::<$ty>(), "padding in struct {}", $name);
        $($facts.push((
            format!("offsetof(struct {}, {})", $name, stringify!($field)),
            offset_of!($ty, $field),
        ));)+
    };
}

/// C expressions and the values that Rust has for them.
pub(crate) fn facts() -> Vec<(String, usize)> {
    let mut facts = Vec::new();
    facts.extend(CONSTANTS.iter().map(|(name, value)| ((*name).to_owned(), *value as usize)));
    layout!(facts, CGate, "kvm_memslots_gate", size, pause, resume, opaque);
    layout!(facts, CObserver, "kvm_memslots_observer", size, check, unmapping, mapped, opaque);
    layout!(facts, CDoorbell, "kvm_memslots_doorbell", size, region, addr, value, len, flags);
    layout!(facts, CMsi, "kvm_memslots_msi", size, address, data, devid, flags);
    layout!(facts, CLine, "kvm_memslots_line", size, gsi, irqchip, pin, flags, eventfd, resample);
    layout!(facts, CSlotRange, "kvm_memslots_slot_range", as_id, first, last);
    layout!(facts, CGsiRange, "kvm_memslots_gsi_range", first, last);
    layout!(
        facts,
        COptions,
        "kvm_memslots_options",
        size,
        flags,
        executor,
        holes,
        first_gsi,
        gate,
        reserved_slots,
        nr_reserved_slots,
        observers,
        nr_observers,
        harvest,
        harvest_opaque,
        own_routes,
        nr_own_routes,
        reserved_gsis,
        nr_reserved_gsis,
        deferral,
        disabled_quirks
    );
    layout!(
        facts,
        CLimits,
        "kvm_memslots_limits",
        size,
        page_size,
        slot_size,
        slots,
        batch,
        address_spaces,
        flags
    );
    facts_of_memory(&mut facts);
    facts
}

fn facts_of_memory(facts: &mut Vec<(String, usize)>) {
    layout!(
        facts,
        CBacking,
        "kvm_memslots_backing",
        size,
        hva,
        len,
        guest_memfd_offset,
        file_offset,
        guest_memfd,
        file,
        release,
        opaque,
        flags
    );
    layout!(
        facts,
        CSpec,
        "kvm_memslots_spec",
        size,
        id,
        gpa,
        len,
        backing,
        label,
        tag,
        flags,
        kind,
        as_id
    );
    layout!(
        facts,
        CRegion,
        "kvm_memslots_region",
        size,
        id,
        tag,
        gpa,
        len,
        hva,
        guest_memfd_offset,
        file_offset,
        guest_memfd,
        file,
        flags,
        kind,
        as_id,
        label
    );
    layout!(facts, CSlot, "kvm_memslots_slot", size, gpa, len, hva, flags, id, as_id);
    facts_of_reports(facts);
}

fn facts_of_reports(facts: &mut Vec<(String, usize)>) {
    layout!(
        facts,
        CReport,
        "kvm_memslots_report",
        size,
        ioctls,
        grace_periods,
        routing_calls,
        irqfd_calls,
        ioeventfd_calls,
        zone_calls,
        event_grace_periods,
        irqfd_shutdown_grace_periods,
        regions_merged,
        regions_cancelled,
        regions_deferred,
        elapsed_ns,
        slots,
        executor,
        flags,
        last_dirty,
        opaque,
        committer
    );
    layout!(
        facts,
        CPreview,
        "kvm_memslots_preview",
        size,
        ioctls,
        grace_periods,
        routing_calls,
        irqfd_calls,
        ioeventfd_calls,
        zone_calls,
        event_grace_periods,
        irqfd_shutdown_grace_periods,
        holes,
        slots,
        hole,
        opaque
    );
    layout!(facts, CSlotUsage, "kvm_memslots_slot_usage", size, used, available, capacity);
    layout!(
        facts,
        CError,
        "kvm_memslots_error",
        size,
        change,
        region,
        error,
        flags,
        part,
        index,
        device
    );
    layout!(facts, CServed, "kvm_memslots_served", size, bytes, fault, flags);
    layout!(facts, CRomState, "kvm_memslots_rom_state", size, region, flips, mode, array_mode);
    layout!(facts, CDeferralUsage, "kvm_memslots_deferral_usage", size, waiting, slot_ns, exit_ns);
    layout!(
        facts,
        CDeferral,
        "kvm_memslots_deferral",
        size,
        policy,
        flags,
        exits,
        map_ns,
        unmap_ns,
        exit_ns
    );
    facts_of_events(facts);
}

fn facts_of_bars(facts: &mut Vec<(String, usize)>) {
    layout!(
        facts,
        CBar,
        "kvm_memslots_bar",
        size,
        len,
        windows,
        nr_windows,
        index,
        kind,
        flags,
        doorbells,
        nr_doorbells,
        exits,
        nr_exits
    );
    layout!(
        facts,
        CBarDoorbell,
        "kvm_memslots_bar_doorbell",
        size,
        offset,
        value,
        flags,
        len,
        eventfd
    );
    layout!(facts, CBarRange, "kvm_memslots_bar_range", offset, len);
    layout!(facts, CFunction, "kvm_memslots_function", size, bars, nr_bars, flags);
}

fn facts_of_events(facts: &mut Vec<(String, usize)>) {
    facts_of_bars(facts);
    layout!(facts, CEventLimits, "kvm_memslots_event_limits", size, routes, flags);
    layout!(
        facts,
        CEventState,
        "kvm_memslots_event_state",
        size,
        route,
        irqfd,
        ioeventfd,
        zone,
        opaque
    );
    layout!(facts, CIrqfd, "kvm_memslots_irqfd", size, gsi, flags, eventfd, resample);
    layout!(facts, CIoeventfd, "kvm_memslots_ioeventfd", size, addr, value, flags, len, eventfd);
    layout!(facts, CZone, "kvm_memslots_zone", size, region, addr, len, flags);
    layout!(facts, CZoneWrite, "kvm_memslots_zone_write", size, addr, data, len, flags);
    layout!(facts, CWindowSpec, "kvm_memslots_window_spec", size, gpa, len, gap, flags);
    layout!(
        facts,
        CPlacement,
        "kvm_memslots_placement",
        size,
        offset,
        len,
        file_offset,
        hva,
        fd,
        contents,
        flags
    );
}
