//! Devices on real KVM: interrupts and ioeventfds end to end, failures at each
//! call, and the model held against KVM.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;
#[cfg(target_arch = "x86_64")]
mod differential;
#[cfg(target_arch = "x86_64")]
mod end_to_end;
#[cfg(target_arch = "x86_64")]
mod faults;
#[cfg(target_arch = "x86_64")]
mod rig;
#[cfg(target_arch = "x86_64")]
mod running;
#[cfg(target_arch = "x86_64")]
mod zones;

#[cfg(not(target_arch = "x86_64"))]
#[test]
fn interrupts_end_to_end() {
    common::skip("interrupts_end_to_end", "its guest code is for x86-64");
}
