//! What a comparison found, for people and for programs.

pub mod baseline;
mod chart;
pub mod document;
mod html;
mod page;
mod plot;
mod table;

pub use html::Report;
pub use plot::plot;
pub use table::{Column, table};
pub(crate) use table::{markdown, or_dash};

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
