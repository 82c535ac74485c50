//! How many system calls a window makes, counted by `ptrace`.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

#[path = "common/host.rs"]
mod host;

use host::memfd;
use kvm_memslots::at;
use kvm_memslots::window::{CheckedFile, Contents, Edit, Window, WindowSpec};

/// What the child ends with where something lacks.
const SKIP: i32 = 77;
/// Marks where a part of the work begins and ends: a call that nobody makes.
const MARK: libc::c_long = libc::SYS_getpgid;

/// `struct ptrace_syscall_info`, as far as an entry needs it.
#[repr(C)]
#[derive(Default)]
struct Stop {
    op: u8,
    _pad: [u8; 3],
    _arch: u32,
    _ip: u64,
    _sp: u64,
    number: u64,
    _rest: [u64; 8],
}

const PTRACE_GET_SYSCALL_INFO: u16 = 0x420e;
const ENTRY: u8 = 1;
const NOTHING: *mut libc::c_void = std::ptr::null_mut();

fn mark() {
    // SAFETY: takes a number.
    unsafe { libc::syscall(MARK, 0) };
}

/// The calls between each two marks of what a child does.
fn calls(work: impl FnOnce()) -> Option<Vec<Vec<libc::c_long>>> {
    // SAFETY: the child allocates, with a C library that keeps its own locks whole.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: takes nothing; the parent is this child's tracer.
        let traced = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, NOTHING, NOTHING) };
        if traced != 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(SKIP) };
        }
        // SAFETY: takes a number.
        unsafe { libc::raise(libc::SIGSTOP) };
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: ends the child without what is the parent's to do.
        unsafe { libc::_exit(i32::from(worked.is_err())) };
    }
    assert!(child > 0);
    let good = libc::PTRACE_O_TRACESYSGOOD as usize;
    let mut told = false;
    let mut parts: Vec<Vec<libc::c_long>> = Vec::new();
    let mut inside = false;
    loop {
        let mut status = 0;
        // SAFETY: waits for that child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        if libc::WIFEXITED(status) {
            match libc::WEXITSTATUS(status) {
                0 => return Some(parts),
                SKIP => return None,
                code => panic!("the child ended with {code}"),
            }
        }
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
        if !std::mem::replace(&mut told, true) {
            // SAFETY: has stops at calls told from others.
            let set = unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, child, NOTHING, good) };
            assert_eq!(set, 0);
        }
        let mut stop = Stop::default();
        let size = size_of::<Stop>();
        // SAFETY: the kernel writes as many bytes at most.
        let got =
            unsafe { libc::ptrace(PTRACE_GET_SYSCALL_INFO.into(), child, size, &raw mut stop) };
        if got > 0 && stop.op == ENTRY {
            let number = libc::c_long::try_from(stop.number).unwrap();
            if number == MARK {
                inside = !inside;
                parts.extend(inside.then(Vec::new));
            } else if inside {
                parts.last_mut().unwrap().push(number);
            }
        }
        // SAFETY: lets the child go on.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SYSCALL, child, NOTHING, NOTHING) }, 0);
    }
}

#[test]
fn each_operation_makes_the_calls_that_are_documented() {
    use libc::{SYS_fcntl as FCNTL, SYS_madvise as MADVISE, SYS_mmap as MMAP};
    use libc::{SYS_mremap as MREMAP, SYS_munmap as MUNMAP};
    let test = "each_operation_makes_the_calls_that_are_documented";
    // SAFETY: takes a number.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
    let counted = calls(|| {
        let window = Window::new(WindowSpec::new(at(0, 16 * page))).unwrap();
        let fixed = memfd(0, 4 * page);
        // Whatever allocates something for the first time.
        window.place(0, page, Contents::file(&fixed, 0)).unwrap();
        window.remove(0, page).unwrap();
        let part = |work: &dyn Fn()| {
            mark();
            work();
            mark();
        };
        for file in [fixed, memfd(libc::MFD_ALLOW_SEALING, 4 * page)] {
            part(&|| window.place(0, page, Contents::file(&file, page)).unwrap());
            window.remove(0, page).unwrap();
            let file = CheckedFile::new(file).unwrap();
            part(&|| window.place(0, page, Contents::checked(&file, page)).unwrap());
            part(&|| window.remove(0, page).unwrap());
        }
        part(&|| window.place(0, page, Contents::anonymous()).unwrap());
        part(&|| {
            let mut edit = Edit::new();
            edit.remove(0, page);
            edit.place(0, page, Contents::anonymous());
            window.apply(&edit).unwrap();
        });
        for (from, to) in [(0, page), (page, 0)] {
            part(&|| {
                let mut edit = Edit::new();
                edit.remove(from, page);
                edit.place(to, page, Contents::anonymous());
                window.apply(&edit).unwrap();
            });
        }
    });
    let Some(mut counted) = counted else {
        eprintln!("SKIPPED {test}: no ptrace");
        return;
    };
    // C libraries differ in how they ask for `fstat`.
    for first in [0, 3] {
        assert_ne!(counted[first].remove(0), MMAP);
    }
    let expected: [&[libc::c_long]; 10] = [
        &[FCNTL, MMAP],
        &[MMAP],
        &[MMAP],
        &[FCNTL, MMAP, MREMAP],
        &[MMAP, MREMAP],
        &[MMAP],
        &[MMAP],
        &[MMAP],
        // The first of several.
        &[MMAP, MADVISE, MADVISE, MREMAP, MMAP, MMAP, MUNMAP],
        &[MREMAP, MMAP, MMAP, MUNMAP],
    ];
    assert_eq!(counted, expected);
}
