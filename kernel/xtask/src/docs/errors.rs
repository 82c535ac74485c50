//! The page of errors has each kind of the library's, with its errno.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use super::root;

const PAGE: &str = "docs/reference/errors.md";

/// What is said where the kind holds an errno.
const HELD: &str = "'s";

/// A line for each kind that the page lacks or has under another errno, and for
/// each that there is not.
pub(super) fn faults() -> Result<Vec<String>> {
    let read = |name: &str| {
        std::fs::read_to_string(root().join(name)).with_context(|| format!("can't read {name}"))
    };
    let source = |name| read(&format!("client/src/error/{name}.rs"));
    Ok(compared(&kinds(&source("kind")?), &errnos(&source("errno")?), &rows(&read(PAGE)?)))
}

fn compared(kinds: &[&str], errnos: &[(&str, &str)], rows: &BTreeMap<&str, &str>) -> Vec<String> {
    let fault = |kind: &&str| match rows.get(kind) {
        None => Some(format!("{PAGE} lacks {kind}")),
        Some(said) => {
            let mut is = errnos.iter().filter(|(of, _)| of == kind).map(|(_, errno)| *errno);
            let is_said = |errno: &str| said.contains(errno);
            let right = match is.clone().count() {
                0 => is_said("EINVAL"),
                _ => is.all(is_said),
            };
            (!right).then(|| format!("{PAGE} says {said} of {kind}"))
        }
    };
    let unknown = rows.keys().filter(|row| !kinds.contains(row));
    let unknown = unknown.map(|row| format!("{PAGE} has {row}, which is no ErrorKind"));
    kinds.iter().filter_map(fault).chain(unknown).collect()
}

/// The variants of the enum.
fn kinds(source: &str) -> Vec<&str> {
    let variants = source.lines().skip_while(|line| !line.contains("pub enum ErrorKind"));
    let variants = variants.skip(1).take_while(|line| *line != "}");
    variants
        .filter_map(|line| {
            let line = line.strip_prefix("    ")?;
            let name = line.split(|letter: char| !letter.is_alphanumeric()).next()?;
            name.starts_with(|letter: char| letter.is_ascii_uppercase()).then_some(name)
        })
        .collect()
}

/// What the arms of the match give.
fn errnos(source: &str) -> Vec<(&str, &str)> {
    let (mut found, mut names) = (Vec::new(), Vec::new());
    for word in source.split_whitespace() {
        if let Some(name) = word.strip_prefix("Self::") {
            names.push(name.split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or(name));
        }
        let errno = match word.strip_prefix("Errno::") {
            Some(errno) if errno.starts_with('E') => errno.trim_end_matches([',', '}']),
            _ if word.starts_with("*errno") || word.starts_with("error.errno()") => HELD,
            _ => continue,
        };
        found.extend(names.drain(..).map(|name| (name, errno)));
    }
    found
}

/// Kinds in the first column of tables, and what the second one says.
fn rows(page: &str) -> BTreeMap<&str, &str> {
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let (kinds, errno) = (cells.next()?, cells.next()?);
        let kinds = kinds.split('`').skip(1).step_by(2);
        Some(kinds.filter(|kind| !kind.ends_with("()")).map(move |kind| (kind, errno)))
    });
    rows.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_differ_are_named() {
        let kinds = kinds(
            "pub enum ErrorKind {\n    /// A\n    Full {\n        /// B\n        Slots: u8,\n    },\n    Gone(u8),\n    Odd,\n    New,\n}\n",
        );
        assert_eq!(kinds, ["Full", "Gone", "Odd", "New"]);
        let errnos = errnos(
            "Self::Gone(errno) => *errno,\nSelf::Full { .. } | Self::X => {\n Errno::ENOSPC\n}\n",
        );
        assert_eq!(errnos, [("Gone", HELD), ("Full", "ENOSPC"), ("X", "ENOSPC")]);
        let rows = rows(
            "| kind | errno |\n| --- | --- |\n| `Full`, `Gone` | `ENOMEM`, KVM's | a |\n| `Odd`, `Old` | `EINVAL` | b |\n| `kind()` | c |\n",
        );
        let faults = compared(&kinds, &errnos, &rows);
        let expected =
            ["says `ENOMEM`, KVM's of Full", "lacks New", "has Old, which is no ErrorKind"];
        assert_eq!(faults, expected.map(|fault| format!("{PAGE} {fault}")));
    }
}
