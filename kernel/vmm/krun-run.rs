//! Starts a kernel in libkrun: krun-run VMLINUX INITRD CMDLINE SHARE...
//! The first serial port is stdout.
//!
//! With `KRUN_RUN_TIMED` in the environment it ends where a vCPU would run, and
//! says how long it took to get there: nanoseconds of the clock, and of processors.

use std::env;
use std::ffi::CString;
use std::process::exit;

const MEMORY: u32 = 512;
/// In bytes, of each share: memory that the guest maps.
const DAX: u64 = 8 << 20;
/// An uncompressed one.
const ELF: u32 = 1;

fn checked(what: &str, done: i32) -> i32 {
    if done < 0 {
        eprintln!("krun-run: {what}: {done}");
        exit(1);
    }
    done
}

/// Seccomp has the first `KVM_RUN` end the process.
mod timed {
    use std::ffi::{c_int, c_ulong, c_void};
    use std::io::Write as _;
    use std::sync::atomic::{AtomicI64, Ordering};

    const SIGSYS: c_int = 31;
    const CLOCK_MONOTONIC: c_int = 1;
    const CLOCK_PROCESS_CPUTIME_ID: c_int = 2;
    const PR_SET_SECCOMP: c_int = 22;
    const PR_SET_NO_NEW_PRIVS: c_int = 38;

    unsafe extern "C" {
        fn prctl(option: c_int, ...) -> c_int;
        fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
        fn clock_gettime(clock: c_int, time: *mut [i64; 2]) -> c_int;
        fn write(fd: c_int, text: *const c_void, len: usize) -> isize;
        fn _exit(status: c_int) -> !;
    }

    #[repr(C)]
    struct Insn(u16, u8, u8, u32);

    #[repr(C)]
    struct Program(u16, *const Insn);

    static START: AtomicI64 = AtomicI64::new(0);

    fn now(clock: c_int) -> i64 {
        let mut time = [0; 2];
        // SAFETY: a timespec is these two numbers.
        unsafe { clock_gettime(clock, &raw mut time) };
        time[0] * 1_000_000_000 + time[1]
    }

    extern "C" fn first_run(_: c_int) {
        let (since, used) = (now(CLOCK_MONOTONIC), now(CLOCK_PROCESS_CPUTIME_ID));
        let mut text = [b' '; 64];
        let _ = writeln!(&mut text[..63], "timed {} {used}", since - START.load(Ordering::Relaxed));
        // SAFETY: the text is there, and nothing follows.
        unsafe {
            write(2, text.as_ptr().cast(), text.len());
            _exit(0)
        }
    }

    pub fn begin() {
        // linux/filter.h: of ioctl (16) with the request KVM_RUN (0xae80), trap; allow all else.
        let filter = [
            Insn(0x20, 0, 0, 0),
            Insn(0x15, 0, 3, 16),
            Insn(0x20, 0, 0, 24),
            Insn(0x15, 0, 1, 0xae80),
            Insn(0x06, 0, 0, 0x0003_0000),
            Insn(0x06, 0, 0, 0x7fff_0000),
        ];
        let program = Program(filter.len() as u16, filter.as_ptr());
        START.store(now(CLOCK_MONOTONIC), Ordering::Relaxed);
        // SAFETY: the kernel copies the filter.
        let done = unsafe {
            signal(SIGSYS, first_run);
            prctl(PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong);
            prctl(PR_SET_SECCOMP, 2 as c_ulong, &raw const program)
        };
        super::checked("seccomp", done);
    }
}

fn main() {
    if env::var_os("KRUN_RUN_TIMED").is_some() {
        timed::begin();
    }
    let words = env::args().skip(1).map(|word| CString::new(word).expect("no NUL is in a word"));
    let words: Vec<CString> = words.collect();
    let [kernel, initrd, cmdline, shares @ ..] = &words[..] else {
        eprintln!("krun-run VMLINUX INITRD CMDLINE SHARE...");
        exit(2);
    };
    let context = checked("krun_create_ctx", krun::krun_create_ctx()) as u32;
    checked("krun_set_vm_config", krun::krun_set_vm_config(context, 1, MEMORY));
    // SAFETY: each pointer is to a string that is there until the end.
    unsafe {
        let (kernel, initrd, cmdline) = (kernel.as_ptr(), initrd.as_ptr(), cmdline.as_ptr());
        checked("kernel", krun::krun_set_kernel(context, kernel, ELF, initrd, cmdline));
        for (i, share) in shares.iter().enumerate() {
            let tag = CString::new(format!("share{i}")).expect("no NUL is in a tag");
            let added = krun::krun_add_virtiofs2(context, tag.as_ptr(), share.as_ptr(), DAX);
            checked("krun_add_virtiofs2", added);
        }
        checked("implicit console", krun::krun_disable_implicit_console(context));
        checked("serial", krun::krun_add_serial_console_default(context, 0, 1));
    }
    // Of a guest that ends, so does the process.
    checked("krun_start_enter", krun::krun_start_enter(context));
}
