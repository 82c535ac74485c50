//! A guest programs flash by real MMIO, and its slot follows in each of the
//! ways there are.
#![allow(clippy::unwrap_used)]

mod common;

use common::{skip, vm_or_skip};
use kvm_memslots::deferred::{Deferral, Policy};
use kvm_memslots::{Error, ErrorKind};
use kvm_memslots_bench::flash::{Driven, Way, drive};
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
