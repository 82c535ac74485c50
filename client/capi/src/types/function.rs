//! What PCI functions are made of.

use std::ffi::c_int;

use kvm_memslots::pci::{BarSpec, FunctionSpec};

use super::{CSpec, Taking, descriptor, known};
use crate::constants::{
    KVM_MEMSLOTS_BAR_IO, KVM_MEMSLOTS_BAR_MEMORY32, KVM_MEMSLOTS_BAR_MEMORY64,
    KVM_MEMSLOTS_BAR_PREFETCHABLE, KVM_MEMSLOTS_BAR_ROM, KVM_MEMSLOTS_DOORBELL_VALUE,
    KVM_MEMSLOTS_FUNCTION_BRIDGE,
};
use crate::failure::Failure;
use crate::record::{invalid, list, read, record, structure};

record! {
    "kvm_memslots_bar_doorbell" pub struct CBarDoorbell {
        pub size: usize,
        pub offset: u64,
        pub value: u64,
        pub flags: u64,
        pub len: u32,
        pub eventfd: c_int,
    }
}

structure! {
    "kvm_memslots_bar_range" pub struct CBarRange {
        pub offset: u64,
        pub len: u64,
    }
}

record! {
    "kvm_memslots_bar" pub struct CBar {
        pub size: usize,
        pub len: u64,
        pub windows: *const *const CSpec,
        pub nr_windows: usize,
        pub index: u32,
        pub kind: u16,
        pub flags: u16,
        pub doorbells: *const *const CBarDoorbell,
        pub nr_doorbells: usize,
        pub exits: *const CBarRange,
        pub nr_exits: usize,
    }
}

impl CBar {
    /// # Safety
    /// As [the crate](crate#safety).
    unsafe fn bar(&self, taking: &mut Taking) -> Result<BarSpec, Failure> {
        known(self.flags.into(), KVM_MEMSLOTS_BAR_PREFETCHABLE.into(), "a BAR")?;
        let make = match (self.index, self.kind) {
            (KVM_MEMSLOTS_BAR_ROM, KVM_MEMSLOTS_BAR_MEMORY32) => BarSpec::rom,
            (KVM_MEMSLOTS_BAR_ROM, _) => {
                return Err(invalid("an expansion ROM is KVM_MEMSLOTS_BAR_MEMORY32"));
            }
            (_, KVM_MEMSLOTS_BAR_MEMORY32) => BarSpec::memory32,
            (_, KVM_MEMSLOTS_BAR_MEMORY64) => BarSpec::memory64,
            (_, KVM_MEMSLOTS_BAR_IO) => BarSpec::io,
            (_, other) => return Err(invalid(format!("{other} is no kvm_memslots_bar_kind"))),
        };
        let mut bar = make(self.len);
        if self.flags & KVM_MEMSLOTS_BAR_PREFETCHABLE != 0 {
            bar = bar.prefetchable();
        }
        // SAFETY: as the caller says.
        for window in unsafe { list(self.windows, self.nr_windows, "windows") }? {
            // SAFETY: as the caller says.
            let window = unsafe { read(*window) }?;
            // SAFETY: as the caller says.
            bar = bar.window(unsafe { window.nameless("a BAR", taking) }?);
        }
        // SAFETY: as the caller says.
        for bell in unsafe { list(self.doorbells, self.nr_doorbells, "doorbells") }? {
            // SAFETY: as the caller says.
            let bell = unsafe { read(*bell) }?;
            known(bell.flags, KVM_MEMSLOTS_DOORBELL_VALUE.into(), "a doorbell of a BAR")?;
            let value = (bell.flags != 0).then_some(bell.value);
            let eventfd = descriptor(bell.eventfd, "eventfd")?;
            bar = bar.ioeventfd(bell.offset, bell.len, value, eventfd);
        }
        // SAFETY: as the caller says.
        for range in unsafe { list(self.exits, self.nr_exits, "exits") }? {
            bar = bar.exits(range.offset, range.len);
        }
        Ok(bar)
    }
}

record! {
    "kvm_memslots_function" pub struct CFunction {
        pub size: usize,
        pub bars: *const *const CBar,
        pub nr_bars: usize,
        pub flags: u64,
    }
}

impl CFunction {
    /// # Safety
    /// As [the crate](crate#safety).
    pub(crate) unsafe fn function(&self, taking: &mut Taking) -> Result<FunctionSpec, Failure> {
        known(self.flags, KVM_MEMSLOTS_FUNCTION_BRIDGE, "a function")?;
        let mut function = FunctionSpec::new();
        if self.flags & KVM_MEMSLOTS_FUNCTION_BRIDGE != 0 {
            function = function.bridge();
        }
        let mut has_rom = false;
        // SAFETY: as the caller says.
        for bar in unsafe { list(self.bars, self.nr_bars, "bars") }? {
            // SAFETY: as the caller says.
            let bar = unsafe { read(*bar) }?;
            // SAFETY: as the caller says.
            let spec = unsafe { bar.bar(taking) }?;
            function = match bar.index {
                KVM_MEMSLOTS_BAR_ROM if std::mem::replace(&mut has_rom, true) => {
                    return Err(invalid("a function has one expansion ROM"));
                }
                KVM_MEMSLOTS_BAR_ROM => function.rom(spec),
                index => function.bar(index as usize, spec),
            };
        }
        Ok(function)
    }
}

/// A BAR as the client has it, of its index in C.
pub(crate) fn bar(index: u32) -> Option<usize> {
    (index != KVM_MEMSLOTS_BAR_ROM).then_some(index as usize)
}

/// The index in C.
pub(crate) fn index(bar: Option<usize>) -> u32 {
    bar.and_then(|bar| u32::try_from(bar).ok()).unwrap_or(KVM_MEMSLOTS_BAR_ROM)
}
