//! What tests and benchmarks of KVM stand on: guest code, memory for it, grace
//! periods that the kernel counts, and single calls.

pub mod grace;
pub mod guest;
pub mod host;
pub mod machine;
pub mod pin;
pub mod raw;
pub mod usage;
pub mod userfault;
pub mod warm;

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use std::io::Write;

    /// A new VM, or a line on stderr that says why there is none. (Written
    /// directly: the test harness would swallow what `eprintln!` says.)
    pub(crate) fn vm_or_skip(test: &str) -> Option<kvm_ioctls::VmFd> {
        let vm = kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm());
        if let Err(error) = &vm {
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no VM from /dev/kvm: {error}");
        }
        vm.ok()
    }
}
