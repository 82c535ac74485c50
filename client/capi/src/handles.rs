//! What C holds, behind pointers: checked as far as that is cheap.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvm_memslots::deferred::Deferred;
use kvm_memslots::pci::PciBars;
use kvm_memslots::window::Window;
use kvm_memslots::{CoalescedRing, Errno, RomDevice, Vm};

use crate::failure::Failure;
use crate::last::report;
use crate::record::null;

/// Something that C holds a pointer to.
pub trait Held {
    /// A number that no other kind has.
    const MAGIC: u64;
    /// `struct` what.
    const NAME: &'static str;

    /// Whether it is this process's no more.
    fn is_fork(&self) -> bool {
        false
    }
}

macro_rules! held {
    ($($ty:ty, $name:literal, $magic:literal;)*) => {
        $(
            impl $crate::handles::Held for $ty {
                const MAGIC: u64 = u64::from_le_bytes(*$magic);
                const NAME: &'static str = $name;
            }
        )*
    };
}

pub(crate) use held;

held! {
    Deferred, "kvm_memslots_exits", b"kvmsEXIT";
    RomDevice, "kvm_memslots_rom", b"kvmsROMD";
    PciBars, "kvm_memslots_pci", b"kvmsPCIB";
    CoalescedRing, "kvm_memslots_ring", b"kvmsRING";
    Window, "kvm_memslots_window", b"kvmsWNDW";
}

impl Held for Vm {
    const MAGIC: u64 = u64::from_le_bytes(*b"kvms  VM");
    const NAME: &'static str = "kvm_memslots_vm";

    fn is_fork(&self) -> bool {
        self.is_forked()
    }
}

/// What is there instead of the magic number once it was freed.
const FREED: u64 = u64::from_le_bytes(*b"kvmsFREE");

/// What a pointer of C's leads to.
///
/// The magic number is not at the start, where allocators keep lists of what is
/// free (glibc four words, of what is large): so a pointer that was freed is mostly told from one that was not, until
/// its memory is another object's. Nothing depends on that: it is the caller who
/// promises not to use what was freed.
#[repr(C)]
#[derive(Debug)]
pub struct Handle<T> {
    /// How many calls are inside of it.
    calls: AtomicUsize,
    /// The thread that is, of what one thread at a time may use; 0 for none.
    thread: AtomicUsize,
    _lists: [usize; 2],
    magic: u64,
    value: UnsafeCell<T>,
}

/// A handle for C.
pub fn give<T: Held>(value: T) -> *mut Handle<T> {
    Box::into_raw(Box::new(Handle {
        calls: AtomicUsize::new(0),
        thread: AtomicUsize::new(0),
        _lists: [0; 2],
        magic: T::MAGIC,
        value: UnsafeCell::new(value),
    }))
}

fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    // A constant without a destructor can be asked for at any time.
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

fn busy<T: Held>(why: &str) -> Failure {
    Failure::new(Errno::EBUSY, format!("this {} {why}", T::NAME))
}

/// What `handle` leads to, if that is there and of this kind.
///
/// # Safety
/// As [the crate](crate#safety).
unsafe fn look<'a, T: Held>(handle: *const Handle<T>) -> Result<&'a Handle<T>, Failure> {
    if handle.is_null() {
        return Err(null(T::NAME.trim_start_matches("kvm_memslots_")));
    }
    if !handle.is_aligned() {
        return Err(stale::<T>("is none"));
    }
    // SAFETY: not null, so a handle of some kind, which all have it here.
    let magic = unsafe { &raw const (*handle).magic };
    // SAFETY: as above; it may have been freed, see `Handle`.
    let magic = unsafe { magic.read_volatile() };
    match magic {
        // SAFETY: it is one of these, for as long as nobody frees it.
        magic if magic == T::MAGIC => Ok(unsafe { &*handle }),
        FREED => Err(stale::<T>("was freed already")),
        _ => Err(stale::<T>("is none: something else, or freed long ago")),
    }
}

fn stale<T: Held>(what: &str) -> Failure {
    Failure::new(Errno::EBADF, format!("the struct {} {what}", T::NAME))
}

/// A call that is inside of a handle.
struct Inside<'a>(&'a AtomicUsize);

impl<'a> Inside<'a> {
    fn new(calls: &'a AtomicUsize) -> Self {
        calls.fetch_add(1, Ordering::Acquire);
        Self(calls)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// What one thread at a time may use, while this thread does.
struct Mine<'a> {
    thread: &'a AtomicUsize,
    /// Not from inside of another call of this thread.
    first: bool,
}

impl<'a> Mine<'a> {
    fn new<T: Held>(handle: &'a Handle<T>) -> Result<Self, Failure> {
        let (me, thread) = (this_thread(), &handle.thread);
        match thread.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(Self { thread, first: true }),
            Err(now) if now == me => Ok(Self { thread, first: false }),
            Err(_) => Err(busy::<T>("is in use by another thread, and for one at a time")),
        }
    }
}

impl Drop for Mine<'_> {
    fn drop(&mut self) {
        if self.first {
            self.thread.store(0, Ordering::Release);
        }
    }
}

/// Runs `f` on what threads share.
///
/// # Safety
/// As [the crate](crate#safety).
pub(crate) unsafe fn shared<T: Held + Sync, R>(
    handle: *const Handle<T>,
    f: impl FnOnce(&T) -> Result<R, Failure>,
) -> Result<R, Failure> {
    // SAFETY: as the caller says.
    let handle = unsafe { look(handle) }?;
    let _inside = Inside::new(&handle.calls);
    // SAFETY: what is shared is never lent as `&mut`, and not freed meanwhile.
    f(unsafe { &*handle.value.get() })
}

/// Runs `f` on what one thread at a time uses; its callbacks may use it, too.
///
/// # Safety
/// As [the crate](crate#safety).
pub(crate) unsafe fn own<T: Held, R>(
    handle: *const Handle<T>,
    f: impl FnOnce(&T) -> Result<R, Failure>,
) -> Result<R, Failure> {
    // SAFETY: as the caller says.
    let handle = unsafe { look(handle) }?;
    let _mine = Mine::new(handle)?;
    let _inside = Inside::new(&handle.calls);
    // SAFETY: on this thread only; whoever else has a reference there is this
    // function, as `exclusive` fails inside of it.
    f(unsafe { &*handle.value.get() })
}

/// Runs `f` on what one thread at a time changes.
///
/// # Safety
/// As [the crate](crate#safety).
pub(crate) unsafe fn exclusive<T: Held, R>(
    handle: *mut Handle<T>,
    f: impl FnOnce(&mut T) -> Result<R, Failure>,
) -> Result<R, Failure> {
    // SAFETY: as the caller says.
    let handle = unsafe { look(handle) }?;
    let mine = Mine::new(handle)?;
    if !mine.first {
        return Err(busy::<T>("is in use: this is a callback of a call on it"));
    }
    let _inside = Inside::new(&handle.calls);
    // SAFETY: no other thread is inside, and no other call of this one.
    f(unsafe { &mut *handle.value.get() })
}

/// What C gives back.
///
/// # Safety
/// As [the crate](crate#safety); the handle is not used after this, unless it
/// failed.
pub(crate) unsafe fn take<T: Held>(handle: *mut Handle<T>) -> Result<T, Failure> {
    // SAFETY: as the caller says.
    let there = unsafe { look(handle) }?;
    // Whoever was inside of it is not in a fork, but for this thread.
    // SAFETY: a `Vm` is never lent as `&mut`.
    let is_fork = || T::MAGIC == Vm::MAGIC && unsafe { &*there.value.get() }.is_fork();
    if there.calls.load(Ordering::Acquire) != 0 && !is_fork() {
        return Err(busy::<T>("is in use: a call on it has not returned yet"));
    }
    // SAFETY: there, as it was looked at.
    let magic = unsafe { &raw mut (*handle).magic };
    // SAFETY: as above; no reference to it is used after this.
    unsafe { magic.write_volatile(FREED) };
    // SAFETY: from `give`, and the magic number says that it was not freed.
    let handle = unsafe { Box::from_raw(handle) };
    Ok(handle.value.into_inner())
}

/// Frees a handle; nothing if there is none.
///
/// # Safety
/// As for [`take`].
pub(crate) unsafe fn free<T: Held>(handle: *mut Handle<T>) -> c_int {
    report(|| {
        if !handle.is_null() {
            // SAFETY: as the caller says.
            drop(unsafe { take(handle) }?);
        }
        Ok(())
    })
}

/// The functions of the header that do so.
macro_rules! frees {
    ($(extern "C" fn $name:ident($handle:ident: $ty:ty) {})+) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($handle: $ty) {
            // SAFETY: as the caller says.
            unsafe { $crate::handles::free($handle) };
        }
    )+};
}
pub(crate) use frees;

/// Gives a handle to C at `to`.
///
/// # Safety
/// `to` is null or has room for a pointer.
pub(crate) unsafe fn give_to<T: Held>(
    to: *mut *mut Handle<T>,
    make: impl FnOnce() -> Result<T, Failure>,
) -> Result<*mut Handle<T>, Failure> {
    if to.is_null() {
        return Err(null(T::NAME.trim_start_matches("kvm_memslots_")));
    }
    let handle = give(make()?);
    // SAFETY: not null, so there is room for a pointer.
    unsafe { to.write(handle) };
    Ok(handle)
}
