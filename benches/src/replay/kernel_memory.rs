//! What the kernel allocates for the slots of a trace.

use std::collections::HashMap;
use std::fs;

use anyhow::{Result, bail};

use crate::trace::Call;
use kvm_memslots_kit::host::SMALL_PAGE;

/// With shadow paging: a reverse map entry (`memslot_rmap_alloc()`, 8 bytes)
/// and a count of write tracking (`kvm_page_track_create_memslot()`, 2 bytes)
/// for each page.
const SHADOWED: u64 = 10;

/// Refuses calls whose slots would take more of the kernel's memory than there
/// is: it would have to kill somebody.
///
/// # Errors
/// Which says the sum.
pub(super) fn check(calls: &[Call]) -> Result<()> {
    let per_page = if shadow_paging() { SHADOWED } else { 0 };
    available().map_or(Ok(()), |available| check_with(calls, per_page, available))
}

fn check_with(calls: &[Call], per_page: u64, available: u64) -> Result<()> {
    let bytes = most_mapped(calls);
    let needed = (bytes / SMALL_PAGE).saturating_mul(per_page);
    if needed <= available {
        return Ok(());
    }
    bail!(
        "the trace's slots map {bytes} bytes at a time, for which the kernel takes {per_page} bytes \
         a page with shadow paging: {needed} bytes, of which {available} are there; replay it on a \
         machine with more memory, or with two-dimensional paging"
    )
}

/// The most bytes that slots have at a time.
fn most_mapped(calls: &[Call]) -> u64 {
    let (mut sizes, mut mapped, mut most) = (HashMap::new(), 0_u64, 0);
    for call in calls {
        let before = sizes.insert(call.id(), call.region.memory_size).unwrap_or(0);
        mapped = mapped.saturating_sub(before).saturating_add(call.region.memory_size);
        most = most.max(mapped);
    }
    most
}

/// Whether KVM on x86 has no two-dimensional paging: the modules of AMD and
/// Intel say so, others (`kvm_pvm`) have none.
fn shadow_paging() -> bool {
    let parameters = ["kvm_amd/parameters/npt", "kvm_intel/parameters/ept"];
    let on =
        |path| fs::read_to_string(format!("/sys/module/{path}")).is_ok_and(|value| is_on(&value));
    cfg!(target_arch = "x86_64") && !parameters.into_iter().any(on)
}

fn is_on(value: &str) -> bool {
    matches!(value.trim(), "Y" | "1")
}

/// `MemAvailable`, in bytes.
fn available() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;

    fn call(slot: u32, size: u64) -> Call {
        Call::of(1, kvm_userspace_memory_region2 { slot, memory_size: size, ..Default::default() })
    }

    #[test]
    fn what_comes_and_goes_counts_once() {
        let calls = [call(0, 8192), call(1, 4096), call(0, 0), call(2, 4096), call(1, 4096)];
        assert_eq!(most_mapped(&calls), 8192 + 4096);
        assert_eq!(most_mapped(&[]), 0);
    }

    #[test]
    fn this_machine_says_what_it_has() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
        assert!(is_on("Y\n") && is_on("1\n") && !is_on("N\n") && !is_on("0\n"));
    }

    #[test]
    fn the_sum_is_named() {
        let calls = [call(0, 1 << 42), call(1, 1 << 42)];
        assert!(check_with(&calls, 0, 0).is_ok());
        assert!(check_with(&calls, SHADOWED, 20 << 30).is_ok());
        let error = check_with(&calls, SHADOWED, (20 << 30) - 1).expect_err("too little");
        let said = error.to_string();
        for part in ["8796093022208 bytes", "10 bytes", "21474836480", "21474836479"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
