//! A change of an address space, from its begin to its commit.

use std::sync::Arc;

use kvm_memslots_shim::{Extent, Limits, Mapping, MemFlags, Range};

use crate::error::{Described, Part};
use crate::region::{HostMemory, RegionSpec};
use crate::space::Deferral;
use crate::{AddressSpace, CommitReport, Error, Preview, RegionId};

/// A change of an [`AddressSpace`], made of steps that take effect as if in
/// order, and all at once on [`commit`](Self::commit).
///
/// A step that returns an error has not happened; the transaction can go on.
/// Dropping a transaction changes nothing.
#[derive(Debug)]
#[must_use = "a transaction changes nothing before it is committed"]
pub struct Transaction<'a> {
    space: &'a mut AddressSpace,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(space: &'a mut AddressSpace) -> Self {
        Self { space }
    }

    /// Maps a region.
    ///
    /// # Errors
    /// What is wrong with the region: [`Error::Empty`], [`Error::Unaligned`],
    /// [`Error::Wraps`], [`Error::TooLarge`], [`Error::ReadOnlyUnsupported`],
    /// [`Error::GuestMemfdUnsupported`], [`Error::GuestMemfdFlags`],
    /// [`Error::TrapUnsupported`], [`Error::NotDeferrable`];
    /// [`Error::Overlap`] with a region that is mapped at this point of the
    /// transaction.
    ///
    /// # Safety
    /// From the commit until a commit that unmaps the region (or the part of
    /// it) has succeeded, or the VM is gone, the host memory from the region's
    /// HVA on is the guest's to read, and unless the region is read-only to
    /// write, and so it is to the threads that serve a deferrable region's
    /// exits, until the address space is dropped if that is earlier: it stays mapped in this process at this address, is not used for
    /// anything else, and no Rust reference is held to it that a write by the
    /// guest would break. Where the commit fails with [`Error::Stuck`], slots
    /// that the error lists as live count as mapped.
    pub unsafe fn map(&mut self, spec: RegionSpec) -> Result<RegionId, Error> {
        self.add(spec, None)
    }

    /// Maps a region whose host memory is inside `memory`, which is kept alive
    /// for as long as the region is mapped.
    ///
    /// # Errors
    /// As [`map`](Self::map), and [`Error::OutsideHostMemory`].
    pub fn map_owned(
        &mut self,
        spec: RegionSpec,
        memory: Arc<dyn HostMemory>,
    ) -> Result<RegionId, Error> {
        check_inside(&spec.extent.mapping, &*memory, || spec.described())?;
        self.add(spec, Some(memory))
    }

    fn add(
        &mut self,
        spec: RegionSpec,
        owner: Option<Arc<dyn HostMemory>>,
    ) -> Result<RegionId, Error> {
        check_spec(&spec, self.space.limits())?;
        self.check_free(spec.extent.mapping.range, None, || spec.described())?;
        let deferral =
            if spec.deferrable { self.space.deferral_of(&spec.extent) } else { Deferral::Never };
        Ok(self.space.regions.add(&spec.extent, spec.label, owner, deferral))
    }

    /// Unmaps a region. Dirty pages of it that have not been read are gone with
    /// it.
    ///
    /// # Errors
    /// [`Error::UnknownRegion`], [`Error::StaleRegion`],
    /// [`Error::ForeignRegion`].
    pub fn unmap(&mut self, id: RegionId) -> Result<(), Error> {
        let index = self.space.regions.index_of(id)?;
        self.space.regions.remove(index);
        Ok(())
    }

    /// Gives a region another size; its start stays where it is. Growing costs
    /// one create, of what is new: the slot that is there stays, unless the
    /// region keeps a slot of its own.
    ///
    /// # Errors
    /// Those of an id that is not valid; for the new size as [`map`](Self::map)
    /// and [`map_owned`](Self::map_owned).
    ///
    /// # Safety
    /// What is said of [`map`](Self::map) holds for the bytes that are new,
    /// unless the region was mapped with [`map_owned`](Self::map_owned).
    pub unsafe fn resize(&mut self, id: RegionId, size: u64) -> Result<(), Error> {
        let index = self.space.regions.index_of(id)?;
        let before = self.space.regions.extent(index);
        let range = Range::new(before.mapping.range.gpa, size);
        let after = Extent { mapping: Mapping { range, ..before.mapping }, ..before };
        let described = || self.space.regions.describe_as(index, &after.mapping);
        check(&after, self.space.limits(), described)?;
        if let Some(memory) = self.space.regions.owner(index) {
            check_inside(&after.mapping, &**memory, described)?;
        }
        self.check_free(range, Some(index), described)?;
        if after != before {
            self.space.regions.change(index, &after);
        }
        Ok(())
    }

    /// Gives a region a smaller size, or the one it has.
    ///
    /// # Errors
    /// [`Error::NotSmaller`], and as [`resize`](Self::resize).
    pub fn shrink(&mut self, id: RegionId, size: u64) -> Result<(), Error> {
        let region = self.space.region(id)?;
        if size > region.range.size {
            return Err(Error::NotSmaller { region: self.space.regions.describe(id.index), size });
        }
        // SAFETY: no byte is new.
        unsafe { self.resize(id, size) }
    }

    /// Makes two regions of one: `id` names what is below `offset` bytes, the
    /// returned id the rest. Costs nothing by itself, unless the region keeps a
    /// slot of its own: slots change when one of the two does.
    ///
    /// # Errors
    /// [`Error::SplitOutside`], [`Error::Unaligned`], and those of an id that
    /// is not valid.
    pub fn split(&mut self, id: RegionId, offset: u64) -> Result<RegionId, Error> {
        let page_size = self.space.limits().page_size;
        let regions = &mut self.space.regions;
        let index = regions.index_of(id)?;
        let whole = regions.extent(index);
        let range = whole.mapping.range;
        if offset % page_size != 0 {
            let region = regions.describe(index);
            return Err(Error::Unaligned {
                region,
                part: Part::SplitOffset,
                value: offset,
                page_size,
            });
        }
        let at = range.gpa.saturating_add(offset);
        let parts = (offset > 0 && at < range.end()).then(|| {
            let clip = |range| whole.mapping.clipped_to(range);
            clip(Range::between(range.gpa, at)).zip(clip(Range::between(at, range.end())))
        });
        let Some((low, high)) = parts.flatten() else {
            return Err(Error::SplitOutside { region: regions.describe(index), offset });
        };
        let label = regions.label(index).map(Into::into);
        let owner = regions.owner(index).cloned();
        let deferral = regions.deferral(index);
        regions.change(index, &Extent { mapping: low, ..whole });
        Ok(regions.add(&Extent { mapping: high, ..whole }, label, owner, deferral))
    }

    /// Sets a region's flags to `flags`: [`MemFlags::LOG_DIRTY_PAGES`],
    /// [`MemFlags::READONLY`], both or none. KVM changes dirty logging on a live
    /// slot; for read-only the slot is replaced.
    ///
    /// # Errors
    /// [`Error::FlagsNotSettable`], [`Error::GuestMemfdFlags`],
    /// [`Error::ReadOnlyUnsupported`], and those of an id that is not valid.
    pub fn set_flags(&mut self, id: RegionId, flags: MemFlags) -> Result<(), Error> {
        let index = self.space.regions.index_of(id)?;
        let before = self.space.regions.extent(index);
        let described = || self.space.regions.describe(index);
        if !(MemFlags::LOG_DIRTY_PAGES | MemFlags::READONLY).contains(flags) {
            return Err(Error::FlagsNotSettable { region: described(), flags });
        }
        let kept = MemFlags::GUEST_MEMFD | MemFlags::TRAP;
        let flags = flags | (before.mapping.flags & kept);
        let after = Extent { mapping: Mapping { flags, ..before.mapping }, ..before };
        check(&after, self.space.limits(), described)?;
        if after != before {
            self.space.regions.change(index, &after);
        }
        Ok(())
    }

    /// Has the guest's accesses to the region exit as MMIO, or not any more.
    /// Costs one call and no grace period. By itself,
    /// [`AddressSpace::set_trap`] does the same with less ado.
    ///
    /// # Errors
    /// As there.
    pub fn set_trap(&mut self, id: RegionId, trap: bool) -> Result<(), Error> {
        let index = self.space.regions.index_of(id)?;
        let before = self.space.regions.extent(index);
        let after = self.space.with_trap(index, trap)?;
        if after != before {
            self.space.regions.change(index, &after);
        }
        Ok(())
    }

    /// What committing now would cost. With the batch ioctl the kernel itself
    /// checks the changes; nothing changes.
    ///
    /// # Errors
    /// [`Error::TooManySlots`]; with the batch ioctl, whatever KVM refuses.
    pub fn dry_run(&mut self) -> Result<Preview, Error> {
        self.space.preview()
    }

    /// Carries the transaction out.
    ///
    /// # Errors
    /// [`Error::TooManySlots`], [`Error::Hole`], [`Error::Gate`],
    /// [`Error::Refused`], [`Error::RefusedWhole`], [`Error::DirtyLog`]: regions
    /// and slots are what they were. [`Error::Stuck`]: the regions are, the
    /// slots are not.
    pub fn commit(self) -> Result<CommitReport, Error> {
        self.space.commit()
    }

    fn check_free(
        &self,
        range: Range,
        except: Option<u32>,
        described: impl FnOnce() -> Box<Described>,
    ) -> Result<(), Error> {
        let regions = &self.space.regions;
        match regions.in_the_way(range, except) {
            None => Ok(()),
            Some(other) => {
                Err(Error::Overlap { region: described(), other: regions.describe(other) })
            }
        }
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // After a commit there is nothing left to take back.
        self.space.regions.roll_back();
    }
}

/// What can't be served from host memory.
fn check_deferrable(spec: &RegionSpec) -> Result<(), Error> {
    let why = match spec.extent.mapping {
        Mapping { guest_memfd: Some(_), .. } => "its private memory is out of the VMM's reach",
        mapping if mapping.flags.contains(MemFlags::TRAP) => "its accesses are the device's",
        _ => return Ok(()),
    };
    Err(Error::NotDeferrable { region: spec.described(), why })
}

/// Whether this could be mapped, if its addresses were free.
pub(crate) fn check_spec(spec: &RegionSpec, limits: &Limits) -> Result<(), Error> {
    check(&spec.extent, limits, || spec.described())?;
    if spec.deferrable { check_deferrable(spec) } else { Ok(()) }
}

/// What KVM would refuse, or take for something else, whatever is mapped.
fn check(
    extent: &Extent,
    limits: &Limits,
    described: impl Fn() -> Box<Described>,
) -> Result<(), Error> {
    let Mapping { range, hva, guest_memfd, flags, .. } = extent.mapping;
    // KVM takes size 0 for a delete.
    if range.size == 0 {
        return Err(Error::Empty { region: described() });
    }
    let page_size = limits.page_size;
    let memfd_offset = guest_memfd.map_or(0, |memfd| memfd.offset);
    let parts = [
        (Part::Size, range.size),
        (Part::Gpa, range.gpa),
        (Part::Hva, hva),
        (Part::MemfdOffset, memfd_offset),
    ];
    for (part, value) in parts {
        if value % page_size != 0 {
            return Err(Error::Unaligned { region: described(), part, value, page_size });
        }
        if part != Part::Size && value.checked_add(range.size).is_none() {
            return Err(Error::Wraps { region: described(), part });
        }
    }
    if range.size > limits.slot_bytes() {
        return Err(Error::TooLarge { region: described(), limit: limits.slot_bytes() });
    }
    if flags.contains(MemFlags::READONLY) && !limits.readonly {
        return Err(Error::ReadOnlyUnsupported { region: described() });
    }
    if flags.contains(MemFlags::TRAP) && !limits.trap {
        return Err(Error::TrapUnsupported { region: described() });
    }
    if guest_memfd.is_some() {
        if !limits.guest_memfd {
            return Err(Error::GuestMemfdUnsupported { region: described() });
        }
        let no_memfd = MemFlags::READONLY | MemFlags::LOG_DIRTY_PAGES | MemFlags::TRAP;
        let refused = flags & no_memfd;
        if !refused.is_empty() {
            return Err(Error::GuestMemfdFlags { region: described(), flags: refused });
        }
    }
    Ok(())
}

fn check_inside(
    mapping: &Mapping,
    memory: &(impl HostMemory + ?Sized),
    described: impl Fn() -> Box<Described>,
) -> Result<(), Error> {
    let (hva, size) = memory.range();
    let end = hva.checked_add(size);
    let inside = mapping.hva >= hva && mapping.hva.checked_add(mapping.range.size) <= end;
    if end.is_some() && inside && mapping.hva.checked_add(mapping.range.size).is_some() {
        Ok(())
    } else {
        Err(Error::OutsideHostMemory { region: described(), hva, size })
    }
}
