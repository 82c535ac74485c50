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

#[cfg(test)]
mod tests {
    use super::*;

    fn call(slot: u32, size: u64, at: u64) -> Call {
        let region = kvm_userspace_memory_region2 { slot, memory_size: size, ..Default::default() };
        Call { ended: Some(at), thread: Some(1), ..Call::of(1, region) }
    }

    fn lengths(calls: &[Call]) -> Vec<usize> {
        bursts(calls, Duration::from_nanos(10)).iter().map(|burst| burst.len()).collect()
    }

    #[test]
    fn a_pause_ends_a_burst() {
        assert_eq!(lengths(&[]), [0; 0]);
        let calls = [call(0, 1, 0), call(1, 1, 10), call(2, 1, 21), call(3, 1, 22)];
        assert_eq!(lengths(&calls), [2, 2]);
        let timeless = calls.map(|call| Call { ended: None, ..call });
        assert_eq!(lengths(&timeless), [1; 4]);
    }

    #[test]
    fn so_does_another_thread_a_vcpu_and_another_address_space() {
        let calls = [call(0, 1, 0), call(1, 1, 1)];
        for second in [
            Call { thread: Some(2), ..calls[1] },
            Call { after_run: true, ..calls[1] },
            call(0x1_0001, 1, 1),
        ] {
            assert_eq!(lengths(&[calls[0], second]), [1, 1], "{second:?}");
        }
        assert_eq!(lengths(&calls), [2]);
    }

    #[test]
    fn what_comes_back_unchanged_was_not_committed_at_once() {
        let back = [call(0, 1, 0), call(0, 0, 1), call(0, 1, 2)];
        assert_eq!(lengths(&back), [2, 1]);
        let changed = [call(0, 1, 0), call(0, 0, 1), call(0, 2, 2)];
        assert_eq!(lengths(&changed), [3]);
    }

    #[test]
    fn a_call_that_lasts_is_no_pause() {
        let long = Call { began: Some(2), ended: Some(100), ..call(1, 1, 0) };
        assert_eq!(lengths(&[call(0, 1, 0), long, call(2, 1, 101)]), [3]);
    }
}
