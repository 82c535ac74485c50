//! Links between pages, and to files.

use std::path::{Component, Path, PathBuf};

use super::page::Page;
use crate::workspace::root;

/// A line for each link that leads nowhere. Links to other sites are not
/// followed: whether those are up is no property of this repository.
pub(super) fn faults(pages: &[Page]) -> Vec<String> {
    let exists = |path: &Path| root().join(path).exists();
    pages.iter().flat_map(|page| faults_of(page, pages, exists)).collect()
}

fn faults_of(page: &Page, pages: &[Page], exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut faults = Vec::new();
    for (line, link) in &page.links {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target = resolved(&page.name, path);
        let leads = match pages.iter().find(|page| page.name == target) {
            Some(page) => anchor.is_empty() || page.anchors.iter().any(|a| a == anchor),
            None => exists(&target),
        };
        if !leads {
            faults.push(format!("{}:{line}: {link} leads nowhere", page.name.display()));
        }
    }
    faults
}

/// Where `link` leads from `page`, from the root.
pub(super) fn resolved(page: &Path, link: &str) -> PathBuf {
    if link.is_empty() {
        return page.to_owned();
    }
    let mut path = page.parent().unwrap_or(Path::new("")).to_owned();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::Normal(part) => path.push(part),
            _ => {}
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_pages_headings_and_files() {
        let page = |name: &str, text: &str| Page::new(name.into(), text);
        let pages = [
            page(
                "docs/a.md",
                "# Here\n\n[1](#here) [2](#there) [3](../b.md#b) [4](../b.md#c)\n[5](c.md) [6](../src/x.rs) [7](https://example.org)",
            ),
            page("b.md", "# B"),
        ];
        let faults = faults_of(&pages[0], &pages, |path| path == Path::new("src/x.rs"));
        let expected = ["3: #there", "3: ../b.md#c", "4: c.md"]
            .map(|link| format!("docs/a.md:{link} leads nowhere"));
        assert_eq!(faults, expected);
    }
}
