//! The ioctls of a VM fd.

use std::cmp::Ordering;
use std::fmt;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::c_int;

use super::files::compare_files;
use super::requests::{KVM_CHECK_EXTENSION, KVM_CREATE_VM};
use super::retry::retry;
use crate::errno::Errno;

/// What is asked of a VM fd. A trait, so that kernels that lie, that are
/// interrupted or that lack an ioctl can be played.
pub(crate) trait VmCalls: Send + Sync + fmt::Debug {
    /// Another VM of the same KVM, to try things on.
    fn scratch_vm(&self) -> Result<Box<dyn VmCalls>, Errno>;

    /// Whether `other` is of the same open file; `None` where nobody says.
    fn same_file(&self, other: BorrowedFd<'_>) -> Option<bool>;

    /// One ioctl, whose answer is not negative.
    ///
    /// # Safety
    /// `argument` is what `request` takes: a number, or a pointer that is valid for
    /// what the kernel reads and writes there. What is mapped into the guest is as
    /// [`MemoryCalls::change`](crate::memory::MemoryCalls::change) says.
    unsafe fn ioctl(&self, request: u32, argument: usize) -> Result<c_int, Errno>;
}

impl dyn VmCalls + '_ {
    /// An ioctl with a structure that the kernel reads; with one that it writes, too,
    /// if the pointer is a mutable one. Made again where a signal interrupts it.
    ///
    /// # Safety
    /// [`VmCalls::ioctl`], also of what pointers in it point at.
    pub(crate) unsafe fn tell<T>(&self, request: u32, argument: *const T) -> Result<(), Errno> {
        debug_assert_eq!(request as usize >> 16 & 0x3fff, size_of::<T>(), "of {request:#x}");
        let argument = argument.expose_provenance();
        // SAFETY: the caller's promise.
        retry(|| unsafe { self.ioctl(request, argument) }).map(drop)
    }

    /// `KVM_CHECK_EXTENSION`, likewise.
    pub(crate) fn check_extension(&self, cap: u32) -> Result<c_int, Errno> {
        // SAFETY: the argument is a number, and nothing is changed.
        retry(|| unsafe { self.ioctl(KVM_CHECK_EXTENSION, cap as usize) })
    }
}

/// `KVM_CAP_ARM_VM_IPA_SIZE`: how many bits a guest address can have, which is
/// the type of a VM where the default, 40, is more than the host has.
const CAP_ARM_VM_IPA_SIZE: u32 = 165;

/// Another VM on the same KVM.
///
/// # Errors
/// That of opening `/dev/kvm`, or of `KVM_CREATE_VM`.
fn new_vm() -> Result<OwnedFd, Errno> {
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|error| Errno::of(&error))?;
    let kvm: &dyn VmCalls = &OwnedFd::from(kvm);
    // SAFETY: the argument is a number, the type of the VM; a new descriptor is all
    // that comes of it.
    let create = |kind: usize| retry(|| unsafe { kvm.ioctl(KVM_CREATE_VM, kind) });
    let vm = create(0).or_else(|errno| match kvm.check_extension(CAP_ARM_VM_IPA_SIZE) {
        Ok(bits @ 1..) => create(bits.unsigned_abs() as usize),
        _ => Err(errno),
    })?;
    // SAFETY: KVM has just given this descriptor out, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(vm) })
}

impl VmCalls for OwnedFd {
    fn scratch_vm(&self) -> Result<Box<dyn VmCalls>, Errno> {
        new_vm().map(|vm| Box::new(vm) as _)
    }

    fn same_file(&self, other: BorrowedFd<'_>) -> Option<bool> {
        let order = compare_files(self.as_raw_fd(), other.as_raw_fd());
        order.ok().map(Ordering::is_eq)
    }

    unsafe fn ioctl(&self, request: u32, argument: usize) -> Result<c_int, Errno> {
        // 32 bits, of which musl makes an `int`.
        #[allow(clippy::cast_lossless)]
        let request = request as libc::Ioctl;
        // SAFETY: the caller's promise.
        let answer = unsafe { libc::ioctl(self.as_raw_fd(), request, argument) };
        if answer < 0 { Err(Errno::last()) } else { Ok(answer) }
    }
}
