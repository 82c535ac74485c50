//! A VM with a window, and a guest that looks into it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use kvm_ioctls::VmFd;
use kvm_memslots::window::{Gap, Window, WindowSpec};
use kvm_memslots::{Changes, HolePolicy, RegionId, Vm, at, vm_fd};
use kvm_memslots_kit::guest::Prober;
use kvm_memslots_kit::host::{SMALL_PAGE, memfd};

use super::{guest_or_skip, vm_or_skip};

pub const OWN_SLOT: u16 = 7;
/// One that the library leaves to a test.
pub const SPARE_SLOT: u16 = 8;
/// Where the window is, and how many pages it has.
pub const GPA: u64 = 0x1000_0000;
pub const PAGES: u64 = 16;

pub const fn gpa(page: u64) -> u64 {
    GPA + page * SMALL_PAGE
}

/// Opens a window in a VM.
pub fn window(vm: &Vm, gap: Gap) -> (RegionId, Window) {
    let window = Window::new(WindowSpec::new(at(GPA, PAGES * SMALL_PAGE)).gap(gap)).unwrap();
    let mut c = Changes::new();
    let region = c.map(window.region());
    vm.apply(c).unwrap();
    (region, window)
}

/// A VM with a window, and a file as large, each page of which starts with its number,
/// counted from 1.
pub struct Rig {
    // In this order: nothing runs when memory goes.
    pub prober: Prober,
    pub vm: Vm,
    pub region: RegionId,
    pub window: Window,
    pub file: File,
    pub fd: VmFd,
}

impl Rig {
    pub fn new(test: &str, gap: Gap) -> Option<Self> {
        let fd = vm_or_skip(test)?;
        let prober = guest_or_skip(test, Prober::new(&fd, OWN_SLOT))?;
        // Windows open no holes; no other memory is changed while the guest runs.
        let builder = Vm::builder().holes(HolePolicy::NoVcpuRuns);
        let vm = builder.reserve_slots(0, OWN_SLOT..=SPARE_SLOT).open(vm_fd(&fd)).unwrap();
        let (region, window) = window(&vm, gap);
        let file = memfd(PAGES * SMALL_PAGE).unwrap();
        for page in 0..PAGES {
            file.write_all_at(&(page + 1).to_ne_bytes(), page * SMALL_PAGE).unwrap();
        }
        Some(Self { prober, vm, region, window, file, fd })
    }
}
