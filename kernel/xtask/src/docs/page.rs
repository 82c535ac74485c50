//! What is in a page.

use std::path::PathBuf;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A page, taken apart.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// From the repository's root.
    pub(super) name: PathBuf,
    /// What headings are linked by.
    pub(super) anchors: Vec<String>,
    /// Links with the line that they are in.
    pub(super) links: Vec<(usize, String)>,
    /// Blocks of code: line, language, text.
    pub(super) blocks: Vec<(usize, String, String)>,
    /// Code within text, by line.
    pub(super) codes: Vec<(usize, String)>,
    /// Text that is no code, by line.
    pub(super) prose: Vec<(usize, String)>,
    /// The same as paragraphs, items of lists and cells of tables, each with the
    /// line that it begins in. Code in it is one word.
    pub(super) paragraphs: Vec<(usize, String)>,
}

impl Page {
    pub(super) fn new(name: PathBuf, text: &str) -> Self {
        let mut page = Self { name, ..Self::default() };
        let mut paragraph = (0, String::new());
        let line = |offset: usize| text[..offset].matches('\n').count() + 1;
        let mut heading: Option<String> = None;
        let mut block: Option<(usize, String, String)> = None;
        let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
        for (event, range) in Parser::new_ext(text, options).into_offset_iter() {
            match &event {
                Event::Start(tag) if is_apart(tag.to_end()) => page.end(&mut paragraph),
                Event::End(tag) if is_apart(*tag) => page.end(&mut paragraph),
                Event::SoftBreak | Event::HardBreak => paragraph.1.push(' '),
                Event::Code(text) => {
                    add(&mut paragraph, line(range.start), &text.replace([' ', '.'], "_"));
                }
                Event::Text(text) if block.is_none() && heading.is_none() => {
                    add(&mut paragraph, line(range.start), text);
                }
                _ => {}
            }
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let slug = slug(&heading.take().unwrap_or_default());
                    let same = |anchor: &&String| **anchor == slug;
                    let anchor = match page.anchors.iter().filter(same).count() {
                        0 => slug,
                        count => format!("{slug}-{count}"),
                    };
                    page.anchors.push(anchor);
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push((line(range.start), dest_url.into_string()));
                }
                Event::Start(Tag::CodeBlock(kind)) => {
                    let language = match kind {
                        CodeBlockKind::Fenced(language) => language.into_string(),
                        CodeBlockKind::Indented => String::new(),
                    };
                    block = Some((line(range.start), language, String::new()));
                }
                Event::End(TagEnd::CodeBlock) => page.blocks.extend(block.take()),
                Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                    page.codes.push((line(range.start), text.into_string()));
                }
                Event::Text(text) => {
                    if let Some((_, _, block)) = &mut block {
                        block.push_str(&text);
                    } else {
                        if let Some(heading) = &mut heading {
                            heading.push_str(&text);
                        }
                        page.prose.push((line(range.start), text.into_string()));
                    }
                }
                _ => {}
            }
        }
        page
    }

    /// Ends what `paragraph` has.
    fn end(&mut self, paragraph: &mut (usize, String)) {
        if !paragraph.1.is_empty() {
            self.paragraphs.push(std::mem::take(paragraph));
        }
    }
}

fn add((line, paragraph): &mut (usize, String), at: usize, text: &str) {
    if paragraph.is_empty() {
        *line = at;
    }
    paragraph.push_str(text);
}

/// Whether its text is no part of the sentence around it.
fn is_apart(tag: TagEnd) -> bool {
    matches!(
        tag,
        TagEnd::Paragraph
            | TagEnd::Item
            | TagEnd::TableCell
            | TagEnd::Heading(_)
            | TagEnd::CodeBlock
    )
}

/// As forges and mdbook do: lower case, blanks to hyphens, without punctuation.
fn slug(heading: &str) -> String {
    let kept = heading.trim().chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c),
        _ => None,
    });
    kept.flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::Page;

    #[test]
    fn a_page_is_taken_apart() {
        let text = "# `KVM_MEM_TRAP`, and more\n\nSee [it](a.md#b) in 3 ms.\n\n```sh\nmemslots\n```\n\n# Twice\n\n# Twice\n";
        let page = Page::new("p.md".into(), text);
        assert_eq!(page.anchors, ["kvm_mem_trap-and-more", "twice", "twice-1"]);
        assert_eq!(page.links, [(3, "a.md#b".to_owned())]);
        assert_eq!(page.codes, [(1, "KVM_MEM_TRAP".to_owned())]);
        assert_eq!(page.blocks, [(5, "sh".to_owned(), "memslots\n".to_owned())]);
        assert!(page.prose.contains(&(3, " in 3 ms.".to_owned())), "{:?}", page.prose);
    }
}
