//! Where a program has its vCPU's page, while its guest reads from a slot that comes and
//! goes.

use std::ffi::{c_int, c_ulong, c_void};
use std::fmt::Write as _;
use std::os::unix::thread::JoinHandleExt as _;
use std::path::Path;
use std::ptr;

use kvm_bindings::{kvm_regs, kvm_run, kvm_sregs};

use crate::common::{NO_LIBRARY, library, skip};
use crate::played::{
    BOTH, GET_SREGS, Made, PAGE, RUN, SET_REGION, SET_REGS, SET_SREGS, SLOT, call, make, page, slot,
};
use crate::{player, said, says, shown, stats};

const GET_REGS: c_ulong = 0x8090_ae81;

/// What a program does to the page that a vCPU shares, at the first of its two places;
/// the place where it looks at it afterwards.
pub(crate) type OfPage = fn(*mut c_void, c_int) -> *mut c_void;

fn unmap(at: *mut c_void) {
    // SAFETY: the program's own.
    assert_eq!(unsafe { libc::munmap(at, 3 * PAGE) }, 0);
}

pub(crate) const KINDS: [(&str, OfPage); 12] = [
    ("mapped once", |at, _| at),
    ("mapped twice, the second unmapped", |at, vcpu| {
        unmap(page(vcpu, ptr::null_mut(), BOTH));
        at
    }),
    ("mapped twice, the first unmapped", |at, vcpu| {
        let second = page(vcpu, ptr::null_mut(), BOTH);
        unmap(at);
        second
    }),
    ("mapped six times, unmapped but for the second", |at, vcpu| mapped_often(at, vcpu, 1)),
    ("mapped six times, unmapped but for the last", |at, vcpu| mapped_often(at, vcpu, 5)),
    ("mapped again, not to be written to", |at, vcpu| {
        page(vcpu, ptr::null_mut(), libc::PROT_READ);
        at
    }),
    ("mapped only to be read from", |at, vcpu| {
        let second = page(vcpu, ptr::null_mut(), libc::PROT_READ);
        unmap(at);
        second
    }),
    ("something else at the second place", |at, vcpu| {
        let second = page(vcpu, ptr::null_mut(), BOTH);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: in its place.
        assert_eq!(unsafe { libc::mmap(second, 3 * PAGE, BOTH, flags, -1, 0) }, second);
        at
    }),
    ("unmapped by number, and mapped again", |at, vcpu| {
        // SAFETY: the program's own.
        assert_eq!(unsafe { libc::syscall(libc::SYS_munmap, at, 3 * PAGE) }, 0);
        page(vcpu, ptr::null_mut(), BOTH)
    }),
    ("a file mapped that has its owner and signal", |at, vcpu| {
        like(vcpu);
        unmap(at);
        ptr::null_mut()
    }),
    ("moved", |at, _| {
        // SAFETY: the program's own, here and below.
        let place = unsafe {
            let own = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(ptr::null_mut(), 3 * PAGE, libc::PROT_NONE, own, -1, 0)
        };
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: as above.
        unsafe { libc::mremap(at, 3 * PAGE, 3 * PAGE, flags, place) }
    }),
    ("unmapped", |at, _| {
        unmap(at);
        ptr::null_mut()
    }),
];

/// Maps a file that its owner is to be told of as that of a vCPU.
fn like(vcpu: c_int) {
    const SET_SIGNAL: c_int = 10;
    const GET_SIGNAL: c_int = 11;
    const SET_OWNER: c_int = 15;
    const GET_OWNER: c_int = 16;
    let mut owner = [0 as c_int; 2];
    // SAFETY: makes a file, here and below with numbers and structures of its own.
    let file = unsafe { libc::memfd_create(c"file".as_ptr(), 0) };
    // SAFETY: as above.
    unsafe { libc::ftruncate(file, 3 * PAGE as i64) };
    // SAFETY: as above.
    let signal = unsafe { libc::fcntl(vcpu, GET_SIGNAL) };
    // SAFETY: as above.
    unsafe { libc::fcntl(vcpu, GET_OWNER, owner.as_mut_ptr()) };
    // SAFETY: as above.
    unsafe { libc::fcntl(file, SET_OWNER, owner.as_ptr()) };
    // SAFETY: as above.
    unsafe { libc::fcntl(file, SET_SIGNAL, signal) };
    page(file, ptr::null_mut(), BOTH);
}

/// More often than is noted; one place is left.
fn mapped_often(at: *mut c_void, vcpu: c_int, left: usize) -> *mut c_void {
    let mut all = [at; 6];
    all[1..].fill_with(|| page(vcpu, ptr::null_mut(), BOTH));
    for (_, at) in all.iter().enumerate().filter(|(n, _)| *n != left) {
        unmap(*at);
    }
    all[left]
}

/// A guest that reads from a slot that comes and goes, before and after `what` is done
/// to its vCPU's page.
pub(crate) fn reads(what: OfPage) -> Result<String, String> {
    let Made { vm, vcpu, at, memory } = make(2 * PAGE)?;
    let slots = memory.wrapping_byte_add(PAGE);
    // SAFETY: `mov ax, [bx]`, `hlt`, and what is read, in the two pages.
    unsafe { memory.cast::<[u8; 3]>().write([0x8b, 0x07, 0xf4]) };
    // SAFETY: as above.
    unsafe { slots.cast::<u16>().write(0x1234) };
    let mut code = slot(memory, 0);
    (code.slot, code.guest_phys_addr) = (0, 0);
    let mut done = call(vm, SET_REGION, (&raw mut code).cast());
    let mut sregs = kvm_sregs::default();
    done |= call(vcpu, GET_SREGS, (&raw mut sregs).cast());
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    (sregs.ds.base, sregs.ds.selector) = (SLOT, 0);
    done |= call(vcpu, SET_SREGS, (&raw mut sregs).cast());
    let (mut at, mut said) = (at, String::new());
    for what in [|at, _| at, what] {
        for flip in 0..20 {
            let mut region = slot(slots, flip);
            done |= call(vm, SET_REGION, (&raw mut region).cast());
        }
        let mut back = slot(slots, 0);
        done |= call(vm, SET_REGION, (&raw mut back).cast());
        at = what(at, vcpu);
        let mut regs = kvm_regs { rflags: 2, ..Default::default() };
        done |= call(vcpu, SET_REGS, (&raw mut regs).cast());
        let result = call(vcpu, RUN, ptr::null_mut());
        done |= call(vcpu, GET_REGS, (&raw mut regs).cast());
        let at = if at.is_null() { page(vcpu, at, BOTH) } else { at };
        // SAFETY: mapped by now; the vCPU is this thread's.
        let reason = unsafe { (*at.cast::<kvm_run>()).exit_reason };
        let _ = writeln!(said, "{done} {result} exit {reason} {:#x}", regs.rax);
        // It is away for what comes next.
        let mut gone = slot(slots, 1);
        done |= call(vm, SET_REGION, (&raw mut gone).cast());
    }
    Ok(said)
}

/// A vCPU's page is mapped by another number while it runs, which waits for nothing.
pub(crate) fn while_it_runs() -> Result<String, String> {
    extern "C" fn handler(_: c_int) {}
    let handler: extern "C" fn(c_int) = handler;
    let Made { vm, vcpu, memory, .. } = make(PAGE)?;
    // `mov byte [0x800], 1`, and on the spot.
    // SAFETY: in the page.
    unsafe { memory.cast::<[u8; 7]>().write([0xc6, 0x06, 0x00, 0x08, 0x01, 0xeb, 0xfe]) };
    let mut code = slot(memory, 0);
    (code.slot, code.guest_phys_addr, code.flags) = (0, 0, 0);
    let mut done = call(vm, SET_REGION, (&raw mut code).cast());
    let (mut sregs, mut regs) =
        (kvm_sregs::default(), kvm_regs { rflags: 2, ..Default::default() });
    done |= call(vcpu, GET_SREGS, (&raw mut sregs).cast());
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    done |= call(vcpu, SET_SREGS, (&raw mut sregs).cast());
    done |= call(vcpu, SET_REGS, (&raw mut regs).cast());
    // SAFETY: the handler does nothing, here and below.
    unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
    // Where it waits it is for ever.
    // SAFETY: as above.
    unsafe { libc::alarm(60) };
    let runs = std::thread::spawn(move || call(vcpu, RUN, ptr::null_mut()));
    let flag = memory.cast::<u8>().wrapping_add(0x800);
    // SAFETY: in the page, which the guest writes to.
    while unsafe { flag.read_volatile() } == 0 {
        std::thread::yield_now();
    }
    // SAFETY: a number of its own.
    let again = unsafe { libc::fcntl(vcpu, libc::F_DUPFD_CLOEXEC, 40) };
    let second = page(again, ptr::null_mut(), BOTH);
    let exit = std::mem::offset_of!(kvm_run, immediate_exit);
    // SAFETY: mapped above, a byte of the program's own.
    unsafe { second.cast::<u8>().wrapping_add(exit).write_volatile(1) };
    // SAFETY: the thread is there until it is joined.
    unsafe { libc::pthread_kill(runs.as_pthread_t(), libc::SIGUSR1) };
    Ok(format!("ran: {done} {}", runs.join().unwrap()))
}

/// Exits are read where the page is mapped, not where it was.
#[test]
fn a_guest_reads_wherever_its_vcpus_page_is_mapped() {
    let name = "a_guest_reads_wherever_its_vcpus_page_is_mapped";
    let Some(library) = library() else { return skip(name, NO_LIBRARY) };
    let run = |library: Option<&Path>| {
        let dir = tempfile::tempdir().unwrap();
        let mut command = player(&std::env::current_exe().unwrap(), "reads", dir.path());
        if let Some(library) = library {
            command.env("LD_PRELOAD", library).env("KVM_MEMSLOTS_PRELOAD_STATS", "stats.json");
            command.env("KVM_MEMSLOTS_PRELOAD_POLICY", "fixed:500");
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", shown(&output));
        (said(dir.path()), stats(dir.path()))
    };
    let (without, _) = run(None);
    if !without.starts_with("0 0 exit 5 0x1234") {
        return skip(name, &without);
    }
    let (with, stats) = run(Some(&library));
    let said = |of: &str| Vec::from_iter(of.lines().map(str::to_owned));
    let (with, without) = (said(&with), said(&without));
    assert_eq!(with.len(), without.len());
    let kinds = KINDS.iter().flat_map(|(kind, _)| [kind; 2]);
    for ((kind, with), without) in kinds.zip(with).zip(without) {
        assert_eq!(with, without, "{kind}");
    }
    let [(_, stats)] = &stats[..] else { panic!("{stats:?}") };
    // All but four, whose page is nowhere that is known when the vCPU runs.
    assert_eq!(stats["reads"], 2 * KINDS.len() - 4, "{stats}");
}

/// KVM makes no call for a vCPU that runs; to map its page is none.
#[test]
fn a_page_is_mapped_while_its_vcpu_runs() {
    let name = "a_page_is_mapped_while_its_vcpu_runs";
    let Some(library) = library() else { return skip(name, NO_LIBRARY) };
    for library in [None, Some(&*library)] {
        let said = says("maps-running", library);
        if !said.starts_with("ran") {
            return skip(name, &said);
        }
        assert_eq!(said, "ran: 0 -1", "{library:?}");
    }
}
