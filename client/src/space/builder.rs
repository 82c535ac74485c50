//! Options of an address space.

use std::fmt;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::Arc;

use kvm_memslots_shim::SlotIds;
use kvm_memslots_shim::backend::{Kvm, Memslots};
use kvm_memslots_shim::exec::{Holes, How, VcpuGate};
use kvm_memslots_shim::uapi::probe::{Support, TrapSupport};

use super::{AddressSpace, RegionTable, SlotTable};
use crate::Error;
use crate::deferred::{Deferral, DeferredMaps};
use crate::dirty::Overlay;

/// How commits are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Executor {
    /// The batch ioctl where the kernel has it, single calls elsewhere.
    #[default]
    Auto,
    /// `KVM_SET_USER_MEMORY_REGIONS`.
    Batch,
    /// One `KVM_SET_USER_MEMORY_REGION` a change.
    PerRegion,
}

/// What to do about a commit that, made call by call, would unmap guest pages
/// for a moment that are mapped before and after.
///
/// A batch ioctl has no such moment, and neither have commits that only add,
/// grow or remove regions, or change dirty logging.
#[derive(Clone, Default)]
pub enum HolePolicy {
    /// Refuse it with [`Error::Hole`].
    #[default]
    Refuse,
    /// No vCPU runs during commits, so nobody can notice. Regions whose slots
    /// are replaced while they are logged are reported all dirty.
    NoVcpuRuns,
    /// Pause vCPUs.
    Gate(Arc<dyn VcpuGate>),
}

impl HolePolicy {
    pub(super) fn as_holes(&self) -> Holes<'_> {
        match self {
            Self::Refuse => Holes::Refuse,
            Self::NoVcpuRuns => Holes::NoVcpuRuns,
            Self::Gate(gate) => Holes::Gate(&**gate),
        }
    }
}

impl fmt::Debug for HolePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_holes().fmt(f)
    }
}

/// Options of an [`AddressSpace`].
///
/// ```no_run
/// # fn f(vm: std::os::fd::BorrowedFd<'_>) -> Result<(), kvm_memslots::Error> {
/// use kvm_memslots::{AddressSpace, HolePolicy};
///
/// let space = AddressSpace::builder()
///     .reserve_slots(0..=3)
///     .holes(HolePolicy::NoVcpuRuns)
///     .open(vm)?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Builder {
    as_id: u16,
    executor: Executor,
    holes: HolePolicy,
    reserved: Vec<RangeInclusive<u16>>,
    manual_dirty_log: bool,
    deferral: Deferral,
}

impl Builder {
    /// Which address space of the VM: 0, or 1 for SMM on x86.
    pub fn address_space(mut self, as_id: u16) -> Self {
        self.as_id = as_id;
        self
    }

    /// How commits are carried out; [`Executor::Auto`] unless said otherwise.
    pub fn executor(mut self, executor: Executor) -> Self {
        self.executor = executor;
        self
    }

    /// What to do about plans that open a hole; [`HolePolicy::Refuse`] unless
    /// said otherwise.
    pub fn holes(mut self, policy: HolePolicy) -> Self {
        self.holes = policy;
        self
    }

    /// Slot ids that the VMM uses itself in this address space: they are not
    /// given out, and not counted as available.
    ///
    /// KVM takes a call with an id in use as a change of that slot, so an id
    /// that is used on both sides destroys the other's slot.
    pub fn reserve_slots(mut self, ids: RangeInclusive<u16>) -> Self {
        self.reserved.push(ids);
        self
    }

    /// The VMM enabled `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` on the VM: reading a
    /// dirty log leaves it as it is until
    /// [`AddressSpace::clear_dirty_log`].
    pub fn manual_dirty_log(mut self, manual: bool) -> Self {
        self.manual_dirty_log = manual;
        self
    }

    /// When deferrable regions are mapped ([`RegionSpec::deferrable`]).
    ///
    /// [`RegionSpec::deferrable`]: crate::RegionSpec::deferrable
    pub fn deferral(mut self, deferral: Deferral) -> Self {
        self.deferral = deferral;
        self
    }

    /// Opens the address space on the VM behind `vm`, which is duplicated.
    ///
    /// # Errors
    /// [`Error::Open`] where `vm` is no VM; [`Error::NoSuchAddressSpace`];
    /// [`Error::NoBatchIoctl`] or [`Error::ImpostorBatchIoctl`] where that was
    /// asked for.
    pub fn open(self, vm: impl AsFd) -> Result<AddressSpace, Error> {
        let kvm = Kvm::open(vm)?;
        if let Support::Impostor { claimed, mismatch } = kvm.support() {
            tracing::warn!(claimed, %mismatch, "not the batch ioctl, done without");
            if self.executor == Executor::Batch {
                return Err(Error::ImpostorBatchIoctl { claimed, mismatch });
            }
        }
        if let TrapSupport::Impostor { claimed, mismatch } = kvm.trap_support() {
            tracing::warn!(claimed, %mismatch, "not the trap flag, done without");
        }
        self.open_on(Box::new(kvm))
    }

    /// Opens the address space on a backend: the model of KVM, or one of the
    /// VMM's own.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(self, backend: Box<dyn Memslots>) -> Result<AddressSpace, Error> {
        let limits = backend.limits();
        if self.as_id >= limits.address_spaces {
            return Err(Error::NoSuchAddressSpace {
                asked: self.as_id,
                available: limits.address_spaces,
            });
        }
        let how = match (self.executor, limits.batch) {
            (Executor::PerRegion, _) | (Executor::Auto, None) => How::PerRegion,
            (_, Some(max_entries)) => How::Batch { max_entries },
            (Executor::Batch, None) => return Err(Error::NoBatchIoctl),
        };
        let mut ids = SlotIds::new(limits.slots);
        for reserved in self.reserved {
            ids.reserve(reserved);
        }
        tracing::debug!(as_id = self.as_id, backend = backend.name(), ?limits, ?how, "open");
        Ok(AddressSpace {
            backend,
            limits,
            as_id: self.as_id,
            how,
            holes: self.holes,
            manual_dirty_log: self.manual_dirty_log,
            regions: RegionTable::new(),
            slots: SlotTable::default(),
            ids,
            overlay: Overlay::default(),
            scratch: Vec::new(),
            unsettled: false,
            limbo: Vec::new(),
            deferred: DeferredMaps::new(&self.deferral),
        })
    }
}
