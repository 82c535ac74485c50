//! How the library is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // A program may close it that has loaded it itself. Threads are in it, and slots of VMs
    // are not what KVM was asked for.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
