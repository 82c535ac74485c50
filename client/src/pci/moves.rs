//! Which BARs a config write concerns.

use std::collections::{BTreeMap, BTreeSet};

use super::bells::BarKey;
use super::id::FunctionId;
use super::layout::Layout;
use super::registers::Registers;

/// Where BARs are, and where that has been followed.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Where the registers say that they are.
    pub(super) now: Layout,
    /// Where they were when that was followed; of a BAR that is nowhere and whose
    /// doorbells were kept, where these are.
    followed: Layout,
    /// Functions of which the registers may say something else than what is there.
    moved: BTreeSet<FunctionId>,
    /// Whether that may be said of any.
    unsure: bool,
}

impl Moves {
    pub(super) fn is_empty(&self) -> bool {
        self.moved.is_empty() && !self.unsure
    }

    /// A function's registers were written.
    pub(super) fn note(&mut self, id: FunctionId, registers: &Registers) {
        for bar in registers.indices() {
            let place = registers.placed(bar).map(|(base, spec)| (base, spec.size));
            self.now.put((id, bar), place);
        }
        self.moved.insert(id);
    }

    /// Anything may be missing.
    pub(super) fn note_all(&mut self) {
        self.unsure = true;
    }

    /// The BARs of which something may have to change: those of functions that were
    /// written, those of which parts were refused that may no longer be, and what these
    /// overlap with or did. All BARs, until [`followed`](Self::followed) is called.
    pub(super) fn concerned(
        &mut self,
        functions: &BTreeMap<FunctionId, Registers>,
        refused: impl Iterator<Item = BarKey>,
    ) -> BTreeSet<BarKey> {
        if std::mem::replace(&mut self.unsure, true) {
            return functions.iter().flat_map(bars_of).collect();
        }
        let moved = self.moved.iter().filter_map(|id| functions.get_key_value(id));
        let mut bars: BTreeSet<BarKey> = moved.flat_map(bars_of).chain(refused).collect();
        let both = [&self.now, &self.followed];
        let places: Vec<_> = bars.iter().flat_map(|bar| both.map(|all| all.get(bar))).collect();
        for place in places.into_iter().flatten() {
            let whole = both.iter().fold(place, |whole, all| all.whole(whole));
            bars.extend(both.iter().flat_map(|all| all.within(whole)));
        }
        bars
    }

    /// What concerned them is done. `rings` are BARs with doorbells that are assigned.
    pub(super) fn followed(&mut self, bars: BTreeSet<BarKey>, rings: impl Fn(&BarKey) -> bool) {
        for bar in bars {
            let place = self.now.get(&bar);
            if place.is_some() || !rings(&bar) {
                self.followed.put(bar, place);
            }
        }
        self.moved.clear();
        self.unsure = false;
    }
}

fn bars_of((id, registers): (&FunctionId, &Registers)) -> impl Iterator<Item = BarKey> {
    let id = *id;
    registers.indices().map(move |bar| (id, bar))
}

#[cfg(test)]
mod tests {
    use super::super::spec::{BarSpec, FunctionSpec};
    use super::*;

    /// Functions of one BAR each, and who is concerned after a write.
    struct World {
        functions: BTreeMap<FunctionId, Registers>,
        moves: Moves,
    }

    impl World {
        /// Of these sizes.
        fn new(sizes: &[u64]) -> Self {
            let function = |(n, size): (u64, &u64)| {
                let spec = FunctionSpec::new().bar(0, BarSpec::memory32(*size));
                (FunctionId::from_raw(n), Registers::new(spec))
            };
            let functions = (0..).zip(sizes).map(function).collect();
            Self { functions, moves: Moves::default() }
        }

        /// Those of the functions that are concerned when the BAR of `n` is at `gpa`;
        /// 0: nowhere. Doorbells of all BARs are kept, if any.
        fn put(&mut self, n: u64, gpa: u32, refused: &[u64], rings: bool) -> Vec<u64> {
            let id = FunctionId::from_raw(n);
            if let Some(registers) = self.functions.get_mut(&id) {
                registers.write(4, &[2], 1 << 40);
                registers.write(0x10, &gpa.to_le_bytes(), 1 << 40);
                self.moves.note(id, registers);
            }
            let refused = refused.iter().map(|n| (FunctionId::from_raw(*n), 0));
            let bars = self.moves.concerned(&self.functions, refused);
            let told = bars.iter().map(|(id, _)| id.to_raw()).collect();
            self.moves.followed(bars, |_| rings);
            told
        }
    }

    #[test]
    fn a_write_concerns_its_function_and_what_overlaps() {
        let mut world = World::new(&[0x1000; 1000]);
        for n in 0..1000 {
            assert_eq!(world.put(n, 0xe000_0000 + n as u32 * 0x1000, &[], false), [n]);
        }
        assert_eq!(world.put(7, 0xd000_0000, &[], false), [7]);
        // On top of another one, and away again.
        assert_eq!(world.put(7, 0xe000_9000, &[], false), [7, 9]);
        assert_eq!(world.put(7, 0xd000_0000, &[7], false), [7, 9]);
        assert_eq!(world.put(7, 0xc000_0000, &[3], false), [3, 7]);
    }

    #[test]
    fn what_is_in_a_larger_one_is_concerned_with_it() {
        let mut world = World::new(&[0x10, 0x1000, 0x10, 0x100, 0x1000]);
        world.put(0, 0xe000_0100, &[], false);
        world.put(4, 0xe000_1000, &[], false);
        assert_eq!(world.put(2, 0xe000_0110, &[], false), [2]);
        assert_eq!(world.put(1, 0xe000_0000, &[], false), [0, 1, 2]);
        assert_eq!(world.put(3, 0xe000_0200, &[], false), [0, 1, 2, 3]);
        // Once the largest has gone, only what was in it.
        assert_eq!(world.put(1, 0, &[], false), [0, 1, 2, 3]);
        assert_eq!(world.put(3, 0xe000_0100, &[], false), [0, 2, 3]);
        assert_eq!(world.put(3, 0, &[], false), [0, 2, 3]);
        assert_eq!(world.put(2, 0, &[], false), [2]);
    }

    #[test]
    fn doorbells_that_were_kept_hold_their_place() {
        let mut world = World::new(&[0x1000, 0x1000]);
        world.put(0, 0xe000_0000, &[], true);
        assert_eq!(world.put(0, 0, &[], true), [0]);
        assert_eq!(world.put(1, 0xe000_0000, &[], false), [0, 1]);
        world.put(1, 0, &[], false);
        assert_eq!(world.put(1, 0xe000_0000, &[], false), [1]);
    }

    /// Until all has been looked at: it failed.
    #[test]
    fn what_failed_concerns_all() {
        let mut world = World::new(&[0x1000; 3]);
        world.moves.concerned(&world.functions, std::iter::empty());
        assert!(!world.moves.is_empty());
        assert_eq!(world.put(1, 0xe000_0000, &[], false), [0, 1, 2]);
        assert!(world.moves.is_empty());
        assert_eq!(world.put(1, 0xd000_0000, &[], false), [1]);
    }
}
