//! Carries a plan out, and undoes it if a call fails. Decides nothing.

mod dirty;
mod error;
mod gate;
mod steps;
mod undo;

pub use error::ExecError;
pub use gate::{GateError, Holes, VcpuGate};

use std::time::{Duration, Instant};

use self::dirty::DirtyLogs;
use self::gate::Paused;
use self::steps::{Refusal, Steps};
use self::undo::Incomplete;
use crate::backend::Memslots;
use crate::{Cost, Op, Plan, Range};

/// How a plan's changes are handed to KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// One ioctl a change.
    PerRegion,
    /// `KVM_SET_USER_MEMORY_REGIONS`, at most this many changes a call.
    Batch {
        /// The kernel's limit.
        max_entries: u32,
    },
}

impl How {
    /// What `plan` costs this way.
    #[must_use]
    pub fn cost(self, plan: &Plan) -> Cost {
        match self {
            Self::PerRegion => plan.cost_per_region(),
            Self::Batch { max_entries } => plan.cost_batched(max_entries),
        }
    }
}

/// Dirty pages that KVM has forgotten: its log was read, or went with its slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedDirty {
    /// The pages, in bytes.
    pub range: Range,
    /// A bit a page of `range`, lowest first; `None` where it is not known
    /// which pages are dirty, so that all count as dirty.
    pub pages: Option<Vec<u64>>,
}

/// What carrying out a plan took.
#[derive(Debug, Clone, Default)]
pub struct Done {
    /// Calls that changed memslots, as counted while they were made.
    pub ioctls: u64,
    /// Grace periods that these calls wait for, by the plan.
    pub grace_periods: u64,
    /// From the first call to the last; with a gate, vCPUs were paused for
    /// about this long.
    pub elapsed: Duration,
    /// Whether vCPUs were paused.
    pub paused: bool,
}

/// Carries `plan` out in address space `as_id`.
///
/// - An empty plan calls nothing.
/// - With [`How::Batch`] and room for all changes in one call, KVM makes them
///   visible at once and takes dirty bits along; `holes` has no say then.
///   Elsewhere a plan with holes goes by `holes`: it is refused before the
///   first call, or vCPUs are paused from before the first call to after the
///   last, undoing included, or it is carried out as they do not run.
/// - A change that KVM refuses ends the plan, and those before it are undone,
///   last first. For a moment vCPUs may then have seen a part of the plan:
///   memory that was to go away gone, and new memory there.
///
/// # Dirty pages
/// What a vCPU has written to a logged slot is never forgotten: if KVM's log
/// does not say it when the call returns, `saved` does, which is appended to,
/// also on error. Under a gate, the logs of slots with a carry are read before
/// the first change (`KVM_GET_DIRTY_LOG` clears them), and what is carried is
/// saved page by page; without a gate, or with a dirty ring, carried ranges
/// count as dirty as a whole. If the plan is not done, `saved` has the whole of
/// each log that was read, and the whole range of each slot that lost its log
/// for good before it came back. Ranges may overlap.
///
/// A VMM that uses a dirty ring reaps it before it changes memory: entries name
/// slots, and a slot that was replaced has another id or other pages. With
/// `KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP` the log that is read is only of what no
/// vCPU wrote.
///
/// ```
/// use kvm_memslots_shim::backend::{Errno, Model};
/// use kvm_memslots_shim::exec::{ExecError, Holes, How, execute};
/// use kvm_memslots_shim::{Limits, Mapping, Op, Plan, Slot};
///
/// let slot = |id, gpa| Slot { id, mapping: Mapping::ram(gpa, 0x4000, 0x7f00_0000_0000 + gpa) };
/// let mut vm = Model::new(Limits::x86());
/// vm.set_user_memory_region2(&slot(9, 0x6000).to_kvm(0))?;
///
/// let plan = Plan {
///     ops: vec![Op::Create(slot(0, 0)), Op::Create(slot(1, 0x4000))],
///     ..Plan::default()
/// };
/// let mut saved = Vec::new();
/// // SAFETY: the model maps nothing.
/// let result =
///     unsafe { execute(&mut vm, 0, &plan, How::PerRegion, Holes::Refuse, &mut saved) };
/// // Slot 9 is in the way of the second change; the first one is undone.
/// let Err(ExecError::Refused { index: Some(1), errno: Errno::EEXIST, .. }) = result else {
///     panic!("{result:?}");
/// };
/// assert_eq!(vm.slots(0).collect::<Vec<_>>(), [slot(9, 0x6000)]);
/// # Ok::<(), Errno>(())
/// ```
///
/// # Errors
/// [`ExecError`]. In every case but [`ExecError::Stuck`] the layout is what it
/// was.
///
/// # Safety
/// [`Memslots::set_region`] for each slot that the plan creates or moves, and
/// for each that it deletes, which an undo creates again.
pub unsafe fn execute<B: Memslots + ?Sized>(
    backend: &mut B,
    as_id: u16,
    plan: &Plan,
    how: How,
    holes: Holes<'_>,
    saved: &mut Vec<SavedDirty>,
) -> Result<Done, ExecError> {
    if plan.ops.is_empty() {
        return Ok(Done::default());
    }
    let limits = backend.limits();
    let mut steps = Steps::new(backend, as_id, &plan.ops, how);
    let atomic = steps.is_atomic();
    debug_assert!(
        atomic || plan.carries.is_empty() || !plan.holes.is_empty(),
        "pages that stay, in a slot that goes, are a hole"
    );
    let paused = match (plan.holes.first(), holes) {
        (Some(_), _) if atomic => None,
        (Some(first), Holes::Refuse) => {
            return Err(ExecError::Hole { first: *first, count: plan.holes.len() });
        }
        (Some(_), Holes::Gate(gate)) => Some(Paused::new(gate)?),
        (Some(_), Holes::NoVcpuRuns) | (None, _) => None,
    };

    let start = Instant::now();
    let carries = if atomic { &[][..] } else { &plan.carries };
    let mut logs = DirtyLogs::new(saved, carries, limits);
    if paused.is_some() {
        logs.read(steps.backend, as_id)?;
    }
    for step in 0..steps.count() {
        // SAFETY: the caller's promise is the same.
        if let Err(refusal) = unsafe { steps.take(step) } {
            // SAFETY: as above; what the undo creates is what the plan deleted.
            return Err(unsafe { give_up(steps, step, refusal, logs) });
        }
    }
    let ioctls = steps.count() as u64;
    logs.keep_carried();
    Ok(Done {
        ioctls,
        grace_periods: how.cost(plan).grace_periods,
        elapsed: start.elapsed(),
        paused: paused.is_some(),
    })
}

/// Undoes the first `done` steps and says what has become of the plan.
///
/// # Safety
/// [`execute`].
#[cold]
unsafe fn give_up<B: Memslots + ?Sized>(
    mut steps: Steps<'_, B>,
    done: usize,
    refusal: Refusal,
    logs: DirtyLogs<'_>,
) -> ExecError {
    let Refusal { index, errno } = refusal;
    // SAFETY: the caller's promise is the same.
    match unsafe { undo::undo(&mut steps, done) } {
        Ok(()) => {
            logs.keep_undone(&steps, done, None);
            ExecError::Refused { index, op: op_at(steps.ops(), index), errno }
        }
        Err(Incomplete { errno: undo_errno, live }) => {
            logs.keep_undone(&steps, done, Some(&live));
            ExecError::Stuck { index, errno, undo_errno, live }
        }
    }
}

/// Has KVM check `plan` without changing anything.
///
/// - With [`How::Batch`], the first call's worth of changes is checked by the
///   kernel: all, unless the plan needs several calls. Later ones build on
///   what earlier ones leave, so they can't be checked before.
/// - With [`How::PerRegion`] nothing is called: those ioctls have no dry run.
///
/// # Errors
/// [`ExecError::Refused`]: what [`execute`] would give.
pub fn dry_run<B: Memslots + ?Sized>(
    backend: &mut B,
    as_id: u16,
    plan: &Plan,
    how: How,
) -> Result<(), ExecError> {
    if plan.ops.is_empty() {
        return Ok(());
    }
    Steps::new(backend, as_id, &plan.ops, how).check_first().map_err(|refusal| {
        let Refusal { index, errno } = refusal;
        ExecError::Refused { index, op: op_at(&plan.ops, index), errno }
    })
}

fn op_at(ops: &[Op], index: Option<usize>) -> Option<Op> {
    index.and_then(|index| ops.get(index).copied())
}
