//! Files that are written when all is measured, and checked before.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Failure;

/// A file that can be written. One that was made for this is gone again if
/// nothing was.
#[derive(Debug)]
pub(super) struct OutputFile {
    path: PathBuf,
    file: File,
    unwanted: bool,
}

impl OutputFile {
    /// Opens the file, and leaves what is in it.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let is_new = !path.exists();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
        Ok(Self { path: path.to_owned(), file, unwanted: is_new })
    }

    /// Whether it is what `path` names, too: by another name, a link. What is no file of
    /// a disk's can be written to twice.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let of = |file: Metadata| file.is_file().then(|| (file.dev(), file.ino()));
        let own = self.file.metadata().ok().and_then(of);
        own.is_some() && own == fs::metadata(path).ok().and_then(of)
    }

    /// Replaces the content.
    pub(super) fn write(
        mut self,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
        };
        // A pipe or a device has no length.
        let _ = self.file.set_len(0);
        let mut out = BufWriter::new(&self.file);
        content(&mut out).and_then(|()| out.flush()).map_err(named)?;
        drop(out);
        self.unwanted = false;
        Ok(())
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if self.unwanted {
            let _ = fs::remove_file(&self.path);
        }
    }
}
