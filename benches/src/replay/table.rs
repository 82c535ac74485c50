//! The rows as a table.

use super::Row;
use crate::report::{human, markdown, or_dash};

const HEADER: [&str; 6] = ["strategy", "calls", "flips", "grace periods", "time", "ratio"];

/// The rows as a table, and beneath it what has to be said about them; the
/// ratio says how many times as fast as `per-region`.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut table = markdown(HEADER, 1..HEADER.len());
    for row in rows {
        table.add_row(cells(row));
    }
    let notes = rows.iter().filter_map(|row| Some(format!("\n{}: {}", row.strategy, row.note?)));
    format!("{table}{}", notes.collect::<String>())
}

fn cells(row: &Row) -> [String; 6] {
    let by = row.grace_periods_by;
    let time = match row.skipped {
        Some(why) => format!("skipped: {why}"),
        None => or_dash(row.wall_ns.map(human)),
    };
    // A lower bound of the cost.
    let at_least = if row.note.is_some() && row.skipped.is_none() { ">= " } else { "" };
    [
        row.strategy.to_owned(),
        format!("{at_least}{}", or_dash(row.calls)),
        or_dash(row.flips),
        or_dash(row.grace_periods.map(|value| format!("{at_least}{value} {by}"))),
        time,
        or_dash(row.ratio.map(|ratio| format!("{ratio:.2}x"))),
    ]
}
