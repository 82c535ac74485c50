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
    /// A table: its header and its rows. Columns but the first are numbers.
    Table(Vec<String>, Vec<Vec<String>>),
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
            Part::Table(header, rows) => {
                let mut table = markdown(header.clone(), 1..header.len());
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
            Part::Said(said) => {
                let _ = writeln!(body, "<p>{}</p>", escape(said));
            }
            Part::Table(header, rows) => {
                let header: Vec<&str> = header.iter().map(String::as_str).collect();
                body += &table_of(&header, rows.iter().cloned());
            }
            Part::Runs(rows) => body += &runs(rows),
        }
    }
    page(title, &body)
}
