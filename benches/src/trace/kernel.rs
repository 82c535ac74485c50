//! Text of the kernel's own tracing: ftrace, `trace-cmd report`, `perf script`,
//! `perf trace`.
//!
//! An ioctl's system call event has the address of the structure, not what is
//! in it. What has it is a probe on `kvm_set_memory_region()` that fetches the
//! fields (`docs/reference/traces.md` has the two lines), and the event of QEMU, where its
//! `ftrace` backend wrote it into the trace.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use regex::Regex;

use super::fields::{Fields, Names, number};
use super::lines::Line;
use super::{At, Call, Problem, clock, regex};

/// Task, thread, CPU, flags, time; then the event.
static PREFIX: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"^\s*\S.*?(?:-|\s)(?:\d+/)?(?<tid>\d+)\s+(?:\(\s*[\d-]+\)\s+)?\[\d+\]\s+(?:[^\s\d:]\S*\s+)?(?<time>\d+\.\d+):\s+(?<event>.*)$",
    )
});

/// What a program wrote into `trace_marker`.
static MARK: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^(?:(?:ftrace:)?print:\s+)?(?:tracing_mark_write|0x[0-9a-f]+s?): "));

/// A memslot ioctl in a system call event, by the kernel or by `perf trace`.
static SYSCALL: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"(?:sys_enter(?:_ioctl)?: .*|sys_ioctl\(fd: .*|\bioctl\(fd: [^)]*)\b(?:0x)?(?:4020ae46|40a0ae49|KVM_SET_USER_MEMORY_REGION2?)\b",
    )
});

/// A probe: its name, its place, its fields.
static PROBE: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^(?:\w+:)?\w+: \((?<place>[^)]*)\)(?<fields>(?: \w+=\S+)+)$"));

/// What the line says besides a memslot call.
pub(super) struct Kernel<'a> {
    pub(super) thread: u32,
    /// Nanoseconds since boot.
    pub(super) at: u64,
    pub(super) event: &'a str,
}

impl<'a> Kernel<'a> {
    /// The line as one of a kernel's trace.
    pub(super) fn read(text: &'a str) -> Option<Self> {
        // Most lines of other logs are told by this.
        if !text.contains("] ") {
            return None;
        }
        let found = PREFIX.captures(text)?;
        let event = found.name("event")?.as_str();
        Some(Self {
            thread: found["tid"].parse().ok()?,
            at: clock::seconds(&found["time"])?,
            event,
        })
    }

    /// What a program wrote into `trace_marker`.
    pub(super) fn mark(&self) -> Option<&'a str> {
        MARK.find(self.event).map(|found| &self.event[found.end()..])
    }
}

/// A system call event of a memslot call, which lacks what is needed.
pub(super) fn check_syscall(line: &Line) -> Result<(), At> {
    let may_be = line.text.contains("ioctl") || line.text.contains("sys_enter");
    if may_be && SYSCALL.is_match(&line.text) {
        return Err(At(line.number, Problem::OnlyAddress));
    }
    Ok(())
}

/// Reads the events of the probes line after line.
#[derive(Debug, Default)]
pub(super) struct Parser {
    calls: Vec<Call>,
    pending: HashMap<u32, Call>,
    ran: HashSet<u32>,
    first: Option<u64>,
    vm: Option<u64>,
}

impl Parser {
    pub(super) fn event(&mut self, line: &Line, kernel: &Kernel<'_>) -> Result<(), At> {
        if kernel.event.trim_start_matches("kvm:").starts_with("kvm_entry:") {
            self.ran.insert(kernel.thread);
            return Ok(());
        }
        let Some(probe) = PROBE.captures(kernel.event) else { return Ok(()) };
        let wrong = |why: String| line.malformed(why);
        let mut fields = Fields::new(probe["fields"].split_whitespace()).map_err(wrong)?;
        if probe["place"].contains("<-") {
            let ours = probe["place"].contains("set_memory_region");
            if let (true, Some(ret)) = (ours, fields.get("ret")) {
                line.check_ended()?;
                let errno = returned(ret).ok_or_else(|| wrong(format!("ret={ret}")))?;
                self.returns(kernel, errno);
            }
            return Ok(());
        }
        if fields.get("slot").is_none() || fields.get("gpa").is_none() {
            return Ok(());
        }
        line.check_ended()?;
        let vm = fields.get("vm").and_then(number);
        let region = fields.region(&NAMES).map_err(wrong)?;
        if *self.vm.get_or_insert(vm.unwrap_or(0)) != vm.unwrap_or(0) {
            return Err(wrong("a call of another VM than those before: keep one vm=...".into()));
        }
        let first = *self.first.get_or_insert(kernel.at);
        let call = Call {
            began: Some(kernel.at.saturating_sub(first)),
            thread: Some(kernel.thread),
            after_run: self.ran.remove(&kernel.thread),
            ..Call::of(line.number, region)
        };
        match self.pending.insert(kernel.thread, call) {
            None => Ok(()),
            Some(before) => Err(At(before.line, Problem::NoReturn)),
        }
    }

    fn returns(&mut self, kernel: &Kernel<'_>, errno: i32) {
        // It was in the call already when tracing began.
        let Some(call) = self.pending.remove(&kernel.thread) else { return };
        let ended = self.first.map(|first| kernel.at.saturating_sub(first));
        self.calls.push(Call { ended, errno, ..call });
    }

    pub(super) fn finish(self) -> Result<Vec<Call>, At> {
        match self.pending.values().map(|call| call.line).min() {
            Some(line) => Err(At(line, Problem::NoReturn)),
            None => Ok(self.calls),
        }
    }
}

/// 0 or an errno, of a return value in decimal or in hex of any width.
fn returned(value: &str) -> Option<i32> {
    let ret = match value.parse::<i64>() {
        Ok(ret) => ret,
        Err(_) => match number(value)? {
            short @ 0x8000_0000..=0xffff_ffff => i64::from((short as u32).cast_signed()),
            long => long.cast_signed(),
        },
    };
    (-4095..=0).contains(&ret).then_some(-ret as i32)
}

/// The names of the two probes that the documentation gives.
const NAMES: Names =
    ["", "slot", "flags", "gpa", "size", "hva", "guest_memfd", "guest_memfd_offset"];
