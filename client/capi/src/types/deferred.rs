//! What is about maps that are put off.

use kvm_memslots::deferred::{Costs, Deferral, Policy, Served};
use kvm_memslots::{RegionId, RomDevice, RomMode};

use super::{flag, known};
use crate::constants::{
    KVM_MEMSLOTS_DEFERRAL_COSTS, KVM_MEMSLOTS_DEFERRAL_ONLY_DUE, KVM_MEMSLOTS_POLICY_FIXED,
    KVM_MEMSLOTS_POLICY_RENT_OR_BUY, KVM_MEMSLOTS_ROM_MODE_AUTO, KVM_MEMSLOTS_ROM_MODE_DEFERRED,
    KVM_MEMSLOTS_ROM_MODE_TOGGLE, KVM_MEMSLOTS_ROM_MODE_TRAP, KVM_MEMSLOTS_SERVED_DUE,
    KVM_MEMSLOTS_SERVED_FAULT,
};
use crate::failure::Failure;
use crate::record::{invalid, record};

record! {
    "kvm_memslots_deferral" pub struct CDeferral {
        pub size: usize,
        pub policy: u32,
        pub flags: u32,
        pub exits: u64,
        pub map_ns: u64,
        pub unmap_ns: u64,
        pub exit_ns: u64,
    }
}

impl CDeferral {
    pub(crate) fn deferral(&self) -> Result<Deferral, Failure> {
        let all = KVM_MEMSLOTS_DEFERRAL_ONLY_DUE | KVM_MEMSLOTS_DEFERRAL_COSTS;
        known(self.flags.into(), all.into(), "a deferral")?;
        let policy = match self.policy {
            KVM_MEMSLOTS_POLICY_RENT_OR_BUY => Policy::RentOrBuy,
            KVM_MEMSLOTS_POLICY_FIXED => Policy::Fixed { exits: self.exits },
            other => return Err(invalid(format!("{other} is no kvm_memslots_policy"))),
        };
        let mut deferral = Deferral::default().policy(policy);
        if self.flags & KVM_MEMSLOTS_DEFERRAL_ONLY_DUE != 0 {
            deferral = deferral.only_due();
        }
        if self.flags & KVM_MEMSLOTS_DEFERRAL_COSTS != 0 {
            let Self { map_ns, unmap_ns, exit_ns, .. } = *self;
            deferral = deferral.costs(Costs { map_ns, unmap_ns, exit_ns });
        }
        Ok(deferral)
    }
}

record! {
    "kvm_memslots_deferral_usage" pub struct CDeferralUsage {
        pub size: usize,
        pub waiting: u64,
        pub slot_ns: u64,
        pub exit_ns: u64,
    }
}

record! {
    "kvm_memslots_served" pub struct CServed {
        pub size: usize,
        pub bytes: u64,
        pub fault: u64,
        pub flags: u64,
    }
}

impl From<Served> for CServed {
    fn from(served: Served) -> Self {
        Self {
            size: size_of::<Self>(),
            bytes: served.bytes as u64,
            fault: served.fault.unwrap_or(0),
            flags: (flag(served.due, KVM_MEMSLOTS_SERVED_DUE)
                | flag(served.fault.is_some(), KVM_MEMSLOTS_SERVED_FAULT))
            .into(),
        }
    }
}

record! {
    "kvm_memslots_rom_state" pub struct CRomState {
        pub size: usize,
        pub region: u64,
        pub flips: u64,
        pub mode: u32,
        pub array_mode: u32,
    }
}

impl From<&RomDevice> for CRomState {
    fn from(rom: &RomDevice) -> Self {
        Self {
            size: size_of::<Self>(),
            region: rom.region().map_or(0, RegionId::to_raw),
            flips: rom.flips(),
            mode: match rom.mode() {
                RomMode::Trap => KVM_MEMSLOTS_ROM_MODE_TRAP,
                RomMode::Deferred { .. } => KVM_MEMSLOTS_ROM_MODE_DEFERRED,
                RomMode::Toggle => KVM_MEMSLOTS_ROM_MODE_TOGGLE,
                // What it came to is none of the others.
                _ => KVM_MEMSLOTS_ROM_MODE_AUTO,
            },
            array_mode: rom.in_array_mode().into(),
        }
    }
}

/// `enum kvm_memslots_rom_mode`
pub(crate) fn rom_mode(mode: u32, after: u32) -> Result<RomMode, Failure> {
    if after != 0 && mode != KVM_MEMSLOTS_ROM_MODE_DEFERRED {
        return Err(invalid("after is for KVM_MEMSLOTS_ROM_MODE_DEFERRED"));
    }
    match mode {
        KVM_MEMSLOTS_ROM_MODE_AUTO => Ok(RomMode::Auto),
        KVM_MEMSLOTS_ROM_MODE_TRAP => Ok(RomMode::Trap),
        KVM_MEMSLOTS_ROM_MODE_DEFERRED => Ok(RomMode::Deferred { after }),
        KVM_MEMSLOTS_ROM_MODE_TOGGLE => Ok(RomMode::Toggle),
        other => Err(invalid(format!("{other} is no kvm_memslots_rom_mode"))),
    }
}
