//! One VM: carries out what `decide` says.
//!
//! One lock a VM is held over memslot calls, and while it is decided what becomes
//! of an exit; never while a vCPU runs or while guest memory is read.

pub(crate) mod exits;
pub(crate) mod machine;
pub(crate) mod memslots;
#[cfg(test)]
pub(crate) mod tests;
