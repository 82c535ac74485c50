//! Failing on demand: what a kernel that is out of memory, or a signal, does
//! at a time of the test's choosing.

use super::Model;
use crate::backend::Errno;

/// Which call a [`Fault`] makes fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// The ioctls that change one memslot.
    SetRegion,
    /// The batch ioctl, dry runs included.
    SetRegions,
    /// `KVM_GET_DIRTY_LOG`.
    GetDirtyLog,
    /// `KVM_CLEAR_DIRTY_LOG`.
    ClearDirtyLog,
}

/// A failure to come: of calls that would otherwise be carried out, counted
/// from when the fault is handed to [`Model::inject`]. A call that fails this
/// way changes nothing.
///
/// ```
/// use kvm_memslots_shim::Limits;
/// use kvm_memslots_shim::backend::Errno;
/// use kvm_memslots_shim::backend::model::{Call, Fault, Model};
///
/// let mut model = Model::new(Limits::x86());
/// // The third change fails, and so does every one after it: undoing the
/// // first two is impossible.
/// model.inject(Fault::from_nth(3, Errno::ENOMEM).only(Call::SetRegion));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    errno: Errno,
    call: Option<Call>,
    entry: Option<u32>,
    /// Calls that still pass.
    pass: u64,
    /// Calls that then fail; `None` for all.
    fail: Option<u64>,
}

impl Fault {
    /// The `k`-th call from here fails; the next one is the first.
    #[must_use]
    pub const fn nth(k: u64, errno: Errno) -> Self {
        Self { errno, call: None, entry: None, pass: k.saturating_sub(1), fail: Some(1) }
    }

    /// The `k`-th call from here fails, and every one after it.
    #[must_use]
    pub const fn from_nth(k: u64, errno: Errno) -> Self {
        Self { fail: None, ..Self::nth(k, errno) }
    }

    /// Every call fails.
    #[must_use]
    pub const fn every(errno: Errno) -> Self {
        Self::from_nth(1, errno)
    }

    /// Counts, and fails, these calls only.
    #[must_use]
    pub const fn only(self, call: Call) -> Self {
        Self { call: Some(call), ..self }
    }

    /// A batch that fails blames this entry; without this, none.
    #[must_use]
    pub const fn blaming(self, entry: u32) -> Self {
        Self { entry: Some(entry), ..self }
    }

    pub(super) const fn errno(&self) -> Errno {
        self.errno
    }

    pub(super) const fn entry(&self) -> Option<u32> {
        self.entry
    }

    /// Counts a call; whether it fails.
    fn strikes(&mut self) -> bool {
        if self.pass > 0 {
            self.pass -= 1;
            return false;
        }
        if let Some(fail) = &mut self.fail {
            *fail -= 1;
        }
        true
    }

    const fn spent(&self) -> bool {
        matches!(self.fail, Some(0))
    }
}

impl Model {
    /// Makes calls fail. Several faults count side by side; where more than
    /// one strikes, the one that was injected first gives the errno.
    pub fn inject(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// Forgets the faults that are still to come.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// Counts `call`; the fault that strikes it, if one does.
    pub(super) fn injected(&mut self, call: Call) -> Option<Fault> {
        let mut strikes = None;
        for fault in &mut self.faults {
            let counted = fault.call.is_none_or(|only| only == call);
            if counted && fault.strikes() && strikes.is_none() {
                strikes = Some(fault.clone());
            }
        }
        self.faults.retain(|fault| !fault.spent());
        strikes
    }
}
