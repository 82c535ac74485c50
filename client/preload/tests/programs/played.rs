//! What this test's own program does when it is started again: one part each, and
//! a line about it in the file that it is told.

use std::collections::BTreeMap;
use std::ffi::{CString, c_int, c_long, c_ulong, c_void};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::pages;
use kvm_bindings::{KVM_MEM_READONLY, kvm_regs, kvm_run, kvm_sregs, kvm_userspace_memory_region};

/// Set for it: the part, where it says what, the library that it is to load.
pub(crate) const PART: &str = "PRELOAD_PART";
pub(crate) const SAID: &str = "PRELOAD_SAID";
pub(crate) const LIBRARY: &str = "PRELOAD_LIBRARY";
/// The VM that a program before it made.
const FD: &str = "PRELOAD_FD";

const CREATE_VM: c_ulong = 0xae01;
pub(crate) const SET_REGION: c_ulong = 0x4020_ae46;
pub(crate) const CREATE_VCPU: c_ulong = 0xae41;
pub(crate) const RUN: c_ulong = 0xae80;
pub(crate) const SET_REGS: c_ulong = 0x4090_ae82;
pub(crate) const GET_SREGS: c_ulong = 0x8138_ae83;
pub(crate) const SET_SREGS: c_ulong = 0x4138_ae84;
pub(crate) const PAGE: usize = 4096;
/// More VMs than there are marks.
pub(crate) const MANY: usize = 130;
/// Where the slot is.
pub(crate) const SLOT: u64 = 0x10_0000;

type Ioctl = unsafe extern "C" fn(c_int, c_ulong, ...) -> c_int;

/// Plays `part`, and ends the program.
pub(crate) fn play(part: &str) {
    let said = match part {
        "daemon" => daemon(),
        "loads" => loads(false),
        "unloads" => loads(true),
        "forks" => forks(),
        "churns" => churn(libc::ioctl).map(|_| "churned".to_owned()),
        "many" => (0..MANY).try_for_each(|_| churn(libc::ioctl).map(drop)).map(|()| "many".into()),
        "inherits" => inherits(),
        "executes-moved" => executes(|vm| {
            // SAFETY: numbers of its own, here and below.
            let moved = unsafe { libc::fcntl(vm, libc::F_DUPFD_CLOEXEC, 40) };
            // SAFETY: as above.
            unsafe { libc::close(vm) };
            assert!(moved >= 40);
        }),
        // SAFETY: a number, the lowest that is free.
        "executes-full" => executes(|_| numbers_below(Some(unsafe { libc::dup(0) }))),
        "inherited" => inherited(),
        "maps-running" => pages::while_it_runs(),
        "blocks" => pages::reads(|at, _| {
            forbid().unwrap();
            block(libc::SIGUSR1);
            at
        }),
        "reads" => pages::KINDS.iter().map(|(_, what)| pages::reads(*what)).collect(),
        other => panic!("{other}"),
    };
    say(&said.unwrap_or_else(|reason| reason));
    // SAFETY: ends the program, with all that does at its end.
    unsafe { libc::exit(0) };
}

fn say(text: &str) {
    std::fs::write(std::env::var_os(SAID).unwrap(), text).unwrap();
}

/// A slot that comes, or goes the next time.
pub(crate) fn slot(at: *mut c_void, flip: u64) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot: 1,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: SLOT,
        memory_size: if flip % 2 == 0 { PAGE as u64 } else { 0 },
        userspace_addr: at as u64,
    }
}

/// A VM whose slot comes and goes, without a vCPU, and what is in the slot; why not,
/// where there is none.
pub(crate) fn churn(ioctl: Ioctl) -> Result<(c_int, *mut c_void), String> {
    let failed = |what: &str| format!("{what}: {}", io::Error::last_os_error());
    // SAFETY: opens a file.
    let kvm = unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if kvm < 0 {
        return Err(failed("no /dev/kvm"));
    }
    // SAFETY: makes a descriptor.
    let vm = unsafe { ioctl(kvm, CREATE_VM, ptr::null_mut::<c_void>()) };
    if vm < 0 {
        return Err(failed("no VM"));
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(ptr::null_mut(), PAGE, libc::PROT_READ, flags, -1, 0) };
    for flip in 0..20 {
        let mut region = slot(at, flip);
        // SAFETY: the structure that the request takes, of memory that stays.
        let result = unsafe { ioctl(vm, SET_REGION, &raw mut region) };
        assert_eq!(result, 0, "{}", failed("the slot"));
    }
    Ok((vm, at))
}

/// There are numbers for descriptors below `end`, which is given back, or as many as
/// there can be.
fn numbers_below(end: Option<c_int>) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a structure to be filled in.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = end.map_or(limit.rlim_max, |end| end as u64);
    if let Some(end) = end {
        // SAFETY: the program's own.
        unsafe { libc::close(end) };
    }
    // SAFETY: a structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

pub(crate) const BOTH: c_int = libc::PROT_READ | libc::PROT_WRITE;

/// Maps a vCPU's page, and what it says there.
pub(crate) fn page(vcpu: c_int, at: *mut c_void, access: c_int) -> *mut c_void {
    // SAFETY: a new mapping.
    unsafe { libc::mmap(at, 3 * PAGE, access, libc::MAP_SHARED, vcpu, 0) }
}

/// A call of KVM's.
pub(crate) fn call(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    // SAFETY: what the requests here and of `pages` take.
    unsafe { libc::ioctl(fd, request, arg) }
}

/// A VM with a slot that churns, its vCPU, where the vCPU's page is, and memory for a guest.
pub(crate) struct Made {
    pub(crate) vm: c_int,
    pub(crate) vcpu: c_int,
    pub(crate) at: *mut c_void,
    pub(crate) memory: *mut c_void,
}

pub(crate) fn make(bytes: usize) -> Result<Made, String> {
    let (vm, _) = churn(libc::ioctl)?;
    let vcpu = call(vm, CREATE_VCPU, ptr::null_mut());
    let at = page(vcpu, ptr::null_mut(), BOTH);
    let own = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping.
    let memory = unsafe { libc::mmap(ptr::null_mut(), bytes, BOTH, own, -1, 0) };
    if vcpu < 0 || at == libc::MAP_FAILED || memory == libc::MAP_FAILED {
        return Err(format!("no vCPU: {}", io::Error::last_os_error()));
    }
    Ok(Made { vm, vcpu, at, memory })
}

/// A guest that executes from a slot that came and went, when `what` has been done
/// to the VM.
fn executes(what: impl FnOnce(c_int)) -> Result<String, String> {
    let Made { vm, vcpu, at, memory: code } = make(PAGE)?;
    // SAFETY: `hlt`, in the page.
    unsafe { code.cast::<u8>().write(0xf4) };
    let mut sregs = kvm_sregs::default();
    let mut regs = kvm_regs { rip: 0, rflags: 2, ..Default::default() };
    let mut done = call(vcpu, GET_SREGS, (&raw mut sregs).cast());
    (sregs.cs.base, sregs.cs.selector) = (SLOT, 0);
    done |= call(vcpu, SET_SREGS, (&raw mut sregs).cast());
    done |= call(vcpu, SET_REGS, (&raw mut regs).cast());
    for flip in 0..21 {
        let mut region = slot(code, flip);
        done |= call(vm, SET_REGION, (&raw mut region).cast());
    }
    what(vm);
    let result = call(vcpu, RUN, ptr::null_mut());
    numbers_below(None);
    // SAFETY: mapped above; the vCPU is this thread's.
    let reason = unsafe { (*at.cast::<kvm_run>()).exit_reason };
    Ok(format!("executed: {done} {result} exit {reason}"))
}

/// A VM of whose slots one is away, which the next program of this process has.
fn inherits() -> Result<String, String> {
    let (vm, _) = churn(libc::ioctl)?;
    // SAFETY: numbers.
    unsafe { libc::fcntl(vm, libc::F_SETFD, 0) };
    let mut next = std::process::Command::new(std::env::current_exe().unwrap());
    next.args(["--exact", "part", "--nocapture", "--test-threads=1"]);
    Err(next.env(PART, "inherited").env(FD, vm.to_string()).exec().to_string())
}

/// The VM belongs to memory that is gone: KVM does nothing for it. One of its own is
/// as ever, and none of what is known of it is the other's.
fn inherited() -> Result<String, String> {
    let vm: c_int = std::env::var(FD).unwrap().parse().unwrap();
    let call = |mut region: kvm_userspace_memory_region| {
        // SAFETY: the structure that the request takes.
        let result = unsafe { libc::ioctl(vm, SET_REGION, &raw mut region) };
        format!("{result} {}", io::Error::last_os_error())
    };
    let first = call(kvm_userspace_memory_region { slot: 1, ..Default::default() });
    let (own, at) = churn(libc::ioctl)?;
    Ok(format!("inherited: {first}, own {}, {}", own - vm, call(slot(at, 0))))
}

/// Kills `child` where it does not end: all of its signals may be blocked.
fn end_in_time(child: c_int) {
    // SAFETY: takes numbers, here and below.
    let file = unsafe { libc::syscall(libc::SYS_pidfd_open, c_long::from(child), 0) } as c_int;
    let mut ends = libc::pollfd { fd: file, events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure.
    if unsafe { libc::poll(&raw mut ends, 1, 60_000) } == 0 {
        // SAFETY: this process's child.
        unsafe { libc::kill(child, libc::SIGKILL) };
    }
    // SAFETY: just opened.
    unsafe { libc::close(file) };
}

/// Children of a process whose other thread is in the midst of calls on its VM: theirs
/// do not wait for it. What they are told.
fn forks() -> Result<String, String> {
    let (vm, at) = churn(libc::ioctl)?;
    let at = at as usize;
    let flip = move |flip| {
        let mut region = slot(at as *mut c_void, flip);
        // SAFETY: the structure that the request takes.
        unsafe { libc::ioctl(vm, SET_REGION, &raw mut region) }
    };
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let other = thread::spawn(move || {
        let (mut n, mut done) = (0, true);
        while done && !stopped.load(Ordering::Relaxed) {
            done = flip(n) == 0;
            n += 1;
        }
        done
    });
    let mut ends = BTreeMap::new();
    for _ in 0..500 {
        // SAFETY: the child makes system calls only.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let refused =
                flip(1) == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EIO);
            // SAFETY: does not return.
            unsafe { libc::_exit(i32::from(!refused)) };
        }
        end_in_time(child);
        let mut status = 0;
        // SAFETY: this process's child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        *ends.entry(status).or_insert(0) += 1;
        if status != 0 {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let done = other.join().unwrap();
    Ok(format!("forked: {ends:?}, the other thread: {done}"))
}

/// As daemons begin; its parent waits for it all the same.
fn daemon() -> Result<String, String> {
    let fork = || {
        // SAFETY: this program has one thread that does anything.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child > 0 {
            let mut status = 0;
            // SAFETY: this process's child.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            // SAFETY: does not return, and leaves what is the parent's alone.
            unsafe { libc::_exit(libc::WEXITSTATUS(status) + libc::WTERMSIG(status)) };
        }
    };
    fork();
    // SAFETY: has no preconditions.
    unsafe { libc::setsid() };
    fork();
    // SAFETY: a name, and numbers, here and below.
    unsafe { libc::chdir(c"/".as_ptr()) };
    // SAFETY: its own; what comes next is 0, 1 and 2.
    unsafe { libc::close_range(0, u32::MAX, 0) };
    churn(libc::ioctl)?;
    Ok(format!("daemon {}", std::process::id()))
}

/// Has a VM by the library's own `ioctl`, which it finds by name; and once more when the
/// library is closed again, as a thread might that is in it.
fn loads(unloads: bool) -> Result<String, String> {
    let path = CString::new(std::env::var(LIBRARY).unwrap()).unwrap();
    // SAFETY: what it does when it is loaded is what is tested.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    assert!(!library.is_null());
    // SAFETY: loaded above.
    let ioctl = unsafe { libc::dlsym(library, c"ioctl".as_ptr()) };
    assert!(!ioctl.is_null());
    // SAFETY: declared so.
    let ioctl = unsafe { std::mem::transmute::<*mut c_void, Ioctl>(ioctl) };
    let (vm, at) = churn(ioctl)?;
    if unloads {
        let mut back = slot(at, 0);
        // SAFETY: the structure that the request takes, here and below.
        let deferred = unsafe { ioctl(vm, SET_REGION, &raw mut back) };
        // SAFETY: loaded above.
        let closed = unsafe { libc::dlclose(library) };
        let mut gone = slot(at, 1);
        // SAFETY: as above.
        let gone = unsafe { ioctl(vm, SET_REGION, &raw mut gone) };
        return Ok(format!("unloaded: {deferred} {closed} {gone}"));
    }
    // SAFETY: has no preconditions.
    let secure = unsafe { libc::getauxval(libc::AT_SECURE) };
    Ok(format!("secure {secure}"))
}

/// From here on `signal` waits; and one does.
fn block(signal: c_int) {
    extern "C" fn handler(_: c_int) {}
    let handler: extern "C" fn(c_int) = handler;
    let set = 1_u64 << (signal - 1);
    let (at, none) = (&raw const set, ptr::null_mut::<u64>());
    // SAFETY: a set of the kernel's size; the handler does nothing, here and below.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, at, none, 8_usize) };
    // SAFETY: as above.
    unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    // SAFETY: to this thread.
    unsafe { libc::raise(signal) };
}

/// Kills for what the library does beside the calls of a VMM.
pub(crate) fn forbid() -> io::Result<()> {
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let number = |call: i64, jt, jf| op(0x15, jt, jf, call as u32);
    let code = [
        op(0x20, 0, 0, 0),
        number(libc::SYS_process_vm_readv, 6, 0),
        number(libc::SYS_process_vm_writev, 5, 0),
        number(libc::SYS_fcntl, 0, 3),
        // The low half of fcntl's second argument: F_SETOWN to F_GETOWN_EX.
        op(0x20, 0, 0, 24),
        op(0x35, 0, 1, 8),
        op(0x35, 0, 1, 17),
        op(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
        op(0x06, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_ptr().cast_mut() };
    // SAFETY: numbers only.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0, 0, 0) };
    let mode = c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: the structure that it takes.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
