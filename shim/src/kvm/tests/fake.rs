//! A kernel that plays a part.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::ptr::with_exposed_provenance_mut;
use std::sync::{Arc, Mutex, MutexGuard};

use kvm_bindings::{kvm_dirty_log, kvm_enable_cap, kvm_irq_routing, kvm_irqfd};
use kvm_memslots_uapi::{
    KVM_CAP_USER_MEMORY_REGIONS, MemoryRegionsFlags, kvm_userspace_memory_region,
    kvm_userspace_memory_regions,
};
use libc::c_int;

use crate::errno::Errno;
use crate::kvm::calls::VmCalls;
use crate::kvm::requests::{
    KVM_CHECK_EXTENSION, KVM_CLEAR_DIRTY_LOG, KVM_ENABLE_CAP, KVM_GET_API_VERSION,
    KVM_GET_DIRTY_LOG, KVM_IOEVENTFD, KVM_IRQFD, KVM_REGISTER_COALESCED_MMIO, KVM_SET_GSI_ROUTING,
    KVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION2, KVM_SET_USER_MEMORY_REGIONS,
    KVM_UNREGISTER_COALESCED_MMIO,
};
use crate::kvm::{Kvm, KvmOptions};
use crate::limits::Limits;
use crate::mapping::{Kind, Mapping, Slot};
use crate::memory::MemoryCalls;
use crate::range::Range;

/// How a kernel answers the batch ioctl.
pub(super) type Batch = fn(&mut kvm_userspace_memory_regions) -> Result<(), Errno>;

/// A kernel that plays a part, and writes down what it was asked.
#[derive(Debug, Clone)]
pub(super) struct Fake {
    pub(super) caps: HashMap<u32, c_int>,
    pub(super) is_system_fd: bool,
    pub(super) batch: Batch,
    /// So many calls fail with `EINTR` before one is answered.
    pub(super) interrupts: u32,
    /// The dirty log of any slot.
    pub(super) log: Vec<u64>,
    pub(super) asked: Vec<&'static str>,
    /// Flags of slots and of irqfds that are not refused.
    pub(super) knows: u32,
    pub(super) has_dev_kvm: bool,
    /// The words of the last routing table.
    pub(super) routes: Vec<u32>,
    /// What `KVM_GET_IRQCHIP` says.
    pub(super) irqchip: Result<(), Errno>,
    /// Capabilities that were enabled, with their first argument.
    pub(super) enabled: Vec<(u32, u64)>,
}

impl Fake {
    pub(super) fn new(caps: &[(u32, c_int)], batch: Batch) -> Self {
        Self {
            caps: caps.iter().copied().collect(),
            is_system_fd: false,
            batch,
            interrupts: 0,
            log: Vec::new(),
            asked: Vec::new(),
            knows: !0,
            has_dev_kvm: true,
            routes: Vec::new(),
            irqchip: Ok(()),
            enabled: Vec::new(),
        }
    }

    fn ask(&mut self, what: &'static str) -> Result<(), Errno> {
        self.asked.push(what);
        match self.interrupts.checked_sub(1) {
            Some(left) => {
                self.interrupts = left;
                Err(Errno::EINTR)
            }
            None => Ok(()),
        }
    }
}

/// The fake, and who looks at it.
#[derive(Debug, Clone)]
pub(super) struct Seat(Arc<Mutex<Fake>>);

impl Seat {
    pub(super) fn new(fake: Fake) -> Self {
        Self(Arc::new(Mutex::new(fake)))
    }

    pub(super) fn look(&self) -> MutexGuard<'_, Fake> {
        self.0.lock().unwrap()
    }

    fn ask(&self, what: &'static str) -> Result<(), Errno> {
        self.look().ask(what)
    }
}

impl VmCalls for Seat {
    fn scratch_vm(&self) -> Result<Box<dyn VmCalls>, Errno> {
        self.ask("scratch")?;
        let Fake { batch, knows, has_dev_kvm, .. } = *self.look();
        let scratch = Fake { knows, ..Fake::new(&[], batch) };
        if has_dev_kvm { Ok(Box::new(Self::new(scratch))) } else { Err(Errno::EACCES) }
    }

    fn same_file(&self, _: BorrowedFd<'_>) -> Option<bool> {
        None
    }

    unsafe fn ioctl(&self, request: u32, argument: usize) -> Result<c_int, Errno> {
        let at = with_exposed_provenance_mut::<()>(argument);
        let knows = |flags: u32| {
            if flags & !self.look().knows == 0 { Ok(()) } else { Err(Errno::EINVAL) }
        };
        match request {
            KVM_GET_API_VERSION => {
                return if self.look().is_system_fd { Ok(12) } else { Err(Errno::ENOTTY) };
            }
            KVM_CHECK_EXTENSION => {
                return Ok(self.look().caps.get(&(argument as u32)).copied().unwrap_or(0));
            }
            KVM_SET_USER_MEMORY_REGION => {
                self.ask("region")?;
                // SAFETY: the caller's promise, as below.
                knows(unsafe { &*at.cast::<kvm_userspace_memory_region>() }.flags)
            }
            KVM_SET_USER_MEMORY_REGION2 => self.ask("region2"),
            KVM_SET_USER_MEMORY_REGIONS => {
                self.ask("regions")?;
                let batch = self.look().batch;
                // SAFETY: as above.
                batch(unsafe { &mut *at.cast() })
            }
            KVM_GET_DIRTY_LOG => {
                self.ask("get")?;
                // SAFETY: as above.
                let log = unsafe { &*at.cast::<kvm_dirty_log>() };
                // SAFETY: any bit pattern is a value of either variant.
                let bitmap = unsafe { log.__bindgen_anon_1.dirty_bitmap };
                let log = self.look().log.clone();
                // SAFETY: tests give no longer log than the buffer they ask with.
                unsafe { log.as_ptr().copy_to_nonoverlapping(bitmap.cast(), log.len()) };
                Ok(())
            }
            KVM_CLEAR_DIRTY_LOG => self.ask("clear"),
            KVM_SET_GSI_ROUTING => {
                self.ask("routing")?;
                // SAFETY: as above.
                let nr = unsafe { (*at.cast::<kvm_irq_routing>()).nr } as usize;
                // SAFETY: as above, with the entries, of 12 words each.
                let words = unsafe { std::slice::from_raw_parts(at.cast::<u32>(), 2 + nr * 12) };
                self.look().routes = words.to_vec();
                Ok(())
            }
            KVM_IRQFD => {
                self.ask("irqfd")?;
                // SAFETY: as above.
                knows(unsafe { &*at.cast::<kvm_irqfd>() }.flags)
            }
            KVM_IOEVENTFD => self.ask("ioeventfd"),
            KVM_REGISTER_COALESCED_MMIO | KVM_UNREGISTER_COALESCED_MMIO => self.ask("zone"),
            KVM_ENABLE_CAP => {
                self.ask("enable")?;
                // SAFETY: as above.
                let cap = unsafe { &*at.cast::<kvm_enable_cap>() };
                self.look().enabled.push((cap.cap, cap.args[0]));
                Ok(())
            }
            // `KVM_GET_IRQCHIP`, where there is one.
            _ => {
                self.ask("irqchip")?;
                self.look().irqchip
            }
        }
        .map(|()| 0)
    }
}

/// As the ABI says.
pub(super) fn honest(header: &mut kvm_userspace_memory_regions) -> Result<(), Errno> {
    header.failed = header.nr;
    if header.flags & !MemoryRegionsFlags::all().bits() == 0 { Ok(()) } else { Err(Errno::EINVAL) }
}

pub(super) fn absent(_: &mut kvm_userspace_memory_regions) -> Result<(), Errno> {
    Err(Errno::ENOTTY)
}

/// The VM, and a look at its kernel.
pub(super) fn open(fake: Fake) -> (Kvm, Seat) {
    let seat = Seat::new(fake);
    let kvm = Kvm::with_calls(Box::new(seat.clone()), KvmOptions { scratch_vm: true });
    (kvm, seat)
}

pub(super) fn claiming(batch: Batch) -> (Kvm, Seat) {
    open(Fake::new(&[(KVM_CAP_USER_MEMORY_REGIONS, 4096)], batch))
}

pub(super) fn limits(fake: Fake) -> Limits {
    MemoryCalls::limits(&open(fake).0)
}

pub(super) fn slot(pages: u64) -> Slot {
    let page = limits(Fake::new(&[], absent)).page_size;
    let range = Range::new(0x1_0000, pages * page).unwrap();
    Slot { id: 3, mapping: Mapping::new(range, 0x7f00_0000_0000, Kind::Ram).unwrap() }
}
