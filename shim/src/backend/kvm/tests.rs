//! Kernels that lie, that are interrupted, and that lack what others have.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use kvm_bindings::{
    KVM_CAP_GUEST_MEMFD, KVM_CAP_MULTI_ADDRESS_SPACE, KVM_CAP_NR_MEMSLOTS, KVM_CAP_READONLY_MEM,
    KVM_CAP_USER_MEMORY, KVM_CAP_USER_MEMORY2,
};
use kvm_memslots_uapi::probe::{Mismatch, TrapMismatch};
use kvm_memslots_uapi::{
    KVM_CAP_MEM_TRAP, KVM_CAP_USER_MEMORY_REGIONS, MAX_ENTRIES, MemoryRegionsFlags,
    kvm_userspace_memory_regions,
};
use libc::c_int;

use super::open::check;
use super::*;
use crate::Mapping;

/// How a kernel answers the batch ioctl.
type Batch = fn(&mut kvm_userspace_memory_regions) -> Result<(), Errno>;

/// A kernel that plays a part, and writes down what it was asked.
#[derive(Debug)]
struct Fake {
    caps: HashMap<u32, c_int>,
    is_system_fd: bool,
    batch: Batch,
    /// So many calls fail with `EINTR` before one is answered.
    interrupts: u32,
    /// The dirty log of any slot.
    log: Vec<u64>,
    asked: Vec<&'static str>,
    /// Flags of slots that are not refused.
    knows: u32,
    has_dev_kvm: bool,
}

impl Fake {
    fn new(caps: &[(u32, c_int)], batch: Batch) -> Self {
        let caps = caps.iter().copied().collect();
        let asked = Vec::new();
        Self {
            caps,
            is_system_fd: false,
            batch,
            interrupts: 0,
            log: Vec::new(),
            asked,
            knows: !0,
            has_dev_kvm: true,
        }
    }

    fn ask(&mut self, what: &'static str) -> Result<(), Errno> {
        self.asked.push(what);
        match self.interrupts.checked_sub(1) {
            Some(left) => {
                self.interrupts = left;
                Err(Errno::EINTR)
            }
            None => Ok(()),
        }
    }
}

impl VmCalls for Fake {
    fn scratch_vm(&mut self) -> Result<Self, Errno> {
        self.ask("scratch")?;
        let scratch = Self::new(&[], self.batch);
        if self.has_dev_kvm {
            Ok(Self { knows: self.knows, ..scratch })
        } else {
            Err(Errno::EACCES)
        }
    }

    fn api_version(&mut self) -> Result<c_int, Errno> {
        if self.is_system_fd { Ok(12) } else { Err(Errno::ENOTTY) }
    }

    fn check_extension(&mut self, cap: u32) -> Result<c_int, Errno> {
        Ok(self.caps.get(&cap).copied().unwrap_or(0))
    }

    unsafe fn set_user_memory_region(
        &mut self,
        region: &kvm_userspace_memory_region,
    ) -> Result<(), Errno> {
        self.ask("region")?;
        if region.flags & !self.knows == 0 { Ok(()) } else { Err(Errno::EINVAL) }
    }

    unsafe fn set_user_memory_region2(
        &mut self,
        _: &kvm_userspace_memory_region2,
    ) -> Result<(), Errno> {
        self.ask("region2")
    }

    unsafe fn set_user_memory_regions(
        &mut self,
        header: *mut kvm_userspace_memory_regions,
    ) -> Result<(), Errno> {
        self.ask("regions")?;
        // SAFETY: the caller's promise: valid for reads and writes.
        (self.batch)(unsafe { &mut *header })
    }

    unsafe fn get_dirty_log(&mut self, log: &kvm_dirty_log) -> Result<(), Errno> {
        self.ask("get")?;
        // SAFETY: any bit pattern is a value of either variant.
        let bitmap = unsafe { log.__bindgen_anon_1.dirty_bitmap }.cast::<u64>();
        // SAFETY: tests give no longer log than the buffer they ask with.
        unsafe { self.log.as_ptr().copy_to_nonoverlapping(bitmap, self.log.len()) };
        Ok(())
    }

    unsafe fn clear_dirty_log(&mut self, _: &mut kvm_clear_dirty_log) -> Result<(), Errno> {
        self.ask("clear")
    }
}

/// As the ABI says.
fn honest(header: &mut kvm_userspace_memory_regions) -> Result<(), Errno> {
    header.failed = header.nr;
    if header.flags & !MemoryRegionsFlags::all().bits() == 0 { Ok(()) } else { Err(Errno::EINVAL) }
}

fn absent(_: &mut kvm_userspace_memory_regions) -> Result<(), Errno> {
    Err(Errno::ENOTTY)
}

fn claiming(batch: Batch) -> Vm<Fake> {
    Vm::new(Fake::new(&[(KVM_CAP_USER_MEMORY_REGIONS, 4096)], batch))
}

fn slot(pages: u64) -> Slot {
    Slot { id: 3, mapping: Mapping::ram(0x1_0000, pages * page_size(), 0x7f00_0000_0000) }
}

fn page_size() -> u64 {
    Vm::new(Fake::new(&[], absent)).limits.page_size
}

#[test]
fn limits_are_what_the_capabilities_say() {
    let caps = [
        (KVM_CAP_NR_MEMSLOTS, 509),
        (KVM_CAP_MULTI_ADDRESS_SPACE, 2),
        (KVM_CAP_READONLY_MEM, 1),
        (KVM_CAP_USER_MEMORY2, 1),
        (KVM_CAP_GUEST_MEMFD, 1),
    ];
    let limits = Vm::new(Fake::new(&caps, absent)).limits;
    assert_eq!((limits.slots, limits.address_spaces, limits.batch), (509, 2, None));
    assert!(limits.readonly && limits.region2 && limits.guest_memfd);
    assert_eq!(limits.slot_pages, (1 << 31) - 1);
}

#[test]
fn a_kernel_without_capabilities_has_32_slots_in_one_address_space() {
    let limits = Vm::new(Fake::new(&[], absent)).limits;
    assert_eq!((limits.slots, limits.address_spaces), (32, 1));
    assert!(!limits.readonly && !limits.region2 && !limits.guest_memfd);
}

#[test]
fn a_kernel_that_answers_the_probe_has_the_batch_ioctl() {
    let vm = claiming(honest);
    assert_eq!(vm.support, Support::Present { max_entries: 4096 });
    assert_eq!(vm.limits.batch, Some(4096));
}

#[test]
fn more_entries_than_a_batch_can_hold_are_not_believed() {
    let vm = Vm::new(Fake::new(&[(KVM_CAP_USER_MEMORY_REGIONS, c_int::MAX)], honest));
    assert_eq!(vm.limits.batch, Some(MAX_ENTRIES as u32));
}

/// A kernel that claims the capability without having the ioctl, and whether
/// the answer that gives it away is the one expected.
type Liar = (Batch, fn(&Mismatch) -> bool);

const LIARS: [Liar; 5] = [
    (
        absent,
        |m| matches!(m, Mismatch::DryRunRefused { errno } if *errno == Errno::ENOTTY as c_int),
    ),
    (
        |header| {
            header.failed = header.nr;
            Ok(())
        },
        |m| matches!(m, Mismatch::BadFlagsAnswer { errno: 0 }),
    ),
    (
        |header| honest(header).map_err(|_| Errno::ENOTTY),
        |m| matches!(m, Mismatch::BadFlagsAnswer { errno } if *errno == Errno::ENOTTY as c_int),
    ),
    (
        |header| {
            let failed = header.failed;
            let answer = honest(header);
            header.failed = failed;
            answer
        },
        |m| matches!(m, Mismatch::Header { .. }),
    ),
    (
        |header| {
            header.reserved[5] = 1;
            honest(header)
        },
        |m| matches!(m, Mismatch::Header { returned } if returned.reserved[5] == 1),
    ),
];

#[test]
fn an_impostor_is_remembered_and_never_called() {
    for (index, (batch, expected)) in LIARS.into_iter().enumerate() {
        let mut vm = claiming(batch);
        let Support::Impostor { claimed: 4096, mismatch } = vm.support else {
            panic!("liar {index} is believed: {:?}", vm.support);
        };
        assert!(expected(&mismatch), "liar {index}: {mismatch}");
        assert_eq!(vm.limits.batch, None);

        vm.calls.asked.clear();
        let mut regions = MemoryRegions::new(0, MemoryRegionsFlags::DRY_RUN);
        // SAFETY: nothing is mapped.
        assert_eq!(unsafe { vm.set_regions(&mut regions) }, Err(Errno::ENOTTY));
        assert!(vm.calls.asked.is_empty(), "liar {index} was called");
    }
}

fn with_trap(claims: c_int, knows: u32) -> Fake {
    Fake { knows, ..Fake::new(&[(KVM_CAP_MEM_TRAP, claims)], absent) }
}

#[test]
fn a_kernel_that_answers_the_probe_has_the_trap_flag() {
    let vm = Vm::new(with_trap(0x8000, MemFlags::all().bits()));
    assert_eq!((vm.trap, vm.limits.trap), (TrapSupport::Present, true));
    // Not on the VM itself.
    assert_eq!(vm.calls.asked, ["scratch"]);
}

#[test]
fn the_trap_flag_is_not_believed_on_a_claim() {
    let known = MemFlags::all().bits();
    let cases = [
        (with_trap(1, known), TrapMismatch::Answer),
        (with_trap(0x8000, 3), TrapMismatch::Refused { errno: Errno::EINVAL as c_int }),
        (with_trap(0x8000, !0), TrapMismatch::BadFlagsAnswer { errno: 0 }),
        (
            Fake { has_dev_kvm: false, ..with_trap(0x8000, known) },
            TrapMismatch::NoScratchVm { errno: Errno::EACCES as c_int },
        ),
    ];
    for (fake, expected) in cases {
        let vm = Vm::new(fake);
        assert!(matches!(vm.trap, TrapSupport::Impostor { mismatch, .. } if mismatch == expected));
        assert!(!vm.limits.trap);
    }
}

#[test]
fn without_a_claim_no_scratch_vm_is_made() {
    let vm = Vm::new(with_trap(0, !0));
    assert_eq!((vm.trap, vm.limits.trap), (TrapSupport::Absent, false));
    assert!(vm.calls.asked.is_empty());
}

/// A call and what the fake writes down for it.
type Call = (&'static str, fn(&mut Vm<Fake>) -> Result<(), Errno>);

/// Each call that a signal can interrupt.
const CALLS: [Call; 5] = [
    // SAFETY: a fake maps nothing.
    ("region", |vm| unsafe { vm.set_region(&slot(1).to_kvm(0)) }),
    ("region2", |vm| {
        let flags = MemFlags::GUEST_MEMFD.bits();
        let region = kvm_userspace_memory_region2 { flags, ..slot(1).to_kvm(0) };
        // SAFETY: a fake maps nothing.
        unsafe { vm.set_region(&region) }
    }),
    ("regions", |vm| {
        let mut regions = MemoryRegions::new(0, MemoryRegionsFlags::DRY_RUN);
        // SAFETY: a fake maps nothing.
        unsafe { vm.set_regions(&mut regions) }
    }),
    ("get", |vm| vm.dirty_log(0, &slot(64), &mut [0])),
    ("clear", |vm| vm.clear_dirty_log(0, &slot(64), 0, 64, &[0])),
];

#[test]
fn an_interrupted_call_is_made_again() {
    for (name, call) in CALLS {
        let mut vm = claiming(honest);
        vm.calls.asked.clear();
        vm.calls.interrupts = ATTEMPTS - 1;
        assert_eq!(call(&mut vm), Ok(()), "{name}");
        assert_eq!(vm.calls.asked, vec![name; ATTEMPTS as usize]);
    }
}

#[test]
fn a_storm_of_signals_is_reported() {
    for (name, call) in CALLS {
        let mut vm = claiming(honest);
        vm.calls.asked.clear();
        vm.calls.interrupts = u32::MAX;
        assert_eq!(call(&mut vm), Err(Errno::EINTR), "{name}");
        assert_eq!(vm.calls.asked, vec![name; ATTEMPTS as usize]);
    }
}

#[test]
fn a_short_bitmap_is_refused_without_a_call() {
    let mut vm = claiming(honest);
    vm.calls.asked.clear();
    assert_eq!(vm.dirty_log(0, &slot(65), &mut [0]), Err(Errno::EINVAL));
    assert_eq!(vm.clear_dirty_log(0, &slot(65), 0, 65, &[0]), Err(Errno::EINVAL));
    let huge = slot(Limits::SLOT_PAGES + 1);
    let mut bitmap = vec![0; (Limits::SLOT_PAGES + 1).div_ceil(64) as usize];
    assert_eq!(vm.dirty_log(0, &huge, &mut bitmap), Err(Errno::EINVAL));
    assert!(vm.calls.asked.is_empty());
}

#[test]
fn what_kvm_does_not_say_counts_as_dirty() {
    let mut vm = claiming(honest);
    // KVM's slot has 64 pages, the caller's 70: six of them are not known.
    vm.calls.log = vec![0b101];
    let mut bitmap = [0, 0, 0x5a];
    assert_eq!(vm.dirty_log(0, &slot(70), &mut bitmap), Ok(()));
    assert_eq!(bitmap, [0b101, 0b11_1111, 0x5a]);
}

#[test]
fn only_a_vm_fd_is_taken() {
    let memslots = [(KVM_CAP_USER_MEMORY, 1)];
    assert!(check(&mut Fake::new(&memslots, absent), 7).is_ok());
    let mut system = Fake { is_system_fd: true, ..Fake::new(&memslots, absent) };
    assert!(matches!(check(&mut system, 7), Err(OpenError::SystemFd { fd: 7 })));
    let none = check(&mut Fake::new(&[], absent), 7);
    assert!(matches!(none, Err(OpenError::NoMemslots { fd: 7 })));
}
