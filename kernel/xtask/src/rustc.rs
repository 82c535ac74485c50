//! Compilers other than the one in use: Debian's, unpacked under `target/`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt;
use crate::workspace::root;

/// A compiler.
#[derive(Debug)]
pub(crate) struct Rustc {
    program: PathBuf,
    /// Where its libraries are, if it does not find them itself.
    libraries: Option<PathBuf>,
}

impl Rustc {
    /// One that finds its libraries.
    pub(crate) fn own(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), libraries: None }
    }

    /// The one in use.
    pub(crate) fn in_use() -> Self {
        Self::own(std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc")))
    }

    /// Debian's, as [`Package::unpack`] leaves it in `root`.
    pub(crate) fn unpacked(root: &Path) -> Option<Self> {
        let program = root.join("usr/bin/rustc");
        let multiarch = fs::read_dir(root.join("usr/lib")).ok()?.filter_map(Result::ok);
        let libraries = multiarch.map(|entry| entry.path()).find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().contains("-linux-gnu"))
        })?;
        program.exists().then_some(Self { program, libraries: Some(libraries) })
    }

    /// Makes cargo compile with it.
    pub(crate) fn drive(&self, cargo: &mut Command) {
        self.with_environment(cargo).env("RUSTC", &self.program);
    }

    fn with_environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        match &self.libraries {
            Some(libraries) => command.env("LD_LIBRARY_PATH", libraries),
            // Set by `cargo run`, for another toolchain.
            None => command.env_remove("LD_LIBRARY_PATH"),
        }
    }

    /// What it says to `args`; empty if it does not run.
    fn says(&self, args: &[&str]) -> String {
        let mut command = Command::new(&self.program);
        let output = self.with_environment(&mut command).current_dir(root()).args(args).output();
        output.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    }

    /// `rustc 1.85.0 (...)`; empty if it does not run.
    pub(crate) fn version(&self) -> String {
        self.says(&["--version"])
    }

    /// Whether it runs and is `version`, e.g. `1.85`.
    pub(crate) fn is(&self, version: &str) -> bool {
        is_version(&self.version(), version)
    }

    /// Whether it runs and has the standard library for `triple`.
    pub(crate) fn has_std(&self, triple: &str) -> bool {
        let libraries = self.says(&["--print", "target-libdir", "--target", triple]);
        let Ok(entries) = fs::read_dir(libraries) else { return false };
        let mut names = entries.filter_map(Result::ok).map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().starts_with("libstd-"))
    }
}

/// Whether `rustc 1.85.0 (...)` is a `1.85`.
fn is_version(said: &str, version: &str) -> bool {
    said.split(' ').nth(1).is_some_and(|is| starts_with_version(is, version))
}

/// Whether `is` is `version` or `version.PATCH`, whatever follows.
pub(crate) fn starts_with_version(is: &str, version: &str) -> bool {
    is.strip_prefix(version).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Debian's names for the compiler, and in the names of its libraries. Which
/// has what version differs from release to release: `rustc-web` follows the
/// browsers.
const FLAVOURS: [(&str, &str); 2] = [("rustc", "rust"), ("rustc-web", "rust-web")];

/// A version of the compiler that Debian has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Package {
    compiler: &'static str,
    flavour: &'static str,
    /// Debian's.
    version: String,
}

impl Package {
    /// All that the archive has.
    pub(crate) fn all(apt: &apt::Private) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for (compiler, flavour) in FLAVOURS {
            let versions = apt.versions(compiler)?;
            all.extend(versions.into_iter().map(|version| Self { compiler, flavour, version }));
        }
        Ok(all)
    }

    /// Whether it is `version`, e.g. `1.85`.
    pub(crate) fn is(&self, version: &str) -> bool {
        starts_with_version(&self.version, version)
    }

    /// The version of Rust: 1.85 as (1, 85).
    pub(crate) fn release(&self) -> Option<(u32, u32)> {
        let mut numbers = self.version.split('.').map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    }

    /// The package that has the standard library that goes with it.
    fn std(&self) -> String {
        format!("libstd-{}-dev", self.flavour)
    }

    /// Whether `foreign`'s architecture has the same standard library.
    pub(crate) fn has_std(&self, foreign: &apt::Private) -> Result<bool> {
        Ok(foreign.versions(&self.std())?.contains(&self.version))
    }

    /// Unpacks compiler and libraries to `to` and, from `foreign`, the standard
    /// library for its architecture.
    pub(crate) fn unpack(
        &self,
        apt: &apt::Private,
        foreign: Option<&apt::Private>,
        to: &Path,
    ) -> Result<Rustc> {
        let Self { compiler, flavour, version } = self;
        let (major, minor) = self.release().with_context(|| format!("{compiler} {version}"))?;
        apt.pin("rust", version)?;
        // Not `to` until it is whole.
        let unpacking = to.with_extension("unpacking");
        let _ = fs::remove_dir_all(&unpacking);
        fs::create_dir_all(&unpacking).with_context(|| format!("{}", unpacking.display()))?;
        // By name, as what is only depended on is not unpacked if the machine
        // has it.
        let shared = format!("libstd-{flavour}-{major}.{minor}");
        apt.unpack(&[compiler, &self.std(), &shared], &unpacking)?;
        if let Some(foreign) = foreign {
            foreign.unpack_alone(&[&format!("{}={version}", self.std())], &unpacking)?;
        }
        let _ = fs::remove_dir_all(to);
        fs::rename(&unpacking, to).with_context(|| format!("{}", to.display()))?;

        let rustc = Rustc::unpacked(to);
        let rustc = rustc.with_context(|| format!("{compiler} has no /usr/bin/rustc"))?;
        if !rustc.is(&format!("{major}.{minor}")) {
            bail!("{} does not run, or is no {major}.{minor}", rustc.program.display());
        }
        Ok(rustc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert!(is_version("rustc 1.85.0 (4d91de4e4 2025-02-17) (built from a tarball)", "1.85"));
        assert!(!is_version("rustc 1.95.0 (59807616e 2026-04-14)", "1.85"));
        assert!(!is_version("", "1.85"));
        assert!(starts_with_version("1.85.0+dfsg3-1~deb12u3", "1.85"));
        assert!(starts_with_version("1.85-x86_64-unknown-linux-gnu", "1.85"));
        assert!(!starts_with_version("1.850.0", "1.85"));
        assert!(!starts_with_version("1.8.0", "1.85"));
    }

    #[test]
    fn releases_of_packages() {
        let package = |version: &str| Package {
            compiler: "rustc-web",
            flavour: "rust-web",
            version: version.to_owned(),
        };
        let newer = package("1.100.0+dfsg1-1~deb12u2");
        assert!(newer.is("1.100") && !newer.is("1.10"));
        assert_eq!(newer.release(), Some((1, 100)));
        assert!(newer.release() > package("1.96.0+dfsg1-1").release());
        assert_eq!(package("1:2").release(), None);
        assert_eq!(newer.std(), "libstd-rust-web-dev");
    }

    #[test]
    fn the_compiler_in_use_has_its_own_library_only() {
        let rustc = Rustc::in_use();
        let here = std::env::consts::ARCH;
        assert!(rustc.has_std(&format!("{here}-unknown-linux-gnu")));
        assert!(!rustc.has_std("no-such-triple"));
        assert!(!Rustc::own("/nonexistent/rustc").has_std(&format!("{here}-unknown-linux-gnu")));
    }
}
