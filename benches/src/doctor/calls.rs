//! What single calls take.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kvm_ioctls::VmFd;
use kvm_memslots_shim::kvm::QUIRK_SLOT_ZAP_ALL;
use serde_json::{Value, json};

use crate::compare::{median, percentile};
use crate::report::document::Part;
use crate::report::{human, or_dash};
use kvm_memslots_kit::guest::{BusyVcpus, Work};
use kvm_memslots_kit::host::{HostMemory, Pages, SMALL_PAGE};
use kvm_memslots_kit::machine::{calls_of, new_vm};
use kvm_memslots_kit::raw::set_slot;

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
    new_vm()
        .map_err(Into::into)
        .and_then(|vm| beside(&vm, work))
        .map_err(|error: anyhow::Error| format!("{error:#}"))
}

fn beside(vm: &VmFd, work: Option<Work>) -> Result<Cost> {
    let start = |work| {
        let vcpu = BusyVcpus::start(vm, OWN_SLOT, 1, work)?;
        vcpu.wait_for_progress(Duration::from_secs(10)).map(|()| vcpu)
    };
    let vcpu = work.map(start).transpose()?;
    let cost = time_calls(vm, vcpu.as_ref());
    // Before any memory goes.
    vcpu.map_or(Ok(()), |vcpu| vcpu.stop())?;
    cost
}

fn time_calls(vm: &VmFd, vcpu: Option<&BusyVcpus>) -> Result<Cost> {
    let memory = HostMemory::reserve(u64::from(CALLS) * SMALL_PAGE, Pages::Small)?;
    let call = |slot: u32, memory_size| {
        let offset = u64::from(slot) * SMALL_PAGE;
        let started = Instant::now();
        // SAFETY: the memory outlives the slots, which are deleted below, and the
        // guest does not access it. (Every other page: no two are neighbours.)
        unsafe { set_slot(vm, slot, 2 * offset, memory_size, memory.hva() + offset) }?;
        Ok(started.elapsed().as_nanos() as u64)
    };
    let create = (0..CALLS).map(|slot| call(slot, SMALL_PAGE)).collect::<Result<Vec<_>>>()?;
    let progress = || vcpu.map(|vcpu| vcpu.progress().iter().sum::<u64>());
    let (before, started) = (progress(), Instant::now());
    let delete = (0..CALLS).map(|slot| call(slot, 0)).collect::<Result<Vec<_>>>()?;
    let us = started.elapsed().as_micros().max(1) as u64;
    let pages = before.zip(progress()).map(|(before, after)| after.saturating_sub(before));
    let times = |times| Times::of(times).context("no calls were timed");
    Ok(Cost {
        create: times(create)?,
        delete: times(delete)?,
        pages_a_ms: pages.map(|pages| pages * 1000 / us),
    })
}

/// Deletes of small slots beside a vCPU that touches memory again and again, with
/// and without `KVM_X86_QUIRK_SLOT_ZAP_ALL`; nothing where the kernel has no
/// such quirk.
pub(super) fn quirk() -> Vec<(&'static str, Result<Cost, String>)> {
    let known = new_vm().and_then(|vm| calls_of(&vm)).ok();
    let known = known.filter(|_| cfg!(target_arch = "x86_64")).map_or(0, |kvm| kvm.quirks());
    if known & QUIRK_SLOT_ZAP_ALL == 0 {
        return Vec::new();
    }
    let touched = |disabled| touched(disabled).map_err(|error| format!("{error:#}"));
    vec![("on, as by default", touched(false)), ("disabled", touched(true))]
}

fn touched(disabled: bool) -> Result<Cost> {
    let vm = new_vm()?;
    if disabled {
        calls_of(&vm)?.disable_quirks(QUIRK_SLOT_ZAP_ALL)?;
    }
    let memory = HostMemory::reserve(TOUCHED, Pages::Small)?;
    // SAFETY: the vCPU stops before the memory goes.
    unsafe { set_slot(&vm, TOUCHED_SLOT, TOUCHED_GPA, TOUCHED, memory.hva()) }?;
    beside(&vm, Some(Work::Touch { gpa: TOUCHED_GPA, bytes: TOUCHED }))
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
