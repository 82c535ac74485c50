//! Real QEMU with real UEFI in the arm64 lab, as it is and with the library that
//! is preloaded.

mod table;
mod vmm;
mod ways;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use super::Uefi;
use super::boot::{Guest, Job};
use super::initrd::{Command, GuestFile};
use super::record::Record;
use super::target::{Arch, Target};
use crate::run;
use table::{Boot, Table};
use ways::{WAYS, Way};

const SCRIPT: &str = include_str!("guest.sh");

/// For the kernel's command line.
const SLOW_GP: &str = "srcutree.lab_expedited_ms=16";

/// Boots all ways, those of a kernel in one boot of it, and compares.
pub(super) fn run(target: &Target, args: &Uefi) -> Result<ExitCode> {
    let record = Record::begin(&args.chosen, "uefi", target)?;
    let mut files = vmm::files(Arch::Arm64)?;
    let content = SCRIPT.as_bytes().to_owned();
    files.push(GuestFile { path: "bin/uefi".to_owned(), content, executable: true });
    let mut boots = Vec::new();
    for vanilla in [true, false] {
        let wanted = |way: &&Way| {
            way.vanilla == vanilla && super::test::wanted(way.name, &args.chosen.filters)
        };
        let ways: Vec<&Way> = WAYS.iter().filter(wanted).collect();
        if !ways.is_empty() {
            boots.extend(boot(&kernel(target, vanilla)?, args, &ways, files.clone())?);
        }
    }
    if boots.is_empty() {
        let all: Vec<&str> = WAYS.iter().map(|way| way.name).collect();
        bail!("no way is called so; there are {}", all.join(", "));
    }
    let table = Table::new(&boots, args.slow_gp);
    if args.json {
        run::say(&table.json(&target.name()).to_string());
    } else {
        let slow = if args.slow_gp { ", 16 ms a grace period" } else { "" };
        run::say(&format!("\nLinux {}{slow}, {} boots each:\n", target.name(), args.runs));
        run::say(&table.text());
    }
    let missed = table.all_missed();
    for missed in &missed {
        eprintln!("NOT AS WANTED {missed}");
    }
    if let Some(record) = record {
        let boots = format!("Boots of each way: {}.", args.runs);
        let missed = missed.iter().map(|missed| format!("\nNOT AS WANTED {missed}"));
        let missed: String = missed.collect();
        let found = format!("{boots}\n\n{}{missed}", table.text().trim_end());
        record.write(target, &found)?;
    }
    Ok(if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The kernel of `target`, or the same without the series.
fn kernel(target: &Target, vanilla: bool) -> Result<Target> {
    let target = if vanilla {
        Target { vanilla: true, ksrc: None, ..target.clone() }
    } else {
        target.clone()
    };
    if let Some(ksrc) = target.ksrc.as_ref().filter(|_| target.slow_gp) {
        let srcu = ksrc.join("kernel/rcu/srcutree.c");
        let text = fs::read_to_string(&srcu).with_context(|| format!("{}", srcu.display()))?;
        if !text.contains("lab_expedited_ms") {
            bail!("KSRC is a tree as it is, without the lab's patch for slow grace periods");
        }
    }
    Ok(target)
}

/// Boots the kernel of `target` once for all of `ways`.
fn boot(target: &Target, args: &Uefi, ways: &[&Way], files: Vec<GuestFile>) -> Result<Vec<Boot>> {
    let (_, guest) = Guest::of(target, &args.qemu)?;
    let script = script(ways, args.runs);
    let words = ["sh", "-c", &script].map(str::to_owned).to_vec();
    let name = if args.slow_gp { "uefi-slow-gp" } else { "uefi" };
    let command = Command { words, env: args.qemu.env.clone() };
    let append = if args.slow_gp { SLOW_GP } else { "" };
    let job = Job { files, append, ..Job::new(name, command) };
    let mut boots = Vec::new();
    let mut wrong = None;
    let ended = guest.run(&job, |line| {
        if !args.json {
            run::say(line);
        }
        match Boot::of(line) {
            Ok(boot) => boots.extend(boot),
            Err(e) => wrong = Some(e),
        }
    })?;
    if let Some(e) = wrong {
        return Err(e);
    }
    if ended.status != 0 {
        bail!("ended with status {}", ended.status);
    }
    Ok(boots)
}

/// A shell command that boots `ways` in turn, so often.
fn script(ways: &[&Way], runs: u32) -> String {
    let uefi = |way: &&Way| match way.mode {
        None => format!("uefi {}", way.name),
        Some(mode) => {
            format!("uefi {} LD_PRELOAD={} KVM_MEMSLOTS_PRELOAD={mode}", way.name, vmm::PRELOAD)
        }
    };
    let all: Vec<String> = ways.iter().map(uefi).collect();
    vec![all.join(" && "); runs as usize].join(" && ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_clock_of_the_guest_is_decimal() {
        let from = SCRIPT.find("hundredths() {").unwrap();
        let function = SCRIPT[from..].split_inclusive("\n}\n").next().unwrap();
        for (up, expected) in [("0.08", 8), ("0.10", 10), ("9.99", 999), ("70.05", 7005)] {
            let mut sh = std::process::Command::new("sh");
            let output = sh.arg("-c").arg(format!("{function}hundredths {up}")).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{expected}\n"), "{up}");
        }
    }

    #[test]
    fn ways_alternate() {
        let ways: Vec<&Way> = WAYS.iter().take(2).collect();
        let count = "uefi count LD_PRELOAD=/vmm/preload.so KVM_MEMSLOTS_PRELOAD=count";
        assert_eq!(script(&ways, 2), format!("uefi bare && {count} && uefi bare && {count}"));
    }
}
