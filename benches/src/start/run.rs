//! Runs the comparisons.

use anyhow::Result;

use super::ways::Setup;
use super::worker::Told;
use super::{Start, Way, worker};
use crate::compare::{Lap, Session, Shape, Stop, Taken, Watch, median, ways};
use crate::report::Column;
use crate::spent::Spent;
use crate::timed::Times;

/// The columns of the table.
pub const COLUMNS: [Column; 11] = [
    Column::Size("at once"),
    Column::Way("way"),
    Column::Ioctls,
    Column::Said("routings", "routing_calls"),
    Column::GracePeriods,
    Column::SaidTime("create VM", "create_p50_ns"),
    Column::SaidTime("setup p50", "setup_p50_ns"),
    Column::SaidTime("p99", "setup_p99_ns"),
    Column::Time("mean"),
    Column::Ratio("against CH", "cloud-hypervisor"),
    Column::Ratio("against FC", "firecracker"),
];

/// Those of `--profile`: medians over the VMs.
pub const PROFILE: [Column; 13] = [
    Column::Size("at once"),
    Column::Way("way"),
    Column::SaidTime("setup p50", "setup_p50_ns"),
    Column::SaidTime("memslots", "in_memory_p50_ns"),
    Column::SaidTime("irqchip, PIT", "in_platform_p50_ns"),
    Column::SaidTime("vCPUs", "in_vcpus_p50_ns"),
    Column::SaidTime("routes", "in_routes_p50_ns"),
    Column::SaidTime("irqfds", "in_irqfds_p50_ns"),
    Column::SaidTime("ioeventfds", "in_ioeventfds_p50_ns"),
    Column::SaidTime("no call", "in_none_p50_ns"),
    Column::SaidTime("on a CPU", "cpu_p50_ns"),
    Column::Said("page faults", "page_faults"),
    Column::Ratio("against FC", "firecracker"),
];

/// Measures. The time of a run is that of all calls after `KVM_CREATE_VM`, mean
/// over the VMs.
///
/// # Errors
/// No VM, memory, eventfds or processes; else the way, its step, and why it failed.
pub fn start(args: &Start, session: &mut Session<'_>) -> Result<()> {
    let against = [Way::CloudHypervisor, Way::Firecracker];
    for at_once in &args.at_once {
        session.compare(
            &[shape(args, *at_once)],
            &ways(&args.way),
            &against,
            |way, watch| {
                run(args, *at_once, way, watch).map(|taken| vec![taken]).map_err(Stop::Fail)
            },
            |row| {
                row.more.insert("samples".to_owned(), row.pools.get("setup").map(Vec::len).into());
                row.summarize(&["create", "setup"]);
                if args.profile {
                    row.summarize(&Times::names());
                    row.summarize(&["cpu"]);
                    let faults = row.pools.get("faults").and_then(|faults| median(faults));
                    row.more.insert("page_faults".to_owned(), faults.into());
                }
            },
        )?;
    }
    Ok(())
}

fn shape(args: &Start, at_once: u32) -> Shape {
    let of = args.shape;
    Shape {
        what: format!("start with {} devices", of.devices),
        size: at_once.into(),
        unit: "VMs at once",
        more: vec![
            ("at_once", at_once.into()),
            ("devices", of.devices.into()),
            ("bars", of.bars.into()),
            ("vectors", of.vectors.into()),
            ("doorbells", of.doorbells.into()),
            ("vcpus", of.vcpus.into()),
        ],
    }
}

/// One run: VMs in processes of their own; to count, one in this.
fn run(args: &Start, at_once: u32, way: Way, watch: &mut Watch<'_>) -> Result<Taken> {
    if !watch.times() {
        let mut lap = Lap::default();
        let done =
            Setup::new(way, args.shape, args.profile)?.run(|change| lap = watch.lap(change).1)?;
        return Ok(taken(lap, &done.spent));
    }
    let Start { shape, profile, cold, .. } = *args;
    let measured = worker::measure(at_once, &Told { way, profile, cold, shape })?;
    let setups: Vec<u64> = measured.iter().map(|vm| vm.setup_ns).collect();
    let creates = measured.iter().map(|vm| vm.create_ns).collect();
    let mean = Lap::of_nanos(setups.iter().sum::<u64>() / (setups.len() as u64).max(1));
    let spent = measured.first().map(|vm| vm.spent).unwrap_or_default();
    let mut pools = vec![("setup", setups), ("create", creates)];
    if args.profile {
        pools.extend(measured.iter().flat_map(|vm| vm.times.pools(vm.setup_ns)));
        pools.push(("cpu", measured.iter().map(|vm| vm.cpu_ns).collect()));
        pools.push(("faults", measured.iter().map(|vm| vm.faults).collect()));
    }
    Ok(Taken { pools, ..taken(mean, &spent) })
}

fn taken(lap: Lap, spent: &Spent) -> Taken {
    Taken { more: vec![("routing_calls", spent.routing_calls.into())], ..spent.taken(lap) }
}
