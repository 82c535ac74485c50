//! What this library knows, in memory that a child finds empty.
//!
//! A child by `fork`, or by `clone` without the parent's memory, finds zeroes
//! here: no VM is known, no lock is taken, whatever threads of its parent were
//! doing; a child's calls pass, and VMs that it makes itself are new. A child by
//! `vfork` shares it, and does no harm: what a number means is asked of the
//! kernel, see [`mark`](crate::mark).

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};

use crate::abi::NO_CALL;
use crate::counts::Counts;
use crate::decide::rules::Rules;
use crate::mark::MARKS;
use crate::vcpu::Vcpu;
use crate::vm::machine::{Machine, Vm};
use crate::{mark, numbers, process, sys};

/// Of descriptors with larger numbers is asked each time what they are. Tests have few.
const NUMBERS: usize = if cfg!(test) { 1 << 9 } else { 1 << 16 };
/// Kinds of VMs of which is known whether they have the trap bit.
const KINDS: usize = 8;

const READY: u32 = 1;

/// What one process has. Zeroes are an empty one.
pub(crate) struct Root {
    ready: AtomicU32,
    pid: AtomicI32,
    /// What each stood for when it was last seen: a mark plus one.
    numbers: [AtomicU8; NUMBERS],
    /// How many marks are made.
    marks: AtomicUsize,
    /// By their marks.
    vms: [AtomicPtr<Vm>; MARKS],
    vcpus: [Vcpu; MARKS],
    /// The VMs that have deferred slots.
    pub(crate) deferring: mark::Set,
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

/// The same, made if need be for the process `pid`; `None` where a child would not find it empty.
pub(crate) fn set_up(pid: c_int) -> Option<&'static Root> {
    let mut at = ROOT.load(Ordering::Acquire);
    if at.is_null() {
        at = map_root()?;
    }
    // SAFETY: zeroes, or what another thread has set up.
    let root = unsafe { at.as_ref() }?;
    if root.ready.load(Ordering::Acquire) != READY {
        root.pid.store(pid, Ordering::Relaxed);
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
    mark: usize,
}

/// What `fd` answers to no call of KVM's.
fn answer(fd: c_int) -> Result<c_int, c_int> {
    // SAFETY: nobody takes anything for it.
    unsafe { sys::ioctl(fd, NO_CALL, ptr::null_mut()) }
}

impl Known {
    /// The vCPU that it is, if `fd` is one: others may have the same owner and signal.
    pub(crate) fn of_kvm(self, fd: c_int) -> Option<&'static Vcpu> {
        self.vcpu.filter(|_| answer(fd) == Err(libc::EINVAL))
    }

    #[cfg(test)]
    pub(crate) const fn new(vm: &'static Vm, vcpu: Option<&'static Vcpu>, mark: usize) -> Self {
        Self { vm, vcpu, mark }
    }

    /// Whether `fd` still stands for it.
    pub(crate) fn is(&self, fd: c_int) -> bool {
        mark::is(fd, self.mark)
    }
}

impl Root {
    /// One that no other test has.
    #[cfg(test)]
    pub(crate) fn alone() -> Option<&'static Self> {
        // SAFETY: zeroes, which are an empty one, and stay.
        unsafe { sys::map(size_of::<Self>())?.cast::<Self>().as_ref() }
    }

    pub(crate) fn pid(&self) -> c_int {
        self.pid.load(Ordering::Relaxed)
    }

    /// What `fd` was when it was last seen.
    pub(crate) fn known(&'static self, fd: c_int) -> Option<Known> {
        let number = self.numbers.get(usize::try_from(fd).ok()?)?;
        self.by_mark(usize::from(number.load(Ordering::Acquire)).checked_sub(1)?)
    }

    /// What has this mark.
    fn by_mark(&'static self, mark: usize) -> Option<Known> {
        if let Some(vm) = self.vm(mark) {
            return Some(Known { vm, vcpu: None, mark });
        }
        let vcpu = self.vcpus.get(mark)?;
        Some(Known { vm: self.vm(vcpu.vm()?)?, vcpu: Some(vcpu), mark })
    }

    /// The VM with this mark.
    fn vm(&self, mark: usize) -> Option<&'static Vm> {
        // SAFETY: null, or set by `make_vm` and never unmapped.
        unsafe { self.vms.get(mark)?.load(Ordering::Acquire).as_ref() }
    }

    /// All that were made, also those that are gone.
    pub(crate) fn vms(&self) -> impl Iterator<Item = &'static Vm> {
        (0..MARKS).filter_map(|mark| self.vm(mark))
    }

    /// Nothing that was mapped at these addresses is there any longer; a vCPU whose page
    /// began there.
    pub(crate) fn unmapped(&self, range: &Range<u64>) -> Option<&Vcpu> {
        let made = self.marks.load(Ordering::Acquire);
        let vcpus = self.vcpus.get(..made).unwrap_or_default();
        vcpus.iter().filter(|vcpu| vcpu.unmapped(range)).last()
    }

    /// The vCPUs for which KVM has a mask of signals that is not the VMM's, and their
    /// numbers; of those that this thread has run last. Others may be running.
    pub(crate) fn masked(&'static self) -> impl Iterator<Item = (&'static Vcpu, c_int)> {
        self.vcpus.iter().enumerate().filter_map(|(mark, vcpu)| {
            let number = vcpu.masked_by(sys::thread())?;
            mark::is(number, mark).then_some((vcpu, number))
        })
    }

    /// Has VMs that are gone defer nothing: those that no descriptor is of, nor of a vCPU
    /// of theirs. Nobody says when that comes to be.
    pub(crate) fn leave_gone(&self) {
        // Not what defers from here on, which may be new.
        let deferring: [bool; MARKS] = std::array::from_fn(|mark| self.deferring.has(mark));
        let Ok(mut there) = numbers::marks() else { return };
        for (mark, vcpu) in self.vcpus.iter().enumerate() {
            if let (true, Some(vm)) = (there[mark], vcpu.vm()) {
                there[vm] = true;
            }
        }
        let gone = (0..MARKS).filter(|mark| deferring[*mark] && !there[*mark]);
        // One that was on its way in a message says it again by its next call.
        gone.for_each(|mark| self.deferring.put(mark, false));
    }

    fn set(&self, fd: c_int, entry: u8) {
        let number = usize::try_from(fd).ok().and_then(|fd| self.numbers.get(fd));
        if let Some(number) = number {
            number.store(entry, Ordering::Release);
        }
    }

    /// `fd` is something else now.
    pub(crate) fn forget(&self, fd: c_int) {
        self.set(fd, 0);
    }

    /// Finds out what `fd` is by its mark, and notes it.
    pub(crate) fn find(&'static self, fd: c_int) -> Option<Known> {
        let mark = mark::of(fd)?;
        // Marked by the program that this process was before. KVM does nothing for
        // another memory than that which a VM was made for.
        if answer(fd) == Err(libc::EIO) {
            return None;
        }
        self.set(fd, mark as u8 + 1);
        self.by_mark(mark)
    }

    /// Marks a VM or a vCPU that was just made as `fd`; `None` if there is no mark left.
    fn mark(&self, fd: c_int) -> Option<usize> {
        let next = |made| (made < MARKS).then_some(made + 1);
        let mark = self.marks.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).ok()?;
        mark::set(fd, mark).then_some(mark)
    }

    /// A VM that was just made as `fd`; `None` if it can't be followed.
    pub(crate) fn make_vm(&'static self, fd: c_int, rules: Rules) -> Option<()> {
        let mark = self.mark(fd)?;
        let at = sys::map(size_of::<Machine>())?;
        // SAFETY: zeroes of its size, aligned to a page, nobody else's, and there for
        // good: another thread may always look there.
        let machine = unsafe { Machine::at(at) };
        let vm = machine.set_up(fd, mark, (&self.vcpus, &self.deferring), rules);
        self.vms[mark].store(ptr::from_ref(vm).cast_mut(), Ordering::Release);
        self.set(fd, mark as u8 + 1);
        Some(())
    }

    /// A vCPU of `vm` that was just made as `fd`; the same.
    pub(crate) fn make_vcpu(&self, vm: &Vm, fd: c_int) -> Option<()> {
        let mark = self.mark(fd)?;
        self.vcpus[mark].made_for(vm.mark);
        self.set(fd, mark as u8 + 1);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::fd::{AsRawFd as _, FromRawFd as _};

    use super::*;
    use crate::decide::rules::Way;

    /// Beyond those that are noted.
    #[test]
    fn what_has_a_large_number_is_found() {
        const MARK: usize = 110;
        const VCPU: usize = 111;
        let root = Root::alone().unwrap();
        root.vcpus[VCPU].made_for(MARK);
        let file = std::fs::File::open("/dev/null").unwrap();
        let rules = Rules { way: Way::Defer, flips: 4, writable: false };
        root.marks.store(MARK, Ordering::Relaxed);
        root.make_vm(file.as_raw_fd(), rules).unwrap();
        let [vm, vcpu] = [MARK, VCPU].map(|mark| {
            let large = sys::duplicate(file.as_raw_fd(), NUMBERS as c_int).unwrap();
            // SAFETY: just made.
            let large = unsafe { std::fs::File::from_raw_fd(large) };
            assert!(mark::set(large.as_raw_fd(), mark) && large.as_raw_fd() >= NUMBERS as c_int);
            let found = root.find(large.as_raw_fd()).unwrap();
            assert!(root.known(large.as_raw_fd()).is_none());
            (found.mark, found.vcpu.is_some())
        });
        assert_eq!((vm, vcpu), ((MARK, false), (VCPU, true)));
    }

    #[test]
    fn a_vm_is_gone_with_its_last_descriptor() {
        let _marks = mark::tests::MARKS_IN_USE.lock();
        let root = Root::alone().unwrap();
        let [vm, of_vcpu, vcpu] = [100, 101, 102];
        let marked = |mark| {
            let file = std::fs::File::open("/dev/null").unwrap();
            assert!(mark::set(file.as_raw_fd(), mark));
            file
        };
        let files = [marked(vm), marked(vcpu)];
        root.vcpus[vcpu].made_for(of_vcpu);
        for mark in [vm, of_vcpu] {
            root.deferring.put(mark, true);
        }
        let defer = || [vm, of_vcpu].map(|mark| root.deferring.has(mark));
        root.leave_gone();
        assert_eq!(defer(), [true; 2]);
        for (file, left) in files.into_iter().zip([[false, true], [false; 2]]) {
            // Another test's child has it for a while; not the mark.
            assert!(mark::set(file.as_raw_fd(), 103));
            root.leave_gone();
            assert_eq!(defer(), left);
        }
    }
}
