//! The examples run, and say what they are to say.

#![allow(clippy::unwrap_used)]

use std::process::Command;

/// Runs an example; nothing if it had to skip, which it says.
fn run(program: &str) -> Option<String> {
    let output = Command::new(program).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}");
    assert!(output.status.success(), "{}\n{said}", String::from_utf8_lossy(&output.stderr));
    (!said.contains("SKIPPED")).then_some(said)
}

/// As the README says: a file each, short, and one of these tests.
#[test]
fn examples_are_short_and_run() {
    let dir = env!("CARGO_MANIFEST_DIR");
    let read = |name: &str| std::fs::read_to_string(format!("{dir}/{name}")).unwrap();
    let (readme, tests) = (read("README.md"), read("tests/run.rs"));
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut seen = 0;
    for name in names.map(|name| name.into_string().unwrap()) {
        let Some(example) = name.strip_suffix(".rs") else { continue };
        let lines = read(&name).lines().count();
        assert!(lines < 200, "{name} has {lines} lines");
        assert!(readme.contains(&format!("]({name}) |")), "the README has no {name}");
        assert!(tests.contains(&format!("fn {example}() {{")), "no test runs {name}");
        seen += 1;
    }
    assert!(seen >= 8, "{seen}");
}

#[test]
fn memory_manager() {
    let Some(said) = run(env!("CARGO_BIN_EXE_memory-manager")) else { return };
    assert!(said.contains("the guest counted on; 2 regions are left"), "{said}");
}

#[test]
fn blobs() {
    let Some(said) = run(env!("CARGO_BIN_EXE_blobs")) else { return };
    assert!(said.contains("the guest read 100 blobs, and zeroes where there was none"), "{said}");
    assert!(said.contains("100 blobs came and went in 1 ioctl"), "{said}");
}

#[test]
fn msix_device() {
    let Some(said) = run(env!("CARGO_BIN_EXE_msix-device")) else { return };
    assert!(said.contains("attached: 1 memslot call, 1 routing call"), "{said}");
    assert!(said.contains("the guest rang the doorbell, without an exit"), "{said}");
    assert!(said.contains("masked and unmasked: 0 calls"), "{said}");
}

#[test]
fn boot_64() {
    let Some(said) = run(env!("CARGO_BIN_EXE_boot-64")) else { return };
    assert!(said.contains("the guest halted\nit copied 0x123456789abcdef above 4 GiB"), "{said}");
}

#[test]
fn hotplug() {
    let Some(said) = run(env!("CARGO_BIN_EXE_hotplug")) else { return };
    assert!(said.contains("the guest found all of them"), "{said}");
    assert!(said.contains("the guest found none of them"), "{said}");
    assert!(said.contains("1 region is left"), "{said}");
}

#[test]
fn migration() {
    let Some(said) = run(env!("CARGO_BIN_EXE_migration")) else { return };
    assert!(said.contains("2048 pages are the same"), "{said}");
    assert!(said.contains("the guest counted on in the second VM"), "{said}");
}

#[test]
fn flash() {
    let Some(said) = run(env!("CARGO_BIN_EXE_flash")) else { return };
    assert!(said.contains("64 words programmed and read back, 128 flips"), "{said}");
}

/// A kernel is not built for this: `cargo xtask kernel test boot-linux` boots one.
#[test]
fn boot_linux() {
    let program = env!("CARGO_BIN_EXE_boot-linux");
    assert_eq!(run(program), None, "it needs a kernel");
    // What is no kernel is named as such.
    let output = Command::new(program).arg(program).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() || said.contains("SKIPPED"), "{said}");
}
