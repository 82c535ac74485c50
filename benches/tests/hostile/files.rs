//! Files that are in windows.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::kvm_create_guest_memfd;
use kvm_memslots::window::{CheckedFile, Contents, Edit, Found, Gap};
use kvm_memslots::{Changes, Errno};
use kvm_memslots_kit::guest::{Access, GuestError, Outcome};
use kvm_memslots_kit::host::SMALL_PAGE;
use nix::errno::Errno as HostErrno;

use crate::common::windowed::{self, PAGES};
use crate::common::{Stops, skip, vm_or_skip};

/// Somebody truncates and grows it, again and again, while the guest reads and writes,
/// pages are placed and removed, and the log is read: the guest's access fails, nothing
/// of the VMM's does (`SIGBUS` would end it).
#[test]
fn a_file_is_truncated_under_a_guest_that_runs() {
    let test = "a_file_is_truncated_under_a_guest_that_runs";
    let Some(rig) = windowed::Rig::new(test, Gap::Fault) else { return };
    let windowed::Rig { mut prober, vm, region, window, file, fd } = rig;
    let mut c = Changes::new();
    c.set_log_dirty(region, true);
    vm.apply(c).unwrap();
    let size = PAGES * SMALL_PAGE;
    window.place(0, size, Contents::file(&file, 0)).unwrap();
    let stop = AtomicBool::new(false);
    let (failed, worked) = std::thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| {
            for round in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                file.set_len(round % 3 * SMALL_PAGE).unwrap();
                file.set_len(size).unwrap();
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let mut edit = Edit::new();
                edit.remove(4 * SMALL_PAGE, 2 * SMALL_PAGE);
                edit.place(4 * SMALL_PAGE, 2 * SMALL_PAGE, Contents::file(&file, 0));
                window.apply(&edit).unwrap();
                vm.dirty_log(region).unwrap();
            }
        });
        let (mut failed, mut worked) = (0, 0);
        for round in 0..400 {
            let gpa = windowed::gpa(round % PAGES) + 8;
            let access = if round % 5 == 0 { Access::Write(gpa, 1) } else { Access::Read(gpa) };
            // One that failed is what the vCPU goes on with.
            while let Err(error) = prober.probe(&[access]).map(|found| {
                assert_ne!(found, [Outcome::Mmio], "the slot is there all the time");
            }) {
                let is_fault = matches!(error, GuestError::Kvm { errno: HostErrno::EFAULT, .. });
                assert!(is_fault, "{error}");
                failed += 1;
                assert!(failed < 5_000_000, "{error}");
            }
            worked += 1;
        }
        (failed, worked)
    });
    println!("{failed} accesses failed, {worked} worked");
    // Once the file is there again, all of it works.
    file.set_len(size).unwrap();
    file.write_all_at(&7_u64.to_ne_bytes(), 9 * SMALL_PAGE).unwrap();
    let read = Access::Read(windowed::gpa(9));
    assert_eq!(prober.probe(&[read]).unwrap(), [Outcome::Value(7)]);
    // And once it has none at all, none does.
    file.set_len(0).unwrap();
    let late = prober.probe(&[read]).unwrap_err();
    assert!(matches!(late, GuestError::Kvm { errno: HostErrno::EFAULT, .. }), "{late}");
    assert!(matches!(window.found(&vm, 0, windowed::gpa(9)), Some(Found::Placed(_))));
    window.remove(0, size).unwrap();
    vm.close().unwrap();
    drop(fd);
}

/// Private memory is no file that could be mapped: nothing changes.
#[test]
fn a_guest_memfd_is_no_contents_of_a_window() {
    let test = "a_guest_memfd_is_no_contents_of_a_window";
    let Some(vm) = vm_or_skip(test) else { return };
    let size = PAGES * SMALL_PAGE;
    let fd = match vm.create_guest_memfd(kvm_create_guest_memfd { size, ..Default::default() }) {
        Ok(fd) => fd,
        Err(error) => return skip(test, format_args!("no guest_memfd: {error}")),
    };
    // SAFETY: the descriptor is new, and nobody else's.
    let private = unsafe { OwnedFd::from_raw_fd(fd) };
    let Some(mut rig) = windowed::Rig::new(test, Gap::Zeroes) else { return };
    rig.window.place(SMALL_PAGE, SMALL_PAGE, Contents::file(&rig.file, 0)).unwrap();
    let before = rig.window.placed();
    let checked = CheckedFile::new(private.try_clone().unwrap()).unwrap();
    // SAFETY: nothing comes of it.
    let device = unsafe { Contents::device(&private, 0) };
    for contents in [Contents::file(&private, 0), Contents::checked(&checked, 0), device] {
        let error = rig.window.place(2 * SMALL_PAGE, SMALL_PAGE, contents).unwrap_err();
        assert_eq!(error.errno(), Errno::ENODEV, "{error}");
        let mut edit = Edit::new();
        edit.remove(SMALL_PAGE, SMALL_PAGE);
        edit.place(SMALL_PAGE, SMALL_PAGE, contents);
        rig.window.apply(&edit).unwrap_err();
        assert_eq!(rig.window.placed(), before);
    }
    let read = [Access::Read(windowed::gpa(1)), Access::Read(windowed::gpa(2))];
    assert_eq!(rig.prober.probe(&read).unwrap(), [Outcome::Value(1), Outcome::Value(0)]);
}
