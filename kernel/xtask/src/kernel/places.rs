//! Where everything is.

use std::path::{Path, PathBuf};

use crate::workspace;

/// Where the series of all versions are.
pub(super) fn all_patches() -> PathBuf {
    workspace::root().join("kernel/patches")
}

/// Where the lab keeps everything.
pub(super) fn dir() -> PathBuf {
    workspace::target().join("kernel")
}

/// `path` as one would type it in the root of the workspace.
pub(super) fn shown(path: &Path) -> String {
    path.strip_prefix(workspace::root()).unwrap_or(path).display().to_string()
}
