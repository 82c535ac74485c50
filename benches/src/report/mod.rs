//! What a comparison found, for people and for programs.

pub mod baseline;
mod html;
mod markdown;
mod measured;
mod plot;
mod table;

pub use html::Report;
pub(crate) use markdown::{left, markdown, or_dash};
pub use measured::Measured;
pub use plot::{PlotError, plot};
pub use table::table;

use std::io::{self, Write};

use serde::Serialize;

/// Writes `rows` as JSON, one object a line.
///
/// # Errors
/// Those of `out`.
pub fn json(rows: &[impl Serialize], mut out: impl Write) -> io::Result<()> {
    for row in rows {
        serde_json::to_writer(&mut out, row)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// A duration with three significant digits.
#[must_use]
pub fn human(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = match value {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}")
}

/// The smallest of the sorted samples that `percent` of them do not exceed.
pub(crate) fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let sorted: Vec<u64> = (1..=300).collect();
        assert_eq!([50, 99, 100].map(|p| percentile(&sorted, p)), [150, 297, 300]);
        assert_eq!(percentile(&[7], 50), 7);
        assert_eq!(percentile(&[], 50), 0);
    }

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
}
