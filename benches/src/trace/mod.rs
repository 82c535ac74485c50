//! Traces: the memslot calls that a VMM made, as its own log or `strace` saw
//! them, in one format.
//!
//! [`import`] reads QEMU's log, `strace`'s output, the kernel's own tracing as
//! far as it holds the calls, and the format itself (`docs/reference/traces.md`), and holds every call against the model of KVM: a trace
//! that a VM could not have made is refused with the line, before anything is
//! done with it.

mod bursts;
mod clock;
mod fields;
mod format;
mod kernel;
mod lines;
mod prefix;
mod qemu;
mod simpletrace;
mod strace;

pub use bursts::{BURST_GAP, bursts};
pub use format::{FORMAT, VERSION, write};

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use kvm_memslots::Limits;
use kvm_memslots_shim::memory::model::{Model, ModelConfig};
use kvm_memslots_shim::uapi::{MemFlags, kvm_userspace_memory_region2};
use regex::Regex;
use thiserror::Error;

use crate::way::shown_by_name;
use lines::{Line, Lines};

/// Where the calls of a trace were seen.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// QEMU's event `kvm_set_user_memory`, in whichever text.
    QemuLog,
    /// `strace -e ioctl`.
    Strace,
    /// A probe on the kernel's `kvm_set_memory_region()`.
    Kprobe,
}

shown_by_name!(Source);

/// One memslot call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    /// Its line in the file that was imported, from 1.
    pub line: u64,
    /// When it began and when it returned, as far as that is known: nanoseconds
    /// from the first time in the file.
    pub began: Option<u64>,
    /// See `began`.
    pub ended: Option<u64>,
    /// The thread that made it.
    pub thread: Option<u32>,
    /// A vCPU was entered since the call before it: by its own thread, where
    /// threads are known, else by any.
    pub after_run: bool,
    /// The VMM made the call, but the source does not show it.
    pub implied: bool,
    /// What it got: 0 or an errno.
    pub errno: i32,
    /// The argument, the address space in bits 16 to 31 of `slot`.
    pub region: kvm_userspace_memory_region2,
}

impl Call {
    /// A call with this argument that succeeded, of which nothing else is known.
    #[must_use]
    pub const fn of(line: u64, region: kvm_userspace_memory_region2) -> Self {
        Self {
            line,
            began: None,
            ended: None,
            thread: None,
            after_run: false,
            implied: false,
            errno: 0,
            region,
        }
    }

    /// Address space and slot, as KVM takes them.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.region.slot
    }

    /// The address space.
    #[must_use]
    pub const fn as_id(&self) -> u16 {
        (self.region.slot >> 16) as u16
    }

    /// The slot in its address space.
    #[must_use]
    pub const fn slot(&self) -> u16 {
        self.region.slot as u16
    }

    /// Whether it deletes the slot.
    #[must_use]
    pub const fn deletes(&self) -> bool {
        self.region.memory_size == 0
    }
}

/// The memslot calls of one VM, in the order in which they returned.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Where they were seen.
    pub source: Source,
    /// The calls.
    pub calls: Vec<Call>,
}

impl Trace {
    /// The calls that KVM did not refuse: those that changed something.
    pub fn made(&self) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(|call| call.errno == 0)
    }
}

/// Why a file is no trace.
#[derive(Debug, Error)]
#[error("{name}{}: {problem}", .line.map_or_else(String::new, |line| format!(", line {line}")))]
pub struct TraceError {
    /// The file.
    pub name: String,
    /// The line that is to blame, from 1; `None` where the file can't be opened.
    pub line: Option<u64>,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a line of a trace.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Problem {
    /// It can't be read; for a compressed file, also that it ends too early or
    /// is damaged.
    #[error("{0}")]
    Io(io::Error),
    /// Not text.
    #[error("this is not text, so no trace (gzip is recognised, other compressions are not)")]
    NotText,
    /// Not text, but known.
    #[error("this is {0}")]
    Binary(&'static str),
    /// It is about a memslot call, but can't be understood.
    #[error("a memslot call that can't be understood ({why}): {text}")]
    Malformed {
        /// Why.
        why: String,
        /// The line, or the beginning of it.
        text: String,
    },
    /// The call has no end.
    #[error("the file ends in the middle of a call: it is truncated")]
    Truncated,
    /// The header says how many calls there are.
    #[error("the file ends after {found} of {expected} calls: it is truncated")]
    Missing {
        /// Calls in the file.
        found: u64,
        /// Calls that the header promises.
        expected: u64,
    },
    /// Something else.
    #[error(
        "no memslot call up to here: neither a log of QEMU's -trace kvm_set_user_memory, \
         nor strace -e ioctl, nor events of a probe on kvm_set_memory_region, nor a trace that \
         was imported before"
    )]
    Foreign,
    /// A trace of a later version.
    #[error("version {0} of the trace format; this program knows {VERSION}")]
    Version(u64),
    /// `strace` prints only the address of this structure.
    #[error(
        "strace did not decode KVM_SET_USER_MEMORY_REGION2, so what was asked for is not known; \
         QEMU's own log (-trace kvm_set_user_memory) has it, for any VMM a probe on \
         kvm_set_memory_region (docs/reference/traces.md)"
    )]
    NotDecoded,
    /// `strace` was told not to print the structure.
    #[error(
        "strace printed the address of the structure only; expected its fields: run it without \
         -e raw and -e verbose"
    )]
    Raw,
    /// A system call event of the kernel.
    #[error(
        "an event of a system call holds the address of the structure, not its fields: expected \
         strace -e ioctl, QEMU's log (-trace kvm_set_user_memory), or a probe on \
         kvm_set_memory_region (docs/reference/traces.md)"
    )]
    OnlyAddress,
    /// A probe saw a call, but not what came of it.
    #[error(
        "this call has no event of its return: expected one of a return probe of the same \
         thread, \"(... <- kvm_set_memory_region) ret=...\""
    )]
    NoReturn,
    /// QEMU's trace buffer was full, or the kernel's.
    #[error("events were lost here, so calls may be missing: trace fewer events")]
    Dropped,
    /// One trace is of one VM.
    #[error("calls of two VMs: descriptor {first} before, {second} here; --vm chooses one")]
    TwoVms {
        /// The VM's descriptor before.
        first: i32,
        /// And here.
        second: i32,
    },
    /// Not even KVM would have taken it.
    #[error(
        "after the calls before it, KVM would have refused this one with {errno}, but the VMM \
         says that it succeeded: the file lacks calls before this line"
    )]
    Impossible {
        /// What the model of KVM says.
        errno: kvm_memslots::Errno,
    },
}

/// Reads the trace in the file at `path`, `-` for the standard input: QEMU's
/// log, `strace`'s output, the kernel's trace or the format of [`write()`],
/// plain or in gzip. `vm`
/// is the descriptor of the VM that is meant, where `strace` saw several.
///
/// # Errors
/// [`TraceError`], with the line.
pub fn import(path: &Path, vm: Option<i32>) -> Result<Trace, TraceError> {
    if path.as_os_str() == "-" {
        return import_from("the standard input", io::stdin(), vm);
    }
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => import_from(&name, file, vm),
        Err(error) => Err(TraceError { name, line: None, problem: Problem::Io(error) }),
    }
}

/// [`import`], of what is not a file but has a name for errors.
///
/// # Errors
/// [`TraceError`], with the line.
pub fn import_from(
    name: &str,
    from: impl Read + 'static,
    vm: Option<i32>,
) -> Result<Trace, TraceError> {
    let lines = Lines::new(Box::new(from)).map_err(|error| At(1, Problem::Io(error)));
    let read = lines.and_then(|mut lines| read(&mut lines, vm));
    read.map_err(|At(line, problem)| TraceError {
        name: name.to_owned(),
        line: Some(line),
        problem,
    })
}

/// A problem and its line.
#[derive(Debug)]
struct At(u64, Problem);

fn read(lines: &mut Lines, vm: Option<i32>) -> Result<Trace, At> {
    let first = lines.next()?;
    let trace = match &first {
        Some(line) if format::is_header(&line.text) => format::read(line, lines)?,
        _ => read_log(first, lines, vm)?,
    };
    if trace.calls.is_empty() {
        return Err(At(lines.number().max(1), Problem::Foreign));
    }
    check(&trace)?;
    Ok(trace)
}

/// What the largest host allows: the trace may be from any.
fn anywhere() -> ModelConfig {
    let limits = Limits::x86().with_slots(1 << 16).with_address_spaces(2).with_guest_memfd();
    ModelConfig::new(limits).guest_physical_bits(64).hva_end(1 << 56)
}

/// Makes the calls on the model of KVM: whether a VM could have made them.
fn check(trace: &Trace) -> Result<(), At> {
    let model = Model::with_config(anywhere());
    let mut memfds = HashSet::new();
    for call in &trace.calls {
        let fd = call.region.guest_memfd;
        if call.region.flags & MemFlags::GUEST_MEMFD.bits() != 0 && memfds.insert(fd) {
            model.add_guest_memfd(fd.cast_signed(), i64::MAX as u64);
        }
        // What KVM refused may have had reasons that are not in the trace.
        if call.errno != 0 {
            continue;
        }
        model
            .set_user_memory_region2(&call.region)
            .map_err(|errno| At(call.line, Problem::Impossible { errno }))?;
    }
    Ok(())
}

/// Who may have written a log.
struct Readers {
    qemu: qemu::Parser,
    strace: strace::Parser,
    kernel: kernel::Parser,
}

impl Readers {
    fn line(&mut self, line: &Line) -> Result<(), At> {
        let line = Line { text: prefix::strip(&line.text).to_owned(), ..*line };
        kernel::check_syscall(&line)?;
        if let Some(kernel) = kernel::Kernel::read(&line.text) {
            return match kernel.mark() {
                Some(text) => self.qemu.mark(&line, &kernel, text),
                None => self.kernel.event(&line, &kernel),
            };
        }
        // ftrace's own, `trace-cmd`'s and `perf`'s way to say it.
        if ["LOST", "[LOST"].iter().any(|lost| line.text.contains(&format!("{lost} ")))
            && line.text.contains("EVENTS")
        {
            return Err(At(line.number, Problem::Dropped));
        }
        self.qemu.line(&line)?;
        self.strace.line(&line)
    }

    /// A log is of one of them.
    fn finish(self) -> Result<Trace, At> {
        let found = [
            (Source::QemuLog, self.qemu.finish()),
            (Source::Strace, self.strace.finish()?),
            (Source::Kprobe, self.kernel.finish()?),
        ];
        let mut found: Vec<_> = found.into_iter().filter(|(_, calls)| !calls.is_empty()).collect();
        found.sort_by_key(|(_, calls)| calls[0].line);
        if let [(first, _), (second, calls), ..] = &found[..] {
            let why = format!("calls as of {first} before, as of {second} here");
            return Err(At(calls[0].line, Problem::Malformed { why, text: String::new() }));
        }
        let (source, calls) = found.pop().unwrap_or((Source::QemuLog, Vec::new()));
        Ok(Trace { source, calls })
    }
}

fn read_log(first: Option<Line>, lines: &mut Lines, vm: Option<i32>) -> Result<Trace, At> {
    let mut readers = Readers {
        qemu: qemu::Parser::default(),
        strace: strace::Parser::new(vm),
        kernel: kernel::Parser::default(),
    };
    let mut line = first;
    while let Some(this) = line {
        readers.line(&this)?;
        line = lines.next()?;
    }
    readers.finish()
}

/// A pattern of a reader.
fn regex(pattern: &str) -> Regex {
    // Each is used by a test, and does not depend on what is read.
    Regex::new(pattern).unwrap_or_else(|error| unreachable!("{error}"))
}

/// The beginning of a line, for an error.
fn excerpt(text: &str) -> String {
    const LONGEST: usize = 160;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
