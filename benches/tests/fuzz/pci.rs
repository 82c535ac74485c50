//! Config writes that a guest makes: whatever they are, only its own BARs move.

use super::engine::{corpus, fuzz_with};
use super::pci_program::program;
use crate::common::numbers::Numbers;

#[test]
fn config_writes_move_only_their_own_bars() {
    let target = |input: &[u8]| program(&mut Numbers::of(input.to_vec()), "an input");
    fuzz_with(1000, "pci", &corpus("pci"), &[], target);
}
