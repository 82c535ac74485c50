//! What has to be created, in as few pieces as possible.

use super::keep::Fate;
use crate::{Extent, Mapping, Range, Slot};

/// A slot to be created: one or more extents, or parts of them, that follow
/// each other in guest and host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) mapping: Mapping,
    /// Nothing may be joined with it.
    pub(super) alone: bool,
    /// How many extents it holds, wholly or in part.
    pub(super) parts: usize,
}

impl Piece {
    fn new(mapping: Mapping, alone: bool) -> Self {
        Self { mapping, alone, parts: 1 }
    }

    /// Whether one slot of at most `limit` bytes can hold both.
    pub(super) fn joins(&self, next: &Self, limit: u64) -> bool {
        !self.alone
            && !next.alone
            && self.mapping.range.size + next.mapping.range.size <= limit
            && self.mapping.continues_as(&next.mapping)
    }

    fn join(&mut self, next: &Self) {
        self.mapping.range.size += next.mapping.range.size;
        self.parts += next.parts;
    }
}

/// The parts of `wanted` that no slot which stays covers, joined where they
/// can be; sorted, as the input.
pub(super) fn pieces(live: &[Slot], fates: &[Fate], wanted: &[Extent], limit: u64) -> Vec<Piece> {
    let mut kept = live
        .iter()
        .zip(fates)
        .filter(|(_, fate)| **fate != Fate::Goes)
        .map(|(slot, _)| slot.mapping.range)
        .peekable();
    let mut pieces = Vec::new();
    for extent in wanted {
        let range = extent.mapping.range;
        let mut from = range.gpa;
        while kept.next_if(|kept| kept.end() <= from).is_some() {}
        while from < range.end() {
            let next_kept = kept.peek().filter(|kept| kept.gpa < range.end());
            let until = next_kept.map_or(range.end(), |kept| kept.gpa.max(from));
            if let Some(part) = extent.mapping.clipped_to(Range::between(from, until)) {
                push(&mut pieces, Piece::new(part, extent.alone), limit);
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

fn push(pieces: &mut Vec<Piece>, piece: Piece, limit: u64) {
    match pieces.last_mut() {
        Some(last) if last.joins(&piece, limit) => last.join(&piece),
        _ => pieces.push(piece),
    }
}
