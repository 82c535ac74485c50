//! Devices whose memory is a ROM in one mode and registers in the other.
//!
//! Flash with a CFI command set answers reads from memory while it is in array
//! mode, and every access itself while a command is under way. A driver goes
//! back and forth thousands of times, and each time a slot goes or comes: three
//! grace periods a pair. [`RomDevice`] takes the cheapest way that the kernel
//! has.

use std::sync::Arc;

use crate::deferred::policy::Churn;
use crate::region::{HostMemory, RegionSpec};
use crate::{AddressSpace, CommitReport, Error, RegionId};

/// How a [`RomDevice`] changes its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RomMode {
    /// [`Trap`](Self::Trap) where the kernel has it, else
    /// [`Deferred`](Self::Deferred).
    #[default]
    Auto,
    /// By [`MemFlags::TRAP`](crate::MemFlags::TRAP): one call a flip, and no grace period.
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
/// use kvm_memslots::backend::Model;
/// use kvm_memslots::{AddressSpace, Limits, RegionSpec, RomDevice, RomMode};
///
/// let mut space = AddressSpace::builder()
///     .open_on(Box::new(Model::new(Limits::x86().with_trap())))?;
/// let spec = RegionSpec::rom(0x400_0000, 0x400_0000, 0x7f00_0000_0000).label("flash");
/// // SAFETY: the model touches no memory.
/// let mut flash = unsafe { RomDevice::new(&mut space, spec, RomMode::Auto)? };
///
/// // The guest writes a command, and reads the array again later.
/// let report = flash.set_array_mode(&mut space, false)?.expect("it was in array mode");
/// assert_eq!((report.ioctls, report.grace_periods), (1, 0));
/// flash.set_array_mode(&mut space, true)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RomDevice {
    spec: RegionSpec,
    owner: Option<Arc<dyn HostMemory>>,
    mode: RomMode,
    churn: Churn<()>,
    /// None in command mode, unless that is a trap.
    region: Option<RegionId>,
    array_mode: bool,
    flips: u64,
}

impl RomDevice {
    /// Maps the device, in array mode. `spec` is made read-only and gets a slot
    /// of its own.
    ///
    /// # Errors
    /// Those of [`Transaction::map`](crate::Transaction::map) and of a commit;
    /// [`Error::TrapUnsupported`] where [`RomMode::Trap`] was asked for.
    ///
    /// # Safety
    /// What is said of [`Transaction::map`](crate::Transaction::map), until
    /// [`remove`](Self::remove) has succeeded, this value and the region are
    /// gone, or the VM is.
    pub unsafe fn new(
        space: &mut AddressSpace,
        spec: RegionSpec,
        mode: RomMode,
    ) -> Result<Self, Error> {
        Self::mapped(space, spec, None, mode)
    }

    /// The same, over memory that is kept alive.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`Error::OutsideHostMemory`].
    pub fn new_owned(
        space: &mut AddressSpace,
        spec: RegionSpec,
        memory: Arc<dyn HostMemory>,
        mode: RomMode,
    ) -> Result<Self, Error> {
        Self::mapped(space, spec, Some(memory), mode)
    }

    fn mapped(
        space: &mut AddressSpace,
        spec: RegionSpec,
        owner: Option<Arc<dyn HostMemory>>,
        mode: RomMode,
    ) -> Result<Self, Error> {
        let mode = match mode {
            RomMode::Auto if space.limits().trap => RomMode::Trap,
            RomMode::Auto => RomMode::DEFERRED,
            mode => mode,
        };
        let after = if let RomMode::Deferred { after } = mode { after } else { u32::MAX };
        let mut device = Self {
            spec: spec.read_only().alone(),
            owner,
            mode,
            churn: Churn::after(after),
            region: None,
            array_mode: false,
            flips: 0,
        };
        if mode == RomMode::Trap && !space.limits().trap {
            return Err(Error::TrapUnsupported { region: device.spec.described() });
        }
        device.map(space)?;
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
    /// Those of a commit, and the mode is what it was.
    pub fn set_array_mode(
        &mut self,
        space: &mut AddressSpace,
        array_mode: bool,
    ) -> Result<Option<CommitReport>, Error> {
        if self.array_mode == array_mode {
            return Ok(None);
        }
        let report = match (self.mode, self.region, array_mode) {
            (RomMode::Trap, Some(id), _) => space.set_trap(id, !array_mode)?,
            (_, Some(id), false) => {
                let mut tx = space.begin();
                tx.unmap(id)?;
                let report = tx.commit()?;
                self.region = None;
                self.churn.removed();
                report
            }
            (_, None, true) => {
                let report = self.map(space)?;
                self.churn.added(());
                report
            }
            // Without a trap, there is a region exactly in array mode.
            (_, Some(_), true) | (_, None, false) => return Ok(None),
        };
        self.array_mode = array_mode;
        self.flips += 1;
        Ok(Some(report))
    }

    fn map(&mut self, space: &mut AddressSpace) -> Result<CommitReport, Error> {
        let mut spec = self.spec.clone();
        // This flip is the one after those seen.
        if self.churn.flips() >= self.churn.limit() {
            spec = spec.deferrable();
        }
        let mut tx = space.begin();
        let id = match &self.owner {
            Some(owner) => tx.map_owned(spec, Arc::clone(owner))?,
            // SAFETY: whoever called `new` vouched for the memory.
            None => unsafe { tx.map(spec)? },
        };
        let report = tx.commit()?;
        self.region = Some(id);
        Ok(report)
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
    /// Those of a commit, with the device as it was.
    pub fn remove(self, space: &mut AddressSpace) -> Result<(), (Box<Self>, Error)> {
        let Some(id) = self.region else { return Ok(()) };
        let mut tx = space.begin();
        match tx.unmap(id).and_then(|()| tx.commit().map(drop)) {
            Ok(()) => Ok(()),
            Err(error) => Err((Box::new(self), error)),
        }
    }
}
