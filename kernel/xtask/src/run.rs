//! Programs, run with their output streamed and read.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, ErrorKind, IsTerminal as _, Write as _, stdout};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use nix::fcntl::OFlag;

/// Runs `command` without input; its output, both streams in the order they
/// were written, goes to `line` a line at a time, without line end and with
/// colours.
pub(crate) fn streamed(command: &mut Command, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("pipe")?;
    let shown = shown(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(write.try_clone().context("dup")?)
        .stderr(write)
        .spawn()
        .with_context(|| format!("can't run {shown}"))?;
    // The command holds the writing ends for its children; the reader would
    // wait for an end that never comes.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(std::fs::File::from(read));
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).context("reading output")? > 0 {
        line(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']));
        bytes.clear();
    }
    child.wait().with_context(|| format!("waiting for {shown}"))
}

/// Prints a line to stdout. That nobody reads it any more is no reason to
/// stop.
pub(crate) fn say(line: &str) {
    match writeln!(stdout(), "{line}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => eprintln!("stdout: {e}"),
        _ => {}
    }
}

/// Whether there is someone to see colours.
pub(crate) fn colours() -> bool {
    stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// `line` without terminal escape sequences (CSI ... letter).
pub(crate) fn plain(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            // The introducer '[' is within the range of final bytes.
            chars.next();
            chars.find(|c| ('\x40'..='\x7e').contains(c));
        } else {
            plain.push(c);
        }
    }
    plain
}

/// The command as one would type it, with the variables it sets.
pub(crate) fn shown(command: &Command) -> String {
    let mut shown = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let _ = write!(shown, "{}={} ", name.display(), quoted(&value.to_string_lossy()));
        }
    }
    let program = command.get_program().to_string_lossy();
    shown.push_str(program.rsplit('/').next().unwrap_or(&program));
    for arg in command.get_args() {
        let _ = write!(shown, " {}", quoted(&arg.to_string_lossy()));
    }
    shown
}

/// `word` as a shell takes it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=./:,+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Whether `program` can be run.
pub(crate) fn exists(program: &str) -> bool {
    let quiet = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    quiet.is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn both_streams_in_order_and_the_status() {
        let mut lines = Vec::new();
        let script = "echo one; echo two >&2; printf 'three\\r\\nfour'; exit 3";
        let status =
            streamed(Command::new("sh").args(["-c", script]), |line| lines.push(line.to_owned()));
        assert_eq!(lines, ["one", "two", "three", "four"]);
        assert_eq!(status.unwrap().code(), Some(3));
    }

    #[test]
    fn a_program_that_is_not_there() {
        let e = streamed(&mut Command::new("/nonexistent/program"), |_| {}).unwrap_err();
        assert!(format!("{e:#}").contains("can't run program"), "{e:#}");
    }

    #[test]
    fn plain_drops_colours() {
        assert_eq!(plain("\x1b[1m\x1b[31merror\x1b[0m: no\x1b[K"), "error: no");
        assert_eq!(plain("nothing"), "nothing");
        assert_eq!(plain("cut \x1b["), "cut ");
    }

    #[test]
    fn shown_can_be_typed() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["doc", "a b", "it's", ""]).env("RUSTDOCFLAGS", "-D warnings").env_remove("X");
        assert_eq!(shown(&command), r"RUSTDOCFLAGS='-D warnings' cargo doc 'a b' 'it'\''s' ''");
    }
}
