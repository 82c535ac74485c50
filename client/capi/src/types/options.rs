//! What a VM is opened with, and what it allows.

use std::ffi::c_void;
use std::sync::Arc;

use kvm_bindings::kvm_irq_routing_entry;
use kvm_memslots::device::Route;
use kvm_memslots::{Builder, Executor, HolePolicy, Limits, Vm};

use super::callbacks::{CGate, CHarvest, CObserver, Opened, Told, harvest};
use super::{CDeferral, flag, known};
use crate::constants::{
    KVM_MEMSLOTS_ALLOW_BYPASS, KVM_MEMSLOTS_ALLOW_SCRATCH_VM, KVM_MEMSLOTS_DISABLE_SLOT_ZAP_ALL,
    KVM_MEMSLOTS_EXECUTOR_AUTO, KVM_MEMSLOTS_EXECUTOR_BATCH, KVM_MEMSLOTS_EXECUTOR_PER_REGION,
    KVM_MEMSLOTS_HAS_GUEST_MEMFD, KVM_MEMSLOTS_HAS_READONLY, KVM_MEMSLOTS_HAS_TRAP,
    KVM_MEMSLOTS_HOLES_GATE, KVM_MEMSLOTS_HOLES_NAMED, KVM_MEMSLOTS_HOLES_NO_VCPU_RUNS,
    KVM_MEMSLOTS_HOLES_REFUSE, KVM_MEMSLOTS_MANUAL_DIRTY_LOG, KVM_MEMSLOTS_NO_ORDER_CHECK,
    KVM_MEMSLOTS_X86_ROUTES, KVM_MEMSLOTS_ZAPS_SLOTS_ONLY,
};
use crate::failure::Failure;
use crate::record::{invalid, list, null, read, record, structure};

structure! {
    "kvm_memslots_slot_range" pub struct CSlotRange {
        pub as_id: u16,
        pub first: u16,
        pub last: u16,
    }
}

structure! {
    "kvm_memslots_gsi_range" pub struct CGsiRange {
        pub first: u32,
        pub last: u32,
    }
}

/// Refuses a range that has no end.
pub(crate) fn in_order(first: u32, last: u32, what: &str) -> Result<(), Failure> {
    if first <= last { Ok(()) } else { Err(invalid(format!("{what}: {first} is after {last}"))) }
}

record! {
    "kvm_memslots_options" pub struct COptions {
        pub size: usize,
        pub flags: u32,
        pub executor: u32,
        pub holes: u32,
        pub first_gsi: u32,
        pub gate: *const CGate,
        pub reserved_slots: *const CSlotRange,
        pub nr_reserved_slots: usize,
        pub observers: *const *const CObserver,
        pub nr_observers: usize,
        pub harvest: Option<CHarvest>,
        pub harvest_opaque: *mut c_void,
        pub own_routes: *const kvm_irq_routing_entry,
        pub nr_own_routes: usize,
        pub reserved_gsis: *const CGsiRange,
        pub nr_reserved_gsis: usize,
        pub deferral: *const CDeferral,
        pub disabled_quirks: u64,
    }
}

/// # Safety
/// As [the crate](crate#safety).
pub(crate) unsafe fn hole_policy(holes: u32, gate: *const CGate) -> Result<HolePolicy, Failure> {
    match holes {
        KVM_MEMSLOTS_HOLES_NAMED => Ok(HolePolicy::Named),
        KVM_MEMSLOTS_HOLES_REFUSE => Ok(HolePolicy::Refuse),
        KVM_MEMSLOTS_HOLES_NO_VCPU_RUNS => Ok(HolePolicy::NoVcpuRuns),
        KVM_MEMSLOTS_HOLES_GATE if gate.is_null() => Err(null("gate")),
        // SAFETY: not null, and as the caller says.
        KVM_MEMSLOTS_HOLES_GATE => Ok(HolePolicy::Gate(unsafe { read(gate) }?.gate()?)),
        other => Err(invalid(format!("{other} is no kvm_memslots_holes"))),
    }
}

impl COptions {
    /// # Safety
    /// As [the crate](crate#safety).
    pub(crate) unsafe fn builder(&self, opened: &Opened) -> Result<Builder, Failure> {
        let all = KVM_MEMSLOTS_MANUAL_DIRTY_LOG
            | KVM_MEMSLOTS_ALLOW_SCRATCH_VM
            | KVM_MEMSLOTS_ALLOW_BYPASS
            | KVM_MEMSLOTS_X86_ROUTES
            | KVM_MEMSLOTS_NO_ORDER_CHECK
            | KVM_MEMSLOTS_DISABLE_SLOT_ZAP_ALL;
        known(self.flags.into(), all.into(), "the options")?;
        let has = |flag| self.flags & flag != 0;
        let executor = match self.executor {
            KVM_MEMSLOTS_EXECUTOR_AUTO => Executor::Auto,
            KVM_MEMSLOTS_EXECUTOR_BATCH => Executor::Batch,
            KVM_MEMSLOTS_EXECUTOR_PER_REGION => Executor::PerRegion,
            other => return Err(invalid(format!("{other} is no kvm_memslots_executor"))),
        };
        let mut builder = Vm::builder()
            .executor(executor)
            // SAFETY: as the caller says.
            .holes(unsafe { hole_policy(self.holes, self.gate) }?)
            .manual_dirty_log(has(KVM_MEMSLOTS_MANUAL_DIRTY_LOG))
            .allow_scratch_vm(has(KVM_MEMSLOTS_ALLOW_SCRATCH_VM))
            .no_irqbypass(!has(KVM_MEMSLOTS_ALLOW_BYPASS))
            .order_check(!has(KVM_MEMSLOTS_NO_ORDER_CHECK));
        if has(KVM_MEMSLOTS_DISABLE_SLOT_ZAP_ALL) {
            builder = builder.disable_slot_zap_all(self.disabled_quirks);
        } else if self.disabled_quirks != 0 {
            return Err(invalid("disabled_quirks without KVM_MEMSLOTS_DISABLE_SLOT_ZAP_ALL"));
        }
        if has(KVM_MEMSLOTS_X86_ROUTES) {
            builder = builder.own_routes(Route::x86_defaults());
        }
        if self.first_gsi != 0 {
            builder = builder.first_gsi(self.first_gsi);
        }
        if let Some(function) = self.harvest {
            builder = builder.harvest(harvest(function, self.harvest_opaque, opened.clone()));
        }
        if !self.deferral.is_null() {
            // SAFETY: not null, and as the caller says.
            builder = builder.deferral(unsafe { read(self.deferral) }?.deferral()?);
        }
        // SAFETY: as the caller says.
        unsafe { self.lists(builder) }
    }

    /// Whether reading a dirty log leaves it as it is.
    pub(crate) const fn is_manual(&self) -> bool {
        self.flags & KVM_MEMSLOTS_MANUAL_DIRTY_LOG != 0
    }

    /// # Safety
    /// As [the crate](crate#safety).
    unsafe fn lists(&self, mut builder: Builder) -> Result<Builder, Failure> {
        // SAFETY: as the caller says.
        let slots = unsafe { list(self.reserved_slots, self.nr_reserved_slots, "reserved_slots") }?;
        for ids in slots {
            in_order(ids.first.into(), ids.last.into(), "reserved_slots")?;
            builder = builder.reserve_slots(ids.as_id, ids.first..=ids.last);
        }
        // SAFETY: as the caller says.
        let observers = unsafe { list(self.observers, self.nr_observers, "observers") }?;
        for observer in observers {
            // SAFETY: as the caller says.
            builder = builder.observer(Arc::new(Told(unsafe { read(*observer) }?)));
        }
        // SAFETY: as the caller says.
        let routes = unsafe { list(self.own_routes, self.nr_own_routes, "own_routes") }?;
        // SAFETY: as the caller says.
        let gsis = unsafe { list(self.reserved_gsis, self.nr_reserved_gsis, "reserved_gsis") }?;
        for range in gsis {
            in_order(range.first, range.last, "reserved_gsis")?;
            builder = builder.reserve_gsis(range.first..=range.last);
        }
        Ok(builder.own_routes(routes.iter().map(Route::from_kvm)))
    }
}

record! {
    "kvm_memslots_limits" pub struct CLimits {
        pub size: usize,
        pub page_size: u64,
        pub slot_size: u64,
        pub slots: u32,
        pub batch: u32,
        pub address_spaces: u32,
        pub flags: u32,
    }
}

impl From<&Vm> for CLimits {
    fn from(vm: &Vm) -> Self {
        let limits = vm.limits();
        Self {
            size: size_of::<Self>(),
            page_size: limits.page_size,
            slot_size: limits.slot_bytes(),
            slots: limits.slots,
            batch: limits.batch.unwrap_or(0),
            address_spaces: limits.address_spaces.into(),
            flags: flag(limits.readonly, KVM_MEMSLOTS_HAS_READONLY)
                | flag(limits.guest_memfd, KVM_MEMSLOTS_HAS_GUEST_MEMFD)
                | flag(limits.trap, KVM_MEMSLOTS_HAS_TRAP)
                | flag(vm.zaps_slots_only(), KVM_MEMSLOTS_ZAPS_SLOTS_ONLY),
        }
    }
}

/// The limits of a model. A field that is 0 is what x86 has.
pub(crate) fn limits(asked: &CLimits) -> Result<Limits, Failure> {
    known(
        asked.flags.into(),
        (KVM_MEMSLOTS_HAS_READONLY | KVM_MEMSLOTS_HAS_GUEST_MEMFD | KVM_MEMSLOTS_HAS_TRAP).into(),
        "the limits",
    )?;
    let mut limits = Limits::x86();
    if asked.page_size != 0 {
        limits = limits.with_page_size(asked.page_size);
    }
    if !limits.page_size.is_power_of_two() || asked.slot_size % limits.page_size != 0 {
        return Err(invalid("the limits: page_size and slot_size don't fit"));
    }
    if asked.slot_size != 0 {
        limits = limits.with_slot_pages(asked.slot_size / limits.page_size);
    }
    if asked.slots != 0 {
        limits = limits.with_slots(asked.slots);
    }
    if asked.batch != 0 {
        limits = limits.with_batch(asked.batch);
    }
    match u16::try_from(asked.address_spaces) {
        Ok(0) => {}
        Ok(count) => limits = limits.with_address_spaces(count),
        Err(_) => return Err(invalid("the limits: KVM has no more than 32 address spaces")),
    }
    if asked.flags != 0 {
        limits = limits.with_readonly(asked.flags & KVM_MEMSLOTS_HAS_READONLY != 0);
    }
    if asked.flags & KVM_MEMSLOTS_HAS_GUEST_MEMFD != 0 {
        limits = limits.with_guest_memfd();
    }
    if asked.flags & KVM_MEMSLOTS_HAS_TRAP != 0 {
        limits = limits.with_trap();
    }
    Ok(limits)
}
