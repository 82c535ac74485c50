//! Deferred maps: a slot is made when it has earned what it costs.
//!
//! A map is an optimisation. Until it is there, the guest's access exits as
//! MMIO, and the VMM can serve it from the same memory. Where a guest has its
//! devices map and unmap memory again and again (flash that is programmed, BARs
//! that are sized and moved) most maps are gone before anybody has used them.
//!
//! 1. A region is mapped with [`deferrable`](crate::RegionSpec::deferrable): committing that costs
//!    no call.
//! 2. Each vCPU thread has a [`Deferred`], from [`Vm::deferred`](crate::Vm::deferred), and
//!    hands every MMIO exit to [`Deferred::read`] or [`Deferred::write`] first.
//! 3. Where the answer says that a map is [`due`](Served::due), the VMM calls
//!    [`Vm::promote_due`](crate::Vm::promote_due): one set of changes, with all regions that wait.
//! 4. On an exit for an access that KVM could not decode it calls
//!    [`Vm::undecoded`](crate::Vm::undecoded), and runs the vCPU again if that says so.
//!
//! An unmap is never deferred. When one has been applied, no thread serves
//! an access from the region's memory any more.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # #[cfg(feature = "model")] {
//! use kvm_memslots::deferred::{Deferral, Policy};
//! use kvm_memslots::{Access, Backing, Changes, RegionSpec, Vm, at};
//! # use std::sync::Arc;
//! # use kvm_memslots::{Limits, backend::{EventModel, Irqchip, MemoryModel}};
//! # let memory = Arc::new(MemoryModel::new(Limits::x86()));
//! # let events = Arc::new(EventModel::new(Irqchip::Split));
//!
//! let vm = Vm::builder()
//!     .deferral(Deferral::default().policy(Policy::Fixed { exits: 2 }))
//!     .open_on(memory, events)?;
//! // One page of memory that is mapped twice here: in this process.
//! #[repr(align(4096))]
//! struct Page([u8; 4096]);
//! let memory = Box::leak(Box::new(Page([0x5a; 4096])));
//! let hva = memory.0.as_mut_ptr().expose_provenance() as u64;
//! // SAFETY: the page is leaked, and nothing else refers to it.
//! let page = unsafe { Backing::borrowed(hva, 0x1000, Access::ReadWrite) };
//!
//! let mut c = Changes::new();
//! let bar = c.map(RegionSpec::device(at(0xf000_0000, 0x1000), page).deferrable());
//! assert_eq!(vm.apply(c)?.ioctls, 0);
//!
//! // KVM_EXIT_MMIO, a read of four bytes.
//! let exits = vm.deferred(0)?;
//! let mut data = [0; 4];
//! let served = exits.read(0xf000_0010, &mut data, |gpa, _| panic!("no device at {gpa:#x}"));
//! assert_eq!((served.bytes, data), (4, [0x5a; 4]));
//! // The next one is enough.
//! assert!(exits.write(0xf000_0010, &[1, 2], |_, _| {}).due);
//! assert_eq!(vm.promote_due()?.map(|report| report.ioctls), Some(1));
//! assert!(!vm.region(bar)?.deferred);
//! # }
//! # Ok(())
//! # }
//! ```
//!
//! # What can't be deferred
//! - **Memory that may be executed from.** KVM can't have an instruction fetch
//!   served: it reports an internal error or injects a fault, and the guest is
//!   lost. Nothing in this crate can tell: a VMM defers what it knows to be
//!   data, or what has [shown](policy::Churn) that it is.
//! - **Accesses that KVM does not decode.** On arm64, those without a valid
//!   syndrome (pairs, SIMD, writeback) are `KVM_EXIT_ARM_NISV` where the VM has
//!   `KVM_CAP_ARM_NISV_TO_USER`, else `KVM_RUN` fails with `ENOSYS`. On x86 the
//!   emulator lacks many instructions: `KVM_EXIT_INTERNAL_ERROR` with
//!   `KVM_INTERNAL_ERROR_EMULATION`, for which the VM needs
//!   `KVM_CAP_EXIT_ON_EMULATION_FAILURE`: without that, KVM has an invalid
//!   opcode wait for the guest by then. All of them are retried by running the
//!   vCPU again, once the memory is there.
//! - **Atomic instructions** of the guest are carried out as a read and a write.
//!   Memory that several vCPUs synchronise through is not deferrable.
//!
//! # Costs
//! What a slot costs is measured from the VM's own changes; what an
//! exit costs, by each [`Deferred`]: it takes the shortest time from one answer
//! to the next exit, which is the whole round trip and little of the guest.
//! Both start from [`Costs::UNMEASURED`]; a VMM that has measured itself says
//! so with [`Deferral::costs`].
//!

mod access;
mod exits;
mod life;
mod maps;
pub mod policy;
mod serving;
mod table;

pub use exits::{Deferred, Part, Served};
pub use policy::{Costs, Policy};

pub(crate) use life::Life;
pub(crate) use maps::{DeferredMaps, Shown};
pub(crate) use serving::Serving;

/// What to do after an access that KVM could not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Retry {
    /// Run the vCPU again: there is memory now where there may have been none.
    Reenter,
    /// No deferred region was in the way: the VMM's to deal with.
    NotDeferred,
}

/// When deferrable regions are mapped, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub struct Deferral {
    pub(crate) policy: Policy,
    pub(crate) costs: Option<Costs>,
    pub(crate) only_due: bool,
}

impl Deferral {
    /// When one is mapped; [`Policy::RentOrBuy`] unless said otherwise.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// What things cost, for a VMM that has measured it. Nothing is measured
    /// then.
    pub fn costs(mut self, costs: Costs) -> Self {
        self.costs = Some(costs);
        self
    }

    /// Regions are mapped one by one, each when it is due itself. Otherwise all
    /// that wait are mapped along with the first one that is.
    ///
    /// Together is right where one call maps them all: with the batch ioctl, or
    /// where they follow each other in guest and host. Call by call, a region
    /// that comes along costs what it would alone, and with many that the guest
    /// hardly touches that may be more than twice the best choice.
    pub fn only_due(mut self) -> Self {
        self.only_due = true;
        self
    }
}
