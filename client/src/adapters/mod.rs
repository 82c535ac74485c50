//! Other crates' VMs and memory.

#[cfg(feature = "kvm-ioctls")]
pub(crate) mod kvm_ioctls;
#[cfg(feature = "vm-memory")]
pub(crate) mod vm_memory;
