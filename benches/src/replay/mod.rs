//! Replays a trace on real KVM, in several ways side by side.
//!
//! No guest runs meanwhile, and the pauses of the trace are left out: what is
//! measured are the calls, back to back.

mod churn;
mod commits;
mod kernel_memory;
mod memory;
mod one_space;

pub use churn::{CHURN_AFTER, Churn, With};
pub use commits::Commits;
pub use memory::TracedMemory;
pub use one_space::one_address_space;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kvm_ioctls::VmFd;
use kvm_memslots::{Executor, HolePolicy, Limits, Vm, vm_fd};
use kvm_memslots_shim::uapi::MemFlags;
use thiserror::Error;

use crate::compare::{Session, Shape, Stop, Taken, Watch};
use crate::report::Column;
pub use crate::spent::Spent;
use crate::trace::{Call, Trace, bursts};
use crate::way::shown_by_name;
use kvm_memslots_kit::machine::new_vm;
use kvm_memslots_kit::raw::{OnKvm, RawCalls};

/// A way to make the calls of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Strategy {
    /// As the VMM made them.
    PerRegion,
    /// `kvm-memslots`, a commit for each burst, in single calls.
    Shim,
    /// A slot that keeps coming back unchanged is trapped, not deleted.
    Trap,
    /// A slot that keeps coming back unchanged is not made again.
    Deferred,
    /// `kvm-memslots`, a commit for each burst, by the batch ioctl.
    Batch,
}

impl Strategy {
    /// What has to be said about its numbers.
    const fn note(self) -> Option<&'static str> {
        match self {
            Self::Deferred => Some(
                "a lower bound: the trace does not hold the guest's reads, which would make some \
                 of the maps necessary",
            ),
            _ => None,
        }
    }

    /// Why a kernel that allows `limits` can't do it.
    const fn lacks(self, limits: &Limits) -> Option<&'static str> {
        match self {
            Self::Trap if !limits.trap => Some("this kernel has no KVM_MEM_TRAP"),
            Self::Batch if limits.batch.is_none() => {
                Some("this kernel has no KVM_SET_USER_MEMORY_REGIONS")
            }
            _ => None,
        }
    }
}

shown_by_name!(Strategy);

/// Makes calls of a trace.
pub trait Make {
    /// Makes the calls of one burst, none of which KVM refused when the trace
    /// was made.
    ///
    /// # Errors
    /// The line of the call that was refused, or of the burst's last one where
    /// that is not known, and why.
    fn burst(&mut self, calls: &[Call]) -> Result<Spent, Refused>;
}

/// KVM does not take a call of the trace.
#[derive(Debug, Error)]
#[error("the call of line {line} is refused here: {why}")]
pub struct Refused {
    /// Its line in the file that was imported.
    pub line: u64,
    /// The errno, or the library's error.
    pub why: String,
}

/// What to replay, and how.
#[derive(Debug, Clone)]
pub struct Replay {
    /// The ways.
    pub strategies: Vec<Strategy>,
    /// See [`bursts`]; none where each call is to be a burst of its own.
    pub gap: Option<Duration>,
    /// How often a slot comes back unchanged before it counts as one that
    /// keeps doing so.
    pub churn_after: u32,
}

/// The columns of the table.
pub const COLUMNS: [Column; 6] = [
    Column::Way("strategy"),
    Column::Ioctls,
    Column::Said("flips", "flips"),
    Column::GracePeriods,
    Column::Time("time"),
    Column::Ratio("ratio", "per-region"),
];

impl Replay {
    /// The calls, by what is committed at once.
    #[must_use]
    pub fn bursts<'a>(&self, calls: &'a [Call]) -> Vec<&'a [Call]> {
        match self.gap {
            Some(gap) => bursts(calls, gap),
            None => calls.chunks(1).collect(),
        }
    }

    /// Replays the trace. Nothing is run unless this machine's VMs can have all its
    /// slots.
    ///
    /// # Errors
    /// What there is no room for, or was refused; what this kernel lacks is a row that says so.
    pub fn run(&self, trace: &Trace, session: &mut Session<'_>) -> Result<()> {
        let limits = limits_of(&new_vm().context("no VM")?)?;
        trace.made().try_for_each(|call| fits(call, &limits))?;
        let memory = TracedMemory::reserve(trace)?;
        let calls: Vec<Call> = trace.made().map(|call| memory.place(call)).collect();
        kernel_memory::check(&calls)?;
        let bursts = self.bursts(&calls);
        let shape = Shape {
            what: format!("replay of {}", trace.source),
            size: trace.calls.len() as u64,
            unit: "calls",
            more: vec![("traced", trace.calls.len().into()), ("bursts", bursts.len().into())],
        };
        let against = [Strategy::PerRegion];
        let run = |strategy: Strategy, watch: &mut Watch<'_>| match strategy.lacks(&limits) {
            Some(why) => Err(Stop::Skip(why.to_owned())),
            None => Ok(vec![self.replay(strategy, &bursts, watch)?]),
        };
        let mut notes = self.strategies.iter().map(|strategy| strategy.note().map(str::to_owned));
        session.compare(&[shape], &self.strategies, &against, run, |row| {
            row.note = notes.next().flatten();
        })
    }

    /// All of the trace, on a VM of its own.
    fn replay(
        &self,
        strategy: Strategy,
        bursts: &[&[Call]],
        watch: &mut Watch<'_>,
    ) -> Result<Taken> {
        let vm = new_vm().context("no VM")?;
        let mut maker = self.maker(strategy, &vm)?;
        let (spent, lap) = watch.lap(|| {
            let mut spent = Spent::default();
            bursts.iter().try_for_each(|burst| maker.burst(burst).map(|cost| spent += cost))?;
            Ok::<_, Refused>(spent)
        });
        let spent = spent.with_context(|| strategy.to_string())?;
        Ok(Taken { more: vec![("flips", spent.flips.into())], ..spent.taken(lap) })
    }

    fn maker(&self, strategy: Strategy, vm: &VmFd) -> Result<Box<dyn Make>> {
        let churn = |with| -> Result<Box<dyn Make>> {
            let calls = Box::new(OnKvm::new(vm).context("no VM")?);
            // SAFETY: the calls are those that `TracedMemory` placed, in memory
            // that outlives the VM and that nobody accesses.
            Ok(Box::new(unsafe { Churn::new(calls, with, self.churn_after) }))
        };
        let commits = |executor| -> Result<Box<dyn Make>> {
            let builder = Vm::builder().executor(executor).holes(HolePolicy::NoVcpuRuns);
            // SAFETY: as above.
            Ok(Box::new(unsafe { Commits::new(builder.open(vm_fd(vm))?) }))
        };
        match strategy {
            Strategy::PerRegion => churn(With::Nothing),
            Strategy::Trap => churn(With::Trap),
            Strategy::Deferred => churn(With::Defer),
            Strategy::Shim => commits(Executor::PerRegion),
            Strategy::Batch => commits(Executor::Batch),
        }
    }
}

/// The trace needs what no VM here has.
fn beyond<T>(call: &Call, needs: &str) -> Result<T> {
    let is_space = needs.starts_with("address space");
    let hint = if is_space { "; --one-address-space replays without" } else { "" };
    bail!("line {}: {needs}, which this machine's VMs do not have{hint}", call.line)
}

fn limits_of(vm: &VmFd) -> Result<Limits> {
    Ok(OnKvm::new(vm).context("no VM")?.limits())
}

/// Whether a VM can have such a slot.
fn fits(call: &Call, limits: &Limits) -> Result<()> {
    let flags = MemFlags::from_bits_retain(call.region.flags);
    let unknown = flags - (MemFlags::READONLY | MemFlags::LOG_DIRTY_PAGES);
    let needs = if flags.contains(MemFlags::GUEST_MEMFD) {
        "a slot with a guest_memfd".to_owned()
    } else if !unknown.is_empty() {
        format!("a slot with the flags {:#x}", unknown.bits())
    } else if call.as_id() >= limits.address_spaces {
        format!("address space {}", call.as_id())
    } else if u32::from(call.slot()) >= limits.slots {
        format!("slot {}", call.slot())
    } else if flags.contains(MemFlags::READONLY) && !limits.readonly {
        "a read-only slot".to_owned()
    } else {
        return Ok(());
    };
    beyond(call, &needs)
}
