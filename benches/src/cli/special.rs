//! Comparisons with options of their own: `memslots bench devices`, `start` and
//! `window`, `memslots density` and `memslots flash`.

use clap::{Args, Subcommand};

use super::shown::{About, OutputArgs};
use super::{Failure, counted_by, counter, need_kvm};
use crate::compare::ways;
use crate::density::{self, Density};
use crate::devices::{self, Devices};
use crate::flash::{self, Way};
use crate::rig::{Busy, Target, Vcpus};
use crate::start::{self, Start};
use crate::window::{self, Windows};
use kvm_memslots_kit::grace::{GraceCounter, Method};
use kvm_memslots_kit::machine::new_vm;

#[derive(Debug, Subcommand)]
pub(super) enum Special {
    /// Whole devices, attached and detached: memory, ioeventfds, MSI-X vectors.
    Devices(Shown<Devices>),
    /// A VM's start in KVM: memory, interrupt controller, vCPUs and devices, in
    /// the order of VMMs and in the best one; one VM, and many at once.
    Start(Shown<Start>),
    /// Blobs that come and go: a slot for each, and a window.
    Window(Shown<Windows>),
}

/// What to measure, and how to show it.
#[derive(Debug, Args)]
pub(super) struct Shown<A: Args> {
    #[command(flatten)]
    what: A,
    #[command(flatten)]
    output: OutputArgs,
}

/// What `memslots flash` measures.
#[derive(Debug, Args)]
pub(super) struct Flash {
    /// Command cycles: a word is programmed, its status polled, two words are
    /// read.
    #[arg(long, value_name = "N", default_value_t = 6000, value_parser = clap::value_parser!(u32).range(1..))]
    cycles: u32,
    /// Busy vCPUs meanwhile; several numbers for several comparisons.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [0, 1])]
    vcpus: Vec<usize>,
    /// What keeps the vCPUs busy.
    #[arg(long, value_enum, default_value_t = Busy::Fault)]
    busy: Busy,
    /// Ways to compare [default: all].
    #[arg(long, value_enum, value_name = "A,B", value_delimiter = ',')]
    way: Vec<Way>,
    /// Runs that are measured; the median counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
}

/// What counts the grace periods of interrupts' changes, too: those of this
/// thread.
const BY_THREAD: [Method; 3] = [Method::Kprobe, Method::Function, Method::QueueWork];

pub(super) fn run(special: &Special) -> Result<(), Failure> {
    match special {
        Special::Devices(args) => devices(args),
        Special::Start(args) => start(args),
        Special::Window(args) => windows(args),
    }
}

fn devices(Shown { what, output }: &Shown<Devices>) -> Result<(), Failure> {
    need_kvm(&what.vcpus)?;
    let output = output.prepare()?;
    let about = About {
        calls: counted_by(&BY_THREAD),
        machine: GraceCounter::first_of(&[Method::InvokeCallbacks], new_vm).ok(),
        ..About::of(
            "What attaching and detaching devices costs",
            if what.profile { &devices::PROFILE } else { &devices::COLUMNS },
            what.runs,
        )
    };
    output.compare(about, |session| devices::devices(what, session))
}

fn start(Shown { what, output }: &Shown<Start>) -> Result<(), Failure> {
    need_kvm(&[])?;
    let output = output.prepare()?;
    let about = About {
        calls: counted_by(&BY_THREAD),
        ..About::of(
            "What setting a VM up costs",
            if what.profile { &start::PROFILE } else { &start::COLUMNS },
            what.runs,
        )
    };
    output.compare(about, |session| start::start(what, session))
}

fn windows(Shown { what, output }: &Shown<Windows>) -> Result<(), Failure> {
    need_kvm(&what.vcpus)?;
    let output = output.prepare()?;
    let about = About {
        calls: counter(Target::Kvm),
        ..About::of("What blobs that come and go cost", &window::COLUMNS, what.runs)
    };
    output.compare(about, |session| window::windows(what, session))
}

pub(super) fn density(Shown { what, output }: &Shown<Density>) -> Result<(), Failure> {
    need_kvm(&[])?;
    let output = output.prepare()?;
    let title = "What assigning irqfds costs beside other VMs";
    let about = About { pin: false, ..About::of(title, &density::COLUMNS, what.rounds) };
    output.compare(about, |session| density::density(what, session))
}

pub(super) fn flash(Shown { what, output }: &Shown<Flash>) -> Result<(), Failure> {
    need_kvm(&what.vcpus)?;
    let output = output.prepare()?;
    let about = About {
        pin: false,
        calls: counter(Target::Kvm),
        ..About::of("What a guest that programs flash costs", &flash::COLUMNS, what.runs)
    };
    output.compare(about, |session| {
        what.vcpus.iter().try_for_each(|count| {
            let vcpus = Vcpus { count: *count, busy: what.busy };
            flash::compare(&ways(&what.way), what.cycles as usize, vcpus, session)
        })
    })
}
