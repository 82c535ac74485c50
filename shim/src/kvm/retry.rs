//! Calls that a signal interrupts.

use crate::errno::Errno;

/// How often a call is made that keeps being interrupted: a VMM under a fast
/// profiling timer gets through, a storm that does not end is reported.
pub(super) const ATTEMPTS: u32 = 64;

pub(super) fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..ATTEMPTS {
        match call() {
            Err(Errno::EINTR) => {}
            answer => return answer,
        }
    }
    call()
}
