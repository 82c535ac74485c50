//! Whether a file descriptor is a VM.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use kvm_bindings::KVM_CAP_USER_MEMORY;

use super::calls::VmCalls;
use super::error::OpenError;
use super::requests::KVM_GET_API_VERSION;
use super::retry::retry;
use crate::errno::Errno;

/// Duplicates `fd` if it is a VM's.
pub(super) fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, OpenError> {
    let raw = fd.as_raw_fd();
    let vm = fd
        .try_clone_to_owned()
        .map_err(|error| OpenError::Duplicate { fd: raw, errno: Errno::of(&error) })?;
    check(&vm, raw)?;
    Ok(vm)
}

/// Whether `vm` answers as a VM; `fd` is for the error.
pub(super) fn check(vm: &dyn VmCalls, fd: RawFd) -> Result<(), OpenError> {
    // KVM refuses this one if its argument, which it does not use, is not 0.
    // SAFETY: the argument is a number, and nothing is changed.
    let api_version = || retry(|| unsafe { vm.ioctl(KVM_GET_API_VERSION, 0) });
    match vm.check_extension(KVM_CAP_USER_MEMORY) {
        // The /dev/kvm fd answers KVM_CHECK_EXTENSION too.
        Ok(_) if api_version().is_ok() => Err(OpenError::SystemFd(fd)),
        Ok(0) => Err(OpenError::NoMemslots(fd)),
        Ok(_) => Ok(()),
        Err(errno) => {
            let what = what_is(fd);
            // kvm_vm_ioctl() refuses a foreign mm and a dead VM alike.
            if errno == Errno::EIO && what.contains("kvm-vm") {
                return Err(OpenError::NotUsable(fd));
            }
            Err(OpenError::NotAVm { fd, what, errno })
        }
    }
}

fn what_is(fd: RawFd) -> String {
    match std::fs::read_link(format!("/proc/self/fd/{fd}")) {
        Ok(path) => path.display().to_string(),
        Err(_) => "of unknown kind".to_owned(),
    }
}
