//! The devices of one VM.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use kvm_memslots_shim::eventing::{
    Carried, EventCalls, EventLimits, Gsis, Incomplete, Msi, Refused, Route, State, carry_out, plan,
};

use super::error::{DeviceError, DeviceErrorKind, DevicePart};
use super::parts::Device;
use super::{DeviceId, DeviceReport, EventingBuilder};
use crate::RegionId;

/// The devices of one VM: what of them is in its memory, and all irqfds,
/// ioeventfds and interrupt routes that were made here.
///
/// It knows what it made. A VMM with routes or irqfds of its own in the same VM
/// says so when it opens ([`EventingBuilder::routes`],
/// [`EventingBuilder::reserve_gsis`]) and later changes its routes here
/// ([`set_own_routes`](Self::set_own_routes)): KVM has one table, and replaces
/// it as a whole.
///
/// Dropping it leaves everything to the VM; an irqfd goes with the last
/// descriptor of its eventfd.
pub struct Eventing {
    pub(super) id: u32,
    pub(super) calls: Box<dyn EventCalls>,
    pub(super) limits: EventLimits,
    pub(super) no_irqbypass: bool,
    pub(super) own_routes: BTreeSet<Route>,
    pub(super) reserved: Vec<RangeInclusive<u32>>,
    pub(super) gsis: Gsis,
    /// What KVM has.
    pub(super) live: State,
    pub(super) slots: Vec<Slot>,
    /// Eventfds of devices that are not attached, and that KVM may still have.
    pub(super) limbo: Vec<Arc<OwnedFd>>,
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) device: Option<Device>,
}

impl Eventing {
    /// On the VM behind `vm`, with the defaults of [`builder`](Self::builder):
    /// for a VM without routes, as after `KVM_CAP_SPLIT_IRQCHIP`.
    ///
    /// # Errors
    /// As [`EventingBuilder::open`].
    pub fn open(vm: impl AsFd) -> Result<Self, DeviceError> {
        Self::builder().open(vm)
    }

    /// Options.
    pub fn builder() -> EventingBuilder {
        EventingBuilder::default()
    }

    /// What the VM allows.
    #[must_use]
    pub const fn limits(&self) -> EventLimits {
        self.limits
    }

    /// Whether irqfds get `KVM_IRQFD_FLAG_NO_IRQBYPASS`.
    #[must_use]
    pub const fn uses_no_irqbypass(&self) -> bool {
        self.no_irqbypass
    }

    /// What KVM has: the VMM's own routes, and all that was made here.
    #[must_use]
    pub const fn live(&self) -> &State {
        &self.live
    }

    /// How many devices are attached.
    #[must_use]
    pub fn len(&self) -> usize {
        self.attached().count()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The GSI of a device's vector; `None` before its first message.
    ///
    /// # Errors
    /// [`DeviceErrorKind::NotAttached`], [`DeviceErrorKind::NoSuchVector`].
    pub fn gsi(&self, id: DeviceId, vector: usize) -> Result<Option<u32>, DeviceError> {
        let device = self.device(id)?;
        let vectors = device.vectors.len();
        device.vectors.get(vector).map(|vector| vector.gsi).ok_or_else(|| {
            let part = DevicePart::Vector { index: vector };
            DeviceError::of(&device.name, part, DeviceErrorKind::NoSuchVector { vectors })
        })
    }

    /// The regions of a device, in the order in which they were added.
    ///
    /// # Errors
    /// [`DeviceErrorKind::NotAttached`].
    pub fn regions(&self, id: DeviceId) -> Result<&[RegionId], DeviceError> {
        self.device(id).map(|device| &*device.regions)
    }

    /// Gives a vector the message that the guest has programmed, or masks it
    /// (`None`). Takes effect with the next [`commit`](Self::commit), attach or
    /// detach: however many vectors change, the routes are set once.
    ///
    /// A masked vector has neither route nor irqfd. Events stay in its eventfd
    /// and raise the interrupt when it is unmasked.
    ///
    /// # Errors
    /// [`DeviceErrorKind::NotAttached`], [`DeviceErrorKind::NoSuchVector`],
    /// [`DeviceErrorKind::NoGsiLeft`], [`DeviceErrorKind::NoDevid`].
    pub fn set_vector(
        &mut self,
        id: DeviceId,
        vector: usize,
        msi: Option<Msi>,
    ) -> Result<(), DeviceError> {
        let mut gsi = self.gsi(id, vector)?;
        self.check_msi(&self.device(id)?.name, vector, msi)?;
        if msi.is_some() && gsi.is_none() {
            gsi = self.gsis.take();
            if gsi.is_none() {
                let kind = DeviceErrorKind::NoGsiLeft { limit: self.limits.routes };
                let part = DevicePart::Vector { index: vector };
                return Err(DeviceError::of(&self.device(id)?.name, part, kind));
            }
        }
        let place = self.slots.get_mut(id.index as usize).and_then(|slot| slot.device.as_mut());
        if let Some(vector) = place.and_then(|device| device.vectors.get_mut(vector)) {
            (vector.msi, vector.gsi) = (msi, gsi);
        }
        Ok(())
    }

    /// Replaces the VMM's own routes. Takes effect as
    /// [`set_vector`](Self::set_vector) does.
    ///
    /// # Errors
    /// [`DeviceErrorKind::GsiBeyondLimit`]; [`DeviceErrorKind::GsiTaken`] by a
    /// vector of a device.
    pub fn set_own_routes(
        &mut self,
        routes: impl IntoIterator<Item = Route>,
    ) -> Result<(), DeviceError> {
        let routes: BTreeSet<Route> = routes.into_iter().collect();
        let refused = |kind| {
            Err(DeviceError { device: None, part: Some(DevicePart::Routes), kind: Box::new(kind) })
        };
        for gsi in routes.iter().map(|route| route.gsi) {
            let limit = self.limits.routes;
            if gsi >= limit {
                return refused(DeviceErrorKind::GsiBeyondLimit { gsi, limit });
            }
            let uses = |device: &&Device| device.vectors.iter().any(|v| v.gsi == Some(gsi));
            if let Some(device) = self.attached().find(uses) {
                let by = format!("a vector of device \"{}\"", device.name).into();
                return refused(DeviceErrorKind::GsiTaken { gsi, by });
            }
        }
        for gsi in self.own_routes.iter().map(|route| route.gsi) {
            if !self.reserved.iter().any(|range| range.contains(&gsi)) {
                self.gsis.give_back(gsi);
            }
        }
        for route in &routes {
            self.gsis.reserve(route.gsi..=route.gsi);
        }
        self.own_routes = routes;
        Ok(())
    }

    /// Carries out what is staged: one `KVM_SET_GSI_ROUTING`, none if no route
    /// changed; an irqfd for each vector that was masked or unmasked; the
    /// ioeventfds of devices that
    /// [left them to it](super::DeviceSetup::defer_ioeventfds). After
    /// [`DeviceErrorKind::Stuck`] it also puts right what is live.
    ///
    /// # Errors
    /// [`DeviceErrorKind::Refused`], [`DeviceErrorKind::Stuck`]; vectors are
    /// what they were before they were staged.
    pub fn commit(&mut self) -> Result<DeviceReport, DeviceError> {
        let start = Instant::now();
        let deferred: Vec<bool> =
            self.devices_mut().map(|d| std::mem::take(&mut d.defers)).collect();
        match self.settle() {
            Ok(events) => {
                self.keep_staged();
                Ok(DeviceReport { memory: None, events, elapsed: start.elapsed() })
            }
            Err(refused) => {
                let mut error = self.explain(refused);
                for (device, defers) in self.devices_mut().zip(deferred) {
                    device.defers = defers;
                    device.vectors.iter_mut().for_each(|vector| vector.msi = vector.committed);
                }
                self.set_difference(&mut error);
                Err(error)
            }
        }
    }

    /// What KVM is to have.
    pub(super) fn wanted(&self) -> State {
        let mut state = State { routes: self.own_routes.clone(), ..State::default() };
        self.attached().for_each(|device| device.add_to(&mut state, self.no_irqbypass));
        state
    }

    /// Makes the calls that lead to what is wanted.
    pub(super) fn settle(&mut self) -> Result<Carried, Refused> {
        let wanted = self.wanted();
        self.settle_to(&wanted)
    }

    /// What was staged is not any more: it has come to stay.
    pub(super) fn keep_staged(&mut self) {
        for vector in self.devices_mut().flat_map(|device| device.vectors.iter_mut()) {
            vector.committed = vector.msi;
        }
    }

    pub(super) fn settle_to(&mut self, wanted: &State) -> Result<Carried, Refused> {
        let steps = plan(&self.live, wanted);
        for step in &steps {
            tracing::trace!(%step, "plan");
        }
        match carry_out(&mut *self.calls, &self.live, &steps) {
            Ok(carried) => {
                self.live = wanted.clone();
                self.limbo.clear();
                tracing::debug!(?carried, "devices");
                Ok(carried)
            }
            Err(refused) => {
                if let Some(incomplete) = &refused.incomplete {
                    self.live = incomplete.live.clone();
                }
                tracing::warn!(step = %refused.step, errno = %refused.errno, "devices refused");
                Err(refused)
            }
        }
    }

    pub(super) fn explain(&self, refused: Refused) -> DeviceError {
        let Refused { step, errno, incomplete, .. } = refused;
        let found = self.attached().find_map(|device| {
            device.part_of(&step).map(|part| (Some(device.name.clone()), Some(part)))
        });
        let (device, part) = found.unwrap_or((None, None));
        let kind = match incomplete.map(|incomplete| *incomplete) {
            None => DeviceErrorKind::Refused { step, errno },
            Some(Incomplete { step: undo, errno: undo_errno, .. }) => DeviceErrorKind::Stuck {
                step,
                errno,
                undo,
                undo_errno,
                surplus: Box::default(),
                missing: Box::default(),
                regions: Vec::new(),
            },
        };
        DeviceError { device, part, kind: Box::new(kind) }
    }

    /// Fills in, once the devices are those from before, how KVM differs.
    pub(super) fn set_difference(&self, error: &mut DeviceError) {
        let wanted = self.wanted();
        if let DeviceErrorKind::Stuck { surplus, missing, .. } = &mut *error.kind {
            (**surplus, **missing) = (self.live.without(&wanted), wanted.without(&self.live));
        }
    }

    /// A refused call that was itself an undo.
    pub(super) fn make_stuck(&self, error: &mut DeviceError) {
        if let DeviceErrorKind::Refused { step, errno } = &*error.kind {
            let (step, errno) = (step.clone(), *errno);
            *error.kind = DeviceErrorKind::Stuck {
                undo: step.clone(),
                undo_errno: errno,
                step,
                errno,
                surplus: Box::default(),
                missing: Box::default(),
                regions: Vec::new(),
            };
        }
        self.set_difference(error);
    }

    fn devices_mut(&mut self) -> impl Iterator<Item = &mut Device> + '_ {
        self.slots.iter_mut().filter_map(|slot| slot.device.as_mut())
    }

    pub(super) fn attached(&self) -> impl Iterator<Item = &Device> + '_ {
        self.slots.iter().filter_map(|slot| slot.device.as_ref())
    }

    pub(super) fn device(&self, id: DeviceId) -> Result<&Device, DeviceError> {
        let slot = self.slots.get(id.index as usize);
        slot.filter(|slot| slot.generation == id.generation && self.id == id.eventing)
            .and_then(|slot| slot.device.as_ref())
            .ok_or_else(|| DeviceError::nobodys(DeviceErrorKind::NotAttached { id }))
    }
}

impl fmt::Debug for Eventing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eventing")
            .field("id", &self.id)
            .field("backend", &self.calls.name())
            .field("devices", &self.len())
            .field("routes", &self.live.routes.len())
            .field("irqfds", &self.live.irqfds.len())
            .field("ioeventfds", &self.live.ioeventfds.len())
            .finish_non_exhaustive()
    }
}
