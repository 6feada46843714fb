//! Remembers for a while what turned out not to be cacheable, so that its visitors do not queue for something that will not be shared
//! (product.md 5.10). One cacheable answer forgets it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora_cache::NoCacheReason;
use pingora_cache::key::{CacheHashKey, CacheKey};
use pingora_cache::predictor::CacheablePredictor;

use super::ORIGIN_ERROR;
use crate::storage::memory::Slot;
use crate::storage::regional::Redis;

/// How long.
const HOLD: Duration = Duration::from_secs(120);
const SHARDS: usize = 32;
/// Keys per shard: 32 × 4096 keys are 3 MB. A full shard forgets all of it, which costs each of its keys one queue.
const KEYS_PER_SHARD_MAX: usize = 4096;

pub struct Uncacheable {
    shards: Vec<Mutex<HashMap<Slot, Instant>>>,
    /// Has the word that other nodes go by, and has to forget it too.
    region: Option<Arc<Redis>>,
}

impl Uncacheable {
    pub fn new(region: Option<Arc<Redis>>) -> Uncacheable {
        Uncacheable { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), region }
    }

    fn shard(&self, slot: &Slot) -> &Mutex<HashMap<Slot, Instant>> {
        &self.shards[usize::from(slot[14]) % SHARDS]
    }

    pub fn is_remembered(&self, slot: &Slot, now: Instant) -> bool {
        let mut shard = self.shard(slot).lock();
        match shard.get(slot) {
            Some(until) if now < *until => true,
            Some(_) => {
                shard.remove(slot);
                false
            }
            None => false,
        }
    }

    /// True when it was not remembered before.
    pub fn remember(&self, slot: Slot, now: Instant) -> bool {
        self.remember_for(slot, HOLD, now)
    }

    /// The same, for as long as another node will remember it.
    pub fn remember_for(&self, slot: Slot, hold: Duration, now: Instant) -> bool {
        let mut shard = self.shard(&slot).lock();
        if shard.len() >= KEYS_PER_SHARD_MAX {
            shard.retain(|_, until| now < *until);
            if shard.len() >= KEYS_PER_SHARD_MAX {
                shard.clear();
            }
        }
        shard.insert(slot, now + hold.min(HOLD)).is_none()
    }

    /// True when it was remembered.
    pub fn forget(&self, slot: &Slot) -> bool {
        self.shard(slot).lock().remove(slot).is_some()
    }
}

impl CacheablePredictor for Uncacheable {
    fn cacheable_prediction(&self, key: &CacheKey) -> bool {
        !self.is_remembered(&key.primary_bin(), Instant::now())
    }

    fn mark_cacheable(&self, key: &CacheKey) -> bool {
        let slot = key.primary_bin();
        let was_remembered = self.forget(&slot);
        if was_remembered && let Some(region) = self.region.clone() {
            tokio::spawn(async move { region.forget_word(&slot).await });
        }
        !was_remembered
    }

    fn mark_uncacheable(&self, key: &CacheKey, reason: NoCacheReason) -> Option<bool> {
        match reason {
            NoCacheReason::OriginNotCache | NoCacheReason::ResponseTooLarge => {
                Some(self.remember(key.primary_bin(), Instant::now()))
            }
            NoCacheReason::Custom(reason) if reason != ORIGIN_ERROR => {
                Some(self.remember(key.primary_bin(), Instant::now()))
            }
            // A failure says nothing about what the origin would have answered.
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_remembered_for_two_minutes_or_until_it_is_cacheable() {
        let memory = Uncacheable::new(None);
        let start = Instant::now();
        let slot = [1; 16];
        assert!(!memory.is_remembered(&slot, start));
        assert!(memory.remember(slot, start));
        assert!(memory.is_remembered(&slot, start + Duration::from_secs(119)));
        assert!(!memory.is_remembered(&slot, start + Duration::from_secs(120)));
        memory.remember(slot, start);
        assert!(memory.forget(&slot));
        assert!(!memory.is_remembered(&slot, start));
    }

    #[test]
    fn it_is_bounded() {
        let memory = Uncacheable::new(None);
        for n in 0..1_000_000_u64 {
            let mut slot = [0; 16];
            slot[..8].copy_from_slice(&n.to_le_bytes());
            memory.remember(slot, Instant::now());
        }
        assert!(memory.shard(&[0; 16]).lock().len() <= KEYS_PER_SHARD_MAX);
    }
}
