//! Routes, irqfds and ioeventfds, as values.

use std::fmt;
use std::os::fd::RawFd;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1,
};

/// A message-signalled interrupt, as the guest programs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Msi {
    /// Where the message is written to.
    pub address: u64,
    /// What is written.
    pub data: u32,
    /// The device that it comes from, for an ITS (arm64).
    pub devid: Option<u32>,
}

/// What raising a GSI does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum RouteTarget {
    /// A pin of an interrupt controller in the kernel.
    Irqchip {
        /// Which: on x86 0 and 1 for the PICs, 2 for the IOAPIC.
        chip: u32,
        /// Which pin of it.
        pin: u32,
    },
    /// A message.
    Msi(Msi),
    /// Another kind (Hyper-V, Xen, s390), kept as the VMM gave it.
    Other {
        /// `kvm_irq_routing_entry.type`.
        kind: u32,
        /// `kvm_irq_routing_entry.flags`.
        flags: u32,
        /// The union, as words.
        words: [u32; 8],
    },
}

impl RouteTarget {
    /// Type, flags and union of `kvm_irq_routing_entry`.
    pub(super) fn to_raw(self) -> (u32, u32, [u32; 8]) {
        match self {
            Self::Irqchip { chip, pin } => {
                (KVM_IRQ_ROUTING_IRQCHIP, 0, [chip, pin, 0, 0, 0, 0, 0, 0])
            }
            Self::Msi(Msi { address, data, devid }) => {
                let (low, high) = (address as u32, (address >> 32) as u32);
                let flags = if devid.is_some() { KVM_MSI_VALID_DEVID } else { 0 };
                (KVM_IRQ_ROUTING_MSI, flags, [low, high, data, devid.unwrap_or(0), 0, 0, 0, 0])
            }
            Self::Other { kind, flags, words } => (kind, flags, words),
        }
    }
}

/// A route: what raising `gsi` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// The interrupt's number.
    pub gsi: u32,
    /// What raising it does.
    pub target: RouteTarget,
}

impl Route {
    /// A route to a pin of an interrupt controller in the kernel.
    #[must_use]
    pub const fn irqchip(gsi: u32, chip: u32, pin: u32) -> Self {
        Self { gsi, target: RouteTarget::Irqchip { chip, pin } }
    }

    /// A route to a message.
    #[must_use]
    pub const fn msi(gsi: u32, msi: Msi) -> Self {
        Self { gsi, target: RouteTarget::Msi(msi) }
    }

    /// The routes that `KVM_CREATE_IRQCHIP` makes on x86
    /// (`default_routing` in `arch/x86/kvm/irq_comm.c`): GSI 0 to 23 to the
    /// IOAPIC, 0 to 15 to the PICs as well.
    #[must_use]
    pub fn x86_defaults() -> Vec<Self> {
        let pics = (0..16).map(|gsi| Self::irqchip(gsi, gsi / 8, gsi % 8));
        pics.chain((0..24).map(|gsi| Self::irqchip(gsi, 2, gsi))).collect()
    }

    /// The routes that initialising a vGIC with `spis` shared interrupts makes
    /// on arm64 (`kvm_vgic_setup_default_irq_routing()`).
    #[must_use]
    pub fn arm64_defaults(spis: u32) -> Vec<Self> {
        (0..spis).map(|gsi| Self::irqchip(gsi, 0, gsi)).collect()
    }

    /// From an entry of the VMM's own.
    #[must_use]
    pub fn from_kvm(entry: &kvm_irq_routing_entry) -> Self {
        // SAFETY: `pad` covers the whole union, and any bits are valid words.
        let words = unsafe { entry.u.pad };
        let other = RouteTarget::Other { kind: entry.type_, flags: entry.flags, words };
        let devid = (entry.flags == KVM_MSI_VALID_DEVID).then_some(words[3]);
        let target = match entry.type_ {
            KVM_IRQ_ROUTING_IRQCHIP if entry.flags == 0 => {
                RouteTarget::Irqchip { chip: words[0], pin: words[1] }
            }
            KVM_IRQ_ROUTING_MSI if entry.flags & !KVM_MSI_VALID_DEVID == 0 => {
                let address = u64::from(words[1]) << 32 | u64::from(words[0]);
                RouteTarget::Msi(Msi { address, data: words[2], devid })
            }
            _ => other,
        };
        Self { gsi: entry.gsi, target }
    }

    /// As the kernel takes it.
    #[must_use]
    pub fn to_kvm(&self) -> kvm_irq_routing_entry {
        let (kind, flags, words) = self.target.to_raw();
        kvm_irq_routing_entry {
            gsi: self.gsi,
            type_: kind,
            flags,
            u: kvm_irq_routing_entry__bindgen_ty_1 { pad: words },
            ..Default::default()
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GSI {} to ", self.gsi)?;
        match self.target {
            RouteTarget::Irqchip { chip, pin } => write!(f, "pin {pin} of irqchip {chip}"),
            RouteTarget::Msi(Msi { address, data, .. }) => {
                write!(f, "MSI {data:#x} at {address:#x}")
            }
            RouteTarget::Other { kind, .. } => write!(f, "a target of type {kind}"),
        }
    }
}

/// An eventfd that raises a GSI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Irqfd {
    /// What it raises.
    pub gsi: u32,
    /// The eventfd.
    pub fd: RawFd,
    /// The eventfd that is signalled when the guest has acknowledged the
    /// interrupt (`KVM_IRQFD_FLAG_RESAMPLE`): the interrupt is level-triggered
    /// then.
    pub resample: Option<RawFd>,
    /// Whether `KVM_IRQFD_FLAG_NO_IRQBYPASS` is set.
    pub no_irqbypass: bool,
}

impl fmt::Display for Irqfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "irqfd of GSI {} (eventfd {}", self.gsi, self.fd)?;
        if let Some(resample) = self.resample {
            write!(f, ", resampled through {resample}")?;
        }
        f.write_str(")")
    }
}

/// Where an ioeventfd listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bus {
    /// Guest physical addresses.
    Mmio,
    /// Ports (x86).
    Pio,
}

/// An eventfd that guest writes signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ioeventfd {
    /// Memory or ports.
    pub bus: Bus,
    /// The address.
    pub addr: u64,
    /// Bytes of the write: 1, 2, 4 or 8; 0 for any.
    pub len: u32,
    /// The value that has to be written; `None` for any.
    pub datamatch: Option<u64>,
    /// The eventfd.
    pub fd: RawFd,
}

impl Ioeventfd {
    /// Whether there is a write that both would fire for, which KVM refuses
    /// (`ioeventfd_check_collision()`).
    #[must_use]
    pub fn collides_with(&self, other: &Self) -> bool {
        let data = self.datamatch.is_none()
            || other.datamatch.is_none()
            || self.datamatch == other.datamatch;
        (self.bus, self.addr) == (other.bus, other.addr)
            && (self.len == 0 || other.len == 0 || (self.len == other.len && data))
    }

    /// Whether a write of `len` bytes fires it (`ioeventfd_in_range()`).
    #[must_use]
    pub fn fires_for(&self, bus: Bus, addr: u64, len: u32, value: u64) -> bool {
        let mask = if len >= 8 { u64::MAX } else { (1 << (len * 8)) - 1 };
        (self.bus, self.addr) == (bus, addr)
            && (self.len == 0
                || (self.len == len && self.datamatch.is_none_or(|data| data == value & mask)))
    }
}

impl fmt::Display for Ioeventfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bus = match self.bus {
            Bus::Mmio => "GPA",
            Bus::Pio => "port",
        };
        write!(f, "ioeventfd at {bus} {:#x}", self.addr)?;
        match self.len {
            0 => f.write_str(", any length")?,
            len => write!(f, ", {len} bytes")?,
        }
        if let Some(data) = self.datamatch {
            write!(f, ", value {data:#x}")?;
        }
        write!(f, " (eventfd {})", self.fd)
    }
}
