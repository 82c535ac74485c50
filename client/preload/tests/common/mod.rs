//! What the tests with the library preloaded share.

use std::io::Write as _;
use std::path::PathBuf;

/// In the form that `cargo xtask test` counts.
pub(crate) fn skip(name: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {reason}");
}

/// Said where [`library`] finds none.
pub(crate) const NO_LIBRARY: &str = "no libkvm_memslots_preload.so beside this test";

/// The library that cargo built beside this test, the latest of its kind.
pub(crate) fn library() -> Option<PathBuf> {
    let dir = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libkvm_memslots_preload") && name.ends_with(".so")
    };
    let built = |path: &PathBuf| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let files = [dir.as_path(), dir.parent()?].map(|dir| std::fs::read_dir(dir).unwrap());
    let files = files.into_iter().flatten().map(|entry| entry.unwrap().path());
    files.filter(is_ours).max_by_key(built)
}
