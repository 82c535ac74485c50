//! What keeps vCPUs from seeing a hole.

use std::fmt;
use std::sync::Arc;

use kvm_memslots_shim::Errno;
use thiserror::Error;

/// Pauses vCPUs. A VMM supplies one to allow changes that open a hole: guest
/// pages that stay mapped, but are unmapped for the time between two ioctls.
///
/// Both calls are made on the thread that applies the changes. That may be a
/// vCPU's own, at an exit: the gate then waits for the other vCPUs only.
/// Either may block; either may panic, which goes on to the caller of
/// [`Vm::apply`](crate::Vm::apply) when its state is settled. Both may look
/// regions up, and neither may apply changes
/// ([`ErrorKind::Reentrant`](crate::ErrorKind::Reentrant)).
///
/// A vCPU thread may be waiting to apply changes itself (at an exit, in
/// [`Vm::promote_due`](crate::Vm::promote_due)), and waits until these are done. It
/// is not inside `KVM_RUN`: a gate that waits for an answer of each vCPU's thread
/// would wait for ever.
///
/// Between a [`pause`](Self::pause) that succeeded and the
/// [`resume`](Self::resume) that follows it no vCPU of the VM may be inside
/// `KVM_RUN`, and nothing else may access guest memory through KVM.
pub trait VcpuGate: Send + Sync {
    /// Returns once no vCPU is inside `KVM_RUN`.
    ///
    /// # Errors
    /// Why it can't be done. Nothing is paused then, and nothing is changed.
    fn pause(&self) -> Result<(), GateError>;

    /// Lets vCPUs in again. Called exactly once for each `pause` that
    /// succeeded, whatever fails or panics between the two.
    fn resume(&self);
}

/// Why vCPUs could not be paused.
#[derive(Debug, Error)]
#[error("the vCPUs could not be paused: {reason}")]
pub struct GateError {
    #[source]
    reason: Box<dyn std::error::Error + Send + Sync>,
    errno: Errno,
}

impl GateError {
    /// A gate error with this reason.
    pub fn new(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { reason: reason.into(), errno: Errno::EBUSY }
    }

    /// With this errno; `EBUSY` unless said otherwise.
    #[must_use]
    pub const fn with_errno(mut self, errno: Errno) -> Self {
        self.errno = errno;
        self
    }

    /// The errno.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        self.errno
    }
}

/// What may be unmapped for a moment that is mapped before and after, where
/// changes are made call by call.
///
/// With the batch ioctl there is no such moment. Mapping, unmapping, growing and
/// moving regions to where nothing was, and switching their dirty logs, has none
/// either, unless the region shares a slot: of those that are
/// [permanent](crate::RegionSpec::permanent), that were
/// [split](crate::Changes::split), or that were joined as slots had run out.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum HolePolicy {
    /// Nothing. Such changes are [`ErrorKind::Hole`](crate::ErrorKind::Hole).
    Refuse,
    /// Regions that the changes name, which is what a loop of ioctls does: what
    /// becomes read-only or writable, gets other memory, moves to where it was
    /// in part, shrinks inside of a slot, grows where no slot is free, or is
    /// unmapped and mapped again cut another way, is deleted and made anew. Never a region that the changes
    /// don't name, unless it was split from the same one as a region that they
    /// do. What of it is logged and stays is reported all dirty, and so is what
    /// moves. What changes left that got
    /// [stuck](crate::ErrorKind::Stuck) is put right in the same way.
    #[default]
    Named,
    /// Anything: no vCPU runs while changes are applied, so nobody can notice.
    /// Dirty logs are exact.
    NoVcpuRuns,
    /// Anything, while vCPUs are paused. Dirty logs are exact.
    Gate(Arc<dyn VcpuGate>),
}

impl fmt::Debug for HolePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refuse => "Refuse",
            Self::Named => "Named",
            Self::NoVcpuRuns => "NoVcpuRuns",
            Self::Gate(_) => "Gate",
        })
    }
}
