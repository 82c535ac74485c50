//! KVM, by file descriptor.

use std::ffi::{c_int, c_void};
use std::ptr;

use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, kvm_enable_cap, kvm_userspace_memory_region2,
};
use kvm_memslots_uapi::probe::{ProbeTrap, TrapMismatch};

use crate::abi::{CHECK_EXTENSION, CREATE_VM, ENABLE_CAP, SET_REGION, SET_REGION2};
use crate::decide::region::Region;
use crate::vm::machine::Vm;
use crate::vm::memslots::Kvm;
use crate::{mark, numbers, sys};

/// Where descriptors of this library's own are, out of the way of those of
/// the VMM, for which some count on the lowest free number.
const HIGH: c_int = 500;

/// The VM of a descriptor of which the VMM makes a call just now.
pub(crate) struct Asked(pub(crate) c_int);

/// A VM of which the VMM makes no call just now. What its descriptor is may change
/// any time, so it is held for as long as one call takes.
pub(crate) struct Unasked(pub(crate) &'static Vm);

impl Unasked {
    fn with<R>(&self, call: impl Fn(&Asked) -> Result<R, c_int>) -> Result<R, c_int> {
        let (vm, mark) = (self.0, self.0.mark);
        by_number(vm.fd(), mark, &call).unwrap_or_else(|| {
            let number = numbers::find(mark).ok_or(libc::EBADF)?;
            vm.is_at(number);
            by_number(number, mark, &call).unwrap_or(Err(libc::EBADF))
        })
    }
}

/// The call by a number, if that is the VM with this mark.
fn by_number<R>(
    number: c_int,
    mark: usize,
    call: impl Fn(&Asked) -> Result<R, c_int>,
) -> Option<Result<R, c_int>> {
    let held = match sys::duplicate(number, HIGH).or_else(|_| sys::duplicate(number, 3)) {
        Ok(held) => held,
        // There is no number left. The VMM's own may be another VM's between these
        // two calls; not to map a slot that the guest executes from is the end of it.
        Err(libc::EMFILE) => return mark::is(number, mark).then(|| call(&Asked(number))),
        Err(_) => return None,
    };
    let done = mark::is(held, mark).then(|| call(&Asked(held)));
    // SAFETY: made above.
    unsafe { sys::close(held) };
    done
}

impl Kvm for Unasked {
    fn set_region(&self, region: &Region, two: bool) -> Result<(), c_int> {
        self.with(|kvm| kvm.set_region(region, two))
    }

    fn tell_undecodable(&self, on: bool) -> Result<(), c_int> {
        self.with(|kvm| kvm.tell_undecodable(on))
    }
}

impl Kvm for Asked {
    fn set_region(&self, region: &Region, two: bool) -> Result<(), c_int> {
        let Region { slot, flags, gpa, size, hva } = *region;
        let mut region = kvm_userspace_memory_region2 {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: hva,
            ..Default::default()
        };
        let request = if two { SET_REGION2 } else { SET_REGION };
        // SAFETY: the structure that the request takes, or one that begins with it; the
        // VMM has asked for this very slot, and not for its removal, or it only traps.
        unsafe { sys::ioctl(self.0, request, (&raw mut region).cast()) }.map(drop)
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
        unsafe { sys::ioctl(self.0, ENABLE_CAP, (&raw mut cap).cast()) }.map(drop)
    }
}

/// A VM that is asked what the kernel can, with another to try it on.
pub(crate) struct Candidate {
    /// /dev/kvm.
    system: c_int,
    /// What VMs are made as.
    kind: *mut c_void,
    vm: c_int,
    /// A page that slots are made of.
    page: *mut c_void,
    /// Made when it is needed, which on most kernels it is not.
    scratch: Option<c_int>,
    /// How many slots were asked for.
    slots: u32,
}

const PAGE: usize = 0x1_0000;

impl Candidate {
    /// For `vm`, which `system` made as `kind`.
    pub(crate) fn new(system: c_int, kind: *mut c_void, vm: c_int) -> Option<Self> {
        let page = sys::map(PAGE)?;
        Some(Self { system, kind, vm, page, scratch: None, slots: 0 })
    }
}

impl ProbeTrap for Candidate {
    fn check_extension(&mut self, cap: u32) -> c_int {
        let cap = ptr::without_provenance_mut(cap as usize);
        // SAFETY: takes a number.
        unsafe { sys::ioctl(self.vm, CHECK_EXTENSION, cap) }.unwrap_or(-1)
    }

    fn make_slot(&mut self, flags: u32) -> Result<(), TrapMismatch> {
        let vm = match self.scratch {
            Some(vm) => vm,
            // SAFETY: makes a VM, of the kind that the VMM makes.
            None => unsafe { sys::ioctl(self.system, CREATE_VM, self.kind) }
                .map_err(|errno| TrapMismatch::NoScratchVm { errno })?,
        };
        self.scratch = Some(vm);
        let (slot, size) = (self.slots, PAGE as u64);
        self.slots += 1;
        let hva = self.page as u64;
        let region = Region { slot, flags, gpa: u64::from(slot) * size, size, hva };
        Asked(vm).set_region(&region, false).map_err(|errno| TrapMismatch::Refused { errno })
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if let Some(vm) = self.scratch {
            // SAFETY: made here.
            unsafe { sys::close(vm) };
        }
        // SAFETY: mapped here; the VM that used it is gone.
        unsafe { sys::unmap(self.page, PAGE) };
    }
}
