//! The calls of KVM, one by one.

use std::ffi::{c_int, c_ulong, c_void};

use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, kvm_enable_cap, kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
};

use kvm_memslots::deferred::policy::Churn;
use kvm_memslots_uapi::probe::{TrapSupport, probe_trap};

use crate::abi::{
    CLEAR_DIRTY_LOG, CREATE_VCPU, CREATE_VM, ENABLE_CAP, GET_DIRTY_LOG, RUN, RUN_BYTES, SET_REGION,
    SET_REGION2, SET_SIGNAL_MASK, not_followed,
};
use crate::call::Call;
use crate::decide::region::Region;
use crate::decide::rules::{Rules, Way};
use crate::kvm::{Asked as ByDescriptor, Candidate, Unasked};
use crate::root::{self, Known, Root, root};
use crate::settings::{Mode, Settings, settings};
use crate::vcpu::Vcpu;
use crate::vm::machine::Vm;
use crate::vm::memslots::Asked;
use crate::why::Why;
use crate::{abi, memory, run, seccomp, sys};

impl Call {
    /// Does it, or what is done in its place.
    pub(crate) fn make(self) -> c_int {
        if root::is_off() {
            return self.plain();
        }
        if self.request == CREATE_VM {
            return self.create_vm();
        }
        let Some(root) = root() else { return self.plain() };
        match root.known(self.fd) {
            Some(known @ Known { vcpu: Some(vcpu), .. }) if self.request == RUN => {
                let ran = run::run(root, known, vcpu, self);
                ran.unwrap_or_else(|| self.of_descriptor(root, None))
            }
            known => self.of_descriptor(root, known),
        }
    }

    /// Whether it changes or reads what is followed here.
    fn matters(self) -> bool {
        const CALLS: [c_ulong; 8] = [
            RUN,
            SET_REGION,
            SET_REGION2,
            CREATE_VCPU,
            ENABLE_CAP,
            GET_DIRTY_LOG,
            CLEAR_DIRTY_LOG,
            SET_SIGNAL_MASK,
        ];
        CALLS.contains(&self.request) || not_followed(self.request).is_some()
    }

    fn of_descriptor(self, root: &'static Root, known: Option<Known>) -> c_int {
        if !self.matters() {
            return self.plain();
        }
        // Under a number that was not seen, or is something else by now.
        let Some(known) = known.filter(|known| known.is(self.fd)).or_else(|| root.find(self.fd))
        else {
            root.forget(self.fd);
            return self.plain();
        };
        let vm = known.vm;
        match (self.request, known.vcpu) {
            (RUN, Some(vcpu)) => run::run(root, known, vcpu, self).unwrap_or_else(|| self.plain()),
            (SET_SIGNAL_MASK, Some(vcpu)) => {
                let result = self.plain();
                if result >= 0 {
                    vcpu.has_mask(abi::signal_mask(self.arg as u64));
                }
                result
            }
            (SET_REGION | SET_REGION2, None) => self.set_region(vm),
            (CREATE_VCPU, None) => self.create_vcpu(root, vm),
            (ENABLE_CAP, None) => self.enable_cap(vm),
            (GET_DIRTY_LOG | CLEAR_DIRTY_LOG, None) => {
                // SAFETY: any bytes are a number; both structures start so.
                if let Ok(slot) = unsafe { memory::load::<u32>(self.arg as u64) } {
                    vm.logged(&ByDescriptor(self.fd), slot);
                }
                self.plain()
            }
            (_, vcpu) => {
                self.say_not_followed(vm, vcpu.is_some());
                self.plain()
            }
        }
    }

    fn create_vm(self) -> c_int {
        let fd = self.plain();
        let errno = sys::errno();
        if let (true, Some(settings)) = (fd >= 0, settings()) {
            if let Some(root) = seccomp::root_if_free() {
                root.counts.vms.add(1);
                root.make_vm(fd, self.rules(root, settings, fd));
            }
        }
        sys::set_errno(errno);
        fd
    }

    /// How slots of the VM `vm`, which this call has made, are treated.
    fn rules(self, root: &Root, settings: &Settings, vm: c_int) -> Rules {
        let has_trap = || {
            let ask = |mut vm: Candidate| probe_trap(&mut vm) == TrapSupport::Present;
            root.kind(self.arg, || Candidate::new(self.fd, self.arg, vm).is_some_and(ask))
        };
        let way = match settings.mode {
            Mode::Auto | Mode::Trap if has_trap() => Way::Trap,
            Mode::Auto | Mode::Defer => Way::Defer,
            Mode::Off | Mode::Count | Mode::Trap => Way::AsAsked,
        };
        let flips = settings.flips.unwrap_or(flips(way));
        Rules { way, flips, writable: settings.writable }
    }

    fn set_region(self, vm: &'static Vm) -> c_int {
        type Newer = kvm_userspace_memory_region2;
        let two = self.request == SET_REGION2;
        // All of it, as KVM copies all of it. The older one is how the newer one begins.
        let bytes = if two { size_of::<Newer>() } else { size_of::<kvm_userspace_memory_region>() };
        // SAFETY: any bytes are one: numbers.
        let asked = unsafe { memory::load_start::<Newer>(self.arg as u64, bytes) };
        // KVM says what is wrong with the argument.
        let Ok(it) = asked else { return self.plain() };
        let region = Region {
            slot: it.slot,
            flags: it.flags,
            gpa: it.guest_phys_addr,
            size: it.memory_size,
            hva: it.userspace_addr,
        };
        let asked = Asked { region, two };
        let mut pass = || self.pass().map_err(|()| sys::errno());
        let errno = sys::errno();
        let answer = vm.set_region(self.fd, &ByDescriptor(self.fd), &asked, &mut pass);
        sys::set_errno(answer.err().unwrap_or(errno));
        answer.unwrap_or(-1)
    }

    fn create_vcpu(self, root: &Root, vm: &'static Vm) -> c_int {
        let fd = self.plain();
        if fd >= 0 {
            root.counts.vcpus.add(1);
            let defers = || vm.with_state(|state| state.slots.rules().way == Way::Defer);
            if root.make_vcpu(vm, fd).is_none() && defers() {
                vm.switch_off(&ByDescriptor(self.fd), Why::of("too many vCPUs"));
            }
        }
        fd
    }

    fn enable_cap(self, vm: &Vm) -> c_int {
        // SAFETY: any bytes are one: numbers.
        let cap = unsafe { memory::load::<kvm_enable_cap>(self.arg as u64) };
        let result = self.plain();
        if let (0.., Ok(cap)) = (result, cap) {
            if cap.cap == KVM_CAP_EXIT_ON_EMULATION_FAILURE {
                vm.told_anyway(cap.args[0] & 1 != 0);
            }
        }
        result
    }

    fn say_not_followed(self, vm: &'static Vm, by_vcpu: bool) {
        let Some(name) = not_followed(self.request) else { return };
        // The others read what slots there are.
        let changes = matches!(self.request & 0xff, 0xf9 | 0x40 | 0x43);
        if by_vcpu {
            vm.not_followed(&Unasked(vm), name, changes);
        } else {
            vm.not_followed(&ByDescriptor(self.fd), name, changes);
        }
    }
}

/// What was mapped at `at`, so many bytes, is about to go, or is gone; a vCPU whose page
/// began there.
pub(crate) fn unmapped(at: *mut c_void, bytes: usize) -> Option<&'static Vcpu> {
    let root = root().filter(|_| bytes > 0 && !root::is_off())?;
    let start = at as u64;
    root.unmapped(&(start..start.saturating_add(bytes as u64)))
}

/// `fd` was mapped at `at`, so many bytes, shared with others.
pub(crate) fn mapped(fd: c_int, at: *mut c_void, bytes: usize) {
    if bytes < RUN_BYTES || root::is_off() {
        return;
    }
    let Some(root) = root() else { return };
    let known = root.known(fd).filter(|known| known.is(fd)).or_else(|| root.find(fd));
    if let Some(vcpu) = known.and_then(|known| known.of_kvm(fd)) {
        vcpu.mapped_at(at as u64);
    }
}

/// How many flips of a slot are let through: one removal and one return where it
/// is then flipped by its trap bit, as to the guest nothing is different; more
/// where a slot that is executed from must not be taken for one that churns.
fn flips(way: Way) -> u32 {
    if way == Way::Trap { 2 } else { Churn::<()>::FLIPS }
}
