//! Filters of system calls: with one, everything passes, as a call that the
//! filter's author has not thought of may be the end of the process.

use std::ffi::{c_int, c_long};

use crate::end;
use crate::kvm::Unasked;
use crate::process::Status;
use crate::root::{self, Root, root};
use crate::run;
use crate::why::Why;

/// A filter is about to be installed. KVM's slots are first made what the VMM
/// believes they are, its masks of signals likewise, and the statistics are written: later
/// there may be no way.
pub(crate) fn install() {
    if root::is_off() {
        return;
    }
    if let Some(root) = root() {
        for vm in root.vms() {
            vm.switch_off(&Unasked(vm), Why::of("a seccomp filter was installed"));
        }
        for (vcpu, number) in root.masked() {
            run::lift(vcpu, number);
        }
        end::write();
    }
    root::off();
}

/// Whether this call of `prctl` installs one.
pub(crate) fn is_prctl(option: c_int) -> bool {
    option == libc::PR_SET_SECCOMP
}

/// Whether `syscall(number, first)` does.
pub(crate) fn is_call(number: c_long, first: usize) -> bool {
    const MODES: [usize; 2] =
        [libc::SECCOMP_SET_MODE_STRICT as usize, libc::SECCOMP_SET_MODE_FILTER as usize];
    number == libc::SYS_seccomp && MODES.contains(&first)
        || number == libc::SYS_prctl && first == libc::PR_SET_SECCOMP as usize
}

/// What this process has, made if need be, where this thread has no filter, as far
/// as can be known; else everything passes from now on. Asked when a VM is made, by
/// calls that the dynamic linker has made under the same filter when it loaded this
/// library.
pub(crate) fn root_if_free() -> Option<&'static Root> {
    if let Some(root) = root() {
        return Some(root);
    }
    let status = Status::read();
    if status.no_filter {
        return root::set_up(status.number()?);
    }
    root::off();
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_calls_install_one() {
        assert!(is_call(libc::SYS_seccomp, 0) && is_call(libc::SYS_seccomp, 1));
        // SECCOMP_GET_ACTION_AVAIL
        assert!(!is_call(libc::SYS_seccomp, 2) && !is_call(libc::SYS_close, 1));
        assert!(is_prctl(22) && !is_prctl(libc::PR_SET_NAME) && is_call(libc::SYS_prctl, 22));
    }
}
