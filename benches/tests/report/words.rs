//! What is said of rows: tables, durations, documents, what changed.

use kvm_memslots_bench::compare::Row;
use kvm_memslots_bench::report::baseline::changes;
use kvm_memslots_bench::report::document::{Part, html, text};
use kvm_memslots_bench::report::{Column, human, table};
use serde_json::json;

#[test]
fn durations_have_three_digits() {
    let cases = [
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1.00 us"),
        (45_678, "45.7 us"),
        (456_789, "457 us"),
        (12_345_678, "12.3 ms"),
        (3_210_000_000, "3.21 s"),
    ];
    for (ns, text) in cases {
        assert_eq!(human(ns), text);
    }
}

#[test]
fn words_are_left_and_numbers_right() {
    let row = |way: &str, skipped: Option<&str>, pass: &str, flips: u64| -> Row {
        serde_json::from_value(json!({
            "what": "it", "size": 1, "unit": "things", "way": way, "grace_periods_by": "plan",
            "ioctls": 7, "grace_periods": 9, "runs": 3, "wall_ns": 1500, "walls_ns": [],
            "ratios": {"a": {"times": 2.0, "spread": [0.5, 3.0], "equal": true}},
            "skipped": skipped, "note": "least", "pass": pass, "flips": flips,
        }))
        .unwrap()
    };
    let columns = [
        Column::Said("pass", "pass"),
        Column::Way("way"),
        Column::Said("flips", "flips"),
        Column::GracePeriods,
        Column::Time("time"),
        Column::Ratio("ratio", "a"),
    ];
    let rows = [row("a", None, "2nd", 1000), row("b", Some("no"), "x", 2)];
    let expected = "\
| pass | way | flips | grace periods |        time |          ratio |
|------|-----|-------|---------------|-------------|----------------|
| 2nd  | a   |  1000 |  >= 9 planned |     1.50 us | = (0.50..3.00) |
| x    | b   |     2 |     9 planned | skipped: no | = (0.50..3.00) |
a: least
b: least";
    assert_eq!(table(&columns, &rows), expected);
}

#[test]
fn text_and_page_say_the_same() {
    let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
    let parts = [
        Part::Facts(vec![("name", "a < b".to_owned()), ("", "more".to_owned())]),
        Part::Head("Costs".to_owned()),
        Part::Table(row(["call", "ns"]), vec![row(["`create`", "7"])], 1),
        Part::Said("Run `memslots bench`.".to_owned()),
        Part::Said(String::new()),
    ];
    let expected = "name             a < b\n                 more\n\nCosts:\n\
                    | call     | ns |\n|----------|----|\n| `create` |  7 |\n\
                    Run `memslots bench`.\n\n";
    assert_eq!(text(&parts), expected);
    let page = html("Title", &parts);
    for part in [
        "<h1>Title</h1>",
        "<dt>name</dt><dd>a &lt; b</dd>\n<dd>more</dd>",
        "<h2>Costs</h2>",
        "<p>Run <code>memslots bench</code>.</p>",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!page.contains("<p></p>"));
}

fn row(way: &str, ioctls: u64, walls: &[u64]) -> Row {
    let json = json!({
        "what": "sparse, no vCPU", "size": 9, "unit": "regions", "way": way,
        "ioctls": ioctls, "grace_periods": ioctls, "grace_periods_by": "kernel",
        "grace_periods_planned": ioctls, "runs": walls.len(), "wall_ns": walls[walls.len() / 2],
        "walls_ns": walls, "ratios": {},
    });
    serde_json::from_value(json).expect("a row")
}

#[test]
fn only_what_is_beyond_noise_changed() {
    let before = [row("shim", 3, &[100, 110, 120]), row("batch", 1, &[100, 110, 120])];
    let now = [row("shim", 3, &[105, 118, 130]), row("batch", 1, &[40, 50, 55])];
    let said = changes(&before, &now);
    assert_eq!(
        said,
        [
            "sparse, no vCPU, 9 regions, batch: 110 ns before, 50 ns now, 2.20 times as fast.",
            "1 of 2 rows are equal within their noise.",
        ]
    );
    let slower = changes(&now, &before);
    assert!(slower[0].ends_with("2.20 times as slow."), "{slower:?}");
}

#[test]
fn counts_have_no_noise() {
    let said = changes(&[row("shim", 3, &[1, 5, 9])], &[row("shim", 4, &[2, 4, 8])]);
    assert!(said[0].contains("3 calls before, 4 now; 3 grace periods before, 4 now"));
    let new = changes(&[row("shim", 3, &[1])], &[row("batch", 3, &[1])]);
    assert_eq!(new[1], "1 of 1 rows are not in the baseline.");
}
