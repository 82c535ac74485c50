//! Each call, as the kernel sees it.

use kvm_memslots_uapi::kvm_userspace_memory_regions;

use super::fake::{Fake, absent, claiming, honest, open, slot};
use crate::errno::Errno;
use crate::events::{self, Bus, EventCalls, Ioeventfd, Irqfd, Msi, Route, Zone};
use crate::kvm::Kvm;
use crate::kvm::retry::ATTEMPTS;
use crate::limits::Limits;
use crate::mapping::{GuestMemfd, Slot};
use crate::memory::{MemoryCalls, Op};

/// Blames the second entry, or what it is told to by the header's size.
fn blaming(header: &mut kvm_userspace_memory_regions) -> Result<(), Errno> {
    honest(header)?;
    header.failed = 1;
    if header.nr == 0 { honest(header) } else { Err(Errno::EEXIST) }
}

#[test]
fn the_entry_that_is_blamed_is_one_that_was_sent() {
    let (vm, _) = claiming(blaming);
    assert_eq!(MemoryCalls::limits(&vm).batch, Some(4096));
    let ops = [Op::Create(slot(1)), Op::Delete(slot(1))];
    for (ops, index) in [(&ops[..1], None), (&ops, Some(1))] {
        let refused = vm.check_all(0, ops).unwrap_err();
        assert_eq!((refused.errno, refused.index), (Errno::EEXIST, index));
    }
}

#[test]
fn a_table_of_routes_is_laid_out_as_the_kernel_reads_it() {
    let (vm, kernel) = open(Fake::new(&[], absent));
    let msi = Msi { address: 0x1_fee0_0000, data: 5, devid: Some(7) };
    change(&vm, &events::Op::routes([Route::irqchip(3, 2, 1), Route::msi(9, msi)])).unwrap();
    let expected = [
        &[2, 0][..],
        &[3, 1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0],
        &[9, 2, 1, 0, 0xfee0_0000, 1, 5, 7, 0, 0, 0, 0],
    ];
    assert_eq!(kernel.look().routes, expected.concat());
    change(&vm, &events::Op::routes([])).unwrap();
    assert_eq!(kernel.look().routes, [0, 0]);
}

const IRQFD: Irqfd = Irqfd { gsi: 1, fd: 2, resample: None, no_irqbypass: false };
const ZONE: Zone = Zone { bus: Bus::Mmio, addr: 0x1000, len: 0x1000 };
const IOEVENTFD: Ioeventfd =
    Ioeventfd { bus: Bus::Mmio, addr: 0x1000, len: 4, datamatch: None, fd: 3 };

fn change(vm: &Kvm, op: &events::Op) -> Result<(), Errno> {
    EventCalls::change(vm, op)
}

/// A call and what the fake writes down for it.
type Call = (&'static str, fn(&Kvm) -> Result<(), Errno>);

/// Each call that a signal can interrupt.
const CALLS: [Call; 14] = [
    // SAFETY: a fake maps nothing.
    ("region", |vm| unsafe { MemoryCalls::change(vm, 0, &Op::Create(slot(1))) }),
    ("region2", |vm| {
        let memfd = GuestMemfd { fd: 3, offset: 0 };
        let mapping = slot(1).mapping.with_guest_memfd(memfd).unwrap();
        // SAFETY: a fake maps nothing.
        unsafe { MemoryCalls::change(vm, 0, &Op::Create(Slot { mapping, ..slot(1) })) }
    }),
    ("regions", |vm| vm.check_all(0, &[Op::Create(slot(1))]).map_err(|refused| refused.errno)),
    ("regions", |vm| {
        let ops = [Op::Create(slot(1)), Op::Delete(slot(1))];
        // SAFETY: a fake maps nothing.
        unsafe { vm.change_all(0, &ops) }.map_err(|refused| refused.errno)
    }),
    ("get", |vm| vm.dirty_log(0, &slot(64), &mut |_| ())),
    ("clear", |vm| vm.clear_dirty_log(0, &slot(64), 0, 64, &[0])),
    ("routing", |vm| change(vm, &events::Op::routes([Route::irqchip(0, 0, 0)]))),
    ("routing", |vm| change(vm, &events::Op::routes([]))),
    ("irqfd", |vm| change(vm, &events::Op::Assign(IRQFD.into()))),
    ("irqfd", |vm| change(vm, &events::Op::Deassign(IRQFD.into()))),
    ("ioeventfd", |vm| change(vm, &events::Op::Assign(IOEVENTFD.into()))),
    ("ioeventfd", |vm| change(vm, &events::Op::Deassign(IOEVENTFD.into()))),
    ("zone", |vm| change(vm, &events::Op::Assign(ZONE.into()))),
    ("zone", |vm| change(vm, &events::Op::Deassign(ZONE.into()))),
];

#[test]
fn an_interrupted_call_is_made_again_and_no_other() {
    for (name, call) in CALLS {
        let (vm, kernel) = claiming(honest);
        kernel.look().asked.clear();
        kernel.look().interrupts = ATTEMPTS - 1;
        assert_eq!(call(&vm), Ok(()), "{name}");
        assert_eq!(kernel.look().asked, vec![name; ATTEMPTS as usize]);
    }
}

#[test]
fn a_storm_of_signals_is_reported() {
    for (name, call) in CALLS {
        let (vm, kernel) = claiming(honest);
        kernel.look().asked.clear();
        kernel.look().interrupts = u32::MAX;
        assert_eq!(call(&vm), Err(Errno::EINTR), "{name}");
        assert_eq!(kernel.look().asked, vec![name; ATTEMPTS as usize]);
    }
}

#[test]
fn a_short_bitmap_is_refused_without_a_call() {
    let (vm, kernel) = claiming(honest);
    kernel.look().asked.clear();
    assert_eq!(vm.clear_dirty_log(0, &slot(65), 0, 65, &[0]), Err(Errno::EINVAL));
    let huge = slot(Limits::SLOT_PAGES + 1);
    assert_eq!(vm.dirty_log(0, &huge, &mut |_| ()), Err(Errno::EINVAL));
    assert!(kernel.look().asked.is_empty());
}

#[test]
fn what_kvm_does_not_say_counts_as_dirty() {
    let (vm, kernel) = claiming(honest);
    // KVM's slot has 64 pages, the caller's 70: six of them are not known.
    kernel.look().log = vec![0b101];
    let mut bitmap = Vec::new();
    assert_eq!(vm.dirty_log(0, &slot(70), &mut |bits| bitmap.extend_from_slice(bits)), Ok(()));
    assert_eq!(bitmap, [0b101, 0b11_1111]);
}
