//! The last failure of each thread, and who keeps it.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use kvm_memslots::Errno;
use kvm_memslots::device::DevicePart;

use crate::constants::{
    KVM_MEMSLOTS_PART_IN_WINDOW, KVM_MEMSLOTS_PART_IOEVENTFD, KVM_MEMSLOTS_PART_LINE,
    KVM_MEMSLOTS_PART_NONE, KVM_MEMSLOTS_PART_ROUTES, KVM_MEMSLOTS_PART_VECTOR,
    KVM_MEMSLOTS_PART_ZONE,
};
use crate::failure::{About, Failure};
use crate::record::{LABEL_SIZE, Out, label, record};

record! {
    "kvm_memslots_error" pub struct CError {
        pub size: usize,
        pub change: i64,
        pub region: u64,
        pub error: c_int,
        pub flags: u32,
        pub part: u32,
        pub index: u32,
        pub device: [c_char; LABEL_SIZE],
    }
}

/// What a thread knows of its last failure.
struct Last {
    message: CString,
    errno: c_int,
    about: About,
}

impl From<&Last> for CError {
    fn from(Last { errno, about, .. }: &Last) -> Self {
        let (part, index) = match about.part {
            Some(DevicePart::InWindow { index }) => (KVM_MEMSLOTS_PART_IN_WINDOW, index as u32),
            Some(DevicePart::Ioeventfd { index }) => (KVM_MEMSLOTS_PART_IOEVENTFD, index as u32),
            Some(DevicePart::Vector { index }) => (KVM_MEMSLOTS_PART_VECTOR, index as u32),
            Some(DevicePart::Line { gsi }) => (KVM_MEMSLOTS_PART_LINE, gsi),
            Some(DevicePart::Zone { index }) => (KVM_MEMSLOTS_PART_ZONE, index as u32),
            Some(DevicePart::Routes) => (KVM_MEMSLOTS_PART_ROUTES, 0),
            _ => (KVM_MEMSLOTS_PART_NONE, 0),
        };
        Self {
            size: size_of::<Self>(),
            change: about.change.and_then(|change| change.try_into().ok()).unwrap_or(-1),
            region: about.region,
            error: *errno,
            flags: about.flags,
            part,
            index,
            device: label(&about.device),
        }
    }
}

thread_local! {
    static LAST: RefCell<Last> = RefCell::new(Last {
        message: CString::default(),
        errno: 0,
        about: About::default(),
    });
}

/// `MAX_ERRNO` of `linux/err.h`.
pub(crate) const MAX_ERRNO: c_int = 4095;

fn remember(failure: Failure) -> c_int {
    // A label may have brought a NUL along.
    let message = CString::new(failure.message.replace('\0', "\\0")).unwrap_or_default();
    // A number that is none must not be taken for success.
    let errno = match failure.errno.raw() {
        errno @ 1..=MAX_ERRNO => errno,
        _ => Errno::ENOTRECOVERABLE.raw(),
    };
    // Nothing is kept for a thread that is going.
    let _ = LAST.try_with(|last| last.replace(Last { message, errno, about: failure.about }));
    -errno
}

/// The message of the last call on this thread that failed, "" before the
/// first. Valid until the next call on this thread fails.
#[unsafe(no_mangle)]
pub extern "C" fn kvm_memslots_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().message.as_ptr()).unwrap_or(c"".as_ptr())
}

/// The rest of what is known about it.
///
/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_last_error_info(error: *mut CError) -> c_int {
    // SAFETY: as the caller says.
    match unsafe { Out::new(error) } {
        // A thread that is going has none.
        Ok(out) => LAST.try_with(|last| out.put(&*last.borrow())).map_or(0, |()| 0),
        Err(failure) => -failure.errno.raw(),
    }
}

/// Runs `f`; a panic is a failure with `ENOTRECOVERABLE`.
pub(crate) fn guard<T>(f: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // What a panic leaves is whole: see `Vm::apply`, and `handles`.
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let message = format!("please report this: {}", said(&*panic));
        // Dropping what a panic carries may panic, too.
        std::mem::forget(panic);
        Err(Failure::new(Errno::ENOTRECOVERABLE, message))
    })
}

/// Runs `f`; 0, or the negative errno of its failure, which is kept.
pub(crate) fn report(f: impl FnOnce() -> Result<(), Failure>) -> c_int {
    guard(f).map_or_else(remember, |()| 0)
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
        assert_eq!(report(fails), -Errno::ENOSPC.raw());
        assert_eq!(last(), "too\\0many");
        assert_eq!(report(|| Ok(())), 0);
        assert_eq!(last(), "too\\0many");
    }

    #[test]
    fn what_is_no_errno_is_no_success() {
        for errno in [0, -1, 4096, c_int::MIN, c_int::MAX] {
            let fails = || Err(Failure::new(Errno::from_raw(errno), "odd"));
            assert_eq!(report(fails), -Errno::ENOTRECOVERABLE.raw());
        }
    }

    #[test]
    fn a_panic_is_a_failure() {
        assert_eq!(report(|| panic!("boom {}", 1)), -Errno::ENOTRECOVERABLE.raw());
        assert_eq!(last(), "please report this: boom 1");
        assert_eq!(report(|| std::panic::panic_any(1)), -Errno::ENOTRECOVERABLE.raw());
        assert_eq!(last(), "please report this: a panic");
    }

    #[test]
    fn messages_are_the_threads_own() {
        report(|| Err(Failure::new(Errno::EINVAL, "here")));
        let there = std::thread::spawn(last).join();
        assert_eq!(there.ok().as_deref(), Some(""));
        assert_eq!(last(), "here");
    }
}
