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
    CBacking, CDoorbell, CError, CGate, CGsiRange, CLimits, CLine, CMsi, CObserver, COptions,
    CPreview, CRegion, CReport, CSlot, CSlotRange, CSlotUsage, CSpec, LABEL_SIZE,
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

fn compile(compiler: &str, args: &[&str], sources: &[PathBuf], program: &Path) {
    let output = Command::new(compiler)
        .args(["-Wall", "-Wextra", "-Werror", "-I", HEADERS])
        .arg("-o")
        .arg(program)
        .args(sources)
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
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let sources = ["program.c", "holes.c", "refused.c", "events.c"].map(|name| tests.join(name));
    let library_args = [library.to_str().unwrap(), "-std=gnu99", "-lpthread", "-ldl", "-lm"];
    compile(&cc, &library_args, &sources, &program);
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

fn size_of_field<T, F>(_: fn(&T) -> *const F) -> usize {
    size_of::<F>()
}

macro_rules! layout {
    ($facts:ident, $ty:ty, $name:literal, $($field:ident),+) => {
        $facts.push((format!("sizeof(struct {})", $name), size_of::<$ty>()));
        // A structure must not grow into padding, which C need not have written.
        let fields = 0 $(+ size_of_field(|it: &$ty| &raw const it.$field))+;
        assert_eq!(fields, size_of::<$ty>(), "padding in struct {}", $name);
        $($facts.push((
            format!("offsetof(struct {}, {})", $name, stringify!($field)),
            offset_of!($ty, $field),
        ));)+
    };
}

/// C expressions and the values that Rust has for them.
fn facts() -> Vec<(String, usize)> {
    let mut facts = vec![("KVM_MEMSLOTS_LABEL_SIZE".to_owned(), LABEL_SIZE)];
    layout!(facts, CGate, "kvm_memslots_gate", size, pause, resume, opaque);
    layout!(facts, CObserver, "kvm_memslots_observer", size, check, unmapping, mapped, opaque);
    layout!(facts, CDoorbell, "kvm_memslots_doorbell", size, region, addr, value, len, flags);
    layout!(facts, CMsi, "kvm_memslots_msi", size, address, data, devid, flags);
    layout!(facts, CLine, "kvm_memslots_line", size, gsi, irqchip, pin, flags, eventfd, resample);
    layout!(facts, CSlotRange, "kvm_memslots_slot_range", as_id, first, last);
    layout!(facts, CGsiRange, "kvm_memslots_gsi_range", first, last);
    layout!(
        facts,
        COptions,
        "kvm_memslots_options",
        size,
        flags,
        executor,
        holes,
        first_gsi,
        gate,
        reserved_slots,
        nr_reserved_slots,
        observers,
        nr_observers,
        harvest,
        harvest_opaque,
        own_routes,
        nr_own_routes,
        reserved_gsis,
        nr_reserved_gsis
    );
    layout!(
        facts,
        CLimits,
        "kvm_memslots_limits",
        size,
        page_size,
        slot_size,
        slots,
        batch,
        address_spaces,
        flags
    );
    facts_of_memory(&mut facts);
    facts
}

fn facts_of_memory(facts: &mut Vec<(String, usize)>) {
    layout!(
        facts,
        CBacking,
        "kvm_memslots_backing",
        size,
        hva,
        len,
        guest_memfd_offset,
        file_offset,
        guest_memfd,
        file,
        release,
        opaque,
        flags
    );
    layout!(
        facts,
        CSpec,
        "kvm_memslots_spec",
        size,
        id,
        gpa,
        len,
        backing,
        label,
        tag,
        flags,
        kind,
        as_id
    );
    layout!(
        facts,
        CRegion,
        "kvm_memslots_region",
        size,
        id,
        tag,
        gpa,
        len,
        hva,
        guest_memfd_offset,
        file_offset,
        guest_memfd,
        file,
        flags,
        kind,
        as_id,
        label
    );
    layout!(facts, CSlot, "kvm_memslots_slot", size, gpa, len, hva, flags, id, as_id);
    facts_of_reports(facts);
}

fn facts_of_reports(facts: &mut Vec<(String, usize)>) {
    layout!(
        facts,
        CReport,
        "kvm_memslots_report",
        size,
        ioctls,
        grace_periods,
        routing_calls,
        irqfd_calls,
        ioeventfd_calls,
        event_grace_periods,
        irqfd_shutdown_grace_periods,
        regions_merged,
        regions_cancelled,
        elapsed_ns,
        slots,
        executor,
        flags,
        last_dirty,
        opaque
    );
    layout!(
        facts,
        CPreview,
        "kvm_memslots_preview",
        size,
        ioctls,
        grace_periods,
        routing_calls,
        irqfd_calls,
        ioeventfd_calls,
        event_grace_periods,
        irqfd_shutdown_grace_periods,
        holes,
        slots,
        hole,
        opaque
    );
    layout!(facts, CSlotUsage, "kvm_memslots_slot_usage", size, used, available, capacity);
    layout!(
        facts,
        CError,
        "kvm_memslots_error",
        size,
        change,
        region,
        error,
        flags,
        part,
        index,
        device
    );
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
    compile(compiler, &[standard, "-pedantic"], &[file], &program);
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

/// The names in a text that are followed by this.
fn names(text: &str, by: char) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != by)
        .filter_map(|word| word.split_once(by).map(|(name, _)| name))
        .filter(|name| name.starts_with("kvm_memslots_"))
        .collect()
}

/// Every function of the header is in the shared library, and no other is
/// exported.
#[test]
fn the_library_has_what_the_header_declares() {
    let header = fs::read_to_string(Path::new(HEADERS).join("kvm_memslots_client.h")).unwrap();
    let declared = names(&header, '(');
    assert!(declared.len() > 50, "{declared:?}");
    let bytes = fs::read(library("libkvm_memslots_client", ".so")).unwrap();
    for name in &declared {
        let symbol = [&[0], name.as_bytes(), &[0]].concat();
        let found = bytes.windows(symbol.len()).any(|window| window == symbol);
        assert!(found, "{name} is declared and not defined");
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let calls = fs::read_dir(src.join("calls")).unwrap().map(|entry| entry.unwrap().path());
    let sources =
        calls.chain([src.join("failure.rs")]).map(|path| fs::read_to_string(path).unwrap());
    let sources = sources.collect::<String>().replace(" => ", "(");
    assert_eq!(names(&sources, '('), declared);
}
