//! Deferred maps on real KVM: a guest's own accesses.
#![allow(clippy::unwrap_used)]

mod common;

use common::{guest_or_skip, skip, vm_or_skip};
use kvm_ioctls::VmFd;
use kvm_memslots::deferred::{Deferral, Policy, Retry};
use kvm_memslots::{Access as HostAccess, Backing, Changes, RegionSpec, Vm, at, vm_fd};
use kvm_memslots_kit::guest::{Access, GuestError, Mmio, Prober};
use kvm_memslots_kit::host::{HostMemory, Pages, SMALL_PAGE};

const OWN_SLOT: u16 = 0;
const GPA: u64 = 0x4000_0000;

fn open(vm: &VmFd, exits: u64) -> Vm {
    Vm::builder()
        .deferral(Deferral::default().policy(Policy::Fixed { exits }))
        .reserve_slots(0, OWN_SLOT..=OWN_SLOT)
        .open(vm_fd(vm))
        .unwrap()
}

fn map(vm: &Vm, memory: &HostMemory) {
    let size = memory.size();
    // SAFETY: the tests keep the memory for longer than the VM.
    let backing = unsafe { Backing::borrowed(memory.hva(), size, HostAccess::ReadWrite) };
    // SAFETY: anonymous memory, which no access faults on.
    let backing = unsafe { backing.never_faults() };
    let mut changes = Changes::new();
    changes.map(RegionSpec::device(at(GPA, size), backing).deferrable());
    assert_eq!(vm.apply(changes).unwrap().ioctls, 0);
}

/// x86: an emulation failure ends the vCPU's run before anything is injected.
fn exit_on_emulation_failure(vm: &VmFd) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let cap = kvm_bindings::kvm_enable_cap {
            cap: kvm_bindings::KVM_CAP_EXIT_ON_EMULATION_FAILURE,
            args: [1, 0, 0, 0],
            ..Default::default()
        };
        vm.enable_cap(&cap).is_ok()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = vm;
        true
    }
}

#[test]
fn served_until_it_is_due_and_mapped_then() {
    let test = "served_until_it_is_due_and_mapped_then";
    let Some(vm) = vm_or_skip(test) else { return };
    let memory = HostMemory::reserve(2 * SMALL_PAGE, Pages::Small).unwrap();
    let Some(mut prober) = guest_or_skip(test, Prober::new(&vm, OWN_SLOT)) else { return };
    let vm = open(&vm, 10);
    map(&vm, &memory);
    let exits = vm.deferred(0).unwrap();
    let accesses: Vec<Access> = (0..50)
        .flat_map(|n| [Access::Write(GPA + n * 8, n + 1), Access::Read(GPA + n * 8)])
        .collect();
    let mut served = 0;
    let values = prober
        .drive(&accesses, |mmio| {
            let nobody = |gpa| panic!("there is memory at {gpa:#x}");
            let answer = match mmio {
                Mmio::Read(gpa, data) => exits.read(gpa, data, |gpa, _| nobody(gpa)),
                Mmio::Write(gpa, data) => exits.write(gpa, data, |gpa, _| nobody(gpa)),
                Mmio::Undecoded(_) => return,
            };
            served += 1;
            if answer.due {
                assert_eq!(vm.promote_due().unwrap().unwrap().ioctls, 1);
            }
        })
        .unwrap();
    assert_eq!(served, 10);
    for (n, pair) in values.chunks(2).enumerate() {
        assert_eq!(pair, [n as u64 + 1; 2]);
        assert_eq!(memory.read(n as u64 * 8), n as u64 + 1);
    }
}

/// An instruction that KVM can't carry out: the region is mapped, and the vCPU
/// does it itself.
#[test]
fn what_kvm_cannot_decode_is_done_by_the_vcpu_itself() {
    let test = "what_kvm_cannot_decode_is_done_by_the_vcpu_itself";
    let Some(vm) = vm_or_skip(test) else { return };
    if !exit_on_emulation_failure(&vm) {
        skip(test, "no KVM_CAP_EXIT_ON_EMULATION_FAILURE");
        return;
    }
    let memory = HostMemory::reserve(SMALL_PAGE, Pages::Small).unwrap();
    memory.write(16, 1);
    let Some(mut prober) = guest_or_skip(test, Prober::new(&vm, OWN_SLOT)) else { return };
    let vm = open(&vm, u64::MAX);
    map(&vm, &memory);
    let exits = vm.deferred(0).unwrap();
    let mut undecoded = 0;
    let mut device = |mmio: Mmio<'_>| match mmio {
        Mmio::Read(gpa, data) => _ = exits.read(gpa, data, |_, data| data.fill(0xee)),
        Mmio::Write(gpa, data) => _ = exits.write(gpa, data, |_, _| {}),
        Mmio::Undecoded(again) => {
            undecoded += 1;
            *again = vm.undecoded(&exits).unwrap() == Retry::Reenter;
        }
    };
    let accesses = [Access::Read(GPA + 16), Access::Undecodable(GPA + 16), Access::Read(GPA + 16)];
    assert_eq!(prober.drive(&accesses, &mut device).unwrap(), [1, 1, 1]);
    // Where nothing waits it is the VMM's to deal with.
    let elsewhere = [Access::Undecodable(GPA + SMALL_PAGE)];
    let error = prober.drive(&elsewhere, &mut device).unwrap_err();
    assert!(matches!(error, GuestError::Died { .. }), "{error}");
    assert_eq!(undecoded, 2);
    assert_eq!(vm.deferred_count(), 0);
}
