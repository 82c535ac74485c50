//! Which new regions are in slots of regions that go.

use crate::region::RegionId;

use super::draft::Draft;

impl Draft<'_> {
    /// Gives what is mapped where other regions had the same memory their origin.
    ///
    /// Slots that already map what is to be mapped stay, whatever regions are in
    /// them. So memory that is unmapped and mapped again, cut another way, shares
    /// slots without having been asked to. Regions of one origin may be taken
    /// apart under [`HolePolicy::Named`](crate::HolePolicy::Named), as in a loop
    /// of ioctls, where each would have a slot of its own.
    pub(super) fn inherit_origins(&mut self) {
        if !self.edits.iter().any(|edit| edit.index.is_some()) {
            return;
        }
        // By address: the one before this one, the last region of whose slots it
        // is in, and its origin.
        let mut before: Option<(u32, RegionId)> = None;
        for n in 0..self.sorted.len() {
            let edit = &self.edits[self.sorted[n]];
            let Some(now) = edit.now.as_ref().filter(|now| edit.index.is_none() && !now.permanent)
            else {
                continue;
            };
            let old: Vec<u32> = self
                .regions
                .overlapping(now.as_id, now.range())
                .filter(|index| self.hides(*index))
                .filter(|index| self.regions.mapping(*index).same_host_pages_as(&now.mapping))
                .collect();
            let (Some(first), Some(last)) = (old.first(), old.last()) else { continue };
            let whole = old.len() == 1 && self.regions.range(*first) == now.range();
            let origin = match before.filter(|(last, _)| last == first) {
                Some((_, origin)) => origin,
                None => match self.regions.origin(*first) {
                    Some(origin) => origin,
                    // It takes the other's place, and shares nothing.
                    None if whole => continue,
                    None => self.regions.id(*first),
                },
            };
            before = Some((*last, origin));
            let extra = now.extra.as_deref().cloned().unwrap_or_default();
            let mut record = now.clone();
            record.set_extra(super::regions::Extra { origin: Some(origin), ..extra });
            let at = self.sorted[n];
            self.edits[at].now = Some(record);
        }
    }
}
