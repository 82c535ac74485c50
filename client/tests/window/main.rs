//! Windows against a list of pages; input that is refused; threads; forks.
//! Nothing of it needs KVM.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod huge;
mod rig;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::with_exposed_provenance;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use common::host::{Peek, numbered, numbered_with, page_size};
use common::{map_all, vm};
use kvm_memslots::window::{
    CheckedFile, Contents, Edit, Found, Gap, Window, WindowErrorKind, WindowSpec,
};
use kvm_memslots::{Errno, Limits, at};
use proptest::prelude::*;
use rig::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_window_is_what_a_list_of_pages_is(
        sets in prop::collection::vec(prop::collection::vec(step(), 1..6), 1..20),
        zeroes in any::<bool>(),
        sealable in any::<bool>(),
        checked in any::<bool>(),
    ) {
        let flags = if sealable { libc::MFD_ALLOW_SEALING } else { 0 };
        let file = numbered_with(flags, 2 * PAGES as u8);
        let again = CheckedFile::new(file.try_clone().unwrap()).unwrap();
        let (peek, page_size) = (Peek::new(), page_size());
        let gap = if zeroes { Gap::Zeroes } else { Gap::Fault };
        let window = window(gap);
        let mut pages: Vec<Page> = vec![None; PAGES as usize];
        for set in sets {
            let mut edit = Edit::new();
            for step in &set {
                let bytes = |page: u64, pages: u64| (page * page_size, pages * page_size);
                match *step {
                    Step::File { page, pages, from, read_only } => {
                        let (offset, len) = bytes(page, pages);
                        let from = from * page_size;
                        let contents = if checked {
                            Contents::checked(&again, from)
                        } else {
                            Contents::file(&file, from)
                        };
                        let contents = if read_only { contents.read_only() } else { contents };
                        edit.place(offset, len, contents);
                    }
                    Step::Anonymous { page, pages } => {
                        let (offset, len) = bytes(page, pages);
                        edit.place(offset, len, Contents::anonymous());
                    }
                    Step::Remove { page, pages } => {
                        let (offset, len) = bytes(page, pages);
                        edit.remove(offset, len);
                    }
                }
            }
            match (window.apply(&edit), make(&pages, &set)) {
                (Ok(()), Ok(after)) => pages = after,
                (Err(error), Err((index, refusal))) => {
                    prop_assert_eq!(error.edit(), Some(index), "{}", error);
                    prop_assert_eq!(Refusal::of(&error), Some(refusal), "{}", error);
                }
                (got, wanted) => prop_assert!(false, "{:?}, not {:?}", got, wanted),
            }
            let empty = zeroes.then_some(0);
            let expected: Vec<_> = pages.iter().map(|p| p.map_or(empty, |(b, _)| Some(b))).collect();
            prop_assert_eq!(peek.pages(&window), expected);
            for (n, page) in (0..).zip(&pages) {
                let found = window.at(n * page_size + 5).map(|placement| placement.access);
                prop_assert_eq!(found, page.map(|(_, access)| access));
            }
            let placed = window.placed();
            prop_assert!(placed.windows(2).all(|two| two[0].offset + two[0].len <= two[1].offset));
            let len: u64 = placed.iter().map(|placement| placement.len).sum();
            prop_assert_eq!(len, pages.iter().flatten().count() as u64 * page_size);
        }
    }
}

#[test]
fn bad_input_is_refused_and_changes_nothing() {
    let (page, file, peek) = (page_size(), numbered(4), Peek::new());
    let window = window(Gap::Fault);
    window.place(4 * page, 2 * page, Contents::file(&file, 0)).unwrap();
    let before = (window.placed(), peek.pages(&window));
    let read_only = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let folder = File::open("/").unwrap();
    // SAFETY: takes numbers.
    let eventfd = unsafe { libc::eventfd(0, 0) };
    // SAFETY: a new descriptor.
    let eventfd = unsafe { OwnedFd::from_raw_fd(eventfd) };
    let here = Contents::file(&file, 0);
    // SAFETY: the kernel refuses it.
    let device = unsafe { Contents::device(&eventfd, 0) };
    // SAFETY: nothing is there.
    let nowhere = unsafe { Contents::mapping(page) };
    let cases = [
        (0, 0, here, Errno::EINVAL, "0x0 bytes"),
        (1, page, here, Errno::EINVAL, "whole pages"),
        (0, page + 1, here, Errno::EINVAL, "whole pages"),
        (PAGES * page, page, here, Errno::EINVAL, "whole pages"),
        (0, (PAGES + 1) * page, here, Errno::EINVAL, "whole pages"),
        (u64::MAX / page * page, page, here, Errno::EINVAL, "whole pages"),
        (5 * page, page, here, Errno::EEXIST, "at offset 0x"),
        (3 * page, 2 * page, here, Errno::EEXIST, "remove that in the same set"),
        (0, page, Contents::file(&file, 1), Errno::EINVAL, "multiple of the page size"),
        (0, page, Contents::file(&file, u64::MAX - page + 1), Errno::EOVERFLOW, "mmap"),
        (0, page, Contents::file(&read_only, 0), Errno::EACCES, "open for reading"),
        (0, page, Contents::file(&folder, 0), Errno::ENODEV, "not a file's"),
        (0, page, Contents::file(&eventfd, 0), Errno::ENODEV, "Contents::device"),
        (0, page, device, Errno::ENODEV, "can't be mapped"),
        (0, page, nowhere, Errno::EFAULT, "not at these addresses"),
    ];
    for (offset, len, contents, errno, text) in cases {
        let error = window.place(offset, len, contents).unwrap_err();
        assert_eq!(error.errno(), errno, "{error}");
        assert!(error.to_string().contains(text), "{text:?} is not in {error}");
        assert_eq!((window.placed(), peek.pages(&window)), before, "{error}");
    }
    for (offset, len, errno) in
        [(0, page, Errno::ENOENT), (5 * page, 2 * page, Errno::ENOENT), (1, page, Errno::EINVAL)]
    {
        let error = window.remove(offset, len).unwrap_err();
        assert_eq!((error.errno(), error.edit()), (errno, Some(0)), "{error}");
    }
    assert_eq!((window.placed(), peek.pages(&window)), before);
    window.place(0, page, Contents::file(&read_only, 0).read_only()).unwrap();
    let refused = CheckedFile::new(folder).unwrap_err();
    assert_eq!(refused, WindowErrorKind::NoFile);
    for size in [0, 1, page + 1] {
        let error = Window::new(WindowSpec::new(at(GPA, size))).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "{error}");
    }
    Window::new(WindowSpec::new(at(GPA + 1, page))).unwrap_err();
    Window::new(WindowSpec::new(at(page, u64::MAX - page + 1))).unwrap_err();
    let error = Window::new(WindowSpec::new(at(0, 1 << 62))).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOMEM, "{error}");
}

#[test]
fn a_sealed_file_can_only_be_placed_read_only() {
    let (page, file) = (page_size(), numbered_with(libc::MFD_ALLOW_SEALING, 4));
    // Looked at before it is sealed.
    let checked = CheckedFile::new(file.try_clone().unwrap()).unwrap();
    // SAFETY: takes numbers.
    let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
    assert_eq!(sealed, 0);
    let window = window(Gap::Fault);
    for contents in [Contents::file(&file, 0), Contents::checked(&checked, 0)] {
        let error = window.place(0, page, contents).unwrap_err();
        assert_eq!(error.errno(), Errno::EPERM, "{error}");
        assert!(error.to_string().contains("sealed"), "{error}");
        assert!(window.placed().is_empty());
        window.place(0, page, contents.read_only()).unwrap();
        window.remove(0, page).unwrap();
    }
}

#[test]
fn a_file_may_be_shorter_and_its_descriptor_closed() {
    let (page, file, peek) = (page_size(), numbered(1), Peek::new());
    let window = window(Gap::Fault);
    window.place(0, 2 * page, Contents::file(&file, 0)).unwrap();
    assert_eq!(peek.pages(&window)[..3], [Some(1), None, None]);
    file.set_len(2 * page).unwrap();
    drop(file);
    assert_eq!(peek.pages(&window)[..3], [Some(1), Some(0), None]);
}

#[test]
fn a_region_of_a_window_is_found_by_its_guest_address() {
    let (vm, _) = vm(Limits::x86().with_page_size(page_size()));
    let (page, file) = (page_size(), numbered(4));
    let window = window(Gap::Fault);
    let [region] = map_all(&vm, [window.region()]);
    window.place(page, page, Contents::file(&file, page)).unwrap();
    assert_eq!(window.found(&vm, 0, GPA + 1), Some(Found::Gap { offset: 1 }));
    let placed = Some(Found::Placed(window.placed()[0]));
    assert_eq!(window.found(&vm, 0, GPA + page), placed);
    assert_eq!(window.found(&vm, 0, GPA - 1), None);
    // Wherever it is.
    let mut c = kvm_memslots::Changes::new();
    c.move_to(region, 4 * GPA);
    vm.apply(c).unwrap();
    assert_eq!(window.found(&vm, 0, GPA + page), None);
    assert_eq!(window.found(&vm, 0, 4 * GPA + page), placed);
    // A part of it that has a slot of its own, as it is logged.
    let mut c = kvm_memslots::Changes::new();
    let part = c.split(region, page);
    c.set_log_dirty(part, true);
    vm.apply(c).unwrap();
    assert_eq!(vm.slots(0).len(), 2);
    assert_eq!(window.found(&vm, 0, 4 * GPA + page), placed);
    assert_eq!(window.found(&vm, 0, 4 * GPA), Some(Found::Gap { offset: 0 }));
    // Another one's is not this one's.
    let other = Window::new(WindowSpec::new(at(0, page))).unwrap();
    assert_eq!(other.found(&vm, 0, 4 * GPA + page), None);
}

/// The guest's huge pages can be the host's wherever a window is as large as one.
#[test]
fn host_addresses_are_the_guests_modulo_what_is_huge() {
    let (large, page) = (2 << 20, page_size());
    for size in [page, 3 * page, large - page, large, 2 * large + page, 1 << 30] {
        for gpa in [0, page, 7 * large, 7 * large + 3 * page, (5 << 30) + large] {
            let window = Window::new(WindowSpec::new(at(gpa, size))).unwrap();
            let align = (1_u64 << size.ilog2()).min(1 << 30);
            assert_eq!(window.backing().hva() % align, gpa % align, "{size:#x} at {gpa:#x}");
        }
    }
}

#[test]
fn huge_pages_are_asked_for_where_something_is_placed() {
    let test = "huge_pages_are_asked_for_where_something_is_placed";
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let has_thp = std::fs::exists("/sys/kernel/mm/transparent_hugepage").unwrap_or(false);
    if !smaps.contains("VmFlags:") || !has_thp {
        // Written directly: the test harness would swallow what `eprintln!` says.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no transparent huge pages");
        return;
    }
    let (large, file) = (2 << 20, numbered(1));
    for asks in [false, true] {
        let spec = WindowSpec::new(at(GPA, 4 * large));
        let window = Window::new(if asks { spec.huge_pages() } else { spec }).unwrap();
        window.place(0, large, Contents::anonymous()).unwrap();
        window.place(2 * large, large, Contents::file(&file, 0)).unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let flags = |hva: u64| {
            let mut lines = smaps.lines().skip_while(|line| !holds(line, hva));
            let flags = lines.find_map(|line| line.strip_prefix("VmFlags:"));
            flags.unwrap().split_whitespace().any(|flag| flag == "hg")
        };
        let base = window.backing().hva();
        assert_eq!([base, base + 2 * large].map(flags), [asks; 2]);
    }
}

/// Whether a line of `smaps` begins the mapping of an address.
fn holds(line: &str, hva: u64) -> bool {
    let range = line.split(' ').next().and_then(|range| range.split_once('-'));
    let hex = |number| u64::from_str_radix(number, 16).ok();
    let range = range.and_then(|(start, end)| Some(hex(start)?..hex(end)?));
    range.is_some_and(|range| range.contains(&hva))
}

#[test]
fn the_memory_lives_as_long_as_a_region_has_it() {
    let (vm, model) = vm(Limits::x86().with_page_size(page_size()));
    let (page, file, peek) = (page_size(), numbered(4), Peek::new());
    let window = window(Gap::Fault);
    map_all(&vm, [window.region()]);
    window.place(0, page, Contents::file(&file, 0)).unwrap();
    let again = window.clone();
    drop(window);
    assert_eq!(peek.pages(&again)[0], Some(1));
    let hva = again.backing().hva();
    drop(again);
    let mapped = || {
        let at = with_exposed_provenance::<u8>(hva as usize).cast_mut();
        // SAFETY: changes nothing; fails where nothing is mapped.
        unsafe { libc::madvise(at.cast(), page as usize, libc::MADV_NORMAL) == 0 }
    };
    assert!(mapped(), "the region has it");
    vm.close().unwrap();
    assert_eq!(model.slot_count(0), 0);
    // Somebody else's thread may have been given the addresses by now; that it was
    // let go can be seen by its owner's count elsewhere (`owned`).
}

/// Whoever is told that it placed something is the only one; what is there in the
/// end is what was placed last.
#[test]
fn threads_that_want_the_same_place() {
    let (page, file, peek) = (page_size(), numbered(8), Peek::new());
    let window = window(Gap::Fault);
    let holders = AtomicI64::new(0);
    let wins = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (window, file, holders, wins) = (&window, &file, &holders, &wins);
            scope.spawn(move || {
                for round in 0..500 {
                    let offset = (1 + round % 3) * page;
                    let contents = Contents::file(file, thread * page);
                    // Others can't have any of it meanwhile.
                    match window.place(0, 5 * page, contents) {
                        Ok(()) => {
                            assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                            wins.fetch_add(1, Ordering::Relaxed);
                            window.place(offset, page, contents).unwrap_err();
                            let mut edit = Edit::new();
                            edit.remove(0, 5 * page);
                            edit.place(offset, page, Contents::anonymous());
                            window.apply(&edit).unwrap();
                            assert_eq!(holders.fetch_sub(1, Ordering::SeqCst), 1);
                            window.remove(offset, page).unwrap();
                        }
                        Err(error) => assert_eq!(error.errno(), Errno::EEXIST, "{error}"),
                    }
                }
            });
        }
        // Each in a place of its own beside that.
        for thread in 0..4 {
            let (window, file) = (&window, &file);
            scope.spawn(move || {
                let offset = (8 + thread) * page;
                for _ in 0..500 {
                    window.place(offset, page, Contents::file(file, thread * page)).unwrap();
                    assert_eq!(window.at(offset).unwrap().file_offset, Some(thread * page));
                    window.remove(offset, page).unwrap();
                }
                window.place(offset, page, Contents::file(file, thread * page)).unwrap();
            });
        }
    });
    assert!(wins.into_inner() > 0);
    let mut expected = vec![None; PAGES as usize];
    expected[8..12].copy_from_slice(&[Some(1), Some(2), Some(3), Some(4)]);
    assert_eq!(peek.pages(&window), expected);
}

/// A forked process can't change the window, and nothing that it does reaches the
/// parent's.
#[test]
fn a_fork_is_told_so() {
    let (page, file) = (page_size(), numbered(4));
    let window = window(Gap::Fault);
    window.place(0, page, Contents::file(&file, 0)).unwrap();
    // SAFETY: the child calls what takes no lock that another thread may hold, and
    // allocates an error at most, with a C library that keeps its own locks whole.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let refused = window.place(page, page, Contents::file(&file, 0));
            let forked = refused.is_err_and(|error| *error.kind() == WindowErrorKind::Forked);
            let nothing = window.placed().is_empty() && window.at(0).is_none();
            drop(window);
            forked && nothing
        }));
        // SAFETY: ends the child without what is the parent's to do.
        unsafe { libc::_exit(i32::from(!done.unwrap_or(false))) };
    }
    assert!(child > 0);
    let mut status = -1;
    // SAFETY: waits for that child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(Peek::new().pages(&window)[0], Some(1));
    file.write_all_at(&[9], 0).unwrap();
    assert_eq!(Peek::new().pages(&window)[0], Some(9));
    window.remove(0, page).unwrap();
}
