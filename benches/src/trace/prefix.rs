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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_put_in_front_is_gone() {
        for prefix in [
            "",
            "    ",
            "\t> > ",
            ">> ",
            "\u{feff}",
            "Nov 28 07:33:51 host qemu-system-x86[1234]: ",
            "Nov  8 07:33:51.123456 host virtqemud[1]: ",
            "Fri 2026-11-27 07:33:51 UTC host qemu[1]: ",
            "2026-11-28T07:33:51+0000 host qemu[1]: ",
            "2026-11-28T07:33:51.123456+01:00 host qemu: ",
            "1795851528.475785 host qemu[1]: ",
            "[   12.345678] host qemu[1]: ",
            "> Nov 28 07:33:51 host qemu[1]:   ",
            "2026-11-28 07:33:51.123+0000: ",
            "2026-11-28 07:33:51.123+0000: 77: info : qemuLog:12 : ",
        ] {
            let line = "77@12.000003:kvm_set_user_memory Slot#0";
            assert_eq!(strip(&format!("{prefix}{line}")), line, "{prefix}");
        }
    }

    #[test]
    fn what_is_of_the_log_stays() {
        for line in [
            "2025-08-29T12:34:56.5Z kvm_set_user_memory Slot#0",
            "77@12.000003:kvm_set_user_memory Slot#0",
            "1795851528.475785 ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=5}) = 0",
            "1795851528.475785 [00007ff90c24cd6b] ioctl(4, KVM_RUN, 0) = 0",
            "[pid  3533] [  16] ioctl(4, KVM_RUN, 0) = 0",
            "BdsDxe: kvm_set_user_memory Slot#0",
        ] {
            assert_eq!(strip(line), line);
        }
    }
}
