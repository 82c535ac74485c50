//! Memory whose page faults sleep: what snapshot restore, post-copy and swap do
//! to a vCPU.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::host::{HostMemory, SMALL_PAGE};

const UFFD_API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;

/// `struct uffdio_api`, `uffdio_register` and `uffdio_zeropage`: words.
#[repr(C)]
struct Words<const N: usize>([u64; N]);

/// `struct uffd_msg` of a page fault.
#[repr(C, align(8))]
#[derive(Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

/// Memory in which each first access to a page waits for an answer, and is
/// answered by a thread with zeroes. Until it is dropped.
#[derive(Debug)]
pub struct Userfault {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Userfault {
    /// Registers `memory`, of which nothing has been touched. Before an access at
    /// an offset is answered `before` is called with the offset: it may sleep, or
    /// take other pages away again.
    ///
    /// # Errors
    /// The kernel has no `userfaultfd`, or not for this user.
    pub fn start(
        memory: Arc<HostMemory>,
        before: impl FnMut(&HostMemory, u64) + Send + 'static,
    ) -> io::Result<Self> {
        // SAFETY: takes numbers only.
        let fd =
            unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        let fd = i32::try_from(fd).unwrap_or(-1);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        call(&fd, UFFDIO_API, &mut Words([UFFD_API, 0, 0]))?;
        let range = [memory.hva(), memory.size()];
        let mode = UFFDIO_REGISTER_MODE_MISSING;
        call(&fd, UFFDIO_REGISTER, &mut Words([range[0], range[1], mode, 0]))?;
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("userfault".to_owned())
            .spawn(move || answer(&fd, &memory, &theirs, before))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Userfault {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It closes the descriptor, which lets go who waits.
            let _ = thread.join();
        }
    }
}

fn call<const N: usize>(fd: &OwnedFd, request: u64, words: &mut Words<N>) -> io::Result<()> {
    // SAFETY: the structure of that request; addresses in it are of memory whose
    // pages nobody relies on.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut *words) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn answer(
    fd: &OwnedFd,
    memory: &HostMemory,
    stop: &AtomicBool,
    mut before: impl FnMut(&HostMemory, u64),
) {
    while !stop.load(Ordering::Relaxed) {
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure.
        if unsafe { libc::poll(&raw mut poll, 1, 10) } <= 0 {
            continue;
        }
        let mut message = Message::default();
        let (into, size) = ((&raw mut message).cast(), size_of::<Message>());
        // SAFETY: the kernel writes that structure.
        let got = unsafe { libc::read(fd.as_raw_fd(), into, size) };
        if usize::try_from(got) != Ok(size) || message.event != UFFD_EVENT_PAGEFAULT {
            continue;
        }
        let page = message.address / SMALL_PAGE * SMALL_PAGE;
        before(memory, page - memory.hva());
        // Who asked may be gone, or have been answered.
        let _ = call(fd, UFFDIO_ZEROPAGE, &mut Words([page, SMALL_PAGE, 0, 0]));
    }
}
