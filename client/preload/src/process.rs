//! The number of this process, without `getpid`: the kernel says it where it says
//! whether there is a filter.

use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use crate::sys;

static NOTED: AtomicPtr<AtomicI32> = AtomicPtr::new(ptr::null_mut());

/// What `/proc` says of this thread; nothing where there is none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    outer: Option<c_int>,
    inner: Option<c_int>,
    /// It has no filter of system calls, as far as is known.
    pub(crate) no_filter: bool,
}

impl Status {
    pub(crate) fn read() -> Self {
        let mut status = Self::default();
        // Without an end there is less in it.
        let _ = sys::lines(c"/proc/thread-self/status", |line| status.line(line));
        status
    }

    fn line(&mut self, line: &[u8]) {
        let last = |name: &[u8]| {
            let text = std::str::from_utf8(line.strip_prefix(name)?).ok()?;
            text.split_ascii_whitespace().last()?.parse().ok()
        };
        // One for each namespace from that of /proc to its own; without them just one.
        self.inner = self.inner.or_else(|| last(b"NStgid:"));
        self.outer = self.outer.or_else(|| last(b"Tgid:"));
        self.no_filter |= line == b"Seccomp:\t0";
    }

    /// The process's number, as the process itself would be told.
    pub(crate) fn number(&self) -> Option<c_int> {
        self.inner.or(self.outer)
    }
}

/// From now on the number is at `place`, which a child finds zero.
pub(crate) fn is_noted_at(place: &'static AtomicI32) {
    NOTED.store(ptr::from_ref(place).cast_mut(), Ordering::Release);
}

/// The number: as noted, else by a call.
pub(crate) fn id() -> c_int {
    // SAFETY: null, or a place that is there for good.
    let noted = unsafe { NOTED.load(Ordering::Acquire).as_ref() };
    let noted = noted.map_or(0, |place| place.load(Ordering::Relaxed));
    if noted == 0 { sys::process_id() } else { noted }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(text: &str) -> Status {
        let mut status = Status::default();
        text.lines().for_each(|line| status.line(line.as_bytes()));
        status
    }

    #[test]
    fn the_number_is_that_of_the_own_namespace() {
        let number = |text: &str| is(text).number();
        assert_eq!(number("Tgid:\t70\nPid:\t71\nNStgid:\t70\t3\nNSpid:\t71\t4\n"), Some(3));
        assert_eq!(number("Name:\tTgid:\nTgid:\t70\nPid:\t71\n"), Some(70));
        assert_eq!(number(""), None);
        assert_eq!(number("NStgid:\t\n"), None);
        assert_eq!(Status::read().number(), Some(sys::process_id()));
    }

    #[test]
    fn whether_there_is_a_filter() {
        assert!(is("Name:\tcat\nSeccomp:\t0\nSeccomp_filters:\t0\n").no_filter);
        assert!(!is("Name:\tcat\nSeccomp:\t2\nSeccomp_filters:\t1\n").no_filter);
        // Without /proc.
        assert!(!is("").no_filter);
    }
}
