//! What a VMM does that uses `kvm-memslots`.

use kvm_memslots::{AddressSpace, Kind, MemFlags, RegionId, RegionSpec, Transaction};

use super::{Apply, Spent, StrategyError};
use crate::scenario::{Change, Name, Place, Step};

/// One transaction a step.
#[derive(Debug)]
pub struct Transactions {
    space: AddressSpace,
    hva: u64,
    /// By name.
    ids: Vec<Option<RegionId>>,
}

impl Transactions {
    /// For a scenario of `names` names in host memory at `hva`.
    ///
    /// # Safety
    /// The scenario's host memory is at `hva`, is as long as the scenario says,
    /// outlives the VM, and is the guest's to read and write.
    #[must_use]
    pub unsafe fn new(space: AddressSpace, hva: u64, names: usize) -> Self {
        Self { space, hva, ids: vec![None; names] }
    }

    /// The address space.
    #[must_use]
    pub const fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// The region of this name.
    #[must_use]
    pub fn id(&self, name: Name) -> Option<RegionId> {
        self.ids.get(name.index()).copied().flatten()
    }
}

impl Apply for Transactions {
    fn apply(&mut self, step: &Step) -> Result<Spent, StrategyError> {
        let mut tx = self.space.begin();
        for change in &step.changes {
            add(&mut tx, self.hva, &mut self.ids, change)?;
        }
        Ok(Spent::from(&tx.commit()?))
    }
}

fn add(
    tx: &mut Transaction<'_>,
    hva: u64,
    ids: &mut [Option<RegionId>],
    change: &Change,
) -> Result<(), StrategyError> {
    let wrong = || StrategyError::NoSuchRegion(*change);
    let id = |ids: &[Option<RegionId>], name: Name| ids.get(name.index()).copied().flatten();
    match *change {
        Change::Map(name, place) => {
            // SAFETY: whoever made the value promised it, for all regions of
            // the scenario.
            let new = unsafe { tx.map(spec(&place, hva)) };
            *ids.get_mut(name.index()).ok_or_else(wrong)? =
                Some(new.map_err(StrategyError::Library)?);
            Ok(())
        }
        Change::Unmap(name) => tx.unmap(id(ids, name).ok_or_else(wrong)?),
        Change::Resize(name, size) => {
            // SAFETY: as for `Map`.
            unsafe { tx.resize(id(ids, name).ok_or_else(wrong)?, size) }
        }
        Change::SetFlags(name, flags) => tx.set_flags(id(ids, name).ok_or_else(wrong)?, flags),
        Change::Split { name, offset, rest } => {
            let high = tx.split(id(ids, name).ok_or_else(wrong)?, offset);
            *ids.get_mut(rest.index()).ok_or_else(wrong)? =
                Some(high.map_err(StrategyError::Library)?);
            Ok(())
        }
    }
    .map_err(StrategyError::Library)
}

fn spec(place: &Place, hva: u64) -> RegionSpec {
    let Place { kind, gpa, size, offset, flags } = *place;
    let new = match kind {
        Kind::Ram => RegionSpec::ram,
        Kind::Rom => RegionSpec::rom,
        Kind::Device => RegionSpec::device,
    };
    let spec = new(gpa, size, hva + offset);
    let spec = if flags.contains(MemFlags::READONLY) { spec.read_only() } else { spec };
    if flags.contains(MemFlags::LOG_DIRTY_PAGES) { spec.log_dirty() } else { spec }
}
