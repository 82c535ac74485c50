//! Which calls a VMM could have made at once; and two address spaces in one.

use std::time::Duration;

use kvm_memslots_bench::replay::one_address_space;
use kvm_memslots_bench::trace::{Call, Source, Trace, bursts};
use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;

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

fn at(slot: u32, gpa: u64, size: u64) -> Call {
    let region = kvm_userspace_memory_region2 {
        slot,
        guest_phys_addr: gpa,
        memory_size: size,
        ..Default::default()
    };
    Call::of(1, region)
}

fn of(calls: &[Call]) -> anyhow::Result<Vec<(u32, u64)>> {
    let trace = Trace { source: Source::Strace, calls: calls.to_vec() };
    let one = one_address_space(&trace)?;
    Ok(one.calls.iter().map(|call| (call.id(), call.region.guest_phys_addr)).collect())
}

#[test]
fn the_second_space_is_above_the_first() {
    let calls = [at(0, 0, 0xa0000), at(3, 0xa0000, 0x20000), at(0x1_0001, 0xa0000, 0x20000)];
    let moved = of(&calls).expect("room");
    assert_eq!(moved, [(0, 0), (3, 0xa0000), (5, (1 << 30) + 0xa0000)]);
    let single = of(&calls[..2]).expect("nothing to move");
    assert_eq!(single, [(0, 0), (3, 0xa0000)]);
}

/// What KVM refused may have been anywhere.
#[test]
fn refused_calls_need_no_room() {
    let refused = Call { errno: 22, ..at(u32::MAX, 1 << 51, 1 << 51) };
    let calls = [refused, at(0, 0, 4096), at(0x1_0000, 0, 4096)];
    let moved = of(&calls).expect("room");
    assert_eq!(moved, [(u32::MAX, 1 << 51), (0, 0), (1, 1 << 30)]);
}

#[test]
fn what_has_no_room_is_refused() {
    let high = [at(0, u64::MAX - 0xfff, 0xfff), at(0x1_0000, 0, 4096)];
    let refused = |calls: &[Call]| of(calls).expect_err("no room").to_string();
    assert!(refused(&high).starts_with("line 1: 2 address spaces in one: 1 ids"));
    let far = [at(0, 1 << 50, 4096), at(0xffff_0000, 0, 4096)];
    assert!(refused(&far).starts_with("line 1: 65536 address spaces in one"));
    let many = [at(0xffff, 0, 4096), at(0x1_0000, 0, 4096)];
    assert!(refused(&many).starts_with("line 1: 2 address spaces in one: 65536 ids"));
}
