//! Host memory, regions and slots.

use std::ffi::{c_char, c_int, c_void};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_memslots::{
    Access, Backing, FileRange, HostMemory, Kind, MemFlags, Region, RegionId, RegionSpec, Slot,
    Span, at,
};

use super::{descriptor, flag, known, text};
use crate::constants::{
    KVM_MEMSLOTS_ALONE, KVM_MEMSLOTS_BACKING_FILE, KVM_MEMSLOTS_BACKING_GUEST_MEMFD,
    KVM_MEMSLOTS_BACKING_NEVER_FAULTS, KVM_MEMSLOTS_BACKING_READ_ONLY, KVM_MEMSLOTS_DEFERRABLE,
    KVM_MEMSLOTS_DEFERRED, KVM_MEMSLOTS_DEVICE, KVM_MEMSLOTS_PERMANENT, KVM_MEMSLOTS_RAM,
    KVM_MEMSLOTS_ROM, KVM_MEMSLOTS_TAGGED,
};
use crate::failure::Failure;
use crate::record::{LABEL_SIZE, invalid, label, null, read, record};

record! {
    "kvm_memslots_backing" pub struct CBacking {
        pub size: usize,
        pub hva: u64,
        pub len: u64,
        pub guest_memfd_offset: u64,
        pub file_offset: u64,
        pub guest_memfd: c_int,
        pub file: c_int,
        pub release: Option<unsafe extern "C" fn(*mut c_void)>,
        pub opaque: *mut c_void,
        pub flags: u64,
    }
}

/// Memory that C has let go when nobody uses it any more.
struct Released {
    hva: u64,
    len: u64,
    access: Access,
    release: unsafe extern "C" fn(*mut c_void),
    opaque: *mut c_void,
    /// Whether the call that it was given to has taken it.
    taken: AtomicBool,
}

// SAFETY: the header says that the function is called on any thread.
unsafe impl Send for Released {}
// SAFETY: only its drop calls it.
unsafe impl Sync for Released {}

// SAFETY: the header asks the caller for what `Backing::borrowed` does, until
// `release` is called.
unsafe impl HostMemory for Released {
    fn range(&self) -> (u64, u64) {
        (self.hva, self.len)
    }

    fn access(&self) -> Access {
        self.access
    }
}

impl Drop for Released {
    fn drop(&mut self) {
        if *self.taken.get_mut() {
            // SAFETY: the caller gave it to be called with this, once.
            unsafe { (self.release)(self.opaque) }
        }
    }
}

/// Memory that a call takes, if it does not fail. Kept until that is known.
#[derive(Default)]
pub(crate) struct Taking(Vec<Arc<Released>>);

impl Taking {
    /// The call has succeeded: from now on the memory is the library's.
    pub(crate) fn taken(self) {
        self.0.iter().for_each(|memory| memory.taken.store(true, Ordering::Relaxed));
    }
}

impl CBacking {
    /// The backing; where it has no length, of `len` bytes.
    ///
    /// # Safety
    /// As [the crate](crate#safety).
    pub(crate) unsafe fn backing(&self, len: u64, taking: &mut Taking) -> Result<Backing, Failure> {
        known(
            self.flags,
            KVM_MEMSLOTS_BACKING_READ_ONLY
                | KVM_MEMSLOTS_BACKING_GUEST_MEMFD
                | KVM_MEMSLOTS_BACKING_FILE
                | KVM_MEMSLOTS_BACKING_NEVER_FAULTS,
            "a backing",
        )?;
        let has = |flag| self.flags & flag != 0;
        let guest_memfd = has(KVM_MEMSLOTS_BACKING_GUEST_MEMFD)
            .then(|| descriptor(self.guest_memfd, "guest_memfd"))
            .transpose()?;
        let file =
            has(KVM_MEMSLOTS_BACKING_FILE).then(|| descriptor(self.file, "file")).transpose()?;
        let access =
            if has(KVM_MEMSLOTS_BACKING_READ_ONLY) { Access::Read } else { Access::ReadWrite };
        let (hva, opaque) = (self.hva, self.opaque);
        let len = if self.len == 0 { len } else { self.len };
        let mut backing = match self.release {
            Some(release) => {
                let taken = AtomicBool::new(false);
                let memory = Arc::new(Released { hva, len, access, release, opaque, taken });
                taking.0.push(Arc::clone(&memory));
                Backing::owned(memory, 0)
            }
            // SAFETY: the header asks the caller for just that.
            None => unsafe { Backing::borrowed(hva, len, access) },
        };
        if let Some(fd) = guest_memfd {
            backing = backing.with_guest_memfd(fd, self.guest_memfd_offset);
        }
        if let Some(fd) = file {
            // SAFETY: the header asks the caller to keep it open.
            let file = unsafe { BorrowedFd::<'static>::borrow_raw(fd) };
            backing = backing.with_file(file, self.file_offset);
        }
        if has(KVM_MEMSLOTS_BACKING_NEVER_FAULTS) {
            // SAFETY: the header asks the caller for just that.
            backing = unsafe { backing.never_faults() };
        }
        Ok(backing)
    }
}

record! {
    "kvm_memslots_spec" pub struct CSpec {
        pub size: usize,
        pub id: u64,
        pub gpa: u64,
        pub len: u64,
        pub backing: *const CBacking,
        pub label: *const c_char,
        pub tag: u64,
        pub flags: u32,
        pub kind: u16,
        pub as_id: u16,
    }
}

/// KVM's flags that a new region may have.
const ASKED: MemFlags = MemFlags::LOG_DIRTY_PAGES.union(MemFlags::READONLY).union(MemFlags::TRAP);

impl CSpec {
    /// The region and its name.
    ///
    /// # Safety
    /// As [the crate](crate#safety).
    pub(crate) unsafe fn spec(
        &self,
        taking: &mut Taking,
    ) -> Result<(RegionId, RegionSpec), Failure> {
        let make = self.kind()?;
        if self.backing.is_null() {
            return Err(null("backing"));
        }
        // SAFETY: as the caller says.
        let backing = unsafe { read(self.backing) }?;
        // SAFETY: as the caller says.
        let backing = unsafe { backing.backing(self.len, taking) }?;
        // SAFETY: as the caller says.
        Ok(unsafe { self.all_of(make(at(self.gpa, self.len), backing)) })
    }

    /// The region of a window, and its name.
    ///
    /// # Safety
    /// As [the crate](crate#safety).
    pub(crate) unsafe fn of_window(
        &self,
        there: Span,
        backing: Backing,
    ) -> Result<(RegionId, RegionSpec), Failure> {
        let make = self.kind()?;
        if !self.backing.is_null() {
            return Err(invalid("a window has its own backing: that of the region has to be NULL"));
        }
        let gpa = if self.gpa == 0 { there.gpa } else { self.gpa };
        let len = if self.len == 0 { there.size } else { self.len };
        // SAFETY: as the caller says.
        Ok(unsafe { self.all_of(make(at(gpa, len), backing)) })
    }

    /// What it makes a region, if its flags are known.
    fn kind(&self) -> Result<fn(Span, Backing) -> RegionSpec, Failure> {
        let ours = KVM_MEMSLOTS_ALONE
            | KVM_MEMSLOTS_PERMANENT
            | KVM_MEMSLOTS_TAGGED
            | KVM_MEMSLOTS_DEFERRABLE;
        known(self.flags.into(), (ASKED.bits() | ours).into(), "a region")?;
        match self.kind {
            KVM_MEMSLOTS_RAM => Ok(RegionSpec::ram),
            KVM_MEMSLOTS_ROM => Ok(RegionSpec::rom),
            KVM_MEMSLOTS_DEVICE => Ok(RegionSpec::device),
            other => Err(invalid(format!("{other} is no kvm_memslots_kind"))),
        }
    }

    /// What else it says of a region, and its name.
    ///
    /// # Safety
    /// As [the crate](crate#safety).
    unsafe fn all_of(&self, spec: RegionSpec) -> (RegionId, RegionSpec) {
        // SAFETY: as the caller says.
        let label = unsafe { text(self.label) };
        let mut spec = spec.address_space(self.as_id);
        let flags = MemFlags::from_bits_truncate(self.flags);
        if flags.contains(MemFlags::LOG_DIRTY_PAGES) {
            spec = spec.log_dirty();
        }
        if flags.contains(MemFlags::READONLY) {
            spec = spec.read_only();
        }
        if flags.contains(MemFlags::TRAP) {
            spec = spec.trapped();
        }
        if self.flags & KVM_MEMSLOTS_ALONE != 0 {
            spec = spec.alone();
        }
        if self.flags & KVM_MEMSLOTS_PERMANENT != 0 {
            spec = spec.permanent();
        }
        if self.flags & KVM_MEMSLOTS_DEFERRABLE != 0 {
            spec = spec.deferrable();
        }
        if self.flags & KVM_MEMSLOTS_TAGGED != 0 {
            spec = spec.tag(self.tag);
        }
        if let Some(label) = label {
            spec = spec.label(label);
        }
        let id = if self.id == 0 { RegionId::new() } else { RegionId::from_raw(self.id) };
        (id, spec)
    }

    /// A region that gets its name from somewhere else.
    ///
    /// # Safety
    /// As [the crate](crate#safety).
    pub(crate) unsafe fn nameless(
        &self,
        what: &str,
        taking: &mut Taking,
    ) -> Result<RegionSpec, Failure> {
        if self.id != 0 {
            return Err(invalid(format!("{what} names its regions itself: id has to be 0")));
        }
        // SAFETY: as the caller says.
        unsafe { self.spec(taking) }.map(|(_, spec)| spec)
    }
}

record! {
    "kvm_memslots_region" pub struct CRegion {
        pub size: usize,
        pub id: u64,
        pub tag: u64,
        pub gpa: u64,
        pub len: u64,
        pub hva: u64,
        pub guest_memfd_offset: u64,
        pub file_offset: u64,
        pub guest_memfd: c_int,
        pub file: c_int,
        pub flags: u32,
        pub kind: u16,
        pub as_id: u16,
        pub label: [c_char; LABEL_SIZE],
    }
}

impl From<&Region> for CRegion {
    fn from(region: &Region) -> Self {
        let file = region.file.unwrap_or(FileRange { fd: -1, offset: 0 });
        Self {
            size: size_of::<Self>(),
            id: region.id.to_raw(),
            tag: region.tag.unwrap_or(0),
            gpa: region.range.gpa(),
            len: region.range.size(),
            hva: region.hva,
            guest_memfd_offset: region.guest_memfd.map_or(0, |memfd| memfd.offset),
            file_offset: file.offset,
            guest_memfd: region.guest_memfd.map_or(-1, |memfd| memfd.fd),
            file: file.fd,
            flags: region.flags.bits()
                | flag(region.alone, KVM_MEMSLOTS_ALONE)
                | flag(region.permanent, KVM_MEMSLOTS_PERMANENT)
                | flag(region.tag.is_some(), KVM_MEMSLOTS_TAGGED)
                | flag(region.deferrable, KVM_MEMSLOTS_DEFERRABLE)
                | flag(region.deferred, KVM_MEMSLOTS_DEFERRED),
            kind: match region.kind {
                Kind::Ram => KVM_MEMSLOTS_RAM,
                Kind::Rom => KVM_MEMSLOTS_ROM,
                Kind::Device => KVM_MEMSLOTS_DEVICE,
            },
            as_id: region.as_id,
            label: label(region.label.as_deref().unwrap_or_default()),
        }
    }
}

record! {
    "kvm_memslots_slot" pub struct CSlot {
        pub size: usize,
        pub gpa: u64,
        pub len: u64,
        pub hva: u64,
        pub flags: u32,
        pub id: u16,
        pub as_id: u16,
    }
}

impl CSlot {
    pub(crate) fn new(as_id: u16, slot: &Slot) -> Self {
        let range = slot.mapping.range();
        Self {
            size: size_of::<Self>(),
            gpa: range.gpa(),
            len: range.size(),
            hva: slot.mapping.hva(),
            flags: slot.mapping.flags().bits(),
            id: slot.id,
            as_id,
        }
    }
}
