//! A guest programs flash by real MMIO, and its slot follows in each of the
//! ways there are; and the chips by themselves.
#![allow(clippy::unwrap_used)]

mod common;

use common::{skip, vm_or_skip};
use kvm_memslots::deferred::{Deferral, Policy};
use kvm_memslots::{Error, ErrorKind};
use kvm_memslots_bench::flash::{BLOCK, Driven, Flash, Way, drive};
use kvm_memslots_bench::rig::Vcpus;
use kvm_memslots_kit::guest::GuestError;

const CYCLES: u64 = 6000;

fn driven(test: &str, way: Way) -> Option<Driven> {
    let vm = vm_or_skip(test)?;
    // Not what this machine happens to take for an exit and for a slot today.
    let deferral = Deferral::default().policy(Policy::Fixed { exits: 64 });
    let lacks = |error: &anyhow::Error| {
        matches!(error.downcast_ref(), Some(GuestError::Unsupported))
            || matches!(error.downcast_ref().map(Error::kind), Some(ErrorKind::TrapUnsupported))
    };
    match drive(&vm, way, CYCLES as usize, Vcpus::NONE, deferral) {
        Err(error) if lacks(&error) => {
            skip(test, error);
            None
        }
        driven => Some(driven.unwrap()),
    }
}

#[test]
fn six_thousand_cycles_toggled_and_deferred() {
    let test = "six_thousand_cycles_toggled_and_deferred";
    let Some(toggled) = driven(test, Way::Toggle) else { return };
    let Some(deferred) = driven(test, Way::Deferred) else { return };
    assert_eq!((toggled.ioctls, toggled.grace_periods), (2 * CYCLES, 3 * CYCLES));
    assert_eq!((toggled.flips, toggled.served), (2 * CYCLES, 0));
    // The device sees the commands, and in array mode never a read.
    assert_eq!(toggled.exits, 4 * CYCLES);

    assert_eq!((deferred.flips, deferred.exits), (toggled.flips, toggled.exits));
    // Two flips and back as ever, and the last time that the slot goes.
    assert_eq!((deferred.ioctls, deferred.promotions), (5, 0));
    assert_eq!(deferred.served, 2 * (CYCLES - 2));
    assert_eq!(deferred.contents, toggled.contents);
}

#[test]
fn six_thousand_cycles_with_a_trap() {
    let test = "six_thousand_cycles_with_a_trap";
    let Some(trapped) = driven(test, Way::Trap) else { return };
    assert_eq!((trapped.ioctls, trapped.grace_periods), (2 * CYCLES, 1), "the first flip");
    assert_eq!((trapped.exits, trapped.served), (4 * CYCLES, 0));
    let Some(deferred) = driven(test, Way::Deferred) else { return };
    assert_eq!(trapped.contents, deferred.contents);
}

/// Chips of 16 bits beside each other, and bytes of all.
const CHIPS: u64 = 4;
const BUS: u64 = 2 * CHIPS;
/// Words of a chip's buffer.
const BUFFER_WORDS: u64 = 16;
/// Intel, a 28F128J3.
const MANUFACTURER: u16 = 0x89;
const DEVICE: u16 = 0x18;

// Status register.
const READY: u16 = 0x80;
const ERASE_FAILED: u16 = 0x20;
const PROGRAM_FAILED: u16 = 0x10;
const LOCKED: u16 = 0x02;

fn flash() -> Flash {
    Flash::new(4).expect("memory")
}

fn read(flash: &Flash, offset: u64) -> u64 {
    let mut data = [0; 8];
    flash.read(offset, &mut data);
    u64::from_le_bytes(data)
}

fn write(flash: &mut Flash, writes: &[(u64, u64)]) {
    for (offset, value) in writes {
        flash.write(*offset, &value.to_le_bytes());
    }
}

fn status(flash: &mut Flash) -> u16 {
    write(flash, &[(0, 0x70)]);
    read(flash, 8) as u16
}

#[test]
fn starts_erased_in_array_mode() {
    let flash = flash();
    assert!(flash.in_array_mode());
    assert_eq!(read(&flash, 3 * BLOCK), u64::MAX);
}

#[test]
fn the_query_finds_the_geometry() {
    let mut flash = flash();
    write(&mut flash, &[(0x55 * BUS, 0x98)]);
    let at = |word: u64| read(&flash, word * BUS) as u16;
    assert_eq!([at(0x10), at(0x11), at(0x12)], [b'Q', b'R', b'Y'].map(u16::from));
    // In each chip's lanes.
    assert_eq!(read(&flash, 0x10 * BUS), 0x0051_0051_0051_0051);
    let blocks = u64::from(at(0x2d)) + (u64::from(at(0x2e)) << 8) + 1;
    let block = (u64::from(at(0x2f)) + (u64::from(at(0x30)) << 8)) * 256;
    assert_eq!((blocks, block * CHIPS), (4, BLOCK));
    assert_eq!((1 << at(0x27)) * CHIPS, 4 * BLOCK);
    assert_eq!(1 << at(0x2a), BUFFER_WORDS * 2);
    assert_eq!([at(0x31), at(0x32), at(0x33)], [b'P', b'R', b'I'].map(u16::from));
    write(&mut flash, &[(0, 0xff)]);
    assert!(flash.in_array_mode());
}

#[test]
fn programming_clears_bits_and_erasing_sets_them() {
    let mut flash = flash();
    write(&mut flash, &[(16, 0x40), (16, 0x1234), (24, 0x10), (24, 0xff00)]);
    assert_eq!(status(&mut flash), READY);
    write(&mut flash, &[(16, 0x40), (16, 0x0ff0), (0, 0xff)]);
    assert_eq!((read(&flash, 16), read(&flash, 24)), (0x0230, 0xff00));
    assert_eq!(read(&flash, 32), u64::MAX);
    write(&mut flash, &[(BLOCK - 8, 0x20), (BLOCK - 8, 0xd0), (0, 0xff)]);
    assert_eq!(read(&flash, 16), u64::MAX);
}

#[test]
fn a_buffer_is_programmed_when_it_is_confirmed() {
    let mut flash = flash();
    write(&mut flash, &[(BLOCK, 0xe8), (BLOCK, 1), (BLOCK, 7), (BLOCK + 8, 8)]);
    assert_eq!(flash.memory().read(BLOCK), u64::MAX, "not yet");
    write(&mut flash, &[(BLOCK, 0xd0), (0, 0xff)]);
    assert_eq!((read(&flash, BLOCK), read(&flash, BLOCK + 8)), (7, 8));
    write(&mut flash, &[(BLOCK, 0xe8), (BLOCK, 16)]);
    assert_eq!(status(&mut flash), READY | PROGRAM_FAILED | ERASE_FAILED, "too many");
    write(&mut flash, &[(0, 0x50), (0, 0xe8), (0, 0), (0, 1), (0, 0xff)]);
    assert_eq!(status(&mut flash), READY | PROGRAM_FAILED | ERASE_FAILED, "not confirmed");
    assert_eq!(flash.memory().read(0), u64::MAX);
}

#[test]
fn locked_blocks_stay_as_they_are() {
    let mut flash = flash();
    write(&mut flash, &[(BLOCK, 0x60), (BLOCK, 0x01)]);
    write(&mut flash, &[(BLOCK, 0x40), (BLOCK, 5)]);
    assert_eq!(status(&mut flash), READY | LOCKED | PROGRAM_FAILED);
    write(&mut flash, &[(0, 0x50), (BLOCK, 0x20), (BLOCK, 0xd0)]);
    assert_eq!(status(&mut flash), READY | LOCKED | ERASE_FAILED);
    write(&mut flash, &[(0, 0x90)]);
    let locks = [0, 1].map(|block| read(&flash, block * BLOCK + 2 * BUS) as u16);
    assert_eq!((read(&flash, 0) as u16, read(&flash, BUS) as u16), (MANUFACTURER, DEVICE));
    assert_eq!(locks, [0, 1]);
    write(&mut flash, &[(0, 0x50), (BLOCK, 0x60), (BLOCK, 0xd0)]);
    write(&mut flash, &[(BLOCK, 0x40), (BLOCK, 5)]);
    assert_eq!((status(&mut flash), flash.memory().read(BLOCK)), (READY, 5));
}

#[test]
fn an_erase_that_is_not_confirmed_is_none() {
    let mut flash = flash();
    write(&mut flash, &[(0, 0x40), (0, 5), (0, 0x20), (0, 0xff)]);
    assert_eq!(status(&mut flash), READY | ERASE_FAILED | PROGRAM_FAILED);
    assert_eq!(flash.memory().read(0), 5);
}

#[test]
fn any_width() {
    let mut flash = flash();
    write(&mut flash, &[(8, 0x40), (8, 0x1122_3344_5566_7788), (0, 0xff)]);
    let mut data = [0; 3];
    flash.read(9, &mut data);
    assert_eq!(data, [0x77, 0x66, 0x55]);
    flash.write(0, &[0x90]);
    flash.read(BUS + 4, &mut data);
    assert_eq!(data, [0x18, 0, 0x18]);
}
