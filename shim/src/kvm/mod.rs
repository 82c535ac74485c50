//! KVM behind a VM file descriptor.

mod allowed;
mod calls;
mod error;
mod files;
mod open;
mod quirks;
pub mod requests;
mod retry;
mod scratch;
#[cfg(test)]
mod tests;
mod trap;
mod vm;

pub use error::OpenError;
pub use files::compare_files;
pub use quirks::QUIRK_SLOT_ZAP_ALL;
pub use vm::{Kvm, KvmOptions};
