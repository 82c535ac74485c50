//! What the tests of the C interface share: compilers, the library, programs.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

pub(crate) const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// `$CC`, or the first C compiler there is.
pub(crate) fn cc() -> Option<String> {
    compiler("CC", ["cc", "gcc", "clang"])
}

/// `$CXX`, or the first C++ compiler there is.
pub(crate) fn cxx() -> Option<String> {
    compiler("CXX", ["c++", "g++", "clang++"])
}

fn compiler(var: &str, names: [&str; 3]) -> Option<String> {
    env::var(var)
        .map_or_else(|_| names.map(str::to_owned).into_iter().find(|name| runs(name)), Some)
}

/// Whether there is a program that says its version.
pub(crate) fn runs(name: &str) -> bool {
    Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// The static library that cargo built beside this test, the latest of its kind.
pub(crate) fn library() -> PathBuf {
    let dir = env::current_exe().unwrap().parent().unwrap().to_owned();
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libkvm_memslots_client") && name.ends_with(".a")
    };
    let built = |path: &PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let found = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).filter(ours);
    found.max_by_key(built).unwrap_or_else(|| panic!("no library in {}", dir.display()))
}

/// Whether `compiler` compiles `sources` to `program`, without a warning.
pub(crate) fn compiles(
    compiler: &str,
    args: &[&str],
    sources: &[PathBuf],
    program: &Path,
) -> Result<(), String> {
    let output = Command::new(compiler)
        .args(["-Wall", "-Wextra", "-Werror", "-o"])
        .arg(program)
        .args(sources)
        .args(args)
        .output()
        .unwrap();
    if output.status.success() { Ok(()) } else { Err(format!("{compiler}: {}", said(&output))) }
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What a program said that ran to its end; nothing if it skipped, which is said.
pub(crate) fn ran(test: &str, program: &mut Command) -> Option<String> {
    let output = program.output().unwrap();
    match output.status.code() {
        Some(0) => {
            let said = said(&output);
            said.lines().filter(|line| line.starts_with("SKIPPED ")).for_each(|line| {
                eprintln!("{line}");
            });
            Some(said)
        }
        Some(77) => {
            eprintln!("SKIPPED {test}: {}", said(&output).trim());
            None
        }
        _ => panic!("{program:?}: {}: {}", output.status, said(&output)),
    }
}

/// A file of this package.
pub(crate) fn file(name: &str) -> PathBuf {
    Path::new(HERE).join(name)
}

/// The sources of the test program.
pub(crate) fn program() -> Vec<PathBuf> {
    [
        "program.c",
        "holes.c",
        "refused.c",
        "flags.c",
        "events.c",
        "guest.c",
        "misuse.c",
        "zones.c",
        "windows.c",
        "in_window.c",
        "syscalls.c",
    ]
    .map(|name| file("tests").join(name))
    .into()
}
