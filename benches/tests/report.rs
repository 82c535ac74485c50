//! The page of `--html`, and what `--baseline` says.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use kvm_memslots_bench::compare::Row;
use kvm_memslots_bench::report::{Report, human};
use kvm_memslots_kit::machine::Machine;
use serde_json::{Value, json};

fn memslots(args: &str) -> String {
    let program = env!("CARGO_BIN_EXE_memslots");
    let output = Command::new(program).args(args.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn rows(json: &str) -> Vec<Value> {
    json.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every element that begins ends, in order; attributes are quoted.
fn check_well_formed(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap();
    while let Some(at) = rest.find('<') {
        assert!(!rest[..at].contains('>'), "{}", &rest[..at]);
        let end = rest[at..].find('>').map(|end| at + end).unwrap();
        let tag = &rest[at + 1..end];
        let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap();
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !tag.ends_with('/') && !tag.starts_with('!') {
            open.push(name);
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "{open:?}");
}

fn check_alone(page: &str) {
    for outside in ["http", "//", "src=", "href=", "<script", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn the_page_is_one_file_with_every_number() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("page.html");
    let args = "bench sparse contiguous --regions 4,40,90 --runs 3 --executor model --json";
    let json = rows(&memslots(&format!("{args} --html {}", file.display())));
    assert_eq!(json.len(), 2 * 3 * 3);
    let page = std::fs::read_to_string(&file).unwrap();
    check_well_formed(&page);
    check_alone(&page);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for part in
        [release.trim(), "on the model of KVM", "sparse, no vCPU, 40 regions", "per-region: "]
    {
        assert!(page.contains(part), "{part}");
    }
    for row in json {
        let walls = row["walls_ns"].as_array().unwrap();
        assert_eq!(walls.len(), 3);
        let calls = row["ioctls"].as_u64().unwrap();
        assert!(
            page.contains(&format!("<td class=\"words\">{}</td>", row["way"].as_str().unwrap()))
        );
        for cell in [
            calls.to_string(),
            format!("{} planned", row["grace_periods"]),
            human(row["wall_ns_min"].as_u64().unwrap()),
            human(row["wall_ns_max"].as_u64().unwrap()),
        ] {
            assert!(page.contains(&format!("<td>{cell}</td>")), "{cell}");
        }
    }
    // Two plots over sizes for each scenario, one distribution for each size.
    assert_eq!(page.matches("<svg").count(), 2 * 2 + 2 * 3);
    assert!(page.contains("Grace periods over regions: sparse, no vCPU"));
}

#[test]
fn a_baseline_of_the_same_counts_says_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let args = "bench sparse --regions 8 --runs 3 --executor model";
    let json = memslots(&format!("{args} --json"));
    let mut before = rows(&json);
    // As if shim had been a million times as slow, and had made a call more.
    before[1]["walls_ns"] = json!([5_000_000_000_u64, 5_500_000_000_u64, 6_000_000_000_u64]);
    before[1]["wall_ns"] = json!(5_500_000_000_u64);
    before[1]["ioctls"] = json!(before[1]["ioctls"].as_u64().unwrap() + 1);
    let lines: Vec<_> = before.iter().map(Value::to_string).collect();
    std::fs::write(file("before.json"), lines.join("\n")).unwrap();
    let (baseline, page) = (file("before.json"), file("page.html"));
    let said =
        memslots(&format!("{args} --baseline {} --html {}", baseline.display(), page.display()));
    let line = said.lines().find(|line| line.starts_with("sparse, no vCPU, 8 regions, shim"));
    let line = line.unwrap_or_else(|| panic!("{said}"));
    for part in ["9 calls before, 8 now", "5.50 s before", "times as fast"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let page = std::fs::read_to_string(page).unwrap();
    check_well_formed(&page);
    assert!(page.contains("What changed since the baseline") && page.contains(line));
}

/// Names are no markup, and what was skipped has no plot.
#[test]
fn whatever_the_rows_say_the_page_is_well_formed() {
    let row = |what: &str, way: &str, walls: &[u64], skipped: Option<&str>| -> Row {
        let json = json!({
            "what": what, "size": 3, "unit": "<u>", "way": way, "grace_periods_by": "kernel",
            "ioctls": 7, "grace_periods": 9, "runs": walls.len(), "wall_ns": walls.first(),
            "walls_ns": walls, "skipped": skipped,
            "ratios": {"<other>": {"times": 2.0, "spread": [1.5, 3.0], "equal": false}},
        });
        serde_json::from_value(json).unwrap()
    };
    let rows = [
        row("<b>&\"x\"", "shim", &[], Some("a <i> & no more")),
        row("replay", "per-region", &[0, 0, u64::MAX], None),
    ];
    let machine = Machine::look();
    for rows in [&rows[..], &rows[..1], &[]] {
        let page = Report {
            title: "<title> & more",
            command: "memslots \"<x>\"",
            machine: &machine,
            model: false,
            rows,
            changes: Some(&["a < b".to_owned()]),
        }
        .page();
        check_well_formed(&page);
        check_alone(&page);
        assert_eq!(page.contains("shim, skipped: a &lt;i&gt; &amp; no more."), !rows.is_empty());
        assert!(page.contains("<li>a &lt; b</li>"));
    }
}

/// With and without KVM.
#[test]
fn doctor_has_a_page_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("doctor.html");
    let said = memslots(&format!("doctor --runs 1 --html {}", file.display()));
    let page = std::fs::read_to_string(&file).unwrap();
    check_well_formed(&page);
    check_alone(&page);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for part in [release.trim(), "<dt>kernel</dt>", "<dt>KVM</dt>"] {
        assert!(page.contains(part), "{part}");
    }
    // Whatever the text has a table of, the page has.
    let tables = said.lines().filter(|line| line.starts_with("|--")).count();
    assert_eq!(page.matches("<table>").count(), tables);
}
