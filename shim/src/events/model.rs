//! KVM's rules for ioeventfds, zones, irqfds and routes, in memory
//! (`virt/kvm/eventfd.c`, `virt/kvm/coalesced_mmio.c`, `virt/kvm/irqchip.c`,
//! `arch/x86/kvm/irq_comm.c` of Linux 6.12; the architecture is x86).

mod zones;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use super::bus::{IoBus, What};
use super::calls::EventCalls;
use super::op::{Op, Waits};
use super::state::State;
use super::types::{Bus, Ioeventfd, Irqfd, Route, RouteTarget};
use super::zone::{Zone, ZoneWrite};
use crate::errno::Errno;
use crate::fault::{self, Faults, handle};
use crate::limits::{EventLimits, ZoneLimits};

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
/// use kvm_memslots_shim::events::{Bus, EventCalls, Ioeventfd};
///
/// let vm = Model::new(Irqchip::Split);
/// let kick = Ioeventfd { bus: Bus::Mmio, addr: 0x1000, len: 2, datamatch: Some(1), fd: 7 };
/// vm.assign_ioeventfd(&kick)?;
/// assert_eq!(vm.guest_writes(Bus::Mmio, 0x1000, 2, 1), Some(7));
/// assert_eq!(vm.guest_writes(Bus::Mmio, 0x1000, 2, 0), None);
/// let any = Ioeventfd { datamatch: None, ..kick };
/// assert_eq!(vm.assign_ioeventfd(&any), Err(Errno::EEXIST));
/// # Ok::<(), Errno>(())
/// ```
#[derive(Debug, Clone)]
pub struct Model(Arc<Mutex<Vm>>);

handle!(Model, Vm, Counts, Fault);

#[derive(Debug, Clone)]
struct Vm {
    limits: EventLimits,
    zones: ZoneLimits,
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
            limits: EventLimits { routes: 4096, no_irqbypass: false, devid: false },
            zones: ZoneLimits::x86(),
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
    fn enter(&mut self, call: Call) -> Result<(), Errno> {
        *self.counts.calls.entry(call).or_default() += 1;
        self.faults.strike(call).map_err(|(errno, _)| errno)
    }

    fn done(&mut self, op: &Op) {
        self.counts.waits += op.waits();
        self.state.follow(op);
        match op {
            Op::AssignIoeventfd(at) => self.bus(at.bus).register(What::Ioeventfd(*at)),
            Op::DeassignIoeventfd(at) => self.bus(at.bus).unregister(What::Ioeventfd(*at)),
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

impl Vm {
    fn set_routes(&mut self, routes: &[Route]) -> Result<(), Errno> {
        self.enter(Call::Routing)?;
        self.check_routes(routes)?;
        let (from, to) = (self.state.routes.clone(), routes.iter().copied().collect());
        self.done(&Op::Routes { from, to });
        Ok(())
    }

    /// `kvm_irqfd_assign()`.
    fn assign_irqfd(&mut self, irqfd: &Irqfd) -> Result<(), Errno> {
        self.enter(Call::AssignIrqfd)?;
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
        self.done(&Op::AssignIrqfd(*irqfd));
        Ok(())
    }

    /// `kvm_irqfd_deassign()`.
    fn deassign_irqfd(&mut self, irqfd: &Irqfd) -> Result<(), Errno> {
        self.enter(Call::DeassignIrqfd)?;
        let id = self.eventfd(irqfd.fd)?;
        let gone: BTreeSet<Irqfd> = (self.state.irqfds.iter().copied())
            .filter(|other| other.gsi == irqfd.gsi && self.eventfd(other.fd) == Ok(id))
            .collect();
        for irqfd in gone {
            self.done(&Op::DeassignIrqfd(irqfd));
        }
        Ok(())
    }

    /// `kvm_assign_ioeventfd()`.
    fn assign_ioeventfd(&mut self, ioeventfd: &Ioeventfd) -> Result<(), Errno> {
        self.enter(Call::AssignIoeventfd)?;
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
        self.done(&Op::AssignIoeventfd(*ioeventfd));
        Ok(())
    }

    /// `kvm_deassign_ioeventfd_idx()`.
    fn deassign_ioeventfd(&mut self, ioeventfd: &Ioeventfd) -> Result<(), Errno> {
        self.enter(Call::DeassignIoeventfd)?;
        let id = self.eventfd(ioeventfd.fd)?;
        let same = |other: &&Ioeventfd| {
            self.eventfd(other.fd) == Ok(id)
                && Ioeventfd { fd: 0, ..**other } == Ioeventfd { fd: 0, ..*ioeventfd }
        };
        let found = self.state.ioeventfds.iter().find(same).copied().ok_or(Errno::ENOENT)?;
        self.done(&Op::DeassignIoeventfd(found));
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

    fn set_routes(&self, routes: &[Route]) -> Result<(), Errno> {
        self.with(|vm| vm.set_routes(routes))
    }

    fn assign_irqfd(&self, irqfd: &Irqfd) -> Result<(), Errno> {
        self.with(|vm| vm.assign_irqfd(irqfd))
    }

    fn deassign_irqfd(&self, irqfd: &Irqfd) -> Result<(), Errno> {
        self.with(|vm| vm.deassign_irqfd(irqfd))
    }

    fn assign_ioeventfd(&self, ioeventfd: &Ioeventfd) -> Result<(), Errno> {
        self.with(|vm| vm.assign_ioeventfd(ioeventfd))
    }

    fn deassign_ioeventfd(&self, ioeventfd: &Ioeventfd) -> Result<(), Errno> {
        self.with(|vm| vm.deassign_ioeventfd(ioeventfd))
    }

    fn zone_limits(&self) -> ZoneLimits {
        self.with(|vm| vm.zones)
    }

    fn register_zone(&self, zone: &Zone) -> Result<(), Errno> {
        self.with(|vm| vm.register_zone(zone))
    }

    fn unregister_zone(&self, zone: &Zone) -> Result<(), Errno> {
        self.with(|vm| vm.unregister_zone(zone))
    }

    fn has_irqchip(&self) -> Option<bool> {
        Some(self.with(|vm| vm.irqchip == Irqchip::Full))
    }
}
