//! Options of a VM.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, RwLock};

use kvm_memslots_shim::events::{EventCalls, Route};
use kvm_memslots_shim::kvm::QUIRK_SLOT_ZAP_ALL;
use kvm_memslots_shim::memory::{How, MemoryCalls};
use kvm_memslots_shim::uapi::irqfd::NoIrqBypass;
use kvm_memslots_shim::uapi::probe::{Support, TrapSupport};
use kvm_memslots_shim::{Kvm, KvmOptions, Limits, OpenError, SlotIds};

use super::events::EventState;
use super::order::OrderCheck;
use super::plan::Space;
use super::regions::Regions;
use super::{Commit, Harvest, Tables, Vm};
use crate::deferred::{Deferral, DeferredMaps};
use crate::dirty::DirtyState;
use crate::error::{Error, ErrorKind};
use crate::fork;
use crate::gate::{HolePolicy, VcpuGate};
use crate::observer::Observer;
use crate::report::Executor;

/// The GSIs that a VM's interrupt controllers have by default: 24 pins of the
/// IOAPIC. Others are handed out from here on.
const FIRST_GSI: u32 = 24;

/// Options of a [`Vm`].
///
/// ```no_run
/// # fn f(vm: std::os::fd::BorrowedFd<'_>) -> Result<(), kvm_memslots::Error> {
/// use kvm_memslots::device::Route;
/// use kvm_memslots::{HolePolicy, Vm};
///
/// // After KVM_CREATE_IRQCHIP, in a VMM with an irqfd of its own at GSI 40 and
/// // slots of its own.
/// let vm = Vm::builder()
///     .reserve_slots(0, 0..=3)
///     .own_routes(Route::x86_defaults())
///     .reserve_gsis(40..=40)
///     .holes(HolePolicy::Refuse)
///     .open(vm)?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
// Options that have nothing to do with each other.
#[allow(clippy::struct_excessive_bools)]
#[must_use]
pub struct Builder {
    executor: Executor,
    holes: HolePolicy,
    reserved_slots: Vec<(u16, RangeInclusive<u16>)>,
    manual_dirty_log: bool,
    scratch_vm: bool,
    deferral: Deferral,
    observers: Vec<Arc<dyn Observer>>,
    harvest: Option<Arc<Harvest>>,
    own_routes: Vec<Route>,
    reserved_gsis: Vec<RangeInclusive<u32>>,
    first_gsi: u32,
    no_irqbypass: bool,
    order_check: bool,
    /// With which others `KVM_X86_QUIRK_SLOT_ZAP_ALL` is to be disabled.
    slot_zap_all_and: Option<u64>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            executor: Executor::Auto,
            holes: HolePolicy::default(),
            reserved_slots: Vec::new(),
            manual_dirty_log: false,
            scratch_vm: false,
            deferral: Deferral::default(),
            observers: Vec::new(),
            harvest: None,
            own_routes: Vec::new(),
            reserved_gsis: Vec::new(),
            first_gsi: FIRST_GSI,
            no_irqbypass: true,
            order_check: true,
            slot_zap_all_and: None,
        }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("executor", &self.executor)
            .field("holes", &self.holes)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// How changes of memory are carried out; [`Executor::Auto`] unless said
    /// otherwise.
    pub fn executor(mut self, executor: Executor) -> Self {
        self.executor = executor;
        self
    }

    /// What may be unmapped for a moment; [`HolePolicy::Named`] unless said
    /// otherwise.
    pub fn holes(mut self, policy: HolePolicy) -> Self {
        self.holes = policy;
        self
    }

    /// Pauses vCPUs where something would be unmapped for a moment:
    /// [`HolePolicy::Gate`].
    pub fn gate(self, gate: Arc<dyn VcpuGate>) -> Self {
        self.holes(HolePolicy::Gate(gate))
    }

    /// Slot ids of an address space that the VMM uses itself: they are not given
    /// out, and not counted as available.
    ///
    /// KVM takes a call with an id in use as a change of that slot, so an id
    /// that is used on both sides destroys the other's slot.
    pub fn reserve_slots(mut self, as_id: u16, ids: RangeInclusive<u16>) -> Self {
        self.reserved_slots.push((as_id, ids));
        self
    }

    /// The VMM enabled `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` on the VM: reading a
    /// dirty log leaves it as it is until [`Vm::clear_dirty_log`].
    pub fn manual_dirty_log(mut self, manual: bool) -> Self {
        self.manual_dirty_log = manual;
        self
    }

    /// Whether `/dev/kvm` may be opened and another VM made, to find out whether
    /// the trap flag is what its capability says. Without that it is not used.
    pub fn allow_scratch_vm(mut self, allow: bool) -> Self {
        self.scratch_vm = allow;
        self
    }

    /// When [deferrable](crate::RegionSpec::deferrable) regions are mapped.
    pub fn deferral(mut self, deferral: Deferral) -> Self {
        self.deferral = deferral;
        self
    }

    /// Somebody who follows the layout. Several are told in this order.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observers.push(observer);
        self
    }

    /// Called before the first call of a change that takes a logged slot away,
    /// with vCPUs paused if they are at all: a VMM with a dirty ring empties it
    /// here, and finds the region of each entry with [`Vm::region_at_slot`].
    /// Later, the entry's slot may be another region's.
    pub fn harvest(mut self, harvest: impl Fn(&Vm) + Send + Sync + 'static) -> Self {
        self.harvest = Some(Arc::new(harvest));
        self
    }

    /// The routes that the VM has now and that are the VMM's own: KVM replaces
    /// all routes at once and can't be asked for them, so what is not said here
    /// is gone with the first change. Those that come with an interrupt
    /// controller are [`Route::x86_defaults`] and [`Route::arm64_defaults`].
    /// Their GSIs are not handed out.
    pub fn own_routes(mut self, routes: impl IntoIterator<Item = Route>) -> Self {
        self.own_routes.extend(routes);
        self
    }

    /// GSIs that the VMM uses itself, for irqfds of its own or later routes.
    pub fn reserve_gsis(mut self, gsis: RangeInclusive<u32>) -> Self {
        self.reserved_gsis.push(gsis);
        self
    }

    /// The first GSI that is handed out; 24 unless said otherwise.
    pub fn first_gsi(mut self, gsi: u32) -> Self {
        self.first_gsi = gsi;
        self
    }

    /// Whether `KVM_IRQFD_FLAG_NO_IRQBYPASS` is used where the kernel has it, for
    /// devices that don't say
    /// [`may_bypass`](crate::device::Device::may_bypass). On unless said
    /// otherwise.
    pub fn no_irqbypass(mut self, on: bool) -> Self {
        self.no_irqbypass = on;
        self
    }

    /// Whether the order of the VM's start is watched: on unless said otherwise.
    ///
    /// Since Linux 6.18 `KVM_CREATE_IRQCHIP`, `KVM_CREATE_PIT2` and ioeventfds leave
    /// a normal grace period in flight (`call_srcu()` in `kvm_io_bus_register_dev()`),
    /// which the next change of memory waits for: ticks instead of microseconds. So
    /// memory comes first, then these. A warning names the call that came
    /// too early, once a VM, and only where a set of changes was slow after it.
    ///
    /// It costs one `KVM_GET_IRQCHIP` when the VM is opened, on x86, and nothing where
    /// no subscriber of `tracing`, and no logger of `log`, hears warnings by then. Calls
    /// that the VMM makes after that, other than through this crate, are not noticed.
    pub fn order_check(mut self, on: bool) -> Self {
        self.order_check = on;
        self
    }

    /// Disables `KVM_X86_QUIRK_SLOT_ZAP_ALL` where the kernel has it (x86, Linux
    /// 6.12): to unmap or to move a region then drops the page tables of that
    /// region alone, where else vCPUs fault all of their memory in again
    /// (`kvm_arch_flush_shadow_memslot()`). For VMs whose regions come and go.
    ///
    /// Not for a VM with assigned devices: that has corrupted guests, for a reason
    /// that was never found (Linux commit d012a06ab1d2), and is why the quirk is on
    /// by default. Nor where KVM shadows the guest's page tables (no EPT or NPT)
    /// and regions are large: it then looks at each of a region's pages.
    ///
    /// `others` are the quirks that the VMM has disabled by itself
    /// (`KVM_CAP_DISABLE_QUIRKS2`), a bit for each: before Linux 6.15 the call
    /// replaces them. [`Vm::zaps_slots_only`] says what came of it.
    pub fn disable_slot_zap_all(mut self, others: u64) -> Self {
        self.slot_zap_all_and = Some(others);
        self
    }

    /// Opens the VM behind `vm`, whose descriptor is duplicated: the VM lives at
    /// least as long as the [`Vm`].
    ///
    /// # Errors
    /// [`ErrorKind::Open`] where `vm` is no VM; [`ErrorKind::AlreadyOpen`];
    /// [`ErrorKind::NoBatchIoctl`] or [`ErrorKind::ImpostorBatchIoctl`] where
    /// that was asked for; [`ErrorKind::NoSuchAddressSpace`] of reserved slots;
    /// [`ErrorKind::GsiBeyondLimit`], [`ErrorKind::TooManyRoutes`].
    pub fn open(self, vm: impl AsFd) -> Result<Vm, Error> {
        let fd = vm.as_fd();
        let kvm = Kvm::open(fd, KvmOptions { scratch_vm: self.scratch_vm })?;
        if let Support::Impostor { claimed, mismatch } = kvm.support() {
            tracing::warn!(claimed, %mismatch, "not the batch ioctl, done without");
            if self.executor == Executor::Batch {
                return Err(ErrorKind::ImpostorBatchIoctl { claimed, mismatch }.into());
            }
        }
        if let TrapSupport::Impostor { claimed, mismatch } = kvm.trap_support() {
            tracing::warn!(claimed, %mismatch, "not the trap flag, done without");
        }
        if let NoIrqBypass::Impostor { claimed, with_flag, with_unknown } = kvm.no_irqbypass() {
            tracing::warn!(claimed, with_flag, with_unknown, "not KVM_CAP_IRQFD_NO_IRQBYPASS");
        }
        let kvm = Arc::new(kvm);
        if !fork::claim(&kvm, fd) {
            return Err(ErrorKind::AlreadyOpen.into());
        }
        let zaps_slots_only = match self.slot_zap_all_and {
            Some(others) => disable_slot_zap_all(&kvm, others)?,
            None => false,
        };
        let memory: Arc<dyn MemoryCalls> = Arc::clone(&kvm) as _;
        let mut vm = self.open_on(memory, kvm)?;
        vm.zaps_slots_only = zaps_slots_only;
        Ok(vm)
    }

    /// Opens on something else than a VM's descriptor: the models of KVM
    /// (feature `model`), or backends of the VMM's own.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`ErrorKind::BackendLimits`].
    pub fn open_on(
        self,
        memory: Arc<dyn MemoryCalls>,
        events: Arc<dyn EventCalls>,
    ) -> Result<Vm, Error> {
        let limits = memory.limits();
        let Limits { page_size, slot_pages, address_spaces, .. } = limits;
        if !page_size.is_power_of_two() || slot_pages == 0 || address_spaces > u8::MAX.into() {
            return Err(ErrorKind::BackendLimits { page_size, slot_pages, address_spaces }.into());
        }
        let how = match (self.executor, limits.batch) {
            (Executor::PerRegion, _) | (Executor::Auto, None) => How::PerRegion,
            (_, Some(max_entries)) => How::Batch { max_entries },
            (Executor::Batch, None) => return Err(ErrorKind::NoBatchIoctl.into()),
        };
        let spaces = self.spaces(&limits)?;
        let events_state = EventState::new(
            events.limits(),
            self.no_irqbypass,
            self.own_routes,
            self.reserved_gsis,
            self.first_gsi,
        )?;
        // Who has no subscriber may hear of it through `log`.
        let heard = if tracing::dispatcher::has_been_set() {
            tracing::enabled!(tracing::Level::WARN)
        } else {
            log::log_enabled!(log::Level::Warn)
        };
        let watched = self.order_check && heard;
        let irqchip_first = watched && events.has_irqchip() == Some(true);
        let order = OrderCheck::new(watched, irqchip_first);
        let count = spaces.len();
        let deferred: Vec<_> = (0..count).map(|_| DeferredMaps::new(&self.deferral)).collect();
        tracing::debug!(backend = memory.name(), ?limits, ?how, "open");
        Ok(Vm {
            limits,
            how,
            manual_dirty_log: self.manual_dirty_log,
            zaps_slots_only: false,
            observers: self.observers,
            harvest: self.harvest,
            process: fork::Process::this(),
            serving: deferred.iter().map(DeferredMaps::serving).collect(),
            tables: RwLock::new(Tables {
                regions: Regions::new(limits.address_spaces),
                slots: (0..count).map(|_| super::slots::SlotTable::default()).collect(),
                devices: super::events::Devices::new(),
            }),
            commit: Mutex::new(Commit {
                holes: self.holes,
                spaces,
                events: events_state,
                limbo: Vec::new(),
                deferred,
                placed: super::placed::Placed::default(),
                order,
                traps: false,
            }),
            committer: std::sync::atomic::AtomicUsize::new(0),
            dirty: Mutex::new(DirtyState::new(count)),
            memory: ManuallyDrop::new(memory),
            events: ManuallyDrop::new(events),
        })
    }

    fn spaces(&self, limits: &Limits) -> Result<Vec<Space>, Error> {
        let available = limits.address_spaces;
        let mut all: Vec<SlotIds> = (0..available).map(|_| SlotIds::new(limits.slots)).collect();
        for (as_id, ids) in &self.reserved_slots {
            match all.get_mut(usize::from(*as_id)) {
                Some(space) => _ = space.reserve(ids.clone()),
                None => {
                    return Err(ErrorKind::NoSuchAddressSpace { asked: *as_id, available }.into());
                }
            }
        }
        Ok(all.into_iter().map(Space::new).collect())
    }
}

/// Whether the quirk is disabled now.
fn disable_slot_zap_all(kvm: &Kvm, others: u64) -> Result<bool, Error> {
    let known = if cfg!(target_arch = "x86_64") { kvm.quirks() } else { 0 };
    if known & QUIRK_SLOT_ZAP_ALL == 0 {
        tracing::debug!("no KVM_X86_QUIRK_SLOT_ZAP_ALL to disable");
        return Ok(false);
    }
    let quirks = others | QUIRK_SLOT_ZAP_ALL;
    let disabled = kvm.disable_quirks(quirks);
    disabled.map_err(|errno| OpenError::Quirks { quirks, known, errno })?;
    Ok(true)
}
