//! What changes cost.

use std::ffi::c_void;
use std::ptr::null_mut;

use kvm_memslots::{Executor, Preview, Report, SlotUsage};

use super::{CRegion, flag};
use crate::constants::{
    KVM_MEMSLOTS_EXECUTOR_AUTO, KVM_MEMSLOTS_EXECUTOR_BATCH, KVM_MEMSLOTS_EXECUTOR_PER_REGION,
    KVM_MEMSLOTS_REPORT_APPLIED, KVM_MEMSLOTS_REPORT_MODEL, KVM_MEMSLOTS_REPORT_VCPUS_PAUSED,
};
use crate::record::record;

type LastDirty = unsafe extern "C" fn(*mut c_void, *const CRegion, *const u64, u64);

record! {
    "kvm_memslots_report" pub struct CReport {
        pub size: usize,
        pub ioctls: u64,
        pub grace_periods: u64,
        pub routing_calls: u64,
        pub irqfd_calls: u64,
        pub ioeventfd_calls: u64,
        pub zone_calls: u64,
        pub event_grace_periods: u64,
        pub irqfd_shutdown_grace_periods: u64,
        pub regions_merged: u64,
        pub regions_cancelled: u64,
        pub regions_deferred: u64,
        pub elapsed_ns: u64,
        pub slots: u64,
        pub executor: u32,
        pub flags: u32,
        pub last_dirty: Option<LastDirty>,
        pub opaque: *mut c_void,
        pub committer: *mut c_void,
    }
}

/// `enum kvm_memslots_executor`
pub(crate) const fn executor(executor: Executor) -> u32 {
    match executor {
        Executor::Auto => KVM_MEMSLOTS_EXECUTOR_AUTO,
        Executor::Batch => KVM_MEMSLOTS_EXECUTOR_BATCH,
        Executor::PerRegion => KVM_MEMSLOTS_EXECUTOR_PER_REGION,
    }
}

impl CReport {
    /// Of what cost nothing, with what the caller gave.
    pub(crate) fn nothing(given: Option<&Self>) -> Self {
        Self {
            size: size_of::<Self>(),
            ioctls: 0,
            grace_periods: 0,
            routing_calls: 0,
            irqfd_calls: 0,
            ioeventfd_calls: 0,
            zone_calls: 0,
            event_grace_periods: 0,
            irqfd_shutdown_grace_periods: 0,
            regions_merged: 0,
            regions_cancelled: 0,
            regions_deferred: 0,
            elapsed_ns: 0,
            slots: 0,
            executor: 0,
            flags: 0,
            last_dirty: given.and_then(|given| given.last_dirty),
            opaque: given.map_or(null_mut(), |given| given.opaque),
            committer: given.map_or(null_mut(), |given| given.committer),
        }
    }

    /// The report, with the callback of what the caller gave.
    pub(crate) fn new(report: &Report, given: Option<&Self>) -> Self {
        Self {
            ioctls: report.ioctls,
            grace_periods: report.grace_periods,
            routing_calls: report.events.routing_calls,
            irqfd_calls: report.events.irqfd_calls,
            ioeventfd_calls: report.events.ioeventfd_calls,
            zone_calls: report.events.zone_calls,
            event_grace_periods: report.events.waits.in_calls,
            irqfd_shutdown_grace_periods: report.events.waits.in_irqfd_shutdown,
            regions_merged: report.regions_merged as u64,
            regions_cancelled: report.regions_cancelled as u64,
            regions_deferred: report.regions_deferred as u64,
            elapsed_ns: report.elapsed.as_nanos() as u64,
            slots: report.slots as u64,
            executor: executor(report.executor),
            flags: KVM_MEMSLOTS_REPORT_APPLIED
                | flag(report.vcpus_paused, KVM_MEMSLOTS_REPORT_VCPUS_PAUSED)
                | flag(report.backend == "model", KVM_MEMSLOTS_REPORT_MODEL),
            ..Self::nothing(given)
        }
    }

    /// Hands out the last dirty pages of a report.
    pub(crate) fn hand_out(&self, report: &Report) {
        let Some(last_dirty) = self.last_dirty else { return };
        for (region, dirty) in &report.last_dirty {
            let words = dirty.words().as_ptr();
            // SAFETY: C gave the function to be called with these.
            unsafe { last_dirty(self.opaque, &region.into(), words, dirty.pages()) }
        }
        for region in &report.last_dirty_lost {
            // SAFETY: as above.
            unsafe { last_dirty(self.opaque, &region.into(), std::ptr::null(), 0) }
        }
    }
}

type Hole = unsafe extern "C" fn(*mut c_void, u16, u64, u64);

record! {
    "kvm_memslots_preview" pub struct CPreview {
        pub size: usize,
        pub ioctls: u64,
        pub grace_periods: u64,
        pub routing_calls: u64,
        pub irqfd_calls: u64,
        pub ioeventfd_calls: u64,
        pub zone_calls: u64,
        pub event_grace_periods: u64,
        pub irqfd_shutdown_grace_periods: u64,
        pub holes: u64,
        pub slots: u64,
        pub hole: Option<Hole>,
        pub opaque: *mut c_void,
    }
}

impl CPreview {
    /// The preview, with the callback of what the caller gave.
    pub(crate) fn new(preview: &Preview, given: Option<&Self>) -> Self {
        Self {
            size: size_of::<Self>(),
            ioctls: preview.ioctls,
            grace_periods: preview.grace_periods,
            routing_calls: preview.events.routing_calls,
            irqfd_calls: preview.events.irqfd_calls,
            ioeventfd_calls: preview.events.ioeventfd_calls,
            zone_calls: preview.events.zone_calls,
            event_grace_periods: preview.events.waits.in_calls,
            irqfd_shutdown_grace_periods: preview.events.waits.in_irqfd_shutdown,
            holes: preview.holes.len() as u64,
            slots: preview.slots as u64,
            hole: given.and_then(|given| given.hole),
            opaque: given.map_or(null_mut(), |given| given.opaque),
        }
    }

    /// Hands out the holes of a preview.
    pub(crate) fn hand_out(&self, preview: &Preview) {
        let Some(hole) = self.hole else { return };
        for (as_id, range) in &preview.holes {
            // SAFETY: C gave the function to be called with these.
            unsafe { hole(self.opaque, *as_id, range.gpa(), range.size()) }
        }
    }
}

record! {
    "kvm_memslots_slot_usage" pub struct CSlotUsage {
        pub size: usize,
        pub used: u64,
        pub available: u64,
        pub capacity: u64,
    }
}

impl From<SlotUsage> for CSlotUsage {
    fn from(usage: SlotUsage) -> Self {
        Self {
            size: size_of::<Self>(),
            used: usage.used.into(),
            available: usage.available.into(),
            capacity: usage.capacity.into(),
        }
    }
}
