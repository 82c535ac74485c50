//! What stands before a call: times, threads, and what others put there.

use kvm_memslots_bench::replay::TracedMemory;
use kvm_memslots_bench::trace::{Call, Problem, Source, Trace};
use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;

use super::import_text;

const EVENT: &str = "kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x7000 ret=0";
const STRACE: &str = "ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=5, flags=0, \
                      guest_phys_addr=0, memory_size=4096, userspace_addr=0x7000}) = 0";

/// The call on a line of a log.
fn one(line: &str) -> Call {
    let trace = import_text(format!("{line}\n")).unwrap_or_else(|error| panic!("{line}: {error}"));
    assert_eq!(trace.calls.len(), 1, "{line}");
    trace.calls[0]
}

/// When the second of two calls ended, in nanoseconds since the first.
fn between(first: &str, second: &str) -> Option<u64> {
    let calls = import_text(format!("{first}\n{second}\n")).unwrap().calls;
    assert_eq!(calls[0].ended.or(calls[0].began), Some(0), "{first}");
    calls[1].ended.or(calls[1].began)
}

#[test]
fn what_others_put_in_front_is_gone() {
    for prefix in [
        "",
        "    ",
        "\t> > ",
        ">> ",
        "\u{feff}",
        "Nov 28 07:33:51 host qemu-system-x86[1234]: ",
        "Nov  8 07:33:51.123456 host virtqemud[1]: ",
        "Fri 2026-11-27 07:33:51 UTC host qemu[1]: ",
        "2026-11-28T07:33:51+0000 host qemu[1]: ",
        "2026-11-28T07:33:51.123456+01:00 host qemu: ",
        "1795851528.475785 host qemu[1]: ",
        "[   12.345678] host qemu[1]: ",
        "> Nov 28 07:33:51 host qemu[1]:   ",
        "2026-11-28 07:33:51.123+0000: ",
        "2026-11-28 07:33:51.123+0000: 77: info : qemuLog:12 : ",
    ] {
        assert_eq!(one(&format!("{prefix}77@12.000003:{EVENT}")).thread, Some(77), "{prefix}");
    }
}

#[test]
fn what_is_of_the_log_stays() {
    for (prefix, event, thread) in [
        ("2025-08-29T12:34:56.5Z ", EVENT, None),
        ("77@12.000003:", EVENT, Some(77)),
        ("1795851528.475785 ", STRACE, None),
        ("1795851528.475785 [00007ff90c24cd6b] ", STRACE, None),
        ("[pid  3533] [  16] ", STRACE, Some(3533)),
    ] {
        let call = one(&format!("{prefix}{event}"));
        assert_eq!(call.thread, thread, "{prefix}");
        let has_time = call.began.or(call.ended).is_some();
        assert_eq!(has_time, !prefix.starts_with("[pid"), "{prefix}");
    }
}

/// Something else before the event: who knows what it says.
#[test]
fn prefixes_are_times_or_nothing() {
    let wrong = [
        "BdsDxe: ",
        "77@12.:",
        "77@12.3",
        "@1.2:",
        "2025-08-29T12:34:56.5Z",
        "77@1.5s:",
        "77@1.0000000001:",
        "77@99999999999999.0:",
        "2025-13-01T00:00:00Z ",
        "2025-01-01 00:00:00 ",
        "0000-01-01T00:00:00Z ",
        "2025-01-01T24:00:00Z ",
        "2025-01-01T00:60:00Z ",
        "2025-01-01T00:00:61Z ",
        "2025-01-01T12:34Z ",
        "2025-01-01Ta:b:cZ ",
    ];
    for prefix in wrong {
        let error = import_text(format!("{prefix}{EVENT}\n")).expect_err(prefix);
        assert!(matches!(error.problem, Problem::Malformed { .. }), "{prefix}: {error}");
    }
}

#[test]
fn fractions_have_any_number_of_digits() {
    let at = |time: &str| between(&format!("7@0.0:{EVENT}"), &format!("7@{time}:{EVENT}"));
    let expected = [("12.5", 12_500_000_000), ("0.000001", 1000), ("1.000000001", 1_000_000_001)];
    for (time, ns) in expected {
        assert_eq!(at(time), Some(ns), "{time}");
    }
}

#[test]
fn days_follow_each_other() {
    const DAY: u64 = 86_400_000_000_000;
    let at = |first: &str, second: &str| {
        between(&format!("{first}Z {EVENT}"), &format!("{second}Z {EVENT}"))
    };
    assert_eq!(at("2024-02-28T00:00:00", "2024-03-01T00:00:00"), Some(2 * DAY));
    assert_eq!(at("2025-02-28T00:00:00", "2025-03-01T00:00:00"), Some(DAY));
    let second = DAY / 86_400;
    assert_eq!(at("2025-01-01T00:00:00", "2025-01-01T23:59:59.5"), Some(DAY - second / 2));
    assert_eq!(at("2025-12-31T23:59:59.999999", "2026-01-01T00:00:00.000001"), Some(2000));
}

/// Where the memory of slots is, from the first one's on.
fn placed(slots: &[(u64, u64)]) -> Vec<u64> {
    let call = |(hva, size): &(u64, u64)| {
        let (userspace_addr, memory_size) = (*hva, *size);
        let region =
            kvm_userspace_memory_region2 { userspace_addr, memory_size, ..Default::default() };
        Call::of(1, region)
    };
    let calls: Vec<Call> = slots.iter().map(call).collect();
    let memory = TracedMemory::reserve(&Trace { source: Source::Strace, calls: calls.clone() });
    let memory = memory.unwrap();
    let at = |call: &Call| memory.place(call).region.userspace_addr;
    calls.iter().map(|call| at(call) - at(&calls[0])).collect()
}

#[test]
fn neighbours_stay_neighbours_and_strangers_strangers() {
    let slots = [(0x7000_1000, 0x1000), (0x7000_2000, 0x1000), (0x7000_4000, 1)];
    // At the same place of another large page.
    assert_eq!(placed(&slots), [0, 0x1000, 0x20_3000]);
}

#[test]
fn what_overlaps_is_one_piece() {
    let slots = [(0x20_0000, 0x5000), (0x20_1000, 0x1000), (0x20_4000, 0x2000)];
    assert_eq!(placed(&slots), [0, 0x1000, 0x4000]);
}
