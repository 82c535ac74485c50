//! Logs and traces.

use std::fmt::Write as _;
use std::io::Cursor;
use std::time::Duration;

use kvm_memslots_bench::replay::one_address_space;
use kvm_memslots_bench::trace::{bursts, import_from, write};

use super::engine::{corpus, fuzz};

const WORDS: [&[u8]; 24] = [
    b"kvm_set_user_memory ",
    b"KVM_SET_USER_MEMORY_REGION2",
    b"ioctl(4, ",
    b" <unfinished ...>",
    b"<... ioctl resumed>",
    b"[pid 7] ",
    b"[  16] ",
    b"Nov 28 07:33:51 host qemu[1]: ",
    b"> ",
    b"size=0x0",
    b"memory_size=0",
    b"ret=-22",
    b" = -1 EINVAL (Invalid argument)",
    b"0xffffffffffffffff",
    b"18446744073709551615",
    b"-1",
    b"\"version\":2",
    b"{",
    b"}",
    b"\n",
    b"\0",
    b"\xff",
    b"99999999999.999999",
    b"9999-12-31T23:59:59.999999999Z ",
];

/// It is read, and then it is a trace in every respect; or it is refused, with a
/// line that it has.
fn read(input: &[u8]) {
    for vm in [None, Some(4)] {
        let lines = input.split(|byte| *byte == b'\n').count() as u64;
        match import_from("input", Cursor::new(input.to_vec()), vm) {
            Err(error) => {
                let line = error.line.unwrap();
                // What is in gzip has lines of its own.
                assert!(line >= 1 && (line <= lines || input.starts_with(b"\x1f\x8b")), "{error}");
                let mut text = String::new();
                write!(text, "{error}").unwrap();
                assert!(text.len() < 2000, "{text}");
            }
            Ok(trace) => {
                assert!(!trace.calls.is_empty());
                let mut text = Vec::new();
                write(&trace, &mut text).unwrap();
                let again = import_from("again", Cursor::new(text), None).unwrap();
                assert_eq!(again, trace);
                let made: Vec<_> = trace.made().copied().collect();
                let cut = bursts(&made, Duration::from_micros(100));
                assert_eq!(cut.iter().map(|burst| burst.len()).sum::<usize>(), made.len());
                if let Ok(one) = one_address_space(&trace) {
                    // What KVM refused stays as it is.
                    assert!(one.made().all(|call| call.as_id() == 0));
                    let mut text = Vec::new();
                    write(&one, &mut text).unwrap();
                    import_from("one", Cursor::new(text), None).unwrap();
                }
            }
        }
    }
}

#[test]
fn traces_are_read_or_refused() {
    fuzz("traces", &corpus("traces"), &WORDS, read);
}
