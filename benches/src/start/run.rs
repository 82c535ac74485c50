//! Runs the comparisons.

use super::table::{Cost, Row, Samples};
use super::ways::Setup;
use super::{Start, StartError, Way, worker};
use crate::grace::{GraceCounter, Method};
use crate::machine::new_vm;

/// Measures, and hands out rows as soon as there are some.
///
/// # Errors
/// [`StartError`].
pub fn start(args: &Start, mut on_rows: impl FnMut(Vec<Row>)) -> Result<(), StartError> {
    let mut ways = if args.way.is_empty() { Way::ALL.to_vec() } else { args.way.clone() };
    ways.sort_unstable();
    ways.dedup();
    let costs = count(args, &ways)?;
    for at_once in &args.at_once {
        let mut samples: Vec<(Way, Samples)> =
            ways.iter().map(|way| (*way, Samples::default())).collect();
        for _ in 0..args.runs {
            for (way, samples) in &mut samples {
                samples.extend(worker::measure(*at_once, *way, args.shape)?);
            }
            samples.reverse();
        }
        samples.sort_by_key(|(way, _)| *way);
        on_rows(Row::of(args, *at_once, &costs, samples));
    }
    Ok(())
}

/// A run of each way whose time does not count.
fn count(args: &Start, ways: &[Way]) -> Result<Vec<Cost>, StartError> {
    // Whether there is KVM at all is said before anything about counting.
    new_vm().map_err(StartError::Vm)?;
    let methods = [Method::Kprobe, Method::Function, Method::QueueWork];
    let mut counter = GraceCounter::first_of(&methods, new_vm)
        .inspect_err(|why| eprintln!("memslots: {why}; grace periods are those of KVM's rules"))
        .ok();
    let cost = |way: &Way| {
        let mut counted = None;
        let done = Setup::new(*way, args.shape)?.run(|change| match &mut counter {
            Some(counter) => counted = counter.count(change).1.ok(),
            None => change(),
        })?;
        Ok(Cost { spent: done.spent, counted })
    };
    ways.iter().map(cost).collect()
}
