//! How a node reaches the store of its region: with delays, losses on the way there and back, cuts, and while the node stands still.
//!
//! An operation is on its way by itself: when its caller has given up, it may still arrive and be applied.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::cache::purge::{Epoch, Mode, Scope};
use crate::lock::region::{Ask, Committed, Lease, Packed, Parts, Pushed, Region, Sought, Token, Unavailable, Word};
use crate::storage::memory::Slot;
use crate::store::{Op, Reply};
use crate::world::{Collapsing, Log, World};

/// What every operation may take.
pub const OPERATION: Duration = Duration::from_millis(100);

/// The way between one life of a node and the store.
pub struct Link {
    world: Arc<World>,
    node: usize,
    /// How far the clock of the node is ahead.
    skew_ms: u64,
    dead: AtomicBool,
    troubles: Mutex<Troubles>,
}

struct Troubles {
    still_until: Instant,
    /// All that it stood still so far.
    stood_still: Duration,
    cut_until: Instant,
}

impl Link {
    pub fn new(world: Arc<World>, node: usize, skew_ms: u64) -> Link {
        let now = Instant::now();
        let troubles = Troubles { still_until: now, stood_still: Duration::ZERO, cut_until: now };
        Link { world, node, skew_ms, dead: AtomicBool::new(false), troubles: Mutex::new(troubles) }
    }

    /// From now on nothing that the node does is seen by anybody.
    pub fn die(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    pub fn stand_still(&self, length: Duration) {
        let mut troubles = self.troubles.lock();
        let until = Instant::now() + length;
        let since = troubles.still_until.max(Instant::now());
        troubles.stood_still += until.saturating_duration_since(since);
        troubles.still_until = since.max(until);
    }

    pub fn cut(&self, length: Duration) {
        self.troubles.lock().cut_until = Instant::now() + length;
    }

    pub fn stood_still(&self) -> Duration {
        self.troubles.lock().stood_still
    }

    pub fn now_ms(&self) -> u64 {
        self.world.now_ms() + self.skew_ms
    }

    /// Ends when the node does not stand still.
    pub async fn moves(&self) {
        loop {
            let until = self.troubles.lock().still_until;
            if Instant::now() >= until {
                return;
            }
            sleep_until(until).await;
        }
    }

    fn is_cut(&self) -> bool {
        self.dead.load(Ordering::Relaxed) || Instant::now() < self.troubles.lock().cut_until
    }

    async fn call(self: &Arc<Self>, op: Op) -> Result<Reply, Unavailable> {
        self.moves().await;
        if self.dead.load(Ordering::Relaxed) || self.world.plan.collapsing != Collapsing::NodeAndRegion {
            return Err(Unavailable);
        }
        let (answer, mut reply) = oneshot::channel();
        let (deadline, stood_still) = (Instant::now() + OPERATION, self.stood_still());
        if !self.is_cut() {
            let (link, there, back) = (self.clone(), self.world.plan.network.way(), self.world.plan.network.way());
            tokio::spawn(async move {
                let Some(delay) = there else { return };
                sleep(delay).await;
                let reply = link.world.apply(link.node, &op);
                let Some(delay) = back else { return };
                sleep(delay).await;
                if !link.is_cut() {
                    let _ = answer.send(reply);
                }
            });
        }
        let answered = timeout_at(deadline, &mut reply).await;
        self.moves().await;
        match answered {
            Ok(Ok(reply)) => Ok(reply),
            // It is lost, which its caller does not know.
            Ok(Err(_)) => {
                sleep_until(deadline).await;
                Err(Unavailable)
            }
            // The answer came while the node stood still, and is found there with the end of the time.
            Err(_) if self.stood_still() > stood_still => reply.try_recv().map_err(|_| Unavailable),
            Err(_) => Err(Unavailable),
        }
    }

    pub async fn purge(self: &Arc<Self>, scopes: Vec<Scope>, mode: Mode, at_least: Epoch) -> Option<Epoch> {
        match self.call(Op::Purge { scopes, mode, at_least }).await {
            Ok(Reply::Purged(epoch)) => Some(epoch),
            _ => None,
        }
    }

    /// The log of purges after a position, if it can be read now.
    pub async fn log(&self, after: Epoch) -> Option<Log> {
        self.moves().await;
        let delay = self.world.plan.network.way()?;
        sleep(delay).await;
        if self.is_cut() {
            return None;
        }
        let log = self.world.log(after);
        self.moves().await;
        Some(log)
    }
}

/// What the protocol is given: one handle per life of a node.
pub struct Network(pub Arc<Link>);

impl Region for Network {
    async fn seek(&self, ask: &Ask) -> Result<Sought, Unavailable> {
        match self.0.call(Op::Seek(*ask)).await {
            Ok(Reply::Sought(sought)) => Ok(sought),
            Ok(_) => Err(Unavailable),
            Err(Unavailable) => {
                // As the real one does: a lock that may have been won without anybody knowing is given back.
                let (link, lease) =
                    (self.0.clone(), Lease { slot: ask.slot, token: ask.token, fence: 0, epoch: Epoch(0) });
                tokio::spawn(async move { link.call(Op::Release(lease, None)).await });
                Err(Unavailable)
            }
        }
    }

    async fn renew(&self, lease: &Lease) -> Result<bool, Unavailable> {
        match self.0.call(Op::Renew(*lease)).await? {
            Reply::Renewed(renewed) => Ok(renewed),
            _ => Err(Unavailable),
        }
    }

    async fn commit(&self, lease: &Lease, entry: &Packed) -> Result<Committed, Unavailable> {
        match self.0.call(Op::Commit(*lease, entry.clone())).await? {
            Reply::Committed(committed) => Ok(committed),
            _ => Err(Unavailable),
        }
    }

    async fn release(&self, lease: &Lease, word: Option<Word>) -> Result<(), Unavailable> {
        self.0.call(Op::Release(*lease, word)).await.map(|_| ())
    }

    async fn announce_uncacheable(&self, lease: &Lease) -> Result<(), Unavailable> {
        self.0.call(Op::Announce(*lease)).await.map(|_| ())
    }

    async fn push(&self, lease: &Lease, from: usize, parts: &Parts) -> Result<Pushed, Unavailable> {
        match self.0.call(Op::Push(*lease, from, parts.clone())).await? {
            Reply::Pushed(pushed) => Ok(pushed),
            _ => Err(Unavailable),
        }
    }

    async fn pull(&self, slot: &Slot, token: &Token, from: usize) -> Result<Parts, Unavailable> {
        match self.0.call(Op::Pull { slot: *slot, token: *token, from }).await? {
            Reply::Parts(parts) => Ok(parts),
            _ => Err(Unavailable),
        }
    }

    fn message(&self, slot: &Slot) -> impl Future<Output = ()> + Send {
        // Registered by the call, not by the first poll: the protocol asks the store before it polls.
        let message = self.0.world.subscribe(self.0.node, slot);
        async move {
            if message.await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
