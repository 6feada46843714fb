//! What one request has to do with the lock of its key. Travels in `CacheKey::extensions`, the only thing that the lock, the storage
//! and the phases of one request all see.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use pingora_cache::key::CacheKey;

use crate::cache::freshness::Lifetime;
use crate::error::Code;
use crate::static_origin::StaticRef;
use crate::storage::fill::Fill;

/// Why a fetch brought nothing that can be shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Perigee could not get an answer.
    Code(Code),
    /// The origin answered with this 5xx status.
    Status(u16),
}

/// What a request that holds a permit is to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verdict {
    /// Ask the origin.
    #[default]
    Fetch,
    /// The fetch that it waited for failed: answer the same.
    Share(Failure),
    /// It waited as long as it may, and so do ten others that ask the origin by themselves.
    GiveUp,
}

pub struct Claim {
    /// The background refresh of a stale entry: it came with a permit of its own and never waits.
    pub background: bool,
    /// The deployment, by its number.
    pub owner: u64,
    /// The number of the latest purge when the request arrived.
    pub purges_seen: u64,
    /// The file that the entry is made from, where that is all it takes.
    pub below: Option<StaticRef>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    since: Option<Instant>,
    waited: bool,
    leads: bool,
    may_serve_stale: bool,
    verdict: Verdict,
    failure: Option<Failure>,
    lifetime: Option<Lifetime>,
    fill: Option<Arc<Fill>>,
}

/// The claim of the request that asks about this key.
pub fn of(key: &CacheKey) -> Option<&Claim> {
    key.extensions.get::<Arc<Claim>>().map(Arc::as_ref)
}

impl Claim {
    pub fn new(background: bool, owner: u64, purges_seen: u64, below: Option<StaticRef>) -> Claim {
        Claim { background, owner, purges_seen, below, state: Mutex::default() }
    }

    /// When it first asked for the lock.
    pub fn since(&self, now: Instant) -> Instant {
        *self.state.lock().since.get_or_insert(now)
    }

    pub fn wait(&self) {
        self.state.lock().waited = true;
    }

    /// Fetches for all others.
    pub fn lead(&self) {
        let mut state = self.state.lock();
        state.leads = true;
        state.verdict = Verdict::Fetch;
    }

    /// Waited for somebody else's fetch.
    pub fn is_follower(&self) -> bool {
        let state = self.state.lock();
        state.waited && !state.leads
    }

    pub fn waited(&self) -> bool {
        self.state.lock().waited
    }

    /// The stale entry that was found may be served while it is refreshed.
    pub fn set_may_serve_stale(&self, may: bool) {
        self.state.lock().may_serve_stale = may;
    }

    pub fn may_serve_stale(&self) -> bool {
        self.state.lock().may_serve_stale
    }

    pub fn decide(&self, verdict: Verdict) {
        self.state.lock().verdict = verdict;
    }

    pub fn verdict(&self) -> Verdict {
        self.state.lock().verdict
    }

    /// Notes why its own fetch failed, before the permit is released: the followers get to know it.
    pub fn fail(&self, failure: Failure) {
        self.state.lock().failure = Some(failure);
    }

    pub fn failure(&self) -> Option<Failure> {
        self.state.lock().failure
    }

    pub fn set_lifetime(&self, lifetime: Lifetime) {
        self.state.lock().lifetime = Some(lifetime);
    }

    pub fn lifetime(&self) -> Option<Lifetime> {
        self.state.lock().lifetime
    }

    pub fn set_fill(&self, fill: Arc<Fill>) {
        self.state.lock().fill = Some(fill);
    }

    pub fn fill(&self) -> Option<Arc<Fill>> {
        self.state.lock().fill.clone()
    }
}
