//! Every error has an errno.

use std::collections::BTreeSet;
use std::path::Path;

use kvm_memslots::backend::{BatchRefusal, OpenError};
use kvm_memslots::pci::PciError;
use kvm_memslots::twins::Twins;
use kvm_memslots::window::{WindowError, WindowErrorKind};
use kvm_memslots::{Errno, Error, ErrorKind, GateError};
use kvm_memslots_shim::memory::PlanError;
use kvm_memslots_shim::uapi::EntryError;
use kvm_memslots_shim::{Failed, events, memory};

macro_rules! errors {
    ($($name:literal: $errno:expr, $of:ty, $what:ty;)*) => {{
        $(let _: fn(&$of) -> $what = $errno;)*
        BTreeSet::from([$($name),*])
    }};
}

/// Those that have one: to leave the method out does not compile.
fn listed() -> BTreeSet<&'static str> {
    errors! {
        "Errno": Errno::clone, Errno, Errno;
        "Error": Error::errno, Error, Errno;
        "ErrorKind": ErrorKind::errno, ErrorKind, Errno;
        "GateError": GateError::errno, GateError, Errno;
        "PciError": PciError::errno, PciError, Errno;
        "Twins": Twins::errno, Twins, Errno;
        "WindowError": WindowError::errno, WindowError, Errno;
        "WindowErrorKind": WindowErrorKind::errno, WindowErrorKind, Errno;
        "OpenError": OpenError::errno, OpenError, Errno;
        "PlanError": PlanError::errno, PlanError, Errno;
        "Why": memory::Why::errno, memory::Why, Errno;
        "Why": events::Why::errno, events::Why, Errno;
        "Failed": memory::Failed::errno, Failed<memory::Why>, Errno;
        "Failed": events::Failed::errno, Failed<events::Why>, Errno;
        "BatchRefusal": |refusal| refusal.errno, BatchRefusal, Errno;
        "EntryError": EntryError::errno, EntryError, i32;
    }
}

/// The types in the sources below `dir` that are errors.
fn errors_in(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            errors_in(&path, found);
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let mut derived = false;
        for line in source.lines() {
            let derives = line.strip_prefix("#[derive(").is_some_and(|what| {
                let mut names = what.trim_end_matches(")]").split(", ");
                names.any(|name| matches!(name, "Error" | "ThisError" | "thiserror::Error"))
            });
            let named = line.strip_prefix("pub enum ").or(line.strip_prefix("pub struct "));
            let by_hand = line.split_once("Error for ").filter(|_| line.starts_with("impl"));
            let name = by_hand.map(|(_, name)| name).or(named.filter(|_| derived));
            let end = |name: &str| name.find(|c: char| !c.is_alphanumeric()).unwrap_or(name.len());
            found.extend(name.map(|name| name[..end(name)].to_owned()));
            derived = derives || derived && named.is_none();
        }
    }
}

#[test]
fn every_error_has_an_errno() {
    let mut found = BTreeSet::new();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for dir in ["src", "../shim/src", "../uapi/src"] {
        errors_in(&here.join(dir), &mut found);
    }
    assert!(found.contains("ErrorKind") && found.contains("GateError"), "{found:?}");
    let listed = listed();
    let missing: Vec<_> = found.iter().filter(|name| !listed.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn what_keeps_a_descriptor_from_being_a_vm() {
    let quirks = || OpenError::Quirks { quirks: 1, known: 2, errno: Errno::EPERM };
    assert_eq!(quirks().errno(), Errno::EPERM);
    assert_eq!(Error::from(ErrorKind::Open(quirks())).errno(), Errno::EPERM);
    for (error, errno) in [
        (OpenError::Duplicate { fd: 3, errno: Errno::EMFILE }, Errno::EMFILE),
        (OpenError::NotAVm { fd: 3, what: String::new(), errno: Errno::ENOTTY }, Errno::ENOTTY),
        (OpenError::NotUsable(3), Errno::EIO),
        (OpenError::SystemFd(3), Errno::EINVAL),
        (OpenError::NoMemslots(3), Errno::EINVAL),
    ] {
        assert_eq!((error.errno(), Error::from(ErrorKind::Open(error)).errno()), (errno, errno));
    }
}
