//! One call, and what it costs.

use std::fmt;
use std::iter::Sum;
use std::ops::AddAssign;

use super::part::Part;
use super::routes::Routes;
use super::types::{Bus, Route};

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// `KVM_SET_GSI_ROUTING`.
    Routes {
        /// The table before.
        from: Routes,
        /// The table afterwards.
        to: Routes,
    },
    /// `KVM_IRQFD`, `KVM_IOEVENTFD`, `KVM_REGISTER_COALESCED_MMIO`.
    Assign(Part),
    /// The same with the flag that deassigns, `KVM_UNREGISTER_COALESCED_MMIO`.
    Deassign(Part),
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

impl AddAssign for Waits {
    fn add_assign(&mut self, other: Self) {
        self.in_calls += other.in_calls;
        self.in_irqfd_shutdown += other.in_irqfd_shutdown;
        self.in_ioeventfd_deassign += other.in_ioeventfd_deassign;
    }
}

impl Op {
    /// These routes and no others, for whoever does not know which there are.
    pub fn routes(to: impl IntoIterator<Item = Route>) -> Self {
        Self::Routes { from: Routes::default(), to: to.into_iter().collect() }
    }

    /// The change that takes this one back.
    #[must_use]
    pub fn inverse(&self) -> Self {
        match self {
            Self::Routes { from, to } => Self::Routes { from: to.clone(), to: from.clone() },
            Self::Assign(part) => Self::Deassign(*part),
            Self::Deassign(part) => Self::Assign(*part),
        }
    }

    /// What it costs.
    #[must_use]
    pub fn cost(&self) -> Cost {
        let mut cost = Cost { waits: self.waits(), ..Cost::default() };
        match self {
            Self::Routes { .. } => cost.routing_calls = 1,
            Self::Assign(part) | Self::Deassign(part) => match part {
                Part::Ioeventfd(_) => cost.ioeventfd_calls = 1,
                Part::Zone(_) => cost.zone_calls = 1,
                Part::Irqfd(_) => cost.irqfd_calls = 1,
            },
        }
        cost
    }

    /// The grace periods that it waits for (`virt/kvm/eventfd.c`,
    /// `virt/kvm/irqchip.c`, `kvm_io_bus_unregister_dev()`). Registering an
    /// ioeventfd or a zone waited for one before Linux 6.18, and for none since.
    #[must_use]
    pub fn waits(&self) -> Waits {
        let in_calls = |in_calls| Waits { in_calls, ..Waits::default() };
        match self {
            Self::Assign(Part::Ioeventfd(_) | Part::Zone(_)) => Waits::default(),
            Self::Assign(Part::Irqfd(irqfd)) => in_calls(irqfd.resample.map_or(0, |_| 1)),
            // Of a zone one for each that it is in, which is itself alone.
            Self::Routes { .. } | Self::Deassign(Part::Zone(_)) => in_calls(1),
            Self::Deassign(Part::Irqfd(irqfd)) => {
                Waits { in_irqfd_shutdown: irqfd.resample.map_or(1, |_| 2), ..Waits::default() }
            }
            Self::Deassign(Part::Ioeventfd(ioeventfd)) => {
                // Any length on MMIO is on a second bus as well.
                let buses = if (ioeventfd.bus, ioeventfd.len) == (Bus::Mmio, 0) { 2 } else { 1 };
                Waits { in_ioeventfd_deassign: buses, ..in_calls(buses) }
            }
        }
    }
}

/// What calls cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// `KVM_SET_GSI_ROUTING`.
    pub routing_calls: u64,
    /// `KVM_IRQFD`.
    pub irqfd_calls: u64,
    /// `KVM_IOEVENTFD`.
    pub ioeventfd_calls: u64,
    /// `KVM_REGISTER_COALESCED_MMIO`, `KVM_UNREGISTER_COALESCED_MMIO`.
    pub zone_calls: u64,
    /// The grace periods that these wait for, by KVM's rules.
    pub waits: Waits,
}

impl Cost {
    /// All calls.
    #[must_use]
    pub const fn calls(&self) -> u64 {
        self.routing_calls + self.irqfd_calls + self.ioeventfd_calls + self.zone_calls
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.routing_calls += other.routing_calls;
        self.irqfd_calls += other.irqfd_calls;
        self.ioeventfd_calls += other.ioeventfd_calls;
        self.zone_calls += other.zone_calls;
        self.waits += other.waits;
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        let mut all = Self::default();
        costs.for_each(|cost| all += cost);
        all
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Routes { to, .. } => {
                write!(f, "set the interrupt routes, {} of them (KVM_SET_GSI_ROUTING)", to.len())
            }
            Self::Assign(part) => write!(f, "assign the {part}"),
            Self::Deassign(part) => write!(f, "deassign the {part}"),
        }
    }
}
