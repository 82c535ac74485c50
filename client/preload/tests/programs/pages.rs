//! Where a program has its vCPU's page, while its guest reads from a slot that comes and
//! goes.

use std::ffi::{c_int, c_ulong, c_void};
use std::fmt::Write as _;
use std::{io, ptr};

use kvm_bindings::{kvm_regs, kvm_run, kvm_sregs};

use crate::played::{
    CREATE_VCPU, GET_SREGS, PAGE, RUN, SET_REGION, SET_REGS, SET_SREGS, SLOT, churn, slot,
};

const GET_REGS: c_ulong = 0x8090_ae81;

/// What a program does to the page that a vCPU shares, at the first of its two places;
/// the place where it looks at it afterwards.
pub(crate) type OfPage = fn(*mut c_void, c_int) -> *mut c_void;

/// Maps a vCPU's page, and what it says there.
fn page(vcpu: c_int, at: *mut c_void, access: c_int) -> *mut c_void {
    // SAFETY: a new mapping.
    unsafe { libc::mmap(at, 3 * PAGE, access, libc::MAP_SHARED, vcpu, 0) }
}

fn unmap(at: *mut c_void) {
    // SAFETY: the program's own.
    assert_eq!(unsafe { libc::munmap(at, 3 * PAGE) }, 0);
}

const BOTH: c_int = libc::PROT_READ | libc::PROT_WRITE;

pub(crate) const KINDS: [(&str, OfPage); 11] = [
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
    let (vm, _) = churn(libc::ioctl)?;
    let call = |fd, request: c_ulong, arg: *mut c_void| {
        // SAFETY: what the requests below take.
        unsafe { libc::ioctl(fd, request, arg) }
    };
    let vcpu = call(vm, CREATE_VCPU, ptr::null_mut());
    let at = page(vcpu, ptr::null_mut(), BOTH);
    let own = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping.
    let memory = unsafe { libc::mmap(ptr::null_mut(), 2 * PAGE, BOTH, own, -1, 0) };
    if vcpu < 0 || at == libc::MAP_FAILED || memory == libc::MAP_FAILED {
        return Err(format!("no vCPU: {}", io::Error::last_os_error()));
    }
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
