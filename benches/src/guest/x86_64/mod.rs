//! Guest code for x86-64.

mod busy;
mod code;
mod platform;
mod probe;
mod thread;

pub use busy::BusyVcpus;
pub use probe::Prober;
