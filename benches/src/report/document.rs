//! What is said alike on a terminal and on a page.

use std::fmt::Write;

use super::chart::percentiles;
use super::markdown;
use super::page::{self, escape, page};
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
    /// A list.
    List(Vec<String>),
    /// Plots, as a page has them, which only a page shows.
    Charts(String),
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
            Part::List(lines) => lines.iter().try_for_each(|line| writeln!(text, "{line}")),
            Part::Charts(_) | Part::Runs(_) => Ok(()),
        };
    }
    text
}

/// The parts as a page of its own.
#[must_use]
pub fn html(title: &str, parts: &[Part]) -> String {
    let mut body = format!("<h1>{}</h1>\n<section>\n", escape(title));
    for part in parts {
        let said = match part {
            Part::Facts(facts) => {
                let fact = |(name, value): &(&str, String)| {
                    let name =
                        if name.is_empty() { "" } else { &format!("<dt>{}</dt>", escape(name)) };
                    format!("{name}<dd>{}</dd>\n", escape(value))
                };
                format!("<dl>\n{}</dl>\n", facts.iter().map(fact).collect::<String>())
            }
            // What it is about stays with it in print.
            Part::Head(head) => format!("</section>\n<section>\n<h2>{}</h2>\n", escape(head)),
            Part::Said(said) => paragraph(said),
            Part::Table(header, rows, words) => page::table(header, rows, *words),
            Part::List(lines) => {
                let line = |line: &String| format!("<li>{}</li>\n", escape(line));
                format!("<ul>\n{}</ul>\n", lines.iter().map(line).collect::<String>())
            }
            Part::Charts(charts) => charts.clone(),
            Part::Runs(rows) => percentiles(rows),
        };
        body += &said;
    }
    page(title, &(body + "</section>\n"))
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
