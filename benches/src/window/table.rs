//! What was found, for people and for programs.

use std::time::Duration;

use comfy_table::Table;
use serde::Serialize;

use super::Windows;
use super::guest::Guest;
use super::ways::Way;
use crate::report::{human, left, markdown, or_dash};

/// One way, one size, one guest.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What ran meanwhile.
    pub guest: Guest,
    /// Bytes of a blob.
    pub size: u64,
    /// [`Way::name`].
    pub way: &'static str,
    /// Blobs that were there at any time.
    pub live: u64,
    /// Blobs that were removed and placed again.
    pub pairs: usize,
    /// How many a second.
    pub pairs_per_second: f64,
    /// The time of such a pair that half of them took at most.
    pub p50_ns: u64,
    /// The time that 99 of 100 took at most.
    pub p99_ns: u64,
    /// Grace periods of a pair, as the kernel counted them.
    pub grace_periods_counted: Option<f64>,
    /// How much less the vCPUs did meanwhile than before, of 1. Below 0: more.
    pub vcpus_lost: Option<f64>,
    /// The `p50_ns` of the first way over this one.
    pub p50_ratio: Option<f64>,
    /// The `p99_ns` of the first way over this one.
    pub p99_ratio: Option<f64>,
}

impl Row {
    pub(super) fn new(
        args: &Windows,
        guest: Guest,
        way: Way,
        size: u64,
        times: &[Duration],
        counted: Option<f64>,
        lost: Option<f64>,
    ) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let total: Duration = times.iter().sum();
        Self {
            guest,
            size,
            way: way.name(),
            live: args.live,
            pairs: times.len(),
            pairs_per_second: times.len() as f64 / total.as_secs_f64(),
            p50_ns: percentile(&sorted, 50),
            p99_ns: percentile(&sorted, 99),
            grace_periods_counted: counted,
            vcpus_lost: lost,
            p50_ratio: None,
            p99_ratio: None,
        }
    }

    /// With its ratios to `first`, or to itself.
    pub(super) fn beside(mut self, first: Option<&Self>) -> Self {
        let (p50, p99) = first.map_or((self.p50_ns, self.p99_ns), |row| (row.p50_ns, row.p99_ns));
        self.p50_ratio = Some(p50 as f64 / self.p50_ns.max(1) as f64);
        self.p99_ratio = Some(p99 as f64 / self.p99_ns.max(1) as f64);
        self
    }
}

/// The time that so many of 100 took at most.
fn percentile(sorted: &[Duration], percent: usize) -> u64 {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).map_or(0, |time| time.as_nanos() as u64)
}

/// The rows as a table.
#[must_use]
pub fn table(rows: &[Row]) -> Table {
    let header = [
        "vCPUs",
        "blob",
        "way",
        "pairs",
        "pairs/s",
        "p50",
        "p99",
        "p50, x",
        "p99, x",
        "GPs/pair",
        "vCPUs lost",
    ];
    let mut table = markdown(left(header), 3..header.len());
    for row in rows {
        table.add_row([
            row.guest.to_string(),
            format!("{} KiB", row.size >> 10),
            row.way.to_owned(),
            row.pairs.to_string(),
            format!("{:.0}", row.pairs_per_second),
            human(row.p50_ns),
            human(row.p99_ns),
            or_dash(row.p50_ratio.map(|ratio| format!("{ratio:.1}"))),
            or_dash(row.p99_ratio.map(|ratio| format!("{ratio:.1}"))),
            or_dash(row.grace_periods_counted.map(|count| format!("{count:.1}"))),
            or_dash(row.vcpus_lost.map(|lost| format!("{:.0} %", lost * 100.0))),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times: Vec<_> = (1..=200).map(Duration::from_nanos).collect();
        assert_eq!([50, 99, 100].map(|percent| percentile(&times, percent)), [100, 198, 200]);
        assert_eq!(percentile(&times[..1], 50), 1);
        assert_eq!(percentile(&[], 99), 0);
    }
}
