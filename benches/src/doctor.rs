//! `memslots doctor`: what this machine offers, what a grace period costs on
//! it, and what that means.

use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use kvm_memslots_shim::uapi::probe::Support;

use crate::bench::median;
use crate::grace::GraceCounter;
use crate::guest::{BusyVcpus, GuestError, Work};
use crate::host::{HostMemory, Pages, SMALL_PAGE};
use crate::machine::{KvmOffer, Machine, new_vm};
use crate::report::{human, markdown};
use crate::rig::Busy;

/// Calls of each kind that are timed. With a vCPU that spins for milliseconds
/// under `kvm->srcu`, they still take no more than a second.
const CALLS: u32 = 300;

/// The slot of the busy vCPU.
const OWN_SLOT: u16 = CALLS as u16;

/// Sizes for which the cost is worked out.
const REGIONS: [u64; 4] = [10, 100, 1_000, 9_000];

/// Writes the report to `out`.
///
/// # Errors
/// Those of `out`. What can't be found out is part of the report.
pub fn doctor(out: &mut impl Write) -> io::Result<()> {
    let machine = Machine::look();
    write_machine(out, &machine)?;
    let offer = match &machine.kvm {
        Ok(offer) => offer,
        Err(why) => return writeln!(out, "KVM              none: {why}"),
    };
    write_offer(out, offer)?;
    match GraceCounter::calibrated(new_vm) {
        Ok(counter) => {
            writeln!(out, "grace periods    counted by {}", counter.method())?;
            writeln!(out, "                 ({})", counter.calibration())?;
        }
        Err(why) => writeln!(out, "grace periods    {why}")?,
    }
    let costs = [
        ("none running", cost(None)),
        ("one spinning", cost(Some(Work::Spin))),
        ("one faulting memory in", cost(Some(Busy::Fault.work()))),
    ];
    write_costs(out, &costs)?;
    let known: Vec<_> =
        costs.iter().filter_map(|(vcpu, cost)| Some((*vcpu, cost.as_ref().ok()?))).collect();
    write_meaning(out, &known, offer)
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

/// What calls take on a VM right now.
#[derive(Debug)]
struct Cost {
    create: Times,
    delete: Times,
}

#[derive(Debug)]
struct Times {
    median: Duration,
    /// What a burst of calls is made of: the slow ones count too.
    mean: Duration,
    p99: Duration,
}

impl Times {
    fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let p99 = *times.get(times.len().saturating_sub(1) * 99 / 100)?;
        let mean = times.iter().sum::<Duration>() / times.len() as u32;
        Some(Self { median: median(&times)?, mean, p99 })
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let human = |time: Duration| human(time.as_nanos() as u64);
        let Self { median, mean, p99 } = *self;
        write!(f, "{} ({}, p99 {})", human(median), human(mean), human(p99))
    }
}

/// Times creates and deletes of small slots, beside a vCPU that does `work`.
fn cost(work: Option<Work>) -> Result<Cost, String> {
    let vm = new_vm().map_err(|error| error.to_string())?;
    let start = |work| {
        let vcpu = BusyVcpus::start(&vm, OWN_SLOT, 1, work)?;
        vcpu.wait_for_progress(Duration::from_secs(10))?;
        Ok(vcpu)
    };
    let vcpu = work.map(start).transpose().map_err(|error: GuestError| error.to_string())?;
    let cost = time_calls(&vm)?;
    if let Some(vcpu) = vcpu {
        vcpu.stop().map_err(|error| error.to_string())?;
    }
    Ok(cost)
}

fn time_calls(vm: &VmFd) -> Result<Cost, String> {
    let size = u64::from(CALLS) * SMALL_PAGE;
    let memory = HostMemory::reserve(size, Pages::Small).map_err(|error| error.to_string())?;
    let call = |slot: u32, memory_size| {
        let offset = u64::from(slot) * SMALL_PAGE;
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            // Every other page, so that no two are neighbours.
            guest_phys_addr: 2 * offset,
            memory_size,
            userspace_addr: memory.hva() + offset,
        };
        let started = Instant::now();
        // SAFETY: the memory outlives the slots, which are deleted below, and
        // the guest does not access it.
        unsafe { vm.set_user_memory_region(region) }.map_err(|error| error.to_string())?;
        Ok::<_, String>(started.elapsed())
    };
    let create = (0..CALLS).map(|slot| call(slot, SMALL_PAGE)).collect::<Result<Vec<_>, _>>()?;
    let delete = (0..CALLS).map(|slot| call(slot, 0)).collect::<Result<Vec<_>, _>>()?;
    let times = |times| Times::of(times).ok_or("no calls were timed");
    Ok(Cost { create: times(create)?, delete: times(delete)? })
}

fn write_costs(out: &mut impl Write, costs: &[(&str, Result<Cost, String>)]) -> io::Result<()> {
    writeln!(
        out,
        "\nWhat a memslot call takes now, the median of {CALLS} (mean, 99th percentile):"
    )?;
    let mut table = markdown(["vCPU", "create: 1 grace period", "delete: 2 grace periods"], []);
    for (vcpu, cost) in costs {
        match cost {
            Ok(Cost { create, delete }) => {
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
