//! Calls of the C interface in any order, with handles that are of another kind or
//! null, sizes and flags that are wrong: each is done, or fails with an errno of
//! the header's and a message, and a set that fails changes nothing.
//!
//! On the model, and now and then on KVM where there is that. What a caller promises
//! the target keeps: nothing that was freed is used, and pointers lead to what they
//! say or are null.

mod bars;
mod devices;
mod looks;
mod memory;
mod world;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::engine::{Numbers, corpus, fuzz};
use world::World;

/// The errnos of the header.
fn errnos() -> BTreeSet<i32> {
    let header = include_str!("../../../../client/capi/include/kvm_memslots_client.h");
    let names = header.lines().filter_map(|line| line.strip_prefix(" *\tE")?.split_once('\t'));
    let named = |name: &str| match name {
        "INVAL" => libc::EINVAL,
        "2BIG" => libc::E2BIG,
        "BADF" => libc::EBADF,
        "NOENT" => libc::ENOENT,
        "NODATA" => libc::ENODATA,
        "NODEV" => libc::ENODEV,
        "EXIST" => libc::EEXIST,
        "NOSPC" => libc::ENOSPC,
        "NOMEM" => libc::ENOMEM,
        "BUSY" => libc::EBUSY,
        "PERM" => libc::EPERM,
        "ACCES" => libc::EACCES,
        "OPNOTSUPP" => libc::EOPNOTSUPP,
        "DEADLK" => libc::EDEADLK,
        "CANCELED" => libc::ECANCELED,
        "PROTO" => libc::EPROTO,
        "IO" => libc::EIO,
        // A bug is what is looked for.
        "NOTRECOVERABLE" => 0,
        other => panic!("E{other} is new"),
    };
    names.map(|(name, _)| named(name)).collect()
}

fn call(input: &[u8]) {
    let mut numbers = Numbers(input);
    let mut world = World::new(&mut numbers, errnos());
    while !numbers.is_empty() {
        match numbers.byte() % 12 {
            0..=2 => memory::step(&mut world, &mut numbers),
            3..=5 => devices::step(&mut world, &mut numbers),
            6 | 7 => bars::step(&mut world, &mut numbers),
            8 => looks::step(&world, &mut numbers),
            _ => memory::sets(&mut world, &mut numbers),
        }
    }
}

#[test]
fn every_function_of_the_header_is_among_them() {
    let exported = include_str!("../../../../client/capi/kvm_memslots_client.map");
    let sources = [
        include_str!("bars.rs"),
        include_str!("devices.rs"),
        include_str!("looks.rs"),
        include_str!("memory.rs"),
        include_str!("world.rs"),
    ];
    let names = exported.lines().filter_map(|line| line.trim().strip_suffix(';'));
    for name in names.filter(|name| name.starts_with("kvm_memslots_")) {
        let called = format!("{name}(");
        assert!(sources.iter().any(|source| source.contains(&called)), "{name}");
    }
}

#[test]
fn calls_of_c_are_made_or_refused() {
    fuzz("calls", &corpus("calls"), &[], call);
    let [done, refused] = [&world::DONE, &world::REFUSED].map(|all| all.load(Ordering::Relaxed));
    println!("{done} calls done, {refused} refused");
    assert!(done > 1000 && refused > 1000);
}
