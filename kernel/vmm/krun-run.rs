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

/// The process's `ioctl`, instead of libc's: the first `KVM_RUN` ends what is timed. (The lab's
/// kernel has no filters of seccomp that could.)
mod timed {
    use std::ffi::{c_int, c_long, c_ulong, c_void};
    use std::io::Write as _;
    use std::sync::atomic::{AtomicI64, Ordering};

    const SYS_IOCTL: c_long = 16;
    const KVM_RUN: c_ulong = 0xae80;
    const CLOCK_MONOTONIC: c_int = 1;
    const CLOCK_PROCESS_CPUTIME_ID: c_int = 2;

    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
        fn clock_gettime(clock: c_int, time: *mut [i64; 2]) -> c_int;
        fn write(fd: c_int, text: *const c_void, len: usize) -> isize;
        fn _exit(status: c_int) -> !;
    }

    /// 0 if it is not timed.
    static START: AtomicI64 = AtomicI64::new(0);

    fn now(clock: c_int) -> i64 {
        let mut time = [0; 2];
        // SAFETY: a timespec is these two numbers.
        unsafe { clock_gettime(clock, &raw mut time) };
        time[0] * 1_000_000_000 + time[1]
    }

    pub fn begin() {
        START.store(now(CLOCK_MONOTONIC), Ordering::Relaxed);
    }

    fn first_run(start: i64) -> ! {
        let (since, used) = (now(CLOCK_MONOTONIC) - start, now(CLOCK_PROCESS_CPUTIME_ID));
        let mut text = [b' '; 64];
        let _ = writeln!(&mut text[..63], "timed {since} {used}");
        // SAFETY: the text is there, and nothing follows.
        unsafe {
            write(2, text.as_ptr().cast(), text.len());
            _exit(0)
        }
    }

    /// # Safety
    /// As of libc's, whose third argument is a word or absent.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: c_ulong) -> c_int {
        let start = START.load(Ordering::Relaxed);
        if request == KVM_RUN && start != 0 {
            first_run(start);
        }
        // SAFETY: as the caller says.
        unsafe { syscall(SYS_IOCTL, fd, request, argument) as c_int }
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
