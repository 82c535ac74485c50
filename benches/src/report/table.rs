//! The table.

use super::{human, markdown, or_dash};
use crate::bench::Row;

const HEADER: [&str; 9] = [
    "scenario",
    "regions",
    "vCPUs",
    "strategy",
    "executor",
    "ioctls",
    "grace periods",
    "time",
    "ratio",
];

/// The rows as a table; the ratio says how many times as fast as `per-region`.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let is_number = |index: &usize| !matches!(HEADER[*index], "scenario" | "strategy" | "executor");
    let mut table = markdown(HEADER, (0..HEADER.len()).filter(is_number));
    for row in rows {
        table.add_row(cells(row));
    }
    table.to_string()
}

fn cells(row: &Row) -> [String; 9] {
    let (time, ratio) = match &row.skipped {
        Some(why) => (format!("skipped: {why}"), None),
        None => (or_dash(row.wall_ns.map(human)), row.ratio.map(ratio)),
    };
    [
        row.scenario.to_owned(),
        row.regions.to_string(),
        row.vcpus.to_string(),
        row.strategy.to_owned(),
        row.executor.clone(),
        or_dash(row.ioctls),
        or_dash(row.grace_periods.map(|value| format!("{value} {}", row.grace_periods_by))),
        time,
        or_dash(ratio),
    ]
}

fn ratio(ratio: f64) -> String {
    let digits = if ratio < 10.0 { 2 } else { 0 };
    format!("{ratio:.digits$}x")
}
