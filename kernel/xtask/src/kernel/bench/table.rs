//! What `memslots bench --json` measured, as a table.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::super::record::markdown;
use super::rows::Row;

/// A row with its figures.
#[derive(Debug)]
pub(super) struct Measured {
    row: &'static Row,
    machine: &'static str,
    /// One call a region.
    single: Figures,
    /// The batch ioctl by itself.
    batch: Figures,
    /// The batch ioctl through the library.
    library: Figures,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Figures {
    /// Median of the time in the calls, nanoseconds.
    calls: f64,
    /// With what is done around them.
    wall: f64,
    grace_periods: u64,
    /// Whether it was the kernel that counted them.
    counted: bool,
    /// Whether the time of all is that of single calls, within the noise.
    equal: bool,
}

impl Measured {
    /// Finds the figures of `row` in `lines` of JSON.
    pub(super) fn of(row: &'static Row, machine: &'static str, lines: &[String]) -> Result<Self> {
        let rows: Vec<Value> =
            lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let find = |strategy: &str| {
            let is = |line: &&Value| {
                line["scenario"] == row.scenario
                    && line["regions"] == row.regions
                    && line["busy"].as_str() == row.vcpu
                    && line["way"] == strategy
            };
            rows.iter().rev().find(is).and_then(Figures::of).with_context(|| {
                format!("memslots has no figures for {strategy}; does the kernel have the ioctl?")
            })
        };
        Ok(Self {
            row,
            machine,
            single: find("per-region")?,
            batch: find("raw-batch")?,
            library: find("batch")?,
        })
    }

    fn ratio(&self) -> f64 {
        self.single.calls / self.batch.calls
    }

    /// Whether the row is as wanted, grace periods included.
    pub(super) fn reached(&self) -> bool {
        self.ratio() >= self.row.ratio
            && self.batch.grace_periods <= self.row.grace_periods
            && self.batch.counted
    }

    fn cells(&self) -> Vec<String> {
        let verdict = if self.reached() { "yes" } else { "NO" };
        vec![
            self.row.work.to_owned(),
            self.machine.to_owned(),
            ms(self.single.calls),
            self.single.count(),
            ms(self.batch.calls),
            self.batch.count(),
            if self.batch.equal { "=".to_owned() } else { three_digits(self.ratio()) },
            three_digits(self.row.ratio),
            verdict.to_owned(),
            ms(self.library.wall),
        ]
    }
}

impl Figures {
    fn of(line: &Value) -> Option<Self> {
        Some(Self {
            calls: line["calls_p50_ns"].as_u64()? as f64,
            wall: line["wall_ns"].as_u64()? as f64,
            grace_periods: line["grace_periods"].as_u64()?,
            counted: line["grace_periods_by"] == "kernel",
            equal: line["ratios"]["per-region"]["equal"] == true,
        })
    }

    fn count(self) -> String {
        let by = if self.counted { "" } else { " (planned)" };
        format!("{}{by}", self.grace_periods)
    }
}

fn ms(ns: f64) -> String {
    format!("{} ms", three_digits(ns / 1e6))
}

pub(super) fn three_digits(value: f64) -> String {
    let digits = match value {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

const HEADER: [&str; 10] = [
    "work",
    "machine",
    "one by one",
    "GPs",
    "one batch",
    "GPs",
    "ratio",
    "wanted",
    "reached",
    "batch by the library",
];

/// The rows, in Markdown.
pub(super) fn table(rows: &[Measured]) -> String {
    markdown(&HEADER, rows.iter().map(Measured::cells))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::kernel::bench::rows;

    fn line(strategy: &str, wall_ns: u64, grace_periods: u64) -> String {
        format!(
            "{{\"scenario\":\"sparse\",\"regions\":9000,\"busy\":null,\"way\":\"{strategy}\",\
             \"wall_ns\":{wall_ns},\"calls_p50_ns\":{wall_ns},\
             \"grace_periods\":{grace_periods},\"grace_periods_by\":\"kernel\"}}"
        )
    }

    fn measured(batch_ns: u64, grace_periods: u64) -> Result<Measured> {
        let row = rows::boots(&[])[0].rows[0];
        let lines = [
            "# create 9000".to_owned(),
            line("per-region", 2_000_000_000, 9000),
            line("batch", 180_000_000, 1),
            line("raw-batch", batch_ns, grace_periods),
        ];
        Measured::of(row, "quiet", &lines)
    }

    #[test]
    fn a_row_is_reached_by_ratio_and_by_grace_periods() {
        assert!(measured(150_000_000, 1).unwrap().reached());
        assert!(!measured(250_000_000, 1).unwrap().reached());
        assert!(!measured(150_000_000, 2).unwrap().reached());
    }

    #[test]
    fn a_table_has_a_line_a_row() {
        let table = table(&[measured(160_000_000, 1).unwrap()]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()));
        let cells: Vec<&str> = lines[2].split('|').map(str::trim).collect();
        assert_eq!(cells[3..9], ["2000 ms", "9000", "160 ms", "1", "12.5", "10.0"]);
    }

    #[test]
    fn what_was_not_measured_is_an_error() {
        let row = rows::boots(&[])[0].rows[0];
        let e = Measured::of(row, "quiet", &[line("per-region", 1, 1)]).unwrap_err();
        assert!(e.to_string().contains("raw-batch"), "{e}");
    }
}
