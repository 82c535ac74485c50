//! A crate's items, read from what rustdoc says of it in JSON.

use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use rustdoc_types::FORMAT_VERSION;
use serde_json::Value;

use crate::rustc::Rustc;
use crate::workspace::{Package, cargo, target};

/// Why rustdoc's JSON says nothing: its format changes with Rust.
#[derive(Debug)]
pub(crate) struct Unreadable {
    /// The format that was written.
    format: u64,
    /// By this.
    rustc: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, rustc } = self;
        write!(
            f,
            "rustdoc's JSON is of format {format} ({rustc}), the public-api of this xtask reads \
             {FORMAT_VERSION} (Rust 1.95)"
        )
    }
}

/// What `package`, one of `published`, offers with all its features, a line an
/// item; `run` runs rustdoc.
pub(super) fn items(
    package: &Package,
    published: &[Package],
    run: &mut dyn FnMut(&mut Command) -> Result<()>,
) -> Result<Result<Vec<String>, Unreadable>> {
    // A directory of its own, or what is built here for a compiler that is not
    // quite the stable one would have to be built again.
    let dir = target().join("api");
    let mut rustdoc = cargo();
    rustdoc.args(["rustdoc", "--quiet", "--lib", "--all-features", "--package", &package.name]);
    rustdoc.arg("--manifest-path").arg(package.dir.join("Cargo.toml"));
    rustdoc.arg("--target-dir").arg(&dir).args(["--", "-Z", "unstable-options"]);
    rustdoc.args(["--output-format", "json"]);
    // For these crates alone: build scripts of others ask whether there are
    // unstable features to use. For each the same, or they would ask again.
    let names: Vec<String> = published.iter().map(library).collect();
    rustdoc.env("RUSTC_BOOTSTRAP", names.join(",")).env_remove("CARGO_BUILD_TARGET");
    run(&mut rustdoc)?;
    read(&dir.join("doc").join(library(package) + ".json"))
}

/// The name of its library.
fn library(package: &Package) -> String {
    package.name.replace('-', "_")
}

/// The items in a file of rustdoc's.
fn read(path: &Path) -> Result<Result<Vec<String>, Unreadable>> {
    let shown = || format!("{}", path.display());
    let json = BufReader::new(File::open(path).with_context(shown)?);
    let json: Value = serde_json::from_reader(json).with_context(shown)?;
    let format = json["format_version"].as_u64().with_context(shown)?;
    if format != u64::from(FORMAT_VERSION) {
        return Ok(Err(Unreadable { format, rustc: Rustc::in_use().version() }));
    }
    // Blanket implementations are those of everything.
    let api = public_api::Builder::from_rustdoc_json(path).omit_blanket_impls(true).build();
    let items = api.with_context(shown)?.into_items().map(|item| item.to_string());
    Ok(Ok(items.filter(|item| !is_internal(item)).collect()))
}

/// Whether it is an implementation of a trait that only the compiler can name.
fn is_internal(item: &str) -> bool {
    ["Freeze", "StructuralPartialEq", "UnsafeUnpin"].iter().any(|name| {
        item.starts_with("impl") && item.contains(&format!("core::marker::{name} for "))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;
    use crate::run;
    use crate::workspace::root;

    const CRATE: &str = "
        //! A crate.
        pub mod inner {
            pub struct Open { pub field: u32 }
            pub struct Shut { field: *mut u32 }
            #[derive(Clone, PartialEq)]
            #[non_exhaustive]
            pub enum Kind { A, B(u32) }
            impl Shut { pub fn get(&self, _at: usize) -> usize { self.field as usize } }
        }
        mod private { pub fn hidden() {} }
        pub use private::hidden as shown;
        #[doc(hidden)] pub fn secret() {}
        #[cfg(feature = \"extra\")] pub fn extra() {}
    ";

    /// rustdoc, public-api and the format they have in common, over a crate.
    #[test]
    fn items_of_a_crate() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = "[package]\nname = \"of-a-test\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\
                        [features]\nextra = []\n[workspace]\n";
        fs::write(dir.path().join("Cargo.toml"), manifest).unwrap();
        fs::create_dir(dir.path().join("src")).unwrap();
        fs::write(dir.path().join("src/lib.rs"), CRATE).unwrap();
        let package = Package {
            name: "of-a-test".to_owned(),
            dir: dir.path().to_owned(),
            ..Package::default()
        };
        let mut run = |command: &mut Command| {
            assert!(run::streamed(command, |line| println!("{line}"))?.success());
            Ok(())
        };
        let items = match items(&package, std::slice::from_ref(&package), &mut run).unwrap() {
            Ok(items) => items,
            Err(unreadable) => {
                println!("SKIPPED items_of_a_crate: {unreadable}");
                return;
            }
        };
        for expected in [
            "pub mod of_a_test",
            "pub struct of_a_test::inner::Open",
            "pub of_a_test::inner::Open::field: u32",
            "#[non_exhaustive] pub enum of_a_test::inner::Kind",
            "pub of_a_test::inner::Kind::B(u32)",
            "pub fn of_a_test::inner::Shut::get(&self, usize) -> usize",
            "impl core::clone::Clone for of_a_test::inner::Kind",
            "impl core::marker::Send for of_a_test::inner::Open",
            "impl !core::marker::Send for of_a_test::inner::Shut",
            "pub fn of_a_test::shown()",
            "pub fn of_a_test::extra()",
        ] {
            assert!(items.iter().any(|item| item == expected), "{expected}: {items:#?}");
        }
        let not = ["secret", "hidden", "Shut::field", "Freeze", "StructuralPartialEq", "Borrow"];
        for part in not {
            assert!(!items.iter().any(|item| item.contains(part)), "{part}: {items:#?}");
        }
    }

    #[test]
    fn another_format_is_named_and_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        fs::write(&path, r#"{"format_version": 1}"#).unwrap();
        let unreadable = read(&path).unwrap().unwrap_err().to_string();
        assert!(unreadable.contains("of format 1 (rustc 1."), "{unreadable}");
        assert!(unreadable.contains(&format!("reads {FORMAT_VERSION}")), "{unreadable}");
        fs::write(&path, "{}").unwrap();
        assert!(read(&path).is_err());
    }

    /// There is one `rustdoc-types`, so [`FORMAT_VERSION`] is what public-api
    /// reads.
    #[test]
    fn the_format_is_that_of_public_api() {
        let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
        assert_eq!(lock.matches("name = \"rustdoc-types\"").count(), 1);
    }
}
