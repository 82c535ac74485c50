//! What was found, for people and for programs.

use std::fmt;
use std::time::Duration;

use comfy_table::Table;
use serde::Serialize;

use super::Devices;
use super::ways::{Spent, Way};
use crate::report::{human, left, markdown, or_dash};

/// What was timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pass {
    /// All devices attached.
    Attach,
    /// All devices detached.
    Detach,
    /// BARs that decode from now on.
    Enable,
    /// Off, and on again.
    Toggle,
    /// BARs that get another address.
    Move,
    /// Vectors masked.
    Mask,
    /// The same unmasked, with the same messages.
    Unmask,
    /// One vector gets another message.
    Program,
    /// One vector gets the message that it has.
    Nothing,
    /// A second device attached, some time after the first.
    Second {
        /// How long after.
        delay_ms: u64,
    },
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attach => f.pad("attach"),
            Self::Detach => f.pad("detach"),
            Self::Enable => f.pad("decode on"),
            Self::Toggle => f.pad("off and on"),
            Self::Move => f.pad("move"),
            Self::Mask => f.pad("mask 64"),
            Self::Unmask => f.pad("unmask 64"),
            Self::Program => f.pad("program 1"),
            Self::Nothing => f.pad("no change"),
            Self::Second { delay_ms } => write!(f, "2nd, {delay_ms} ms later"),
        }
    }
}

/// One way, one pass.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Devices.
    pub devices: u32,
    /// Whether no BARs could share a slot.
    pub scattered: bool,
    /// Busy vCPUs.
    pub vcpus: usize,
    /// [`Way::name`].
    pub way: &'static str,
    /// What was timed.
    pub pass: Pass,
    /// System calls that changed something.
    pub ioctls: u64,
    /// `KVM_SET_GSI_ROUTING` among them.
    pub routing_calls: u64,
    /// Grace periods that the calling thread waited for, by KVM's rules.
    pub grace_periods: u64,
    /// The same, as counted by the kernel.
    pub grace_periods_counted: Option<u64>,
    /// Those of them that are `KVM_IOEVENTFD` deassign's own, by KVM's rules.
    pub in_ioeventfd_deassign: u64,
    /// Grace periods of the worker behind `KVM_IRQFD` deassign, by KVM's rules.
    pub in_irqfd_shutdown: u64,
    /// All grace periods of the machine meanwhile, as counted by the kernel:
    /// other VMs' are among them.
    pub machine_counted: Option<u64>,
    /// Median over the runs.
    pub wall_ns: u64,
    /// The time of `cloud-hypervisor` over this one.
    pub ratio: Option<f64>,
}

impl Row {
    pub(super) fn new(args: &Devices, vcpus: usize, way: Way, pass: Pass, spent: &Spent) -> Self {
        Self {
            devices: args.devices,
            scattered: args.scattered,
            vcpus,
            way: way.name(),
            pass,
            ioctls: spent.ioctls,
            routing_calls: spent.routing_calls,
            grace_periods: spent.grace_periods,
            grace_periods_counted: None,
            in_ioeventfd_deassign: spent.in_ioeventfd_deassign,
            in_irqfd_shutdown: spent.in_irqfd_shutdown,
            machine_counted: None,
            wall_ns: 0,
            ratio: None,
        }
    }

    pub(super) fn measured(
        mut self,
        [counted, machine]: [Option<u64>; 2],
        time: Duration,
        today: Option<Duration>,
    ) -> Self {
        (self.grace_periods_counted, self.machine_counted) = (counted, machine);
        self.wall_ns = time.as_nanos() as u64;
        let today = today.filter(|_| !time.is_zero());
        self.ratio = today.map(|today| today.as_secs_f64() / time.as_secs_f64());
        self
    }
}

/// Attach and detach.
#[must_use]
pub fn table(rows: &[Row]) -> Table {
    let header = left([
        "vCPUs",
        "pass",
        "way",
        "ioctls",
        "routings",
        "GPs",
        "counted",
        "of ioeventfds",
        "+ irqfd shutdown",
        "machine's",
        "time",
        "ratio",
    ]);
    let mut table = markdown(header, 3..12);
    for row in rows {
        table.add_row([
            row.vcpus.to_string(),
            row.pass.to_string(),
            row.way.to_owned(),
            row.ioctls.to_string(),
            row.routing_calls.to_string(),
            row.grace_periods.to_string(),
            or_dash(row.grace_periods_counted),
            row.in_ioeventfd_deassign.to_string(),
            row.in_irqfd_shutdown.to_string(),
            or_dash(row.machine_counted),
            human(row.wall_ns),
            ratio(row.ratio),
        ]);
    }
    table
}

/// A device after another one.
#[must_use]
pub fn hotplug_table(rows: &[Row]) -> Table {
    let mut table = markdown(left(["pass", "way", "ioctls", "GPs", "time", "ratio"]), 2..6);
    for row in rows {
        table.add_row([
            row.pass.to_string(),
            row.way.to_owned(),
            row.ioctls.to_string(),
            row.grace_periods.to_string(),
            human(row.wall_ns),
            ratio(row.ratio),
        ]);
    }
    table
}

fn ratio(ratio: Option<f64>) -> String {
    or_dash(ratio.map(|ratio| format!("{ratio:.2}x")))
}
