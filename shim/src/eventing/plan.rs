//! Which calls lead from one state to another, in which order.

use std::collections::BTreeSet;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::sync::Arc;

use super::{Bus, Ioeventfd, Irqfd, Route};

/// All that KVM has of a VM, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// The routes.
    pub routes: BTreeSet<Route>,
    /// The irqfds.
    pub irqfds: BTreeSet<Irqfd>,
    /// The ioeventfds.
    pub ioeventfds: BTreeSet<Ioeventfd>,
}

impl State {
    /// What this state has and `other` lacks.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            routes: &self.routes - &other.routes,
            irqfds: &self.irqfds - &other.irqfds,
            ioeventfds: &self.ioeventfds - &other.ioeventfds,
        }
    }

    /// Follows a step that was taken.
    pub fn follow(&mut self, step: &Step) {
        match step {
            Step::Routes { to, .. } => self.routes = to.iter().copied().collect(),
            Step::AssignIrqfd(irqfd) => _ = self.irqfds.insert(*irqfd),
            Step::DeassignIrqfd(irqfd) => _ = self.irqfds.remove(irqfd),
            Step::AssignIoeventfd(ioeventfd) => _ = self.ioeventfds.insert(*ioeventfd),
            Step::DeassignIoeventfd(ioeventfd) => _ = self.ioeventfds.remove(ioeventfd),
        }
    }
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `KVM_SET_GSI_ROUTING`.
    Routes {
        /// The table before.
        from: Arc<[Route]>,
        /// The table afterwards.
        to: Arc<[Route]>,
    },
    /// `KVM_IRQFD`.
    AssignIrqfd(Irqfd),
    /// `KVM_IRQFD`, deassign.
    DeassignIrqfd(Irqfd),
    /// `KVM_IOEVENTFD`.
    AssignIoeventfd(Ioeventfd),
    /// `KVM_IOEVENTFD`, deassign.
    DeassignIoeventfd(Ioeventfd),
}

/// Grace periods that calls wait for, by the rules of Linux 6.18 and later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waits {
    /// In the calls themselves.
    pub in_calls: u64,
    /// In the kernel's worker that `KVM_IRQFD` deassign waits for.
    pub in_irqfd_shutdown: u64,
    /// Of those in the calls, what is `KVM_IOEVENTFD` deassign's.
    pub in_ioeventfd_deassign: u64,
}

impl Add for Waits {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            in_calls: self.in_calls + other.in_calls,
            in_irqfd_shutdown: self.in_irqfd_shutdown + other.in_irqfd_shutdown,
            in_ioeventfd_deassign: self.in_ioeventfd_deassign + other.in_ioeventfd_deassign,
        }
    }
}

impl AddAssign for Waits {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Waits {
    fn sum<I: Iterator<Item = Self>>(waits: I) -> Self {
        waits.fold(Self::default(), Add::add)
    }
}

impl Step {
    /// The step that takes this one back.
    #[must_use]
    pub fn inverse(&self) -> Self {
        match self {
            Self::Routes { from, to } => Self::Routes { from: to.clone(), to: from.clone() },
            Self::AssignIrqfd(irqfd) => Self::DeassignIrqfd(*irqfd),
            Self::DeassignIrqfd(irqfd) => Self::AssignIrqfd(*irqfd),
            Self::AssignIoeventfd(ioeventfd) => Self::DeassignIoeventfd(*ioeventfd),
            Self::DeassignIoeventfd(ioeventfd) => Self::AssignIoeventfd(*ioeventfd),
        }
    }

    /// The grace periods that it waits for (`virt/kvm/eventfd.c`,
    /// `virt/kvm/irqchip.c`, `kvm_io_bus_unregister_dev()`). Registering an
    /// ioeventfd waited for one before Linux 6.18, and for none since.
    #[must_use]
    pub fn waits(&self) -> Waits {
        match self {
            Self::Routes { .. } => Waits { in_calls: 1, ..Waits::default() },
            Self::AssignIrqfd(irqfd) => {
                Waits { in_calls: irqfd.resample.map_or(0, |_| 1), ..Waits::default() }
            }
            Self::DeassignIrqfd(irqfd) => {
                Waits { in_irqfd_shutdown: irqfd.resample.map_or(1, |_| 2), ..Waits::default() }
            }
            Self::AssignIoeventfd(_) => Waits::default(),
            Self::DeassignIoeventfd(ioeventfd) => {
                // Any length on MMIO is on a second bus as well.
                let buses = if (ioeventfd.bus, ioeventfd.len) == (Bus::Mmio, 0) { 2 } else { 1 };
                Waits { in_calls: buses, in_ioeventfd_deassign: buses, in_irqfd_shutdown: 0 }
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Routes { to, .. } => {
                write!(f, "set the interrupt routes, {} of them (KVM_SET_GSI_ROUTING)", to.len())
            }
            Self::AssignIrqfd(irqfd) => write!(f, "assign the {irqfd}"),
            Self::DeassignIrqfd(irqfd) => write!(f, "deassign the {irqfd}"),
            Self::AssignIoeventfd(ioeventfd) => write!(f, "assign the {ioeventfd}"),
            Self::DeassignIoeventfd(ioeventfd) => write!(f, "deassign the {ioeventfd}"),
        }
    }
}

/// The calls that lead from `live` to `wanted`; none if they are the same.
///
/// - What goes, goes first: ioeventfds, then irqfds, so that nothing raises a
///   GSI when its route goes.
/// - The routes change once, whatever changes in them.
/// - Irqfds come after their routes, so that an event that is pending in the
///   eventfd finds its way.
/// - Ioeventfds come last: since Linux 6.18 registering one leaves a normal
///   grace period in flight on `kvm->srcu` (`call_srcu()`), which the next
///   change of memory waits for.
/// - They come by address: KVM loses sight of one of length 0 if another that
///   ends there is registered after it (`kvm_io_bus_cmp()`).
#[must_use]
pub fn plan(live: &State, wanted: &State) -> Vec<Step> {
    let (gone, new) = (live.without(wanted), wanted.without(live));
    let mut steps = Vec::new();
    steps.extend(gone.ioeventfds.into_iter().map(Step::DeassignIoeventfd));
    steps.extend(gone.irqfds.into_iter().map(Step::DeassignIrqfd));
    if live.routes != wanted.routes {
        let table = |state: &State| state.routes.iter().copied().collect();
        steps.push(Step::Routes { from: table(live), to: table(wanted) });
    }
    steps.extend(new.irqfds.into_iter().map(Step::AssignIrqfd));
    steps.extend(new.ioeventfds.into_iter().map(Step::AssignIoeventfd));
    steps
}
