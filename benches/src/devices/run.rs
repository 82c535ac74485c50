//! Runs the comparisons.

use std::time::Duration;

use super::Devices;
use super::churn;
use super::decode;
use super::error::DevicesError;
use super::hotplug;
use super::rig::Rig;
use super::table::{Pass, Row};
use super::ways::{Spent, Way};
use crate::bench::median;
use crate::grace::{GraceCounter, Method, NotCounted};
use crate::machine::new_vm;
use crate::pin::Pinned;

/// Measures, and hands out rows as soon as there are some.
///
/// # Errors
/// [`DevicesError`].
pub fn devices(args: &Devices, mut on_rows: impl FnMut(Vec<Row>)) -> Result<(), DevicesError> {
    let mut ways = if args.way.is_empty() { Way::ALL.to_vec() } else { args.way.clone() };
    ways.sort_unstable();
    ways.dedup();
    if let Some(delays) = &args.hotplug {
        let delays = if delays.is_empty() { vec![0, 2, 5, 20] } else { delays.clone() };
        on_rows(hotplug::hotplug(args, &ways, &delays)?);
        return Ok(());
    }
    let mut calls = counter(&[Method::Kprobe, Method::Function, Method::QueueWork])
        .inspect_err(|why| eprintln!("memslots: {why}; grace periods are those of the plan"))
        .ok();
    let mut machine = counter(&[Method::InvokeCallbacks]).ok();
    if let Some(vectors) = args.churn {
        on_rows(churn::churn(args, vectors, [&mut calls, &mut machine])?);
        return Ok(());
    }
    if args.decode {
        on_rows(decode::decode(args, [&mut calls, &mut machine])?);
        return Ok(());
    }
    for vcpus in &args.vcpus {
        let mut rows: Vec<Compared> = ways.iter().map(|way| Compared::new(*way)).collect();
        for row in &mut rows {
            row.count(args, *vcpus, &mut calls, &mut machine)?;
        }
        for _ in 0..args.runs {
            for row in &mut rows {
                row.measure(args, *vcpus)?;
            }
            rows.reverse();
        }
        rows.sort_by_key(|row| row.way);
        on_rows(Compared::rows(&rows, args, *vcpus));
    }
    Ok(())
}

fn counter(methods: &[Method]) -> Result<GraceCounter, NotCounted> {
    GraceCounter::first_of(methods, new_vm)
}

/// One way, while it is measured: attach, then detach.
struct Compared {
    way: Way,
    spent: [Spent; 2],
    /// Grace periods counted by the kernel: this thread's, all of the machine.
    counted: [[Option<u64>; 2]; 2],
    times: [Vec<Duration>; 2],
}

impl Compared {
    fn new(way: Way) -> Self {
        let (spent, counted, times) = Default::default();
        Self { way, spent, counted, times }
    }

    /// A run for each counter, whose time does not count.
    fn count(
        &mut self,
        args: &Devices,
        vcpus: usize,
        calls: &mut Option<GraceCounter>,
        machine: &mut Option<GraceCounter>,
    ) -> Result<(), DevicesError> {
        for (which, counter) in [calls, machine].into_iter().enumerate() {
            let rig = Rig::new(args, vcpus)?;
            let mut counts = Vec::new();
            let round = rig.round(self.way, |change| {
                counts.push(if let Some(counter) = counter {
                    counter.count(change).1.ok()
                } else {
                    change();
                    None
                });
            })?;
            self.spent = [round.attach.0, round.detach.0];
            for (counted, count) in self.counted.iter_mut().zip(counts) {
                counted[which] = count;
            }
            rig.finish()?;
        }
        Ok(())
    }

    fn measure(&mut self, args: &Devices, vcpus: usize) -> Result<(), DevicesError> {
        let rig = Rig::new(args, vcpus)?;
        // The vCPUs run already, wherever they like.
        let pinned = Pinned::to_first_cpu();
        let round = rig.round(self.way, |change| change())?;
        drop(pinned);
        self.times[0].push(round.attach.1);
        self.times[1].push(round.detach.1);
        rig.finish()
    }

    fn rows(all: &[Self], args: &Devices, vcpus: usize) -> Vec<Row> {
        let baseline = all.iter().find(|row| row.way == Way::CloudHypervisor);
        let mut rows = Vec::new();
        for (pass, index) in [(Pass::Attach, 0), (Pass::Detach, 1)] {
            let today = baseline.and_then(|row| median(&row.times[index]));
            for row in all {
                let time = median(&row.times[index]).unwrap_or_default();
                let [counted, machine] = row.counted[index];
                rows.push(Row::new(args, vcpus, row.way, pass, &row.spent[index]).measured(
                    [counted, machine],
                    time,
                    today,
                ));
            }
        }
        rows
    }
}
