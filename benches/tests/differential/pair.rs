//! A VM and its model, side by side.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use kvm_memslots_kit::guest::{Access, MAPPED_END, OWN_GPA, Outcome, Prober};
use kvm_memslots_kit::host::{HostMemory, Pages};
use kvm_memslots_kit::raw::{OnKvm, RawCalls};
use kvm_memslots_shim::memory::MemoryCalls;
use kvm_memslots_shim::memory::model::{DirtyTracking, GuestAccess, Model, ModelConfig, Piece};
use kvm_memslots_shim::uapi::{MemFlags, MemoryRegions, MemoryRegionsFlags};
use kvm_memslots_shim::{Errno, Kind, Kvm, KvmOptions, Mapping, Range, Slot};

use crate::host::{Facts, PAGE, guest_memfd};
use crate::ops::{HOST_PAGES, MEMFD_PAGES, MOST_PAGES, Materials, Op, WINDOW, pick};

/// How many operations came out how, and what the guest saw.
#[derive(Debug, Default)]
pub struct Stats {
    pub operations: u64,
    outcomes: BTreeMap<String, u64>,
    reads: u64,
    writes: u64,
    mmio: u64,
    dirty_logs: u64,
    dirty_pages: u64,
    /// Pages that KVM may report, as the guest read them.
    maybe_dirty: u64,
    over_reported: u64,
}

impl Stats {
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        for (outcome, count) in &other.outcomes {
            *self.outcomes.entry(outcome.clone()).or_default() += count;
        }
        self.reads += other.reads;
        self.writes += other.writes;
        self.mmio += other.mmio;
        self.dirty_logs += other.dirty_logs;
        self.dirty_pages += other.dirty_pages;
        self.maybe_dirty += other.maybe_dirty;
        self.over_reported += other.over_reported;
    }

    /// A run in which everything is refused, or nothing, would compare little.
    pub fn assert_not_vacuous(&self) {
        let ops = self.operations;
        if ops < 5000 {
            return;
        }
        let count = |outcome: &str| self.outcomes.get(outcome).copied().unwrap_or(0);
        assert!(count("ok") > ops / 5, "only {} accepted", count("ok"));
        for errno in ["EINVAL", "EEXIST", "ENOENT", "ENXIO"] {
            assert!(count(errno) > 0, "no {errno}");
        }
        let seen = [self.reads, self.writes, self.mmio, self.dirty_pages];
        assert!(seen.iter().all(|count| *count > 0), "{self}");
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} operations, {:?}; ", self.operations, self.outcomes)?;
        write!(f, "guest: {} reads and {} writes of memory, ", self.reads, self.writes)?;
        write!(f, "{} MMIO exits; {} dirty logs, ", self.mmio, self.dirty_logs)?;
        write!(f, "{} pages written, {} only read, ", self.dirty_pages, self.maybe_dirty)?;
        write!(f, "of which KVM reported {}", self.over_reported)
    }
}

/// A VM with guest code in it, and its model.
pub struct Pair {
    prober: Prober,
    /// The library's backend, for dirty logs.
    kvm: Kvm,
    raw: OnKvm,
    vm: VmFd,
    memory: HostMemory,
    /// Dirty where the guest wrote: KVM must report these.
    model: Model,
    /// Dirty also where it read: KVM may report these. A read fault maps a
    /// page writable where it can, and so marks it (`make_spte()`).
    touched: Model,
    materials: Materials,
    /// The last value that the guest was told to write; each is different.
    value: u64,
    pub stats: Stats,
    _files: Vec<OwnedFd>,
}

impl Pair {
    pub fn new(facts: &Facts, tracking: DirtyTracking) -> Self {
        let vm = kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm()).unwrap();
        enable(&vm, tracking);
        // The guest code's slot is one that no operation names.
        let own_slot = facts.limits.slots as u16 - 1;
        let prober = Prober::new(&vm, own_slot).unwrap();
        let memory = HostMemory::reserve(HOST_PAGES * PAGE, Pages::Small).unwrap();
        for offset in (0..HOST_PAGES * PAGE).step_by(8) {
            memory.write(offset, signature(offset));
        }
        let config = ModelConfig::new(facts.limits)
            .guest_physical_bits(facts.guest_physical_bits)
            .beyond_errno(facts.beyond)
            .bound_errno(facts.bound)
            .hva_end(facts.hva_end)
            .dirty_tracking(tracking)
            .internal_slot(Range::new(OWN_GPA, PAGE).unwrap());
        let model = Model::with_config(config);
        let other = OwnedFd::from(File::open("/dev/null").unwrap());
        model.add_other_fd(other.as_raw_fd());
        let mut materials = Materials {
            facts: facts.clone(),
            hva: memory.hva(),
            memfd: -1,
            other_fd: other.as_raw_fd(),
        };
        let mut files = vec![other];
        if facts.limits.guest_memfd {
            let file = guest_memfd(&vm, MEMFD_PAGES);
            materials.memfd = file.as_raw_fd();
            model.add_guest_memfd(file.as_raw_fd(), MEMFD_PAGES * PAGE);
            files.push(file);
        }
        Self {
            prober,
            kvm: Kvm::open(kvm_memslots::vm_fd(&vm), KvmOptions::default()).unwrap(),
            raw: OnKvm::new(&vm).unwrap(),
            vm,
            memory,
            touched: model.fork(),
            model,
            materials,
            value: 0,
            stats: Stats::default(),
            _files: files,
        }
    }

    /// Does `op` on both, and compares the answer and what the guest sees
    /// after it.
    pub fn step(&mut self, op: &Op) -> Result<(), String> {
        self.stats.operations += 1;
        let outcome = match op {
            Op::Write(pages) => return self.guest_writes(pages),
            Op::GetDirtyLog(as_id, id) => {
                let id = pick(&self.model, *id, |slot| slot.mapping.is_logged());
                self.compare_dirty_log(*as_id, id)?
            }
            Op::ClearDirtyLog { as_id, id, first, pages, mask } => {
                let id = pick(&self.model, *id, |slot| slot.mapping.is_logged());
                self.clear_dirty_log((*as_id, id), *first, *pages, *mask)?
            }
            Op::Batch(ops, dry_run) => self.batch(ops, *dry_run)?,
            Op::MemfdThroughOldIoctl(_) => self.old_ioctl(op)?,
            change => self.change(change)?,
        };
        let outcome = outcome.map_or_else(|errno| errno.to_string(), |()| "ok".to_owned());
        let outcome = outcome.split(':').next().unwrap_or_default().to_owned();
        *self.stats.outcomes.entry(outcome).or_default() += 1;
        self.compare_memory()
    }

    fn change(&mut self, op: &Op) -> Result<Result<(), Errno>, String> {
        let region = self.materials.region(&self.model, op).ok_or("no region")?;
        // SAFETY: slots are made of the pair's own memory, which outlives the
        // vCPU and is accessed atomically only.
        let kvm = unsafe { self.raw.set_region(&region) };
        let model = self.model.set_user_memory_region2(&region);
        let _ = self.touched.set_user_memory_region2(&region);
        same(kvm, model, &region)
    }

    fn old_ioctl(&mut self, op: &Op) -> Result<Result<(), Errno>, String> {
        let region = self.materials.region(&self.model, op).ok_or("no region")?;
        let region = kvm_userspace_memory_region {
            slot: region.slot,
            flags: region.flags | MemFlags::GUEST_MEMFD.bits(),
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
        };
        // SAFETY: as above.
        let kvm = unsafe { self.vm.set_user_memory_region(region) };
        let kvm = kvm.map_err(|error| Errno::from_raw(error.errno()));
        let model = self.model.set_user_memory_region(&region);
        let _ = self.touched.set_user_memory_region(&region);
        same(kvm, model, &region)
    }

    fn batch(&mut self, ops: &[Op], dry_run: bool) -> Result<Result<(), Errno>, String> {
        let flags = if dry_run { MemoryRegionsFlags::DRY_RUN } else { MemoryRegionsFlags::empty() };
        // Each entry where those before it leave the slots.
        let ahead = self.model.fork();
        let mut entries = Vec::new();
        for op in ops {
            let region = self.materials.region(&ahead, op).ok_or("no region")?;
            if u16::try_from(region.slot).is_ok() {
                let _ = ahead.set_user_memory_region2(&region);
                entries.push(region);
            }
        }
        let batch = MemoryRegions::from_entries(0, flags, &entries).map_err(|e| e.to_string())?;
        let (mut on_kvm, mut on_model, mut on_touched) = (batch.clone(), batch.clone(), batch);
        // SAFETY: as above.
        let kvm = unsafe { self.raw.set_regions(&mut on_kvm) };
        let model = self.model.set_user_memory_regions(&mut on_model);
        let _ = self.touched.set_user_memory_regions(&mut on_touched);
        if on_kvm.header() != on_model.header() {
            return Err(format!("KVM {:?}, model {:?}", on_kvm.header(), on_model.header()));
        }
        same(kvm, model, &entries)
    }

    fn clear_dirty_log(
        &mut self,
        (as_id, id): (u16, u16),
        first: u64,
        pages: u32,
        mask: u64,
    ) -> Result<Result<(), Errno>, String> {
        let bitmap = vec![mask; pages.div_ceil(64) as usize];
        let slot = self.slot_or_any(as_id, id);
        let kvm = self.kvm.clear_dirty_log(as_id, &slot, first, pages, &bitmap);
        let model = Model::clear_dirty_log(&self.model, as_id, id, first, pages, &bitmap);
        let _ = Model::clear_dirty_log(&self.touched, as_id, id, first, pages, &bitmap);
        same(kvm, model, &"KVM_CLEAR_DIRTY_LOG")
    }

    /// The live slot, or one that asks for the dirty log of what is not there.
    fn slot_or_any(&self, as_id: u16, id: u16) -> Slot {
        let range = Range::new(0, PAGE).unwrap();
        let any = Slot { id, mapping: Mapping::new(range, 0, Kind::Ram).unwrap() };
        self.model.slot(as_id, id).unwrap_or(any)
    }

    fn compare_dirty_log(&mut self, as_id: u16, id: u16) -> Result<Result<(), Errno>, String> {
        let slot = self.slot_or_any(as_id, id);
        let words = (slot.mapping.range().size() / PAGE).div_ceil(64) as usize;
        let (mut reported, mut written, mut touched) =
            (vec![0; words], vec![0; words], vec![0; words]);
        let kvm = self.kvm.dirty_log(as_id, &slot, &mut |bits| reported.copy_from_slice(bits));
        let model = self.model.get_dirty_log(as_id, id, &mut written);
        let _ = self.touched.get_dirty_log(as_id, id, &mut touched);
        let outcome = same(kvm, model, &"KVM_GET_DIRTY_LOG")?;
        if outcome.is_ok() {
            self.stats.dirty_logs += 1;
        }
        for ((reported, written), touched) in reported.iter().zip(&written).zip(&touched) {
            self.stats.dirty_pages += u64::from(written.count_ones());
            self.stats.maybe_dirty += u64::from((touched & !written).count_ones());
            self.stats.over_reported += u64::from((reported & !written).count_ones());
            if written & !reported != 0 || reported & !touched != 0 {
                return Err(format!(
                    "dirty log of {slot}: KVM {reported:#x}, written {written:#x}, \
                     read or written {touched:#x}"
                ));
            }
        }
        Ok(outcome)
    }

    pub fn compare_all_dirty_logs(&mut self) -> Result<(), String> {
        for id in self.model.slots(0).iter().map(|slot| slot.id).collect::<Vec<_>>() {
            self.compare_dirty_log(0, id)?.ok();
        }
        Ok(())
    }

    /// The guest reads both ends of each slot and of each gap, and a word
    /// within.
    fn compare_memory(&mut self) -> Result<(), String> {
        let mut accesses = Vec::new();
        let mut expected = Vec::new();
        for piece in self.model.guest_read(0, 0, (WINDOW + MOST_PAGES) * PAGE) {
            let words = piece.range.size() / 8;
            let within = self.stats.operations.wrapping_mul(0x9e37_79b9) % words;
            for word in [0, within, words - 1] {
                accesses.push(Access::Read(piece.range.gpa() + word * 8));
                expected.push(self.read_finds(piece, word * 8));
            }
        }
        let outcomes = self.prober.probe(&accesses).map_err(|error| error.to_string())?;
        for ((access, outcome), expected) in accesses.iter().zip(outcomes).zip(expected) {
            if outcome != expected {
                return Err(format!("{access:x?}: KVM {outcome:x?}, model {expected:x?}"));
            }
        }
        Ok(())
    }

    fn read_finds(&mut self, piece: Piece, offset: u64) -> Outcome {
        match piece.access {
            GuestAccess::Ram { hva } => {
                self.touched.guest_write(0, piece.range.gpa() + offset, 8);
                self.stats.reads += 1;
                Outcome::Value(self.memory.read(hva + offset - self.memory.hva()))
            }
            GuestAccess::Mmio | GuestAccess::RomWrite => {
                self.stats.mmio += 1;
                Outcome::Mmio
            }
        }
    }

    fn guest_writes(&mut self, pages: &[u64]) -> Result<(), String> {
        let accesses: Vec<_> = pages
            .iter()
            .zip(self.value + 1..)
            .map(|(page, value)| Access::Write(page * PAGE + value % 512 * 8, value))
            .filter(|access| access.gpa() < MAPPED_END)
            .collect();
        self.value += pages.len() as u64;
        let outcomes = self.prober.probe(&accesses).map_err(|error| error.to_string())?;
        // Several writes may reach one word: memory holds the last.
        let mut expected_memory = BTreeMap::new();
        for (access, outcome) in accesses.iter().zip(outcomes) {
            let Access::Write(gpa, value) = *access else { continue };
            let pieces = self.model.guest_write(0, gpa, 8);
            self.touched.guest_write(0, gpa, 8);
            let reached = pieces.first().map(|piece| piece.access);
            let expected = if let Some(GuestAccess::Ram { hva }) = reached {
                self.stats.writes += 1;
                expected_memory.insert(hva, value);
                Outcome::Written
            } else {
                self.stats.mmio += 1;
                Outcome::Mmio
            };
            if outcome != expected {
                return Err(format!("{access:x?}: KVM {outcome:x?}, model {expected:x?}"));
            }
        }
        for (hva, value) in expected_memory {
            let found = self.memory.read(hva - self.memory.hva());
            if found != value {
                return Err(format!("host memory at {hva:#x} holds {found:#x}, not {value:#x}"));
            }
        }
        Ok(())
    }
}

fn same<T: fmt::Debug>(
    kvm: Result<(), Errno>,
    model: Result<(), Errno>,
    asked: &T,
) -> Result<Result<(), Errno>, String> {
    if kvm == model {
        return Ok(kvm);
    }
    Err(format!("KVM answers {kvm:?}, the model {model:?}, to {asked:x?}"))
}

/// A value for each word of host memory, unlike any that the guest writes.
const fn signature(offset: u64) -> u64 {
    0x5167_0000_0000_0000 | offset
}

fn enable(vm: &VmFd, tracking: DirtyTracking) {
    let (cap, argument) = match tracking {
        DirtyTracking::Bitmap => return,
        DirtyTracking::ManualProtect { initially_set } => {
            (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1 | u64::from(initially_set) << 1)
        }
        // As many entries as there can be: nobody empties the ring.
        DirtyTracking::Ring => {
            let bytes = |cap: u32| vm.check_extension_raw(cap.into());
            let caps = [KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL];
            let cap = caps.into_iter().find(|cap| bytes(*cap) > 0).unwrap();
            (cap, u64::try_from(bytes(cap)).unwrap())
        }
    };
    let mut enable = kvm_enable_cap { cap, ..Default::default() };
    enable.args[0] = argument;
    vm.enable_cap(&enable).unwrap();
}
