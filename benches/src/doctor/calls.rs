//! What single calls take.

use std::fmt;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use kvm_memslots::backend::{Kvm, KvmOptions};
use kvm_memslots::vm_fd;
use kvm_memslots_shim::kvm::QUIRK_SLOT_ZAP_ALL;
use serde_json::{Value, json};

use crate::compare::{median, percentile};
use crate::report::document::Part;
use crate::report::{human, or_dash};
use kvm_memslots_kit::guest::{BusyVcpus, GuestError, Work};
use kvm_memslots_kit::host::{HostMemory, Pages, SMALL_PAGE};
use kvm_memslots_kit::machine::new_vm;

/// Calls of each kind that are timed. With a vCPU that spins for milliseconds
/// under `kvm->srcu`, they still take no more than a second.
pub(super) const CALLS: u32 = 300;

/// The slot of the busy vCPU.
const OWN_SLOT: u16 = CALLS as u16;

/// Memory that a vCPU touches again and again, its slot, and where it is.
const TOUCHED: u64 = 8 << 20;
const TOUCHED_SLOT: u32 = CALLS + 1;
const TOUCHED_GPA: u64 = 1 << 30;

/// What calls take on a VM right now.
#[derive(Debug)]
pub(super) struct Cost {
    pub(super) create: Times,
    pub(super) delete: Times,
    /// How many pages the vCPU touched in a millisecond of deletes.
    pages_a_ms: Option<u64>,
}

/// In nanoseconds.
#[derive(Debug)]
pub(super) struct Times {
    median: u64,
    /// What a burst of calls is made of: the slow ones count too.
    pub(super) mean: u64,
    p99: u64,
}

impl Times {
    fn of(mut times: Vec<u64>) -> Option<Self> {
        times.sort_unstable();
        let mean = times.iter().sum::<u64>() / times.len().max(1) as u64;
        Some(Self { median: median(&times)?, mean, p99: percentile(&times, 99) })
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, mean, p99] = [self.median, self.mean, self.p99].map(human);
        write!(f, "{median} ({mean}, p99 {p99})")
    }
}

/// Times creates and deletes of small slots, beside a vCPU that does `work`.
pub(super) fn cost(work: Option<Work>) -> Result<Cost, String> {
    let vm = new_vm().map_err(|error| error.to_string())?;
    let start = |work| {
        let vcpu = BusyVcpus::start(&vm, OWN_SLOT, 1, work)?;
        vcpu.wait_for_progress(Duration::from_secs(10))?;
        Ok(vcpu)
    };
    let vcpu = work.map(start).transpose().map_err(|error: GuestError| error.to_string())?;
    let cost = time_calls(&vm, vcpu.as_ref())?;
    if let Some(vcpu) = vcpu {
        vcpu.stop().map_err(|error| error.to_string())?;
    }
    Ok(cost)
}

fn time_calls(vm: &VmFd, vcpu: Option<&BusyVcpus>) -> Result<Cost, String> {
    let size = u64::from(CALLS) * SMALL_PAGE;
    let memory = HostMemory::reserve(size, Pages::Small).map_err(|error| error.to_string())?;
    let call = |slot: u32, memory_size| {
        let offset = u64::from(slot) * SMALL_PAGE;
        let started = Instant::now();
        // Every other page, so that no two are neighbours. The memory outlives
        // the slots, which are deleted below, and the guest does not access it.
        set_slot(vm, slot, 2 * offset, memory_size, memory.hva() + offset)?;
        Ok::<_, String>(started.elapsed().as_nanos() as u64)
    };
    let create = (0..CALLS).map(|slot| call(slot, SMALL_PAGE)).collect::<Result<Vec<_>, _>>()?;
    let progress = || vcpu.map(|vcpu| vcpu.progress().iter().sum::<u64>());
    let (before, started) = (progress(), Instant::now());
    let delete = (0..CALLS).map(|slot| call(slot, 0)).collect::<Result<Vec<_>, _>>()?;
    let us = started.elapsed().as_micros().max(1) as u64;
    let pages = before.zip(progress()).map(|(before, after)| after.saturating_sub(before));
    let times = |times| Times::of(times).ok_or("no calls were timed");
    Ok(Cost {
        create: times(create)?,
        delete: times(delete)?,
        pages_a_ms: pages.map(|pages| pages * 1000 / us),
    })
}

fn set_slot(vm: &VmFd, slot: u32, gpa: u64, size: u64, hva: u64) -> Result<(), String> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: hva,
    };
    // SAFETY: callers keep the memory for as long as a vCPU runs, and access it
    // atomically only.
    unsafe { vm.set_user_memory_region(region) }.map_err(|error| error.to_string())
}

/// Deletes of small slots beside a vCPU that touches memory again and again, with
/// and without `KVM_X86_QUIRK_SLOT_ZAP_ALL`; nothing where the kernel has no
/// such quirk.
pub(super) fn quirk() -> Vec<(&'static str, Result<Cost, String>)> {
    let known = new_vm().ok().and_then(|vm| Kvm::open(vm_fd(&vm), KvmOptions::default()).ok());
    let known = known.filter(|_| cfg!(target_arch = "x86_64")).map_or(0, |kvm| kvm.quirks());
    if known & QUIRK_SLOT_ZAP_ALL == 0 {
        return Vec::new();
    }
    vec![("on, as by default", touched(false)), ("disabled", touched(true))]
}

fn touched(disabled: bool) -> Result<Cost, String> {
    let vm = new_vm().map_err(|error| error.to_string())?;
    if disabled {
        let kvm = Kvm::open(vm_fd(&vm), KvmOptions::default());
        let kvm = kvm.map_err(|error| error.to_string())?;
        kvm.disable_quirks(QUIRK_SLOT_ZAP_ALL).map_err(|error| error.to_string())?;
    }
    let memory = HostMemory::reserve(TOUCHED, Pages::Small).map_err(|error| error.to_string())?;
    set_slot(&vm, TOUCHED_SLOT, TOUCHED_GPA, TOUCHED, memory.hva())?;
    let work = Work::Touch { gpa: TOUCHED_GPA, bytes: TOUCHED };
    let vcpu = BusyVcpus::start(&vm, OWN_SLOT, 1, work).map_err(|error| error.to_string())?;
    vcpu.wait_for_progress(Duration::from_secs(10)).map_err(|error| error.to_string())?;
    let cost = time_calls(&vm, Some(&vcpu));
    // Before the memory goes.
    vcpu.stop().map_err(|error| error.to_string())?;
    cost
}

pub(super) fn quirk_parts(rows: &[(&str, Result<Cost, String>)]) -> Vec<Part> {
    if rows.is_empty() {
        return Vec::new();
    }
    let head = format!(
        "What a delete costs a vCPU that touches {} MiB again and again, by \
         KVM_X86_QUIRK_SLOT_ZAP_ALL",
        TOUCHED >> 20
    );
    let header = ["quirk", "delete", "pages touched a ms"].map(str::to_owned).to_vec();
    let row = |(quirk, cost): &(&str, Result<Cost, String>)| {
        let cells = match cost {
            Ok(cost) => [cost.delete.to_string(), or_dash(cost.pages_a_ms)],
            Err(why) => [why.clone(), "-".to_owned()],
        };
        [(*quirk).to_owned()].into_iter().chain(cells).collect()
    };
    vec![Part::Head(head), Part::Table(header, rows.iter().map(row).collect(), 1)]
}

/// A line for programs.
pub(super) fn json(table: &str, row: &str, cost: Result<&Cost, &String>) -> Value {
    let times =
        |times: &Times| json!({"p50_ns": times.median, "mean_ns": times.mean, "p99_ns": times.p99});
    match cost {
        Ok(cost) => json!({
            "table": table, "row": row, "create": times(&cost.create),
            "delete": times(&cost.delete), "pages_a_ms": cost.pages_a_ms,
        }),
        Err(why) => json!({"table": table, "row": row, "skipped": why}),
    }
}
