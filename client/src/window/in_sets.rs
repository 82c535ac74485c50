//! What is left in a window when a set of changes can't be undone.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use kvm_memslots_shim::Errno;
use kvm_memslots_shim::events::model::{Call, Fault};

use super::host::faults::{self, Fate};
use super::*;
use crate::backend::{EventModel, Irqchip, MemoryModel};
use crate::device::{Device, DeviceId, Msi};
use crate::pci::{BarSpec, FunctionSpec, PciBars};
use crate::{Access, Backing, Changes, Error, ErrorKind, Limits, RegionId, RegionSpec, Vm, at};

struct Rig {
    vm: Vm,
    events: EventModel,
    window: Window,
    file: CheckedFile,
    page: u64,
}

fn eventfd() -> File {
    // SAFETY: takes numbers.
    let fd = unsafe { libc::eventfd(0, 0) };
    // SAFETY: a new descriptor.
    unsafe { File::from_raw_fd(fd) }
}

impl Rig {
    fn new() -> Self {
        let page = host::page_size();
        // SAFETY: takes a name.
        let fd = unsafe { libc::memfd_create(c"bars".as_ptr(), 0) };
        // SAFETY: a new descriptor.
        let mut file = unsafe { File::from_raw_fd(fd) };
        file.write_all(&vec![1; 4 * page as usize]).unwrap();
        let memory = Arc::new(MemoryModel::new(Limits::x86()));
        let events = EventModel::new(Irqchip::Split);
        let vm = Vm::builder().open_on(memory, Arc::new(events.clone())).unwrap();
        let window = Window::new(WindowSpec::new(at(0x10_0000, 16 * page))).unwrap();
        let mut c = Changes::new();
        c.map(window.region());
        vm.apply(c).unwrap();
        Self { vm, events, window, file: CheckedFile::new(file).unwrap(), page }
    }

    /// With two parts, and a vector.
    fn device(&self) -> Device {
        let part = |n: u64| {
            let (at, page) = (2 * n * self.page, self.page);
            WindowPart::new(&self.window, at, page, &self.file, n * page)
        };
        let msi = Msi { address: 0xfee0_0000, data: 0x41, devid: None };
        let device = Device::new("gpu").vector(eventfd(), Some(msi));
        device.in_window(RegionId::new(), part(0)).in_window(RegionId::new(), part(1))
    }

    fn apply<T>(&self, f: impl FnOnce(&mut Changes) -> T) -> Result<T, Error> {
        let mut c = Changes::new();
        let made = f(&mut c);
        self.vm.apply(c).map(|_| made)
    }

    fn attach(&self) -> Result<DeviceId, Error> {
        self.apply(|c| c.attach(self.device()))
    }

    /// KVM refuses the routes, which come behind what is in windows, and the host
    /// some of the calls to take that back.
    fn stuck<T>(
        &self,
        fates: impl IntoIterator<Item = Fate>,
        f: impl FnOnce() -> Result<T, Error>,
    ) {
        self.events.inject(Fault::nth(1, Errno::EINVAL).only(Call::Routing));
        faults::set(fates);
        let error = f().map(drop).unwrap_err();
        assert_eq!(faults::unused(), 0);
        let ErrorKind::Stuck { windows, errno, undo_errno, .. } = error.kind() else {
            panic!("{error}")
        };
        assert_eq!((*errno, *undo_errno), (Errno::EINVAL, Errno::ENOMEM), "{error}");
        assert_eq!(windows.len(), 1, "{error}");
        assert!(error.to_string().contains("windows could not be put right 1 times"), "{error}");
    }

    fn placed(&self) -> Vec<u64> {
        self.window.placed().iter().map(|p| p.offset / self.page).collect()
    }
}

use Fate::{Fails, Passes};

#[test]
fn what_can_not_be_removed_again_is_removed_by_the_next_set() {
    let rig = Rig::new();
    rig.stuck([Passes, Passes, Fails, Passes], || rig.attach());
    assert_eq!(rig.placed(), [2]);
    assert!(rig.vm.devices().is_empty());
    faults::set([Fails]);
    let error = rig.apply(|_| ()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Window(_)), "{error}");
    assert_eq!((error.device(), rig.placed()), (Some("gpu"), vec![2]));
    rig.apply(|_| ()).unwrap();
    assert!(rig.placed().is_empty());
    rig.attach().unwrap();
    assert_eq!(rig.placed(), [0, 2]);
}

#[test]
fn what_can_not_be_put_back_is_put_back_by_the_next_set() {
    let rig = Rig::new();
    let id = rig.attach().unwrap();
    rig.stuck([Passes, Passes, Passes, Fails], || rig.apply(|c| c.detach(id)));
    assert_eq!((rig.placed(), rig.vm.devices()), (vec![2], vec![id]));
    // A set of one change repairs it, too.
    rig.apply(|c| c.map(RegionSpec::device(at(0, rig.page), rig.window.backing()))).unwrap();
    assert_eq!(rig.placed(), [0, 2]);
    rig.apply(|c| c.detach(id)).unwrap();
    assert!(rig.placed().is_empty());
}

/// Somebody has put something else there.
#[test]
fn what_is_somebody_else_s_is_left_alone() {
    let rig = Rig::new();
    let id = rig.attach().unwrap();
    rig.stuck([Passes, Passes, Passes, Fails], || rig.apply(|c| c.detach(id)));
    rig.window.place(0, rig.page, Contents::anonymous()).unwrap();
    let before = rig.window.placed();
    rig.apply(|_| ()).unwrap();
    assert_eq!(rig.window.placed(), before);
    rig.apply(|c| c.detach(id)).unwrap();
    assert_eq!(rig.window.placed(), before[..1]);
}

/// The host refuses a place itself, at each of the calls that replace mappings.
#[test]
fn a_place_that_fails_leaves_what_was_there() {
    for fate in [Fails, Fate::FailsLate] {
        for passing in 0..3 {
            let rig = Rig::new();
            let id = rig.attach().unwrap();
            let before = rig.window.placed();
            // Two go, two take their places.
            let swap = || {
                rig.apply(|c| {
                    c.detach(id);
                    c.attach(rig.device());
                    let part = WindowPart::new(&rig.window, 8 * rig.page, rig.page, &rig.file, 0);
                    c.attach(Device::new("late").in_window(RegionId::new(), part));
                })
            };
            faults::set((0..passing).map(|_| Passes).chain([fate]));
            let error = swap().unwrap_err();
            assert_eq!(faults::unused(), 0);
            let is_late_swap = fate == Fate::FailsLate && passing < 2;
            match error.kind() {
                ErrorKind::Window(_) => assert!(!is_late_swap, "{error}"),
                // What it took the place of had no other copy: the next set brings it.
                ErrorKind::Stuck { .. } => assert!(is_late_swap, "{error}"),
                _ => panic!("{error}"),
            }
            if is_late_swap {
                assert_ne!(rig.window.placed(), before);
                rig.apply(|_| ()).unwrap();
            }
            assert_eq!(rig.window.placed(), before, "{error}");
            assert_eq!(faults::holes(), 0);
            swap().unwrap();
            assert_eq!(rig.placed(), [0, 2, 8]);
        }
    }
}

/// BARs take the same steps, and what is left of them the next sync puts right.
#[test]
fn what_is_left_of_bars_is_put_right_by_the_next_sync() {
    let rig = Rig::new();
    let (vm, page) = (&rig.vm, rig.page);
    let mut bars = PciBars::new(40).in_window(rig.window.clone());
    let ids = [0, 1].map(|n| {
        // SAFETY: the model touches no memory.
        let memory = unsafe { Backing::borrowed(0x7000_0000_0000, page, Access::ReadWrite) };
        let memory = memory.with_file(rig.file.clone(), n * page);
        let bar = BarSpec::memory64(page).window(RegionSpec::device(at(0, page), memory));
        bars.add(vm, FunctionSpec::new().bar(0, bar)).unwrap()
    });
    let put = |bars: &mut PciBars, pages: [u64; 2]| {
        for (id, n) in ids.into_iter().zip(pages) {
            let gpa = 0x10_0000 + n * page;
            bars.note_write(id, 0x10, &gpa.to_le_bytes()).unwrap();
            bars.note_write(id, 4, &[2]).unwrap();
        }
        bars.sync(vm)
    };
    assert!(put(&mut bars, [0, 2]).unwrap().is_none());
    assert_eq!(rig.placed(), [0, 2]);
    // Both are removed and one is placed; the other is not, and the one stays.
    faults::set([Passes, Passes, Passes, Fails, Fails, Passes, Passes]);
    let error = put(&mut bars, [4, 6]).unwrap_err();
    assert_eq!((error.errno(), faults::unused()), (Errno::ENOMEM, 0), "{error}");
    assert_eq!(rig.placed(), [0, 2, 4]);
    assert!(ids.iter().all(|id| bars.refusal(*id, Some(0)).is_none()));
    assert!(bars.sync(vm).unwrap().is_none());
    assert_eq!(rig.placed(), [4, 6]);
}
