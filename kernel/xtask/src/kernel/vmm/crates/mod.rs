//! VMMs that are published as crates, and boot Debian's kernel.

mod alioth;
mod host;
mod libkrun;
mod source;
mod spec;
mod timed;

use std::path::PathBuf;

use anyhow::Result;

use super::counts::Kind;
use super::table::{Columns, Measured};
use super::which::{Kernel, Way};
use super::{guest, lab, said};
use crate::kernel::Qemu;

pub(super) use spec::Spec;

pub(super) const ALIOTH: &Spec = &alioth::SPEC;
pub(super) const LIBKRUN: &Spec = &libkrun::SPEC;

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
    set_up: true,
    times: ["guest up", "devices used"],
};

impl Spec {
    /// Runs each of `built`.
    pub(super) fn run(
        &self,
        on: Kernel,
        built: &[(Way, PathBuf)],
        qemu: &Qemu,
    ) -> Result<Vec<Measured>> {
        let mut guest = guest::unpacked()?;
        if self.elf {
            guest = guest.elf()?;
        }
        if on == Kernel::Host {
            return host::run(self, built, &guest);
        }
        let files = vec![
            lab::script("vmm", SCRIPT),
            lab::script("vmm-boot", self.lab),
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
}
