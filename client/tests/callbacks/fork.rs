//! A VM is of the process that opened it, and opened once.

use std::sync::Arc;

use kvm_memslots::{Backing, Changes, DirtyBitmap, ErrorKind, Limits, RegionSpec, Vm, at};

use crate::rig::{HVA, Owned, PAGE, Script, open, ram};

/// Runs `f` in a forked child; whether it came to its end and was true.
fn in_child(f: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child calls `f` and ends.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: takes a number. A child that hangs is ended.
        unsafe { libc::alarm(120) };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(false);
        // SAFETY: nothing of the parent's runs in the child any more.
        unsafe { libc::_exit(i32::from(!done)) };
    }
    let mut status = 0;
    // SAFETY: writes a number.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

fn is_forked<T>(result: Result<T, kvm_memslots::Error>) -> bool {
    result.is_err_and(|error| matches!(error.kind(), ErrorKind::Forked))
}

#[test]
fn a_fork_changes_nothing() {
    let script = Arc::<Script>::default();
    let (vm, model, _) = open(Limits::x86(), &script, false);
    let memory = Arc::new(Owned { hva: HVA, size: PAGE, model: model.clone(), script });
    let mut c = Changes::new();
    let id = c.map(RegionSpec::ram(at(0, PAGE), Backing::owned(memory, 0)).log_dirty());
    vm.apply(c).unwrap();
    let mut vm = Some(vm);
    assert!(in_child(|| {
        let vm = vm.take().unwrap();
        let calls = model.counts();
        let mut c = Changes::new();
        c.map(ram(4 * PAGE, PAGE));
        let refused = is_forked(vm.apply(c)) && is_forked(vm.close());
        let logs = is_forked(vm.dirty_log(id))
            && is_forked(vm.dirty_log_of(id, 0..1))
            && is_forked(vm.dirty_logs())
            && is_forked(vm.for_each_dirty_log(|_, _| ()))
            && is_forked(vm.for_each_dirty_log_in(0, |_, _| ()))
            && is_forked(vm.clear_dirty_log(id, 0, &DirtyBitmap::new(1)));
        let refused = refused && logs;
        drop(vm);
        refused && model.counts() == calls && model.slots(0).len() == 1
    }));
    assert_eq!(model.slots(0).len(), 1);
    vm.unwrap().close().unwrap();
}

/// A process that forks for each VM: what the child opens is the child's, and what
/// it has from its parent stays the parent's.
#[test]
fn a_child_that_opens_a_vm_of_its_own_has_the_parents_no_more_than_before() {
    let (vm, model, _) = open(Limits::x86(), &Arc::default(), false);
    let mut vm = Some(vm);
    assert!(in_child(|| {
        let parents = vm.take().unwrap();
        let (own, ..) = open(Limits::x86(), &Arc::default(), false);
        let mut c = Changes::new();
        c.map(ram(0, PAGE));
        let refused = parents.is_forked() && is_forked(parents.apply(c.clone()));
        let applied = !own.is_forked() && own.apply(c).is_ok();
        // A grandchild has neither.
        let neither = in_child(|| {
            let (third, ..) = open(Limits::x86(), &Arc::default(), false);
            parents.is_forked() && own.is_forked() && !third.is_forked()
        });
        drop(parents);
        refused && applied && neither && model.slots(0).is_empty()
    }));
    assert!(!vm.unwrap().is_forked());
}

/// A deferrable region's memory is the guest's, which is the parent's.
#[test]
fn a_child_serves_no_exits() {
    use kvm_memslots::Access;
    use kvm_memslots::deferred::{Deferral, Part, Policy};

    let model = kvm_memslots::backend::MemoryModel::new(Limits::x86());
    let events = kvm_memslots::backend::EventModel::new(kvm_memslots::backend::Irqchip::Split);
    let deferral = Deferral::default().policy(Policy::Fixed { exits: u64::MAX });
    let vm = Vm::builder().deferral(deferral).open_on(Arc::new(model), Arc::new(events)).unwrap();
    let mut host = vec![0_u8; 2 * PAGE as usize];
    let hva = (host.as_mut_ptr().expose_provenance() as u64).next_multiple_of(PAGE);
    // SAFETY: `host` lives for as long as the VM, and is not looked at but by it.
    let memory = unsafe { Backing::borrowed(hva, PAGE, Access::ReadWrite) };
    let mut c = Changes::new();
    c.map(RegionSpec::device(at(0, PAGE), memory).deferrable());
    vm.apply(c).unwrap();
    let exits = vm.deferred(0).unwrap();
    assert!(in_child(|| {
        let mut data = [7; 4];
        exits.write_part(0, &data) == Part::Fault && exits.read_part(0, &mut data) == Part::Fault
    }));
    let mut data = [7; 4];
    let served = exits.read(0, &mut data, |_, _| ());
    assert_eq!((served.bytes, data), (4, [0; 4]));
    drop(vm);
    drop(host);
}

/// A child of a process of which another thread is in the midst of a change.
#[test]
fn a_drop_in_a_child_does_not_wait_for_threads_that_there_are_not() {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    // No channel: it has a lock, and the child drops the callback that has it.
    let (started, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let wait = |flag: &AtomicBool| {
        while !flag.load(SeqCst) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    };
    let model = kvm_memslots::backend::MemoryModel::new(Limits::x86());
    let events = kvm_memslots::backend::EventModel::new(kvm_memslots::backend::Irqchip::Split);
    let vm = Vm::builder()
        .harvest({
            let (started, go) = (Arc::clone(&started), Arc::clone(&go));
            move |_| {
                started.store(true, SeqCst);
                wait(&go);
            }
        })
        .open_on(Arc::new(model), Arc::new(events))
        .unwrap();
    let mut c = Changes::new();
    let id = c.map(ram(0, PAGE).log_dirty());
    vm.apply(c).unwrap();
    let vm = Arc::new(vm);
    let other = Arc::clone(&vm);
    let thread = std::thread::spawn(move || {
        let mut c = Changes::new();
        c.set_read_only(id, true);
        other.apply(c).unwrap();
    });
    wait(&started);
    assert!(in_child(|| {
        let refused = is_forked(vm.apply(Changes::new()));
        // The other thread's share is nobody's any more in here.
        // SAFETY: there is a share for it, which nobody will drop.
        unsafe { Arc::decrement_strong_count(Arc::as_ptr(&vm)) };
        let last = Arc::strong_count(&vm) == 1;
        // SAFETY: the parent's value is not used in the child after this.
        drop(unsafe { std::ptr::read(&raw const vm) });
        refused && last
    }));
    go.store(true, SeqCst);
    thread.join().unwrap();
}

#[test]
fn a_real_vm_is_opened_once_and_outlives_a_fork() {
    let Ok(kvm) = kvm_ioctls::Kvm::new() else {
        eprintln!("SKIPPED a_real_vm_is_opened_once_and_outlives_a_fork: no /dev/kvm");
        return;
    };
    let fd = kvm.create_vm().unwrap();
    let host = vec![0_u8; 4 * PAGE as usize];
    let hva = (host.as_ptr().expose_provenance() as u64).next_multiple_of(PAGE);
    let vm = Vm::builder().open(kvm_memslots::vm_fd(&fd)).unwrap();
    let error = Vm::builder().open(kvm_memslots::vm_fd(&fd)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::AlreadyOpen), "{error}");
    let another = kvm.create_vm().unwrap();
    Vm::builder().open(kvm_memslots::vm_fd(&another)).unwrap();
    let spec = |gpa, offset| {
        // SAFETY: `host` lives for as long as the VM does.
        let memory =
            unsafe { Backing::borrowed(hva + offset, PAGE, kvm_memslots::Access::ReadWrite) };
        RegionSpec::ram(at(gpa, PAGE), memory)
    };
    let mut c = Changes::new();
    let id = c.map(spec(0, 0).log_dirty());
    vm.apply(c).unwrap();
    let mut vm = Some(vm);
    assert!(in_child(|| {
        let vm = vm.take().unwrap();
        let refused = is_forked(vm.apply(Changes::new()));
        drop(vm);
        refused
    }));
    let vm = vm.unwrap();
    vm.dirty_log(id).unwrap();
    let mut c = Changes::new();
    c.unmap(id);
    c.map(spec(4 * PAGE, PAGE));
    vm.apply(c).unwrap();
    // Once it is dropped, the VM can be opened again.
    vm.close().unwrap();
    drop(vm);
    Vm::builder().open(kvm_memslots::vm_fd(&fd)).unwrap();
    drop((fd, host));
}
