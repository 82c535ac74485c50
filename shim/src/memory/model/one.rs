//! The ioctls that change one memslot.

use kvm_memslots_uapi::{MemFlags, kvm_userspace_memory_region, kvm_userspace_memory_region2};

use super::check::{Change, begins_to_trap};
use super::counts::Call;
use super::vm::Vm;
use crate::errno::Errno;

impl Vm {
    /// `KVM_SET_USER_MEMORY_REGION`.
    pub(super) fn set_region(&mut self, region: &kvm_userspace_memory_region) -> Result<(), Errno> {
        let region = kvm_userspace_memory_region2 {
            slot: region.slot,
            flags: region.flags,
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
            ..Default::default()
        };
        self.set_v1(&region)
    }

    /// Whichever of the two a change takes.
    pub(super) fn change(&mut self, region: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        if region.flags & MemFlags::GUEST_MEMFD.bits() != 0 {
            self.set_region2(region)
        } else {
            self.set_v1(region)
        }
    }

    fn set_v1(&mut self, region: &kvm_userspace_memory_region2) -> Result<(), Errno> {
        let v1 = MemFlags::LOG_DIRTY_PAGES | MemFlags::READONLY | MemFlags::TRAP;
        let acceptable = region.flags & !v1.bits() == 0;
        self.set_one(region, if acceptable { Ok(()) } else { Err(Errno::EINVAL) })
    }

    /// `KVM_SET_USER_MEMORY_REGION2`.
    pub(super) fn set_region2(
        &mut self,
        region: &kvm_userspace_memory_region2,
    ) -> Result<(), Errno> {
        self.set_one(region, Ok(()))
    }

    fn set_one(
        &mut self,
        region: &kvm_userspace_memory_region2,
        precondition: Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.counts.ioctls += 1;
        let outcome = precondition
            .and_then(|()| self.faults.strike(Call::SetRegion).map_err(|(errno, _)| errno))
            .map_err(Into::into)
            .and_then(|()| self.check(region));
        match outcome {
            Ok(change) => {
                self.counts.grace_periods += change.grace_periods();
                if let Change::FlagsOnly { old, new } = &change {
                    self.flipped(begins_to_trap(old, new));
                }
                self.apply((region.slot >> 16) as u16, change);
                Ok(())
            }
            Err(refusal) => {
                self.counts.refused += 1;
                self.counts.grace_periods += refusal.grace_periods;
                Err(refusal.errno)
            }
        }
    }
}
