//! Which file descriptors are guest memory files, and what is bound of them.

use std::collections::BTreeMap;

use crate::errno::Errno;
use crate::mapping::GuestMemfd;

/// The file descriptors that a slot may name.
#[derive(Debug, Clone, Default)]
pub(super) struct Memfds {
    open: BTreeMap<i32, File>,
}

#[derive(Debug, Clone)]
enum File {
    /// `KVM_CREATE_GUEST_MEMFD` of this VM: its size in bytes, and the ranges
    /// that slots hold, as start and end.
    Guest { size: u64, bound: BTreeMap<u64, u64> },
    /// Anything else.
    Other,
}

impl Memfds {
    pub(super) fn add_guest(&mut self, fd: i32, size: u64) {
        self.open.insert(fd, File::Guest { size, bound: BTreeMap::new() });
    }

    pub(super) fn add_other(&mut self, fd: i32) {
        self.open.insert(fd, File::Other);
    }

    /// The checks of `kvm_gmem_bind()`, for `size` bytes. The caller knows
    /// that the offset is a multiple of the page size and that offset and size
    /// do not wrap. `taken` is for a range that a slot holds.
    pub(super) fn check(&self, memfd: GuestMemfd, size: u64, taken: Errno) -> Result<(), Errno> {
        let (file_size, bound) = match self.open.get(&memfd.fd) {
            None => return Err(Errno::EBADF),
            Some(File::Other) => return Err(Errno::EINVAL),
            Some(File::Guest { size, bound }) => (*size, bound),
        };
        let end = memfd.offset.checked_add(size).ok_or(Errno::EINVAL)?;
        if end > file_size {
            return Err(Errno::EINVAL);
        }
        let last = bound.range(..end).next_back();
        if last.is_some_and(|(_, bound_end)| *bound_end > memfd.offset) {
            return Err(taken);
        }
        Ok(())
    }

    pub(super) fn bind(&mut self, memfd: GuestMemfd, size: u64) {
        if let Some(File::Guest { bound, .. }) = self.open.get_mut(&memfd.fd) {
            bound.insert(memfd.offset, memfd.offset + size);
        }
    }

    pub(super) fn unbind(&mut self, memfd: GuestMemfd) {
        if let Some(File::Guest { bound, .. }) = self.open.get_mut(&memfd.fd) {
            bound.remove(&memfd.offset);
        }
    }
}
