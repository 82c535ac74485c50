//! A VM's memory and devices, changed in sets.
//!
//! Every change of a KVM memslot waits for an SRCU grace period, a delete for
//! two. A VMM that sets up a VM, a device or a migration makes such changes in
//! bursts and waits each time. With this crate it describes what it wants as
//! [`Changes`], a value that borrows nothing, and has a [`Vm`] apply it: all or
//! nothing, with as few system calls and grace periods as its kernel allows.
//! That is one batch ioctl where the kernel has `KVM_SET_USER_MEMORY_REGIONS`,
//! else single calls, cancelled and ordered. What a loop of ioctls can do, it
//! does at the same cost or less, whatever the order of calls.
//!
//! - [`Vm`]: the address spaces of a VM and its devices; shared, `&self`.
//! - [`Changes`]: what is to be mapped ([`RegionSpec`]), unmapped, changed, moved;
//!   [devices](device) with their ioeventfds and interrupts.
//! - [`Backing`]: host memory behind guest memory, and the one safety contract.
//! - [`window::Window`]: memory that comes and goes without KVM.
//! - [`HolePolicy`], [`VcpuGate`]: what may be unmapped for a moment.
//! - [`Observer`]: who else follows the layout (VFIO, vhost).
//! - [`deferred`], [`RomDevice`], [`pci`]: for guests that change memory one
//!   register write at a time.
//! - [`seccomp`]: the system calls of all that.
//!
//! Which of them is for what, and what it costs, is one table in
//! `docs/guide/mechanisms.md`.
//!
//! What happens is told through `tracing`: warnings, and what each set came to
//! (debug). Without a subscriber it goes to `log`, whose level costs a load to look at.
//!
//! # Words
//! A *region* is memory as the VMM thinks of it: RAM, a ROM, a BAR. A *memslot*
//! is what KVM has; regions and slots need not correspond. GPA, HVA and sizes
//! are in bytes and multiples of the page size. A *hole* is a moment in which
//! guest pages that are mapped before and after a change are not mapped.

mod adapters;
mod backing;
mod by_gpa;
mod by_id;
mod changes;
pub mod deferred;
pub mod device;
mod dirty;
mod error;
mod event;
mod fork;
mod gate;
mod id;
mod observer;
pub mod pci;
mod region;
mod report;
mod ring;
mod rom_device;
pub mod seccomp;
mod trigger;
pub mod twins;
mod vm;
pub mod window;

pub use backing::{Access, Backing, FileRange, HostMemory};
pub use changes::Changes;
pub use dirty::{DirtyBitmap, DirtyPages};
pub use error::{Described, Error, ErrorKind, Part};
pub use gate::{GateError, HolePolicy, VcpuGate};
pub use kvm_memslots_shim::{Errno, GuestMemfd, Kind, Limits, Mapping, MemFlags, Range, Slot};
pub use observer::Observer;
pub use region::{Region, RegionId, RegionSpec, Span, at};
pub use report::{Executor, Preview, Report};
pub use ring::CoalescedRing;
pub use rom_device::{RomDevice, RomMode};
pub use vm::{Builder, SlotUsage, Vm};

/// Who answers a [`Vm`]'s calls: KVM, its models (feature `model`), or something
/// of the VMM's own.
pub mod backend {
    #[cfg(feature = "model")]
    pub use kvm_memslots_shim::Yes;
    #[cfg(feature = "model")]
    pub use kvm_memslots_shim::events::model::{Irqchip, Model as EventModel};
    pub use kvm_memslots_shim::events::{
        Cost as EventCost, EventCalls, EventLimits, Op as EventOp, Part as EventPart,
        State as EventState, ZoneLimits,
    };
    #[cfg(feature = "model")]
    pub use kvm_memslots_shim::memory::model::Model as MemoryModel;
    pub use kvm_memslots_shim::memory::{BatchRefusal, MemoryCalls, Op};
    pub use kvm_memslots_shim::{Kvm, KvmOptions, OpenError};

    /// The models of KVM themselves: faults to inject, calls counted, what the
    /// guest would see.
    #[cfg(feature = "model")]
    pub mod model {
        pub use kvm_memslots_shim::events::model as events;
        pub use kvm_memslots_shim::memory::model as memory;
    }
}

#[cfg(feature = "kvm-ioctls")]
pub use adapters::kvm_ioctls::vm_fd;
