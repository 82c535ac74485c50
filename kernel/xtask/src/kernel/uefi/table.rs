//! What the ways took, as a table and as JSON.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::super::record::markdown;
use super::ways::{PLAIN, WAYS, Way, wanted};

/// How much later than as it is the shell may be there: what two boots of the
/// same way differ by.
const NOISE: f64 = 1.1;

/// One boot, as the guest says it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Boot {
    way: String,
    grace_periods: u64,
    shell_ms: u64,
    vars: String,
    /// What the library has counted, if it was there.
    stats: Option<Stats>,
}

#[derive(Debug, Clone, PartialEq)]
struct Stats {
    calls: u64,
    flips: u64,
    kvm_ns: u64,
    all: Value,
}

impl Boot {
    /// What `line` of the guest's says, if it is about a boot.
    pub(super) fn of(line: &str) -> Result<Option<Self>> {
        let Some(json) = line.strip_prefix("UEFI ") else { return Ok(None) };
        let read = || {
            let boot: Value = serde_json::from_str(json).ok()?;
            let stats = &boot["stats"];
            Some(Self {
                way: boot["way"].as_str()?.to_owned(),
                grace_periods: boot["gps"].as_u64()?,
                shell_ms: boot["shell_ms"].as_u64()?,
                vars: boot["vars"].as_str()?.to_owned(),
                stats: if stats.is_null() { None } else { Some(Stats::of(stats)?) },
            })
        };
        read().with_context(|| format!("not understood: {line}")).map(Some)
    }
}

impl Stats {
    fn of(all: &Value) -> Option<Self> {
        let count = |name: &str| all[name].as_u64();
        Some(Self {
            calls: count("calls")?,
            flips: count("flips")?,
            kvm_ns: count("kvm_ns")?,
            all: all.clone(),
        })
    }
}

/// All boots of one way.
#[derive(Debug)]
struct Row<'a> {
    way: &'static Way,
    boots: Vec<&'a Boot>,
}

/// The middle one; of two, the smaller.
fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied()
}

impl Row<'_> {
    fn median(&self, of: impl Fn(&Boot) -> Option<u64>) -> Option<u64> {
        median(self.boots.iter().filter_map(|boot| of(boot)).collect())
    }

    fn stat(&self, of: impl Fn(&Stats) -> u64) -> Option<u64> {
        self.median(|boot| boot.stats.as_ref().map(&of))
    }

    fn grace_periods(&self) -> u64 {
        self.median(|boot| Some(boot.grace_periods)).unwrap_or(0)
    }

    fn shell_ms(&self) -> u64 {
        self.median(|boot| Some(boot.shell_ms)).unwrap_or(0)
    }
}

/// What was measured.
pub(super) struct Table<'a> {
    rows: Vec<Row<'a>>,
    slow_gp: bool,
}

impl<'a> Table<'a> {
    pub(super) fn new(boots: &'a [Boot], slow_gp: bool) -> Self {
        let row = |way: &'static Way| {
            let boots = boots.iter().filter(|boot| boot.way == way.name).collect();
            Row { way, boots }
        };
        let rows = WAYS.iter().map(row).filter(|row| !row.boots.is_empty()).collect();
        Self { rows, slow_gp }
    }

    fn plain(&self) -> Option<&Row<'a>> {
        self.rows.iter().find(|row| row.way.name == PLAIN)
    }

    /// How many times less time in memslot calls than as it is.
    fn ratio(&self, row: &Row<'_>) -> Option<f64> {
        let plain = self.plain()?.stat(|stats| stats.kvm_ns)?;
        let own = row.stat(|stats| stats.kvm_ns)?;
        Some(plain as f64 / own.max(1) as f64)
    }

    /// What is not as wanted of `row`.
    fn missed(&self, row: &Row<'_>) -> Vec<String> {
        let Some(wanted) = wanted(row.way.name, self.slow_gp) else { return Vec::new() };
        let mut missed = Vec::new();
        let mut at_most = |what: &str, is: Option<u64>, wanted: Option<u64>| {
            if let Some(most) = wanted.filter(|most| is.is_none_or(|is| is > *most)) {
                missed.push(format!("more than {most} {what}"));
            }
        };
        at_most("GPs", Some(row.grace_periods()), wanted.grace_periods);
        at_most("calls", row.stat(|stats| stats.calls), wanted.calls);
        // One way by itself has nothing to be compared with.
        if self.ratio(row).is_some_and(|ratio| ratio < wanted.ratio) {
            missed.push(format!("not {} times less time in calls", wanted.ratio));
        }
        let plain = self.plain().map(Row::shell_ms);
        if wanted.no_slower
            && plain.is_some_and(|plain| row.shell_ms() as f64 > plain as f64 * NOISE)
        {
            missed.push("a slower boot".to_owned());
        }
        missed
    }

    fn differing(&self) -> Vec<String> {
        let mut sums: Vec<(&str, &str)> = Vec::new();
        for row in &self.rows {
            for boot in &row.boots {
                if !sums.iter().any(|(_, sum)| *sum == boot.vars) {
                    sums.push((row.way.title, &boot.vars));
                }
            }
        }
        let shown = |(way, sum): (&str, &str)| format!("{way}: {sum}");
        sums.into_iter().map(shown).collect()
    }

    /// Whether all variable stores are the same, byte by byte.
    pub(super) fn same_variables(&self) -> bool {
        self.differing().len() == 1
    }

    /// What is not as wanted, in all.
    pub(super) fn all_missed(&self) -> Vec<String> {
        let of = |row: &Row<'a>| {
            let missed = self.missed(row).into_iter();
            missed.map(|missed| format!("{}: {missed}", row.way.title)).collect::<Vec<_>>()
        };
        let mut all: Vec<String> = self.rows.iter().flat_map(of).collect();
        if !self.same_variables() {
            all.push("the variable stores differ".to_owned());
        }
        all
    }

    fn cells(&self, row: &Row<'_>) -> Vec<String> {
        let count = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
        let verdict = match wanted(row.way.name, self.slow_gp) {
            None => "-",
            Some(_) if self.missed(row).is_empty() => "yes",
            Some(_) => "NO",
        };
        let kernel = if row.way.vanilla { "vanilla" } else { "patched" };
        vec![
            row.way.title.to_owned(),
            kernel.to_owned(),
            count(row.stat(|stats| stats.calls)),
            count(row.stat(|stats| stats.flips)),
            row.grace_periods().to_string(),
            row.stat(|stats| stats.kvm_ns)
                .map_or("-".to_owned(), |ns| format!("{:.1} ms", ns as f64 / 1e6)),
            self.ratio(row).map_or("-".to_owned(), |ratio| format!("{ratio:.1}")),
            format!("{:.2} s", row.shell_ms() as f64 / 1e3),
            verdict.to_owned(),
        ]
    }

    /// Markdown, aligned, and the checksums below.
    pub(super) fn text(&self) -> String {
        let cells = self.rows.iter().map(|row| self.cells(row));
        let mut lines = vec![markdown(&HEADER, cells)];
        let sums = self.differing();
        lines.push(String::new());
        if self.same_variables() {
            lines.push(format!(
                "variable store, the same each time: {}",
                self.rows[0].boots[0].vars
            ));
        } else {
            lines.push("variable stores that differ:".to_owned());
            lines.extend(sums);
        }
        lines.join("\n")
    }

    /// One object, with each boot's own figures.
    pub(super) fn json(&self, kernel: &str) -> Value {
        let boot = |boot: &&Boot| {
            json!({
                "grace_periods": boot.grace_periods,
                "shell_ms": boot.shell_ms,
                "variables_sha256": boot.vars,
                "preload": boot.stats.as_ref().map(|stats| &stats.all),
            })
        };
        let row = |row: &Row<'a>| {
            json!({
                "way": row.way.name,
                "vanilla": row.way.vanilla,
                "calls": row.stat(|stats| stats.calls),
                "flips": row.stat(|stats| stats.flips),
                "grace_periods": row.grace_periods(),
                "kvm_ns": row.stat(|stats| stats.kvm_ns),
                "ratio": self.ratio(row),
                "shell_ms": row.shell_ms(),
                "missed": self.missed(row),
                "boots": row.boots.iter().map(boot).collect::<Vec<_>>(),
            })
        };
        json!({
            "kernel": kernel,
            "slow_gp": self.slow_gp,
            "same_variables": self.same_variables(),
            "ways": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

const HEADER: [&str; 9] = [
    "way",
    "kernel",
    "memslot calls",
    "flips",
    "GPs",
    "time in them",
    "ratio",
    "to the shell",
    "as wanted",
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn boot(way: &str, gps: u64, calls: Option<u64>, ms: u64) -> Boot {
        let stats = calls.map_or("null".to_owned(), |calls| {
            format!("{{\"calls\":{calls},\"flips\":0,\"kvm_ns\":{}}}", ms * 1_000_000)
        });
        let line = format!(
            "UEFI {{\"way\":\"{way}\",\"gps\":{gps}, \"shell_ms\":16000,\"vars\":\"abc\", \
             \"stats\":{stats}}}"
        );
        Boot::of(&line).unwrap().unwrap()
    }

    fn boots() -> Vec<Boot> {
        vec![
            boot("bare", 1361, None, 0),
            boot("count", 1361, Some(893), 400),
            boot("defer", 373, Some(235), 150),
            boot("trap", 38, Some(12), 40),
        ]
    }

    #[test]
    fn lines_of_the_guest() {
        assert_eq!(Boot::of("UEFI Interactive Shell").unwrap_err().to_string().len(), 38);
        assert_eq!(Boot::of("hello").unwrap(), None);
        assert!(boots()[0].stats.is_none());
    }

    #[test]
    fn what_is_as_wanted() {
        let boots = boots();
        let table = Table::new(&boots, false);
        assert_eq!(table.all_missed(), [""; 0]);
        let text = table.text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[..6].iter().all(|line| line.len() == lines[0].len()), "{text}");
        let cells: Vec<&str> = lines[5].split('|').map(str::trim).collect();
        assert_eq!(cells[2..10], ["patched", "12", "0", "38", "40.0 ms", "10.0", "16.00 s", "yes"]);
        assert!(text.ends_with("the same each time: abc"));
        assert_eq!(table.json("6.12")["ways"][3]["grace_periods"], 38);
    }

    #[test]
    fn what_is_not() {
        let mut boots = boots();
        boots[3] = Boot { vars: "abd".to_owned(), ..boot("trap", 41, Some(12), 41) };
        boots[2] = Boot { shell_ms: 18_000, ..boot("defer", 400, Some(241), 100) };
        let missed = Table::new(&boots, false).all_missed();
        assert_eq!(
            missed,
            [
                "deferred: more than 240 calls",
                "deferred: a slower boot",
                "trap bit: more than 40 GPs",
                "trap bit: not 10 times less time in calls",
                "the variable stores differ",
            ]
        );
        assert_eq!(Table::new(&boots[2..3], false).all_missed().len(), 1);
        assert!(Table::new(&boots, true).all_missed().len() > missed.len() - 1);
    }

    #[test]
    fn of_several_boots_the_median_counts() {
        let boots: Vec<Boot> =
            [(7, 1), (9, 2), (8, 30)].map(|(gps, ms)| boot("count", gps, Some(1), ms)).to_vec();
        let table = Table::new(&boots, false);
        assert_eq!(table.rows[0].grace_periods(), 8);
        assert_eq!(table.rows[0].stat(|stats| stats.kvm_ns), Some(2_000_000));
        assert_eq!(median(Vec::new()), None);
    }
}
