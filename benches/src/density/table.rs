//! Samples, and what is said of them.

use comfy_table::Table;
use serde::Serialize;

use super::{Density, Flag};
use crate::report::{human, left, markdown, percentile};

/// What one measurement found.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// VMs in the background.
    pub background: usize,
    /// VMs at a time.
    pub vms: u32,
    /// Irqfds of each.
    pub irqfds: u32,
    /// Rounds.
    pub rounds: u32,
    /// Whether they had `KVM_IRQFD_FLAG_NO_IRQBYPASS`.
    pub no_irqbypass: bool,
    /// Samples: `KVM_IRQFD` calls.
    pub samples: usize,
    /// A `KVM_IRQFD` call, median.
    pub irqfd_p50_ns: u64,
    /// The 99th percentile.
    pub irqfd_p99_ns: u64,
    /// The slowest.
    pub irqfd_max_ns: u64,
    /// All `KVM_IRQFD` calls of a VM, median over the VMs.
    pub vm_p50_ns: u64,
    /// The slowest VM.
    pub vm_max_ns: u64,
    /// VM and interrupt controller, median.
    pub create_p50_ns: u64,
}

#[derive(Debug, Default)]
pub(super) struct Samples {
    irqfds: Vec<u64>,
    vms: Vec<u64>,
    creates: Vec<u64>,
}

impl Samples {
    pub(super) fn add(&mut self, create_ns: u64, irqfd_ns: &[u64]) {
        self.creates.push(create_ns);
        self.vms.push(irqfd_ns.iter().sum());
        self.irqfds.extend(irqfd_ns);
    }

    pub(super) fn row(mut self, background: usize, args: &Density, flag: Flag) -> Row {
        self.irqfds.sort_unstable();
        self.vms.sort_unstable();
        self.creates.sort_unstable();
        Row {
            background,
            vms: args.vms,
            irqfds: args.irqfds,
            rounds: args.rounds,
            no_irqbypass: flag.0,
            samples: self.irqfds.len(),
            irqfd_p50_ns: percentile(&self.irqfds, 50),
            irqfd_p99_ns: percentile(&self.irqfds, 99),
            irqfd_max_ns: percentile(&self.irqfds, 100),
            vm_p50_ns: percentile(&self.vms, 50),
            vm_max_ns: percentile(&self.vms, 100),
            create_p50_ns: percentile(&self.creates, 50),
        }
    }
}

/// The rows as a table.
#[must_use]
pub fn table(rows: &[Row]) -> Table {
    let header = left([
        "background VMs",
        "VMs x irqfds",
        "flag",
        "KVM_IRQFD p50",
        "p99",
        "max",
        "a VM's irqfds p50",
        "max",
        "create VM p50",
    ]);
    let mut table = markdown(header, 3..9);
    for row in rows {
        table.add_row([
            row.background.to_string(),
            format!("{} x {}", row.vms, row.irqfds),
            Flag(row.no_irqbypass).to_string(),
            human(row.irqfd_p50_ns),
            human(row.irqfd_p99_ns),
            human(row.irqfd_max_ns),
            human(row.vm_p50_ns),
            human(row.vm_max_ns),
            human(row.create_p50_ns),
        ]);
    }
    table
}
