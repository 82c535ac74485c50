//! Why a VM is left alone.

use std::ffi::c_int;
use std::fmt;

use crate::decide::slot::Repair;
use crate::decide::slots::Action;

/// Why a VM is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Why {
    what: &'static str,
    slot: Option<u32>,
    errno: Option<c_int>,
    /// The errno of a call that should have made KVM's slots what the VMM
    /// believes.
    pub(crate) left: Option<c_int>,
}

impl Why {
    pub(crate) const fn of(what: &'static str) -> Self {
        Self { what, slot: None, errno: None, left: None }
    }

    /// A call that is not followed.
    pub(crate) const fn not_followed(name: &'static str) -> Self {
        Self::of(name)
    }

    pub(crate) const fn repair(repair: &Repair, errno: c_int) -> Self {
        let (what, slot) = match repair {
            Repair::Map(region) => ("mapping a deferred slot failed", region.slot),
            Repair::Delete(region) => ("deleting a slot that traps failed", region.slot),
        };
        Self { what, slot: Some(slot), errno: Some(errno), left: None }
    }

    pub(crate) const fn action(action: &Action, errno: c_int) -> Self {
        let (what, slot) = match action {
            Action::Trap(region) => ("setting the trap bit failed", Some(region.slot)),
            Action::Untrap(region) => ("clearing the trap bit failed", Some(region.slot)),
            _ => ("KVM_CAP_EXIT_ON_EMULATION_FAILURE can't be had", None),
        };
        Self { what, slot, errno: Some(errno), left: None }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        self.slot.map_or(Ok(()), |slot| write!(f, ", slot {slot:#x}"))?;
        self.errno.map_or(Ok(()), |errno| write!(f, ", errno {errno}"))?;
        self.left
            .map_or(Ok(()), |errno| write!(f, "; a slot is not as the VMM believes, errno {errno}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_says_which_slot_and_which_errno() {
        let mut why = Why { slot: Some(1), errno: Some(12), ..Why::of("mapping failed") };
        assert_eq!(why.to_string(), "mapping failed, slot 0x1, errno 12");
        why.left = Some(5);
        assert!(why.to_string().ends_with("; a slot is not as the VMM believes, errno 5"));
    }
}
