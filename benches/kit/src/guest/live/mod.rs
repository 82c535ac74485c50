//! Guest code that runs.

mod busy;
mod code;
mod platform;
mod probe;
mod thread;

#[cfg_attr(target_arch = "x86_64", path = "x86_64/mod.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64/mod.rs")]
mod arch;

#[cfg(target_arch = "x86_64")]
pub use arch::enter_long_mode;
pub(super) use arch::returning;
pub use busy::BusyVcpus;
pub use probe::Prober;
