//! `--html` and `--baseline`, of all comparisons that have them.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::Failure;
use super::output::OutputFile;
use crate::machine::Machine;
use crate::report::{Measured, Report, baseline};

#[derive(Debug, Clone, Args)]
pub(super) struct PageArgs {
    /// Also write a page with sentences, tables and plots into this file.
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    /// Say what changed since this file, which --json printed.
    #[arg(long, value_name = "FILE.json")]
    baseline: Option<PathBuf>,
}

/// What is needed of the two before anything is measured.
#[derive(Debug)]
pub(super) struct Page {
    html: Option<OutputFile>,
    baseline: Option<Vec<Measured>>,
}

impl PageArgs {
    /// Whether there will be plots.
    pub(super) const fn has_page(&self) -> bool {
        self.html.is_some()
    }

    /// Opens what is written later, and reads what is compared with.
    pub(super) fn prepare(&self) -> Result<Page, Failure> {
        let usage = |error: baseline::BaselineError| Failure::Usage(error.to_string());
        let baseline = self.baseline.as_deref().map(baseline::read).transpose().map_err(usage)?;
        let html = self.html.as_deref().map(OutputFile::open).transpose()?;
        Ok(Page { html, baseline })
    }
}

impl Page {
    /// Writes the page; what changed goes beneath the table or, where there is
    /// JSON, to the standard error.
    pub(super) fn finish(
        self,
        rows: &[impl Serialize],
        model: bool,
        json: bool,
    ) -> Result<(), Failure> {
        let rows = Measured::of(rows);
        let changes = self.baseline.map(|before| baseline::changes(&before, &rows));
        if let Some(changes) = &changes {
            let text = changes.join("\n");
            if json {
                eprintln!("{text}");
            } else {
                writeln!(io::stdout().lock(), "\nSince the baseline:\n{text}")?;
            }
        }
        let Some(file) = self.html else { return Ok(()) };
        let command: Vec<_> = std::env::args().skip(1).collect();
        let report = Report {
            title: "What KVM memslot changes cost",
            command: &format!("memslots {}", command.join(" ")),
            machine: &Machine::look(),
            model,
            rows: &rows,
            changes: changes.as_deref(),
        };
        let page = report.page();
        file.write(|out| out.write_all(page.as_bytes()))
    }
}
