//! Sequences of calls, held against a KVM that gets all of them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use kvm_memslots::deferred::policy::Policy;
use proptest::prelude::*;

use super::exits::Served;
use super::machine::{All, Vm};
use super::memslots::{Answer, Asked, Kvm};
use crate::decide::access::{Access, Mmio};
use crate::decide::policy::Bill;
use crate::decide::region::{READONLY, Region, TRAP};
use crate::decide::rules::{Rules, Way};
use crate::decide::slots::Slots;
use crate::decide::tests::entries;
use crate::why::Why;

const PAGE: u64 = 4096;

/// As much of KVM as matters here.
#[derive(Debug, Default, Clone)]
pub(crate) struct Model {
    slots: Arc<Mutex<BTreeMap<u32, Region>>>,
    /// Calls before one that fails with `ENOMEM`.
    fails_after: Arc<Mutex<Option<u32>>>,
    /// Whether `KVM_SET_USER_MEMORY_REGION2` is not there yet.
    is_old: bool,
}

impl Model {
    fn set(&self, region: &Region) -> Result<(), c_int> {
        let mut fails_after = self.fails_after.lock().unwrap();
        match *fails_after {
            None => {}
            Some(0) => {
                *fails_after = None;
                return Err(libc::ENOMEM);
            }
            Some(left) => *fails_after = Some(left - 1),
        }
        drop(fails_after);
        let mut slots = self.slots.lock().unwrap();
        let old = slots.get(&region.slot).copied();
        if region.size == 0 {
            return slots.remove(&region.slot).map(drop).ok_or(libc::EINVAL);
        }
        let fixed = |old: &Region| {
            (old.size, old.hva, old.flags & READONLY)
                == (region.size, region.hva, region.flags & READONLY)
        };
        if !old.as_ref().is_none_or(fixed) {
            return Err(libc::EINVAL);
        }
        let overlaps = |other: &Region| other.slot != region.slot && other.overlaps(region);
        if slots.values().any(overlaps) {
            return Err(libc::EEXIST);
        }
        slots.insert(region.slot, *region);
        Ok(())
    }

    /// Where a guest's access ends up in host memory.
    fn reached(&self, gpa: u64) -> Option<u64> {
        let slots = self.slots.lock().unwrap();
        let visible = slots.values().filter(|slot| slot.flags & TRAP == 0);
        visible.into_iter().find_map(|slot| Some(slot.at(gpa)?.0))
    }

    fn all(&self) -> BTreeMap<u32, Region> {
        self.slots.lock().unwrap().clone()
    }
}

impl Kvm for Model {
    fn set_region(&self, region: &Region, two: bool) -> Result<(), c_int> {
        if two && self.is_old { Err(libc::ENOTTY) } else { self.set(region) }
    }

    fn tell_undecodable(&self, _: bool) -> Result<(), c_int> {
        Ok(())
    }
}

pub(crate) fn vm(model: &Model, way: Way, writable: bool, policy: Policy) -> Under {
    let rules = Rules { way, flips: 4, writable };
    among(model, 0, (&[], Box::leak(Box::default())), rules, policy)
}

/// The VM with mark `mark`, one of `all`.
pub(crate) fn among(model: &Model, mark: usize, all: All, rules: Rules, policy: Policy) -> Under {
    let vm = Vm::new(-1, mark, all, Slots::new(rules, entries()));
    vm.state.with(|state| state.bill = Bill::new(policy));
    Under { vm, model: model.clone() }
}

/// The library, and the KVM that it is in front of.
pub(crate) struct Under {
    pub(crate) vm: Vm,
    model: Model,
}

impl Under {
    fn undecodable(&self, before: u64) -> bool {
        self.vm.undecodable(&self.model, before)
    }

    fn promotions(&self) -> u64 {
        self.vm.promotions()
    }

    fn switch_off(&self) {
        self.vm.switch_off(&self.model, Why::of("the end"));
    }

    fn is_off(&self) -> bool {
        self.vm.state.with(|state| state.off.is_some())
    }

    fn access(&self, gpa: u64, bytes: usize) -> Access {
        self.vm.state.with(|state| state.slots.access(Mmio { space: 0, gpa, bytes, write: false }))
    }
}

pub(crate) fn ask(vm: &Under, model: &Model, region: &Region) -> Answer {
    ask_by(vm, model, region, false)
}

fn ask_by(vm: &Under, model: &Model, region: &Region, two: bool) -> Answer {
    let asked = Asked { region: *region, two };
    vm.vm.set_region(3, model, &asked, &mut || model.set_region(region, two).map(|()| 0))
}

/// A VMM tries the newer call on a KVM that has it not, between flips of a slot.
#[test]
fn a_call_that_kvm_has_not_is_its_to_refuse() {
    let model = Model { is_old: true, ..Model::default() };
    let vm = vm(&model, Way::Defer, false, Policy::Fixed { exits: 1000 });
    let slot = Region { slot: 1, flags: READONLY, gpa: PAGE, size: PAGE, hva: 1 << 32 };
    let other = Region { slot: 2, gpa: 9 * PAGE, ..slot };
    for _ in 0..6 {
        ask(&vm, &model, &slot).unwrap();
        ask(&vm, &model, &slot.gone()).unwrap();
    }
    // It would be deferred, and its removal forgotten, by the call that there is.
    assert_eq!(ask_by(&vm, &model, &slot, true), Err(libc::ENOTTY));
    ask(&vm, &model, &slot).unwrap();
    assert!(vm.vm.defers_now());
    assert_eq!(ask_by(&vm, &model, &slot.gone(), true), Err(libc::ENOTTY));
    assert_eq!(ask_by(&vm, &model, &other, true), Err(libc::ENOTTY));
    assert_eq!((model.reached(PAGE), vm.is_off()), (Some(1 << 32), false));
    // What is mapped for the guest's sake is so by the call that KVM took.
    ask(&vm, &model, &slot.gone()).unwrap();
    ask(&vm, &model, &slot).unwrap();
    assert_eq!(ask_by(&vm, &model, &other, true), Err(libc::ENOTTY));
    assert!(vm.undecodable(vm.promotions()));
    assert_eq!(model.reached(PAGE), Some(1 << 32));
}

#[derive(Debug, Clone)]
enum Event {
    Add(Region),
    Remove(u32),
    /// Removed and added again as it is, so often.
    Churn(u32, u32),
    Undecodable,
    Read(u64),
}

/// Few slots over few pages, so that they meet.
fn region() -> impl Strategy<Value = Region> {
    let flags = prop_oneof![4 => Just(READONLY), 1 => Just(0), 1 => Just(READONLY | 1)];
    (0..4_u32, flags, 0..6_u64, 1..4_u64, 1..4_u64).prop_map(|(slot, flags, page, pages, at)| {
        Region { slot, flags, gpa: page * PAGE, size: pages * PAGE, hva: at << 32 }
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => region().prop_map(Event::Add),
        2 => (0..4_u32).prop_map(Event::Remove),
        3 => (0..4_u32, 1..6_u32).prop_map(|(slot, times)| Event::Churn(slot, times)),
        1 => Just(Event::Undecodable),
        3 => (0..9 * PAGE).prop_map(Event::Read),
    ]
}

/// One VM with the library between, and one without.
struct Pair {
    vm: Under,
    ours: Model,
    plain: Model,
}

impl Pair {
    fn ask(&self, region: &Region) -> Result<(), TestCaseError> {
        let answer = ask(&self.vm, &self.ours, region);
        if answer == Err(libc::ENOMEM) {
            return self.same();
        }
        prop_assert_eq!(answer, self.plain.set(region).map(|()| 0), "{:?}", region);
        self.same()
    }

    /// A guest finds the same memory, be it by an exit that is served.
    fn same(&self) -> Result<(), TestCaseError> {
        for page in 0..9 {
            let gpa = page * PAGE + 8;
            let (ours, plain) = (self.ours.reached(gpa), self.plain.reached(gpa));
            let found = match ours {
                None => match self.vm.access(gpa, 4) {
                    Access::Pass => None,
                    Access::Serve { pieces, .. } => Some(pieces[0].hva),
                },
                found => found,
            };
            prop_assert_eq!(found, plain, "gpa {:#x}", gpa);
        }
        Ok(())
    }

    fn event(&self, event: &Event) -> Result<(), TestCaseError> {
        match *event {
            Event::Add(region) => self.ask(&region),
            Event::Remove(slot) => self.ask(&Region { slot, flags: 0, gpa: 0, size: 0, hva: 0 }),
            Event::Churn(slot, times) => {
                let Some(region) = self.plain.all().get(&slot).copied() else { return Ok(()) };
                for _ in 0..times {
                    self.ask(&region.gone())?;
                    self.ask(&region)?;
                }
                Ok(())
            }
            Event::Undecodable => {
                self.vm.undecodable(self.vm.promotions());
                self.same()
            }
            Event::Read(gpa) => {
                if let Access::Serve { deferred: true, .. } = self.vm.access(gpa, 1) {
                    let vm = &self.vm;
                    let mmio = Mmio { space: 0, gpa, bytes: 1, write: false };
                    vm.vm.state.with(|state| vm.vm.served(state, &vm.model, &mmio, None));
                }
                self.same()
            }
        }
    }
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![Just(Way::Trap), Just(Way::Defer), Just(Way::AsAsked)]
}

proptest! {
    #[test]
    fn neither_vmm_nor_guest_can_tell(
        way in way(),
        writable in any::<bool>(),
        exits in 0..4_u64,
        events in prop::collection::vec(event(), 0..40),
    ) {
        let (ours, plain) = (Model::default(), Model::default());
        let vm = vm(&ours, way, writable, Policy::Fixed { exits });
        let pair = Pair { vm, ours, plain };
        for event in &events {
            pair.event(event)?;
        }
        pair.vm.switch_off();
        prop_assert_eq!(pair.ours.all(), pair.plain.all());
        for event in &events {
            pair.event(event)?;
            prop_assert_eq!(pair.ours.all(), pair.plain.all());
        }
    }

    /// Whatever call it is that KVM refuses: what is served, or passed, is as the
    /// VMM was told.
    #[test]
    fn a_kvm_that_fails_once(
        way in way(),
        after in 0..30_u32,
        events in prop::collection::vec(event(), 1..30),
    ) {
        let (ours, plain) = (Model::default(), Model::default());
        let vm = vm(&ours, way, false, Policy::Fixed { exits: 2 });
        *ours.fails_after.lock().unwrap() = Some(after);
        let pair = Pair { vm, ours, plain };
        for event in &events {
            pair.event(event)?;
        }
        if pair.ours.fails_after.lock().unwrap().take().is_some() {
            pair.vm.switch_off();
            prop_assert_eq!(pair.ours.all(), pair.plain.all());
        }
    }
}

pub(crate) const FLASH: Region =
    Region { slot: 1, flags: READONLY, gpa: 0x1000, size: PAGE, hva: 0x10_0000 };

/// Deferred, after it has churned.
fn deferred(model: &Model, hva: u64, policy: Policy) -> (Under, Region) {
    let vm = vm(model, Way::Defer, false, policy);
    let region = Region { hva, ..FLASH };
    for _ in 0..3 {
        ask(&vm, model, &region).unwrap();
        ask(&vm, model, &region.gone()).unwrap();
    }
    ask(&vm, model, &region).unwrap();
    assert!(model.all().is_empty() && vm.vm.defers_now());
    (vm, region)
}

/// The slot gets it, and is deferred again once it churns again.
#[test]
fn dirty_logging_of_a_slot_that_is_deferred() {
    let model = Model::default();
    let (vm, region) = deferred(&model, FLASH.hva, Policy::default());
    let logged = Region { flags: READONLY | 1, ..region };
    assert_eq!(ask(&vm, &model, &logged), Ok(0));
    assert_eq!(model.all()[&1], logged);
    ask(&vm, &model, &region).unwrap();
    assert_eq!(model.all()[&1], region);
    for _ in 0..2 {
        ask(&vm, &model, &region.gone()).unwrap();
        ask(&vm, &model, &region).unwrap();
        assert_eq!(model.all()[&1], region);
    }
    ask(&vm, &model, &region.gone()).unwrap();
    ask(&vm, &model, &region).unwrap();
    assert!(!vm.is_off() && model.all().is_empty());
}

/// What comes and goes and is never deferred costs no run of a vCPU anything.
#[test]
fn vcpus_reckon_with_slots_that_may_churn() {
    let model = Model::default();
    let vm = vm(&model, Way::Defer, false, Policy::default());
    let ram = Region { flags: 0, ..FLASH };
    for (region, epoch) in [(ram, 0), (ram.gone(), 0), (FLASH, 1), (FLASH.gone(), 2)] {
        ask(&vm, &model, &region).unwrap();
        assert_eq!(vm.vm.epoch(), epoch, "{region:?}");
    }
}

/// The log of another slot is nobody's business.
#[test]
fn a_dirty_log_is_of_one_slot() {
    let model = Model::default();
    let (vm, region) = deferred(&model, FLASH.hva, Policy::default());
    vm.vm.logged(&model, 7);
    assert!(vm.vm.defers_now() && model.all().is_empty());
    vm.vm.logged(&model, region.slot);
    assert!(!vm.is_off() && model.all()[&1] == region);
}

#[test]
fn what_is_not_followed_switches_off_only_where_it_matters() {
    let model = Model::default();
    let (vm, region) = deferred(&model, FLASH.hva, Policy::default());
    vm.vm.not_followed(&model, "KVM_PRE_FAULT_MEMORY", false);
    assert_eq!(model.all()[&1], region);
    assert!(vm.is_off() && !vm.vm.state.with(|state| state.blind));

    let model = Model::default();
    let vm = self::vm(&model, Way::Defer, false, Policy::default());
    ask(&vm, &model, &FLASH).unwrap();
    vm.vm.not_followed(&model, "KVM_PRE_FAULT_MEMORY", false);
    assert!(!vm.is_off());
    vm.vm.not_followed(&model, "a batch", true);
    assert!(vm.is_off() && vm.vm.state.with(|state| state.blind));
}

#[test]
fn a_promotion_that_fails_is_no_reason_to_go_on() {
    let model = Model::default();
    let (vm, _) = deferred(&model, FLASH.hva, Policy::default());
    *model.fails_after.lock().unwrap() = Some(0);
    assert!(!vm.undecodable(vm.promotions()));
    *model.fails_after.lock().unwrap() = None;
    assert!(vm.undecodable(vm.promotions()));
    assert_eq!(model.all().len(), 1);
}

#[test]
fn an_undecodable_access_is_tried_again_where_another_thread_has_mapped() {
    let model = Model::default();
    let (vm, _) = deferred(&model, FLASH.hva, Policy::default());
    let before = vm.promotions();
    assert!(vm.undecodable(before));
    assert!(vm.undecodable(before));
    let now = vm.promotions();
    // Once, as KVM is not to tell of it any more; then it is the VMM's.
    assert!(vm.undecodable(now));
    assert!(!vm.undecodable(now));
}

/// Reads while another thread flips the slot: each is either passed, or has the
/// value that was in memory at the time.
#[test]
fn exits_race_promotions_and_removals() {
    let memory: Vec<AtomicU32> = (0..1024).map(AtomicU32::new).collect();
    let model = Model::default();
    let (vm, region) = deferred(&model, memory.as_ptr() as u64, Policy::Fixed { exits: 3 });
    let served = AtomicU64::new(0);
    thread::scope(|scope| {
        for first in 0..3_u64 {
            let (vm, served) = (&vm, &served);
            scope.spawn(move || {
                for at in (first..30_000).map(|at| at % 1024) {
                    let mut data = [0xff; 8];
                    let mmio = Mmio { space: 0, gpa: FLASH.gpa + at * 4, bytes: 4, write: false };
                    let before = vm.vm.serve(&vm.model, mmio, &mut data, None);
                    if before == Served::Again {
                        assert_eq!(data[..4], (at as u32).to_ne_bytes());
                        served.fetch_add(1, Ordering::Relaxed);
                    } else {
                        assert_eq!(before, Served::No);
                    }
                    if at % 64 == 0 {
                        vm.undecodable(vm.promotions());
                    }
                }
            });
        }
        for _ in 0..2_000 {
            assert_eq!(ask(&vm, &model, &region.gone()), Ok(0));
            assert_eq!(ask(&vm, &model, &region), Ok(0));
        }
    });
    assert!(served.load(Ordering::Relaxed) > 0);
    vm.switch_off();
    assert_eq!(model.all()[&1], region);
}
