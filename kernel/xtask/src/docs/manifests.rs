//! Lines for a `Cargo.toml` that pages give: with them, the code below them builds.

use anyhow::{Context as _, Result};

use super::page::Page;
use super::root;

/// A line for each crate that a page's Rust code uses and its lines of
/// dependencies, if it has any, do not name, or name with another version than
/// this workspace has.
pub(super) fn faults(pages: &[Page]) -> Result<Vec<String>> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).context("Cargo.toml")?;
    let known = dependencies(&manifest, "[workspace.dependencies]");
    Ok(pages.iter().flat_map(|page| faults_of(page, &known)).collect())
}

fn faults_of(page: &Page, known: &[(&str, &str)]) -> Vec<String> {
    let of = |language: &'static str| {
        let blocks =
            page.blocks.iter().filter(move |(_, is, _)| is.split(',').next() == Some(language));
        blocks.map(|(line, _, text)| (line, text.as_str()))
    };
    let Some((line, toml)) = of("toml").find(|(_, text)| text.contains("[dependencies]")) else {
        return Vec::new();
    };
    let given = dependencies(toml, "[dependencies]");
    let used = |name: &str| {
        let path = format!("{}::", name.replace('-', "_"));
        of("rust").any(|(_, text)| text.contains(&path))
    };
    let fault = |&(name, is): &(&str, &str)| {
        let says = match given.iter().find(|(given, _)| *given == name) {
            None if used(name) => "is used below and not there".to_owned(),
            Some((_, given)) if version(given) != version(is) && version(given).is_some() => {
                format!("is of another version than the workspace's, {is}")
            }
            _ => return None,
        };
        Some(format!("{}:{line}: {name} {says}", page.name.display()))
    };
    known.iter().filter_map(fault).collect()
}

/// The dependencies in the table `head` of a manifest: name and the rest.
fn dependencies<'a>(manifest: &'a str, head: &str) -> Vec<(&'a str, &'a str)> {
    let lines = manifest.lines().skip_while(|line| *line != head).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines.filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = ")).collect()
}

/// `0.25` of `"0.25"` and of `{ version = "0.25", ... }`.
fn version(dependency: &str) -> Option<&str> {
    let from = dependency.strip_prefix('"');
    let from = from.or_else(|| Some(dependency.split_once("version = \"")?.1))?;
    from.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_is_there() {
        let known = [("kvm-ioctls", "\"0.25\""), ("libc", "\"0.2\"")];
        let page = |lines: &str| {
            let text = format!(
                "```toml\n[dependencies]\n{lines}\n```\n```rust,no_run\nkvm_ioctls::VmFd\n```\n"
            );
            faults_of(&Page::new("a.md".into(), &text), &known)
        };
        assert_eq!(
            page("x = { path = \"x\" }"),
            ["a.md:1: kvm-ioctls is used below and not there"]
        );
        assert_eq!(page("kvm-ioctls = { version = \"0.25\" }"), [""; 0]);
        let another = "a.md:1: kvm-ioctls is of another version than the workspace's, \"0.25\"";
        assert_eq!(page("# ours\nkvm-ioctls = \"0.24\""), [another]);
    }

    #[test]
    fn tables_end() {
        let manifest = "[a]\nx = 1\n[b]\n# no\ny = \"2\"\n\n[c]\nz = 3\n";
        assert_eq!(dependencies(manifest, "[b]"), [("y", "\"2\"")]);
    }
}
