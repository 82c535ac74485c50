//! The VM.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_memslots_uapi::irqfd::NoIrqBypass;
use kvm_memslots_uapi::probe::{Support, TrapSupport};

use super::allowed::Allowed;
use super::calls::VmCalls;
use super::error::OpenError;
use super::open;
use super::scratch::Scratch;

/// A real VM: its memslots ([`MemoryCalls`](crate::memory::MemoryCalls)) and its
/// events ([`EventCalls`](crate::events::EventCalls)).
///
/// Works beside whatever else holds the VM's file descriptor: the descriptor
/// is duplicated. A method makes the ioctl that it is named after, again up to 64
/// times where a signal interrupts it (`EINTR`), and no other system call; but
/// the first dirty log, and one of a larger slot than any before, maps memory.
///
/// ```
/// use std::os::fd::{AsRawFd, BorrowedFd};
///
/// use kvm_memslots_shim::memory::{MemoryCalls, Op};
/// use kvm_memslots_shim::{Errno, Kind, Kvm, KvmOptions, Mapping, Range, Slot};
///
/// # let has_kvm = std::path::Path::new("/dev/kvm").exists();
/// # if !has_kvm {
/// #     eprintln!("SKIPPED Kvm (example): no /dev/kvm");
/// #     return Ok(());
/// # }
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// // SAFETY: `vm` keeps the descriptor open while it is borrowed.
/// let fd = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
/// let slots = Kvm::open(fd, KvmOptions::default())?;
/// println!("{:?}, batch ioctl: {:?}", slots.limits(), slots.support());
///
/// // A hole in this process's memory stands for guest RAM.
/// let page = slots.limits().page_size;
/// let [ram, other] = [16, 32].map(|pages| {
///     let range = Range::new(0, pages * page).expect("not empty");
///     let mapping = Mapping::new(range, 0x1000_0000_0000, Kind::Ram).expect("does not wrap");
///     Slot { id: 0, mapping }
/// });
/// // SAFETY: nothing of this process is at that address, and no vCPU runs.
/// unsafe { slots.change(0, &Op::Create(ram))? };
/// // Another size under the same id is not what KVM allows.
/// // SAFETY: as above.
/// assert_eq!(unsafe { slots.change(0, &Op::Create(other)) }, Err(Errno::EINVAL));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Kvm {
    pub(crate) calls: Box<dyn VmCalls>,
    pub(crate) allowed: Allowed,
    scratch: Mutex<Scratch>,
}

/// What [`Kvm::open`] may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvmOptions {
    /// Make another VM, and open `/dev/kvm` for that, to try the trap flag where
    /// the kernel claims it. Otherwise the flag is never used.
    pub scratch_vm: bool,
}

impl Kvm {
    /// Duplicates `vm` (close-on-exec), asks it what it allows and probes for
    /// the batch ioctl and for `KVM_IRQFD_FLAG_NO_IRQBYPASS`. Nothing of the VM is
    /// changed.
    ///
    /// # Errors
    /// [`OpenError`], by what `vm` is instead of a VM.
    pub fn open(vm: impl AsFd, options: KvmOptions) -> Result<Self, OpenError> {
        open::duplicate(vm.as_fd()).map(|vm| Self::with_calls(Box::new(vm), options))
    }

    pub(super) fn with_calls(calls: Box<dyn VmCalls>, options: KvmOptions) -> Self {
        let allowed = Allowed::of(&*calls, options.scratch_vm);
        let scratch = Mutex::new(Scratch::new(allowed.limits.page_size as usize));
        Self { calls, allowed, scratch }
    }

    /// What the probe for the batch ioctl found. An
    /// [`Impostor`](Support::Impostor) is treated as if it had not claimed
    /// anything.
    #[must_use]
    pub const fn support(&self) -> Support {
        self.allowed.support
    }

    /// What the probe for the trap flag found, on a VM that it made for that;
    /// without [`KvmOptions::scratch_vm`] it was not made, and the flag counts
    /// as absent. [`Limits::trap`](crate::Limits::trap) says whether that comes
    /// to a yes.
    #[must_use]
    pub const fn trap_support(&self) -> TrapSupport {
        self.allowed.trap
    }

    /// What the probe for `KVM_IRQFD_FLAG_NO_IRQBYPASS` found.
    #[must_use]
    pub const fn no_irqbypass(&self) -> NoIrqBypass {
        self.allowed.no_irqbypass
    }

    /// Whether `other` is a descriptor of the same VM (`kcmp`); `None` where the
    /// kernel does not say.
    #[must_use]
    pub fn same_vm(&self, other: BorrowedFd<'_>) -> Option<bool> {
        self.calls.same_file(other)
    }

    pub(crate) fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
