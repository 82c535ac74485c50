//! The ways of the library.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use kvm_ioctls::VmFd;
use kvm_memslots::device::{self, DeviceId};
use kvm_memslots::window::{CheckedFile, Window, WindowPart};
use kvm_memslots::{Changes, HolePolicy, RegionId, Vm, at};

use super::board::{Board, Device};
use super::ways::{Apply, Way, of_set};
use crate::spent::Spent;
use crate::timed::{self, Clock};
use crate::window;
use kvm_memslots_kit::host::memfd;

/// With the library.
pub(super) struct Library {
    vm: Vm,
    way: Way,
    ids: BTreeMap<usize, DeviceId>,
    /// Where BARs are placed, if they are.
    shelf: Option<Shelf>,
}

/// A window over all BARs, and a file that is as large.
struct Shelf {
    window: Window,
    file: CheckedFile,
    gpa: u64,
}

impl Shelf {
    /// Maps it.
    fn new(vm: &Vm, board: &Board) -> io::Result<Self> {
        let (gpa, size) = board.bars_span();
        let window = window::map(vm, at(gpa, size))?;
        let file = CheckedFile::new(memfd(size)?).map_err(io::Error::other)?;
        Ok(Self { window, file, gpa })
    }

    /// A device with its BARs in the window.
    fn setup(&self, device: &Device, index: usize) -> device::Device {
        device.bars.iter().fold(device.events(index, false), |made, (gpa, _)| {
            let (offset, size) = (gpa - self.gpa, Device::BAR_SIZE);
            let bar = WindowPart::new(&self.window, offset, size, &self.file, offset);
            made.in_window(RegionId::new(), bar)
        })
    }
}

impl Library {
    pub(super) fn new(
        vm: &VmFd,
        way: Way,
        own_slot: u16,
        board: &Board,
        clock: Option<Clock>,
    ) -> io::Result<Self> {
        let builder = Vm::builder().reserve_slots(0, own_slot..=own_slot).holes(HolePolicy::Refuse);
        let vm = timed::open(builder, vm, clock)?;
        let shelf = (way == Way::Window).then(|| Shelf::new(&vm, board)).transpose()?;
        Ok(Self { vm, way, ids: BTreeMap::new(), shelf })
    }

    /// Which devices go in one set.
    fn units(&self, which: Range<usize>) -> Vec<Range<usize>> {
        if matches!(self.way, Way::Together | Way::Window) {
            vec![which]
        } else {
            which.map(|index| index..index + 1).collect()
        }
    }
}

impl Apply for Library {
    fn attach(&mut self, board: &Board, which: Range<usize>) -> io::Result<Spent> {
        let mut spent = Spent::default();
        for unit in self.units(which) {
            let mut changes = Changes::new();
            for index in unit {
                let device = &board.devices[index];
                let device = match &self.shelf {
                    Some(shelf) => shelf.setup(device, index),
                    // SAFETY: the board outlives the VM's vCPUs.
                    None => unsafe { device.setup(index, false) },
                };
                let defers = self.way == Way::Deferred;
                let device = if defers { device.defer_ioeventfds() } else { device };
                self.ids.insert(index, changes.attach(device));
            }
            spent += of_set(&self.vm, changes)?;
        }
        Ok(spent)
    }

    fn finish(&mut self) -> io::Result<Spent> {
        if self.way != Way::Deferred {
            return Ok(Spent::default());
        }
        let mut changes = Changes::new();
        changes.assign_deferred();
        of_set(&self.vm, changes)
    }

    fn detach(&mut self, _: &Board, which: Range<usize>) -> io::Result<Spent> {
        let mut spent = Spent::default();
        for unit in self.units(which) {
            let mut changes = Changes::new();
            for id in unit.filter_map(|index| self.ids.remove(&index)) {
                changes.detach(id);
            }
            spent += of_set(&self.vm, changes)?;
        }
        Ok(spent)
    }
}
