//! Which calls of a trace a VMM could have made at once.

use std::collections::HashMap;
use std::time::Duration;

use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;

use super::Call;

/// How long a VMM pauses within a burst, at most, where nothing else is asked
/// for.
pub const BURST_GAP: Duration = Duration::from_micros(100);

/// Cuts calls into bursts: a VMM that commits would have made each at once.
///
/// A trace does not say where a VMM's commits end, so this errs on the side of
/// short bursts. Two calls are of one burst if all of this holds:
/// - both have a time, and at most `gap` passed between them;
/// - they are of the same thread, as far as that is known, and of the same
///   address space;
/// - no vCPU was entered in between, as far as that is known;
/// - the second one does not restore what the burst deleted: a VMM that commits
///   once does neither of the two.
///
/// Without times, each call is a burst of its own.
#[must_use]
pub fn bursts(calls: &[Call], gap: Duration) -> Vec<&[Call]> {
    let gap = u64::try_from(gap.as_nanos()).unwrap_or(u64::MAX);
    let mut bursts = Vec::new();
    let mut live: HashMap<u32, kvm_userspace_memory_region2> = HashMap::new();
    let mut deleted: HashMap<u32, kvm_userspace_memory_region2> = HashMap::new();
    let mut from = 0;
    for (index, call) in calls.iter().enumerate() {
        let restores = deleted.get(&call.id()) == Some(&call.region);
        let joins = index.checked_sub(1).is_some_and(|before| follows(&calls[before], call, gap));
        if index > from && (!joins || restores) {
            bursts.push(&calls[from..index]);
            from = index;
            deleted.clear();
        }
        if call.deletes() {
            deleted.extend(live.remove(&call.id()).map(|region| (call.id(), region)));
        } else {
            live.insert(call.id(), call.region);
        }
    }
    if from < calls.len() {
        bursts.push(&calls[from..]);
    }
    bursts
}

fn follows(before: &Call, call: &Call, gap: u64) -> bool {
    // QEMU makes an implied call in the same breath.
    if before.implied {
        return true;
    }
    let times = before.ended.or(before.began).zip(call.began.or(call.ended));
    let soon = times.is_some_and(|(end, begin)| begin.saturating_sub(end) <= gap);
    let together = (before.thread, before.as_id()) == (call.thread, call.as_id());
    soon && together && !call.after_run
}
