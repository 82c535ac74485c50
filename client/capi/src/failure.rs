//! What went wrong, as C gets to know it: an errno, and a message kept for the
//! thread.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use kvm_memslots::Error;
use kvm_memslots::backend::{Errno, OpenError};

use crate::types::GateErrno;

/// Why a call did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) errno: Errno,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self { errno, message: message.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { errno: errno(&error), message: error.to_string() }
    }
}

fn errno(error: &Error) -> Errno {
    match error {
        Error::Open(OpenError::Duplicate { errno, .. } | OpenError::NotAVm { errno, .. })
        | Error::Refused { errno, .. }
        | Error::RefusedWhole { errno }
        | Error::DirtyLog { errno, .. } => *errno,
        Error::Open(OpenError::NotUsable { .. }) | Error::Internal(_) => Errno::EIO,
        Error::Open(_) => Errno::ENOTTY,
        Error::NoBatchIoctl
        | Error::ReadOnlyUnsupported { .. }
        | Error::GuestMemfdUnsupported { .. }
        | Error::TrapUnsupported { .. } => Errno::EOPNOTSUPP,
        Error::TooLarge { .. } => Errno::E2BIG,
        Error::Overlap { .. } => Errno::EEXIST,
        Error::UnknownRegion { .. } => Errno::ENOENT,
        Error::StaleRegion { .. } => Errno::ESTALE,
        Error::NotLogged { .. } => Errno::ENODATA,
        Error::TooManySlots { .. } => Errno::ENOSPC,
        Error::Hole { .. } | Error::SlotInUse { .. } => Errno::EBUSY,
        Error::Gate(gate) => gate.0.downcast_ref().map_or(Errno::EIO, |GateErrno(errno)| *errno),
        Error::Stuck { .. } => Errno::ENOTRECOVERABLE,
        // What is wrong with an argument.
        _ => Errno::EINVAL,
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

fn remember(message: &str) {
    // A label may have brought a NUL along.
    let message = CString::new(message.replace('\0', "\\0")).unwrap_or_default();
    LAST.with(|last| last.replace(message));
}

/// The message of the last call on this thread that failed, "" before the
/// first. Valid until the next call on this thread fails.
#[unsafe(no_mangle)]
pub extern "C" fn kvm_memslots_last_error() -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}

/// Runs `f`; 0, or the negative errno of its failure, whose message is kept. A
/// panic is a failure with `EIO`, and `on_panic` is told.
pub(crate) fn report(f: impl FnOnce() -> Result<(), Failure>, on_panic: impl FnOnce()) -> c_int {
    let outcome = catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        on_panic();
        Err(Failure::new(Errno::EIO, format!("please report this: {}", said(&*panic))))
    });
    match outcome {
        Ok(()) => 0,
        Err(Failure { errno, message }) => {
            remember(&message);
            -(errno as c_int)
        }
    }
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic")
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn last() -> String {
        // SAFETY: the message is NUL-terminated and lives until the next
        // failure on this thread.
        unsafe { CStr::from_ptr(kvm_memslots_last_error()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn success_keeps_the_message_of_the_last_failure() {
        assert_eq!(last(), "");
        let fails = || Err(Failure::new(Errno::ENOSPC, "too\0many"));
        assert_eq!(report(fails, || ()), -(Errno::ENOSPC as c_int));
        assert_eq!(last(), "too\\0many");
        assert_eq!(report(|| Ok(()), || ()), 0);
        assert_eq!(last(), "too\\0many");
    }

    #[test]
    fn a_panic_is_a_failure() {
        let mut told = false;
        assert_eq!(report(|| panic!("boom {}", 1), || told = true), -(Errno::EIO as c_int));
        assert!(told);
        assert_eq!(last(), "please report this: boom 1");
    }

    #[test]
    fn messages_are_the_threads_own() {
        report(|| Err(Failure::new(Errno::EINVAL, "here")), || ());
        let there = std::thread::spawn(last).join();
        assert_eq!(there.ok().as_deref(), Some(""));
        assert_eq!(last(), "here");
    }
}
