//! The series, applied.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};

use super::series::Series;
use super::target::Target;
use super::{logged, places, source, target};

/// A patch of the series.
pub(super) struct Patch {
    pub(super) path: PathBuf,
    text: String,
}

impl Patch {
    fn read(path: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        Ok(Self { path, text })
    }

    /// Its file's name.
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The files that it adds, changes or removes.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        files(&self.text)
    }
}

/// Where the source tree of `target` is, with whatever series.
pub(super) fn source(target: &Target) -> Result<PathBuf> {
    match &target.ksrc {
        Some(_) => source::unpatched(target),
        None => Ok(tree(target)?.source()),
    }
}

/// Makes [`source()`] what `target` says, with the series or without. `KSRC` is
/// as it is. It stays so for as long as nobody else gets a
/// [`lock`](super::lock::wait) on the tree.
pub(super) fn apply(target: &Target) -> Result<()> {
    if target.ksrc.is_some() {
        return Ok(());
    }
    tree(target)?.apply(&patches(target)?)
}

fn tree(target: &Target) -> Result<Tree> {
    Ok(Tree { pristine: source::pristine(&target.version)?, dir: target.tree() })
}

/// What `target` is patched with, in order.
fn patches(target: &Target) -> Result<Vec<Patch>> {
    let mut patches = Vec::new();
    if target.ksrc.is_none() {
        for with in target.with()? {
            patches.extend(of_series(with, &target.version)?);
        }
    }
    patches.extend(target.lab_patch().map(Patch::read).transpose()?);
    Ok(patches)
}

/// The versions that there is a series for, in order.
pub(super) fn versions() -> Result<Vec<String>> {
    let dir = places::all_patches();
    let mut versions = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("{}", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        versions.extend(name.strip_prefix("linux-").map(str::to_owned));
    }
    versions.retain(|version| target::is_version(version));
    versions.sort_by_key(|version| target::numbers(version));
    Ok(versions)
}

/// A hash of the patches that `target` is built with.
pub(super) fn hash(target: &Target) -> Result<u64> {
    Ok(hash_of(&patches(target)?))
}

fn hash_of(series: &[Patch]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for patch in series {
        patch.text.hash(&mut hasher);
    }
    hasher.finish()
}

/// The patches of `which` for Linux `version`, without those that it stands on.
pub(super) fn of_series(which: Series, version: &str) -> Result<Vec<Patch>> {
    series(&which.dir(version))
}

/// The patches in `dir`, in their order, without the cover letter.
pub(super) fn series(dir: &Path) -> Result<Vec<Patch>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => bail!(
            "no series for this version of Linux in {}; --vanilla does without",
            target::shown(dir)
        ),
        entries => entries.with_context(|| format!("{}", dir.display()))?,
    };
    let mut patches = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let cover = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("0000-"));
        if path.extension().is_some_and(|extension| extension == "patch") && !cover {
            patches.push(Patch::read(path)?);
        }
    }
    if patches.is_empty() {
        bail!("no patches in {}", target::shown(dir));
    }
    patches.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(patches)
}

fn files(patch: &str) -> impl Iterator<Item = PathBuf> {
    let named = |line: &'_ str| {
        let name = line.strip_prefix("--- a/").or_else(|| line.strip_prefix("+++ b/"))?;
        let path = PathBuf::from(name.split('\t').next()?);
        path.components().all(|c| matches!(c, Component::Normal(_))).then_some(path)
    };
    patch.lines().filter_map(named)
}

/// A tree of hard links to the pristine one, but for what the series touches.
pub(super) struct Tree {
    pub(super) pristine: PathBuf,
    /// Where it is, with what is known of it.
    pub(super) dir: PathBuf,
}

impl Tree {
    pub(super) fn source(&self) -> PathBuf {
        self.dir.join("source")
    }

    /// Which series is applied, completely.
    fn stamp(&self) -> PathBuf {
        self.dir.join("patched.stamp")
    }

    /// What is no link, or not what the pristine tree has.
    fn touched(&self) -> PathBuf {
        self.dir.join("patched.files")
    }

    /// Makes the tree the pristine one with `series`.
    pub(super) fn apply(&self, series: &[Patch]) -> Result<()> {
        let hash = format!("{:016x}\n", hash_of(series));
        if self.source().exists() && fs::read_to_string(self.stamp()).is_ok_and(|is| is == hash) {
            return Ok(());
        }
        self.link()?;
        let _ = fs::remove_file(self.stamp());
        let before: BTreeSet<PathBuf> = match fs::read_to_string(self.touched()) {
            Ok(files) => files.lines().map(PathBuf::from).collect(),
            Err(_) => BTreeSet::new(),
        };
        let after: BTreeSet<PathBuf> = series.iter().flat_map(Patch::files).collect();
        let all: BTreeSet<&PathBuf> = before.union(&after).collect();
        let list: Vec<String> = all.iter().map(|file| file.display().to_string()).collect();
        fs::write(self.touched(), list.join("\n")).context("patched.files")?;
        let old = self.restore(&all)?;
        for (nth, patch) in series.iter().enumerate() {
            self.patch(patch, nth)?;
        }
        keep_times(&old)?;
        fs::write(self.stamp(), hash).context("patched.stamp")
    }

    /// Makes the tree, if it is not there.
    fn link(&self) -> Result<()> {
        if self.source().exists() {
            return Ok(());
        }
        let linking = self.dir.join("source.linking");
        let _ = fs::remove_dir_all(&linking);
        let _ = fs::remove_file(self.touched());
        fs::create_dir_all(&self.dir).with_context(|| format!("{}", self.dir.display()))?;
        let mut cp = Command::new("cp");
        cp.arg("-al").arg(&self.pristine).arg(&linking);
        logged::run("linking the source", &mut cp, &self.dir.join("source.log"), false)?;
        fs::rename(&linking, self.source()).context("source")
    }

    /// Makes `files` what the pristine tree has, as files of this tree's own;
    /// what they were.
    fn restore(&self, files: &BTreeSet<&PathBuf>) -> Result<BTreeMap<PathBuf, Old>> {
        let mut old = BTreeMap::new();
        for file in files {
            let (from, to) = (self.pristine.join(file), self.source().join(file));
            let restore = || -> std::io::Result<Option<Old>> {
                let was = Old::of(&to)?;
                if was.is_some() {
                    fs::remove_file(&to)?;
                }
                if from.exists() {
                    fs::copy(&from, &to)?;
                }
                Ok(was)
            };
            let was = restore().with_context(|| format!("{}", to.display()))?;
            old.extend(was.map(|was| (to, was)));
        }
        Ok(old)
    }

    fn patch(&self, patch: &Patch, nth: usize) -> Result<()> {
        let name = patch.name();
        let mut command = Command::new("patch");
        command.args(["-p1", "--forward", "--no-backup-if-mismatch", "--directory"]);
        command.arg(self.source()).arg("--input").arg(&patch.path);
        logged::run(&format!("patch {name}"), &mut command, &self.dir.join("patch.log"), nth > 0)
    }
}

/// Gives files that are as they were the time of what they were, for make to
/// leave them alone.
fn keep_times(old: &BTreeMap<PathBuf, Old>) -> Result<()> {
    for (path, old) in old {
        let is = Old::of(path).with_context(|| format!("{}", path.display()))?;
        if is.is_some_and(|is| is.content == old.content) {
            let file = File::options().write(true).open(path);
            file.and_then(|file| file.set_modified(old.modified))
                .with_context(|| format!("time of {}", path.display()))?;
        }
    }
    Ok(())
}

/// A file as it was.
struct Old {
    content: Vec<u8>,
    modified: SystemTime,
}

impl Old {
    fn of(path: &Path) -> std::io::Result<Option<Self>> {
        match fs::read(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            content => {
                Ok(Some(Self { content: content?, modified: fs::metadata(path)?.modified()? }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    const CHANGE: &str = "\
Subject: [PATCH] change

---
 a | 2 +-
diff --git a/a b/a
--- a/a
+++ b/a
@@ -1 +1 @@
-one
+two
";
    const ADD: &str = "\
Subject: [PATCH] add

diff --git a/new b/new
new file mode 100644
--- /dev/null
+++ b/new
@@ -0,0 +1 @@
+here
";

    fn patch(dir: &Path, name: &str, text: &str) -> Patch {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        Patch { path, text: text.to_owned() }
    }

    #[test]
    fn files_of_a_patch() {
        let all: Vec<PathBuf> = files(&format!("{CHANGE}{ADD}--- a/../up\n")).collect();
        assert_eq!(all, [Path::new("a"), Path::new("a"), Path::new("new")]);
    }

    #[test]
    fn a_series_is_its_patches_in_order_without_the_cover_letter() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["0002-b.patch", "0000-cover-letter.patch", "0001-a.patch", "README"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let series = series(dir.path()).unwrap();
        let texts: Vec<&str> = series.iter().map(|patch| patch.text.as_str()).collect();
        assert_eq!(texts, ["0001-a.patch", "0002-b.patch"]);
    }

    #[test]
    fn versions_that_have_a_series() {
        let versions = versions().unwrap();
        assert_eq!(versions.first().unwrap(), "6.12");
        assert!(versions.is_sorted_by_key(|version| target::numbers(version)));
        for version in &versions {
            assert!(!of_series(Series::Batch, version).unwrap().is_empty());
        }
    }

    #[test]
    fn a_version_without_a_series() {
        let e = series(Path::new("/nonexistent/linux-0.1")).err().unwrap().to_string();
        assert!(e.contains("linux-0.1") && e.contains("--vanilla"), "{e}");
    }

    /// A tree with a series, then with another, then with none: each time as
    /// applied to the pristine tree, which stays as it is.
    #[test]
    fn series_after_series() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("pristine")).unwrap();
        fs::write(path("pristine/a"), "one\n").unwrap();
        fs::write(path("pristine/b"), "untouched\n").unwrap();
        let tree = Tree { pristine: path("pristine"), dir: path("tree") };
        let read = |name: &str| fs::read_to_string(tree.source().join(name));
        let change = patch(dir.path(), "1.patch", CHANGE);
        let add = patch(dir.path(), "2.patch", ADD);

        tree.apply(&[]).unwrap();
        assert_eq!(read("a").unwrap(), "one\n");
        let series = [change, add];
        tree.apply(&series).unwrap();
        assert_eq!(
            (read("a").unwrap().as_str(), read("new").unwrap().as_str()),
            ("two\n", "here\n")
        );
        tree.apply(&series[1..]).unwrap();
        assert_eq!(
            (read("a").unwrap().as_str(), read("new").unwrap().as_str()),
            ("one\n", "here\n")
        );
        tree.apply(&[]).unwrap();
        assert_eq!((read("a").unwrap().as_str(), read("new").is_err()), ("one\n", true));
        assert_eq!(read("b").unwrap(), "untouched\n");
        assert_eq!(fs::read_to_string(path("pristine/a")).unwrap(), "one\n");
    }

    #[test]
    fn make_sees_what_changed_and_only_that() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("pristine")).unwrap();
        fs::write(path("pristine/a"), "one\n").unwrap();
        let long_ago = SystemTime::now() - Duration::from_hours(24);
        let age =
            |file: &Path| File::options().write(true).open(file).unwrap().set_modified(long_ago);
        age(&path("pristine/a")).unwrap();
        let tree = Tree { pristine: path("pristine"), dir: path("tree") };
        let is_old = |name: &str| {
            fs::metadata(tree.source().join(name)).unwrap().modified().unwrap() == long_ago
        };
        let series = [patch(dir.path(), "1.patch", CHANGE), patch(dir.path(), "2.patch", ADD)];
        tree.apply(&series[..1]).unwrap();
        assert!(!is_old("a"));
        age(&tree.source().join("a")).unwrap();
        tree.apply(&series).unwrap();
        assert!(is_old("a") && !is_old("new"));
        tree.apply(&[]).unwrap();
        assert!(!is_old("a"));
    }

    #[test]
    fn a_patch_that_does_not_apply_fails_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("pristine")).unwrap();
        fs::write(path("pristine/a"), "other\n").unwrap();
        let tree = Tree { pristine: path("pristine"), dir: path("tree") };
        let series = [patch(dir.path(), "1.patch", CHANGE)];
        for _ in 0..2 {
            let e = tree.apply(&series).unwrap_err().to_string();
            assert!(e.contains("1.patch") && e.contains("patch.log"), "{e}");
        }
    }
}
