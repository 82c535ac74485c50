//! Memory that can't be accessed: a file that was truncated.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use kvm_memslots::deferred::{Deferral, Part, Policy};
use kvm_memslots::{Access, Backing, Limits, RegionSpec, at};

use crate::memory::{Memory, PAGE, device, map_now, open, open_with};

const GPA: u64 = 0xe000_0000;

/// A file of so many pages, mapped, until it is dropped.
struct Mapped {
    file: File,
    base: *mut libc::c_void,
    len: usize,
}

impl Mapped {
    fn new(pages: u64) -> Self {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"bar".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: the descriptor is new, and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(pages * PAGE).unwrap();
        let (len, access) = ((pages * PAGE) as usize, libc::PROT_READ | libc::PROT_WRITE);
        let null = std::ptr::null_mut();
        // SAFETY: a new mapping, which takes no other's place.
        let base = unsafe { libc::mmap(null, len, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(base, libc::MAP_FAILED);
        base.expose_provenance();
        Self { file, base, len }
    }

    fn spec(&self) -> RegionSpec {
        let (hva, len) = (self.base.addr() as u64, self.len as u64);
        // SAFETY: the test keeps the mapping for longer than the region.
        let memory = unsafe { Backing::borrowed(hva, len, Access::ReadWrite) };
        RegionSpec::device(at(GPA, len), memory).deferrable()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's.
        unsafe { libc::munmap(self.base, self.len) };
    }
}

#[test]
fn a_file_that_was_truncated_is_a_fault_and_not_the_end() {
    let mapped = Mapped::new(4);
    let (vm, _) = open(u64::MAX);
    let id = map_now(&vm, mapped.spec());
    let exits = vm.deferred(0).unwrap();
    let nobody = |gpa: u64| panic!("a device at {gpa:#x}");
    let served = exits.write(GPA + 8, &[1, 2, 3, 4], |gpa, _| nobody(gpa));
    assert_eq!((served.bytes, served.fault), (4, None));
    let mut data = [0xaa; 4];
    let served = exits.read(GPA + 8, &mut data, |gpa, _| nobody(gpa));
    assert_eq!((served.bytes, served.fault, data), (4, None, [1, 2, 3, 4]));

    // The first page is left.
    mapped.file.set_len(PAGE).unwrap();
    let served = exits.read(GPA + 8, &mut data, |gpa, _| nobody(gpa));
    assert_eq!((served.bytes, served.fault, data), (4, None, [1, 2, 3, 4]));
    for gpa in [GPA + PAGE, GPA + 3 * PAGE + 4] {
        let mut data = [0xaa; 4];
        let served = exits.read(gpa, &mut data, |gpa, _| nobody(gpa));
        assert_eq!((served.bytes, served.fault, data), (0, Some(gpa), [0xaa; 4]));
        assert_eq!(exits.read_part(gpa, &mut data), Part::Fault);
        let served = exits.write(gpa, &[1; 4], |gpa, _| nobody(gpa));
        assert_eq!((served.bytes, served.fault), (0, Some(gpa)));
        assert_eq!(exits.write_part(gpa, &[1; 8]), Part::Fault);
    }
    // It is the file's fault, not the region's: it is there again.
    mapped.file.set_len(4 * PAGE).unwrap();
    let served = exits.read(GPA + PAGE, &mut data, |gpa, _| nobody(gpa));
    assert_eq!((served.bytes, served.fault, data), (4, None, [0; 4]));
    assert!(vm.region(id).unwrap().deferred);
}

/// Lets `process_vm_readv` fail with `ENOSYS` on this thread, as on a kernel
/// without `CONFIG_CROSS_MEMORY_ATTACH`; whether it does.
fn without_cross_memory_attach() -> bool {
    const NUMBER: u32 = libc::SYS_process_vm_readv as u32;
    let step = |code: u32, k, jt, jf| libc::sock_filter { code: code as u16, jt, jf, k };
    let filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, NUMBER, 0, 1),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the program is there for as long as the call takes.
    unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0 }
}

#[test]
fn what_nobody_can_serve_gets_its_slot_at_once() {
    let mapped = Mapped::new(4);
    let (spec, memory) = (mapped.spec(), Memory::new(1));
    // The filter ends with the thread.
    let tested = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if !without_cross_memory_attach() {
                return false;
            }
            // Two slots: one that gives way would be served.
            let limits = Limits::x86().with_slots(2);
            let policy = Policy::Fixed { exits: 1 };
            let (vm, _) = open_with(Deferral::default().policy(policy), limits);
            let may_fault = map_now(&vm, spec.clone());
            assert!(!vm.region(may_fault).unwrap().deferred);
            assert_eq!(vm.slots(0).len(), 1);
            // What never faults needs no such call.
            let others =
                [0, 2].map(|n| map_now(&vm, device(n * PAGE, PAGE, memory.hva()).deferrable()));
            assert!(others.iter().all(|id| vm.region(*id).unwrap().deferred));
            let exits = vm.deferred(0).unwrap();
            for n in [0, 2, 0, 2, 2, 2, 2, 2] {
                let served = exits.read(n * PAGE, &mut [0; 4], |_, _| {});
                assert_eq!(served.fault, None);
                if served.due {
                    vm.promote_due().unwrap();
                }
            }
            assert!(others.iter().any(|id| !vm.region(*id).unwrap().deferred));
            assert!(!vm.region(may_fault).unwrap().deferred);
            true
        });
        thread.join().unwrap()
    });
    if !tested {
        eprintln!("SKIPPED a kernel without CONFIG_CROSS_MEMORY_ATTACH: no seccomp filters");
    }
}

/// An access over the end of what is there: the bytes before it are served, the
/// page that they are in is dirty, and the fault is where it is.
#[test]
fn what_was_written_before_a_fault_is_dirty() {
    let mapped = Mapped::new(2);
    let (vm, _) = open(u64::MAX);
    let id = map_now(&vm, mapped.spec().log_dirty());
    mapped.file.set_len(PAGE).unwrap();
    let exits = vm.deferred(0).unwrap();
    let nobody = |gpa: u64| panic!("a device at {gpa:#x}");
    let (at, end) = (GPA + PAGE - 4, GPA + PAGE);
    let served = exits.write(at, &[1, 2, 3, 4, 5, 6, 7, 8], |gpa, _| nobody(gpa));
    assert_eq!((served.bytes, served.fault), (4, Some(end)));
    let mut data = [0xaa; 8];
    let served = exits.read(at, &mut data, |gpa, _| nobody(gpa));
    assert_eq!((served.bytes, served.fault), (4, Some(end)));
    assert_eq!(data, [1, 2, 3, 4, 0xaa, 0xaa, 0xaa, 0xaa]);
    let dirty = vm.dirty_log(id).unwrap();
    assert_eq!(dirty.iter().collect::<Vec<_>>(), [0]);
    // What can't be written is not dirty.
    let served = exits.write(end, &[1; 4], |gpa, _| nobody(gpa));
    assert_eq!((served.bytes, served.fault), (0, Some(end)));
    assert_eq!(vm.dirty_log(id).unwrap().count(), 0);
}
