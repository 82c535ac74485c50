//! A kernel that plays a part.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use kvm_bindings::{
    kvm_clear_dirty_log, kvm_coalesced_mmio_zone, kvm_dirty_log, kvm_enable_cap, kvm_ioeventfd,
    kvm_irq_routing, kvm_irqfd,
};
use kvm_memslots_uapi::{
    KVM_CAP_USER_MEMORY_REGIONS, MemoryRegionsFlags, kvm_userspace_memory_region,
    kvm_userspace_memory_region2, kvm_userspace_memory_regions,
};
use libc::c_int;

use crate::errno::Errno;
use crate::kvm::calls::VmCalls;
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

    fn api_version(&self) -> Result<c_int, Errno> {
        if self.look().is_system_fd { Ok(12) } else { Err(Errno::ENOTTY) }
    }

    fn check_extension(&self, cap: u32) -> Result<c_int, Errno> {
        Ok(self.look().caps.get(&cap).copied().unwrap_or(0))
    }

    unsafe fn set_user_memory_region(
        &self,
        region: &kvm_userspace_memory_region,
    ) -> Result<(), Errno> {
        self.ask("region")?;
        if region.flags & !self.look().knows == 0 { Ok(()) } else { Err(Errno::EINVAL) }
    }

    unsafe fn set_user_memory_region2(
        &self,
        _: &kvm_userspace_memory_region2,
    ) -> Result<(), Errno> {
        self.ask("region2")
    }

    unsafe fn set_user_memory_regions(
        &self,
        header: *mut kvm_userspace_memory_regions,
    ) -> Result<(), Errno> {
        self.ask("regions")?;
        let batch = self.look().batch;
        // SAFETY: the caller's promise: valid for reads and writes.
        batch(unsafe { &mut *header })
    }

    unsafe fn get_dirty_log(&self, log: &kvm_dirty_log) -> Result<(), Errno> {
        self.ask("get")?;
        // SAFETY: any bit pattern is a value of either variant.
        let bitmap = unsafe { log.__bindgen_anon_1.dirty_bitmap }.cast::<u64>();
        let log = self.look().log.clone();
        // SAFETY: tests give no longer log than the buffer they ask with.
        unsafe { log.as_ptr().copy_to_nonoverlapping(bitmap, log.len()) };
        Ok(())
    }

    unsafe fn clear_dirty_log(&self, _: &mut kvm_clear_dirty_log) -> Result<(), Errno> {
        self.ask("clear")
    }

    unsafe fn set_gsi_routing(&self, table: *const kvm_irq_routing) -> Result<(), Errno> {
        self.ask("routing")?;
        // SAFETY: the caller's promise: the header may be read.
        let nr = unsafe { (*table).nr } as usize;
        // SAFETY: as above, with the entries, of 12 words each.
        let words = unsafe { std::slice::from_raw_parts(table.cast::<u32>(), 2 + nr * 12) };
        self.look().routes = words.to_vec();
        Ok(())
    }

    fn irqfd(&self, irqfd: &kvm_irqfd) -> Result<(), Errno> {
        self.ask("irqfd")?;
        if irqfd.flags & !self.look().knows == 0 { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn ioeventfd(&self, _: &kvm_ioeventfd) -> Result<(), Errno> {
        self.ask("ioeventfd")
    }

    fn register_coalesced_mmio(&self, _: &kvm_coalesced_mmio_zone) -> Result<(), Errno> {
        self.ask("zone")
    }

    fn unregister_coalesced_mmio(&self, _: &kvm_coalesced_mmio_zone) -> Result<(), Errno> {
        self.ask("zone")
    }

    fn get_irqchip(&self) -> Result<(), Errno> {
        self.ask("irqchip")?;
        self.look().irqchip
    }

    fn enable_cap(&self, cap: &kvm_enable_cap) -> Result<(), Errno> {
        self.ask("enable")?;
        self.look().enabled.push((cap.cap, cap.args[0]));
        Ok(())
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
