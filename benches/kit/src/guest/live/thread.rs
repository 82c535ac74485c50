//! A vCPU on a thread of its own that can be kicked out of `KVM_RUN`.

use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::errno::Errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::platform::{check_lost, died, run_failed};
use crate::guest::GuestError;

/// Kicks and waits are given up after this long: a vCPU leaves `KVM_RUN`
/// within microseconds of a signal, so something is broken then.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(null_mut()) };
}

/// The signal's only purpose is to end a `KVM_RUN`. One that arrives just
/// before `KVM_RUN` would be lost: the flag makes that call return at once.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the thread that this handler runs on put the pointer there
        // and takes it away before the vCPU goes; the byte is the kernel's and
        // ours to write at any time.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::Relaxed);
    }
}

fn kick_signal() -> libc::c_int {
    SIGRTMIN() + 1
}

/// Installs the handler, once a process.
fn install_handler() -> Result<(), GuestError> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let install = || {
        register_signal_handler(kick_signal(), on_kick).map_err(vmm_sys_util::errno::Error::errno)
    };
    let installed = *INSTALLED.get_or_init(install);
    installed.map_err(|errno| GuestError::Host {
        call: "sigaction for the signal that kicks vCPUs",
        errno: Errno::from_raw(errno),
    })
}

#[derive(Debug, Default)]
struct State {
    /// How many want the vCPU to stay out.
    pauses: usize,
    stop: bool,
    inside: bool,
    /// How the guest ended, once it has.
    ended: Option<Result<(), GuestError>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for permission to enter; false when it is time to stop.
    fn enter(&self) -> bool {
        let mut state = self.lock();
        if state.inside && state.pauses > 0 {
            state.inside = false;
            self.changed.notify_all();
        }
        let out = |state: &mut State| state.pauses > 0 && !state.stop;
        state = self.changed.wait_while(state, out).unwrap_or_else(PoisonError::into_inner);
        state.inside = !state.stop;
        state.inside
    }

    fn end(&self, outcome: Result<(), GuestError>) {
        let mut state = self.lock();
        state.inside = false;
        state.ended = Some(outcome);
        self.changed.notify_all();
    }
}

/// What the owner does about an exit; an error ends the vCPU.
pub(super) trait OnDone: FnMut() -> Result<(), GuestError> + Send + 'static {}
impl<F: FnMut() -> Result<(), GuestError> + Send + 'static> OnDone for F {}

/// A vCPU on a thread of its own.
#[derive(Debug)]
pub(super) struct VcpuThread {
    index: usize,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Runs `vcpu` until [`stop`](Self::stop), and `on_done` each time it
    /// rings the doorbell at this
    /// guest address.
    pub(super) fn spawn(
        index: usize,
        vcpu: VcpuFd,
        doorbell: u64,
        on_done: impl OnDone,
    ) -> Result<Self, GuestError> {
        install_handler()?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || {
                let ended = EndOnDrop { shared: &theirs, index, outcome: None };
                ended.with(run(vcpu, &theirs, doorbell, on_done));
            })
            .map_err(|error| GuestError::Host {
                call: "starting a vCPU thread",
                errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
            })?;
        Ok(Self { index, shared, thread: Some(thread) })
    }

    /// Asks the vCPU to stay out of `KVM_RUN`, without waiting until it is.
    pub(super) fn ask_to_pause(&self) {
        self.shared.lock().pauses += 1;
        self.kick();
    }

    /// Waits until the vCPU is outside, as it was asked to be.
    pub(super) fn wait_until_outside(&self) -> Result<(), GuestError> {
        let inside = |state: &mut State| state.inside;
        let state = self.shared.lock();
        let (state, _) = (self.shared.changed)
            .wait_timeout_while(state, PATIENCE, inside)
            .unwrap_or_else(PoisonError::into_inner);
        if state.inside { Err(self.late("did not leave KVM_RUN")) } else { Ok(()) }
    }

    /// Has the vCPU looked at from outside, for what it can't say itself.
    pub(super) fn nudge(&self) {
        self.kick();
    }

    /// Takes one request to pause back.
    pub(super) fn resume(&self) {
        let mut state = self.shared.lock();
        state.pauses = state.pauses.saturating_sub(1);
        self.shared.changed.notify_all();
    }

    /// How the guest ended, if it has before it was told to.
    pub(super) fn check(&self) -> Result<(), GuestError> {
        self.shared.lock().ended.clone().unwrap_or(Ok(()))
    }

    /// Ends the guest and the thread. Further calls say how it ended.
    pub(super) fn stop(&mut self) -> Result<(), GuestError> {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        self.kick();
        if let Some(thread) = self.thread.take() {
            // A panic has been noted as the guest's end.
            let _ = thread.join();
        }
        self.check()
    }

    pub(super) fn late(&self, what: &'static str) -> GuestError {
        GuestError::Late { index: self.index, what, waited: PATIENCE }
    }

    fn kick(&self) {
        if let Some(thread) = &self.thread {
            // Fails only for a thread that has ended, which is outside.
            let _ = thread.kill(kick_signal());
        }
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Notes how the thread ended, also where it panicked.
struct EndOnDrop<'a> {
    shared: &'a Shared,
    index: usize,
    outcome: Option<Result<(), GuestError>>,
}

impl EndOnDrop<'_> {
    fn with(mut self, outcome: Result<(), GuestError>) {
        self.outcome = Some(outcome);
    }
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        let panicked = Err(GuestError::Panicked { index: self.index });
        self.shared.end(self.outcome.take().unwrap_or(panicked));
    }
}

/// While it lives, a kick of this thread reaches the vCPU. To be dropped before
/// the vCPU, whose page the handler writes to.
struct Registered;

impl Registered {
    fn new(vcpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(null_mut());
    }
}

fn run(
    mut vcpu: VcpuFd,
    shared: &Shared,
    doorbell: u64,
    mut on_done: impl OnDone,
) -> Result<(), GuestError> {
    let _registered = Registered::new(&mut vcpu);
    while shared.enter() {
        match vcpu.run() {
            Ok(VcpuExit::MmioWrite(gpa, _)) if gpa == doorbell => on_done()?,
            Ok(exit) => {
                let exit = format!("{exit:x?}");
                return Err(died(&vcpu, exit));
            }
            Err(error) => {
                run_failed(error)?;
                check_lost(&vcpu)?;
                // Before the flags are looked at again, so that a kick in
                // between is not lost.
                vcpu.set_kvm_immediate_exit(0);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::super::code::Program;
    use super::super::platform::Platform;
    use super::*;
    use crate::host::Pages;

    /// A kick between the decision to enter and `KVM_RUN` itself: the signal is
    /// long delivered when `KVM_RUN` begins, and the guest never exits by
    /// itself.
    #[test]
    fn a_kick_before_kvm_run_is_not_lost() {
        let test = "a_kick_before_kvm_run_is_not_lost";
        let Some(vm) = crate::tests::vm_or_skip(test) else { return };
        install_handler().expect("a handler");
        let platform = Platform::install(&vm, 0, 1, 0, Pages::Small).expect("a platform");
        let mut vcpu = Platform::vcpu(&vm, 0, Program::Spin).expect("a vCPU");
        let (returned, result) = channel();
        let thread = std::thread::spawn(move || {
            let _registered = Registered::new(&mut vcpu);
            // SAFETY: raises a signal that has a handler.
            unsafe { libc::raise(kick_signal()) };
            let exit = vcpu.run().map(|exit| format!("{exit:?}"));
            returned.send(exit.map_err(kvm_ioctls::Error::errno)).expect("a receiver");
        });
        let result = result.recv_timeout(Duration::from_mins(1));
        // Ends the guest also where the first kick was lost.
        let _ = thread.kill(kick_signal());
        thread.join().expect("the thread");
        assert_eq!(result, Ok(Err(libc::EINTR)));
        drop(platform);
    }
}
