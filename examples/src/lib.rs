//! What the examples share. They are the files beside this folder; the README there
//! has a table of them.

use std::error::Error;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

#[cfg(target_arch = "x86_64")]
mod initrd;
#[cfg(target_arch = "x86_64")]
pub mod linux;
#[cfg(target_arch = "x86_64")]
mod long_mode;
#[cfg(target_arch = "x86_64")]
pub mod power;
mod running;

#[cfg(target_arch = "x86_64")]
pub use initrd::{HELLO, initrd};
#[cfg(target_arch = "x86_64")]
pub use long_mode::long_mode;
pub use running::Gate;
#[cfg(target_arch = "x86_64")]
pub use running::Running;

/// What an example's `main` returns.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Whether there is a KVM to run on. Says so where there is none.
#[must_use]
pub fn has_kvm(what: &str) -> bool {
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &kvm {
        println!("SKIPPED {what}: /dev/kvm: {error}");
    }
    kvm.is_ok()
}

/// Anonymous memory for a guest.
///
/// # Errors
/// `mmap`'s, or that there is no such guest physical address.
pub fn memory(gpa: u64, size: u64) -> Result<Arc<GuestRegionMmap>> {
    let mapping = MmapRegion::new(usize::try_from(size)?)?;
    let region = GuestRegionMmap::new(mapping, GuestAddress(gpa));
    Ok(Arc::new(region.ok_or("beyond the address space")?))
}

/// A new eventfd.
///
/// # Errors
/// The kernel's.
pub fn eventfd() -> Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A vCPU in real mode, at `code`, with its data at `data`. Both are guest
/// physical addresses, the first below 64 KiB.
///
/// # Errors
/// KVM's.
#[cfg(target_arch = "x86_64")]
pub fn real_mode(vm: &kvm_ioctls::VmFd, code: u64, data: u64) -> Result<kvm_ioctls::VcpuFd> {
    let vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    (sregs.ds.base, sregs.ds.selector) = (data, (data >> 4) as u16);
    vcpu.set_sregs(&sregs)?;
    let regs = kvm_bindings::kvm_regs { rip: code, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs)?;
    Ok(vcpu)
}

#[cfg(doctest)]
#[doc = include_str!("../../docs/guide/adopting-rust.md")]
struct AdoptingRust;
