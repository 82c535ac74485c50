//! alioth: virtio-pci devices, split irqchip, KVM bindings of its own.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result};

use super::source::Published;
use super::spec::{Place, Spec};
use crate::run;

const DISKS: usize = 6;

pub(super) const SPEC: Spec = Spec {
    published: Published {
        name: "alioth",
        version: "0.12.0",
        fetched: "alioth-cli = \"=0.12.0\"\nalioth = \"=0.12.0\"\n",
        packages: &["alioth", "alioth-cli"],
        program: ("alioth-cli", "alioth"),
        patch: ("alioth", include_str!("../../../../../vmm/alioth.patch")),
        own: None,
    },
    host,
    lab: include_str!("alioth.sh"),
    limit: 120,
    timed: false,
    elf: false,
};

fn host(place: &Place<'_>) -> Result<String> {
    let share = place.dir.join("share");
    fs::create_dir_all(&share).with_context(|| format!("{}", share.display()))?;
    let path = |path: &std::path::Path| run::quoted(&path.display().to_string());
    // The window of this one is memory in a BAR.
    let mut devices = format!("--entropy --fs dir,path={},tag=share,dax_window=8M", path(&share));
    for disk in 0..DISKS {
        let disk = place.dir.join(format!("disk{disk}"));
        let file = fs::File::create(&disk).with_context(|| format!("{}", disk.display()))?;
        file.set_len(1 << 20).context("set_len")?;
        let _ = write!(devices, " --blk file,path={}", path(&disk));
    }
    Ok(format!(
        "{} -l warn boot --kernel {} --initramfs {} --cmdline 'console=ttyS0 loglevel=4 panic=-1' \
         --memory size=512M,backend=memfd --cpu count=1 {devices}",
        path(place.program),
        path(place.kernel),
        path(place.initrd),
    ))
}
