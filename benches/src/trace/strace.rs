//! What `strace -e ioctl` prints, with or without `-f`, times of all kinds (`-t`,
//! `-r`, `-T`), `-i`, `-k`, `-n`, `-N`, `-y`, `-Y` and `-X`.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::sync::LazyLock;

use nix::errno::Errno;
use regex::{Captures, Regex};

use super::fields::{self, Fields, Names};
use super::lines::Line;
use super::{At, Call, Problem, clock, regex};

/// Process or thread, time, time since the line before, number of the system
/// call, instruction pointer; then the rest.
static PREFIX: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        // A number of more than 7 digits is no process, but a time.
        r"^(?:\[pid +(?<pid>\d+)(?:<[^>]*>)?(?: /\*.*?\*/)?\] +",
        r"|(?<opid>\d{1,7})(?:<[^>]*>)?(?: /\*.*?\*/)? +)?",
        r"(?: *(?<day>\d\d:\d\d:\d\d(?:\.\d+)?) +| *(?<sec>\d+\.\d+) +| *\d+ +)?",
        r"(?:\(\+ *(?<since>\d+(?:\.\d+)?)\) +)?",
        r"(?:\[ *\d{1,4}\] +)?(?:\[(?:[0-9a-f]{8,16}|\?+)\] +)?(?<rest>.*)$",
    ))
});

/// The descriptor, the request by its name or number, the argument, the end.
static CALL: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"^ioctl\((?:fd=)?(?<fd>0x[0-9a-f]+|\d+)(?:<.*?>)?, (?:\w+=)?(?<request>\w+(?:\([^)]*\))?)(?:, (?:\w+=)?(?<argument>\{[^}]*\}|\w+))?(?<end>.*)$",
    )
});

/// The result and how long it took.
static END: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"^ ?\)\s*= (?<ret>-?\d+|\?)(?:<[^>]*>)?(?: (?<errno>E\w+))?(?: \([^)]*\))*(?: <(?<took>\d+(?:\.\d+)?)>)?\s*$",
    )
});

static RESUMED: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^<\.\.\. ioctl resumed>(?: <unfinished \.\.\.>)?(?<end>.*)$"));
static COMMENT: LazyLock<Regex> = LazyLock::new(|| regex(r" */\*.*?\*/"));

/// What `strace` itself says, in the middle of a line that it prints.
static INTERRUPTED: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^(?<head>.+)strace: Process \d+ (?:attached|detached)$"));

const UNFINISHED: &str = "<unfinished ...>";

/// `strace` was ended while the thread was in a call.
const DETACHED: &str = "<detached ...>";

/// The requests in the ways in which `strace` names them.
const REGION: [&str; 3] =
    ["KVM_SET_USER_MEMORY_REGION", "0x4020ae46", "_IOC(_IOC_WRITE, 0xae, 0x46, 0x20)"];
const REGION2: [&str; 3] =
    ["KVM_SET_USER_MEMORY_REGION2", "0x40a0ae49", "_IOC(_IOC_WRITE, 0xae, 0x49, 0xa0)"];
const RUN: [&str; 3] = ["KVM_RUN", "0xae80", "_IOC(_IOC_NONE, 0xae, 0x80, 0)"];

/// Reads line after line.
#[derive(Debug)]
pub(super) struct Parser {
    vm: Option<i32>,
    /// The VM that calls were seen of.
    seen: Option<i32>,
    calls: Vec<Call>,
    /// By thread: what `unfinished` has cut off, and since when.
    pending: HashMap<Option<u32>, Pending>,
    ran: HashSet<Option<u32>>,
    clock: Clock,
    /// The beginning of a line whose rest is on the next one.
    head: Option<String>,
}

#[derive(Debug)]
struct Pending {
    line: u64,
    head: String,
    began: Option<u64>,
}

impl Parser {
    /// For calls of the VM with this descriptor, or of any single one.
    pub(super) fn new(vm: Option<i32>) -> Self {
        Self {
            vm,
            seen: None,
            calls: Vec::new(),
            pending: HashMap::new(),
            ran: HashSet::new(),
            clock: Clock::default(),
            head: None,
        }
    }

    pub(super) fn line(&mut self, line: &Line) -> Result<(), At> {
        if let Some(interrupted) = INTERRUPTED.captures(&line.text) {
            self.head = Some(interrupted["head"].to_owned());
            return Ok(());
        }
        match self.head.take() {
            None => self.whole_line(line),
            Some(head) => self.whole_line(&Line { text: head + &line.text, ..*line }),
        }
    }

    fn whole_line(&mut self, line: &Line) -> Result<(), At> {
        let Some(prefix) = PREFIX.captures(&line.text) else { return Ok(()) };
        let thread = number(&prefix, "pid").or_else(|| number(&prefix, "opid"));
        let at = self.clock.read(&prefix);
        let rest = &prefix["rest"];
        if let Some(head) = rest.strip_suffix(UNFINISHED) {
            if head.starts_with("ioctl(") {
                let head = head.trim_end().to_owned();
                self.pending.insert(thread, Pending { line: line.number, head, began: at });
            }
        } else if rest.starts_with("+++ ") || rest.ends_with(DETACHED) {
            // It died in the call, which has no result, or nobody looked any more.
            self.pending.remove(&thread);
        } else if let Some(resumed) = RESUMED.captures(rest) {
            // Attached to while it was in the call: its beginning is not there.
            let Some(pending) = self.pending.remove(&thread) else { return Ok(()) };
            let text = pending.head + &resumed["end"];
            self.ioctl(line, &text, thread, pending.began, at)?;
        } else if rest.starts_with("ioctl(") {
            self.ioctl(line, rest, thread, at, None)?;
        }
        Ok(())
    }

    fn ioctl(
        &mut self,
        line: &Line,
        text: &str,
        thread: Option<u32>,
        began: Option<u64>,
        resumed: Option<u64>,
    ) -> Result<(), At> {
        let text = COMMENT.replace_all(text, "");
        let Some(call) = CALL.captures(&text) else { return cut_off(line) };
        if RUN.contains(&&call["request"]) {
            self.ran.insert(thread);
            return Ok(());
        }
        let is_region2 = REGION2.contains(&&call["request"]);
        if !is_region2 && !REGION.contains(&&call["request"]) {
            return cut_off(line);
        }
        line.check_ended()?;
        let end = END.captures(&call["end"]).ok_or_else(|| line.malformed("no result"))?;
        // It ended with its thread. (What was interrupted is made again.)
        if &end["ret"] == "?" {
            return Ok(());
        }
        let fd = fields::number(&call["fd"]).and_then(|fd| i32::try_from(fd).ok());
        let (Some(errno), Some(fd)) = (errno(&end), fd) else {
            return Err(line.malformed("expected success or an errno"));
        };
        let argument = call.name("argument").map_or("", |argument| argument.as_str());
        let region = match argument.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(fields) => Fields::new(fields.split(", "))
                .and_then(|mut fields| fields.region(&NAMES))
                .map_err(|why| line.malformed(why))?,
            // Refused, it changed nothing, whatever it was about.
            None if errno != 0 => return Ok(()),
            None if is_region2 => return Err(At(line.number, Problem::NotDecoded)),
            None => return Err(At(line.number, Problem::Raw)),
        };
        if !self.is_ours(fd, line)? {
            return Ok(());
        }
        let took = end.name("took").and_then(|took| clock::seconds(took.as_str()));
        self.calls.push(Call {
            began,
            ended: began.zip(took).map(|(began, took)| began.saturating_add(took)).or(resumed),
            thread,
            after_run: self.ran.remove(&thread),
            errno,
            ..Call::of(line.number, region)
        });
        Ok(())
    }

    fn is_ours(&mut self, fd: i32, line: &Line) -> Result<bool, At> {
        if let Some(vm) = self.vm {
            return Ok(vm == fd);
        }
        let first = *self.seen.get_or_insert(fd);
        if first == fd {
            return Ok(true);
        }
        Err(At(line.number, Problem::TwoVms { first, second: fd }))
    }

    pub(super) fn finish(self) -> Result<Vec<Call>, At> {
        let is_call = |text: &str| {
            let call = CALL.captures(text);
            call.is_some_and(|call| [REGION, REGION2].concat().contains(&&call["request"]))
        };
        let cut = self.pending.values().filter(|pending| is_call(&pending.head));
        match cut.map(|pending| pending.line).min() {
            Some(line) => Err(At(line, Problem::Truncated)),
            None => Ok(self.calls),
        }
    }
}

/// A line that is no memslot call: unless it is the last, and cut off before
/// that can be said.
fn cut_off(line: &Line) -> Result<(), At> {
    if line.ended || line.text.contains(" = ") { Ok(()) } else { line.check_ended() }
}

/// Puts times of all kinds on one axis.
#[derive(Debug, Default)]
struct Clock {
    first: Option<u64>,
    last: u64,
    /// Of the lines before, where each says how long it is since the last.
    since_first: u64,
    days: u64,
}

impl Clock {
    /// Nanoseconds since the first line. Whole seconds (`-t`) are too coarse to
    /// say anything.
    fn read(&mut self, prefix: &Captures<'_>) -> Option<u64> {
        let text = |name| prefix.name(name).map(|found| found.as_str());
        let at = match (text("day"), text("sec")) {
            (Some(day), _) if day.contains('.') => {
                let time = clock::time_of_day(day)?;
                // Past midnight.
                if time + self.days * clock::DAY + clock::DAY / 2 < self.last {
                    self.days += 1;
                }
                time + self.days * clock::DAY
            }
            // Seconds since 1970 (-ttt) are more than a year.
            (_, Some(seconds)) => match clock::seconds(seconds)? {
                since if since < 365 * clock::DAY => {
                    self.since_first += since;
                    self.since_first
                }
                at => at,
            },
            _ => return None,
        };
        self.last = at;
        at.checked_sub(*self.first.get_or_insert(at))
    }
}

fn number<T: FromStr>(captures: &Captures<'_>, name: &str) -> Option<T> {
    captures.name(name)?.as_str().parse().ok()
}

/// 0, or the errno.
fn errno(end: &Captures<'_>) -> Option<i32> {
    let ret: i32 = number(end, "ret")?;
    let Some(name) = end.name("errno") else { return (ret == 0).then_some(0) };
    let is_it = |errno: &i32| format!("{:?}", Errno::from_raw(*errno)) == name.as_str();
    (1..=133).find(is_it)
}

/// `slot=0, flags=KVM_MEM_READONLY, guest_phys_addr=0x0, memory_size=4096,
/// userspace_addr=0x7f0000000000`.
const NAMES: Names = [
    "",
    "slot",
    "flags",
    "guest_phys_addr",
    "memory_size",
    "userspace_addr",
    "guest_memfd",
    "guest_memfd_offset",
];
