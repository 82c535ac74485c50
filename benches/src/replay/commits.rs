//! A commit for each burst.

use std::collections::HashMap;

use kvm_memslots::{Access, Backing, Changes, Error, MemFlags, RegionId, RegionSpec, Vm, at};
use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;

use super::{Make, Refused, Spent};
use crate::trace::Call;

/// Makes the calls of a burst as one set of changes of `kvm-memslots`. A slot of
/// the trace is a region; what it is to the VM, a trace does not say: read-only
/// slots are ROM, all others RAM.
#[derive(Debug)]
pub struct Commits {
    vm: Vm,
    /// By address space and slot of the trace.
    regions: HashMap<u32, (RegionId, kvm_userspace_memory_region2)>,
}

impl Commits {
    /// On a VM.
    ///
    /// # Safety
    /// The host memory of all calls is the guest's, as
    /// [`Backing::borrowed`](kvm_memslots::Backing::borrowed) says, until the VM
    /// is gone.
    #[must_use]
    pub unsafe fn new(vm: Vm) -> Self {
        Self { vm, regions: HashMap::new() }
    }

    /// The VM.
    #[must_use]
    pub const fn vm(&self) -> &Vm {
        &self.vm
    }

    fn commit(&mut self, calls: &[Call]) -> Result<Spent, Error> {
        let mut changes = Changes::new();
        for call in calls {
            let new = call.region;
            let flags = MemFlags::from_bits_truncate(new.flags);
            let old = self.regions.remove(&call.id());
            let id = match old {
                Some((id, old)) if !call.deletes() && is_same_memory(&old, &new) => {
                    changes.set_log_dirty(id, flags.contains(MemFlags::LOG_DIRTY_PAGES));
                    id
                }
                old => {
                    if let Some((id, _)) = old {
                        changes.unmap(id);
                    }
                    if call.deletes() {
                        continue;
                    }
                    changes.map(spec(call, flags))
                }
            };
            self.regions.insert(call.id(), (id, new));
        }
        let report = self.vm.apply(changes)?;
        Ok(Spent::calls(report.ioctls, report.grace_periods))
    }
}

/// Whether the two differ in nothing but what KVM changes on a live slot.
fn is_same_memory(old: &kvm_userspace_memory_region2, new: &kvm_userspace_memory_region2) -> bool {
    let fixed = |region: &kvm_userspace_memory_region2| {
        let read_only = region.flags & MemFlags::READONLY.bits();
        (region.guest_phys_addr, region.memory_size, region.userspace_addr, read_only)
    };
    fixed(old) == fixed(new)
}

fn spec(call: &Call, flags: MemFlags) -> RegionSpec {
    let region = &call.region;
    let (gpa, size, hva) = (region.guest_phys_addr, region.memory_size, region.userspace_addr);
    // SAFETY: whoever made the value promised it, for all calls.
    let backing = unsafe { Backing::borrowed(hva, size, Access::ReadWrite) };
    let read_only = flags.contains(MemFlags::READONLY);
    let new = if read_only { RegionSpec::rom } else { RegionSpec::ram };
    let spec = new(at(gpa, size), backing).address_space(call.as_id());
    if flags.contains(MemFlags::LOG_DIRTY_PAGES) { spec.log_dirty() } else { spec }
}

impl Make for Commits {
    fn burst(&mut self, calls: &[Call]) -> Result<Spent, Refused> {
        let line = calls.last().map_or(0, |call| call.line);
        self.commit(calls).map_err(|error| Refused { line, why: error.to_string() })
    }
}
