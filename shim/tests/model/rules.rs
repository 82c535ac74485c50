use kvm_memslots_uapi::kvm_userspace_memory_region;

use super::*;
use kvm_memslots_shim::Range;

const EINVAL: Result<(), Errno> = Err(Errno::EINVAL);
const EEXIST: Result<(), Errno> = Err(Errno::EEXIST);

/// `region` is refused with EINVAL, as a create and, with its size 0, as a
/// delete of a live slot; without `broken` both are accepted.
fn einval_as_create_and_delete(broken: impl Fn(Region) -> Region) {
    let model = model();
    let fine = region(3, 16, 4, 32);
    assert_eq!(set(&model, broken(fine)), EINVAL);
    assert_eq!(set(&model, fine), Ok(()));
    assert_eq!(set(&model, broken(delete(3))), EINVAL);
    assert_eq!(model.slot_count(0), 1);
    assert_eq!(set(&model, delete(3)), Ok(()));
}

#[test]
fn unknown_flag() {
    einval_as_create_and_delete(|region| Region { flags: 1 << 3, ..region });
    einval_as_create_and_delete(|region| Region { flags: 1 << 16, ..region });
}

#[test]
fn unaligned_addresses() {
    einval_as_create_and_delete(|region| Region { guest_phys_addr: 0x1_0200, ..region });
    einval_as_create_and_delete(|region| Region { userspace_addr: 0x2_0001, ..region });
}

#[test]
fn unaligned_size() {
    let model = model();
    assert_eq!(set(&model, Region { memory_size: 0x1800, ..region(0, 0, 0, 32) }), EINVAL);
}

#[test]
fn host_range_beyond_the_task() {
    let end = ModelConfig::HVA_END / PAGE;
    let model = model();
    assert_eq!(set(&model, region(0, 0, 2, end - 2)), Ok(()));
    assert_eq!(set(&model, region(1, 8, 2, end - 1)), EINVAL);
    assert_eq!(set(&model, region(1, 8, 2, u64::MAX / PAGE)), EINVAL);
    // A delete's host range is empty, and so may start at the very end.
    assert_eq!(set(&model, Region { userspace_addr: (end + 1) * PAGE, ..delete(0) }), EINVAL);
    assert_eq!(set(&model, Region { userspace_addr: end * PAGE, ..delete(0) }), Ok(()));
}

#[test]
fn slot_id_and_address_space_beyond_the_limit() {
    let model = model();
    assert_eq!(set(&model, region(32_764, 0, 1, 1)), EINVAL);
    assert_eq!(set(&model, region(32_763, 0, 1, 1)), Ok(()));
    assert_eq!(set(&model, region(2 << 16, 8, 1, 1)), EINVAL);
    assert_eq!(set(&model, region(1 << 16, 0, 1, 1)), Ok(()));
}

#[test]
fn guest_address_wraps() {
    let model = model();
    let last = u64::MAX / PAGE;
    assert_eq!(set(&model, region(0, last, 2, 1)), EINVAL);
    // The sum is 0, which is a wrap too.
    assert_eq!(set(&model, region(0, last, 1, 1)), EINVAL);
}

#[test]
fn slot_size_limit() {
    let pages = Limits::SLOT_PAGES;
    let model = model();
    assert_eq!(set(&model, region(0, 0, pages + 1, 1)), EINVAL);
    assert_eq!(set(&model, region(0, 0, pages, 1)), Ok(()));
}

#[test]
fn guest_address_beyond_the_bits() {
    let limits = everything();
    let model = Model::with_config(ModelConfig::new(limits).guest_physical_bits(40));
    let end = 1 << (40 - 12);
    assert_eq!(set(&model, region(0, end - 1, 1, 1)), Ok(()));
    assert_eq!(set(&model, region(1, end - 2, 1, 1)), Ok(()));
    assert_eq!(set(&model, region(2, end, 1, 1)), EINVAL);
    // The architecture is asked last: overlap comes first.
    assert_eq!(set(&model, region(2, end - 1, 2, 1)), EEXIST);

    let arm64 = ModelConfig::new(limits).guest_physical_bits(40).beyond_errno(Errno::EFAULT);
    let model = Model::with_config(arm64);
    assert_eq!(set(&model, region(0, end - 1, 1, 1)), Ok(()));
    assert_eq!(set(&model, region(2, end, 1, 1)), Err(Errno::EFAULT));
    assert_eq!(set(&model, region(0, end, 1, 1)), Err(Errno::EFAULT));
}

#[test]
fn overlap() {
    let model = model();
    assert_eq!(set(&model, region(0, 16, 8, 100)), Ok(()));
    for (gfn, pages) in [(16, 8), (17, 1), (8, 9), (23, 1), (0, 64)] {
        assert_eq!(set(&model, region(1, gfn, pages, 200)), EEXIST, "{gfn}+{pages}");
    }
    assert_eq!(set(&model, region(1, 8, 8, 200)), Ok(()));
    assert_eq!(set(&model, region(2, 24, 8, 200)), Ok(()));
    // Another address space is another matter.
    assert_eq!(set(&model, region(1 << 16, 16, 8, 100)), Ok(()));
}

#[test]
fn a_move_may_overlap_itself_only() {
    let model = model();
    set(&model, region(0, 16, 8, 100)).unwrap();
    set(&model, region(1, 32, 8, 200)).unwrap();
    assert_eq!(set(&model, region(0, 20, 8, 100)), Ok(()));
    assert_eq!(set(&model, region(0, 12, 8, 100)), Ok(()));
    assert_eq!(set(&model, region(0, 25, 8, 100)), EEXIST);
    assert_eq!(model.slot(0, 0).unwrap().mapping.range(), Range::new(12 * PAGE, 8 * PAGE).unwrap());
}

#[test]
fn internal_slots_are_in_the_way() {
    let internal = Range::new(0xfee0_0000, PAGE).unwrap();
    let model = Model::with_config(ModelConfig::new(everything()).internal_slot(internal));
    assert_eq!(set(&model, region(0, 0xfee0_0000 / PAGE, 1, 1)), EEXIST);
    assert_eq!(set(&model, region(0, 0xfee0_1000 / PAGE, 1, 1)), Ok(()));
    assert_eq!(set(&model, region(0, 0xfee0_0000 / PAGE, 1, 1)), EEXIST);
}

#[test]
fn delete_of_what_is_not_there() {
    let model = model();
    assert_eq!(set(&model, delete(0)), EINVAL);
    set(&model, region(0, 0, 1, 1)).unwrap();
    assert_eq!(set(&model, delete(1 << 16)), EINVAL);
    assert_eq!(set(&model, delete(0)), Ok(()));
    assert_eq!(set(&model, delete(0)), EINVAL);
}

#[test]
fn a_delete_ignores_its_addresses() {
    let model = model();
    set(&model, region(0, 0, 1, 1)).unwrap();
    assert_eq!(set(&model, region(0, 77, 0, 88)), Ok(()));
    assert_eq!(model.slot_count(0), 0);
}

#[test]
fn what_a_live_slot_keeps() {
    let model = model();
    let live = region(0, 16, 4, 32);
    set(&model, live).unwrap();
    assert_eq!(set(&model, region(0, 16, 5, 32)), EINVAL, "size");
    assert_eq!(set(&model, region(0, 16, 4, 33)), EINVAL, "host address");
    assert_eq!(set(&model, Region { flags: READONLY, ..live }), EINVAL, "read-only");
    let memfd = Region { flags: MEMFD, guest_memfd: 9, ..live };
    assert_eq!(set(&model, memfd), EINVAL, "private memory, before the descriptor");
    // A live slot that keeps its size, but at an address that is taken: both
    // rules are broken, what may not change comes first.
    set(&model, region(1, 64, 4, 64)).unwrap();
    assert_eq!(set(&model, region(0, 64, 5, 32)), EINVAL);
    assert_eq!(set(&model, region(0, 64, 4, 32)), EEXIST);
    assert_eq!(set(&model, live), Ok(()));
}

#[test]
fn a_move_may_change_the_log_flag_too() {
    let model = model();
    set(&model, region(0, 16, 4, 32)).unwrap();
    assert_eq!(set(&model, logged(region(0, 48, 4, 32))), Ok(()));
    let slot = model.slot(0, 0).unwrap();
    assert_eq!((slot.mapping.range().gpa(), slot.mapping.is_logged()), (48 * PAGE, true));
}

#[test]
fn readonly_where_kvm_lacks_it() {
    let model = Model::new(everything().with_readonly(false));
    let rom = Region { flags: READONLY, ..region(0, 16, 4, 32) };
    assert_eq!(set(&model, rom), EINVAL);
}

#[test]
fn the_old_ioctl_knows_no_private_memory() {
    let model = model();
    model.add_guest_memfd(5, 8 * PAGE);
    let mut v1 =
        kvm_userspace_memory_region { flags: MEMFD, memory_size: PAGE, ..Default::default() };
    assert_eq!(model.set_user_memory_region(&v1), EINVAL);
    v1.flags = LOG | READONLY;
    assert_eq!(model.set_user_memory_region(&v1), Ok(()));
}

#[test]
fn private_memory() {
    let model = model();
    model.add_guest_memfd(5, 8 * PAGE);
    model.add_other_fd(1);
    let private = |slot, gfn, pages, fd, page: u64| Region {
        flags: MEMFD,
        guest_memfd: fd,
        guest_memfd_offset: page * PAGE,
        ..region(slot, gfn, pages, 32)
    };
    assert_eq!(set(&model, private(0, 16, 4, 6, 0)), Err(Errno::EBADF));
    assert_eq!(set(&model, private(0, 16, 4, u32::MAX, 0)), Err(Errno::EBADF));
    assert_eq!(set(&model, private(0, 16, 4, 1, 0)), EINVAL, "no guest_memfd");
    assert_eq!(set(&model, private(0, 16, 9, 5, 0)), EINVAL, "longer than the file");
    assert_eq!(set(&model, private(0, 16, 4, 5, 5)), EINVAL, "beyond the file");
    let unaligned = Region { guest_memfd_offset: 1, ..private(0, 16, 4, 6, 0) };
    assert_eq!(set(&model, unaligned), EINVAL, "before the descriptor");
    assert_eq!(set(&model, private(0, 16, 4, 6, u64::MAX / PAGE)), EINVAL, "wraps");
    for flags in [MEMFD | LOG, MEMFD | READONLY] {
        assert_eq!(set(&model, Region { flags, ..private(0, 16, 4, 5, 0) }), EINVAL);
    }

    assert_eq!(set(&model, private(0, 16, 4, 5, 2)), Ok(()));
    assert_eq!(set(&model, private(1, 32, 2, 5, 1)), EINVAL, "bound already");
    assert_eq!(set(&model, private(1, 32, 2, 5, 5)), EINVAL, "bound already");
    assert_eq!(set(&model, private(1, 32, 2, 5, 6)), Ok(()));
    // Only a delete changes it; that frees the file's range.
    assert_eq!(set(&model, private(0, 48, 4, 5, 2)), EINVAL);
    assert_eq!(set(&model, private(0, 16, 4, 5, 2)), EINVAL);
    assert_eq!(set(&model, delete(0)), Ok(()));
    assert_eq!(set(&model, private(2, 48, 4, 5, 1)), Ok(()));
    // Overlap comes before the descriptor.
    assert_eq!(set(&model, private(3, 48, 4, 6, 0)), EEXIST);

    let newer = ModelConfig::new(everything()).bound_errno(Errno::EEXIST);
    let model = Model::with_config(newer);
    model.add_guest_memfd(5, 8 * PAGE);
    assert_eq!(set(&model, private(0, 16, 4, 5, 2)), Ok(()));
    assert_eq!(set(&model, private(1, 32, 2, 5, 1)), EEXIST, "bound already");
    assert_eq!(set(&model, private(1, 32, 9, 5, 2)), EINVAL, "beyond the file first");
}

#[test]
fn a_refused_create_binds_nothing() {
    let config = ModelConfig::new(everything()).guest_physical_bits(40);
    let model = Model::with_config(config);
    model.add_guest_memfd(5, 8 * PAGE);
    let private = Region { flags: MEMFD, guest_memfd: 5, ..region(0, 1 << 28, 4, 32) };
    assert_eq!(set(&model, private), EINVAL);
    assert_eq!(set(&model, Region { guest_phys_addr: 0, ..private }), Ok(()));
}

#[test]
fn grace_periods() {
    let config = ModelConfig::new(everything()).guest_physical_bits(40);
    let model = Model::with_config(config);
    let live = region(0, 16, 4, 32);
    assert_eq!(cost(&model, live), 1, "create");
    assert_eq!(cost(&model, live), 0, "nothing");
    assert_eq!(cost(&model, logged(live)), 1, "flags");
    assert_eq!(cost(&model, logged(region(0, 64, 4, 32))), 2, "move");
    assert_eq!(cost(&model, region(1, 64, 4, 32)), 0, "a refused create");
    assert_eq!(cost(&model, region(1, 1 << 28, 4, 32)), 0, "beyond the address bits");
    assert_eq!(cost(&model, region(0, 1 << 28, 4, 32)), 2, "a move there and back");
    assert_eq!(model.slot(0, 0).unwrap().mapping.range().gpa(), 64 * PAGE);
    assert_eq!(cost(&model, delete(0)), 2, "delete");
    assert_eq!(cost(&model, delete(0)), 0, "a refused delete");
    let counts = model.counts();
    assert_eq!((counts.ioctls, counts.refused), (9, 4));
}
