//! One vCPU.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::abi::{RUN, RunPage};
use crate::kvm::Page;
use crate::next;
use crate::process::{errno, now, set_errno};
use crate::vm::{Data, Vm};

/// One vCPU.
pub(crate) struct Vcpu {
    vm: Arc<Vm>,
    run: RunPage,
    _mapping: Page,
    /// When it went on after an exit that was served; 0 after any other.
    went_on: AtomicU64,
}

impl Vcpu {
    /// The vCPU of `fd`, if its page can be mapped.
    pub(crate) fn new(vm: Arc<Vm>, fd: c_int) -> Option<Self> {
        let mapping = Page::of_vcpu(fd)?;
        // SAFETY: the mapping is kept for as long as the vCPU.
        let run = unsafe { RunPage::new(mapping.start().cast()) };
        Some(Self { vm, run, _mapping: mapping, went_on: AtomicU64::new(0) })
    }

    pub(crate) const fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// `KVM_RUN`, until there is something for the VMM.
    ///
    /// # Safety
    /// `fd` is this vCPU's.
    pub(crate) unsafe fn run(&self, fd: c_int, arg: *mut c_void) -> c_int {
        loop {
            let before = self.vm.promotions();
            // SAFETY: the vCPU's, with the VMM's argument.
            let result = unsafe { next::ioctl(fd, RUN, arg) };
            if !self.vm.may_defer() {
                return result;
            }
            let errno = if result < 0 { errno() } else { 0 };
            let exit = self.run.exit(errno);
            let went_on = self.went_on.load(Ordering::Relaxed);
            let went_on = (went_on != 0).then_some(went_on);
            let data = Data { bytes: self.run.data(), went_on };
            // SAFETY: what KVM says of this exit.
            let again = unsafe { self.vm.came_out(exit, &data, before) };
            self.went_on.store(if again { now() } else { 0 }, Ordering::Relaxed);
            if !again {
                if result < 0 {
                    set_errno(errno);
                }
                return result;
            }
        }
    }
}
