//! A trace on real KVM: the comparison that `memslots replay` prints.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{skip, vm_or_skip};
use kvm_memslots_bench::compare::{Session, ways};
use kvm_memslots_bench::replay::{Replay, Strategy};
use kvm_memslots_bench::trace::import_from;
use kvm_memslots_kit::grace::GraceCounter;
use kvm_memslots_kit::machine::new_vm;

/// A boot of real UEFI on arm64 under QEMU 7.2. In the program, as the lab has
/// no files.
const UEFI: &[u8] = include_bytes!("data/traces/qemu-7.2-aarch64-uefi-boot.trace.gz");

#[test]
fn the_uefi_boot_on_real_kvm() {
    let test = "the_uefi_boot_on_real_kvm";
    if vm_or_skip(test).is_none() {
        return;
    }
    let counter = GraceCounter::calibrated(new_vm);
    if let Err(why) = &counter {
        skip(test, why);
    }
    let strategies = ways::<Strategy>(&[]);
    let count = strategies.len();
    let replay = Replay { strategies, gap: Some(Duration::from_micros(100)), churn_after: 2 };
    let trace = import_from("the UEFI boot", UEFI, None).unwrap();
    let mut rows = Vec::new();
    let mut session = Session {
        runs: 1,
        pin: true,
        calls: counter.ok(),
        machine: None,
        on_run: &mut |_| (),
        on_rows: &mut |new| rows.extend(new),
    };
    replay.run(&trace, &mut session).unwrap();
    drop(session);
    assert_eq!(rows.len(), count);
    for row in rows {
        if let Some(why) = &row.skipped {
            assert!(["trap", "batch"].contains(&row.way.as_str()), "{row:?}");
            skip(test, format_args!("{}: {why}", row.way));
            continue;
        }
        let expected = match row.way.as_str() {
            "per-region" | "shim" => (894, 0, 1339),
            "trap" => (894, 882, 17),
            "deferred" => (13, 0, 18),
            _ => (894, 0, 894),
        };
        if row.way == "batch" {
            // A kernel may need fewer than the ABI allows.
            assert_eq!(row.ioctls, Some(expected.0), "{row:?}");
            assert!(row.grace_periods <= row.grace_periods_planned, "{row:?}");
        } else {
            let got =
                (row.ioctls.unwrap(), row.number("flips").unwrap(), row.grace_periods.unwrap());
            assert_eq!(got, expected, "{row:?}");
            assert!(row.way != "trap" || row.grace_periods == row.grace_periods_planned, "{row:?}");
        }
        assert_eq!(row.note.is_some(), row.way == "deferred");
        assert!(row.wall_ns.unwrap() > 0);
    }
}
