//! A guest that enables, swaps and moves BARs by config writes, with doorbells,
//! their memory in a window and in slots, on real KVM.
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use common::{guest_or_skip, vm_or_skip};
use kvm_ioctls::VmFd;
use kvm_memslots::pci::{BarSpec, FunctionId, FunctionSpec, PciBars};
use kvm_memslots::window::{Gap, Window, WindowSpec};
use kvm_memslots::{Access as May, Backing, Changes, HolePolicy, RegionSpec, Vm, at, vm_fd};
use kvm_memslots_kit::guest::{Access, Mmio, Prober};
use kvm_memslots_kit::host::{SMALL_PAGE, memfd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const OWN_SLOT: u16 = 7;
const FUNCTIONS: usize = 3;
/// Pages of a BAR's memory.
const PAGES: u64 = 4;
const SIZE: u64 = PAGES * SMALL_PAGE;
/// Registers and doorbells of a function: 32 bits, in no window.
const BELLS: u64 = 0x1000;
/// The config space of function `n` is at `ECAM + n * 0x1000`.
const ECAM: u64 = 0xb000_0000;
const LOW: u64 = 0xc000_0000;
const WINDOW: u64 = 0x10_0000_0000;

struct Memory {
    file: File,
    mapping: NonNull<libc::c_void>,
}

const ALL: NonZeroUsize = NonZeroUsize::new(FUNCTIONS * SIZE as usize).unwrap();

impl Memory {
    fn new() -> Self {
        let file = memfd(ALL.get() as u64).unwrap();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, which only the guest uses.
        let mapping = unsafe { mmap(None, ALL, access, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
        Self { file, mapping }
    }

    fn backing(&self, function: u64) -> Backing {
        let hva = self.mapping.as_ptr().expose_provenance() as u64 + function * SIZE;
        // SAFETY: the mapping outlives the VM, and only the guest uses it.
        let backing = unsafe { Backing::borrowed(hva, SIZE, May::ReadWrite) };
        backing.with_file(self.file.try_clone().unwrap(), function * SIZE)
    }

    fn word(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, at).unwrap();
        u64::from_ne_bytes(word)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: no guest has it any more.
        unsafe { munmap(self.mapping, ALL.get()) }.unwrap();
    }
}

struct Machine {
    // In this order: nothing runs when memory goes.
    prober: Prober,
    vm: Vm,
    bars: PciBars,
    ids: Vec<FunctionId>,
    bells: Vec<Arc<EventFd>>,
    memory: Memory,
    /// KVM's calls for config writes.
    calls: u64,
    _fd: VmFd,
}

impl Machine {
    fn new(test: &str, in_window: bool) -> Option<Self> {
        let fd = vm_or_skip(test)?;
        let prober = guest_or_skip(test, Prober::new(&fd, OWN_SLOT))?;
        let builder = Vm::builder().reserve_slots(0, OWN_SLOT..=OWN_SLOT);
        let vm = builder.holes(HolePolicy::NoVcpuRuns).open(vm_fd(&fd)).unwrap();
        let memory = Memory::new();
        let mut bars = PciBars::new(39).keep_ioeventfds();
        if in_window {
            let span = at(WINDOW, 16 * SIZE);
            let window = Window::new(WindowSpec::new(span).gap(Gap::Scratch)).unwrap();
            let mut c = Changes::new();
            c.map(window.region());
            vm.apply(c).unwrap();
            bars = bars.in_window(window).without_slots();
        }
        let bells: Vec<_> =
            (0..FUNCTIONS).map(|_| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())).collect();
        let add = |(n, bell): (u64, &Arc<EventFd>)| {
            let own = BarSpec::memory32(BELLS).ioeventfd(0x10, 4, None, Arc::clone(bell));
            let part = RegionSpec::device(at(0, SIZE), memory.backing(n));
            let other = BarSpec::memory64(SIZE).prefetchable().window(part);
            bars.add(&vm, FunctionSpec::new().bar(0, own).bar(2, other)).unwrap()
        };
        let ids = (0..).zip(&bells).map(add).collect();
        Some(Self { prober, vm, bars, ids, bells, memory, calls: 0, _fd: fd })
    }

    /// The guest's accesses; those to config space are followed.
    fn run(&mut self, accesses: &[Access]) -> Vec<u64> {
        let Self { prober, vm, bars, ids, calls, .. } = self;
        let drove = prober.drive(accesses, |exit| match exit {
            Mmio::Write(gpa, data) if (ECAM..LOW).contains(&gpa) => {
                let (id, at) = (ids[((gpa - ECAM) >> 12) as usize], (gpa & 0xfff) as u16);
                let report = bars.config_write(vm, id, at, data).unwrap();
                *calls += report.map_or(0, |report| report.calls());
            }
            Mmio::Read(gpa, _) | Mmio::Write(gpa, _) => panic!("{gpa:#x} exits"),
            Mmio::Undecoded(_) => panic!("an access is not decoded"),
        });
        drove.unwrap()
    }

    /// The config writes that put BARs of a function at these places.
    fn put(n: usize, low: u64, high: u64) -> [Access; 3] {
        let config = |at| ECAM + n as u64 * 0x1000 + at;
        [
            Access::Store(config(0x10), 4, LOW + low * BELLS),
            Access::Store(config(0x18), 4, (WINDOW + high * SIZE) & 0xffff_ffff),
            Access::Store(config(0x1c), 4, WINDOW >> 32),
        ]
    }

    fn decode(n: usize, on: bool) -> Access {
        Access::Store(ECAM + n as u64 * 0x1000 + 4, 2, u64::from(on) << 1)
    }

    /// Every function is found where it is to be, by its memory and its doorbell.
    fn assert_at(&mut self, places: [(u64, u64); FUNCTIONS], round: u64) {
        let page = |n: usize| n as u64 % PAGES * SMALL_PAGE;
        let mark = |n: usize| round * 16 + n as u64 + 1;
        let writes = places.iter().enumerate().flat_map(|(n, (low, high))| {
            let bell = Access::Store(LOW + low * BELLS + 0x10, 4, 1);
            [Access::Write(WINDOW + high * SIZE + page(n), mark(n)), bell]
        });
        let writes: Vec<_> = writes.collect();
        self.run(&writes);
        let reads = places.iter().enumerate();
        let reads: Vec<_> =
            reads.map(|(n, (_, high))| Access::Read(WINDOW + high * SIZE + page(n))).collect();
        let found = self.run(&reads);
        for (n, found) in found.into_iter().enumerate() {
            assert_eq!(found, mark(n), "round {round}, function {n}");
            assert_eq!(self.memory.word(n as u64 * SIZE + page(n)), mark(n), "in the file");
            assert_eq!(self.bells[n].read().unwrap(), 1, "round {round}, the doorbell of {n}");
            assert!(self.bars.refusal(self.ids[n], Some(2)).is_none());
        }
    }
}

#[test]
fn a_guest_swaps_bars_with_doorbells() {
    let test = "a_guest_swaps_bars_with_doorbells";
    for in_window in [false, true] {
        let Some(mut machine) = Machine::new(test, in_window) else { return };
        let mut places = [(0, 0), (1, 1), (2, 2)];
        let mut setup = Vec::new();
        for (n, (low, high)) in places.iter().enumerate() {
            setup.extend(Machine::put(n, *low, *high));
            setup.push(Machine::decode(n, true));
        }
        machine.run(&setup);
        machine.assert_at(places, 0);
        for round in 1..40_u64 {
            let (one, other) = (round as usize % FUNCTIONS, (round as usize + 1) % FUNCTIONS);
            let before = machine.calls;
            let mut writes = Vec::new();
            match round % 4 {
                // Memory and doorbells trade places, with decoding off and on.
                0 => {
                    places.swap(one, other);
                    writes.extend([one, other].map(|n| Machine::decode(n, false)));
                    for n in [one, other] {
                        writes.extend(Machine::put(n, places[n].0, places[n].1));
                    }
                    writes.extend([one, other].map(|n| Machine::decode(n, true)));
                }
                // Only the memory does, live: for a while both are in one place.
                1 => {
                    let high = (places[one].1, places[other].1);
                    (places[one].1, places[other].1) = (high.1, high.0);
                    for n in [one, other] {
                        writes.extend(Machine::put(n, places[n].0, places[n].1));
                    }
                }
                // One moves to where nobody is.
                2 => {
                    places[one].1 = 3 + (round / 4) % 12;
                    writes.extend(Machine::put(one, places[one].0, places[one].1));
                }
                _ => writes.extend([false, true].map(|on| Machine::decode(one, on))),
            }
            machine.run(&writes);
            if in_window && round % 4 != 0 {
                assert_eq!(machine.calls, before, "round {round}");
            }
            machine.assert_at(places, round);
        }
    }
}
