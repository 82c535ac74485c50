//! What others put before a line of a log: the journal, libvirt, whoever quotes
//! it.

use std::sync::LazyLock;

use regex::Regex;

use super::regex;

/// Indentation, and the quotes of mails and of markdown.
static QUOTE: LazyLock<Regex> = LazyLock::new(|| regex(r"^[\s>\x{feff}]+"));

/// A time, a host, a program: `journalctl -o short` and its relatives, syslog.
static JOURNAL: LazyLock<Regex> = LazyLock::new(|| {
    regex(concat!(
        r"^(?:",
        r"[A-Z][a-z]{2} +\d{1,2} \d\d:\d\d:\d\d(?:\.\d+)?", // short, short-precise
        r"|[A-Z][a-z]{2} \d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? [A-Z]+", // short-full
        r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)", // short-iso
        r"|\d+\.\d{6}",                                     // short-unix
        r"|\[ *\d+\.\d+\]",                                 // short-monotonic
        r") [^\s(]+ [^\s\[\]():]+(?:\[\d+\])?: ",
    ))
});

/// A line of libvirt's own log: its time, thread, level and place.
static LIBVIRT: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+\+\d{4}: (?:\d+: [a-z]+ : (?:[\w/.-]+:\d+ : )?)?")
});

/// The line as it was before it was quoted, indented or logged once more. The
/// time that is stripped is when somebody received the line, which says
/// nothing of the call.
pub(super) fn strip(text: &str) -> &str {
    let after = |pattern: &Regex, text| match pattern.find(text) {
        Some(found) => &text[found.end()..],
        None => text,
    };
    let text = after(&QUOTE, text);
    let inner = after(&LIBVIRT, after(&JOURNAL, text));
    if inner.len() == text.len() { text } else { after(&QUOTE, inner) }
}
