//! The page of `--html`, and what `--baseline` says.
#![allow(clippy::unwrap_used)]

mod engine;
mod words;

use std::process::Command;

use kvm_memslots_bench::compare::Row;
use kvm_memslots_bench::replay::COLUMNS;
use kvm_memslots_bench::report::Report;
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
        for cell in [calls.to_string(), format!("{} planned", row["grace_periods"])] {
            assert!(page.contains(&format!("<td>{cell}</td>")), "{cell}");
        }
    }
    // A plot over sizes for each scenario; and no time, which would be the model's.
    assert_eq!(page.matches("<svg").count(), 2);
    assert!(page.contains("Grace periods over regions: sparse, no vCPU"));
    for time in [" times as ", "<td>median</td>", " us", " ms", "Time over", "each dot"] {
        assert!(!page.contains(time), "{time}");
    }
}

/// A row as `--json` prints it: of `size` regions, with runs that took `walls`.
fn measured(way: &str, size: u64, walls: &[u64], ratio: &Value, note: Option<&str>) -> Row {
    let json = json!({
        "what": "replay", "size": size, "unit": "calls", "way": way, "ioctls": 7,
        "grace_periods_by": "kernel", "grace_periods": 9, "runs": walls.len(),
        "wall_ns": walls.first(), "wall_ns_min": walls.iter().min(),
        "wall_ns_max": walls.iter().max(), "walls_ns": walls, "note": note,
        "ratios": {"per-region": ratio},
    });
    serde_json::from_value(json).unwrap()
}

#[test]
fn a_page_of_kvm_has_times_and_does_not_claim_more_than_was_found() {
    let known = json!({"times": 2.5, "spread": [1.5, 3.0], "equal": false});
    let unknown = json!({"times": 4.0, "spread": null, "equal": false});
    let walls = [2_000_000, 3_000_000, 4_000_000];
    let page = |rows: &[Row]| {
        let machine = Machine::look();
        let (title, command) = ("Costs", "memslots replay");
        let (columns, changes) = (&COLUMNS, None);
        Report { title, command, machine: &machine, model: false, columns, rows, changes }.page()
    };
    let found = page(&[
        measured("shim", 10, &walls, &known, None),
        measured("shim", 100, &walls, &known, None),
    ]);
    check_well_formed(&found);
    for part in [
        "<td>2.00 ms</td>",
        "<td>4.00 ms</td>",
        "7 calls and 9 grace periods, 2.00 ms, 2.50 times as fast as per-region.",
        "Time over calls: replay",
        "each dot is a run",
        "% of runs",
    ] {
        assert!(found.contains(part), "{part}");
    }
    // Two plots over sizes, percentiles for each size.
    assert_eq!(found.matches("<svg").count(), 2 + 2);
    assert!(!found.contains("about"));

    // What tells ways apart is shown, whatever a command counts; what does not is not.
    let mut rows = ["shim", "trap"].map(|way| measured(way, 10, &walls, &known, None));
    assert!(!page(&rows).contains("flips"));
    rows[1].more.insert("flips".to_owned(), 882.into());
    let found = page(&rows);
    assert!(found.contains("<th>flips</th>") && found.contains("<td>882</td>"), "{found}");

    let found = page(&[measured("deferred", 10, &walls[..1], &unknown, Some("a lower bound"))]);
    let said = "at least 7 calls and at least 9 grace periods, 2.00 ms, about 4.00 times as fast";
    assert!(found.contains(said) && found.contains("fewer than three runs"), "{found}");
}

/// More nanoseconds than anybody waits.
const HOURS: u64 = 10_000_000_000_000;

/// Where a text of a plot is, and what it says.
struct Label<'a> {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
    text: &'a str,
}

impl<'a> Label<'a> {
    /// Of `<text ...>`, up to its end: in the units of the plot, with letters of
    /// two thirds of their size, which is wider than they are.
    fn new(svg: &'a str) -> Self {
        let (tag, rest) = svg.split_once('>').unwrap();
        let attribute = |name: &str| {
            let (_, rest) = tag.split_once(&format!("{name}=\"")).unwrap();
            rest.split_once('"').unwrap().0
        };
        let number = |name: &str| attribute(name).parse::<f64>().unwrap();
        let text = rest.split_once('<').unwrap().0.trim();
        let size = number("font-size");
        let width = text.chars().count() as f64 * size * 2.0 / 3.0;
        let left = match attribute("text-anchor") {
            "start" => number(" x"),
            "middle" => number(" x") - width / 2.0,
            "end" => number(" x") - width,
            other => panic!("{other}"),
        };
        let top = match attribute("dy") {
            "0.76em" => number(" y"),
            "0.5ex" => number(" y") - size / 2.0,
            "-0.5ex" => number(" y") - size,
            other => panic!("{other}"),
        };
        Self { left, top, right: left + width, bottom: top + size, text }
    }

    fn overlaps(&self, other: &Self) -> bool {
        let beside = self.right <= other.left || other.right <= self.left;
        let above = self.bottom <= other.top || other.bottom <= self.top;
        !beside && !above
    }
}

/// No text of a plot over another, and none outside of it.
fn check_labels(page: &str) -> usize {
    let mut found = 0;
    for svg in page.split("<svg ").skip(1) {
        let (svg, _) = svg.split_once("</svg>").unwrap();
        let labels: Vec<Label<'_>> = svg.split("<text").skip(1).map(Label::new).collect();
        for (index, label) in labels.iter().enumerate() {
            let text = label.text;
            assert!(label.left >= 0.0 && label.right <= 360.0 && label.top >= 0.0, "{text}");
            for other in &labels[..index] {
                assert!(!label.overlaps(other), "{text} over {}", other.text);
            }
        }
        found += labels.len();
    }
    found
}

#[test]
fn no_text_of_a_plot_is_over_another() {
    let known = json!({"times": 2.5, "spread": [1.5, 3.0], "equal": false});
    let machine = Machine::look();
    let mut labels = 0;
    for sizes in [[1, 2], [7, 9000], [100, 110], [1, 32764], [1000, 4_000_000_000]] {
        for least in [1_u64, 999, 1_500_000, 123_456_789, 20_000_000_000] {
            for times in [1, 2, 90, 1_000_000] {
                if least * times > HOURS {
                    continue;
                }
                let walls = [least, least * (times + 1) / 2, least * times];
                let rows = sizes.map(|size| measured("shim", size, &walls, &known, None));
                let (title, command) = ("Costs", "memslots replay");
                let report = Report {
                    title,
                    command,
                    machine: &machine,
                    model: false,
                    columns: &COLUMNS,
                    rows: &rows,
                    changes: None,
                };
                labels += check_labels(&report.page());
            }
        }
    }
    assert!(labels > 1000, "{labels}");
}

#[test]
fn a_size_is_measured_once_whatever_was_asked_for() {
    let json = rows(&memslots("bench boot --regions 10,100 --runs 1 --executor model --json"));
    let ways: Vec<_> = json.iter().map(|row| row["way"].as_str().unwrap()).collect();
    assert_eq!(ways, ["per-region", "shim", "batch"]);
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
            columns: &COLUMNS,
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
