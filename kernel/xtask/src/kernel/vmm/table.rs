//! What was measured, as one table.

use super::counts::{Counts, Kind};
use super::which::{Kernel, Way};

/// What a VMM's table has beside kernel and way.
#[derive(Debug)]
pub(super) struct Columns {
    /// Heads the column that says which run it was, if there are several.
    pub(super) run: Option<&'static str>,
    pub(super) kinds: &'static [(&'static str, Kind)],
    /// Whether [`Measured::set_up`] is known of it.
    pub(super) set_up: bool,
    /// What [`Measured::up`] and [`Measured::done`] are times of.
    pub(super) times: [&'static str; 2],
}

/// One run of a VMM.
#[derive(Debug)]
pub(super) struct Measured {
    way: Way,
    kernel: Kernel,
    run: &'static str,
    pub(super) counts: Counts,
    /// As the kernel counts them, where it can be asked.
    pub(super) grace_periods: Option<u64>,
    /// Seconds from the VM's making to its first `KVM_RUN`.
    pub(super) set_up: Option<f64>,
    /// Seconds until the first of the table's times.
    pub(super) up: Option<f64>,
    /// And until the second.
    pub(super) done: Option<f64>,
    pub(super) notes: Vec<String>,
    /// Why the run is not what it was to be.
    pub(super) failed: Option<String>,
    /// What is said below the table.
    pub(super) remarks: Vec<String>,
}

impl Measured {
    pub(super) fn new(way: Way, kernel: Kernel, run: &'static str) -> Self {
        Self {
            way,
            kernel,
            run,
            counts: Counts::default(),
            grace_periods: None,
            set_up: None,
            up: None,
            done: None,
            notes: Vec::new(),
            failed: None,
            remarks: Vec::new(),
        }
    }

    /// Why the run, and which, is not what it was to be.
    pub(super) fn failure(&self) -> Option<String> {
        let failed = self.failed.as_ref()?;
        let which = [self.kernel.name(), self.way.name(), self.run];
        let which: Vec<&str> = which.into_iter().filter(|part| !part.is_empty()).collect();
        Some(format!("{}: {failed}", which.join(", ")))
    }

    fn cells(&self, columns: &Columns) -> Vec<String> {
        let mut cells = vec![self.kernel.name().to_owned(), self.way.name().to_owned()];
        cells.extend(columns.run.map(|_| self.run.to_owned()));
        cells.extend(columns.kinds.iter().map(|(_, kind)| self.counts.of(*kind).to_string()));
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let seconds = |value: Option<f64>| or_none(value.map(|value| format!("{value:.1} s")));
        cells.push(or_none(self.grace_periods.map(|number| number.to_string())));
        let set_up = || or_none(self.set_up.map(|value| format!("{:.1} ms", value * 1e3)));
        cells.extend(columns.set_up.then(set_up));
        let notes: Vec<&str> = self.notes.iter().chain(&self.failed).map(String::as_str).collect();
        cells.extend([seconds(self.up), seconds(self.done), notes.join(", ")]);
        cells
    }
}

/// Markdown, aligned.
pub(super) fn table(columns: &Columns, rows: &[Measured]) -> String {
    let mut header = vec!["kernel", "way"];
    header.extend(columns.run);
    header.extend(columns.kinds.iter().map(|(name, _)| *name));
    header.push("GPs");
    header.extend(columns.set_up.then_some("set up"));
    header.extend(columns.times);
    header.push("");
    let mut cells: Vec<Vec<String>> = vec![header.into_iter().map(str::to_owned).collect()];
    cells.extend(rows.iter().map(|row| row.cells(columns)));
    let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..cells[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let pad = |(cell, width): (&String, &usize)| format!(" {cell:<width$} |");
        format!("|{}", row.iter().zip(&widths).map(pad).collect::<String>())
    };
    let rule: String = widths.iter().map(|width| "-".repeat(width + 2) + "|").collect();
    let mut lines: Vec<String> = cells.iter().map(line).collect();
    lines.insert(1, format!("|{rule}"));
    for remark in rows.iter().flat_map(|row| &row.remarks) {
        lines.push(format!("\n- {remark}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_aligned_and_say_what_is_not_known() {
        const KINDS: [(&str, Kind); 2] = [("memslot", Kind::Memslot), ("batch", Kind::Batch)];
        let mut row = Measured::new(Way::Ours, Kernel::Host, "vga");
        row.counts.add(0x4020_ae46, 12);
        (row.set_up, row.up) = (Some(0.0075), Some(3.25));
        for run in [None, Some("run")] {
            let columns =
                Columns { run, kinds: &KINDS, set_up: run.is_none(), times: ["up", "done"] };
            let text = table(&columns, std::slice::from_ref(&row));
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
            let mut cells: Vec<&str> = lines[2].split('|').map(str::trim).collect();
            if run.is_some() {
                assert_eq!(cells.remove(3), "vga");
            } else {
                assert_eq!(cells.remove(6), "7.5 ms");
            }
            assert_eq!(cells[1..8], ["host", "ours", "12", "0", "-", "3.2 s", "-"]);
        }
    }
}
