//! Options of an [`Eventing`].

use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_memslots_shim::eventing::{EventCalls, Gsis, KvmEventing, Route, State};
use kvm_memslots_shim::uapi::irqfd::NoIrqBypass;

use super::Eventing;
use super::error::{DeviceError, DeviceErrorKind, DevicePart};
use crate::Error;

/// The GSIs that a VM's interrupt controllers have by default: 24 pins of the
/// IOAPIC. Others are handed out from here on.
const FIRST_GSI: u32 = 24;

/// Options of an [`Eventing`].
///
/// ```no_run
/// # fn f(vm: std::os::fd::BorrowedFd<'_>) -> Result<(), Box<dyn std::error::Error>> {
/// use kvm_memslots::device::{Eventing, Route};
///
/// // After KVM_CREATE_IRQCHIP, in a VMM with an irqfd of its own at GSI 40.
/// let eventing =
///     Eventing::builder().routes(Route::x86_defaults()).reserve_gsis(40..=40).open(vm)?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct EventingBuilder {
    routes: Vec<Route>,
    reserved: Vec<RangeInclusive<u32>>,
    first: u32,
    no_irqbypass: bool,
}

impl Default for EventingBuilder {
    fn default() -> Self {
        Self { routes: Vec::new(), reserved: Vec::new(), first: FIRST_GSI, no_irqbypass: true }
    }
}

impl EventingBuilder {
    /// The routes that the VM has now and that are the VMM's own: KVM replaces
    /// all routes at once and can't be asked for them, so what is not said here
    /// is gone with the first change. Those that come with an interrupt
    /// controller are [`Route::x86_defaults`] and [`Route::arm64_defaults`].
    /// Their GSIs are not handed out.
    pub fn routes(mut self, routes: impl IntoIterator<Item = Route>) -> Self {
        self.routes.extend(routes);
        self
    }

    /// GSIs that the VMM uses itself, for irqfds of its own or later routes.
    pub fn reserve_gsis(mut self, gsis: RangeInclusive<u32>) -> Self {
        self.reserved.push(gsis);
        self
    }

    /// The first GSI that is handed out; 24 unless said otherwise.
    pub fn first_gsi(mut self, gsi: u32) -> Self {
        self.first = gsi;
        self
    }

    /// Whether `KVM_IRQFD_FLAG_NO_IRQBYPASS` is used where the kernel has it, for
    /// devices that don't say [`may_bypass`](super::DeviceSetup::may_bypass).
    /// On unless said otherwise.
    pub fn no_irqbypass(mut self, on: bool) -> Self {
        self.no_irqbypass = on;
        self
    }

    /// Opens on the VM behind `vm`, which is duplicated.
    ///
    /// # Errors
    /// [`DeviceErrorKind::Memory`] with [`Error::Open`] where `vm` is no VM;
    /// [`DeviceErrorKind::GsiBeyondLimit`], [`DeviceErrorKind::TooManyRoutes`]
    /// for what the VMM says of its routes.
    pub fn open(self, vm: impl AsFd) -> Result<Eventing, DeviceError> {
        let kvm = KvmEventing::open(vm)
            .map_err(|error| DeviceError::nobodys(DeviceErrorKind::Memory(Error::Open(error))))?;
        if let NoIrqBypass::Impostor { claimed, with_flag, with_unknown } = kvm.no_irqbypass() {
            tracing::warn!(claimed, with_flag, with_unknown, "not KVM_CAP_IRQFD_NO_IRQBYPASS");
        }
        self.open_on(Box::new(kvm))
    }

    /// Opens on the model of KVM, or on something of the VMM's own.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(self, calls: Box<dyn EventCalls>) -> Result<Eventing, DeviceError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let limits = calls.limits();
        let routes: std::collections::BTreeSet<Route> = self.routes.into_iter().collect();
        let refused = |kind| DeviceError {
            device: None,
            part: Some(DevicePart::Routes),
            kind: Box::new(kind),
        };
        let limit = limits.routes;
        if let Some(route) = routes.iter().find(|route| route.gsi >= limit) {
            return Err(refused(DeviceErrorKind::GsiBeyondLimit { gsi: route.gsi, limit }));
        }
        if routes.len() > limit as usize {
            let routes = routes.len();
            return Err(refused(DeviceErrorKind::TooManyRoutes { routes, limit }));
        }
        let mut gsis = Gsis::new(self.first, limit);
        for route in &routes {
            gsis.reserve(route.gsi..=route.gsi);
        }
        for range in &self.reserved {
            gsis.reserve(range.clone());
        }
        tracing::debug!(backend = calls.name(), ?limits, routes = routes.len(), "open eventing");
        Ok(Eventing {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            no_irqbypass: self.no_irqbypass && limits.no_irqbypass,
            live: State { routes: routes.clone(), ..State::default() },
            calls,
            limits,
            own_routes: routes,
            reserved: self.reserved,
            gsis,
            slots: Vec::new(),
            limbo: Vec::new(),
        })
    }
}
