//! The table.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

use super::human;
use crate::bench::{CountedBy, Row};

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
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(HEADER);
    for row in rows {
        table.add_row(cells(row));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        let numbers = !matches!(HEADER[index], "scenario" | "strategy" | "executor");
        if numbers {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

fn cells(row: &Row) -> Vec<Cell> {
    let number = |value: Option<u64>| value.map_or_else(|| "-".into(), |value| value.to_string());
    let by = match row.grace_periods_by {
        CountedBy::Kernel => "counted",
        CountedBy::Plan => "planned",
    };
    let grace_periods =
        row.grace_periods.map_or_else(|| "-".into(), |value| format!("{value} {by}"));
    let mut cells = vec![
        Cell::new(row.scenario),
        Cell::new(row.regions),
        Cell::new(row.vcpus),
        Cell::new(row.strategy),
        Cell::new(&row.executor),
        Cell::new(number(row.ioctls)),
        Cell::new(grace_periods),
    ];
    if let Some(why) = &row.skipped {
        cells.push(Cell::new(format!("skipped: {why}")));
        cells.push(Cell::new("-"));
    } else {
        cells.push(Cell::new(row.wall_ns.map_or_else(|| "-".into(), human)));
        cells.push(Cell::new(row.ratio.map_or_else(|| "-".into(), ratio)));
    }
    cells
}

fn ratio(ratio: f64) -> String {
    let digits = if ratio < 10.0 { 2 } else { 0 };
    format!("{ratio:.digits$}x")
}
