//! What keeps vCPUs from seeing a hole.

use thiserror::Error;

/// Pauses vCPUs. A VMM supplies one to allow plans that open a hole: guest
/// pages that stay mapped, but are unmapped for the time between two ioctls.
///
/// Between a [`pause`](Self::pause) that succeeded and the
/// [`resume`](Self::resume) that follows it no vCPU of the VM may be inside
/// `KVM_RUN`, and nothing else may access guest memory through KVM.
pub trait VcpuGate: Send + Sync {
    /// Returns once no vCPU is inside `KVM_RUN`.
    ///
    /// # Errors
    /// Why it can't be done. Nothing is paused then, and the plan is not
    /// begun.
    fn pause(&self) -> Result<(), GateError>;

    /// Lets vCPUs in again. Called exactly once for each `pause` that
    /// succeeded.
    fn resume(&self);
}

/// Why vCPUs could not be paused.
#[derive(Debug, Error)]
#[error("the vCPUs could not be paused: {0}")]
pub struct GateError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

impl GateError {
    /// A gate error with this reason.
    pub fn new(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }
}

/// What to do about a plan that opens a hole.
#[derive(Clone, Copy, Default)]
pub enum Holes<'a> {
    /// Refuse it before the first call.
    #[default]
    Refuse,
    /// The VMM says that no vCPU runs until the plan is done, so nobody can
    /// see the hole. Dirty bits of what is replaced are reported as all set.
    NoVcpuRuns,
    /// Pause vCPUs for as long as the plan takes.
    Gate(&'a dyn VcpuGate),
}

impl std::fmt::Debug for Holes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Refuse => "Refuse",
            Self::NoVcpuRuns => "NoVcpuRuns",
            Self::Gate(_) => "Gate",
        })
    }
}

/// vCPUs that are paused, until this is dropped.
pub(super) struct Paused<'a>(&'a dyn VcpuGate);

impl<'a> Paused<'a> {
    pub(super) fn new(gate: &'a dyn VcpuGate) -> Result<Self, GateError> {
        gate.pause()?;
        Ok(Self(gate))
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.resume();
    }
}
