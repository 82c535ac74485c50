//! Which system calls there are, for filters.

use std::ffi::{CString, c_int, c_void};
use std::sync::OnceLock;

use kvm_memslots::seccomp::{
    APPLY, Call, DIRTY_LOG, DROP, OPEN, ORDER_CHECK, RING, RUNTIME, SCRATCH_VM, SERVE,
    SLOT_ZAP_ALL, WINDOW,
};

use crate::constants::{
    KVM_MEMSLOTS_SYSCALL_REQUEST, KVM_MEMSLOTS_SYSCALLS_APPLY, KVM_MEMSLOTS_SYSCALLS_DIRTY_LOG,
    KVM_MEMSLOTS_SYSCALLS_DROP, KVM_MEMSLOTS_SYSCALLS_OPEN, KVM_MEMSLOTS_SYSCALLS_ORDER_CHECK,
    KVM_MEMSLOTS_SYSCALLS_RING, KVM_MEMSLOTS_SYSCALLS_RUNTIME, KVM_MEMSLOTS_SYSCALLS_SCRATCH_VM,
    KVM_MEMSLOTS_SYSCALLS_SERVE, KVM_MEMSLOTS_SYSCALLS_SLOT_ZAP_ALL, KVM_MEMSLOTS_SYSCALLS_WINDOW,
};
use crate::last::report;
use crate::record::{invalid, null};
use crate::types::{CSyscall, flag};

/// `kvm_memslots_each_syscall`
type EachSyscall = unsafe extern "C" fn(*mut c_void, *const CSyscall);

/// The lists, and what the header calls them.
const LISTS: [(u32, &[Call]); 11] = [
    (KVM_MEMSLOTS_SYSCALLS_RUNTIME, RUNTIME),
    (KVM_MEMSLOTS_SYSCALLS_OPEN, OPEN),
    (KVM_MEMSLOTS_SYSCALLS_ORDER_CHECK, ORDER_CHECK),
    (KVM_MEMSLOTS_SYSCALLS_SLOT_ZAP_ALL, SLOT_ZAP_ALL),
    (KVM_MEMSLOTS_SYSCALLS_SCRATCH_VM, SCRATCH_VM),
    (KVM_MEMSLOTS_SYSCALLS_APPLY, APPLY),
    (KVM_MEMSLOTS_SYSCALLS_DIRTY_LOG, DIRTY_LOG),
    (KVM_MEMSLOTS_SYSCALLS_SERVE, SERVE),
    (KVM_MEMSLOTS_SYSCALLS_DROP, DROP),
    (KVM_MEMSLOTS_SYSCALLS_WINDOW, WINDOW),
    (KVM_MEMSLOTS_SYSCALLS_RING, RING),
];

/// The names of a list's calls, each with a NUL behind it.
type Names = Vec<CString>;

/// Those of all lists, in their order.
fn names() -> &'static [Names; 11] {
    static ALL: OnceLock<[Names; 11]> = OnceLock::new();
    // No name has a NUL in it.
    let name = |call: &Call| CString::new(call.name).unwrap_or_default();
    ALL.get_or_init(|| LISTS.map(|(_, list)| list.iter().map(name).collect()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvm_memslots_syscalls(
    of: u32,
    callback: Option<EachSyscall>,
    opaque: *mut c_void,
) -> c_int {
    report(|| {
        let callback = callback.ok_or_else(|| null("each"))?;
        let known = LISTS.iter().zip(names()).find(|((known, _), _)| *known == of);
        let ((_, list), names) =
            known.ok_or_else(|| invalid(format!("there is no list {of} of system calls")))?;
        for (call, name) in list.iter().zip(names) {
            let call = CSyscall {
                size: size_of::<CSyscall>(),
                name: name.as_ptr(),
                number: call.number,
                flags: flag(call.request.is_some(), KVM_MEMSLOTS_SYSCALL_REQUEST),
                request: call.request.unwrap_or(0),
            };
            // SAFETY: C gave the function to be called with these.
            unsafe { callback(opaque, &raw const call) };
        }
        Ok(())
    })
}
