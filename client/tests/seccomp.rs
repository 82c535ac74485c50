//! What `kvm_memslots::seccomp` says is all that is called: each operation runs
//! behind a filter that lets nothing else through, in a process of its own.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)]

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_memslots::backend::OpenError;
use kvm_memslots::deferred::{Deferral, Deferred, Policy};
use kvm_memslots::device::{Bus, Coalesced, Device, Doorbell, Msi};
use kvm_memslots::pci::{BarSpec, FunctionSpec, PciBars};
use kvm_memslots::seccomp::{
    APPLY, Call, DIRTY_LOG, DROP, OPEN, ORDER_CHECK, RING, RUNTIME, SERVE, WINDOW,
};
use kvm_memslots::window::{Contents, Edit, Window, WindowSpec};
use kvm_memslots::{
    Access, Backing, Changes, Error, ErrorKind, HostMemory, RegionId, RegionSpec, Vm, at,
};

const PAGE: u64 = 4096;
/// What a child ends with where something lacks.
const SKIP: i32 = 77;
/// What it ends with when its filter has stopped it.
const STOPPED: i32 = 88;

/// The architecture, as a filter sees it (`AUDIT_ARCH_*`).
const ARCH: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

const fn step(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// A filter that lets `calls` through, and what the tests themselves need.
fn filter(calls: &[Call]) -> Vec<libc::sock_filter> {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_TRAP};
    let load = |at| step(BPF_LD | BPF_W | BPF_ABS, at, 0, 0);
    let skip_unless = |k, steps| step(BPF_JMP | BPF_JEQ | BPF_K, k, 0, steps);
    let answer = |k| step(BPF_RET | BPF_K, k, 0, 0);
    // struct seccomp_data: nr, arch, instruction_pointer, args.
    let mut all = vec![load(4), step(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0)];
    all.push(answer(SECCOMP_RET_KILL_PROCESS));
    let own = [libc::SYS_exit_group, libc::SYS_write, libc::SYS_rt_sigreturn];
    for number in own.map(|number| u32::try_from(number).unwrap()) {
        all.extend([load(0), skip_unless(number, 1), answer(SECCOMP_RET_ALLOW)]);
    }
    for call in calls {
        let number = u32::try_from(call.number).unwrap();
        match call.request {
            None => all.extend([load(0), skip_unless(number, 1)]),
            // The low half of the second argument.
            Some(request) => {
                all.extend([
                    load(0),
                    skip_unless(number, 3),
                    load(16 + 8),
                    skip_unless(request, 1),
                ]);
            }
        }
        all.push(answer(SECCOMP_RET_ALLOW));
    }
    all.push(answer(SECCOMP_RET_TRAP));
    all
}

/// Says which call it was, and ends the process.
extern "C" fn stopped(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // siginfo of SIGSYS: the call's address and its number, behind 16 bytes.
    // SAFETY: the kernel gave it.
    let number = unsafe { info.cast::<i32>().add(6).read() };
    let mut text = [b' '; 24];
    let mut rest: &mut [u8] = &mut text;
    let _ = writeln!(rest, "stopped: call {number}");
    // SAFETY: the buffer is there, and the process ends.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    // SAFETY: as above.
    unsafe { libc::_exit(STOPPED) }
}

/// From here on nothing but `lists` and what the runtime takes.
fn only(lists: &[&[Call]]) {
    let program = filter(&[lists, &[RUNTIME]].concat().concat());
    // SAFETY: zeroes are a valid one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = stopped as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler calls what is async-signal-safe, and ends.
    let set = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    let program = libc::sock_fprog {
        len: program.len().try_into().unwrap(),
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the program is there for as long as the call takes.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) } != 0 {
        end(SKIP, "no seccomp filters");
    }
}

/// Ends a child.
fn end(code: i32, why: &str) -> ! {
    let text = format!("{why}\n");
    // SAFETY: the text is there.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    // SAFETY: nothing of the parent's runs in the child any more.
    unsafe { libc::_exit(code) }
}

/// Runs a test in a process of its own, and there calls `f`; what that ended
/// with.
fn in_child<T>(test: &str, f: impl FnOnce() -> T) -> (i32, String) {
    const CHILD: &str = "MEMSLOTS_SECCOMP_TEST";
    if std::env::var_os(CHILD).is_some() {
        // Printing one would take calls that no filter has.
        std::panic::set_hook(Box::new(|panic| end(1, &panic.to_string())));
        // What it returns stays: dropping is another operation.
        std::mem::forget(f());
        end(0, "done");
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, test)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    (output.status.code().unwrap_or_else(|| panic!("{test}: {}: {said}", output.status)), said)
}

/// Runs a test that is to end well.
fn run<T>(test: &str, f: impl FnOnce() -> T) {
    match in_child(test, f) {
        (0, _) => {}
        (SKIP, why) => eprintln!("SKIPPED {test}: {why}"),
        (code, why) => panic!("{test} ended with {code}: {why}"),
    }
}

/// A VM of this process, or its end. A VM can be used in the process only that
/// made it.
fn vm_fd() -> kvm_ioctls::VmFd {
    let vm = kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm());
    vm.unwrap_or_else(|error| end(SKIP, &format!("no VM from /dev/kvm: {error}")))
}

fn borrowed(vm: &kvm_ioctls::VmFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the VM keeps it open.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(vm.as_raw_fd()) }
}

fn open(vm: &kvm_ioctls::VmFd) -> Vm {
    let deferral = Deferral::default().policy(Policy::Fixed { exits: 4 });
    Vm::builder().deferral(deferral).manual_dirty_log(true).open(borrowed(vm)).unwrap()
}

/// Pages of this process, for as long as that is.
struct Pages {
    hva: u64,
    len: u64,
    never_faults: bool,
}

// SAFETY: they are never unmapped, and only used as memory of guests.
unsafe impl HostMemory for Pages {
    fn range(&self) -> (u64, u64) {
        (self.hva, self.len)
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn never_faults(&self) -> bool {
        self.never_faults
    }
}

fn pages(count: u64, never_faults: bool) -> Backing {
    let len = count * PAGE;
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, which takes no other's place.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len as usize, access, kind, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    let hva = at.expose_provenance() as u64;
    Backing::owned(Arc::new(Pages { hva, len, never_faults }), 0)
}

fn eventfd() -> OwnedFd {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Whether this VM takes devices: a split irqchip is x86's.
fn has_irqchip(vm: &kvm_ioctls::VmFd) -> bool {
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    split.args[0] = 24;
    cfg!(target_arch = "x86_64") && vm.enable_cap(&split).is_ok()
}

/// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
fn make_manual(vm: &kvm_ioctls::VmFd) {
    let mut manual = kvm_enable_cap { cap: 168, ..Default::default() };
    manual.args[0] = 1;
    vm.enable_cap(&manual).unwrap();
}

/// Changes of every kind. What is mapped at the end.
fn change(vm: &Vm, events: Option<[OwnedFd; 2]>) -> RegionId {
    let mut c = Changes::new();
    let low = c.map(RegionSpec::ram(at(0, 16 * PAGE), pages(32, true)).log_dirty());
    let high = c.map(RegionSpec::ram(at(64 * PAGE, 16 * PAGE), pages(16, true)).permanent());
    c.map(RegionSpec::device(at(128 * PAGE, PAGE), pages(1, true)).deferrable());
    let device = events.map(|[doorbell, vector]| {
        let msi = Msi { address: 0xfee0_0000, data: 0x41, devid: None };
        let device = Device::new("device")
            .ioeventfd(Doorbell::at(Bus::Mmio, 0x1000_0000).len(4), doorbell)
            .coalesced(Coalesced::at(Bus::Mmio, 0x2000_0000, 0x1000))
            .vector(vector, Some(msi));
        c.attach(device)
    });
    vm.apply(c).unwrap();
    let mut c = Changes::new();
    c.resize(low, 32 * PAGE);
    c.move_to(high, 256 * PAGE);
    c.set_log_dirty(high, true);
    let upper = c.split(low, 8 * PAGE);
    vm.apply(c).unwrap();
    // A hole, and the last pages of what goes.
    let mut c = Changes::new();
    c.unmap(upper);
    c.replace(high, pages(16, true));
    if let Some(device) = device {
        c.set_vector(device, 0, None);
        c.detach(device);
    }
    assert!(!vm.apply(c).unwrap().last_dirty.is_empty());
    assert!(vm.promote().unwrap().is_some());
    low
}

fn read_logs(vm: &Vm, id: RegionId) {
    let dirty = vm.dirty_log(id).unwrap();
    vm.dirty_logs().unwrap();
    vm.clear_dirty_log(id, 0, &dirty).unwrap();
    vm.clear_dirty_log(id, 0, &{
        let mut all = kvm_memslots::DirtyBitmap::new(8);
        all.set(0, 8);
        all
    })
    .unwrap();
}

fn map_deferrable(vm: &Vm) {
    let mut c = Changes::new();
    c.map(RegionSpec::device(at(0x1000_0000, PAGE), pages(1, true)).deferrable());
    c.map(RegionSpec::device(at(0x1000_1000, PAGE), pages(1, false)).deferrable());
    vm.apply(c).unwrap();
}

fn serve(exits: &Deferred) {
    let mut data = [0; 8];
    for gpa in [0x1000_0000, 0x1000_1000] {
        let _ = exits.write(gpa, &[1, 2, 3, 4], |_, _| {});
        assert_eq!(exits.read(gpa, &mut data, |_, _| {}).bytes, 8);
        assert_eq!(data, [1, 2, 3, 4, 0, 0, 0, 0]);
    }
}

#[test]
fn the_filter_stops_what_it_does_not_have() {
    let test = "the_filter_stops_what_it_does_not_have";
    let (code, why) = in_child(test, || {
        let fd = vm_fd();
        let vm = open(&fd);
        only(&[DIRTY_LOG]);
        change(&vm, None);
    });
    if code == SKIP {
        eprintln!("SKIPPED {test}: {why}");
        return;
    }
    assert_eq!(code, STOPPED, "{why}");
}

#[test]
fn opening() {
    run("opening", || {
        let fd = vm_fd();
        let other = File::open("/").unwrap();
        // The second one finds that the first is another VM.
        let (first, second) = (vm_fd(), vm_fd());
        only(&[OPEN, ORDER_CHECK]);
        let _vms = [open(&first), open(&second)];
        open(&fd);
        let error = Vm::open(&other).map(drop).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Open(OpenError::NotAVm { .. })), "{error}");
        let again = Vm::open(borrowed(&first)).map(drop);
        let refused = |error: &Error| matches!(error.kind(), ErrorKind::AlreadyOpen);
        // Without kcmp it is not told.
        assert!(again.as_ref().err().is_none_or(refused), "{again:?}");
        (fd, first, second, other)
    });
}

#[test]
fn applying() {
    run("applying", || {
        let fd = vm_fd();
        let events = has_irqchip(&fd).then(|| [eventfd(), eventfd()]);
        let vm = open(&fd);
        // Closing what was the VMM's is its own business.
        only(&[APPLY, DROP]);
        change(&vm, events);
        vm.close().unwrap();
        (fd, vm)
    });
}

/// BARs that come and go in a window.
#[test]
fn placing() {
    run("placing", || {
        let fd = vm_fd();
        let vm = open(&fd);
        // SAFETY: takes a name.
        let file = unsafe { libc::memfd_create(c"bars".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(file >= 0);
        // SAFETY: a new descriptor.
        let file = unsafe { File::from_raw_fd(file) };
        file.set_len(16 * PAGE).unwrap();
        only(&[WINDOW, APPLY]);
        let span = at(0x1_0000_0000, 16 * PAGE);
        let window = Window::new(WindowSpec::new(span).huge_pages()).unwrap();
        let mut c = Changes::new();
        c.map(window.region());
        vm.apply(c).unwrap();
        let mut bars = PciBars::new(40).in_window(window.clone());
        let backing = pages(4, true).with_file(file.as_raw_fd(), 0);
        let bar = BarSpec::memory64(4 * PAGE).window(RegionSpec::device(at(0, 4 * PAGE), backing));
        let id = bars.add(&vm, FunctionSpec::new().bar(0, bar)).unwrap();
        bars.note_write(id, 0x10, &span.gpa.to_le_bytes()).unwrap();
        assert!(bars.config_write(&vm, id, 4, &[2]).unwrap().is_none());
        assert_eq!(window.placed().len(), 1);
        bars.remove(&vm, id).unwrap();
        let mut edit = Edit::new();
        window.place(0, PAGE, Contents::file(&file, 0)).unwrap();
        edit.remove(0, PAGE);
        edit.place(0, 2 * PAGE, Contents::anonymous());
        window.apply(&edit).unwrap();
        vm.close().unwrap();
        drop(window);
        (fd, vm, file)
    });
}

#[test]
fn reading_dirty_logs() {
    run("reading_dirty_logs", || {
        let fd = vm_fd();
        make_manual(&fd);
        let vm = open(&fd);
        let id = change(&vm, None);
        only(&[DIRTY_LOG]);
        read_logs(&vm, id);
        (fd, vm)
    });
}

#[test]
fn serving() {
    run("serving", || {
        let fd = vm_fd();
        let vm = open(&fd);
        map_deferrable(&vm);
        let exits = vm.deferred(0).unwrap();
        let probe = 7_u8;
        let iovec = libc::iovec { iov_base: (&raw const probe).cast_mut().cast(), iov_len: 1 };
        // SAFETY: reads a byte into itself.
        let copied = unsafe {
            libc::process_vm_readv(libc::getpid(), &raw const iovec, 1, &raw const iovec, 1, 0)
        };
        if copied != 1 {
            end(SKIP, "no process_vm_readv");
        }
        only(&[SERVE]);
        serve(&exits);
        (fd, vm, exits)
    });
}

#[test]
fn the_ring() {
    run("the_ring", || {
        let fd = vm_fd();
        let vm = open(&fd);
        let vcpu = fd.create_vcpu(0).unwrap();
        // SAFETY: the vCPU keeps it open.
        let vcpu_fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        only(&[RING]);
        let mut ring = vm.coalesced_ring(vcpu_fd).unwrap();
        ring.drain(|write| panic!("{write:?}"));
        drop(ring);
        (fd, vm, vcpu)
    });
}

#[test]
fn dropping() {
    run("dropping", || {
        let fd = vm_fd();
        let vm = open(&fd);
        map_deferrable(&vm);
        only(&[APPLY, DROP]);
        drop(vm);
        fd
    });
}

/// A jail: no `/dev`, no `/proc`, no privileges, and all of the lists.
#[test]
fn in_a_jail() {
    run("in_a_jail", || {
        let fd = vm_fd();
        make_manual(&fd);
        let events = has_irqchip(&fd).then(|| [eventfd(), eventfd()]);
        let dir = std::env::temp_dir().join(format!("memslots-jail-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let path = std::ffi::CString::new(dir.to_str().unwrap()).unwrap();
        // SAFETY: the path is a string.
        let jailed = unsafe { libc::chroot(path.as_ptr()) } == 0;
        let error = std::io::Error::last_os_error();
        if !jailed {
            let _ = std::fs::remove_dir(&dir);
            end(SKIP, &format!("chroot: {error}"));
        }
        std::env::set_current_dir("/").unwrap();
        // SAFETY: takes numbers only.
        let dropped = unsafe { libc::setgid(65534) == 0 && libc::setuid(65534) == 0 };
        assert!(dropped && !std::path::Path::new("/proc").exists());
        only(&[OPEN, ORDER_CHECK, APPLY, DIRTY_LOG, SERVE, DROP]);
        let vm = open(&fd);
        let id = change(&vm, events);
        read_logs(&vm, id);
        map_deferrable(&vm);
        let _ = vm.deferred(0).unwrap().read(0x1000_0000, &mut [0; 4], |_, _| {});
        vm.close().unwrap();
        drop(vm);
        fd
    });
    let left = std::fs::read_dir(std::env::temp_dir()).unwrap().filter_map(Result::ok);
    let left =
        left.filter(|entry| entry.file_name().to_string_lossy().starts_with("memslots-jail-"));
    left.for_each(|entry| _ = std::fs::remove_dir(entry.path()));
}
