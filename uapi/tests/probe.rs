//! The probe believes no kernel that does not answer as the ABI says.
// The scripted answers have one signature, also where one is always the same.
#![allow(clippy::unwrap_used, clippy::unnecessary_wraps)]

use std::ffi::c_int;
use std::os::fd::AsRawFd;

use kvm_memslots_uapi::probe::{Mismatch, ProbeVm, Support, probe};
use kvm_memslots_uapi::{
    KVM_CAP_USER_MEMORY_REGIONS, KVM_SET_USER_MEMORY_REGIONS, MemoryRegionsFlags,
    kvm_userspace_memory_regions as Header,
};

const DRY_RUN: u32 = MemoryRegionsFlags::DRY_RUN.bits();
type Answer = Result<(), c_int>;

/// A kernel that says what it is told to say.
struct Scripted<D, B> {
    claims: c_int,
    /// Answers the empty dry run.
    dry_run: D,
    /// Answers the unknown flags.
    bad_flags: B,
    calls: Vec<u32>,
}

impl<D, B> Scripted<D, B> {
    fn new(claims: c_int, dry_run: D, bad_flags: B) -> Self {
        Self { claims, dry_run, bad_flags, calls: Vec::new() }
    }
}

impl<D: Fn(&mut Header) -> Answer, B: Fn(&mut Header) -> Answer> ProbeVm for Scripted<D, B> {
    fn check_extension(&mut self, cap: u32) -> c_int {
        assert_eq!(cap, KVM_CAP_USER_MEMORY_REGIONS);
        self.claims
    }

    fn set_user_memory_regions(&mut self, header: &mut Header) -> Answer {
        assert_eq!(header.nr, 0, "there is nothing behind the header");
        assert_ne!(header.failed, 0, "or a kernel that does not write it would pass");
        self.calls.push(header.flags);
        if header.flags == DRY_RUN { (self.dry_run)(header) } else { (self.bad_flags)(header) }
    }
}

fn succeeds(header: &mut Header) -> Answer {
    header.failed = header.nr;
    Ok(())
}

fn refuses(header: &mut Header) -> Answer {
    header.failed = header.nr;
    Err(libc::EINVAL)
}

/// A kernel that claims 100 entries, and what of its answers is wrong.
fn mismatch(
    dry_run: impl Fn(&mut Header) -> Answer,
    bad_flags: impl Fn(&mut Header) -> Answer,
) -> Mismatch {
    let mut vm = Scripted::new(100, dry_run, bad_flags);
    match probe(&mut vm) {
        Support::Impostor { claimed: 100, mismatch } => mismatch,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_kernel_with_the_ioctl() {
    let mut vm = Scripted::new(65_528, succeeds, refuses);
    assert_eq!(probe(&mut vm), Support::Present { max_entries: 65_528 });
    let [first, second] = vm.calls[..] else { panic!("{:?}", vm.calls) };
    assert_eq!(first, DRY_RUN);
    assert_eq!(second & DRY_RUN, 0);
    assert_eq!(second, !MemoryRegionsFlags::all().bits(), "every flag that is not known");
}

#[test]
fn a_kernel_without_it_is_called_no_further() {
    for claims in [0, -1, -libc::EINVAL, c_int::MIN] {
        let mut vm = Scripted::new(claims, succeeds, refuses);
        assert_eq!(probe(&mut vm), Support::Absent, "{claims}");
        assert_eq!(vm.calls, [0u32; 0], "{claims}");
    }
}

/// The number means something else: what `KVM_SET_USER_MEMORY_REGIONS` meets
/// is no ioctl, or another one.
#[test]
fn the_dry_run_fails() {
    for errno in [libc::ENOTTY, libc::EINVAL, libc::EFAULT, libc::EPERM] {
        let found = mismatch(|_| Err(errno), refuses);
        assert_eq!(found, Mismatch::DryRunRefused { errno });
        let text = found.to_string();
        assert!(text.contains(&format!("errno {errno}")), "{text}");
    }
}

#[test]
fn the_dry_run_succeeds_and_says_nothing() {
    let found = mismatch(|_| Ok(()), refuses);
    let Mismatch::Header { returned } = found else { panic!("{found:?}") };
    assert_ne!(returned.failed, 0);
    assert!(found.to_string().contains("failed"), "{found}");
}

#[test]
fn the_dry_run_writes_elsewhere() {
    let writes: [fn(&mut Header); 5] = [
        |header| header.nr = 1,
        |header| header.flags = 0,
        |header| header.as_id = 1,
        |header| header.reserved[0] = 1,
        |header| header.reserved[5] = 1 << 63,
    ];
    for write in writes {
        let found = mismatch(
            |header| {
                header.failed = 0;
                write(header);
                Ok(())
            },
            refuses,
        );
        let mut expected = Header { flags: DRY_RUN, ..Default::default() };
        write(&mut expected);
        assert_eq!(found, Mismatch::Header { returned: expected });
    }
}

#[test]
fn any_flags_will_do() {
    assert_eq!(mismatch(succeeds, succeeds), Mismatch::BadFlagsAnswer { errno: 0 });
}

#[test]
fn unknown_flags_get_another_errno() {
    for errno in [libc::ENOTTY, libc::EFAULT, libc::EOPNOTSUPP] {
        let found = mismatch(succeeds, |_| Err(errno));
        assert_eq!(found, Mismatch::BadFlagsAnswer { errno });
        let text = found.to_string();
        assert!(text.contains(&format!("errno {errno}")) && text.contains("EINVAL"), "{text}");
    }
}

#[test]
fn unknown_flags_are_refused_and_failed_is_not_written() {
    let found = mismatch(succeeds, |_| Err(libc::EINVAL));
    let Mismatch::Header { returned } = found else { panic!("{found:?}") };
    assert_ne!(returned.failed, 0);
}

/// A real VM.
struct Real(kvm_ioctls::VmFd);

impl ProbeVm for Real {
    fn check_extension(&mut self, cap: u32) -> c_int {
        self.0.check_extension_raw(cap.into())
    }

    fn set_user_memory_regions(&mut self, header: &mut Header) -> Answer {
        let header: *mut Header = header;
        // SAFETY: the header is the caller's to write and says itself that no
        // entry follows.
        let ret = unsafe { libc::ioctl(self.0.as_raw_fd(), KVM_SET_USER_MEMORY_REGIONS, header) };
        if ret == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) }
    }
}

/// Upstream's KVM knows neither number, a patched one both; none is in
/// between.
#[test]
fn the_running_kernel() {
    let vm = match kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(vm) => vm,
        Err(e) => {
            eprintln!("SKIPPED the_running_kernel: no VM from /dev/kvm: {e}");
            return;
        }
    };
    let mut vm = Real(vm);
    match probe(&mut vm) {
        Support::Absent => {
            let sent = Header { flags: DRY_RUN, failed: 7, ..Default::default() };
            let mut header = sent;
            assert_eq!(vm.set_user_memory_regions(&mut header), Err(libc::ENOTTY));
            assert_eq!(header, sent);
        }
        Support::Present { max_entries } => {
            let slots = vm.0.check_extension_int(kvm_ioctls::Cap::NrMemslots);
            let least = 2 * u32::try_from(slots).unwrap();
            assert!(max_entries >= least, "{max_entries} entries for {slots} slots");
        }
        impostor @ Support::Impostor { .. } => panic!("{impostor:?}"),
    }
}
