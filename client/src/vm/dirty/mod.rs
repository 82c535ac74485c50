//! The dirty logs of a VM's regions: KVM's, of slots, and what KVM does not know.

mod all;
mod last;
mod log;
