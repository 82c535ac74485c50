//! What KVM would refuse of a region, or take for something else, whatever is
//! mapped.

use kvm_memslots_shim::{GuestMemfd, Limits, Mapping, MemFlags, Range};

use super::record::{Deferral, Extra, Record};
use crate::backing::{Access, Backing};
use crate::error::{Described, Error, ErrorKind, Part};
use crate::{RegionId, RegionSpec, Span};

/// What is checked against.
pub(super) struct Checks<'a> {
    pub(super) limits: &'a Limits,
    /// Whether a deferrable region is to wait for its slot.
    pub(super) waits: &'a dyn Fn(&RegionSpec, &Mapping) -> bool,
}

impl Checks<'_> {
    /// What `spec` asks for, if KVM would not refuse it, or take it for something
    /// else, whatever is mapped.
    pub(super) fn record(&self, id: RegionId, spec: &RegionSpec) -> Result<Record, Error> {
        let described = || {
            Box::new(Described {
                id,
                label: spec.label.clone(),
                tag: spec.tag,
                kind: spec.kind,
                as_id: spec.as_id,
                gpa: spec.span.gpa,
                size: spec.span.size,
                hva: spec.backing.hva,
            })
        };
        let available = self.limits.address_spaces;
        if spec.as_id >= available {
            return Err(ErrorKind::NoSuchAddressSpace { asked: spec.as_id, available }.into());
        }
        let Backing { hva, len, guest_memfd, .. } = spec.backing;
        self.numbers(spec.span, hva, guest_memfd, described)?;
        if spec.span.size > len {
            return Err(ErrorKind::OutsideBacking { hva, len }.of(described()));
        }
        let mapping = Range::new(spec.span.gpa, spec.span.size)
            .and_then(|range| Mapping::from_parts(range, hva, spec.kind, spec.flags, guest_memfd));
        let Some(mapping) = mapping else { return Err(wraps(described(), Part::Hva)) };
        let mut record = Record {
            mapping,
            as_id: spec.as_id,
            alone: spec.alone,
            permanent: spec.permanent,
            deferral: Deferral::Never,
            extra: None,
        };
        let backing = &spec.backing;
        record.set_extra(Extra {
            label: spec.label.clone(),
            tag: spec.tag,
            memfd: None,
            file: backing.file,
            reach: Some(len),
            read_only: backing.access == Access::Read,
            never_faults: backing.never_faults,
            owner: backing.owner.clone(),
            origin: None,
        });
        if spec.deferrable {
            let waits = (self.waits)(spec, &mapping);
            record.deferral = if waits { Deferral::Waiting } else { Deferral::Over };
        }
        self.kind(&record, described)?;
        Ok(record)
    }

    /// Gives a region those of the flags `of` that are in `set`, if it can have them.
    pub(super) fn set_flags(
        &self,
        id: RegionId,
        record: &mut Record,
        set: MemFlags,
        of: MemFlags,
    ) -> Result<(), Error> {
        record.mapping = record.mapping.with_flags(record.mapping.flags() & !of | set);
        self.kind(record, || record.described(id))?;
        if of.contains(MemFlags::TRAP) {
            if !self.limits.trap {
                return Err(ErrorKind::TrapUnsupported.of(record.described(id)));
            }
            if !record.alone {
                return Err(ErrorKind::NotAlone.of(record.described(id)));
            }
        }
        Ok(())
    }

    /// Whether the numbers are what KVM takes.
    pub(super) fn numbers(
        &self,
        Span { gpa, size }: Span,
        hva: u64,
        memfd: Option<GuestMemfd>,
        described: impl Fn() -> Box<Described>,
    ) -> Result<(), Error> {
        // KVM takes size 0 for a delete.
        if size == 0 {
            return Err(ErrorKind::Empty.of(described()));
        }
        let page_size = self.limits.page_size;
        let memfd_offset = memfd.map_or(0, |memfd| memfd.offset);
        let parts = [
            (Part::Size, size),
            (Part::Gpa, gpa),
            (Part::Hva, hva),
            (Part::MemfdOffset, memfd_offset),
        ];
        for (part, value) in parts {
            // A power of two.
            if value & (page_size - 1) != 0 {
                return Err(ErrorKind::Unaligned { part, value, page_size }.of(described()));
            }
            if part != Part::Size && value.checked_add(size).is_none() {
                return Err(wraps(described(), part));
            }
        }
        Ok(())
    }

    /// Whether a region can have its flags.
    pub(super) fn kind(
        &self,
        record: &Record,
        described: impl Fn() -> Box<Described>,
    ) -> Result<(), Error> {
        let flags = record.mapping.flags();
        let deferrable = record.deferral != Deferral::Never;
        let too_large = record.range().size() > self.limits.slot_bytes();
        let refused = if flags.contains(MemFlags::READONLY) && !self.limits.readonly {
            ErrorKind::ReadOnlyUnsupported
        } else if !flags.contains(MemFlags::READONLY) && record.access() == Access::Read {
            ErrorKind::ReadOnlyBacking
        } else if flags.contains(MemFlags::TRAP) && !self.limits.trap {
            ErrorKind::TrapUnsupported
        } else if flags.contains(MemFlags::GUEST_MEMFD) {
            let no_memfd = MemFlags::READONLY | MemFlags::LOG_DIRTY_PAGES | MemFlags::TRAP;
            if !self.limits.guest_memfd {
                ErrorKind::GuestMemfdUnsupported
            } else if flags.intersects(no_memfd) {
                ErrorKind::GuestMemfdFlags(flags & no_memfd)
            } else if deferrable {
                let why = "its private memory is out of the VMM's reach";
                ErrorKind::NotDeferrable(why)
            } else {
                return Ok(());
            }
        } else if flags.contains(MemFlags::TRAP) && deferrable {
            let why = "it is to trap, and its exits would be served from memory";
            ErrorKind::NotDeferrable(why)
        } else if flags.contains(MemFlags::LOG_DIRTY_PAGES) && deferrable && too_large {
            let why = "its writes are logged, and it is larger than a slot";
            ErrorKind::NotDeferrable(why)
        } else {
            return Ok(());
        };
        Err(refused.of(described()))
    }
}

pub(super) fn wraps(region: Box<Described>, part: Part) -> Error {
    ErrorKind::Wraps(part).of(region)
}
