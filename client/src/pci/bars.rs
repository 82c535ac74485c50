//! The functions of a VM and the windows that are mapped.

use std::collections::BTreeMap;

use kvm_memslots_shim::Range;

use super::bells::{BarKey, Bells, ring, silence};
use super::claims::bell_range;
use super::error::PciError;
use super::id::FunctionId;
use super::moves::Moves;
use super::places::{Item, Key, keys_of, places};
use super::refusals::{Refusals, blamed, is_about_one};
use super::registers::Registers;
use super::shelf::Shelf;
use super::spec::{FunctionSpec, ROM};
use super::wanted::Wanted;
use crate::device::Ioeventfd;
use crate::window::{self, Placement};
use crate::{Changes, RegionId, RegionSpec, Report, Vm};

/// Where in a function an address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// The BAR; `None` for the expansion ROM.
    pub bar: Option<usize>,
    /// Bytes from its start.
    pub offset: u64,
}

/// Follows the config writes of a VM's PCI functions. For one VM, always the same
/// one.
#[derive(Debug)]
pub struct PciBars {
    end: u64,
    functions: BTreeMap<FunctionId, Registers>,
    mapped: BTreeMap<Key, RegionId>,
    bells: BTreeMap<BarKey, Bells>,
    shelf: Shelf,
    refused: Refusals,
    moves: Moves,
    keeps: bool,
    defers: bool,
}

impl PciBars {
    /// For a guest whose physical addresses have `address_bits` bits (CPUID
    /// leaf `0x8000_0008`, `ID_AA64MMFR0_EL1.PARange`): a BAR beyond is nowhere,
    /// as KVM would refuse its slot.
    #[must_use]
    pub fn new(address_bits: u32) -> Self {
        let end = 1_u64.checked_shl(address_bits).unwrap_or(u64::MAX);
        Self {
            end,
            functions: BTreeMap::new(),
            mapped: BTreeMap::new(),
            bells: BTreeMap::new(),
            shelf: Shelf::default(),
            refused: Refusals::default(),
            moves: Moves::default(),
            keeps: false,
            defers: false,
        }
    }

    /// The ioeventfds of a BAR that stops decoding stay where they were until it
    /// decodes elsewhere, or another BAR is to be there: a guest that switches
    /// decoding off and on again costs no call for them. It can still ring them
    /// meanwhile, where hardware would ignore the write.
    ///
    /// Before something else than a BAR is put there, [`sync`](Self::sync) takes
    /// them away; so do [`reset`](Self::reset) and [`remove`](Self::remove).
    #[must_use]
    pub const fn keep_ioeventfds(mut self) -> Self {
        self.keeps = true;
        self
    }

    /// The ioeventfds of a BAR that is enabled or moved are left to a later set of
    /// changes, one with [`Changes::assign_deferred`]. Until then the guest's
    /// writes exit, and the VMM has to look after them.
    ///
    /// On kernels since 6.18 an ioeventfd that was registered makes the next
    /// change of memory wait for a normal grace period, which is milliseconds for
    /// each function that a booting guest enables behind another.
    #[must_use]
    pub const fn defer_ioeventfds(mut self) -> Self {
        self.defers = true;
        self
    }

    /// Memory of BARs that the guest puts in this window is
    /// [placed](window::Window::place) there, without a call of KVM's, where its
    /// backing says in which file it is
    /// ([`Backing::with_file`](crate::Backing::with_file)). The VMM maps the window's
    /// region. To be said before functions are added, whose descriptors are
    /// duplicated then. See [the module](super#bars-in-windows).
    #[must_use]
    pub fn in_window(mut self, window: window::Window) -> Self {
        self.shelf.add(window);
        self
    }

    /// What the guest puts outside of the windows gets no slot of its own, and
    /// exits; [`refusal`](Self::refusal) says so.
    #[must_use]
    pub const fn without_slots(mut self) -> Self {
        self.shelf.has_all = true;
        self
    }

    /// Adds a function, as after a reset: nothing is mapped.
    ///
    /// # Errors
    /// What is wrong with its description, [`PciError::Vm`] where that is
    /// something that `vm` could not map.
    pub fn add(&mut self, vm: &Vm, mut function: FunctionSpec) -> Result<FunctionId, PciError> {
        function.check()?;
        function.cut(vm.limits().page_size);
        function.windows().try_for_each(|window| vm.check_spec(window))?;
        let id = FunctionId::next();
        for (bar, spec) in function.by_index() {
            for (n, window) in spec.windows.iter().enumerate() {
                self.shelf.learn((id, bar, Item::Window(n)), window);
            }
        }
        self.functions.insert(id, Registers::new(function));
        Ok(id)
    }

    /// Follows one config write of the guest; `None` where that took no call of
    /// KVM's.
    ///
    /// # Errors
    /// [`PciError::UnknownFunction`]; [`PciError::Vm`]: what the registers say is
    /// not mapped. That KVM refuses a window where the guest has put it is no
    /// error, but that window's [`refusal`](Self::refusal).
    pub fn config_write(
        &mut self,
        vm: &Vm,
        function: FunctionId,
        offset: u16,
        data: &[u8],
    ) -> Result<Option<Report>, PciError> {
        self.note_write(function, offset, data)?;
        self.settle(vm)
    }

    /// The first half of [`config_write`](Self::config_write), for a VMM that
    /// writes many registers itself, before the guest starts or when it restores
    /// one: [`sync`](Self::sync) then maps all BARs together.
    ///
    /// # Errors
    /// [`PciError::UnknownFunction`].
    pub fn note_write(
        &mut self,
        function: FunctionId,
        offset: u16,
        data: &[u8],
    ) -> Result<(), PciError> {
        let registers = self.functions.get_mut(&function);
        let registers = registers.ok_or(PciError::UnknownFunction(function))?;
        if registers.write(offset.into(), data, self.end) {
            self.moves.note(function, registers);
        }
        Ok(())
    }

    /// Fills in what the guest reads of the registers of BARs; bytes of other
    /// registers stay as they are.
    ///
    /// # Errors
    /// [`PciError::UnknownFunction`].
    pub fn config_read(
        &self,
        function: FunctionId,
        offset: u16,
        data: &mut [u8],
    ) -> Result<(), PciError> {
        let registers = self.functions.get(&function);
        registers.ok_or(PciError::UnknownFunction(function))?.read(offset.into(), data);
        Ok(())
    }

    /// Unmaps the function's windows, clears its BARs and stops decoding: for
    /// a reset of the function or of its bus.
    ///
    /// # Errors
    /// As [`config_write`](Self::config_write).
    pub fn reset(&mut self, vm: &Vm, function: FunctionId) -> Result<Option<Report>, PciError> {
        let registers = self.functions.get_mut(&function);
        let registers = registers.ok_or(PciError::UnknownFunction(function))?;
        registers.reset();
        self.moves.note(function, registers);
        self.follow(vm, |id| id != function)
    }

    /// Unmaps the function's windows and forgets it: for one that is unplugged.
    ///
    /// # Errors
    /// As [`config_write`](Self::config_write); the function stays, reset.
    pub fn remove(&mut self, vm: &Vm, function: FunctionId) -> Result<Option<Report>, PciError> {
        let report = self.reset(vm, function)?;
        self.functions.remove(&function);
        self.shelf.forget(function);
        Ok(report)
    }

    /// Where a BAR decodes, for `None` the expansion ROM; mapped or not.
    #[must_use]
    pub fn base(&self, function: FunctionId, bar: Option<usize>) -> Option<u64> {
        Some(self.moves.now.get(&(function, index_of(bar)))?.0)
    }

    /// Which BAR an MMIO exit is for, if any.
    #[must_use]
    pub fn decode(&self, gpa: u64) -> Option<(FunctionId, Decoded)> {
        let ((function, bar), offset) = self.moves.now.first_at(gpa)?;
        Some((function, Decoded { bar: Some(bar).filter(|bar| *bar != ROM), offset }))
    }

    /// Why a BAR, for `None` the expansion ROM, is not mapped where it decodes,
    /// or not all of it: of the first of its windows, then of its doorbells, that
    /// can't be there ([`PciError::Vm`]: what KVM said; [`PciError::Taken`]:
    /// something else is there). Accesses to that exit, or
    /// find the gap of a window. It is tried anew when the BAR moves, and with
    /// [`sync`](Self::sync).
    #[must_use]
    pub fn refusal(&self, function: FunctionId, bar: Option<usize>) -> Option<&PciError> {
        self.refused.first_of((function, index_of(bar)))
    }

    /// The regions of a BAR's windows that are mapped, for `None` of the
    /// expansion ROM, by their index; a window that was
    /// [cut](super::BarSpec::exits) counts as several.
    #[must_use]
    pub fn regions(&self, function: FunctionId, bar: Option<usize>) -> Vec<(usize, RegionId)> {
        let mine = self.mapped.range(keys_of((function, index_of(bar))));
        let window = |(key, id): (&Key, &RegionId)| match key.2 {
            Item::Window(window) => Some((window, *id)),
            Item::Doorbell(_) => None,
        };
        mine.filter_map(window).collect()
    }

    /// What of a BAR, for `None` of the expansion ROM, is placed in windows, by the
    /// index of its own window as in [`regions`](Self::regions).
    #[must_use]
    pub fn placed(&self, function: FunctionId, bar: Option<usize>) -> Vec<(usize, Placement)> {
        self.shelf.of((function, index_of(bar)))
    }

    /// Maps and unmaps what the registers say, together; `None` where that took no
    /// call of KVM's. To be called after [`note_write`](Self::note_write), after an
    /// error, and where regions that are no BARs were unmapped, or are about to
    /// be mapped where BARs may be. It looks at all functions; a config write looks at
    /// its own, at what overlaps with that, and at what may no longer be refused.
    ///
    /// # Errors
    /// As [`Vm::apply`], but for what is a window's [`refusal`](Self::refusal).
    /// What was mapped still is.
    pub fn sync(&mut self, vm: &Vm) -> Result<Option<Report>, PciError> {
        self.refused.clear();
        self.moves.note_all();
        self.follow(vm, |_| false)
    }

    fn settle(&mut self, vm: &Vm) -> Result<Option<Report>, PciError> {
        if self.moves.is_empty() { Ok(None) } else { self.follow(vm, |_| true) }
    }

    /// Maps and unmaps what the registers say, without what KVM refuses. Of
    /// functions that `may_keep` theirs, doorbells may stay.
    fn follow(
        &mut self,
        vm: &Vm,
        may_keep: impl Fn(FunctionId) -> bool,
    ) -> Result<Option<Report>, PciError> {
        let bars = self.moves.concerned(&self.functions, self.refused.passing());
        let places: Vec<_> = places(&self.functions, &bars).collect();
        self.refused.reconsider(&bars, &places);
        let mut report = None;
        // Left out one by one, from the last on, as nobody said which it is about.
        let mut suspects: Vec<Key> = Vec::new();
        loop {
            let mapped = bars.iter().flat_map(|bar| self.mapped.range(keys_of(*bar)));
            let mapped: Vec<(Key, RegionId)> = mapped.map(|(key, id)| (*key, *id)).collect();
            let Wanted { windows, parts, bells, claims, refused, taken } =
                Wanted::of(&places, &mapped, &self.refused, &self.shelf, vm);
            if !refused.is_empty() {
                for (key, at, why) in refused {
                    self.refused.insert(key, at, why);
                }
                continue;
            }
            let is = |id: &RegionId| vm.range_of(*id);
            let at = |key: &Key| windows.binary_search_by_key(key, |(key, ..)| *key).ok();
            let left = |(key, id): &&_| is(id) != at(key).map(|at| windows[at].1);
            let gone: Vec<(Key, RegionId)> = mapped.iter().filter(left).copied().collect();
            let left = |key: &Key| gone.binary_search_by_key(key, |(key, _)| *key).is_ok();
            let mut changes = Changes::new();
            // Somebody else may have unmapped it.
            let there = gone.iter().filter(|(_, id)| is(id).is_some());
            there.for_each(|(_, id)| changes.unmap(*id));
            let mut made: Vec<(Key, Range, RegionId)> = Vec::new();
            for (key, range, window) in &windows {
                if left(key) || !self.mapped.contains_key(key) {
                    // The guest moves each by itself, which is to be possible.
                    let permanent = window.permanent && vm.may_replace()?;
                    let span = (*range).into();
                    let spec = RegionSpec { span, permanent, ..(*window).clone() };
                    made.push((*key, *range, changes.map(spec)));
                }
            }
            let stays = |bar: &BarKey, places: &[(usize, Ioeventfd)]| {
                let is_free = |at| claims.is_free(at);
                let free =
                    |(_, at): &(_, Ioeventfd)| bell_range(at.addr, at.len).is_some_and(is_free);
                let nowhere = self.moves.now.get(bar).is_none();
                self.keeps && nowhere && may_keep(bar.0) && places.iter().all(free)
            };
            let silent = silence(&bars, &self.bells, vm, &bells, stays, &mut changes);
            let (functions, defers) = (&self.functions, self.defers);
            let ringing = ring(&self.bells, functions, defers, bells, &silent, &mut changes);
            match vm.apply_if_any(changes) {
                Ok(applied) => report = applied.or(report),
                Err(error) => {
                    let suspect = made.last().filter(|_| is_about_one(&error));
                    suspects.extend(suspect.map(|(key, ..)| *key));
                    let suspect = suspect.map(|(key, range, _)| (*key, *range));
                    let Some((key, range)) = blamed(&made, &ringing, &error).or(suspect) else {
                        return Err(error.into());
                    };
                    self.refused.insert(key, range, error.into());
                    continue;
                }
            }
            for (key, _) in gone {
                self.mapped.remove(&key);
            }
            self.mapped.extend(made.into_iter().map(|(key, _, id)| (key, id)));
            for bar in &silent {
                self.bells.remove(bar);
            }
            self.bells.extend(ringing);
            match self.shelf.follow(&bars, parts) {
                Err((Some(key), error)) => {
                    let place = places.iter().find(|(there, ..)| *there == key);
                    if let Some((_, range, _)) = place {
                        self.refused.insert(key, *range, error.into());
                    }
                }
                Err((None, error)) => return Err(error.into()),
                // It was the last of them. What of the others is?
                Ok(()) if suspects.len() > 1 => {
                    suspects.pop();
                    suspects.drain(..).for_each(|key| self.refused.forget(&key));
                }
                Ok(()) => {
                    for (key, range) in taken {
                        self.refused.insert(key, range, PciError::Taken);
                    }
                    self.moves.followed(bars, |bar| self.bells.contains_key(bar));
                    return Ok(report);
                }
            }
        }
    }
}

fn index_of(bar: Option<usize>) -> usize {
    bar.unwrap_or(ROM)
}
