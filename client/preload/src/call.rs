//! A call of the VMM's, as it is.

use std::ffi::{c_int, c_ulong, c_void};

use crate::next;

/// A call of the VMM's.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) fd: c_int,
    pub(crate) request: c_ulong,
    pub(crate) arg: *mut c_void,
}

impl Call {
    /// The call as it is; where it fails, why is in `errno`.
    pub(crate) fn pass(self) -> Result<c_int, ()> {
        // SAFETY: the VMM vouches for its argument.
        let result = unsafe { next::ioctl(self.fd, self.request, self.arg) };
        if result < 0 { Err(()) } else { Ok(result) }
    }

    /// The same, as the C library answers.
    pub(crate) fn plain(self) -> c_int {
        self.pass().unwrap_or(-1)
    }
}
