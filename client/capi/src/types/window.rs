//! Windows, and what is placed in them.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;

use kvm_memslots::window::{
    CheckedFile, Contents, Edit, Gap, Placement, Window, WindowErrorKind, WindowPart, WindowSpec,
};
use kvm_memslots::{Access, Errno, at};

use super::{descriptor, flag, known};
use crate::constants::{
    KVM_MEMSLOTS_CONTENTS_ANONYMOUS, KVM_MEMSLOTS_CONTENTS_DEVICE, KVM_MEMSLOTS_CONTENTS_FILE,
    KVM_MEMSLOTS_CONTENTS_MAPPING, KVM_MEMSLOTS_CONTENTS_NONE, KVM_MEMSLOTS_GAP_FAULT,
    KVM_MEMSLOTS_GAP_SCRATCH, KVM_MEMSLOTS_GAP_ZEROES, KVM_MEMSLOTS_PLACEMENT_FILE,
    KVM_MEMSLOTS_PLACEMENT_READ_ONLY, KVM_MEMSLOTS_WINDOW_HUGE_PAGES,
};
use crate::failure::Failure;
use crate::record::{invalid, record};

record! {
    "kvm_memslots_window_spec" pub struct CWindowSpec {
        pub size: usize,
        pub gpa: u64,
        pub len: u64,
        pub gap: u32,
        pub flags: u32,
    }
}

impl CWindowSpec {
    pub(crate) fn spec(&self) -> Result<WindowSpec, Failure> {
        known(self.flags.into(), KVM_MEMSLOTS_WINDOW_HUGE_PAGES.into(), "a window")?;
        let gap = match self.gap {
            KVM_MEMSLOTS_GAP_FAULT => Gap::Fault,
            KVM_MEMSLOTS_GAP_ZEROES => Gap::Zeroes,
            KVM_MEMSLOTS_GAP_SCRATCH => Gap::Scratch,
            other => return Err(invalid(format!("{other} is no kvm_memslots_gap"))),
        };
        let spec = WindowSpec::new(at(self.gpa, self.len)).gap(gap);
        let huge = self.flags & KVM_MEMSLOTS_WINDOW_HUGE_PAGES != 0;
        Ok(if huge { spec.huge_pages() } else { spec })
    }
}

record! {
    "kvm_memslots_placement" pub struct CPlacement {
        pub size: usize,
        pub offset: u64,
        pub len: u64,
        pub file_offset: u64,
        pub hva: u64,
        pub fd: c_int,
        pub contents: u32,
        pub flags: u64,
    }
}

impl CPlacement {
    /// Its descriptor, if it has one.
    ///
    /// # Safety
    /// As [the crate](crate#safety); the descriptor is open for `'fd`.
    pub(crate) unsafe fn fd<'fd>(&self) -> Result<Option<BorrowedFd<'fd>>, Failure> {
        match self.contents {
            KVM_MEMSLOTS_CONTENTS_FILE | KVM_MEMSLOTS_CONTENTS_DEVICE => {
                let fd = descriptor(self.fd, "fd")?;
                // SAFETY: open, as the caller says.
                Ok(Some(unsafe { BorrowedFd::borrow_raw(fd) }))
            }
            _ => Ok(None),
        }
    }

    /// The same as a part of a device, with a descriptor of its own.
    ///
    /// # Safety
    /// As [the crate](crate#safety).
    pub(crate) unsafe fn part(&self, window: &Window) -> Result<WindowPart, Failure> {
        known(self.flags, KVM_MEMSLOTS_PLACEMENT_READ_ONLY, "memory in a window")?;
        if self.contents != KVM_MEMSLOTS_CONTENTS_FILE {
            return Err(invalid(
                "memory of a device in a window is KVM_MEMSLOTS_CONTENTS_FILE: what a set removes \
                 has to come back where the set fails",
            ));
        }
        let fd = descriptor(self.fd, "fd")?;
        // SAFETY: open for this call, as the caller says.
        let own = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            WindowErrorKind::Refused { call: "fcntl", errno }
        })?;
        let file = CheckedFile::new(own).map_err(|kind| match kind {
            // What could be placed otherwise can't be a device's.
            WindowErrorKind::NoFile => Failure::new(
                Errno::ENODEV,
                format!("fd {fd} is no file's, as memory of a device in a window has to be"),
            ),
            other => other.into(),
        })?;
        let part = WindowPart::new(window, self.offset, self.len, &file, self.file_offset);
        let read_only = self.flags & KVM_MEMSLOTS_PLACEMENT_READ_ONLY != 0;
        Ok(if read_only { part.read_only() } else { part })
    }

    /// Adds it to a set.
    ///
    /// # Safety
    /// As [the crate](crate#safety).
    pub(crate) unsafe fn add<'fd>(
        &self,
        fd: Option<&'fd BorrowedFd<'fd>>,
        edit: &mut Edit<'fd>,
    ) -> Result<(), Failure> {
        known(self.flags, KVM_MEMSLOTS_PLACEMENT_READ_ONLY, "a placement")?;
        let contents: Contents<'fd> = match (self.contents, fd) {
            (KVM_MEMSLOTS_CONTENTS_NONE, _) if self.flags == 0 => {
                edit.remove(self.offset, self.len);
                return Ok(());
            }
            (KVM_MEMSLOTS_CONTENTS_NONE, _) => return Err(invalid("flags of what is removed")),
            (KVM_MEMSLOTS_CONTENTS_ANONYMOUS, _) => Contents::anonymous(),
            (KVM_MEMSLOTS_CONTENTS_FILE, Some(fd)) => Contents::file(fd, self.file_offset),
            // SAFETY: the header asks the caller for just that.
            (KVM_MEMSLOTS_CONTENTS_DEVICE, Some(fd)) => unsafe {
                Contents::device(fd, self.file_offset)
            },
            // SAFETY: the header asks the caller for just that.
            (KVM_MEMSLOTS_CONTENTS_MAPPING, _) => unsafe { Contents::mapping(self.hva) },
            (other, _) => return Err(invalid(format!("{other} is no kvm_memslots_contents"))),
        };
        let read_only = self.flags & KVM_MEMSLOTS_PLACEMENT_READ_ONLY != 0;
        let contents = if read_only { contents.read_only() } else { contents };
        edit.place(self.offset, self.len, contents);
        Ok(())
    }
}

impl From<Placement> for CPlacement {
    fn from(placement: Placement) -> Self {
        Self {
            size: size_of::<Self>(),
            offset: placement.offset,
            len: placement.len,
            file_offset: placement.file_offset.unwrap_or(0),
            hva: 0,
            fd: -1,
            contents: 0,
            flags: flag(placement.access == Access::Read, KVM_MEMSLOTS_PLACEMENT_READ_ONLY)
                | flag(placement.file_offset.is_some(), KVM_MEMSLOTS_PLACEMENT_FILE),
        }
    }
}
