//! Runs the comparisons.

use super::Devices;
use super::churn;
use super::decode;
use super::error::DevicesError;
use super::hotplug;
use super::rig::Rig;
use super::taken::shape;
use super::ways::Way;
use crate::compare::{Row, Session, ways};
use crate::timed::Times;

/// Says where the time went, if that was asked.
pub(super) fn summarize(args: &Devices, rows: &mut [Row]) {
    if args.profile {
        for row in rows {
            row.summarize(&Times::names());
        }
    }
}

/// Measures.
///
/// # Errors
/// [`DevicesError`].
pub fn devices(args: &Devices, session: &mut Session<'_>) -> Result<(), DevicesError> {
    let ways = ways(&args.way);
    if let Some(delays) = &args.hotplug {
        let delays = if delays.is_empty() { &[0, 2, 5, 20][..] } else { delays };
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
        let mut rows = session.rows(&passes, &ways, &[Way::CloudHypervisor], |way, watch| {
            let rig = Rig::new(args, *vcpus)?;
            let taken = rig.round(way, watch)?;
            rig.finish()?;
            Ok::<_, crate::compare::Stop<DevicesError>>(taken)
        })?;
        summarize(args, &mut rows);
        session.say(rows);
    }
    Ok(())
}
