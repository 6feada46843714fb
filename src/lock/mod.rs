//! Collapses requests: one fetch per key and region, everybody else waits for it (seed "Vercel CDN", product.md 5.9).
//!
//! ```text
//!   lookup: memory ── hit ──▶ answer
//!      │ nothing, or stale and not to be served so
//!      ▼
//!   node lock (`node`): the first one's arbiter looks below, all others wait, each at most the lock timeout
//!      │
//!      ▼  arbiter
//!   files of the deployment ── L2 ── L3 and the lock of the region, in one step (`region`)
//!      │ found: promoted into memory, all look up again and hit
//!      │ arriving on another node: read along, all look up again and read along too
//!      │ a word from another node: not to be cached, or failed: all are told
//!      ▼ the lock of the region is won (or there is no region)
//!   leader: the first to ask again fetches; visible in memory at its header, L2 and L3 are written behind (`storage::relay`)
//! ```
//! Pingora asks for the lock in a synchronous call, while what lies below memory can only be read asynchronously. So nobody who finds
//! nothing becomes the writer at once, and the arbiter is a task that all wait for.
//!
//! A background refresh takes the same way in `refresh`, before it goes to the origin; the visitor that started it has its stale answer
//! already and waits for nothing.

pub mod breaker;
pub mod claim;
pub mod client;
pub mod node;
pub mod region;
pub mod uncacheable;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora_cache::key::{CacheHashKey, CacheKey};
use pingora_cache::lock::{CacheKeyLock, LockStatus, Locked, WritePermit};
use tokio::task::AbortHandle;

use self::claim::{Claim, Failure, Verdict};
use self::node::{Alone, Asker, Flight, Landing, Table, Told, Waiter, Wakeup};
use self::region::{Ask, Collapsed, Cut, Following, Judgement, Token, Word};
use self::uncacheable::Uncacheable;
use crate::cache::entry::{Entry, Source};
use crate::cache::packed::{self, Head};
use crate::cache::policy;
use crate::cache::purge::Judged;
use crate::error::Code;
use crate::metrics::{Kind, Level, Metrics};
use crate::storage::fill::Fill;
use crate::storage::memory::Slot;
use crate::storage::{RegionalLease, Tiers};

/// The name by which the policy tells Pingora that the origin failed: `NoCacheReason::Custom(ORIGIN_ERROR)`.
pub const ORIGIN_ERROR: &str = "origin_error";
/// The same for a refresh that turned out not to be needed.
pub const REFRESHED: &str = "refreshed";

pub struct Arbiter {
    pub table: Table<RegionalLease>,
    timeout: Duration,
    tiers: &'static Tiers,
    uncacheable: &'static Uncacheable,
    metrics: Arc<Metrics>,
}

/// What Pingora is given: tasks that outlive a call need the arbiter for good.
pub struct NodeLock(pub &'static Arbiter);

/// What lies below memory.
enum Below {
    /// In memory now, or arriving there; from another node's fetch, if `collapsed`.
    Found {
        collapsed: bool,
    },
    /// Nothing that helps: this node fetches, for the region if it has its lock. `timed_out`: another node has it for too long.
    Nothing {
        lease: Option<RegionalLease>,
        timed_out: bool,
    },
    Failed {
        failure: Failure,
        hold: Duration,
    },
    Uncacheable(Duration),
}

impl Below {
    const FOUND: Below = Below::Found { collapsed: false };
    const NOTHING: Below = Below::Nothing { lease: None, timed_out: false };
}

/// What a background refresh is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    Fetch,
    /// Somebody else did it, and memory has the result.
    Done,
    /// Somebody else tried in vain, or is at it for longer than one waits.
    Failed(Failure),
}

impl Arbiter {
    pub fn new(
        timeout: Duration,
        tiers: &'static Tiers,
        uncacheable: &'static Uncacheable,
        metrics: Arc<Metrics>,
    ) -> Arbiter {
        Arbiter { table: Table::new(timeout), timeout, tiers, uncacheable, metrics }
    }

    /// Looks below memory, once for all who wait.
    async fn arbitrate(&'static self, primary: Slot, slot: Slot, flight: u64, claim: Arc<Claim>) {
        let (waves, status) = match self.look_below(primary, slot, &claim).await {
            Below::Found { collapsed } => {
                let (waves, followers) = self.table.land(&slot, flight, Landing::Over, Instant::now());
                if collapsed {
                    self.metrics.collapsed(Level::Node, Kind::Miss, followers);
                }
                (waves, LockStatus::Done)
            }
            Below::Nothing { lease, .. } => {
                (self.table.ready(&slot, flight, lease, Instant::now()), LockStatus::TransientError)
            }
            Below::Failed { failure, hold } => {
                (self.land(&slot, flight, Landing::FailedElsewhere { failure, hold }), LockStatus::TransientError)
            }
            Below::Uncacheable(hold) => {
                self.uncacheable.remember_for(primary, hold, Instant::now());
                // The origin has a new answer and does not want it kept: the old one must not outlive it.
                self.tiers.remove(&slot);
                (self.land(&slot, flight, Landing::Over), LockStatus::GiveUp)
            }
        };
        wake(waves, status);
    }

    fn land(&self, slot: &Slot, flight: u64, outcome: Landing) -> Vec<Wakeup> {
        self.table.land(slot, flight, outcome, Instant::now()).0
    }

    async fn look_below(&'static self, primary: Slot, slot: Slot, claim: &Arc<Claim>) -> Below {
        if self.tiers.contains_fresh(&primary, &slot) || self.tiers.is_arriving(&primary, &slot) {
            return Below::Found { collapsed: false };
        }
        if claim.claimant.below.is_some() {
            return if self.read_file(primary, slot, claim).await { Below::FOUND } else { Below::NOTHING };
        }
        if let Some(entry) = self.tiers.read_node(&primary, &slot).await {
            self.metrics.tier_read(Source::Node, entry.body.len());
            if self.promote(slot, entry, claim) {
                return Below::FOUND;
            }
        }
        let deadline = claim.since(Instant::now()) + self.timeout;
        let below = self.ask_region(primary, slot, claim, deadline, claim.claimant.stale_will_do).await;
        if let Below::Nothing { timed_out: true, .. } = below {
            // This node goes on by itself. Those who go on waiting are told all the same when the other node is done.
            tokio::spawn(self.wait_on(primary, slot, claim.clone(), deadline + self.timeout));
        }
        below
    }

    /// Waits for another node's fetch beside this node's own.
    async fn wait_on(&'static self, primary: Slot, slot: Slot, claim: Arc<Claim>, deadline: Instant) {
        // Once nobody holds the lock any more, it is not taken from here: what was won is given back by being dropped.
        if let Below::Found { .. } =
            self.ask_region(primary, slot, &claim, deadline, claim.claimant.stale_will_do).await
        {
            wake(self.table.look_again(&slot), LockStatus::Done);
        }
    }

    async fn read_file(&self, primary: Slot, slot: Slot, claim: &Claim) -> bool {
        let Some(file) = &claim.claimant.below else { return false };
        match file.load(primary, claim.began(), self.tiers.now()).await {
            Ok(entry) => {
                self.tiers.promote(slot, entry);
                claim.lead();
                true
            }
            Err(error) => {
                // The leader meets the same error and answers with it.
                log::warn!("cannot read a static file: {error}");
                false
            }
        }
    }

    /// Puts an entry into memory that was found below, unless memory has a younger one. True when it can answer the claim; a stale one
    /// that cannot is there to be validated.
    fn promote(&self, slot: Slot, entry: Entry, claim: &Claim) -> bool {
        let Some(lifetime) = self.tiers.lifetime(&entry) else { return false };
        let now = self.tiers.now();
        let answers =
            lifetime.is_fresh(now) || (claim.claimant.stale_will_do && lifetime.is_usable_while_revalidating(now));
        let is_news = self.tiers.memory.peek(&slot).is_none_or(|there| there.stored_at < entry.stored_at);
        if answers || is_news {
            self.tiers.promote(slot, entry);
        }
        answers
    }

    async fn ask_region(
        &'static self,
        primary: Slot,
        slot: Slot,
        claim: &Arc<Claim>,
        deadline: Instant,
        stale_will_do: bool,
    ) -> Below {
        let Some(region) = &self.tiers.region else { return Below::NOTHING };
        let have = self.tiers.memory.peek(&slot).map_or(0, |there| packed::unix_ms(there.stored_at));
        let ask = Ask {
            slot,
            token: Token::random(),
            now_ms: packed::unix_ms(self.tiers.now()),
            have_ms: have,
            stale_will_do,
        };
        let mut found = None;
        let judge = |packed: &bytes::Bytes| match self.tiers.from_region(packed.clone()) {
            Ok(entry)
                if self.tiers.can_be_found(&primary, &slot, &entry.place) && self.answers(&entry, stale_will_do) =>
            {
                found = Some(entry);
                Judgement::Take
            }
            Ok(entry) => Judgement::Younger { than_ms: packed::unix_ms(entry.stored_at) },
            Err(packed::Unreadable) => Judgement::Younger { than_ms: ask.now_ms },
        };
        let began = Instant::now();
        let collapsed = region::collapse(region, ask, deadline.into(), judge).await;
        match collapsed {
            Collapsed::Found { waited, .. } => {
                let Some(mut entry) = found else { return Below::NOTHING };
                self.metrics.tier_read(Source::Region, entry.body.len());
                if waited {
                    entry.source = Source::Neighbour;
                    self.collapsed(Level::Region, claim, 1);
                    self.metrics.lock_waited(Level::Region, began.elapsed());
                }
                let entry = self.tiers.promote(slot, entry);
                self.tiers.store_on_node(slot, &entry);
                Below::Found { collapsed: waited }
            }
            Collapsed::Arriving(token) => {
                self.collapsed(Level::Region, claim, 1);
                self.metrics.lock_waited(Level::Region, began.elapsed());
                match self.read_along(primary, slot, token).await {
                    true => Below::Found { collapsed: true },
                    false => Below::NOTHING,
                }
            }
            Collapsed::Word(Word::Uncacheable, hold) => Below::Uncacheable(hold),
            Collapsed::Word(Word::Failed(what), hold) => {
                self.collapsed(Level::Region, claim, 1);
                Below::Failed { failure: Failure::read(&what), hold }
            }
            Collapsed::Lead { lease, stale, timed_out } => {
                if timed_out {
                    self.metrics.lock_timed_out(Level::Region);
                }
                if let Some(stale) = stale.and_then(|stale| self.tiers.from_region(stale).ok())
                    && stale.place.primary == primary
                {
                    self.promote(slot, stale, claim);
                }
                Below::Nothing { lease, timed_out }
            }
        }
    }

    fn answers(&self, entry: &Entry, stale_will_do: bool) -> bool {
        let now = self.tiers.now();
        self.tiers.lifetime(entry).is_some_and(|lifetime| {
            lifetime.is_fresh(now) || (stale_will_do && lifetime.is_usable_while_revalidating(now))
        })
    }

    /// Reads a response along that another node is fetching; returns as soon as its head is there, and true if it is.
    async fn read_along(&'static self, primary: Slot, slot: Slot, token: Token) -> bool {
        let Some(region) = self.tiers.region.clone() else { return false };
        let mut following = Following::new(region, slot, token);
        let Ok(Some(mut head)) = following.next().await else { return false };
        let Ok(Head { header, lifetime, mut place, .. }) = packed::unpack_head(&mut head) else { return false };
        // The purges of this node are not known there: those up to now do not concern it.
        place.began.node = self.tiers.position().node;
        // It was purged since its holder began: nobody here could use it, and looking for it again and again would be all that comes of it.
        if place.judge(&self.tiers.purges.logs) != Judged::Valid {
            return false;
        }
        if !self.tiers.can_be_found(&primary, &slot, &place) {
            return false;
        }
        let expected_bytes = policy::content_length(&header.headers);
        let mut filling = self.tiers.begin(slot, Fill::new(header, lifetime, place), Source::Neighbour);
        filling.expect(expected_bytes);
        tokio::spawn(async move {
            loop {
                match following.next().await {
                    Ok(Some(part)) => filling.write(part).await?,
                    Ok(None) => return filling.end().map(drop),
                    // Dropped: its readers get to know that it was cut.
                    Err(Cut) => return Ok(()),
                }
            }
        });
        true
    }

    /// What a background refresh does before it asks the origin: some other process or node may have done it, or be at it.
    pub async fn refresh(&'static self, key: &CacheKey, claim: &Arc<Claim>) -> Refresh {
        let (primary, slot) = (key.primary_bin(), key.combined_bin());
        if let Some(entry) = self.tiers.read_node(&primary, &slot).await
            && self.answers(&entry, false)
        {
            self.metrics.tier_read(Source::Node, entry.body.len());
            self.tiers.promote(slot, entry);
            return Refresh::Done;
        }
        let deadline = Instant::now() + self.timeout;
        match self.ask_region(primary, slot, claim, deadline, false).await {
            Below::Found { .. } => Refresh::Done,
            // The one who holds the lock takes longer than that; its result will be seen by a later look.
            Below::Nothing { timed_out: true, .. } => Refresh::Failed(Failure::Code(Code::InternalCacheLockTimeout)),
            Below::Nothing { lease, .. } => {
                claim.begin(self.tiers.position());
                claim.hold(lease);
                Refresh::Fetch
            }
            Below::Failed { failure, .. } => Refresh::Failed(failure),
            Below::Uncacheable(hold) => {
                // The origin has a new answer and does not want it kept: the old one must not outlive it.
                self.tiers.remove(&slot);
                self.uncacheable.remember_for(primary, hold, Instant::now());
                Refresh::Done
            }
        }
    }

    fn collapsed(&self, level: Level, claim: &Claim, requests: usize) {
        let kind = if claim.claimant.background { Kind::Revalidation } else { Kind::Miss };
        self.metrics.collapsed(level, kind, requests);
    }

    fn ask(&'static self, key: &CacheKey, claim: &Arc<Claim>, stale_writer: bool) -> Locked {
        let (primary, slot) = (key.primary_bin(), key.combined_bin());
        if claim.verdict() == Verdict::Gone {
            return Locked::Write(node::detached(stale_writer));
        }
        let now = Instant::now();
        let asker = Asker { since: claim.since(now), may_serve_stale: claim.may_serve_stale(), before: claim.waiter() };
        match self.table.ask(&slot, asker, stale_writer, now) {
            Told::Arbitrate { flight, wait, waiter } => {
                claim.wait(waiter, self.watch(slot, claim, waiter));
                tokio::spawn(self.arbitrate(primary, slot, flight, claim.clone()));
                Locked::Read(wait)
            }
            Told::Lead { permit, lease, .. } => {
                claim.lead();
                claim.begin(self.tiers.position());
                claim.hold(lease);
                Locked::Write(permit)
            }
            Told::Wait { read, waiter } => {
                claim.wait(waiter, self.watch(slot, claim, waiter));
                Locked::Read(read)
            }
            Told::Alone { permit } => {
                self.metrics.lock_timed_out(Level::Node);
                claim.lead();
                claim.begin(self.tiers.position());
                Locked::Write(permit)
            }
            Told::Share { failure, permit } => {
                claim.decide(Verdict::Share(failure));
                Locked::Write(permit)
            }
            Told::GiveUp { permit } => {
                self.metrics.lock_given_up.inc();
                claim.decide(Verdict::GiveUp);
                Locked::Write(permit)
            }
            Told::Refreshing { read } => {
                self.metrics.collapsed(Level::Node, Kind::Revalidation, 1);
                Locked::Read(read)
            }
        }
    }

    /// Watches the client of a request that waits. Called by the task that serves it.
    fn watch(&'static self, slot: Slot, claim: &Arc<Claim>, waiter: Waiter) -> Option<AbortHandle> {
        let socket = client::duplicate(claim.claimant.client?)?;
        let claim = Arc::downgrade(claim);
        let watch = tokio::spawn(async move {
            client::gone(socket).await;
            if let Some(claim) = claim.upgrade() {
                self.metrics.lock_clients_gone.inc();
                claim.decide(Verdict::Gone);
                self.table.leave(&slot, waiter);
            }
        });
        Some(watch.abort_handle())
    }

    /// The other nodes get to know what became of a fetch that brought no entry.
    fn tell_region(&self, claim: Option<&Claim>, word: impl FnOnce(&Claim) -> Word) {
        if let Some(claim) = claim
            && let Some(lease) = claim.take_lease()
        {
            tokio::spawn(lease.release(Some(word(claim))));
        }
    }
}

impl CacheKeyLock for NodeLock {
    fn lock(&self, key: &CacheKey, stale_writer: bool) -> Locked {
        match key.extensions.get::<Arc<Claim>>() {
            // It was handed the permit of the request that it was started by, and takes that.
            Some(claim) if claim.claimant.background => Locked::Read(node::nothing_to_wait_for()),
            Some(claim) => self.0.ask(key, claim, stale_writer),
            None => Locked::Write(WritePermit::new(Duration::from_secs(60), stale_writer, http::Extensions::new()).0),
        }
    }

    fn release(&self, key: &CacheKey, mut permit: WritePermit, reason: LockStatus) {
        let slot = key.combined_bin();
        let flight = permit.extensions().get::<Flight>().map(|flight| flight.0);
        let alone = permit.extensions().get::<Alone>().is_some();
        permit.unlock(reason);
        if alone {
            wake(self.0.table.alone_is_back(&slot, reason == LockStatus::Done), LockStatus::Done);
        }
        let claim = claim::of(key);
        match reason {
            // An entry: whoever stores it has the lock of the region by now, or gets it.
            LockStatus::Done => {}
            LockStatus::GiveUp => self.0.tell_region(claim, |_| Word::Uncacheable),
            _ => self.0.tell_region(claim, |claim| Word::Failed(failure_of(Some(claim)).write())),
        }
        let Some(flight) = flight else { return };
        let outcome = match reason {
            LockStatus::Done | LockStatus::GiveUp => Landing::Over,
            _ => Landing::Failed(failure_of(claim)),
        };
        let (waves, followers) = self.0.table.land(&slot, flight, outcome, Instant::now());
        if reason != LockStatus::GiveUp {
            self.0.metrics.collapsed(Level::Node, Kind::Miss, followers);
        }
        wake(waves, reason);
    }

    fn custom_lock_status(&self, reason: &'static str) -> LockStatus {
        match reason {
            ORIGIN_ERROR => LockStatus::TransientError,
            REFRESHED => LockStatus::Done,
            _ => LockStatus::GiveUp,
        }
    }
}

fn failure_of(claim: Option<&Claim>) -> Failure {
    claim.and_then(Claim::failure).unwrap_or(Failure::Code(Code::InternalUnexpectedError))
}

fn wake(waves: Vec<Wakeup>, status: LockStatus) {
    waves.into_iter().for_each(|wave| wave.wake(status));
}
