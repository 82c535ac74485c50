//! Runs the comparisons.

use std::io;
use std::time::{Duration, Instant};

use super::blobs::Blobs;
use super::guest::{Guest, Running};
use super::table::Row;
use super::ways::{Applied, Way};
use super::{Windows, WindowsError};
use crate::grace::GraceCounter;
use crate::machine::new_vm;
use crate::pin::Pinned;

/// Blobs that are removed and placed while grace periods are counted.
const COUNTED: u64 = 8;

/// Measures, and hands out rows as soon as there are some: those of a guest and
/// a size together.
///
/// # Errors
/// [`WindowsError`].
pub fn windows(
    args: &Windows,
    mut counter: Option<&mut GraceCounter>,
    mut on_rows: impl FnMut(Vec<Row>),
) -> Result<(), WindowsError> {
    let mut ways = if args.way.is_empty() { Way::ALL.to_vec() } else { args.way.clone() };
    ways.sort_unstable();
    ways.dedup();
    let busy = args.vcpus.iter().map(|vcpus| Guest::Busy { vcpus: *vcpus });
    let sleeping = (args.sleep > 0).then_some(Guest::Sleeping { ms: args.sleep });
    for guest in busy.chain(sleeping) {
        for kib in &args.sizes {
            let blobs = Blobs::new(kib << 10, args.live).map_err(WindowsError::Blobs)?;
            let mut rows: Vec<Row> = Vec::new();
            for way in &ways {
                let row = measure(args, guest, *way, &blobs, counter.as_deref_mut())?;
                rows.push(row.beside(rows.first()));
            }
            on_rows(rows);
        }
    }
    Ok(())
}

fn measure(
    args: &Windows,
    guest: Guest,
    way: Way,
    blobs: &Blobs,
    counter: Option<&mut GraceCounter>,
) -> Result<Row, WindowsError> {
    let refused = |what| move |error| WindowsError::Call { way, what, error };
    let vm = new_vm().map_err(WindowsError::Vm)?;
    let mut applied = Applied::new(&vm, way, blobs).map_err(refused("placing all"))?;
    let running = Running::start(&vm, guest, args.busy)?;
    let mut pair = |blob| {
        let start = Instant::now();
        applied.remove(blob)?;
        applied.place(blob)?;
        Ok(start.elapsed())
    };
    let counted = match counter {
        Some(counter) => {
            let work = || (0..COUNTED).try_for_each(|blob| pair(blob % blobs.count).map(drop));
            let (done, counted) = counter.count(work);
            done.map_err(refused("a blob"))?;
            counted.ok().map(|counted| counted as f64 / COUNTED as f64)
        }
        None => None,
    };
    let pace = running.pace();
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
    let (times, meanwhile): (io::Result<Vec<Duration>>, f64) = running.paced(work);
    drop(pinned);
    let times = times.map_err(refused("a blob"))?;
    // Before the memory of the blobs goes, which the way still has in slots.
    running.stop()?;
    let lost = (pace > 0.0).then(|| 1.0 - meanwhile / pace);
    Ok(Row::new(args, guest, way, blobs.size, &times, counted, lost))
}
