//! Grace periods, counted by the kernel.
//!
//! `kvm_swap_active_memslots()` (`virt/kvm/kvm_main.c`) ends in
//! `synchronize_srcu_expedited(&kvm->srcu)`: that call is what a memslot change
//! costs. A create or a change of flags swaps once; a delete or a move swaps
//! twice, once for making the old slot invalid and once for what replaces it
//! (`kvm_set_memslot()`).
//!
//! tracefs can count those calls without a change to the kernel, in one of
//! several ways (see [`Method`]); which are permitted differs from machine to
//! machine (lockdown, containers, kernel configuration), and which are exact
//! depends on the kernel's SRCU. So a [`GraceCounter`] believes none of them:
//! each is tried on a scratch VM, idle and with a busy vCPU, and one that does
//! not count exactly 1 for a create or a change of flags and exactly 2 for a
//! delete or a move is not used.
//!
//! Counting adds a trace record to each grace period, so it is done in passes
//! of its own: while no pass is being counted, nothing is traced.

mod calibrate;
mod method;
mod tracefs;

pub use calibrate::{Calibration, Misfit};
pub use method::Method;

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::Path;

use kvm_ioctls::VmFd;
use tracefs::{Instance, TraceFs};

/// Counts the grace periods that this thread waits for.
///
/// Owns a tracefs instance of its own, which goes when the value is dropped;
/// those of processes that died without dropping theirs are removed on the way
/// in. Not to be sent to another thread: most methods count by thread.
#[derive(Debug)]
pub struct GraceCounter {
    armed: method::Armed,
    calibration: Calibration,
    not_send: PhantomData<*const ()>,
}

/// Why the kernel can't count grace periods here.
#[derive(Debug)]
pub struct NotCounted {
    /// What was tried, and what became of it.
    pub tried: Vec<(Method, Misfit)>,
    /// What kept everything from being tried.
    pub cause: Option<io::Error>,
}

impl fmt::Display for NotCounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the kernel does not count grace periods here")?;
        if let Some(cause) = &self.cause {
            let remedy = match cause.kind() {
                io::ErrorKind::PermissionDenied => " (root may)",
                io::ErrorKind::NotFound => " (this kernel has none, or it is not mounted)",
                _ => "",
            };
            write!(f, "; tracefs: {cause}{remedy}")?;
        }
        self.tried.iter().try_for_each(|(method, misfit)| write!(f, "; {method}: {misfit}"))
    }
}

impl std::error::Error for NotCounted {}

impl GraceCounter {
    /// The first method, in the order of [`Method::ALL`], that counts right on
    /// scratch VMs that `new_vm` makes.
    ///
    /// # Errors
    /// [`NotCounted`]: none does, or tracefs is out of reach.
    pub fn calibrated(new_vm: impl Fn() -> io::Result<VmFd>) -> Result<Self, NotCounted> {
        Self::first_of(&Method::ALL, new_vm)
    }

    /// As [`calibrated`](Self::calibrated), of these methods only.
    ///
    /// # Errors
    /// [`NotCounted`]: none does, or tracefs is out of reach.
    pub fn first_of(
        methods: &[Method],
        new_vm: impl Fn() -> io::Result<VmFd>,
    ) -> Result<Self, NotCounted> {
        let mut tried = Vec::new();
        let tracefs = TraceFs::find()
            .map_err(|cause| NotCounted { tried: Vec::new(), cause: Some(cause) })?;
        tracefs.remove_stale();
        for &method in methods {
            match Self::with_method(&tracefs, method, &new_vm) {
                Ok(counter) => return Ok(counter),
                Err(misfit) => tried.push((method, misfit)),
            }
        }
        Err(NotCounted { tried, cause: None })
    }

    fn with_method(
        tracefs: &TraceFs,
        method: Method,
        new_vm: &impl Fn() -> io::Result<VmFd>,
    ) -> Result<Self, Misfit> {
        let instance = Instance::new(tracefs).map_err(Misfit::Refused)?;
        let armed = method.arm(tracefs, instance).map_err(Misfit::Refused)?;
        let mut counter =
            Self { armed, calibration: Calibration::default(), not_send: PhantomData };
        counter.armed.enable(true).map_err(Misfit::Refused)?;
        counter.calibration = calibrate::calibrate(&mut counter, new_vm)?;
        counter.armed.enable(false).map_err(Misfit::Refused)?;
        Ok(counter)
    }

    /// How it counts.
    #[must_use]
    pub fn method(&self) -> Method {
        self.armed.method()
    }

    /// The folder of the tracefs instance.
    #[must_use]
    pub fn instance(&self) -> &Path {
        self.armed.instance()
    }

    /// What it counted on the scratch VMs.
    #[must_use]
    pub const fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// Does `work`, and counts the grace periods that this thread waits for
    /// meanwhile. The count is an error where tracefs could not be read or written.
    pub fn count<T>(&mut self, work: impl FnOnce() -> T) -> (T, io::Result<u64>) {
        let enabled = self.armed.enable(true);
        let (done, counted) = self.count_enabled(work);
        let disabled = self.armed.enable(false);
        (done, enabled.and(counted).and_then(|count| disabled.map(|()| count)))
    }

    /// [`count`](Self::count) while the method is enabled already: enabling and
    /// disabling take some 10 ms each.
    fn count_enabled<T>(&mut self, work: impl FnOnce() -> T) -> (T, io::Result<u64>) {
        let before = self.armed.records();
        let done = work();
        let after = before.and_then(|before| Ok(self.armed.records()?.saturating_sub(before)));
        (done, after)
    }
}
