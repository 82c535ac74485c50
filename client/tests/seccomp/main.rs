//! What `kvm_memslots::seccomp` says is all that is called: each operation runs
//! behind a filter that lets nothing else through, in a process of its own.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)]

#[path = "../common/host.rs"]
mod host;
mod jail;
mod machine;
mod opening;
mod page;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use host::{eventfd, memfd};
use jail::{SKIP, STOPPED, end, in_child, only, run};
use kvm_memslots::deferred::Deferred;
use kvm_memslots::device::{Bus, Coalesced, Device, Doorbell, Msi};
use kvm_memslots::pci::{BarSpec, FunctionSpec, PciBars};
use kvm_memslots::seccomp::{
    APPLY, DIRTY_LOG, DROP, OPEN, ORDER_CHECK, RING, SERVE, TWINS, WINDOW,
};
use kvm_memslots::window::{CheckedFile, Contents, Edit, Window, WindowPart, WindowSpec};
use kvm_memslots::{Changes, ErrorKind, RegionId, RegionSpec, Vm, at, twins};
use machine::{PAGE, has_irqchip, make_manual, open, pages, vm_fd};

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
fn finding_twins() {
    run("finding_twins", || {
        let (one, other) = (eventfd(), eventfd());
        let copy = one.try_clone().unwrap();
        let net = [one, other, copy].into_iter();
        let net = net.fold(Device::new("net"), |device, event| device.vector(event, None));
        only(&[TWINS]);
        match twins::find([&net]) {
            Ok(found) => assert!(found.unwrap().to_string().starts_with("vector 2")),
            Err(errno) => end(SKIP, &format!("kcmp: {errno}")),
        }
        net
    });
}

/// Lookups, and the building of changes, take no list.
#[test]
fn looking_up() {
    run("looking_up", || {
        let fd = vm_fd();
        let vm = open(&fd);
        let id = change(&vm, None);
        let backing = pages(1, true);
        only(&[]);
        let mut c = Changes::new();
        c.map(RegionSpec::ram(at(1 << 30, PAGE), backing).tag(7));
        c.unmap(id);
        let region = vm.region_at(0, 0).unwrap();
        assert_eq!((region.id, vm.slots(0).len() as u32), (id, vm.slot_usage(0).unwrap().used));
        assert!(vm.tagged(7).is_empty());
        (fd, vm, c)
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
        let mut c = Changes::new();
        c.map(RegionSpec::ram(at(0, PAGE), pages(1, true)));
        assert_eq!(vm.preview(&c).unwrap().ioctls, 1);
        change(&vm, events);
        map_deferrable(&vm);
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
        let file = Arc::new(memfd(0, 16 * PAGE));
        only(&[WINDOW, APPLY]);
        let span = at(0x1_0000_0000, 16 * PAGE);
        let window = Window::new(WindowSpec::new(span).huge_pages()).unwrap();
        let mut c = Changes::new();
        c.map(window.region());
        vm.apply(c).unwrap();
        let mut bars = PciBars::new(40).in_window(window.clone());
        let backing = pages(4, true).with_file(Arc::clone(&file), 0);
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

/// Devices whose memory comes, moves and goes in a window, and one that can't.
#[test]
fn attaching_in_a_window() {
    run("attaching_in_a_window", || {
        let fd = vm_fd();
        let vm = open(&fd);
        // Shared memory is placed directly, other files by way of elsewhere.
        let files = [memfd(0, 16 * PAGE), File::open("/proc/self/exe").unwrap()];
        only(&[WINDOW, APPLY]);
        let files = files.map(|file| CheckedFile::new(file).unwrap());
        let span = at(0x1_0000_0000, 16 * PAGE);
        let window = Window::new(WindowSpec::new(span).huge_pages()).unwrap();
        let part = |page, from: usize, offset| {
            WindowPart::new(&window, page * PAGE, 2 * PAGE, &files[from], offset)
        };
        let ids = [RegionId::new(), RegionId::new()];
        let mut c = Changes::new();
        c.map(window.region());
        let device = Device::new("gpu").in_window(ids[0], part(0, 0, PAGE));
        let device = c.attach(device.in_window(ids[1], part(4, 1, 0).read_only()));
        vm.apply(c).unwrap();
        let mut c = Changes::new();
        c.move_in_window(ids[0], 4 * PAGE);
        c.move_in_window(ids[1], 0);
        vm.apply(c).unwrap();
        let placed = window.placed();
        let mut c = Changes::new();
        c.detach(device);
        // An offset that no file has.
        let bad = part(8, 0, 1 << 63);
        c.attach(Device::new("bad").in_window(RegionId::new(), bad));
        let error = vm.apply(c).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Window(_)), "{error}");
        assert_eq!((placed.len(), window.placed()), (2, placed));
        vm.close().unwrap();
        assert!(window.placed().is_empty());
        drop((window, files));
        (fd, vm)
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
