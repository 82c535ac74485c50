//! Runs the comparisons.

use anyhow::Result;

use super::rig::Rig;
use super::taken::{shape, summarize};
use super::ways::Way;
use super::{Devices, churn, decode, hotplug};
use crate::compare::{Session, Stop, ways};

/// Measures.
///
/// # Errors
/// No VM, no memory or eventfds; else the way, what it did, and why it failed.
pub fn devices(args: &Devices, session: &mut Session<'_>) -> Result<()> {
    let ways = ways(&args.way);
    if let Some(delays) = &args.hotplug {
        return hotplug::hotplug(args, &ways, delays, session);
    }
    if let Some(vectors) = args.churn {
        return churn::churn(args, vectors, session);
    }
    if args.decode {
        return decode::decode(args, session);
    }
    for vcpus in &args.vcpus {
        let passes = ["attach", "detach"].map(|pass| shape(args, *vcpus, pass));
        session.compare(
            &passes,
            &ways,
            &[Way::CloudHypervisor],
            |way, watch| {
                let rig = Rig::new(args, *vcpus)?;
                let taken = rig.round(way, watch)?;
                rig.finish().map(|()| taken).map_err(Stop::<anyhow::Error>::Fail)
            },
            |row| summarize(args, row),
        )?;
    }
    Ok(())
}
