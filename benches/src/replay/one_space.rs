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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Source;

    fn call(slot: u32, gpa: u64, size: u64) -> Call {
        let region = kvm_userspace_memory_region2 {
            slot,
            guest_phys_addr: gpa,
            memory_size: size,
            ..Default::default()
        };
        Call::of(1, region)
    }

    fn of(calls: &[Call]) -> Result<Vec<(u32, u64)>> {
        let trace = Trace { source: Source::Strace, calls: calls.to_vec() };
        let one = one_address_space(&trace)?;
        Ok(one.calls.iter().map(|call| (call.id(), call.region.guest_phys_addr)).collect())
    }

    #[test]
    fn the_second_space_is_above_the_first() {
        let calls =
            [call(0, 0, 0xa0000), call(3, 0xa0000, 0x20000), call(0x1_0001, 0xa0000, 0x20000)];
        let moved = of(&calls).expect("room");
        assert_eq!(moved, [(0, 0), (3, 0xa0000), (5, ALIGN + 0xa0000)]);
        let single = of(&calls[..2]).expect("nothing to move");
        assert_eq!(single, [(0, 0), (3, 0xa0000)]);
    }

    /// What KVM refused may have been anywhere.
    #[test]
    fn refused_calls_need_no_room() {
        let refused = Call { errno: 22, ..call(u32::MAX, 1 << 51, 1 << 51) };
        let calls = [refused, call(0, 0, 4096), call(0x1_0000, 0, 4096)];
        let moved = of(&calls).expect("room");
        assert_eq!(moved, [(u32::MAX, 1 << 51), (0, 0), (1, ALIGN)]);
    }

    #[test]
    fn what_has_no_room_is_refused() {
        let high = [call(0, u64::MAX - 0xfff, 0xfff), call(0x1_0000, 0, 4096)];
        let refused = |calls: &[Call]| of(calls).expect_err("no room").to_string();
        assert!(refused(&high).starts_with("line 1: 2 address spaces in one: 1 ids"));
        let far = [call(0, 1 << 50, 4096), call(0xffff_0000, 0, 4096)];
        assert!(refused(&far).starts_with("line 1: 65536 address spaces in one"));
        let many = [call(0xffff, 0, 4096), call(0x1_0000, 0, 4096)];
        assert!(refused(&many).starts_with("line 1: 2 address spaces in one: 65536 ids"));
    }
}
