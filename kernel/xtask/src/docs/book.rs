//! `cargo xtask book`: what mdbook has its pages go through (`book.toml`).
//!
//! Pages link what is elsewhere in the repository, which a site of `docs/` alone
//! does not have: there such a link is the path in words.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use pulldown_cmark::{Event, Options, Parser, Tag};
use serde_json::Value;

use super::links::resolved;

/// What mdbook says.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// `supports RENDERER`: whether pages are for that; nothing: pages are in the
    /// standard input
    #[arg(value_name = "WORD")]
    words: Vec<String>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    if !args.words.is_empty() {
        return ExitCode::SUCCESS;
    }
    match translate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reads `[CONTEXT, BOOK]`, and writes the book.
fn translate() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("what mdbook says")?;
    let mut said: Value = serde_json::from_str(&text).context("what mdbook says")?;
    let book = said.get_mut(1).context("mdbook sent no book")?;
    chapters(book);
    std::io::stdout().write_all(book.to_string().as_bytes()).context("writing the book")
}

/// All chapters, wherever they are: each has a path and a content.
fn chapters(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(chapters),
        Value::Object(fields) => {
            let path = fields.get("path").and_then(Value::as_str).map(str::to_owned);
            if let (Some(path), Some(Value::String(content))) = (path, fields.get_mut("content")) {
                *content = without_links_out(&path, content);
            }
            fields.values_mut().for_each(chapters);
        }
        _ => {}
    }
}

/// The page `name` of `docs/`, with paths for links that lead out of it.
fn without_links_out(name: &str, text: &str) -> String {
    let page = Path::new("docs").join(name);
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
    for (event, range) in Parser::new_ext(text, options).into_offset_iter() {
        let Event::Start(Tag::Link { dest_url, .. }) = event else { continue };
        let path = dest_url.split('#').next().unwrap_or_default();
        let target = resolved(&page, path);
        let Some(end) = text[range.clone()].rfind("](") else { continue };
        if dest_url.contains("://") || path.is_empty() || target.starts_with("docs") {
            continue;
        }
        out += &text[done..range.start];
        let (words, path) = (&text[range.start + 1..range.start + end], target.to_string_lossy());
        let _ = if words.trim_matches('`') == path {
            write!(out, "`{path}`")
        } else {
            write!(out, "{words} (`{path}`)")
        };
        done = range.end;
    }
    out + &text[done..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_out_of_the_docs_are_paths() {
        let text = "| [a](../b.md#c) | [`d`](../../client/src/d.rs) | [e](https://e.org) [f](#f) |";
        let found = without_links_out("guide/p.md", text);
        assert_eq!(
            found,
            "| [a](../b.md#c) | `d` (`client/src/d.rs`) | [e](https://e.org) [f](#f) |"
        );
        assert_eq!(
            without_links_out("p.md", "[C](../client/capi/README.md)."),
            "C (`client/capi/README.md`)."
        );
        let named = without_links_out("p.md", "[kernel/README.md](../kernel/README.md)");
        assert_eq!(named, "`kernel/README.md`");
    }

    #[test]
    fn every_chapter_is_translated() {
        let chapter = |path: &str, sub: Value| serde_json::json!({"Chapter": {"content": "[y](../../x)", "path": path, "sub_items": sub}});
        let mut book = serde_json::json!({"sections": [chapter("a/b.md", Value::Array(vec![chapter("a/c.md", Value::Null)]))]});
        chapters(&mut book);
        assert_eq!(book.to_string().matches("y (`x`)").count(), 2);
    }
}
