//! The preload library under a VMM that knows nothing of it: this test binary,
//! run once more with `LD_PRELOAD`.
//!
//! The VMM churns a slot under a real guest and checks every value that the
//! guest sees; then the statistics of the library are looked at.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
#[cfg(target_arch = "x86_64")]
mod executed;
mod flash;
mod vmm;

use std::path::{Path, PathBuf};
#[cfg(target_arch = "x86_64")]
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use flash::Flash;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
#[cfg(target_arch = "x86_64")]
use kvm_memslots_kit::host::{HostMemory, Pages, SMALL_PAGE};
use vmm::{Run, as_vmm};

/// Cycles of command mode and array mode.
const CYCLES: u64 = 200;

/// The library that cargo built beside this test, the latest of its kind.
fn library() -> Option<PathBuf> {
    let dir = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libkvm_memslots_preload") && name.ends_with(".so")
    };
    let built = |path: &PathBuf| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let beside = |dir: &Path| {
        let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        files.filter(is_ours).max_by_key(built)
    };
    beside(&dir).or_else(|| beside(dir.parent()?))
}

/// A VMM that does nothing else.
fn churn(run: &Run, flags: u32) -> Option<()> {
    Flash::with_flags(run, flags)?.cycle(CYCLES);
    Some(())
}

/// As many calls, and all of them KVM's.
#[test]
fn counting_changes_nothing() {
    let run = Run::new("counting_changes_nothing", &[("KVM_MEMSLOTS_PRELOAD", "count")]);
    let Some(stats) = as_vmm(&run, || churn(&run, KVM_MEM_READONLY)) else { return };
    // And the slot's first creation, and the guest's own.
    assert_eq!(stats["asked"], 2 * CYCLES + 2);
    assert_eq!(stats["calls"], 2 * CYCLES + 2);
    assert_eq!(stats["deferred"], 0);
}

/// Six in ten cycles read nothing in array mode, and cost no call; of the others
/// some read a little, and some so much that the slot is mapped.
#[test]
fn a_slot_that_churns_is_deferred() {
    let run = Run::new(
        "a_slot_that_churns_is_deferred",
        &[("KVM_MEMSLOTS_PRELOAD", "defer"), ("KVM_MEMSLOTS_PRELOAD_POLICY", "fixed:16")],
    );
    let Some(stats) = as_vmm(&run, || churn(&run, KVM_MEM_READONLY)) else { return };
    assert_eq!(stats["asked"], 2 * CYCLES + 2);
    assert_eq!(stats["deferred"], CYCLES - 2);
    let mapped = stats["mapped"].as_u64().unwrap();
    assert_eq!(mapped, stats["promoted_by_exits"].as_u64().unwrap());
    assert!((CYCLES / 10 - 1..=CYCLES / 10).contains(&mapped), "{stats}");
    // The first, two pairs, a removal; then one to map and one to remove.
    let calls = stats["calls"].as_u64().unwrap();
    assert!((7 + 2 * mapped - 1..=7 + 2 * mapped).contains(&calls), "{stats}");
    assert!(stats["reads"].as_u64().unwrap() >= 16 * mapped, "{stats}");
    assert_eq!(stats["switched_off"].as_array().unwrap().len(), 0);
}

/// By what exits and calls cost here, whatever that is.
#[test]
fn rent_or_buy() {
    let run = Run::new("rent_or_buy", &[("KVM_MEMSLOTS_PRELOAD", "defer")]);
    let Some(stats) = as_vmm(&run, || churn(&run, KVM_MEM_READONLY)) else { return };
    assert_eq!(stats["deferred"], CYCLES - 2);
    assert!(stats["calls"].as_u64().unwrap() < 2 * CYCLES, "{stats}");
    assert!(stats["unused"].as_u64().unwrap() >= CYCLES * 6 / 10 - 3, "{stats}");
}

/// Where the kernel has no trap bit, `trap` leaves all as it is.
#[test]
fn the_trap_bit() {
    let run = Run::new("the_trap_bit", &[("KVM_MEMSLOTS_PRELOAD", "trap")]);
    let Some(stats) = as_vmm(&run, || churn(&run, KVM_MEM_READONLY)) else { return };
    assert_eq!(stats["asked"], 2 * CYCLES + 2);
    if stats["flips"] == 0 {
        common::skip("the_trap_bit", "this kernel has no KVM_MEM_TRAP");
        assert_eq!(stats["calls"], 2 * CYCLES + 2);
    } else {
        // The first, one pair, and the guest's own; all else by flips.
        assert_eq!(stats["calls"], 4);
        assert_eq!(stats["flips"], 2 * CYCLES - 2);
    }
}

/// The guest may write, and the VMM does not ask for that to be served.
#[test]
fn writable_slots_are_left_alone() {
    let run = Run::new("writable_slots_are_left_alone", &[("KVM_MEMSLOTS_PRELOAD", "defer")]);
    let Some(stats) = as_vmm(&run, || churn(&run, 0)) else { return };
    assert_eq!(stats["calls"], 2 * CYCLES + 2);
    assert_eq!(stats["deferred"], 0);
}

#[test]
fn writable_slots_if_that_is_asked_for() {
    let run = Run::new(
        "writable_slots_if_that_is_asked_for",
        &[
            ("KVM_MEMSLOTS_PRELOAD", "defer"),
            ("KVM_MEMSLOTS_PRELOAD_WRITABLE", "1"),
            ("KVM_MEMSLOTS_PRELOAD_POLICY", "fixed:16"),
        ],
    );
    let Some(stats) = as_vmm(&run, || churn(&run, 0)) else { return };
    assert_eq!(stats["deferred"], CYCLES - 2);
    assert!(stats["writes"].as_u64().unwrap() > 0, "{stats}");
}

/// A slot that is deferred when the VMM switches logging on: it gets a log, and is
/// deferred again when it has churned again.
#[test]
fn dirty_logging_finds_the_slot() {
    let run = Run::new("dirty_logging_finds_the_slot", &[("KVM_MEMSLOTS_PRELOAD", "defer")]);
    let stats = as_vmm(&run, || {
        let mut flash = Flash::new(&run)?;
        flash.cycle(10);
        flash.remap(KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES);
        flash.vm.get_dirty_log(flash::SLOT, flash::SIZE as usize).unwrap();
        flash.remap(KVM_MEM_READONLY);
        flash.cycle(10);
        Some(())
    });
    let Some(stats) = stats else { return };
    assert_eq!(stats["switched_off"].as_array().unwrap().len(), 0, "{stats}");
    assert_eq!(stats["deferred"], 8 + 8);
    let slots = &stats["by_vm"][0]["slots"];
    assert_eq!((&slots[0]["slot"], &slots[0]["churns"]), (&flash::SLOT.into(), &true.into()));
}

/// A descriptor that comes by a way that nobody looks at, here past the C
/// library, is the same VM's.
#[test]
fn a_descriptor_from_elsewhere_is_the_same_vm() {
    let run = Run::new(
        "a_descriptor_from_elsewhere_is_the_same_vm",
        &[("KVM_MEMSLOTS_PRELOAD", "defer")],
    );
    let stats = as_vmm(&run, || {
        let mut flash = Flash::new(&run)?;
        flash.cycle(10);
        let mut flash = flash.by_unknown_descriptor();
        flash.cycle(10);
        Some(())
    });
    let Some(stats) = stats else { return };
    assert_eq!(stats["deferred"], 18);
    assert_eq!(stats["switched_off"].as_array().unwrap().len(), 0);
}

/// So is one by `dup`, with the first one closed.
#[test]
fn a_second_descriptor_is_the_same_vm() {
    let run = Run::new("a_second_descriptor_is_the_same_vm", &[("KVM_MEMSLOTS_PRELOAD", "defer")]);
    let stats = as_vmm(&run, || {
        let mut flash = Flash::new(&run)?;
        flash.cycle(10);
        flash.change_descriptor();
        flash.cycle(10);
        Some(())
    });
    let Some(stats) = stats else { return };
    assert_eq!(stats["deferred"], 18);
    assert_eq!(stats["switched_off"].as_array().unwrap().len(), 0);
}

/// A child is none of the library's business: neither its end nor what it
/// closes.
#[test]
fn a_fork_changes_nothing() {
    let run = Run::new("a_fork_changes_nothing", &[("KVM_MEMSLOTS_PRELOAD", "defer")]);
    let stats = as_vmm(&run, || {
        let mut flash = Flash::new(&run)?;
        flash.cycle(10);
        vmm::fork_and_exit();
        assert!(std::process::Command::new("true").status().unwrap().success());
        flash.cycle(10);
        Some(())
    });
    let Some(stats) = stats else { return };
    assert_eq!(stats["asked"], 42);
    assert_eq!(stats["deferred"], 18);
    assert_eq!(stats["switched_off"].as_array().unwrap().len(), 0);
}

/// KVM does not emulate a fetch from where nothing is, and would give the guest an
/// exception: the slot is mapped, and the vCPU goes on.
#[cfg(target_arch = "x86_64")]
#[test]
fn code_runs_in_a_slot_that_was_deferred() {
    let run =
        Run::new("code_runs_in_a_slot_that_was_deferred", &[("KVM_MEMSLOTS_PRELOAD", "defer")]);
    let stats = as_vmm(&run, || {
        let mut flash = Flash::new(&run)?;
        flash.write(0, &executed::CODE);
        flash.cycle_quietly(10);
        let mut vcpu = executed::vcpu(&flash.vm, flash::GPA, 0);
        for _ in 0..20 {
            let read = executed::run(&mut vcpu, 0);
            assert_eq!(read.unwrap()[..5], executed::READ);
            flash.cycle_quietly(1);
        }
        Some(())
    });
    let Some(stats) = stats else { return };
    assert_eq!(stats["promoted_by_undecodable"], 20, "{stats}");
    assert_eq!(stats["mapped"], 20);
    assert_eq!(stats["deferred"], 28);
}

/// Where nothing is deferred, a fetch that fails ends the guest, as it does
/// without the library: with an exit that says so, or by the exception that KVM
/// makes of it, for which this guest has no handler.
#[cfg(target_arch = "x86_64")]
#[test]
fn code_does_not_run_where_nothing_is() {
    let name = "code_does_not_run_where_nothing_is";
    let runs = [
        Run::new(name, &[("KVM_MEMSLOTS_PRELOAD", "count")]),
        Run::new(name, &[("KVM_MEMSLOTS_PRELOAD", "defer")]),
    ];
    let ends = runs.map(|run| {
        let stats = as_vmm(&run, || {
            let mut flash = Flash::new(&run)?;
            flash.cycle_quietly(10);
            flash.unmap();
            let mut vcpu = executed::vcpu(&flash.vm, flash::GPA, 0);
            vmm::say(&executed::run(&mut vcpu, 0).unwrap_err());
            Some(())
        });
        stats.map(|stats| stats["note"].clone())
    });
    for end in ends.iter().flatten() {
        assert!(end == "Shutdown" || end == "InternalError", "{end}");
    }
}

/// A vCPU reads while another thread takes the array away, programs it and brings
/// it back: it sees the device, or a value of the array that is not older than
/// one it has seen.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_vcpu_reads_while_the_slot_churns() {
    const BUSY: u64 = u64::MAX;
    let run = Run::new(
        "a_vcpu_reads_while_the_slot_churns",
        &[("KVM_MEMSLOTS_PRELOAD", "defer"), ("KVM_MEMSLOTS_PRELOAD_POLICY", "fixed:3")],
    );
    let stats = as_vmm(&run, || {
        let flash = Flash::new(&run)?;
        let code = HostMemory::reserve(SMALL_PAGE, Pages::Small).unwrap();
        code.write_bytes(0, &executed::LOOP);
        let start = flash::GPA + flash::SIZE;
        common::set_slot(&flash.vm, flash::SLOT + 1, start, SMALL_PAGE, &code, KVM_MEM_READONLY);
        let mut vcpu = executed::vcpu(&flash.vm, start, flash::GPA);
        let (done, runs) = (AtomicBool::new(false), AtomicU64::new(0));
        // On a busy machine the vCPU's thread may sleep through all of it.
        let let_it_run = || {
            let (goal, start) = (runs.load(Ordering::Relaxed) + 8, Instant::now());
            while runs.load(Ordering::Relaxed) < goal && start.elapsed() < Duration::from_mins(1) {
                std::thread::sleep(Duration::from_micros(100));
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut newest = 0;
                while !done.load(Ordering::Relaxed) {
                    let read = u64::from_le_bytes(executed::run(&mut vcpu, BUSY).unwrap());
                    runs.fetch_add(1, Ordering::Relaxed);
                    match read {
                        BUSY => {}
                        value => {
                            assert!(value >= newest, "{value} after {newest}");
                            newest = value;
                        }
                    }
                }
            });
            for value in 1..500_u64 {
                flash.unmap();
                flash.write(0, &value.to_le_bytes());
                flash.map();
                if value % 8 == 0 {
                    let_it_run();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        Some(())
    });
    let Some(stats) = stats else { return };
    // Not while the vCPU is in the guest from before anything was deferred.
    let deferred = stats["deferred"].as_u64().unwrap();
    assert!((1..=499 - 2).contains(&deferred), "{stats}");
    assert!(
        stats["mapped"].as_u64().unwrap() > 0 && stats["reads"].as_u64().unwrap() > 0,
        "{stats}"
    );
}

/// Several VMs, one after the other and side by side, some of them closed with
/// slots deferred.
#[test]
fn several_vms() {
    let run = Run::new("several_vms", &[("KVM_MEMSLOTS_PRELOAD", "defer")]);
    let stats = as_vmm(&run, || {
        for _ in 0..3 {
            let (mut one, mut other) = (Flash::new(&run)?, Flash::new(&run)?);
            one.cycle(10);
            other.cycle(10);
            one.cycle(10);
        }
        Some(())
    });
    let Some(stats) = stats else { return };
    assert_eq!((&stats["vms"], &stats["vcpus"]), (&6.into(), &6.into()));
    assert_eq!(stats["asked"], 3 * (42 + 22));
    assert_eq!(stats["deferred"], 3 * (18 + 8));
}

/// Said, and nothing done.
#[test]
fn settings_that_are_wrong() {
    let run = Run::new("settings_that_are_wrong", &[("KVM_MEMSLOTS_PRELOAD", "on")]);
    as_vmm(&run, || churn(&run, KVM_MEM_READONLY));
}
