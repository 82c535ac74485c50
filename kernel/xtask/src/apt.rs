//! Debian packages: installed where that is allowed, unpacked under `target/`
//! where not.

mod mirror;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::run;
pub(crate) use mirror::Mirror;

/// Whether there is apt.
pub(crate) fn available() -> bool {
    run::exists("apt-get")
}

/// Whether packages may be installed.
pub(crate) fn may_install() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Installs `packages`, fetching the lists of packages first where the ones
/// at hand do not do.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let install = || -> Result<ExitStatus> {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--quiet", "--no-install-recommends"])
            .args(packages);
        run::streamed(&mut apt, run::say)
    };
    if !install()?.success() {
        run::streamed(Command::new("apt-get").args(["update", "--quiet"]), run::say)?;
        if !install()?.success() {
            bail!("apt-get install {} failed", packages.join(" "));
        }
    }
    Ok(())
}

/// apt with lists and downloads of its own, so that it needs no root, sees
/// what the archive has today, and leaves the machine alone.
pub(crate) struct Private {
    dir: PathBuf,
}

impl Private {
    /// Fetches the lists of packages that the machine's sources have to `dir`.
    pub(crate) fn update(dir: &Path) -> Result<Self> {
        Self::fetch(dir, &configuration(dir))
    }

    /// Fetches the lists of packages for Debian's architecture `arch` to
    /// `dir`. The machine need not know that architecture, and has nothing
    /// installed of it.
    pub(crate) fn update_foreign(dir: &Path, arch: &str) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
        fs::write(dir.join(STATUS), "").context("apt's list of what is installed")?;
        Self::fetch(dir, &(configuration(dir) + &foreign(dir, arch)))
    }

    /// Fetches the lists of packages that `suite` has to `dir`, and no other:
    /// the machine need not have that suite.
    pub(crate) fn of_suite(dir: &Path, mirror: &Mirror, suite: &str) -> Result<Self> {
        Self::of_suite_with(dir, mirror, suite, "deb")
    }

    /// The same, with the lists of packages' sources.
    pub(crate) fn sources_of_suite(dir: &Path, mirror: &Mirror, suite: &str) -> Result<Self> {
        Self::of_suite_with(dir, mirror, suite, "deb deb-src")
    }

    fn of_suite_with(dir: &Path, mirror: &Mirror, suite: &str, kinds: &str) -> Result<Self> {
        let sources = dir.join("sources.list.d");
        fs::create_dir_all(&sources).with_context(|| format!("{}", sources.display()))?;
        let source = mirror.source(kinds, suite);
        fs::write(sources.join("suite.sources"), source).context("apt sources")?;
        Self::fetch(dir, &format!("{}{}", configuration(dir), own_sources(&sources)))
    }

    fn fetch(dir: &Path, configuration: &str) -> Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("{}", dir.display()))?;
        }
        let apt = Self { dir: dir.to_owned() };
        fs::write(apt.configuration(), configuration).context("apt configuration")?;
        let mut update = apt.command("apt-get");
        if !run::streamed(update.args(["update", "--quiet"]), run::say)?.success() {
            bail!("apt-get update failed");
        }
        Ok(apt)
    }

    fn configuration(&self) -> PathBuf {
        self.dir.join("apt.conf")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.dir).env("LC_ALL", "C");
        command.arg("--config-file").arg(self.configuration());
        command
    }

    fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self
            .command(program)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("can't run {program}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            bail!("{program} {}: {said}", args.join(" "));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The versions of `package` that the archive has.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>> {
        self.output("apt-cache", &["madison", package]).map(|said| parse_madison(&said))
    }

    /// The packages whose name starts with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let said = self.output("apt-cache", &["pkgnames", prefix])?;
        Ok(said.lines().map(str::to_owned).collect())
    }

    /// Where the machine gets Debian from, if it does.
    pub(crate) fn mirror(&self) -> Result<Option<Mirror>> {
        let args = ["indextargets", "--format", mirror::FORMAT, "Created-By: Packages"];
        let said = self.output("apt-get", &args)?;
        let Some((uri, file)) = mirror::debian(&said) else { return Ok(None) };
        let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
        let signed_by = mirror::signed_by(file, &text, uri);
        Ok(Some(Mirror { uri: uri.to_owned(), signed_by }))
    }

    /// Unpacks the source of `package`, with Debian's patches, to `to`, which is
    /// not there. It takes `dpkg-source` (Debian: dpkg-dev).
    pub(crate) fn source(&self, package: &str, to: &Path) -> Result<()> {
        let mut download = self.command("apt-get");
        download.args(["source", "--download-only", "--quiet", package]);
        if !run::streamed(&mut download, run::say)?.success() {
            bail!("apt-get source {package} failed");
        }
        let described = fs::read_dir(&self.dir)?.flatten().map(|entry| entry.path());
        let described = described
            .into_iter()
            .find(|path| path.extension().is_some_and(|extension| extension == "dsc"));
        let described = described.with_context(|| format!("no source of {package}"))?;
        // apt has verified it.
        let mut unpack = Command::new("dpkg-source");
        unpack.args(["--no-check", "--no-copy", "--extract"]).args([&described, to]);
        if !run::streamed(&mut unpack, |_| {})?.success() {
            bail!("{} failed", run::shown(&unpack));
        }
        Ok(())
    }

    /// Prefers versions that match `pin` of all packages whose name has `part`
    /// in it.
    pub(crate) fn pin(&self, part: &str, pin: &str) -> Result<()> {
        let preferences = format!("Package: /{part}/\nPin: version {pin}\nPin-Priority: 1001\n");
        fs::write(self.dir.join("preferences"), preferences).context("apt preferences")
    }

    /// Unpacks `packages`, and what they depend on and the machine lacks, to
    /// `root`.
    pub(crate) fn unpack(&self, packages: &[&str], root: &Path) -> Result<()> {
        let mut args = vec!["install", "--simulate", "--yes", "--no-install-recommends"];
        args.extend(["--allow-downgrades", "--reinstall"]);
        args.extend(packages);
        let missing = parse_simulated(&self.output("apt-get", &args)?);
        if missing.is_empty() {
            bail!("apt-get would install nothing for {}", packages.join(" "));
        }
        let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
        self.unpack_alone(&missing, root)
    }

    /// Unpacks `packages`, `NAME` or `NAME=VERSION`, without what they depend
    /// on, to `root`.
    pub(crate) fn unpack_alone(&self, packages: &[&str], root: &Path) -> Result<()> {
        let mut download = self.command("apt-get");
        download.args(["download", "--quiet"]).args(packages);
        if !run::streamed(&mut download, run::say)?.success() {
            bail!("apt-get download {} failed", packages.join(" "));
        }
        for entry in fs::read_dir(&self.dir)? {
            let deb = entry?.path();
            if deb.extension().is_some_and(|extension| extension == "deb") {
                let mut unpack = Command::new("dpkg");
                if !run::streamed(unpack.arg("-x").args([&deb, root]), run::say)?.success() {
                    bail!("dpkg -x {} failed", deb.display());
                }
                fs::remove_file(&deb)?;
            }
        }
        Ok(())
    }
}

/// What apt reads after the machine's own configuration.
fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "Dir::State::Lists \"{dir}/lists\";\n\
         Dir::Cache \"{dir}/cache\";\n\
         Dir::Etc::Preferences \"{dir}/preferences\";\n\
         // The hooks are about the lists and caches of the machine.\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n\
         // The user that root's apt downloads as may not see this directory.\n\
         APT::Sandbox::User \"root\";\n"
    )
}

/// The file in a private directory that lists what is installed.
const STATUS: &str = "status";

/// What apt for a foreign architecture reads after that.
fn foreign(dir: &Path, arch: &str) -> String {
    format!(
        "APT::Architecture \"{arch}\";\n\
         #clear APT::Architectures;\n\
         APT::Architectures {{ \"{arch}\"; }};\n\
         Dir::State::status \"{}\";\n",
        dir.join(STATUS).display()
    )
}

/// What apt reads to have the sources in the folder `sources` only.
fn own_sources(sources: &Path) -> String {
    let sources = sources.display();
    format!("Dir::Etc::SourceList \"/dev/null\";\nDir::Etc::SourceParts \"{sources}\";\n")
}

/// Versions of `apt-cache madison`: `PACKAGE | VERSION | SOURCE`.
fn parse_madison(said: &str) -> Vec<String> {
    said.lines().filter_map(|line| line.split('|').nth(1)).map(|v| v.trim().to_owned()).collect()
}

/// `PACKAGE=VERSION` of what `apt-get --simulate` would install:
/// `Inst PACKAGE [OLD VERSION] (VERSION SOURCE [ARCHITECTURE])`.
fn parse_simulated(said: &str) -> Vec<String> {
    let parse = |line: &str| {
        let rest = line.strip_prefix("Inst ")?;
        let package = rest.split(' ').next()?;
        let version = rest.split('(').nth(1)?.split(' ').next()?;
        Some(format!("{package}={version}"))
    };
    said.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The machine's own architectures are not added to.
    #[test]
    fn a_foreign_architecture_is_the_only_one() {
        if !run::exists("apt-config") {
            eprintln!("SKIPPED a_foreign_architecture_is_the_only_one: no apt-config");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let apt = Private { dir: dir.path().to_owned() };
        let text = configuration(dir.path()) + &foreign(dir.path(), "riscv64");
        fs::write(apt.configuration(), text).unwrap();
        let said = apt.output("apt-config", &["dump"]).unwrap();
        let of = |name: &str| -> Vec<&str> {
            said.lines().filter_map(|line| line.strip_prefix(name)).collect()
        };
        assert_eq!(of("APT::Architecture "), ["\"riscv64\";"]);
        assert_eq!(of("APT::Architectures:: "), ["\"riscv64\";"]);
        let status = format!("\"{}\";", dir.path().join(STATUS).display());
        assert_eq!(of("Dir::State::status "), [status]);
    }

    #[test]
    fn versions_of_madison() {
        let said = " rustc-web | 1.96.0+dfsg1-1~deb12u2 | http://host/security main amd64 Packages\n \
                     rustc-web | 1.85.0+dfsg3-1~deb12u3 | http://host/debian main amd64 Packages\n";
        assert_eq!(parse_madison(said), ["1.96.0+dfsg1-1~deb12u2", "1.85.0+dfsg3-1~deb12u3"]);
        assert_eq!(parse_madison(""), [""; 0]);
    }

    #[test]
    fn packages_of_a_simulation() {
        let said = "Reading package lists...\n\
                    Inst libllvm19 (1:19.1.7-3~deb12u1 Debian:12.15/oldstable [amd64])\n\
                    Inst rustc-web [1.96.0-1] (1.85.0+dfsg3-1 Debian:12.15/oldstable [amd64])\n\
                    Conf libllvm19 (1:19.1.7-3~deb12u1 Debian:12.15/oldstable [amd64])\n";
        assert_eq!(
            parse_simulated(said),
            ["libllvm19=1:19.1.7-3~deb12u1", "rustc-web=1.85.0+dfsg3-1"]
        );
    }
}
