//! What one request has to do with the lock of its key. Travels in `CacheKey::extensions`, the only thing that the lock, the storage
//! and the phases of one request all see.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use pingora_cache::key::CacheKey;
use tokio::task::AbortHandle;

use super::node::Waiter;
use crate::cache::freshness::Lifetime;
use crate::cache::purge::{Epoch, Position, Scope};
use crate::error::Code;
use crate::static_origin::StaticRef;
use crate::storage::RegionalLease;
use crate::storage::fill::Fill;

/// Why a fetch brought nothing that can be shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Perigee could not get an answer.
    Code(Code),
    /// The origin answered with this 5xx status.
    Status(u16),
}

impl Failure {
    /// For the other nodes of the region.
    pub fn write(self) -> String {
        match self {
            Failure::Code(code) => code.as_str().to_owned(),
            Failure::Status(status) => status.to_string(),
        }
    }

    /// What another node wrote; one of another version may know codes that this one does not.
    pub fn read(text: &str) -> Failure {
        match text.parse() {
            Ok(status @ 500..=599) => Failure::Status(status),
            _ => Failure::Code(Code::named(text).unwrap_or(Code::InternalUnexpectedError)),
        }
    }
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
    /// Its client went away while it waited.
    Gone,
}

/// What is known of a request when its claim is made.
pub struct Claimant {
    /// The background refresh of a stale entry: it came with a permit of its own.
    pub background: bool,
    /// The deployment.
    pub owner: Scope,
    /// Up to where the logs of purges had been read when the request arrived.
    pub began: Position,
    /// The file that the entry is made from, where that is all it takes.
    pub below: Option<StaticRef>,
    /// A stale entry within its window may answer it.
    pub stale_will_do: bool,
    /// The socket of the client, to see whether it is still there.
    pub client: Option<RawFd>,
}

pub struct Claim {
    pub claimant: Claimant,
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
    tags: Option<Arc<[Box<str>]>>,
    fill: Option<Arc<Fill>>,
    lease: Option<RegionalLease>,
    /// The purges that were known when its own fetch began.
    began: Option<Position>,
    /// The purges that the region had seen when its lock was won.
    leased_at: Epoch,
    waiter: Option<Waiter>,
    watch: Option<AbortHandle>,
}

/// The claim of the request that asks about this key.
pub fn of(key: &CacheKey) -> Option<&Claim> {
    key.extensions.get::<Arc<Claim>>().map(Arc::as_ref)
}

impl Claim {
    pub fn new(claimant: Claimant) -> Claim {
        Claim { claimant, state: Mutex::default() }
    }

    /// When it first asked for the lock.
    pub fn since(&self, now: Instant) -> Instant {
        *self.state.lock().since.get_or_insert(now)
    }

    /// Waits as this one; what watched its client before is over.
    pub fn wait(&self, waiter: Waiter, watch: Option<AbortHandle>) {
        let mut state = self.state.lock();
        state.waited = true;
        state.waiter = Some(waiter);
        state.stop_watch();
        state.watch = watch;
    }

    /// What it waited as the last time.
    pub fn waiter(&self) -> Option<Waiter> {
        self.state.lock().waiter
    }

    /// Fetches for all others.
    pub fn lead(&self) {
        let mut state = self.state.lock();
        state.leads = true;
        state.verdict = Verdict::Fetch;
        state.stop_watch();
    }

    /// Fetches for the whole region.
    pub fn hold(&self, lease: Option<RegionalLease>) {
        let mut state = self.state.lock();
        if let Some(lease) = &lease {
            state.leased_at = lease.epoch();
        }
        state.lease = lease;
    }

    /// The lock of the region passes on to whoever stores the response or tells the other nodes.
    pub fn take_lease(&self) -> Option<RegionalLease> {
        self.state.lock().lease.take()
    }

    /// The origin is asked from now on: what was purged while it waited does not concern its fetch.
    pub fn begin(&self, position: Position) {
        self.state.lock().began = Some(position);
    }

    /// A purge after this position of the logs wins over what is fetched.
    pub fn began(&self) -> Position {
        let state = self.state.lock();
        let began = state.began.unwrap_or(self.claimant.began);
        Position { region: began.region.max(state.leased_at), ..began }
    }

    /// It has its answer, and is nobody's waiter any more.
    pub fn answered(&self) {
        self.state.lock().stop_watch();
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

    pub fn set_tags(&self, tags: Arc<[Box<str>]>) {
        self.state.lock().tags = Some(tags);
    }

    pub fn tags(&self) -> Option<Arc<[Box<str>]>> {
        self.state.lock().tags.clone()
    }

    pub fn set_fill(&self, fill: Arc<Fill>) {
        self.state.lock().fill = Some(fill);
    }

    pub fn fill(&self) -> Option<Arc<Fill>> {
        self.state.lock().fill.clone()
    }
}

impl State {
    fn stop_watch(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.abort();
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.stop_watch();
    }
}
