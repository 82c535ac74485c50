//! Small things by guest address.

/// Keys a chunk at most. A chunk is moved about as a whole, so it fits in the
/// nearest cache; a power of two, so that a `Vec` that has grown to it is full.
const CHUNK: usize = 128;

/// A sorted map from guest addresses, in 8 bytes and a value an entry where
/// entries come in ascending order, as they mostly do. (The nodes of a `BTreeMap`
/// are then half empty.)
#[derive(Debug)]
pub(crate) struct ByGpa<V> {
    /// The first key of each chunk, which is all that most of a search looks at.
    firsts: Vec<u64>,
    chunks: Vec<Chunk<V>>,
    len: usize,
    /// Room of a chunk that went: the next one has it, so that what comes and
    /// goes behind full chunks needs none each time.
    spare: Chunk<V>,
}

/// Neither empty, but for the spare one, nor longer than [`CHUNK`]; keys ascend.
#[derive(Debug)]
struct Chunk<V> {
    keys: Vec<u64>,
    values: Vec<V>,
}

impl<V> Chunk<V> {
    const fn new() -> Self {
        Self { keys: Vec::new(), values: Vec::new() }
    }
}

impl<V> Default for ByGpa<V> {
    fn default() -> Self {
        Self { firsts: Vec::new(), chunks: Vec::new(), len: 0, spare: Chunk::new() }
    }
}

impl<V> ByGpa<V> {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The chunk that has `gpa`, or would have it.
    fn chunk_of(&self, gpa: u64) -> usize {
        // What comes and goes is mostly above what stays.
        if self.firsts.last().is_some_and(|first| *first <= gpa) {
            return self.firsts.len() - 1;
        }
        self.firsts.partition_point(|first| *first <= gpa).saturating_sub(1)
    }

    /// Where `gpa` is, or in `Err` where it would be.
    fn find(&self, gpa: u64) -> (usize, Result<usize, usize>) {
        let at = self.chunk_of(gpa);
        let Some(Chunk { keys, .. }) = self.chunks.get(at) else { return (at, Err(0)) };
        let above = keys.last().is_some_and(|last| *last < gpa);
        (at, if above { Err(keys.len()) } else { keys.binary_search(&gpa) })
    }

    pub(crate) fn get(&self, gpa: u64) -> Option<&V> {
        let (at, found) = self.find(gpa);
        let index = found.ok()?;
        Some(&self.chunks[at].values[index])
    }

    /// The last entry that is not above `gpa`.
    pub(crate) fn last_until(&self, gpa: u64) -> Option<(u64, &V)> {
        let (at, found) = self.find(gpa);
        let index = found.or_else(|after| after.checked_sub(1).ok_or(())).ok()?;
        let chunk = &self.chunks[at];
        Some((chunk.keys[index], &chunk.values[index]))
    }

    pub(crate) fn last(&self) -> Option<(u64, &V)> {
        let Chunk { keys, values } = self.chunks.last()?;
        Some((*keys.last()?, values.last()?))
    }

    /// All entries from `gpa` on, in ascending order.
    pub(crate) fn starting(&self, gpa: u64) -> impl Iterator<Item = (u64, &V)> + '_ {
        let (at, found) = self.find(gpa);
        let mut skip = found.unwrap_or_else(|after| after);
        self.chunks.iter().skip(at).flat_map(move |Chunk { keys, values }| {
            let from = std::mem::take(&mut skip);
            keys[from..].iter().copied().zip(&values[from..])
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &V)> + '_ {
        self.starting(0)
    }

    /// Adds an entry, or replaces that at the same address, which is returned.
    pub(crate) fn insert(&mut self, gpa: u64, value: V) -> Option<V> {
        let (at, found) = self.find(gpa);
        match found {
            Ok(index) => Some(std::mem::replace(&mut self.chunks[at].values[index], value)),
            Err(index) => {
                self.len += 1;
                self.insert_new(at, index, gpa, value);
                None
            }
        }
    }

    fn insert_new(&mut self, mut at: usize, mut index: usize, gpa: u64, value: V) {
        if self.chunks.get(at).is_none_or(|chunk| chunk.keys.len() == CHUNK) {
            // Behind all others there may come more: what is full stays so.
            let split =
                if at + 1 >= self.chunks.len() && index == CHUNK { CHUNK } else { CHUNK / 2 };
            let mut upper = std::mem::replace(&mut self.spare, Chunk::new());
            if let Some(Chunk { keys, values }) = self.chunks.get_mut(at) {
                upper.keys.extend(keys.drain(split..));
                upper.values.extend(values.drain(split..));
            }
            let new = if self.chunks.is_empty() { 0 } else { at + 1 };
            self.firsts.insert(new, upper.keys.first().copied().unwrap_or(gpa));
            self.chunks.insert(new, upper);
            if index >= split || self.chunks.len() == 1 {
                at = new;
                index = index.saturating_sub(split);
            }
        }
        let chunk = &mut self.chunks[at];
        chunk.keys.insert(index, gpa);
        chunk.values.insert(index, value);
        self.firsts[at] = chunk.keys[0];
    }

    pub(crate) fn remove(&mut self, gpa: u64) -> Option<V> {
        self.remove_if(gpa, |_| true)
    }

    /// Takes the entry at an address out if it is the one that is meant.
    pub(crate) fn remove_if(&mut self, gpa: u64, is: impl FnOnce(&V) -> bool) -> Option<V> {
        let (at, found) = self.find(gpa);
        let index = found.ok().filter(|index| is(&self.chunks[at].values[*index]))?;
        self.len -= 1;
        let chunk = &mut self.chunks[at];
        chunk.keys.remove(index);
        let value = chunk.values.remove(index);
        if let Some(first) = chunk.keys.first() {
            self.firsts[at] = *first;
            self.join(at);
        } else {
            self.firsts.remove(at);
            self.spare = self.chunks.remove(at);
        }
        Some(value)
    }

    /// Puts a chunk into the one before it if both together are half a chunk.
    fn join(&mut self, at: usize) {
        let Some(before) = at.checked_sub(1) else { return };
        if self.chunks[before].keys.len() + self.chunks[at].keys.len() <= CHUNK / 2 {
            self.firsts.remove(at);
            let Chunk { keys, values } = self.chunks.remove(at);
            self.chunks[before].keys.extend(keys);
            self.chunks[before].values.extend(values);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{ByGpa, CHUNK};

    fn check(map: &ByGpa<u32>, model: &BTreeMap<u64, u32>) {
        assert_eq!(map.len(), model.len());
        assert!(map.iter().eq(model.iter().map(|(gpa, value)| (*gpa, value))));
        assert_eq!(map.last(), model.last_key_value().map(|(gpa, value)| (*gpa, value)));
        assert_eq!(map.firsts.len(), map.chunks.len());
        for (first, chunk) in map.firsts.iter().zip(&map.chunks) {
            assert_eq!(Some(first), chunk.keys.first());
            assert!(chunk.keys.len() <= CHUNK && chunk.keys.len() == chunk.values.len());
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map(ops in prop::collection::vec((0..4_u8, 0..400_u64), 1..900)) {
            let (mut map, mut model) = (ByGpa::default(), BTreeMap::new());
            for (n, (kind, gpa)) in (0..).zip(ops) {
                if kind == 0 {
                    prop_assert_eq!(map.remove(gpa), model.remove(&gpa));
                } else {
                    prop_assert_eq!(map.insert(gpa, n), model.insert(gpa, n));
                }
                prop_assert_eq!(map.get(gpa), model.get(&gpa));
                let until = model.range(..=gpa).next_back().map(|(gpa, value)| (*gpa, value));
                prop_assert_eq!(map.last_until(gpa), until);
                let from = model.range(gpa..).next().map(|(gpa, value)| (*gpa, value));
                prop_assert_eq!(map.starting(gpa).next(), from);
            }
            check(&map, &model);
            for gpa in 0..400 {
                prop_assert_eq!(map.remove(gpa), model.remove(&gpa));
                if gpa % 50 == 0 {
                    check(&map, &model);
                }
            }
            prop_assert!(map.chunks.is_empty() && map.len() == 0);
        }
    }

    #[test]
    fn what_comes_in_order_fills_its_chunks() {
        let mut map = ByGpa::default();
        for gpa in 0..10 * CHUNK as u64 {
            map.insert(gpa, ());
        }
        assert_eq!(map.chunks.len(), 10);
    }
}
