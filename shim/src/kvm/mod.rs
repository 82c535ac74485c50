//! KVM behind a VM file descriptor.

mod allowed;
mod calls;
mod error;
mod open;
mod retry;
mod scratch;
#[cfg(test)]
mod tests;
mod trap;
mod vm;

pub use error::OpenError;
pub(crate) use retry::retry;
pub use vm::{Kvm, KvmOptions};
