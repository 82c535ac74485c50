//! `make install`, and programs that are built from what it installed: with
//! pkg-config alone, against the shared library and the static one, under
//! valgrind and the address sanitizer.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{cc, compiles, file, library, program, ran, runs, said};

/// What was installed.
struct Installed {
    cc: String,
    root: tempfile::TempDir,
}

impl Installed {
    fn new(test: &str) -> Option<Self> {
        let Some(cc) = cc() else {
            eprintln!("SKIPPED {test}: no C compiler (Debian: gcc)");
            return None;
        };
        for (program, package) in [("make", "make"), ("pkg-config", "pkgconf")] {
            if !runs(program) {
                eprintln!("SKIPPED {test}: no {program} (Debian: {package})");
                return None;
            }
        }
        let root = tempfile::tempdir().unwrap();
        let built = root.path().join("target/debug");
        fs::create_dir_all(&built).unwrap();
        fs::copy(library(), built.join("libkvm_memslots_client.a")).unwrap();
        let output = make(root.path()).arg("install").output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        Some(Self { cc, root })
    }

    fn usr(&self) -> PathBuf {
        self.root.path().join("usr")
    }

    /// What pkg-config says; a package's files are elsewhere before it is
    /// installed, which is what its sysroot is for.
    fn flags(&self, args: &[&str]) -> Vec<String> {
        let output = Command::new("pkg-config")
            .args(args)
            .arg("kvm_memslots_client")
            .env("PKG_CONFIG_PATH", self.usr().join("lib/pkgconfig"))
            .env("PKG_CONFIG_SYSROOT_DIR", self.root.path())
            .env("PKG_CONFIG_ALLOW_SYSTEM_CFLAGS", "1")
            .env("PKG_CONFIG_ALLOW_SYSTEM_LIBS", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        said(&output).split_whitespace().map(str::to_owned).collect()
    }

    /// Builds `sources` with what pkg-config says, and `more`.
    fn build(
        &self,
        sources: &[PathBuf],
        pkg_config: &[&str],
        more: &[&str],
    ) -> Result<Command, String> {
        let flags = self.flags(pkg_config);
        let mut args: Vec<&str> = vec!["-std=gnu99"];
        args.extend(more);
        args.extend(flags.iter().map(String::as_str));
        let built = self.root.path().join("program");
        compiles(&self.cc, &args, sources, &built)?;
        let mut program = Command::new(built);
        program.env("LD_LIBRARY_PATH", self.usr().join("lib"));
        Ok(program)
    }
}

/// `make` with the library that cargo has built for this test, below `root`,
/// installing there. That cargo builds it is a step of `cargo xtask test`.
fn make(root: &Path) -> Command {
    let mut make = Command::new("make");
    make.arg("--directory").arg(file("")).args(["--no-print-directory", "PROFILE=dev"]);
    make.arg(format!("TARGET={}", root.join("target").display())).arg("CARGO=true");
    make.arg(format!("DESTDIR={}", root.display())).arg("prefix=/usr");
    make.env_remove("MAKEFLAGS");
    make
}

const SHARED: [&str; 2] = ["--cflags", "--libs"];
const STATIC: [&str; 3] = ["--static", "--cflags", "--libs"];

/// The examples, and what they say.
#[cfg(target_arch = "x86_64")]
const EXAMPLES: [(&str, &[&str]); 5] = [
    ("examples/boot_64.c", &["memory: 2 slots", "copied above 4 GiB: the same", "given back: 2"]),
    (
        "examples/vmm.c",
        &[
            "set up: 1 slots, 1 deferred, 1 ioeventfds",
            "served: 1 bytes",
            "device: 0x22 to 0x9000",
            "wrote: 0x42 0x11, dirty pages 0x8",
            "rung: 1",
        ],
    ),
    (
        "examples/devices.c",
        &[
            "plugged: 1 ioctls, 1 zones, 1 irqfds",
            "ring: 0x62 to port 0x70",
            "exit: port",
            "rung: 1",
            "masked: pending 1, raised 0",
            "unmasked: raised 1",
            "exit: memory",
        ],
    ),
    ("examples/flash.c", &["64 words programmed and read back, 128 flips"]),
    (
        "examples/migration.c",
        &[
            "sent: all pages",
            "sent: some pages",
            "the last: some pages",
            "memory: the same",
            "counted, there on by 10",
        ],
    ),
];

#[cfg(target_arch = "x86_64")]
fn assert_ran(test: &str, program: &mut Command, expected: &[&str]) {
    let Some(said) = ran(test, program) else { return };
    let mut said: Vec<String> = said.lines().map(without_numbers).collect();
    // One line for all rounds.
    said.dedup();
    assert_eq!(said, expected);
}

/// A migration's line, where what it counts is this KVM's: how many pages it logs
/// beside those that the guest wrote, and so how many rounds there are.
#[cfg(target_arch = "x86_64")]
fn without_numbers(line: &str) -> String {
    if let Some((what, pages)) = line.strip_suffix(" pages").and_then(|it| it.split_once(": ")) {
        let pages: u64 = pages.parse().unwrap();
        let some = match pages {
            80 => "all",
            1..80 => "some",
            _ => "no number of",
        };
        return format!("{what}: {some} pages");
    }
    if let Some(counts) = line.strip_prefix("counted: ") {
        let (here, there) = counts.split_once(", there on to ").unwrap();
        let by = there.parse::<u64>().unwrap() - here.parse::<u64>().unwrap();
        return format!("counted, there on by {by}");
    }
    line.to_owned()
}

#[test]
fn what_is_installed_is_where_it_belongs_and_goes_again() {
    let test = "what_is_installed_is_where_it_belongs_and_goes_again";
    let Some(installed) = Installed::new(test) else { return };
    let usr = installed.usr();
    for name in [
        "include/kvm_memslots_client.h",
        "include/kvm_memslots_client/window.h",
        "lib/libkvm_memslots_client.a",
        "lib/libkvm_memslots_client.so",
        "lib/libkvm_memslots_client.so.0.1",
        "lib/libkvm_memslots_client.so.0.1.0",
        "lib/pkgconfig/kvm_memslots_client.pc",
    ] {
        assert!(usr.join(name).exists(), "{name}");
    }
    let config = fs::read_to_string(usr.join("lib/pkgconfig/kvm_memslots_client.pc")).unwrap();
    assert!(config.contains("libdir=${prefix}/lib\n"), "{config}");
    assert!(!config.contains('@') && !config.contains("tmp"), "{config}");
    assert_eq!(installed.flags(&["--modversion"]), [env!("CARGO_PKG_VERSION")]);

    let output = make(installed.root.path()).arg("uninstall").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let left = |dir: &str| fs::read_dir(usr.join(dir)).unwrap().count();
    assert_eq!((left("include"), left("lib/pkgconfig"), left("lib")), (0, 0, 1));

    // Where Debian's packages have it.
    let libdir = "lib/some-linux-gnu";
    let mut again = make(installed.root.path());
    let output = again.arg(format!("libdir=/usr/{libdir}")).arg("install").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let config = usr.join(libdir).join("pkgconfig/kvm_memslots_client.pc");
    let config = fs::read_to_string(config).unwrap();
    assert!(config.contains(&format!("libdir=${{prefix}}/{libdir}\n")), "{config}");
    assert!(usr.join(libdir).join("libkvm_memslots_client.so.0.1").exists());
    assert_eq!(left("lib"), 2);
}

/// A program keeps to one version of the ABI, and sees nothing else.
#[test]
fn symbols_have_versions() {
    let Some(installed) = Installed::new("symbols_have_versions") else { return };
    let library = installed.usr().join("lib/libkvm_memslots_client.so");
    let readelf = |args: &[&str]| {
        let output = Command::new("readelf").args(args).arg(&library).output();
        output.ok().filter(|output| output.status.success()).map(|output| said(&output))
    };
    let Some(symbols) = readelf(&["--wide", "--dyn-syms"]) else {
        eprintln!("SKIPPED symbols_have_versions: no readelf (Debian: binutils)");
        return;
    };
    let defined = symbols.lines().filter(|line| line.contains("GLOBAL") && !line.contains("UND"));
    let defined: Vec<&str> = defined.filter_map(|line| line.split_whitespace().last()).collect();
    assert!(defined.len() > 90, "{defined:?}");
    for symbol in defined {
        let ours = symbol.starts_with("kvm_memslots_")
            && symbol.ends_with("@@KVM_MEMSLOTS_CLIENT_0.1")
            || symbol == "KVM_MEMSLOTS_CLIENT_0.1";
        assert!(ours, "{symbol}");
    }
    let dynamic = readelf(&["--dynamic"]).unwrap();
    assert!(dynamic.contains("Library soname: [libkvm_memslots_client.so.0.1]"), "{dynamic}");
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_examples_run() {
    let test = "the_examples_run";
    let Some(installed) = Installed::new(test) else { return };
    for (name, expected) in EXAMPLES {
        let source = [file(name)];
        let lines = fs::read_to_string(&source[0]).unwrap().lines().count();
        assert!(lines < 200, "{name} has {lines} lines");
        let mut shared = installed.build(&source, &SHARED, &[]).unwrap();
        assert_ran(test, &mut shared, expected);
        match installed.build(&source, &STATIC, &["-static"]) {
            Ok(mut program) => {
                assert_ran(test, program.env_remove("LD_LIBRARY_PATH"), expected);
            }
            Err(why) if why.contains("cannot find -lc") => {
                eprintln!("SKIPPED {test}, static: no libc.a (Debian: libc6-dev)");
            }
            Err(why) => panic!("{why}"),
        }
    }
    // The library does not go before its threads' destructors.
    let loads = file("tests/loads.c");
    let library = installed.usr().join("lib/libkvm_memslots_client.so.0.1");
    let more = ["-ldl", "-lpthread"];
    let mut program = installed.build(&[loads], &["--cflags"], &more).unwrap();
    ran(test, program.arg(library));
}

#[test]
fn programs_run_under_valgrind() {
    let test = "programs_run_under_valgrind";
    if !runs("valgrind") {
        eprintln!("SKIPPED {test}: no valgrind (Debian: valgrind)");
        return;
    }
    let Some(installed) = Installed::new(test) else { return };
    let valgrind = |built: &Command, args: &[&str]| {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--quiet", "--error-exitcode=9", "--leak-check=full"]);
        valgrind.arg("--errors-for-leak-kinds=definite").arg(built.get_program()).args(args);
        valgrind.env("LD_LIBRARY_PATH", installed.usr().join("lib"));
        valgrind
    };
    let built = installed.build(&program(), &SHARED, &["-g"]).unwrap();
    ran(test, &mut valgrind(&built, &["model", "careful"]));
    #[cfg(target_arch = "x86_64")]
    for (name, expected) in EXAMPLES {
        let built = installed.build(&[file(name)], &SHARED, &["-g"]).unwrap();
        assert_ran(test, &mut valgrind(&built, &[]), expected);
    }
}

#[test]
fn programs_run_under_the_address_sanitizer() {
    let test = "programs_run_under_the_address_sanitizer";
    let Some(installed) = Installed::new(test) else { return };
    let flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    for on in ["model", "kvm"] {
        match installed.build(&program(), &SHARED, &flags) {
            Ok(mut program) => {
                ran(test, program.args([on, "careful"]));
            }
            Err(why) if why.contains("asan") || why.contains("ubsan") => {
                eprintln!("SKIPPED {test}: the compiler has no sanitizers");
                return;
            }
            Err(why) => panic!("{why}"),
        }
    }
    #[cfg(target_arch = "x86_64")]
    for (name, expected) in EXAMPLES {
        let mut program = installed.build(&[file(name)], &SHARED, &flags).unwrap();
        assert_ran(test, &mut program, expected);
    }
}
