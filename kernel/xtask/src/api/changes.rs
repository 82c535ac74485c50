//! Two lists of a crate's items, compared.

use std::collections::HashMap;

/// What one list has and the other has not.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes<'a> {
    /// Each that is gone, followed by what it has become, if it is still
    /// there; and what is new in something that users may match, build or
    /// implement.
    pub(super) breaking: Vec<Line<'a>>,
    pub(super) additions: Vec<Line<'a>>,
}

/// A line of a list that is not in the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Line<'a> {
    Gone(&'a str),
    New(&'a str),
}

impl std::fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone(line) => write!(f, "- {line}"),
            Self::New(line) => write!(f, "+ {line}"),
        }
    }
}

impl Changes<'_> {
    pub(super) fn is_none(&self) -> bool {
        self.breaking.is_empty() && self.additions.is_empty()
    }
}

/// What has changed from `old` to `new`. The order of lines does not count,
/// how often there is one does: implementations have items in common.
pub(super) fn changes<'a>(old: &[&'a str], new: &[&'a str]) -> Changes<'a> {
    let gone = without(old, new);
    let mut added = without(new, old);
    let mut changes = Changes::default();
    for line in gone {
        changes.breaking.push(Line::Gone(line));
        let Some(path) = path(line) else { continue };
        if let Some(at) = added.iter().position(|new| self::path(new).as_ref() == Some(&path)) {
            changes.breaking.push(Line::New(added.remove(at)));
        }
    }
    for line in added {
        let to = if breaks(old, line) { &mut changes.breaking } else { &mut changes.additions };
        to.push(Line::New(line));
    }
    changes
}

/// The lines of `all` that `others` has not, or not as often.
fn without<'a>(all: &[&'a str], others: &[&str]) -> Vec<&'a str> {
    let mut left = HashMap::<&str, usize>::new();
    for line in others {
        *left.entry(line).or_default() += 1;
    }
    let is_left = |line: &&&str| match left.get_mut(**line) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    };
    all.iter().filter(is_left).copied().collect()
}

/// Whether `new` breaks users of `old` although all of it is there: a variant
/// of an enum that may be matched, a field of what may be built, an item of a
/// trait. What lists don't tell is taken for the worse: whether a struct has
/// private fields, a trait is sealed, its new method has a body.
fn breaks(old: &[&str], new: &str) -> bool {
    let Some(path) = path(new) else { return false };
    let Some((parent, _)) = path.rsplit_once("::") else { return false };
    let is_parent = |line: &&&str| self::path(line).is_some_and(|path| path == parent);
    let Some(line) = old.iter().find(is_parent) else { return false };
    let (attributes, item) = attributes(line);
    if attributes.contains("non_exhaustive") {
        return false;
    }
    let is_in = |line: &&str| {
        let path = self::path(line);
        is_part(line)
            && path.is_some_and(|path| path.rsplit_once("::").is_some_and(|p| p.0 == parent))
    };
    match item.split(' ').find(|word| !QUALIFIERS.contains(word)) {
        Some("trait") => true,
        Some("enum") => is_part(new),
        // One that had no public field can't be built, or has none at all.
        Some("struct" | "union") => is_part(new) && old.iter().any(is_in),
        // A variant.
        _ => is_part(line) && is_part(new),
    }
}

/// What may stand before the word for what an item is.
const QUALIFIERS: [&str; 6] = ["pub", "const", "unsafe", "async", "auto", "extern"];

/// The words for what an item is.
const KINDS: [&str; 11] =
    ["mod", "use", "fn", "struct", "enum", "union", "trait", "type", "static", "macro", "mut"];

/// Whether it is a field or a variant: `pub PATH`, without a word for it.
fn is_part(line: &str) -> bool {
    let (_, item) = attributes(line);
    item.strip_prefix("pub ").is_some_and(|rest| {
        let first = rest.split(' ').next().unwrap_or_default();
        !KINDS.contains(&first) && !QUALIFIERS.contains(&first)
    })
}

/// The attributes of a line, and the rest of it.
fn attributes(line: &str) -> (&str, &str) {
    let mut rest = line;
    while rest.starts_with("#[") {
        let Some(end) = rest.find("] ") else { break };
        rest = &rest[end + 2..];
    }
    line.split_at(line.len() - rest.len())
}

/// The path of the item that a line is of, without generics; none of an
/// implementation, whose line is all there is to it.
fn path(line: &str) -> Option<String> {
    let (_, item) = attributes(line);
    let mut item = item.strip_prefix("pub ")?;
    while let Some((word, rest)) = item.split_once(' ') {
        // The last is the ABI of `extern "C"`.
        if !KINDS.contains(&word) && !QUALIFIERS.contains(&word) && !word.starts_with('"') {
            break;
        }
        item = rest;
    }
    let mut path = String::new();
    let (mut depth, mut last) = (0_usize, ' ');
    for (at, c) in item.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if last != '-' => depth = depth.saturating_sub(1),
            _ if depth > 0 => {}
            '(' | ' ' | '!' | '=' => break,
            ':' if item[at + 1..].starts_with(' ') => break,
            _ => path.push(c),
        }
        last = c;
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(old: &[&str], new: &[&str]) -> (Vec<String>, Vec<String>) {
        let Changes { breaking, additions } = changes(old, new);
        let shown = |lines: Vec<Line<'_>>| lines.iter().map(Line::to_string).collect();
        (shown(breaking), shown(additions))
    }

    #[test]
    fn paths() {
        for (line, expected) in [
            ("pub mod a", "a"),
            ("pub fn a::f(u32) -> a::T", "a::f"),
            ("pub const unsafe fn a::T::f<F: Fn(u32) -> u32>(F)", "a::T::f"),
            ("pub unsafe extern \"C\" fn a::f()", "a::f"),
            ("pub fn a::T<'_, X<u8>>::f(&self)", "a::T::f"),
            ("pub fn a::T<fn() -> u8>::f(&self)", "a::T::f"),
            ("#[non_exhaustive] #[repr(C)] pub struct a::T<X> where X: a::Y", "a::T"),
            ("pub a::T::field: [u64; 6]", "a::T::field"),
            ("pub a::T::0: u64", "a::T::0"),
            ("pub a::E::Variant(a::T)", "a::E::Variant"),
            ("pub const a::C: u32", "a::C"),
            ("pub type a::T::Output = a::T", "a::T::Output"),
            ("pub macro a::m!", "a::m"),
        ] {
            assert_eq!(path(line).as_deref(), Some(expected), "{line}");
        }
        assert_eq!(path("impl a::X for a::T"), None);
    }

    #[test]
    fn what_is_gone_or_different_breaks() {
        let old = ["pub mod a", "pub fn a::f()", "pub const a::C: u32", "impl a::X for a::T"];
        let new = ["pub mod a", "pub fn a::f() -> u8", "pub fn a::g()"];
        let (breaking, additions) = shown(&old, &new);
        assert_eq!(
            breaking,
            [
                "- pub fn a::f()",
                "+ pub fn a::f() -> u8",
                "- pub const a::C: u32",
                "- impl a::X for a::T"
            ]
        );
        assert_eq!(additions, ["+ pub fn a::g()"]);
    }

    #[test]
    fn order_does_not_count_and_number_does() {
        let of = "pub type a::T::Output = a::T";
        assert!(changes(&[of, "pub mod a", of], &["pub mod a", of, of]).is_none());
        assert_eq!(shown(&[of, of], &[of]), (vec![format!("- {of}")], vec![]));
        assert_eq!(shown(&[of], &[of, of]), (vec![], vec![format!("+ {of}")]));
    }

    /// The lines of `additions` to `old` that break.
    fn breaking<'a>(old: &[&'a str], additions: &[&'a str]) -> Vec<&'a str> {
        additions.iter().filter(|line| breaks(old, line)).copied().collect()
    }

    #[test]
    fn variants_break_who_matches() {
        let variants = ["pub a::E::B", "pub a::E::A::x: u8", "pub fn a::E::f()"];
        let open = ["#[non_exhaustive] pub enum a::E", "#[non_exhaustive] pub a::E::A"];
        assert_eq!(breaking(&["pub enum a::E", "pub a::E::A"], &variants), variants[..2]);
        assert_eq!(breaking(&open, &variants), [""; 0]);
        // An enum that is new as a whole.
        assert_eq!(breaking(&["pub mod a"], &["pub enum a::E", "pub a::E::A"]), [""; 0]);
    }

    #[test]
    fn fields_break_who_builds() {
        let field = ["pub a::T::y: u8"];
        assert_eq!(breaking(&["pub struct a::T", "pub a::T::x: u8"], &field), field);
        assert_eq!(breaking(&["pub struct a::T"], &field), [""; 0]);
        let open = ["#[non_exhaustive] pub struct a::T", "pub a::T::x: u8"];
        assert_eq!(breaking(&open, &field), [""; 0]);
        assert_eq!(
            breaking(&["pub struct a::T", "pub a::T::x: u8"], &["pub fn a::T::f()"]),
            [""; 0]
        );
    }

    #[test]
    fn items_of_traits_break_who_implements() {
        let item = ["pub fn a::Trait::f(&self)"];
        assert_eq!(breaking(&["pub trait a::Trait"], &item), item);
        assert_eq!(breaking(&["pub unsafe trait a::Trait: a::B"], &item), item);
    }
}
