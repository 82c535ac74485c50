//! Deletes and creates that are really moves.

use std::collections::{HashMap, HashSet};

use super::coalesce::Piece;
use super::keep::Fate;
use crate::mapping::{Mapping, Slot};
use crate::range::Range;

/// A slot of `live` that becomes a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) slot: usize,
    pub(super) piece: usize,
}

/// Pairs of a slot that goes and a piece that comes which are the same host
/// memory at another guest address, in an order in which each finds its target
/// free. Of moves that wait for each other in a circle one is left out: it has
/// to be a delete and a create.
pub(super) fn find(live: &[Slot], fates: &[Fate], pieces: &[Piece]) -> Vec<Move> {
    if !fates.contains(&Fate::Goes) || pieces.is_empty() {
        return Vec::new();
    }
    let mut going: HashMap<(u64, u64), usize> = live
        .iter()
        .enumerate()
        .filter(|(index, slot)| fates[*index] == Fate::Goes && can_move(slot, pieces))
        .map(|(index, slot)| (host_memory(&slot.mapping), index))
        .collect();
    if going.is_empty() {
        return Vec::new();
    }
    let mut moves = Vec::new();
    for (piece, new) in pieces.iter().enumerate() {
        let key = host_memory(&new.mapping);
        let Some(slot) = going.get(&key).copied() else { continue };
        let old = live[slot].mapping;
        let same = old.flags() == new.mapping.flags() && new.mapping.guest_memfd().is_none();
        if same && old.range().gpa() != new.mapping.range().gpa() {
            going.remove(&key);
            moves.push(Move { slot, piece });
        }
    }
    in_feasible_order(live, pieces, &moves)
}

fn host_memory(mapping: &Mapping) -> (u64, u64) {
    (mapping.hva(), mapping.range().size())
}

/// A slot with a `guest_memfd` is immutable to KVM. A logged one takes its log
/// along, page by page (`kvm_prepare_memory_region()` keeps the bitmap): not if any
/// of its pages stay, where the same memory is to be elsewhere besides. Pieces are
/// sorted by address.
fn can_move(slot: &Slot, pieces: &[Piece]) -> bool {
    let (old, range) = (&slot.mapping, slot.mapping.range());
    let from = pieces.partition_point(|piece| piece.mapping.range().end() <= range.gpa());
    let there = pieces[from..].iter().map(|piece| &piece.mapping);
    let mut there = there.take_while(|new| new.range().gpa() < range.end());
    let stays = |new: &Mapping| new.is_logged() && new.same_host_pages_as(old);
    old.guest_memfd().is_none() && !(old.is_logged() && there.any(stays))
}

/// Sorts `moves` so that a slot has left before another takes its place.
fn in_feasible_order(live: &[Slot], pieces: &[Piece], moves: &[Move]) -> Vec<Move> {
    let blockers = blockers(live, pieces, moves);
    let mut waits: Vec<usize> = blockers.iter().map(Vec::len).collect();
    let mut frees = vec![Vec::new(); moves.len()];
    for (index, blockers) in blockers.iter().enumerate() {
        for blocker in blockers {
            frees[*blocker].push(index);
        }
    }

    let mut ready: Vec<usize> = (0..moves.len()).filter(|index| waits[*index] == 0).collect();
    let mut settled = vec![false; moves.len()];
    let mut ordered = Vec::with_capacity(moves.len());
    let mut unsettled = 0;
    loop {
        let next = if let Some(index) = ready.pop() {
            ordered.push(moves[index]);
            index
        } else {
            while settled.get(unsettled) == Some(&true) {
                unsettled += 1;
            }
            if unsettled == moves.len() {
                return ordered;
            }
            // Not a move: its slot is deleted before the first one.
            in_a_circle(unsettled, &blockers, &settled)
        };
        settled[next] = true;
        for waiting in frees[next].iter().filter(|waiting| !settled[**waiting]) {
            waits[*waiting] -= 1;
            if waits[*waiting] == 0 {
                ready.push(*waiting);
            }
        }
    }
}

/// For each move, the moves whose slots stand where it goes.
fn blockers(live: &[Slot], pieces: &[Piece], moves: &[Move]) -> Vec<Vec<usize>> {
    let mut by_source: Vec<(Range, usize)> =
        moves.iter().enumerate().map(|(index, m)| (live[m.slot].mapping.range(), index)).collect();
    by_source.sort_unstable();
    moves
        .iter()
        .enumerate()
        .map(|(index, m)| {
            let target = pieces[m.piece].mapping.range();
            let from = by_source.partition_point(|(range, _)| range.end() <= target.gpa());
            by_source[from..]
                .iter()
                .take_while(|(range, _)| range.gpa() < target.end())
                .map(|(_, other)| *other)
                // KVM lets a slot overlap where it was itself.
                .filter(|other| *other != index)
                .collect()
        })
        .collect()
}

/// A move that waits for itself in the end, found from `start`, which waits
/// for one that does.
fn in_a_circle(start: usize, blockers: &[Vec<usize>], settled: &[bool]) -> usize {
    let mut at = start;
    let mut seen = HashSet::new();
    while seen.insert(at) {
        match blockers[at].iter().find(|blocker| !settled[**blocker]) {
            Some(blocker) => at = *blocker,
            None => break,
        }
    }
    at
}
