//! A kernel, booted in QEMU with nested KVM, with a command to run.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::build::{self, Kernel};
use super::console::Console;
use super::initrd::{self, Command, GuestFile, Program};
use super::target::{Arch, Target};
use super::{Processors, Qemu, room, target, tools};
use crate::run;

/// How long a kernel that has complained may go on: for the rest of the
/// complaint.
const AFTER_SPLAT: Duration = Duration::from_secs(20);

/// For the command line of a kernel whose processors may get no time for long, where
/// this machine is busy: after 21 s it would take that for a stall of RCU.
const PATIENT: &str = "rcupdate.rcu_cpu_stall_timeout=120";

/// What can boot.
pub(super) struct Guest {
    arch: Arch,
    image: PathBuf,
    dir: PathBuf,
    qemu: Qemu,
    /// Processors of this machine, for guests that have one only.
    cpus: Vec<usize>,
    busybox: Program,
}

/// What to boot for.
pub(super) struct Job<'a> {
    /// Names the log.
    pub(super) name: &'a str,
    pub(super) command: Command,
    /// What is in /bin beside busybox.
    pub(super) programs: Vec<&'a Program>,
    /// What else is in its file system.
    pub(super) files: Vec<GuestFile>,
    /// For the kernel's command line.
    pub(super) append: &'a str,
    /// When it hangs, if not as late as for all.
    pub(super) limit: Option<Duration>,
    /// How its processors run, if that was left open.
    pub(super) processors: Processors,
    /// Which of the guests that run at once it is, see [`Guest::beside`].
    pub(super) worker: usize,
    /// Whether it boots this kernel in a guest of its own, and finds it as `/kernel`.
    /// Such a guest loses timer interrupts unless time is counted in instructions.
    pub(super) nests: bool,
}

impl Job<'_> {
    /// `command`, with nothing but busybox, for as long as all, in parallel.
    pub(super) fn new(name: &str, command: Command) -> Job<'_> {
        Job {
            name,
            command,
            programs: Vec::new(),
            files: Vec::new(),
            append: "",
            limit: None,
            processors: Processors::Parallel,
            worker: 0,
            nests: false,
        }
    }
}

/// A guest that does not end.
#[derive(Debug)]
pub(super) struct Hang(pub(super) String);

impl fmt::Display for Hang {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Hang {}

/// A command that has ended in a guest whose kernel did not complain.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: i32,
    pub(super) took: Duration,
}

impl Ended {
    /// Says how it went; the command's status, to end with.
    fn report(&self) -> ExitCode {
        run::say(&format!("exit status {} after {:.1} s", self.status, self.took.as_secs_f64()));
        u8::try_from(self.status).map_or(ExitCode::FAILURE, ExitCode::from)
    }
}

impl Guest {
    /// The kernel of `target`, built, and ready to be booted as `qemu` says.
    ///
    /// # Errors
    /// As [`new`](Self::new), ahead of building it, or if that fails.
    pub(super) fn of(target: &Target, qemu: &Qemu) -> Result<(Kernel, Self)> {
        available(target)?;
        let kernel = build::kernel(target)?;
        let guest = Self::new(target, &kernel, qemu.clone())?;
        Ok((kernel, guest))
    }

    /// The kernel of `target`, to be booted as `qemu` says.
    ///
    /// # Errors
    /// If what else it takes is not to be had.
    pub(super) fn new(target: &Target, kernel: &Kernel, qemu: Qemu) -> Result<Self> {
        let busybox = available(target)?;
        let image = kernel.image.clone();
        let cpus = room::processors()?;
        Ok(Self { arch: target.arch, image, dir: target.dir(), qemu, cpus, busybox })
    }

    /// How a guest's processors run, where `left_open` counts if nobody said.
    pub(super) fn processors(&self, left_open: Processors) -> Processors {
        self.qemu.processors.unwrap_or(left_open)
    }

    /// How many guests that have a processor each may run at once: as many as
    /// there are processors, and memory.
    pub(super) fn beside(&self) -> usize {
        room::guests(self.cpus.len(), self.qemu.memory)
    }

    /// Boots and runs the job's command; each line that it writes goes to
    /// `line`.
    ///
    /// # Errors
    /// If the kernel complains, the guest hangs, or it ends before the command
    /// does; not if the command fails.
    pub(super) fn run(&self, job: &Job<'_>, mut line: impl FnMut(&str)) -> Result<Ended> {
        let log = self.dir.join(format!("{}.log", job.name));
        let initrd = self.dir.join(format!("{}.cpio", job.name));
        let mut files = job.files.clone();
        if job.nests {
            let content =
                fs::read(&self.image).with_context(|| format!("{}", self.image.display()))?;
            files.push(GuestFile { path: "kernel".to_owned(), content, executable: false });
        }
        fs::write(&initrd, initrd::archive(&self.busybox, &job.programs, &files, &job.command))
            .with_context(|| format!("{}", initrd.display()))?;
        let mut file = File::create(&log).with_context(|| format!("{}", log.display()))?;
        let mut qemu = self.command(&initrd, job);
        writeln!(file, "$ {}", run::shown(&qemu))?;
        run::say(&format!("booting {} (log: {})", target::shown(&self.image), target::shown(&log)));
        let start = Instant::now();
        let mut child = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file.try_clone().context("log")?)
            .spawn()
            .with_context(|| format!("can't run {}", run::shown(&qemu)))?;
        let stdout = child.stdout.take().context("QEMU has no stdout")?;
        let _running = Running(child);
        let mut console = Console::default();
        let limit = job.limit.unwrap_or(self.qemu.timeout());
        let outcome = follow(&lines(stdout), start + limit, &mut console, |raw, own| {
            // A full disk is no reason to end the guest.
            let _ = file.write_all(raw);
            own.map(&mut line);
        });
        // Tens of megabytes, made anew for each job.
        let _ = fs::remove_file(&initrd);
        judge(&console, &outcome, start.elapsed())
            .with_context(|| format!("log: {}", target::shown(&log)))
    }

    /// Boots and runs the job's command; the lines that it writes, shown as well.
    ///
    /// # Errors
    /// As [`run`](Self::run), and if the command fails.
    pub(super) fn lines(&self, job: &Job<'_>) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let ended = self.run(job, |line| {
            run::say(line);
            lines.push(line.to_owned());
        })?;
        if ended.status != 0 {
            bail!("{}: ended with status {}", job.name, ended.status);
        }
        Ok(lines)
    }

    /// Boots and runs `command` with `programs` beside it, shows what it writes,
    /// and ends with its status.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(super) fn show(
        &self,
        name: &str,
        command: Command,
        programs: &[Program],
    ) -> Result<ExitCode> {
        let programs = programs.iter().collect();
        let ended = self.run(&Job { programs, ..Job::new(name, command) }, run::say)?;
        Ok(ended.report())
    }

    fn command(&self, initrd: &Path, job: &Job<'_>) -> std::process::Command {
        let mut qemu = match self.processors(job.processors) {
            Processors::Parallel => std::process::Command::new(tools::qemu(self.arch)),
            Processors::Turns => {
                let mut pinned = std::process::Command::new("taskset");
                let cpu = self.cpus.iter().cycle().nth(job.worker).unwrap_or(&0);
                pinned.args(["-c", &cpu.to_string(), tools::qemu(self.arch)]);
                pinned
            }
        };
        let console = match self.arch {
            Arch::X86_64 => {
                qemu.args(["-cpu", "EPYC,+svm"]);
                // On a busy machine it would be taken for broken.
                "ttyS0 no_timer_check"
            }
            Arch::Arm64 => {
                qemu.args(["-M", "virt,virtualization=on,gic-version=3"]);
                qemu.args(["-cpu", "max,pauth-impdef=on"]);
                "ttyAMA0"
            }
        };
        qemu.args(["-m", &format!("{}M", self.qemu.memory), "-nodefaults", "-nographic"]);
        if self.qemu.icount || job.nests {
            qemu.args(["-smp", "1", "-accel", "tcg,thread=single"]);
            qemu.args(["-icount", "shift=0,sleep=off"]);
        } else {
            qemu.args(["-smp", "2", "-accel", "tcg,thread=multi"]);
        }
        qemu.args(["-serial", "stdio", "-monitor", "none", "-no-reboot"]);
        qemu.arg("-kernel").arg(&self.image).arg("-initrd").arg(initrd);
        // The time is what tells the kernel's messages from the command's.
        let (append, own) = (job.append, &self.qemu.append);
        let append = format!(
            "console={console} printk.time=1 loglevel=5 panic=-1 oops=panic {PATIENT} {append} {own}"
        );
        qemu.args(["-append", append.trim_end()]);
        qemu
    }
}

/// What a guest takes beside its kernel; busybox is in its file system.
pub(super) fn available(target: &Target) -> Result<Program> {
    let busybox = initrd::busybox(target.arch)?;
    tools::for_boot(target.arch)?;
    Ok(busybox)
}

/// QEMU, for as long as somebody follows it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, and then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines of the console as they come, until it is closed.
fn lines(stdout: ChildStdout) -> Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        loop {
            let mut line = Vec::new();
            match reader.read_until(b'\n', &mut line) {
                Ok(1..) if send.send(line).is_ok() => {}
                // Closed, broken, or nobody listens.
                _ => return,
            }
        }
    });
    receive
}

/// Why there is no more to come.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// QEMU has ended.
    Closed,
    /// It has not, in time.
    TimedOut,
    /// The kernel has complained, and not ended after that.
    CutOff,
}

/// Reads `lines` into `console` until their end, `deadline`, or shortly after
/// a splat. `show` gets each line, and what it completes of the command's
/// output.
fn follow(
    lines: &Receiver<Vec<u8>>,
    deadline: Instant,
    console: &mut Console,
    mut show: impl FnMut(&[u8], Option<&str>),
) -> Outcome {
    let mut end = deadline;
    let mut splat = false;
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(raw) => show(&raw, console.line(&String::from_utf8_lossy(&raw))),
            Err(RecvTimeoutError::Disconnected) => return Outcome::Closed,
            Err(RecvTimeoutError::Timeout) if splat => return Outcome::CutOff,
            Err(RecvTimeoutError::Timeout) => return Outcome::TimedOut,
        }
        if !splat && !console.splat().is_empty() {
            splat = true;
            end = deadline.min(Instant::now() + AFTER_SPLAT);
        }
    }
}

/// How it went, from what was read.
fn judge(console: &Console, outcome: &Outcome, took: Duration) -> Result<Ended> {
    let secs = took.as_secs();
    if !console.splat().is_empty() {
        bail!("the guest's kernel complained after {secs} s:\n  {}", console.splat().join("\n  "));
    }
    match (console.status(), outcome) {
        (Some(status), Outcome::Closed) => Ok(Ended { status, took }),
        (Some(status), _) => {
            bail!(
                "the command ended with status {status}, but the guest hangs (killed at {secs} s)"
            )
        }
        (None, Outcome::Closed) => {
            bail!("the guest, or QEMU, ended before the command did, after {secs} s")
        }
        (None, _) => {
            let last = console.output().last().map_or("nothing", String::as_str);
            let hang =
                format!("the guest hangs: no end after {secs} s; the command last said: {last}");
            Err(Hang(hang).into())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn send(lines: &[&str]) -> (mpsc::Sender<Vec<u8>>, Receiver<Vec<u8>>) {
        let (sender, receiver) = mpsc::channel();
        for line in lines {
            sender.send(format!("{line}\r\n").into_bytes()).unwrap();
        }
        (sender, receiver)
    }

    fn run(lines: &[&str], closed: bool) -> (Outcome, Result<Ended>, Vec<String>) {
        let (sender, receiver) = send(lines);
        let _open = (!closed).then_some(sender);
        let mut console = Console::default();
        let mut shown = Vec::new();
        let deadline = Instant::now() + Duration::from_millis(100);
        let outcome = follow(&receiver, deadline, &mut console, |_, own| {
            shown.extend(own.map(str::to_owned));
        });
        let verdict = judge(&console, &outcome, Duration::from_secs(7));
        (outcome, verdict, shown)
    }

    #[test]
    fn a_command_that_ends() {
        let (_, verdict, shown) = run(&["LAB-BEGIN", "hello", "LAB-EXIT 3"], true);
        assert_eq!(verdict.unwrap().status, 3);
        assert_eq!(shown, ["hello"]);
    }

    #[test]
    fn a_guest_that_hangs() {
        let (outcome, verdict, _) = run(&["LAB-BEGIN", "hello"], false);
        assert_eq!(outcome, Outcome::TimedOut);
        let e = verdict.unwrap_err().to_string();
        assert!(e.contains("hangs") && e.contains("7 s") && e.contains("hello"), "{e}");
        let (_, verdict, _) = run(&["LAB-BEGIN", "LAB-EXIT 0"], false);
        assert!(verdict.unwrap_err().to_string().contains("guest hangs"));
    }

    #[test]
    fn a_guest_that_ends_too_early() {
        let (_, verdict, _) = run(&["LAB-BEGIN", "hello"], true);
        assert!(verdict.unwrap_err().to_string().contains("before the command did"));
    }

    #[test]
    fn a_complaint_counts_more_than_a_status_of_0() {
        let lines = ["LAB-BEGIN", "[    4.100001] WARNING: CPU: 1", "LAB-EXIT 0"];
        let (_, verdict, _) = run(&lines, true);
        assert!(verdict.unwrap_err().to_string().contains("WARNING: CPU: 1"));
        let (outcome, verdict, _) = run(&lines[..2], false);
        assert_eq!(outcome, Outcome::CutOff);
        assert!(verdict.unwrap_err().to_string().contains("WARNING: CPU: 1"));
    }
}
