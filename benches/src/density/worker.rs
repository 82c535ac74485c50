//! One VM of those that are set up at a time.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Flag;
use super::vm::Machine;
use crate::fleet::{self, Fleet};

/// The hidden subcommand that this is.
const SUBCOMMAND: &str = "density-worker";

/// What a worker measured.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    /// VM, interrupt controller and eventfds.
    pub(super) create_ns: u64,
    /// Each `KVM_IRQFD`.
    pub(super) irqfd_ns: Vec<u64>,
}

/// A worker's process.
#[must_use]
pub fn worker(irqfds: u32, flag: Flag) -> ExitCode {
    fleet::member(|| Ok(()), |()| work(irqfds, flag))
}

fn work(irqfds: u32, flag: Flag) -> Result<(Measured, Machine)> {
    let start = Instant::now();
    let mut machine = Machine::new()?;
    machine.prepare(irqfds)?;
    let create_ns = start.elapsed().as_nanos() as u64;
    let mut irqfd_ns = Vec::with_capacity(irqfds as usize);
    for index in 0..irqfds as usize {
        let start = Instant::now();
        machine.assign(index, flag)?;
        irqfd_ns.push(start.elapsed().as_nanos() as u64);
    }
    Ok((Measured { create_ns, irqfd_ns }, machine))
}

/// Sets `count` VMs up at the same time.
pub(super) fn measure(count: u32, irqfds: u32, flag: Flag) -> Result<Vec<Measured>> {
    let mut args = vec![SUBCOMMAND.to_owned(), "--irqfds".to_owned(), irqfds.to_string()];
    args.extend((flag == Flag::NoBypass).then(|| "--no-irqbypass".to_owned()));
    Fleet::start(count, &args)?.go()
}
