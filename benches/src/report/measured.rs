//! A row of any comparison, as its JSON has it.

use serde::Serialize;
use serde_json::Value;

/// What was measured of one way of doing something. Made from a row's JSON, so
/// that a file of `--json` and a run of just now are the same thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// What was done: the scenario, or the replay of a trace.
    pub what: String,
    /// Its size, in regions or calls.
    pub size: u64,
    /// Busy vCPUs beside it, and what they did.
    pub vcpus: String,
    /// The way.
    pub strategy: String,
    /// Calls that changed memslots.
    pub calls: Option<u64>,
    /// Grace periods waited for.
    pub grace_periods: Option<u64>,
    /// Whether the kernel counted them.
    pub counted: bool,
    /// All runs, in nanoseconds, ascending.
    pub walls: Vec<u64>,
    /// What has to be said about the numbers, or why there are none.
    pub remark: Option<String>,
}

impl Measured {
    /// From a row's JSON; `None` where it is of something else.
    #[must_use]
    pub fn from_json(row: &Value) -> Option<Self> {
        let text = |key: &str| row[key].as_str().map(str::to_owned);
        let number = |key: &str| row[key].as_u64();
        let scenario = text("scenario");
        let size = if scenario.is_some() { number("regions") } else { number("traced") }?;
        let vcpus = match (number("vcpus").unwrap_or(0), text("busy")) {
            (0, _) => "no vCPU".to_owned(),
            (count, busy) => {
                let plural = if count == 1 { "" } else { "s" };
                let busy = busy.map_or_else(String::new, |busy| format!(" ({busy})"));
                format!("{count} busy vCPU{plural}{busy}")
            }
        };
        let mut walls: Vec<u64> =
            row["walls_ns"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        walls.sort_unstable();
        Some(Self {
            what: scenario.unwrap_or_else(|| "replay".to_owned()),
            size,
            vcpus,
            strategy: text("strategy")?,
            calls: number("ioctls").or_else(|| number("calls")),
            grace_periods: number("grace_periods"),
            counted: text("grace_periods_by").as_deref() == Some("kernel"),
            walls,
            remark: text("skipped").map(|why| format!("skipped: {why}")).or_else(|| text("note")),
        })
    }

    /// All rows of a comparison.
    #[must_use]
    pub fn of(rows: &[impl Serialize]) -> Vec<Self> {
        let json = rows.iter().filter_map(|row| serde_json::to_value(row).ok());
        json.filter_map(|row| Self::from_json(&row)).collect()
    }

    /// The median of the runs, in nanoseconds; of an even number, the mean of
    /// the two in the middle.
    #[must_use]
    pub fn median(&self) -> Option<u64> {
        let upper = *self.walls.get(self.walls.len() / 2)?;
        let lower = self.walls[(self.walls.len() - 1) / 2];
        Some(lower + (upper - lower) / 2)
    }

    /// What is compared with each other.
    pub(super) fn comparison(&self) -> (&str, u64, &str) {
        (&self.what, self.size, &self.vcpus)
    }

    /// The comparison in words.
    pub(super) fn title(&self) -> String {
        let unit = if self.what == "replay" { "calls" } else { "regions" };
        format!("{}, {} {unit}, {}", self.what, self.size, self.vcpus)
    }

    /// How many times as fast this is as `other`; `None` where the medians lie
    /// within each other's runs, so that neither can be called faster.
    pub(super) fn speedup(&self, other: &Self) -> Option<f64> {
        let (mine, theirs) = (self.median()?, other.median()?);
        let within = |median: u64, of: &Self| {
            of.walls.first().is_some_and(|least| *least <= median)
                && of.walls.last().is_some_and(|most| median <= *most)
        };
        let is_noise = within(mine, other) || within(theirs, self);
        (!is_noise && mine > 0).then(|| theirs as f64 / mine as f64)
    }
}
