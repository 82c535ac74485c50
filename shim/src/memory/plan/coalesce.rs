//! What has to be created, in as few pieces as possible.

use super::keep::Fate;
use super::request::Extent;
use crate::mapping::{Mapping, Slot};
use crate::range::Range;

/// A slot to be created: one or more extents, or parts of them, that follow
/// each other in guest and host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) mapping: Mapping,
    /// Nothing may be joined with it.
    pub(super) alone: bool,
    /// It may be joined, also where ids are left.
    pub(super) joins: bool,
    /// How many extents it holds, wholly or in part.
    pub(super) parts: usize,
}

/// Which pieces share a slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    /// The largest slot, in bytes.
    pub(super) limit: u64,
    /// Also those that would rather not.
    pub(super) all: bool,
}

impl Rule {
    /// Both in one slot, if that may be.
    pub(super) fn join(self, piece: &Piece, next: &Piece) -> Option<Piece> {
        let joins = piece.joins && next.joins;
        let apart = piece.alone || next.alone || piece.mapping.guest_memfd().is_some();
        if apart || !(joins || self.all) {
            return None;
        }
        let mapping = piece.mapping.joined(&next.mapping)?;
        let fits = mapping.range().size() <= self.limit;
        fits.then_some(Piece { mapping, alone: false, joins, parts: piece.parts + next.parts })
    }
}

/// The parts of `wanted` that no slot which stays covers, joined where they
/// can be; sorted, as the input.
pub(super) fn pieces(live: &[Slot], fates: &[Fate], wanted: &[Extent], rule: Rule) -> Vec<Piece> {
    let mut kept = live
        .iter()
        .zip(fates)
        .filter(|(_, fate)| **fate != Fate::Goes)
        .map(|(slot, _)| slot.mapping.range())
        .peekable();
    let mut pieces = Vec::new();
    for extent in wanted {
        let range = extent.mapping.range();
        let mut from = range.gpa();
        while kept.next_if(|kept| kept.end() <= from).is_some() {}
        while from < range.end() {
            let next_kept = kept.peek().filter(|kept| kept.gpa() < range.end());
            let until = next_kept.map_or(range.end(), |kept| kept.gpa().max(from));
            let part = Range::between(from, until).and_then(|part| extent.mapping.clipped_to(part));
            if let Some(mapping) = part {
                let Extent { alone, joins, .. } = *extent;
                push(&mut pieces, Piece { mapping, alone, joins, parts: 1 }, rule);
            }
            from = next_kept.map_or(range.end(), |kept| kept.end());
            // A slot that goes on behind this extent covers the next one too.
            if from < range.end() {
                kept.next();
            }
        }
    }
    pieces
}

fn push(pieces: &mut Vec<Piece>, piece: Piece, rule: Rule) {
    let last = pieces.last_mut();
    match last.and_then(|last| rule.join(last, &piece).map(|both| (last, both))) {
        Some((last, both)) => *last = both,
        None => pieces.push(piece),
    }
}
