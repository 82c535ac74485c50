//! The regions as they will be: a set of changes, held against what is applied.

use std::sync::Arc;

use kvm_memslots_shim::{Mapping, MemFlags, Range};

use super::check::{Checks, wraps};
use super::index::Index;
use super::record::{Deferral, Extra, Record};
use super::regions::Regions;
use crate::backing::Backing;
use crate::changes::Change;
use crate::error::{Described, Error, ErrorKind, Part};
use crate::{RegionId, RegionSpec, Span};

/// Up to that many edits are looked through; more get an index.
const FEW: usize = 8;

/// What a set of changes does to a region.
#[derive(Debug)]
pub(crate) struct Edit {
    pub(crate) id: RegionId,
    /// The region as it is applied; none if the set maps it.
    pub(super) index: Option<u32>,
    /// Where it is, or what it is split from: the region as it is applied, and which
    /// guest addresses of that.
    pub(super) from: Option<(u32, Range)>,
    /// As it will be; none if it goes.
    pub(crate) now: Option<Record>,
    /// The change that did it last.
    pub(super) change: usize,
    /// The set maps it, or what it was split from.
    pub(super) is_new: bool,
    /// It is to be in as few slots as can be.
    pub(super) rebuild: bool,
}

impl Edit {
    /// Of a region that is not there, and will not be.
    pub(super) const fn of(id: RegionId) -> Self {
        Self { id, index: None, from: None, now: None, change: 0, is_new: false, rebuild: false }
    }

    /// Of one that is there, and stays as it is.
    pub(super) fn there(regions: &Regions, index: u32) -> Self {
        let now = Some(regions.record(index));
        Self { now, ..Self::gone(regions, index) }
    }

    /// Of one that is there, and goes.
    pub(super) fn gone(regions: &Regions, index: u32) -> Self {
        let from = Some((index, regions.range(index)));
        Self { index: Some(index), from, ..Self::of(regions.id(index)) }
    }

    /// Whether its region is one of several that were split from one.
    pub(super) fn is_part(&self) -> bool {
        self.now.as_ref().is_some_and(|now| now.origin().is_some())
    }

    /// All of it that may run somebody's code when it is dropped.
    pub(super) fn into_extra(self) -> Option<Arc<Extra>> {
        self.now?.extra
    }
}

/// The regions as they will be. Pure: nothing is changed.
pub(super) struct Draft<'t> {
    pub(super) regions: &'t Regions,
    checks: Checks<'t>,
    pub(super) edits: Vec<Edit>,
    /// Once there are more than a few.
    index: Option<Box<Index>>,
    /// The edits that are of a region that will be there, by address space and
    /// guest address; known when it is [sealed](Self::seal).
    pub(super) sorted: Vec<usize>,
    change: usize,
}

impl<'t> Draft<'t> {
    /// With room for so many edits.
    pub(super) fn new(regions: &'t Regions, checks: Checks<'t>, edits: usize) -> Self {
        let edits = Vec::with_capacity(edits);
        Self { regions, checks, edits, index: None, sorted: Vec::new(), change: 0 }
    }

    /// Takes a change of memory in; those of devices are none of its business,
    /// but for the regions of one that comes.
    pub(super) fn take(&mut self, number: usize, change: &Change) -> Result<(), Error> {
        self.change = number;
        match change {
            Change::Map(id, spec) => self.map(*id, spec),
            Change::Unmap(id) => self.unmap(*id),
            Change::Resize(id, size) => self.resize(*id, *size),
            Change::Split(id, upper, offset) => self.split(*id, *upper, *offset),
            Change::Flags(id, set, of) => self.set_flags(*id, *set, *of),
            Change::Move(id, gpa) => self.move_to(*id, *gpa),
            Change::Replace(id, backing) => self.replace(*id, backing),
            Change::Join(id) => self.touch(*id).map(|at| self.edits[at].rebuild = true),
            Change::Attach(_, device) => {
                let name = Arc::clone(&device.name);
                let mut regions = device.regions.iter();
                regions
                    .try_for_each(|(id, spec)| self.map(*id, spec))
                    .map_err(|error| error.of_device(&name, None))
            }
            Change::Detach(_)
            | Change::MoveInWindow(..)
            | Change::Vector(..)
            | Change::VectorFd(..)
            | Change::AssignDeferred(_)
            | Change::OwnRoutes(_) => Ok(()),
        }
        .map_err(|error| error.in_change(number))
    }

    fn map(&mut self, id: RegionId, spec: &RegionSpec) -> Result<(), Error> {
        self.is_new(id)?;
        let now = Some(self.checks.record(id, spec)?);
        self.push(Edit { now, is_new: true, ..Edit::of(id) });
        Ok(())
    }

    /// Unmaps a region that is there; whether it was.
    pub(super) fn unmap_if_there(&mut self, id: RegionId) -> bool {
        self.unmap(id).is_ok()
    }

    fn unmap(&mut self, id: RegionId) -> Result<(), Error> {
        let at = self.touch(id)?;
        self.edits[at].now = None;
        Ok(())
    }

    fn resize(&mut self, id: RegionId, size: u64) -> Result<(), Error> {
        let (at, mut record) = self.current(id)?;
        let old = record.mapping;
        let described = || Described { size, ..*record.described(id) }.into();
        self.checks.numbers(
            Span { gpa: old.range().gpa(), size },
            old.hva(),
            old.guest_memfd(),
            described,
        )?;
        if size > record.reach() {
            let (hva, len) = (old.hva(), record.reach());
            return Err(ErrorKind::OutsideBacking { hva, len }.of(described()));
        }
        let mapping = Range::new(old.range().gpa(), size)
            .and_then(|range| {
                Mapping::from_parts(range, old.hva(), old.kind(), old.flags(), old.guest_memfd())
            })
            .ok_or_else(|| wraps(described(), Part::Hva))?;
        let mut extra = record.extra.as_deref().cloned().unwrap_or_default();
        // What is the caller's to keep need not be kept once it is unmapped.
        let narrows = size < old.range().size() && extra.owner.is_none();
        extra.reach = Some(if narrows { size } else { record.reach() });
        record.mapping = mapping;
        record.set_extra(extra);
        self.checks.kind(&record, || record.described(id))?;
        self.edits[at].now = Some(record);
        Ok(())
    }

    fn split(&mut self, id: RegionId, upper: RegionId, offset: u64) -> Result<(), Error> {
        let (at, whole) = self.current(id)?;
        let page_size = self.checks.limits.page_size;
        if offset % page_size != 0 {
            let (part, value) = (Part::SplitOffset, offset);
            return Err(ErrorKind::Unaligned { part, value, page_size }.of(whole.described(id)));
        }
        self.is_new(upper)?;
        let range = whole.range();
        let parts = || {
            let middle = range.gpa().checked_add(offset)?;
            let low = whole.mapping.clipped_to(Range::between(range.gpa(), middle)?)?;
            let high = whole.mapping.clipped_to(Range::between(middle, range.end())?)?;
            Some((low, high))
        };
        let Some((low, high)) = parts() else {
            return Err(ErrorKind::SplitOutside(offset).of(whole.described(id)));
        };
        let origin = Some(whole.origin().unwrap_or(id));
        let part = |mapping, skip, reach| {
            let mut part = whole.part(mapping, skip);
            let extra = part.extra.as_deref().cloned().unwrap_or_default();
            part.set_extra(Extra { origin, reach: Some(reach), ..extra });
            part
        };
        let (low, high) = (part(low, 0, offset), part(high, offset, whole.reach() - offset));
        self.edits[at].now = Some(low);
        let Edit { is_new, from, .. } = self.edits[at];
        let [from, above] = cut(from, offset);
        self.edits[at].from = from;
        self.push(Edit { from: above, now: Some(high), is_new, ..Edit::of(upper) });
        Ok(())
    }

    fn set_flags(&mut self, id: RegionId, set: MemFlags, of: MemFlags) -> Result<(), Error> {
        let at = self.touch(id)?;
        match &mut self.edits[at].now {
            Some(record) => self.checks.set_flags(id, record, set, of),
            None => Err(ErrorKind::UnknownRegion(id).into()),
        }
    }

    fn move_to(&mut self, id: RegionId, gpa: u64) -> Result<(), Error> {
        let (at, mut record) = self.current(id)?;
        let old = record.mapping;
        let described = || Described { gpa, ..*record.described(id) }.into();
        let span = Span { gpa, size: old.range().size() };
        self.checks.numbers(span, old.hva(), old.guest_memfd(), described)?;
        record.mapping = old.moved_to(gpa).ok_or_else(|| wraps(described(), Part::Gpa))?;
        self.edits[at].now = Some(record);
        Ok(())
    }

    fn replace(&mut self, id: RegionId, backing: &Backing) -> Result<(), Error> {
        let (at, old) = self.current(id)?;
        let extra = old.extra.as_deref();
        let spec = RegionSpec {
            span: old.range().into(),
            backing: backing.clone(),
            kind: old.mapping.kind(),
            flags: old.mapping.flags() & !MemFlags::GUEST_MEMFD,
            as_id: old.as_id,
            alone: old.alone,
            permanent: old.permanent,
            deferrable: old.deferral != Deferral::Never,
            tag: extra.and_then(|extra| extra.tag),
            label: extra.and_then(|extra| extra.label.clone()),
        };
        let mut record = self.checks.record(id, &spec)?;
        if let Some(origin) = old.origin() {
            let extra = record.extra.as_deref().cloned().unwrap_or_default();
            record.set_extra(Extra { origin: Some(origin), ..extra });
        }
        self.edits[at].now = Some(record);
        Ok(())
    }

    /// Checks that no two regions will overlap: only the outcome counts, so that
    /// regions can swap their places in one set.
    pub(super) fn seal(&mut self) -> Result<(), Error> {
        let key = |at: &usize| {
            let now = self.edits[*at].now.as_ref();
            now.map(|record| (record.as_id, record.range().gpa()))
        };
        let mut sorted = Vec::with_capacity(self.edits.len());
        sorted.extend((0..self.edits.len()).filter(|at| self.edits[*at].now.is_some()));
        if !sorted.is_sorted_by_key(key) {
            sorted.sort_unstable_by_key(key);
        }
        let mut last: Option<(&Edit, &Record)> = None;
        for at in &sorted {
            let edit = &self.edits[*at];
            let Some(record) = &edit.now else { continue };
            let (as_id, range) = (record.as_id, record.range());
            if let Some((other, there)) =
                last.filter(|(_, there)| there.as_id == as_id && there.range().overlaps(range))
            {
                // The one that came last is to blame.
                let mut pair = [(edit, record), (other, there)];
                pair.sort_by_key(|(edit, _)| std::cmp::Reverse(edit.change));
                let [(edit, record), (other, there)] = pair;
                return Err(overlap(edit, record, there.described(other.id)));
            }
            // Where it was, there is no other.
            let stays = edit.index.is_some_and(|index| self.regions.range(index) == range);
            let hides = |index| self.hides(index);
            let there =
                if stays { None } else { self.regions.in_the_way(as_id, range, |i| !hides(i)) };
            if let Some(index) = there {
                return Err(overlap(edit, record, self.regions.described(index)));
            }
            last = Some((edit, record));
        }
        self.sorted = sorted;
        Ok(())
    }

    /// The edit of a region that is there at this point, made if need be.
    fn touch(&mut self, id: RegionId) -> Result<usize, Error> {
        let unknown = || Err(ErrorKind::UnknownRegion(id).into());
        if let Some(at) = self.edit_of(id) {
            if self.edits[at].now.is_none() {
                return unknown();
            }
            self.edits[at].change = self.change;
            return Ok(at);
        }
        let Some(index) = self.regions.find(id) else { return unknown() };
        Ok(self.push(Edit::there(self.regions, index)))
    }

    fn current(&mut self, id: RegionId) -> Result<(usize, Record), Error> {
        let at = self.touch(id)?;
        match &self.edits[at].now {
            Some(record) => Ok((at, record.clone())),
            None => Err(ErrorKind::UnknownRegion(id).into()),
        }
    }

    /// A region that waits for its slot waits no longer, or gives it back.
    pub(super) fn defer(&mut self, index: u32, deferral: Deferral) {
        if let Ok((at, record)) = self.current(self.regions.id(index)) {
            self.edits[at].now = Some(Record { deferral, ..record });
        }
    }

    /// Whether a region can be mapped under a name.
    fn is_new(&self, id: RegionId) -> Result<(), Error> {
        let is_there = match self.edit_of(id) {
            Some(at) => self.edits[at].now.is_some(),
            None => self.regions.find(id).is_some(),
        };
        if is_there { Err(ErrorKind::Twice(id.to_string().into()).into()) } else { Ok(()) }
    }

    /// The last edit of a name: what is unmapped and mapped again has one for each.
    fn edit_of(&self, id: RegionId) -> Option<usize> {
        match &self.index {
            Some(index) => index.find(id),
            None => self.edits.iter().rposition(|edit| edit.id == id),
        }
    }

    /// Whether the set has something to say about a region that is applied.
    pub(super) fn hides(&self, region: u32) -> bool {
        match &self.index {
            Some(index) => index.hides(region),
            None => self.edits.iter().any(|edit| edit.index == Some(region)),
        }
    }

    /// The edits of regions that will be in `range`, by guest address.
    pub(super) fn overlapping(
        &self,
        as_id: u16,
        range: Range,
    ) -> impl Iterator<Item = (&Edit, &Record)> + '_ {
        let now = |at: &usize| self.edits[*at].now.as_ref();
        let from = self.sorted.partition_point(|at| {
            now(at).is_some_and(|now| (now.as_id, now.range().end()) <= (as_id, range.gpa()))
        });
        self.sorted[from..]
            .iter()
            .filter_map(move |at| Some((&self.edits[*at], self.edits[*at].now.as_ref()?)))
            .take_while(move |(_, now)| now.as_id == as_id && now.range().gpa() < range.end())
    }

    /// What the region of an edit, as it is or will be, was split from.
    pub(super) fn origin(&self, edit: &Edit) -> Option<RegionId> {
        let now = edit.now.as_ref().and_then(Record::origin);
        now.or_else(|| edit.index.and_then(|index| self.regions.origin(index)))
    }

    /// What a region's name stands for, as it will be.
    pub(super) fn record(&self, id: RegionId) -> Option<Record> {
        match self.edit_of(id) {
            Some(at) => self.edits[at].now.clone(),
            None => self.regions.find(id).map(|index| self.regions.record(index)),
        }
    }

    fn push(&mut self, edit: Edit) -> usize {
        let at = self.edits.len();
        if let Some(index) = &mut self.index {
            index.enter(at, edit.id, edit.index);
        }
        self.edits.push(Edit { change: self.change, ..edit });
        if self.index.is_none() && self.edits.len() > FEW {
            let mut index = Box::new(Index::new(self.edits.capacity()));
            let edits = self.edits.iter().enumerate();
            edits.for_each(|(at, edit)| index.enter(at, edit.id, edit.index));
            self.index = Some(index);
        }
        at
    }
}

/// Where what is below `offset` bytes of a region is, and the rest, as far as that is
/// anywhere yet.
fn cut(from: Option<(u32, Range)>, offset: u64) -> [Option<(u32, Range)>; 2] {
    let Some((index, all)) = from else { return [None; 2] };
    let middle = all.gpa().saturating_add(offset).min(all.end());
    let part = |from, to| Some((index, Range::between(from, to)?));
    [part(all.gpa(), middle), part(middle, all.end())]
}

fn overlap(edit: &Edit, record: &Record, other: Box<Described>) -> Error {
    ErrorKind::Overlap(other).of(record.described(edit.id)).in_change(edit.change)
}
