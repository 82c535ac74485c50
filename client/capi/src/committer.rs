//! Who applies changes, for the gate that pauses the others.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::null_mut;

thread_local!(static COMMITTER: Cell<*mut c_void> = const { Cell::new(null_mut()) });

/// What the caller of the call that this thread is in said it was.
pub(crate) fn committer() -> *mut c_void {
    COMMITTER.get()
}

/// Has [`committer`] be `committer` for as long as this lives.
pub(crate) struct Committing(*mut c_void);

impl Committing {
    pub(crate) fn by(committer: *mut c_void) -> Self {
        Self(COMMITTER.replace(committer))
    }
}

impl Drop for Committing {
    fn drop(&mut self) {
        COMMITTER.set(self.0);
    }
}
