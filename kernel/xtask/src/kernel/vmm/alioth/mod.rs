//! alioth: virtio-pci devices, a split irqchip, its own KVM bindings.

mod guest;
mod host;
mod source;

use std::path::PathBuf;

use anyhow::Result;

use super::counts::Kind;
use super::table::{Columns, Measured};
use super::which::{Kernel, Way};
use super::{lab, said};
use crate::kernel::Qemu;

pub(super) use source::built;

const SCRIPT: &str = include_str!("run.sh");

pub(super) const COLUMNS: Columns = Columns {
    run: None,
    kinds: &[
        ("memslot", Kind::Memslot),
        ("batch", Kind::Batch),
        ("ioeventfd", Kind::Ioeventfd),
        ("irqfd", Kind::Irqfd),
        ("routes", Kind::Routes),
        ("MSI", Kind::Msi),
    ],
    times: ["guest up", "devices used"],
};

pub(super) const VERSION: &str = source::VERSION;

/// Runs each of `built` once.
pub(super) fn run(on: Kernel, built: &[(Way, PathBuf)], qemu: &Qemu) -> Result<Vec<Measured>> {
    let guest = guest::unpacked(&source::base())?;
    if on == Kernel::Host {
        return host::run(built, &guest, &source::base());
    }
    let files = vec![
        lab::script(SCRIPT),
        lab::file("vmm/kernel", &guest.kernel)?,
        lab::file("vmm/initrd", &guest.initrd)?,
    ];
    let programs: Vec<PathBuf> = built.iter().map(|(_, path)| path.clone()).collect();
    let all: Vec<String> = built.iter().map(|(way, _)| format!("vmm {}", way.name())).collect();
    let lines = lab::run(on, ["sh", "-c", &all.join(" && ")], &programs, files, qemu)?;
    let measured = |way: Way| {
        let mut row = Measured::new(way, on, "");
        said::read(&mut row, way.name(), &lines);
        row
    };
    Ok(built.iter().map(|(way, _)| measured(*way)).collect())
}
