//! From the first call to the last.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::dirty::{DirtyLogs, SavedDirty};
use super::error::{Failed, Why};
use super::steps::{Refusal, Steps};
use super::undo::{Undone, undo};
use crate::errno::Errno;
use crate::guard::{guarded, keep_first};
use crate::memory::calls::MemoryCalls;
use crate::memory::op::{How, Op};
use crate::memory::plan::Plan;

/// What carrying out a plan took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// Calls that changed memslots, as counted while they were made.
    pub ioctls: u64,
    /// Grace periods that these calls wait for, by KVM's rules.
    pub grace_periods: u64,
    /// From the first call to the last.
    pub elapsed: Duration,
}

/// Carries `plan` out in address space `as_id`. `traps` is whether a flip has had a
/// slot of the VM trap ([`How::grace_periods`]), also by a plan that was undone.
///
/// - An empty plan calls nothing.
/// - With [`How::Batch`] and room for all changes in one call, KVM makes them
///   visible at once and takes dirty bits along. Elsewhere vCPUs that run see
///   the plan's [holes](Plan::holes): whether that may be is the caller's to
///   know.
/// - A change that KVM refuses ends the plan, and those before it are undone,
///   last first. For a moment vCPUs may then have seen a part of the plan:
///   memory that was to go away gone, and new memory there.
/// - A call of `calls` that panics counts as refused with `EIO`, and as one that
///   may have been carried out all the same.
///
/// # Dirty pages
/// What a vCPU has written to a logged slot is never forgotten: if KVM's log
/// does not say it when the call returns, `saved` does, which is appended to,
/// also on error. With `read_logs`, for callers who know that no vCPU runs, the
/// logs of slots with a carry are read before the first change
/// (`KVM_GET_DIRTY_LOG` clears them), and what is carried is saved page by page;
/// without it, or with a dirty ring, carried ranges count as dirty as a whole.
/// If the plan is not done, `saved` has the whole of each log that was read, and
/// the whole range of each slot that lost its log for good before it came back.
/// Ranges may overlap.
///
/// A VMM that uses a dirty ring reaps it before it changes memory: entries name
/// slots, and a slot that was replaced has another id or other pages. With
/// `KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP` the log that is read is only of what no
/// vCPU wrote.
///
#[cfg_attr(feature = "model", doc = "```")]
#[cfg_attr(not(feature = "model"), doc = "```ignore")]
/// use kvm_memslots_shim::memory::{How, MemoryCalls, Model, Op, Plan, Why, execute};
/// use kvm_memslots_shim::{Errno, Kind, Limits, Mapping, Range, Slot};
///
/// let slot = |id, gpa| {
///     let range = Range::new(gpa, 0x4000)?;
///     Some(Slot { id, mapping: Mapping::new(range, 0x7f00_0000_0000 + gpa, Kind::Ram)? })
/// };
/// let [low, high, other] = [(0, 0), (1, 0x4000), (9, 0x6000)]
///     .map(|(id, gpa)| slot(id, gpa).expect("neither empty nor at the end"));
/// let vm = Model::new(Limits::x86());
/// // SAFETY: the model maps nothing.
/// unsafe { vm.change(0, &Op::Create(other))? };
///
/// let plan = Plan { ops: vec![Op::Create(low), Op::Create(high)], ..Plan::default() };
/// let mut saved = Vec::new();
/// // SAFETY: as above.
/// let result = unsafe { execute(&vm, 0, &plan, How::PerRegion, &mut false, false, &mut saved) };
/// // Slot 9 is in the way of the second change; the first one is undone.
/// let why = result.map_err(|failed| failed.why);
/// let Err(Why::Refused { index: Some(1), errno: Errno::EEXIST, .. }) = why else {
///     panic!("{why:?}");
/// };
/// assert_eq!(vm.slots(0), [other]);
/// # Ok::<(), Errno>(())
/// ```
///
/// # Errors
/// [`Failed`]. In every case but [`Why::Stuck`] the layout is what it was.
///
/// # Safety
/// [`MemoryCalls::change`] for each slot that the plan creates or moves, and
/// for each that it deletes, which an undo creates again.
#[allow(clippy::result_large_err)] // Once a plan; the caller makes its own of it.
pub unsafe fn execute(
    calls: &dyn MemoryCalls,
    as_id: u16,
    plan: &Plan,
    how: How,
    traps: &mut bool,
    read_logs: bool,
    saved: &mut Vec<SavedDirty>,
) -> Result<Done, Failed> {
    if plan.ops.is_empty() {
        return Ok(Done::default());
    }
    let steps = Steps::new(calls, as_id, &plan.ops, how, Cell::from_mut(traps));
    let atomic = steps.is_atomic();
    debug_assert!(
        atomic || plan.carries.is_empty() || !plan.holes.is_empty(),
        "pages that stay, in a slot that goes, are a hole"
    );
    let limits = guarded(|| calls.limits()).map_err(|panic| {
        refused(&steps, Refusal { index: None, errno: Errno::EIO, panic: Some(panic) })
    })?;

    let start = Instant::now();
    let carries = if atomic { &[][..] } else { &plan.carries };
    let mut logs = DirtyLogs::new(saved, carries, limits);
    if read_logs {
        logs.read(&steps).map_err(|(slot, Refusal { errno, panic, .. })| Failed {
            why: Why::DirtyLog { slot, errno },
            panic,
        })?;
    }
    let mut grace_periods = 0;
    for step in 0..steps.count() {
        // SAFETY: the caller's promise is the same.
        match unsafe { steps.take(step) } {
            Ok(waited) => grace_periods += waited,
            Err(refusal) => {
                let keep = |done, undone: &Undone| logs.keep_undone(&steps, done, undone);
                // SAFETY: as above; what the undo creates is what the plan deleted.
                return Err(unsafe { give_up(&steps, step, refusal, keep) });
            }
        }
    }
    logs.keep_carried();
    Ok(Done { ioctls: steps.count() as u64, grace_periods, elapsed: start.elapsed() })
}

/// [`execute`] of a plan of one change that takes no dirty log away: the same
/// without what only more of them need.
///
/// # Errors
/// As there.
///
/// # Safety
/// As there.
#[allow(clippy::result_large_err)] // As there.
pub unsafe fn execute_one(
    calls: &dyn MemoryCalls,
    as_id: u16,
    op: &Op,
    how: How,
    traps: &mut bool,
) -> Result<Done, Failed> {
    debug_assert!(!(op.invalidates() && op.before().is_some_and(|slot| slot.mapping.is_logged())));
    let steps = Steps::new(calls, as_id, std::slice::from_ref(op), how, Cell::from_mut(traps));
    let start = Instant::now();
    // SAFETY: the caller's promise is the same.
    match unsafe { steps.take(0) } {
        Ok(grace_periods) => Ok(Done { ioctls: 1, grace_periods, elapsed: start.elapsed() }),
        // SAFETY: as above.
        Err(refusal) => Err(unsafe { give_up(&steps, 0, refusal, |_, _| ()) }),
    }
}

/// Undoes the first `done` steps and says what has become of the plan. `keep` is
/// told how many may have been carried out, and what became of them.
///
/// # Safety
/// [`execute`].
#[cold]
unsafe fn give_up(
    steps: &Steps<'_>,
    done: usize,
    refusal: Refusal,
    keep: impl FnOnce(usize, &Undone),
) -> Failed {
    let panicked = refusal.panic.is_some();
    // SAFETY: the caller's promise is the same.
    let undone = unsafe { undo(*steps, done, panicked) };
    keep(done + usize::from(panicked), &undone);
    let complete = undone.is_complete();
    let mut failed = refused(steps, refusal);
    keep_first(&mut failed.panic, undone.panic);
    if let (Why::Refused { index, op, errno }, false) = (&failed.why, complete) {
        failed.why = Why::Stuck {
            index: *index,
            op: *op,
            errno: *errno,
            undo_errno: undone.errno.unwrap_or(*errno),
            live: undone.live,
            unsure: undone.unsure,
        };
    }
    failed
}

/// Has KVM check `plan` without changing anything.
///
/// - With [`How::Batch`], the first call's worth of changes is checked by the
///   kernel: all, unless the plan needs several calls. Later ones build on
///   what earlier ones leave, so they can't be checked before.
/// - With [`How::PerRegion`] nothing is called: those ioctls have no dry run.
///
/// # Errors
/// [`Why::Refused`]: what [`execute`] would give.
#[allow(clippy::result_large_err)] // As there.
pub fn check(calls: &dyn MemoryCalls, as_id: u16, plan: &Plan, how: How) -> Result<(), Failed> {
    if plan.ops.is_empty() {
        return Ok(());
    }
    let traps = Cell::new(false);
    let steps = Steps::new(calls, as_id, &plan.ops, how, &traps);
    steps.check_first().map_err(|refusal| refused(&steps, refusal))
}

fn refused(steps: &Steps<'_>, refusal: Refusal) -> Failed {
    let Refusal { index, errno, panic } = refusal;
    let op = index.and_then(|index| steps.ops.get(index).copied());
    Failed { why: Why::Refused { index, op, errno }, panic }
}
