//! The header, held against what Rust has: structures, constants, functions;
//! and against the standards of C and C++.
#![allow(clippy::unwrap_used)]

mod common;
mod signatures;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::{cc, compiles, cxx, file, said};
use kvm_memslots_client::{CONSTANTS, STRUCTURES};
use signatures::{defined, prototypes};

fn header() -> String {
    let parts = fs::read_dir(file("include/kvm_memslots_client")).unwrap();
    let mut all: Vec<PathBuf> = parts.map(|entry| entry.unwrap().path()).collect();
    all.push(file("include/kvm_memslots_client.h"));
    all.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// Each part says what it needs itself, and the header has them all.
#[test]
fn a_part_of_the_header_stands_alone() {
    let Some(cc) = cc() else {
        eprintln!("SKIPPED a_part_of_the_header_stands_alone: no C compiler (Debian: gcc)");
        return;
    };
    let whole = fs::read_to_string(file("include/kvm_memslots_client.h")).unwrap();
    for entry in fs::read_dir(file("include/kvm_memslots_client")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let include = format!("#include \"kvm_memslots_client/{name}\"\n");
        assert!(whole.contains(&include), "{include}");
        build(&cc, "-std=c99", "c", &(include + "int main(void) { return 0; }\n")).unwrap();
    }
}

/// What the README shows is C, for a VMM that has what it is about.
#[test]
fn the_code_of_the_readme_compiles() {
    let Some(cc) = cc() else {
        eprintln!("SKIPPED the_code_of_the_readme_compiles: no C compiler (Debian: gcc)");
        return;
    };
    let readme = fs::read_to_string(file("README.md")).unwrap();
    let code = readme.split("```c\n").nth(1).unwrap().split("```").next().unwrap();
    let takes = "int vm_fd, uint64_t ram_hva, uint64_t rom_hva, uint64_t ram_size";
    let source = format!(
        "#include <err.h>\n#include <kvm_memslots_client.h>\n\
         void vmm({takes});\nvoid vmm({takes})\n{{\n{code}}}\n"
    );
    let dir = tempfile::tempdir().unwrap();
    let (path, object) = (dir.path().join("readme.c"), dir.path().join("readme.o"));
    fs::write(&path, source).unwrap();
    let include = file("include");
    let args = ["-std=gnu99", "-c", "-I", include.to_str().unwrap()];
    compiles(&cc, &args, &[path], &object).unwrap();
}

/// The header without its comments, a macro a line.
fn code() -> String {
    let header = header().replace("\\\n", "");
    let parts = header.split("/*").enumerate();
    parts.map(|(n, part)| if n == 0 { part } else { part.split_once("*/").unwrap().1 }).collect()
}

/// Compiles a source against the header.
fn build(
    compiler: &str,
    standard: &str,
    suffix: &str,
    source: &str,
) -> Result<(tempfile::TempDir, PathBuf), String> {
    let dir = tempfile::tempdir().unwrap();
    let (file, program) = (dir.path().join(format!("header.{suffix}")), dir.path().join("header"));
    fs::write(&file, source).unwrap();
    let include = common::file("include");
    let args = [standard, "-pedantic", "-I", include.to_str().unwrap()];
    compiles(compiler, &args, &[file], &program)?;
    Ok((dir, program))
}

/// C expressions and the values that Rust has for them.
fn facts() -> Vec<(String, usize)> {
    let constants = CONSTANTS.iter().map(|(name, value)| ((*name).to_owned(), *value as usize));
    let structures = STRUCTURES.iter().flat_map(|of| {
        let field = |(field, at, size): &_| {
            let offset = (format!("offsetof(struct {}, {field})", of.name), *at);
            [offset, (format!("sizeof(((struct {} *)0)->{field})", of.name), *size)]
        };
        let size = (format!("sizeof(struct {})", of.name), of.size);
        std::iter::once(size).chain(of.fields.iter().flat_map(field))
    });
    constants.chain(structures).collect()
}

/// The values as the compiler has them, a line each.
fn as_compiled(compiler: &str, standard: &str, suffix: &str) -> Vec<usize> {
    let mut source = String::from("#include <stdio.h>\n#include \"kvm_memslots_client.h\"\n");
    source.push_str("int main(void)\n{\n");
    for (expression, _) in facts() {
        writeln!(source, "\tprintf(\"%zu\\n\", (size_t){expression});").unwrap();
    }
    source.push_str("\treturn 0;\n}\n");
    let (_dir, program) = build(compiler, standard, suffix, &source).unwrap();
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

/// The header alone, as each standard has it that the compiler knows. The first
/// one it has to know.
fn assert_clean(compiler: &str, standards: &[&str], suffix: &str) {
    let source = "#include \"kvm_memslots_client.h\"\nint main() { return 0; }\n";
    let source = if suffix == "c" { source.replace("()", "(void)") } else { source.to_owned() };
    let strict = "#pragma GCC diagnostic error \"-Wconversion\"\n";
    for standard in standards {
        let flag = format!("-std={standard}");
        // Of what is no C yet, an empty program says whether it is known.
        if let Err(why) = build(compiler, &flag, suffix, "int x;int main(void) { return x; }\n") {
            assert_ne!(standard, &standards[0], "{why}");
            eprintln!("SKIPPED the header in {standard}: {compiler} does not know it");
            continue;
        }
        build(compiler, &flag, suffix, &(strict.to_owned() + &source)).unwrap();
    }
}

#[test]
fn the_header_is_clean_in_all_standards() {
    match cc() {
        Some(cc) => assert_clean(&cc, &["c99", "c11", "c17", "c2x", "c23"], "c"),
        None => eprintln!("SKIPPED the header in C: no C compiler (Debian: gcc)"),
    }
    match cxx() {
        Some(cxx) => assert_clean(&cxx, &["c++11", "c++14", "c++17", "c++20"], "cc"),
        None => eprintln!("SKIPPED the header in C++: no C++ compiler (Debian: g++)"),
    }
}

/// Every constant of the header is one of Rust's; the other way round, C would
/// not compile.
#[test]
fn no_constant_is_the_headers_alone() {
    let code = code();
    let enums = code.lines().map(str::trim).filter_map(|line| line.split_once(" = "));
    let macros = code.lines().filter_map(|line| line.strip_prefix("#define "));
    let macros = macros.filter_map(|line| line.split_once(char::is_whitespace));
    let names = enums.chain(macros).map(|(name, _)| name);
    let names: BTreeSet<&str> = names.filter(|name| name.starts_with("KVM_MEMSLOTS_")).collect();
    let ours: BTreeSet<&str> = CONSTANTS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ours);
}

/// Every structure that has a body is held against Rust's.
#[test]
fn no_structure_is_the_headers_alone() {
    let code = code();
    let named = code.lines().filter_map(|line| line.strip_prefix("struct ")?.strip_suffix(" {"));
    let named: BTreeSet<String> = named.map(str::to_owned).collect();
    let known = facts().into_iter().filter_map(|(expression, _)| {
        Some(expression.strip_prefix("sizeof(struct ")?.strip_suffix(')')?.to_owned())
    });
    assert_eq!(named, known.collect());
}

/// They can grow: their size comes first. Ranges can't, and are in lists.
#[test]
fn structures_begin_with_their_size() {
    const RANGES: [&str; 3] = ["slot_range", "gsi_range", "bar_range"];
    for of in STRUCTURES {
        let size = of.fields.first() == Some(&("size", 0, size_of::<usize>()));
        assert!(size != RANGES.iter().any(|range| of.name.ends_with(range)), "{}", of.name);
    }
}

/// Flags that a caller gives are refused where they are not known.
#[test]
fn all_flags_are_in_the_test_of_flags() {
    const RESULTS: [&str; 10] = [
        "error",
        "event_limits",
        "ioeventfd",
        "irqfd",
        "region",
        "report",
        "served",
        "slot",
        "syscall",
        "zone_write",
    ];
    let tested = fs::read_to_string(file("tests/flags.c")).unwrap();
    let mut seen = 0;
    for of in STRUCTURES.iter().filter(|of| of.fields.iter().any(|field| field.0 == "flags")) {
        let name = of.name.strip_prefix("kvm_memslots_").unwrap();
        let is_tested = tested.contains(&format!(" = INIT({});", of.name));
        assert!(is_tested != RESULTS.contains(&name), "{name}");
        seen += 1;
    }
    for declared in code().split(';').filter(|text| text.contains("uint32_t flags")) {
        let Some((before, _)) = declared.split_once('(') else { continue };
        let name = before.rsplit([' ', '*', '\n']).next().unwrap();
        assert!(tested.contains(&format!("{name}(")), "{name}");
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn functions_take_what_the_header_says() {
    let declared = prototypes(&code());
    assert!(declared.len() > 90, "{declared:?}");
    let defined = defined();
    for (name, declared) in &declared {
        assert_eq!(Some(declared), defined.get(name), "{name}, the header on the left");
    }
    assert_eq!(declared.keys().collect::<Vec<_>>(), defined.keys().collect::<Vec<_>>());
}

#[test]
fn what_the_shared_library_exports_is_what_the_header_declares() {
    let map = fs::read_to_string(file("kvm_memslots_client.map")).unwrap();
    let exported: BTreeSet<&str> = map
        .lines()
        .filter_map(|line| line.trim().strip_suffix(';'))
        .filter(|name| name.starts_with("kvm_memslots_"))
        .collect();
    let declared = prototypes(&code());
    assert_eq!(exported, declared.keys().map(String::as_str).collect());
}

/// What Rust offers is in the header, or the README says where it is in C, or why
/// not: by the names of functions.
#[test]
fn nothing_of_rusts_is_forgotten() {
    const OF_ALL_TYPES: [&str; 13] = [
        "fmt",
        "clone",
        "hash",
        "source",
        "drop",
        "eq",
        "cmp",
        "partial_cmp",
        "from",
        "from_raw",
        "to_raw",
        "as_raw_fd",
        "as_fd",
    ];
    let api = fs::read_to_string(file("../public-api.txt")).unwrap();
    let known = header() + &fs::read_to_string(file("README.md")).unwrap();
    let known = known.to_lowercase().replace(|c: char| !c.is_alphanumeric(), "_");
    let mut seen = 0;
    for line in api.lines().filter(|line| line.contains("fn kvm_memslots::")) {
        let path = line.split("fn ").nth(1).unwrap().split('(').next().unwrap();
        // Without what is generic about it.
        let mut depth = 0;
        let plain = path.chars().filter(|c| {
            depth += i32::from(*c == '<') - i32::from(*c == '>');
            depth == 0 && *c != '>'
        });
        let plain = plain.collect::<String>();
        let name = plain.rsplit("::").next().unwrap();
        let is_there = known.contains(&format!("_{name}_"));
        assert!(is_there || OF_ALL_TYPES.contains(&name), "{line}");
        seen += 1;
    }
    assert!(seen > 200, "{seen}");
    // Constants: the lists of system calls are the only ones of their kind.
    let constants = api.lines().filter_map(|line| line.strip_prefix("pub const kvm_memslots::"));
    let lists = constants.filter_map(|line| line.strip_prefix("seccomp::")?.split(':').next());
    let lists: Vec<&str> = lists.collect();
    assert!(lists.len() > 10, "{lists:?}");
    for list in lists {
        let name = format!("KVM_MEMSLOTS_SYSCALLS_{list}");
        let in_c = CONSTANTS.iter().any(|(known, _)| *known == name);
        let why_not = known.contains(&format!("seccomp__{}_", list.to_lowercase()));
        assert!(in_c || why_not, "{list}");
    }
}

/// Whatever errno the library comes up with has its line in the table.
#[test]
fn every_errno_has_a_meaning() {
    let header = header();
    let table = header.lines().filter_map(|line| line.strip_prefix(" *\t")?.split_once('\t'));
    let table: BTreeSet<&str> = table.map(|(name, _)| name).collect();
    let error = fs::read_to_string(file("../src/error/errno.rs")).unwrap();
    let errno = error.split("fn errno(&self) -> Errno {\n        match self").nth(1).unwrap();
    let errno = errno.split("\n    }\n").next().unwrap();
    let pci = fs::read_to_string(file("../src/pci/error.rs")).unwrap();
    let window = fs::read_to_string(file("../src/window/error.rs")).unwrap();
    let window = window.split("pub fn errno").nth(1).unwrap().split("\n    }\n").next().unwrap();
    let mut sources = errno.to_owned() + &pci + window;
    let src = [file("src"), file("src/calls"), file("src/types")];
    for dir in src.iter().flat_map(|dir| fs::read_dir(dir).unwrap()) {
        let path = dir.unwrap().path();
        if path.is_file() {
            let text = fs::read_to_string(path).unwrap();
            sources.push_str(text.split("#[cfg(test)]").next().unwrap());
        }
    }
    let used = sources.split("Errno::E").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit());
        format!("E{}", &rest[..end.unwrap_or(0)])
    });
    let used: BTreeSet<String> = used.collect();
    assert_eq!(used.iter().map(String::as_str).collect::<BTreeSet<_>>(), table);

    // And a test that comes to it.
    let tests = fs::read_dir(file("tests")).unwrap().map(|entry| entry.unwrap().path());
    let tests = tests.filter(|path| path.is_file() && !path.ends_with("header.rs"));
    let tests: String = tests.map(|path| fs::read_to_string(path).unwrap()).collect();
    for errno in table {
        let (in_c, in_rust) = (format!(" {errno},"), format!("Errno::{errno}.raw()"));
        assert!(tests.contains(&in_c) || tests.contains(&in_rust), "no test of {errno}");
    }
}
