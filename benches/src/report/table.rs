//! The table of a comparison.

use serde_json::Value;

use super::{human, markdown, or_dash};
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

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
}
