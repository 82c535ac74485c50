//! What was measured, as one table.

use super::counts::{Counts, Kind};
use super::{Kernel, Way};

/// One run of a VMM.
#[derive(Debug)]
pub(super) struct Measured {
    way: Way,
    kernel: Kernel,
    pub(super) counts: Counts,
    /// As the kernel counts them, where it can be asked.
    pub(super) grace_periods: Option<u64>,
    /// Seconds until the guest's first process ran.
    pub(super) up: Option<f64>,
    /// And until it had used its devices.
    pub(super) done: Option<f64>,
    pub(super) note: String,
}

impl Measured {
    pub(super) fn new(way: Way, kernel: Kernel) -> Self {
        Self {
            way,
            kernel,
            counts: Counts::default(),
            grace_periods: None,
            up: None,
            done: None,
            note: String::new(),
        }
    }

    fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.kernel.name().to_owned(), self.way.name().to_owned()];
        cells.extend(COLUMNS.iter().map(|(_, kind)| self.counts.of(*kind).to_string()));
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let seconds = |value: Option<f64>| or_none(value.map(|value| format!("{value:.1} s")));
        cells.push(or_none(self.grace_periods.map(|number| number.to_string())));
        cells.extend([seconds(self.up), seconds(self.done), self.note.clone()]);
        cells
    }
}

const COLUMNS: [(&str, Kind); 6] = [
    ("memslot", Kind::Memslot),
    ("batch", Kind::Batch),
    ("ioeventfd", Kind::Ioeventfd),
    ("irqfd", Kind::Irqfd),
    ("routes", Kind::Routes),
    ("MSI", Kind::Msi),
];

/// Markdown, aligned.
pub(super) fn table(rows: &[Measured]) -> String {
    let mut header = vec!["kernel", "way"];
    header.extend(COLUMNS.map(|(name, _)| name));
    header.extend(["GPs", "guest up", "devices used", ""]);
    let mut cells = vec![header.into_iter().map(str::to_owned).collect()];
    cells.extend(rows.iter().map(Measured::cells));
    let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..cells[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let pad = |(cell, width): (&String, &usize)| format!(" {cell:<width$} |");
        format!("|{}", row.iter().zip(&widths).map(pad).collect::<String>())
    };
    let rule: String = widths.iter().map(|width| "-".repeat(width + 2) + "|").collect();
    let mut lines: Vec<String> = cells.iter().map(line).collect();
    lines.insert(1, format!("|{rule}"));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_aligned_and_say_what_is_not_known() {
        let mut row = Measured::new(Way::Ours, Kernel::Host);
        row.counts.add(0x4020_ae46, 12);
        row.up = Some(3.25);
        let text = table(&[row]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
        let cells: Vec<&str> = lines[2].split('|').map(str::trim).collect();
        assert_eq!(cells[1..6], ["host", "ours", "12", "0", "0"]);
        assert_eq!(cells[9..12], ["-", "3.2 s", "-"]);
    }
}
