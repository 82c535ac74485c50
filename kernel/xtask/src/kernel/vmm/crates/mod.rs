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

const SCRIPT: &str = concat!(include_str!("../count.sh"), include_str!("run.sh"));

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
        let mut files = vec![
            lab::script("vmm", SCRIPT),
            lab::script("vmm-boot", self.lab),
            lab::file("vmm/kernel", &guest.kernel)?,
            lab::file("vmm/initrd", &guest.initrd)?,
        ];
        let programs: Vec<PathBuf> = built.iter().map(|(_, path)| path.clone()).collect();
        let mut all: Vec<String> =
            built.iter().map(|(way, _)| format!("vmm {}", way.name())).collect();
        // Other times of the lab are those of an emulator.
        let timed = self.timed && qemu.icount && built.len() == Way::ALL.len();
        if timed {
            files.push(lab::script("vmm-timed", timed::SCRIPT));
            all.push(format!("vmm-timed {}", timed::PAIRS_IN_LAB));
        }
        let lines = lab::run(on, ["sh", "-c", &all.join(" && ")], &programs, files, qemu)?;
        let measured = |way: Way| {
            let mut row = Measured::new(way, on, "");
            said::read(&mut row, way.name(), &lines);
            row
        };
        let mut rows: Vec<Measured> = built.iter().map(|(way, _)| measured(*way)).collect();
        if let (true, Some(last)) = (timed, rows.last_mut()) {
            last.remarks = timed::compared(&lines)?;
        }
        Ok(rows)
    }
}
