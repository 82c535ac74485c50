//! Which system calls the operations of a [`Vm`](crate::Vm) make: for seccomp
//! filters.
//!
//! A filter lets through the lists of the operations that its thread calls, and
//! [`RUNTIME`] with each. No operation makes a thread, and what a callback does
//! (a gate, an observer) is the VMM's. A list has what any kernel and any VM takes;
//! what only some do is said there.
//!
//! ```
//! use kvm_memslots::seccomp::{APPLY, RUNTIME};
//!
//! // What a filter needs: the number, and of an ioctl the request.
//! for call in APPLY.iter().chain(RUNTIME) {
//!     println!("{} {} {:x?}", call.name, call.number, call.request);
//! }
//! ```

#[cfg(target_arch = "x86_64")]
use libc::SYS_readlink;
#[cfg(not(target_arch = "x86_64"))]
use libc::SYS_readlinkat as SYS_readlink;
use libc::{
    SYS_brk, SYS_clock_gettime, SYS_close, SYS_eventfd2, SYS_fcntl, SYS_fstat, SYS_fstatfs,
    SYS_futex, SYS_getpid, SYS_getrandom, SYS_ioctl, SYS_kcmp, SYS_madvise, SYS_mmap, SYS_mprotect,
    SYS_mremap, SYS_msync, SYS_munmap, SYS_newfstatat, SYS_openat, SYS_process_vm_readv,
    SYS_process_vm_writev, SYS_sched_getaffinity, SYS_sched_yield,
};

#[cfg(target_arch = "x86_64")]
use kvm_memslots_shim::kvm::requests::KVM_GET_IRQCHIP;
use kvm_memslots_shim::kvm::requests::{
    KVM_CHECK_EXTENSION, KVM_CLEAR_DIRTY_LOG, KVM_CREATE_VM, KVM_ENABLE_CAP, KVM_GET_API_VERSION,
    KVM_GET_DIRTY_LOG, KVM_IOEVENTFD, KVM_IRQFD, KVM_REGISTER_COALESCED_MMIO, KVM_SET_GSI_ROUTING,
    KVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION2, KVM_SET_USER_MEMORY_REGIONS,
    KVM_UNREGISTER_COALESCED_MMIO,
};

/// A system call; of `ioctl` one request, its second argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call {
    /// Its name as `libc` has it, or that of the request. `SYS_readlink` is
    /// `SYS_readlinkat` where there is only that.
    pub name: &'static str,
    /// Its number on this architecture.
    pub number: i64,
    /// The low 32 bits of the second argument, where that has to be so. (musl's
    /// `ioctl` takes an `int`, and so the upper half of those whose bit 31 is set
    /// is all ones there.)
    pub request: Option<u32>,
}

macro_rules! calls {
    ($($name:ident),* $(; $($request:ident),*)?) => {
        &[
            $(Call {
                name: stringify!($name),
                number: $name as i64,
                request: None,
            },)*
            $($(Call {
                name: stringify!($request),
                number: SYS_ioctl as i64,
                request: Some($request),
            },)*)?
        ]
    };
}

/// What allocators, locks, hash tables and the clock take, in every operation.
///
/// The clock is read without a system call where there is a vDSO. A new thread's
/// first allocation has glibc count the processors: `sched_getaffinity`, or from
/// glibc 2.39 on a read of `/sys/devices/system/cpu/online`, which may fail.
pub const RUNTIME: &[Call] = calls![
    SYS_brk,
    SYS_clock_gettime,
    SYS_futex,
    SYS_getrandom,
    SYS_madvise,
    SYS_mmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_munmap,
    SYS_sched_getaffinity,
    SYS_sched_yield
];

/// [`Builder::open`](crate::Builder::open) on KVM.
///
/// `kcmp` is made where the process has another VM open, and may fail: then two
/// [`Vm`](crate::Vm)s of one VM are not told. `eventfd2` and `KVM_IRQFD` probe for
/// `KVM_IRQFD_FLAG_NO_IRQBYPASS`, and `KVM_SET_USER_MEMORY_REGIONS` without
/// entries for that ioctl, where the kernel claims them. `readlink` (where
/// there is only that: `readlinkat`) names what is no VM in the error, and may
/// fail.
pub const OPEN: &[Call] = calls![
    SYS_close,
    SYS_eventfd2,
    SYS_fcntl,
    SYS_getpid,
    SYS_kcmp,
    SYS_readlink;
    KVM_CHECK_EXTENSION,
    KVM_GET_API_VERSION,
    KVM_IRQFD,
    KVM_SET_USER_MEMORY_REGIONS
];

/// What [`Builder::order_check`](crate::Builder::order_check), which is on unless
/// switched off, adds to [`OPEN`] where a subscriber of `tracing`, or a logger of `log`,
/// hears warnings.
#[cfg(target_arch = "x86_64")]
pub const ORDER_CHECK: &[Call] = calls![; KVM_GET_IRQCHIP];

/// What [`Builder::order_check`](crate::Builder::order_check) adds to [`OPEN`]:
/// nothing on this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub const ORDER_CHECK: &[Call] = &[];

/// What [`Builder::disable_slot_zap_all`](crate::Builder::disable_slot_zap_all)
/// adds to [`OPEN`].
pub const SLOT_ZAP_ALL: &[Call] = calls![; KVM_CHECK_EXTENSION, KVM_ENABLE_CAP];

/// What a [`Window`](crate::window::Window) makes, from when it is made to when
/// it is dropped, and a [`CheckedFile`](crate::window::CheckedFile); what
/// [`PciBars`](crate::pci::PciBars) with windows, and a
/// [device](crate::device::Device::in_window) with memory in one, add to [`APPLY`].
/// It makes no ioctl.
pub const WINDOW: &[Call] = calls![
    SYS_close,
    SYS_fcntl,
    SYS_fstat,
    SYS_fstatfs,
    SYS_madvise,
    SYS_mmap,
    SYS_mremap,
    SYS_msync,
    SYS_munmap,
    SYS_newfstatat
];

/// [`twins::find`](crate::twins::find).
pub const TWINS: &[Call] = calls![SYS_getpid, SYS_kcmp];

/// What [`Vm::coalesced_ring`](crate::Vm::coalesced_ring) makes, until it is
/// dropped. Reading it makes none.
pub const RING: &[Call] = calls![SYS_fstat, SYS_mmap, SYS_munmap, SYS_newfstatat];

/// What [`Builder::allow_scratch_vm`](crate::Builder::allow_scratch_vm) adds to
/// [`OPEN`], on kernels that claim `KVM_CAP_MEM_TRAP`.
pub const SCRATCH_VM: &[Call] = calls![
    SYS_close,
    SYS_openat;
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VM,
    KVM_SET_USER_MEMORY_REGION
];

/// [`Vm::apply`](crate::Vm::apply), [`preview`](crate::Vm::preview), which has the
/// batch ioctl try, and what applies changes by itself
/// ([`close`](crate::Vm::close), [`promote`](crate::Vm::promote),
/// [`RomDevice`](crate::RomDevice), [`PciBars`](crate::pci::PciBars)).
///
/// Memory of changes is `KVM_SET_USER_MEMORY_REGIONS` where the kernel has it;
/// else `KVM_SET_USER_MEMORY_REGION`, or its second version for regions with a
/// `guest_memfd`. `KVM_GET_DIRTY_LOG` is for logged regions that go or change.
/// `process_vm_readv` of a byte of its own finds out, with the first
/// [deferrable](crate::RegionSpec::deferrable) region whose memory may fault, whether
/// that can be served, and may fail. The others are for devices.
pub const APPLY: &[Call] = calls![
    SYS_process_vm_readv;
    KVM_GET_DIRTY_LOG,
    KVM_IOEVENTFD,
    KVM_IRQFD,
    KVM_REGISTER_COALESCED_MMIO,
    KVM_SET_GSI_ROUTING,
    KVM_SET_USER_MEMORY_REGION,
    KVM_SET_USER_MEMORY_REGION2,
    KVM_SET_USER_MEMORY_REGIONS,
    KVM_UNREGISTER_COALESCED_MMIO
];

/// [`Vm::dirty_log`](crate::Vm::dirty_log) and its kin;
/// `KVM_CLEAR_DIRTY_LOG` for
/// [`clear_dirty_log`](crate::Vm::clear_dirty_log) alone.
pub const DIRTY_LOG: &[Call] = calls![; KVM_CLEAR_DIRTY_LOG, KVM_GET_DIRTY_LOG];

/// [`Deferred`](crate::deferred::Deferred): both are made for memory that may
/// fault only.
pub const SERVE: &[Call] = calls![SYS_process_vm_readv, SYS_process_vm_writev];

/// Dropping a [`Vm`](crate::Vm), beside [`APPLY`] where regions own their memory.
/// What that memory's own drop does is the VMM's.
///
/// `fcntl` is the standard library's, where debug assertions are on.
pub const DROP: &[Call] = calls![SYS_close, SYS_fcntl];
