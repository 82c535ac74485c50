//! A VM's memory in one transaction.
//!
//! Every change of a KVM memslot waits for an SRCU grace period, a delete for
//! two. A VMM that sets up a VM, a device or a migration makes such changes in
//! bursts and waits each time. With this crate it describes the *regions* it
//! wants, commits them together, and pays for as few ioctls and grace periods
//! as its kernel allows: one batch ioctl where the kernel has
//! `KVM_SET_USER_MEMORY_REGIONS`, otherwise merged, cancelled and ordered
//! single calls.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use kvm_memslots::backend::Model;
//! use kvm_memslots::{AddressSpace, HolePolicy, Limits, RegionSpec};
//!
//! // `.open(&vm_fd)` on a real VM. No vCPU runs here: nobody can notice a slot
//! // that is replaced.
//! let mut space = AddressSpace::builder()
//!     .holes(HolePolicy::NoVcpuRuns)
//!     .open_on(Box::new(Model::new(Limits::x86())))?;
//!
//! let mut tx = space.begin();
//! let hva = 0x7f00_0000_0000;
//! // SAFETY: the model touches no memory.
//! let (low, high) = unsafe {
//!     (
//!         tx.map(RegionSpec::ram(0, 0xa_0000, hva).label("low"))?,
//!         tx.map(RegionSpec::ram(0xa_0000, 0x6_0000, hva + 0xa_0000).label("high"))?,
//!     )
//! };
//! let report = tx.commit()?;
//! assert_eq!((report.ioctls, report.grace_periods, report.regions_merged), (1, 1, 1));
//!
//! // That they share a slot never shows.
//! let mut tx = space.begin();
//! tx.unmap(high)?;
//! tx.commit()?;
//! assert_eq!(space.region(low)?.range.size, 0xa_0000);
//! # Ok(())
//! # }
//! ```
//!
//! Where a guest changes memory one register write at a time there is nothing
//! to commit together: see [`deferred`] and [`RomDevice`].
//!
//! # Words
//! A *region* is memory as the VMM thinks of it: RAM, a ROM, a BAR. A *memslot*
//! is what KVM has; regions and slots need not correspond. GPA, HVA and sizes
//! are in bytes and multiples of the page size.

mod adapters;
pub mod deferred;
pub mod device;
mod dirty;
mod error;
pub mod pci;
mod region;
mod report;
mod rom_device;
mod space;
mod transaction;

pub use dirty::DirtyBitmap;
pub use error::{Described, Error, Part};
pub use kvm_memslots_shim::backend;
pub use kvm_memslots_shim::exec::{GateError, VcpuGate};
pub use kvm_memslots_shim::{GuestMemfd, Kind, Limits, Mapping, MemFlags, Range, Slot};
pub use region::{HostMemory, Region, RegionId, RegionSpec};
pub use report::{CommitReport, Preview};
pub use rom_device::{RomDevice, RomMode};
pub use space::{AddressSpace, Builder, Executor, HolePolicy};
pub use transaction::Transaction;

#[cfg(feature = "kvm-ioctls")]
pub use adapters::kvm_ioctls::vm_fd;
#[cfg(feature = "vm-memory")]
pub use adapters::vm_memory::map_guest_memory;
