//! A vCPU on a thread of its own, and the gate that it passes through.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kvm_memslots::{GateError, VcpuGate};

use crate::Result;

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

/// A vCPU that runs until it is stopped.
#[cfg(target_arch = "x86_64")]
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::result::Result<kvm_ioctls::VcpuFd, String>>,
}

#[cfg(target_arch = "x86_64")]
impl Running {
    /// Runs `vcpu`, whose program exits often, and does what `exit` does with
    /// each of its exits. What `exit` can't do anything with it gives back.
    pub fn start(
        mut vcpu: kvm_ioctls::VcpuFd,
        gate: Arc<Gate>,
        mut exit: impl FnMut(kvm_ioctls::VcpuExit<'_>) -> std::result::Result<(), String>
        + Send
        + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            while !stopped.load(Ordering::Relaxed) {
                gate.through(|| match vcpu.run() {
                    Ok(out) => exit(out),
                    Err(error) if error.errno() == libc::EINTR => Ok(()),
                    Err(error) => Err(format!("KVM_RUN: {error}")),
                })?;
            }
            // KVM ends an instruction that came out when the vCPU goes in again;
            // before that, registers are those of its middle.
            vcpu.set_kvm_immediate_exit(1);
            let ended = vcpu.run().map(|out| format!("{out:?}"));
            vcpu.set_kvm_immediate_exit(0);
            match ended {
                Err(error) if error.errno() == libc::EINTR => Ok(vcpu),
                other => Err(format!("a vCPU that was to end an instruction: {other:?}")),
            }
        };
        Self { stop, thread: std::thread::spawn(run) }
    }

    /// Waits until `what` holds.
    ///
    /// # Errors
    /// If the vCPU has ended before that.
    pub fn wait(&self, what: impl Fn() -> bool) -> Result<()> {
        while !what() {
            if self.thread.is_finished() {
                return Err("the guest has ended before it did what it was to do".into());
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Stops the vCPU between two instructions.
    ///
    /// # Errors
    /// How the guest ended, if it did before.
    pub fn stop(self) -> Result<kvm_ioctls::VcpuFd> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(result) => Ok(result?),
            Err(_) => Err("the vCPU thread panicked".into()),
        }
    }
}
