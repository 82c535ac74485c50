//! Every way in which QEMU and strace write a call gives the same call.

use std::io::{Cursor, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use kvm_memslots_bench::trace::{Call, Problem, Source, Trace, import_from, write};
use proptest::prelude::*;

use super::{UEFI, data, import_text, read};

/// What is the same of a call in all logs of it.
fn essence(call: &Call) -> (u32, u32, u64, u64, i32) {
    let region = &call.region;
    (region.slot, region.flags, region.guest_phys_addr, region.memory_size, call.errno)
}

fn essences(trace: &Trace) -> Vec<(u32, u32, u64, u64, i32)> {
    trace.calls.iter().map(essence).collect()
}

fn lines(trace: &Trace) -> Vec<u64> {
    trace.calls.iter().map(|call| call.line).collect()
}

#[test]
fn the_uefi_boot_has_894_calls() {
    let trace = read(&data(UEFI), None).unwrap();
    assert_eq!((trace.source, trace.calls.len()), (Source::QemuLog, 894));
    assert_eq!(trace.calls.iter().filter(|call| call.deletes()).count(), 445);
    assert_eq!(trace.calls.iter().filter(|call| call.slot() == 1).count(), 887);
    // Another event is in line 4.
    assert_eq!(lines(&trace)[..5], [1, 2, 3, 5, 6]);
    assert_eq!(essence(&trace.calls[1]), (1, 2, 0x400_0000, 0x400_0000, 0));
    assert!(trace.calls.iter().all(|call| call.ended.is_none() && call.thread.is_none()));
}

#[test]
fn a_log_with_times_threads_and_other_events() {
    let trace = read(&data("qemu-7.2-x86_64-seabios.log"), None).unwrap();
    assert_eq!(trace.calls.len(), 39);
    assert!(trace.calls.iter().all(|call| call.ended.is_some() && call.thread.is_some()));
    assert_eq!(trace.calls[1].ended, Some(7_253_000));
    // The main thread sets the machine up; the vCPU's thread runs and changes
    // memory, by turns.
    assert!(trace.calls[..11].iter().all(|call| !call.after_run));
    assert!(trace.calls[11..].iter().any(|call| call.after_run));
}

#[test]
fn all_versions_of_qemu_say_the_same() {
    let rest = "flags=0x2 gpa=0x1000 size=0x2000 ua=0x7f0000000000";
    let memfd = "guest_memfd=-1 guest_memfd_offset=0x0 ret=0";
    let logs = [
        format!("kvm_set_user_memory Slot#65539 {rest} ret=0\n"),
        format!("kvm_set_user_memory AddrSpace#1 Slot#3 {rest} ret=0\n"),
        format!("kvm_set_user_memory AddrSpace#1 Slot#3 {rest} {memfd}\r\n"),
        format!("77@1234.000009:kvm_set_user_memory AddrSpace#1 Slot#3 {rest} {memfd}\n"),
        format!("2025-08-29T12:34:56.7Z kvm_set_user_memory AddrSpace#1 Slot#3 {rest} {memfd}\n"),
    ];
    for log in logs {
        let trace = import_text(format!("UEFI firmware\n\nkvm_irqchip_commit_routes \n{log}"));
        let trace = trace.unwrap_or_else(|error| panic!("{error}: {log}"));
        assert_eq!(essences(&trace), [(0x1_0003, 2, 0x1000, 0x2000, 0)], "{log}");
        assert_eq!(lines(&trace), [4]);
    }
}

#[test]
fn private_memory_is_kept() {
    let log = "kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x4 gpa=0x0 size=0x1000 ua=0x1000 \
               guest_memfd=7 guest_memfd_offset=0x2000 ret=0\n";
    let region = import_text(log).unwrap().calls[0].region;
    assert_eq!((region.guest_memfd, region.guest_memfd_offset), (7, 0x2000));
}

#[test]
fn the_delete_that_qemu_does_not_mention_is_there() {
    let call = |flags| {
        format!("kvm_set_user_memory Slot#0 flags={flags} gpa=0x0 size=0x1000 ua=0x1000 ret=0\n")
    };
    let trace = import_text(call("0x0") + &call("0x2") + &call("0x3")).unwrap();
    let calls: Vec<_> =
        trace.calls.iter().map(|call| (call.line, call.implied, call.deletes())).collect();
    let expected = [(1, false, false), (2, true, true), (2, false, false), (3, false, false)];
    assert_eq!(calls, expected);
}

/// One program, `strace`d with different options: a refused call, one that was
/// made, then two threads that make and delete a slot 20 times each.
#[test]
fn all_options_of_strace_say_the_same() {
    let logs =
        ["strace-f-ttt-T.log", "strace-f-r-y-raw.log", "strace-f-tt-verbose.log", "strace-f-t.log"];
    for log in logs {
        let trace = read(&data(log), None).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((trace.source, trace.calls.len()), (Source::Strace, 82), "{log}");
        let calls = essences(&trace);
        let setup = [(0x1_0003, 3, 7, 0x1000, 22), (3, 2, 0x2000, 0x1000, 0)];
        assert_eq!(calls[..2], setup, "{log}");
        for slot in [5, 6] {
            let sizes = calls.iter().filter(|call| call.0 == slot).map(|call| call.3);
            let expected = [0x1000, 0].into_iter().cycle().take(40);
            assert!(sizes.eq(expected), "{log}: slot {slot}");
        }
        let times = trace.calls.iter().all(|call| call.began.is_some());
        assert_eq!(times, log != "strace-f-t.log", "{log}");
    }
    let trace = read(&data("strace-f-ttt-T.log"), None).unwrap();
    assert!(trace.calls.iter().all(|call| call.ended > call.began));
    let trace = read(&data("strace-plain.log"), None).unwrap();
    assert_eq!(lines(&trace), [2, 3]);
}

#[test]
fn a_vcpu_that_runs_in_between_is_noted() {
    let call = |slot| {
        format!(
            "ioctl(9, KVM_SET_USER_MEMORY_REGION, {{slot={slot}, flags=0, \
             guest_phys_addr=0x{slot}0000, memory_size=4096, userspace_addr=0x1000}}) = 0\n"
        )
    };
    let run = "ioctl(11, KVM_RUN, 0)     = 0\n";
    let trace = import_text([&*call(0x10), run, &*call(0x20), &*call(0x30)].concat());
    let after: Vec<_> = trace.unwrap().calls.iter().map(|call| call.after_run).collect();
    assert_eq!(after, [false, true, false]);
}

#[test]
fn one_trace_is_of_one_vm() {
    let call = |fd| {
        format!(
            "ioctl({fd}, KVM_SET_USER_MEMORY_REGION, {{slot=0, flags=0, guest_phys_addr=0, \
             memory_size=4096, userspace_addr=0x{fd}000}}) = 0\n"
        )
    };
    let log = call(4) + &call(5);
    let error = import_text(&log).unwrap_err();
    assert_eq!(error.line, Some(2));
    assert!(error.to_string().contains("--vm"), "{error}");
    let trace = import_from("the log", Cursor::new(log), Some(5)).unwrap();
    assert_eq!(lines(&trace), [2]);
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn what_is_written_is_read_back_also_from_gzip() {
    for log in [UEFI, "qemu-7.2-x86_64-seabios.log", "strace-f-ttt-T.log", "strace-plain.log"] {
        let trace = read(&data(log), None).unwrap();
        let mut text = Vec::new();
        write(&trace, &mut text).unwrap();
        assert_eq!(import_text(&text).unwrap(), trace, "{log}");
        assert_eq!(import_text(gzip(&text)).unwrap(), trace, "{log}");
    }
}

/// The line that is blamed, and the complaint.
fn complaint(text: impl AsRef<[u8]>) -> (u64, Problem) {
    let error = import_text(text).unwrap_err();
    (error.line.unwrap(), error.problem)
}

#[test]
fn a_truncated_file_is_refused_with_the_line() {
    let compressed = std::fs::read(data(UEFI)).unwrap();
    let cut = complaint(&compressed[..compressed.len() - 100]);
    assert!(matches!(cut, (1.., Problem::Io(_))), "{cut:?}");

    let trace = read(&data(UEFI), None).unwrap();
    let mut text = Vec::new();
    write(&trace, &mut text).unwrap();
    let last_line = text.iter().rposition(|byte| *byte == b'{').unwrap();
    for (cut, line) in [(text.len() - 1, 895), (text.len() - 20, 895), (last_line, 894)] {
        let (at, problem) = complaint(&text[..cut]);
        assert_eq!(at, line, "{problem}");
        assert!(matches!(problem, Problem::Truncated | Problem::Missing { .. }), "{problem}");
    }
}

#[test]
fn a_log_that_ends_in_a_call_is_refused_wherever_it_ends() {
    let logs = [
        "kvm_set_user_memory Slot#0 flags=0x2 gpa=0x1000 size=0x2000 ua=0x7f00 ret=-22\n",
        "ioctl(9, KVM_SET_USER_MEMORY_REGION, {slot=1, flags=KVM_MEM_READONLY, \
         guest_phys_addr=0, memory_size=4096, userspace_addr=0x1000}) = 0 <0.000012>\n",
    ];
    for log in logs {
        let whole = log.repeat(2);
        import_text(&whole).unwrap();
        for end in log.len() + 15..whole.len() {
            let (line, problem) = complaint(&whole[..end]);
            assert!(matches!(problem, Problem::Truncated), "{}: {problem}", &whole[..end]);
            assert_eq!(line, 2);
        }
    }
    let unfinished = "7 ioctl(9, KVM_SET_USER_MEMORY_REGION, {slot=1, flags=0, guest_phys_addr=0, \
                      memory_size=0, userspace_addr=0} <unfinished ...>\n8 ioctl(3, KVM_RUN, 0) = 0\n";
    assert!(matches!(complaint(unfinished), (1, Problem::Truncated)));
}

#[test]
fn a_foreign_file_is_refused_with_the_line() {
    let text = "root:x:0:0\nbin:x:1:1\n";
    assert!(matches!(complaint(text), (2, Problem::Foreign)));
    assert!(matches!(complaint(""), (1, Problem::Foreign)));
    assert!(matches!(complaint([0x7f, b'E', b'L', b'F', 2, 0, 0]), (1, Problem::NotText)));
    assert!(matches!(complaint(gzip(&[b'\n', 0])), (2, Problem::NotText)));
    assert!(matches!(complaint("{\"format\":\"something\"}\n"), (1, Problem::Foreign)));
    let version = "{\"format\":\"kvm-memslots-trace\",\"version\":2}\n";
    assert!(matches!(complaint(version), (1, Problem::Version(2))));
}

#[test]
fn a_call_that_makes_no_sense_is_refused_with_the_line() {
    let good = "kvm_set_user_memory Slot#0 flags=0x2 gpa=0x1000 size=0x2000 ua=0x7f000 ret=0\n";
    for (right, wrong) in [
        ("Slot#0", "Slot#zero"),
        ("flags=0x2", "flags=2"),
        ("gpa=0x1000 ", ""),
        ("ret=0", "ret=0 more=1"),
        ("kvm_set", "BdsDxe: kvm_set"),
    ] {
        let (line, problem) = complaint(good.to_owned() + &good.replace(right, wrong));
        assert!(matches!((line, &problem), (2, Problem::Malformed { .. })), "{wrong}: {problem}");
    }
    // Its creation is missing.
    let delete = good.replace("size=0x2000", "size=0x0");
    assert!(matches!(complaint(delete), (1, Problem::Impossible { .. })));
    let region2 = "ioctl(4, KVM_SET_USER_MEMORY_REGION2, 0x7ffe00001000) = 0\n";
    assert!(matches!(complaint(region2), (1, Problem::NotDecoded)));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// Whatever is done to a log, it is read or refused with a line, and never
    /// brings the reader down.
    #[test]
    fn a_damaged_log_is_read_or_refused(
        name in prop::sample::select(vec!["strace-f-ttt-T.log", "strace-f-r-y-raw.log", "qemu-7.2-x86_64-seabios.log"]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut text = std::fs::read(data(name)).unwrap();
        for (place, byte) in damage {
            let place = place.index(text.len());
            text[place] = byte;
        }
        text.truncate(cut.index(text.len()) + 1);
        if let Err(error) = import_text(&text) {
            prop_assert!(error.line.is_some());
        }
    }
}
