//! Devices whose memory is a ROM in one mode and registers in the other.
//!
//! Flash with a CFI command set answers reads from memory while it is in array
//! mode, and every access itself while a command is under way. A driver goes
//! back and forth thousands of times, and each time a slot goes or comes: three
//! grace periods a pair. [`RomDevice`] takes the cheapest way that the kernel
//! has.

use crate::deferred::policy::Churn;
use crate::error::{Error, ErrorKind};
use crate::region::RegionSpec;
use crate::{Changes, RegionId, Report, Vm};

/// How a [`RomDevice`] changes its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RomMode {
    /// [`Trap`](Self::Trap) where the kernel has it, else
    /// [`Deferred`](Self::Deferred).
    #[default]
    Auto,
    /// By [`MemFlags::TRAP`](crate::MemFlags::TRAP): one call a flip, and no
    /// grace period, but one for the first of a VM.
    Trap,
    /// The slot goes with each command. Once the device has shown that it
    /// [churns](Churn), it comes back only when it is worth it
    /// ([`deferred`](crate::deferred)): the VMM serves exits and promotes.
    Deferred {
        /// How many flips are carried out first. The guest may execute from
        /// memory that is mapped; what is deferred it may not.
        after: u32,
    },
    /// The slot goes and comes with each flip: as without this library.
    Toggle,
}

impl RomMode {
    const DEFERRED: Self = Self::Deferred { after: Churn::<()>::FLIPS };
}

/// The memory of a device that is mapped read-only in array mode, and not to be
/// reached in command mode.
///
/// The VMM's device model says when the mode changes. What reaches it as MMIO:
/// in command mode every access; in array mode writes, and with
/// [`RomMode::Deferred`] reads, which [`Deferred`](crate::deferred::Deferred)
/// serves.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # #[cfg(feature = "model")] {
/// use kvm_memslots::{Access, Backing, RegionSpec, RomDevice, RomMode, Vm, at};
/// # use std::sync::Arc;
/// # use kvm_memslots::{Limits, backend::{EventModel, Irqchip, MemoryModel}};
/// # let memory = Arc::new(MemoryModel::new(Limits::x86().with_trap()));
/// # let events = Arc::new(EventModel::new(Irqchip::Split));
///
/// let vm = Vm::builder().open_on(memory, events)?;
/// // SAFETY: the model touches no memory.
/// let memory = unsafe { Backing::borrowed(0x7f00_0000_0000, 0x400_0000, Access::Read) };
/// let spec = RegionSpec::rom(at(0x400_0000, 0x400_0000), memory).label("flash");
/// let mut flash = RomDevice::new(&vm, spec, RomMode::Auto)?;
///
/// // The guest writes a command, and reads the array again later.
/// let report = flash.set_array_mode(&vm, false)?.expect("it was in array mode");
/// assert_eq!((report.ioctls, report.grace_periods), (1, 1));
/// flash.set_array_mode(&vm, true)?;
/// // That was the VM's first flip of this kind. It is the only one to wait.
/// let report = flash.set_array_mode(&vm, false)?.expect("it was in array mode");
/// assert_eq!((report.ioctls, report.grace_periods), (1, 0));
/// # }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RomDevice {
    spec: RegionSpec,
    mode: RomMode,
    churn: Churn<()>,
    /// None in command mode, unless that is a trap.
    region: Option<RegionId>,
    array_mode: bool,
    flips: u64,
}

impl RomDevice {
    /// Maps the device, in array mode. `spec` is made read-only and gets a slot
    /// of its own. Its backing is the guest's again with each array mode: what
    /// [`Backing`](crate::Backing) asks for holds until the device is
    /// [removed](Self::remove), or this value and its region are gone.
    ///
    /// # Errors
    /// As [`Vm::apply`]; [`ErrorKind::TrapUnsupported`] where [`RomMode::Trap`]
    /// was asked for.
    pub fn new(vm: &Vm, spec: RegionSpec, mode: RomMode) -> Result<Self, Error> {
        let mode = match mode {
            RomMode::Auto if vm.limits().trap => RomMode::Trap,
            RomMode::Auto => RomMode::DEFERRED,
            mode => mode,
        };
        let after = if let RomMode::Deferred { after } = mode { after } else { u32::MAX };
        let mut device = Self {
            spec: spec.read_only().alone(),
            mode,
            churn: Churn::after(after),
            region: None,
            array_mode: false,
            flips: 0,
        };
        let mut changes = Changes::new();
        let region = device.map(&mut changes);
        if mode == RomMode::Trap && !vm.limits().trap {
            // The error names the region.
            changes.set_trap(region, false);
        }
        vm.apply(changes)?;
        device.region = Some(region);
        device.array_mode = true;
        device.churn.added(());
        Ok(device)
    }

    /// Changes the mode. `None` where it is the device's already.
    ///
    /// When this has returned, no vCPU reaches the memory in command mode, and
    /// no thread serves it an exit from there; in array mode all of its memory
    /// is what the guest reads.
    ///
    /// # Errors
    /// As [`Vm::apply`], and the mode is what it was.
    pub fn set_array_mode(&mut self, vm: &Vm, array_mode: bool) -> Result<Option<Report>, Error> {
        if self.array_mode == array_mode {
            return Ok(None);
        }
        let mut changes = Changes::new();
        let region = match (self.mode, self.region) {
            (RomMode::Trap, Some(id)) => {
                changes.set_trap(id, !array_mode);
                Some(id)
            }
            (_, Some(id)) => {
                changes.unmap(id);
                None
            }
            (_, None) => Some(self.map(&mut changes)),
        };
        let report = vm.apply(changes)?;
        if array_mode {
            self.churn.added(());
        } else {
            self.churn.removed();
        }
        self.region = region;
        self.array_mode = array_mode;
        self.flips += 1;
        Ok(Some(report))
    }

    fn map(&self, changes: &mut Changes) -> RegionId {
        let spec = self.spec.clone();
        // This flip is the one after those seen.
        let churns = self.churn.flips() >= self.churn.limit();
        changes.map(if churns { spec.deferrable() } else { spec })
    }

    /// Whether the device is in array mode.
    #[must_use]
    pub const fn in_array_mode(&self) -> bool {
        self.array_mode
    }

    /// How it changes its mode: what [`RomMode::Auto`] came to.
    #[must_use]
    pub const fn mode(&self) -> RomMode {
        self.mode
    }

    /// How often it has changed its mode.
    #[must_use]
    pub const fn flips(&self) -> u64 {
        self.flips
    }

    /// Its region, while there is one.
    #[must_use]
    pub const fn region(&self) -> Option<RegionId> {
        self.region
    }

    /// Unmaps the device.
    ///
    /// # Errors
    /// As [`Vm::apply`], with the device as it was.
    pub fn remove(self, vm: &Vm) -> Result<(), (Box<Self>, Error)> {
        let Some(id) = self.region else { return Ok(()) };
        let mut changes = Changes::new();
        changes.unmap(id);
        match vm.apply(changes) {
            // The VMM may have unmapped the region itself.
            Err(error) if !matches!(error.kind(), ErrorKind::UnknownRegion { .. }) => {
                Err((Box::new(self), error))
            }
            _ => Ok(()),
        }
    }
}
