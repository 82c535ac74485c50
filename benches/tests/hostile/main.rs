//! What a careless VMM and a hostile guest can do to the library, on real KVM: it is
//! refused or harms nobody, and what is right goes on.
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#![allow(clippy::unwrap_used)]

mod callbacks;
#[path = "../common/mod.rs"]
mod common;
mod ends;
mod files;
mod names;
mod shared;

use std::sync::Arc;

use kvm_ioctls::VmFd;
use kvm_memslots::{Access, Backing, Builder, HolePolicy, HostMemory, RegionSpec, Vm, at, vm_fd};
use kvm_memslots_kit::guest::{self, GuestError, Outcome, Prober};
use kvm_memslots_kit::host::{self, Pages, SMALL_PAGE};

use common::{guest_or_skip, vm_or_skip};

const OWN_SLOT: u16 = 7;
const GPA: u64 = 0x1000_0000;

/// Host memory that is unmapped when nobody has it any more.
struct Owned(host::HostMemory);

// SAFETY: the tests access it atomically only.
unsafe impl HostMemory for Owned {
    fn range(&self) -> (u64, u64) {
        (self.0.hva(), self.0.size())
    }
}

impl Owned {
    /// Pages, each of which starts with its number, counted from `first`.
    fn numbered(pages: u64, first: u64) -> Arc<Self> {
        let memory = host::HostMemory::reserve(pages * SMALL_PAGE, Pages::Small).unwrap();
        (0..pages).for_each(|page| memory.write(page * SMALL_PAGE, first + page));
        Arc::new(Self(memory))
    }

    fn backing(self: &Arc<Self>) -> Backing {
        let memory: Arc<dyn HostMemory> = self.clone();
        Backing::owned(memory, 0)
    }
}

const fn gpa(page: u64) -> u64 {
    GPA + page * SMALL_PAGE
}

/// RAM at a page, of as many pages.
fn ram(page: u64, pages: u64, memory: Backing) -> RegionSpec {
    RegionSpec::ram(at(gpa(page), pages * SMALL_PAGE), memory)
}

/// A VM and a guest that looks into it.
struct Rig {
    prober: Prober,
    vm: Vm,
    fd: VmFd,
}

impl Rig {
    fn new(test: &str) -> Option<Self> {
        Self::with(test, |builder| builder)
    }

    fn with(test: &str, options: impl FnOnce(Builder) -> Builder) -> Option<Self> {
        let fd = vm_or_skip(test)?;
        let prober = guest_or_skip(test, Prober::new(&fd, OWN_SLOT))?;
        let builder = Vm::builder().holes(HolePolicy::NoVcpuRuns);
        let builder = options(builder.reserve_slots(0, OWN_SLOT..=OWN_SLOT));
        Some(Self { prober, vm: builder.open(vm_fd(&fd)).unwrap(), fd })
    }

    fn read(&mut self, page: u64) -> Outcome {
        self.probe(guest::Access::Read(gpa(page))).unwrap()
    }

    fn probe(&mut self, access: guest::Access) -> Result<Outcome, GuestError> {
        Ok(self.prober.probe(&[access])?[0])
    }
}

/// Borrowed memory, for tests that keep it.
fn borrowed(memory: &Owned, pages: u64) -> Backing {
    // SAFETY: the tests keep it for as long as a guest runs, and access it
    // atomically only.
    unsafe { Backing::borrowed(memory.0.hva(), pages * SMALL_PAGE, Access::ReadWrite) }
}
