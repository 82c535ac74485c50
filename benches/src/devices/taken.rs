//! What all comparisons of devices have in common.

use super::Devices;
use crate::compare::{Lap, Row, Shape, Taken, beside};
use crate::report::Column;
use crate::spent::Spent;
use crate::timed::{Clock, Times};

/// The columns of the table.
pub const COLUMNS: [Column; 11] = [
    Column::Said("vCPUs", "vcpus"),
    Column::Said("pass", "pass"),
    Column::Way("way"),
    Column::Ioctls,
    Column::Said("routings", "routing_calls"),
    Column::GracePeriods,
    Column::Said("of ioeventfds", "in_ioeventfd_deassign"),
    Column::Said("+ irqfd shutdown", "in_irqfd_shutdown"),
    Column::Machine,
    Column::Time("time"),
    Column::Ratio("ratio", "cloud-hypervisor"),
];

/// Those of `--profile`.
pub const PROFILE: [Column; 10] = [
    Column::Said("vCPUs", "vcpus"),
    Column::Said("pass", "pass"),
    Column::Way("way"),
    Column::Time("time"),
    Column::SaidTime("memslots", "in_memory_p50_ns"),
    Column::SaidTime("routes", "in_routes_p50_ns"),
    Column::SaidTime("irqfds", "in_irqfds_p50_ns"),
    Column::SaidTime("ioeventfds", "in_ioeventfds_p50_ns"),
    Column::SaidTime("no call", "in_none_p50_ns"),
    Column::Ratio("ratio", "cloud-hypervisor"),
];

/// A pass over devices.
pub(super) fn shape(args: &Devices, vcpus: usize, pass: &str) -> Shape {
    Shape {
        what: format!("devices, {pass}, {}", beside(vcpus, args.busy)),
        size: args.size.devices.into(),
        unit: "devices",
        more: vec![
            ("pass", pass.into()),
            ("devices", args.size.devices.into()),
            ("scattered", args.size.scattered.into()),
            ("vcpus", vcpus.into()),
        ],
    }
}

/// Found with a clock, it says where the time went since that was asked last.
pub(super) fn taken(lap: Lap, spent: &Spent, clock: Option<&Clock>) -> Taken {
    let pools = clock.map(|clock| clock.take().pools(lap.wall.as_nanos() as u64));
    Taken {
        more: vec![
            ("routing_calls", spent.routing_calls.into()),
            // Of the grace periods, by KVM's rules.
            ("in_ioeventfd_deassign", spent.in_ioeventfd_deassign.into()),
            // Of the worker behind KVM_IRQFD's deassign, by KVM's rules.
            ("in_irqfd_shutdown", spent.in_irqfd_shutdown.into()),
        ],
        pools: pools.unwrap_or_default(),
        ..spent.taken(lap)
    }
}

/// Says where the time went, if that was asked.
pub(super) fn summarize(args: &Devices, row: &mut Row) {
    if args.profile {
        row.summarize(&Times::names());
    }
}
