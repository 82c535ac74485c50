//! A VM: its regions, its slots, its devices.

mod ask;
mod builder;
mod calls;
mod check;
mod commit;
mod deferral;
mod dirty;
mod draft;
mod entry;
mod events;
mod index;
mod lookup;
mod order;
mod panics;
mod placed;
mod plan;
mod prepare;
mod record;
mod regions;
mod ring;
mod single;
mod slots;

pub use builder::Builder;
pub use lookup::SlotUsage;
use panics::Panics;
use regions::Regions;
use slots::SlotTable;

use std::collections::HashSet;
use std::fmt;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kvm_memslots_shim::Limits;
use kvm_memslots_shim::events::EventCalls;
use kvm_memslots_shim::memory::{How, MemoryCalls};

use crate::Changes;
use crate::backing::HostMemory;
use crate::deferred::{DeferredMaps, Serving};
use crate::dirty::DirtyState;
use crate::error::{Error, ErrorKind};
use crate::fork::Process;
use crate::gate::HolePolicy;
use crate::observer::Observer;
use crate::report::{Executor, Report};

/// A VM: which regions are mapped in its address spaces, the slots that they are
/// in, and the routes, irqfds and ioeventfds of its devices.
///
/// It can be shared (`Arc<Vm>`); all methods take `&self`. Sets of changes are
/// applied one after the other. Lookups wait for none of them, but for the
/// moment in which one that is done becomes visible. Reading the dirty log of
/// some memory waits for changes of logged memory only.
///
/// It knows what it made. A VMM that makes slots, routes or irqfds of its own in
/// the same VM says so when it opens ([`Builder::reserve_slots`],
/// [`Builder::own_routes`], [`Builder::reserve_gsis`]), and keeps the guest
/// addresses of its slots clear of regions.
///
/// Dropping it leaves everything to the VM, which frees it when it goes; only
/// regions that own their memory ([`Backing::owned`](crate::Backing::owned)) are
/// unmapped, and where that fails their memory is leaked rather than left to the
/// guest. [`close`](Self::close) unmaps everything. Whoever opens the VM again has
/// closed it before, or says which slot ids are in use
/// ([`Builder::reserve_slots`]): KVM takes a call with one of those for a change of
/// that slot. In a process that was forked
/// from the one that opened it, nothing of that concerns the VM: applying, and
/// reading dirty logs, is [`ErrorKind::Forked`], and dropping drops what is this
/// process's.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # #[cfg(feature = "model")] {
/// use std::sync::Arc;
///
/// use kvm_memslots::{Access, Backing, Changes, RegionSpec, Vm};
/// # use kvm_memslots::{Limits, backend};
///
/// # let memory = Arc::new(backend::MemoryModel::new(Limits::x86()));
/// # let events = Arc::new(backend::EventModel::new(backend::Irqchip::Split));
/// // `.open(&vm_fd)` on a real VM.
/// let vm = Arc::new(Vm::builder().open_on(memory, events)?);
///
/// let mut c = Changes::new();
/// let hva = 0x7f00_0000_0000;
/// // SAFETY: the model touches no memory.
/// let memory = |offset: u64, len| unsafe { Backing::borrowed(hva + offset, len, Access::ReadWrite) };
/// let low = c.map(RegionSpec::ram(0..0xa_0000, memory(0, 0xa_0000)).permanent());
/// c.map(RegionSpec::ram(0xa_0000..0x10_0000, memory(0xa_0000, 0x6_0000)).permanent());
/// let report = vm.apply(c)?;
/// assert_eq!((report.ioctls, report.grace_periods, report.regions_merged), (1, 1, 1));
/// assert_eq!(vm.region_at(0, 0x9_ffff).map(|region| region.id), Some(low));
/// # }
/// # Ok(())
/// # }
/// ```
pub struct Vm {
    /// Until the `Vm` is dropped, which drops them where a panic of theirs is caught.
    memory: ManuallyDrop<Arc<dyn MemoryCalls>>,
    events: ManuallyDrop<Arc<dyn EventCalls>>,
    limits: Limits,
    how: How,
    pub(crate) manual_dirty_log: bool,
    zaps_slots_only: bool,
    observers: Vec<Arc<dyn Observer>>,
    harvest: Option<Arc<Harvest>>,
    process: Process,
    /// What vCPU threads are served from, for each address space.
    pub(crate) serving: Vec<Arc<Serving>>,
    /// Written by whoever holds `commit`, for a moment each time.
    tables: RwLock<Tables>,
    commit: Mutex<Commit>,
    /// The thread that holds `commit`; 0 for none.
    committer: AtomicUsize,
    /// Held by whoever reads a log, a slot at a time, and for as long as a change
    /// of logged memory takes. Taken after `commit`, before `tables`.
    pub(crate) dirty: Mutex<DirtyState>,
}

/// What is called before slots go that a dirty ring may have entries of.
type Harvest = dyn Fn(&Vm) + Send + Sync;

/// What lookups see.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) regions: Regions,
    /// For each address space.
    pub(crate) slots: Vec<SlotTable>,
    devices: events::Devices,
}

impl Tables {
    fn remove_all(&self, changes: &mut Changes) {
        self.devices.keys().for_each(|id| changes.detach(*id));
        let of_devices: HashSet<_> =
            self.devices.values().flat_map(|device| device.regions.iter().copied()).collect();
        let spaces = 0..self.slots.len() as u16;
        let all = spaces.flat_map(|as_id| self.regions.iter(as_id));
        let ids = all.map(|index| self.regions.id(index));
        ids.filter(|id| !of_devices.contains(id)).for_each(|id| changes.unmap(id));
    }
}

/// What only a change needs.
pub(crate) struct Commit {
    holes: HolePolicy,
    spaces: Vec<plan::Space>,
    events: events::EventState,
    /// Host memory that slots may still map although no region does, since a
    /// change that could not be undone.
    limbo: Vec<Arc<dyn HostMemory>>,
    pub(crate) deferred: Vec<DeferredMaps>,
    placed: placed::Placed,
    order: order::OrderCheck,
    /// Whether a flip has made a slot trap, see [`How::grace_periods`].
    traps: bool,
}

impl Commit {
    /// Whether KVM and windows have what they should, as far as is known.
    fn is_settled(&self) -> bool {
        let memory = self.spaces.iter().all(|space| !space.unsettled);
        memory && !self.events.unsettled && !self.placed.is_astray()
    }

    /// How many slots can still be made.
    pub(crate) fn free_slots(&self, as_id: u16) -> usize {
        let space = self.spaces.get(usize::from(as_id));
        space.map_or(0, |space| space.ids.free().count())
    }
}

/// A thread, as a number that is no other's while it lives.
fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    // A constant without a destructor can be asked for at any time.
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// The right to change a VM.
pub(crate) struct Committing<'v> {
    committer: &'v AtomicUsize,
    pub(crate) commit: MutexGuard<'v, Commit>,
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        self.committer.store(0, Ordering::Relaxed);
    }
}

impl Vm {
    /// The VM behind `vm`, with the defaults of [`builder`](Self::builder): for a
    /// VM without routes, as after `KVM_CAP_SPLIT_IRQCHIP`.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open(vm: impl AsFd) -> Result<Self, Error> {
        Self::builder().open(vm)
    }

    /// Options, before a VM is opened.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// What the VM allows.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How changes of memory are carried out.
    #[must_use]
    pub const fn executor(&self) -> Executor {
        match self.how {
            How::PerRegion => Executor::PerRegion,
            How::Batch { .. } => Executor::Batch,
        }
    }

    /// Whether unmapping a region leaves the page tables of others alone: see
    /// [`Builder::disable_slot_zap_all`].
    #[must_use]
    pub const fn zaps_slots_only(&self) -> bool {
        self.zaps_slots_only
    }

    /// `"kvm"` or `"model"`.
    #[must_use]
    pub fn backend_name(&self) -> &'static str {
        self.memory.name()
    }

    /// Whether this process was forked from the one that opened the VM: nothing
    /// of that is its own. Takes no lock, and no system call since Linux 4.14.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        self.process.is_fork()
    }

    /// Says what may be unmapped for a moment, from now on.
    ///
    /// # Errors
    /// [`ErrorKind::Reentrant`], [`ErrorKind::Forked`].
    pub fn set_hole_policy(&self, policy: HolePolicy) -> Result<(), Error> {
        let old = std::mem::replace(&mut self.enter()?.commit.holes, policy);
        drop(old);
        Ok(())
    }

    /// Marks slot ids as the VMM's own, as [`Builder::reserve_slots`].
    ///
    /// # Errors
    /// [`ErrorKind::SlotInUse`], [`ErrorKind::NoSuchAddressSpace`]; nothing is
    /// reserved then.
    pub fn reserve_slots(
        &self,
        as_id: u16,
        ids: std::ops::RangeInclusive<u16>,
    ) -> Result<(), Error> {
        let available = self.limits.address_spaces;
        match self.enter()?.commit.spaces.get_mut(usize::from(as_id)) {
            Some(space) => {
                space.ids.try_reserve(ids).map_err(|id| ErrorKind::SlotInUse { as_id, id }.into())
            }
            None => Err(ErrorKind::NoSuchAddressSpace { asked: as_id, available }.into()),
        }
    }

    /// Unmaps all regions and detaches all devices: as one set of changes, of what is
    /// there when its turn comes. What another thread is applying is waited for, and goes,
    /// too. The `Vm` is usable afterwards, and what is applied then is applied: who wants
    /// it empty has other threads stop before.
    ///
    /// # Errors
    /// As [`apply`](Self::apply); everything is what it was then.
    ///
    /// # Panics
    /// As there.
    pub fn close(&self) -> Result<Report, Error> {
        self.apply_with(Changes::new(), |_, changes| {
            self.tables().remove_all(changes);
            prepare::Promotion::default()
        })
    }

    /// The right to change the VM. Waits until nobody else has it.
    pub(crate) fn enter(&self) -> Result<Committing<'_>, Error> {
        if self.process.is_fork() {
            return Err(ErrorKind::Forked.into());
        }
        let thread = this_thread();
        if self.committer.load(Ordering::Relaxed) == thread {
            return Err(ErrorKind::Reentrant.into());
        }
        // Poison is no concern: what calls out of this crate is caught, and the
        // state settled, before a panic goes on.
        let commit = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        self.committer.store(thread, Ordering::Relaxed);
        Ok(Committing { committer: &self.committer, commit })
    }

    pub(crate) fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tables_mut(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn dirty(&self) -> MutexGuard<'_, DirtyState> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same to whoever asks for a log: in a fork it is nobody's, and may be
    /// held by a thread that there is not.
    pub(crate) fn dirty_of_this_process(&self) -> Result<MutexGuard<'_, DirtyState>, Error> {
        if self.process.is_fork() { Err(ErrorKind::Forked.into()) } else { Ok(self.dirty()) }
    }

    pub(crate) fn calls(&self) -> &dyn MemoryCalls {
        &**self.memory
    }

    /// Unmaps what the VM owns, and drops all that may run somebody's code but the
    /// backends.
    fn let_go(&mut self, panics: &mut Panics) {
        let commit = self.commit.get_mut().unwrap_or_else(PoisonError::into_inner);
        commit.deferred.iter_mut().for_each(DeferredMaps::close);
        let in_limbo = !commit.limbo.is_empty();
        let mut changes = Changes::new();
        self.tables().regions.owned().for_each(|id| changes.unmap(id));
        // A gate may panic, or the backend: then KVM may still map the memory.
        let gone = changes.is_empty() && !in_limbo
            || panics.catch(|| self.apply(changes)).is_some_and(|result| result.is_ok());
        let commit = self.commit.get_mut().unwrap_or_else(PoisonError::into_inner);
        let tables = self.tables.get_mut().unwrap_or_else(PoisonError::into_inner);
        let extras = tables.regions.take_extras();
        if gone {
            panics.drop_all(extras);
        } else {
            // The guest may still reach this memory: nobody else may get it.
            std::mem::forget(extras);
        }
        std::mem::forget(std::mem::take(&mut commit.limbo));
        // One by one: two that panic while they are dropped would end the process.
        panics.drop_all(std::mem::take(&mut tables.devices).into_values().collect());
        panics.drop_all(std::mem::take(&mut self.observers));
        panics.drop_all(Vec::from_iter(self.harvest.take()));
        panics.drop_all(vec![std::mem::take(&mut commit.holes)]);
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let mut panics = Panics::default();
        // In a fork the VM is the parent's, and maps nothing of this process. Its locks
        // may be held by threads that there are not, and nobody is served.
        if !self.process.is_fork() {
            self.let_go(&mut panics);
        }
        // SAFETY: this is the last use.
        panics.drop_all(vec![unsafe { ManuallyDrop::take(&mut self.memory) }]);
        // SAFETY: as above.
        panics.drop_all(vec![unsafe { ManuallyDrop::take(&mut self.events) }]);
        if !std::thread::panicking() {
            panics.resume();
        }
    }
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.tables();
        let regions: usize =
            (0..self.limits.address_spaces).map(|as_id| tables.regions.len(as_id)).sum();
        f.debug_struct("Vm")
            .field("backend", &self.memory.name())
            .field("executor", &self.executor())
            .field("regions", &regions)
            .field("slots", &tables.slots.iter().map(SlotTable::len).sum::<usize>())
            .field("devices", &tables.devices.len())
            .finish_non_exhaustive()
    }
}
