//! The ioctls of a VM fd.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use kvm_bindings::{
    KVM_CAP_IRQ_ROUTING, KVM_CAP_MSI_DEVID, KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE,
    kvm_ioeventfd, kvm_irqfd,
};
use kvm_memslots_uapi::irqfd::{
    KVM_IRQFD_FLAG_NO_IRQBYPASS, NoIrqBypass, ProbeIrqfd, probe_no_irqbypass,
};
use libc::c_int;

use super::{Bus, EventCalls, EventLimits, Ioeventfd, Irqfd, Route};
use crate::backend::{Errno, Kvm, OpenError, check_extension};

mod request {
    use kvm_bindings::{kvm_ioeventfd, kvm_irq_routing, kvm_irqfd};
    use kvm_memslots_uapi::KVMIO;
    use nix::ioctl_write_ptr;

    ioctl_write_ptr!(set_gsi_routing, KVMIO, 0x6a, kvm_irq_routing);
    ioctl_write_ptr!(irqfd, KVMIO, 0x76, kvm_irqfd);
    ioctl_write_ptr!(ioeventfd, KVMIO, 0x79, kvm_ioeventfd);
}

/// `1 << kvm_ioeventfd_flag_nr_*` (`linux/kvm.h`).
const IOEVENTFD_DATAMATCH: u32 = 1 << 0;
const IOEVENTFD_PIO: u32 = 1 << 1;
const IOEVENTFD_DEASSIGN: u32 = 1 << 2;

/// `KVM_MAX_IRQ_ROUTES`, where KVM does not say.
const MAX_IRQ_ROUTES: u32 = 4096;

/// Ioeventfds, irqfds and routes of a real VM. Works beside whatever else holds
/// the VM's file descriptor, which is duplicated.
#[derive(Debug)]
pub struct KvmEventing {
    vm: OwnedFd,
    limits: EventLimits,
    no_irqbypass: NoIrqBypass,
    /// Reused: the table as the kernel takes it, two words at a time.
    table: Vec<[u32; 2]>,
}

impl KvmEventing {
    /// Duplicates `vm` (close-on-exec), asks it what it allows, and probes for
    /// `KVM_IRQFD_FLAG_NO_IRQBYPASS`. Nothing of the VM is changed.
    ///
    /// # Errors
    /// [`OpenError`], by what `vm` is instead of a VM.
    pub fn open(vm: impl AsFd) -> Result<Self, OpenError> {
        let vm = vm.as_fd();
        Kvm::open(vm)?;
        let fd = vm.as_raw_fd();
        let vm = vm.try_clone_to_owned().map_err(|error| OpenError::Duplicate {
            fd,
            errno: Errno::from_raw(error.raw_os_error().unwrap_or_default()),
        })?;
        let no_irqbypass = match eventfd() {
            Ok(eventfd) => probe_no_irqbypass(&mut Probed { vm: &vm, eventfd }),
            // Out of descriptors; what comes next will say so.
            Err(_) => NoIrqBypass::Absent,
        };
        let routes = u32::try_from(answer(&vm, KVM_CAP_IRQ_ROUTING)).unwrap_or(0);
        let limits = EventLimits {
            routes: if routes == 0 { MAX_IRQ_ROUTES } else { routes },
            no_irqbypass: no_irqbypass == NoIrqBypass::Present,
            devid: answer(&vm, KVM_CAP_MSI_DEVID) > 0,
        };
        Ok(Self { vm, limits, no_irqbypass, table: Vec::new() })
    }

    /// What the probe for `KVM_IRQFD_FLAG_NO_IRQBYPASS` found.
    #[must_use]
    pub const fn no_irqbypass(&self) -> NoIrqBypass {
        self.no_irqbypass
    }

    fn irqfd(&mut self, irqfd: &Irqfd, flags: u32) -> Result<(), Errno> {
        let argument = kvm_irqfd {
            fd: word(irqfd.fd),
            gsi: irqfd.gsi,
            flags,
            resamplefd: word(irqfd.resample.unwrap_or(0)),
            ..Default::default()
        };
        // SAFETY: the kernel reads the structure. Descriptors that are not what
        // they should be are refused.
        unsafe { request::irqfd(self.vm.as_raw_fd(), &raw const argument) }.map(drop)
    }

    fn ioeventfd(&mut self, ioeventfd: &Ioeventfd, flags: u32) -> Result<(), Errno> {
        let bus = if ioeventfd.bus == Bus::Pio { IOEVENTFD_PIO } else { 0 };
        let data = if ioeventfd.datamatch.is_some() { IOEVENTFD_DATAMATCH } else { 0 };
        let argument = kvm_ioeventfd {
            datamatch: ioeventfd.datamatch.unwrap_or(0),
            addr: ioeventfd.addr,
            len: ioeventfd.len,
            fd: ioeventfd.fd,
            flags: flags | bus | data,
            ..Default::default()
        };
        // SAFETY: the kernel reads the structure, as above.
        unsafe { request::ioeventfd(self.vm.as_raw_fd(), &raw const argument) }.map(drop)
    }
}

impl EventCalls for KvmEventing {
    fn limits(&self) -> EventLimits {
        self.limits
    }

    fn name(&self) -> &'static str {
        "kvm"
    }

    fn set_routes(&mut self, routes: &[Route]) -> Result<(), Errno> {
        let nr = u32::try_from(routes.len()).map_err(|_| Errno::EINVAL)?;
        self.table.clear();
        // `struct kvm_irq_routing`, and the entries behind it.
        self.table.push([nr, 0]);
        for route in routes {
            let (kind, flags, words) = route.target.to_raw();
            self.table.extend([[route.gsi, kind], [flags, 0]]);
            self.table.extend(words.chunks_exact(2).map(|pair| [pair[0], pair[1]]));
        }
        let header = self.table.as_ptr().cast();
        // SAFETY: the kernel reads the header and the `nr` entries behind it,
        // which are there, wherever they are aligned to.
        unsafe { request::set_gsi_routing(self.vm.as_raw_fd(), header) }.map(drop)
    }

    fn assign_irqfd(&mut self, irqfd: &Irqfd) -> Result<(), Errno> {
        let resample = if irqfd.resample.is_some() { KVM_IRQFD_FLAG_RESAMPLE } else { 0 };
        let no_irqbypass = if irqfd.no_irqbypass { KVM_IRQFD_FLAG_NO_IRQBYPASS } else { 0 };
        self.irqfd(irqfd, resample | no_irqbypass)
    }

    fn deassign_irqfd(&mut self, irqfd: &Irqfd) -> Result<(), Errno> {
        self.irqfd(irqfd, KVM_IRQFD_FLAG_DEASSIGN)
    }

    fn assign_ioeventfd(&mut self, ioeventfd: &Ioeventfd) -> Result<(), Errno> {
        self.ioeventfd(ioeventfd, 0)
    }

    fn deassign_ioeventfd(&mut self, ioeventfd: &Ioeventfd) -> Result<(), Errno> {
        self.ioeventfd(ioeventfd, IOEVENTFD_DEASSIGN)
    }
}

struct Probed<'a> {
    vm: &'a OwnedFd,
    eventfd: OwnedFd,
}

impl ProbeIrqfd for Probed<'_> {
    fn check_extension(&mut self, cap: u32) -> c_int {
        answer(self.vm, cap)
    }

    fn irqfd(&mut self, flags: u32) -> Result<(), c_int> {
        let fd = word(self.eventfd.as_raw_fd());
        let argument = kvm_irqfd { fd, flags, ..Default::default() };
        // SAFETY: the kernel reads the structure.
        let result = unsafe { request::irqfd(self.vm.as_raw_fd(), &raw const argument) };
        result.map(drop).map_err(|errno| errno as c_int)
    }
}

/// A descriptor as `struct kvm_irqfd` has it: no descriptor is negative, and
/// what is no descriptor stays none.
fn word(fd: RawFd) -> u32 {
    u32::from_ne_bytes(fd.to_ne_bytes())
}

/// 0 where the kernel does not know the question.
fn answer(vm: &OwnedFd, cap: u32) -> c_int {
    check_extension(vm.as_fd(), cap).unwrap_or(0)
}

fn eventfd() -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    let fd: RawFd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    let fd = Errno::result(fd)?;
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
