//! KVM's rules for ioeventfds, irqfds and routes, in memory
//! (`virt/kvm/eventfd.c`, `virt/kvm/irqchip.c`, `arch/x86/kvm/irq_comm.c` of
//! Linux 6.12; the architecture is x86).

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Waits;
use super::bus::IoBus;
use super::{Bus, EventCalls, EventLimits, Ioeventfd, Irqfd, Route, RouteTarget, State, Step};
use crate::backend::Errno;

/// The interrupt controller that a VM has in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Irqchip {
    /// None.
    None,
    /// Local APICs only (`KVM_CAP_SPLIT_IRQCHIP`): messages, no pins.
    Split,
    /// PICs and IOAPIC as well (`KVM_CREATE_IRQCHIP`).
    Full,
}

/// What a descriptor is to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FdKind {
    /// An eventfd; duplicates have the same number.
    Eventfd(u64),
    /// Open, and something else.
    Other,
    /// Not open.
    Closed,
}

/// A kind of call, for counting and for failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventCall {
    /// `KVM_SET_GSI_ROUTING`.
    Routing,
    /// `KVM_IRQFD`.
    AssignIrqfd,
    /// `KVM_IRQFD`, deassign.
    DeassignIrqfd,
    /// `KVM_IOEVENTFD`.
    AssignIoeventfd,
    /// `KVM_IOEVENTFD`, deassign.
    DeassignIoeventfd,
}

/// A failure to come: the `nth` call from here (the next is the first), of one
/// kind or of any, fails, and so does every one after it if `forever`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventFault {
    /// Which kind; `None` for any.
    pub only: Option<EventCall>,
    /// Which call.
    pub nth: u64,
    /// Whether all from there on fail.
    pub forever: bool,
    /// With what.
    pub errno: Errno,
}

/// What the model was asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventCounts {
    /// Calls by kind, refused ones included.
    pub calls: BTreeMap<EventCall, u64>,
    /// What those that were not refused would have waited for.
    pub waits: Waits,
}

impl EventCounts {
    /// Calls of one kind.
    #[must_use]
    pub fn of(&self, call: EventCall) -> u64 {
        self.calls.get(&call).copied().unwrap_or(0)
    }
}

/// The model of a VM's ioeventfds, irqfds and routes.
///
/// ```
/// use kvm_memslots_shim::backend::Errno;
/// use kvm_memslots_shim::eventing::{Bus, EventCalls, EventModel, Ioeventfd, Irqchip};
///
/// let mut vm = EventModel::new(Irqchip::Split);
/// let kick = Ioeventfd { bus: Bus::Mmio, addr: 0x1000, len: 2, datamatch: Some(1), fd: 7 };
/// vm.assign_ioeventfd(&kick)?;
/// assert_eq!(vm.guest_writes(Bus::Mmio, 0x1000, 2, 1), Some(7));
/// assert_eq!(vm.guest_writes(Bus::Mmio, 0x1000, 2, 0), None);
/// let any = Ioeventfd { datamatch: None, ..kick };
/// assert_eq!(vm.assign_ioeventfd(&any), Err(Errno::EEXIST));
/// # Ok::<(), Errno>(())
/// ```
#[derive(Debug, Clone)]
pub struct EventModel {
    limits: EventLimits,
    irqchip: Irqchip,
    fds: BTreeMap<RawFd, FdKind>,
    state: State,
    mmio: IoBus,
    pio: IoBus,
    counts: EventCounts,
    faults: Vec<EventFault>,
}

impl EventModel {
    /// A VM with this interrupt controller and the routes that come with it.
    /// Every descriptor is an eventfd of its own unless
    /// [`set_fd`](Self::set_fd) says otherwise.
    #[must_use]
    pub fn new(irqchip: Irqchip) -> Self {
        let mut state = State::default();
        let (mut mmio, mut pio) = (IoBus::default(), IoBus::default());
        if irqchip == Irqchip::Full {
            state.routes.extend(Route::x86_defaults());
            mmio = IoBus::with(&[(0xfec0_0000, 0x100)]);
            pio = IoBus::with(&[(0x20, 2), (0xa0, 2), (0x4d0, 2)]);
        }
        Self {
            limits: EventLimits { routes: 4096, no_irqbypass: false, devid: false },
            irqchip,
            fds: BTreeMap::new(),
            state,
            mmio,
            pio,
            counts: EventCounts::default(),
            faults: Vec::new(),
        }
    }

    /// The same, of a kernel that allows this.
    #[must_use]
    pub fn with_limits(self, limits: EventLimits) -> Self {
        Self { limits, ..self }
    }

    /// A handle that can be cloned.
    #[must_use]
    pub fn shared(self) -> SharedEventModel {
        SharedEventModel(Arc::new(Mutex::new(self)))
    }

    /// Says what a descriptor is.
    pub fn set_fd(&mut self, fd: RawFd, kind: FdKind) {
        self.fds.insert(fd, kind);
    }

    /// What the VM has.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Calls so far.
    #[must_use]
    pub const fn counts(&self) -> &EventCounts {
        &self.counts
    }

    /// Counts from zero again.
    pub fn reset_counts(&mut self) {
        self.counts = EventCounts::default();
    }

    /// Makes calls fail.
    pub fn inject(&mut self, fault: EventFault) {
        self.faults.push(fault);
    }

    /// Forgets the faults that are still to come.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// The eventfd that a guest's write of `len` bytes signals; `None` where
    /// it comes out as an exit.
    #[must_use]
    pub fn guest_writes(&self, bus: Bus, addr: u64, len: u32, value: u64) -> Option<RawFd> {
        let bus = if bus == Bus::Mmio { &self.mmio } else { &self.pio };
        bus.write(addr, len, value).map(|ioeventfd| ioeventfd.fd)
    }

    /// What signalling an eventfd raises.
    #[must_use]
    pub fn signalled(&self, fd: RawFd) -> Vec<RouteTarget> {
        let Some(id) = self.eventfd(fd).ok() else { return Vec::new() };
        let irqfd = self.state.irqfds.iter().find(|irqfd| self.eventfd(irqfd.fd) == Ok(id));
        let Some(irqfd) = irqfd else { return Vec::new() };
        let routes = self.state.routes.iter().filter(|route| route.gsi == irqfd.gsi);
        routes.map(|route| route.target).collect()
    }

    /// `eventfd_ctx_fdget()`.
    fn eventfd(&self, fd: RawFd) -> Result<u64, Errno> {
        match self.fds.get(&fd) {
            // No identity that `set_fd` would give by chance.
            None => Ok(u64::MAX - u64::from(fd.unsigned_abs())),
            Some(FdKind::Eventfd(id)) => Ok(*id),
            Some(FdKind::Other) => Err(Errno::EINVAL),
            Some(FdKind::Closed) => Err(Errno::EBADF),
        }
    }

    /// Counts a call, and lets a fault strike it.
    fn enter(&mut self, call: EventCall) -> Result<(), Errno> {
        *self.counts.calls.entry(call).or_default() += 1;
        let mut errno = None;
        for fault in &mut self.faults {
            if fault.only.is_some_and(|only| only != call) {
                continue;
            }
            fault.nth = fault.nth.saturating_sub(1);
            if fault.nth == 0 && errno.is_none() {
                errno = Some(fault.errno);
            }
        }
        self.faults.retain(|fault| fault.nth > 0 || fault.forever);
        errno.map_or(Ok(()), Err)
    }

    fn done(&mut self, step: &Step) {
        self.counts.waits += step.waits();
        self.state.follow(step);
        match step {
            Step::AssignIoeventfd(ioeventfd) => self.bus(ioeventfd.bus).register(ioeventfd),
            Step::DeassignIoeventfd(ioeventfd) => self.bus(ioeventfd.bus).unregister(ioeventfd),
            _ => {}
        }
    }

    fn bus(&mut self, bus: Bus) -> &mut IoBus {
        match bus {
            Bus::Mmio => &mut self.mmio,
            Bus::Pio => &mut self.pio,
        }
    }

    /// `kvm_set_irq_routing()`.
    fn check_routes(&self, routes: &[Route]) -> Result<(), Errno> {
        let limit = self.limits.routes;
        let bad = self.irqchip == Irqchip::None
            || routes.len() > limit as usize
            || routes.iter().any(|route| route.gsi >= limit || !self.target_exists(&route.target));
        let mut by_gsi = BTreeMap::<u32, Vec<RouteTarget>>::new();
        for route in routes {
            let others = by_gsi.entry(route.gsi).or_default();
            if others.iter().any(|other| !can_share(other, &route.target)) {
                return Err(Errno::EINVAL);
            }
            others.push(route.target);
        }
        if bad { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// `kvm_set_routing_entry()`.
    fn target_exists(&self, target: &RouteTarget) -> bool {
        match *target {
            RouteTarget::Irqchip { chip: 0 | 1, pin } => self.irqchip == Irqchip::Full && pin < 8,
            RouteTarget::Irqchip { chip: 2, pin } => self.irqchip == Irqchip::Full && pin < 24,
            RouteTarget::Msi(_) => true,
            RouteTarget::Irqchip { .. } | RouteTarget::Other { .. } => false,
        }
    }
}

/// Two routes of one GSI (`setup_routing_entry()`).
fn can_share(one: &RouteTarget, other: &RouteTarget) -> bool {
    match (one, other) {
        (RouteTarget::Irqchip { chip: a, .. }, RouteTarget::Irqchip { chip: b, .. }) => a != b,
        _ => false,
    }
}

impl EventCalls for EventModel {
    fn limits(&self) -> EventLimits {
        self.limits
    }

    fn name(&self) -> &'static str {
        "model"
    }

    fn set_routes(&mut self, routes: &[Route]) -> Result<(), Errno> {
        self.enter(EventCall::Routing)?;
        self.check_routes(routes)?;
        let from = self.state.routes.iter().copied().collect();
        self.done(&Step::Routes { from, to: routes.into() });
        Ok(())
    }

    /// `kvm_irqfd_assign()`.
    fn assign_irqfd(&mut self, irqfd: &Irqfd) -> Result<(), Errno> {
        self.enter(EventCall::AssignIrqfd)?;
        if irqfd.no_irqbypass && !self.limits.no_irqbypass {
            return Err(Errno::EINVAL);
        }
        match self.irqchip {
            Irqchip::None => return Err(Errno::EINVAL),
            Irqchip::Split if irqfd.resample.is_some() => return Err(Errno::EINVAL),
            Irqchip::Split | Irqchip::Full => {}
        }
        let id = self.eventfd(irqfd.fd)?;
        irqfd.resample.map_or(Ok(0), |fd| self.eventfd(fd))?;
        if self.state.irqfds.iter().any(|other| self.eventfd(other.fd) == Ok(id)) {
            return Err(Errno::EBUSY);
        }
        self.done(&Step::AssignIrqfd(*irqfd));
        Ok(())
    }

    /// `kvm_irqfd_deassign()`.
    fn deassign_irqfd(&mut self, irqfd: &Irqfd) -> Result<(), Errno> {
        self.enter(EventCall::DeassignIrqfd)?;
        let id = self.eventfd(irqfd.fd)?;
        let gone: BTreeSet<Irqfd> = (self.state.irqfds.iter().copied())
            .filter(|other| other.gsi == irqfd.gsi && self.eventfd(other.fd) == Ok(id))
            .collect();
        for irqfd in gone {
            self.done(&Step::DeassignIrqfd(irqfd));
        }
        Ok(())
    }

    /// `kvm_assign_ioeventfd()`.
    fn assign_ioeventfd(&mut self, ioeventfd: &Ioeventfd) -> Result<(), Errno> {
        self.enter(EventCall::AssignIoeventfd)?;
        let bad = !matches!(ioeventfd.len, 0 | 1 | 2 | 4 | 8)
            || ioeventfd.addr.checked_add(ioeventfd.len.into()).is_none()
            || (ioeventfd.len == 0 && ioeventfd.datamatch.is_some());
        if bad {
            return Err(Errno::EINVAL);
        }
        self.eventfd(ioeventfd.fd)?;
        if self.state.ioeventfds.iter().any(|other| other.collides_with(ioeventfd)) {
            return Err(Errno::EEXIST);
        }
        self.done(&Step::AssignIoeventfd(*ioeventfd));
        Ok(())
    }

    /// `kvm_deassign_ioeventfd_idx()`.
    fn deassign_ioeventfd(&mut self, ioeventfd: &Ioeventfd) -> Result<(), Errno> {
        self.enter(EventCall::DeassignIoeventfd)?;
        let id = self.eventfd(ioeventfd.fd)?;
        let same = |other: &&Ioeventfd| {
            self.eventfd(other.fd) == Ok(id)
                && Ioeventfd { fd: 0, ..**other } == Ioeventfd { fd: 0, ..*ioeventfd }
        };
        let found = self.state.ioeventfds.iter().find(same).copied().ok_or(Errno::ENOENT)?;
        self.done(&Step::DeassignIoeventfd(found));
        Ok(())
    }
}

/// A handle to an [`EventModel`]: clones speak to the same one.
#[derive(Debug, Clone)]
pub struct SharedEventModel(Arc<Mutex<EventModel>>);

impl SharedEventModel {
    /// The model, until the guard is dropped.
    pub fn lock(&self) -> MutexGuard<'_, EventModel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventCalls for SharedEventModel {
    fn limits(&self) -> EventLimits {
        self.lock().limits()
    }

    fn name(&self) -> &'static str {
        "model"
    }

    fn set_routes(&mut self, routes: &[Route]) -> Result<(), Errno> {
        self.lock().set_routes(routes)
    }

    fn assign_irqfd(&mut self, irqfd: &Irqfd) -> Result<(), Errno> {
        self.lock().assign_irqfd(irqfd)
    }

    fn deassign_irqfd(&mut self, irqfd: &Irqfd) -> Result<(), Errno> {
        self.lock().deassign_irqfd(irqfd)
    }

    fn assign_ioeventfd(&mut self, ioeventfd: &Ioeventfd) -> Result<(), Errno> {
        self.lock().assign_ioeventfd(ioeventfd)
    }

    fn deassign_ioeventfd(&mut self, ioeventfd: &Ioeventfd) -> Result<(), Errno> {
        self.lock().deassign_ioeventfd(ioeventfd)
    }
}
