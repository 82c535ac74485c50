//! Runs the comparisons.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Windows;
use super::blobs::Blobs;
use super::guest::{BLOBS, Guest, Running};
use super::ways::{Applied, Way};
use crate::compare::{Lap, Row, Session, Shape, Stop, Taken, Watch, median, ways};
use crate::report::{Column, or_dash};
use kvm_memslots_kit::machine::new_vm;
use kvm_memslots_kit::pin::Pinned;

/// The columns of the table.
pub const COLUMNS: [Column; 10] = [
    Column::Said("vCPUs", "guest"),
    Column::With("blob", |row| format!("{} KiB", row.size)),
    Column::Way("way"),
    Column::Said("pairs", "pairs"),
    Column::With("pairs/s", |row| or_dash(row.number("pairs_per_second"))),
    Column::SaidTime("p50", "pair_p50_ns"),
    Column::SaidTime("p99", "pair_p99_ns"),
    Column::Ratio("ratio", "slots"),
    Column::GracePeriods,
    Column::With("vCPUs lost", lost),
];

/// How much slower the vCPUs were.
fn lost(row: &Row) -> String {
    // One that sleeps takes a few steps a second: none or one while blobs change.
    if row.more.get("sleeps") == Some(&true.into()) {
        return "- (asleep)".to_owned();
    }
    let lost = row.more.get("vcpus_lost").and_then(serde_json::Value::as_f64);
    or_dash(lost.map(|lost| format!("{:.0} %", lost * 100.0)))
}

/// Blobs that are removed and placed while grace periods are counted.
const COUNTED: u64 = 8;

/// Measures. The time of a run is that of a pair of a remove and a place, median
/// over its pairs, and so are calls and grace periods.
///
/// # Errors
/// No VM, memory, userfaultfd or guest; else the way, what it did, and why it failed.
pub fn windows(args: &Windows, session: &mut Session<'_>) -> Result<()> {
    let busy = args.vcpus.iter().map(|vcpus| Guest::Busy { vcpus: *vcpus });
    let sleeping = (args.sleep > 0).then_some(Guest::Sleeping { ms: args.sleep });
    for guest in busy.chain(sleeping) {
        for kib in &args.sizes {
            let blobs = Blobs::new(kib << 10, args.live).context(BLOBS)?;
            let shape = Shape {
                what: format!("blobs, vCPUs: {guest}"),
                size: *kib,
                unit: "KiB",
                more: vec![
                    ("guest", guest.to_string().into()),
                    ("sleeps", matches!(guest, Guest::Sleeping { .. }).into()),
                    ("live", args.live.into()),
                ],
            };
            let run = |way: Way, watch: &mut Watch<'_>| {
                run(args, guest, way, &blobs, watch).map(|taken| vec![taken]).map_err(Stop::Fail)
            };
            session.compare(&[shape], &ways(&args.way), &[Way::Slots], run, finish)?;
        }
    }
    Ok(())
}

/// What all runs of a way say together.
fn finish(row: &mut Row) {
    let pairs = row.pools.get("pair").map_or(&[][..], Vec::as_slice);
    let total = pairs.iter().sum::<u64>().max(1);
    let per_second = pairs.len() as u64 * 1_000_000_000 / total;
    let [before, meanwhile] = ["before", "meanwhile"]
        .map(|pace| row.pools.get(pace).and_then(|samples| median(samples)).unwrap_or(0));
    let lost = (before > 0).then(|| 1.0 - meanwhile as f64 / before as f64);
    row.more.insert("pairs".to_owned(), pairs.len().into());
    row.more.insert("pairs_per_second".to_owned(), per_second.into());
    row.more.insert("vcpus_lost".to_owned(), lost.into());
    row.summarize(&["pair"]);
}

/// One run, on a VM of its own.
fn run(
    args: &Windows,
    guest: Guest,
    way: Way,
    blobs: &Blobs,
    watch: &mut Watch<'_>,
) -> Result<Taken> {
    let a_blob = || format!("{way}, a blob");
    let vm = new_vm().context("no VM")?;
    let applied = Applied::new(&vm, way, blobs);
    let mut applied = applied.with_context(|| format!("{way}, placing all"))?;
    let running = Running::start(&vm, guest, args.busy)?;
    let mut pair = |blob| {
        let start = Instant::now();
        applied.remove(blob)?;
        applied.place(blob)?;
        io::Result::Ok(start.elapsed().as_nanos() as u64)
    };
    if !watch.times() {
        let all = || (0..COUNTED).try_for_each(|blob| pair(blob % blobs.count).map(drop));
        let (done, lap) = watch.lap(all);
        done.with_context(a_blob)?;
        running.stop()?;
        // Of a pair.
        let counted = lap.counted.map(|counted| (counted + COUNTED / 2) / COUNTED);
        return Ok(Taken { lap: Lap { counted, ..lap }, ..Taken::default() });
    }
    let before = running.pace();
    // The vCPUs run already, wherever they like.
    let pinned = Pinned::to_first_cpu();
    let until = Instant::now() + Duration::from_millis(args.time);
    let work = || {
        let mut times = Vec::with_capacity(args.pairs as usize);
        for blob in 0..u64::from(args.pairs) {
            times.push(pair(blob % blobs.count)?);
            if Instant::now() >= until {
                break;
            }
        }
        Ok(times)
    };
    let (times, meanwhile): (io::Result<Vec<u64>>, f64) = running.paced(work);
    drop(pinned);
    let times = times.with_context(a_blob)?;
    // Before the memory of the blobs goes, which the way still has in slots.
    running.stop()?;
    let lap = Lap::of_nanos(median(&times).unwrap_or(0));
    let mut pools = vec![("pair", times)];
    if matches!(guest, Guest::Busy { .. }) {
        // Never negative.
        #[allow(clippy::cast_sign_loss)]
        let [before, meanwhile] = [before, meanwhile].map(|pace| vec![pace as u64]);
        pools.extend([("before", before), ("meanwhile", meanwhile)]);
    }
    Ok(Taken { lap, pools, ..Taken::default() })
}
