//! A device that is attached shortly after another one.
//!
//! Since Linux 6.18 registering an ioeventfd leaves a normal grace period in
//! flight (`call_srcu()` in `kvm_io_bus_register_dev()`), which the next change
//! of memory has to wait for.

use std::time::Duration;

use super::Devices;
use super::error::DevicesError;
use super::rig::Rig;
use super::taken::{shape, taken};
use super::ways::Way;
use crate::compare::{Session, Stop, Taken, Watch};

pub(super) fn hotplug(
    args: &Devices,
    ways: &[Way],
    delays: &[u64],
    session: &mut Session<'_>,
) -> Result<(), DevicesError> {
    let args = Devices { devices: 2, ..args.clone() };
    for delay in delays {
        let shape = shape(&args, 0, &format!("2nd, {delay} ms later"));
        session.compare(&[shape], ways, &[Way::CloudHypervisor], |way, watch| {
            second(&args, way, Duration::from_millis(*delay), watch).map(|taken| vec![taken])
        })?;
    }
    Ok(())
}

/// What the second device takes.
fn second(
    args: &Devices,
    way: Way,
    delay: Duration,
    watch: &mut Watch<'_>,
) -> Result<Taken, Stop<DevicesError>> {
    let rig = Rig::new(args, 0)?;
    let refused = |what| move |error| DevicesError::Call { way, what, error };
    let mut applied = rig.way(way)?;
    applied.attach(rig.board(), 0..1).map_err(refused("attaching the first"))?;
    std::thread::sleep(delay);
    let (spent, lap) = watch.lap(|| {
        let attached = applied.attach(rig.board(), 1..2)?;
        Ok(attached.plus(applied.finish()?))
    });
    let spent = spent.map_err(refused("attaching the second"))?;
    drop(applied);
    rig.finish()?;
    Ok(taken(lap, &spent))
}
