//! The calls that change what is behind a window: `mmap`, `mremap`, `munmap`,
//! `madvise`, all of them about addresses that are this module's.
//!
//! A call with `MAP_FIXED` or `MREMAP_FIXED` unmaps what is there before it does
//! the rest. Where the rest fails, nothing is left, and any thread's `mmap` may
//! be given these addresses, which the guest can reach
//! (`vms_abort_munmap_vmas()` in `mm/vma.c`, `mremap_to()` in `mm/mremap.c`). So
//! everything that a descriptor or a mapping can make fail is done somewhere
//! else first, in a [`Scratch`]; what is left is the kernel's memory for a
//! mapping, which it asks for before it unmaps where it can. And whatever fails
//! is followed by [`Reservation::mend`].

#[cfg(test)]
pub(super) mod faults;

use std::fmt;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{null_mut, with_exposed_provenance_mut};

use kvm_memslots_shim::Errno;
use libc::{MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_NORESERVE, MAP_PRIVATE, c_int};

use super::error::WindowErrorKind;

/// The flags of memory of nobody's.
const ANONYMOUS: c_int = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

/// Which call failed, and how.
pub(super) type Failed = (&'static str, Errno);

pub(super) fn address(result: *mut libc::c_void, call: &'static str) -> Result<u64, Failed> {
    if result == libc::MAP_FAILED {
        return Err((call, Errno::last()));
    }
    Ok(result.expose_provenance() as u64)
}

/// Addresses of this process.
pub(super) fn pointer(hva: u64) -> *mut libc::c_void {
    with_exposed_provenance_mut(hva as usize)
}

pub(super) fn page_size() -> u64 {
    // SAFETY: takes a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// How a file is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// Directly: shared memory (`tmpfs`, `memfd_create`) is mapped for sure if the
    /// kernel begins to. What can be wrong it finds before it unmaps anything
    /// (`do_mmap()`), and `shmem_mmap()` refuses nothing but seals, of which there
    /// are none and can't be any.
    Memory,
    /// By way of a [`Scratch`]: its file system has its own reasons. In whole pages of
    /// so many bytes.
    File { page: u64 },
    /// The same, and how large its pages are is asked for each time.
    Device,
}

/// How large the pages of a file are: `hugetlbfs` maps whole huge pages. Asked for a
/// part of one, `mmap` and `mremap` round up (`ksys_mmap_pgoff()`, `do_mremap()`). They
/// would replace what is beside it, also outside of the window.
pub(super) fn page_of(fd: BorrowedFd<'_>) -> Result<u64, Failed> {
    // SAFETY: all zeroes is a value of that structure.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes the structure.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut stat) } != 0 {
        return match Errno::last() {
            // A file system that says nothing of itself.
            Errno::ENOSYS => Ok(page_size()),
            errno => Err(("fstatfs", errno)),
        };
    }
    // How wide the fields are depends on the architecture and the C library.
    let is_huge = i128::from(stat.f_type) == i128::from(libc::HUGETLBFS_MAGIC);
    let page = u64::try_from(stat.f_bsize).ok().filter(|_| is_huge);
    Ok(page.unwrap_or_else(page_size))
}

/// What a descriptor names, which stays so for as long as it is open; `None`: what
/// may do more than hold bytes.
pub(super) fn named(fd: BorrowedFd<'_>) -> Result<Option<Named>, Failed> {
    const WRITE_SEALS: c_int = libc::F_SEAL_WRITE | 0x10; // F_SEAL_FUTURE_WRITE
    // SAFETY: all zeroes is a value of that structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes the structure.
    if unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(("fstat", Errno::last()));
    }
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Ok(None);
    }
    // The blocks of hugetlbfs, which reserves pages last, are its pages.
    let page = page_size();
    if u64::try_from(stat.st_blksize) != Ok(page) {
        return Ok(Some(Named::File { page: page_of(fd)? }));
    }
    // SAFETY: takes numbers. Only shared memory and hugetlbfs have seals.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    let sealed = seals >= 0 && seals & libc::F_SEAL_SEAL != 0 && seals & WRITE_SEALS == 0;
    Ok(Some(if sealed { Named::Memory } else { Named::File { page } }))
}

/// A mapping that is nobody's yet, or that was taken from somewhere: dropped, it
/// is unmapped, or goes back there.
#[derive(Debug)]
pub(super) struct Scratch {
    hva: u64,
    len: u64,
    home: Option<u64>,
}

impl Scratch {
    /// A part of what a descriptor names.
    pub(super) fn of_file(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: u64,
        protection: c_int,
    ) -> Result<Self, Failed> {
        let offset = libc::off_t::try_from(offset).map_err(|_| ("mmap", Errno::EOVERFLOW))?;
        let (fd, len_) = (fd.as_raw_fd(), len as usize);
        // SAFETY: a new mapping, at addresses that the kernel chooses.
        let at = unsafe { libc::mmap(null_mut(), len_, protection, libc::MAP_SHARED, fd, offset) };
        Ok(Self { hva: address(at, "mmap")?, len, home: None })
    }

    /// What is in `len` bytes from `hva` on. The addresses stay mapped: to the
    /// same, where that is shared, else to zeroes until it goes back.
    ///
    /// # Safety
    /// The addresses are mapped, and the caller's to do that with.
    pub(super) unsafe fn taken_from(hva: u64, len: u64) -> Result<Self, Failed> {
        let (at, size) = (pointer(hva), len as usize);
        let keep = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
        // SAFETY: the caller vouches for the addresses; the new ones are nobody's.
        let moved = unsafe { libc::mremap(at, size, size, keep, null_mut::<libc::c_void>()) };
        let moved = address(moved, "mremap").or_else(|(call, errno)| {
            if errno != Errno::EINVAL {
                return Err((call, errno));
            }
            // Before Linux 5.13 only private memory is moved like that. Shared memory
            // can be had twice.
            // SAFETY: as above; nothing is moved.
            address(unsafe { libc::mremap(at, 0, size, libc::MREMAP_MAYMOVE) }, call)
                // What was wrong with the first is what is wrong.
                .map_err(|_| (call, errno))
        });
        Ok(Self { hva: moved?, len, home: Some(hva) })
    }

    /// Moves it to `hva`, instead of whatever is there.
    ///
    /// # Safety
    /// The addresses there are the caller's to map something else to.
    unsafe fn move_to(self, hva: u64) -> Result<(), (Failed, Self)> {
        let (from, to, size) = (pointer(self.hva), pointer(hva), self.len as usize);
        let fixed = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        if let Err(errno) = faults::pass(to, size) {
            return Err((("mremap", errno), self));
        }
        // SAFETY: the caller vouches for where it goes; what moves is a mapping of
        // this value's.
        match address(unsafe { libc::mremap(from, size, size, fixed, to) }, "mremap") {
            Ok(_) => {
                let _moved = ManuallyDrop::new(self);
                Ok(())
            }
            Err(failed) => Err((failed, self)),
        }
    }

    /// Whether it was taken from somewhere.
    pub(super) const fn is_taken(&self) -> bool {
        self.home.is_some()
    }

    /// Puts it back where it was taken from.
    pub(super) fn go_home(mut self) -> Result<(), Failed> {
        let Some(home) = self.home.take() else { return Ok(()) };
        // SAFETY: the addresses stayed what they were, for this.
        unsafe { self.move_to(home) }.map_err(|(failed, scratch)| {
            drop(scratch);
            failed
        })
    }

    /// Unmaps it, wherever it was taken from.
    pub(super) fn discard(mut self) {
        self.home = None;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            let scratch = Self { hva: self.hva, len: self.len, home: Some(home) };
            self.len = 0;
            let _ = scratch.go_home();
        }
        if self.len > 0 {
            // SAFETY: the mapping is this value's, and nobody knows of it.
            unsafe { libc::munmap(pointer(self.hva), self.len as usize) };
        }
    }
}

/// Host addresses that are mapped for as long as this lives.
pub(super) struct Reservation {
    base: u64,
    len: u64,
    /// Of what is mapped where nothing is placed.
    gap: c_int,
}

impl Reservation {
    /// `len` bytes, at an address that is `gpa` modulo the largest power of two
    /// that fits, up to 1 GiB, so that huge pages of guest and host are the same.
    pub(super) fn new(gpa: u64, len: u64, gap: c_int) -> Result<Self, Failed> {
        let too_large = ("mmap", Errno::ENOMEM);
        let align = (1_u64 << len.ilog2()).clamp(page_size(), 1 << 30);
        let padded = usize::try_from(len.checked_add(align).ok_or(too_large)?);
        let padded = padded.map_err(|_| too_large)?;
        // SAFETY: a new mapping, at addresses that the kernel chooses.
        let at = unsafe { libc::mmap(null_mut(), padded, gap, ANONYMOUS, -1, 0) };
        let at = address(at, "mmap")?;
        let head = (gpa % align + align - at % align) % align;
        for (from, size) in [(at, head), (at + head + len, align - head)] {
            if size > 0 {
                // SAFETY: a part of the new mapping, that is not going to be used.
                // (Where it fails, it stays.)
                unsafe { libc::munmap(pointer(from), size as usize) };
            }
        }
        Ok(Self { base: at + head, len, gap })
    }

    pub(super) const fn base(&self) -> u64 {
        self.base
    }

    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// That a range is whole pages of so many bytes, of the process's as well.
    pub(super) const fn check_whole(
        &self,
        offset: u64,
        len: u64,
        page: u64,
    ) -> Result<(), WindowErrorKind> {
        if (self.base + offset) % page == 0 && len % page == 0 {
            return Ok(());
        }
        Err(WindowErrorKind::Geometry { page, size: self.len })
    }

    /// The address of a range, if it is one of these.
    fn at(&self, offset: u64, len: u64) -> Result<*mut libc::c_void, Failed> {
        let end = offset.checked_add(len).filter(|end| len > 0 && *end <= self.len);
        end.ok_or(("mmap", Errno::EINVAL))?;
        Ok(pointer(self.base + offset))
    }

    fn anonymous(&self, offset: u64, len: u64, access: c_int, how: c_int) -> Result<(), Failed> {
        let (at, size) = (self.at(offset, len)?, len as usize);
        if how & MAP_FIXED != 0 {
            faults::pass(at, size).map_err(|errno| ("mmap", errno))?;
        }
        let how = faults::replaces(at, how);
        // SAFETY: the addresses are this value's, and hold nothing but what the
        // guest is to find.
        let mapped = unsafe { libc::mmap(at, size, access, ANONYMOUS | how, -1, 0) };
        let mapped = address(mapped, "mmap")?;
        if mapped != self.base + offset {
            // A kernel that takes `MAP_FIXED_NOREPLACE` (4.17) for a wish.
            // SAFETY: what was just mapped, and is of no use.
            unsafe { libc::munmap(pointer(mapped), size) };
            return Err(("mmap", Errno::EEXIST));
        }
        Ok(())
    }

    /// Places anonymous memory.
    pub(super) fn place_anonymous(
        &self,
        offset: u64,
        len: u64,
        protection: c_int,
    ) -> Result<(), Failed> {
        self.anonymous(offset, len, protection, MAP_FIXED)
    }

    /// Places [memory](Named::Memory).
    pub(super) fn place_memory(
        &self,
        offset: u64,
        len: u64,
        protection: c_int,
        (fd, from): (BorrowedFd<'_>, u64),
    ) -> Result<(), Failed> {
        let (at, size) = (self.at(offset, len)?, len as usize);
        let from = libc::off_t::try_from(from).map_err(|_| ("mmap", Errno::EOVERFLOW))?;
        faults::pass(at, size).map_err(|errno| ("mmap", errno))?;
        let (fd, how) = (fd.as_raw_fd(), libc::MAP_SHARED | MAP_FIXED);
        // SAFETY: as in `anonymous`.
        let mapped = unsafe { libc::mmap(at, size, protection, how, fd, from) };
        address(mapped, "mmap").map(drop)
    }

    /// Makes a gap.
    pub(super) fn clear(&self, offset: u64, len: u64) -> Result<(), Failed> {
        self.anonymous(offset, len, self.gap, MAP_FIXED)
    }

    /// Places a mapping, which is as long as the range; where that fails, it is the
    /// caller's again.
    pub(super) fn place(&self, offset: u64, what: Scratch) -> Result<(), (Failed, Scratch)> {
        if let Err(failed) = self.at(offset, what.len) {
            return Err((failed, what));
        }
        // SAFETY: as in `anonymous`.
        unsafe { what.move_to(self.base + offset) }
    }

    /// Sets aside what is in a range: dropped, it is there again.
    pub(super) fn set_aside(&self, offset: u64, len: u64) -> Result<Scratch, Failed> {
        self.at(offset, len)?;
        // SAFETY: the addresses are this value's.
        unsafe { Scratch::taken_from(self.base + offset, len) }
    }

    /// The same of what was placed from a mapping: dropped, it is that again.
    pub(super) fn take_back(&self, offset: u64, len: u64, home: u64) -> Result<Scratch, Failed> {
        let mut taken = self.set_aside(offset, len)?;
        taken.home = Some(home);
        Ok(taken)
    }

    /// After a call that failed: makes a gap of the range if nothing is mapped
    /// there any more, and says whether it has. An error: it is not mapped.
    pub(super) fn mend(&self, offset: u64, len: u64) -> Result<bool, Failed> {
        match self.anonymous(offset, len, self.gap, MAP_FIXED_NOREPLACE) {
            Ok(()) => Ok(true),
            Err((_, Errno::EEXIST)) => Ok(false),
            // A process that has no room for a mapping hears that first (`do_mmap()`).
            Err(_) if self.is_mapped(offset, len) => Ok(false),
            Err(failed) => Err(failed),
        }
    }

    /// Whether something is mapped to all of a range.
    fn is_mapped(&self, offset: u64, len: u64) -> bool {
        let Ok(at) = self.at(offset, len) else { return false };
        // SAFETY: changes nothing: it looks whether there are mappings
        // (`MS_ASYNC`).
        let looked = unsafe { libc::msync(at, len as usize, libc::MS_ASYNC) };
        (looked == 0 || Errno::last() != Errno::ENOMEM) && !faults::is_hole(at)
    }

    /// Asks for huge pages, as far as the kernel has them.
    pub(super) fn advise_huge(&self, offset: u64, len: u64) {
        if let Ok(at) = self.at(offset, len) {
            // SAFETY: changes nothing that is in the memory.
            unsafe { libc::madvise(at, len as usize, libc::MADV_HUGEPAGE) };
        }
    }

    /// Unmaps all of it.
    ///
    /// # Safety
    /// No guest reaches it any more, and nobody else's memory is there.
    pub(super) unsafe fn unmap(&self) {
        // SAFETY: the caller vouches for that.
        unsafe { libc::munmap(pointer(self.base), self.len as usize) };
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes at HVA {:#x}", self.len, self.base)
    }
}

#[cfg(not(test))]
mod faults {
    use kvm_memslots_shim::Errno;

    /// Lets every call pass.
    #[allow(clippy::unnecessary_wraps)]
    pub(super) const fn pass(_: *mut libc::c_void, _: usize) -> Result<(), Errno> {
        Ok(())
    }

    pub(super) const fn replaces(_: *mut libc::c_void, how: libc::c_int) -> libc::c_int {
        how
    }

    pub(super) const fn is_hole(_: *mut libc::c_void) -> bool {
        false
    }
}
