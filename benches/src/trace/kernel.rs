//! Text of the kernel's own tracing: ftrace, `trace-cmd report`, `perf script`,
//! `perf trace`.
//!
//! An ioctl's system call event has the address of the structure, not what is
//! in it. What has it is a probe on `kvm_set_memory_region()` that fetches the
//! fields (`docs/reference/traces.md` has the two lines), and the event of QEMU, where its
//! `ftrace` backend wrote it into the trace.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use kvm_memslots_shim::uapi::kvm_userspace_memory_region2;
use regex::Regex;

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
        let fields: HashMap<&str, &str> =
            probe["fields"].split_whitespace().filter_map(|field| field.split_once('=')).collect();
        let wrong = |why: String| line.malformed(why);
        if probe["place"].contains("<-") {
            let ours = probe["place"].contains("set_memory_region");
            if let (true, Some(ret)) = (ours, fields.get("ret")) {
                line.check_ended()?;
                let errno = returned(ret).ok_or_else(|| wrong(format!("ret={ret}")))?;
                self.returns(kernel, errno);
            }
            return Ok(());
        }
        if !fields.contains_key("slot") || !fields.contains_key("gpa") {
            return Ok(());
        }
        line.check_ended()?;
        let region = region(&fields).map_err(wrong)?;
        let vm = fields.get("vm").and_then(|vm| number(vm));
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

fn region(fields: &HashMap<&str, &str>) -> Result<kvm_userspace_memory_region2, String> {
    let field = |name: &str| {
        let value = fields.get(name).ok_or_else(|| format!("expected a field {name}"))?;
        number(value).ok_or_else(|| format!("{name} is not a number: {value}"))
    };
    let narrow = |name: &str| {
        let value = field(name)?;
        u32::try_from(value).map_err(|_| format!("{name} has 32 bits, not {value:#x}"))
    };
    let flags = narrow("flags")?;
    let mut region = kvm_userspace_memory_region2 {
        slot: narrow("slot")?,
        flags,
        guest_phys_addr: field("gpa")?,
        memory_size: field("size")?,
        userspace_addr: field("hva")?,
        ..Default::default()
    };
    if flags & kvm_memslots::MemFlags::GUEST_MEMFD.bits() != 0 {
        region.guest_memfd = narrow("guest_memfd")?;
        region.guest_memfd_offset = field("guest_memfd_offset")?;
    }
    Ok(region)
}

fn number(value: &str) -> Option<u64> {
    match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}
