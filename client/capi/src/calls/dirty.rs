//! Reading and clearing dirty logs.

use std::ffi::{c_int, c_void};

use kvm_memslots::{DirtyBitmap, DirtyPages, RegionId, Vm};

use super::on;
use crate::failure::Failure;
use crate::handles::Handle;
use crate::record::{invalid, null};

/// How many words have a bit for each of so many pages, if the caller has them.
fn words<T>(bitmap: *const T, nr_words: usize, pages: u64) -> Result<usize, Failure> {
    let needed = pages.div_ceil(64);
    if (nr_words as u64) < needed {
        let message =
            format!("the bitmap has {nr_words} words, for {pages} pages it needs {needed}");
        return Err(invalid(message));
    }
    if bitmap.is_null() {
        return Err(null("words"));
    }
    Ok(needed as usize)
}

/// Pages of a region that were asked for, or all.
type Asked = Option<(u64, u64)>;

unsafe fn read(vm: *mut Handle<Vm>, id: u64, asked: Asked, to: *mut u64, nr_words: usize) -> c_int {
    let dirty_log = |vm: &Vm| {
        let id = RegionId::from_raw(id);
        // Exactly these pages, also if the region grows meanwhile: what is read
        // has to fit.
        let (first, pages) = match asked {
            Some(asked) => asked,
            None => (0, vm.region(id)?.range.size() / vm.limits().page_size),
        };
        words(to, nr_words, pages)?;
        let dirty = vm.dirty_log_of(id, first..first.saturating_add(pages))?;
        let words = dirty.words();
        // SAFETY: not null, with room for `nr_words`, which are enough. C need
        // not have written them before, so there is no reference to them.
        unsafe { to.copy_from_nonoverlapping(words.as_ptr(), words.len()) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, dirty_log) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_dirty_log(
    vm: *mut Handle<Vm>,
    id: u64,
    words: *mut u64,
    nr_words: usize,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { read(vm, id, None, words, nr_words) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_dirty_log_of(
    vm: *mut Handle<Vm>,
    id: u64,
    first_page: u64,
    nr_pages: u64,
    words: *mut u64,
    nr_words: usize,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { read(vm, id, Some((first_page, nr_pages)), words, nr_words) }
}

/// `kvm_memslots_each_dirty_log`
type EachDirtyLog = unsafe extern "C" fn(*mut c_void, u64, *const u64, u64);

/// The logs of an address space, or of all.
unsafe fn read_all(
    vm: *mut Handle<Vm>,
    as_id: Option<u16>,
    each: Option<EachDirtyLog>,
    opaque: *mut c_void,
) -> c_int {
    let dirty_logs = |vm: &Vm| {
        let each = each.ok_or_else(|| null("each"))?;
        let hand_out = |id: RegionId, pages: DirtyPages<'_>| {
            // With the region's first page in bit 0.
            let bitmap = pages.to_bitmap();
            // SAFETY: C gave the function to be called with these.
            unsafe { each(opaque, id.to_raw(), bitmap.words().as_ptr(), bitmap.pages()) };
        };
        Ok(match as_id {
            None => vm.for_each_dirty_log(hand_out),
            Some(as_id) => vm.for_each_dirty_log_in(as_id, hand_out),
        }?)
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, dirty_logs) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_dirty_logs(
    vm: *mut Handle<Vm>,
    each: Option<EachDirtyLog>,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { read_all(vm, None, each, opaque) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_dirty_logs_in(
    vm: *mut Handle<Vm>,
    as_id: u16,
    each: Option<EachDirtyLog>,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { read_all(vm, Some(as_id), each, opaque) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_clear_dirty_log(
    vm: *mut Handle<Vm>,
    id: u64,
    first_page: u64,
    nr_pages: u64,
    from: *const u64,
    nr_words: usize,
) -> c_int {
    let clear = |vm: &Vm| {
        let nr = words(from, nr_words, nr_pages)?;
        // SAFETY: not null, and so many are there, as the caller says.
        let words = unsafe { std::slice::from_raw_parts(from, nr) };
        Ok(vm.clear_dirty_log(RegionId::from_raw(id), first_page, &bitmap(words, nr_pages))?)
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, clear) }
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
