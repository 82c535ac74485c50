//! What a caller holds, and what it fills structures with.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_int, c_void};
use std::fs::File;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::Kvm;
use kvm_memslots_client::*;

use crate::engine::Numbers;

/// Calls of all inputs that were done, and that were refused.
pub(super) static DONE: AtomicU64 = AtomicU64::new(0);
pub(super) static REFUSED: AtomicU64 = AtomicU64::new(0);

/// Host memory that is there, with as much behind it that is not.
pub(super) const ARENA: u64 = 1 << 20;

fn arena() -> u64 {
    static AT: OnceLock<u64> = OnceLock::new();
    *AT.get_or_init(|| {
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, which takes no other's place.
        let at = unsafe { libc::mmap(null_mut(), 1 << 30, libc::PROT_NONE, kind, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        // SAFETY: the start of that mapping.
        let made =
            unsafe { libc::mprotect(at, ARENA as usize, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(made, 0);
        at as u64
    })
}

/// Handles of one kind. Freed ones are not kept: their memory may be another's.
pub(super) struct Pool<T>(Vec<*mut Handle<T>>);

impl<T> Pool<T> {
    const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn push(&mut self, handle: *mut Handle<T>) {
        assert!(!handle.is_null());
        self.0.push(handle);
    }

    pub(super) fn forget(&mut self, handle: *mut Handle<T>) {
        self.0.retain(|other| *other != handle);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first; null if there is none.
    pub(super) fn first(&self) -> *mut Handle<T> {
        self.0.first().copied().unwrap_or_default()
    }

    pub(super) fn has(&self, handle: *mut Handle<T>) -> bool {
        self.0.contains(&handle)
    }
}

/// All that a caller holds.
pub(super) struct World {
    pub(super) vms: Pool<Vm>,
    pub(super) sets: Pool<CChanges>,
    pub(super) devices: Pool<CDevice>,
    pub(super) exits: Pool<Deferred>,
    pub(super) roms: Pool<RomDevice>,
    pub(super) bars: Pool<PciBars>,
    pub(super) windows: Pool<Window>,
    pub(super) triggers: Pool<CTrigger>,
    /// Names of regions, devices and functions, and some of nobody's.
    pub(super) ids: Vec<u64>,
    errnos: BTreeSet<i32>,
    eventfds: Vec<OwnedFd>,
    memfd: OwnedFd,
    /// A VM on KVM, if this is on one.
    kvm: Option<File>,
}

/// A structure that is all defaults.
pub(super) fn init<T>() -> T {
    // SAFETY: the structures of the header are numbers and pointers.
    let mut value: T = unsafe { zeroed() };
    // SAFETY: they begin with their size.
    unsafe { (&raw mut value).cast::<usize>().write(size_of::<T>()) };
    value
}

fn kvm() -> Option<File> {
    static KVM: OnceLock<Option<Kvm>> = OnceLock::new();
    let kvm = KVM.get_or_init(|| {
        let kvm = Kvm::new().ok();
        if kvm.is_none() {
            eprintln!("SKIPPED calls on KVM: no /dev/kvm");
        }
        kvm
    });
    let vm = kvm.as_ref()?.create_vm().ok()?;
    // SAFETY: a duplicate is nobody else's.
    Some(unsafe { File::from_raw_fd(libc::fcntl(vm.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3)) })
}

impl World {
    pub(super) fn new(numbers: &mut Numbers<'_>, errnos: BTreeSet<i32>) -> Self {
        // SAFETY: takes numbers only; new descriptors are nobody else's.
        let eventfd = || unsafe {
            OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))
        };
        // SAFETY: as above.
        let memfd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"blob".as_ptr(), 1)) };
        let memfd = File::from(memfd);
        memfd.set_len(ARENA).unwrap();
        Self {
            vms: Pool::new(),
            sets: Pool::new(),
            devices: Pool::new(),
            exits: Pool::new(),
            roms: Pool::new(),
            bars: Pool::new(),
            windows: Pool::new(),
            triggers: Pool::new(),
            ids: vec![0, u64::MAX],
            errnos,
            eventfds: (0..3).map(|_| eventfd()).collect(),
            memfd: memfd.into(),
            kvm: (numbers.byte() % 8 == 7).then(kvm).flatten(),
        }
    }

    /// Frees the BARs: they are of one VM.
    pub(super) fn no_bars(&mut self) {
        // SAFETY: what is in the pool was not freed.
        self.bars.0.drain(..).for_each(|bars| unsafe { kvm_memslots_pci_free(bars) });
    }

    /// The VM's descriptor, if this is on KVM.
    pub(super) fn vm_fd(&self) -> Option<RawFd> {
        self.kvm.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// A handle: mostly one of `pool`, else null, or of another kind.
    pub(super) fn one<T>(&self, pool: &Pool<T>, numbers: &mut Numbers<'_>) -> *mut Handle<T> {
        let number = numbers.byte();
        match number {
            250.. => null_mut(),
            240..=249 => {
                let others = [
                    self.vms.0.first().map(|handle| handle.cast()),
                    self.sets.0.first().map(|handle| handle.cast()),
                    self.windows.0.first().map(|handle| handle.cast()),
                    pool.0.first().map(|handle| handle.cast::<u8>().wrapping_add(1).cast()),
                ];
                others[usize::from(number % 4)].unwrap_or_default()
            }
            _ => pool.0.get(usize::from(number) % pool.0.len().max(1)).copied().unwrap_or_default(),
        }
    }

    pub(super) fn id(&self, numbers: &mut Numbers<'_>) -> u64 {
        self.ids[usize::from(numbers.byte()) % self.ids.len()]
    }

    /// An eventfd, what is none, or no descriptor.
    pub(super) fn eventfd(&self, numbers: &mut Numbers<'_>) -> c_int {
        match numbers.byte() {
            250.. => -1,
            240..=249 => 1_000_000,
            number => self.eventfds[usize::from(number) % self.eventfds.len()].as_raw_fd(),
        }
    }

    pub(super) fn file(&self, numbers: &mut Numbers<'_>) -> c_int {
        if numbers.byte() >= 240 { self.eventfd(numbers) } else { self.memfd.as_raw_fd() }
    }

    /// Flags: mostly those that there are.
    pub(super) fn flags(numbers: &mut Numbers<'_>, all: u64) -> u64 {
        match numbers.byte() {
            number @ 248.. => 1 << (number % 64),
            _ => (u64::from(numbers.byte()) | u64::from(numbers.byte()) << 16) & all,
        }
    }

    /// A length: on KVM never so large that its tables hurt this machine, and on the
    /// model no more than a process has addresses for, as a log takes a bit a page.
    pub(super) fn len(&self, numbers: &mut Numbers<'_>) -> u64 {
        let len = numbers.bytes();
        match self.kvm {
            Some(_) => len % ARENA,
            None if len.is_multiple_of(4096) => len % (1 << 40),
            None => len,
        }
    }

    /// Host memory in the arena, for `len` bytes that are there or not.
    pub(super) fn backing(&self, numbers: &mut Numbers<'_>) -> CBacking {
        let readable = KVM_MEMSLOTS_BACKING_READ_ONLY | KVM_MEMSLOTS_BACKING_FILE;
        let mut backing = CBacking {
            hva: arena() + numbers.bytes() % ARENA,
            len: if numbers.byte() < 200 { 0 } else { self.len(numbers) },
            file: self.file(numbers),
            flags: Self::flags(numbers, readable),
            ..init()
        };
        // That no access faults is a promise, which the arena's end breaks.
        backing.flags &= !KVM_MEMSLOTS_BACKING_NEVER_FAULTS;
        mistake(&mut backing, numbers);
        backing
    }

    pub(super) fn spec(&self, numbers: &mut Numbers<'_>, backing: *const CBacking) -> CSpec {
        let mut spec = CSpec {
            id: if numbers.byte() < 230 { 0 } else { self.id(numbers) },
            gpa: numbers.bytes(),
            len: self.len(numbers),
            backing: if numbers.byte() < 250 { backing } else { std::ptr::null() },
            label: if numbers.byte() & 1 == 0 { c"ram".as_ptr() } else { std::ptr::null() },
            tag: numbers.byte().into(),
            flags: Self::flags(numbers, 0x1f_8003) as u32,
            kind: (numbers.byte() % 16 / 4).into(),
            as_id: u16::from(numbers.byte() >= 250),
            ..init()
        };
        if spec.flags & KVM_MEMSLOTS_DEFERRABLE != 0 {
            // What is served is served from this process's memory.
            spec.len %= 1 << 28;
        }
        mistake(&mut spec, numbers);
        spec
    }

    /// What a call came to: done, or an errno that there is, with its message.
    #[track_caller]
    pub(super) fn came_to(&self, result: c_int) -> bool {
        let count = if result == 0 { &DONE } else { &REFUSED };
        count.fetch_add(1, Ordering::Relaxed);
        if result == 0 {
            return true;
        }
        // SAFETY: the message lives until the next call on this thread fails.
        let message = unsafe { CStr::from_ptr(kvm_memslots_last_error()) }.to_str().unwrap();
        let mut error: CError = init();
        // SAFETY: a structure of this size.
        assert_eq!(unsafe { kvm_memslots_last_error_info(&raw mut error) }, 0);
        assert_eq!(-error.error, result, "{message}");
        assert!(!message.is_empty() && !message.contains("please report"), "{message}");
        // What KVM says is KVM's.
        let known = self.errnos.contains(&error.error);
        assert!(known || error.flags & KVM_MEMSLOTS_ERROR_KVM != 0, "{result}: {message}");
        false
    }

    /// Every region of a VM, and every slot.
    pub(super) fn layout(vm: *mut Handle<Vm>) -> (Vec<[u64; 5]>, usize) {
        unsafe extern "C" fn region(opaque: *mut c_void, region: *const CRegion) {
            // SAFETY: as the header says, and given so below.
            let (all, region) = unsafe { (&mut *opaque.cast::<Vec<[u64; 5]>>(), &*region) };
            all.push([region.id, region.gpa, region.len, region.hva, region.flags.into()]);
        }
        let mut all = Vec::new();
        // SAFETY: a VM that is open, and what the function is for.
        let told = unsafe { kvm_memslots_regions(vm, Some(region), (&raw mut all).cast()) };
        assert_eq!(told, 0);
        let mut usage: CSlotUsage = init();
        // SAFETY: as above, and a structure of this size.
        assert_eq!(unsafe { kvm_memslots_slot_usage(vm, 0, &raw mut usage) }, 0);
        (all, usage.used as usize)
    }

    /// What is in each window.
    pub(super) fn placed(&self) -> Vec<[u64; 4]> {
        unsafe extern "C" fn placement(opaque: *mut c_void, at: *const CPlacement) {
            // SAFETY: as the header says, and given so below.
            let (all, at) = unsafe { (&mut *opaque.cast::<Vec<[u64; 4]>>(), &*at) };
            all.push([at.offset, at.len, at.file_offset, at.flags]);
        }
        let mut all = Vec::new();
        for window in &self.windows.0 {
            let opaque = (&raw mut all).cast();
            // SAFETY: a window that was not freed, and what the function is for.
            let told = unsafe { kvm_memslots_window_placed(*window, Some(placement), opaque) };
            assert_eq!(told, 0);
        }
        all
    }
}

/// Now and then a size that is wrong, with as much behind it as is there.
pub(super) fn mistake<T>(value: &mut T, numbers: &mut Numbers<'_>) {
    let size = match numbers.byte() {
        255 => 0,
        254 => size_of::<T>() - 8,
        253 => usize::MAX,
        _ => return,
    };
    // SAFETY: structures begin with their size.
    unsafe { std::ptr::from_mut(value).cast::<usize>().write(size) };
}

impl Drop for World {
    fn drop(&mut self) {
        // SAFETY: what is in the pools was not freed.
        unsafe {
            self.exits.0.drain(..).for_each(|it| kvm_memslots_exits_free(it));
            self.sets.0.drain(..).for_each(|it| kvm_memslots_changes_free(it));
            self.devices.0.drain(..).for_each(|it| kvm_memslots_device_free(it));
            self.roms.0.drain(..).for_each(|it| kvm_memslots_rom_free(it));
            self.bars.0.drain(..).for_each(|it| kvm_memslots_pci_free(it));
            self.vms.0.drain(..).for_each(|it| kvm_memslots_free(it));
            self.windows.0.drain(..).for_each(|it| kvm_memslots_window_free(it));
            self.triggers.0.drain(..).for_each(|it| kvm_memslots_trigger_free(it));
        }
    }
}
