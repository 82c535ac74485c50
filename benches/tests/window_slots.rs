//! What a window has beside it and in it that is not as it should be, with a guest
//! that looks, on real KVM: slots in its range, and memory that nobody may access.
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#![allow(clippy::unwrap_used)]

mod common;

use std::ptr::NonNull;

use common::windowed::{GPA, PAGES, Rig, SPARE_SLOT, gpa};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use kvm_memslots::window::{Contents, Edit, Found, Gap};
use kvm_memslots::{Access as May, Backing, Changes, ErrorKind, RegionSpec, at};
use kvm_memslots_kit::guest::{Access, GuestError, Outcome};
use kvm_memslots_kit::host::{HostMemory, Pages, SMALL_PAGE};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

impl Rig {
    /// The words at the start of all pages.
    fn read(&mut self) -> Vec<Outcome> {
        let reads: Vec<_> = (0..PAGES).map(|page| Access::Read(gpa(page))).collect();
        self.prober.probe(&reads).unwrap()
    }
}

/// These words, but for some.
fn words(but: &[(u64, u64)]) -> Vec<Outcome> {
    let word = |page| but.iter().find(|(n, _)| *n == page).map_or(page + 1, |(_, word)| *word);
    (0..PAGES).map(|page| Outcome::Value(word(page))).collect()
}

/// A slot that the library knows nothing of. The memory outlives the VM's vCPUs, and
/// nobody else accesses it, or all do atomically.
fn set_slot_at(vm: &VmFd, gpa: u64, size: u64, hva: u64) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_userspace_memory_region {
        slot: SPARE_SLOT.into(),
        flags: 0,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: hva,
    };
    // SAFETY: see above.
    unsafe { vm.set_user_memory_region(region) }
}

#[test]
fn a_slot_is_in_a_windows_range_only_where_the_window_has_made_room() {
    let test = "a_slot_is_in_a_windows_range_only_where_the_window_has_made_room";
    let Some(mut rig) = Rig::new(test, Gap::Scratch) else { return };
    let all = PAGES * SMALL_PAGE;
    rig.window.place(0, all, Contents::file(&rig.file, 0)).unwrap();
    let (from, size) = (4 * SMALL_PAGE, 2 * SMALL_PAGE);
    let memory = HostMemory::reserve(size, Pages::Small).unwrap();
    memory.write(0, 77);
    memory.write(SMALL_PAGE, 78);
    // SAFETY: the memory outlives the VM, and is accessed atomically only.
    let backing = unsafe { Backing::borrowed(memory.hva(), size, May::ReadWrite) };
    let own = || RegionSpec::device(at(gpa(4), size), backing.clone());

    // By the library, where something is placed and where there is a gap; by the VMM itself.
    for gap in [false, true] {
        if gap {
            rig.window.remove(from, size).unwrap();
        }
        let mut c = Changes::new();
        c.map(own());
        let error = rig.vm.apply(c).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Overlap(_)), "{error}");
        let error = set_slot_at(&rig.fd, gpa(4), size, memory.hva()).unwrap_err();
        assert_eq!(error.errno(), libc::EEXIST);
        assert_eq!(rig.read(), words(if gap { &[(4, 0), (5, 0)] } else { &[] }));
    }

    // In one set with the part that goes.
    let mut c = Changes::new();
    let part = c.split(rig.region, from);
    let rest = c.split(part, size);
    c.unmap(part);
    let slot = c.map(own());
    rig.vm.apply(c).unwrap();
    assert_eq!(rig.read(), words(&[(4, 77), (5, 78)]));
    assert_eq!(rig.window.found(&rig.vm, 0, gpa(5)), None);
    assert!(matches!(rig.window.found(&rig.vm, 0, gpa(6)), Some(Found::Placed(_))));
    // What is placed beneath it is there, and nobody sees it. Beside it all goes on.
    let mut edit = Edit::new();
    edit.place(from, SMALL_PAGE, Contents::file(&rig.file, 8 * SMALL_PAGE));
    edit.remove(0, SMALL_PAGE);
    rig.window.apply(&edit).unwrap();
    let write = [Access::Write(gpa(4), 79)];
    assert_eq!(rig.prober.probe(&write).unwrap(), [Outcome::Written]);
    assert_eq!(rig.read(), words(&[(0, 0), (4, 79), (5, 78)]));
    assert_eq!((memory.read(0), memory.read(SMALL_PAGE)), (79, 78));

    // The slot goes, and the window comes back as a whole.
    let mut c = Changes::new();
    for region in [rig.region, slot, rest] {
        c.unmap(region);
    }
    c.map(rig.window.region());
    rig.vm.apply(c).unwrap();
    assert_eq!(rig.read(), words(&[(0, 0), (4, 9), (5, 0)]));
    assert_eq!(memory.read(0), 79);
    rig.vm.close().unwrap();
}

/// A page that is mapped, and can be accessed or not.
struct Page(NonNull<libc::c_void>);

const PAGE: std::num::NonZeroUsize = std::num::NonZeroUsize::new(SMALL_PAGE as usize).unwrap();

impl Page {
    /// Of a file, or private memory; `PROT_NONE`.
    fn new(file: Option<&std::fs::File>) -> Self {
        let none = ProtFlags::PROT_NONE;
        let at = match file {
            // SAFETY: a new mapping, which nobody accesses.
            Some(file) => unsafe { mmap(None, PAGE, none, MapFlags::MAP_SHARED, file, 0) },
            // SAFETY: as above.
            None => unsafe { mmap_anonymous(None, PAGE, none, MapFlags::MAP_PRIVATE) },
        };
        Self(at.unwrap())
    }

    fn hva(&self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: no slot has it any more.
        unsafe { munmap(self.0, PAGE.get()) }.unwrap();
    }
}

fn assert_faults(result: &Result<Vec<Outcome>, GuestError>) {
    assert!(matches!(result, Err(GuestError::Kvm { errno: Errno::EFAULT, .. })), "{result:?}");
}

#[test]
fn memory_that_nobody_may_access_ends_the_run_as_in_a_slot() {
    let test = "memory_that_nobody_may_access_ends_the_run_as_in_a_slot";
    let accesses: [fn(u64) -> Access; 2] = [Access::Read, |gpa| Access::Write(gpa, 5)];
    for (shared, access) in [false, true].into_iter().flat_map(|s| accesses.map(|a| (s, a))) {
        let Some(mut rig) = Rig::new(test, Gap::Scratch) else { return };
        let file = rig.file.try_clone().unwrap();
        let page = || Page::new(shared.then_some(&file));
        // What plain KVM does, with a slot of the VMM's own.
        let (plain, elsewhere) = (page(), GPA + 0x1000_0000);
        set_slot_at(&rig.fd, elsewhere, SMALL_PAGE, plain.hva()).unwrap();
        assert_faults(&rig.prober.probe(&[access(elsewhere)]));
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the guest alone accesses it.
        unsafe { mprotect(plain.0, PAGE.get(), both) }.unwrap();
        rig.prober.probe(&[access(elsewhere)]).unwrap();

        let (offset, placed) = (3 * SMALL_PAGE, page());
        // SAFETY: a mapping of this test's, which it does not access.
        let contents = unsafe { Contents::mapping(placed.hva()) };
        rig.window.place(offset, SMALL_PAGE, contents).unwrap();
        assert_faults(&rig.prober.probe(&[access(gpa(3))]));
        assert!(matches!(rig.window.found(&rig.vm, 0, gpa(3)), Some(Found::Placed(_))));
        // Something else there, and the access goes on.
        let mut edit = Edit::new();
        edit.remove(offset, SMALL_PAGE);
        edit.place(offset, SMALL_PAGE, Contents::file(&file, 7 * SMALL_PAGE));
        rig.window.apply(&edit).unwrap();
        let found = rig.prober.probe(&[access(gpa(3)), Access::Read(gpa(3))]).unwrap();
        let value = if matches!(access(0), Access::Read(_)) { 8 } else { 5 };
        assert_eq!(found[1], Outcome::Value(value), "shared: {shared}");
        rig.vm.close().unwrap();
    }
}
