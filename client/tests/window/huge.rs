//! Files and mappings of huge pages, of which the kernel maps no part: it rounds up.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_memslots::device::Device;
use kvm_memslots::window::{
    CheckedFile, Contents, Edit, Gap, Window, WindowErrorKind, WindowPart, WindowSpec,
};
use kvm_memslots::{Changes, Errno, ErrorKind, Limits, RegionId, at};

use crate::common::host::{Peek, numbered, page_size};
use crate::common::vm;

const HUGE: u64 = 2 << 20;
const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Huge pages that the machine has for as long as this lives, for one test at a time.
struct Pool {
    before: Option<String>,
    /// Those of other processes wait, too.
    _locked: Option<File>,
    _one: MutexGuard<'static, ()>,
}

impl Pool {
    /// A file of two huge pages, of which the machine gets some where it has too few.
    fn file(test: &str) -> Option<(Self, File)> {
        static ONE: Mutex<()> = Mutex::new(());
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: takes a name.
        let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), libc::MFD_HUGETLB | 21 << 26) };
        if fd < 0 {
            let error = std::io::Error::last_os_error();
            eprintln!("SKIPPED {test}: no huge pages of {HUGE:#x} bytes: {error}");
            return None;
        }
        // SAFETY: the descriptor is new, and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(2 * HUGE).unwrap();
        let locked = File::open(POOL).ok();
        if let Some(pool) = &locked {
            // SAFETY: takes numbers.
            unsafe { libc::flock(pool.as_raw_fd(), libc::LOCK_EX) };
        }
        let mut pool = Self { before: None, _locked: locked, _one: one };
        if !is_mappable(&file) {
            let before = fs::read_to_string(POOL).unwrap_or_default();
            let pages = before.trim().parse::<u64>().map_or(4, |pages| pages + 4);
            if fs::write(POOL, pages.to_string()).is_ok() {
                pool.before = Some(before);
            }
        }
        if is_mappable(&file) {
            return Some((pool, file));
        }
        eprintln!("SKIPPED {test}: no huge pages (as root: echo 4 > {POOL})");
        None
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = fs::write(POOL, before);
        }
    }
}

fn map(file: Option<&File>, flags: libc::c_int) -> Option<u64> {
    let (fd, access) = (file.map_or(-1, File::as_raw_fd), libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: a new mapping, at addresses that the kernel chooses.
    let at = unsafe { libc::mmap(null_mut(), 2 * HUGE as usize, access, flags, fd, 0) };
    (at != libc::MAP_FAILED).then(|| at.expose_provenance() as u64)
}

fn unmap(hva: u64) {
    let at = std::ptr::with_exposed_provenance_mut(hva as usize);
    // SAFETY: a mapping of `map`'s.
    assert_eq!(unsafe { libc::munmap(at, 2 * HUGE as usize) }, 0);
}

fn is_mappable(file: &File) -> bool {
    map(Some(file), libc::MAP_SHARED).map(unmap).is_some()
}

/// Four huge pages, whose host addresses are huge pages, too. A page of a small file is
/// in the second one.
fn window(page: u64) -> Window {
    let window = Window::new(WindowSpec::new(at(1 << 30, 4 * HUGE)).gap(Gap::Zeroes)).unwrap();
    window.place(HUGE + 3 * page, page, Contents::file(&numbered(4), 2 * page)).unwrap();
    window
}

/// All that a test can see of it.
fn seen(window: &Window) -> impl PartialEq + std::fmt::Debug + use<> {
    (window.placed(), Peek::new().pages(window))
}

#[test]
fn a_part_of_a_huge_page_is_refused_and_changes_nothing() {
    let test = "a_part_of_a_huge_page_is_refused_and_changes_nothing";
    let Some((_pool, file)) = Pool::file(test) else { return };
    let (page, checked) = (page_size(), CheckedFile::new(file.try_clone().unwrap()).unwrap());
    let window = window(page);
    let before = seen(&window);
    // SAFETY: a file of memory.
    let device = unsafe { Contents::device(&file, 0) };
    let all = [Contents::file(&file, 0), Contents::checked(&checked, 0), device];
    let parts = [
        (HUGE, page),
        (HUGE, 3 * page),
        (2 * HUGE, HUGE + page),
        (2 * HUGE + page, HUGE),
        (0, page),
    ];
    for (contents, (offset, len)) in all.into_iter().flat_map(|c| parts.map(|part| (c, part))) {
        let error = window.place(offset, len, contents.read_only()).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "{error}");
        let asked = matches!(error.kind(), WindowErrorKind::Geometry { page: HUGE, .. });
        assert!(asked, "{error}");
        assert_eq!(seen(&window), before, "{error}");
    }
    // The offset in the file, too.
    let error = window.place(0, HUGE, Contents::file(&file, page)).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL, "{error}");
    // A device's part is refused with the whole set.
    let (vm, _) = vm(Limits::x86().with_page_size(page));
    let mut c = Changes::new();
    c.map(window.region());
    let part = WindowPart::new(&window, HUGE, page, &checked, 0);
    c.attach(Device::new("part").in_window(RegionId::new(), part));
    let error = vm.apply(c).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Window(_)) && error.errno() == Errno::EINVAL);
    assert!(vm.regions().is_empty());
    assert_eq!(seen(&window), before);
}

#[test]
fn huge_pages_are_placed_and_removed_whole() {
    let test = "huge_pages_are_placed_and_removed_whole";
    let Some((_pool, file)) = Pool::file(test) else { return };
    let page = page_size();
    let window = window(page);
    let empty = seen(&window);
    window.place(2 * HUGE, 2 * HUGE, Contents::file(&file, 0)).unwrap();
    let placed = seen(&window);
    for (offset, len) in [(2 * HUGE, page), (3 * HUGE - page, 2 * page), (2 * HUGE, HUGE + page)] {
        let error = window.remove(offset, len).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "{error}");
        let mut edit = Edit::new();
        edit.remove(offset, len);
        edit.place(offset, page, Contents::anonymous());
        window.apply(&edit).unwrap_err();
        assert_eq!(seen(&window), placed, "{error}");
    }
    window.remove(3 * HUGE, HUGE).unwrap();
    window.remove(2 * HUGE, HUGE).unwrap();
    assert_eq!(seen(&window), empty);
}

/// The kernel neither duplicates nor moves them, whole or in part.
#[test]
fn mappings_of_huge_pages_are_refused_and_stay_what_they_are() {
    let test = "mappings_of_huge_pages_are_refused_and_stay_what_they_are";
    let Some((_pool, file)) = Pool::file(test) else { return };
    let page = page_size();
    let window = window(page);
    let before = seen(&window);
    let anonymous = libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | 21 << libc::MAP_HUGE_SHIFT;
    let ways = [
        (Some(&file), libc::MAP_SHARED),
        (Some(&file), libc::MAP_PRIVATE),
        (None, anonymous | libc::MAP_SHARED),
        (None, anonymous | libc::MAP_PRIVATE),
    ];
    for (file, flags) in ways {
        let Some(hva) = map(file, flags) else {
            eprintln!("SKIPPED {test}, flags {flags:#x}: too few huge pages");
            continue;
        };
        let word = std::ptr::with_exposed_provenance_mut::<u8>((hva + HUGE) as usize);
        // SAFETY: mapped above, and nobody else's.
        unsafe { word.write_volatile(7) };
        for (offset, len, from) in
            [(HUGE, page, 0), (HUGE, page, HUGE), (2 * HUGE, HUGE, HUGE), (2 * HUGE, 2 * HUGE, 0)]
        {
            // SAFETY: the test's own memory, and no guest has the window.
            let contents = unsafe { Contents::mapping(hva + from) };
            let error = window.place(offset, len, contents).unwrap_err();
            assert_eq!(error.errno(), Errno::EINVAL, "{error}");
            assert_eq!(seen(&window), before, "{error}");
            // SAFETY: as above.
            assert_eq!(unsafe { word.read_volatile() }, 7, "{error}");
        }
        unmap(hva);
    }
}
