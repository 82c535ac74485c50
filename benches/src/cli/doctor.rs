//! `memslots doctor`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use super::Failure;
use super::output::OutputFile;
use super::progress::spinner;
use crate::doctor::{Doctor, Findings};
use crate::report::{document, json};

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    doctor: Doctor,
    /// One JSON object a line instead of tables.
    #[arg(long)]
    json: bool,
    /// Also write a page into this file.
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
}

pub(super) fn doctor(args: &DoctorArgs) -> Result<(), Failure> {
    let file = args.html.as_deref().map(OutputFile::open).transpose()?;
    let progress = spinner("doctor");
    let findings = Findings::new(args.doctor);
    drop(progress);
    let mut out = io::stdout().lock();
    let parts = findings.parts();
    if args.json {
        json(&findings.json(), &mut out)?;
    } else {
        out.write_all(document::text(&parts).as_bytes())?;
    }
    let Some(file) = file else { return Ok(()) };
    let page = document::html("What this machine's KVM offers, and what it costs", &parts);
    file.write(|out| out.write_all(page.as_bytes()))
}
