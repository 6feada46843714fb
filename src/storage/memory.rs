//! L1: stored responses in this process, bounded by bytes.
//!
//! The map is `quick_cache`: sharded, weighed, with an S3-FIFO-like policy, so that a scan of URLs that are asked once does not push out
//! what is asked often. A hit is a shared lock on one shard and an atomic mark; bodies are shared, never copied.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use crate::cache::entry::Entry;

/// The slot of an entry: the primary key, or the primary key combined with a variance.
pub type Slot = [u8; 16];

/// What an average entry is taken to weigh, to size the tables. A guess that costs nothing when it is wrong.
const ENTRY_BYTES_GUESS: u64 = 16 * 1024;

/// A shard has to hold the largest body with room to spare, or the policy could not keep it.
const SHARD_BYTES_MIN: u64 = 32 * 1_048_576;

pub struct Memory {
    map: Cache<Slot, Arc<Entry>, ByWeight, SlotHasher, DefaultLifecycle<Slot, Arc<Entry>>>,
}

#[derive(Clone)]
struct ByWeight;

impl Weighter<Slot, Arc<Entry>> for ByWeight {
    fn weight(&self, _: &Slot, entry: &Arc<Entry>) -> u64 {
        entry.weight()
    }
}

impl Memory {
    /// `bytes_max` bounds the weight of all entries together.
    pub fn new(bytes_max: u64, threads: usize) -> Memory {
        let shards = (bytes_max / SHARD_BYTES_MIN).clamp(1, 4 * threads.max(1) as u64);
        let options = OptionsBuilder::new()
            .shards(usize::try_from(shards).expect("a few shards"))
            .estimated_items_capacity(usize::try_from(bytes_max / ENTRY_BYTES_GUESS).unwrap_or(usize::MAX).max(16))
            .weight_capacity(bytes_max)
            .build()
            .expect("both capacities are given");
        Memory { map: Cache::with_options(options, ByWeight, SlotHasher, DefaultLifecycle::default()) }
    }

    pub fn get(&self, slot: &Slot) -> Option<Arc<Entry>> {
        self.map.get(slot)
    }

    /// Looks without counting as a use.
    pub fn peek(&self, slot: &Slot) -> Option<Arc<Entry>> {
        self.map.peek(slot)
    }

    pub fn insert(&self, slot: Slot, entry: Arc<Entry>) {
        self.map.insert(slot, entry);
    }

    pub fn remove(&self, slot: &Slot) -> Option<Arc<Entry>> {
        self.map.remove(slot).map(|(_, entry)| entry)
    }

    pub fn clear(&self) {
        self.map.clear();
    }

    pub fn bytes(&self) -> u64 {
        self.map.weight()
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

/// Slots are cut from a cryptographic hash already: their first eight bytes are as good as any hash of them.
#[derive(Clone, Default)]
struct SlotHasher;

#[derive(Default)]
struct FirstEight(u64);

impl BuildHasher for SlotHasher {
    type Hasher = FirstEight;

    fn build_hasher(&self) -> FirstEight {
        FirstEight(0)
    }
}

impl Hasher for FirstEight {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    // The length prefix of an array: says nothing.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::entry::Place;
    use crate::cache::freshness;
    use crate::cache::purge::{Position, Scope};
    use bytes::Bytes;
    use pingora_http::ResponseHeader;
    use std::time::SystemTime;

    fn entry(bytes: usize) -> Arc<Entry> {
        let header = ResponseHeader::build(200, None).expect("200 is a status");
        let lifetime = freshness::lifetime(SystemTime::UNIX_EPOCH, 1, 0, None, None);
        Arc::new(Entry::new(
            &header,
            Bytes::from(vec![b'x'; bytes]),
            lifetime,
            Place::new([1; 16], 1, Scope::deployment("d"), Position::default(), Arc::default()),
            SystemTime::UNIX_EPOCH,
        ))
    }

    fn slot(n: u64) -> Slot {
        let mut slot = [0; 16];
        slot.copy_from_slice(&blake3::hash(&n.to_le_bytes()).as_bytes()[..16]);
        slot
    }

    #[test]
    fn a_scan_stays_within_the_bytes_and_leaves_the_hot_set() {
        let memory = Memory::new(8 << 20, 2);
        let hot = || (0..100).map(slot);
        for _ in 0..3 {
            for s in hot() {
                if memory.get(&s).is_none() {
                    memory.insert(s, entry(10_000));
                }
            }
        }
        for n in 1_000..6_000 {
            if memory.get(&slot(n)).is_none() {
                memory.insert(slot(n), entry(10_000));
            }
            // The hot set is asked for while the scan runs.
            memory.get(&slot(n % 100));
            assert!(memory.bytes() <= 8 << 20);
        }
        let kept = hot().filter(|s| memory.get(s).is_some()).count();
        assert!(kept >= 98, "{kept} of 100 survived");
    }

    #[test]
    fn the_largest_body_fits_a_small_cache() {
        let memory = Memory::new(64 << 20, 2);
        memory.insert(slot(1), entry(10 << 20));
        assert!(memory.get(&slot(1)).is_some());
    }
}
