//! What a VM allows, and which of this project's additions its kernel has.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use kvm_bindings::{
    KVM_CAP_COALESCED_MMIO, KVM_CAP_COALESCED_PIO, KVM_CAP_GUEST_MEMFD, KVM_CAP_IRQ_ROUTING,
    KVM_CAP_MSI_DEVID, KVM_CAP_MULTI_ADDRESS_SPACE, KVM_CAP_NR_MEMSLOTS, KVM_CAP_READONLY_MEM,
    kvm_irqfd,
};
use kvm_memslots_uapi::irqfd::{NoIrqBypass, ProbeIrqfd, probe_no_irqbypass};
use kvm_memslots_uapi::probe::{ProbeVm, Support, TrapSupport, probe};
use kvm_memslots_uapi::{MAX_ENTRIES, kvm_userspace_memory_regions};
use libc::c_int;
use nix::unistd::{SysconfVar, sysconf};

use super::calls::VmCalls;
use super::requests::{KVM_IRQFD, KVM_SET_USER_MEMORY_REGIONS};
use super::trap;
use crate::errno::Errno;
use crate::limits::{EventLimits, Limits, ZoneLimits};

/// `KVM_MAX_IRQ_ROUTES`, where KVM does not say.
const MAX_IRQ_ROUTES: u32 = 4096;

/// What a VM allows.
#[derive(Debug)]
pub(crate) struct Allowed {
    pub(crate) limits: Limits,
    pub(crate) events: EventLimits,
    pub(super) support: Support,
    pub(super) trap: TrapSupport,
    pub(super) no_irqbypass: NoIrqBypass,
}

impl Allowed {
    /// Asks `vm`, and where that may be another one for the trap flag.
    pub(super) fn of(vm: &dyn VmCalls, scratch_vm: bool) -> Self {
        let support = probe(&mut Probed { vm, eventfd: None });
        let trap = if scratch_vm { trap::probe(vm, page_size()) } else { TrapSupport::Absent };
        let no_irqbypass = probe_no_irqbypass(&mut Probed { vm, eventfd: None });
        let cap = |cap| u32::try_from(vm.check_extension(cap).unwrap_or(0)).unwrap_or(0);
        let limits = Limits {
            // api.rst, 4.35: "KVM_CAP_NR_MEMSLOTS: if absent, 32".
            slots: match cap(KVM_CAP_NR_MEMSLOTS) {
                0 => 32,
                slots => slots,
            },
            address_spaces: u16::try_from(cap(KVM_CAP_MULTI_ADDRESS_SPACE))
                .unwrap_or(u16::MAX)
                .max(1),
            page_size: page_size(),
            slot_pages: Limits::SLOT_PAGES,
            readonly: cap(KVM_CAP_READONLY_MEM) != 0,
            guest_memfd: cap(KVM_CAP_GUEST_MEMFD) != 0,
            batch: match support {
                Support::Present { max_entries } => Some(max_entries.min(MAX_ENTRIES as u32)),
                Support::Absent | Support::Impostor { .. } => None,
            },
            trap: trap == TrapSupport::Present,
        };
        let events = EventLimits {
            routes: match cap(KVM_CAP_IRQ_ROUTING) {
                0 => MAX_IRQ_ROUTES,
                routes => routes,
            },
            no_irqbypass: no_irqbypass == NoIrqBypass::Present,
            devid: cap(KVM_CAP_MSI_DEVID) != 0,
            zones: ZoneLimits {
                ring_page: Some(cap(KVM_CAP_COALESCED_MMIO)).filter(|page| *page != 0),
                pio: cap(KVM_CAP_COALESCED_PIO) != 0,
            },
        };
        Self { limits, events, support, trap, no_irqbypass }
    }
}

fn page_size() -> u64 {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok()).unwrap_or(4096)
}

struct Probed<'a> {
    vm: &'a dyn VmCalls,
    /// Made when the kernel claims the flag for irqfds.
    eventfd: Option<OwnedFd>,
}

impl ProbeVm for Probed<'_> {
    fn check_extension(&mut self, cap: u32) -> c_int {
        self.vm.check_extension(cap).unwrap_or(-1)
    }

    fn set_user_memory_regions(
        &mut self,
        header: &mut kvm_userspace_memory_regions,
    ) -> Result<(), c_int> {
        // SAFETY: the probe sends `nr` 0, so there are no entries to be read
        // and none to be mapped.
        unsafe { self.vm.tell(KVM_SET_USER_MEMORY_REGIONS, &raw mut *header) }.map_err(Errno::raw)
    }
}

impl ProbeIrqfd for Probed<'_> {
    fn check_extension(&mut self, cap: u32) -> c_int {
        self.vm.check_extension(cap).unwrap_or(-1)
    }

    fn irqfd(&mut self, flags: u32) -> Result<(), c_int> {
        let eventfd = match self.eventfd.take() {
            Some(eventfd) => eventfd,
            None => eventfd().map_err(Errno::raw)?,
        };
        let fd = u32::from_ne_bytes(eventfd.as_raw_fd().to_ne_bytes());
        self.eventfd = Some(eventfd);
        let argument = kvm_irqfd { fd, flags, ..Default::default() };
        // SAFETY: there is no pointer in it.
        unsafe { self.vm.tell(KVM_IRQFD, &raw const argument) }.map_err(Errno::raw)
    }
}

fn eventfd() -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    let fd: RawFd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(Errno::last());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
