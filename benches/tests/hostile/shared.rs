//! Memory that is many regions', or goes while others look at it.

use std::sync::atomic::{AtomicBool, Ordering};

use kvm_memslots::{Changes, ErrorKind, RegionSpec, at};
use kvm_memslots_kit::guest::{Access, Outcome};
use kvm_memslots_kit::host::SMALL_PAGE;

use crate::common::Stops;
use crate::{GPA, Owned, Rig, borrowed, gpa, ram};

/// Each page of it at a thousand guest addresses: all are the same memory, lookups find
/// one that is there, and each has a log of its own.
#[test]
fn thousands_of_regions_of_the_same_memory() {
    let test = "thousands_of_regions_of_the_same_memory";
    let Some(mut rig) = Rig::new(test) else { return };
    let (memory, regions) = (Owned::numbered(1, 1), 2_000_u64);
    let mut c = Changes::new();
    let page = |n: u64| ram(2 * n, 1, borrowed(&memory, 1)).alone();
    let ids: Vec<_> = (0..regions)
        .map(|n| c.map(if n % 2 == 0 { page(n).log_dirty() } else { page(n) }))
        .collect();
    rig.vm.apply(c).unwrap();
    let hva = memory.0.hva();
    assert!(ids.contains(&rig.vm.region_at_hva(0, hva + 9).unwrap().0.id));
    assert_eq!(rig.probe(Access::Write(gpa(20), 77)).unwrap(), Outcome::Written);
    for n in [0, 1, regions / 2, regions - 1] {
        assert_eq!(rig.read(2 * n), Outcome::Value(77));
    }
    let mut dirty = Vec::new();
    rig.vm.for_each_dirty_log(|id, pages| dirty.extend(pages.iter().map(|_| id))).unwrap();
    // KVM may report what was read as written; what was not touched it may not.
    let touched = [0, 10, regions / 2].map(|n| ids[n as usize]);
    assert!(dirty.contains(&ids[10]) && dirty.iter().all(|id| touched.contains(id)), "{dirty:?}");
    // Half of them go: those of the first half, and what is found is one of the rest.
    let mut c = Changes::new();
    ids[..ids.len() / 2].iter().for_each(|id| c.unmap(*id));
    let report = rig.vm.apply(c).unwrap();
    assert_eq!(report.last_dirty.len(), ids.len() / 4);
    let found = rig.vm.region_at_hva(0, hva).unwrap().0.id;
    assert!(ids[ids.len() / 2..].contains(&found));
    assert_eq!((rig.read(0), rig.read(2 * regions - 2)), (Outcome::Mmio, Outcome::Value(77)));
    rig.vm.close().unwrap();
    assert!(rig.vm.region_at_hva(0, hva).is_none());
    assert_eq!(rig.read(2 * regions - 2), Outcome::Mmio);
}

/// Two threads read logs of what a third unmaps, whose host memory goes with it, and a
/// guest writes there all the while.
#[test]
fn logs_are_read_of_memory_that_goes() {
    let test = "logs_are_read_of_memory_that_goes";
    let Some(rig) = Rig::new(test) else { return };
    let Rig { mut prober, vm, fd } = rig;
    let memory = Owned::numbered(4, 1);
    let mut c = Changes::new();
    let stays = c.map(ram(0, 4, memory.backing()).log_dirty());
    let mut comes = c.map(ram(8, 4, Owned::numbered(4, 1).backing()).log_dirty());
    vm.apply(c).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (vm, stop) = (&vm, &stop);
        let stops = Stops(stop);
        for reader in 0..2 {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for region in vm.regions() {
                        let read = match reader {
                            0 => vm.dirty_log(region.id).map(drop),
                            _ => vm.dirty_log_of(region.id, 0..1).map(drop),
                        };
                        let gone = |error: &kvm_memslots::Error| {
                            matches!(error.kind(), ErrorKind::UnknownRegion(id) if *id == region.id)
                        };
                        assert!(read.is_ok() || read.as_ref().is_err_and(gone), "{read:?}");
                        assert!(region.id != stays || read.is_ok(), "{read:?}");
                    }
                }
            });
        }
        let guest = scope.spawn(move || {
            let accesses = [Access::Write(gpa(8) + 8, 5), Access::Write(gpa(1) + 8, 5)];
            while !stop.load(Ordering::Relaxed) {
                let found = prober.probe(&accesses).unwrap();
                assert!([Outcome::Written, Outcome::Mmio].contains(&found[0]), "{found:?}");
                assert_eq!(found[1], Outcome::Written);
            }
            prober
        });
        for round in 0..300 {
            let mut c = Changes::new();
            c.unmap(comes);
            if round % 2 == 0 {
                vm.apply(std::mem::take(&mut c)).unwrap();
            }
            comes = c.map(ram(8, 4, Owned::numbered(4, round).backing()).log_dirty());
            vm.apply(c).unwrap();
        }
        drop(stops);
        let mut prober = guest.join().unwrap();
        assert_eq!(prober.probe(&[Access::Read(gpa(8))]).unwrap(), [Outcome::Value(299)]);
    });
    vm.close().unwrap();
    drop(fd);
}

/// A child has everything of its parent's, and drops all of it: the guest, which is the
/// parent's, finds all of it still.
#[test]
fn a_child_drops_what_its_parent_s_guest_has() {
    let test = "a_child_drops_what_its_parent_s_guest_has";
    let Some(rig) = Rig::new(test) else { return };
    let Rig { mut prober, vm, fd } = rig;
    let (memory, event) =
        (Owned::numbered(4, 1), vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let window = kvm_memslots::window::WindowSpec::new(at(2 * GPA, 4 * SMALL_PAGE));
    let window = kvm_memslots::window::Window::new(window).unwrap();
    window.place(0, SMALL_PAGE, kvm_memslots::window::Contents::anonymous()).unwrap();
    let bell = kvm_memslots::device::Doorbell::at(kvm_memslots::device::Bus::Mmio, 3 * GPA).len(4);
    let mut c = Changes::new();
    c.map(ram(0, 4, memory.backing()).log_dirty());
    c.map(window.region());
    let device =
        kvm_memslots::device::Device::new("bell").ioeventfd(bell, event.try_clone().unwrap());
    c.attach(device.region(
        kvm_memslots::RegionId::new(),
        RegionSpec::device(at(4 * GPA, SMALL_PAGE), Owned::numbered(1, 9).backing()),
    ));
    vm.apply(c).unwrap();
    drop(memory);
    // SAFETY: the child drops, and ends; the C library keeps its own locks whole.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: takes a number. A child that hangs is ended.
        unsafe { libc::alarm(120) };
        let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let closed = vm.close().is_ok();
            drop(vm);
            drop(window);
            closed
        }));
        // SAFETY: nothing of the parent's runs in the child any more.
        unsafe { libc::_exit(i32::from(!matches!(dropped, Ok(false)))) };
    }
    let mut status = -1;
    // SAFETY: waits for that child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    let reads = [gpa(0), gpa(3), 2 * GPA, 4 * GPA].map(Access::Read);
    let values = [1, 4, 0, 9].map(Outcome::Value);
    assert_eq!(prober.probe(&reads).unwrap(), values);
    prober.drive(&[Access::Store(3 * GPA, 4, 1)], |exit| panic!("{exit:?}")).unwrap();
    assert_eq!(event.read().unwrap(), 1);
    vm.close().unwrap();
    assert_eq!(prober.probe(&reads).unwrap(), [Outcome::Mmio; 4]);
    drop((vm, window, fd));
}
