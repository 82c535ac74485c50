//! A system call, for filters.

use std::ffi::c_char;

use crate::record::record;

record! {
    "kvm_memslots_syscall" pub struct CSyscall {
        pub size: usize,
        pub name: *const c_char,
        pub number: i64,
        pub flags: u32,
        pub request: u32,
    }
}
