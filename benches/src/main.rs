//! `memslots`: what KVM memslot changes cost on this machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    kvm_memslots_bench::cli::main()
}
