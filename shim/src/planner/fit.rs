//! What to do when slot ids run out: give up slots that could stay, so that
//! they are joined with their neighbours.

use std::cmp::Reverse;

use super::coalesce::Piece;
use super::keep::Fate;
use crate::{Extent, Mapping, Slot};

/// How many slots there will be.
pub(super) fn slots(fates: &[Fate], pieces: &[Piece]) -> usize {
    fates.iter().filter(|fate| **fate != Fate::Goes).count() + pieces.len()
}

/// A slot of the outcome: one that stays (its index in `live`), or a piece.
struct Outcome {
    piece: Piece,
    kept: Option<usize>,
}

/// Gives up slots that stay and can be joined with what follows or precedes
/// them, until `excess` slots are saved or nothing more can be joined; returns
/// whether anything was given up.
///
/// Joining m slots costs m deletes and a create and saves m - 1 slots, so the
/// longest runs go first.
pub(super) fn give_up_kept(
    live: &[Slot],
    fates: &mut [Fate],
    new: &[Piece],
    wanted: &[Extent],
    limit: u64,
    excess: usize,
) -> bool {
    let outcome = outcome(live, fates, new, wanted);
    let mut runs = runs(&outcome, limit);
    runs.sort_by_key(|run| Reverse(run.len()));
    let mut saved = 0;
    let mut given_up = false;
    for run in runs {
        if saved >= excess {
            break;
        }
        let enough = run.len().min(excess - saved + 1);
        for index in run.iter().take(enough).filter_map(|item| item.kept) {
            fates[index] = Fate::Goes;
            given_up = true;
        }
        saved += enough - 1;
    }
    given_up
}

/// All slots that there will be, by GPA. What stays is seen as the extents
/// over it see it: their flags and kind, and whether they stand alone.
fn outcome(live: &[Slot], fates: &[Fate], new: &[Piece], wanted: &[Extent]) -> Vec<Outcome> {
    let mut outcome: Vec<_> =
        new.iter().map(|piece| Outcome { piece: *piece, kept: None }).collect();
    for (index, slot) in live.iter().enumerate().filter(|(index, _)| fates[*index] != Fate::Goes) {
        let gpa = slot.mapping.range.gpa;
        let over = wanted.partition_point(|extent| extent.mapping.range.end() <= gpa);
        let Some(extent) = wanted.get(over) else { continue };
        let mapping =
            Mapping { flags: extent.mapping.flags, kind: extent.mapping.kind, ..slot.mapping };
        let piece = Piece { mapping, alone: extent.alone, parts: 1 };
        outcome.push(Outcome { piece, kept: Some(index) });
    }
    outcome.sort_unstable_by_key(|item| item.piece.mapping.range.gpa);
    outcome
}

/// The stretches of `outcome` that one slot of at most `limit` bytes can hold,
/// two or more long.
fn runs(outcome: &[Outcome], limit: u64) -> Vec<&[Outcome]> {
    let mut size = 0;
    outcome
        .chunk_by(|item, next| {
            size += item.piece.mapping.range.size;
            let joins = item.piece.joins(&next.piece, limit)
                && size + next.piece.mapping.range.size <= limit;
            if !joins {
                size = 0;
            }
            joins
        })
        .filter(|run| run.len() > 1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::coalesce::pieces;
    use super::*;

    /// `give_up_kept` relies on it: new pieces that can be joined already are.
    #[test]
    fn new_pieces_never_form_a_run_of_their_own() {
        let extent =
            |n: u64| Extent { mapping: Mapping::ram(n * 4096, 4096, n * 4096), alone: false };
        let wanted: Vec<_> = (0..10).map(extent).collect();
        let new = pieces(&[], &[], &wanted, 4096 * 4);
        assert_eq!(new.len(), 3);
        assert!(runs(&outcome(&[], &[], &new, &wanted), 4096 * 4).is_empty());
    }
}
