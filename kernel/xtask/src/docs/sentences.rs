//! Sentences that are read once: not longer than a reader can hold.

use super::is_results;
use super::page::Page;

/// Words that a sentence has at most.
const LIMIT: usize = 25;

/// What ends in a full stop and no sentence.
const ABBREVIATED: [&str; 3] = ["i.e.", "e.g.", "..."];

/// A line for each sentence that is too long.
pub(super) fn faults(pages: &[Page]) -> Vec<String> {
    let held = pages.iter().filter(|page| !is_results(&page.name));
    held.flat_map(faults_of).collect()
}

fn faults_of(page: &Page) -> Vec<String> {
    let mut faults = Vec::new();
    for (line, text) in &page.paragraphs {
        for sentence in sentences(text) {
            let words = sentence.iter().filter(|word| word.contains(char::is_alphanumeric)).count();
            if words > LIMIT {
                let name = page.name.display();
                let begin = sentence.iter().take(6).copied().collect::<Vec<_>>().join(" ");
                faults.push(format!(
                    "{name}:{line}: a sentence of {words} words, more than {LIMIT}: {begin} ..."
                ));
            }
        }
    }
    faults
}

fn sentences(text: &str) -> Vec<Vec<&str>> {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.split_inclusive(|word| ends(word)).map(<[&str]>::to_vec).collect()
}

fn ends(word: &str) -> bool {
    let word = word.trim_end_matches([')', '"', '”']);
    word.ends_with(['.', '!', '?']) && !ABBREVIATED.contains(&word.trim_start_matches('('))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_they_end() {
        let text = "One (i.e. the first). `a.b` is code. Is it? \"Yes.\" Version 6.12 goes on";
        let found: Vec<String> = sentences(text).iter().map(|words| words.join(" ")).collect();
        let expected = [
            "One (i.e. the first).",
            "`a.b` is code.",
            "Is it?",
            "\"Yes.\"",
            "Version 6.12 goes on",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_long_one_is_named_and_code_is_one_word() {
        let page = |text: String| Page::new("docs/a.md".into(), &text);
        let long = vec!["word"; LIMIT + 1].join(" ");
        let told =
            "docs/a.md:3: a sentence of 26 words, more than 25: word word word word word word ...";
        assert_eq!(faults_of(&page(format!("# A\n\n{long}.\n"))), [told]);
        // Cells, items and paragraphs are apart, and so is code.
        let short = vec!["word"; LIMIT].join(" ");
        let text = format!(
            "{short}\n\n- {short}\n- {short}\n\n| a | b |\n| - | - |\n| {short} | {short} |\n\n\
             ```text\n{long}\n```\n\n`{long}` is code.\n"
        );
        assert_eq!(faults_of(&page(text)), [""; 0]);
    }
}
