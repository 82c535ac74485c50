//! A device that is attached shortly after another one.
//!
//! Since Linux 6.18 registering an ioeventfd leaves a normal grace period in
//! flight (`call_srcu()` in `kvm_io_bus_register_dev()`), which the next change
//! of memory has to wait for.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::rig::{Rig, attach};
use super::taken::{shape, taken};
use super::ways::Way;
use super::{Devices, Size};
use crate::compare::{Session, Stop, Taken, Watch};

pub(super) fn hotplug(
    args: &Devices,
    ways: &[Way],
    delays: &[u64],
    session: &mut Session<'_>,
) -> Result<()> {
    let args = Devices { size: Size { devices: 2, ..args.size }, ..args.clone() };
    for delay in delays {
        let shape = shape(&args, 0, &format!("2nd, {delay} ms later"));
        let run = |way: Way, watch: &mut Watch<'_>| {
            let taken = second(&args, way, Duration::from_millis(*delay), watch);
            taken.map(|taken| vec![taken]).map_err(Stop::Fail)
        };
        session.compare(&[shape], ways, &[Way::CloudHypervisor], run, |_| ())?;
    }
    Ok(())
}

/// What the second device takes.
fn second(args: &Devices, way: Way, delay: Duration, watch: &mut Watch<'_>) -> Result<Taken> {
    let rig = Rig::new(args, 0)?;
    let mut applied = rig.way(way)?;
    let first = applied.attach(rig.board(), 0..1);
    first.with_context(|| format!("{way}, attaching the first"))?;
    std::thread::sleep(delay);
    let (spent, lap) = watch.lap(|| attach(&mut *applied, rig.board(), 1..2));
    let spent = spent.with_context(|| format!("{way}, attaching the second"))?;
    drop(applied);
    rig.finish()?;
    Ok(taken(lap, &spent, None))
}
