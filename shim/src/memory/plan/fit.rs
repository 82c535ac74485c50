//! What to do when slot ids run out: give up slots that could stay, so that
//! they are joined with their neighbours.

use std::cmp::Reverse;

use super::coalesce::{Piece, Rule};
use super::keep::Fate;
use super::request::Extent;
use crate::mapping::Slot;

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
    rule: Rule,
    excess: usize,
) -> bool {
    let outcome = outcome(live, fates, new, wanted);
    let mut runs = runs(&outcome, rule);
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
        let gpa = slot.mapping.range().gpa();
        let over = wanted.partition_point(|extent| extent.mapping.range().end() <= gpa);
        let Some(extent) = wanted.get(over) else { continue };
        let Extent { mapping: seen, alone, joins, .. } = *extent;
        let mapping = slot.mapping.with_flags(seen.flags()).with_kind(seen.kind());
        let piece = Piece { mapping, alone, joins, parts: 1 };
        outcome.push(Outcome { piece, kept: Some(index) });
    }
    outcome.sort_unstable_by_key(|item| item.piece.mapping.range().gpa());
    outcome
}

/// The stretches of `outcome` that one slot can hold, two or more long.
fn runs(outcome: &[Outcome], rule: Rule) -> Vec<&[Outcome]> {
    let mut so_far: Option<Piece> = None;
    outcome
        .chunk_by(|item, next| {
            so_far = rule.join(&so_far.unwrap_or(item.piece), &next.piece);
            so_far.is_some()
        })
        .filter(|run| run.len() > 1)
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::coalesce::pieces;
    use super::*;
    use crate::mapping::{Kind, Mapping};
    use crate::range::Range;

    /// `give_up_kept` relies on it: new pieces that can be joined already are.
    #[test]
    fn new_pieces_never_form_a_run_of_their_own() {
        let extent = |n: u64| {
            let range = Range::new(n * 4096, 4096).unwrap();
            Extent::of(Mapping::new(range, n * 4096, Kind::Ram).unwrap(), false, n % 2 == 0)
        };
        let wanted: Vec<_> = (0..10).map(extent).collect();
        let rule = Rule { limit: 4096 * 4, all: true };
        let new = pieces(&[], &[], &wanted, rule);
        assert_eq!(new.len(), 3);
        assert!(runs(&outcome(&[], &[], &new, &wanted), rule).is_empty());
    }
}
