//! What the first calls of a VM wait for, and the order that costs least.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::median;
use crate::grace::GraceCounter;
use crate::machine::new_vm;
use crate::pin::Pinned;
use crate::report::{human, markdown, or_dash};
use crate::start::{Parts, Step};

use Step::{Ioeventfd, Memory, Vcpus};
#[cfg(target_arch = "x86_64")]
use Step::{Irqchip, Pit, SplitIrqchip, Tss};

/// A call, and what came before it.
type First = (Step, &'static [Step]);

#[cfg(target_arch = "x86_64")]
const FIRST_CALLS: &[First] = &[
    (Memory, &[]),
    (Memory, &[Tss]),
    (Memory, &[Irqchip]),
    (Memory, &[Irqchip, Pit]),
    (Memory, &[SplitIrqchip]),
    (Memory, &[Irqchip, Vcpus]),
    (Memory, &[SplitIrqchip, Vcpus]),
    (Memory, &[Ioeventfd]),
    (Irqchip, &[]),
    (Irqchip, &[Memory]),
    (Pit, &[Irqchip]),
    (Pit, &[Memory, Irqchip]),
    (Ioeventfd, &[]),
    (Ioeventfd, &[Memory]),
    (Ioeventfd, &[Memory, Irqchip]),
    (Vcpus, &[]),
    (Vcpus, &[Irqchip]),
    (Vcpus, &[SplitIrqchip]),
    (Vcpus, &[Memory, Irqchip]),
    (Vcpus, &[Memory, SplitIrqchip]),
];
#[cfg(not(target_arch = "x86_64"))]
const FIRST_CALLS: &[First] = &[
    (Memory, &[]),
    (Memory, &[Vcpus]),
    (Memory, &[Ioeventfd]),
    (Ioeventfd, &[]),
    (Ioeventfd, &[Memory]),
    (Vcpus, &[]),
    (Vcpus, &[Memory]),
];

/// Orders of the same steps, in groups.
#[cfg(target_arch = "x86_64")]
const ORDERS: &[&[&[Step]]] = &[
    &[
        &[Memory, Tss, Irqchip, Pit, Vcpus, Ioeventfd],
        &[Memory, Tss, Irqchip, Vcpus, Pit, Ioeventfd],
        &[Tss, Irqchip, Memory, Pit, Vcpus, Ioeventfd],
        &[Tss, Irqchip, Vcpus, Memory, Pit, Ioeventfd],
        &[Tss, Irqchip, Pit, Vcpus, Memory, Ioeventfd],
        &[Tss, Irqchip, Pit, Vcpus, Ioeventfd, Memory],
    ],
    &[
        &[Memory, Tss, SplitIrqchip, Vcpus, Ioeventfd],
        &[Tss, SplitIrqchip, Memory, Vcpus, Ioeventfd],
        &[Tss, SplitIrqchip, Vcpus, Ioeventfd, Memory],
    ],
];
#[cfg(not(target_arch = "x86_64"))]
const ORDERS: &[&[&[Step]]] =
    &[&[&[Memory, Vcpus, Ioeventfd], &[Vcpus, Memory, Ioeventfd], &[Vcpus, Ioeventfd, Memory]]];

/// What some steps took.
#[derive(Debug)]
struct Took {
    median: Duration,
    max: Duration,
    /// Grace periods waited for, as counted by the kernel.
    counted: Option<u64>,
}

/// An order of a start, and what it took.
type Order = (&'static [Step], Result<Took, String>);

pub(super) struct Measured {
    runs: u32,
    first: Vec<(First, Result<Took, String>)>,
    orders: Vec<Vec<Order>>,
}

impl Measured {
    pub(super) fn new(runs: u32, mut counter: Option<&mut GraceCounter>) -> Self {
        let _pinned = Pinned::to_first_cpu();
        let mut took = |before: &[Step], steps: &[Step]| {
            measure(runs, counter.as_deref_mut(), before, steps).map_err(|error| error.to_string())
        };
        let first = FIRST_CALLS.iter();
        let first =
            first.map(|(call, before)| ((*call, *before), took(before, &[*call]))).collect();
        let orders = ORDERS.iter();
        let orders =
            orders.map(|group| group.iter().map(|order| (*order, took(&[], order))).collect());
        let orders = orders.collect();
        Self { runs, first, orders }
    }
}

/// Times `steps` after the steps `before`, each time on a new VM.
fn measure(
    runs: u32,
    counter: Option<&mut GraceCounter>,
    before: &[Step],
    steps: &[Step],
) -> io::Result<Took> {
    let mut times = Vec::new();
    let once = |around: &mut dyn FnMut(&mut dyn FnMut())| {
        let mut parts = Parts::new(1, 1)?;
        // Dropped before its parts.
        let vm = new_vm()?;
        let mut make =
            |steps: &[Step]| steps.iter().try_for_each(|step| parts.make(*step, &vm).map(drop));
        make(before)?;
        let (mut outcome, mut took) = (Ok(()), Duration::ZERO);
        around(&mut || {
            let start = Instant::now();
            outcome = make(steps);
            took = start.elapsed();
        });
        drop(vm);
        outcome.map(|()| took)
    };
    for _ in 0..runs {
        times.push(once(&mut |change| change())?);
    }
    let mut counted = None;
    if let Some(counter) = counter {
        once(&mut |change| counted = counter.count(change).1.ok())?;
    }
    let max = times.iter().max().copied().unwrap_or_default();
    Ok(Took { median: median(&times).unwrap_or_default(), max, counted })
}

fn names(steps: &[Step]) -> String {
    let names: Vec<_> = steps.iter().map(|step| step.name()).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

fn cells(took: &Result<Took, String>) -> [String; 3] {
    let human = |time: Duration| human(time.as_nanos() as u64);
    match took {
        Ok(took) => [human(took.median), human(took.max), or_dash(took.counted)],
        Err(why) => [why.clone(), "-".to_owned(), "-".to_owned()],
    }
}

/// The cheapest and the dearest of a group.
fn extremes(group: &[Order]) -> Option<[(&'static [Step], &Took); 2]> {
    let known = || group.iter().filter_map(|(order, took)| Some((*order, took.as_ref().ok()?)));
    let least = known().min_by_key(|(_, took)| took.median)?;
    let most = known().max_by_key(|(_, took)| took.median)?;
    Some([least, most])
}

pub(super) fn write(out: &mut impl Write, measured: &Measured) -> io::Result<()> {
    let runs = measured.runs;
    writeln!(
        out,
        "\nWhat the first calls of a VM take, by what came before them; median and slowest of \
         {runs} VMs, grace periods as the kernel counts them:"
    )?;
    let mut table = markdown(["call", "after", "time", "slowest", "GPs"], 2..5);
    for ((call, before), took) in &measured.first {
        let named = [call.name().to_owned(), names(before)];
        table.add_row(named.into_iter().chain(cells(took)));
    }
    writeln!(out, "{table}")?;
    writeln!(out, "\nWhat a start takes, by its order (one region, one vCPU, one ioeventfd):")?;
    let mut table = markdown(["order", "time", "slowest", "GPs"], 1..4);
    for (order, took) in measured.orders.iter().flatten() {
        table.add_row([names(order)].into_iter().chain(cells(took)));
    }
    writeln!(out, "{table}\n")?;
    for [(least, cheap), (most, dear)] in measured.orders.iter().filter_map(|g| extremes(g)) {
        let human = |took: &Took| human(took.median.as_nanos() as u64);
        writeln!(out, "least here: {}: {}", names(least), human(cheap))?;
        writeln!(out, "most here:  {}: {}", names(most), human(dear))?;
    }
    writeln!(out, "`memslots bench start` compares whole VMs.")
}

impl Measured {
    /// A line for each row.
    pub(super) fn json(&self) -> Vec<Value> {
        let took = |mut row: Value, took: &Result<Took, String>| {
            let ns = |time: Duration| time.as_nanos() as u64;
            match took {
                Ok(took) => {
                    row["p50_ns"] = ns(took.median).into();
                    row["max_ns"] = ns(took.max).into();
                    row["grace_periods_counted"] = json!(took.counted);
                }
                Err(why) => row["skipped"] = json!(why),
            }
            row
        };
        let names = |steps: &[Step]| steps.iter().map(|step| step.name()).collect::<Vec<_>>();
        let first = self.first.iter().map(|((call, before), measured)| {
            let row = json!({"table": "first_calls", "call": call.name(), "after": names(before)});
            took(row, measured)
        });
        let orders = self.orders.iter().flat_map(|group| {
            let least = extremes(group).map(|[(least, _), _]| least);
            group.iter().map(move |(order, measured)| {
                let least = least == Some(*order);
                took(json!({"table": "orders", "order": names(order), "least": least}), measured)
            })
        });
        first.chain(orders).collect()
    }
}
