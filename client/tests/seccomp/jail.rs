//! A process of its own, behind a filter.

use std::io::Write as _;
use std::process::Command;

use kvm_memslots::seccomp::{Call, RUNTIME};

/// What a child ends with where something lacks.
pub(crate) const SKIP: i32 = 77;
/// What it ends with when its filter has stopped it.
pub(crate) const STOPPED: i32 = 88;

/// The architecture, as a filter sees it (`AUDIT_ARCH_*`).
pub(crate) const ARCH: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

pub(crate) const fn step(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// A filter that lets `calls` through, and what the tests themselves need.
pub(crate) fn filter(calls: &[Call]) -> Vec<libc::sock_filter> {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_TRAP};
    let load = |at| step(BPF_LD | BPF_W | BPF_ABS, at, 0, 0);
    let skip_unless = |k, steps| step(BPF_JMP | BPF_JEQ | BPF_K, k, 0, steps);
    let answer = |k| step(BPF_RET | BPF_K, k, 0, 0);
    // struct seccomp_data: nr, arch, instruction_pointer, args.
    let mut all = vec![load(4), step(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0)];
    all.push(answer(SECCOMP_RET_KILL_PROCESS));
    let own = [libc::SYS_exit_group, libc::SYS_write, libc::SYS_rt_sigreturn];
    for number in own.map(|number| u32::try_from(number).unwrap()) {
        all.extend([load(0), skip_unless(number, 1), answer(SECCOMP_RET_ALLOW)]);
    }
    for call in calls {
        let number = u32::try_from(call.number).unwrap();
        match call.request {
            None => all.extend([load(0), skip_unless(number, 1)]),
            // The low half of the second argument.
            Some(request) => {
                all.extend([
                    load(0),
                    skip_unless(number, 3),
                    load(16 + 8),
                    skip_unless(request, 1),
                ]);
            }
        }
        all.push(answer(SECCOMP_RET_ALLOW));
    }
    all.push(answer(SECCOMP_RET_TRAP));
    all
}

/// Says which call it was, and ends the process.
extern "C" fn stopped(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // siginfo of SIGSYS: the call's address and its number, behind 16 bytes.
    // SAFETY: the kernel gave it.
    let number = unsafe { info.cast::<i32>().add(6).read() };
    let mut text = [b' '; 24];
    let mut rest: &mut [u8] = &mut text;
    let _ = writeln!(rest, "stopped: call {number}");
    // SAFETY: the buffer is there, and the process ends.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    // SAFETY: as above.
    unsafe { libc::_exit(STOPPED) }
}

/// From here on nothing but `lists` and what the runtime takes.
pub(crate) fn only(lists: &[&[Call]]) {
    let program = filter(&[lists, &[RUNTIME]].concat().concat());
    // SAFETY: zeroes are a valid one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = stopped as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler calls what is async-signal-safe, and ends.
    let set = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    let program = libc::sock_fprog {
        len: program.len().try_into().unwrap(),
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the program is there for as long as the call takes.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) } != 0 {
        end(SKIP, "no seccomp filters");
    }
}

/// Ends a child.
pub(crate) fn end(code: i32, why: &str) -> ! {
    let text = format!("{why}\n");
    // SAFETY: the text is there.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    // SAFETY: nothing of the parent's runs in the child any more.
    unsafe { libc::_exit(code) }
}

/// Runs a test in a process of its own, and there calls `f`; what that ended
/// with.
pub(crate) fn in_child<T>(test: &str, f: impl FnOnce() -> T) -> (i32, String) {
    const CHILD: &str = "MEMSLOTS_SECCOMP_TEST";
    if std::env::var_os(CHILD).is_some() {
        // Printing one would take calls that no filter has.
        std::panic::set_hook(Box::new(|panic| end(1, &panic.to_string())));
        // What it returns stays: dropping is another operation.
        std::mem::forget(f());
        end(0, "done");
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, test)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    (output.status.code().unwrap_or_else(|| panic!("{test}: {}: {said}", output.status)), said)
}

/// Runs a test that is to end well.
pub(crate) fn run<T>(test: &str, f: impl FnOnce() -> T) {
    match in_child(test, f) {
        (0, _) => {}
        (SKIP, why) => eprintln!("SKIPPED {test}: {why}"),
        (code, why) => panic!("{test} ended with {code}: {why}"),
    }
}
