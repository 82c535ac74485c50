//! The C interface, from C: a program compiled and linked as a VMM would, run
//! on KVM and on the model; and the header held against Rust's structures.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use kvm_memslots_client::{
    CGate, CLimits, COptions, CPreview, CRegion, CRegionId, CReport, CSlotRange, CSpec, LABEL_SIZE,
};

const HEADERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include");

/// `$CC`, or the first C compiler there is.
fn cc() -> Option<String> {
    compiler("CC", ["cc", "gcc", "clang"])
}

/// `$CXX`, or the first C++ compiler there is.
fn cxx() -> Option<String> {
    compiler("CXX", ["c++", "g++", "clang++"])
}

fn compiler(var: &str, names: [&str; 3]) -> Option<String> {
    let runs = |name: &String| Command::new(name).arg("--version").output().is_ok();
    env::var(var).map_or_else(|_| names.map(str::to_owned).into_iter().find(runs), Some)
}

/// The library that cargo built beside this test, the latest of its kind.
fn library(prefix: &str, suffix: &str) -> PathBuf {
    let dir = env::current_exe().unwrap().parent().unwrap().to_owned();
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(prefix) && name.ends_with(suffix)
    };
    let built = |path: &PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let found = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).filter(ours);
    found.max_by_key(built).unwrap_or_else(|| panic!("no {prefix}*{suffix} in {}", dir.display()))
}

fn compile(compiler: &str, args: &[&str], source: &Path, program: &Path) {
    let output = Command::new(compiler)
        .args(["-Wall", "-Wextra", "-Werror", "-I", HEADERS])
        .arg("-o")
        .arg(program)
        .arg(source)
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Builds the program against the static or the shared library and runs it.
fn run(test: &str, on: &str, library: &Path) {
    let Some(cc) = cc() else {
        eprintln!("SKIPPED {test}: no C compiler (Debian: gcc)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/program.c");
    let library_args = [library.to_str().unwrap(), "-std=gnu99", "-lpthread", "-ldl", "-lm"];
    compile(&cc, &library_args, &source, &program);
    let output = Command::new(&program)
        .arg(on)
        .env("LD_LIBRARY_PATH", library.parent().unwrap())
        .output()
        .unwrap();
    match output.status.code() {
        Some(0) => {}
        Some(77) => eprintln!("SKIPPED {test}: {}", said(&output).trim()),
        _ => panic!("{}: {}", output.status, said(&output)),
    }
}

#[test]
fn a_c_program_on_the_model() {
    run("a_c_program_on_the_model", "model", &library("libkvm_memslots_client", ".a"));
}

#[test]
fn a_c_program_on_kvm() {
    run("a_c_program_on_kvm", "kvm", &library("libkvm_memslots_client", ".a"));
}

#[test]
fn a_c_program_with_the_shared_library() {
    let library = library("libkvm_memslots_client", ".so");
    run("a_c_program_with_the_shared_library", "model", &library);
}

macro_rules! layout {
    ($facts:ident, $ty:ty, $name:literal, $($field:ident),+) => {
        $facts.push((format!("sizeof(struct {})", $name), size_of::<$ty>()));
        $($facts.push((
            format!("offsetof(struct {}, {})", $name, stringify!($field)),
            offset_of!($ty, $field),
        ));)+
    };
}

/// C expressions and the values that Rust has for them.
fn facts() -> Vec<(String, usize)> {
    let mut facts = vec![("KVM_MEMSLOTS_LABEL_SIZE".to_owned(), LABEL_SIZE)];
    layout!(facts, CRegionId, "kvm_memslots_region_id", space, index, generation);
    layout!(facts, CGate, "kvm_memslots_gate", pause, resume, opaque);
    layout!(facts, CSlotRange, "kvm_memslots_slot_range", first, last);
    layout!(
        facts,
        COptions,
        "kvm_memslots_options",
        address_space,
        manual_dirty_log,
        executor,
        holes,
        gate,
        reserved,
        nr_reserved
    );
    layout!(
        facts,
        CSpec,
        "kvm_memslots_spec",
        gpa,
        size,
        hva,
        kind,
        flags,
        guest_memfd_offset,
        guest_memfd,
        alone,
        label
    );
    layout!(
        facts,
        CRegion,
        "kvm_memslots_region",
        id,
        kind,
        gpa,
        size,
        hva,
        guest_memfd_offset,
        guest_memfd,
        flags,
        alone,
        label
    );
    layout!(
        facts,
        CReport,
        "kvm_memslots_report",
        ioctls,
        grace_periods,
        regions_merged,
        regions_cancelled,
        elapsed_ns,
        slots,
        executor,
        vcpus_paused
    );
    layout!(facts, CPreview, "kvm_memslots_preview", ioctls, grace_periods, holes, slots);
    layout!(facts, CLimits, "kvm_memslots_limits", page_size, region_size, slots, batch);
    facts
}

/// The values as the compiler has them, a line each.
fn as_compiled(compiler: &str, standard: &str, suffix: &str) -> Vec<usize> {
    let mut source = String::from("#include <stdio.h>\n#include \"kvm_memslots_client.h\"\n");
    source.push_str("int main(void)\n{\n");
    for (expression, _) in facts() {
        writeln!(source, "\tprintf(\"%zu\\n\", (size_t){expression});").unwrap();
    }
    source.push_str("\treturn 0;\n}\n");
    let dir = tempfile::tempdir().unwrap();
    let (file, program) = (dir.path().join(format!("layout.{suffix}")), dir.path().join("layout"));
    fs::write(&file, source).unwrap();
    compile(compiler, &[standard, "-pedantic"], &file, &program);
    let output = Command::new(program).output().unwrap();
    said(&output).lines().map(|line| line.parse().unwrap()).collect()
}

fn assert_agrees(compiler: &str, standard: &str, suffix: &str) {
    let values = as_compiled(compiler, standard, suffix);
    assert_eq!(values.len(), facts().len());
    for (value, (expression, expected)) in values.into_iter().zip(facts()) {
        assert_eq!(value, expected, "{expression}, C on the left, Rust on the right");
    }
}

#[test]
fn the_header_agrees_in_c() {
    match cc() {
        Some(cc) => assert_agrees(&cc, "-std=c99", "c"),
        None => eprintln!("SKIPPED the_header_agrees_in_c: no C compiler (Debian: gcc)"),
    }
}

#[test]
fn the_header_agrees_in_cxx() {
    match cxx() {
        Some(cxx) => assert_agrees(&cxx, "-std=c++11", "cc"),
        None => eprintln!("SKIPPED the_header_agrees_in_cxx: no C++ compiler (Debian: g++)"),
    }
}

/// Every function of the header is in the shared library, and nothing else
/// under this name.
#[test]
fn the_library_has_what_the_header_declares() {
    let header = fs::read_to_string(Path::new(HEADERS).join("kvm_memslots_client.h")).unwrap();
    let declared: BTreeSet<&str> = header
        .split(|c: char| !c.is_alphanumeric() && c != '_' && c != '(')
        .filter_map(|word| word.split_once('(').map(|(name, _)| name))
        .filter(|name| name.starts_with("kvm_memslots_"))
        .collect();
    assert!(declared.len() > 15, "{declared:?}");
    let bytes = fs::read(library("libkvm_memslots_client", ".so")).unwrap();
    for name in &declared {
        let symbol = [&[0], name.as_bytes(), &[0]].concat();
        let found = bytes.windows(symbol.len()).any(|window| window == symbol);
        assert!(found, "{name} is declared and not defined");
    }
    let calls = include_str!("../src/calls.rs").matches("#[unsafe(no_mangle)]").count();
    assert_eq!(declared.len(), calls + 1, "functions of calls.rs, and last_error");
}
