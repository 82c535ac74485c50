//! KVM's rules for ioeventfds, zones, irqfds and routes, in memory
//! (`virt/kvm/eventfd.c`, `virt/kvm/coalesced_mmio.c`, `virt/kvm/irqchip.c`,
//! `arch/x86/kvm/irq_comm.c` of Linux 6.12; the architecture is x86).

mod zones;

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use super::bus::IoBus;
use super::calls::EventCalls;
use super::op::{Op, Waits};
use super::part::Part;
use super::routes::Routes;
use super::state::State;
use super::types::{Bus, Ioeventfd, Irqfd, Route, RouteTarget};
use super::zone::ZoneWrite;
use crate::errno::Errno;
use crate::fault::{self, Faults, handle};
use crate::limits::EventLimits;

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

/// A call, for counting and for failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
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
    /// `KVM_REGISTER_COALESCED_MMIO`.
    RegisterZone,
    /// `KVM_UNREGISTER_COALESCED_MMIO`.
    UnregisterZone,
}

/// A failure to come of an event call.
pub type Fault = fault::Fault<Call>;

/// What the model was asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Calls by kind, refused ones included.
    pub calls: BTreeMap<Call, u64>,
    /// What those that were not refused would have waited for.
    pub waits: Waits,
}

impl Call {
    const fn of(op: &Op) -> Self {
        match op {
            Op::Routes { .. } => Self::Routing,
            Op::Assign(Part::Irqfd(_)) => Self::AssignIrqfd,
            Op::Deassign(Part::Irqfd(_)) => Self::DeassignIrqfd,
            Op::Assign(Part::Ioeventfd(_)) => Self::AssignIoeventfd,
            Op::Deassign(Part::Ioeventfd(_)) => Self::DeassignIoeventfd,
            Op::Assign(Part::Zone(_)) => Self::RegisterZone,
            Op::Deassign(Part::Zone(_)) => Self::UnregisterZone,
        }
    }
}

impl Counts {
    /// Calls of one kind.
    #[must_use]
    pub fn of(&self, call: Call) -> u64 {
        self.calls.get(&call).copied().unwrap_or(0)
    }
}

/// The model of a VM's ioeventfds, irqfds and routes. A handle: clones are of
/// the same VM.
///
/// ```
/// use kvm_memslots_shim::Errno;
/// use kvm_memslots_shim::events::model::{Irqchip, Model};
/// use kvm_memslots_shim::events::{Bus, EventCalls, Ioeventfd, Op};
///
/// let vm = Model::new(Irqchip::Split);
/// let kick = Ioeventfd { bus: Bus::Mmio, addr: 0x1000, len: 2, datamatch: Some(1), fd: 7 };
/// vm.change(&Op::Assign(kick.into()))?;
/// assert_eq!(vm.guest_writes(Bus::Mmio, 0x1000, 2, 1), Some(7));
/// assert_eq!(vm.guest_writes(Bus::Mmio, 0x1000, 2, 0), None);
/// let any = Ioeventfd { datamatch: None, ..kick };
/// assert_eq!(vm.change(&Op::Assign(any.into())), Err(Errno::EEXIST));
/// # Ok::<(), Errno>(())
/// ```
#[derive(Debug, Clone)]
pub struct Model(Arc<Mutex<Vm>>);

handle!(Model, Vm, Counts, Fault);

#[derive(Debug, Clone)]
struct Vm {
    limits: EventLimits,
    irqchip: Irqchip,
    fds: BTreeMap<RawFd, FdKind>,
    state: State,
    mmio: IoBus,
    pio: IoBus,
    /// The ring of the zones, as the VMM finds it.
    ring: Vec<ZoneWrite>,
    counts: Counts,
    faults: Faults<Call>,
}

impl Model {
    /// A VM with this interrupt controller and the routes that come with it.
    /// Every descriptor is an eventfd of its own unless
    /// [`set_fd`](Self::set_fd) says otherwise.
    #[must_use]
    pub fn new(irqchip: Irqchip) -> Self {
        let mut state = State::default();
        let (mut mmio, mut pio) = (IoBus::default(), IoBus::default());
        if irqchip == Irqchip::Full {
            state.routes = Route::x86_defaults().into_iter().collect();
            mmio = IoBus::with(&[(0xfec0_0000, 0x100)]);
            pio = IoBus::with(&[(0x20, 2), (0xa0, 2), (0x4d0, 2)]);
        }
        Self(Arc::new(Mutex::new(Vm {
            limits: EventLimits::x86(),
            irqchip,
            fds: BTreeMap::new(),
            state,
            mmio,
            pio,
            ring: Vec::new(),
            counts: Counts::default(),
            faults: Faults::default(),
        })))
    }

    /// The same, of a kernel that allows this.
    #[must_use]
    pub fn with_limits(self, limits: EventLimits) -> Self {
        self.with(|vm| vm.limits = limits);
        self
    }

    /// Says what a descriptor is.
    pub fn set_fd(&self, fd: RawFd, kind: FdKind) {
        self.with(|vm| vm.fds.insert(fd, kind));
    }

    /// What the VM has.
    #[must_use]
    pub fn state(&self) -> State {
        self.with(|vm| vm.state.clone())
    }

    /// What signalling an eventfd raises.
    #[must_use]
    pub fn signalled(&self, fd: RawFd) -> Vec<RouteTarget> {
        self.with(|vm| vm.signalled(fd))
    }
}

impl Vm {
    fn signalled(&self, fd: RawFd) -> Vec<RouteTarget> {
        let Some(id) = self.eventfd(fd).ok() else { return Vec::new() };
        let irqfd = self.state.irqfds().find(|irqfd| self.eventfd(irqfd.fd) == Ok(id));
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

    /// Counts a call, lets a fault strike it, and makes it.
    fn change(&mut self, op: &Op) -> Result<(), Errno> {
        let call = Call::of(op);
        *self.counts.calls.entry(call).or_default() += 1;
        self.faults.strike(call).map_err(|(errno, _)| errno)?;
        match op {
            Op::Routes { to, .. } => self.set_routes(to),
            Op::Assign(Part::Irqfd(irqfd)) => self.assign_irqfd(irqfd),
            Op::Deassign(Part::Irqfd(irqfd)) => self.deassign_irqfd(irqfd),
            Op::Assign(Part::Ioeventfd(ioeventfd)) => self.assign_ioeventfd(ioeventfd),
            Op::Deassign(Part::Ioeventfd(ioeventfd)) => self.deassign_ioeventfd(ioeventfd),
            Op::Assign(Part::Zone(zone)) => self.register_zone(zone),
            Op::Deassign(Part::Zone(zone)) => self.unregister_zone(zone),
        }
    }

    fn done(&mut self, op: &Op) {
        self.counts.waits += op.waits();
        self.state.follow(op);
        let (Op::Assign(part) | Op::Deassign(part)) = op else { return };
        let bus = match part {
            Part::Ioeventfd(ioeventfd) => self.bus(ioeventfd.bus),
            Part::Zone(zone) => self.bus(zone.bus),
            Part::Irqfd(_) => return,
        };
        match op {
            Op::Assign(_) => bus.register(*part),
            _ => bus.unregister(*part),
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

impl Vm {
    fn set_routes(&mut self, routes: &Routes) -> Result<(), Errno> {
        self.check_routes(routes)?;
        self.done(&Op::Routes { from: self.state.routes.clone(), to: routes.clone() });
        Ok(())
    }

    /// `kvm_irqfd_assign()`.
    fn assign_irqfd(&mut self, irqfd: &Irqfd) -> Result<(), Errno> {
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
        if self.state.irqfds().any(|other| self.eventfd(other.fd) == Ok(id)) {
            return Err(Errno::EBUSY);
        }
        self.done(&Op::Assign(Part::Irqfd(*irqfd)));
        Ok(())
    }

    /// `kvm_irqfd_deassign()`.
    fn deassign_irqfd(&mut self, irqfd: &Irqfd) -> Result<(), Errno> {
        let id = self.eventfd(irqfd.fd)?;
        let gone: Vec<Irqfd> = (self.state.irqfds())
            .filter(|other| other.gsi == irqfd.gsi && self.eventfd(other.fd) == Ok(id))
            .collect();
        for irqfd in gone {
            self.done(&Op::Deassign(Part::Irqfd(irqfd)));
        }
        Ok(())
    }

    /// `kvm_assign_ioeventfd()`.
    fn assign_ioeventfd(&mut self, ioeventfd: &Ioeventfd) -> Result<(), Errno> {
        let bad = !matches!(ioeventfd.len, 0 | 1 | 2 | 4 | 8)
            || ioeventfd.addr.checked_add(ioeventfd.len.into()).is_none()
            || (ioeventfd.len == 0 && ioeventfd.datamatch.is_some());
        if bad {
            return Err(Errno::EINVAL);
        }
        self.eventfd(ioeventfd.fd)?;
        if self.state.ioeventfds().any(|other| other.collides_with(ioeventfd)) {
            return Err(Errno::EEXIST);
        }
        self.done(&Op::Assign(Part::Ioeventfd(*ioeventfd)));
        Ok(())
    }

    /// `kvm_deassign_ioeventfd_idx()`.
    fn deassign_ioeventfd(&mut self, ioeventfd: &Ioeventfd) -> Result<(), Errno> {
        let id = self.eventfd(ioeventfd.fd)?;
        let same = |other: &Ioeventfd| {
            self.eventfd(other.fd) == Ok(id)
                && Ioeventfd { fd: 0, ..*other } == Ioeventfd { fd: 0, ..*ioeventfd }
        };
        let found = self.state.ioeventfds().find(same).ok_or(Errno::ENOENT)?;
        self.done(&Op::Deassign(Part::Ioeventfd(found)));
        Ok(())
    }
}

impl EventCalls for Model {
    fn limits(&self) -> EventLimits {
        self.with(|vm| vm.limits)
    }

    fn name(&self) -> &'static str {
        "model"
    }

    fn change(&self, op: &Op) -> Result<(), Errno> {
        self.with(|vm| vm.change(op))
    }

    fn has_irqchip(&self) -> Option<bool> {
        Some(self.with(|vm| vm.irqchip == Irqchip::Full))
    }
}
