//! The tiers that hold stored responses, as one Pingora `Storage`.
//!
//! ```text
//!   L1 memory    this process                  read by a lookup
//!   L2 node      the processes of this node    ┐ read by the arbiter (`lock`), by one reader per key, and promoted into memory,
//!   L3 regional  the nodes of this region      ┘ so that the ordinary second lookup finds it; written behind the answer
//! ```
//! The files of a deployment are a tier below memory as well. A response that is still arriving can be read like a stored one.
//!
//! The states of an entry, by its times (`cache::freshness`) and by the purges since its fetch began (`cache::purge`):
//! ```text
//!   arriving ──▶ fresh ──▶ stale, served while it is refreshed ──▶ stale, kept for a validation or a failing origin ──▶ evicted
//!      │ purged   │  invalidated ▲                                                                          ▲
//!      ▼          └──────────────┘      deleted: as if it were not there, from any state ───────────────────┘
//!   not stored
//! ```
//! Variants (`Vary`) sit in slots of their own and carry the family number of the primary entry: with the primary gone, or replaced by
//! another family, they cannot be found any more, whatever still lies in their slots.

pub mod file_lock;
pub mod fill;
pub mod memory;
pub mod node;
pub mod purge_log;
pub mod purges;
pub mod regional;
mod relay;

use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

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
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use self::fill::{Fill, FillReader};
use self::memory::{Memory, Slot};
use self::node::Node;
use self::purges::Purges;
use self::regional::Redis;
use crate::cache::entry::{self, Entry, Place, Source};
use crate::cache::freshness::{LIFETIME_S_MAX, Lifetime};
use crate::cache::packed::{self, Unreadable};
use crate::cache::purge::{Judged, Position, Scope};
use crate::clock::Clock;
use crate::conf::{Conf, NodeCache, Regional, RegionalMode};
use crate::front::INDEX_SHARE;
use crate::lock::claim::{self, Claim};
use crate::lock::region::Holding;
use crate::metrics::Metrics;

/// The lock of the region, held by this node.
pub type RegionalLease = Holding<Redis>;

/// A disk that takes longer is slower than most origins. It is left alone for a while.
const NODE_READ_MAX: Duration = Duration::from_millis(250);
const NODE_REST: Duration = Duration::from_secs(5);

/// How much of a body is handed to Pingora at once.
const PIECE_BYTES: usize = 256 * 1024;

pub struct Tiers {
    pub memory: Memory,
    pub node: Option<Arc<Node>>,
    pub region: Option<Arc<Redis>>,
    pub purges: Arc<Purges>,
    clock: Clock,
    /// Responses that are arriving, by slot. Touched on a miss only.
    filling: Mutex<HashMap<Slot, Arc<Fill>>>,
    membership: Mutex<Option<Membership>>,
    /// The disk was too slow, and is not asked until then.
    node_rests_until: Mutex<Option<Instant>>,
}

/// Opens the tiers that the configuration names. `runtime` carries what goes on behind the answers.
pub fn open(conf: &Conf, clock: Clock, runtime: &Handle, metrics: Arc<Metrics>) -> std::result::Result<Tiers, String> {
    let cannot = |what: &str, path: &Path, error: io::Error| {
        format!(
            "cannot open {what} in {}: {error}; name another folder, or write `cache: {{node: off}}`",
            path.display()
        )
    };
    let (node, purges) = match &conf.cache.node {
        None => (None, Purges::in_memory(clock.clone())),
        Some(NodeCache { path, size }) => {
            let node = Node::open(path, *size).map_err(|error| cannot("the cache on disk", path, error))?;
            let purges = Purges::open(path, clock.clone()).map_err(|error| cannot("the log of purges", path, error))?;
            (Some(Arc::new(node)), purges)
        }
    };
    let purges = Arc::new(purges);
    let (region, membership) = match &conf.cache.regional {
        None => (None, None),
        Some(regional) => {
            let (redis, membership) = join_region(conf, regional, purges.clone(), runtime, metrics)?;
            (Some(redis), Some(membership))
        }
    };
    let memory = Memory::new(memory_bytes(conf.cache.memory), conf.threads);
    let membership = Mutex::new(membership);
    Ok(Tiers {
        memory,
        node,
        region,
        purges,
        clock,
        filling: Mutex::default(),
        membership,
        node_rests_until: Mutex::default(),
    })
}

/// What the program itself takes of `cache.memory`: its code, its threads, a few hundred connections.
const PROCESS_BYTES: u64 = 16 * 1_048_576;

/// What is left for entries of all that the process may take: the program and the prepared heads of `front` count as well.
fn memory_bytes(budget: u64) -> u64 {
    budget - (budget / 4).min(PROCESS_BYTES) - budget / INDEX_SHARE
}

/// Begins to look for the store of the region, for as long as the process runs. Whether it is there is not waited for.
fn join_region(
    conf: &Conf,
    regional: &Regional,
    purges: Arc<Purges>,
    runtime: &Handle,
    metrics: Arc<Metrics>,
) -> std::result::Result<(Arc<Redis>, Membership), String> {
    let mode = match regional.mode.clone() {
        RegionalMode::Single => regional::Mode::Single,
        RegionalMode::Sentinel { master } => regional::Mode::Sentinel { master },
        RegionalMode::Cluster => regional::Mode::Cluster,
    };
    let address = regional::Address {
        urls: regional.urls.clone(),
        mode,
        username: regional.username.clone(),
        password: regional.password.clone(),
        ca_pem: regional.ca_pem.clone(),
    };
    let settings = regional::Settings {
        address,
        region: conf.region.clone(),
        // A node may have several processes, and each has purges to take.
        member: format!("{}/{}", conf.node, fresh_member()),
        known_log: purges.known_log(),
        observer: Arc::new(move |operation, took, answered| metrics.region_operation(operation, took, answered)),
    };
    let redis = Redis::new(settings, purges.clone()).map_err(|error| format!("cache.regional: {error}"))?;
    purges.owed().iter().for_each(|(scopes, mode)| redis.owe(scopes, *mode));
    let redis = Arc::new(redis);
    let (leave, left) = oneshot::channel::<()>();
    let running = redis.clone();
    let run = runtime.spawn(async move { running.run(async { drop(left.await) }).await });
    Ok((redis, Membership { leave, run }))
}

/// Names a process of a node.
fn fresh_member() -> String {
    // The process id alone would do, but for tests that have several nodes in one process.
    format!("{}-{:04x}", std::process::id(), fastrand::u16(..))
}

/// Ends the membership in the region.
struct Membership {
    leave: oneshot::Sender<()>,
    run: JoinHandle<()>,
}

/// What was found for a slot.
pub enum Found {
    Stored(Arc<Entry>, Lifetime),
    Arriving(FillReader),
}

impl Tiers {
    /// At the end of the process: writes what is still to be written, and tells the region that nobody has to wait for this node.
    pub async fn close(&self, within: Duration) {
        let membership = self.membership.lock().take();
        if let Some(Membership { leave, run }) = membership {
            let _ = leave.send(());
            let _ = tokio::time::timeout(within, run).await;
        }
        if let Some(node) = self.node.clone() {
            let _ = tokio::task::spawn_blocking(move || node.flush(within)).await;
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
        if let Some(reader) = self.arriving(primary, slot).and_then(|fill| fill.reader()) {
            return Some(Found::Arriving(reader));
        }
        stored.map(|(entry, lifetime)| Found::Stored(entry, lifetime))
    }

    /// The entry in memory, with the lifetime that the purges left it.
    fn stored(&self, primary: &Slot, slot: &Slot) -> Option<(Arc<Entry>, Lifetime)> {
        let entry = self.memory.get(slot)?;
        if primary != slot && self.memory.peek(primary)?.place.family != entry.place.family {
            return None;
        }
        let lifetime = self.lifetime(&entry);
        if lifetime.is_none() {
            self.memory.remove(slot);
        }
        lifetime.map(|lifetime| (entry, lifetime))
    }

    /// The lifetime of an entry, as the purges left it; `None` when it was deleted.
    pub fn lifetime(&self, entry: &Entry) -> Option<Lifetime> {
        match entry.judge(&self.purges.logs) {
            Judged::Valid => Some(entry.lifetime),
            Judged::Stale(at) => Some(entry.lifetime.invalidated(at.max(entry.stored_at))),
            Judged::Deleted => None,
        }
    }

    /// A response that is arriving and was not purged since.
    fn arriving(&self, primary: &Slot, slot: &Slot) -> Option<Arc<Fill>> {
        let fill = self.filling.lock().get(slot).cloned()?;
        let is_valid = fill.place.judge(&self.purges.logs) == Judged::Valid;
        (is_valid && self.can_be_found(primary, slot, &fill.place)).then_some(fill)
    }

    pub fn contains_fresh(&self, primary: &Slot, slot: &Slot) -> bool {
        self.stored(primary, slot).is_some_and(|(_, lifetime)| lifetime.is_fresh(self.clock.now()))
    }

    pub fn is_arriving(&self, primary: &Slot, slot: &Slot) -> bool {
        self.arriving(primary, slot).is_some_and(|fill| fill.is_readable())
    }

    /// Takes a response out of this node, so that it is never served again.
    pub fn remove(&self, slot: &Slot) {
        self.memory.remove(slot);
        if let Some(node) = self.node.clone() {
            let slot = *slot;
            // A disk may be slow: not on a thread that serves requests. What cannot be removed says so in the log and in a gauge.
            tokio::task::spawn_blocking(move || node.remove(&slot));
        }
    }

    /// Takes a response out, unless it was replaced meanwhile.
    fn remove_this(&self, slot: &Slot, entry: &Entry) {
        if self.memory.peek(slot).is_some_and(|there| there.number == entry.number) {
            self.remove(slot);
        }
    }

    /// Frees what everything was purged of anyway. The purge itself is in the log.
    pub async fn clear(&self) {
        self.filling.lock().clear();
        self.memory.clear();
        if let Some(node) = self.node.clone() {
            // What cannot be removed says so in the log and in a gauge.
            let _ = tokio::task::spawn_blocking(move || node.clear()).await;
        }
    }

    /// Writes down which log of the region is read, if that is another one than before.
    pub async fn note_region(&self) {
        let Some(name) = self.region.as_ref().and_then(|region| region.log_id()) else { return };
        if self.purges.known_log().as_ref() == Some(&name) {
            return;
        }
        let purges = self.purges.clone();
        let _ = tokio::task::spawn_blocking(move || purges.note_log(name)).await;
    }

    /// Up to where the logs of purges have been read: a request takes it along, and what it fetched is stored only if no purge of it came
    /// since.
    pub fn position(&self) -> Position {
        self.purges.logs.position()
    }

    /// A response as the region has it. The purges of this node are not known there: those up to now do not concern it.
    pub fn from_region(&self, packed: Bytes) -> std::result::Result<Entry, Unreadable> {
        let mut entry = packed::unpack(packed, Source::Region)?;
        entry.place.began.node = self.purges.logs.node.position();
        Ok(entry)
    }

    /// Reads L2; by the arbiter, not by a lookup, as a disk may be slow. What is purged or not readable is not there.
    pub async fn read_node(&self, primary: &Slot, slot: &Slot) -> Option<Entry> {
        let entry = self.look_at_node(slot).await?;
        (self.can_be_found(primary, slot, &entry.place) && self.lifetime(&entry).is_some()).then_some(entry)
    }

    /// Whether a lookup would find it, once it is in memory: of that key, and of the family of the primary entry that is there.
    pub fn can_be_found(&self, primary: &Slot, slot: &Slot, place: &Place) -> bool {
        place.primary == *primary
            && (primary == slot || self.memory.peek(primary).is_none_or(|head| head.place.family == place.family))
    }

    /// What lies in L2, purged or not.
    pub async fn look_at_node(&self, slot: &Slot) -> Option<Entry> {
        let node = self.node.clone()?;
        let slot = *slot;
        if self.node_rests_until.lock().is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let read = tokio::task::spawn_blocking(move || node.get(&slot));
        match tokio::time::timeout(NODE_READ_MAX, read).await {
            Ok(packed) => packed::unpack(packed.ok()??, Source::Node).ok(),
            Err(_) => {
                log::warn!("the cache on disk took longer than {NODE_READ_MAX:?} and is not asked for {NODE_REST:?}");
                *self.node_rests_until.lock() = Some(Instant::now() + NODE_REST);
                None
            }
        }
    }

    /// Puts a response into memory that was found below.
    pub fn promote(&self, slot: Slot, entry: Entry) -> Arc<Entry> {
        let entry = Arc::new(entry);
        self.memory.insert(slot, entry.clone());
        entry
    }

    /// Writes a response to L2, behind the answer.
    pub fn store_on_node(&self, slot: Slot, entry: &Entry) {
        if let Some(node) = &self.node {
            node.put_behind(slot, packed::pack(entry).to_vec());
        }
    }

    pub fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// The family that a new entry belongs to: that of the primary entry, or a new one where it becomes the primary.
    fn family(&self, primary: &Slot, slot: &Slot, variance: Option<[u8; 16]>) -> u64 {
        match self.memory.peek(primary) {
            Some(head) if primary != slot || head.place.variance == variance => head.place.family,
            _ => new_family(),
        }
    }

    /// Begins a response that can be read while it arrives.
    pub fn begin(&'static self, slot: Slot, fill: Fill, source: Source) -> Filling {
        let fill = Arc::new(fill);
        self.filling.lock().insert(slot, fill.clone());
        Filling {
            tiers: self,
            fill,
            slot,
            source,
            expected_bytes: None,
            written_bytes: 0,
            finished: false,
            relay: None,
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

    fn place(&self, primary: Slot, family: u64, variance: Option<[u8; 16]>, claim: Option<&Claim>) -> Place {
        let owner = claim.map_or(Scope::ALL, |claim| claim.claimant.owner);
        let began = claim.map_or_else(|| self.position(), Claim::began);
        let tags = claim.and_then(Claim::tags).unwrap_or_default();
        Place::new(primary, family, owner, began, tags).variant(variance)
    }
}

/// Families are known to all nodes of a region: a number that nobody else has.
pub fn new_family() -> u64 {
    fastrand::u64(..)
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
        let place = self.place(primary, self.family(&primary, &slot, variance), variance, claim);
        let header = entry::stored_header(meta.response_header());
        let mut filling = self.begin(slot, Fill::new(header, lifetime, place), Source::Origin);
        filling.expect(crate::cache::policy::content_length(meta.headers()));
        if let Some(claim) = claim {
            claim.set_fill(filling.fill.clone());
            filling.relay = claim.take_lease().map(|lease| relay::start(self, &filling, lease));
        }
        Ok(Box::new(filling))
    }

    async fn purge(&'static self, target: PurgeTarget<'_>, _: PurgeType, _: &SpanHandle) -> Result<PurgeOutcome> {
        let slot = target.key().combined_bin();
        let was_there = self.memory.peek(&slot).is_some();
        self.remove(&slot);
        Ok(match was_there {
            true => PurgeOutcome::Purged(None),
            false => PurgeOutcome::NotFound,
        })
    }

    async fn update_meta(&'static self, key: &CacheKey, meta: &CacheMeta, _: &SpanHandle) -> Result<bool> {
        let (primary, slot) = (key.primary_bin(), key.combined_bin());
        let Some(before) = self.memory.peek(&slot) else { return Ok(false) };
        let claim = claim::of(key);
        let place = match claim {
            Some(_) => self.place(primary, before.place.family, before.place.variance, claim),
            None => before.place.clone(),
        };
        if place.judge(&self.purges.logs) != Judged::Valid {
            return Ok(false);
        }
        let lifetime = claim.and_then(Claim::lifetime).unwrap_or(before.lifetime);
        let mut header = entry::stored_header(meta.response_header());
        let length = http::HeaderValue::from(before.body.len());
        header.insert_header(http::header::CONTENT_LENGTH, length)?;
        let entry = Arc::new(before.validated(header, lifetime, place, self.clock.now()));
        self.memory.insert(slot, entry.clone());
        self.store_on_node(slot, &entry);
        if let Some(lease) = claim.and_then(Claim::take_lease) {
            tokio::spawn(relay::commit(self, slot, entry, lease));
        }
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
pub struct Filling {
    tiers: &'static Tiers,
    fill: Arc<Fill>,
    slot: Slot,
    source: Source,
    expected_bytes: Option<u64>,
    written_bytes: u64,
    finished: bool,
    /// Where the entry goes besides memory and disk: to the one who stores it for the region. `None` when nothing is to be stored.
    relay: Option<oneshot::Sender<Option<Arc<Entry>>>>,
}

impl Filling {
    /// How long the body was announced to be.
    pub fn expect(&mut self, bytes: Option<u64>) {
        self.expected_bytes = bytes;
    }

    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.written_bytes += data.len() as u64;
        self.fill.write(data).await
    }

    /// The response is whole: it becomes an entry, unless it outgrew one or was purged. How many bytes were stored.
    pub fn end(mut self) -> Result<usize> {
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
        let may_be_stored = self.fill.place.judge(&self.tiers.purges.logs) == Judged::Valid;
        let entry = body.filter(|_| may_be_stored).map(|body| {
            let (header, place) = (&self.fill.header, self.fill.place.clone());
            let mut entry = Entry::new(header, body, self.fill.lifetime, place, self.tiers.clock.now());
            entry.source = self.source;
            self.tiers.promote(self.slot, entry)
        });
        if let Some(entry) = &entry {
            self.tiers.store_on_node(self.slot, entry);
        }
        if let Some(relay) = self.relay.take() {
            // Nobody listens: the lock of the region was lost.
            let _ = relay.send(entry);
        }
        self.leave_the_table();
        Ok(bytes)
    }

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
        self.write(data).await
    }

    async fn finish(self: Box<Self>) -> Result<MissFinishType> {
        Ok(MissFinishType::Created(self.end()?))
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
