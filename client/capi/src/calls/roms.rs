//! Devices whose memory is a ROM in one mode.

use std::ffi::c_int;

use kvm_memslots::{RomDevice, Vm};

use super::{Wanted, on, with_vm};
use crate::handles::{Handle, exclusive, give_to, own};
use crate::last::report;
use crate::record::{Out, read};
use crate::types::{CReport, CRomState, CSpec, Taking, rom_mode};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_rom_new(
    vm: *mut Handle<Vm>,
    spec: *const CSpec,
    mode: u32,
    after: u32,
    rom: *mut *mut Handle<RomDevice>,
) -> c_int {
    let new = |vm: &Vm| {
        let mode = rom_mode(mode, after)?;
        let mut taking = Taking::default();
        let make = || {
            // SAFETY: as the caller says.
            let spec = unsafe { read(spec) }?;
            // SAFETY: as the caller says.
            let spec = unsafe { spec.nameless("a ROM device", &mut taking) }?;
            Ok(RomDevice::new(vm, spec, mode)?)
        };
        // SAFETY: as the caller says.
        unsafe { give_to(rom, make) }?;
        taking.taken();
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { on(vm, new) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_rom_set_array_mode(
    rom: *mut Handle<RomDevice>,
    vm: *mut Handle<Vm>,
    on: c_int,
    cost: *mut CReport,
) -> c_int {
    let set = |rom: &mut RomDevice| {
        // SAFETY: as the caller says.
        let wanted = unsafe { Wanted::new(cost) }?;
        let set = |vm: &Vm| Ok(rom.set_array_mode(vm, on != 0)?);
        // SAFETY: as the caller says.
        wanted.done_if_any(unsafe { with_vm(vm, set) }?.as_ref());
        Ok(())
    };
    // SAFETY: as the caller says.
    report(|| unsafe { exclusive(rom, set) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_rom_state(
    rom: *mut Handle<RomDevice>,
    state: *mut CRomState,
) -> c_int {
    let lookup = |rom: &RomDevice| {
        // SAFETY: as the caller says.
        unsafe { Out::new(state) }?.put(rom);
        Ok(())
    };
    // SAFETY: as the caller says.
    report(|| unsafe { own(rom, lookup) })
}
