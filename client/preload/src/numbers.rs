//! The number of a VM's descriptor, where it has another one than when the VMM made
//! its last call.

use std::ffi::{CStr, c_int};

use crate::{mark, sys};

/// A descriptor of the VM with this mark, if there is one and `/proc` is there.
pub(crate) fn find(mark: usize) -> Option<c_int> {
    let dir = sys::open(c"/proc/thread-self/fd", libc::O_DIRECTORY).ok()?;
    let mut entries = [0; 1024];
    let mut found = None;
    while let (None, Ok(bytes @ 1..)) = (found, sys::entries(dir, &mut entries)) {
        found = names(&entries[..bytes]).find_map(|name| {
            let number = name.to_str().ok()?.parse().ok()?;
            mark::is(number, mark).then_some(number)
        });
    }
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
