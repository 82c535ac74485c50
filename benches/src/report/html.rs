//! A page that says it all: no network, no scripts, one file.

use super::chart;
use super::document::{self, Part};
use super::{Column, human, or_dash};
use crate::compare::Row;
use kvm_memslots_kit::machine::Machine;

/// What a page is about.
#[derive(Debug)]
pub struct Report<'a> {
    /// Its title.
    pub title: &'a str,
    /// What was asked for, as a command line.
    pub command: &'a str,
    /// Where it was measured.
    pub machine: &'a Machine,
    /// Whether times mean nothing, as changes were made on the model of KVM.
    pub model: bool,
    /// The columns of the table on a terminal.
    pub columns: &'a [Column],
    /// What was measured.
    pub rows: &'a [Row],
    /// What changed since a run before, if there was one.
    pub changes: Option<&'a [String]>,
}

impl Report<'_> {
    /// The page.
    #[must_use]
    pub fn page(&self) -> String {
        let mut parts = vec![
            Part::Said(self.where_()),
            Part::Said(format!("Asked for: `{}`", self.command.replace('`', "'"))),
        ];
        if let Some(changes) = self.changes {
            parts.push(Part::Head("What changed since the baseline".to_owned()));
            parts.push(Part::List(changes.to_vec()));
        }
        for (title, charts) in chart::over_sizes(self.rows, !self.model) {
            parts.extend([Part::Head(title), Part::Charts(charts)]);
        }
        for rows in self.rows.chunk_by(|a, b| a.comparison() == b.comparison()) {
            parts.push(Part::Head(rows[0].title()));
            parts.extend(sentences(rows, !self.model).into_iter().map(Part::Said));
            let columns = self.columns(rows);
            let header = columns.iter().map(|column| column.head().to_owned()).collect();
            let cells = |row: &Row| {
                let cell = |column: &Column| match (column, &row.skipped) {
                    // Why is said above.
                    (Column::Time(_), Some(_)) => "skipped".to_owned(),
                    _ => column.cell(row),
                };
                columns.iter().map(cell).collect()
            };
            parts.push(Part::Table(header, rows.iter().map(cells).collect(), 1));
            if !self.model {
                parts.push(Part::Runs(rows.to_vec()));
            }
        }
        document::html(self.title, &parts)
    }

    /// What the table of a comparison shows. What matters most comes first: a narrow
    /// screen shows only that at once.
    fn columns(&self, rows: &[Row]) -> Vec<Column> {
        let shown = |column: &&Column| match column {
            Column::Way(_) | Column::Ioctls | Column::GracePeriods => true,
            Column::Time(_) | Column::Ratio(..) => !self.model,
            // What is the same for all is in the title, or tells none apart.
            column => rows.iter().any(|row| column.cell(row) != column.cell(&rows[0])),
        };
        let mut columns: Vec<Column> = self.columns.iter().filter(shown).copied().collect();
        columns.sort_by_key(|column| match column {
            Column::Way(_) => 0,
            Column::Time(_) => 1,
            Column::Ratio(..) => 2,
            Column::Ioctls | Column::GracePeriods => 3,
            _ => 4,
        });
        if !self.model {
            columns.push(Column::With("fastest", |row| or_dash(row.wall_ns_min.map(human))));
            columns.push(Column::With("slowest", |row| or_dash(row.wall_ns_max.map(human))));
        }
        columns
    }

    fn where_(&self) -> String {
        let Machine { kernel, arch, cpus, .. } = self.machine;
        let place = self.machine.place();
        let hz = self.machine.hz.map_or_else(String::new, |hz| format!(", HZ {hz}"));
        let preemption = (self.machine.preemption.as_ref())
            .map_or_else(String::new, |model| format!(", preemption {model}"));
        let kvm = match (&self.machine.kvm, self.model) {
            (_, true) => {
                return format!(
                    "Counted on Linux {kernel}, {arch}. The changes were made on the model of KVM: \
                     counts hold, and times, which mean nothing, are left out."
                );
            }
            (Ok(offer), _) => {
                let flavour = offer.flavour.unwrap_or("not known by name");
                let batch = if offer.limits.batch.is_some() { "has" } else { "does not have" };
                format!("Its KVM is {flavour} and {batch} KVM_SET_USER_MEMORY_REGIONS.")
            }
            (Err(why), _) => format!("KVM: {why}."),
        };
        let ratios = || self.rows.iter().flat_map(|row| row.ratios.values());
        let about = if ratios().any(|ratio| ratio.spread.is_none()) {
            " Of fewer than three runs nothing is known of that: \"about\", or ~, stands before \
             what they give."
        } else {
            ""
        };
        format!(
            "Measured on Linux {kernel}, {arch}, {cpus} CPUs{place}{hz}{preemption}. {kvm} A time \
             is the median of its runs; two are called different only where their spreads, in \
             which each median lies with 95 %, do not overlap.{about}"
        )
    }
}

/// What a comparison says, with its `times` if they mean something.
fn sentences(rows: &[Row], times: bool) -> Vec<String> {
    let mut said = Vec::new();
    for row in rows {
        let name = &row.way;
        if let Some(time) = row.wall_ns {
            let at_least = if row.at_least().is_empty() { "" } else { "at least " };
            let mut counts = Vec::new();
            for (count, what) in [(row.ioctls, "call"), (row.grace_periods, "grace period")] {
                let s = if count == Some(1) { "" } else { "s" };
                counts.extend(count.map(|count| format!("{at_least}{count} {what}{s}")));
            }
            let mut costs = vec![counts.join(" and ")];
            if times {
                costs.push(human(time));
                costs.extend(
                    row.ratios.iter().map(|(to, ratio)| format!("{} as {to}", ratio.words())),
                );
            }
            costs.retain(|cost| !cost.is_empty());
            said.push(format!("{name}: {}.", costs.join(", ")));
        }
        said.extend(row.remark().iter().map(|remark| format!("{name}, {remark}.")));
    }
    said
}
