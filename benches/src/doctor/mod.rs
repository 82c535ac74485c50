//! `memslots doctor`: what this machine offers, what a grace period costs on
//! it, in which order a VM is best started, and what that means.

mod calls;
mod start;

use clap::Args;
use kvm_memslots_shim::uapi::probe::Support;
use serde_json::{Value, json};

use crate::report::document::Part;
use crate::report::human;
use crate::rig::Busy;
use calls::{CALLS, Cost, cost};
use kvm_memslots_kit::grace::{GraceCounter, NotCounted};
use kvm_memslots_kit::guest::Work;
use kvm_memslots_kit::machine::{KvmOffer, Machine, new_vm};

/// What to measure.
#[derive(Debug, Clone, Copy, Args)]
pub struct Doctor {
    /// VMs that each order of a start, and each first call, is timed on.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
}

/// Sizes for which the cost is worked out.
const REGIONS: [u64; 4] = [10, 100, 1_000, 9_000];

/// What was found. What can't be found out is part of it.
pub struct Findings {
    machine: Machine,
    /// `None` without KVM.
    kvm: Option<OnKvm>,
}

type Costs = Vec<(&'static str, Result<Cost, String>)>;

struct OnKvm {
    offer: KvmOffer,
    /// How grace periods are counted, and what says that this is right.
    counted: Result<(String, String), String>,
    costs: Costs,
    quirk: Costs,
    start: start::Measured,
}

impl Findings {
    /// Looks and measures.
    #[must_use]
    pub fn new(args: Doctor) -> Self {
        let machine = Machine::look();
        let kvm = machine.kvm.as_ref().ok().map(|offer| {
            let counter = GraceCounter::calibrated(new_vm);
            let said = |counter: &GraceCounter| {
                (counter.method().to_string(), counter.calibration().to_string())
            };
            OnKvm {
                offer: offer.clone(),
                counted: counter.as_ref().map(said).map_err(NotCounted::to_string),
                costs: costs(),
                quirk: calls::quirk(),
                start: start::Measured::new(args.runs, counter.ok()),
            }
        });
        Self { machine, kvm }
    }

    /// For people.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        let mut facts = machine_facts(&self.machine);
        let Some(kvm) = &self.kvm else {
            let why = self.machine.kvm.as_ref().err().cloned().unwrap_or_default();
            facts.push(("KVM", format!("none: {why}")));
            return vec![Part::Facts(facts)];
        };
        facts.extend(offer_facts(&kvm.offer));
        match &kvm.counted {
            Ok((method, calibration)) => facts.extend([
                ("grace periods", format!("counted by {method}")),
                ("", format!("({calibration})")),
            ]),
            Err(why) => facts.push(("grace periods", why.clone())),
        }
        let mut parts = vec![Part::Facts(facts)];
        parts.extend(cost_parts(&kvm.costs));
        parts.extend(meaning(&kvm.costs, &kvm.offer));
        parts.extend(calls::quirk_parts(&kvm.quirk));
        parts.extend(start::parts(&kvm.start));
        parts
    }

    /// For programs: each says in `table` what it is about.
    #[must_use]
    pub fn json(&self) -> Vec<Value> {
        let Machine { arch, cpus, kernel, hz, preemption, srcu, virtual_machine, .. } =
            &self.machine;
        let offer = self.machine.kvm.as_ref();
        let mut lines = vec![json!({
            "table": "machine", "arch": arch, "cpus": cpus, "kernel": kernel, "hz": hz,
            "preemption": preemption, "srcutree": srcu, "virtual_machine": virtual_machine,
            "kvm": offer.ok().and_then(|offer| offer.flavour), "no_kvm": offer.err(),
        })];
        let Some(OnKvm { offer, counted, costs, quirk, start }) = &self.kvm else { return lines };
        lines.push(json!({
            "table": "kvm", "slots": offer.limits.slots,
            "address_spaces": offer.limits.address_spaces, "max_vcpus": offer.max_vcpus,
            "readonly": offer.limits.readonly, "guest_memfd": offer.limits.guest_memfd,
            "batch": offer.limits.batch, "trap": offer.limits.trap,
            "counted_by": counted.as_ref().ok().map(|(method, _)| method),
            "not_counted": counted.as_ref().err(),
        }));
        for (table, costs) in [("calls", costs), ("slot_zap_all", quirk)] {
            lines.extend(costs.iter().map(|(row, cost)| calls::json(table, row, cost.as_ref())));
        }
        lines.extend(start.json());
        lines
    }
}

fn costs() -> Costs {
    vec![
        ("none running", cost(None)),
        ("one spinning", cost(Some(Work::Spin))),
        ("one faulting memory in", cost(Some(Busy::Fault.work()))),
    ]
}

fn machine_facts(machine: &Machine) -> Vec<(&'static str, String)> {
    let Machine { kernel, arch, cpus, .. } = machine;
    let place = machine.place();
    let hz = machine.hz.map_or_else(|| "not known".into(), |hz| hz.to_string());
    let preemption = machine.preemption.as_deref().unwrap_or("not known");
    let mut facts = vec![
        ("machine", format!("{arch}, {cpus} CPUs{place}")),
        ("kernel", format!("{kernel}, HZ {hz}, preemption {preemption}")),
    ];
    let srcu: Vec<_> = machine.srcu.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !srcu.is_empty() {
        facts.push(("srcutree", srcu.join(" ")));
    }
    facts
}

fn offer_facts(offer: &KvmOffer) -> Vec<(&'static str, String)> {
    let limits = &offer.limits;
    let flavour = offer.flavour.unwrap_or("flavour not known");
    let has = |there: bool| if there { "yes" } else { "no" };
    let batch = match offer.batch {
        Support::Present { max_entries } => format!("yes, up to {max_entries} changes a call"),
        Support::Absent => "no: this kernel has no KVM_SET_USER_MEMORY_REGIONS".into(),
        Support::Impostor { claimed, mismatch } => {
            format!("no: the capability is claimed ({claimed}), but {mismatch}")
        }
    };
    let trap = if limits.trap { "slots can trap" } else { "no" };
    let (readonly, memfd) = (has(limits.readonly), has(limits.guest_memfd));
    vec![
        (
            "KVM",
            format!(
                "{flavour}; {} slots in each of {} address space(s), {} vCPUs a VM",
                limits.slots, limits.address_spaces, offer.max_vcpus
            ),
        ),
        ("", format!("read-only slots {readonly}, guest_memfd {memfd}")),
        ("trap flag", trap.to_owned()),
        ("batch ioctl", batch),
    ]
}

fn cost_parts(costs: &[(&str, Result<Cost, String>)]) -> [Part; 2] {
    let header = ["vCPU", "create: 1 grace period", "delete: 2 grace periods"];
    let row = |(vcpu, cost): &(&str, Result<Cost, String>)| {
        let cells = match cost {
            Ok(Cost { create, delete, .. }) => [create.to_string(), delete.to_string()],
            Err(why) => [why.clone(), String::new()],
        };
        [(*vcpu).to_owned()].into_iter().chain(cells).collect()
    };
    let head =
        format!("What a memslot call takes now, the median of {CALLS} (mean, 99th percentile)");
    let header = header.map(str::to_owned).to_vec();
    [Part::Head(head), Part::Table(header, costs.iter().map(row).collect(), 1)]
}

fn meaning(costs: &[(&str, Result<Cost, String>)], offer: &KvmOffer) -> [Part; 3] {
    let known = || costs.iter().filter_map(|(vcpu, cost)| Some((vcpu, cost.as_ref().ok()?)));
    let mut header = vec!["N".to_owned()];
    header.extend(known().map(|(vcpu, _)| format!("vCPU: {vcpu}")));
    let most = u64::from(offer.limits.slots);
    let row = |regions: u64| {
        let mut cells = vec![regions.to_string()];
        cells.extend(known().map(|(_, cost)| {
            let one = cost.create.mean;
            format!("{} / {}", human(one.saturating_mul(regions)), human(one))
        }));
        cells
    };
    let sizes = REGIONS.into_iter().filter(|n| *n < most).chain([most]);
    let said = "One call waits for one grace period, whatever it maps; what it allocates a region \
                comes on top.\n`memslots bench` measures both.";
    let head = "What N regions cost at that rate, one create each, and as one slot or batch";
    [
        Part::Head(head.to_owned()),
        Part::Table(header, sizes.map(row).collect(), 1),
        Part::Said(said.to_owned()),
    ]
}
