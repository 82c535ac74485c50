//! Calls that look at a VM, or change what it does.

use std::ffi::c_void;
use std::ptr::null_mut;

use kvm_memslots_client::*;

use super::memory::any_log;
use super::world::{World, init, mistake};
use crate::engine::Numbers;

/// What C is told is a call that there is.
unsafe extern "C" fn any_call(_: *mut c_void, call: *const CSyscall) {
    // SAFETY: the library gave it.
    let call = unsafe { &*call };
    assert!(call.number >= 0 && !call.name.is_null() && call.size == size_of::<CSyscall>());
}

pub(super) fn step(world: &World, numbers: &mut Numbers<'_>) {
    let vm = world.one(&world.vms, numbers);
    let set = world.one(&world.sets, numbers);
    let window = world.one(&world.windows, numbers);
    let backing = world.backing(numbers);
    let (id, as_id) = (world.id(numbers), u16::from(numbers.byte() >= 250));
    let (mut region, mut limits, mut usage): (CRegion, CLimits, CDeferralUsage) =
        (init(), init(), init());
    let mut placement: CPlacement = init();
    mistake(&mut region, numbers);
    mistake(&mut limits, numbers);
    mistake(&mut usage, numbers);
    mistake(&mut placement, numbers);
    let range = CSlotRange { as_id, first: numbers.byte().into(), last: numbers.byte().into() };
    let (mut words, mut served, mut offset) = ([0_u64; 64], 0, 0);
    let (to, nothing): (_, *mut c_void) = (words.as_mut_ptr(), null_mut());
    // SAFETY: handles are null, of another kind or there; structures have their
    // sizes, and lists are as long as is said.
    let came = unsafe {
        match numbers.byte() % 13 {
            0 => {
                kvm_memslots_region_at_hva(vm, as_id, backing.hva, &raw mut region, &raw mut offset)
            }
            1 => kvm_memslots_dirty_log(vm, id, to, words.len()),
            2 => kvm_memslots_dirty_logs(vm, Some(any_log), nothing),
            3 => kvm_memslots_limits(vm, &raw mut limits),
            4 => kvm_memslots_reserve_slots(vm, &raw const range),
            5 => kvm_memslots_promote(vm, null_mut()),
            6 => kvm_memslots_deferral_usage(vm, &raw mut usage),
            7 => kvm_memslots_exits_served(vm, id, &raw mut served),
            8 => kvm_memslots_window_at(window, backing.len, &raw mut placement),
            9 => kvm_memslots_set_read_only(set, id, as_id.into()),
            10 => kvm_memslots_syscalls(id as u32 % 16, Some(any_call), nothing),
            11 => kvm_memslots_set_trap(set, id, as_id.into()),
            _ => {
                assert!(kvm_memslots_changes_len(set) < 4096);
                return assert_eq!(kvm_memslots_version(), KVM_MEMSLOTS_VERSION);
            }
        }
    };
    world.came_to(came);
}
