//! The C header and the Rust structures are one ABI: every size, offset, flag
//! and number is printed by a program the C compiler made, and compared.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::mem::{align_of, offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use kvm_memslots_uapi::{
    KVM_CAP_MEM_READONLY_FLIP, KVM_CAP_MEM_TRAP, KVM_CAP_USER_MEMORY_REGIONS,
    KVM_SET_USER_MEMORY_REGIONS, KVMIO, MemFlags, MemoryRegionsFlags, irqfd,
    kvm_userspace_memory_region2 as Entry, kvm_userspace_memory_regions as Header,
};

/// A C expression and the value that Rust has for it.
type Fact = (String, u64);

macro_rules! fields {
    ($facts:ident, $ty:ty, $name:literal, $($field:ident),+) => {$(
        $facts.push((
            format!("offsetof(struct {}, {})", $name, stringify!($field)),
            offset_of!($ty, $field) as u64,
        ));
        $facts.push((
            format!("sizeof(((struct {} *)0)->{})", $name, stringify!($field)),
            size_of_field(|of: &$ty| size_of_val(&of.$field)) as u64,
        ));
    )+};
}

/// The size of a field, which takes a value to ask.
fn size_of_field<T: Default>(size: impl Fn(&T) -> usize) -> usize {
    size(&T::default())
}

fn facts() -> Vec<Fact> {
    let mut facts = vec![
        ("sizeof(struct kvm_userspace_memory_regions)".into(), size_of::<Header>() as u64),
        ("sizeof(struct kvm_userspace_memory_region2)".into(), size_of::<Entry>() as u64),
        (
            "offsetof(struct kvm_userspace_memory_regions, entries)".into(),
            size_of::<Header>() as u64,
        ),
        ("KVMIO".into(), KVMIO.into()),
        ("KVM_CAP_USER_MEMORY_REGIONS".into(), KVM_CAP_USER_MEMORY_REGIONS.into()),
        ("KVM_CAP_IRQFD_NO_IRQBYPASS".into(), irqfd::KVM_CAP_IRQFD_NO_IRQBYPASS.into()),
        ("KVM_IRQFD_FLAG_NO_IRQBYPASS".into(), irqfd::KVM_IRQFD_FLAG_NO_IRQBYPASS.into()),
        ("KVM_SET_USER_MEMORY_REGIONS".into(), KVM_SET_USER_MEMORY_REGIONS),
        ("KVM_SET_USER_MEMORY_REGION2".into(), region2_request()),
        ("KVM_CAP_USER_MEMORY2".into(), kvm_bindings::KVM_CAP_USER_MEMORY2.into()),
        ("KVM_MEMORY_REGIONS_DRY_RUN".into(), MemoryRegionsFlags::DRY_RUN.bits().into()),
        ("KVM_MEM_LOG_DIRTY_PAGES".into(), MemFlags::LOG_DIRTY_PAGES.bits().into()),
        ("KVM_MEM_READONLY".into(), MemFlags::READONLY.bits().into()),
        ("KVM_MEM_GUEST_MEMFD".into(), MemFlags::GUEST_MEMFD.bits().into()),
        ("KVM_MEM_TRAP".into(), MemFlags::TRAP.bits().into()),
        ("KVM_CAP_MEM_TRAP".into(), KVM_CAP_MEM_TRAP.into()),
        ("KVM_CAP_MEM_READONLY_FLIP".into(), KVM_CAP_MEM_READONLY_FLIP.into()),
    ];
    fields!(facts, Header, "kvm_userspace_memory_regions", nr, flags, as_id, failed, reserved);
    fields!(
        facts,
        Entry,
        "kvm_userspace_memory_region2",
        slot,
        flags,
        guest_phys_addr,
        memory_size,
        userspace_addr,
        guest_memfd_offset,
        guest_memfd,
        pad1,
        pad2
    );
    facts
}

/// `_IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)`.
fn region2_request() -> u64 {
    nix::request_code_write!(KVMIO, 0x49, size_of::<Entry>())
}

/// Which `linux/kvm.h` the header is compiled beside.
#[derive(Debug, Clone, Copy, PartialEq)]
enum KvmHeader {
    /// The one installed.
    System,
    /// Before 6.8: no `kvm_userspace_memory_region2`.
    Old,
    /// 6.8 and later.
    New,
    /// One that defines the batch ABI and the trap flag itself.
    Merged,
}

const COMMON: &str = "\
#ifndef LINUX_KVM_H
#define LINUX_KVM_H
#include <linux/types.h>
#include <linux/ioctl.h>
#define KVMIO 0xAE
#define KVM_MEM_LOG_DIRTY_PAGES (1UL << 0)
#define KVM_MEM_READONLY (1UL << 1)
";
const REGION2: &str = "\
#define KVM_MEM_GUEST_MEMFD (1UL << 2)
#define KVM_CAP_USER_MEMORY2 231
struct kvm_userspace_memory_region2 {
	__u32 slot, flags;
	__u64 guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
	__u32 guest_memfd, pad1;
	__u64 pad2[14];
};
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
";
const BATCH: &str = "\
#define KVM_MEM_TRAP (1UL << 15)
#define KVM_CAP_MEM_TRAP 0x4d535450
#define KVM_CAP_MEM_READONLY_FLIP 0x4d53524f
#define KVM_CAP_USER_MEMORY_REGIONS 0x4d534c54
#define KVM_MEMORY_REGIONS_DRY_RUN (1UL << 0)
struct kvm_userspace_memory_regions {
	__u32 nr, flags, as_id, failed;
	__u64 reserved[6];
	struct kvm_userspace_memory_region2 entries[];
};
#define KVM_SET_USER_MEMORY_REGIONS _IOWR(KVMIO, 0xf9, struct kvm_userspace_memory_regions)
";

impl KvmHeader {
    /// The directory to search first; for the installed header one that is not
    /// there.
    fn write(self, dir: &Path) -> PathBuf {
        let text = match self {
            Self::System => return dir.join("none"),
            Self::Old => vec![COMMON],
            Self::New => vec![COMMON, REGION2],
            Self::Merged => vec![COMMON, REGION2, BATCH],
        };
        let include = dir.join(format!("{self:?}"));
        fs::create_dir_all(include.join("linux")).unwrap();
        fs::write(include.join("linux/kvm.h"), text.concat() + "#endif\n").unwrap();
        include
    }
}

/// A compiler that was found to work, with the language flags to call it with.
struct Compiler {
    program: String,
    suffix: &'static str,
}

impl Compiler {
    /// `$var`, or the first of `names` that runs.
    fn find(var: &str, names: &[&str], suffix: &'static str) -> Option<Self> {
        let asked = std::env::var(var).ok();
        let names = asked.as_deref().map_or_else(|| names.to_vec(), |name| vec![name]);
        let runs = |name: &&&str| Command::new(name).arg("--version").output().is_ok();
        names.iter().find(runs).map(|name| Self { program: (*name).to_owned(), suffix })
    }

    fn c() -> Option<Self> {
        Self::find("CC", &["cc", "gcc", "clang"], "c")
    }

    fn cxx() -> Option<Self> {
        Self::find("CXX", &["c++", "g++", "clang++"], "cc")
    }

    /// Compiles `source`, with all warnings being errors; what it said if it
    /// refused.
    fn compile(
        &self,
        dir: &Path,
        header: KvmHeader,
        source: &str,
        args: &[&str],
    ) -> Result<PathBuf, String> {
        let file = dir.join("layout").with_extension(self.suffix);
        let program = dir.join("layout");
        fs::write(&file, source).unwrap();
        let output = Command::new(&self.program)
            .args(["-Wall", "-Wextra", "-pedantic", "-Werror"])
            .args(args)
            // The kernel's own headers are not pedantic C99; ours is.
            .arg("-isystem")
            .arg(header.write(dir))
            .arg("-I")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/include"))
            .arg("-o")
            .arg(&program)
            .arg(&file)
            .output()
            .unwrap();
        if output.status.success() {
            Ok(program)
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

/// A program that prints a line `VALUE EXPRESSION` for each fact.
fn printing(facts: &[Fact]) -> String {
    let mut source =
        String::from("#include <stddef.h>\n#include <stdio.h>\n#include <kvm_memslots.h>\n");
    source.push_str("int main(void)\n{\n");
    for (expression, _) in facts {
        writeln!(source, "\tprintf(\"%lu %s\\n\", (unsigned long)({expression}),").unwrap();
        writeln!(source, "\t       \"{expression}\");").unwrap();
    }
    source + "\treturn 0;\n}\n"
}

/// A source that compiles if each fact is so; nothing of it is run.
fn asserting(facts: &[Fact]) -> String {
    let mut source = String::from("#include <stddef.h>\n#include <kvm_memslots.h>\n");
    for (expression, value) in facts {
        writeln!(source, "_Static_assert(({expression}) == {value}u, \"{expression}\");").unwrap();
    }
    source + "int main(void) { return 0; }\n"
}

fn assert_agrees(compiler: &Compiler, header: KvmHeader, args: &[&str]) {
    let facts = facts();
    let dir = tempfile::tempdir().unwrap();
    let said = compiler.compile(dir.path(), header, &printing(&facts), args);
    let program = said.unwrap_or_else(|e| panic!("{header:?} {args:?}:\n{e}"));
    let output = Command::new(program).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let c: BTreeMap<&str, u64> = stdout
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(value, expression)| (expression, value.parse().unwrap()))
        .collect();
    let rust: BTreeMap<&str, u64> = facts.iter().map(|(e, v)| (e.as_str(), *v)).collect();
    assert_eq!(c, rust, "C on the left, Rust on the right ({header:?} {args:?})");
}

/// Says why where the installed headers can't be compiled against.
fn system_headers(compiler: &Compiler, test: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let source = "#include <linux/kvm.h>\nint main(void) { return 0; }\n";
    let file = dir.path().join("probe").with_extension(compiler.suffix);
    fs::write(&file, source).unwrap();
    let output = Command::new(&compiler.program).arg("-fsyntax-only").arg(&file).output().unwrap();
    if !output.status.success() {
        eprintln!("SKIPPED {test}: no linux/kvm.h (Debian: linux-libc-dev)");
    }
    output.status.success()
}

#[test]
fn c_and_rust_agree() {
    let Some(cc) = Compiler::c() else {
        eprintln!("SKIPPED c_and_rust_agree: no C compiler (Debian: gcc)");
        return;
    };
    if !system_headers(&cc, "c_and_rust_agree") {
        return;
    }
    for header in [KvmHeader::System, KvmHeader::Old, KvmHeader::New, KvmHeader::Merged] {
        assert_agrees(&cc, header, &["-std=c99"]);
    }
    assert_agrees(&cc, KvmHeader::System, &["-std=gnu11"]);
}

#[test]
fn cxx_and_rust_agree() {
    let Some(cxx) = Compiler::cxx() else {
        eprintln!("SKIPPED cxx_and_rust_agree: no C++ compiler (Debian: g++)");
        return;
    };
    if !system_headers(&cxx, "cxx_and_rust_agree") {
        return;
    }
    for header in [KvmHeader::System, KvmHeader::Old, KvmHeader::New] {
        assert_agrees(&cxx, header, &["-std=c++11"]);
    }
}

/// 32-bit userspace on a 64-bit kernel has the same layout, so that the kernel
/// needs no compat handler.
#[test]
fn layout_is_that_of_32_bit_userspace() {
    let test = "layout_is_that_of_32_bit_userspace";
    if !cfg!(target_arch = "x86_64") {
        eprintln!("SKIPPED {test}: only x86-64 compilers take -m32");
        return;
    }
    let Some(cc) = Compiler::c() else {
        eprintln!("SKIPPED {test}: no C compiler (Debian: gcc)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    // Debian keeps asm/ where only the 64-bit compiler looks; it is the same.
    let args = ["-std=gnu11", "-m32", "-fsyntax-only", "-isystem", "/usr/include/x86_64-linux-gnu"];
    if let Err(e) = cc.compile(dir.path(), KvmHeader::New, &asserting(&[]), &args) {
        let e = e.lines().find(|line| line.contains("error")).unwrap_or("no reason given");
        eprintln!("SKIPPED {test}: {} can't compile for 32 bits: {e}", cc.program);
        return;
    }
    cc.compile(dir.path(), KvmHeader::New, &asserting(&facts()), &args).unwrap();
}

/// What the header defines is compared: a new macro or field fails this test
/// until it is in `facts`.
#[test]
fn nothing_of_the_header_is_left_out() {
    let header = include_str!("../include/kvm_memslots.h");
    let facts = facts();
    let known = |name: &str| facts.iter().any(|(expression, _)| expression.contains(name));
    let words = |line: &str| -> Vec<String> {
        line.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned).collect()
    };
    let mut seen = 0;
    for line in header.lines().map(str::trim) {
        let words = words(line);
        let name = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["", "define", name, ..] if name != "_KVM_MEMSLOTS_H" => name,
            ["__u32" | "__u64", field, ..] => field,
            _ => continue,
        };
        assert!(known(name), "{name} is in the header and not compared");
        seen += 1;
    }
    assert_eq!(seen, 11 + 5 + 9, "macros, fields of the batch, fields of the entry");
}

/// The header of a batch and the entries behind it have no alignment beyond
/// that of `u64`, which is what the buffer they live in has.
#[test]
fn alignment() {
    assert_eq!(align_of::<Header>(), align_of::<u64>());
    assert_eq!(align_of::<Entry>(), align_of::<u64>());
}
