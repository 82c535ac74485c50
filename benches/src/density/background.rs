//! VMs that are up and do nothing. They are all in this process: what their
//! irqfds are to others is the same.

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Flag;
use super::vm::{DESCRIPTORS, Machine};

/// What the program itself needs, with the pipes of its workers.
const OWN_DESCRIPTORS: u64 = 256;

#[derive(Debug)]
pub(super) struct Background {
    machines: Vec<Machine>,
    irqfds: u32,
}

impl Background {
    pub(super) fn new(irqfds: u32) -> Self {
        Self { machines: Vec::new(), irqfds }
    }

    /// Raises the limit of descriptors as far as `vms` need it.
    pub(super) fn make_room(&self, vms: usize) -> Result<()> {
        let each = DESCRIPTORS + u64::from(self.irqfds);
        let needed = OWN_DESCRIPTORS + each * vms as u64;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("RLIMIT_NOFILE")?;
        if soft >= needed {
            return Ok(());
        }
        // Who may raise the hard limit does.
        let raised = setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed));
        raised.ok().with_context(|| {
            format!(
                "{vms} background VMs take {needed} file descriptors, a process may have {hard}: \
                 raise the hard limit (ulimit -Hn, LimitNOFILE=), or ask for fewer with \
                 --background"
            )
        })
    }

    /// Adds VMs until there are `size`; those that fit stay on error.
    pub(super) fn grow(&mut self, size: usize) -> Result<()> {
        while self.machines.len() < size {
            let mut machine = Machine::new()?;
            machine.prepare(self.irqfds)?;
            // Theirs are other VMs' ordinary irqfds.
            (0..machine.count()).try_for_each(|index| machine.assign(index, Flag::None))?;
            self.machines.push(machine);
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.machines.len()
    }
}
