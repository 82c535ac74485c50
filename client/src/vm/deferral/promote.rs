//! What a VM does about regions that wait for a slot.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::Changes;
use crate::deferred::{Costs, Deferred, Life, Retry, Shown};
use crate::dirty::DirtyState;
use crate::error::{Error, ErrorKind};
use crate::region::RegionId;
use crate::report::Report;
use crate::vm::draft::Edit;
use crate::vm::prepare::Promotion;
use crate::vm::record::{self, Record};
use crate::vm::{Commit, Tables, Vm};

impl Vm {
    /// Serves exits of deferrable regions of an address space: one for each vCPU
    /// thread.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchAddressSpace`].
    pub fn deferred(&self, as_id: u16) -> Result<Deferred, Error> {
        let available = self.limits().address_spaces;
        match self.serving.get(usize::from(as_id)) {
            Some(serving) => Ok(Deferred::new(serving)),
            None => Err(ErrorKind::NoSuchAddressSpace { asked: as_id, available }.into()),
        }
    }

    /// How many regions wait for a slot.
    #[must_use]
    pub fn deferred_count(&self) -> usize {
        self.tables().regions.waiting().count()
    }

    /// How many exits were served for a region while it waited for a slot, since
    /// it was mapped or a promotion failed.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownRegion`].
    pub fn exits_served(&self, id: RegionId) -> Result<u64, Error> {
        let region = self.region(id)?;
        Ok(self.serving[usize::from(region.as_id)].exits(id))
    }

    /// What things cost here, as far as it was measured, or as
    /// [`Deferral::costs`](crate::deferred::Deferral::costs) said: a slot, made and taken
    /// away again, and an exit, in nanoseconds.
    #[must_use]
    pub fn deferral_costs(&self) -> (u64, u64) {
        // A backend may say that there is no address space at all.
        let costs = self.serving.first().map(|serving| serving.costs());
        let (slot_ns, exit_ns) = costs.unwrap_or((Costs::UNMEASURED.slot_ns(), None));
        (slot_ns, exit_ns.unwrap_or(Costs::UNMEASURED.exit_ns))
    }

    /// Does what an exit's [`due`](crate::deferred::Served::due) asks for: where a region
    /// is due, maps all that wait for a slot together, or with
    /// [`Deferral::only_due`](crate::deferred::Deferral::only_due) those that are due.
    /// `None` where none is any more: another thread was faster, or the region
    /// was unmapped meanwhile.
    ///
    /// Where slots are short, those that have cost most exits are mapped, and may
    /// take the slots of others that had earned theirs with fewer: these wait
    /// again. `None` where nobody is to give way yet.
    ///
    /// # Errors
    /// As [`promote`](Self::promote).
    pub fn promote_due(&self) -> Result<Option<Report>, Error> {
        let queued: Vec<RegionId> =
            self.serving.iter().flat_map(|serving| serving.take_due()).collect();
        let report = self.promote_where(|commit, tables| {
            let there = queued.iter().filter_map(|id| tables.regions.find(*id));
            let mut due: Vec<u32> = there.filter(|index| self.is_due(tables, *index)).collect();
            due.sort_unstable();
            due.dedup();
            let only_due = commit.deferred.first().is_some_and(|maps| maps.only_due);
            let all = !due.is_empty() && !only_due;
            Promotion::of(if all { tables.regions.waiting().collect() } else { due })
        });
        match report {
            Err(error) if is_short(&error) => self.promote_where(|commit, tables| {
                let best = self.share_slots(commit, tables);
                self.wait_on(tables, &best);
                best
            }),
            report => report,
        }
    }

    /// Maps the regions that wait for a slot, all together, whether any is due or
    /// not; where slots are short, those that have cost most exits. `None` where
    /// none waits.
    ///
    /// # Errors
    /// As [`apply`](Self::apply), but for regions that KVM refuses: others are
    /// mapped without them. Those that are not mapped wait on, their exits are
    /// served as before, and are counted from zero. [`ErrorKind::TooManySlots`]
    /// where there is none for any.
    pub fn promote(&self) -> Result<Option<Report>, Error> {
        match self.promote_where(|_, tables| Promotion::of(tables.regions.waiting().collect())) {
            Err(error) if is_short(&error) => {
                let best = self.promote_where(|commit, tables| self.share_slots(commit, tables))?;
                best.map(Some).ok_or(error)
            }
            report => report,
        }
    }

    /// Says what to do after `KVM_EXIT_ARM_NISV`, after `KVM_RUN` has failed with
    /// `ENOSYS`, or after `KVM_INTERNAL_ERROR_EMULATION`, of the thread that
    /// `exits` belongs to: maps all regions that wait, or finds that another
    /// thread has just done so.
    ///
    /// KVM then carries the instruction out anew. On x86 the VM must have
    /// `KVM_CAP_EXIT_ON_EMULATION_FAILURE` enabled for that.
    ///
    /// Where slots are short, each call maps as many as there are slots for, in
    /// turn, and those that had theirs longest give them back. When all had their
    /// turn, and nothing was served in between, it was none of them: within as
    /// many calls as there are deferrable regions, and two. A guest whose
    /// instruction needs more regions at once than there are slots gets no further.
    ///
    /// # Errors
    /// As [`promote`](Self::promote).
    pub fn undecoded(&self, exits: &Deferred) -> Result<Retry, Error> {
        let mut short = None;
        if exits.round.get().is_none() {
            let all = |tables: &Tables| Promotion::of(tables.regions.waiting().collect());
            match self.promote_where(|_, tables| all(tables)) {
                Err(error) if is_short(&error) => short = Some(error),
                // One promotion is a reason to try again only once.
                report => {
                    report?;
                    let promoted = exits.promoted_meanwhile();
                    return Ok(if promoted { Retry::Reenter } else { Retry::NotDeferred });
                }
            }
        }
        let round = exits.round.get().unwrap_or_else(|| exits.promotions());
        if self.promote_where(|commit, tables| self.rotate(commit, tables, round))?.is_some() {
            exits.round.set(Some(round));
            return Ok(Retry::Reenter);
        }
        exits.round.set(None);
        exits.promoted_meanwhile();
        short.map_or(Ok(Retry::NotDeferred), Err)
    }

    /// Maps those that `which` says, without those that KVM refuses. `None` where
    /// there are none.
    fn promote_where(
        &self,
        which: impl Fn(&Commit, &Tables) -> Promotion,
    ) -> Result<Option<Report>, Error> {
        let mut refused: Vec<RegionId> = Vec::new();
        let mut last: Option<Error> = None;
        loop {
            let (mut up, mut down) = (Vec::new(), Vec::new());
            let report = self.apply_with(Changes::new(), |commit, _| {
                let tables = self.tables();
                let named = |index: &u32| (tables.regions.as_id(*index), tables.regions.id(*index));
                let mut promotion = which(commit, &tables);
                promotion.up.retain(|index| !refused.contains(&tables.regions.id(*index)));
                up = promotion.up.iter().map(named).collect();
                down = promotion.down.iter().map(named).collect();
                promotion
            });
            if up.is_empty() && report.is_ok() {
                return last.map_or(Ok(None), Err);
            }
            match report {
                Ok(report) => {
                    self.note_promotion(&up, &down);
                    return Ok(Some(report));
                }
                Err(error) => {
                    let short = is_short(&error);
                    // Not to be tried again at the very next exit.
                    let lives = up.iter().filter(|_| !short);
                    lives.filter_map(|(as_id, id)| self.life(*as_id, *id)).for_each(|life| {
                        life.exits.store(0, Ordering::Relaxed);
                    });
                    let region = error.region().map(|region| region.id);
                    let bad = region.filter(|id| up.iter().any(|(_, there)| there == id));
                    let is_refusal = matches!(error.kind(), ErrorKind::Refused { .. });
                    match bad.filter(|_| is_refusal && up.len() > 1) {
                        Some(id) => refused.push(id),
                        None => return Err(error),
                    }
                    last = Some(error);
                }
            }
        }
    }

    /// Keeps who has a slot from now on, and who has none any more.
    fn note_promotion(&self, up: &[(u16, RegionId)], down: &[(u16, RegionId)]) {
        let turns: Vec<u64> = self
            .serving
            .iter()
            .map(|serving| serving.promotions.fetch_add(1, Ordering::Release) + 1)
            .collect();
        for (as_id, id) in up {
            let Some(life) = self.life(*as_id, *id) else { continue };
            life.earned.store(life.exits.load(Ordering::Relaxed), Ordering::Relaxed);
            life.turn.store(turns[usize::from(*as_id)], Ordering::Relaxed);
        }
        for life in down.iter().filter_map(|(as_id, id)| self.life(*as_id, *id)) {
            life.exits.store(0, Ordering::Relaxed);
            life.again.store(0, Ordering::Relaxed);
        }
    }

    /// Those that are due and are left out are due again when they have cost as
    /// much once more.
    fn wait_on(&self, tables: &Tables, best: &Promotion) {
        for index in tables.regions.waiting().filter(|index| !best.up.contains(index)) {
            let as_id = tables.regions.as_id(index);
            let serving = &self.serving[usize::from(as_id)];
            let Some(life) = self.life(as_id, tables.regions.id(index)) else { continue };
            let exits = life.exits.load(Ordering::Relaxed);
            if serving.is_due_now(&life, exits) {
                life.again.store(exits.saturating_add(serving.threshold()), Ordering::Relaxed);
            }
        }
    }

    fn life(&self, as_id: u16, id: RegionId) -> Option<Arc<Life>> {
        self.serving[usize::from(as_id)].life(id)
    }

    fn is_due(&self, tables: &Tables, index: u32) -> bool {
        if !tables.regions.is_waiting(index) {
            return false;
        }
        let (as_id, id) = (tables.regions.as_id(index), tables.regions.id(index));
        let serving = &self.serving[usize::from(as_id)];
        let exits = |life: &Life| life.exits.load(Ordering::Relaxed);
        self.life(as_id, id).is_some_and(|life| serving.is_due_now(&life, exits(&life)))
    }

    /// Tells the vCPU threads what became of the regions that were changed.
    pub(in crate::vm) fn publish_deferred(
        &self,
        commit: &mut Commit,
        dirty: &mut DirtyState,
        edits: &[Edit],
    ) {
        let page_size = self.limits().page_size;
        for (as_id, maps) in (0..).zip(&mut commit.deferred) {
            let shown = edits.iter().map(|edit| {
                let now = edit.now.as_ref().filter(|now| now.as_id == as_id);
                (edit.id, now.and_then(shown))
            });
            maps.publish(shown, page_size, dirty.overlay(as_id));
        }
    }
}

/// What vCPU threads are to see of a region, if it is deferrable.
fn shown(record: &Record) -> Option<Shown> {
    let never_faults = record.extra.as_ref().is_some_and(|extra| extra.never_faults);
    let is = record.deferral != record::Deferral::Never;
    is.then_some(Shown { mapping: record.mapping, never_faults, waits: record.waits() })
}

fn is_short(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::TooManySlots { .. })
}
