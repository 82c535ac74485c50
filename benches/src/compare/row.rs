//! What was found of one way.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::session::Pools;
use super::{Ratio, percentile};

/// Who counted grace periods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CountedBy {
    /// The kernel, while the changes were made.
    Kernel,
    /// KVM's rules: what the calls that were made wait for.
    Plan,
}

impl fmt::Display for CountedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kernel => "counted",
            Self::Plan => "planned",
        })
    }
}

/// One way in one comparison: a line of any command's `--json`, which it can be
/// read back from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was done, and beside what.
    pub what: String,
    /// Of which size.
    pub size: u64,
    /// What the size counts.
    pub unit: String,
    /// The way.
    pub way: String,
    /// System calls that changed something in KVM.
    pub ioctls: Option<u64>,
    /// Grace periods that they waited for.
    pub grace_periods: Option<u64>,
    /// Who counted these.
    pub grace_periods_by: CountedBy,
    /// Grace periods by KVM's rules, whoever counted.
    pub grace_periods_planned: Option<u64>,
    /// All grace periods of the machine meanwhile, as counted by the kernel:
    /// those of workers are among them, and other VMs'.
    pub machine_counted: Option<u64>,
    /// Runs measured.
    pub runs: usize,
    /// The time of a run, median, in nanoseconds.
    pub wall_ns: Option<u64>,
    /// The fastest run.
    pub wall_ns_min: Option<u64>,
    /// The slowest run.
    pub wall_ns_max: Option<u64>,
    /// All runs, in the order in which they were made.
    pub walls_ns: Vec<u64>,
    /// How many times as fast it is as the ways that others are compared with.
    pub ratios: BTreeMap<String, Ratio>,
    /// Why calls and grace periods are the least that there can be, where they are.
    pub note: Option<String>,
    /// Why there are none.
    pub skipped: Option<String>,
    /// What else there is to say of this comparison, and of what its calls were.
    #[serde(flatten)]
    pub more: Map<String, Value>,
    /// Samples that runs took beside their time, of all runs.
    #[serde(skip)]
    pub pools: Pools,
}

impl Row {
    /// What is compared with each other.
    #[must_use]
    pub fn comparison(&self) -> (&str, u64, &str) {
        (&self.what, self.size, &self.unit)
    }

    /// The comparison in words.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{}, {} {}", self.what, self.size, self.unit)
    }

    /// What has to be said, or why there is nothing.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        let skipped = self.skipped.as_ref().map(|why| format!("skipped: {why}"));
        skipped.or_else(|| self.note.clone())
    }

    /// Before a number that is the least that there can be.
    #[must_use]
    pub fn at_least(&self) -> &'static str {
        if self.note.is_some() && self.skipped.is_none() { ">= " } else { "" }
    }

    /// A number of [`more`](Self::more).
    #[must_use]
    pub fn number(&self, key: &str) -> Option<u64> {
        self.more.get(key)?.as_u64()
    }

    /// The row without the times of its runs, for a reader whom they would mislead.
    #[must_use]
    pub fn without_times(self) -> Self {
        Self { wall_ns: None, ratios: BTreeMap::new(), ..self }
    }

    /// Says of the samples of each name what half of them, 99 of 100 and all of them
    /// took at most: `NAME_p50_ns`, `NAME_p99_ns`, `NAME_max_ns`.
    pub fn summarize(&mut self, names: &[&'static str]) {
        for name in names {
            let mut samples = self.pools.get(name).cloned().unwrap_or_default();
            samples.sort_unstable();
            for (which, percent) in [("p50", 50), ("p99", 99), ("max", 100)] {
                let value = (!samples.is_empty()).then(|| percentile(&samples, percent));
                self.more.insert(format!("{name}_{which}_ns"), value.into());
            }
        }
    }
}
