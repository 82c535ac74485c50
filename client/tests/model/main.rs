//! A VM on the models of KVM: one program, as each costs seconds to link.
#![allow(clippy::unwrap_used)]

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod blame;
mod changes;
mod dirty;
mod dirty_random;
mod dirty_slots;
mod errors;
mod everything;
mod holes;
mod ids;
mod names;
mod order;
mod owned;
mod pci;
mod pci_doorbells;
mod pci_program;
mod pci_random;
mod pci_short;
mod pci_windows;
mod rom_device;
mod slots;
mod trap;
