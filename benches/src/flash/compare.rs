//! The ways side by side.

use std::io::{self, Write};

use kvm_memslots::ErrorKind;
use kvm_memslots::deferred::Deferral;
use serde::Serialize;

use super::{Contents, DriveError, Way, drive};
use crate::bench::{CountedBy, median};
use crate::grace::GraceCounter;
use crate::machine::new_vm;
use crate::report::{human, markdown, or_dash};
use crate::rig::Vcpus;

/// One way.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// [`Way::name`].
    pub way: &'static str,
    /// Command cycles: a word programmed, its status polled, two words read.
    pub cycles: usize,
    /// Busy vCPUs beside it.
    pub vcpus: usize,
    /// Changes of the bank's mode.
    pub flips: Option<u64>,
    /// Calls that changed memslots.
    pub ioctls: Option<u64>,
    /// Grace periods, as the kernel counted them; by KVM's rules where it does
    /// not.
    pub grace_periods: Option<u64>,
    /// Whether the kernel counted.
    pub counted: bool,
    /// Exits that the device answered.
    pub exits: Option<u64>,
    /// Exits that were answered from the bank's memory.
    pub served: Option<u64>,
    /// Median over the runs, in nanoseconds, guest and exits included.
    pub wall_ns: Option<u64>,
    /// Runs measured.
    pub runs: usize,
    /// Whether the bank holds in the end what it does after the first way.
    pub same_contents: Option<bool>,
    /// Why there are no numbers.
    pub skipped: Option<String>,
}

/// Runs each way `runs` times, in turn, and once more where `counter` counts.
///
/// # Errors
/// [`DriveError`], but that a kernel can't trap is a row that says so; no VM.
pub fn compare(
    ways: &[Way],
    cycles: usize,
    vcpus: Vcpus,
    runs: usize,
    mut counter: Option<&mut GraceCounter>,
) -> io::Result<Result<Vec<Row>, DriveError>> {
    let mut rows: Vec<Row> = ways.iter().map(|way| Row::new(*way, cycles, vcpus, runs)).collect();
    let mut walls = vec![Vec::new(); ways.len()];
    let mut first: Option<Contents> = None;
    for run in 0..=runs {
        let counts = run == runs;
        for ((way, row), walls) in ways.iter().zip(&mut rows).zip(&mut walls) {
            if row.skipped.is_some() || counts && counter.is_none() {
                continue;
            }
            let vm = new_vm()?;
            let work = || drive(&vm, *way, cycles, vcpus, Deferral::default());
            let (driven, counted) = match counter.as_deref_mut() {
                Some(counter) if counts => {
                    let (driven, counted) = counter.count(work)?;
                    (driven, Some(counted))
                }
                _ => (work(), None),
            };
            let driven = match driven {
                Ok(driven) => driven,
                Err(DriveError::Slots(error))
                    if matches!(error.kind(), ErrorKind::TrapUnsupported { .. }) =>
                {
                    row.skipped = Some("this KVM's slots can't trap".to_owned());
                    continue;
                }
                Err(error) => return Ok(Err(error)),
            };
            if let Some(counted) = counted {
                row.grace_periods = Some(counted.saturating_sub(driven.aside));
                row.counted = true;
                continue;
            }
            walls.push(driven.wall);
            row.flips = Some(driven.flips);
            row.ioctls = Some(driven.ioctls);
            row.grace_periods = Some(driven.grace_periods);
            row.exits = Some(driven.exits);
            row.served = Some(driven.served);
            let expected = first.get_or_insert_with(|| driven.contents.clone());
            row.same_contents = Some(*expected == driven.contents);
        }
    }
    for (row, walls) in rows.iter_mut().zip(&walls) {
        row.wall_ns = median(walls).map(|wall| wall.as_nanos() as u64);
    }
    Ok(Ok(rows))
}

impl Row {
    fn new(way: Way, cycles: usize, vcpus: Vcpus, runs: usize) -> Self {
        Self {
            way: way.name(),
            cycles,
            vcpus: vcpus.count,
            flips: None,
            ioctls: None,
            grace_periods: None,
            counted: false,
            exits: None,
            served: None,
            wall_ns: None,
            runs,
            same_contents: None,
            skipped: None,
        }
    }
}

/// The rows as a table.
///
/// # Errors
/// That of the writer.
pub fn table(rows: &[Row], mut out: impl Write) -> io::Result<()> {
    let header = [
        "way",
        "cycles",
        "vCPUs",
        "flips",
        "ioctls",
        "grace periods",
        "device exits",
        "served exits",
        "time",
        "contents",
    ];
    let mut table = markdown(header, 1..9);
    for row in rows {
        let by = if row.counted { CountedBy::Kernel } else { CountedBy::Plan };
        table.add_row([
            row.way.to_owned(),
            row.cycles.to_string(),
            row.vcpus.to_string(),
            or_dash(row.flips),
            or_dash(row.ioctls),
            or_dash(row.grace_periods.map(|value| format!("{value} {by}"))),
            or_dash(row.exits),
            or_dash(row.served),
            or_dash(row.wall_ns.map(human)),
            match (row.same_contents, &row.skipped) {
                (Some(true), _) => "equal".to_owned(),
                (Some(false), _) => "DIFFERENT".to_owned(),
                (None, why) => format!("skipped: {}", why.as_deref().unwrap_or("not run")),
            },
        ]);
    }
    writeln!(out, "{table}")
}
