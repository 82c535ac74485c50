//! Benchmarks of memslot changes: real guest code, grace periods counted by
//! the kernel, and the scenarios that the `memslots` command line tool runs.

pub mod bench;
pub mod cli;
pub mod compare;
pub mod density;
pub mod devices;
pub mod doctor;
pub mod flash;
pub mod fleet;
pub mod grace;
pub mod guest;
pub mod host;
pub mod machine;
pub mod pin;
pub mod raw;
pub mod replay;
pub mod report;
pub mod rig;
pub mod scenario;
pub mod start;
pub mod strategy;
pub mod trace;
pub mod userfault;
pub mod window;

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

/// The example in the repository's README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// So do those of the guide.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../../docs/guide/memory.md")]
    struct Memory;
}
