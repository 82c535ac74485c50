//! Calls about VMs, memory and sets.

use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

use kvm_memslots_client::*;

use super::world::{ARENA, World, init, mistake};
use crate::engine::Numbers;

unsafe extern "C" fn any_region(_: *mut c_void, region: *const CRegion) {
    // SAFETY: as the header says.
    assert_ne!(unsafe { (*region).id }, 0);
}

unsafe extern "C" fn any_slot(_: *mut c_void, slot: *const CSlot) {
    // SAFETY: as the header says.
    assert_ne!(unsafe { (*slot).len }, 0);
}

unsafe extern "C" fn any_placement(_: *mut c_void, placement: *const CPlacement) {
    // SAFETY: as the header says.
    assert_ne!(unsafe { (*placement).len }, 0);
}

pub(super) unsafe extern "C" fn any_log(_: *mut c_void, id: u64, words: *const u64, pages: u64) {
    // SAFETY: as the header says: a bit a page.
    let words = unsafe { std::slice::from_raw_parts(words, pages.div_ceil(64) as usize) };
    assert!(id != 0 && words.iter().any(|word| *word != 0));
}

unsafe extern "C" fn read_device(_: *mut c_void, _: u64, data: *mut c_void, len: usize) {
    // SAFETY: as the header says.
    unsafe { data.write_bytes(0xff, len) };
}

unsafe extern "C" fn write_device(_: *mut c_void, _: u64, _: *const c_void, _: usize) {}

/// Opens a VM where there are few.
fn open(world: &mut World, numbers: &mut Numbers<'_>) {
    let known =
        KVM_MEMSLOTS_MANUAL_DIRTY_LOG | KVM_MEMSLOTS_ALLOW_BYPASS | KVM_MEMSLOTS_NO_ORDER_CHECK;
    let reserved = CSlotRange { as_id: 0, first: 3, last: numbers.byte().into() };
    let mut deferral = CDeferral { policy: u32::from(numbers.byte() % 3), ..init() };
    mistake(&mut deferral, numbers);
    let mut options = COptions {
        flags: World::flags(numbers, known.into()) as u32,
        executor: u32::from(numbers.byte() % 16 / 7),
        holes: u32::from(numbers.byte() % 4),
        reserved_slots: &raw const reserved,
        nr_reserved_slots: usize::from(numbers.byte() & 1),
        deferral: if numbers.byte() & 1 == 0 { null() } else { &raw const deferral },
        ..init()
    };
    mistake(&mut options, numbers);
    let mut limits = CLimits {
        slots: u32::from(numbers.byte()),
        batch: u32::from(numbers.byte() % 4),
        flags: World::flags(numbers, 7) as u32,
        ..init()
    };
    mistake(&mut limits, numbers);
    let mut vm = null_mut();
    // SAFETY: structures of their sizes, and a descriptor that is open.
    let opened = unsafe {
        match world.vm_fd() {
            Some(fd) => kvm_memslots_open(fd, &raw const options, &raw mut vm),
            None => kvm_memslots_open_model(&raw const options, &raw const limits, &raw mut vm),
        }
    };
    if world.came_to(opened) {
        world.vms.push(vm);
    } else {
        assert!(vm.is_null());
    }
}

/// A call about a VM or a window.
pub(super) fn step(world: &mut World, numbers: &mut Numbers<'_>) {
    let vm = world.one(&world.vms, numbers);
    let (id, gpa) = (world.id(numbers), numbers.bytes());
    let mut region: CRegion = init();
    mistake(&mut region, numbers);
    let mut words = [0_u64; 64];
    // SAFETY: handles are null, of another kind or there; structures have their
    // sizes; lists are as long as is said.
    unsafe {
        let came = match numbers.byte() % 16 {
            0 | 1 => return open(world, numbers),
            2 => kvm_memslots_region(vm, id, &raw mut region),
            3 => kvm_memslots_region_at(vm, 0, gpa, &raw mut region),
            4 => kvm_memslots_region_at_slot(
                vm,
                0,
                numbers.byte().into(),
                gpa >> 12,
                &raw mut region,
                null_mut(),
            ),
            5 => kvm_memslots_tagged(vm, gpa, Some(any_region), null_mut()),
            6 => kvm_memslots_slots(vm, numbers.byte().into(), Some(any_slot), null_mut()),
            7 => kvm_memslots_dirty_log_of(vm, id, gpa >> 12, 64, words.as_mut_ptr(), 1),
            8 => kvm_memslots_dirty_logs_in(vm, numbers.byte().into(), Some(any_log), null_mut()),
            9 => kvm_memslots_clear_dirty_log(vm, id, gpa >> 12, 4096, words.as_ptr(), 64),
            10 => kvm_memslots_promote_due(vm, null_mut()),
            11 => return serve(world, numbers, vm),
            12 | 13 => return windows(world, numbers, vm),
            14 => return close(world, numbers, vm),
            _ => kvm_memslots_set_holes(vm, u32::from(numbers.byte() % 4), null()),
        };
        world.came_to(came);
    }
}

/// # Safety
/// As the header says.
unsafe fn close(world: &mut World, numbers: &mut Numbers<'_>, vm: *mut Handle<Vm>) {
    if numbers.byte() & 1 == 0 {
        // SAFETY: as the caller says.
        let came = unsafe { kvm_memslots_close(vm, null_mut()) };
        if !world.came_to(came) {
            return;
        }
    } else if world.vms.has(vm) {
        // SAFETY: as the caller says.
        unsafe { kvm_memslots_free(vm) };
    }
    let was_first = world.vms.first() == vm;
    world.vms.forget(vm);
    if was_first {
        world.no_bars();
    }
}

/// # Safety
/// As the header says.
unsafe fn serve(world: &mut World, numbers: &mut Numbers<'_>, vm: *mut Handle<Vm>) {
    let exits = world.one(&world.exits, numbers);
    let mut data = [0_u8; 64];
    let (gpa, len) = (numbers.bytes(), usize::from(numbers.byte() % 65));
    let mut made = null_mut();
    // SAFETY: as the caller says; `data` is that long.
    unsafe {
        let came = match numbers.byte() % 5 {
            0 => kvm_memslots_exits_new(vm, 0, &raw mut made),
            1 | 2 => kvm_memslots_exits_read(
                exits,
                gpa,
                data.as_mut_ptr().cast(),
                len,
                Some(read_device),
                null_mut(),
                null_mut(),
            ),
            3 => kvm_memslots_exits_write(
                exits,
                gpa,
                data.as_ptr().cast(),
                len,
                Some(write_device),
                null_mut(),
                null_mut(),
            ),
            _ => kvm_memslots_undecoded(vm, exits, null_mut()),
        };
        if world.came_to(came) && !made.is_null() {
            world.exits.push(made);
        }
    }
}

/// # Safety
/// As the header says.
unsafe fn windows(world: &mut World, numbers: &mut Numbers<'_>, vm: *mut Handle<Vm>) {
    let window = world.one(&world.windows, numbers);
    let mut spec = CWindowSpec {
        gpa: numbers.bytes(),
        // Host addresses are this process's.
        len: numbers.bytes() % ARENA,
        gap: u32::from(numbers.byte() % 4),
        flags: World::flags(numbers, 1) as u32,
        ..init()
    };
    mistake(&mut spec, numbers);
    let placement = |numbers: &mut Numbers<'_>| {
        let mut placement = CPlacement {
            offset: numbers.bytes(),
            len: numbers.bytes(),
            file_offset: numbers.bytes(),
            fd: world.file(numbers),
            contents: match numbers.byte() % 8 {
                // What else can be mapped is the caller's promise.
                contents @ (KVM_MEMSLOTS_CONTENTS_DEVICE_BYTE
                | KVM_MEMSLOTS_CONTENTS_MAPPING_BYTE) => u32::from(contents) + 16,
                contents => contents.into(),
            },
            flags: World::flags(numbers, 1),
            ..init()
        };
        mistake(&mut placement, numbers);
        placement
    };
    let edits = [placement(numbers), placement(numbers)];
    let list = [&raw const edits[0], &raw const edits[1]];
    let mut made = null_mut();
    // SAFETY: as the caller says.
    unsafe {
        let came = match numbers.byte() % 8 {
            0 | 1 => kvm_memslots_window_new(&raw const spec, &raw mut made),
            2 => kvm_memslots_window_place(window, list[0]),
            3 => kvm_memslots_window_edit(window, list.as_ptr(), 2),
            4 => kvm_memslots_window_remove(window, spec.gpa, spec.len),
            5 => kvm_memslots_window_placed(window, Some(any_placement), null_mut()),
            6 => kvm_memslots_window_found(window, vm, 0, spec.gpa, null_mut()),
            _ if world.windows.has(window) => {
                kvm_memslots_window_free(window);
                return world.windows.forget(window);
            }
            _ => return,
        };
        if world.came_to(came) && !made.is_null() {
            world.windows.push(made);
        }
    }
}

const KVM_MEMSLOTS_CONTENTS_DEVICE_BYTE: u8 = KVM_MEMSLOTS_CONTENTS_DEVICE as u8;
const KVM_MEMSLOTS_CONTENTS_MAPPING_BYTE: u8 = KVM_MEMSLOTS_CONTENTS_MAPPING as u8;

/// A call about a set.
pub(super) fn sets(world: &mut World, numbers: &mut Numbers<'_>) {
    let set = world.one(&world.sets, numbers);
    let id = world.id(numbers);
    let backing = world.backing(numbers);
    let spec = world.spec(numbers, &raw const backing);
    let window = world.one(&world.windows, numbers);
    let (number, on) = (numbers.bytes(), c_int::from(numbers.byte() & 1));
    let mut new = 0;
    // SAFETY: handles are null, of another kind or there; structures have their
    // sizes.
    unsafe {
        let came = match numbers.byte() % 20 {
            0 | 1 => return world.sets.push(kvm_memslots_changes_new()),
            2..=6 => kvm_memslots_map(set, &raw const spec, &raw mut new),
            7 => kvm_memslots_unmap(set, id),
            8 => kvm_memslots_resize(set, id, world.len(numbers)),
            9 => kvm_memslots_split(set, id, number, &raw mut new),
            10 => kvm_memslots_move_to(set, id, number),
            11 => kvm_memslots_replace(set, id, &raw const backing),
            12 => kvm_memslots_set_log_dirty(set, id, on),
            13 => kvm_memslots_join(set, id),
            14 => kvm_memslots_window_map(set, window, null(), &raw mut new),
            15 => kvm_memslots_begin(set),
            16 => {
                let other = world.one(&world.sets, numbers);
                let came = kvm_memslots_changes_append(set, other);
                if other != set {
                    world.sets.forget(other);
                }
                came
            }
            17 if on == 0 && world.sets.has(set) => {
                kvm_memslots_changes_free(set);
                return world.sets.forget(set);
            }
            _ => return apply(world, numbers, set),
        };
        if world.came_to(came) && new != 0 {
            world.ids.push(new);
        }
    }
}

/// # Safety
/// As the header says.
unsafe fn apply(world: &mut World, numbers: &mut Numbers<'_>, set: *mut Handle<CChanges>) {
    let vm = world.one(&world.vms, numbers);
    let layout = |world: &World| world.vms.has(vm).then(|| (World::layout(vm), world.placed()));
    let before = layout(world);
    let mut report: CReport = init();
    mistake(&mut report, numbers);
    // SAFETY: as the caller says.
    unsafe {
        let came = match numbers.byte() % 4 {
            0 => kvm_memslots_commit(vm, set, &raw mut report),
            1 => {
                let mut preview: CPreview = init();
                let came = kvm_memslots_preview(vm, set, &raw mut preview);
                world.came_to(came);
                assert_eq!(before, layout(world));
                return;
            }
            _ => {
                let came = kvm_memslots_apply(vm, set, &raw mut report);
                world.sets.forget(set);
                came
            }
        };
        if !world.came_to(came) {
            assert_eq!(before, layout(world));
        }
    }
}
