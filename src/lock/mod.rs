//! Collapses requests: one fetch per key, everybody else waits for it (seed "Vercel CDN", product.md 5.9).
//!
//! Pingora asks for the lock in a synchronous call, while what lies below memory can only be read asynchronously. So nobody who finds
//! nothing becomes the writer at once: an *arbiter* task per key looks below, and everybody waits for its word. If it finds the answer it
//! promotes it into memory, and all look up again and hit; if not, the first to ask again becomes the leader and fetches. The regional
//! tier and the regional lock will be steps of the arbiter; nothing else will have to know.

pub mod breaker;
pub mod claim;
pub mod node;
pub mod uncacheable;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora_cache::key::{CacheHashKey, CacheKey};
use pingora_cache::lock::{CacheKeyLock, LockStatus, LockStub, Locked, ReadLock, WritePermit};

use self::claim::{Claim, Failure, Verdict};
use self::node::{Alone, Asker, Flight, Landing, Table, Told, Wakeup};
use crate::error::Code;
use crate::metrics::Metrics;
use crate::storage::Tiers;
use crate::storage::memory::Slot;

/// The name by which the policy tells Pingora that the origin failed: `NoCacheReason::Custom(ORIGIN_ERROR)`.
pub const ORIGIN_ERROR: &str = "origin_error";

pub struct Arbiter {
    pub table: Table,
    tiers: &'static Tiers,
    metrics: Arc<Metrics>,
}

/// What Pingora is given: tasks that outlive a call need the arbiter for good.
pub struct NodeLock(pub &'static Arbiter);

impl Arbiter {
    pub fn new(timeout: Duration, tiers: &'static Tiers, metrics: Arc<Metrics>) -> Arbiter {
        Arbiter { table: Table::new(timeout), tiers, metrics }
    }

    /// Looks below memory, once for all who wait.
    async fn arbitrate(&'static self, primary: Slot, slot: Slot, flight: u64, claim: Arc<Claim>) {
        let now = Instant::now;
        if self.tiers.contains_fresh(&primary, &slot)
            || self.tiers.is_arriving(&slot)
            || self.promote(slot, &claim).await
        {
            let (waves, _) = self.table.land(&slot, flight, Landing::Over, now());
            wake(waves, LockStatus::Done);
        } else {
            wake(self.table.ready(&slot, flight, now()), LockStatus::TransientError);
        }
    }

    async fn promote(&self, slot: Slot, claim: &Claim) -> bool {
        let Some(file) = &claim.below else { return false };
        match file.load(self.tiers.new_family(), self.tiers.now()).await {
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

    fn ask(&'static self, key: &CacheKey, claim: &Arc<Claim>, stale_writer: bool) -> Locked {
        let (primary, slot) = (key.primary_bin(), key.combined_bin());
        let now = Instant::now();
        let asker = Asker { since: claim.since(now), may_serve_stale: claim.may_serve_stale() };
        match self.table.ask(&slot, asker, stale_writer, now) {
            Told::Arbitrate { flight, wait } => {
                claim.wait();
                tokio::spawn(self.arbitrate(primary, slot, flight, claim.clone()));
                Locked::Read(wait)
            }
            Told::Lead { permit, .. } => {
                claim.lead();
                Locked::Write(permit)
            }
            Told::Wait { read } => {
                claim.wait();
                Locked::Read(read)
            }
            Told::Alone { permit } => {
                self.metrics.lock_timeouts.inc();
                claim.lead();
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
                self.metrics.collapsed_revalidations.inc();
                Locked::Read(read)
            }
        }
    }
}

impl CacheKeyLock for NodeLock {
    fn lock(&self, key: &CacheKey, stale_writer: bool) -> Locked {
        match key.extensions.get::<Arc<Claim>>() {
            // It was handed the permit of the request that it was started by, and takes that.
            Some(claim) if claim.background => Locked::Read(nothing_to_wait_for()),
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
        let Some(flight) = flight else { return };
        let outcome = match reason {
            LockStatus::Done | LockStatus::GiveUp => Landing::Over,
            _ => {
                let failure = claim::of(key).and_then(Claim::failure);
                Landing::Failed(failure.unwrap_or(Failure::Code(Code::InternalUnexpectedError)))
            }
        };
        let (waves, followers) = self.0.table.land(&slot, flight, outcome, Instant::now());
        if reason != LockStatus::GiveUp {
            self.0.metrics.collapsed_misses.inc_by(followers as u64);
        }
        wake(waves, reason);
    }

    fn custom_lock_status(&self, reason: &'static str) -> LockStatus {
        match reason {
            ORIGIN_ERROR => LockStatus::TransientError,
            _ => LockStatus::GiveUp,
        }
    }
}

fn wake(waves: Vec<Wakeup>, status: LockStatus) {
    waves.into_iter().for_each(|wave| wave.wake(status));
}

fn nothing_to_wait_for() -> ReadLock {
    let (mut permit, stub): (WritePermit, LockStub) =
        WritePermit::new(Duration::from_secs(1), false, http::Extensions::new());
    permit.unlock(LockStatus::TransientError);
    stub.read_lock()
}
