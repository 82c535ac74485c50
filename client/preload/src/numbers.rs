//! The numbers of descriptors: where a VM has another one than when the VMM made its
//! last call, and where it has none.

use std::ffi::{CStr, c_int};

use crate::mark::{self, MARKS};
use crate::sys;

/// A descriptor of the VM with this mark, if there is one and `/proc` is there.
pub(crate) fn find(mark: usize) -> Option<c_int> {
    first(|number| mark::is(number, mark).then_some(number)).ok()?
}

/// The marks of all descriptors.
///
/// # Errors
/// The errno, where `/proc` does not say them all.
pub(crate) fn marks() -> Result<[bool; MARKS], c_int> {
    let mut there = [false; MARKS];
    first::<()>(|number| {
        there[mark::of(number)?] = true;
        None
    })?;
    Ok(there)
}

/// The first answer of `what` to a number of a descriptor.
fn first<R>(mut what: impl FnMut(c_int) -> Option<R>) -> Result<Option<R>, c_int> {
    let dir = sys::open(c"/proc/thread-self/fd", libc::O_DIRECTORY)?;
    let mut entries = [0; 1024];
    let found = loop {
        let bytes = match sys::entries(dir, &mut entries) {
            Ok(0) => break Ok(None),
            Ok(bytes) => bytes,
            Err(errno) => break Err(errno),
        };
        let mut numbers =
            names(&entries[..bytes]).filter_map(|name| name.to_str().ok()?.parse().ok());
        if let Some(found) = numbers.find_map(&mut what) {
            break Ok(Some(found));
        }
    };
    // SAFETY: just opened.
    unsafe { sys::close(dir) };
    found
}

/// The names of `struct linux_dirent64`, one behind the other.
fn names(mut entries: &[u8]) -> impl Iterator<Item = &CStr> {
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(entries.get(16..18)?.try_into().ok()?);
        let (entry, rest) = entries.split_at_checked(length.into())?;
        entries = rest;
        CStr::from_bytes_until_nul(entry.get(19..)?).ok()
    })
}
