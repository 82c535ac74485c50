//! What was done, as it is written at the end: for each VM, and for the whole
//! process.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::fmt;

use serde::Serialize;

use crate::counts::Sums;
use crate::decide::region::Region;
use crate::decide::slot::{Slot, SlotCounts};
use crate::root::Root;
use crate::vm::machine::{Passed, State, Vm};

/// One slot that has churned, or was deferred.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct OfSlot {
    slot: u32,
    gpa: u64,
    size: u64,
    /// Whether it is one of those that are flipped or deferred.
    churns: bool,
    /// Why not.
    left_alone: Option<&'static str>,
    #[serde(flatten)]
    counts: SlotCounts,
}

/// Calls that KVM got as they were, and that nothing was made of.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NotFollowed {
    /// Those that change or read slots, by name.
    calls: BTreeMap<&'static str, u64>,
    /// Memslot calls since the VM was switched off.
    since_off: u64,
    /// Memslot calls for slots that there was no room to know.
    unknown: u64,
    /// How many slots were flipped and left alone, by the reason.
    slots: BTreeMap<&'static str, u64>,
}

impl NotFollowed {
    fn new(state: &State) -> Self {
        let Passed { calls, since_off } = &state.passed;
        let calls = calls.iter().copied().filter(|(_, count)| *count > 0).collect();
        let flipped = state.slots.iter().filter(|slot| slot.counts.flips > 0);
        let mut slots = BTreeMap::new();
        for why in flipped.filter_map(|slot| state.slots.left_alone(slot)) {
            *slots.entry(why).or_default() += 1;
        }
        Self { calls, since_off: *since_off, unknown: state.slots.unknown(), slots }
    }
}

impl OfSlot {
    fn new(slot: &Slot, left_alone: Option<&'static str>) -> Self {
        let Region { slot: id, gpa, size, .. } = slot.region;
        Self { slot: id, gpa, size, churns: slot.churns(), left_alone, counts: slot.counts }
    }
}

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct OfVm {
    /// The descriptor that it was made as.
    fd: c_int,
    #[serde(flatten)]
    sums: Sums,
    switched_off: Option<String>,
    not_followed: NotFollowed,
    /// Slots that were flipped at least once.
    slots: Vec<OfSlot>,
}

impl OfVm {
    fn new(vm: &Vm) -> Self {
        let found = vm.with_state_soon(|state| {
            let flipped = state.slots.iter().filter(|slot| slot.counts.flips > 0);
            let of = |slot: &Slot| OfSlot::new(slot, state.slots.left_alone(slot));
            let why = state.off.map(|why| why.to_string());
            (why, NotFollowed::new(state), Vec::from_iter(flipped.map(of)))
        });
        let in_a_call = || (Some("unknown: in a call".to_owned()), NotFollowed::default(), vec![]);
        let (switched_off, not_followed, mut slots) = found.unwrap_or_else(in_a_call);
        slots.sort_by_key(|slot| slot.slot);
        Self { fd: vm.made_as, sums: vm.counts.sums(), switched_off, not_followed, slots }
    }
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Totals {
    mode: &'static str,
    vms: u64,
    vcpus: u64,
    /// Of all VMs.
    #[serde(flatten)]
    sums: Sums,
    /// Why VMs are left alone.
    switched_off: Vec<String>,
    /// Those that were followed.
    by_vm: Vec<OfVm>,
}

impl Totals {
    pub(crate) fn new(root: &Root, mode: &'static str) -> Self {
        let by_vm = Vec::from_iter(root.vms().map(OfVm::new));
        let mut sums = Sums::default();
        for vm in &by_vm {
            sums.add(&vm.sums);
        }
        let switched_off = by_vm.iter().filter_map(|vm| vm.switched_off.clone()).collect();
        let (vms, vcpus) = (root.counts.vms.get(), root.counts.vcpus.get());
        Self { mode, vms, vcpus, sums, switched_off, by_vm }
    }
}

fn ms(ns: u64) -> String {
    format!("{}.{:03} ms", ns / 1_000_000, ns / 1000 % 1000)
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} VMs, {} vCPUs, mode {}", self.vms, self.vcpus, self.mode)?;
        write!(f, "{}", self.sums)?;
        self.by_vm.iter().try_for_each(|vm| write!(f, "{vm}"))
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (asked_ns, kvm_ns, longest) = (ms(self.asked_ns), ms(self.kvm_ns), ms(self.longest_ns));
        writeln!(
            f,
            "memslot calls of the VMM: {} in {asked_ns}, {} refused\n\
             KVM got: {} calls and {} flips in {kvm_ns}, the longest took {longest}\n\
             deferred: {}, of these removed unused {}, mapped {} (at {} times for the exits \
             served, at {} for an access that KVM can't decode)\n\
             exits served: {} reads, {} writes; slots put right: {}",
            self.asked,
            self.refused,
            self.calls,
            self.flips,
            self.deferred,
            self.unused,
            self.mapped,
            self.promoted_by_exits,
            self.promoted_by_undecodable,
            self.reads,
            self.writes,
            self.put_right
        )
    }
}

impl NotFollowed {
    fn write(&self, fd: c_int, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in &self.calls {
            writeln!(f, "VM {fd}: not followed: {count} {name}")?;
        }
        let more = [
            (self.since_off, "since then"),
            (self.unknown, "for slots that there was no room for"),
        ];
        more.iter().filter(|(count, _)| *count > 0).try_for_each(|(count, which)| {
            writeln!(f, "VM {fd}: not followed: {count} memslot calls {which}")
        })
    }
}

impl fmt::Display for OfVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (fd, sums) = (self.fd, &self.sums);
        let exits = sums.reads + sums.writes;
        let calls = sums.calls + sums.flips;
        writeln!(
            f,
            "VM {fd}: asked {} in {}, KVM got {calls}, exits served {exits}",
            sums.asked,
            ms(sums.asked_ns)
        )?;
        if let Some(why) = &self.switched_off {
            writeln!(f, "VM {fd}: switched off: {why}")?;
        }
        self.not_followed.write(fd, f)?;
        self.slots.iter().try_for_each(|slot| {
            let OfSlot { slot: id, gpa, size, counts, .. } = slot;
            let SlotCounts { asked, asked_ns, calls, flips, deferred, exits } = *counts;
            let churns = match slot.left_alone {
                None => "churns".to_owned(),
                Some(why) => format!("left alone ({why})"),
            };
            writeln!(
                f,
                "VM {fd}: slot {id:#x} at {gpa:#x}+{size:#x}, {churns}: asked {asked} in {}, \
                 KVM got {calls}, flips {flips}, deferred {deferred}, exits served {exits}",
                ms(asked_ns)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::counts::VmCounts;

    #[test]
    fn sums_as_text_and_as_json() {
        let counts = VmCounts::default();
        counts.asked.add(3);
        counts.calls.add(2);
        counts.called(1_234_567);
        counts.called(1_000);
        let why = Some("a move".to_owned());
        let calls = BTreeMap::from([("KVM_PRE_FAULT_MEMORY", 2)]);
        let of_vm = OfVm {
            fd: 5,
            sums: counts.sums(),
            switched_off: why.clone(),
            not_followed: NotFollowed { calls, since_off: 7, ..NotFollowed::default() },
            slots: Vec::new(),
        };
        let totals = Totals {
            mode: "defer",
            vms: 1,
            vcpus: 2,
            sums: counts.sums(),
            switched_off: Vec::from_iter(why),
            by_vm: vec![of_vm],
        };
        let text = totals.to_string();
        assert!(text.contains("of the VMM: 3 in 0.000 ms"), "{text}");
        assert!(text.contains("2 calls and 0 flips in 1.235 ms, the longest took 1.234"), "{text}");
        assert!(text.contains("VM 5: switched off: a move"), "{text}");
        assert!(text.contains("VM 5: not followed: 2 KVM_PRE_FAULT_MEMORY"), "{text}");
        assert!(text.contains("VM 5: not followed: 7 memslot calls since then"), "{text}");
        let json = serde_json::to_value(&totals).unwrap();
        assert_eq!(json["kvm_ns"], 1_235_567);
        assert_eq!(json["switched_off"][0], "a move");
        assert_eq!(json["by_vm"][0]["asked"], 3);
        assert_eq!(json["by_vm"][0]["not_followed"]["calls"]["KVM_PRE_FAULT_MEMORY"], 2);
        assert_eq!(json["mode"], "defer");
    }

    /// A call that does not end does not keep the program from its end.
    #[test]
    fn a_vm_in_a_call_is_not_waited_for() {
        use kvm_memslots::deferred::policy::Policy;

        use crate::decide::rules::Way;
        use crate::vm::tests::{Model, vm};

        let model = Model::default();
        let vm = vm(&model, Way::Defer, false, Policy::default());
        vm.vm.counts.asked.add(1);
        let of_vm = vm.vm.with_state(|_| {
            std::thread::scope(|scope| scope.spawn(|| OfVm::new(&vm.vm)).join().unwrap())
        });
        assert_eq!(of_vm.switched_off.as_deref(), Some("unknown: in a call"));
        assert_eq!(of_vm.sums.asked, 1);
    }

    /// What was left alone, and why, of slots that flip alike.
    #[test]
    fn what_is_not_followed_is_counted() {
        use kvm_memslots::deferred::policy::Policy;

        use crate::decide::region::READONLY;
        use crate::decide::rules::Way;
        use crate::vm::tests::{Model, ask, vm};

        let model = Model::default();
        let vm = vm(&model, Way::Defer, false, Policy::default());
        let flags = [READONLY, READONLY | 1, 0];
        for (slot, flags) in (1_u32..).zip(flags) {
            let gpa = u64::from(slot) << 30;
            let region = Region { slot, flags, gpa, size: 4096, hva: 1 << 20 };
            for _ in 0..4 {
                ask(&vm, &model, &region).unwrap();
                ask(&vm, &model, &region.gone()).unwrap();
            }
        }
        let found = || vm.vm.with_state(|state| NotFollowed::new(state));
        let slots = [("its writes are logged", 1), ("the guest may write to it", 1)];
        assert_eq!(found(), NotFollowed { slots: slots.into(), ..NotFollowed::default() });
        // The first slot is managed, so this switches the VM off.
        vm.vm.not_followed(&model, "KVM_PRE_FAULT_MEMORY", false);
        ask(&vm, &model, &Region { slot: 9, flags: 0, gpa: 0, size: 4096, hva: 0 }).unwrap();
        let of = found();
        assert_eq!(of.calls, BTreeMap::from([("KVM_PRE_FAULT_MEMORY", 1)]));
        assert_eq!((of.since_off, of.unknown), (1, 0));
    }
}
