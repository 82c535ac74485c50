//! What a VMM does that uses `kvm-memslots`.

use std::sync::Arc;

use anyhow::Result;
use kvm_memslots::{Access, Backing, Changes, Kind, MemFlags, RegionId, RegionSpec, Vm, at};

use super::{Apply, Spent, no_such_region};
use crate::scenario::{Change, Name, Place, Scenario, Step};

/// One set of changes a step.
#[derive(Debug)]
pub struct Sets {
    vm: Arc<Vm>,
    hva: u64,
    /// Bytes of host memory.
    bytes: u64,
    /// By name.
    ids: Vec<Option<RegionId>>,
    /// Where in host memory they start.
    offsets: Vec<u64>,
}

impl Sets {
    /// For a scenario in host memory at `hva`.
    ///
    /// # Safety
    /// The scenario's host memory is at `hva`, is as long as the scenario says,
    /// outlives the VM, and is the guest's to read and write.
    #[must_use]
    pub unsafe fn new(vm: Arc<Vm>, hva: u64, scenario: &Scenario) -> Self {
        let (bytes, names) = (scenario.host_bytes, scenario.names);
        Self { vm, hva, bytes, ids: vec![None; names], offsets: vec![0; names] }
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The region of this name.
    #[must_use]
    pub fn id(&self, name: Name) -> Option<RegionId> {
        self.ids.get(name.index()).copied().flatten()
    }

    fn add(&mut self, changes: &mut Changes, change: &Change) -> Result<()> {
        let wrong = || no_such_region(change);
        let id = |this: &Self, name| this.id(name).ok_or_else(wrong);
        match *change {
            Change::Map(name, place) => {
                let new = changes.map(self.spec(&place));
                *self.ids.get_mut(name.index()).ok_or_else(wrong)? = Some(new);
                self.offsets[name.index()] = place.offset;
            }
            Change::Unmap(name) => changes.unmap(id(self, name)?),
            Change::Resize(name, size) => {
                let id = id(self, name)?;
                // What it had shrunk by is the guest's again.
                changes.replace(id, self.backing(self.offsets[name.index()]));
                changes.resize(id, size);
            }
            Change::SetFlags(name, flags) => {
                let id = id(self, name)?;
                changes.set_log_dirty(id, flags.contains(MemFlags::LOG_DIRTY_PAGES));
            }
            Change::Split { name, offset, rest } => {
                let high = changes.split(id(self, name)?, offset);
                let low = self.offsets[name.index()];
                *self.offsets.get_mut(rest.index()).ok_or_else(wrong)? = low + offset;
                *self.ids.get_mut(rest.index()).ok_or_else(wrong)? = Some(high);
            }
        }
        Ok(())
    }

    /// All of the scenario's memory from `offset` on: a region may grow.
    fn backing(&self, offset: u64) -> Backing {
        let (hva, len) = (self.hva + offset, self.bytes - offset);
        // SAFETY: whoever made this value promised it.
        unsafe { Backing::borrowed(hva, len, Access::ReadWrite) }
    }

    fn spec(&self, place: &Place) -> RegionSpec {
        let Place { kind, gpa, size, offset, flags, stays } = *place;
        let new = match kind {
            Kind::Ram => RegionSpec::ram,
            Kind::Rom => RegionSpec::rom,
            Kind::Device => RegionSpec::device,
        };
        let spec = new(at(gpa, size), self.backing(offset));
        let spec = if flags.contains(MemFlags::READONLY) { spec.read_only() } else { spec };
        let spec = if stays { spec.permanent() } else { spec };
        if flags.contains(MemFlags::LOG_DIRTY_PAGES) { spec.log_dirty() } else { spec }
    }
}

impl Apply for Sets {
    fn apply(&mut self, step: &Step) -> Result<Spent> {
        let mut changes = Changes::new();
        for change in &step.changes {
            self.add(&mut changes, change)?;
        }
        Ok(Spent::from(&self.vm.apply(changes)?))
    }
}
