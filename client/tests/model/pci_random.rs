//! Random config writes. `MEMSLOTS_PCI_SEEDS=0..100000` runs more.

use super::pci_program::program;
use crate::common::numbers::{Numbers, seeds};

#[test]
fn whatever_a_guest_writes_what_is_there_is_what_the_registers_say() {
    let run = |seed| program(&mut Numbers::new(seed), &format!("seed {seed}"));
    seeds("MEMSLOTS_PCI_SEEDS", 120).for_each(run);
}
