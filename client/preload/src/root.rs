//! What this library knows, in memory that a child finds empty.
//!
//! A child by `fork`, or by `clone` without the parent's memory, finds zeroes
//! here: no VM is known, no lock is taken, whatever threads of its parent were
//! doing; a child's calls pass, and VMs that it makes itself are new. A child by
//! `vfork` shares it, and does no harm: what a number means is asked of the
//! kernel, see [`mark`](crate::mark).

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::counts::Counts;
use crate::decide::rules::Rules;
use crate::lock::Lock;
use crate::vcpu::Vcpu;
use crate::vm::machine::{Machine, Vm};
use crate::{mark, process, sys};

/// Descriptors with larger numbers are not followed.
const NUMBERS: usize = 1 << 16;
/// VMs at a time that are.
const VMS: usize = 64;
/// Kinds of VMs of which is known whether they have the trap bit.
const KINDS: usize = 8;

const READY: u32 = 1;

/// What one process has. Zeroes are an empty one.
pub(crate) struct Root {
    ready: AtomicU32,
    pid: AtomicI32,
    numbers: [AtomicU64; NUMBERS],
    vms: [AtomicPtr<Vm>; VMS],
    making: Lock<()>,
    /// An argument of `KVM_CREATE_VM`, plus one, and whether such VMs have the
    /// trap bit.
    kinds: [(AtomicU64, AtomicBool); KINDS],
    pub(crate) counts: Counts,
}

static ROOT: AtomicPtr<Root> = AtomicPtr::new(ptr::null_mut());

/// Everything passes from now on; also in children.
static OFF: AtomicBool = AtomicBool::new(false);

pub(crate) fn is_off() -> bool {
    OFF.load(Ordering::Acquire)
}

pub(crate) fn off() {
    OFF.store(true, Ordering::Release);
}

/// What this process has, if it has made a VM.
pub(crate) fn root() -> Option<&'static Root> {
    // SAFETY: null, or set by `set_up` and never unmapped.
    let root = unsafe { ROOT.load(Ordering::Acquire).as_ref() }?;
    (root.ready.load(Ordering::Acquire) == READY).then_some(root)
}

/// The same, made if need be; `None` where a child would not find it empty.
pub(crate) fn set_up() -> Option<&'static Root> {
    let mut at = ROOT.load(Ordering::Acquire);
    if at.is_null() {
        at = map_root()?;
    }
    // SAFETY: zeroes, or what another thread has set up.
    let root = unsafe { at.as_ref() }?;
    if root.ready.load(Ordering::Acquire) != READY {
        root.pid.store(sys::process_id(), Ordering::Relaxed);
        process::is_noted_at(&root.pid);
        root.ready.store(READY, Ordering::Release);
    }
    Some(root)
}

fn map_root() -> Option<*mut Root> {
    let bytes = size_of::<Root>();
    let at = sys::map(bytes)?;
    let done = sys::wipe_on_fork(at, bytes).then(|| {
        let null = ptr::null_mut();
        ROOT.compare_exchange(null, at.cast(), Ordering::AcqRel, Ordering::Acquire)
    });
    match done {
        Some(Ok(_)) => return Some(at.cast()),
        // SAFETY: nobody has seen it.
        _ => unsafe { sys::unmap(at, bytes) },
    }
    done?.err()
}

/// What a number stands for, as far as is known.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    pub(crate) vm: &'static Vm,
    /// `None` for the VM itself.
    pub(crate) vcpu: Option<&'static Vcpu>,
    mark: i64,
}

impl Known {
    /// Whether `fd` still stands for it.
    pub(crate) fn is(&self, fd: c_int) -> bool {
        mark::is(fd, self.mark)
    }
}

/// In the table: bit 31; the VM's place in bits 16 to 23, in bits 0 to 15 the vCPU
/// plus one; the VM's generation above.
const fn entry(place: usize, vcpu: Option<usize>, generation: u32) -> u64 {
    let vcpu = match vcpu {
        Some(vcpu) => vcpu as u64 + 1,
        None => 0,
    };
    (generation as u64) << 32 | 1 << 31 | (place as u64) << 16 | vcpu
}

impl Root {
    pub(crate) fn pid(&self) -> c_int {
        self.pid.load(Ordering::Relaxed)
    }

    /// What `fd` was when it was last seen.
    pub(crate) fn known(&self, fd: c_int) -> Option<Known> {
        let entry = self.numbers.get(usize::try_from(fd).ok()?)?.load(Ordering::Acquire);
        if entry == 0 {
            return None;
        }
        let vm = self.vm(entry as usize >> 16 & 0xff)?;
        if vm.generation() != (entry >> 32) as u32 {
            return None;
        }
        let index = (entry as usize & 0xffff).checked_sub(1);
        let vcpu = match index {
            Some(index) => Some(vm.vcpus().get(index)?),
            None => None,
        };
        Some(Known { vm, vcpu, mark: vm.mark_of(index) })
    }

    fn vm(&self, place: usize) -> Option<&'static Vm> {
        // SAFETY: null, or set by `make_vm` and never unmapped.
        unsafe { self.vms.get(place)?.load(Ordering::Acquire).as_ref() }
    }

    /// All that were made, also those that are gone.
    pub(crate) fn vms(&self) -> impl Iterator<Item = &'static Vm> {
        (0..VMS).map_while(|place| self.vm(place))
    }

    fn set(&self, fd: c_int, entry: u64) {
        let number = usize::try_from(fd).ok().and_then(|fd| self.numbers.get(fd));
        if let Some(number) = number {
            number.store(entry, Ordering::Release);
        }
    }

    /// `fd` is something else now.
    pub(crate) fn forget(&self, fd: c_int) {
        self.set(fd, 0);
    }

    /// Finds out what `fd` is by the marks, and notes it.
    pub(crate) fn find(&self, fd: c_int) -> Option<Known> {
        for (place, vm) in self.vms().enumerate() {
            if !mark::any(fd, vm.mark_of(None), mark::BYTES) {
                continue;
            }
            let vcpus = (0..vm.vcpus().len()).map(Some);
            for index in std::iter::once(None).chain(vcpus) {
                if mark::is(fd, vm.mark_of(index)) {
                    self.set(fd, entry(place, index, vm.generation()));
                    return self.known(fd);
                }
            }
        }
        None
    }

    /// A VM that was just made as `fd`. `None` if there is no room, or if it can't
    /// be told from others.
    pub(crate) fn make_vm(&self, fd: c_int, rules: Rules) -> Option<&'static Vm> {
        self.making.with(|()| {
            let gone = |vm: &Vm| !mark::any(fd, vm.mark_of(None), mark::BYTES);
            let (place, vm) = match self.vms().count() {
                VMS => self.vms().enumerate().find(|(_, vm)| gone(vm))?,
                place => (place, new_vm(&self.vms[place], rules)?),
            };
            let at =
                mark::fresh(sys::now() ^ (self.pid() as u64) << 40 ^ (ptr::from_ref(vm) as u64));
            if !mark::mark(fd, at) {
                return None;
            }
            vm.begin(fd, at, rules, &self.counts.past);
            self.set(fd, entry(place, None, vm.generation()));
            Some(vm)
        })
    }

    /// A vCPU of `vm` that was just made as `fd`; the same.
    pub(crate) fn make_vcpu(&self, vm: &'static Vm, fd: c_int) -> Option<()> {
        let place = self.vms().position(|known| ptr::eq(known, vm))?;
        let index = vm.add_vcpu()?;
        if !mark::mark(fd, vm.mark_of(Some(index))) {
            return None;
        }
        self.set(fd, entry(place, Some(index), vm.generation()));
        Some(())
    }

    /// Whether VMs of a kind have the trap bit: as known, or as `ask` says.
    pub(crate) fn kind(&self, kind: *mut c_void, ask: impl FnOnce() -> bool) -> bool {
        let key = (kind as u64).wrapping_add(1);
        let known = self.kinds.iter().find(|(known, _)| known.load(Ordering::Acquire) == key);
        if let Some((_, has)) = known {
            return has.load(Ordering::Relaxed);
        }
        // Two threads may ask, and note it twice.
        let answer = ask();
        let free = self.kinds.iter().find(|(known, _)| known.load(Ordering::Relaxed) == 0);
        if let (Some((known, has)), true) = (free, key != 0) {
            has.store(answer, Ordering::Relaxed);
            let _ = known.compare_exchange(0, key, Ordering::AcqRel, Ordering::Relaxed);
        }
        answer
    }
}

/// Memory for one more VM, never given back: another thread may still look there.
fn new_vm(place: &AtomicPtr<Vm>, rules: Rules) -> Option<&'static Vm> {
    let at = sys::map(size_of::<Machine>())?;
    // SAFETY: zeroes of its size, aligned to a page, nobody else's, and there
    // for good.
    let machine = unsafe { Machine::at(at) };
    let vm = machine.set_up(rules);
    place.store(ptr::from_ref(vm).cast_mut(), Ordering::Release);
    Some(vm)
}
