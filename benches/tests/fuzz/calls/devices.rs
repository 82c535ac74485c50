//! Calls about devices and ROMs.

use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

use kvm_memslots_client::*;

use super::world::{World, init, mistake};
use crate::engine::Numbers;

unsafe extern "C" fn any_id(_: *mut c_void, id: u64) {
    assert_ne!(id, 0);
}

unsafe extern "C" fn any_zone(_: *mut c_void, zone: *const CZone) {
    // SAFETY: as the header says.
    assert_ne!(unsafe { (*zone).len }, 0);
}

unsafe extern "C" fn any_write(_: *mut c_void, write: *const CZoneWrite) {
    // SAFETY: as the header says.
    assert!((1..=8).contains(unsafe { &(*write).len }));
}

pub(super) fn step(world: &mut World, numbers: &mut Numbers<'_>) {
    // SAFETY: handles are null, of another kind or there; structures have their
    // sizes; descriptors are open or refused.
    unsafe {
        match numbers.byte() % 8 {
            0..=2 => describe(world, numbers),
            3 | 4 => change(world, numbers),
            5 => look(world, numbers),
            6 => in_windows(world, numbers),
            _ => roms(world, numbers),
        }
    }
}

/// # Safety
/// As the header says.
unsafe fn describe(world: &mut World, numbers: &mut Numbers<'_>) {
    let device = world.one(&world.devices, numbers);
    let backing = world.backing(numbers);
    let spec = world.spec(numbers, &raw const backing);
    let region = if numbers.byte() < 128 { 0 } else { world.id(numbers) };
    let mut bell = CDoorbell {
        region,
        addr: numbers.bytes(),
        value: numbers.byte().into(),
        len: u32::from(numbers.byte() % 9),
        flags: World::flags(numbers, 3) as u32,
        ..init()
    };
    mistake(&mut bell, numbers);
    let mut zone = CZone {
        region,
        addr: numbers.bytes(),
        len: numbers.bytes() as u32,
        flags: World::flags(numbers, 1) as u32,
        ..init()
    };
    mistake(&mut zone, numbers);
    let msi = msi(numbers);
    let line = CLine {
        gsi: numbers.byte().into(),
        pin: u32::from(numbers.byte() % 24),
        irqchip: 2,
        flags: World::flags(numbers, 3) as u32,
        eventfd: world.eventfd(numbers),
        resample: world.eventfd(numbers),
        ..init()
    };
    let trigger = world.one(&world.triggers, numbers);
    let eventfd = world.eventfd(numbers);
    let (mut made, mut new, mut fired) = (null_mut(), 0, null_mut());
    // SAFETY: as the caller says.
    unsafe {
        let came = match numbers.byte() % 10 {
            0 | 1 => kvm_memslots_device_new(
                c"net".as_ptr(),
                World::flags(numbers, 3) as u32,
                &raw mut made,
            ),
            2 => kvm_memslots_device_region(device, &raw const spec, &raw mut new),
            3 => kvm_memslots_device_ioeventfd(device, &raw const bell, eventfd),
            4 => kvm_memslots_device_zone(device, &raw const zone),
            5 => kvm_memslots_device_vector(device, eventfd, &raw const msi),
            6 => kvm_memslots_device_line(device, &raw const line),
            7 => kvm_memslots_trigger_new(eventfd, &raw mut fired),
            8 => kvm_memslots_device_triggered_vector(device, trigger, &raw const msi),
            _ => kvm_memslots_trigger_signal(trigger),
        };
        if world.came_to(came) {
            world.ids.extend((new != 0).then_some(new));
            if !made.is_null() {
                world.devices.push(made);
            }
            if !fired.is_null() {
                world.triggers.push(fired);
            }
        }
    }
}

fn msi(numbers: &mut Numbers<'_>) -> CMsi {
    let mut msi = CMsi {
        address: 0xfee0_0000,
        data: numbers.byte().into(),
        flags: World::flags(numbers, 1),
        ..init()
    };
    mistake(&mut msi, numbers);
    msi
}

/// # Safety
/// As the header says.
unsafe fn change(world: &mut World, numbers: &mut Numbers<'_>) {
    let set = world.one(&world.sets, numbers);
    let (id, vector) = (world.id(numbers), usize::from(numbers.byte() % 4));
    let msi = msi(numbers);
    let msi = if numbers.byte() & 1 == 0 { null() } else { &raw const msi };
    let mut new = 0;
    // SAFETY: as the caller says.
    unsafe {
        let came = match numbers.byte() % 9 {
            0..=2 => {
                let device = world.one(&world.devices, numbers);
                let came = kvm_memslots_attach(set, device, &raw mut new);
                world.devices.forget(device);
                came
            }
            3 => kvm_memslots_detach(set, id),
            4 => kvm_memslots_set_vector(set, id, vector, msi),
            5 => kvm_memslots_set_vector_fd(set, id, vector, world.eventfd(numbers)),
            6 => kvm_memslots_assign_deferred_of(set, id),
            7 => kvm_memslots_assign_deferred(set),
            _ => kvm_memslots_set_own_routes(set, null(), usize::from(numbers.byte() / 250)),
        };
        if world.came_to(came) && new != 0 {
            world.ids.push(new);
        }
    }
}

/// Memory in windows.
///
/// # Safety
/// As the header says.
unsafe fn in_windows(world: &mut World, numbers: &mut Numbers<'_>) {
    let device = world.one(&world.devices, numbers);
    let window = world.one(&world.windows, numbers);
    let set = world.one(&world.sets, numbers);
    let (id, offset) = (world.id(numbers), numbers.bytes());
    let mut part = CPlacement {
        offset,
        len: u64::from(numbers.byte() % 8) << 12,
        file_offset: numbers.bytes(),
        fd: world.file(numbers),
        contents: if numbers.byte() < 240 { KVM_MEMSLOTS_CONTENTS_FILE } else { 4 },
        flags: World::flags(numbers, 1),
        ..init()
    };
    mistake(&mut part, numbers);
    let mut new = 0;
    // SAFETY: as the caller says.
    unsafe {
        let came = match numbers.byte() % 3 {
            0 => kvm_memslots_move_in_window(set, id, offset),
            _ => kvm_memslots_device_in_window(device, window, &raw const part, &raw mut new),
        };
        if world.came_to(came) && new != 0 {
            world.ids.push(new);
        }
    }
}

/// # Safety
/// As the header says.
unsafe fn look(world: &World, numbers: &mut Numbers<'_>) {
    let vm = world.one(&world.vms, numbers);
    let (id, vector) = (world.id(numbers), usize::from(numbers.byte() % 4));
    let each = CEventState { zone: Some(any_zone), ..init() };
    let mut limits: CEventLimits = init();
    mistake(&mut limits, numbers);
    let (trigger, fd) = (world.one(&world.triggers, numbers), world.eventfd(numbers));
    let mut ring = null_mut();
    // SAFETY: as the caller says.
    world.came_to(unsafe {
        match numbers.byte() % 7 {
            0 => kvm_memslots_devices(vm, Some(any_id), null_mut()),
            1 => kvm_memslots_device_regions(vm, id, Some(any_id), null_mut()),
            2 => kvm_memslots_gsi(vm, id, vector, null_mut()),
            3 => kvm_memslots_event_limits(vm, &raw mut limits),
            4 => kvm_memslots_trigger_pending(trigger, null_mut()),
            5 => kvm_memslots_ring_new(vm, fd, &raw mut ring),
            _ => kvm_memslots_event_state(vm, &raw const each),
        }
    });
    if !ring.is_null() {
        // SAFETY: just made.
        world.came_to(unsafe { kvm_memslots_ring_drain(ring, Some(any_write), null_mut()) });
        // SAFETY: as above.
        unsafe { kvm_memslots_ring_free(ring) };
    }
}

/// # Safety
/// As the header says.
unsafe fn roms(world: &mut World, numbers: &mut Numbers<'_>) {
    let vm = world.one(&world.vms, numbers);
    let rom = world.one(&world.roms, numbers);
    let backing = world.backing(numbers);
    let spec = world.spec(numbers, &raw const backing);
    let (mode, after) = (u32::from(numbers.byte() % 5), u32::from(numbers.byte() % 3));
    let mut state: CRomState = init();
    let mut made = null_mut();
    // SAFETY: as the caller says.
    unsafe {
        let came = match numbers.byte() % 4 {
            0 | 1 => kvm_memslots_rom_new(vm, &raw const spec, mode, after, &raw mut made),
            2 => kvm_memslots_rom_set_array_mode(rom, vm, c_int::from(after != 0), null_mut()),
            _ => kvm_memslots_rom_state(rom, &raw mut state),
        };
        if world.came_to(came) {
            if !made.is_null() {
                world.roms.push(made);
            }
            world.ids.extend((state.region != 0).then_some(state.region));
        }
    }
}
