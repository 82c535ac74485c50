//! Files that are not text, but that somebody may take for a trace.

/// What a file is that begins with these bytes, and what makes text of it.
pub(super) fn binary(bytes: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 8] = [
        (b"PERFILE2", "a file of perf record: perf script makes text of it"),
        (b"\x17\x08\x44tracing", "a file of trace-cmd: trace-cmd report makes text of it"),
        (
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xb4\x29\xa4\x0a\xcb\x77\xb1\xf2",
            "a file of QEMU's simple trace backend: scripts/simpletrace.py trace-events-all FILE \
             makes text of it",
        ),
        (b"\xfd7zXZ\0", "compressed by xz: xz -dc FILE | memslots import -"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd: zstd -dc FILE | memslots import -"),
        (b"BZh", "compressed by bzip2: bzip2 -dc FILE | memslots import -"),
        (b"\xff\xfe", "text in UTF-16: iconv -f UTF-16 -t UTF-8 makes it readable"),
        (b"\xfe\xff", "text in UTF-16: iconv -f UTF-16 -t UTF-8 makes it readable"),
    ];
    let is_it = |known: &&(&[u8], &'static str)| bytes.starts_with(known.0);
    KNOWN.iter().find(is_it).map(|(_, what)| *what)
}
