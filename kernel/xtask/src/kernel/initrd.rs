//! The guest's file system: busybox, `/init`, the programs, and what to run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::elf::{self, Unfit};
use super::target::{self, Arch};
use super::{cross, tools};
use crate::{apt, run};

const INIT: &str = include_str!("init.sh");

/// A program for the guest.
#[derive(Debug)]
pub(super) struct Program {
    /// Its name in /bin.
    pub(super) name: String,
    content: Vec<u8>,
}

/// A file of the guest's that is no program to be checked.
#[derive(Debug, Clone)]
pub(super) struct GuestFile {
    /// Without the `/` in front.
    pub(super) path: String,
    pub(super) content: Vec<u8>,
    pub(super) executable: bool,
}

/// What the guest runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Command {
    pub(super) words: Vec<String>,
    /// Names and values.
    pub(super) env: Vec<(String, String)>,
}

impl Program {
    /// The static program or script at `path`.
    pub(super) fn of(path: &Path, arch: Arch) -> Result<Self> {
        let content = fs::read(path).with_context(|| format!("{}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self::new(name, content, arch).with_context(|| format!("{}", path.display()))
    }

    fn new(name: String, content: Vec<u8>, arch: Arch) -> Result<Self> {
        match elf::check(&content, arch) {
            Ok(()) => Ok(Self { name, content }),
            Err(Unfit::NotAProgram) => bail!("no ELF program of 64 bits and no script"),
            Err(Unfit::OtherArchitecture { machine }) => {
                bail!("a program for another architecture than {} (ELF {machine})", arch.name())
            }
            Err(Unfit::Dynamic) => bail!(
                "dynamically linked, and the guest has no libraries: link it with -static, or in \
                 Rust with RUSTFLAGS='-C target-feature=+crt-static' and --target"
            ),
        }
    }

    /// What it consists of.
    pub(super) fn content(&self) -> &[u8] {
        &self.content
    }

    /// The same under another name.
    pub(super) fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }
}

impl Command {
    /// As a script.
    fn script(&self) -> String {
        let set =
            |(name, value): &(String, String)| format!("export {name}={}", run::quoted(value));
        let mut lines: Vec<String> = self.env.iter().map(set).collect();
        let words: Vec<String> = self.words.iter().map(|word| run::quoted(word)).collect();
        lines.push(words.join(" "));
        lines.join("\n") + "\n"
    }
}

/// busybox as a static program for `arch`.
pub(super) fn busybox(arch: Arch) -> Result<Program> {
    let busybox = if arch.is_own() { own_busybox(arch) } else { foreign_busybox(arch) };
    busybox.map(|busybox| busybox.named("busybox"))
}

const BUSYBOX: &str = "busybox-static";

fn busybox_in(dirs: &[PathBuf], arch: Arch) -> Option<Program> {
    dirs.iter().find_map(|dir| Program::of(&dir.join("busybox"), arch).ok())
}

fn own_busybox(arch: Arch) -> Result<Program> {
    let dirs = ["/bin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from);
    tools::ensure(BUSYBOX, || busybox_in(&dirs, arch).is_some())?;
    busybox_in(&dirs, arch).context("no static busybox")
}

/// Unpacked, not installed: the machine may not have packages of `arch`.
fn foreign_busybox(arch: Arch) -> Result<Program> {
    let dir = target::dir().join(format!("busybox-{}", arch.name()));
    let dirs = ["bin", "usr/bin"].map(|bin| dir.join(bin));
    if let Some(busybox) = busybox_in(&dirs, arch) {
        return Ok(busybox);
    }
    if !apt::available() {
        bail!("guests need busybox for {}, and there is no apt here to fetch it", arch.name());
    }
    cross::foreign_apt(arch)?.unpack_alone(&[BUSYBOX], &dir)?;
    busybox_in(&dirs, arch).with_context(|| format!("no static busybox in {BUSYBOX}"))
}

/// An archive that the kernel unpacks as its root.
pub(super) fn archive(
    busybox: &Program,
    programs: &[&Program],
    files: &[GuestFile],
    command: &Command,
) -> Vec<u8> {
    let mut archive = Cpio::default();
    for dir in DIRECTORIES.iter().copied().chain(parents(files)) {
        archive.add(dir, DIRECTORY | 0o755, b"");
    }
    archive.add("init", FILE | 0o755, INIT.as_bytes());
    archive.add("cmd", FILE | 0o644, command.script().as_bytes());
    for Program { name, content } in [busybox].iter().chain(programs) {
        archive.add(&format!("bin/{name}"), FILE | 0o755, content);
    }
    archive.add_all(files);
    archive.end()
}

/// An archive of `files` and no others, for a guest that is not the lab's.
pub(super) fn plain(files: &[GuestFile]) -> Vec<u8> {
    let mut archive = Cpio::default();
    for dir in DIRECTORIES.iter().copied().chain(parents(files)) {
        archive.add(dir, DIRECTORY | 0o755, b"");
    }
    archive.add_all(files);
    archive.end()
}

const DIRECTORIES: [&str; 5] = ["bin", "dev", "proc", "sys", "tmp"];

/// The further folders that `files` are in, outer ones first.
fn parents(files: &[GuestFile]) -> BTreeSet<&str> {
    let of = |file: &'_ GuestFile| -> Vec<usize> {
        file.path.match_indices('/').map(|(at, _)| at).collect()
    };
    let all = files.iter().flat_map(|file| of(file).into_iter().map(|at| &file.path[..at]));
    all.filter(|dir| !DIRECTORIES.contains(dir)).collect()
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// An archive in the "new ASCII" format, as in the kernel's
/// `Documentation/driver-api/early-userspace/buffer-format.rst`.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    inodes: u32,
}

impl Cpio {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inodes += 1;
        let links = 1;
        let fields = [
            self.inodes,
            mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            content.len() as u32,
            0, // device, major
            0, // and minor
            0, // device that the file is, major
            0, // and minor
            name.len() as u32 + 1,
            0, // no checksum
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn add_all(&mut self, files: &[GuestFile]) {
        for GuestFile { path, content, executable } in files {
            let mode = if *executable { 0o755 } else { 0o644 };
            self.add(path, FILE | mode, content);
        }
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::{Command as Process, Stdio};

    use super::*;

    #[test]
    fn an_archive_is_what_cpio_reads() {
        if !tools::on_path("cpio") {
            eprintln!("SKIPPED an_archive_is_what_cpio_reads: no cpio");
            return;
        }
        let program = |name: &str, content: &[u8]| Program {
            name: name.to_owned(),
            content: content.to_owned(),
        };
        let command = Command { words: vec!["/bin/x".to_owned()], env: Vec::new() };
        let file = |path: &str, executable| GuestFile {
            path: path.to_owned(),
            content: path.as_bytes().to_owned(),
            executable,
        };
        let files = [file("a/b/c", false), file("a/d", true), file("bin/e", true)];
        let programs = [&program("x", b"12345")];
        let bytes = archive(&program("busybox", b"box"), &programs, &files, &command);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("archive"), bytes).unwrap();
        let cpio = Process::new("cpio")
            .args(["--extract", "--quiet", "--file", "archive"])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .status();
        assert!(cpio.unwrap().success());
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("bin/busybox"), "box");
        assert_eq!(read("bin/x"), "12345");
        assert_eq!(read("cmd"), "/bin/x\n");
        assert_eq!(read("init"), INIT);
        assert!(dir.path().join("proc").is_dir());
        for file in files {
            assert_eq!(read(&file.path), file.path);
        }
    }

    #[test]
    fn a_header() {
        let mut cpio = Cpio::default();
        cpio.add("ab", FILE | 0o755, b"12345");
        let expected = "070701\
            00000001000081ed000000000000000000000001000000000000000500000000000000000000000000000000\
            0000000300000000ab\0\0\0\0\x31\x32\x33\x34\x35\0\0\0";
        assert_eq!(String::from_utf8(cpio.bytes).unwrap(), expected);
    }

    #[test]
    fn commands_arrive_as_they_were_given() {
        let command = Command {
            words: vec!["/bin/x".into(), "a b".into(), "it's".into()],
            env: vec![("A".into(), "1 2".into())],
        };
        assert_eq!(command.script(), "export A='1 2'\n/bin/x 'a b' 'it'\\''s'\n");
    }

    #[test]
    fn programs_that_can_not_run() {
        let e = Program::new("x".into(), b"text".to_vec(), Arch::X86_64).unwrap_err();
        assert!(e.to_string().contains("no ELF"));
        let me = fs::read("/proc/self/exe").unwrap();
        if cfg!(all(target_arch = "x86_64", not(target_feature = "crt-static"))) {
            let e = Program::new("x".into(), me.clone(), Arch::X86_64).unwrap_err();
            assert!(e.to_string().contains("crt-static"));
            let e = Program::new("x".into(), me, Arch::Arm64).unwrap_err();
            assert!(e.to_string().contains("arm64"));
        }
    }
}
