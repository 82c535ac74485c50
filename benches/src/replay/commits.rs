//! A commit for each burst.

use std::collections::HashMap;

use kvm_memslots::backend::Memslots;
use kvm_memslots::{AddressSpace, Error, Executor, HolePolicy, MemFlags, RegionId, RegionSpec};
use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;

use super::{Make, Refused, Spent};
use crate::trace::Call;

/// Makes the calls of a burst as one transaction of `kvm-memslots`. A slot of
/// the trace is a region; what it is to the VM, a trace does not say: read-only
/// slots are ROM, all others RAM.
#[derive(Debug)]
pub struct Commits {
    spaces: HashMap<u16, AddressSpace>,
    /// By address space and slot of the trace.
    regions: HashMap<u32, (RegionId, kvm_userspace_memory_region2)>,
}

impl Commits {
    /// For one VM: who takes the calls of each of its address spaces.
    ///
    /// # Errors
    /// Those of [`open_on`](kvm_memslots::Builder::open_on).
    ///
    /// # Safety
    /// The host memory of all calls is the guest's, as
    /// [`map`](kvm_memslots::Transaction::map) says, until the VM is gone.
    pub unsafe fn new(
        spaces: impl IntoIterator<Item = (u16, Box<dyn Memslots>)>,
        executor: Executor,
    ) -> Result<Self, Error> {
        let open = |(as_id, slots)| {
            let builder = AddressSpace::builder().address_space(as_id).executor(executor);
            Ok((as_id, builder.holes(HolePolicy::NoVcpuRuns).open_on(slots)?))
        };
        let spaces: Result<_, Error> = spaces.into_iter().map(open).collect();
        Ok(Self { spaces: spaces?, regions: HashMap::new() })
    }

    /// The address space with this id.
    #[must_use]
    pub fn space(&self, as_id: u16) -> Option<&AddressSpace> {
        self.spaces.get(&as_id)
    }

    fn commit(&mut self, calls: &[Call]) -> Result<Spent, Error> {
        let Some(first) = calls.first() else { return Ok(Spent::default()) };
        let as_id = first.as_id();
        let Some(space) = self.spaces.get_mut(&as_id) else {
            return Err(Error::NoSuchAddressSpace { asked: as_id, available: 0 });
        };
        let mut tx = space.begin();
        for call in calls {
            let new = call.region;
            let flags = MemFlags::from_bits_truncate(new.flags);
            let old = self.regions.remove(&call.id());
            let id = match old {
                Some((id, old)) if !call.deletes() && is_same_memory(&old, &new) => {
                    tx.set_flags(id, flags)?;
                    id
                }
                old => {
                    old.map_or(Ok(()), |(id, _)| tx.unmap(id))?;
                    if call.deletes() {
                        continue;
                    }
                    // SAFETY: whoever made this value promised it, for all
                    // calls.
                    unsafe { tx.map(spec(&new, flags)) }?
                }
            };
            self.regions.insert(call.id(), (id, new));
        }
        let report = tx.commit()?;
        Ok(Spent { calls: report.ioctls, flips: 0, grace_periods: report.grace_periods })
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

fn spec(region: &kvm_userspace_memory_region2, flags: MemFlags) -> RegionSpec {
    let (gpa, size, hva) = (region.guest_phys_addr, region.memory_size, region.userspace_addr);
    let spec = if flags.contains(MemFlags::READONLY) {
        RegionSpec::rom(gpa, size, hva)
    } else {
        RegionSpec::ram(gpa, size, hva)
    };
    if flags.contains(MemFlags::LOG_DIRTY_PAGES) { spec.log_dirty() } else { spec }
}

impl Make for Commits {
    fn burst(&mut self, calls: &[Call]) -> Result<Spent, Refused> {
        let line = calls.last().map_or(0, |call| call.line);
        self.commit(calls).map_err(|error| Refused { line, why: error.to_string() })
    }
}
