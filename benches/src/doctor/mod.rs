//! `memslots doctor`: what this machine offers, what a grace period costs on
//! it, in which order a VM is best started, and what that means.

mod calls;
mod start;

use std::io::{self, Write};

use clap::Args;
use kvm_memslots_shim::uapi::probe::Support;
use serde_json::json;

use crate::grace::GraceCounter;
use crate::guest::Work;
use crate::machine::{KvmOffer, Machine, new_vm};
use crate::report::{human, markdown};
use crate::rig::Busy;
use calls::{CALLS, Cost, cost};

/// What to say.
#[derive(Debug, Clone, Copy, Args)]
pub struct Doctor {
    /// VMs that each order of a start, and each first call, is timed on.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// One JSON object a line instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// Sizes for which the cost is worked out.
const REGIONS: [u64; 4] = [10, 100, 1_000, 9_000];

/// Writes the report to `out`.
///
/// # Errors
/// Those of `out`. What can't be found out is part of the report.
pub fn doctor(args: Doctor, out: &mut impl Write) -> io::Result<()> {
    let machine = Machine::look();
    if args.json {
        return write_json(args, out, &machine);
    }
    write_machine(out, &machine)?;
    let offer = match &machine.kvm {
        Ok(offer) => offer,
        Err(why) => return writeln!(out, "KVM              none: {why}"),
    };
    write_offer(out, offer)?;
    let mut counter = GraceCounter::calibrated(new_vm);
    match &counter {
        Ok(counter) => {
            writeln!(out, "grace periods    counted by {}", counter.method())?;
            writeln!(out, "                 ({})", counter.calibration())?;
        }
        Err(why) => writeln!(out, "grace periods    {why}")?,
    }
    let costs = costs();
    write_costs(out, &costs)?;
    let known: Vec<_> =
        costs.iter().filter_map(|(vcpu, cost)| Some((*vcpu, cost.as_ref().ok()?))).collect();
    write_meaning(out, &known, offer)?;
    calls::write_quirk(out, &calls::quirk())?;
    start::write(out, &start::Measured::new(args.runs, counter.as_mut().ok()))
}

fn costs() -> [(&'static str, Result<Cost, String>); 3] {
    [
        ("none running", cost(None)),
        ("one spinning", cost(Some(Work::Spin))),
        ("one faulting memory in", cost(Some(Busy::Fault.work()))),
    ]
}

/// The same, for programs: each line says in `table` what it is about.
fn write_json(args: Doctor, out: &mut impl Write, machine: &Machine) -> io::Result<()> {
    let mut line = |value: serde_json::Value| writeln!(out, "{value}");
    line(json!({
        "table": "machine", "arch": machine.arch, "cpus": machine.cpus, "kernel": machine.kernel,
        "hz": machine.hz, "preemption": machine.preemption, "srcutree": machine.srcu,
        "virtual_machine": machine.virtual_machine,
        "kvm": machine.kvm.as_ref().ok().and_then(|offer| offer.flavour),
        "no_kvm": machine.kvm.as_ref().err(),
    }))?;
    let Ok(offer) = &machine.kvm else { return Ok(()) };
    let mut counter = GraceCounter::calibrated(new_vm);
    line(json!({
        "table": "kvm", "slots": offer.limits.slots,
        "address_spaces": offer.limits.address_spaces, "max_vcpus": offer.max_vcpus,
        "readonly": offer.limits.readonly, "guest_memfd": offer.limits.guest_memfd,
        "batch": offer.limits.batch, "trap": offer.limits.trap,
        "counted_by": counter.as_ref().ok().map(|counter| counter.method().to_string()),
        "not_counted": counter.as_ref().err().map(ToString::to_string),
    }))?;
    for (vcpu, cost) in costs() {
        line(calls::json("calls", vcpu, cost.as_ref()))?;
    }
    for (quirk, cost) in calls::quirk() {
        line(calls::json("slot_zap_all", quirk, cost.as_ref()))?;
    }
    for value in start::Measured::new(args.runs, counter.as_mut().ok()).json() {
        line(value)?;
    }
    Ok(())
}

fn write_machine(out: &mut impl Write, machine: &Machine) -> io::Result<()> {
    let Machine { kernel, arch, cpus, .. } = machine;
    let place = match machine.virtual_machine {
        Some(true) => ", itself a VM",
        Some(false) => ", bare metal",
        None => "",
    };
    writeln!(out, "machine          {arch}, {cpus} CPUs{place}")?;
    let hz = machine.hz.map_or_else(|| "not known".into(), |hz| hz.to_string());
    let preemption = machine.preemption.as_deref().unwrap_or("not known");
    writeln!(out, "kernel           {kernel}, HZ {hz}, preemption {preemption}")?;
    let srcu: Vec<_> = machine.srcu.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !srcu.is_empty() {
        writeln!(out, "srcutree         {}", srcu.join(" "))?;
    }
    Ok(())
}

fn write_offer(out: &mut impl Write, offer: &KvmOffer) -> io::Result<()> {
    let limits = &offer.limits;
    let flavour = offer.flavour.unwrap_or("flavour not known");
    writeln!(
        out,
        "KVM              {flavour}; {} slots in each of {} address space(s), {} vCPUs a VM",
        limits.slots, limits.address_spaces, offer.max_vcpus
    )?;
    let has = |there: bool| if there { "yes" } else { "no" };
    writeln!(
        out,
        "                 read-only slots {}, guest_memfd {}",
        has(limits.readonly),
        has(limits.guest_memfd)
    )?;
    let batch = match offer.batch {
        Support::Present { max_entries } => format!("yes, up to {max_entries} changes a call"),
        Support::Absent => "no: this kernel has no KVM_SET_USER_MEMORY_REGIONS".into(),
        Support::Impostor { claimed, mismatch } => {
            format!("no: the capability is claimed ({claimed}), but {mismatch}")
        }
    };
    let trap = if offer.limits.trap { "slots can trap" } else { "no" };
    writeln!(out, "trap flag        {trap}")?;
    writeln!(out, "batch ioctl      {batch}")
}

fn write_costs(out: &mut impl Write, costs: &[(&str, Result<Cost, String>)]) -> io::Result<()> {
    writeln!(
        out,
        "\nWhat a memslot call takes now, the median of {CALLS} (mean, 99th percentile):"
    )?;
    let mut table = markdown(["vCPU", "create: 1 grace period", "delete: 2 grace periods"], []);
    for (vcpu, cost) in costs {
        match cost {
            Ok(Cost { create, delete, .. }) => {
                table.add_row([(*vcpu).to_owned(), create.to_string(), delete.to_string()]);
            }
            Err(why) => {
                table.add_row([(*vcpu).to_owned(), why.clone(), String::new()]);
            }
        }
    }
    writeln!(out, "{table}")
}

fn write_meaning(
    out: &mut impl Write,
    costs: &[(&str, &Cost)],
    offer: &KvmOffer,
) -> io::Result<()> {
    writeln!(
        out,
        "\nWhat N regions cost at that rate, one create each, and as one slot or batch:"
    )?;
    let mut header = vec!["N".to_owned()];
    header.extend(costs.iter().map(|(vcpu, _)| format!("vCPU: {vcpu}")));
    let mut table = markdown(header, 0..=costs.len());
    let most = u64::from(offer.limits.slots);
    for regions in REGIONS.into_iter().filter(|n| *n < most).chain([most]) {
        let mut cells = vec![regions.to_string()];
        for (_, cost) in costs {
            let one = cost.create.mean.as_nanos() as u64;
            cells.push(format!("{} / {}", human(one.saturating_mul(regions)), human(one)));
        }
        table.add_row(cells);
    }
    writeln!(out, "{table}")?;
    writeln!(
        out,
        "One call waits for one grace period, whatever it maps; what it allocates a region comes \
         on top.\n`memslots bench` measures both."
    )
}
