//! The ways in which a blob comes and goes.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use kvm_ioctls::VmFd;
use kvm_memslots::window::{Contents, Window};
use kvm_memslots::{Access, Backing, Changes, HolePolicy, RegionId, RegionSpec, Vm, at, vm_fd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::blobs::Blobs;
use super::guest::OWN_SLOTS;
use crate::way::shown_by_name;
use kvm_memslots_kit::raw;

/// Where the blobs are.
const GPA: u64 = 0x20_0000_0000;

/// How a blob comes and goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Way {
    /// A slot of its own: `KVM_SET_USER_MEMORY_REGION`, twice. (That the blob is
    /// mapped into the VMM first is not counted.)
    Slots,
    /// The same as two sets of changes.
    Changes,
    /// In a window: `mmap`.
    Window,
    /// The two calls of `mmap` that this takes, and nothing else.
    Mmap,
}

shown_by_name!(Way);

/// A VM that has as many blobs as there are, in one way.
pub(super) enum Applied<'a> {
    Slots(&'a VmFd, &'a Blobs),
    Changes(Box<Vm>, &'a Blobs, BTreeMap<u64, RegionId>),
    Window { blobs: &'a Blobs, window: Window, _vm: Box<Vm> },
    Mmap(Reserved, &'a Blobs),
}

impl<'a> Applied<'a> {
    pub(super) fn new(vm: &'a VmFd, way: Way, blobs: &'a Blobs) -> io::Result<Self> {
        let open = || {
            let builder = Vm::builder().reserve_slots(0, OWN_SLOTS).holes(HolePolicy::Refuse);
            builder.open(vm_fd(vm)).map(Box::new).map_err(io::Error::other)
        };
        let mut applied = match way {
            Way::Slots => Self::Slots(vm, blobs),
            Way::Changes => Self::Changes(open()?, blobs, BTreeMap::new()),
            Way::Window => {
                let vm = open()?;
                let window = super::map(&vm, at(GPA, blobs.count * blobs.size))?;
                Self::Window { blobs, window, _vm: vm }
            }
            Way::Mmap => {
                let reserved = Reserved::new(blobs.count * blobs.size)?;
                let (size, hva) = (reserved.len.get() as u64, reserved.hva());
                // SAFETY: what is reserved outlives the VM's vCPUs.
                unsafe { raw::set_slot(vm, 0, GPA, size, hva) }?;
                Self::Mmap(reserved, blobs)
            }
        };
        (0..blobs.count).try_for_each(|blob| applied.place(blob))?;
        Ok(applied)
    }

    pub(super) fn place(&mut self, blob: u64) -> io::Result<()> {
        match self {
            Self::Slots(vm, blobs) => set_slot(vm, blobs, blob, blobs.size),
            Self::Changes(vm, blobs, ids) => {
                let span = at(GPA + blobs.offset(blob), blobs.size);
                // SAFETY: the blobs outlive the VM's vCPUs.
                let memory =
                    unsafe { Backing::borrowed(blobs.hva(blob), blobs.size, Access::ReadWrite) };
                let mut changes = Changes::new();
                ids.insert(blob, changes.map(RegionSpec::device(span, memory)));
                vm.apply(changes).map(drop).map_err(io::Error::other)
            }
            Self::Window { blobs, window, .. } => {
                let offset = blobs.offset(blob);
                let contents = Contents::checked(&blobs.file, offset);
                window.place(offset, blobs.size, contents).map_err(io::Error::other)
            }
            Self::Mmap(reserved, blobs) => {
                let (at, len) = reserved.part(blobs, blob)?;
                let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
                let how = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
                let offset = i64::try_from(blobs.offset(blob)).map_err(io::Error::other)?;
                // SAFETY: the addresses are reserved for this.
                unsafe { mmap(Some(at), len, access, how, blobs.file.as_fd(), offset) }?;
                Ok(())
            }
        }
    }

    pub(super) fn remove(&mut self, blob: u64) -> io::Result<()> {
        match self {
            Self::Slots(vm, blobs) => set_slot(vm, blobs, blob, 0),
            Self::Changes(vm, _, ids) => {
                let mut changes = Changes::new();
                ids.remove(&blob).into_iter().for_each(|id| changes.unmap(id));
                vm.apply(changes).map(drop).map_err(io::Error::other)
            }
            Self::Window { blobs, window, .. } => {
                window.remove(blobs.offset(blob), blobs.size).map_err(io::Error::other)
            }
            Self::Mmap(reserved, blobs) => {
                let (at, len) = reserved.part(blobs, blob)?;
                // SAFETY: the addresses are reserved for this.
                unsafe { gap(Some(at), len, MapFlags::MAP_FIXED) }?;
                Ok(())
            }
        }
    }
}

fn set_slot(vm: &VmFd, blobs: &Blobs, blob: u64, size: u64) -> io::Result<()> {
    // Slots beyond the guest's own.
    let slot = u32::try_from(blob).map_err(io::Error::other)?;
    let slot = if slot < u32::from(*OWN_SLOTS.start()) { slot } else { slot + 2 };
    // SAFETY: the blobs outlive the VM's vCPUs.
    unsafe { raw::set_slot(vm, slot, GPA + blobs.offset(blob), size, blobs.hva(blob)) }?;
    Ok(())
}

/// Host addresses that blobs are mapped to.
pub(super) struct Reserved {
    base: NonNull<libc::c_void>,
    len: NonZeroUsize,
}

impl Reserved {
    fn new(len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).ok().and_then(NonZeroUsize::new);
        let len = len.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping.
        Ok(Self { base: unsafe { gap(None, len, MapFlags::empty()) }?, len })
    }

    fn hva(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }

    /// Where a blob is to be, and how long it is.
    fn part(&self, blobs: &Blobs, blob: u64) -> io::Result<(NonZeroUsize, NonZeroUsize)> {
        let at = NonZeroUsize::new((self.hva() + blobs.offset(blob)) as usize);
        let part = at.zip(NonZeroUsize::new(blobs.size as usize));
        part.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's; no guest that has it runs any more.
        let _ = unsafe { munmap(self.base, self.len.get()) };
    }
}

/// Maps what a window has where nothing is.
///
/// # Safety
/// With `MAP_FIXED`, the addresses are the caller's to do that with.
unsafe fn gap(
    at: Option<NonZeroUsize>,
    len: NonZeroUsize,
    fixed: MapFlags,
) -> nix::Result<NonNull<libc::c_void>> {
    let how = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | fixed;
    // SAFETY: the caller vouches for the addresses.
    unsafe { mmap_anonymous(at, len, ProtFlags::PROT_NONE, how) }
}
