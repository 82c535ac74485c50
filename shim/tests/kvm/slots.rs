//! Slots come, move, change and go; KVM's answers come through.

use kvm_memslots_shim::memory::{How, MemoryCalls, Op, Plan, Why, check, execute};
use kvm_memslots_shim::{Errno, GuestMemfd, MemFlags, Slot};

use crate::machine::{Machine, PAGE};

#[test]
fn a_slot_comes_moves_changes_and_goes() {
    let Some(machine) = Machine::new("a_slot_comes_moves_changes_and_goes", 16) else { return };
    let slot = machine.ram.slot(3, 0x10_0000, 16);
    assert_eq!(machine.create(&slot), Ok(()));
    let moved = Slot { mapping: slot.mapping.moved_to(0x20_0000).unwrap(), ..slot };
    assert_eq!(machine.change(&Op::Move { from: slot, gpa: 0x20_0000 }), Ok(()));
    let flags = MemFlags::LOG_DIRTY_PAGES;
    let logged = Slot { mapping: moved.mapping.with_flags(flags), ..slot };
    assert_eq!(machine.log(&logged, &mut [0]), Err(Errno::ENOENT));
    assert_eq!(machine.change(&Op::SetFlags { from: moved, flags }), Ok(()));
    assert_eq!(machine.log(&logged, &mut [0]), Ok(()));
    assert_eq!(machine.delete(3), Ok(()));
    assert_eq!(machine.delete(3), Err(Errno::EINVAL));
}

#[test]
fn what_kvm_refuses_is_refused() {
    let Some(machine) = Machine::new("what_kvm_refuses_is_refused", 16) else { return };
    let slot = machine.ram.slot(0, 0x10_0000, 8);
    assert_eq!(machine.create(&slot), Ok(()));
    let overlapping = machine.ram.slot(1, 0x10_7000, 8);
    assert_eq!(machine.create(&overlapping), Err(Errno::EEXIST));
    let larger = machine.ram.slot(0, 0x10_0000, 16);
    assert_eq!(machine.create(&larger), Err(Errno::EINVAL));
    let unaligned = machine.ram.slot(1, 0x20_0001, 1);
    assert_eq!(machine.create(&unaligned), Err(Errno::EINVAL));
    let limits = machine.kvm.limits();
    let beyond = machine.ram.slot(limits.slots as u16, 0x20_0000, 1);
    assert_eq!(machine.create(&beyond), Err(Errno::EINVAL));
    let elsewhere = Op::Create(machine.ram.slot(1, 0x20_0000, 1));
    // SAFETY: as in `Machine::change`.
    let answer = unsafe { machine.kvm.change(limits.address_spaces, &elsewhere) };
    assert_eq!(answer, Err(Errno::EINVAL));
    machine.assert_live(&[slot]);
}

#[test]
fn a_read_only_slot_stays_what_it_is() {
    let test = "a_read_only_slot_stays_what_it_is";
    let Some(machine) = Machine::new(test, 16) else { return };
    if !machine.kvm.limits().readonly {
        eprintln!("SKIPPED {test}: KVM has no KVM_CAP_READONLY_MEM");
        return;
    }
    let slot = machine.ram.slot(0, 0, 8);
    let rom = Slot { mapping: slot.mapping.with_flags(MemFlags::READONLY), ..slot };
    assert_eq!(machine.create(&rom), Ok(()));
    assert_eq!(machine.create(&slot), Err(Errno::EINVAL));
}

#[test]
fn a_slot_with_a_guest_memfd_goes_through_region2() {
    let test = "a_slot_with_a_guest_memfd_goes_through_region2";
    let Some(machine) = Machine::new(test, 16) else { return };
    // A VM may be able to make the file and yet have no slots with it (6.12:
    // those of type KVM_X86_SW_PROTECTED_VM only).
    if !machine.kvm.limits().guest_memfd {
        eprintln!("SKIPPED {test}: no slots with a guest_memfd (KVM_CAP_GUEST_MEMFD)");
        return;
    }
    let request = kvm_bindings::kvm_create_guest_memfd { size: 16 * PAGE, ..Default::default() };
    let fd = match machine.vm.create_guest_memfd(request) {
        Ok(fd) => fd,
        Err(error) => {
            eprintln!("SKIPPED {test}: this VM has no guest_memfd: {error}");
            return;
        }
    };
    let slot = machine.ram.slot(0, 0, 8);
    let memfd = GuestMemfd { fd, offset: 8 * PAGE };
    let mapping = slot.mapping.with_guest_memfd(memfd).unwrap();
    let private = Slot { mapping, ..slot };
    assert_eq!(machine.create(&private), Ok(()));
    // KVM_SET_USER_MEMORY_REGION does not know the flag, and says EINVAL for
    // it; that slots with private memory can't change says EINVAL too. That
    // the file is looked at shows that it was the other ioctl.
    let moved = slot.mapping.moved_to(0x10_0000).unwrap();
    let mapping = moved.with_guest_memfd(GuestMemfd { fd: -1, offset: 0 }).unwrap();
    let no_file = Slot { id: 1, mapping };
    assert_eq!(machine.create(&no_file), Err(Errno::EBADF));
    assert_eq!(machine.delete(0), Ok(()));
    // SAFETY: no slot uses the file any more, and nobody else knows it.
    unsafe { libc::close(fd) };
}

fn creates(machine: &Machine, count: u16) -> Plan {
    let slot = |id: u16| machine.ram.slot(id, u64::from(id) * 2 * PAGE, 1);
    Plan { ops: (0..count).map(|id| Op::Create(slot(id))).collect(), ..Plan::default() }
}

/// Each way that this kernel has.
fn ways(machine: &Machine) -> Vec<How> {
    let batch = machine.kvm.limits().batch;
    let batches = batch.into_iter().flat_map(|max_entries| [3, max_entries]);
    let batches = batches.map(|max_entries| How::Batch { max_entries });
    [How::PerRegion].into_iter().chain(batches).collect()
}

#[test]
fn a_slot_behind_the_back_ends_a_plan_that_leaves_nothing() {
    let test = "a_slot_behind_the_back_ends_a_plan_that_leaves_nothing";
    let Some(machine) = Machine::new(test, 64) else { return };
    let plan = creates(&machine, 10);
    let foreign = machine.ram.slot(500, 7 * 2 * PAGE, 1);
    for how in ways(&machine) {
        machine.behind_the_back(&Op::Create(foreign));
        // SAFETY: the memory is that of `machine.ram`, as in `Machine::change`.
        let error = unsafe { execute(&machine.kvm, 0, &plan, how, &mut false, false, &mut vec![]) };
        let error = error.unwrap_err();
        let Why::Refused { index: Some(7), errno: Errno::EEXIST, .. } = error.why else {
            panic!("{error:?}");
        };
        machine.assert_live(&[foreign]);

        machine.behind_the_back(&machine.deletion(500));
        // SAFETY: as above.
        let done = unsafe { execute(&machine.kvm, 0, &plan, how, &mut false, false, &mut vec![]) };
        let done = done.unwrap();
        let cost = plan.cost(how, &mut false);
        assert_eq!((done.ioctls, done.grace_periods), (cost.ioctls, cost.grace_periods));
        let slots: Vec<Slot> = plan.ops.iter().filter_map(Op::after).collect();
        machine.assert_live(&slots);
        for slot in slots {
            assert_eq!(machine.delete(slot.id), Ok(()));
        }
    }
}

#[test]
fn a_plan_on_a_slot_that_went_behind_the_back_is_undone() {
    let test = "a_plan_on_a_slot_that_went_behind_the_back_is_undone";
    let Some(machine) = Machine::new(test, 64) else { return };
    let slots = [0, 1, 2].map(|id| machine.ram.slot(id, u64::from(id) * 8 * PAGE, 4));
    for slot in &slots {
        machine.create(slot).unwrap();
    }
    machine.behind_the_back(&machine.deletion(2));
    let flags = MemFlags::LOG_DIRTY_PAGES;
    let ops = vec![
        Op::Delete(slots[0]),
        Op::Move { from: slots[1], gpa: 0 },
        Op::SetFlags { from: Op::Move { from: slots[1], gpa: 0 }.after().unwrap(), flags },
        Op::Create(machine.ram.slot(0, 40 * PAGE, 2)),
        Op::Delete(slots[2]),
    ];
    let plan = Plan { ops, ..Plan::default() };
    for how in ways(&machine) {
        // SAFETY: the memory is that of `machine.ram`, as in `Machine::change`.
        let error = unsafe { execute(&machine.kvm, 0, &plan, how, &mut false, false, &mut vec![]) };
        let error = error.unwrap_err();
        assert!(
            matches!(error.why, Why::Refused { index: Some(4), errno: Errno::EINVAL, .. }),
            "{error:?}"
        );
        machine.assert_live(&slots[..2]);
    }
}

#[test]
fn a_dry_run_maps_nothing() {
    let test = "a_dry_run_maps_nothing";
    let Some(machine) = Machine::new(test, 64) else { return };
    let Some(max_entries) = machine.kvm.limits().batch else {
        eprintln!("SKIPPED {test}: this kernel lacks KVM_SET_USER_MEMORY_REGIONS");
        return;
    };
    let plan = creates(&machine, 10);
    check(&machine.kvm, 0, &plan, How::Batch { max_entries }).unwrap();
    machine.assert_live(&[]);
}

#[test]
fn a_batch_on_a_kernel_without_it_is_refused_whole() {
    let test = "a_batch_on_a_kernel_without_it_is_refused_whole";
    let Some(machine) = Machine::new(test, 64) else { return };
    if machine.kvm.limits().batch.is_some() {
        eprintln!("SKIPPED {test}: this kernel has KVM_SET_USER_MEMORY_REGIONS");
        return;
    }
    let plan = creates(&machine, 10);
    let how = How::Batch { max_entries: 64 };
    // SAFETY: the memory is that of `machine.ram`, as in `Machine::change`.
    let error = unsafe { execute(&machine.kvm, 0, &plan, how, &mut false, false, &mut vec![]) };
    let error = error.unwrap_err();
    assert!(matches!(error.why, Why::Refused { index: None, errno: Errno::ENOTTY, .. }));
    let refused = machine.kvm.check_all(0, &plan.ops).unwrap_err();
    assert_eq!((refused.index, refused.errno), (None, Errno::ENOTTY));
    machine.assert_live(&[]);
}
