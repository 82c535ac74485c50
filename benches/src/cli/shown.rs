//! How every comparison is shown: as a table or JSON, in a plot, on a page, beside a
//! run before.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use super::Failure;
use super::output::OutputFile;
use super::progress::spinner;
use crate::compare::{Row, Session};
use crate::note::note;
use crate::report::{self, Column, Report, baseline, table};
use kvm_memslots_kit::grace::GraceCounter;
use kvm_memslots_kit::machine::Machine;

#[derive(Debug, Clone, Args)]
pub(super) struct OutputArgs {
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Also draw the times into this SVG file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Also write a page with sentences, tables and plots into this file.
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    /// Say what changed since this file, which --json printed.
    #[arg(long, value_name = "FILE.json")]
    baseline: Option<PathBuf>,
}

/// A comparison to be made.
pub(super) struct About {
    /// What plot and page are called.
    pub(super) title: &'static str,
    /// What is said above the table.
    pub(super) head: Option<String>,
    pub(super) columns: &'static [Column],
    /// Whether times mean nothing, as changes are made on the model of KVM.
    pub(super) model: bool,
    pub(super) runs: u32,
    pub(super) pin: bool,
    pub(super) calls: Option<GraceCounter>,
    pub(super) machine: Option<GraceCounter>,
}

impl About {
    /// Of what is made on KVM, on one CPU, without counting grace periods.
    pub(super) const fn of(title: &'static str, columns: &'static [Column], runs: u32) -> Self {
        let (head, calls, machine) = (None, None, None);
        Self { title, head, columns, model: false, runs, pin: true, calls, machine }
    }
}

/// What is written when all is measured, and checked before.
pub(super) struct Output {
    json: bool,
    plot: Option<OutputFile>,
    html: Option<OutputFile>,
    baseline: Option<Vec<Row>>,
}

impl OutputArgs {
    /// Whether there will be plots over sizes.
    pub(super) const fn has_page(&self) -> bool {
        self.html.is_some()
    }

    /// Opens what is written later, and reads what is compared with.
    pub(super) fn prepare(&self) -> Result<Output, Failure> {
        let usage = |error: anyhow::Error| Failure::Usage(error.to_string());
        let baseline = self.baseline.as_deref().map(baseline::read).transpose().map_err(usage)?;
        let plot = self.plot.as_deref().map(OutputFile::open).transpose()?;
        let html = self.html.as_deref().map(OutputFile::open).transpose()?;
        for (names, one, other) in [
            ("--plot and --html", &plot, &self.html),
            ("--plot and --baseline", &plot, &self.baseline),
            ("--html and --baseline", &html, &self.baseline),
        ] {
            if let (Some(one), Some(other)) = (one, other)
                && one.is_at(other)
            {
                let why = format!("{}: {names} need a file each", other.display());
                return Err(Failure::Usage(why));
            }
        }
        Ok(Output { json: self.json, plot, html, baseline })
    }
}

impl Output {
    /// Has `measure` make the comparison, and shows its rows: JSON as they come,
    /// all else at the end, what there is before a failure included.
    pub(super) fn compare<E: Into<anyhow::Error>>(
        self,
        about: About,
        measure: impl FnOnce(&mut Session<'_>) -> Result<(), E>,
    ) -> Result<(), Failure> {
        let (mut rows, mut written) = (Vec::new(), Ok(()));
        let progress = spinner("");
        let mut session = Session {
            runs: about.runs as usize,
            pin: about.pin,
            calls: about.calls,
            machine: about.machine,
            on_run: &mut |what| progress.set_message(what.to_owned()),
            on_rows: &mut |new| {
                if self.json && written.is_ok() {
                    written = progress.suspend(|| report::json(&new, io::stdout().lock()));
                }
                rows.extend(new);
            },
        };
        let measured = measure(&mut session);
        drop(session);
        drop(progress);
        if !self.json && !rows.is_empty() {
            let mut out = io::stdout().lock();
            about.head.iter().try_for_each(|head| writeln!(out, "{head}"))?;
            // Programs get what was measured, people what means something.
            let shown = rows.iter().cloned();
            let shown = shown.map(|row| if about.model { row.without_times() } else { row });
            writeln!(out, "{}", table(about.columns, &shown.collect::<Vec<_>>()))?;
        }
        measured.map_err(|error| Failure::Run(error.into()))?;
        written?;
        if let Some(file) = self.plot {
            let svg = report::plot(about.title, &rows)?;
            file.write(|out| out.write_all(svg.as_bytes()))?;
        }
        let changes = self.baseline.map(|before| baseline::changes(&before, &rows));
        if let Some(changes) = &changes {
            let text = changes.join("\n");
            if self.json {
                note(text);
            } else {
                writeln!(io::stdout().lock(), "\nSince the baseline:\n{text}")?;
            }
        }
        let Some(file) = self.html else { return Ok(()) };
        let command: Vec<_> = std::env::args().skip(1).collect();
        let report = Report {
            title: about.title,
            command: &format!("memslots {}", command.join(" ")),
            machine: &Machine::look(),
            model: about.model,
            columns: about.columns,
            rows: &rows,
            changes: changes.as_deref(),
        };
        let page = report.page();
        file.write(|out| out.write_all(page.as_bytes()))
    }
}
