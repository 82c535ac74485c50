//! PCI BARs that follow a guest's config writes.

use std::ffi::{c_int, c_void};

use kvm_memslots::pci::{FunctionId, PciBars, PciError};
use kvm_memslots::window::Window;
use kvm_memslots::{Report, Vm};

use super::{Wanted, with_vm};
use crate::constants::{
    KVM_MEMSLOTS_PCI_DEFER_IOEVENTFDS, KVM_MEMSLOTS_PCI_KEEP_IOEVENTFDS,
    KVM_MEMSLOTS_PCI_WITHOUT_SLOTS,
};
use crate::failure::{Failure, there};
use crate::handles::{Handle, exclusive, give, own, shared};
use crate::last::report;
use crate::record::{null, put, read};
use crate::types::{CFunction, CPlacement, CReport, Taking, bar, index, known};

/// BARs of no function yet.
#[unsafe(no_mangle)]
pub extern "C" fn kvm_memslots_pci_new(address_bits: u32) -> *mut Handle<PciBars> {
    give(PciBars::new(address_bits))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_pci_set_flags(
    pci: *mut Handle<PciBars>,
    flags: u32,
) -> c_int {
    type SetUp = fn(PciBars) -> PciBars;
    let all: [(u32, SetUp); 3] = [
        (KVM_MEMSLOTS_PCI_KEEP_IOEVENTFDS, PciBars::keep_ioeventfds),
        (KVM_MEMSLOTS_PCI_DEFER_IOEVENTFDS, PciBars::defer_ioeventfds),
        (KVM_MEMSLOTS_PCI_WITHOUT_SLOTS, PciBars::without_slots),
    ];
    let set = |pci: &mut PciBars| {
        known(flags.into(), all.iter().fold(0, |all, (flag, _)| all | u64::from(*flag)), "BARs")?;
        for (_, change) in all.iter().filter(|(flag, _)| flags & flag != 0) {
            set_up(pci, change);
        }
        Ok(())
    };
    // SAFETY: as the caller says.
    report(|| unsafe { exclusive(pci, set) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_pci_in_window(
    pci: *mut Handle<PciBars>,
    window: *mut Handle<Window>,
) -> c_int {
    let set = |pci: &mut PciBars| {
        // SAFETY: as the caller says.
        let window = unsafe { shared(window, |window| Ok(window.clone())) }?;
        set_up(pci, |pci| pci.in_window(window));
        Ok(())
    };
    // SAFETY: as the caller says.
    report(|| unsafe { exclusive(pci, set) })
}

fn set_up(pci: &mut PciBars, change: impl FnOnce(PciBars) -> PciBars) {
    *pci = change(std::mem::replace(pci, PciBars::new(0)));
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_pci_add(
    pci: *mut Handle<PciBars>,
    vm: *mut Handle<Vm>,
    function: *const CFunction,
    id: *mut u64,
) -> c_int {
    let add = |pci: &mut PciBars| {
        let mut taking = Taking::default();
        // SAFETY: as the caller says.
        let function = unsafe { read(function) }?;
        // SAFETY: as the caller says.
        let function = unsafe { function.function(&mut taking) }?;
        // SAFETY: as the caller says.
        let name = unsafe { with_vm(vm, |vm| Ok(pci.add(vm, function)?)) }?;
        taking.taken();
        // SAFETY: null or room for an id, as the caller says.
        unsafe { put(id, name.to_raw()) };
        Ok(())
    };
    // SAFETY: as the caller says.
    report(|| unsafe { exclusive(pci, add) })
}

/// Has `follow` change the VM.
unsafe fn followed(
    pci: *mut Handle<PciBars>,
    vm: *mut Handle<Vm>,
    cost: *mut CReport,
    follow: impl FnOnce(&mut PciBars, &Vm) -> Result<Option<Report>, PciError>,
) -> c_int {
    let change = |pci: &mut PciBars| {
        // SAFETY: as the caller says.
        let wanted = unsafe { Wanted::new(cost) }?;
        // SAFETY: as the caller says.
        let report = unsafe { with_vm(vm, |vm| Ok(follow(pci, vm)?)) }?;
        wanted.done_if_any(report.as_ref());
        Ok(())
    };
    // SAFETY: as the caller says.
    report(|| unsafe { exclusive(pci, change) })
}

/// What a guest writes.
unsafe fn bytes<'a>(data: *const c_void, len: usize) -> Result<&'a [u8], Failure> {
    if data.is_null() {
        return Err(null("data"));
    }
    // SAFETY: not null, and so many bytes, as the caller says.
    Ok(unsafe { std::slice::from_raw_parts(data.cast(), len) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_pci_config_write(
    pci: *mut Handle<PciBars>,
    vm: *mut Handle<Vm>,
    function: u64,
    offset: u16,
    data: *const c_void,
    len: usize,
    cost: *mut CReport,
) -> c_int {
    // SAFETY: as the caller says.
    let data = match unsafe { bytes(data, len) } {
        Ok(data) => data,
        Err(failure) => return report(|| Err(failure)),
    };
    let id = FunctionId::from_raw(function);
    // SAFETY: as the caller says.
    unsafe { followed(pci, vm, cost, |pci, vm| pci.config_write(vm, id, offset, data)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_pci_note_write(
    pci: *mut Handle<PciBars>,
    function: u64,
    offset: u16,
    data: *const c_void,
    len: usize,
) -> c_int {
    let note = |pci: &mut PciBars| {
        // SAFETY: as the caller says.
        let data = unsafe { bytes(data, len) }?;
        Ok(pci.note_write(FunctionId::from_raw(function), offset, data)?)
    };
    // SAFETY: as the caller says.
    report(|| unsafe { exclusive(pci, note) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_pci_config_read(
    pci: *mut Handle<PciBars>,
    function: u64,
    offset: u16,
    data: *mut c_void,
    len: usize,
) -> c_int {
    let fill = |pci: &PciBars| {
        if data.is_null() {
            return Err(null("data"));
        }
        // SAFETY: not null, and so many bytes, which the caller has written.
        let data = unsafe { std::slice::from_raw_parts_mut(data.cast::<u8>(), len) };
        Ok(pci.config_read(FunctionId::from_raw(function), offset, data)?)
    };
    // SAFETY: as the caller says.
    report(|| unsafe { own(pci, fill) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_pci_sync(
    pci: *mut Handle<PciBars>,
    vm: *mut Handle<Vm>,
    cost: *mut CReport,
) -> c_int {
    // SAFETY: as the caller says.
    unsafe { followed(pci, vm, cost, PciBars::sync) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_pci_reset(
    pci: *mut Handle<PciBars>,
    vm: *mut Handle<Vm>,
    function: u64,
    cost: *mut CReport,
) -> c_int {
    let id = FunctionId::from_raw(function);
    // SAFETY: as the caller says.
    unsafe { followed(pci, vm, cost, |pci, vm| pci.reset(vm, id)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_pci_remove(
    pci: *mut Handle<PciBars>,
    vm: *mut Handle<Vm>,
    function: u64,
    cost: *mut CReport,
) -> c_int {
    let id = FunctionId::from_raw(function);
    // SAFETY: as the caller says.
    unsafe { followed(pci, vm, cost, |pci, vm| pci.remove(vm, id)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_pci_base(
    pci: *mut Handle<PciBars>,
    function: u64,
    of: u32,
    base: *mut u64,
) -> c_int {
    let lookup = |pci: &PciBars| {
        let found = pci.base(FunctionId::from_raw(function), bar(of));
        let found = there(found, || format!("BAR {of} of function {function} decodes nowhere"))?;
        // SAFETY: null or room for a number, as the caller says.
        unsafe { put(base, found) };
        Ok(())
    };
    // SAFETY: as the caller says.
    report(|| unsafe { own(pci, lookup) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_pci_decode(
    pci: *mut Handle<PciBars>,
    gpa: u64,
    function: *mut u64,
    of: *mut u32,
    offset: *mut u64,
) -> c_int {
    let lookup = |pci: &PciBars| {
        let (id, at) = there(pci.decode(gpa), || format!("no BAR decodes GPA {gpa:#x}"))?;
        // SAFETY: null or room for a number, as the caller says.
        unsafe { put(function, id.to_raw()) };
        // SAFETY: as above.
        unsafe { put(of, index(at.bar)) };
        // SAFETY: as above.
        unsafe { put(offset, at.offset) };
        Ok(())
    };
    // SAFETY: as the caller says.
    report(|| unsafe { own(pci, lookup) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_pci_refusal(
    pci: *mut Handle<PciBars>,
    function: u64,
    of: u32,
) -> c_int {
    let lookup = |pci: &PciBars| {
        let refusal = pci.refusal(FunctionId::from_raw(function), bar(of));
        refusal.map_or(Ok(()), |error| Err(error.into()))
    };
    // SAFETY: as the caller says.
    report(|| unsafe { own(pci, lookup) })
}

/// `kvm_memslots_each_window`
type EachWindow = unsafe extern "C" fn(*mut c_void, usize, u64);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_pci_regions(
    pci: *mut Handle<PciBars>,
    function: u64,
    of: u32,
    each: Option<EachWindow>,
    opaque: *mut c_void,
) -> c_int {
    report(|| {
        let each = each.ok_or_else(|| null("each"))?;
        let regions = |pci: &PciBars| Ok(pci.regions(FunctionId::from_raw(function), bar(of)));
        // SAFETY: as the caller says.
        for (window, id) in unsafe { own(pci, regions) }? {
            // SAFETY: C gave the function to be called with these.
            unsafe { each(opaque, window, id.to_raw()) };
        }
        Ok(())
    })
}

/// `kvm_memslots_each_placed`
type EachPlaced = unsafe extern "C" fn(*mut c_void, usize, *const CPlacement);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_pci_placed(
    pci: *mut Handle<PciBars>,
    function: u64,
    of: u32,
    each: Option<EachPlaced>,
    opaque: *mut c_void,
) -> c_int {
    report(|| {
        let each = each.ok_or_else(|| null("each"))?;
        let placed = |pci: &PciBars| Ok(pci.placed(FunctionId::from_raw(function), bar(of)));
        // SAFETY: as the caller says.
        for (window, placement) in unsafe { own(pci, placed) }? {
            // SAFETY: C gave the function to be called with these.
            unsafe { each(opaque, window, &placement.into()) };
        }
        Ok(())
    })
}
