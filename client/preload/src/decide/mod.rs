//! What to do, decided without a system call: all of it can be tested without
//! KVM.

pub(crate) mod access;
pub(crate) mod map;
pub(crate) mod policy;
pub(crate) mod region;
pub(crate) mod rules;
pub(crate) mod slot;
pub(crate) mod slots;
#[cfg(test)]
pub(crate) mod tests;
