//! Workloads: what a VMM wants changed, step by step.
//!
//! A scenario says nothing of how the changes are made; that is what a
//! [`strategy`](crate::strategy) does. Guest addresses stay below
//! [`OWN_GPA`](kvm_memslots_kit::guest::OWN_GPA), where guest code may run beside it.

mod boot;
mod hotplug;
mod many;
mod pci;
mod resize;

pub use hotplug::BARS;
pub use resize::REQUESTS_PER_CYCLE;

use kvm_memslots::{Kind, MemFlags};

use crate::way::shown_by_name;
use kvm_memslots_kit::host::SMALL_PAGE;

/// Names a region of one scenario: small numbers, never used again for another
/// region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(pub u32);

impl Name {
    /// The name as an index into a table.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A region: where the guest sees which part of the scenario's host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// What it is to the VM.
    pub kind: Kind,
    /// Guest physical address, in bytes.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes from the start of the scenario's host memory.
    pub offset: u64,
    /// Read-only, logged, both or none.
    pub flags: MemFlags,
    /// It stays for as long as the VM lives, or comes and goes with its
    /// neighbours.
    pub stays: bool,
}

impl Place {
    /// One that stays.
    const fn stays(self) -> Self {
        Self { stays: true, ..self }
    }
}

/// One thing that a VMM wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A region appears.
    Map(Name, Place),
    /// A region goes.
    Unmap(Name),
    /// A region gets another size; its start stays.
    Resize(Name, u64),
    /// A region becomes two: the name keeps what is below `offset` bytes.
    Split {
        /// The region.
        name: Name,
        /// Where, in bytes from its start.
        offset: u64,
        /// The name of the rest.
        rest: Name,
    },
    /// A region gets other flags.
    SetFlags(Name, MemFlags),
}

/// What a VMM wants changed at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What happens, in words.
    pub what: &'static str,
    /// The changes, in order.
    pub changes: Vec<Change>,
}

/// A workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// Which one.
    pub workload: Workload,
    /// Its size: see [`Workload::generate`].
    pub regions: usize,
    /// How much host memory its regions lie in, in bytes.
    pub host_bytes: u64,
    /// How many names its changes use.
    pub names: usize,
    /// What is there before: not measured.
    pub setup: Vec<Step>,
    /// What is measured.
    pub steps: Vec<Step>,
}

/// The kinds of scenarios.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Workload {
    /// Regions that can't share a slot, mapped at once.
    Sparse,
    /// Regions that can share one slot, mapped at once.
    Contiguous,
    /// A VM's RAM around the PCI hole, its ROMs, and 32 devices one by one.
    Boot,
    /// A device with 6 BARs comes and goes, repeatedly.
    Hotplug,
    /// Memory of a virtio-mem device grows, shrinks and is punched.
    Resize,
    /// Dirty logging of all slots goes on and off, as in a migration.
    DirtyLog,
    /// The first half of `dirty-log`.
    DirtyLogOn,
    /// The regions of `sparse`, unmapped at once.
    Delete,
    /// The regions of `sparse`, mapped one by one.
    Singly,
    /// A guest enables PCI devices by config writes, then uses them.
    Pci,
    /// As `pci`, where each device has 4 ioeventfds in a BAR of its own.
    PciDoorbells,
}

impl Workload {
    /// Whether it has a guest of its own, which decides when regions are mapped.
    #[must_use]
    pub const fn has_guest(self) -> bool {
        matches!(self, Self::Pci | Self::PciDoorbells)
    }

    /// Those that stand for something a VMM does: run where nothing else is
    /// asked for.
    pub const USUAL: [Self; 6] =
        [Self::Sparse, Self::Contiguous, Self::Boot, Self::Hotplug, Self::Resize, Self::DirtyLog];

    /// The largest size of any: names and guest addresses end there.
    pub const MOST_REGIONS: usize = 1 << 24;

    /// The size that is used where none is given. Idle, 9000 regions are what
    /// the report of 2022 that this project starts from had, and the others are
    /// of the size of a large, but ordinary VM; with busy vCPUs, where a call
    /// can take milliseconds, all but `boot` are smaller.
    #[must_use]
    pub const fn default_regions(self, busy: bool) -> usize {
        match (self, busy) {
            (Self::Sparse | Self::Contiguous | Self::Delete, false) => 9000,
            (Self::Sparse | Self::Contiguous | Self::Delete, true) => 1000,
            (Self::Boot, _) => 228,
            (Self::Hotplug, false) => 600,
            (Self::Hotplug, true) => 120,
            (Self::Resize, false) => 400,
            (Self::Resize, true) => 80,
            (Self::DirtyLog | Self::DirtyLogOn, false) => 2000,
            (Self::DirtyLog | Self::DirtyLogOn, true) => 500,
            (Self::Singly, _) => 256,
            (Self::Pci | Self::PciDoorbells, _) => 64,
        }
    }

    /// The scenario with about `regions` regions; [`Scenario::regions`] says
    /// how many exactly. Counted are, for `sparse`, `contiguous`, `boot`,
    /// `dirty-log`, `dirty-log-on` and `singly`, the regions that are mapped at the end;
    /// for `delete` those that were at the start; for `hotplug` those
    /// that come and go, [`BARS`] each time; for `resize` the requests,
    /// [`REQUESTS_PER_CYCLE`] of which make a cycle; for `pci` and
    /// `pci-doorbells` the devices.
    #[must_use]
    pub fn generate(self, regions: usize) -> Scenario {
        let regions = regions.clamp(1, Self::MOST_REGIONS);
        match self {
            Self::Sparse => many::sparse(regions),
            Self::Contiguous => many::contiguous(regions),
            Self::Boot => boot::boot(regions),
            Self::Hotplug => hotplug::hotplug(regions),
            Self::Resize => resize::resize(regions),
            Self::DirtyLog => many::dirty_log(regions),
            Self::DirtyLogOn => many::dirty_log_on(regions),
            Self::Delete => many::delete(regions),
            Self::Singly => many::singly(regions),
            Self::Pci | Self::PciDoorbells => pci::pci(self, regions),
        }
    }
}

shown_by_name!(Workload);

/// Hands out names and host memory while a scenario is put together.
#[derive(Debug, Default)]
struct Draft {
    names: u32,
    host_bytes: u64,
}

impl Draft {
    fn name(&mut self) -> Name {
        self.names += 1;
        Name(self.names - 1)
    }

    /// Host memory that follows what was handed out before.
    fn host(&mut self, size: u64) -> u64 {
        self.host_bytes += size;
        self.host_bytes - size
    }

    /// Makes sure that what is handed out next does not follow on what was
    /// before, as two `mmap`s don't.
    fn host_gap(&mut self) {
        self.host_bytes += SMALL_PAGE;
    }

    fn finish(
        self,
        workload: Workload,
        regions: usize,
        setup: Vec<Step>,
        steps: Vec<Step>,
    ) -> Scenario {
        let Self { names, host_bytes } = self;
        Scenario { workload, regions, host_bytes, names: names as usize, setup, steps }
    }
}

/// RAM without flags.
const fn ram(gpa: u64, size: u64, offset: u64) -> Place {
    Place { kind: Kind::Ram, gpa, size, offset, flags: MemFlags::empty(), stays: false }
}

/// Device memory without flags.
const fn device(gpa: u64, size: u64, offset: u64) -> Place {
    Place { kind: Kind::Device, gpa, size, offset, flags: MemFlags::empty(), stays: false }
}

/// Read-only memory.
const fn rom(gpa: u64, size: u64, offset: u64) -> Place {
    Place { kind: Kind::Rom, gpa, size, offset, flags: MemFlags::READONLY, stays: false }
}
