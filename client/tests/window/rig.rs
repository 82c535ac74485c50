//! A window, what it is to be like, and a look at it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::ptr::with_exposed_provenance;

use kvm_memslots::window::{Gap, Window, WindowError, WindowErrorKind, WindowSpec};
use kvm_memslots::{Access, at};
use proptest::prelude::*;

pub(crate) const PAGES: u64 = 16;
pub(crate) const GPA: u64 = 0x10_0000;

pub(crate) fn page_size() -> u64 {
    // SAFETY: takes a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap()
}

/// A file whose pages are filled with 1, 2, ...; its seals are fixed.
pub(crate) fn numbered(pages: u8) -> File {
    numbered_with(0, pages)
}

pub(crate) fn numbered_with(flags: libc::c_uint, pages: u8) -> File {
    // SAFETY: takes a name.
    let fd = unsafe { libc::memfd_create(c"window".as_ptr(), flags) };
    // SAFETY: a new descriptor.
    let mut file = unsafe { File::from_raw_fd(fd) };
    for page in 1..=pages {
        file.write_all(&vec![page; page_size() as usize]).unwrap();
    }
    file
}

pub(crate) fn window(gap: Gap) -> Window {
    Window::new(WindowSpec::new(at(GPA, PAGES * page_size())).gap(gap)).unwrap()
}

/// Reads host memory as the kernel does, which no fault harms.
pub(crate) struct Peek(UnixStream, UnixStream);

impl Peek {
    pub(crate) fn new() -> Self {
        let (from, to) = UnixStream::pair().unwrap();
        Self(from, to)
    }

    /// The first byte of each page, if it can be read.
    pub(crate) fn pages(&self, window: &Window) -> Vec<Option<u8>> {
        let first = window.backing().hva();
        let peek = |page| {
            let from = with_exposed_provenance::<u8>((first + page * page_size()) as usize);
            // SAFETY: the kernel reads a byte, wherever it is.
            let put = unsafe { libc::write(self.1.as_raw_fd(), from.cast(), 1) };
            let mut byte = [0];
            (put == 1).then(|| (&self.0).read_exact(&mut byte).unwrap()).map(|()| byte[0])
        };
        (0..window.size() / page_size()).map(peek).collect()
    }
}

/// One step of a set, in pages; where it wants what is not there it is refused.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    File { page: u64, pages: u64, from: u64, read_only: bool },
    Anonymous { page: u64, pages: u64 },
    Remove { page: u64, pages: u64 },
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let range = || (0..PAGES, 1..6_u64);
    prop_oneof![
        4 => (range(), 0..PAGES, any::<bool>()).prop_map(|((page, pages), from, read_only)| {
            Step::File { page, pages, from, read_only }
        }),
        1 => range().prop_map(|(page, pages)| Step::Anonymous { page, pages }),
        4 => range().prop_map(|(page, pages)| Step::Remove { page, pages }),
    ]
}

/// What a page is: nothing, or what it reads as and what the guest may do.
pub(crate) type Page = Option<(u8, Access)>;

#[derive(Debug, PartialEq)]
pub(crate) enum Refusal {
    Geometry,
    Taken,
    Gap,
}

impl Refusal {
    pub(crate) fn of(error: &WindowError) -> Option<Self> {
        Some(match error.kind() {
            WindowErrorKind::Geometry { .. } => Self::Geometry,
            WindowErrorKind::Taken { .. } => Self::Taken,
            WindowErrorKind::Gap { .. } => Self::Gap,
            _ => return None,
        })
    }
}

/// The pages after a set, or what is wrong and with which step.
pub(crate) fn make(pages: &[Page], steps: &[Step]) -> Result<Vec<Page>, (usize, Refusal)> {
    let range = |step: &Step| match *step {
        Step::File { page, pages, .. }
        | Step::Anonymous { page, pages }
        | Step::Remove { page, pages } => page as usize..(page + pages) as usize,
    };
    let find = |wrong: &dyn Fn(&Step) -> bool| steps.iter().position(wrong);
    if let Some(index) = find(&|step| range(step).end > PAGES as usize) {
        return Err((index, Refusal::Geometry));
    }
    let mut pages = pages.to_vec();
    for (index, step) in steps.iter().enumerate() {
        if let Step::Remove { .. } = step {
            if pages[range(step)].contains(&None) {
                return Err((index, Refusal::Gap));
            }
            pages[range(step)].fill(None);
        }
    }
    for (index, step) in steps.iter().enumerate() {
        let (from, access) = match *step {
            Step::Remove { .. } => continue,
            Step::Anonymous { .. } => (None, Access::ReadWrite),
            Step::File { from, read_only, .. } => {
                (Some(from), if read_only { Access::Read } else { Access::ReadWrite })
            }
        };
        let there = &mut pages[range(step)];
        if there.iter().any(Option::is_some) {
            return Err((index, Refusal::Taken));
        }
        for (page, n) in there.iter_mut().zip(0..) {
            *page = Some((from.map_or(0, |from| (from + n + 1) as u8), access));
        }
    }
    Ok(pages)
}
