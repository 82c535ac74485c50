//! What a test has of the host: descriptors, files, a look at memory.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr::with_exposed_provenance;

use kvm_memslots::window::Window;

pub fn page_size() -> u64 {
    // SAFETY: takes a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap()
}

pub fn eventfd() -> OwnedFd {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Shared memory; without flags its seals are fixed.
pub fn memfd(flags: libc::c_uint, len: u64) -> File {
    // SAFETY: takes a name.
    let fd = unsafe { libc::memfd_create(c"memory".as_ptr(), flags | libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new, and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).unwrap();
    file
}

/// The same, whose pages are filled with 1, 2, ...
pub fn numbered_with(flags: libc::c_uint, pages: u8) -> File {
    let mut file = memfd(flags, 0);
    for page in 1..=pages {
        file.write_all(&vec![page; page_size() as usize]).unwrap();
    }
    file
}

pub fn numbered(pages: u8) -> File {
    numbered_with(0, pages)
}

/// Reads host memory as the kernel does, which no fault harms.
pub struct Peek(UnixStream, UnixStream);

impl Peek {
    pub fn new() -> Self {
        let (from, to) = UnixStream::pair().unwrap();
        Self(from, to)
    }

    /// The first byte of each page, if it can be read.
    pub fn pages(&self, window: &Window) -> Vec<Option<u8>> {
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
