//! Page faults that are the process's and nobody's call: its code, touched first.

use std::io;
use std::ptr::with_exposed_provenance;

use crate::host::SMALL_PAGE;

/// Reads a byte of each page of the code and constants that this process has mapped,
/// its libraries' among them; how many pages those are.
///
/// A process's first use of a page of its code is a page fault, once in its life.
/// What takes less than a millisecond and is measured in a fresh process is mostly
/// that otherwise.
///
/// # Errors
/// That of reading `/proc/self/maps`.
pub fn code() -> io::Result<u64> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mut pages = 0;
    for (first, end) in maps.lines().filter_map(file_read_only) {
        for page in (first..end).step_by(SMALL_PAGE as usize) {
            let byte = with_exposed_provenance::<u8>(page as usize);
            // SAFETY: the page is mapped, readable and not writable. It is a part of the
            // program or of a library that was loaded with it, which nobody unmaps.
            std::hint::black_box(unsafe { byte.read_volatile() });
            pages += 1;
        }
    }
    Ok(pages)
}

/// The addresses in a line of `/proc/self/maps`, if they are of a file that can't be
/// written there.
fn file_read_only(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_ascii_whitespace();
    let (range, access) = (words.next()?, words.next()?);
    let (path, more) = (words.nth(3)?, words.next());
    if !access.starts_with("r-") || !path.starts_with('/') || more.is_some() {
        return None;
    }
    let (first, end) = range.split_once('-')?;
    Some((u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn code_and_constants_are_read_and_nothing_else() {
        let line = |access, path| format!("1000-3000 {access} 00000000 fe:00 12 {path}");
        let range = |access, path| file_read_only(&line(access, path));
        assert_eq!(range("r-xp", "/bin/x"), Some((0x1000, 0x3000)));
        assert_eq!(range("r--p", "/bin/x"), Some((0x1000, 0x3000)));
        assert_eq!(range("rw-p", "/bin/x"), None);
        assert_eq!(range("---p", "/bin/x"), None);
        assert_eq!(range("r-xp", "[vdso]"), None);
        assert_eq!(range("r--s", "/memfd:x (deleted)"), None);
        assert_eq!(file_read_only("1000-3000 r--p 00000000 00:00 0"), None);
    }

    #[test]
    fn there_is_code_to_read() {
        assert!(code().unwrap() > 0);
    }
}
