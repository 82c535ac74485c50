//! The trap flag.

use kvm_memslots_uapi::{MemoryRegions, MemoryRegionsFlags};

use super::*;
use kvm_memslots_shim::memory::model::GuestAccess;

const TRAP: u32 = MemFlags::TRAP.bits();

fn trapping(region: Region) -> Region {
    Region { flags: region.flags | TRAP, ..region }
}

fn with_trap() -> Model {
    Model::new(everything().with_trap())
}

fn ram() -> Region {
    region(0, 4, 4, 0x7f000)
}

#[test]
fn a_trapping_slot_is_as_if_absent() {
    let model = with_trap();
    assert_eq!(set(&model, trapping(logged(ram()))), Ok(()));
    assert_eq!(model.guest_at(0, 0x5000), GuestAccess::Mmio);
    assert!(model.guest_write(0, 0x5000, 8)[0].access == GuestAccess::Mmio);
    assert_eq!(dirty(&model, 0), [0_u32; 0], "the write did not reach it");
    // But it is there.
    assert_eq!(set(&model, region(1, 4, 1, 0)), Err(Errno::EEXIST));
    assert_eq!(set(&model, logged(ram())), Ok(()));
    assert_eq!(model.guest_at(0, 0x5000), GuestAccess::Ram { hva: 0x7f00_1000 });
    model.guest_write(0, 0x5000, 8);
    assert_eq!(dirty(&model, 0), [1]);
}

#[test]
fn a_write_to_a_trapping_rom_is_none_to_a_rom() {
    let model = with_trap();
    let rom = Region { flags: READONLY, ..ram() };
    set(&model, trapping(rom)).unwrap();
    assert_eq!(model.guest_write(0, 0x4000, 1)[0].access, GuestAccess::Mmio);
    set(&model, rom).unwrap();
    assert_eq!(model.guest_write(0, 0x4000, 1)[0].access, GuestAccess::RomWrite);
}

#[test]
fn the_first_flip_that_makes_a_slot_trap_waits() {
    let model = with_trap();
    assert_eq!(cost(&model, trapping(ram())), 1, "a create");
    assert_eq!(cost(&model, ram()), 0);
    assert_eq!(cost(&model, trapping(ram())), 1);
    assert_eq!(cost(&model, ram()), 0);
    assert_eq!(cost(&model, trapping(ram())), 0);
    assert_eq!(cost(&model, trapping(logged(ram()))), 1, "logging, too");
    assert_eq!(cost(&model, ram()), 1, "both");
    assert_eq!(model.counts().refused, 0);
}

#[test]
fn a_batch_of_flips_waits_the_first_time() {
    let model = with_trap();
    let other = region(1, 16, 1, 0x7f010);
    for region in [ram(), other] {
        set(&model, region).unwrap();
    }
    model.reset_counts();
    let flip = |entries: &[Region]| {
        let flags = MemoryRegionsFlags::empty();
        let mut batch = MemoryRegions::from_entries(0, flags, entries).unwrap();
        assert_eq!(model.set_user_memory_regions(&mut batch), Ok(()));
        (model.counts().ioctls, model.counts().grace_periods)
    };
    let both = [trapping(ram()), trapping(other)];
    assert_eq!(flip(&both), (1, 1));
    assert_eq!(model.guest_at(0, 0x1_0000), GuestAccess::Mmio);
    assert_eq!(flip(&[ram(), other]), (2, 1));
    assert_eq!(flip(&both), (3, 1));
}

#[test]
fn dirty_bits_survive_a_flip() {
    let model = with_trap();
    set(&model, logged(ram())).unwrap();
    model.guest_write(0, 0x6000, 1);
    set(&model, trapping(logged(ram()))).unwrap();
    set(&model, logged(ram())).unwrap();
    assert_eq!(dirty(&model, 0), [2]);
}

#[test]
fn refused_where_the_kernel_lacks_it_and_for_private_memory() {
    let model = Model::new(everything());
    assert_eq!(set(&model, trapping(ram())), Err(Errno::EINVAL));
    let model = with_trap();
    model.add_guest_memfd(5, 0x10_0000);
    let private = Region { guest_memfd: 5, flags: MemFlags::GUEST_MEMFD.bits(), ..ram() };
    assert_eq!(set(&model, trapping(private)), Err(Errno::EINVAL));
    assert_eq!(set(&model, private), Ok(()));
}

#[test]
fn a_model_answers_the_probe_as_it_is_configured() {
    use kvm_memslots_uapi::probe::{TrapSupport, probe_trap};
    assert_eq!(probe_trap(&mut with_trap()), TrapSupport::Present);
    assert_eq!(probe_trap(&mut model()), TrapSupport::Absent);
}
