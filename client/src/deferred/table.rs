//! The deferrable regions as one table, which is replaced as a whole and still
//! costs only what changes.

use std::sync::Arc;

use kvm_memslots_shim::Range;

use super::life::Life;

/// A deferrable region.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) range: Range,
    pub(super) hva: u64,
    pub(super) read_only: bool,
    pub(super) never_faults: bool,
    /// Whether it has no slot yet.
    pub(super) waits: bool,
    pub(super) life: Arc<Life>,
}

/// So many entries are copied for a change of one, at most.
const CHUNK: usize = 128;

/// Entries that are next to each other, and the first one's guest address.
#[derive(Debug, Clone)]
struct Chunk {
    gpa: u64,
    entries: Arc<Vec<Entry>>,
}

/// All of them, by guest address. A clone shares what does not change.
#[derive(Debug, Default, Clone)]
pub(super) struct Table {
    /// None is empty.
    chunks: Vec<Chunk>,
}

impl Table {
    /// The region at `gpa`, or where the next one starts.
    pub(super) fn at(&self, gpa: u64) -> Result<&Entry, Option<u64>> {
        let next = self.chunks.partition_point(|chunk| chunk.gpa <= gpa);
        let behind = || self.chunks.get(next).map(|chunk| chunk.gpa);
        let Some(chunk) = next.checked_sub(1).map(|index| &self.chunks[index]) else {
            return Err(behind());
        };
        let next = chunk.entries.partition_point(|entry| entry.range.gpa() <= gpa);
        match next.checked_sub(1).map(|index| &chunk.entries[index]) {
            Some(entry) if entry.range.contains(gpa) => Ok(entry),
            _ => Err(chunk.entries.get(next).map(|entry| entry.range.gpa()).or_else(behind)),
        }
    }

    /// Takes the entry out that starts at `gpa`, if there is one.
    pub(super) fn remove(&mut self, gpa: u64) {
        let Some(at) = self.chunk_of(gpa) else { return };
        let chunk = &mut self.chunks[at];
        let Ok(index) = chunk.entries.binary_search_by_key(&gpa, |entry| entry.range.gpa()) else {
            return;
        };
        let entries = Arc::make_mut(&mut chunk.entries);
        entries.remove(index);
        match entries.first() {
            Some(first) => chunk.gpa = first.range.gpa(),
            None => _ = self.chunks.remove(at),
        }
        self.join(at);
    }

    /// Puts an entry in, where none overlaps it.
    pub(super) fn insert(&mut self, entry: Entry) {
        let gpa = entry.range.gpa();
        let Some(at) = self.chunk_of(gpa).or((!self.chunks.is_empty()).then_some(0)) else {
            self.chunks.push(Chunk { gpa, entries: Arc::new(vec![entry]) });
            return;
        };
        let chunk = &mut self.chunks[at];
        let entries = Arc::make_mut(&mut chunk.entries);
        let index = entries.partition_point(|other| other.range.gpa() < gpa);
        entries.insert(index, entry);
        chunk.gpa = chunk.gpa.min(gpa);
        if entries.len() > CHUNK {
            // Regions mostly come in ascending order: chunks are left full then.
            let keep = if index + 1 == entries.len() { CHUNK } else { CHUNK / 2 };
            let upper = entries.split_off(keep);
            let chunk = Chunk { gpa: upper[0].range.gpa(), entries: Arc::new(upper) };
            self.chunks.insert(at + 1, chunk);
        }
    }

    /// Makes one of a chunk and the next one, if both are small.
    fn join(&mut self, at: usize) {
        let [Some(one), Some(two)] = [at, at + 1].map(|at| self.chunks.get(at)) else { return };
        if one.entries.len() + two.entries.len() <= CHUNK / 2 {
            let next = self.chunks.remove(at + 1);
            Arc::make_mut(&mut self.chunks[at].entries).extend(next.entries.iter().cloned());
        }
    }

    fn chunk_of(&self, gpa: u64) -> Option<usize> {
        self.chunks.partition_point(|chunk| chunk.gpa <= gpa).checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kvm_memslots_shim::{Kind, Mapping};
    use proptest::prelude::*;

    use super::*;

    fn entry(gpa: u64, hva: u64) -> Entry {
        let range = Range::new(gpa, 0x1000).expect("a page");
        let mapping = Mapping::new(range, hva, Kind::Device).expect("a page");
        let life = Arc::new(Life::new(crate::RegionId::new(), &mapping, 0x1000));
        Entry { range, hva, read_only: false, never_faults: true, waits: true, life }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 100,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]
        #[test]
        fn it_is_a_sorted_map(
            ascending in 0..600_u64,
            changes in prop::collection::vec((0..600_u64, any::<bool>()), 0..400),
        ) {
            let mut table = Table::default();
            let mut expected = BTreeMap::new();
            for n in 0..ascending {
                table.insert(entry(n * 0x2000, n));
                expected.insert(n * 0x2000, n);
            }
            let old = (table.clone(), expected.clone());
            for (step, (n, comes)) in (1000..).zip(changes) {
                let gpa = n * 0x2000;
                table.remove(gpa);
                expected.remove(&gpa);
                if comes {
                    table.insert(entry(gpa, step));
                    expected.insert(gpa, step);
                }
            }
            for (table, expected) in [(table, expected), old] {
                for gpa in (0..600 * 0x2000).step_by(0x1000) {
                    let found = table.at(gpa).map(|entry| entry.hva).ok();
                    prop_assert_eq!(found, expected.get(&gpa).copied());
                    if let Err(next) = table.at(gpa) {
                        prop_assert_eq!(next, expected.range(gpa..).next().map(|(gpa, _)| *gpa));
                    }
                }
                let full = |chunk: &Chunk| (1..=CHUNK).contains(&chunk.entries.len());
                prop_assert!(table.chunks.iter().all(full));
                let firsts = |chunk: &Chunk| chunk.entries[0].range.gpa() == chunk.gpa;
                prop_assert!(table.chunks.iter().all(firsts));
            }
        }
    }
}
