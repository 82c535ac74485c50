//! What the first calls of a VM wait for, and the order that costs least.

use std::io;

use serde_json::{Value, json};

use crate::compare::{Row, Session, Shape, Stop, Taken, Watch, Way};
use crate::report::document::Part;
use crate::report::{human, or_dash};
use crate::start::{Parts, Step};
use kvm_memslots_kit::grace::GraceCounter;
use kvm_memslots_kit::machine::new_vm;

use Step::{Ioeventfd, Memory, Vcpus};
#[cfg(target_arch = "x86_64")]
use Step::{Irqchip, Pit, SplitIrqchip, Tss};

/// The steps that are timed, and what comes before them.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Steps(&'static [Step], &'static [Step]);

impl Way for Steps {
    fn name(self) -> String {
        names(self.0)
    }
}

#[cfg(target_arch = "x86_64")]
const FIRST_CALLS: &[Steps] = &[
    Steps(&[Memory], &[]),
    Steps(&[Memory], &[Tss]),
    Steps(&[Memory], &[Irqchip]),
    Steps(&[Memory], &[Irqchip, Pit]),
    Steps(&[Memory], &[SplitIrqchip]),
    Steps(&[Memory], &[Irqchip, Vcpus]),
    Steps(&[Memory], &[SplitIrqchip, Vcpus]),
    Steps(&[Memory], &[Ioeventfd]),
    Steps(&[Irqchip], &[]),
    Steps(&[Irqchip], &[Memory]),
    Steps(&[Pit], &[Irqchip]),
    Steps(&[Pit], &[Memory, Irqchip]),
    Steps(&[Ioeventfd], &[]),
    Steps(&[Ioeventfd], &[Memory]),
    Steps(&[Ioeventfd], &[Memory, Irqchip]),
    Steps(&[Vcpus], &[]),
    Steps(&[Vcpus], &[Irqchip]),
    Steps(&[Vcpus], &[SplitIrqchip]),
    Steps(&[Vcpus], &[Memory, Irqchip]),
    Steps(&[Vcpus], &[Memory, SplitIrqchip]),
];
#[cfg(not(target_arch = "x86_64"))]
const FIRST_CALLS: &[Steps] = &[
    Steps(&[Memory], &[]),
    Steps(&[Memory], &[Vcpus]),
    Steps(&[Memory], &[Ioeventfd]),
    Steps(&[Ioeventfd], &[]),
    Steps(&[Ioeventfd], &[Memory]),
    Steps(&[Vcpus], &[]),
    Steps(&[Vcpus], &[Memory]),
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

/// What was found, a row for each of what was measured, in its order.
pub(super) struct Measured {
    runs: usize,
    first: Vec<Row>,
    orders: Vec<Vec<Row>>,
}

impl Measured {
    pub(super) fn new(runs: u32, counter: Option<GraceCounter>) -> Self {
        let mut session = Session {
            runs: runs as usize,
            pin: true,
            calls: counter,
            machine: None,
            on_run: &mut |_| (),
            on_rows: &mut |_| (),
        };
        let first = compare(&mut session, "first call", FIRST_CALLS);
        let orders = ORDERS.iter().map(|group| {
            let orders: Vec<Steps> = group.iter().map(|order| Steps(order, &[])).collect();
            compare(&mut session, "a start", &orders)
        });
        let orders = orders.collect();
        Self { runs: runs as usize, first, orders }
    }
}

fn compare(session: &mut Session<'_>, what: &str, ways: &[Steps]) -> Vec<Row> {
    let shape = Shape { what: what.to_owned(), size: 1, unit: "vCPU", more: Vec::new() };
    let rows = session.rows(&[shape], ways, ways, |way, watch| {
        run(way, watch).map_err(|error| Stop::<()>::Skip(error.to_string()))
    });
    rows.unwrap_or_default()
}

/// The steps that are timed, after those before, on a new VM.
fn run(Steps(steps, before): Steps, watch: &mut Watch<'_>) -> io::Result<Vec<Taken>> {
    let mut parts = Parts::new(1, 1)?;
    // Dropped before its parts.
    let vm = new_vm()?;
    let mut make =
        |steps: &[Step]| steps.iter().try_for_each(|step| parts.make(*step, &vm).map(drop));
    make(before)?;
    let (made, lap) = watch.lap(|| make(steps));
    drop(vm);
    made.map(|()| vec![Taken { lap, ..Taken::default() }])
}

fn names(steps: &[Step]) -> String {
    let names: Vec<_> = steps.iter().map(|step| step.name()).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

fn cells(row: &Row) -> [String; 3] {
    if let Some(why) = &row.skipped {
        return [why.clone(), "-".to_owned(), "-".to_owned()];
    }
    let [median, slowest] = [row.wall_ns, row.wall_ns_max].map(|ns| or_dash(ns.map(human)));
    [median, slowest, or_dash(row.grace_periods)]
}

/// The cheapest and the dearest of a group.
fn extremes(group: &[Row]) -> Option<[&Row; 2]> {
    let known = || group.iter().filter(|row| row.wall_ns.is_some());
    Some([known().min_by_key(|row| row.wall_ns)?, known().max_by_key(|row| row.wall_ns)?])
}

pub(super) fn parts(measured: &Measured) -> Vec<Part> {
    let runs = measured.runs;
    let header = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let named = |row: &Row| [row.way.clone()].into_iter().chain(cells(row)).collect();
    let first = measured.first.iter().zip(FIRST_CALLS).map(|(row, Steps(_, before))| {
        [row.way.clone(), names(before)].into_iter().chain(cells(row)).collect()
    });
    let mut parts = vec![
        Part::Head(format!(
            "What the first calls of a VM take, by what came before them; median and slowest of \
             {runs} VMs, grace periods as the kernel counts them"
        )),
        Part::Table(header(&["call", "after", "time", "slowest", "GPs"]), first.collect(), 2),
        Part::Head(
            "What a start takes, by its order (one region, one vCPU, one ioeventfd)".to_owned(),
        ),
        Part::Table(
            header(&["order", "time", "slowest", "GPs"]),
            measured.orders.iter().flatten().map(named).collect(),
            1,
        ),
        Part::Said(String::new()),
    ];
    for [least, most] in measured.orders.iter().filter_map(|group| extremes(group)) {
        let time = |row: &Row| or_dash(row.wall_ns.map(human));
        // What tells the groups apart, if there are several.
        let chips = ["split irqchip, ", "irqchip, ", ""];
        let of = chips.into_iter().find(|chip| least.way.contains(chip)).unwrap_or_default();
        // Another order may be as fast within the noise.
        match least.ratios.get(&most.way).filter(|ratio| !ratio.equal) {
            None => parts.push(Part::Said(format!(
                "{of}least here: all orders take the same within the noise"
            ))),
            Some(ratio) => {
                let (cheap, dear) = (time(least), time(most));
                parts.push(Part::Said(format!("{of}least here: {}: {cheap}, {ratio}", least.way)));
                parts.push(Part::Said(format!("{of}most here:  {}: {dear}", most.way)));
            }
        }
    }
    parts.extend(measured.orders.iter().map(|group| Part::Runs(group.clone())));
    parts.push(Part::Said("`memslots bench start` compares whole VMs.".to_owned()));
    parts
}

impl Measured {
    /// A line for each row.
    pub(super) fn json(&self) -> Vec<Value> {
        let said = |mut line: Value, row: &Row| {
            if let Some(why) = &row.skipped {
                line["skipped"] = json!(why);
            } else {
                line["wall_ns"] = json!(row.wall_ns);
                line["wall_ns_max"] = json!(row.wall_ns_max);
                line["grace_periods"] = json!(row.grace_periods);
                line["grace_periods_by"] = json!(row.grace_periods_by);
            }
            line
        };
        let names = |steps: &[Step]| steps.iter().map(|step| step.name()).collect::<Vec<_>>();
        let first = self.first.iter().zip(FIRST_CALLS).map(|(row, Steps(_, before))| {
            said(json!({"table": "first_calls", "call": row.way, "after": names(before)}), row)
        });
        let orders = self.orders.iter().zip(ORDERS).flat_map(|(rows, group)| {
            let least = extremes(rows).map(|[least, _]| least.way.clone());
            rows.iter().zip(*group).map(move |(row, order)| {
                let least = least.as_ref() == Some(&row.way);
                said(json!({"table": "orders", "order": names(order), "least": least}), row)
            })
        });
        first.chain(orders).collect()
    }
}
