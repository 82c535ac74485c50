//! Programs that are no VMMs, or no ordinary ones, with the library preloaded.

#![cfg(target_arch = "x86_64")]
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_wrap, clippy::cast_sign_loss)]

#[path = "../common/mod.rs"]
mod common;
mod pages;
mod played;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{NO_LIBRARY, library, skip};
use played::{PART, SAID};
use serde_json::Value;

/// Plays a part when it is started again for that; nothing in a run of the tests.
#[test]
fn part() {
    if let Some(part) = std::env::var_os(PART) {
        played::play(part.to_str().unwrap());
    }
}

/// This test's program, to play `part` in `dir`.
fn player(program: &Path, part: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["--exact", "part", "--nocapture", "--test-threads=1"]);
    command.env(PART, part).env(SAID, dir.join("said")).current_dir(dir);
    command.env("KVM_MEMSLOTS_PRELOAD", "defer");
    command
}

fn said(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("said")).unwrap_or_default()
}

/// `output` as a failure says it.
fn shown(output: &Output) -> String {
    let how = (output.status.code(), output.status.signal());
    format!("{how:?} {}", String::from_utf8_lossy(&output.stderr))
}

/// The files of statistics in `dir`, and what they say.
fn stats(dir: &Path) -> Vec<(String, Value)> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let stats = files.filter(|path| path.extension().is_some_and(|is| is == "json"));
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
    };
    stats.map(read).collect()
}

/// The same output, status and errors; and no statistics, as there was no VM.
#[test]
fn programs_that_are_no_vmms_run_as_they_do() {
    let name = "programs_that_are_no_vmms_run_as_they_do";
    let Some(library) = library() else { return skip(name, NO_LIBRARY) };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("listed"), "so").unwrap();
    let programs: [&[&str]; 6] = [
        &["ls", "-l"],
        &["ls", "/nowhere"],
        &["cat", "/proc/version"],
        &["sh", "-c", "for n in 1 2 3; do (echo $n); done; echo end | cat; exec sh -c 'exit 7'"],
        &["sh", "-c", "sleep 0.1 & wait $!; trap 'echo caught; exit 3' TERM; kill $$"],
        // A terminal's call, which is none of KVM's.
        &["stty", "-a"],
    ];
    for program in programs {
        let run = |library: Option<&Path>| {
            let mut command = Command::new(program[0]);
            command.args(&program[1..]).current_dir(dir.path());
            if let Some(library) = library {
                command.env("LD_PRELOAD", library);
                command.env("KVM_MEMSLOTS_PRELOAD_STATS", "stats-%p.json");
            }
            command.output()
        };
        let Ok(without) = run(None) else {
            skip(name, &format!("no {}", program[0]));
            continue;
        };
        let with = run(Some(&library)).unwrap();
        assert_eq!(with, without, "{program:?}");
    }
    assert_eq!(stats(dir.path()), []);
}

/// It forks twice, leaves its directory and closes all descriptors: its statistics
/// are its own, and where it began.
#[test]
fn a_daemon_writes_its_own_statistics() {
    let name = "a_daemon_writes_its_own_statistics";
    let Some(library) = library() else { return skip(name, NO_LIBRARY) };
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = player(&std::env::current_exe().unwrap(), "daemon", dir.path());
    daemon.env("LD_PRELOAD", library).env("KVM_MEMSLOTS_PRELOAD_STATS", "-,stats-%p.json");
    let output = daemon.output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    let said = said(dir.path());
    let Some(pid) = said.strip_prefix("daemon ") else { return skip(name, &said) };
    let stats = stats(dir.path());
    let [(file, daemon)] = &stats[..] else { panic!("{stats:?}") };
    assert_eq!(*file, format!("stats-{pid}.json"));
    assert_eq!((&daemon["vms"], &daemon["vcpus"]), (&1.into(), &0.into()));
    assert!(
        daemon["flips"].as_u64().is_some() && daemon["deferred"].as_u64() > Some(0),
        "{daemon}"
    );
    // Its descriptor 2 was something else by then.
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("kvm-memslots-preload: 1 VMs"), "{stderr}");
}

/// A VM goes on into another program, where the library begins anew.
#[test]
fn a_vm_that_is_inherited_is_left_alone() {
    let name = "a_vm_that_is_inherited_is_left_alone";
    let Some(library) = library() else { return skip(name, NO_LIBRARY) };
    let run = |library: Option<&Path>| {
        let dir = tempfile::tempdir().unwrap();
        let mut command = player(&std::env::current_exe().unwrap(), "inherits", dir.path());
        if let Some(library) = library {
            command.env("LD_PRELOAD", library);
            command.env("KVM_MEMSLOTS_PRELOAD_STATS", "stats-%p.json");
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", shown(&output));
        (said(dir.path()), stats(dir.path()))
    };
    let (without, _) = run(None);
    if !without.starts_with("inherited: -1") {
        return skip(name, &without);
    }
    let (with, stats) = run(Some(&library));
    assert_eq!(with, without);
    // Of the second program: the first one had no end that writes any.
    let [(_, second)] = &stats[..] else { panic!("{stats:?}") };
    assert_eq!(second["vms"], 1, "{second}");
}

/// Beyond those that can be told from one another all passes.
#[test]
fn more_vms_than_there_are_marks() {
    let name = "more_vms_than_there_are_marks";
    let Some(library) = library() else { return skip(name, NO_LIBRARY) };
    let dir = tempfile::tempdir().unwrap();
    let mut command = player(&std::env::current_exe().unwrap(), "many", dir.path());
    command.env("LD_PRELOAD", library).env("KVM_MEMSLOTS_PRELOAD_STATS", "stats.json");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    let said = said(dir.path());
    if said != "many" {
        return skip(name, &said);
    }
    let stats = stats(dir.path());
    let [(_, many)] = &stats[..] else { panic!("{stats:?}") };
    let followed = many["by_vm"].as_array().unwrap();
    assert_eq!((&many["vms"], followed.len()), (&played::MANY.into(), 128));
    assert!(followed.iter().all(|vm| vm["asked"] == 20 && vm["deferred"] == 7));
}

/// What is said by who plays `part`, with the library or without.
fn says(part: &str, library: Option<&Path>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut command = player(&std::env::current_exe().unwrap(), part, dir.path());
    if let Some(library) = library {
        command.env("LD_PRELOAD", library);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{part}, {library:?}: {}", shown(&output));
    said(dir.path())
}

/// Locks that threads of the parent have are nobody's in a child.
#[test]
fn a_child_waits_for_no_thread_of_its_parents() {
    let name = "a_child_waits_for_no_thread_of_its_parents";
    let Some(library) = library() else { return skip(name, NO_LIBRARY) };
    for library in [None, Some(&*library)] {
        let said = says("forks", library);
        if !said.starts_with("forked") {
            return skip(name, &said);
        }
        assert_eq!(said, "forked: {0: 500}, the other thread: true", "{library:?}");
    }
}

/// What `/proc` says of its process is longer then than what is read at once.
#[test]
fn a_program_in_thousands_of_groups_is_followed() {
    let name = "a_program_in_thousands_of_groups_is_followed";
    let Some(library) = library() else { return skip(name, NO_LIBRARY) };
    // SAFETY: has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return skip(name, "only root can join groups");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = player(&std::env::current_exe().unwrap(), "churns", dir.path());
    command.env("LD_PRELOAD", library).env("KVM_MEMSLOTS_PRELOAD_STATS", "stats-%p.json");
    let groups: Vec<libc::gid_t> = (100_000..103_000).collect();
    let join = move || {
        // SAFETY: as many numbers as it is told.
        let done = unsafe { libc::setgroups(groups.len(), groups.as_ptr()) };
        if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: a system call only.
    unsafe { command.pre_exec(join) };
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return skip(name, &format!("setgroups: {error}")),
    };
    assert!(output.status.success(), "{}", shown(&output));
    let said = said(dir.path());
    if said != "churned" {
        return skip(name, &said);
    }
    let stats = stats(dir.path());
    let [(_, followed)] = &stats[..] else { panic!("{stats:?}") };
    assert!(followed["deferred"].as_u64() > Some(0), "{followed}");
}

/// A slot has to be mapped when the VM has another number than when it was deferred,
/// or when there is no number left.
#[test]
fn a_guest_executes_whatever_became_of_the_vms_number() {
    let name = "a_guest_executes_whatever_became_of_the_vms_number";
    let Some(library) = library() else { return skip(name, NO_LIBRARY) };
    for part in ["executes-moved", "executes-full"] {
        // What it says is written when there is a number again.
        let without = says(part, None);
        if !without.starts_with("executed: 0 0") {
            return skip(name, &without);
        }
        assert_eq!(says(part, Some(&library)), without, "{part}");
    }
}

/// A mask of signals that KVM was given here is not there when the thread's changes.
#[test]
fn a_guest_is_not_interrupted_by_what_is_blocked_behind_a_filter() {
    let name = "a_guest_is_not_interrupted_by_what_is_blocked_behind_a_filter";
    let Some(library) = library() else { return skip(name, NO_LIBRARY) };
    let without = says("blocks", None);
    if !without.starts_with("0 0 exit 5") {
        return skip(name, &without);
    }
    assert_eq!(says("blocks", Some(&library)), without);
}

/// `AT_SECURE`: a program that has more rights than its user is left alone. The
/// dynamic linker does not preload there, so the program loads the library itself.
#[test]
fn a_setuid_program_heeds_no_environment() {
    let name = "a_setuid_program_heeds_no_environment";
    let Some(library) = library() else { return skip(name, NO_LIBRARY) };
    // SAFETY: has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return skip(name, "only root can make a program setuid root");
    }
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(dir.path(), 0o755);
    let (program, copy) = (dir.path().join("program"), dir.path().join("library.so"));
    // By another process: a child that another test forks meanwhile would have the
    // descriptor, and what is open for writing is not executed (ETXTBSY).
    let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&program).status();
    assert!(copied.unwrap().success());
    std::fs::copy(library, &copy).unwrap();
    for path in [&program, &copy] {
        mode(path, 0o755);
    }
    let run = |uid| {
        let _ = std::fs::remove_file(dir.path().join("said"));
        let mut command = player(&program, "loads", dir.path());
        command.arg("--quiet").env("KVM_MEMSLOTS_PRELOAD_STATS", dir.path().join("stats.json"));
        command.env(played::LIBRARY, &copy).uid(uid);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", shown(&output));
        (said(dir.path()), stats(dir.path()))
    };
    // It is heeded where there is nothing special: root, and root's program.
    let (said, stats) = run(0);
    if said != "secure 0" {
        return skip(name, &said);
    }
    assert_eq!(stats.len(), 1, "{stats:?}");
    std::fs::remove_file(dir.path().join("stats.json")).unwrap();
    mode(&program, 0o4755);
    let (said, stats) = run(65_534);
    if said != "secure 1" {
        return skip(name, &format!("the setuid bit means nothing here: {said}"));
    }
    assert_eq!(stats, []);
}

/// Threads may be in it, and slots deferred.
#[test]
fn the_library_stays_when_it_is_closed() {
    let name = "the_library_stays_when_it_is_closed";
    let Some(library) = library() else { return skip(name, NO_LIBRARY) };
    let dir = tempfile::tempdir().unwrap();
    let mut command = player(&std::env::current_exe().unwrap(), "unloads", dir.path());
    let output = command.env(played::LIBRARY, library).output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    let said = said(dir.path());
    if !said.starts_with("unloaded") {
        return skip(name, &said);
    }
    assert_eq!(said, "unloaded: 0 0 0");
}

/// A filter from before it began that knows no call of the library's: it makes
/// none.
#[test]
fn a_program_under_a_filter_is_left_alone() {
    let name = "a_program_under_a_filter_is_left_alone";
    let Some(library) = library() else { return skip(name, NO_LIBRARY) };
    for library in [None, Some(library)] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = player(&std::env::current_exe().unwrap(), "churns", dir.path());
        let with = library.is_some();
        if let Some(library) = library {
            command.env("LD_PRELOAD", library);
            command.env("KVM_MEMSLOTS_PRELOAD_STATS", "stats.json");
        }
        // SAFETY: system calls only.
        unsafe { command.pre_exec(played::forbid) };
        let output = command.output().unwrap();
        assert!(output.status.success(), "library: {with}: {}", shown(&output));
        let said = said(dir.path());
        if said != "churned" {
            return skip(name, &said);
        }
        assert_eq!(stats(dir.path()), []);
    }
}
