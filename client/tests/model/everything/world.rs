//! The VM and the models under it; what an observer is told.

use std::collections::BTreeMap;
use std::error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, LazyLock, Mutex};

use kvm_memslots::backend::model::events;
use kvm_memslots::backend::model::memory::{DirtyTracking, Fault, ModelConfig};
use kvm_memslots::backend::{EventModel, EventState, Irqchip, MemoryModel};
use kvm_memslots::deferred::{Costs, Deferral, Policy};
use kvm_memslots::device::Route;
use kvm_memslots::{
    Backing, Changes, Errno, Error, ErrorKind, Limits, Observer, Region, RegionId, Slot, Vm,
};

use crate::common::numbers::Numbers;
use crate::common::{self, PAGE};

/// Pages of host memory that regions can have.
const HOST_PAGES: u64 = 8000;

/// Host memory that is there: exits of deferred regions are served from it.
static HOST: LazyLock<u64> = LazyLock::new(|| {
    let memory = Box::leak(vec![0_u8; ((HOST_PAGES + 1) * PAGE) as usize].into_boxed_slice());
    (memory.as_mut_ptr().expose_provenance() as u64).next_multiple_of(PAGE)
});

/// The number of a `guest_memfd`, and how much of it is for a region.
pub(super) const MEMFD: i32 = 900;
pub(super) const MEMFD_EACH: u64 = 32 * PAGE;

/// Where page `n` of the host memory is.
pub(super) fn hva(n: u64) -> u64 {
    *HOST + n * PAGE
}

/// `pages` pages of it.
pub(super) fn memory(hva: u64, pages: u64) -> Backing {
    assert!(hva + pages * PAGE <= *HOST + HOST_PAGES * PAGE);
    common::memory(hva, pages * PAGE)
}

pub(super) struct World {
    pub(super) vm: Vm,
    pub(super) memory: MemoryModel,
    pub(super) events: EventModel,
    pub(super) observer: Option<Arc<Watching>>,
    /// A log that was read stays as it is until it is cleared.
    pub(super) manual: bool,
    what: String,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl World {
    pub(super) fn new(n: &mut Numbers) -> Self {
        let mut limits = Limits::x86().with_address_spaces(n.pick(&[1, 2]));
        if n.chance(3) {
            limits = limits.with_batch(n.pick(&[1, 2, 3, 512]));
        }
        if n.chance(2) {
            limits = limits.with_trap();
        }
        if n.chance(3) {
            limits = limits.with_slots(n.pick(&[4, 8, 12]));
        }
        if n.chance(3) {
            limits = limits.with_slot_pages(n.pick(&[4, 7]));
        }
        if n.chance(2) {
            limits = limits.with_guest_memfd();
        }
        let policy = common::policies()[n.below(4) as usize].clone();
        let tracking = match n.below(4) {
            0 | 1 => DirtyTracking::Bitmap,
            set => DirtyTracking::ManualProtect { initially_set: set == 2 },
        };
        let manual = tracking != DirtyTracking::Bitmap;
        let memory = MemoryModel::with_config(ModelConfig::new(limits).dirty_tracking(tracking));
        memory.add_guest_memfd(MEMFD, u64::from(u16::MAX) * MEMFD_EACH);
        let events = EventModel::new(Irqchip::Full);
        let what = format!("{limits:?}, {policy:?}, {tracking:?}");
        let builder = Vm::builder().holes(policy).manual_dirty_log(manual);
        let mut builder = builder.own_routes(Route::x86_defaults());
        // Measured ones differ from run to run, and so would what becomes due.
        let costs = Costs { map_ns: 10_000, unmap_ns: 20_000, exit_ns: 5_000 };
        let mut deferral = Deferral::default().costs(costs);
        if n.chance(2) {
            deferral = deferral.policy(Policy::Fixed { exits: 3 });
        }
        builder = builder.deferral(deferral);
        let observer = n.chance(2).then(Arc::<Watching>::default);
        if let Some(observer) = &observer {
            builder = builder.observer(observer.clone());
        }
        let vm = builder.open_on(Arc::new(memory.clone()), Arc::new(events.clone())).unwrap();
        Self { vm, memory, events, observer, manual, what }
    }

    pub(super) fn spaces(&self) -> impl Iterator<Item = u16> + use<> {
        0..self.vm.limits().address_spaces
    }

    /// What a guest could notice.
    pub(super) fn seen(&self) -> (Vec<Vec<Slot>>, EventState) {
        (self.spaces().map(|space| self.memory.slots(space)).collect(), self.events.state())
    }

    /// Some calls of the next set fail; which, and whether one of them panics.
    pub(super) fn inject(&self, n: &mut Numbers) -> (Vec<String>, bool) {
        let errno = n.pick(&[
            Errno::ENOMEM,
            Errno::EINVAL,
            Errno::EEXIST,
            Errno::ENOSPC,
            Errno::EINTR,
            Errno::EPERM,
        ]);
        let (k, forever, mut panics) = (1 + n.below(12), n.chance(3), n.chance(6));
        let (of_memory, before) = (n.chance(2), n.chance(2));
        macro_rules! fault {
            ($fault:ty) => {{
                let from = if forever { <$fault>::from_nth } else { <$fault>::nth };
                match (panics, before) {
                    (false, _) => from(k, errno),
                    (true, true) => from(k, errno).panicking(),
                    (true, false) => from(k, errno).panicking_after(),
                }
            }};
        }
        let mut told = if of_memory {
            let fault = fault!(Fault);
            self.memory.inject(fault.clone());
            vec![format!("{fault:?}")]
        } else {
            let fault = fault!(events::Fault);
            self.events.inject(fault.clone());
            vec![format!("{fault:?}")]
        };
        // So may what takes it back.
        if n.chance(3) {
            let later = Fault::nth(k + 1 + n.below(4), errno);
            told.push(format!("{later:?}"));
            self.memory.inject(later);
        }
        if n.chance(3) {
            let later = events::Fault::nth(k + 1 + n.below(4), errno);
            told.push(format!("{later:?}"));
            self.events.inject(later);
        }
        if let Some(observer) = self.observer.as_ref().filter(|_| n.chance(3)) {
            let mood = if n.chance(3) { Mood::Refuses } else { Mood::Panics(n.below(6)) };
            told.push(format!("the observer: {mood:?}"));
            *observer.mood.lock().unwrap() = mood;
            panics |= matches!(mood, Mood::Panics(_));
        }
        (told, panics)
    }

    /// Calls `f`, which may fail if one of the next few calls does, and is to succeed
    /// otherwise.
    pub(super) fn may_fail<T>(
        &self,
        n: &mut Numbers,
        f: impl FnOnce(&Vm) -> Result<T, Error>,
    ) -> Option<T> {
        let faulty = n.chance(4);
        if faulty {
            let (memory, events) = (Fault::nth(1 + n.below(3), Errno::ENOMEM), 1 + n.below(3));
            let events = events::Fault::nth(events, Errno::ENOMEM);
            match n.below(4) {
                0 => self.memory.inject(memory.panicking()),
                1 => self.memory.inject(memory.panicking_after()),
                2 => self.events.inject(events),
                _ => self.memory.inject(memory),
            }
        }
        let done = catch_unwind(AssertUnwindSafe(|| f(&self.vm)));
        self.clear_faults();
        match done {
            Ok(Ok(value)) => Some(value),
            _ if faulty => None,
            Ok(Err(error)) => panic!("{error}"),
            Err(panic) => resume_unwind(panic),
        }
    }

    pub(super) fn clear_faults(&self) {
        self.memory.clear_faults();
        self.events.clear_faults();
        if let Some(observer) = &self.observer {
            *observer.mood.lock().unwrap() = Mood::Fine;
        }
    }

    /// A set of nothing puts right what could not be taken back.
    pub(super) fn repair(&self) {
        self.vm.apply(Changes::new()).unwrap();
    }
}

/// What no fault is needed for: the sets ask for nothing that is wrong by itself.
pub(super) fn may_be_refused(error: &Error) -> bool {
    use ErrorKind::{Hole, NotDeferrable, TooManySlots};
    matches!(error.kind(), Hole { .. } | NotDeferrable(_) | TooManySlots { .. })
}

/// What waits for slots goes on waiting where it can't have them.
pub(super) fn unless_refused<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(error) if !may_be_refused(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Where a region is: address space, guest address, bytes, host address.
pub(super) type Place = (u16, u64, u64, u64);

/// Follows the layout by what it is told.
#[derive(Default)]
pub(super) struct Watching {
    pub(super) mapped: Mutex<BTreeMap<RegionId, Place>>,
    /// What it should not have been told: a panic could be one of a backend's.
    pub(super) wrong: Mutex<Vec<String>>,
    mood: Mutex<Mood>,
}

/// What an observer does about what it is told next.
#[derive(Clone, Copy, Debug, Default)]
enum Mood {
    #[default]
    Fine,
    Refuses,
    /// After so many.
    Panics(u64),
}

impl Watching {
    fn expect(&self, right: bool, what: impl FnOnce() -> String) {
        if !right {
            self.wrong.lock().unwrap().push(what());
        }
    }

    fn told(&self) {
        let mood = *self.mood.lock().unwrap();
        if let Mood::Panics(after) = mood {
            *self.mood.lock().unwrap() = after.checked_sub(1).map_or(Mood::Fine, Mood::Panics);
            assert!(after > 0, "an injected panic of an observer");
        }
    }
}

pub(super) fn place(region: &Region) -> Place {
    (region.as_id, region.range.gpa(), region.range.size(), region.hva)
}

impl Observer for Watching {
    fn check(&self, _: &[Region], _: &[Region]) -> Result<(), Box<dyn error::Error + Send + Sync>> {
        match *self.mood.lock().unwrap() {
            Mood::Refuses => Err("no".into()),
            _ => Ok(()),
        }
    }

    fn unmapping(&self, region: &Region) {
        let was = self.mapped.lock().unwrap().remove(&region.id);
        self.expect(was == Some(place(region)), || format!("{was:?} goes as {region:?}"));
        self.told();
    }

    fn mapped(&self, region: &Region) {
        let (space, gpa, size, _) = place(region);
        let mut mapped = self.mapped.lock().unwrap();
        let beside =
            |(other, at, len, _): &Place| *other != space || at + len <= gpa || gpa + size <= *at;
        self.expect(mapped.values().all(beside), || format!("{region:?} over {mapped:?}"));
        let twice = mapped.insert(region.id, place(region));
        self.expect(twice.is_none(), || format!("{region:?} comes twice"));
        drop(mapped);
        self.told();
    }
}
