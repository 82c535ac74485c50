//! The calls of KVM, one by one.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_ulong, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, kvm_enable_cap, kvm_userspace_memory_region,
};

use kvm_memslots::deferred::policy::Churn;
use kvm_memslots_uapi::probe::{TrapMismatch, TrapSupport, probe_trap};

use crate::abi::{CREATE_VCPU, CREATE_VM, ENABLE_CAP, RUN, SET_REGION, SET_REGION2, not_followed};
use crate::decide::policy::Bill;
use crate::decide::region::Region;
use crate::decide::slots::{Rules, Way};
use crate::kvm::{Candidate, VmFd};
use crate::next;
use crate::process::{errno, is_owner, say, set_errno, settings};
use crate::settings::Mode;
use crate::stats::COUNTS;
use crate::table::{self, Known};
use crate::vcpu::Vcpu;
use crate::vm::{Asked, Vm};

/// A call of the VMM's.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) fd: c_int,
    pub(crate) request: c_ulong,
    pub(crate) arg: *mut c_void,
}

impl Call {
    /// The call as it is.
    fn pass(self) -> c_int {
        // SAFETY: the VMM vouches for its argument.
        unsafe { next::ioctl(self.fd, self.request, self.arg) }
    }

    /// Does it, or what is done in its place.
    pub(crate) fn make(self) -> c_int {
        if self.request == CREATE_VM {
            return self.create_vm();
        }
        match table::get(self.fd) {
            // SAFETY: the table knows it as that vCPU's.
            Some(Known::Vcpu(vcpu)) if self.request == RUN => unsafe {
                vcpu.run(self.fd, self.arg)
            },
            Some(Known::Vcpu(vcpu)) => {
                self.say_not_followed(vcpu.vm());
                self.pass()
            }
            Some(Known::Vm(vm)) => self.of_vm(&vm),
            None => {
                self.unknown();
                self.pass()
            }
        }
    }

    fn create_vm(self) -> c_int {
        let fd = self.pass();
        if fd >= 0 && settings().mode != Mode::Off {
            is_owner();
            COUNTS.vms.add(1);
            let way = way(self, fd);
            let rules = Rules {
                way,
                flips: settings().flips.unwrap_or(flips(way)),
                writable: settings().writable,
            };
            match VmFd::of(fd) {
                Some(kvm) => {
                    let vm = Vm::new(Box::new(kvm), rules, Bill::new(settings().policy));
                    table::insert(fd, Known::Vm(Arc::new(vm)));
                }
                None => say(&format!("leaves VM {fd} alone: no file descriptor to be had")),
            }
        }
        fd
    }

    fn of_vm(self, vm: &Arc<Vm>) -> c_int {
        match self.request {
            SET_REGION | SET_REGION2 if !self.arg.is_null() => self.set_region(vm),
            CREATE_VCPU => self.create_vcpu(vm),
            ENABLE_CAP if !self.arg.is_null() => self.enable_cap(vm),
            _ => {
                self.say_not_followed(vm);
                self.pass()
            }
        }
    }

    fn set_region(self, vm: &Vm) -> c_int {
        // Both structures start so.
        // SAFETY: the VMM passes one of them.
        let asked = unsafe { self.arg.cast::<kvm_userspace_memory_region>().read_unaligned() };
        let region = Region {
            slot: asked.slot,
            flags: asked.flags,
            gpa: asked.guest_phys_addr,
            size: asked.memory_size,
            hva: asked.userspace_addr,
        };
        let asked = Asked { region, two: self.request == SET_REGION2 };
        let mut pass = || {
            let result = self.pass();
            if result < 0 { Err(errno()) } else { Ok(result) }
        };
        match vm.set_region(&asked, &mut pass) {
            Ok(result) => result,
            Err(errno) => {
                set_errno(errno);
                -1
            }
        }
    }

    fn create_vcpu(self, vm: &Arc<Vm>) -> c_int {
        let fd = self.pass();
        if fd >= 0 {
            COUNTS.vcpus.add(1);
            match Vcpu::new(Arc::clone(vm), fd) {
                Some(vcpu) => table::insert(fd, Known::Vcpu(Arc::new(vcpu))),
                None => vm.switch_off("the page of a vCPU can't be mapped"),
            }
        }
        fd
    }

    fn enable_cap(self, vm: &Vm) -> c_int {
        // SAFETY: the VMM passes the structure that the request takes.
        let cap = unsafe { self.arg.cast::<kvm_enable_cap>().read_unaligned() };
        let result = self.pass();
        if result >= 0 && cap.cap == KVM_CAP_EXIT_ON_EMULATION_FAILURE {
            let errno = errno();
            vm.told_anyway(cap.args[0] & 1 != 0);
            set_errno(errno);
        }
        result
    }

    fn say_not_followed(self, vm: &Vm) {
        if let Some(name) = not_followed(self.request) {
            // The others read what slots there are.
            let changes = matches!(self.request & 0xff, 0xf9 | 0x40 | 0x43);
            vm.not_followed(&format!("{name} is not followed"), changes);
        }
    }

    /// A VM that was made, or a descriptor that came, some other way may be one of
    /// those that are known.
    fn unknown(self) {
        if matches!(self.request, SET_REGION | SET_REGION2 | RUN)
            || not_followed(self.request).is_some()
        {
            for vm in table::vms() {
                vm.switch_off(&format!("file descriptor {} is a VM or vCPU unknown here", self.fd));
            }
        }
    }
}

/// How many flips of a slot are let through: one removal and one return where it
/// is then flipped by its trap bit, as to the guest nothing is different; more
/// where a slot that is executed from must not be taken for one that churns.
fn flips(way: Way) -> u32 {
    if way == Way::Trap { 2 } else { Churn::<()>::FLIPS }
}

/// How slots that churn are treated in the VM that `call` has made.
fn way(call: Call, vm: c_int) -> Way {
    let mode = settings().mode;
    let can_defer = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));
    if matches!(mode, Mode::Off | Mode::Count) {
        return Way::AsAsked;
    }
    if mode != Mode::Defer {
        match trap_support(call, vm) {
            TrapSupport::Present => return Way::Trap,
            // Another answer is another capability's.
            TrapSupport::Absent | TrapSupport::Impostor { mismatch: TrapMismatch::Answer, .. } => {}
            TrapSupport::Impostor { .. } => say("KVM claims KVM_CAP_MEM_TRAP and does not have it"),
        }
    }
    if mode != Mode::Trap && can_defer {
        return Way::Defer;
    }
    say(&format!("leaves VM {vm} alone: KVM does not have KVM_MEM_TRAP"));
    Way::AsAsked
}

/// Whether the VM that `call` has made has the trap bit. Found out once for each
/// kind of VM, as it takes a scratch VM, which costs grace periods.
fn trap_support(call: Call, vm: c_int) -> TrapSupport {
    static KINDS: Mutex<BTreeMap<usize, TrapSupport>> = Mutex::new(BTreeMap::new());
    let mut kinds = KINDS.lock().unwrap_or_else(PoisonError::into_inner);
    *kinds.entry(call.arg.addr()).or_insert_with(|| {
        Candidate::new(call.fd, call.arg, vm)
            .map_or(TrapSupport::Absent, |mut candidate| probe_trap(&mut candidate))
    })
}
