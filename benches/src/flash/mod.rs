//! A bank of CFI flash, Intel command set, and a guest that drives it.
//!
//! Four chips of 16 bits side by side on a bus of 64, all given the same
//! commands. Reads in array mode are the memory; any command takes the bank out
//! of that mode, in which each access is the device's.
//!
//! After Intel's 28F data sheets and JEDEC's JESD68 (CFI): read array, read
//! identifier, CFI query, status, word and buffered program, block erase, block
//! locks. Whatever takes time in a real chip is done at once.

mod chip;
mod compare;
mod drive;
mod query;

pub use chip::Flash;
pub use compare::{COLUMNS, compare};
pub use drive::{Contents, Driven, Way, drive};
pub use query::BLOCK;
