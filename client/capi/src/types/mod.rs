//! The structures of the header.

mod callbacks;
mod deferred;
mod device;
mod events;
mod function;
mod options;
mod region;
mod report;
mod syscall;
mod window;

pub use callbacks::{CGate, CHarvest, CObserver};
pub use deferred::{CDeferral, CDeferralUsage, CRomState, CServed};
pub use device::{CDoorbell, CLine, CMsi};
pub use events::{CEventLimits, CEventState, CIoeventfd, CIrqfd, CZone, CZoneWrite};
pub use function::{CBar, CBarDoorbell, CBarRange, CFunction};
pub use options::{CGsiRange, CLimits, COptions, CSlotRange};
pub use region::{CBacking, CRegion, CSlot, CSpec};
pub use report::{CPreview, CReport, CSlotUsage};
pub use syscall::CSyscall;
pub use window::{CPlacement, CWindowSpec};

pub(crate) use callbacks::Opened;
pub(crate) use deferred::rom_mode;
pub(crate) use function::{bar, index};
pub(crate) use options::{hole_policy, in_order, limits};
pub(crate) use region::Taking;

use std::ffi::{CStr, c_char, c_int};

use kvm_memslots::Errno;

use crate::failure::Failure;
use crate::last::CError;
use crate::record::{Structure, invalid};

/// All structures of the header.
pub const STRUCTURES: &[Structure] = &[
    CBacking::STRUCTURE,
    CBar::STRUCTURE,
    CBarDoorbell::STRUCTURE,
    CBarRange::STRUCTURE,
    CDeferral::STRUCTURE,
    CDeferralUsage::STRUCTURE,
    CDoorbell::STRUCTURE,
    CError::STRUCTURE,
    CEventLimits::STRUCTURE,
    CEventState::STRUCTURE,
    CFunction::STRUCTURE,
    CGate::STRUCTURE,
    CGsiRange::STRUCTURE,
    CIoeventfd::STRUCTURE,
    CIrqfd::STRUCTURE,
    CLimits::STRUCTURE,
    CLine::STRUCTURE,
    CMsi::STRUCTURE,
    CObserver::STRUCTURE,
    COptions::STRUCTURE,
    CPlacement::STRUCTURE,
    CPreview::STRUCTURE,
    CRegion::STRUCTURE,
    CReport::STRUCTURE,
    CRomState::STRUCTURE,
    CServed::STRUCTURE,
    CSlot::STRUCTURE,
    CSlotRange::STRUCTURE,
    CSlotUsage::STRUCTURE,
    CSpec::STRUCTURE,
    CSyscall::STRUCTURE,
    CWindowSpec::STRUCTURE,
    CZone::STRUCTURE,
    CZoneWrite::STRUCTURE,
];

/// `flag` where it is so, else none.
pub(crate) fn flag<T: Default>(has: bool, flag: T) -> T {
    if has { flag } else { T::default() }
}

/// Refuses what is not among the flags that are `known`.
pub(crate) fn known(flags: u64, known: u64, what: &str) -> Result<(), Failure> {
    match flags & !known {
        0 => Ok(()),
        unknown => Err(invalid(format!("unknown flags {unknown:#x} of {what}"))),
    }
}

pub(crate) fn descriptor(fd: c_int, what: &str) -> Result<c_int, Failure> {
    match fd {
        0.. => Ok(fd),
        _ => Err(Failure::new(Errno::EBADF, format!("{what} {fd} is no file descriptor"))),
    }
}

/// # Safety
/// `text` is null or a string, for as long as the call takes.
pub(crate) unsafe fn text(text: *const c_char) -> Option<String> {
    // SAFETY: not null, and as the caller says.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
