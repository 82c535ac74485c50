//! The same two calls in the words of each tool: what is not a call does no
//! harm, and what can't be read is named.

use kvm_memslots_bench::trace::{Problem, Source, Trace, write};

use super::import_text;

/// A create and a delete as strace 6.1 prints them, after the line's prefix.
const CREATE: &str = "ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=5, flags=0, \
    guest_phys_addr=0x500000, memory_size=4096, userspace_addr=0x7f6096178000}) = 0";
const DELETE: &str = "ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=5, flags=0, \
    guest_phys_addr=0x500000, memory_size=0, userspace_addr=0x7f6096178000}) = 0";

/// And as QEMU does.
const QEMU: &str = "kvm_set_user_memory AddrSpace#0 Slot#5 flags=0x0 gpa=0x500000 size=0x1000 \
    ua=0x7f6096178000 guest_memfd=-1 guest_memfd_offset=0x0 ret=0";

fn check(trace: &Trace, source: Source, name: &str) {
    let sizes: Vec<_> = trace.calls.iter().map(|call| call.region.memory_size).collect();
    assert_eq!((trace.source, sizes), (source, vec![0x1000, 0]), "{name}");
    for call in &trace.calls {
        let region = &call.region;
        let got = (region.slot, region.flags, region.guest_phys_addr, region.userspace_addr);
        assert_eq!(got, (5, 0, 0x50_0000, 0x7f60_9617_8000), "{name}");
        assert_eq!(call.errno, 0, "{name}");
    }
}

fn read(text: &str, name: &str) -> Trace {
    import_text(text).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"))
}

/// An option, the prefixes of two lines, the thread, and how long after the first
/// line the second one began.
type Row = (&'static str, &'static str, &'static str, Option<u32>, Option<u64>);

/// The prefixes of two lines, in real output; the thread, and how long after
/// the first line the second one began, where that can be known.
#[test]
fn strace_with_all_its_options() {
    let pointer = "[00007f6096288d6b] ";
    let table: [Row; 18] = [
        ("plain", "", "", None, None),
        ("-i", pointer, pointer, None, None),
        ("-i at the end", pointer, "[????????????????] ", None, None),
        ("-n", "[  16] ", "[  16] ", None, None),
        (
            "-f -n -i",
            "3393  [  16] [00007f6096288d6b] ",
            "3393  [  16] [b7f01549] ",
            Some(3393),
            None,
        ),
        ("-f on a terminal", "[pid  3393] [  16] ", "[pid  3393] [  16] ", Some(3393), None),
        ("-t", "07:38:48 ", "07:38:49 ", None, None),
        ("-f -tt", "3393  07:38:48.508912 ", "3393  07:38:48.509243 ", Some(3393), Some(331_000)),
        (
            "-f -tt -r",
            "3421  07:38:48.508912 (+     0.008662) ",
            "3421  07:38:48.509243 (+     0.000313) ",
            Some(3421),
            Some(331_000),
        ),
        ("-f -r", "3414       0.000703 ", "3414       0.000168 ", Some(3414), Some(168_000)),
        ("-r=ns", "     0.000667553 ", "     0.000183433 ", None, Some(183_433)),
        ("-f -r=s", "3428       0 ", "3428       0 ", Some(3428), None),
        ("time,ns", "07:38:48.547290764 ", "07:38:48.547485113 ", None, Some(194_349)),
        ("unix,ns", "1795851528.563814928 ", "1795851528.564078200 ", None, Some(263_272)),
        ("unix,s", "1795851528 ", "1795851528 ", None, None),
        (
            "-f -ttt -i",
            "3407  1795851528.475785 [00007ff90c24cd6b] ",
            "3407  1795851528.476066 [00007ff90c24cd6b] ",
            Some(3407),
            Some(281_000),
        ),
        ("-f -Y", "3498<prog> ", "3498<prog> ", Some(3498), None),
        (
            "pidns",
            "17 /* 3498 in strace's PID NS */ ",
            "17 /* 3498 in strace's PID NS */ ",
            Some(17),
            None,
        ),
    ];
    for (name, first, second, thread, later) in table {
        let text = format!("{first}{CREATE}\n{second}{DELETE}\n");
        let trace = read(&text, name);
        check(&trace, Source::Strace, name);
        assert!(trace.calls.iter().all(|call| call.thread == thread), "{name}");
        let began = trace.calls[1].began.zip(trace.calls[0].began);
        assert_eq!(began.map(|(second, first)| second - first), later, "{name}");
    }
}

#[test]
fn strace_with_stacks_names_and_durations() {
    let stack = " > /usr/lib/x86_64-linux-gnu/libc.so.6(ioctl+0x3b) [0xfdd6b]\n \
                 > /usr/bin/qemu-system-x86_64(kvm_set_user_memory_region+0x32) [0x11ab]\n";
    let named = |line: &str| {
        line.replace("(4, KVM", "(fd=4<anon_inode:kvm-vm>, cmd=KVM").replace(", {", ", argp={")
    };
    let attached = DELETE.replace(") = 0", "strace: Process 3534 attached\n) = 0");
    let resumed = |line: &str, took: &str| {
        let begun = line.replace(") = 0", " <unfinished ...>");
        format!(
            "7  [  16] {begun}\n8  [  16] ioctl(3, KVM_CHECK_EXTENSION, 3) = 1\n7  [  16] <... ioctl resumed>)    = 0{took}\n"
        )
    };
    for (name, text) in [
        ("-k", format!("{CREATE}\n{stack}{DELETE}\n{stack}")),
        ("-N -yy", format!("{}\n{}\n", named(CREATE), named(DELETE))),
        ("-T=s", format!("{CREATE} <0>\n{DELETE} <0>\n")),
        ("-T=ns", format!("{CREATE} <0.000102262>\n{DELETE} <0.000108812>\n")),
        // What nobody waits for: the sum of both is more than there is.
        ("-ttt -T", format!("1.000000 {CREATE}\n2.000000 {DELETE} <18446744073.5>\n")),
        ("-e inject", format!("{CREATE} (DELAYED)\n{DELETE} (flags 0) (INJECTED)\n")),
        ("a process attached", format!("{CREATE}\n{attached}\n")),
        ("-n, resumed", resumed(CREATE, " <0>") + &resumed(DELETE, "")),
        (
            "-n -i, the end",
            format!("{CREATE}\n{DELETE}\n[ 231] [????????????????] +++ exited with 0 +++\n"),
        ),
        // As a version of strace that decodes it would: with the fields of the first.
        (
            "KVM_SET_USER_MEMORY_REGION2",
            format!("{CREATE}\n{DELETE}\n").replace("REGION, {", "REGION2, {"),
        ),
    ] {
        check(&read(&text, name), Source::Strace, name);
    }
}

/// An editor saved it: with a mark at its start, and its own ends of lines.
#[test]
fn what_an_editor_makes_of_a_trace_is_one() {
    let log = format!("{CREATE}\n{DELETE}\n");
    let mut trace = Vec::new();
    write(&read(&log, "as it was"), &mut trace).unwrap();
    let trace = String::from_utf8(trace).unwrap();
    for text in [log, trace] {
        let saved = format!("\u{feff}{}", text.replace('\n', "\r\n"));
        check(&read(&saved, "saved"), Source::Strace, &saved);
    }
}

/// Quoted, indented, or in somebody else's log.
#[test]
fn what_others_put_in_front_does_no_harm() {
    let gone = QEMU.replace("size=0x1000", "size=0x0");
    for prefix in [
        "    ",
        "> ",
        "> > ",
        "\t",
        "Nov 28 07:33:51 host qemu-system-x86[1234]: ",
        "2026-11-28T07:33:51+0000 host qemu[1]: ",
        "[   12.345678] host qemu[1]: ",
        "2026-11-28 07:33:51.123+0000: 77: info : qemuLog:12 : ",
    ] {
        let lines = |first: &str, second: &str| {
            format!("{prefix}```\n{prefix}{first}\n{prefix}a line\n{prefix}{second}\n{prefix}```\n")
        };
        check(&read(&lines(QEMU, &gone), prefix), Source::QemuLog, prefix);
        check(&read(&lines(CREATE, DELETE), prefix), Source::Strace, prefix);
        let timed = |at: &str, line: &str| format!("77@12.00000{at}:{line}");
        let trace = read(&lines(&timed("1", QEMU), &timed("9", &gone)), prefix);
        assert_eq!((trace.calls[1].ended, trace.calls[1].thread), (Some(8000), Some(77)));
    }
    let cut = format!("Nov 28 07:33:51 host qemu[1]: {QEMU}\nNov 28 07:33:52 host qemu[1]: {gone}");
    let error = import_text(cut).unwrap_err();
    assert!(matches!((error.line, error.problem), (Some(2), Problem::Truncated)));
}

#[test]
fn qemu_by_its_ftrace_backend() {
    let gone = QEMU.replace("size=0x1000", "size=0x0");
    for [first, run, second] in [
        // /sys/kernel/tracing/trace, trace-cmd report, perf script.
        [
            " qemu-system-x86-1234    [000] ...1. 15527.468835: tracing_mark_write: ",
            " qemu-system-x86-1234    [000] ...1. 15527.468839: tracing_mark_write: ",
            " qemu-system-x86-1234    [001] ...1. 15527.468845: tracing_mark_write: ",
        ],
        [
            "CPU 0/KVM-1234  [000] 15527.468835: print:                tracing_mark_write: ",
            "CPU 0/KVM-1234  [000] 15527.468839: print:                tracing_mark_write: ",
            "CPU 0/KVM-1234  [000] 15527.468845: print:                tracing_mark_write: ",
        ],
        [
            "CPU 0/KVM  1200/1234 [000] 15527.468835: ftrace:print: 0xffffffff8123: ",
            "CPU 0/KVM  1200/1234 [000] 15527.468839: ftrace:print: 0xffffffff8123: ",
            "CPU 0/KVM  1200/1234 [000] 15527.468845: ftrace:print: 0xffffffff8123: ",
        ],
    ] {
        let text = format!(
            "# tracer: nop\n#\n{first}{QEMU}\n{run}kvm_run_exit cpu_index 0, reason 6\n{second}{gone}\n"
        );
        let trace = read(&text, first);
        check(&trace, Source::QemuLog, first);
        let second = &trace.calls[1];
        assert_eq!((second.ended, second.thread), (Some(10_000), Some(1234)), "{first}");
        assert!(second.after_run && !trace.calls[0].after_run, "{first}");
    }
}

#[test]
fn qemu_by_its_simple_backend_and_its_converter() {
    let fields = "guest_phys_addr=0x500000 memory_size=SIZE userspace_addr=0x7f6096178000";
    for (slot, memfd) in [
        ("slot=0x5", ""),
        ("as=0x0 slot=0x5", ""),
        ("as=0x0 slot=0x5", "fd=0xffffffff fd_offset=0x0 "),
    ] {
        let call = |delta: &str, size: &str| {
            let fields = fields.replace("SIZE", size);
            format!("kvm_set_user_memory {delta} pid=77 {slot} flags=0x0 {fields} {memfd}ret=0x0\n")
        };
        let text = [
            "kvm_irqchip_commit_routes 0.000 pid=77\n",
            &call("12.345", "0x1000"),
            "kvm_run_exit 1.000 pid=77 cpu_index=0x0 reason=0x6\n",
            &call("2.500", "0x0"),
        ]
        .concat();
        let trace = read(&text, slot);
        check(&trace, Source::QemuLog, slot);
        assert_eq!((trace.calls[1].ended, trace.calls[1].after_run), (Some(3500), true));
        // -EINVAL, in 64 bits.
        let refused = call("0.100", "0x1000").replace("ret=0x0", "ret=0xffffffffffffffea");
        assert_eq!(read(&(text + &refused), slot).calls[2].errno, 22);
    }
    let lost = "Dropped_Event 0.000 pid=77 num_events_dropped=0x3\n";
    let error = import_text(lost).unwrap_err();
    assert!(matches!((error.line, error.problem), (Some(1), Problem::Dropped)));
}

/// What the two lines in `docs/reference/traces.md` make the kernel print.
#[test]
fn a_probe_has_every_call_of_every_vmm() {
    let enter = |at: &str, size: &str| {
        format!(
            "            prog-3393    [000] ..... 14911.{at}: call: (kvm_set_memory_region+0x0/0x6b0) \
             vm=0xffffc90000a1d000 slot=0x5 flags=0x0 gpa=0x500000 size={size} \
             hva=0x7f6096178000 guest_memfd_offset=0x0 guest_memfd=0x0\n"
        )
    };
    let leave = |at: &str, ret: &str| {
        format!(
            "            prog-3393    [001] ..... 14911.{at}: done: \
             (kvm_vm_ioctl+0x3d1/0xa90 <- kvm_set_memory_region) ret={ret}\n"
        )
    };
    let run = "            prog-3393    [000] d.... 14911.000200: kvm_entry: vcpu 0, rip 0xfff0\n";
    let text = [
        enter("000001", "0x1000"),
        leave("000101", "0"),
        run.to_owned(),
        enter("000301", "0x0"),
        leave("000401", "0x0"),
    ]
    .concat();
    let trace = read(&text, "ftrace");
    check(&trace, Source::Kprobe, "ftrace");
    let second = &trace.calls[1];
    assert_eq!((second.began, second.ended), (Some(300_000), Some(400_000)));
    assert_eq!((second.thread, second.after_run), (Some(3393), true));
    let by_perf = text
        .replace("prog-3393    [000] .....", "prog  3393 [000]")
        .replace("prog-3393    [001] .....", "prog  3393 [001]")
        .replace(": call:", ": memslots:call:")
        .replace(": done:", ": memslots:done:");
    check(&read(&by_perf, "perf script"), Source::Kprobe, "perf script");
    let refused = enter("000501", "0x1000") + &leave("000502", "0xffffffea");
    assert_eq!(read(&(text.clone() + &refused), "refused").calls[2].errno, 22);

    let error = import_text(text.clone() + &enter("000501", "0x1000")).unwrap_err();
    assert!(matches!((error.line, error.problem), (Some(6), Problem::NoReturn)));
    let other = text.replacen("vm=0xffffc90000a1d000", "vm=0xffffc90000b1d000", 1);
    let error = import_text(other).unwrap_err();
    assert!(error.line == Some(4) && error.to_string().contains("another VM"), "{error}");
}

/// A thread ends in a call, or `strace` does: nothing came of that call that anybody saw.
#[test]
fn calls_that_nobody_saw_the_end_of_are_none() {
    let begun = CREATE.strip_suffix(") = 0").unwrap();
    for (name, rest) in [
        ("killed", format!("7 {begun} <unfinished ...>\n7 +++ killed by SIGKILL +++\n")),
        ("exited", format!("7 {begun} <unfinished ...>\n7 <... ioctl resumed>) = ?\n")),
        (
            "in a core dump",
            format!("7 {begun} <unfinished ...>\n7 <... ioctl resumed> <unfinished ...>) = ?\n"),
        ),
        ("at once", format!("7 {begun}) = ?\n7 +++ exited with 0 +++\n")),
        ("detached", format!("7 {begun} <detached ...>\n")),
        (
            "detached later",
            format!("7 {begun} <unfinished ...>\n7 <... ioctl resumed> <detached ...>\n"),
        ),
    ] {
        check(&read(&format!("{CREATE}\n{DELETE}\n{rest}"), name), Source::Strace, name);
    }
    let late = format!(
        "7 ioctl(4, KVM_SET_USER_MEMORY_REGION <unfinished ...>\n7 <... ioctl resumed>, {}\n{DELETE}\n",
        CREATE.split_once("REGION, ").unwrap().1
    );
    check(&read(&late, "an argument that came late"), Source::Strace, "late");
}

#[test]
fn what_holds_an_address_only_is_named() {
    for line in [
        "     3.382 ( 0.255 ms): prog/10674 ioctl(fd: 4, cmd: KVM_SET_USER_MEMORY_REGION, arg: 0x7fca6aaa2e90)    = 0",
        "     3.255 (         ): prog/10674 ioctl(fd: 4, cmd: KVM_SET_USER_MEMORY_REGION, arg: 0x7fca6aaa2e90) ...",
        "            prog 10758 [000] 14908.071342: raw_syscalls:sys_enter: NR 16 (5, 4020ae46, 7ffd2eebc120, 22, 7f9dc6d2a000, 0)",
        "            prog 10954 [001] 14910.189773: syscalls:sys_enter_ioctl: fd: 0x00000005, cmd: 0x4020ae46, arg: 0x7ffdcb131c70",
        "            prog-10998   [001] ..... 14911.478027: sys_ioctl(fd: 4, cmd: 0x4020ae46, arg: 0x7fffe90a45d0)",
        "            prog-10998   [001] ..... 14911.478026: sys_enter: NR 16 (4, 40a0ae49, 7fffe90a45d0, 22, 7fa1681cf000, 0)",
    ] {
        let error = import_text(format!("# a comment\n{line}\n")).unwrap_err();
        assert!(matches!((error.line, &error.problem), (Some(2), Problem::OnlyAddress)), "{line}");
        assert!(error.to_string().contains("strace -e ioctl"), "{error}");
    }
    for line in [
        "3484  ioctl(0x4, 0x4020ae46, 0x7f8c3f279e90) = 0",
        "3491  ioctl(4, KVM_SET_USER_MEMORY_REGION, 0x7f261125ae90) = 0",
    ] {
        let problem = import_text(format!("{line}\n")).unwrap_err().problem;
        assert!(matches!(problem, Problem::Raw), "{line}: {problem}");
    }
    for line in [
        "3484  ioctl(4, _IOC(_IOC_WRITE, 0xae, 0x49, 0xa0), 0x7ffe) = 0",
        "ioctl(4, KVM_SET_USER_MEMORY_REGION2, 0x7ffe) = 0",
    ] {
        let problem = import_text(format!("{line}\n")).unwrap_err().problem;
        assert!(matches!(problem, Problem::NotDecoded), "{line}: {problem}");
    }
    let text = format!("{CREATE}\nCPU:1 [LOST 17 EVENTS]\n");
    assert!(matches!(import_text(text).unwrap_err().problem, Problem::Dropped));
    let text = format!("{CREATE}\n{QEMU}\n");
    let error = import_text(text).unwrap_err();
    assert!(error.line == Some(2) && error.to_string().contains("as of strace before"), "{error}");
}

#[test]
fn what_is_no_text_is_named_where_it_is_known() {
    let simple = [&[0xff; 8][..], &0xf2b1_77cb_0aa4_29b4_u64.to_le_bytes(), &[4, 0]].concat();
    for (bytes, says) in [
        (&b"PERFILE2\0\0"[..], "perf script"),
        (b"\x17\x08\x44tracing6\0", "trace-cmd report"),
        (&simple, "simpletrace.py"),
        (b"\xfd7zXZ\0\0", "xz -dc"),
        (b"\x28\xb5\x2f\xfd\0", "zstd -dc"),
        (b"BZh91AY", "bzip2 -dc"),
        (b"\xff\xfek\0v\0", "iconv"),
    ] {
        let error = import_text(bytes).unwrap_err();
        assert_eq!(error.line, Some(1));
        assert!(error.to_string().contains(says), "{error}");
    }
}
