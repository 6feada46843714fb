//! The tiers that hold stored responses, as one Pingora `Storage`.
//!
//! A lookup reads memory only; whatever lies below (today the files of a deployment) is read by the arbiter (`lock`), by one reader per
//! key, and promoted into memory, so that the ordinary second lookup finds it. A response that is still arriving can be read as well.
//!
//! Variants (`Vary`) sit in slots of their own and carry the family number of the primary entry: with the primary gone, or replaced by
//! another family, they cannot be found any more, whatever still lies in their slots.

pub mod fill;
pub mod memory;

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use pingora_cache::key::{CacheHashKey, CacheKey};
use pingora_cache::storage::{
    HandleHit, HandleMiss, HitHandler, MissFinishType, MissHandler, PurgeOutcome, PurgeTarget, PurgeType,
};
use pingora_cache::trace::SpanHandle;
use pingora_cache::{CacheMeta, Storage};
use pingora_error::Result;
use pingora_http::ResponseHeader;

use self::fill::{Fill, FillReader};
use self::memory::{Memory, Slot};
use crate::cache::entry::{self, Entry, Place};
use crate::cache::freshness::{LIFETIME_S_MAX, Lifetime};
use crate::cache::key::Key;
use crate::clock::Clock;
use crate::lock::claim::{self, Claim};

/// How many purges are remembered for the fills that are under way. A fill that began before the oldest of them is not stored.
const PURGES_MAX: usize = 4096;

/// How much of a body is handed to Pingora at once.
const PIECE_BYTES: usize = 256 * 1024;

pub struct Tiers {
    pub memory: Memory,
    clock: Clock,
    /// Responses that are arriving, by slot. Touched on a miss only.
    filling: Mutex<HashMap<Slot, Arc<Fill>>>,
    purges: Mutex<Purges>,
    families: AtomicU64,
}

/// What was found for a slot.
pub enum Found {
    Stored(Arc<Entry>, Lifetime),
    Arriving(FillReader),
}

#[derive(Default)]
struct Purges {
    count: u64,
    /// Number and primary key (`None`: everything), oldest first.
    recent: VecDeque<(u64, Option<Key>)>,
}

/// What a purge does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purge {
    /// The entry is served stale and refreshed behind the visitor's back.
    Invalidate,
    /// The next request waits for a new one.
    Delete,
}

impl Tiers {
    pub fn new(memory_bytes: u64, threads: usize, clock: Clock) -> Tiers {
        Tiers {
            memory: Memory::new(memory_bytes, threads),
            clock,
            filling: Mutex::default(),
            purges: Mutex::default(),
            families: AtomicU64::new(1),
        }
    }

    /// What there is for a key. A stale entry gives way to a response that is arriving.
    pub fn find(&self, primary: &Slot, slot: &Slot) -> Option<Found> {
        let stored = self.stored(primary, slot);
        if let Some((entry, lifetime)) = &stored
            && lifetime.is_fresh(self.clock.now())
        {
            return Some(Found::Stored(entry.clone(), *lifetime));
        }
        let arriving = self.filling.lock().get(slot).cloned();
        if let Some(reader) = arriving.and_then(|fill| fill.reader()) {
            return Some(Found::Arriving(reader));
        }
        stored.map(|(entry, lifetime)| Found::Stored(entry, lifetime))
    }

    fn stored(&self, primary: &Slot, slot: &Slot) -> Option<(Arc<Entry>, Lifetime)> {
        let entry = self.memory.get(slot)?;
        if primary == slot {
            let lifetime = entry.lifetime;
            return Some((entry, lifetime));
        }
        let head = self.memory.peek(primary)?;
        if head.place.family != entry.place.family {
            return None;
        }
        // An invalidation marks the primary alone; it holds for all that were stored before it.
        let lifetime = match head.invalidated_at {
            Some(at) if entry.stored_at < at => entry.lifetime.invalidated(at),
            _ => entry.lifetime,
        };
        Some((entry, lifetime))
    }

    pub fn contains_fresh(&self, primary: &Slot, slot: &Slot) -> bool {
        self.stored(primary, slot).is_some_and(|(_, lifetime)| lifetime.is_fresh(self.clock.now()))
    }

    pub fn is_arriving(&self, slot: &Slot) -> bool {
        self.filling.lock().get(slot).is_some_and(|fill| fill.is_readable())
    }

    /// Takes a response out, so that it is never served again.
    pub fn remove(&self, slot: &Slot) {
        self.memory.remove(slot);
    }

    /// Takes `key` with all its variants out of service. True when something was there. Wins over fills that are under way.
    pub fn purge(&self, key: &Key, how: Purge) -> bool {
        self.remember_purge(Some(*key));
        self.filling.lock().remove(&key.0);
        let Some(entry) = self.memory.peek(&key.0) else { return false };
        self.take_out(key.0, &entry, how);
        true
    }

    fn take_out(&self, slot: Slot, entry: &Entry, how: Purge) {
        if how == Purge::Delete || entry.place.fixed {
            self.memory.remove(&slot);
            return;
        }
        let now = self.clock.now();
        let mut marked = entry.with_lifetime(entry.header.clone(), entry.lifetime.invalidated(now), now);
        marked.invalidated_at = Some(now);
        self.memory.insert(slot, Arc::new(marked));
    }

    /// Takes all of a deployment out of service; returns how many entries were there. Looks at every entry: an operator's act, not a visitor's.
    pub fn purge_owner(&self, owner: u64, how: Purge) -> usize {
        // Which keys are under way for it is not known here: no fill that began before is stored.
        self.remember_purge(None);
        self.filling.lock().retain(|_, fill| fill.place.owner != owner);
        let of_it: Vec<(Slot, Arc<Entry>)> =
            self.memory.all().filter(|(_, entry)| entry.place.owner == owner).collect();
        for (slot, entry) in &of_it {
            self.take_out(*slot, entry, how);
        }
        of_it.len()
    }

    /// Empties the cache; returns how many entries were there.
    pub fn purge_all(&self) -> usize {
        self.remember_purge(None);
        self.filling.lock().clear();
        let entries = self.memory.len();
        self.memory.clear();
        entries
    }

    fn remember_purge(&self, key: Option<Key>) {
        let mut purges = self.purges.lock();
        purges.count += 1;
        let number = purges.count;
        purges.recent.push_back((number, key));
        if purges.recent.len() > PURGES_MAX {
            purges.recent.pop_front();
        }
    }

    /// The number of the latest purge: a request takes it along, and what it fetched is stored only if no purge of it came since.
    pub fn purge_count(&self) -> u64 {
        self.purges.lock().count
    }

    fn was_purged(&self, primary: &Slot, since: u64) -> bool {
        let purges = self.purges.lock();
        if purges.count == since {
            return false;
        }
        let forgotten = purges.recent.front().is_some_and(|(oldest, _)| *oldest > since + 1);
        forgotten
            || purges
                .recent
                .iter()
                .rev()
                .take_while(|(number, _)| *number > since)
                .any(|(_, key)| key.is_none_or(|key| key.0 == *primary))
    }

    /// Puts a response into memory that was found below.
    pub fn promote(&self, slot: Slot, entry: Entry) {
        self.memory.insert(slot, Arc::new(entry));
    }

    pub fn now(&self) -> SystemTime {
        self.clock.now()
    }

    pub fn new_family(&self) -> u64 {
        self.families.fetch_add(1, Ordering::Relaxed)
    }

    /// The family that a new entry belongs to: that of the primary entry, or a new one where it becomes the primary.
    fn family(&self, primary: &Slot, slot: &Slot, variance: Option<[u8; 16]>) -> u64 {
        match self.memory.peek(primary) {
            Some(head) if primary != slot || head.place.variance == variance => head.place.family,
            _ => self.new_family(),
        }
    }

    /// Pingora reads the system's clock; ours may be ahead of it in a test. The times are handed over as the system's clock sees them.
    pub fn meta(&self, header: ResponseHeader, lifetime: &Lifetime, variance: Option<[u8; 16]>) -> CacheMeta {
        // Pingora refuses variants that are older than the primary entry; here families decide that (a refresh of the primary must not
        // void the others), so all entries claim the same birth. The age is counted from the epoch override.
        let mut meta = CacheMeta::new(
            self.clock.to_system(lifetime.fresh_until),
            SystemTime::UNIX_EPOCH,
            lifetime.stale_while_revalidate_s,
            lifetime.stale_if_error_s,
            header,
        );
        meta.set_epoch_override(self.clock.to_system(lifetime.created));
        if let Some(variance) = variance {
            meta.set_variance(variance);
        }
        meta
    }
}

impl Lifetime {
    /// Stale from now on, and usable stale for as long as an entry may live.
    fn invalidated(&self, now: SystemTime) -> Lifetime {
        let year = u32::try_from(LIFETIME_S_MAX).expect("a year of seconds fits");
        Lifetime {
            fresh_until: self.fresh_until.min(now),
            stale_while_revalidate_s: year,
            stale_if_error_s: year,
            ..*self
        }
    }
}

#[async_trait]
impl Storage for Tiers {
    async fn lookup(&'static self, key: &CacheKey, _: &SpanHandle) -> Result<Option<(CacheMeta, HitHandler)>> {
        Ok(self.find(&key.primary_bin(), &key.combined_bin()).map(|found| match found {
            Found::Stored(entry, lifetime) => {
                let meta = self.meta(entry.header.clone(), &lifetime, entry.place.variance);
                (meta, Box::new(Hit { body: Some(entry.body.clone()), entry, lifetime }) as HitHandler)
            }
            Found::Arriving(reader) => {
                let fill = reader.fill();
                let meta = self.meta(fill.header.clone(), &fill.lifetime, fill.place.variance);
                (meta, Box::new(Arriving(reader)) as HitHandler)
            }
        }))
    }

    async fn lookup_streaming_write(
        &'static self,
        key: &CacheKey,
        _: Option<&[u8]>,
        _: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        // The very fill that this request writes: another one may be under way for the same key.
        Ok(claim::of(key).and_then(Claim::fill).and_then(|fill| fill.reader()).map(|reader| {
            let fill = reader.fill();
            let meta = self.meta(fill.header.clone(), &fill.lifetime, fill.place.variance);
            (meta, Box::new(Arriving(reader)) as HitHandler)
        }))
    }

    async fn get_miss_handler(&'static self, key: &CacheKey, meta: &CacheMeta, _: &SpanHandle) -> Result<MissHandler> {
        let (primary, slot) = (key.primary_bin(), key.combined_bin());
        let claim = claim::of(key);
        let lifetime = claim.and_then(Claim::lifetime).unwrap_or(Lifetime {
            created: meta.created(),
            fresh_until: meta.fresh_until(),
            stale_while_revalidate_s: meta.stale_while_revalidate_sec(),
            stale_if_error_s: meta.stale_if_error_sec(),
        });
        let variance = meta.variance();
        let owner = claim.map_or(0, |claim| claim.owner);
        let place = Place { variance, family: self.family(&primary, &slot, variance), owner, fixed: false };
        let header = entry::stored_header(meta.response_header());
        let fill = Arc::new(Fill::new(header, lifetime, place));
        self.filling.lock().insert(slot, fill.clone());
        let purges_seen = match claim {
            Some(claim) => {
                claim.set_fill(fill.clone());
                claim.purges_seen
            }
            None => self.purge_count(),
        };
        let expected_bytes = crate::cache::policy::content_length(meta.headers());
        Ok(Box::new(Filling {
            tiers: self,
            fill,
            primary,
            slot,
            purges_seen,
            expected_bytes,
            written_bytes: 0,
            finished: false,
        }))
    }

    async fn purge(&'static self, target: PurgeTarget<'_>, _: PurgeType, _: &SpanHandle) -> Result<PurgeOutcome> {
        Ok(match self.memory.remove(&target.key().combined_bin()) {
            Some(_) => PurgeOutcome::Purged(None),
            None => PurgeOutcome::NotFound,
        })
    }

    async fn update_meta(&'static self, key: &CacheKey, meta: &CacheMeta, _: &SpanHandle) -> Result<bool> {
        let (primary, slot) = (key.primary_bin(), key.combined_bin());
        let claim = claim::of(key);
        if claim.is_some_and(|claim| self.was_purged(&primary, claim.purges_seen)) {
            return Ok(false);
        }
        let Some(entry) = self.memory.peek(&slot) else { return Ok(false) };
        let lifetime = claim.and_then(Claim::lifetime).unwrap_or(entry.lifetime);
        let mut header = entry::stored_header(meta.response_header());
        let length = http::HeaderValue::from(entry.body.len());
        header.insert_header(http::header::CONTENT_LENGTH, length)?;
        self.memory.insert(slot, Arc::new(entry.with_lifetime(header, lifetime, self.clock.now())));
        Ok(true)
    }

    fn support_streaming_partial_write(&self) -> bool {
        true
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}

/// A reader of a stored response.
pub struct Hit {
    pub entry: Arc<Entry>,
    pub lifetime: Lifetime,
    body: Option<Bytes>,
}

#[async_trait]
impl HandleHit for Hit {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        // In pieces, as the time limit of a write holds for each.
        let Some(body) = self.body.as_mut().filter(|body| !body.is_empty()) else { return Ok(None) };
        Ok(Some(body.split_to(body.len().min(PIECE_BYTES))))
    }

    async fn finish(self: Box<Self>, _: &'static (dyn Storage + Sync), _: &CacheKey, _: &SpanHandle) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}

/// A reader of a response that is still arriving.
pub struct Arriving(FillReader);

impl Arriving {
    pub fn lifetime(&self) -> Lifetime {
        self.0.fill().lifetime
    }
}

#[async_trait]
impl HandleHit for Arriving {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        self.0.read().await
    }

    async fn finish(self: Box<Self>, _: &'static (dyn Storage + Sync), _: &CacheKey, _: &SpanHandle) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}

/// The writer of a response that is arriving. Dropped before `finish`, it leaves nothing behind.
struct Filling {
    tiers: &'static Tiers,
    fill: Arc<Fill>,
    primary: Slot,
    slot: Slot,
    purges_seen: u64,
    expected_bytes: Option<u64>,
    written_bytes: u64,
    finished: bool,
}

impl Filling {
    /// Only this very fill: another request may have begun one for the same slot.
    fn leave_the_table(&self) {
        let mut filling = self.tiers.filling.lock();
        if filling.get(&self.slot).is_some_and(|fill| Arc::ptr_eq(fill, &self.fill)) {
            filling.remove(&self.slot);
        }
    }
}

#[async_trait]
impl HandleMiss for Filling {
    async fn write_body(&mut self, data: Bytes, _eof: bool) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.written_bytes += data.len() as u64;
        self.fill.write(data).await
    }

    async fn finish(mut self: Box<Self>) -> Result<MissFinishType> {
        // Pingora's reader refuses short bodies already. A second look costs nothing, and a truncated entry would be served for a year.
        if self.expected_bytes.is_some_and(|expected| expected != self.written_bytes) {
            return Err(pingora_error::Error::explain(
                pingora_error::ErrorType::ReadError,
                format!(
                    "the body has {} bytes and not the {:?} that were announced",
                    self.written_bytes, self.expected_bytes
                ),
            ));
        }
        self.finished = true;
        let body = self.fill.complete();
        let bytes = body.as_ref().map_or(0, Bytes::len);
        if let Some(body) = body
            && !self.tiers.was_purged(&self.primary, self.purges_seen)
        {
            let mut entry =
                Entry::new(&self.fill.header, body, self.fill.lifetime, self.fill.place, self.tiers.clock.now());
            // A refresh of the primary entry is none of its variants.
            if self.primary == self.slot
                && let Some(before) = self.tiers.memory.peek(&self.slot)
                && before.place.family == entry.place.family
            {
                entry.invalidated_at = before.invalidated_at;
            }
            self.tiers.memory.insert(self.slot, Arc::new(entry));
            // A purge that came in between found nothing to take out.
            if self.tiers.was_purged(&self.primary, self.purges_seen) {
                self.tiers.memory.remove(&self.slot);
            }
        }
        self.leave_the_table();
        Ok(MissFinishType::Created(bytes))
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if !self.finished {
            self.fill.fail();
            self.leave_the_table();
        }
    }
}
