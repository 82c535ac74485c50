//! The C interface of `kvm-memslots`, as `include/kvm_memslots_client.h` has
//! it. Rust uses `kvm-memslots` itself.
//!
//! No panic leaves the library.
//!
//! # Safety
//! What the header asks of the caller: a pointer is null, or points to what its
//! type says for as long as the call takes; a `space` is one that `open` gave
//! and that was not freed, and one thread uses it at a time; `vm_fd` is open;
//! the functions of a gate may be called, with its `opaque`, until the space is
//! gone; and the host memory behind a region is the guest's while it is mapped.

mod calls;
mod failure;
mod space;
mod types;

pub use calls::*;
pub use failure::kvm_memslots_last_error;
pub use space::Space;
pub use types::*;
