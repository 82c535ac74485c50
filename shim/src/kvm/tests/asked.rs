//! What a kernel is asked at the start, and how far it is believed.

use kvm_bindings::{
    KVM_CAP_COALESCED_MMIO, KVM_CAP_COALESCED_PIO, KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_GUEST_MEMFD,
    KVM_CAP_IRQ_ROUTING, KVM_CAP_MSI_DEVID, KVM_CAP_MULTI_ADDRESS_SPACE, KVM_CAP_NR_MEMSLOTS,
    KVM_CAP_READONLY_MEM, KVM_CAP_USER_MEMORY, KVM_IRQFD_FLAG_DEASSIGN,
};
use kvm_memslots_uapi::irqfd::{
    KVM_CAP_IRQFD_NO_IRQBYPASS, KVM_IRQFD_FLAG_NO_IRQBYPASS, NoIrqBypass,
};
use kvm_memslots_uapi::probe::{Mismatch, Support, TrapMismatch, TrapSupport};
use kvm_memslots_uapi::{KVM_CAP_MEM_TRAP, KVM_CAP_USER_MEMORY_REGIONS, MAX_ENTRIES, MemFlags};
use libc::c_int;

use super::fake::{Batch, Fake, Seat, absent, claiming, honest, limits, open, slot};
use crate::errno::Errno;
use crate::events::{EventCalls, ZoneLimits};
use crate::kvm::error::OpenError;
use crate::kvm::open::check;
use crate::kvm::{Kvm, KvmOptions, QUIRK_SLOT_ZAP_ALL};
use crate::memory::{MemoryCalls, Op};

#[test]
fn limits_are_what_the_capabilities_say() {
    let caps = [
        (KVM_CAP_NR_MEMSLOTS, 509),
        (KVM_CAP_MULTI_ADDRESS_SPACE, 2),
        (KVM_CAP_READONLY_MEM, 1),
        (KVM_CAP_GUEST_MEMFD, 1),
    ];
    let limits = limits(Fake::new(&caps, absent));
    assert_eq!((limits.slots, limits.address_spaces, limits.batch), (509, 2, None));
    assert!(limits.readonly && limits.guest_memfd);
    assert_eq!(limits.slot_pages, (1 << 31) - 1);
}

#[test]
fn a_kernel_without_capabilities_has_32_slots_in_one_address_space() {
    let limits = limits(Fake::new(&[], absent));
    assert_eq!((limits.slots, limits.address_spaces), (32, 1));
    assert!(!limits.readonly && !limits.guest_memfd);
}

#[test]
fn a_kernel_that_answers_the_probe_has_the_batch_ioctl() {
    let (vm, _) = claiming(honest);
    assert_eq!(vm.support(), Support::Present { max_entries: 4096 });
    assert_eq!(MemoryCalls::limits(&vm).batch, Some(4096));
}

#[test]
fn more_entries_than_a_batch_can_hold_are_not_believed() {
    let limits = limits(Fake::new(&[(KVM_CAP_USER_MEMORY_REGIONS, c_int::MAX)], honest));
    assert_eq!(limits.batch, Some(MAX_ENTRIES as u32));
}

/// A kernel that claims the capability without having the ioctl, and whether
/// the answer that gives it away is the one expected.
type Liar = (Batch, fn(&Mismatch) -> bool);

const LIARS: [Liar; 5] = [
    (absent, |m| matches!(m, Mismatch::DryRunRefused { errno } if *errno == Errno::ENOTTY.raw())),
    (
        |header| {
            header.failed = header.nr;
            Ok(())
        },
        |m| matches!(m, Mismatch::BadFlagsAnswer { errno: 0 }),
    ),
    (
        |header| honest(header).map_err(|_| Errno::ENOTTY),
        |m| matches!(m, Mismatch::BadFlagsAnswer { errno } if *errno == Errno::ENOTTY.raw()),
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
        let (vm, kernel) = claiming(batch);
        let Support::Impostor { claimed: 4096, mismatch } = vm.support() else {
            panic!("liar {index} is believed: {:?}", vm.support());
        };
        assert!(expected(&mismatch), "liar {index}: {mismatch}");
        assert_eq!(MemoryCalls::limits(&vm).batch, None);

        kernel.look().asked.clear();
        let ops = [Op::Create(slot(1)), Op::Delete(slot(1))];
        for ops in [&ops[..1], &ops] {
            let refused = vm.check_all(0, ops).unwrap_err();
            assert_eq!((refused.errno, refused.index), (Errno::ENOTTY, None));
            // SAFETY: a fake maps nothing.
            assert_eq!(unsafe { vm.change_all(0, ops) }, Err(refused));
        }
        assert!(kernel.look().asked.is_empty(), "liar {index} was called");
    }
}

fn with_trap(claims: c_int, knows: u32) -> Fake {
    Fake { knows, ..Fake::new(&[(KVM_CAP_MEM_TRAP, claims)], absent) }
}

#[test]
fn a_kernel_that_answers_the_probe_has_the_trap_flag() {
    let (vm, kernel) = open(with_trap(0x8000, MemFlags::all().bits()));
    assert_eq!((vm.trap_support(), MemoryCalls::limits(&vm).trap), (TrapSupport::Present, true));
    // Not on the VM itself.
    assert_eq!(kernel.look().asked, ["scratch"]);
}

#[test]
fn the_trap_flag_is_not_believed_on_a_claim() {
    let known = MemFlags::all().bits();
    let cases = [
        (with_trap(1, known), TrapMismatch::Answer),
        (with_trap(0x8000, 3), TrapMismatch::Refused { errno: Errno::EINVAL.raw() }),
        (with_trap(0x8000, !0), TrapMismatch::BadFlagsAnswer { errno: 0 }),
        (
            Fake { has_dev_kvm: false, ..with_trap(0x8000, known) },
            TrapMismatch::NoScratchVm { errno: Errno::EACCES.raw() },
        ),
    ];
    for (fake, expected) in cases {
        let (vm, _) = open(fake);
        let found = vm.trap_support();
        assert!(matches!(found, TrapSupport::Impostor { mismatch, .. } if mismatch == expected));
        assert!(!MemoryCalls::limits(&vm).trap);
    }
}

#[test]
fn without_a_claim_or_leave_no_scratch_vm_is_made() {
    let known = MemFlags::all().bits();
    for (claims, scratch_vm) in [(0, true), (0x8000, false)] {
        let kernel = Seat::new(with_trap(claims, known));
        let vm = Kvm::with_calls(Box::new(kernel.clone()), KvmOptions { scratch_vm });
        let found = (vm.trap_support(), MemoryCalls::limits(&vm).trap);
        assert_eq!(found, (TrapSupport::Absent, false));
        assert!(kernel.look().asked.is_empty());
    }
    assert_eq!(KvmOptions::default(), KvmOptions { scratch_vm: false });
}

#[test]
fn the_flag_for_irqfds_is_not_believed_on_a_claim() {
    let flags = KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_NO_IRQBYPASS;
    let claim = (KVM_CAP_IRQFD_NO_IRQBYPASS, c_int::try_from(KVM_IRQFD_FLAG_NO_IRQBYPASS).unwrap());
    let kernel = |caps: &[_], knows| Fake { knows, ..Fake::new(caps, absent) };
    let (vm, seat) = open(kernel(&[claim], flags));
    assert_eq!(
        (vm.no_irqbypass(), EventCalls::limits(&vm).no_irqbypass),
        (NoIrqBypass::Present, true)
    );
    assert_eq!(seat.look().asked, ["irqfd"; 2]);
    for knows in [KVM_IRQFD_FLAG_DEASSIGN, !0] {
        let (vm, _) = open(kernel(&[claim], knows));
        assert!(matches!(vm.no_irqbypass(), NoIrqBypass::Impostor { .. }), "{knows:#x}");
        assert!(!EventCalls::limits(&vm).no_irqbypass);
    }
    let (vm, seat) = open(kernel(&[], flags));
    assert_eq!(vm.no_irqbypass(), NoIrqBypass::Absent);
    assert!(seat.look().asked.is_empty());
}

#[test]
fn limits_of_zones_are_what_the_capabilities_say() {
    let zones = |caps: &[_]| EventCalls::limits(&open(Fake::new(caps, absent)).0).zones;
    assert_eq!(zones(&[]), ZoneLimits { ring_page: None, pio: false });
    let both = zones(&[(KVM_CAP_COALESCED_MMIO, 2), (KVM_CAP_COALESCED_PIO, 1)]);
    assert_eq!(both, ZoneLimits { ring_page: Some(2), pio: true });
}

#[test]
fn limits_of_events_are_what_the_capabilities_say() {
    let events = |caps: &[_]| EventCalls::limits(&open(Fake::new(caps, absent)).0);
    let limits = events(&[(KVM_CAP_IRQ_ROUTING, 1024), (KVM_CAP_MSI_DEVID, 1)]);
    assert_eq!((limits.routes, limits.devid), (1024, true));
    let limits = events(&[]);
    assert_eq!((limits.routes, limits.devid), (4096, false));
}

#[test]
fn only_a_vm_fd_is_taken() {
    let memslots = [(KVM_CAP_USER_MEMORY, 1)];
    let check = |fake| check(&Seat::new(fake), 7);
    assert!(check(Fake::new(&memslots, absent)).is_ok());
    let system = Fake { is_system_fd: true, ..Fake::new(&memslots, absent) };
    assert!(matches!(check(system), Err(OpenError::SystemFd(7))));
    let none = check(Fake::new(&[], absent));
    assert!(matches!(none, Err(OpenError::NoMemslots(7))));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_irqchip_is_there_or_not_or_nobody_knows() {
    let answers =
        [(Ok(()), Some(true)), (Err(Errno::ENXIO), Some(false)), (Err(Errno::ENOTTY), None)];
    for (irqchip, expected) in answers {
        let (vm, kernel) = open(Fake { irqchip, ..Fake::new(&[], absent) });
        assert!(!kernel.look().asked.contains(&"irqchip"), "asked without need");
        assert_eq!(vm.has_irqchip(), expected);
    }
}

#[test]
fn quirks_are_disabled_as_a_set() {
    let (vm, kernel) = open(Fake::new(&[(KVM_CAP_DISABLE_QUIRKS2, 0xff)], absent));
    assert_eq!(vm.quirks(), 0xff);
    assert_eq!(vm.disable_quirks(QUIRK_SLOT_ZAP_ALL | 1), Ok(()));
    assert_eq!(kernel.look().enabled, [(KVM_CAP_DISABLE_QUIRKS2, 0x81)]);
    assert_eq!(open(Fake::new(&[], absent)).0.quirks(), 0);
}
