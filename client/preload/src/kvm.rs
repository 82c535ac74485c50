//! KVM, by file descriptor.

use std::ffi::{c_int, c_ulong, c_void};
use std::ptr::{self, NonNull};

use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, kvm_enable_cap, kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
};
use kvm_memslots_uapi::probe::{ProbeTrap, TrapMismatch};

use crate::abi::{CHECK_EXTENSION, CREATE_VM, ENABLE_CAP, RunPage, SET_REGION, SET_REGION2};
use crate::decide::region::Region;
use crate::next;
use crate::process::errno;
use crate::vm::Kvm;

/// Where the descriptors of this library's own are, out of the way of those of
/// the VMM, for which some count on the lowest free number.
const HIGH: c_int = 500;

/// A file descriptor of this library's own.
pub(crate) struct Fd(c_int);

impl Fd {
    /// Another one for what `fd` stands for; the same one if there is no other to
    /// be had.
    fn another(fd: c_int) -> Option<Self> {
        let other = [HIGH, 3].into_iter().find_map(|least| {
            // SAFETY: makes a new descriptor.
            let other = unsafe { next::fcntl(fd, libc::F_DUPFD_CLOEXEC, least.into()) };
            (other >= 0).then_some(other)
        });
        other.map(Self)
    }

    /// # Safety
    /// `arg` is what the kernel takes for `request`.
    unsafe fn ioctl(&self, request: c_ulong, arg: *mut c_void) -> Result<c_int, c_int> {
        loop {
            // SAFETY: the caller vouches for the argument.
            let result = unsafe { next::ioctl(self.0, request, arg) };
            match errno() {
                _ if result >= 0 => return Ok(result),
                libc::EINTR => {}
                errno => return Err(errno),
            }
        }
    }

    /// # Safety
    /// Host memory is mapped there, if the region has a size, for as long as the
    /// slot can be used.
    unsafe fn set_region(&self, region: &Region, two: bool) -> Result<(), c_int> {
        let Region { slot, flags, gpa, size, hva } = *region;
        let mut first = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: hva,
        };
        let mut second = kvm_userspace_memory_region2 {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: hva,
            ..Default::default()
        };
        let (request, arg) = if two {
            (SET_REGION2, (&raw mut second).cast())
        } else {
            (SET_REGION, (&raw mut first).cast())
        };
        // SAFETY: the structure that the request takes; the caller vouches for
        // the memory.
        unsafe { self.ioctl(request, arg) }.map(drop)
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: it is this library's own.
        unsafe { next::close(self.0) };
    }
}

/// A VM.
pub(crate) struct VmFd(Fd);

impl VmFd {
    /// The VM of the VMM's descriptor `fd`.
    pub(crate) fn of(fd: c_int) -> Option<Self> {
        Fd::another(fd).map(Self)
    }
}

impl Kvm for VmFd {
    fn set_region(&self, region: &Region, two: bool) -> Result<(), c_int> {
        // SAFETY: the VMM has asked for this very slot, and has not asked for
        // its removal, or it only traps.
        unsafe { self.0.set_region(region, two) }
    }

    fn tell_undecodable(&self, on: bool) -> Result<(), c_int> {
        // Elsewhere KVM always does.
        if cfg!(not(target_arch = "x86_64")) {
            return Ok(());
        }
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
            args: [u64::from(on), 0, 0, 0],
            ..Default::default()
        };
        // SAFETY: the structure that the request takes.
        unsafe { self.0.ioctl(ENABLE_CAP, (&raw mut cap).cast()) }.map(drop)
    }
}

/// A VM that is asked what the kernel can, with another to try it on.
pub(crate) struct Candidate {
    /// /dev/kvm.
    system: c_int,
    /// What VMs are made as.
    kind: *mut c_void,
    vm: c_int,
    /// What slots are made of.
    page: Page,
    /// Made when it is needed, which on most kernels it is not.
    scratch: Option<Fd>,
    /// How many slots were asked for.
    slots: u32,
}

impl Candidate {
    /// For `vm`, which `system` made as `kind`.
    pub(crate) fn new(system: c_int, kind: *mut c_void, vm: c_int) -> Option<Self> {
        Page::anonymous().map(|page| Self { system, kind, vm, page, scratch: None, slots: 0 })
    }
}

impl ProbeTrap for Candidate {
    fn check_extension(&mut self, cap: u32) -> c_int {
        // SAFETY: takes a number.
        unsafe { next::ioctl(self.vm, CHECK_EXTENSION, cap as usize as *mut c_void) }
    }

    fn make_slot(&mut self, flags: u32) -> Result<(), TrapMismatch> {
        let vm = match self.scratch.take() {
            Some(vm) => vm,
            // SAFETY: makes a VM, of the kind that the VMM makes.
            None => match unsafe { next::ioctl(self.system, CREATE_VM, self.kind) } {
                vm @ 0.. => Fd(vm),
                _ => return Err(TrapMismatch::NoScratchVm { errno: errno() }),
            },
        };
        let (slot, size) = (self.slots, self.page.1 as u64);
        self.slots += 1;
        let hva = self.page.start().as_ptr() as u64;
        let region = Region { slot, flags, gpa: u64::from(slot) * size, size, hva };
        // SAFETY: a VM without vCPUs uses no memory.
        let made = unsafe { vm.set_region(&region, false) };
        self.scratch = Some(vm);
        made.map_err(|errno| TrapMismatch::Refused { errno })
    }
}

/// A page of host memory.
pub(crate) struct Page(NonNull<c_void>, usize);

impl Page {
    /// One that nothing uses.
    pub(crate) fn anonymous() -> Option<Self> {
        Self::map(4096, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// What KVM shares with userspace for the vCPU of `fd`.
    pub(crate) fn of_vcpu(fd: c_int) -> Option<Self> {
        Self::map(RunPage::BYTES, libc::MAP_SHARED, fd)
    }

    fn map(bytes: usize, flags: c_int, fd: c_int) -> Option<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, where nothing is.
        let page = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, fd, 0) };
        if page == libc::MAP_FAILED {
            return None;
        }
        NonNull::new(page).map(|page| Self(page, bytes))
    }

    pub(crate) const fn start(&self) -> NonNull<c_void> {
        self.0
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: what was mapped, and nobody uses it any more.
        unsafe { libc::munmap(self.0.as_ptr(), self.1) };
    }
}

// SAFETY: an address, and a mapping that belongs to the value.
unsafe impl Send for Page {}
// SAFETY: as above; there are no methods that access it.
unsafe impl Sync for Page {}
