//! What changed since a run before.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use anyhow::{Result, anyhow};

use super::human;
use crate::compare::{Ratio, Row};

/// Reads what `--json` printed before.
///
/// # Errors
/// The file, the line and why it is none.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let failed = |place: &str, why: &dyn Display| {
        anyhow!("{}{place}: {why}; expected what --json printed", path.display())
    };
    let text = fs::read_to_string(path).map_err(|error| failed("", &error))?;
    let row = |(number, line): (usize, &str)| {
        let place = format!(", line {}", number + 1);
        serde_json::from_str(line).map_err(|error| failed(&place, &error))
    };
    let rows: Vec<_> = text.lines().enumerate().map(row).collect::<Result<_>>()?;
    if rows.is_empty() { Err(failed("", &"no rows")) } else { Ok(rows) }
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
