//! Whether a file descriptor is a VM, and what that VM allows.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use kvm_bindings::{
    KVM_CAP_GUEST_MEMFD, KVM_CAP_MULTI_ADDRESS_SPACE, KVM_CAP_NR_MEMSLOTS, KVM_CAP_READONLY_MEM,
    KVM_CAP_USER_MEMORY, KVM_CAP_USER_MEMORY2,
};
use kvm_memslots_uapi::probe::{ProbeVm, Support, TrapSupport, probe};
use kvm_memslots_uapi::{MAX_ENTRIES, kvm_userspace_memory_regions};
use libc::c_int;
use nix::unistd::{SysconfVar, sysconf};
use thiserror::Error;

use super::calls::VmCalls;
use super::retry;
use crate::Limits;
use crate::backend::Errno;

/// Why a file descriptor can't be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The descriptor can't be duplicated: it is closed (`EBADF`), or the
    /// process has too many (`EMFILE`).
    #[error("file descriptor {fd} can't be duplicated: {errno}")]
    Duplicate {
        /// The descriptor.
        fd: RawFd,
        /// The errno of `F_DUPFD_CLOEXEC`.
        errno: Errno,
    },
    /// The descriptor is KVM's, but not a VM's.
    #[error(
        "file descriptor {fd} is /dev/kvm itself: pass the one of the VM, \
         which KVM_CREATE_VM returned"
    )]
    SystemFd {
        /// The descriptor.
        fd: RawFd,
    },
    /// The VM was created by another process (before a `fork`, say), or KVM
    /// has given it up after an error.
    #[error(
        "file descriptor {fd} is a VM, but one that this process can't use (EIO): \
         it was created by another process, or KVM has declared it dead"
    )]
    NotUsable {
        /// The descriptor.
        fd: RawFd,
    },
    /// Not a VM.
    #[error(
        "file descriptor {fd} ({what}) is not a KVM VM, KVM_CHECK_EXTENSION failed with {errno}: \
         pass the one that KVM_CREATE_VM returned"
    )]
    NotAVm {
        /// The descriptor.
        fd: RawFd,
        /// What `/proc/self/fd` says it is.
        what: String,
        /// The errno of `KVM_CHECK_EXTENSION`.
        errno: Errno,
    },
    /// A VM whose memory is not set up with memslots.
    #[error("the VM of file descriptor {fd} has no memslots (KVM_CAP_USER_MEMORY is 0)")]
    NoMemslots {
        /// The descriptor.
        fd: RawFd,
    },
}

/// Duplicates `fd` if it is a VM's.
pub(super) fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, OpenError> {
    let raw = fd.as_raw_fd();
    let mut vm = fd.try_clone_to_owned().map_err(|error| OpenError::Duplicate {
        fd: raw,
        errno: Errno::from_raw(error.raw_os_error().unwrap_or_default()),
    })?;
    check(&mut vm, raw)?;
    Ok(vm)
}

/// Whether `vm` answers as a VM; `fd` is for the error.
pub(super) fn check(vm: &mut impl VmCalls, fd: RawFd) -> Result<(), OpenError> {
    match retry(|| vm.check_extension(KVM_CAP_USER_MEMORY)) {
        // The /dev/kvm fd answers KVM_CHECK_EXTENSION too.
        Ok(_) if retry(|| vm.api_version()).is_ok() => Err(OpenError::SystemFd { fd }),
        Ok(0) => Err(OpenError::NoMemslots { fd }),
        Ok(_) => Ok(()),
        Err(errno) => {
            let what = what_is(fd);
            // kvm_vm_ioctl() refuses a foreign mm and a dead VM alike.
            if errno == Errno::EIO && what.contains("kvm-vm") {
                return Err(OpenError::NotUsable { fd });
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

/// What the VM allows, and whether it has the batch ioctl and the trap flag.
pub(super) fn limits(vm: &mut impl VmCalls) -> (Limits, Support, TrapSupport) {
    let support = probe(&mut Probed(vm));
    let trap = super::trap::probe(vm, page_size());
    let mut cap = |cap| {
        let answer = retry(|| vm.check_extension(cap)).unwrap_or(0);
        u32::try_from(answer).unwrap_or(0)
    };
    let limits = Limits {
        // api.rst, 4.35: "KVM_CAP_NR_MEMSLOTS: if absent, 32".
        slots: match cap(KVM_CAP_NR_MEMSLOTS) {
            0 => 32,
            slots => slots,
        },
        address_spaces: u16::try_from(cap(KVM_CAP_MULTI_ADDRESS_SPACE)).unwrap_or(u16::MAX).max(1),
        page_size: page_size(),
        slot_pages: Limits::SLOT_PAGES,
        readonly: cap(KVM_CAP_READONLY_MEM) != 0,
        region2: cap(KVM_CAP_USER_MEMORY2) != 0,
        guest_memfd: cap(KVM_CAP_GUEST_MEMFD) != 0,
        batch: match support {
            Support::Present { max_entries } => Some(max_entries.min(MAX_ENTRIES as u32)),
            Support::Absent | Support::Impostor { .. } => None,
        },
        trap: trap == TrapSupport::Present,
    };
    (limits, support, trap)
}

fn page_size() -> u64 {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok()).unwrap_or(4096)
}

struct Probed<'a, V>(&'a mut V);

impl<V: VmCalls> ProbeVm for Probed<'_, V> {
    fn check_extension(&mut self, cap: u32) -> c_int {
        retry(|| self.0.check_extension(cap)).unwrap_or(-1)
    }

    fn set_user_memory_regions(
        &mut self,
        header: &mut kvm_userspace_memory_regions,
    ) -> Result<(), c_int> {
        // SAFETY: the probe sends `nr` 0, so there are no entries to be read
        // and none to be mapped.
        retry(|| unsafe { self.0.set_user_memory_regions(header) }).map_err(|errno| errno as c_int)
    }
}
