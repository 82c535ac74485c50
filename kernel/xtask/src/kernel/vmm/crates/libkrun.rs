//! libkrun: the control. Its layout never changes, and each device is found at a
//! fixed address: there is nothing to gain, and nothing must be lost.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result};

use super::source::Published;
use super::spec::{Place, Spec};
use crate::run;

const SHARES: usize = 4;

pub(super) const SPEC: Spec = Spec {
    published: Published {
        name: "libkrun",
        version: "1.19.7",
        fetched: "libkrun = { version = \"=1.19.7\", default-features = false }\n",
        packages: &["krun-vmm"],
        program: ("krun-run", "krun-run"),
        patch: ("krun-vmm", include_str!("../../../../../vmm/libkrun.patch")),
        own: Some((
            "[package]\nname = \"krun-run\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
             [dependencies]\nlibkrun = { version = \"=1.19.7\", default-features = false }\n",
            include_str!("../../../../../vmm/krun-run.rs"),
        )),
    },
    host,
    lab: include_str!("libkrun.sh"),
    // What it sets up takes milliseconds.
    limit: 4,
    timed: true,
    elf: true,
};

fn host(place: &Place<'_>) -> Result<String> {
    let path = |path: &std::path::Path| run::quoted(&path.display().to_string());
    let mut shares = String::new();
    for share in 0..SHARES {
        let share = place.dir.join(format!("share{share}"));
        fs::create_dir_all(&share).with_context(|| format!("{}", share.display()))?;
        let _ = write!(shares, " {}", path(&share));
    }
    Ok(format!(
        "{} {} {} 'console=ttyS0 loglevel=4 panic=-1 reboot=k'{shares}",
        path(place.program),
        path(place.kernel),
        path(place.initrd),
    ))
}
