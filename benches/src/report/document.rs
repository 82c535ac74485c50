//! What is said alike on a terminal and on a page.

use std::fmt::Write;

use super::html::{escape, page, runs, table_of};
use super::markdown;
use crate::compare::Row;

/// A part of a document.
#[derive(Debug)]
pub enum Part {
    /// Names and values; what has no name goes on.
    Facts(Vec<(&'static str, String)>),
    /// What the next parts are about.
    Head(String),
    /// A paragraph.
    Said(String),
    /// A table: its header and its rows, and how many columns are words; the others
    /// are numbers.
    Table(Vec<String>, Vec<Vec<String>>, usize),
    /// All runs of a comparison, which only a page shows.
    Runs(Vec<Row>),
}

/// The parts as text.
#[must_use]
pub fn text(parts: &[Part]) -> String {
    let mut text = String::new();
    for part in parts {
        let _ = match part {
            Part::Facts(facts) => {
                facts.iter().try_for_each(|(name, value)| writeln!(text, "{name:<16} {value}"))
            }
            Part::Head(head) => writeln!(text, "\n{head}:"),
            Part::Said(said) => writeln!(text, "{said}"),
            Part::Table(header, rows, words) => {
                let mut table = markdown(header.clone(), *words..header.len());
                table.add_rows(rows.clone());
                writeln!(text, "{table}")
            }
            Part::Runs(_) => Ok(()),
        };
    }
    text
}

/// The parts as a page of its own.
#[must_use]
pub fn html(title: &str, parts: &[Part]) -> String {
    let mut body = format!("<h1>{}</h1>\n", escape(title));
    for part in parts {
        match part {
            Part::Facts(facts) => {
                body += "<dl>\n";
                for (name, value) in facts {
                    if !name.is_empty() {
                        let _ = write!(body, "<dt>{}</dt>", escape(name));
                    }
                    let _ = writeln!(body, "<dd>{}</dd>", escape(value));
                }
                body += "</dl>\n";
            }
            Part::Head(head) => {
                let _ = writeln!(body, "<h2>{}</h2>", escape(head));
            }
            Part::Said(said) => body += &paragraph(said),
            Part::Table(header, rows, words) => {
                let header: Vec<&str> = header.iter().map(String::as_str).collect();
                body += &table_of(&header, rows.iter().cloned(), *words);
            }
            Part::Runs(rows) => body += &runs(rows),
        }
    }
    page(title, &body)
}

/// With what is between backticks as code.
fn paragraph(said: &str) -> String {
    let words = said.split('`').enumerate().map(|(index, words)| match index % 2 {
        0 => escape(words),
        _ => format!("<code>{}</code>", escape(words)),
    });
    let words: String = words.collect();
    if words.is_empty() { words } else { format!("<p>{words}</p>\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_page_say_the_same() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let parts = [
            Part::Facts(vec![("name", "a < b".to_owned()), ("", "more".to_owned())]),
            Part::Head("Costs".to_owned()),
            Part::Table(row(["call", "ns"]), vec![row(["`create`", "7"])], 1),
            Part::Said("Run `memslots bench`.".to_owned()),
            Part::Said(String::new()),
        ];
        let expected = "name             a < b\n                 more\n\nCosts:\n\
                        | call     | ns |\n|----------|----|\n| `create` |  7 |\n\
                        Run `memslots bench`.\n\n";
        assert_eq!(text(&parts), expected);
        let page = html("Title", &parts);
        for part in [
            "<h1>Title</h1>",
            "<dt>name</dt><dd>a &lt; b</dd>\n<dd>more</dd>",
            "<h2>Costs</h2>",
            "<p>Run <code>memslots bench</code>.</p>",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("<p></p>"));
    }
}
