//! The changes in an order that KVM accepts, with slot ids.

use super::coalesce::Piece;
use super::keep::Fate;
use super::moves::Move;
use super::plan::Op;
use crate::{Slot, SlotIds};

/// Deletes first, as they make room; then moves, then flags, then creates,
/// which take the ids of deleted slots before free ones.
pub(super) fn ops(
    live: &[Slot],
    fates: &[Fate],
    pieces: &[Piece],
    moves: Vec<Move>,
    ids: &SlotIds,
) -> Vec<Op> {
    let mut moved_slots = vec![false; live.len()];
    let mut moved_pieces = vec![false; pieces.len()];
    for Move { slot, piece } in &moves {
        moved_slots[*slot] = true;
        moved_pieces[*piece] = true;
    }
    let fated = || live.iter().zip(fates).enumerate();

    let mut ops: Vec<Op> = Vec::with_capacity(pieces.len());
    ops.extend(
        fated()
            .filter(|(index, (_, fate))| **fate == Fate::Goes && !moved_slots[*index])
            .map(|(_, (slot, _))| Op::Delete(*slot)),
    );
    let deleted = ops.len();
    ops.extend(moves.into_iter().map(|Move { slot, piece }| Op::Move {
        from: live[slot],
        gpa: pieces[piece].mapping.range.gpa,
    }));
    ops.extend(fated().filter_map(|(_, (slot, fate))| match fate {
        Fate::Flags(flags) => Some(Op::SetFlags { from: *slot, flags: *flags }),
        Fate::Stays | Fate::Goes => None,
    }));

    let reused: Vec<u16> = ops[..deleted].iter().map(Op::slot_id).collect();
    let new = pieces.iter().zip(moved_pieces).filter(|(_, moved)| !moved);
    ops.extend(
        new.zip(reused.into_iter().chain(ids.free()))
            .map(|((piece, _), id)| Op::Create(Slot { id, mapping: piece.mapping })),
    );
    ops
}
