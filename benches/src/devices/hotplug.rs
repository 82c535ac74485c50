//! A device that is attached shortly after another one.
//!
//! Since Linux 6.18 registering an ioeventfd leaves a normal grace period in
//! flight (`call_srcu()` in `kvm_io_bus_register_dev()`), which the next change
//! of memory has to wait for.

use std::time::{Duration, Instant};

use super::Devices;
use super::error::DevicesError;
use super::rig::Rig;
use super::table::{Pass, Row};
use super::ways::{Spent, Way};
use crate::bench::median;
use crate::pin::Pinned;

pub(super) fn hotplug(
    args: &Devices,
    ways: &[Way],
    delays: &[u64],
) -> Result<Vec<Row>, DevicesError> {
    let mut rows = Vec::new();
    for delay in delays {
        let mut times: Vec<Vec<Duration>> = vec![Vec::new(); ways.len()];
        let mut spent = vec![Spent::default(); ways.len()];
        for _ in 0..args.runs {
            for (index, way) in ways.iter().enumerate() {
                let (took, cost) = second(args, *way, Duration::from_millis(*delay))?;
                times[index].push(took);
                spent[index] = cost;
            }
        }
        let today = ways.iter().position(|way| *way == Way::CloudHypervisor);
        let today = today.and_then(|index| median(&times[index]));
        for (index, way) in ways.iter().enumerate() {
            let time = median(&times[index]).unwrap_or_default();
            let pass = Pass::Second { delay_ms: *delay };
            rows.push(
                Row::new(args, 0, *way, pass, &spent[index]).measured([None; 2], time, today),
            );
        }
    }
    Ok(rows)
}

/// The time that the second device takes.
fn second(args: &Devices, way: Way, delay: Duration) -> Result<(Duration, Spent), DevicesError> {
    let args = Devices { devices: 2, ..args.clone() };
    let rig = Rig::new(&args, 0)?;
    let refused = |what| move |error| DevicesError::Call { way, what, error };
    let _pinned = Pinned::to_first_cpu();
    let mut applied = rig.way(way)?;
    applied.attach(rig.board(), 0..1).map_err(refused("attaching the first"))?;
    std::thread::sleep(delay);
    let start = Instant::now();
    let attached = applied.attach(rig.board(), 1..2).map_err(refused("attaching the second"))?;
    let spent = attached.plus(applied.finish().map_err(refused("attaching the second"))?);
    let took = start.elapsed();
    drop(applied);
    rig.finish()?;
    Ok((took, spent))
}
