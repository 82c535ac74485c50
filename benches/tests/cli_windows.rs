//! `memslots bench window`, and the rows of `memslots bench devices` that have
//! BARs in a window, as a user runs them.
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::{skip, vm_or_skip};
use kvm_memslots_kit::guest::{GuestError, Prober};
use serde_json::{Map, Value};

type Row = Map<String, Value>;

fn rows(args: &str) -> Vec<Row> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memslots"));
    let output = command.args(args.split_whitespace()).arg("--json").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args}: {}: {said}", output.status);
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(row: &Row, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("{key}: {row:?}"))
}

#[test]
fn blobs_come_and_go_in_every_way() {
    let test = "blobs_come_and_go_in_every_way";
    let Some(vm) = vm_or_skip(test) else { return };
    if let Err(error @ GuestError::Unsupported) = Prober::new(&vm, 1) {
        return skip(test, error);
    }
    drop(vm);
    let found = rows(
        "bench window --runs 2 --sizes 4,64 --live 4 --pairs 12 --vcpus 1 --busy spin --sleep 0",
    );
    let names: Vec<_> =
        found.iter().map(|row| (number(row, "size"), row["way"].as_str().unwrap())).collect();
    let ways = ["slots", "changes", "window", "mmap"];
    let expected = [4, 64].into_iter().flat_map(|size| ways.map(|way| (size, way)));
    assert_eq!(names, expected.collect::<Vec<_>>());
    for row in &found {
        assert_eq!(
            (number(row, "live"), &row["guest"], &row["unit"]),
            (4, &"1 busy".into(), &"KiB".into())
        );
        let (pairs, p50, p99) =
            (number(row, "pairs"), number(row, "pair_p50_ns"), number(row, "pair_p99_ns"));
        assert!((1..=24).contains(&pairs) && 0 < p50 && p50 <= p99, "{row:?}");
        let compared = row["ratios"].as_object().unwrap();
        assert_eq!(compared.contains_key("slots"), row["way"] != "slots", "{row:?}");
        // A create waits for one, a delete for two; a window for none.
        let waits = if row["way"] == "window" || row["way"] == "mmap" { 0 } else { 3 };
        let counted = row["grace_periods"].as_u64();
        assert!(counted.is_none_or(|counted| counted == waits), "{row:?}");
    }
}

#[cfg(target_arch = "x86_64")]
mod devices {
    use super::{Row, number, rows};
    use crate::common::vm_or_skip;

    fn costs(rows: &[Row], pass: &str, way: &str) -> [u64; 4] {
        let found = rows.iter().find(|row| row["pass"] == pass && row["way"] == way);
        let row = found.unwrap_or_else(|| panic!("no {pass} {way}"));
        let keys = ["ioctls", "routing_calls", "grace_periods_planned", "in_ioeventfd_deassign"];
        keys.map(|key| number(row, key))
    }

    #[test]
    fn bars_in_a_window_take_no_slots() {
        let test = "bars_in_a_window_take_no_slots";
        if vm_or_skip(test).is_none() {
            return;
        }
        let found = rows("bench devices --runs 1 --vcpus 0 --scattered --way together,window");
        // 64 doorbells, 256 vectors, one table of routes.
        assert_eq!(costs(&found, "attach", "window"), [321, 1, 1, 0]);
        assert_eq!(costs(&found, "detach", "window"), [321, 1, 65, 64]);
        let [ioctls, routings, waits, _] = costs(&found, "attach", "together");
        assert!(waits <= 49 && routings == 1 && (322..=369).contains(&ioctls));
    }

    #[test]
    fn bars_in_a_window_decode_and_move_by_their_doorbells_alone() {
        let test = "bars_in_a_window_decode_and_move_by_their_doorbells_alone";
        if vm_or_skip(test).is_none() {
            return;
        }
        let found = rows("bench devices --decode --runs 1");
        let way = "PciBars, kept, window";
        // 16 functions of 4 doorbells, each deassigned and assigned where it moves.
        assert_eq!(costs(&found, "decode on", way), [64, 0, 0, 0]);
        assert_eq!(costs(&found, "off and on", way), [0, 0, 0, 0]);
        assert_eq!(costs(&found, "move", way), [128, 0, 64, 64]);
        assert_eq!(costs(&found, "move", "PciBars"), [144, 0, 96, 64]);
    }
}
