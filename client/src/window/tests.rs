//! What is left when calls fail.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::ptr::with_exposed_provenance;

use super::host::faults::{self, Fate};
use super::*;
use crate::at;

/// A window of 16 pages, and a file whose pages are filled with 1, 2, ...
struct Rig {
    window: Window,
    file: File,
    pipe: (UnixStream, UnixStream),
    page: u64,
}

impl Rig {
    fn new() -> Self {
        let page = host::page_size();
        // SAFETY: takes a name.
        let fd = unsafe { libc::memfd_create(c"window".as_ptr(), 0) };
        // SAFETY: a new descriptor.
        let mut file = unsafe { File::from_raw_fd(fd) };
        for n in 1..=16 {
            file.write_all(&vec![n; page as usize]).unwrap();
        }
        let window = Window::new(WindowSpec::new(at(0, 16 * page))).unwrap();
        Self { window, file, pipe: UnixStream::pair().unwrap(), page }
    }

    fn file(&self, page: u64) -> Contents<'_> {
        Contents::file(&self.file, page * self.page)
    }

    fn place(&self, page: u64, pages: u64, contents: Contents<'_>) -> Result<(), WindowError> {
        self.window.place(page * self.page, pages * self.page, contents)
    }

    fn remove(&self, page: u64, pages: u64) -> Result<(), WindowError> {
        self.window.remove(page * self.page, pages * self.page)
    }

    /// What is at the start of each page, if it can be read. (The kernel reads
    /// it, which a page that is not there does no harm.)
    fn look(&self) -> Vec<Option<u8>> {
        let base = self.window.inner.host.base();
        let peek = |page| {
            let from = with_exposed_provenance::<u8>((base + page * self.page) as usize);
            // SAFETY: the kernel reads a byte, wherever it is.
            let put = unsafe { libc::write(self.pipe.1.as_raw_fd(), from.cast(), 1) };
            let mut byte = [0];
            (put == 1).then(|| (&self.pipe.0).read_exact(&mut byte).unwrap()).map(|()| byte[0])
        };
        (0..16).map(peek).collect()
    }

    /// Whether all pages are mapped.
    fn is_whole(&self) -> bool {
        let base = with_exposed_provenance::<u8>(self.window.inner.host.base() as usize);
        let mut residency = [0_u8; 16];
        // SAFETY: the kernel writes as many bytes as there are pages.
        let known = unsafe {
            libc::mincore(
                base.cast_mut().cast(),
                16 * self.page as usize,
                residency.as_mut_ptr().cast(),
            )
        };
        known == 0 && faults::holes() == 0
    }

    /// What lookups say is what there is.
    fn assert_true(&self) {
        assert!(self.is_whole());
        for (page, found) in (0..).zip(self.look()) {
            let placement = self.window.at(page * self.page);
            let expected = placement.map(|p| match p.file_offset {
                Some(file) => (file / self.page + page - p.offset / self.page + 1) as u8,
                None => 0,
            });
            assert_eq!(found, expected, "page {page}");
        }
    }
}

/// Pages 1 to 4 of the file, 2 that are anonymous, and 1 alone.
fn filled() -> Rig {
    let rig = Rig::new();
    rig.place(1, 4, rig.file(0)).unwrap();
    rig.place(6, 2, Contents::anonymous()).unwrap();
    rig.place(10, 1, rig.file(9)).unwrap();
    rig.assert_true();
    rig
}

/// Removes parts of two and all of another one, replaces some of that, and places
/// where nothing was.
fn edit(rig: &Rig) -> Edit<'_> {
    let mut edit = Edit::new();
    for (page, pages) in [(2, 2), (6, 2), (10, 1)] {
        edit.remove(page * rig.page, pages * rig.page);
    }
    edit.place(3 * rig.page, rig.page, rig.file(12));
    edit.place(6 * rig.page, rig.page, Contents::anonymous());
    // SAFETY: a file's bytes, which nobody relies on.
    let elsewhere_first = unsafe { Contents::device(&rig.file, 3 * rig.page) };
    edit.place(12 * rig.page, 2 * rig.page, elsewhere_first.read_only());
    edit
}

#[test]
fn a_set_is_done() {
    let rig = filled();
    rig.window.apply(&edit(&rig)).unwrap();
    rig.assert_true();
    let there: Vec<u64> = rig.window.placed().iter().map(|p| p.offset / rig.page).collect();
    assert_eq!(there, [1, 3, 4, 6, 12]);
}

#[test]
fn a_set_that_fails_anywhere_changes_nothing() {
    for fate in [Fate::Fails, Fate::FailsLate] {
        let mut refused = 0;
        for nth in 0.. {
            let rig = filled();
            let before = (rig.window.placed(), rig.look());
            faults::set(std::iter::repeat_n(Fate::Passes, nth).chain([fate]));
            let applied = rig.window.apply(&edit(&rig));
            let unused = faults::unused();
            rig.assert_true();
            if unused > 0 {
                applied.unwrap();
                break;
            }
            match applied {
                Err(error) => {
                    assert_eq!(error.errno(), kvm_memslots_shim::Errno::ENOMEM, "{error}");
                    assert!(matches!(error.kind(), WindowErrorKind::Refused { .. }), "{error}");
                    assert_eq!((rig.window.placed(), rig.look()), before, "{nth}: {error}");
                    refused += 1;
                }
                // A gap is what was wanted there.
                Ok(()) => assert_eq!(fate, Fate::FailsLate),
            }
            // Nothing is in the way of another try.
            if rig.window.placed() == before.0 {
                rig.window.apply(&edit(&rig)).unwrap();
                rig.assert_true();
            }
        }
        // 3 places, and 3 gaps.
        assert_eq!(refused, if fate == Fate::Fails { 6 } else { 3 });
    }
}

#[test]
fn what_takes_a_place_in_one_call_is_there_or_what_was_is_or_it_is_said() {
    for fate in [Fate::Passes, Fate::Fails, Fate::FailsLate] {
        for file in [true, false] {
            for turned in [false, true] {
                let rig = filled();
                let before = (rig.window.placed(), rig.look());
                let contents = if file { rig.file(12) } else { Contents::anonymous() };
                let mut edit = Edit::new();
                if turned {
                    edit.place(2 * rig.page, 2 * rig.page, contents);
                }
                edit.remove(2 * rig.page, 2 * rig.page);
                if !turned {
                    edit.place(2 * rig.page, 2 * rig.page, contents);
                }
                faults::set([fate]);
                let applied = rig.window.apply(&edit);
                assert_eq!(faults::unused(), 0);
                rig.assert_true();
                let there = rig.window.at(2 * rig.page).map(|p| (p.offset, p.len));
                match fate {
                    Fate::Passes => {
                        applied.unwrap();
                        assert_eq!(there, Some((2 * rig.page, 2 * rig.page)));
                        assert_eq!(rig.look()[2], Some(if file { 13 } else { 0 }));
                    }
                    Fate::Fails => {
                        let error = applied.unwrap_err();
                        assert!(matches!(error.kind(), WindowErrorKind::Refused { .. }));
                        assert_eq!((rig.window.placed(), rig.look()), before, "{error}");
                    }
                    Fate::FailsLate => {
                        let error = applied.unwrap_err();
                        let WindowErrorKind::Stuck { lost, left, .. } = error.kind() else {
                            panic!("{error}")
                        };
                        assert_eq!((lost.len(), lost[0].offset, left.len()), (1, 2 * rig.page, 0));
                        assert_eq!((there, rig.look()[2]), (None, None));
                    }
                }
            }
        }
    }
}

#[test]
fn what_can_not_be_undone_is_said_and_looked_up() {
    let mut stuck = 0;
    for (first, second) in (0..6).flat_map(|n| (0..8).map(move |m| (n, m))) {
        for late in [Fate::Fails, Fate::FailsLate] {
            let rig = filled();
            let before = rig.window.placed();
            let fates = std::iter::repeat_n(Fate::Passes, first).chain([Fate::Fails]);
            faults::set(fates.chain(std::iter::repeat_n(Fate::Passes, second)).chain([late]));
            let error = rig.window.apply(&edit(&rig)).unwrap_err();
            faults::set([]);
            rig.assert_true();
            if let WindowErrorKind::Stuck { lost, left, .. } = error.kind() {
                assert!(!lost.is_empty() || !left.is_empty(), "{error}");
                stuck += 1;
            } else {
                assert_eq!(rig.window.placed(), before);
            }
        }
    }
    assert!(stuck > 20, "{stuck}");
}

#[test]
fn one_place_or_removal_that_fails() {
    for fate in [Fate::Fails, Fate::FailsLate] {
        let rig = filled();
        let before = (rig.window.placed(), rig.look());
        for contents in [rig.file(0), Contents::anonymous()] {
            faults::set([fate]);
            rig.place(0, 1, contents).unwrap_err();
            rig.assert_true();
            assert_eq!((rig.window.placed(), rig.look()), before);
        }
        faults::set([fate]);
        let removed = rig.remove(2, 2);
        rig.assert_true();
        assert_eq!(removed.is_ok(), fate == Fate::FailsLate);
        assert_eq!(rig.window.placed().len(), if removed.is_ok() { 4 } else { 3 });
    }
}

#[test]
fn memory_that_moved_there_comes_back_if_that_fails() {
    let rig = Rig::new();
    for (fate, shared) in [
        (Fate::Passes, false),
        (Fate::Fails, false),
        (Fate::FailsLate, false),
        (Fate::Passes, true),
        (Fate::Fails, true),
        (Fate::FailsLate, true),
    ] {
        let how = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE } | libc::MAP_ANONYMOUS;
        let (size, access) = (rig.page as usize, PROT_READ | PROT_WRITE);
        // SAFETY: a new mapping.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), size, access, how, -1, 0) };
        let byte = memory.cast::<u8>();
        // SAFETY: the new mapping's first byte.
        unsafe { byte.write_volatile(77) };
        // SAFETY: it is this test's, and stays mapped for as long.
        let contents = unsafe { Contents::mapping(memory.expose_provenance() as u64) };
        faults::set([fate]);
        let placed = rig.place(5, 1, contents);
        assert_eq!(placed.is_ok(), fate == Fate::Passes, "{placed:?}");
        assert!(rig.is_whole());
        // SAFETY: as above.
        let left = unsafe { byte.read_volatile() };
        let moved = placed.is_ok() && !shared;
        assert_eq!(left, if moved { 0 } else { 77 }, "{fate:?}, {shared}");
        assert_eq!(rig.look()[5], placed.is_ok().then_some(77));
        if placed.is_ok() {
            rig.remove(5, 1).unwrap();
        }
        // SAFETY: nobody has it any more.
        unsafe { libc::munmap(memory, size) };
    }
}

#[test]
fn host_and_guest_addresses_are_aligned_alike() {
    for (gpa, size, align) in [
        (0x1234_5000, 0x1000, 0x1000),
        (0x1234_5000, 0x20_0000, 0x20_0000),
        (0x7fff_f000, 0x60_0000, 0x40_0000),
        (0x10_4000_1000, 0x8000_0000, 0x4000_0000),
    ] {
        let window = Window::new(WindowSpec::new(at(gpa, size))).unwrap();
        assert_eq!((window.backing().hva() ^ gpa) % align, 0, "{gpa:#x}, {size:#x}");
        assert_eq!(window.backing().len(), size);
    }
}

#[test]
fn what_is_no_span_is_named_with_what_it_should_be() {
    let page = host::page_size();
    for (gpa, size) in
        [(0x123, page), (page, 0), (page, page + 1), (0u64.wrapping_sub(page), page), (1, !0)]
    {
        let error = Window::new(WindowSpec::new(at(gpa, size))).unwrap_err();
        assert_eq!(error.kind(), &WindowErrorKind::Span { gpa, size, page });
        assert_eq!(error.errno(), kvm_memslots_shim::Errno::EINVAL);
        let said = error.to_string();
        for part in
            [format!("{size:#x} bytes at GPA {gpa:#x}"), format!("whole pages of {page:#x}")]
        {
            assert!(said.contains(&part), "{said}");
        }
    }
}

/// What was moved into the window when another step of the set fails is the
/// caller's again.
#[test]
fn memory_that_was_moved_goes_home() {
    let rig = filled();
    let page = rig.page as usize;
    let (access, how) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, at addresses that the kernel chooses.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), page, access, how, -1, 0) };
    assert!(at != libc::MAP_FAILED);
    let byte = at.cast::<u8>();
    // SAFETY: in the mapping.
    unsafe { byte.write(0x77) };
    let mut edit = Edit::new();
    // SAFETY: nobody relies on what is in the mapping.
    let mapping = unsafe { Contents::mapping(at.expose_provenance() as u64) };
    edit.place(12 * rig.page, rig.page, mapping);
    edit.place(14 * rig.page, rig.page, Contents::anonymous());
    for fates in [[Fate::Fails, Fate::Passes], [Fate::Passes, Fate::Fails]] {
        faults::set(fates);
        assert!(matches!(
            rig.window.apply(&edit).map_err(|error| error.kind().clone()),
            Err(WindowErrorKind::Refused { .. })
        ));
        faults::set([]);
        rig.assert_true();
        assert_eq!(rig.window.at(12 * rig.page), None);
        // SAFETY: in the mapping, that stayed where it is.
        assert_eq!(unsafe { byte.read() }, 0x77, "{fates:?}");
    }
    // SAFETY: the mapping of this test.
    unsafe { libc::munmap(at, page) };
}
