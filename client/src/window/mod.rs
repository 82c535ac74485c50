//! Memory that changes without KVM.
//!
//! A [`Window`] is one region, in one slot, over a range of guest addresses. What
//! is in it is placed by `mmap` inside the slot's host addresses: no ioctl, no
//! grace period, no waiting for anybody's page fault. Blobs of virtio-gpu, DAX
//! windows, BARs of devices that come and go
//! ([`PciBars::in_window`](crate::pci::PciBars::in_window)), virtio-mem. When to use it, and
//! when something else, is in `docs/guide/mechanisms.md`.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use kvm_memslots::window::{Contents, Gap, Window, WindowSpec};
//! use kvm_memslots::{Changes, Vm, at};
//!
//! # let vm: Vm = unimplemented!();
//! # let blob = std::fs::File::open("blob")?;
//! let window = Window::new(WindowSpec::new(at(0x20_0000_0000, 1 << 30)).gap(Gap::Zeroes))?;
//! let mut c = Changes::new();
//! c.map(window.region().label("blobs"));
//! vm.apply(c)?;
//!
//! // From any thread, from now on, while vCPUs run.
//! window.place(0x1_0000, 0x4000, Contents::file(&blob, 0).read_only())?;
//! window.remove(0x1_0000, 0x4000)?;
//! # Ok(()) }
//! ```
//!
//! # What the guest sees
//! When [`remove`](Window::remove) has returned, no vCPU finds what was there:
//! unmapping invalidates what KVM has mapped, and flushes it, first
//! (`kvm_mmu_notifier_invalidate_range_start()`). So no vCPU writes to it either.
//! While [`apply`](Window::apply) works on a set of several, vCPUs may see a part
//! of it.
//!
//! Where nothing is placed there is a [`Gap`]. An access that KVM has no page for
//! (in a [`Gap::Fault`]; a write to what is read-only, gaps that are
//! [`Zeroes`](Gap::Zeroes) among them; behind the end of a file; in memory that is
//! `PROT_NONE` or was truncated) is reported as any such access to any slot:
//!
//! | architecture | what the VMM gets | where in the kernel |
//! | --- | --- | --- |
//! | x86 | `KVM_RUN` fails with `EFAULT`, without an address | `kvm_handle_error_pfn()` |
//! | x86, where KVM carries the instruction out itself | an MMIO exit | `emulator_read_write_onepage()` |
//! | arm64 | `EFAULT`, without an address | `user_mem_abort()` |
//! | RISC-V | `EFAULT`, without an address | `kvm_riscv_mmu_map()`, before 6.17 `kvm_riscv_gstage_map()` |
//! | `LoongArch` | an MMIO exit | `kvm_handle_rdwr_fault()` |
//!
//! `KVM_EXIT_MEMORY_FAULT`, with which `EFAULT` comes with an address, is for
//! private memory and `guest_memfd` so far (`kvm_mmu_prepare_memory_fault_exit()`
//! and its callers); a VMM asks `kvm_run.exit_reason`, where an older kernel may
//! have left the exit before. Where the address is known, [`Window::found`] says
//! whether it is a gap of this window, which is the guest's doing, or not, which
//! is the VMM's mistake. Where it is not, the vCPU can't go on: [`Gap::Scratch`]
//! is the gap for guests that must survive what they do.
//!
//! An access that came before contents were placed and is reported after that
//! finds them when the vCPU runs again.
//!
//! # Slots in its range
//! A window's slot takes its whole range. A region that is mapped there as well is
//! refused ([`ErrorKind::Overlap`](crate::ErrorKind::Overlap)), over a gap too. So is a
//! slot that the VMM makes by itself (KVM's `EEXIST`). A part is made free for a slot by
//! [splitting](crate::Changes::split) the window's region and unmapping the part, in
//! one set with the map. What is placed beneath stays there and can be changed. The guest
//! finds it once the slot has gone and the [region](Window::region) is mapped as a whole
//! again. Until then [`Window::found`] is `None` there.
//!
//! # Logging
//! A window's region is logged as any other
//! ([`Changes::set_log_dirty`](crate::Changes::set_log_dirty)), whole or, once it is
//! [split](crate::Changes::split), in part, and read by
//! range ([`Vm::dirty_log_of`](crate::Vm::dirty_log_of)). What is placed may lie across
//! the parts. The log has what the
//! guest wrote, whatever was there then. That something was placed or removed is
//! for the VMM to send.
//!
//! # Who else sees it
//! [Observers](crate::Observer) are told of the window's region, not of what is in
//! it. VFIO can't map it for DMA (there is nothing to pin in gaps), and vhost-user
//! backends would need each file: they leave it out, by its
//! [tag](crate::RegionSpec::tag), say.
//!
//! # Ends
//! The host addresses live as long as the last [`Window`] and the last region
//! that is mapped from it. One that is unmapped from the guest keeps its contents
//! and can still be changed, from whatever thread. As with all memory that regions
//! own, it is leaked rather than freed where KVM may still map it.
//!
//! A process that is forked has what was placed at the time as any other memory
//! of its parent: shared where that is shared, else copied on write. The guest is
//! the parent's: [`WindowErrorKind::Forked`].
//!
//! # System calls
//! For filters (`seccomp`), and for what they cost:
//!
//! | what | calls |
//! | --- | --- |
//! | [`Window::new`] | `mmap`, up to 2 `munmap` (of what aligning left over) |
//! | [`CheckedFile::new`] | `fstat`, and `fcntl` or (where blocks are no pages) `fstatfs` |
//! | [`Contents::checked`], shared memory (`memfd_create`, `tmpfs`) | `mmap` |
//! | [`Contents::checked`], other files | `mmap`, `mremap` |
//! | [`Contents::file`] | those of [`CheckedFile::new`] more for each |
//! | [`Contents::device`] | `fstatfs`, `mmap`, `mremap` |
//! | [`Contents::anonymous`] | `mmap` |
//! | [`Contents::mapping`] | 2 `mremap` (before Linux 5.13 up to 3) |
//! | a window with [huge pages](WindowSpec::huge_pages) | `madvise` more for each |
//! | [`Window::remove`] | `mmap` |
//! | removals in sets of several | `mremap`, `munmap` more for each placement |
//! | the first set of several, the first [`Contents::mapping`], and each after one that failed | `mmap`, 2 `madvise` more |
//! | something in the place of something else, by a set of those two | those of the place |
//! | anything that fails | those, `munmap`, `mmap` and `msync` |
//! | the end | up to 2 `munmap` |
//!
//! # When a call fails
//! `mmap` with `MAP_FIXED` unmaps first and may fail then. Contents of a
//! descriptor are mapped elsewhere first (unless it is shared memory
//! with fixed seals, which is refused before anything is unmapped, if at all), so that what the descriptor
//! is can't be the reason: then nothing has been changed. What can still fail are the
//! kernel's own allocations. If such a call leaves addresses unmapped, they are
//! made a gap right away, without replacing what another thread's `mmap` may have
//! been given in between (`MAP_FIXED_NOREPLACE`, Linux 4.17). The kernel checks
//! its limits (`vm.max_map_count`, overcommit) before it unmaps, so that this
//! takes a kernel out of memory.
//!
//! A placement takes up to 2 of the process's mappings, and so does removing a part
//! of one, which can fail for that: what a guest can ask for should be bounded. From
//! the first set on that may have to be undone, a window keeps 5 mappings of no use,
//! which make room for undoing it.

mod contents;
mod edit;
mod error;
mod found;
mod host;
#[cfg(all(test, feature = "model"))]
mod in_sets;
mod part;
mod spare;
mod steps;
mod table;
#[cfg(test)]
mod tests;

pub use contents::{CheckedFile, Contents};
pub use edit::Edit;
pub use error::{WindowError, WindowErrorKind};
pub use found::Found;
pub use part::WindowPart;
pub(crate) use steps::{Astray, Steps};
pub use table::Placement;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edit::{Applying, State, Step};
use host::Reservation;
use libc::{PROT_NONE, PROT_READ, PROT_WRITE};

use crate::fork::Process;
use crate::{Backing, HostMemory, RegionSpec, Span};

/// What the guest finds where nothing is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Gap {
    /// Nothing: an access ends the `KVM_RUN` ([how](self#what-the-guest-sees)).
    #[default]
    Fault,
    /// Zeroes. A write ends the `KVM_RUN` as in a [`Fault`](Self::Fault). Takes no
    /// memory but page tables.
    Zeroes,
    /// Zeroes, and what the guest wrote there since there was a gap; it is
    /// forgotten when something is placed. No access ends the `KVM_RUN`. The guest
    /// can have the host spend as much memory as the window is large.
    Scratch,
}

/// A window that is to be made.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct WindowSpec {
    span: Span,
    gap: Gap,
    huge: bool,
}

impl WindowSpec {
    /// Over these guest addresses. Host addresses are chosen so that huge pages
    /// are possible: equal to the guest's modulo the largest power of two that the
    /// window is as large as, up to 1 GiB. (A file's pages are huge where its
    /// offset fits, too.)
    pub fn new(span: impl Into<Span>) -> Self {
        Self { span: span.into(), gap: Gap::default(), huge: false }
    }

    /// With such gaps.
    pub const fn gap(mut self, gap: Gap) -> Self {
        self.gap = gap;
        self
    }

    /// Asks for huge pages for what is placed (`MADV_HUGEPAGE`), as far as the
    /// kernel has them for it.
    pub const fn huge_pages(mut self) -> Self {
        self.huge = true;
        self
    }
}

/// A range of guest addresses in which memory comes and goes without KVM, from
/// any thread. Clones are the same window. See the [module](self).
#[derive(Debug, Clone)]
pub struct Window {
    inner: Arc<Inner>,
    span: Span,
}

struct Inner {
    host: Reservation,
    page: u64,
    gap: Gap,
    huge: bool,
    process: Process,
    state: Mutex<State>,
}

impl Window {
    /// Reserves host addresses. Nothing is mapped into a guest.
    ///
    /// # Errors
    /// [`WindowErrorKind::Span`] where the guest addresses are not whole pages;
    /// [`WindowErrorKind::Refused`].
    pub fn new(spec: WindowSpec) -> Result<Self, WindowError> {
        let (Span { gpa, size }, page) = (spec.span, host::page_size());
        let wrong = |kind| WindowError::new(kind, 0, size);
        if size == 0 || gpa % page != 0 || size % page != 0 || gpa.checked_add(size).is_none() {
            return Err(wrong(WindowErrorKind::Span { gpa, size, page }));
        }
        let protection = match spec.gap {
            Gap::Fault => PROT_NONE,
            Gap::Zeroes => PROT_READ,
            Gap::Scratch => PROT_READ | PROT_WRITE,
        };
        let host = Reservation::new(gpa, size, protection)
            .map_err(|(call, errno)| wrong(WindowErrorKind::Refused { call, errno }))?;
        let (process, state) = (Process::this(), Mutex::default());
        let inner = Inner { host, page, gap: spec.gap, huge: spec.huge, process, state };
        Ok(Self { inner: Arc::new(inner), span: spec.span })
    }

    /// The region to [map](crate::Changes::map), at the guest addresses that the
    /// window was made for: device memory, [alone](RegionSpec::alone) in its slot.
    pub fn region(&self) -> RegionSpec {
        RegionSpec::device(self.span, self.backing()).alone()
    }

    /// The host memory, for a region of another kind or at another place.
    #[must_use]
    pub fn backing(&self) -> Backing {
        let memory: Arc<dyn HostMemory> = self.inner.clone();
        Backing::owned(memory, 0)
    }

    /// How many bytes it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.inner.host.len()
    }

    /// What is where nothing is placed.
    #[must_use]
    pub fn gap(&self) -> Gap {
        self.inner.gap
    }

    /// Places `contents` in `len` bytes from `offset` on, where nothing is yet.
    /// (To put something in the place of something else, remove and place in one
    /// [set](Self::apply).)
    ///
    /// # Errors
    /// [`WindowError`]; nothing was changed then.
    pub fn place(&self, offset: u64, len: u64, contents: Contents<'_>) -> Result<(), WindowError> {
        self.inner.apply(&[Step { offset, len, contents: Some(contents) }])
    }

    /// Removes what is in `len` bytes from `offset` on, all of which must be
    /// something: placements, or parts of them. No vCPU finds it once this has
    /// returned.
    ///
    /// # Errors
    /// [`WindowErrorKind::Gap`], and [`WindowError`] otherwise; nothing was changed
    /// then.
    pub fn remove(&self, offset: u64, len: u64) -> Result<(), WindowError> {
        self.inner.apply(&[Step { offset, len, contents: None }])
    }

    /// Places and removes, all or nothing.
    ///
    /// # Errors
    /// [`WindowError`], which says which it is about. What was there before is
    /// there again, unless it is [`WindowErrorKind::Stuck`].
    pub fn apply(&self, edit: &Edit<'_>) -> Result<(), WindowError> {
        self.inner.apply(&edit.0)
    }

    /// What is at an offset.
    #[must_use]
    pub fn at(&self, offset: u64) -> Option<Placement> {
        self.inner.state()?.table.at(offset)
    }

    /// Everything that is placed, by offset.
    #[must_use]
    pub fn placed(&self) -> Vec<Placement> {
        self.inner.state().map_or_else(Vec::new, |state| state.table.iter().collect())
    }

    /// Names the window in this process, while it lives.
    fn identity(&self) -> usize {
        Arc::as_ptr(&self.inner).addr()
    }

    /// Whether a part of a file of such pages can be there.
    fn check(&self, offset: u64, len: u64, page: Option<u64>) -> Result<(), WindowErrorKind> {
        self.inner.check(offset, len)?;
        page.map_or(Ok(()), |page| self.inner.host.check_whole(offset, len, page))
    }

    /// The first that is in `len` bytes from `offset` on, but for what is `gone`.
    fn first_in(
        &self,
        offset: u64,
        len: u64,
        gone: impl Fn(&Placement) -> bool,
    ) -> Option<Placement> {
        self.inner.state()?.table.all_in(offset, len).find(|placement| !gone(placement))
    }
}

impl Inner {
    /// Nothing in a process that was forked: there the lock may be held for ever.
    fn state(&self) -> Option<MutexGuard<'_, State>> {
        let state = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (!self.process.is_fork()).then(state)
    }

    /// Whether these are whole pages of the window.
    fn check(&self, offset: u64, len: u64) -> Result<(), WindowErrorKind> {
        let (page, size) = (self.page, self.host.len());
        let inside = offset.checked_add(len).is_some_and(|end| end <= size);
        if len == 0 || offset % page != 0 || len % page != 0 || !inside {
            return Err(WindowErrorKind::Geometry { page, size });
        }
        Ok(())
    }

    fn apply(&self, steps: &[Step<'_>]) -> Result<(), WindowError> {
        let size = self.host.len();
        let mut scratches = Vec::with_capacity(steps.len());
        for (index, step) in steps.iter().enumerate() {
            self.check(step.offset, step.len).map_err(|kind| step.wrong(index, kind))?;
        }
        if self.process.is_fork() {
            return Err(WindowError::new(WindowErrorKind::Forked, 0, size));
        }
        for (index, step) in steps.iter().enumerate() {
            scratches.push(step.prepare(index, &self.host)?);
        }
        let Some(mut state) = self.state() else {
            return Err(WindowError::new(WindowErrorKind::Forked, 0, size));
        };
        let (host, huge) = (&self.host, self.huge);
        Applying { host, huge, state: &mut state, steps }.apply(scratches)
    }
}

// SAFETY: the addresses stay mapped, to a gap or to what was placed there, until
// the object is dropped. Nothing in this process accesses them.
unsafe impl HostMemory for Inner {
    fn range(&self) -> (u64, u64) {
        (self.host.base(), self.host.len())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.holes.is_empty() {
            // SAFETY: no region has it any more, and no hole is somebody else's.
            unsafe { self.host.unmap() };
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, gaps: {:?}", self.host, self.gap)
    }
}
