//! The changes in an order that KVM accepts, with slot ids.

use super::coalesce::Piece;
use super::keep::Fate;
use super::moves::Move;
use crate::ids::SlotIds;
use crate::mapping::Slot;
use crate::memory::op::Op;

/// Deletes first, as they make room; then moves, then flags, then creates,
/// which take the ids of deleted slots before free ones.
pub(super) fn ops(
    live: &[Slot],
    fates: &[Fate],
    pieces: &[Piece],
    moves: Vec<Move>,
    ids: &SlotIds,
) -> Vec<Op> {
    // Without moves, nothing is allocated for them.
    let any = !moves.is_empty();
    let mut moved_slots = vec![false; if any { live.len() } else { 0 }];
    let mut moved_pieces = vec![false; if any { pieces.len() } else { 0 }];
    for Move { slot, piece } in &moves {
        moved_slots[*slot] = true;
        moved_pieces[*piece] = true;
    }
    let fated = || live.iter().zip(fates).enumerate();

    let changed = fates.iter().filter(|fate| **fate != Fate::Stays).count();
    let mut ops: Vec<Op> = Vec::with_capacity(changed + pieces.len());
    ops.extend(
        fated()
            .filter(|(index, (_, fate))| **fate == Fate::Goes && !is(&moved_slots, *index))
            .map(|(_, (slot, _))| Op::Delete(*slot)),
    );
    let deleted = ops.len();
    ops.extend(moves.into_iter().map(|Move { slot, piece }| Op::Move {
        from: live[slot],
        gpa: pieces[piece].mapping.range().gpa(),
    }));
    ops.extend(fated().filter_map(|(_, (slot, fate))| match fate {
        Fate::Flags(flags) => Some(Op::SetFlags { from: *slot, flags: *flags }),
        Fate::Stays | Fate::Goes => None,
    }));

    let reused: Vec<u16> = ops[..deleted].iter().map(Op::slot_id).collect();
    let new = pieces.iter().enumerate().filter(|(index, _)| !is(&moved_pieces, *index));
    ops.extend(
        new.zip(reused.into_iter().chain(ids.free()))
            .map(|((_, piece), id)| Op::Create(Slot { id, mapping: piece.mapping })),
    );
    ops
}

fn is(flags: &[bool], index: usize) -> bool {
    flags.get(index).copied().unwrap_or(false)
}
