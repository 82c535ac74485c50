//! A set of changes, as C collects it.

use std::ffi::c_int;

use kvm_memslots::{Changes, Errno};

use crate::failure::Failure;
use crate::handles::{Handle, exclusive, held};
use crate::last::{guard, report};

/// `struct kvm_memslots_changes`
#[derive(Debug, Default)]
pub struct CChanges {
    pub(crate) changes: Changes,
    /// Why it can't be applied: the first call that failed.
    failed: Option<Failure>,
    /// How many begins have had no commit yet.
    begun: usize,
}

held! {
    CChanges, "kvm_memslots_changes", b"kvmsCHNG";
}

impl CChanges {
    /// Adds a change. If that fails or panics, the set has failed.
    fn add(&mut self, f: impl FnOnce(&mut Changes) -> Result<(), Failure>) -> Result<(), Failure> {
        let number = self.changes.len();
        guard(|| f(&mut self.changes)).map_err(|failure| {
            let failure = failure.in_change(number);
            self.failed.get_or_insert_with(|| failure.clone());
            failure
        })
    }

    pub(crate) fn append(&mut self, other: Self) -> Result<(), Failure> {
        other.not_begun()?;
        let number = self.changes.len();
        let failed = other.failed.map(|failure| failure.behind(number));
        self.failed = self.failed.take().or(failed);
        self.changes.append(other.changes);
        Ok(())
    }

    /// One commit more is to come.
    pub(crate) fn begin(&mut self) {
        self.begun += 1;
    }

    /// The changes, if this is the last commit; the set is empty then.
    pub(crate) fn commit(&mut self) -> Result<Option<Changes>, Failure> {
        match self.begun.checked_sub(1) {
            None => Err(Failure::new(Errno::EINVAL, "a commit of a set that was not begun")),
            Some(0) => std::mem::take(self).whole_of().map(Some),
            Some(left) => {
                self.begun = left;
                Ok(None)
            }
        }
    }

    fn not_begun(&self) -> Result<(), Failure> {
        match self.begun {
            0 => Ok(()),
            begun => {
                let message = format!("the set was begun, and {begun} commits are to come");
                Err(Failure::new(Errno::EBUSY, message))
            }
        }
    }

    /// The changes, if all were added.
    pub(crate) fn whole(&self) -> Result<&Changes, Failure> {
        self.failed.clone().map_or(Ok(&self.changes), Err)
    }

    /// The same, to be applied.
    pub(crate) fn into_whole(self) -> Result<Changes, Failure> {
        self.not_begun()?;
        self.whole_of()
    }

    fn whole_of(self) -> Result<Changes, Failure> {
        self.failed.map_or(Ok(self.changes), Err)
    }
}

/// Adds a change to a set.
///
/// # Safety
/// As [the crate](crate#safety).
pub(crate) unsafe fn add(
    changes: *mut Handle<CChanges>,
    f: impl FnOnce(&mut Changes) -> Result<(), Failure>,
) -> c_int {
    // SAFETY: as the caller says.
    report(|| unsafe { exclusive(changes, |changes| changes.add(f)) })
}
