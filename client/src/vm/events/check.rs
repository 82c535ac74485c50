//! What KVM would refuse, or take for something else, whatever there is.

use std::collections::BTreeSet;

use kvm_memslots_shim::events::{Bus, Route, Zone, ZoneLimits};

use crate::device::{Coalesced, Kick, Place};
use crate::error::ErrorKind;

pub(super) fn check_routes(routes: &BTreeSet<Route>, limit: u32) -> Result<(), ErrorKind> {
    if let Some(route) = routes.iter().find(|route| route.gsi >= limit) {
        return Err(ErrorKind::GsiBeyondLimit { gsi: route.gsi, limit });
    }
    if routes.len() > limit as usize {
        return Err(ErrorKind::TooManyRoutes { routes: routes.len(), limit });
    }
    Ok(())
}

pub(super) fn check_kick(kick: &Kick) -> Result<(), ErrorKind> {
    let (len, value) = (kick.doorbell.len, kick.doorbell.value);
    if !matches!(len, 0 | 1 | 2 | 4 | 8) {
        return Err(ErrorKind::IoeventfdLength { len });
    }
    check_end(kick.doorbell.place, len)?;
    // A value that does not fit never matches.
    let fits = |data| len == 8 || (len != 0 && data >> (len * 8) == 0);
    match value.filter(|data| !fits(*data)) {
        Some(data) => Err(ErrorKind::IoeventfdValue { len, data }),
        None => Ok(()),
    }
}

/// What KVM would refuse, or never unregister, wherever it is.
pub(super) fn check_coalesced(what: &Coalesced, limits: ZoneLimits) -> Result<(), ErrorKind> {
    let ports = matches!(what.place, Place::At(Bus::Pio, _));
    if limits.ring_page.is_none() || (ports && !limits.pio) {
        return Err(ErrorKind::NoZones { ports });
    }
    let len = what.len;
    if !(1..=Zone::MAX_LEN).contains(&len) {
        return Err(ErrorKind::ZoneLength { len });
    }
    // KVM finds no write in one that ends where addresses do.
    check_end(what.place, len)
}

/// Whether it ends before addresses, or offsets, do.
fn check_end(place: Place, len: u32) -> Result<(), ErrorKind> {
    let (Place::At(_, start) | Place::In(_, start)) = place;
    start.checked_add(len.into()).map(drop).ok_or_else(|| wraps(place, len))
}

/// An ioeventfd or a zone ends beyond the last address.
pub(super) const fn wraps(place: Place, len: u32) -> ErrorKind {
    let (Place::At(_, start) | Place::In(_, start)) = place;
    ErrorKind::EventWraps { start, len, in_region: matches!(place, Place::In(..)) }
}
