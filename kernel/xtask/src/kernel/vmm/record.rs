//! `kernel/results`: what VMMs took, on what, written by the command.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;

use crate::kernel::record;
use crate::workspace;

/// What a run of the command was.
pub(super) struct Record {
    vmm: &'static str,
    /// The command as one would type it.
    asked: String,
    /// What else the machine did when the command began.
    load: String,
}

impl Record {
    /// Of a command that begins now, with these `options`; a switch has an empty value.
    pub(super) fn begin(vmm: &'static str, options: &[(&str, Option<String>)]) -> Self {
        Self { vmm, asked: asked(vmm, options), load: record::load() }
    }

    /// Writes `found`, of this `version` of the VMM.
    pub(super) fn write(&self, version: &str, found: &str) -> Result<()> {
        let facts = [
            (self.vmm, version.to_owned()),
            ("machine", record::machine()),
            ("its kernel", record::first_line("uname", &["-srm"])),
            ("load of the machine", format!("{} before, {} after", self.load, record::load())),
            ("date", record::first_line("date", &["-u", "+%F"])),
            ("commit", record::commit()),
        ];
        record::save(&self.path(), &record::text(&self.asked, &facts, found))
    }

    fn path(&self) -> PathBuf {
        let words = self.asked.split_once("--record").map_or("", |(_, options)| options);
        let mut name = format!("vmm-{}", self.vmm);
        for option in words.split("--").skip(1) {
            name.push('-');
            name.push_str(option.split_whitespace().last().unwrap_or_default());
        }
        workspace::root().join(format!("kernel/results/{name}.md"))
    }
}

fn asked(vmm: &str, options: &[(&str, Option<String>)]) -> String {
    let mut asked = format!("cargo xtask vmm {vmm} --record");
    for (name, value) in options {
        if let Some(value) = value {
            let _ = write!(asked, " {}", format!("--{name} {value}").trim_end());
        }
    }
    asked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_a_file_of_its_own() {
        let of = |options: &[(&str, Option<String>)]| {
            let record = Record::begin("qemu", options);
            (record.asked.clone(), record.path())
        };
        let (asked, path) = of(&[("way", None), ("kernel", Some("host".to_owned()))]);
        assert_eq!(asked, "cargo xtask vmm qemu --record --kernel host");
        assert!(path.ends_with("kernel/results/vmm-qemu-host.md"), "{}", path.display());
        assert!(of(&[]).1.ends_with("kernel/results/vmm-qemu.md"));
        let lab = ("kernel", Some("lab-patched".to_owned()));
        let (asked, path) = of(&[lab, ("resets", None), ("icount", Some(String::new()))]);
        assert_eq!(asked, "cargo xtask vmm qemu --record --kernel lab-patched --icount");
        let ends = "kernel/results/vmm-qemu-lab-patched-icount.md";
        assert!(path.ends_with(ends), "{}", path.display());
    }
}
