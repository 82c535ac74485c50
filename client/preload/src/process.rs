//! The number of this process, without `getpid`: the kernel says it where it says
//! whether there is a filter.

use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use crate::sys;

static NOTED: AtomicPtr<AtomicI32> = AtomicPtr::new(ptr::null_mut());

/// What `/proc` says of this thread, in lines; nothing where there is none.
pub(crate) fn status<R>(what: impl FnOnce(&[u8]) -> R) -> R {
    let mut status = [0; 4096];
    let bytes = sys::read_file(c"/proc/thread-self/status", &mut status).unwrap_or(0);
    what(&status[..bytes])
}

/// The process's number there, as the process itself would be told.
pub(crate) fn number(status: &[u8]) -> Option<c_int> {
    let line = |name: &[u8]| {
        let mut lines = status.split(|byte| *byte == b'\n');
        let text = std::str::from_utf8(lines.find_map(|line| line.strip_prefix(name))?);
        text.ok()?.split_ascii_whitespace().last()?.parse().ok()
    };
    // One for each namespace from that of /proc to its own; without them just one.
    line(b"NStgid:").or_else(|| line(b"Tgid:"))
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

    #[test]
    fn the_number_is_that_of_the_own_namespace() {
        let is = |text: &str| number(text.as_bytes());
        assert_eq!(is("Tgid:\t70\nPid:\t71\nNStgid:\t70\t3\nNSpid:\t71\t4\n"), Some(3));
        assert_eq!(is("Name:\tTgid:\nTgid:\t70\nPid:\t71\n"), Some(70));
        assert_eq!(is(""), None);
        assert_eq!(is("NStgid:\t\n"), None);
        assert_eq!(status(number), Some(sys::process_id()));
    }
}
