//! The functions of the header, which documents them.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use kvm_memslots::backend::{Errno, Model};
use kvm_memslots::{AddressSpace, Builder, DirtyBitmap, Error, Limits, Region};

use crate::failure::{Failure, report};
use crate::space::Space;
use crate::types::{CLimits, COptions, CPreview, CRegion, CRegionId, CReport, CSpec, flags};

/// Runs `f` on a space that is there and whole.
///
/// # Safety
/// As [the crate](crate#safety).
unsafe fn on(space: *mut Space, f: impl FnOnce(&mut Space) -> Result<(), Failure>) -> c_int {
    // SAFETY: null, or valid and used by this thread only.
    let Some(space) = (unsafe { space.as_mut() }) else {
        return report(|| Err(null("space")), || ());
    };
    if space.broken {
        let message = "an earlier call on this space panicked";
        return report(|| Err(Failure::new(Errno::ENOTRECOVERABLE, message)), || ());
    }
    let mut panicked = false;
    let ret = report(|| f(space), || panicked = true);
    space.broken |= panicked;
    ret
}

fn null(what: &str) -> Failure {
    Failure::new(Errno::EINVAL, format!("{what} is NULL"))
}

/// # Safety
/// `from` is null or points to a `T` that stays as it is for `'a`.
unsafe fn get<'a, T>(from: *const T, what: &str) -> Result<&'a T, Failure> {
    // SAFETY: as the caller says.
    unsafe { from.as_ref() }.ok_or_else(|| null(what))
}

/// Writes a result that the caller wants.
///
/// # Safety
/// `to` is null or points to room for a `T`.
unsafe fn put<T>(to: *mut T, value: impl Into<T>) {
    if !to.is_null() {
        // SAFETY: not null, and as the caller says.
        unsafe { to.write(value.into()) }
    }
}

/// # Safety
/// As [the crate](crate#safety).
unsafe fn open(
    options: *const COptions,
    space: *mut *mut Space,
    open: impl FnOnce(Builder) -> Result<AddressSpace, Error>,
) -> c_int {
    let opened = || {
        if space.is_null() {
            return Err(null("space"));
        }
        // SAFETY: null or valid, as the caller says.
        let builder = match unsafe { options.as_ref() } {
            None => AddressSpace::builder(),
            // SAFETY: `reserved` has `nr_reserved` ranges, as the caller says.
            Some(options) => unsafe { options.builder() }?,
        };
        let opened = Box::new(Space::new(open(builder)?));
        // SAFETY: not null, so there is room for a pointer.
        unsafe { space.write(Box::into_raw(opened)) };
        Ok(())
    };
    report(opened, || ())
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_open(
    vm_fd: c_int,
    options: *const COptions,
    space: *mut *mut Space,
) -> c_int {
    let on_vm = |builder: Builder| {
        // SAFETY: open, as the caller says, and borrowed for this call only.
        builder.open(unsafe { BorrowedFd::borrow_raw(vm_fd) })
    };
    if vm_fd < 0 {
        let message = format!("{vm_fd} is no file descriptor");
        return report(|| Err(Failure::new(Errno::EBADF, message)), || ());
    }
    // SAFETY: as the caller says.
    unsafe { open(options, space, on_vm) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_open_model(
    options: *const COptions,
    space: *mut *mut Space,
) -> c_int {
    let on_model = |builder: Builder| builder.open_on(Box::new(Model::new(Limits::x86())));
    // SAFETY: as the caller says.
    unsafe { open(options, space, on_model) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_close(space: *mut Space) -> c_int {
    // SAFETY: as the caller says.
    let ret = unsafe { on(space, Space::unmap_all) };
    if ret == 0 {
        // SAFETY: as the caller says, and not used after this.
        unsafe { kvm_memslots_free(space) };
    }
    ret
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_free(space: *mut Space) {
    if space.is_null() {
        return;
    }
    // SAFETY: from `Box::into_raw` in `open`, and not freed before, as the
    // caller says.
    let space = unsafe { Box::from_raw(space) };
    if space.broken {
        // What a panic left may panic again: it is leaked.
        std::mem::forget(space);
    } else {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(space)));
    }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_begin(space: *mut Space) -> c_int {
    // SAFETY: as the caller says.
    unsafe { on(space, Space::begin) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_map(
    space: *mut Space,
    spec: *const CSpec,
    id: *mut CRegionId,
) -> c_int {
    let map = |space: &mut Space| {
        // SAFETY: null or valid, as the caller says.
        let spec = unsafe { get(spec, "spec") }?;
        // SAFETY: its label is null or a string, as the caller says.
        let spec = unsafe { spec.spec() }?;
        // SAFETY: the caller gives this host memory to the guest.
        let mapped = unsafe { space.transaction()?.map(spec) }?;
        // SAFETY: null or room for an id, as the caller says.
        unsafe { put(id, mapped) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(space, map) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_unmap(space: *mut Space, id: CRegionId) -> c_int {
    let unmap = |space: &mut Space| Ok(space.transaction()?.unmap(id.into())?);
    // SAFETY: as the caller says.
    unsafe { on(space, unmap) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_resize(space: *mut Space, id: CRegionId, size: u64) -> c_int {
    let resize = |space: &mut Space| {
        let transaction = space.transaction()?;
        // SAFETY: the caller gives the host memory that is new to the guest.
        Ok(unsafe { transaction.resize(id.into(), size) }?)
    };
    // SAFETY: as the caller says.
    unsafe { on(space, resize) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_split(
    space: *mut Space,
    id: CRegionId,
    offset: u64,
    upper: *mut CRegionId,
) -> c_int {
    let split = |space: &mut Space| {
        let rest = space.transaction()?.split(id.into(), offset)?;
        // SAFETY: null or room for an id, as the caller says.
        unsafe { put(upper, rest) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(space, split) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_set_flags(
    space: *mut Space,
    id: CRegionId,
    bits: u32,
) -> c_int {
    let set = |space: &mut Space| Ok(space.transaction()?.set_flags(id.into(), flags(bits)?)?);
    // SAFETY: as the caller says.
    unsafe { on(space, set) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_dry_run(space: *mut Space, preview: *mut CPreview) -> c_int {
    let dry_run = |space: &mut Space| {
        let cost = space.transaction()?.dry_run()?;
        // SAFETY: null or room for a preview, as the caller says.
        unsafe { put(preview, cost) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(space, dry_run) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_commit(space: *mut Space, cost: *mut CReport) -> c_int {
    let commit = |space: &mut Space| {
        let done = space.commit()?;
        // SAFETY: null or room for a report, as the caller says.
        unsafe { put(cost, done) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(space, commit) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_abort(space: *mut Space) -> c_int {
    // SAFETY: as the caller says.
    unsafe { on(space, Space::abort) }
}

/// How many pages a region has, if a bitmap of `nr_words` has a bit for each.
fn pages(space: &AddressSpace, id: CRegionId, nr_words: usize) -> Result<u64, Failure> {
    let pages = space.region(id.into())?.range.size / space.limits().page_size;
    let needed = pages.div_ceil(64);
    if (nr_words as u64) < needed {
        let message =
            format!("the bitmap has {nr_words} words, a region of {pages} pages needs {needed}");
        return Err(Failure::new(Errno::EINVAL, message));
    }
    Ok(pages)
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_dirty_log(
    space: *mut Space,
    id: CRegionId,
    words: *mut u64,
    nr_words: usize,
) -> c_int {
    let dirty_log = |space: &mut Space| {
        let space = space.idle()?;
        pages(space, id, nr_words)?;
        if words.is_null() {
            return Err(null("words"));
        }
        let dirty = space.dirty_log(id.into())?;
        // SAFETY: not null, with room for `nr_words`, which are enough. C need
        // not have written them before, so there is no reference to them.
        unsafe { words.copy_from_nonoverlapping(dirty.words().as_ptr(), dirty.words().len()) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(space, dirty_log) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_clear_dirty_log(
    space: *mut Space,
    id: CRegionId,
    words: *const u64,
    nr_words: usize,
) -> c_int {
    let clear = |space: &mut Space| {
        let space = space.idle()?;
        let pages = pages(space, id, nr_words)?;
        if words.is_null() {
            return Err(null("words"));
        }
        // SAFETY: not null, and so many are there, as the caller says.
        let words = unsafe { slice::from_raw_parts(words, pages.div_ceil(64) as usize) };
        Ok(space.clear_dirty_log(id.into(), &bitmap(words, pages))?)
    };
    // SAFETY: as the caller says.
    unsafe { on(space, clear) }
}

/// The bitmap of `pages` that `words` are. Bits beyond the last page are passed
/// over.
fn bitmap(words: &[u64], pages: u64) -> DirtyBitmap {
    let mut bitmap = DirtyBitmap::new(pages);
    for (word, first) in words.iter().zip((0..).step_by(64)) {
        match *word {
            0 => {}
            u64::MAX => bitmap.set(first, 64),
            word => {
                (0..64)
                    .filter(|bit| word >> bit & 1 == 1)
                    .for_each(|bit| bitmap.set(first + bit, 1));
            }
        }
    }
    bitmap
}

fn found(region: Option<Region<'_>>, what: impl FnOnce() -> String) -> Result<Region<'_>, Failure> {
    region.ok_or_else(|| Failure::new(Errno::ENOENT, what()))
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_region(
    space: *mut Space,
    id: CRegionId,
    region: *mut CRegion,
) -> c_int {
    let lookup = |space: &mut Space| {
        let it = space.idle()?.region(id.into())?;
        // SAFETY: null or room for a region, as the caller says.
        unsafe { put(region, it) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(space, lookup) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_region_at(
    space: *mut Space,
    gpa: u64,
    region: *mut CRegion,
) -> c_int {
    let lookup = |space: &mut Space| {
        let it = found(space.idle()?.region_at(gpa), || format!("no region at GPA {gpa:#x}"))?;
        // SAFETY: null or room for a region, as the caller says.
        unsafe { put(region, it) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(space, lookup) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_region_at_slot(
    space: *mut Space,
    slot: u16,
    slot_page: u64,
    region: *mut CRegion,
    region_page: *mut u64,
) -> c_int {
    let lookup = |space: &mut Space| {
        let it = space.idle()?.region_at_slot(slot, slot_page);
        let (it, page) = it.map_or((None, 0), |(it, page)| (Some(it), page));
        let it = found(it, || format!("no region at page {slot_page:#x} of slot {slot}"))?;
        // SAFETY: null or room for a region, as the caller says.
        unsafe { put(region, it) };
        // SAFETY: null or room for a number, as the caller says.
        unsafe { put(region_page, page) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(space, lookup) }
}

/// # Safety
/// As [the crate](crate#safety).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_limits(space: *mut Space, limits: *mut CLimits) -> c_int {
    let lookup = |space: &mut Space| {
        let it = space.idle()?.limits();
        // SAFETY: null or room for the limits, as the caller says.
        unsafe { put(limits, it) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(space, lookup) }
}
