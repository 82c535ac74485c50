//! The functions of a VM and the windows that are mapped.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_memslots_shim::{Mapping, Range};

use super::PciError;
use super::claims::Claims;
use super::registers::{Decoded, Registers};
use super::spec::{FunctionSpec, Window};
use crate::transaction::check_spec;
use crate::{AddressSpace, CommitReport, Error, RegionId, RegionSpec, Transaction};

/// Numbers functions, so that an id is not taken for one of another `PciBars`.
static FUNCTIONS: AtomicU64 = AtomicU64::new(1);

/// Names a function of a [`PciBars`]. Lower for those that were added earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionId(u64);

/// A window: of which function, which of its BARs, which one of those.
type Key = (FunctionId, usize, usize);

/// Follows the config writes of a VM's PCI functions. For one address space,
/// always the same one.
#[derive(Debug)]
pub struct PciBars {
    end: u64,
    functions: BTreeMap<FunctionId, Registers>,
    mapped: HashMap<Key, RegionId>,
    /// Whether the registers say something else than `mapped`.
    moved: bool,
}

impl PciBars {
    /// For a guest whose physical addresses have `address_bits` bits (CPUID
    /// leaf `0x8000_0008`, `ID_AA64MMFR0_EL1.PARange`): a BAR beyond is nowhere,
    /// as KVM would refuse its slot.
    #[must_use]
    pub fn new(address_bits: u32) -> Self {
        let end = 1_u64.checked_shl(address_bits).unwrap_or(u64::MAX);
        Self { end, functions: BTreeMap::new(), mapped: HashMap::new(), moved: false }
    }

    /// Adds a function, as after a reset: nothing is mapped.
    ///
    /// # Errors
    /// What is wrong with its description, [`PciError::Space`] where that is
    /// something that `space` could not map.
    pub fn add(
        &mut self,
        space: &AddressSpace,
        function: FunctionSpec,
    ) -> Result<FunctionId, PciError> {
        function.check()?;
        function.windows().try_for_each(|window| check_spec(&window.spec, space.limits()))?;
        let id = FunctionId(FUNCTIONS.fetch_add(1, Ordering::Relaxed));
        self.functions.insert(id, Registers::new(function));
        Ok(id)
    }

    /// Follows one config write of the guest; `None` where that took no commit.
    ///
    /// # Errors
    /// [`PciError::UnknownFunction`]; [`PciError::Space`]: what the registers
    /// say is not mapped.
    pub fn config_write(
        &mut self,
        space: &mut AddressSpace,
        function: FunctionId,
        offset: u16,
        data: &[u8],
    ) -> Result<Option<CommitReport>, PciError> {
        self.note_write(function, offset, data)?;
        self.settle(space)
    }

    /// The first half of [`config_write`](Self::config_write), for a VMM that
    /// writes many registers itself, before the guest starts or when it restores
    /// one: [`sync`](Self::sync) then maps all BARs in one commit.
    ///
    /// # Errors
    /// [`PciError::UnknownFunction`].
    pub fn note_write(
        &mut self,
        function: FunctionId,
        offset: u16,
        data: &[u8],
    ) -> Result<(), PciError> {
        let end = self.end;
        self.moved |= self.registers(function)?.write(offset.into(), data, end);
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
    pub fn reset(
        &mut self,
        space: &mut AddressSpace,
        function: FunctionId,
    ) -> Result<Option<CommitReport>, PciError> {
        self.moved |= self.registers(function)?.reset();
        self.settle(space)
    }

    /// Unmaps the function's windows and forgets it: for one that is unplugged.
    ///
    /// # Errors
    /// As [`config_write`](Self::config_write); the function stays, reset.
    pub fn remove(
        &mut self,
        space: &mut AddressSpace,
        function: FunctionId,
    ) -> Result<Option<CommitReport>, PciError> {
        let report = self.reset(space, function)?;
        self.functions.remove(&function);
        Ok(report)
    }

    /// Where a BAR decodes, for `None` the expansion ROM; mapped or not.
    #[must_use]
    pub fn base(&self, function: FunctionId, bar: Option<usize>) -> Option<u64> {
        self.functions.get(&function)?.base(bar)
    }

    /// Which BAR an MMIO exit is for, if any.
    #[must_use]
    pub fn decode(&self, gpa: u64) -> Option<(FunctionId, Decoded)> {
        let mut functions = self.functions.iter();
        functions.find_map(|(id, registers)| Some((*id, registers.decode(gpa)?)))
    }

    /// Maps and unmaps what the registers say, in one commit; `None` where that
    /// is so already. To be called after [`note_write`](Self::note_write), after
    /// a commit that failed, and where regions that are no BARs were unmapped, or
    /// are about to be mapped where BARs may be.
    ///
    /// # Errors
    /// Those of the commit. What was mapped still is.
    pub fn sync(&mut self, space: &mut AddressSpace) -> Result<Option<CommitReport>, PciError> {
        // Until it has worked.
        self.moved = true;
        let wanted = self.wanted(space);
        let stays = |key: &Key, id: &RegionId| {
            let range = space.region(*id).map(|region| region.range);
            wanted.get(key).is_some_and(|(wanted, _)| range.is_ok_and(|range| range == *wanted))
        };
        let gone: Vec<(Key, RegionId)> = self
            .mapped
            .iter()
            .filter(|(key, id)| !stays(key, id))
            .map(|(key, id)| (*key, *id))
            .collect();
        let left: HashSet<Key> = gone.iter().map(|(key, _)| *key).collect();
        let new = wanted
            .into_iter()
            .filter(|(key, _)| left.contains(key) || !self.mapped.contains_key(key));
        let new: Vec<_> = new.collect();
        let (committed, made) = if gone.is_empty() && new.is_empty() {
            (None, Vec::new())
        } else {
            let (report, made) = carry_out(space, &gone, &new)?;
            (Some(report), made)
        };
        for (key, _) in gone {
            self.mapped.remove(&key);
        }
        self.mapped.extend(made);
        self.moved = false;
        Ok(committed)
    }

    fn settle(&mut self, space: &mut AddressSpace) -> Result<Option<CommitReport>, PciError> {
        if self.moved { self.sync(space) } else { Ok(None) }
    }

    fn registers(&mut self, function: FunctionId) -> Result<&mut Registers, PciError> {
        self.functions.get_mut(&function).ok_or(PciError::UnknownFunction(function))
    }

    /// What is to be mapped where, as the registers alone say.
    fn wanted(&self, space: &AddressSpace) -> BTreeMap<Key, (Range, &Window)> {
        let ours: HashSet<RegionId> = self.mapped.values().copied().collect();
        let others = |range: Range| {
            let mut there = space.regions.overlapping(range).map(|index| space.regions.id(index));
            there.any(|id| !ours.contains(&id))
        };
        let mut claims = Claims::default();
        let mut wanted = BTreeMap::new();
        for (id, registers) in &self.functions {
            for (bar, window, base, spec) in registers.windows() {
                let range = spec.at(base);
                if !others(range) && claims.claim(range) {
                    wanted.insert((*id, bar, window), (range, spec));
                }
            }
        }
        wanted
    }
}

type Made = Vec<(Key, RegionId)>;

/// Unmaps what is gone and maps what is new.
fn carry_out(
    space: &mut AddressSpace,
    gone: &[(Key, RegionId)],
    new: &[(Key, (Range, &Window))],
) -> Result<(CommitReport, Made), Error> {
    let mut tx = space.begin();
    for (_, id) in gone {
        match tx.unmap(*id) {
            // Somebody else has unmapped it.
            Err(Error::StaleRegion { .. } | Error::UnknownRegion { .. }) | Ok(()) => {}
            Err(error) => return Err(error),
        }
    }
    let mut made = Made::with_capacity(new.len());
    for (key, (range, window)) in new {
        made.push((*key, map(&mut tx, *range, window)?));
    }
    Ok((tx.commit()?, made))
}

fn map(tx: &mut Transaction<'_>, range: Range, window: &Window) -> Result<RegionId, Error> {
    let extent = window.spec.extent;
    let mapping = Mapping { range, ..extent.mapping };
    let extent = kvm_memslots_shim::Extent { mapping, ..extent };
    let spec = RegionSpec { extent, ..window.spec.clone() };
    match &window.memory {
        Some(memory) => tx.map_owned(spec, memory.clone()),
        // SAFETY: whoever described the window promised it
        // (`BarSpec::window`).
        None => unsafe { tx.map(spec) },
    }
}
