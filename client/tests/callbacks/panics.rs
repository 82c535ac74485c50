//! Random sets of changes in which somebody panics: no memory is freed that a
//! slot is over, and the VM's idea of its slots is right, at the latest after
//! the next set.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_memslots::backend::model::memory::GuestAccess;
use kvm_memslots::backend::model::{events, memory};
use kvm_memslots::backend::{EventModel, Irqchip, MemoryModel};
use kvm_memslots::device::{Device, DeviceId, Doorbell, Msi};
use kvm_memslots::{Access, Backing, Changes, Errno, Limits, RegionId, RegionSpec, Vm, at};
use proptest::prelude::*;

use crate::host::eventfd;
use crate::rig::{Gate, HVA, Owned, PAGE, Script, locked, open, ram};
use crate::told::{Call, Told};

const PAGES: u64 = 24;

#[derive(Debug, Clone)]
enum Step {
    Map { page: u64, pages: u64, logged: bool, permanent: bool },
    Unmap(usize),
    Log(usize, bool),
    ReadOnly(usize, bool),
    Move(usize, u64),
    Replace(usize),
    Split(usize),
    Attach { page: u64 },
    Detach(usize),
    Vector(usize, Option<u32>),
}

/// Who panics, at which of its calls.
#[derive(Debug, Clone, Copy)]
enum Who {
    Nobody,
    Callback(u64),
    Memory {
        nth: u64,
        after: bool,
    },
    Events {
        nth: u64,
        after: bool,
    },
    /// And KVM refuses something first, so that there is something to undo.
    Undo {
        refused: u64,
        nth: u64,
        after: bool,
    },
    Tracing(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let which = || 0..16_usize;
    let map = (0..PAGES, 1..5_u64, any::<bool>(), any::<bool>());
    prop_oneof![
        6 => map.prop_map(|(page, pages, logged, permanent)| {
            Step::Map { page, pages, logged, permanent }
        }),
        3 => which().prop_map(Step::Unmap),
        1 => (which(), any::<bool>()).prop_map(|(n, on)| Step::Log(n, on)),
        1 => (which(), any::<bool>()).prop_map(|(n, on)| Step::ReadOnly(n, on)),
        2 => (which(), 0..PAGES).prop_map(|(n, page)| Step::Move(n, page)),
        1 => which().prop_map(Step::Replace),
        1 => which().prop_map(Step::Split),
        2 => (0..PAGES).prop_map(|page| Step::Attach { page }),
        1 => which().prop_map(Step::Detach),
        1 => (which(), prop::option::of(0x20..0x30_u32)).prop_map(|(n, m)| Step::Vector(n, m)),
    ]
}

fn who() -> impl Strategy<Value = Who> {
    let nth = || 1..4_u64;
    prop_oneof![
        2 => Just(Who::Nobody),
        4 => (1..9_u64).prop_map(Who::Callback),
        3 => (nth(), any::<bool>()).prop_map(|(nth, after)| Who::Memory { nth, after }),
        2 => (nth(), any::<bool>()).prop_map(|(nth, after)| Who::Events { nth, after }),
        2 => (nth(), nth(), any::<bool>())
            .prop_map(|(refused, nth, after)| Who::Undo { refused, nth, after }),
        1 => (1..4_u64).prop_map(Who::Tracing),
    ]
}

/// A subscriber that panics at an event.
struct Subscriber(Arc<Script>);

impl tracing::Subscriber for Subscriber {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.called("tracing");
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

struct World {
    vm: Option<Vm>,
    model: MemoryModel,
    events: EventModel,
    script: Arc<Script>,
    devices: Vec<DeviceId>,
    next_hva: u64,
}

impl World {
    fn new(limits: Limits, observed: bool) -> Self {
        let script = Arc::<Script>::default();
        let (vm, model, events) = open(limits, &script, observed);
        Self { vm: Some(vm), model, events, script, devices: Vec::new(), next_hva: HVA }
    }

    fn vm(&self) -> &Vm {
        self.vm.as_ref().unwrap()
    }

    fn memory(&mut self) -> Backing {
        let (hva, size) = (self.next_hva, 8 * PAGE);
        self.next_hva += 2 * size;
        let (model, script) = (self.model.clone(), Arc::clone(&self.script));
        Backing::owned(Arc::new(Owned { hva, size, model, script }), 0)
    }

    fn inject(&self, who: Who) {
        let after = |fault: memory::Fault, after: bool| {
            if after { fault.panicking_after() } else { fault.panicking() }
        };
        match who {
            Who::Nobody => {}
            Who::Callback(nth) | Who::Tracing(nth) => self.script.set_fuse(nth),
            Who::Memory { nth, after: late } => {
                self.model.inject(after(memory::Fault::nth(nth, Errno::EIO), late));
            }
            Who::Events { nth, after } => {
                let fault = events::Fault::nth(nth, Errno::EIO);
                let fault = if after { fault.panicking_after() } else { fault.panicking() };
                self.events.inject(fault);
            }
            Who::Undo { refused, nth, after: late } => {
                self.model.inject(memory::Fault::nth(refused, Errno::ENOMEM));
                let fault = memory::Fault::nth(refused + nth, Errno::EIO);
                self.model.inject(after(fault, late));
            }
        }
    }

    fn calm(&self) {
        self.script.set_fuse(0);
        self.model.clear_faults();
        self.events.clear_faults();
    }

    fn changes(&mut self, steps: &[Step]) -> (Changes, Vec<DeviceId>) {
        let mut c = Changes::new();
        let mut regions: Vec<RegionId> = self.vm().regions().iter().map(|r| r.id).collect();
        let mut attached = Vec::new();
        let pick = |regions: &[RegionId], n: usize| regions.get(n % regions.len().max(1)).copied();
        for step in steps {
            match *step {
                Step::Map { page, pages, logged, permanent } => {
                    let span = at(page * PAGE, pages * PAGE);
                    let spec = RegionSpec::ram(span, self.memory());
                    let spec = if logged { spec.log_dirty() } else { spec };
                    regions.push(c.map(if permanent { spec.permanent() } else { spec }));
                }
                Step::Attach { page } => {
                    let id = RegionId::new();
                    let bar = RegionSpec::ram(at(page * PAGE, PAGE), self.memory());
                    let msi = Msi { address: 0xfee0_0000, data: 0x41, devid: None };
                    let device = Device::new("dev")
                        .region(id, bar)
                        .ioeventfd(Doorbell::in_region(id, 0x800).len(2), eventfd())
                        .vector(eventfd(), Some(msi));
                    attached.push(c.attach(device));
                }
                Step::Detach(n) => {
                    if let Some(id) = self.devices.get(n % self.devices.len().max(1)) {
                        c.detach(*id);
                    }
                }
                Step::Vector(n, data) => {
                    let msi = data.map(|data| Msi { address: 0xfee0_0000, data, devid: None });
                    if let Some(id) = self.devices.get(n % self.devices.len().max(1)) {
                        c.set_vector(*id, 0, msi);
                    }
                }
                Step::Unmap(n) if !regions.is_empty() => {
                    c.unmap(regions.remove(n % regions.len()));
                }
                Step::Log(n, on) => {
                    pick(&regions, n).into_iter().for_each(|id| c.set_log_dirty(id, on));
                }
                Step::ReadOnly(n, on) => {
                    pick(&regions, n).into_iter().for_each(|id| c.set_read_only(id, on));
                }
                Step::Move(n, page) => {
                    pick(&regions, n).into_iter().for_each(|id| c.move_to(id, page * PAGE));
                }
                Step::Replace(n) => {
                    let memory = self.memory();
                    pick(&regions, n).into_iter().for_each(|id| c.replace(id, memory.clone()));
                }
                Step::Split(n) => {
                    if let Some(id) = pick(&regions, n) {
                        regions.push(c.split(id, PAGE));
                    }
                }
                Step::Unmap(_) => {}
            }
        }
        (c, attached)
    }

    /// The steps that can be, in one set, with a panic somewhere.
    fn set(&mut self, steps: &[Step], who: Who) {
        // What can't be is left out, so that most sets come to calls.
        let mut fits = Vec::new();
        for step in steps {
            fits.push(step.clone());
            let (c, _) = self.changes(&fits);
            if self.vm().preview(&c).is_err() {
                fits.pop();
            }
        }
        let (c, _) = self.changes(&fits);
        self.inject(who);
        let subscriber = Subscriber(Arc::clone(&self.script));
        let result = catch_unwind(AssertUnwindSafe(|| match who {
            Who::Tracing(_) => tracing::subscriber::with_default(subscriber, || self.vm().apply(c)),
            _ => self.vm().apply(c),
        }));
        drop(result);
        self.calm();
        self.devices = self.vm().devices();
        self.assert_not_freed_early();
        if !self.is_known() {
            // What is settled by the next set, an empty one.
            self.vm().apply(Changes::new()).unwrap();
            self.assert_not_freed_early();
        }
        assert!(self.is_known(), "{:?} and {:?}", self.vm().slots(0), self.model.slots(0));
        self.assert_guest_sees_regions();
    }

    fn is_known(&self) -> bool {
        self.vm().slots(0) == self.model.slots(0)
            && self.vm().event_state().unwrap() == self.events.state()
            && self.layout() == self.guest()
    }

    fn layout(&self) -> BTreeMap<u64, u64> {
        let regions = self.vm().regions();
        let pages = |gpa: u64, size: u64, hva: u64| {
            (0..size / PAGE).map(move |n| (gpa + n * PAGE, hva + n * PAGE))
        };
        regions.iter().flat_map(|r| pages(r.range.gpa(), r.range.size(), r.hva)).collect()
    }

    fn guest(&self) -> BTreeMap<u64, u64> {
        let at = |page| match self.model.guest_at(0, page * PAGE) {
            GuestAccess::Ram { hva } => Some((page * PAGE, hva)),
            _ => None,
        };
        (0..2 * PAGES).filter_map(at).collect()
    }

    fn assert_guest_sees_regions(&self) {
        assert_eq!(self.guest(), self.layout());
    }

    fn assert_not_freed_early(&self) {
        assert!(!self.script.freed_early.load(Ordering::Relaxed), "freed under a slot");
    }

    fn drop_vm(&mut self, who: Who) {
        self.inject(who);
        let vm = self.vm.take();
        let subscriber = Subscriber(Arc::clone(&self.script));
        drop(catch_unwind(AssertUnwindSafe(|| match who {
            Who::Tracing(_) => tracing::subscriber::with_default(subscriber, || drop(vm)),
            _ => drop(vm),
        })));
        self.calm();
        self.assert_not_freed_early();
        if matches!(who, Who::Nobody) {
            assert_eq!(self.model.slots(0), [], "all of it is owned");
        }
    }
}

/// Panics are what is tested: their messages would hide everything else.
fn hush() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let payload = info.payload();
            let said = payload.downcast_ref::<&str>().copied();
            let said = said.or(payload.downcast_ref::<String>().map(String::as_str));
            let said = said.unwrap_or_default();
            if said != "a callback's panic" && said != "an injected panic" {
                hook(info);
            }
        }));
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn no_panic_frees_what_kvm_maps(
        sets in prop::collection::vec((prop::collection::vec(step(), 0..7), who()), 1..6),
        end in who(),
        batch in any::<bool>(),
        observed in any::<bool>(),
    ) {
        hush();
        let limits = if batch { Limits::x86().with_batch(64) } else { Limits::x86() };
        let mut world = World::new(limits, observed);
        for (steps, who) in &sets {
            world.set(steps, *who);
        }
        world.drop_vm(end);
    }
}

/// A descriptor that can't be dropped in peace.
struct Bomb(OwnedFd);

impl AsFd for Bomb {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a bomb");
    }
}

#[test]
fn files_that_panic_when_they_are_dropped_do_so_one_by_one() {
    let (vm, ..) = open(Limits::x86(), &Arc::default(), false);
    let mut changes = Changes::new();
    for page in 0..3 {
        // SAFETY: only ever mapped into a model, which touches nothing.
        let backing = unsafe { Backing::borrowed(HVA + page * PAGE, PAGE, Access::ReadWrite) };
        let backing = backing.with_file(Bomb(eventfd()), 0);
        changes.map(RegionSpec::ram(at(2 * page * PAGE, PAGE), backing));
    }
    // One panic while another unwinds would end the process.
    let said = catch_unwind(AssertUnwindSafe(|| vm.apply(changes))).unwrap_err();
    assert_eq!(said.downcast_ref(), Some(&"a bomb"));
    assert_eq!(vm.regions().len(), 3);
    vm.apply(Changes::new()).unwrap();
}

/// What a panic carries that can't be dropped in peace either.
struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        panic!("a grenade");
    }
}

/// Memory, and a callback, that throw one.
struct Thrower(u64);

impl Drop for Thrower {
    fn drop(&mut self) {
        std::panic::panic_any(Grenade);
    }
}

// SAFETY: only ever mapped into a model.
unsafe impl kvm_memslots::HostMemory for Thrower {
    fn range(&self) -> (u64, u64) {
        (self.0, PAGE)
    }
}

impl kvm_memslots::Observer for Thrower {
    fn unmapping(&self, _: &kvm_memslots::Region) {
        std::panic::panic_any(Grenade);
    }

    fn mapped(&self, _: &kvm_memslots::Region) {
        std::panic::panic_any(Grenade);
    }
}

/// Whether `f` panics with a payload of that kind, which is leaked.
fn throws(f: impl FnOnce()) -> bool {
    let Err(payload) = catch_unwind(AssertUnwindSafe(f)) else { return false };
    let is_one = payload.is::<Grenade>();
    std::mem::forget(payload);
    is_one
}

#[test]
fn payloads_that_panic_when_they_are_dropped_do_not_end_the_process() {
    let limits = Limits::x86();
    let (model, events) = (MemoryModel::new(limits), EventModel::new(Irqchip::Split));
    let builder = [1, 2].into_iter().fold(Vm::builder(), |builder, n| {
        builder.observer(Arc::new(Thrower(HVA + 100 * n * PAGE)))
    });
    let vm = builder.open_on(Arc::new(model.clone()), Arc::new(events)).unwrap();
    let spec = |page: u64| {
        let backing = Backing::owned(Arc::new(Thrower(HVA + page * PAGE)), 0);
        RegionSpec::ram(at(page * PAGE, PAGE), backing)
    };
    let mut changes = Changes::new();
    let [a, b] = [0, 2].map(|page| changes.map(spec(page)));
    changes.map(spec(4));
    changes.map(spec(6));
    assert!(throws(|| drop(vm.apply(changes))), "two observers");
    let mut changes = Changes::new();
    [a, b].into_iter().for_each(|id| changes.unmap(id));
    // Observers and the memory of two regions.
    assert!(throws(|| drop(vm.apply(changes))));
    assert_eq!((vm.regions().len(), model.slots(0).len()), (2, 2));
    // A refused set drops what it was to map.
    let mut changes = Changes::new();
    [4, 4].into_iter().for_each(|page| _ = changes.map(spec(page)));
    assert!(throws(|| drop(vm.apply(changes))));
    // The rest of the memory, and the observers themselves.
    assert!(throws(|| drop(vm)));
    assert_eq!(model.slots(0), []);
}

#[test]
fn a_backend_is_dropped_where_its_panic_is_caught() {
    let thrower = Thrower(0);
    let told = Told::new(move |_| _ = &thrower);
    let events = Arc::new(EventModel::new(Irqchip::Split));
    let builder = Vm::builder().observer(Arc::new(Thrower(0)));
    let vm = builder.open_on(Arc::new(told), events).unwrap();
    // The observer, and the backend.
    assert!(throws(|| drop(vm)));
}

#[test]
fn a_backend_that_panics_when_it_is_asked_its_name_changes_nothing() {
    let armed = Arc::new(AtomicBool::new(false));
    let fuse = Arc::clone(&armed);
    let told = Told::new(move |call| {
        if call == Call::Name && fuse.load(Ordering::Relaxed) {
            std::panic::panic_any(Grenade);
        }
    });
    let script = Arc::<Script>::default();
    let builder = Vm::builder().gate(Arc::new(Gate(Arc::clone(&script))));
    let events = Arc::new(EventModel::new(Irqchip::Split));
    let vm = builder.open_on(Arc::new(told), events).unwrap();
    let mut changes = Changes::new();
    let id = changes.map(ram(0, 4 * PAGE));
    changes.set_log_dirty(id, true);
    vm.apply(changes).unwrap();
    let before = (vm.regions(), vm.slots(0));
    armed.store(true, Ordering::Relaxed);
    let mut changes = Changes::new();
    changes.set_read_only(id, true);
    assert!(throws(|| drop(vm.apply(changes))));
    let mut changes = Changes::new();
    changes.unmap(id);
    assert!(throws(|| drop(vm.apply(changes))));
    assert_eq!((vm.regions(), vm.slots(0)), before);
    let heard = locked(&script.heard);
    let count = |what: &str| heard.iter().filter(|said| *said == what).count();
    assert_eq!(count("pause"), count("resume"));
    drop(heard);
    armed.store(false, Ordering::Relaxed);
}
