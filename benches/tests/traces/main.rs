//! Traces: what is read from logs, and what their replay does.
#![allow(clippy::unwrap_used)]

mod bursts;
mod formats;
mod import;
mod lines;
mod replay;

use std::io::Cursor;
use std::path::PathBuf;

use kvm_memslots_bench::trace::{Trace, TraceError, import as read, import_from};

/// A file of the test data.
fn data(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/data/traces", name].iter().collect()
}

/// What the report of 2022 is about: real UEFI on arm64.
const UEFI: &str = "qemu-7.2-aarch64-uefi-boot.trace.gz";

/// The trace that a file with this content holds.
fn import_text(text: impl AsRef<[u8]>) -> Result<Trace, TraceError> {
    import_from("the log", Cursor::new(text.as_ref().to_vec()), None)
}
