//! KVM refuses a call, at every place where it can, on real descriptors.
//! Whether a part is live is asked of KVM itself.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_memslots::backend::{EventCalls, EventLimits, EventOp, Kvm, KvmOptions};
use kvm_memslots::device::{Bus, Device, DeviceId, Doorbell, Ioeventfd, Irqfd};
use kvm_memslots::{
    Access, Backing, Changes, Errno, ErrorKind, RegionId, RegionSpec, Vm, at, vm_fd,
};
use kvm_memslots_kit::guest::interrupted::Interrupted;
use kvm_memslots_kit::host::{HostMemory, Pages};
use vmm_sys_util::eventfd::EventFd;

use crate::rig::{OWN_SLOT, PATIENCE, eventfd, msi, split_vm};

/// KVM, of which one call, counted from the next, is not made but refused; 0
/// for none.
struct Faulty {
    kvm: Kvm,
    countdown: Arc<AtomicU64>,
}

impl Faulty {
    fn strikes(&self) -> Result<(), Errno> {
        let before = self
            .countdown
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if before == Ok(1) { Err(Errno::ENOMEM) } else { Ok(()) }
    }
}

impl EventCalls for Faulty {
    fn limits(&self) -> EventLimits {
        EventCalls::limits(&self.kvm)
    }

    fn name(&self) -> &'static str {
        EventCalls::name(&self.kvm)
    }

    fn change(&self, op: &EventOp) -> Result<(), Errno> {
        self.strikes()?;
        self.kvm.change(op)
    }
}

const VECTORS: u8 = 4;
const DOORBELLS: u64 = 3;
const GPA: u64 = 0x4000_0000;

/// A device, and what it is made of.
struct Parts {
    first: u8,
    interrupts: Vec<EventFd>,
    doorbells: Vec<EventFd>,
    memory: HostMemory,
}

impl Parts {
    fn new(first: u8) -> Self {
        Self {
            first,
            interrupts: (0..VECTORS).map(|_| eventfd()).collect(),
            doorbells: (0..DOORBELLS).map(|_| eventfd()).collect(),
            memory: HostMemory::reserve(0x1000, Pages::Small).unwrap(),
        }
    }

    fn gpa(&self) -> u64 {
        GPA + u64::from(self.first) * 0x1000
    }

    fn ioeventfds(&self) -> impl Iterator<Item = Ioeventfd> + '_ {
        let base = 0xd000_0000 + u64::from(self.first) * 0x100;
        self.doorbells.iter().zip(0..).map(move |(doorbell, index)| Ioeventfd {
            bus: Bus::Mmio,
            addr: base + index * 8,
            len: 4,
            datamatch: Some(index),
            fd: doorbell.as_raw_fd(),
        })
    }

    fn setup(&self) -> Device {
        let hva = self.memory.hva();
        // SAFETY: the memory is accessed by nobody, and outlives the VM's vCPU.
        let backing = unsafe { Backing::borrowed(hva, 0x1000, Access::ReadWrite) };
        let bar = RegionSpec::device(at(self.gpa(), 0x1000), backing);
        let mut device = Device::new(format!("dev{:#x}", self.first)).region(RegionId::new(), bar);
        for (interrupt, vector) in self.interrupts.iter().zip(self.first..) {
            device = device.vector(interrupt.as_raw_fd(), Some(msi(vector)));
        }
        for at in self.ioeventfds() {
            let doorbell = Doorbell::at(at.bus, at.addr).len(at.len);
            let doorbell = at.datamatch.map_or(doorbell, |value| doorbell.value(value));
            device = device.ioeventfd(doorbell, at.fd);
        }
        device
    }

    /// All of it is live, or nothing is.
    fn assert_live(&self, live: bool, kvm: &Kvm, what: &str) {
        for (interrupt, vector) in self.interrupts.iter().zip(self.first..) {
            let fd = interrupt.as_raw_fd();
            let irqfd = Irqfd { gsi: 3000, fd, resample: None, no_irqbypass: false };
            let assigned = kvm.change(&EventOp::Assign(irqfd.into()));
            let expected = if live { Err(Errno::EBUSY) } else { Ok(()) };
            assert_eq!(assigned, expected, "{what}: irqfd of vector {vector:#x}");
            if assigned.is_ok() {
                kvm.change(&EventOp::Deassign(irqfd.into())).unwrap();
            }
        }
        for ioeventfd in self.ioeventfds() {
            let assigned = kvm.change(&EventOp::Assign(ioeventfd.into()));
            let expected = if live { Err(Errno::EEXIST) } else { Ok(()) };
            assert_eq!(assigned, expected, "{what}: {ioeventfd}");
            if assigned.is_ok() {
                kvm.change(&EventOp::Deassign(ioeventfd.into())).unwrap();
            }
        }
    }

    fn assert_interrupts(&self, guest: &Interrupted, what: &str) {
        for (interrupt, vector) in self.interrupts.iter().zip(self.first..) {
            let count = guest.count(vector);
            interrupt.write(1).unwrap();
            assert!(guest.wait_for(vector, count + 1, PATIENCE), "{what}: vector {vector:#x}");
        }
    }
}

#[test]
fn a_refusal_at_any_call_leaves_kvm_as_it_was() {
    let test = "a_refusal_at_any_call_leaves_kvm_as_it_was";
    let Some(vm) = split_vm(test) else { return };
    let guest = Interrupted::start(&vm, OWN_SLOT).unwrap();
    let kvm = Kvm::open(vm_fd(&vm), KvmOptions::default()).unwrap();
    let countdown = Arc::new(AtomicU64::new(0));
    let calls = Faulty {
        kvm: Kvm::open(vm_fd(&vm), KvmOptions::default()).unwrap(),
        countdown: Arc::clone(&countdown),
    };
    let memory = Kvm::open(vm_fd(&vm), KvmOptions::default()).unwrap();
    let vm = Vm::builder()
        .reserve_slots(0, OWN_SLOT..=OWN_SLOT)
        .open_on(Arc::new(memory), Arc::new(calls))
        .unwrap();
    let attach = |parts: &[Parts]| -> Result<Vec<DeviceId>, _> {
        let mut set = Changes::new();
        let ids = parts.iter().map(|parts| set.attach(parts.setup())).collect();
        vm.apply(set).map(|_| ids)
    };
    let detach = |ids: &[DeviceId]| {
        let mut set = Changes::new();
        for id in ids {
            set.detach(*id);
        }
        vm.apply(set)
    };

    let stays = [Parts::new(0x40)];
    let changes = [Parts::new(0x50), Parts::new(0x60)];
    attach(&stays).unwrap();
    let [stays] = &stays;
    let calls = 1 + 2 * (u64::from(VECTORS) + DOORBELLS);
    for k in 1..=calls {
        let what = format!("attach, call {k}");
        countdown.store(k, Ordering::SeqCst);
        let error = attach(&changes).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::EventRefused { errno: Errno::ENOMEM, .. }));
        for parts in &changes {
            parts.assert_live(false, &kvm, &what);
        }
        assert_eq!(vm.regions().len(), 1);
        stays.assert_live(true, &kvm, &what);
        stays.assert_interrupts(&guest, &what);
    }
    countdown.store(0, Ordering::SeqCst);
    let ids = attach(&changes).unwrap();
    for k in 1..=calls {
        let what = format!("detach, call {k}");
        countdown.store(k, Ordering::SeqCst);
        let error = detach(&ids).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::EventRefused { errno: Errno::ENOMEM, .. }));
        assert_eq!(vm.regions().len(), 3);
        for parts in changes.iter().chain([stays]) {
            parts.assert_live(true, &kvm, &what);
            parts.assert_interrupts(&guest, &what);
        }
    }
    countdown.store(0, Ordering::SeqCst);
    detach(&ids).unwrap();
    for parts in &changes {
        parts.assert_live(false, &kvm, "detached");
    }
    stays.assert_interrupts(&guest, "detached");
}
