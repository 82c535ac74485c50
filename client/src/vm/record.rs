//! A region, with all that is known of it.

use std::sync::Arc;

use kvm_memslots_shim::memory::Extent;
use kvm_memslots_shim::{GuestMemfd, Mapping, Range};

use crate::backing::{Access, FileRange, HostMemory};
use crate::error::Described;
use crate::{Region, RegionId};

/// Whether a region waits for its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deferral {
    /// It never does.
    Never,
    /// It does: there is no slot.
    Waiting,
    /// It did, or would have.
    Over,
}

/// What few regions have, or what differs from the usual: a backing that is just
/// the region's memory, may be written, and is the caller's to keep.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extra {
    pub(crate) label: Option<Arc<str>>,
    pub(crate) tag: Option<u64>,
    pub(crate) memfd: Option<GuestMemfd>,
    /// Of the region's first byte.
    pub(crate) file: Option<FileRange>,
    /// How many bytes there are from the region's first one on.
    pub(crate) reach: Option<u64>,
    pub(crate) read_only: bool,
    pub(crate) never_faults: bool,
    pub(crate) owner: Option<Arc<dyn HostMemory>>,
    /// The region that this one and others were split from.
    pub(crate) origin: Option<RegionId>,
}

impl Extra {
    fn says_something(&self, size: u64) -> bool {
        self.label.is_some()
            || self.tag.is_some()
            || self.memfd.is_some()
            || self.file.is_some()
            || self.reach.is_some_and(|reach| reach != size)
            || self.read_only
            || self.never_faults
            || self.owner.is_some()
            || self.origin.is_some()
    }
}

/// A region, unpacked.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) mapping: Mapping,
    pub(crate) as_id: u16,
    pub(crate) alone: bool,
    pub(crate) permanent: bool,
    pub(crate) deferral: Deferral,
    pub(crate) extra: Option<Arc<Extra>>,
}

impl Record {
    pub(crate) fn range(&self) -> Range {
        self.mapping.range()
    }

    pub(crate) fn access(&self) -> Access {
        let read_only = self.extra.as_ref().is_some_and(|extra| extra.read_only);
        if read_only { Access::Read } else { Access::ReadWrite }
    }

    pub(crate) fn origin(&self) -> Option<RegionId> {
        self.extra.as_ref()?.origin
    }

    pub(crate) fn owner(&self) -> Option<&Arc<dyn HostMemory>> {
        self.extra.as_ref()?.owner.as_ref()
    }

    /// How many bytes of host memory there are from its start on.
    pub(crate) fn reach(&self) -> u64 {
        self.extra.as_ref().and_then(|extra| extra.reach).unwrap_or(self.range().size())
    }

    pub(crate) fn waits(&self) -> bool {
        self.deferral == Deferral::Waiting
    }

    /// What the planner is to do about it; nothing while it waits for its slot.
    /// `shares`: whether regions may share slots without having said so.
    pub(crate) fn extent(&self, shares: bool) -> Option<Extent> {
        let joins = !self.alone && (shares || self.permanent);
        (!self.waits()).then_some(Extent::of(self.mapping, self.alone, joins))
    }

    pub(crate) fn described(&self, id: RegionId) -> Box<Described> {
        let extra = self.extra.as_deref();
        Box::new(Described {
            id,
            label: extra.and_then(|extra| extra.label.clone()),
            tag: extra.and_then(|extra| extra.tag),
            kind: self.mapping.kind(),
            as_id: self.as_id,
            gpa: self.range().gpa(),
            size: self.range().size(),
            hva: self.mapping.hva(),
        })
    }

    pub(crate) fn region(&self, id: RegionId) -> Region {
        let extra = self.extra.as_deref();
        Region {
            id,
            as_id: self.as_id,
            range: self.range(),
            hva: self.mapping.hva(),
            guest_memfd: self.mapping.guest_memfd(),
            file: extra.and_then(|extra| extra.file),
            flags: self.mapping.flags(),
            kind: self.mapping.kind(),
            alone: self.alone,
            permanent: self.permanent,
            deferrable: self.deferral != Deferral::Never,
            deferred: self.waits(),
            tag: extra.and_then(|extra| extra.tag),
            label: extra.and_then(|extra| extra.label.clone()),
        }
    }

    /// The extra for this memory, or none where there is nothing to say.
    #[inline]
    pub(crate) fn set_extra(&mut self, mut extra: Extra) {
        extra.memfd = self.mapping.guest_memfd();
        self.extra = extra.says_something(self.range().size()).then(|| Arc::new(extra));
    }

    /// The part of the region from `skip` bytes on, as `mapping` has it.
    pub(crate) fn part(&self, mapping: Mapping, skip: u64) -> Self {
        let mut part = Self { mapping, ..self.clone() };
        let mut extra = self.extra.as_deref().cloned().unwrap_or_default();
        extra.reach = Some(self.reach().saturating_sub(skip));
        extra.file =
            extra.file.map(|file| FileRange { offset: file.offset.saturating_add(skip), ..file });
        part.set_extra(extra);
        part
    }
}
