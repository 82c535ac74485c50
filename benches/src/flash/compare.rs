//! The ways side by side.

use std::cell::RefCell;

use anyhow::{Context as _, Result};
use kvm_memslots::deferred::Deferral;
use kvm_memslots::{Error, ErrorKind};

use super::{Contents, Way, drive};
use crate::compare::{Lap, Row, Session, Shape, Stop, Taken, Watch, beside};
use crate::report::Column;
use crate::rig::Vcpus;
use kvm_memslots_kit::machine::new_vm;

/// The columns of the table.
pub const COLUMNS: [Column; 11] = [
    Column::Way("way"),
    Column::Size("cycles"),
    Column::Said("vCPUs", "vcpus"),
    Column::Said("flips", "flips"),
    Column::Ioctls,
    Column::GracePeriods,
    Column::Said("device exits", "exits"),
    Column::Said("served exits", "served"),
    Column::Time("time"),
    Column::Ratio("ratio", "toggle"),
    Column::With("contents", contents),
];

fn contents(row: &Row) -> String {
    match row.more.get("same_contents").and_then(serde_json::Value::as_bool) {
        Some(true) => "equal".to_owned(),
        Some(false) => "DIFFERENT".to_owned(),
        None => "-".to_owned(),
    }
}

/// Compares the ways, guest and exits included.
///
/// # Errors
/// As [`drive`], but that a kernel can't trap is a row that says so.
pub fn compare(ways: &[Way], cycles: usize, vcpus: Vcpus, session: &mut Session<'_>) -> Result<()> {
    let shape = Shape {
        what: format!("flash, {}", beside(vcpus.count, vcpus.busy)),
        size: cycles as u64,
        unit: "command cycles",
        more: vec![("cycles", cycles.into()), ("vcpus", vcpus.count.into())],
    };
    let first = RefCell::new(None);
    let run = |way: Way, watch: &mut Watch<'_>| {
        run(way, cycles, vcpus, watch, &mut first.borrow_mut()).map(|taken| vec![taken])
    };
    session.compare(&[shape], ways, &[Way::Toggle], run, |_| ())
}

/// One run; `first` is what the bank holds after the first of all.
fn run(
    way: Way,
    cycles: usize,
    vcpus: Vcpus,
    watch: &mut Watch<'_>,
    first: &mut Option<Contents>,
) -> Result<Taken, Stop<anyhow::Error>> {
    let vm = new_vm().context("no VM")?;
    let (driven, lap) = watch.lap(|| drive(&vm, way, cycles, vcpus, Deferral::default()));
    let driven = driven.map_err(|error| match error.downcast_ref::<Error>().map(Error::kind) {
        Some(ErrorKind::TrapUnsupported) => Stop::Skip("this KVM's slots can't trap".to_owned()),
        _ => Stop::Fail(error),
    })?;
    let counted = lap.counted.map(|counted| counted.saturating_sub(driven.aside));
    let expected = first.get_or_insert_with(|| driven.contents.clone());
    Ok(Taken {
        // From the guest's first access on.
        lap: Lap { wall: driven.wall, counted, ..lap },
        ioctls: Some(driven.ioctls),
        grace_periods: Some(driven.grace_periods),
        more: vec![
            ("flips", driven.flips.into()),
            ("exits", driven.exits.into()),
            ("served", driven.served.into()),
            ("same_contents", (*expected == driven.contents).into()),
        ],
        ..Taken::default()
    })
}
