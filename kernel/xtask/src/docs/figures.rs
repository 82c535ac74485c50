//! Figures in prose, which some file of results has to have.

use std::collections::HashSet;

use anyhow::{Context as _, Result};

use super::page::Page;
use super::{is_results, root};

/// Letters to a mailing list, which stand by themselves.
const LETTERS: &str = "kernel/reports";

/// Directories of such files.
const RESULTS: [&str; 2] = ["benches/results", "kernel/results"];

/// Units of what is measured. (`KiB` and `GiB` are sizes of something.)
const UNITS: [&str; 5] = ["ns", "us", "ms", "s", "x"];

/// A line for each measured figure that no file of results has.
pub(super) fn faults(pages: &[Page]) -> Result<Vec<String>> {
    let mut known = HashSet::new();
    for dir in RESULTS.map(|dir| root().join(dir)) {
        let Ok(files) = std::fs::read_dir(&dir) else { continue };
        for file in files {
            let path = file.with_context(|| format!("can't list {}", dir.display()))?.path();
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("can't read {}", path.display()))?;
            known.extend(figures(&text));
        }
    }
    let held = |page: &&Page| !is_results(&page.name) && !page.name.starts_with(LETTERS);
    Ok(pages.iter().filter(held).flat_map(|page| faults_of(page, &known)).collect())
}

fn faults_of(page: &Page, known: &HashSet<String>) -> Vec<String> {
    let of_line = |(line, text): &(usize, String)| {
        let unknown = figures(text).into_iter().filter(|figure| !known.contains(figure));
        let name = page.name.display().to_string();
        let line = *line;
        unknown
            .map(move |figure| format!("{name}:{line}: {figure} is in no file of results"))
            .collect::<Vec<_>>()
    };
    page.prose.iter().flat_map(of_line).collect()
}

/// The figures with a unit of time, or of how many times something is, that are
/// in `text`: `3.40 ms`, `59x`.
fn figures(text: &str) -> Vec<String> {
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || "|,;:()".contains(c)).collect();
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let number = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_digit())
            && word.chars().all(|c| c.is_ascii_digit() || c == '.')
    };
    let mut found = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let word = word.trim_end_matches('.');
        if let Some(times) = word.strip_suffix('x').filter(|times| number(times)) {
            found.push(format!("{times} x"));
        }
        let unit = words.get(index + 1).map(|unit| unit.trim_end_matches('.'));
        if let Some(unit) = unit.filter(|unit| number(word) && UNITS.contains(unit)) {
            found.push(format!("{word} {unit}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_and_missed() {
        assert_eq!(figures("in 3.40 ms (59x), 4 KiB, 2 calls."), ["3.40 ms", "59 x"]);
        let known = figures("|  3.40 ms | 1.2x |").into_iter().collect();
        let page = Page::new("README.md".into(), "It took 3.40 ms,\nwhich is 59x.");
        assert_eq!(faults_of(&page, &known), ["README.md:2: 59 x is in no file of results"]);
    }
}
