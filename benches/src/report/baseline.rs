//! What changed since a run before.

use std::fs;
use std::path::Path;

use thiserror::Error;

use super::human;
use crate::compare::{Ratio, Row};

/// Why a file is no baseline.
#[derive(Debug, Error)]
#[error("{path}{}: {why}; expected what --json printed", .line.map_or_else(String::new, |line| format!(", line {line}")))]
pub struct BaselineError {
    path: String,
    line: Option<usize>,
    why: String,
}

/// Reads what `--json` printed before.
///
/// # Errors
/// [`BaselineError`], with the line.
pub fn read(path: &Path) -> Result<Vec<Row>, BaselineError> {
    let failed = |line, why| BaselineError { path: path.display().to_string(), line, why };
    let text = fs::read_to_string(path).map_err(|error| failed(None, error.to_string()))?;
    let row = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| failed(Some(number + 1), error.to_string()))
    };
    let rows: Vec<_> = text.lines().enumerate().map(row).collect::<Result<_, _>>()?;
    if rows.is_empty() { Err(failed(None, "no rows".to_owned())) } else { Ok(rows) }
}

/// What is different now, one sentence each. Of times it is what [`Ratio`] does not
/// call equal.
#[must_use]
pub fn changes(before: &[Row], now: &[Row]) -> Vec<String> {
    let mut said = Vec::new();
    let (mut equal, mut new) = (0, 0);
    for row in now {
        let same = |old: &&Row| old.comparison() == row.comparison() && old.way == row.way;
        let Some(old) = before.iter().find(same) else {
            new += 1;
            continue;
        };
        let mut differences = Vec::new();
        let mut count = |what: &str, old: Option<u64>, new: Option<u64>| {
            if let (Some(old), Some(new)) = (old, new)
                && old != new
            {
                differences.push(format!("{old} {what} before, {new} now"));
            }
        };
        count("calls", old.ioctls, row.ioctls);
        count("grace periods", old.grace_periods, row.grace_periods);
        if let (Some(ratio), Some(was), Some(is)) =
            (Ratio::of(&row.walls_ns, &old.walls_ns), old.wall_ns, row.wall_ns)
            && !ratio.equal
        {
            let (was, is) = (human(was), human(is));
            differences.push(format!("{was} before, {is} now, {}", ratio.words()));
        }
        match (&row.skipped, &old.skipped) {
            (Some(why), None) => differences.push(format!("now skipped: {why}")),
            (None, Some(_)) => differences.push("was skipped before".to_owned()),
            _ => {}
        }
        if differences.is_empty() {
            equal += 1;
        } else {
            said.push(format!("{}, {}: {}.", row.title(), row.way, differences.join("; ")));
        }
    }
    said.push(format!("{equal} of {} rows are equal within their noise.", now.len()));
    if new > 0 {
        said.push(format!("{new} of {} rows are not in the baseline.", now.len()));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
}
