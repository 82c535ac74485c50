//! The format of traces: JSON lines, described in `docs/reference/traces.md`.

use std::io::{self, Write};

use kvm_memslots_shim::uapi::{MemFlags, kvm_userspace_memory_region2};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::lines::{Line, Lines};
use super::{At, Call, Problem, Source, Trace};

/// What the header says it is.
pub const FORMAT: &str = "kvm-memslots-trace";

/// The version of the format that this program writes and reads.
pub const VERSION: u64 = 1;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: String,
    version: u64,
    source: Source,
    /// How many lines follow.
    calls: u64,
}

/// A call. What is not known, or is what it mostly is, is left out.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    line: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    address_space: u16,
    slot: u16,
    flags: Hex,
    gpa: Hex,
    size: Hex,
    hva: Hex,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    guest_memfd: Option<Memfd>,
    #[serde(default, skip_serializing_if = "is_default")]
    errno: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    began_ns: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended_ns: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    thread: Option<u32>,
    #[serde(default, skip_serializing_if = "is_default")]
    after_run: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    implied: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memfd {
    fd: u32,
    offset: Hex,
}

/// A number as text: many readers of JSON have 53 bits only.
#[derive(Debug, Clone, Copy)]
struct Hex(u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").and_then(|text| u64::from_str_radix(text, 16).ok());
        digits.map(Self).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not in hex")))
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl From<&Call> for Entry {
    fn from(call: &Call) -> Self {
        let region = &call.region;
        let has_memfd = region.flags & MemFlags::GUEST_MEMFD.bits() != 0;
        Self {
            line: call.line,
            address_space: call.as_id(),
            slot: call.slot(),
            flags: Hex(region.flags.into()),
            gpa: Hex(region.guest_phys_addr),
            size: Hex(region.memory_size),
            hva: Hex(region.userspace_addr),
            guest_memfd: has_memfd.then_some(Memfd {
                fd: region.guest_memfd,
                offset: Hex(region.guest_memfd_offset),
            }),
            errno: call.errno,
            began_ns: call.began,
            ended_ns: call.ended,
            thread: call.thread,
            after_run: call.after_run,
            implied: call.implied,
        }
    }
}

impl TryFrom<Entry> for Call {
    type Error = String;

    fn try_from(entry: Entry) -> Result<Self, String> {
        let flags = u32::try_from(entry.flags.0).map_err(|_| "flags have 32 bits".to_owned())?;
        let has_memfd = flags & MemFlags::GUEST_MEMFD.bits() != 0;
        if has_memfd != entry.guest_memfd.is_some() {
            return Err("guest_memfd goes with the flag of that name".to_owned());
        }
        let memfd = entry.guest_memfd.unwrap_or(Memfd { fd: 0, offset: Hex(0) });
        Ok(Self {
            line: entry.line,
            began: entry.began_ns,
            ended: entry.ended_ns,
            thread: entry.thread,
            after_run: entry.after_run,
            implied: entry.implied,
            errno: entry.errno,
            region: kvm_userspace_memory_region2 {
                slot: u32::from(entry.address_space) << 16 | u32::from(entry.slot),
                flags,
                guest_phys_addr: entry.gpa.0,
                memory_size: entry.size.0,
                userspace_addr: entry.hva.0,
                guest_memfd: memfd.fd,
                guest_memfd_offset: memfd.offset.0,
                ..Default::default()
            },
        })
    }
}

/// Writes a trace.
///
/// # Errors
/// Those of `out`.
pub fn write(trace: &Trace, mut out: impl Write) -> io::Result<()> {
    let calls = trace.calls.len() as u64;
    let header =
        Header { format: FORMAT.to_owned(), version: VERSION, source: trace.source, calls };
    serde_json::to_writer(&mut out, &header)?;
    out.write_all(b"\n")?;
    for call in &trace.calls {
        serde_json::to_writer(&mut out, &Entry::from(call))?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Whether a first line is a header, of whatever version.
pub(super) fn is_header(text: &str) -> bool {
    let header: Result<serde_json::Value, _> = serde_json::from_str(text);
    header.is_ok_and(|header| header["format"] == FORMAT)
}

/// Reads the rest of a trace.
pub(super) fn read(first: &Line, lines: &mut Lines) -> Result<Trace, At> {
    let wrong = |line: &Line, error: serde_json::Error| line.malformed(error.to_string());
    let value: serde_json::Value =
        serde_json::from_str(&first.text).map_err(|error| wrong(first, error))?;
    match value["version"].as_u64() {
        Some(VERSION) => {}
        Some(version) => return Err(At(first.number, Problem::Version(version))),
        None => return Err(first.malformed("no version")),
    }
    let header: Header = serde_json::from_value(value).map_err(|error| wrong(first, error))?;
    let mut calls = Vec::new();
    while let Some(line) = lines.next()? {
        line.check_ended()?;
        let entry: Entry = serde_json::from_str(&line.text).map_err(|error| wrong(&line, error))?;
        calls.push(Call::try_from(entry).map_err(|why| line.malformed(why))?);
    }
    let found = calls.len() as u64;
    if found != header.calls {
        let expected = header.calls;
        return Err(At(lines.number(), Problem::Missing { found, expected }));
    }
    Ok(Trace { source: header.source, calls })
}
