//! The table of a comparison.

use comfy_table::{CellAlignment, ContentArrangement, Row as Cells, Table, presets};
use serde_json::Value;

use super::human;
use crate::compare::Row;

/// A column: its head, and what is in it.
#[derive(Debug, Clone, Copy)]
pub enum Column {
    /// What the row says by that name.
    Said(&'static str, &'static str),
    /// The same, in nanoseconds.
    SaidTime(&'static str, &'static str),
    /// The size that is compared.
    Size(&'static str),
    /// The way.
    Way(&'static str),
    /// System calls.
    Ioctls,
    /// Grace periods, and who counted them.
    GracePeriods,
    /// Those of the machine.
    Machine,
    /// The median of the runs, or why there is none.
    Time(&'static str),
    /// How many times as fast as the way of that name.
    Ratio(&'static str, &'static str),
    /// Anything else.
    With(&'static str, fn(&Row) -> String),
}

impl Column {
    pub(super) const fn head(self) -> &'static str {
        match self {
            Self::Said(head, _)
            | Self::SaidTime(head, _)
            | Self::Size(head)
            | Self::Way(head)
            | Self::Time(head)
            | Self::Ratio(head, _)
            | Self::With(head, _) => head,
            Self::Ioctls => "ioctls",
            Self::GracePeriods => "grace periods",
            Self::Machine => "machine's",
        }
    }

    pub(super) fn cell(self, row: &Row) -> String {
        let at_least = row.at_least();
        match self {
            Self::Said(_, key) => said(row.more.get(key)),
            Self::SaidTime(_, key) => or_dash(row.number(key).map(human)),
            Self::Size(_) => row.size.to_string(),
            Self::Way(_) => row.way.clone(),
            Self::Ioctls => or_dash(row.ioctls.map(|count| format!("{at_least}{count}"))),
            Self::GracePeriods => {
                let by = row.grace_periods_by;
                or_dash(row.grace_periods.map(|count| format!("{at_least}{count} {by}")))
            }
            Self::Machine => or_dash(row.machine_counted),
            Self::Time(_) => match &row.skipped {
                Some(why) => format!("skipped: {why}"),
                None => or_dash(row.wall_ns.map(human)),
            },
            Self::Ratio(_, to) => or_dash(row.ratios.get(to)),
            Self::With(_, cell) => cell(row),
        }
    }
}

fn said(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

/// The rows as a table, and beneath it what has to be said about them. Columns of
/// numbers are right-aligned.
#[must_use]
pub fn table(columns: &[Column], rows: &[Row]) -> String {
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|column| column.cell(row)).collect()).collect();
    let right = (0..columns.len()).filter(|index| match columns[*index] {
        Column::Way(_) => false,
        Column::Said(_, key) => {
            rows.iter().all(|row| !row.more.get(key).is_some_and(Value::is_string))
        }
        Column::With(..) => cells.iter().all(|row| {
            row[*index].starts_with(|first: char| first == '-' || first.is_ascii_digit())
        }),
        _ => true,
    });
    let heads: Vec<&str> = columns.iter().map(|column| column.head()).collect();
    let mut table = markdown(heads, right.collect::<Vec<_>>());
    table.add_rows(cells);
    let mut notes: Vec<String> = Vec::new();
    for row in rows {
        let note = row.note.as_ref().map(|note| format!("\n{}: {note}", row.way));
        notes.extend(note.filter(|note| !notes.contains(note)));
    }
    format!("{table}{}", notes.concat())
}

/// A table without rows, in markdown, whose columns `right` are right-aligned.
pub(crate) fn markdown(header: impl Into<Cells>, right: impl IntoIterator<Item = usize>) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    for index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The value, or `-`.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
