//! Memory that `KVM_GET_DIRTY_LOG` may write to without harm.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use libc::c_void;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use crate::errno::Errno;

/// A buffer that ends at a page nobody may write to.
///
/// KVM writes as many bits as the slot has pages and is not told how long the
/// buffer is. A slot that was replaced by a larger one, under the same id and
/// behind this library's back, would have it write past the end. Here it runs
/// into the guard page instead: `copy_to_user` leaves everything behind the
/// first byte that it can't write as it is (`linux/uaccess.h`), and the ioctl
/// fails with `EFAULT`.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// `writable` bytes, then the guard page.
    base: Option<NonNull<c_void>>,
    writable: usize,
    page: usize,
}

// SAFETY: the mapping is owned by this object alone and is not bound to a
// thread.
unsafe impl Send for Scratch {}
// SAFETY: a shared reference gives no access to the mapping.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// Maps nothing yet.
    pub(super) const fn new(page: usize) -> Self {
        Self { base: None, writable: 0, page }
    }

    /// The last `words` words before the guard page, each with all bits set:
    /// what KVM does not write counts as dirty.
    ///
    /// # Errors
    /// As `mmap`.
    pub(crate) fn words(&mut self, words: usize) -> Result<&mut [u64], Errno> {
        let bytes = words.checked_mul(size_of::<u64>()).ok_or(Errno::EINVAL)?;
        if bytes > self.writable {
            self.grow(bytes)?;
        }
        let Some(base) = self.base else { return Ok(&mut []) };
        // SAFETY: `bytes` is at most `writable`, so this stays in the mapping.
        let first = unsafe { base.byte_add(self.writable - bytes) };
        // SAFETY: `words` words up to the guard page are mapped, anonymous and
        // so initialised, aligned as `writable` is whole pages, and borrowed as
        // long as `self` is.
        let words = unsafe { std::slice::from_raw_parts_mut(first.cast().as_ptr(), words) };
        words.fill(!0);
        Ok(words)
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Errno> {
        let writable = bytes.checked_next_power_of_two().ok_or(Errno::EINVAL)?.max(self.page);
        let length = writable.checked_add(self.page).and_then(NonZeroUsize::new);
        let length = length.ok_or(Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, which takes no other's place.
        let base = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) };
        let base = base.map_err(Errno::from_nix)?;
        let grown = Self { base: Some(base), writable, page: self.page };
        // SAFETY: the guard page is the last one of the new mapping.
        let guard = unsafe { base.byte_add(writable) };
        // SAFETY: nothing refers to the guard page.
        unsafe { mprotect(guard, self.page, ProtFlags::PROT_NONE) }.map_err(Errno::from_nix)?;
        *self = grown;
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(base) = self.base {
            // SAFETY: the mapping is this object's, and no slice of it is left.
            // It can't fail: the range is exactly what was mapped.
            let _ = unsafe { munmap(base, self.writable + self.page) };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PAGE: usize = 4096;

    #[test]
    fn ends_at_the_guard_page_whatever_its_length() {
        let mut scratch = Scratch::new(PAGE);
        for words in [1, 512, 7, 513, 100_000, 3] {
            let buffer = scratch.words(words).unwrap();
            assert_eq!(buffer.len(), words);
            assert!(buffer.iter().all(|word| *word == !0));
            buffer.fill(0);
            let end = buffer.as_ptr_range().end;
            assert_eq!(end.addr(), scratch.base.unwrap().addr().get() + scratch.writable);
            assert!(!is_writable(end.addr()), "{words} words are not followed by a guard");
        }
    }

    #[test]
    fn of_no_words_maps_nothing() {
        let mut scratch = Scratch::new(PAGE);
        assert!(scratch.words(0).unwrap().is_empty());
        assert!(scratch.base.is_none());
    }

    /// Whether the kernel would write there.
    fn is_writable(address: usize) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().any(|line| {
            let (range, rest) = line.split_once(' ').unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let [start, end] = [start, end].map(|a| usize::from_str_radix(a, 16).unwrap());
            (start..end).contains(&address) && rest.as_bytes()[1] == b'w'
        })
    }
}
