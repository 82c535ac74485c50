//! The KVM backend and the executor on real KVM. Without `/dev/kvm` each test
//! is skipped, and says so.
#![allow(clippy::unwrap_used, missing_docs)]

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod dirty;
mod machine;
mod open;
mod slots;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod writer;
