//! Calls about PCI BARs, in windows and elsewhere.

use std::ffi::c_void;
use std::ptr::null_mut;

use kvm_memslots_client::*;

use super::world::{World, init, mistake};
use crate::engine::Numbers;

unsafe extern "C" fn any_region(_: *mut c_void, _: usize, id: u64) {
    assert_ne!(id, 0);
}

unsafe extern "C" fn any_placement(_: *mut c_void, _: usize, placement: *const CPlacement) {
    // SAFETY: as the header says.
    assert_ne!(unsafe { (*placement).len }, 0);
}

pub(super) fn step(world: &mut World, numbers: &mut Numbers<'_>) {
    // They are of one VM, always the same.
    let vm = world.vms.first();
    let pci = world.one(&world.bars, numbers);
    let (id, offset) = (world.id(numbers), u16::from(numbers.byte()));
    let data = numbers.bytes().to_ne_bytes();
    let (data, len) = (data.as_ptr().cast(), usize::from(numbers.byte() % 9));
    // SAFETY: handles are null, of another kind or there; structures have their
    // sizes; descriptors are open or refused.
    unsafe {
        let came = match numbers.byte() % 10 {
            0 if world.bars.is_empty() => {
                return world.bars.push(kvm_memslots_pci_new(40));
            }
            0 => return set_up(world, numbers, pci),
            1 | 2 => return add(world, numbers, pci, vm),
            // Where BARs are, or memory decoding.
            3 => kvm_memslots_pci_config_write(
                pci,
                vm,
                id,
                4,
                c"\x02".as_ptr().cast(),
                1,
                null_mut(),
            ),
            4 => {
                let offset = 0x10 + offset % 0x24;
                kvm_memslots_pci_config_write(pci, vm, id, offset, data, len, null_mut())
            }
            5 => kvm_memslots_pci_note_write(pci, id, offset, data, len),
            6 => kvm_memslots_pci_sync(pci, vm, null_mut()),
            7 if len & 1 == 0 => kvm_memslots_pci_reset(pci, vm, id, null_mut()),
            7 => kvm_memslots_pci_remove(pci, vm, id, null_mut()),
            _ => return look(world, numbers, pci),
        };
        world.came_to(came);
    }
}

/// # Safety
/// As the header says.
unsafe fn set_up(world: &World, numbers: &mut Numbers<'_>, pci: *mut Handle<PciBars>) {
    let window = world.one(&world.windows, numbers);
    // SAFETY: as the caller says.
    world.came_to(unsafe {
        match numbers.byte() & 1 {
            0 => kvm_memslots_pci_set_flags(pci, World::flags(numbers, 7) as u32),
            _ => kvm_memslots_pci_in_window(pci, window),
        }
    });
}

/// # Safety
/// As the header says.
unsafe fn add(
    world: &mut World,
    numbers: &mut Numbers<'_>,
    pci: *mut Handle<PciBars>,
    vm: *mut Handle<Vm>,
) {
    let backing = world.backing(numbers);
    let window = CSpec { id: 0, ..world.spec(numbers, &raw const backing) };
    let windows = [&raw const window];
    let mut bell = CBarDoorbell {
        offset: numbers.bytes(),
        value: numbers.byte().into(),
        flags: World::flags(numbers, 3),
        len: u32::from(numbers.byte() % 9),
        eventfd: world.eventfd(numbers),
        ..init()
    };
    mistake(&mut bell, numbers);
    let bells = [&raw const bell];
    let range = CBarRange { offset: numbers.bytes(), len: numbers.byte().into() };
    let mut bar = CBar {
        len: 1 << (numbers.byte() % 20),
        windows: windows.as_ptr(),
        nr_windows: usize::from(numbers.byte() & 1),
        index: u32::from(numbers.byte() % 8),
        kind: u16::from(numbers.byte() % 4),
        flags: World::flags(numbers, 1) as u16,
        doorbells: bells.as_ptr(),
        nr_doorbells: usize::from(numbers.byte() & 1),
        exits: &raw const range,
        nr_exits: usize::from(numbers.byte() & 1),
        ..init()
    };
    mistake(&mut bar, numbers);
    let bars = [&raw const bar];
    let flags = World::flags(numbers, 1);
    let function = CFunction { bars: bars.as_ptr(), nr_bars: 1, flags, ..init() };
    let mut new = 0;
    // SAFETY: as the caller says.
    let came = unsafe { kvm_memslots_pci_add(pci, vm, &raw const function, &raw mut new) };
    if world.came_to(came) {
        world.ids.push(new);
    }
}

/// # Safety
/// As the header says.
unsafe fn look(world: &World, numbers: &mut Numbers<'_>, pci: *mut Handle<PciBars>) {
    let (id, index) = (world.id(numbers), u32::from(numbers.byte() % 8));
    let (gpa, mut data) = (numbers.bytes(), [0_u8; 8]);
    let (at, len) = (data.as_mut_ptr().cast(), usize::from(numbers.byte() % 9));
    let (mut function, mut of, mut offset, nothing) = (0, 0, 0, null_mut());
    // SAFETY: as the caller says.
    world.came_to(unsafe {
        match numbers.byte() % 6 {
            0 => kvm_memslots_pci_base(pci, id, index, &raw mut offset),
            1 => {
                let to = (&raw mut function, &raw mut of, &raw mut offset);
                kvm_memslots_pci_decode(pci, gpa, to.0, to.1, to.2)
            }
            2 => kvm_memslots_pci_refusal(pci, id, index),
            3 => kvm_memslots_pci_regions(pci, id, index, Some(any_region), nothing),
            4 => kvm_memslots_pci_placed(pci, id, index, Some(any_placement), nothing),
            _ => kvm_memslots_pci_config_read(pci, id, gpa as u16, at, len),
        }
    });
}
