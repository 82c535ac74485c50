//! `memslots import` and `memslots replay`.

use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::output::OutputFile;
use super::progress::spinner;
use super::shown::{About, OutputArgs};
use super::{Failure, counter, need_kvm};
use crate::compare::ways;
use crate::note::note;
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
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn import(args: &ImportArgs) -> Result<(), Failure> {
    let output = args.output.as_deref().map(OutputFile::open).transpose()?;
    let trace = read(&args.file, args.vm)?;
    match output {
        None => trace::write(&trace, BufWriter::new(io::stdout().lock()))?,
        Some(file) => file.write(|out| trace::write(&trace, out))?,
    }
    let refused = trace.calls.iter().filter(|call| call.errno != 0).count();
    note(format_args!(
        "memslots: {} calls from {}, {refused} of them refused by KVM",
        trace.calls.len(),
        trace.source
    ));
    Ok(())
}

pub(super) fn replay(args: &ReplayArgs) -> Result<(), Failure> {
    let output = args.output.prepare()?;
    let mut trace = read(&args.trace, args.vm)?;
    if args.one_address_space {
        trace = replay::one_address_space(&trace)?;
    }
    if trace.made().next().is_none() {
        let calls = trace.calls.len();
        let why = format!(
            "KVM refused all of the trace's {calls} calls when it was made: nothing to replay"
        );
        return Err(anyhow::Error::msg(why).into());
    }
    need_kvm(&[])?;
    let replay = Replay {
        strategies: ways(&args.strategy),
        gap: (!args.singly).then(|| Duration::from_micros(args.burst_gap)),
        churn_after: args.churn_after,
    };
    let made: Vec<_> = trace.made().copied().collect();
    let bursts = replay.bursts(&made).len();
    let (source, calls) = (trace.source, trace.calls.len());
    let about = About {
        head: Some(format!("{calls} calls from {source}, {bursts} bursts, replayed back to back")),
        calls: counter(Target::Kvm),
        ..About::of("What a VMM's memslot calls cost", &replay::COLUMNS, args.runs)
    };
    output.compare(about, |session| replay.run(&trace, session))
}

fn read(path: &std::path::Path, vm: Option<i32>) -> anyhow::Result<trace::Trace> {
    let _progress = spinner("reading the trace");
    Ok(trace::import(path, vm)?)
}
