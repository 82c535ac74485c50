//! A trace of two address spaces in one, for machines without SMM in KVM.

use anyhow::Result;
use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;

use super::beyond;
use crate::trace::{Call, Trace};

/// Guest addresses keep their place within a page of any size.
const ALIGN: u64 = 1 << 30;

/// The trace in address space 0: each further one keeps its slots' distances
/// from each other, above the ids and the guest addresses of those before it. Calls
/// that KVM refused are nowhere, and stay as they are.
///
/// # Errors
/// There are not as many ids or addresses.
pub fn one_address_space(trace: &Trace) -> Result<Trace> {
    let spaces = trace.made().map(Call::as_id).max().map_or(0, u64::from) + 1;
    let ids = trace.made().map(|call| u64::from(call.slot()) + 1).max().unwrap_or(0);
    let ends = trace.made().map(|call| {
        let region = &call.region;
        region.guest_phys_addr.saturating_add(region.memory_size)
    });
    let stride = ends.max().unwrap_or(0).checked_next_multiple_of(ALIGN);
    let calls = trace.calls.iter().map(|call| {
        if call.errno != 0 {
            return Ok(*call);
        }
        let space = u64::from(call.as_id());
        let moved = stride.and_then(|stride| {
            let above = stride.checked_mul(space)?;
            let guest_phys_addr = call.region.guest_phys_addr.checked_add(above)?;
            guest_phys_addr.checked_add(call.region.memory_size)?;
            let slot = u16::try_from(ids * space + u64::from(call.slot())).ok()?;
            Some((u32::from(slot), guest_phys_addr))
        });
        let Some((slot, guest_phys_addr)) = moved.filter(|_| spaces <= 2) else {
            let each = stride.unwrap_or(u64::MAX);
            let needs = format!("{ids} ids and {each} bytes of addresses for each");
            return beyond(call, &format!("{spaces} address spaces in one: {needs}"));
        };
        let region = kvm_userspace_memory_region2 { slot, guest_phys_addr, ..call.region };
        Ok(Call { region, ..*call })
    });
    Ok(Trace { source: trace.source, calls: calls.collect::<Result<_>>()? })
}
