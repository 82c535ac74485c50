//! `memslots import` and `memslots replay`.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::output::OutputFile;
use super::page::PageArgs;
use super::progress::{progress, spinner};
use super::{Failure, counter, need_kvm};
use crate::replay::{self, CHURN_AFTER, Replay, Strategy};
use crate::rig::Target;
use crate::trace::{self, BURST_GAP};

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// QEMU's log, strace's output, the kernel's trace or what import wrote;
    /// plain or in gzip; - for the standard input.
    file: PathBuf,
    /// Where to write the trace [default: the standard output].
    #[arg(short, long, value_name = "TRACE")]
    output: Option<PathBuf>,
    /// The descriptor of the VM that is meant, where strace saw several.
    #[arg(long, value_name = "FD")]
    vm: Option<i32>,
}

#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// The trace, or anything that import reads.
    trace: PathBuf,
    /// Ways to compare [default: all].
    #[arg(long, value_enum, value_name = "A,B", value_delimiter = ',')]
    strategy: Vec<Strategy>,
    /// Calls of one thread with no more than this between them, and no vCPU
    /// entered, are of one commit.
    #[arg(long, value_name = "US", default_value_t = BURST_GAP.as_micros() as u64)]
    burst_gap: u64,
    /// Each call is a commit of its own, whenever it was made: what the library
    /// costs where there is nothing to gain.
    #[arg(long, conflicts_with = "burst_gap")]
    singly: bool,
    /// How often a slot has to come back unchanged before it is trapped or
    /// deferred.
    #[arg(long, value_name = "N", default_value_t = CHURN_AFTER)]
    churn_after: u32,
    /// Runs that are measured; the median counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// The descriptor of the VM that is meant, where strace saw several.
    #[arg(long, value_name = "FD")]
    vm: Option<i32>,
    /// Put the slots of a second address space (SMM) above those of the first.
    #[arg(long)]
    one_address_space: bool,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    page: PageArgs,
}

pub(super) fn import(args: &ImportArgs) -> Result<(), Failure> {
    let output = args.output.as_deref().map(OutputFile::open).transpose()?;
    let trace = read(&args.file, args.vm)?;
    match output {
        None => trace::write(&trace, BufWriter::new(io::stdout().lock()))?,
        Some(file) => file.write(|out| trace::write(&trace, out))?,
    }
    let refused = trace.calls.iter().filter(|call| call.errno != 0).count();
    eprintln!(
        "memslots: {} calls from {}, {refused} of them refused by KVM",
        trace.calls.len(),
        trace.source
    );
    Ok(())
}

pub(super) fn replay(args: &ReplayArgs) -> Result<(), Failure> {
    let page = args.page.prepare()?;
    let mut trace = read(&args.trace, args.vm)?;
    if args.one_address_space {
        trace = replay::one_address_space(&trace)?;
    }
    need_kvm(&[])?;
    let mut strategies =
        if args.strategy.is_empty() { Strategy::ALL.to_vec() } else { args.strategy.clone() };
    strategies.sort_unstable();
    strategies.dedup();
    let replay = Replay {
        strategies,
        gap: (!args.singly).then(|| Duration::from_micros(args.burst_gap)),
        churn_after: args.churn_after,
        runs: args.runs as usize,
    };
    let bar = progress(replay.length());
    let on_run = |strategy: Strategy| {
        bar.set_message(strategy.name());
        bar.inc(1);
    };
    let rows = replay.run(&trace, counter(Target::Kvm).as_mut(), on_run);
    bar.finish_and_clear();
    let rows = rows?;
    for row in &rows {
        if let Some(why) = row.skipped {
            eprintln!("memslots: {why}, so {} is skipped", row.strategy);
        }
    }
    let mut out = io::stdout().lock();
    if args.json {
        for row in &rows {
            serde_json::to_writer(&mut out, row).map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
        drop(out);
        return page.finish(&rows, false, true);
    }
    let made: Vec<_> = trace.made().copied().collect();
    let bursts = replay.bursts(&made).len();
    let (source, calls) = (trace.source, trace.calls.len());
    writeln!(out, "{calls} calls from {source}, {bursts} bursts, replayed back to back")?;
    writeln!(out, "{}", replay::table(&rows))?;
    drop(out);
    page.finish(&rows, false, false)
}

fn read(path: &std::path::Path, vm: Option<i32>) -> Result<trace::Trace, trace::TraceError> {
    let _progress = spinner("reading the trace");
    trace::import(path, vm)
}
