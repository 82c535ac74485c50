//! `memslots import` and `memslots replay`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Failure, counter};
use crate::machine::open_kvm;
use crate::replay::{self, CHURN_AFTER, Replay, Strategy};
use crate::rig::Target;
use crate::trace::{self, BURST_GAP, bursts};

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// QEMU's log, strace's output or a trace; plain or in gzip; - for the
    /// standard input.
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
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

pub(super) fn import(args: &ImportArgs) -> Result<(), Failure> {
    let trace = trace::import(&args.file, args.vm)?;
    match &args.output {
        None => trace::write(&trace, BufWriter::new(io::stdout().lock()))?,
        Some(path) => {
            let named = |error: io::Error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            };
            let file = File::create(path).map_err(named)?;
            trace::write(&trace, BufWriter::new(file)).map_err(named)?;
        }
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
    let trace = trace::import(&args.trace, args.vm)?;
    open_kvm().map_err(|why| Failure::Usage(format!("a trace is replayed on KVM: {why}")))?;
    let mut strategies =
        if args.strategy.is_empty() { Strategy::ALL.to_vec() } else { args.strategy.clone() };
    strategies.sort_unstable();
    strategies.dedup();
    let replay = Replay {
        strategies,
        gap: Duration::from_micros(args.burst_gap),
        churn_after: args.churn_after,
        runs: args.runs as usize,
    };
    let rows = replay.run(&trace, counter(Target::Kvm).as_mut())?;
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
        return Ok(());
    }
    let made: Vec<_> = trace.made().copied().collect();
    let bursts = bursts(&made, replay.gap).len();
    let (source, calls) = (trace.source, trace.calls.len());
    writeln!(out, "{calls} calls from {source}, {bursts} bursts, replayed back to back")?;
    writeln!(out, "{}", replay::table(&rows))?;
    Ok(())
}
