//! Calls that fail as the kernel's would.

use std::cell::RefCell;
use std::collections::VecDeque;

use kvm_memslots_shim::Errno;

/// What becomes of a call that replaces a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::window) enum Fate {
    Passes,
    /// Nothing is changed.
    Fails,
    /// What was there is unmapped. (In truth other tests' threads must not be
    /// given the addresses: they are `PROT_NONE`, and remembered as a hole.)
    FailsLate,
}

#[derive(Default)]
struct Faults {
    next: VecDeque<Fate>,
    holes: Vec<usize>,
}

thread_local!(static FAULTS: RefCell<Faults> = RefCell::default());

fn with<T>(f: impl FnOnce(&mut Faults) -> T) -> T {
    FAULTS.with(|faults| f(&mut faults.borrow_mut()))
}

/// The fates of the next such calls of this thread; those behind pass.
pub(in crate::window) fn set(fates: impl IntoIterator<Item = Fate>) {
    with(|faults| faults.next = fates.into_iter().collect());
}

/// How many fates no call had; none is left.
pub(in crate::window) fn unused() -> usize {
    with(|faults| std::mem::take(&mut faults.next).len())
}

/// How many holes there are that nobody has mended.
pub(in crate::window) fn holes() -> usize {
    with(|faults| faults.holes.len())
}

pub(super) fn pass(at: *mut libc::c_void, size: usize) -> Result<(), Errno> {
    match with(|faults| faults.next.pop_front()) {
        None | Some(Fate::Passes) => {
            with(|faults| faults.holes.retain(|hole| *hole != at.addr()));
            return Ok(());
        }
        Some(Fate::Fails) => {}
        Some(Fate::FailsLate) => {
            let how = super::ANONYMOUS | libc::MAP_FIXED;
            // SAFETY: replaces what the call would have replaced.
            let hole = unsafe { libc::mmap(at, size, libc::PROT_NONE, how, -1, 0) };
            assert!(hole == at);
            with(|faults| faults.holes.push(at.addr()));
        }
    }
    Err(Errno::ENOMEM)
}

pub(super) fn is_hole(at: *mut libc::c_void) -> bool {
    with(|faults| faults.holes.contains(&at.addr()))
}

/// A hole is filled where nothing must be replaced.
pub(super) fn replaces(at: *mut libc::c_void, how: libc::c_int) -> libc::c_int {
    let hole = with(|faults| {
        let found = faults.holes.iter().position(|hole| *hole == at.addr());
        found.filter(|_| how == libc::MAP_FIXED_NOREPLACE).map(|n| faults.holes.remove(n))
    });
    hole.map_or(how, |_| libc::MAP_FIXED)
}
