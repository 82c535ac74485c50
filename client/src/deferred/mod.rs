//! Maps that wait until they are worth a memslot.

pub mod policy;
