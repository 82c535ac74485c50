//! Lines of a file that may be in gzip.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::{At, Problem};

/// A line of a log is shorter: what is longer is not read into memory.
const LONGEST: u64 = 1 << 20;

/// A line.
#[derive(Debug)]
pub(super) struct Line {
    /// From 1.
    pub(super) number: u64,
    /// Without its end.
    pub(super) text: String,
    /// Whether it had one.
    pub(super) ended: bool,
}

impl Line {
    /// Complains about this line.
    pub(super) fn malformed(&self, why: impl Into<String>) -> At {
        At(self.number, Problem::Malformed { why: why.into(), text: super::excerpt(&self.text) })
    }

    /// A call on a line without an end may be cut off where it still makes
    /// sense.
    pub(super) fn check_ended(&self) -> Result<(), At> {
        if self.ended { Ok(()) } else { Err(At(self.number, Problem::Truncated)) }
    }
}

/// The lines of a file.
pub(super) struct Lines {
    from: Box<dyn BufRead>,
    number: u64,
    /// What the file is, where it is known and no text.
    binary: Option<&'static str>,
}

impl Lines {
    /// Gzip is recognised by its first bytes.
    pub(super) fn new(from: Box<dyn Read>) -> io::Result<Self> {
        let mut from = BufReader::new(from);
        let is_gzip = from.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let mut from: Box<dyn BufRead> = if is_gzip {
            Box::new(BufReader::new(MultiGzDecoder::new(from)))
        } else {
            Box::new(from)
        };
        // What is wrong with the file is said when a line is read.
        let binary = from.fill_buf().ok().and_then(binary);
        Ok(Self { from, number: 0, binary })
    }

    /// The last line that was read; 0 before the first.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// The next line, `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Line>, At> {
        let number = self.number + 1;
        let failed = |problem| At(number, problem);
        if let Some(what) = self.binary {
            return Err(failed(Problem::Binary(what)));
        }
        let mut bytes = Vec::new();
        let mut limited = (&mut self.from).take(LONGEST);
        limited.read_until(b'\n', &mut bytes).map_err(|error| failed(Problem::Io(error)))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.number = number;
        let ended = bytes.pop_if(|last| *last == b'\n').is_some();
        if !ended && bytes.len() as u64 >= LONGEST || bytes.contains(&0) {
            return Err(failed(Problem::NotText));
        }
        bytes.pop_if(|last| *last == b'\r');
        // What a guest prints may be in any encoding.
        let text = String::from_utf8_lossy(&bytes);
        // The mark that some editors put at the start of a file.
        let text = text.strip_prefix('\u{feff}').filter(|_| number == 1).unwrap_or(&text);
        let text = text.to_owned();
        Ok(Some(Line { number, text, ended }))
    }
}

/// What a file is that begins with these bytes, and what makes text of it.
fn binary(bytes: &[u8]) -> Option<&'static str> {
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
