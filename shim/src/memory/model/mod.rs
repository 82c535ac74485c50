//! An executable statement of KVM's memslot rules, in memory, with KVM's
//! errnos.
//!
//! [`Model`] is a VM's memslots without a VM: it takes what the memslot ioctls
//! take and answers as the kernel does, rule by rule and in the kernel's
//! order. It says what a guest would find at an address, counts the grace
//! periods that KVM would wait for, keeps dirty logs, and fails on demand. The
//! batch ioctl, which no released kernel has, it carries out as its ABI says.
//!
//! Each rule names the kernel function that it is from; `docs/reference/model.md` has the
//! list, what is left out, and how the model is held against real KVM.
//!
//! ```
//! use kvm_memslots_shim::memory::model::{GuestAccess, Model};
//! use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;
//! use kvm_memslots_shim::{Errno, Limits};
//!
//! let model = Model::new(Limits::x86());
//! let ram = kvm_userspace_memory_region2 {
//!     slot: 0,
//!     guest_phys_addr: 0x10_0000,
//!     memory_size: 0x4000,
//!     userspace_addr: 0x7f00_0000_0000,
//!     ..Default::default()
//! };
//! model.set_user_memory_region2(&ram)?;
//! assert_eq!(model.guest_at(0, 0x10_1008), GuestAccess::Ram { hva: 0x7f00_0000_1008 });
//! assert_eq!(model.counts().grace_periods, 1);
//!
//! let overlapping = kvm_userspace_memory_region2 { slot: 1, ..ram };
//! assert_eq!(model.set_user_memory_region2(&overlapping), Err(Errno::EEXIST));
//! # Ok::<(), Errno>(())
//! ```

mod apply;
mod batch;
mod bitmap;
mod check;
mod config;
mod counts;
mod dirty;
mod guest;
mod handle;
mod memfd;
mod one;
mod probe;
mod space;
mod vm;

pub use config::{DirtyTracking, ModelConfig};
pub use counts::{Call, Counts, Fault};
pub use guest::{GuestAccess, Piece};
pub use handle::Model;
