//! What was found, for people and for programs.

use comfy_table::Table;
use serde::Serialize;

use super::worker::Measured;
use super::{Start, Way};
use crate::devices::Spent;
use crate::report::{human, left, markdown, or_dash, percentile};

/// What a way costs beside time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) spent: Spent,
    /// Grace periods as the kernel counted them.
    pub(super) counted: Option<u64>,
}

/// One way, that many VMs at once.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The way.
    pub way: Way,
    /// VMs at once, each in a process of its own.
    pub at_once: u32,
    /// Devices of each.
    pub devices: u32,
    /// BARs of each device that are memory.
    pub bars: u32,
    /// Vectors of each device.
    pub vectors: u32,
    /// Doorbells of each device.
    pub doorbells: u32,
    /// vCPUs of each VM.
    pub vcpus: u32,
    /// System calls that set a VM up.
    pub ioctls: u64,
    /// `KVM_SET_GSI_ROUTING` among them.
    pub routing_calls: u64,
    /// Grace periods of memory and routes that they wait for, by KVM's rules.
    pub grace_periods: u64,
    /// Grace periods that they waited for, as counted by the kernel.
    pub grace_periods_counted: Option<u64>,
    /// VMs that were measured.
    pub samples: usize,
    /// `KVM_CREATE_VM`, median.
    pub create_p50_ns: u64,
    /// All calls after that, mean.
    pub setup_mean_ns: u64,
    /// Median.
    pub setup_p50_ns: u64,
    /// 99th percentile.
    pub setup_p99_ns: u64,
    /// The slowest.
    pub setup_max_ns: u64,
    /// The mean of `cloud-hypervisor` over this one.
    pub ratio: Option<f64>,
    /// The mean of `firecracker` over this one.
    pub ratio_firecracker: Option<f64>,
}

#[derive(Debug, Default)]
pub(super) struct Samples {
    creates: Vec<u64>,
    setups: Vec<u64>,
}

impl Extend<Measured> for Samples {
    fn extend<T: IntoIterator<Item = Measured>>(&mut self, measured: T) {
        for Measured { create_ns, setup_ns } in measured {
            self.creates.push(create_ns);
            self.setups.push(setup_ns);
        }
    }
}

impl Samples {
    fn mean(&self) -> u64 {
        self.setups.iter().sum::<u64>() / (self.setups.len() as u64).max(1)
    }
}

impl Row {
    /// A row for each way.
    pub(super) fn of(
        args: &Start,
        at_once: u32,
        costs: &[Cost],
        samples: Vec<(Way, Samples)>,
    ) -> Vec<Self> {
        let mean = |wanted| samples.iter().find(|(way, _)| *way == wanted).map(|(_, s)| s.mean());
        let means = [mean(Way::CloudHypervisor), mean(Way::Firecracker)];
        let row = |((way, mut samples), cost): ((Way, Samples), &Cost)| {
            samples.creates.sort_unstable();
            samples.setups.sort_unstable();
            let own = samples.mean();
            let [ratio, ratio_firecracker] =
                means.map(|other| other.map(|ns| ns as f64 / own.max(1) as f64));
            Self {
                way,
                at_once,
                devices: args.shape.devices,
                bars: args.shape.bars,
                vectors: args.shape.vectors,
                doorbells: args.shape.doorbells,
                vcpus: args.shape.vcpus,
                ioctls: cost.spent.ioctls,
                routing_calls: cost.spent.routing_calls,
                grace_periods: cost.spent.grace_periods,
                grace_periods_counted: cost.counted,
                samples: samples.setups.len(),
                create_p50_ns: percentile(&samples.creates, 50),
                setup_mean_ns: own,
                setup_p50_ns: percentile(&samples.setups, 50),
                setup_p99_ns: percentile(&samples.setups, 99),
                setup_max_ns: percentile(&samples.setups, 100),
                ratio,
                ratio_firecracker,
            }
        };
        samples.into_iter().zip(costs).map(row).collect()
    }
}

/// The rows as a table.
#[must_use]
pub fn table(rows: &[Row]) -> Table {
    let header = left([
        "at once",
        "way",
        "ioctls",
        "routings",
        "GPs",
        "counted",
        "create VM",
        "setup p50",
        "mean",
        "p99",
        "against CH",
        "against FC",
    ]);
    let ratio = |ratio: Option<f64>| or_dash(ratio.map(|ratio| format!("{ratio:.2}x")));
    let mut table = markdown(header, (0..12).filter(|index| *index != 1));
    for row in rows {
        table.add_row([
            row.at_once.to_string(),
            row.way.to_string(),
            row.ioctls.to_string(),
            row.routing_calls.to_string(),
            row.grace_periods.to_string(),
            or_dash(row.grace_periods_counted),
            human(row.create_p50_ns),
            human(row.setup_p50_ns),
            human(row.setup_mean_ns),
            human(row.setup_p99_ns),
            ratio(row.ratio),
            ratio(row.ratio_firecracker),
        ]);
    }
    table
}
