//! What the examples share: a guest that runs, so that memory changes under it.

use std::error::Error;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kvm_memslots::{GateError, VcpuGate};
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

/// What an example's `main` returns.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Whether there is a KVM to run on. Says so where there is none.
#[must_use]
pub fn has_kvm(what: &str) -> bool {
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &kvm {
        println!("SKIPPED {what}: /dev/kvm: {error}");
    }
    kvm.is_ok()
}

/// Anonymous memory for a guest.
///
/// # Errors
/// `mmap`'s, or that there is no such guest physical address.
pub fn memory(gpa: u64, size: u64) -> Result<Arc<GuestRegionMmap>> {
    let mapping = MmapRegion::new(usize::try_from(size)?)?;
    let region = GuestRegionMmap::new(mapping, GuestAddress(gpa));
    Ok(Arc::new(region.ok_or("beyond the address space")?))
}

/// A new eventfd.
///
/// # Errors
/// The kernel's.
pub fn eventfd() -> Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Where the guest's program starts, and the word that it counts in.
#[cfg(target_arch = "x86_64")]
const CODE: u64 = 0x1000;
/// The guest physical address of the word that the guest counts in.
pub const COUNTER: u64 = 0x2000;

/// A gate for vCPUs that come out of `KVM_RUN` often by themselves: they pass
/// through it each time. (Others have to be kicked out.)
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    inside: usize,
    paused: bool,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `run` when nothing is paused.
    pub fn through<T>(&self, run: impl FnOnce() -> T) -> T {
        let paused = |state: &mut GateState| state.paused;
        let state = self.changed.wait_while(self.state(), paused);
        state.unwrap_or_else(PoisonError::into_inner).inside += 1;
        let result = run();
        self.state().inside -= 1;
        self.changed.notify_all();
        result
    }
}

impl VcpuGate for Gate {
    fn pause(&self) -> std::result::Result<(), GateError> {
        self.state().paused = true;
        let inside = |state: &mut GateState| state.inside > 0;
        drop(self.changed.wait_while(self.state(), inside));
        Ok(())
    }

    fn resume(&self) {
        self.state().paused = false;
        self.changed.notify_all();
    }
}

/// A vCPU in real mode, at `code`, with its data at `data`. Both are guest
/// physical addresses, the first below 64 KiB.
///
/// # Errors
/// KVM's.
#[cfg(target_arch = "x86_64")]
pub fn real_mode(vm: &kvm_ioctls::VmFd, code: u64, data: u64) -> Result<kvm_ioctls::VcpuFd> {
    let vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    (sregs.ds.base, sregs.ds.selector) = (data, (data >> 4) as u16);
    vcpu.set_sregs(&sregs)?;
    let regs = kvm_bindings::kvm_regs { rip: code, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs)?;
    Ok(vcpu)
}

/// A vCPU that counts in guest memory until it is stopped.
#[derive(Debug)]
pub struct Counting {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<std::result::Result<(), String>>>,
}

/// `inc word [0x2000]; out 0x80, al; jmp back`, in real mode: an exit each time
/// around, at which the thread looks whether it is to stop or to wait.
#[cfg(target_arch = "x86_64")]
pub const PROGRAM: [u8; 8] = [0xff, 0x06, 0x00, 0x20, 0xe6, 0x80, 0xeb, 0xf8];

impl Counting {
    /// Starts the vCPU, whose program the caller has put at `0x1000`.
    ///
    /// # Errors
    /// KVM's.
    #[cfg(target_arch = "x86_64")]
    pub fn start(vm: &kvm_ioctls::VmFd, gate: Arc<Gate>) -> Result<Self> {
        let mut vcpu = real_mode(vm, CODE, 0)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || -> std::result::Result<(), String> {
            while !stopped.load(Ordering::Relaxed) {
                gate.through(|| match vcpu.run() {
                    Ok(kvm_ioctls::VcpuExit::IoOut(..)) => Ok(()),
                    Ok(exit) => Err(format!("the guest ended with {exit:?}")),
                    Err(error) if error.errno() == libc::EINTR => Ok(()),
                    Err(error) => Err(format!("KVM_RUN: {error}")),
                })?;
            }
            Ok(())
        };
        Ok(Self { stop, thread: Some(std::thread::spawn(run)) })
    }

    /// Stops the vCPU.
    ///
    /// # Errors
    /// How the guest ended, if it did before.
    pub fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.map_err(Into::into),
            Some(Err(_)) => Err("the vCPU thread panicked".into()),
            None => Ok(()),
        }
    }
}

#[cfg(doctest)]
#[doc = include_str!("../../docs/guide/adopting-rust.md")]
struct AdoptingRust;
