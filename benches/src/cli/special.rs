//! Benchmarks with options of their own: `memslots bench devices`, `start` and
//! `window`.

use clap::{Args, Subcommand};

use super::shown::{About, OutputArgs};
use super::{Failure, counted_by, counter, need_kvm};
use crate::devices::{self, Devices};
use crate::rig::Target;
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
