//! The numbers of the ioctls that are made, from `linux/kvm.h`.
//!
//! 32 bits, as the kernel has them: `ioctl` takes an `unsigned int`.

use kvm_bindings::{
    kvm_clear_dirty_log, kvm_coalesced_mmio_zone, kvm_dirty_log, kvm_enable_cap, kvm_ioeventfd,
    kvm_irq_routing, kvm_irqfd,
};
use kvm_memslots_uapi::{KVMIO, kvm_userspace_memory_region, kvm_userspace_memory_region2};
use nix::{request_code_none, request_code_readwrite, request_code_write};

macro_rules! requests {
    ($($(#[$attribute:meta])* $name:ident = $value:expr;)*) => {
        $(
            $(#[$attribute])*
            #[doc = concat!("`", stringify!($name), "`.")]
            pub const $name: u32 = $value as u32;
        )*
    };
}

requests! {
    KVM_GET_API_VERSION = request_code_none!(KVMIO, 0x00);
    KVM_CREATE_VM = request_code_none!(KVMIO, 0x01);
    KVM_CHECK_EXTENSION = request_code_none!(KVMIO, 0x03);
    KVM_GET_DIRTY_LOG = request_code_write!(KVMIO, 0x42, size_of::<kvm_dirty_log>());
    KVM_SET_USER_MEMORY_REGION =
        request_code_write!(KVMIO, 0x46, size_of::<kvm_userspace_memory_region>());
    KVM_SET_USER_MEMORY_REGION2 =
        request_code_write!(KVMIO, 0x49, size_of::<kvm_userspace_memory_region2>());
    #[cfg(target_arch = "x86_64")]
    KVM_GET_IRQCHIP =
        request_code_readwrite!(KVMIO, 0x62, size_of::<kvm_bindings::kvm_irqchip>());
    KVM_REGISTER_COALESCED_MMIO =
        request_code_write!(KVMIO, 0x67, size_of::<kvm_coalesced_mmio_zone>());
    KVM_UNREGISTER_COALESCED_MMIO =
        request_code_write!(KVMIO, 0x68, size_of::<kvm_coalesced_mmio_zone>());
    KVM_SET_GSI_ROUTING = request_code_write!(KVMIO, 0x6a, size_of::<kvm_irq_routing>());
    KVM_IRQFD = request_code_write!(KVMIO, 0x76, size_of::<kvm_irqfd>());
    KVM_IOEVENTFD = request_code_write!(KVMIO, 0x79, size_of::<kvm_ioeventfd>());
    KVM_ENABLE_CAP = request_code_write!(KVMIO, 0xa3, size_of::<kvm_enable_cap>());
    KVM_CLEAR_DIRTY_LOG = request_code_readwrite!(KVMIO, 0xc0, size_of::<kvm_clear_dirty_log>());
    KVM_SET_USER_MEMORY_REGIONS = kvm_memslots_uapi::KVM_SET_USER_MEMORY_REGIONS;
}
