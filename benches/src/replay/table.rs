//! The rows as a table.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::Row;
use crate::bench::CountedBy;
use crate::report::human;

const HEADER: [&str; 6] = ["strategy", "calls", "flips", "grace periods", "time", "ratio"];

/// The rows as a table, and beneath it what has to be said about them; the
/// ratio says how many times as fast as `per-region`.
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
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let notes = rows.iter().filter_map(|row| Some(format!("\n{}: {}", row.strategy, row.note?)));
    format!("{table}{}", notes.collect::<String>())
}

fn cells(row: &Row) -> [String; 6] {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let number = |value: Option<u64>| or_dash(value.map(|value| value.to_string()));
    let by = match row.grace_periods_by {
        CountedBy::Kernel => "counted",
        CountedBy::Plan => "planned",
    };
    let time = match row.skipped {
        Some(why) => format!("skipped: {why}"),
        None => or_dash(row.wall_ns.map(human)),
    };
    // A lower bound of the cost.
    let at_least = if row.note.is_some() && row.skipped.is_none() { ">= " } else { "" };
    [
        row.strategy.to_owned(),
        format!("{at_least}{}", number(row.calls)),
        number(row.flips),
        or_dash(row.grace_periods.map(|value| format!("{at_least}{value} {by}"))),
        time,
        or_dash(row.ratio.map(|ratio| format!("{ratio:.2}x"))),
    ]
}
