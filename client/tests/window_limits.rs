//! A process that has no room for another mapping, or nearly none: what is placed and
//! removed together is, or is not, whichever call there was no room for; and so is
//! what is removed alone.
//!
//! It is the only test of its process, which has no room for others' either.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

#[path = "common/host.rs"]
mod host;

use std::os::fd::AsRawFd;
use std::ptr::null_mut;

use host::{Peek, numbered, numbered_with, page_size};
use kvm_memslots::at;
use kvm_memslots::window::{
    CheckedFile, Contents, Edit, Gap, Placement, Window, WindowErrorKind, WindowSpec,
};

/// Mappings that can't be merged, as many as there is room for.
struct Full {
    all: Vec<*mut libc::c_void>,
    most: usize,
}

impl Full {
    fn new(limit: usize) -> Self {
        let mut full = Self { all: Vec::with_capacity(limit + 16), most: limit + 16 };
        full.fill();
        full
    }

    fn fill(&mut self) {
        // No two that follow each other are alike.
        let access = |n: usize| if n % 2 == 0 { libc::PROT_NONE } else { libc::PROT_READ };
        while let Some(at) = map(1, access(self.all.len())) {
            assert!(self.all.len() < self.most, "room for more than there should be");
            self.all.push(at);
        }
    }

    fn make_room(&mut self, mappings: usize) {
        let least = self.all.len() - mappings;
        self.all.drain(least..).for_each(|at| unmap(at, 1));
    }
}

fn map(pages: u64, access: libc::c_int) -> Option<*mut libc::c_void> {
    let how = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let bytes = (pages * page_size()) as usize;
    // SAFETY: a new mapping, at addresses that the kernel chooses.
    let at = unsafe { libc::mmap(null_mut(), bytes, access, how, -1, 0) };
    (at != libc::MAP_FAILED).then_some(at)
}

fn unmap(at: *mut libc::c_void, pages: u64) {
    // SAFETY: a mapping of `map`'s, which nobody else knows of.
    unsafe { libc::munmap(at, (pages * page_size()) as usize) };
}

fn limit() -> Option<usize> {
    std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()
}

/// Private memory that says so.
fn private(pages: u64) -> *mut u8 {
    let at = map(pages, libc::PROT_READ | libc::PROT_WRITE).unwrap().cast::<u8>();
    let bytes = (pages * page_size()) as usize;
    // SAFETY: all of the mapping, which is new.
    unsafe { at.write_bytes(0x77, bytes) };
    at
}

/// What a set does: whether it places, and which pages.
const SETS: [&[(bool, u64, u64)]; 8] = [
    &[(true, 4, 1)],
    &[(true, 4, 1), (true, 6, 2), (true, 9, 1), (true, 11, 1)],
    &[(false, 1, 1)],
    &[(false, 0, 3)],
    &[(false, 1, 1), (true, 1, 1)],
    &[(false, 0, 3), (true, 0, 3)],
    &[(false, 0, 1), (false, 2, 1), (true, 5, 1), (true, 7, 1)],
    &[(false, 1, 1), (true, 9, 1), (true, 1, 1), (true, 12, 3)],
];

struct World {
    full: Full,
    peek: Peek,
    plain: CheckedFile,
    direct: CheckedFile,
}

type Seen = (Vec<Placement>, Vec<Option<u8>>);

impl World {
    fn look(&self, window: &Window) -> Seen {
        (window.placed(), self.peek.pages(window))
    }

    fn window(&self, gap: Gap) -> Window {
        let range = at(0x10_0000, 16 * page_size());
        let window = Window::new(WindowSpec::new(range).gap(gap)).unwrap();
        window.place(0, 3 * page_size(), Contents::checked(&self.plain, 0)).unwrap();
        window
    }

    fn contents(&self, kind: usize, private: *mut u8) -> Contents<'_> {
        let page = page_size();
        match kind % 4 {
            0 => Contents::checked(&self.plain, 2 * page),
            1 => Contents::checked(&self.direct, 4 * page).read_only(),
            2 => Contents::anonymous(),
            // SAFETY: the mapping is the test's, as long as what is placed at most,
            // and outlives it.
            _ => unsafe { Contents::mapping(private.expose_provenance() as u64) },
        }
    }

    /// The set, with contents of all kinds in turn, that from `first` on.
    fn edit(&self, set: &[(bool, u64, u64)], first: usize, private: &[*mut u8]) -> Edit<'_> {
        let (page, mut edit) = (page_size(), Edit::new());
        for (n, (places, at, pages)) in set.iter().enumerate() {
            let (at, len) = (at * page, pages * page);
            if *places {
                edit.place(at, len, self.contents(first + n, private[n]));
            } else {
                edit.remove(at, len);
            }
        }
        edit
    }

    /// Does a set with room for none, for one, for two ... mappings, until it is done;
    /// how often it was refused.
    fn squeeze(&mut self, set: &[(bool, u64, u64)], gap: Gap, first: usize) -> usize {
        self.full.make_room(64);
        let (one, other) = (self.window(gap), self.window(gap));
        let memory = [(); 8].map(|()| private(3));
        let expected = {
            other.apply(&self.edit(set, first, &memory[4..])).unwrap();
            self.look(&other)
        };
        let before = self.look(&one);
        self.full.fill();
        let mut refused = 0;
        loop {
            let done = one.apply(&self.edit(set, first, &memory));
            let Err(error) = done else { break };
            let what = format!("{set:?}, {gap:?}, contents from {first} on: {error}");
            assert!(!matches!(error.kind(), WindowErrorKind::Stuck { .. }), "{what}");
            assert_eq!(self.look(&one), before, "{what}");
            for at in &memory[..4] {
                // SAFETY: what was not placed is still there.
                assert_eq!(unsafe { at.read() }, 0x77, "{what}");
            }
            refused += 1;
            self.full.make_room(1);
        }
        assert_eq!(self.look(&one), expected, "{set:?}, {gap:?}, contents from {first} on");
        self.full.make_room(16);
        for at in memory {
            unmap(at.cast(), 3);
        }
        drop((one, other));
        self.full.fill();
        refused
    }
}

#[test]
fn all_or_nothing_where_there_is_no_room_for_mappings() {
    let limit = match limit() {
        Some(limit) if limit <= 1 << 18 => limit,
        limit => return eprintln!("SKIPPED: vm.max_map_count is {limit:?}, too much to fill"),
    };
    let file = numbered_with(libc::MFD_ALLOW_SEALING, 16);
    let plain = CheckedFile::new(file.try_clone().unwrap()).unwrap();
    let direct = CheckedFile::new(numbered(16)).unwrap();
    assert!(file.as_raw_fd() >= 0);
    let peek = Peek::new();
    let mut world = World { full: Full::new(limit), peek, plain, direct };
    let mut refused = 0;
    for set in SETS {
        for gap in [Gap::Fault, Gap::Scratch] {
            for first in 0..4 {
                refused += world.squeeze(set, gap, first);
            }
        }
    }
    world.full.make_room(world.full.all.len());
    println!("refused {refused} times");
    assert!(refused > 2 * SETS.len());
}
