//! The lock of a region: one fetch per key among all its nodes (seed "Vercel CDN", two-level lock). This file owns the protocol; what
//! the store of the region has to do is the trait `Region`, spoken to Redis by `storage::regional` and played by the simulation.
//!
//! ```text
//!   node A                          store of the region                          node B
//!   seek ───────────────────▶  no entry, no word, no lock
//!        ◀── Won(token, epoch)  lock = token, for LEASE
//!   asks the origin                                            seek ◀── Held     waits for a message, looks again all the same
//!   renew, every RENEWAL ───▶  lock: LEASE again
//!   push(parts) ────────────▶  parts = token …  ── message ──▶ seek ◀── Held(arriving): reads the parts along
//!   commit(token, epoch) ───▶  lock = token still?
//!                              no purge of it since epoch?
//!                              entry stored, lock gone         ── message ──▶ seek ◀── Entry
//! ```
//! - *Seek is one atomic step*: entry, word, lock, in this order (a word never hides an entry that will do). The double check of the seed (look, lock, look again) needs no third
//!   look when the second one and the taking of the lock cannot be told apart in time.
//! - *The token is the fence*: a store is accepted from the current holder only. A holder that was stopped, or cut off, loses the lock
//!   after LEASE at the latest, and what it writes when it comes back is refused.
//! - *The epoch is the fence against purges*: the position that the log of purges had when the lock was taken. What was purged after it
//!   is not stored (memcached's lease rule: a delete between the miss and the set kills the set).
//! - *A word* is an outcome that is not an entry: not to be cached, or failed. It goes to all nodes, so that they do not take turns.
//! - *Messages may be lost* (pub/sub is at most once), so a waiter looks again after PAUSES as well.
//! - *Nothing here may fail a request*: no store, a slow store or a lost answer mean that the node is a region of its own.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval_at, timeout_at};

use crate::cache::purge::{Epoch, Scope};
use crate::storage::memory::Slot;

/// How long a lock outlives the last sign of its holder. Less than the 3 s that a waiter waits, so that after a crash one of the
/// waiters takes over and the others stay collapsed.
pub const LEASE: Duration = Duration::from_millis(2_000);
/// How often a holder renews: two may be lost, and the third be late.
pub const RENEWAL: Duration = Duration::from_millis(500);
/// When a waiter looks again that no message reached; the last one repeats.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(25), Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200)];
/// Entries of the region that a seeker may find fresh and reject (purged, unreadable) before it fetches by itself.
const REJECTED_MAX: usize = 3;
/// A part of a response that is arriving is looked for this often when no message comes.
const PART_PAUSE: Duration = Duration::from_millis(100);
/// Who reads along forgives a store that does not answer for this long: the response would be cut for all its clients.
const PART_PATIENCE: Duration = Duration::from_secs(3);

/// Names one taking of a lock. 128 random bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub [u8; 16]);

impl Token {
    pub fn random() -> Token {
        Token(fastrand::u128(..).to_le_bytes())
    }
}

/// What a seeker wants and has.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub slot: Slot,
    /// The token that the lock gets if it is won.
    pub token: Token,
    /// The time by which freshness is judged, in unix milliseconds.
    pub now_ms: u64,
    /// Entries made up to then are of no use: the seeker has one that young. Unix milliseconds; 0 when it has none.
    pub have_ms: u64,
    /// An entry within its stale-while-revalidate window will do.
    pub stale_will_do: bool,
}

/// What a seeker is told.
#[derive(Debug, Clone)]
pub enum Sought {
    /// A response that is fresh, or stale and good enough for the seeker; as it was committed.
    Entry(Bytes),
    /// An outcome that is not an entry, and for how long it holds.
    Word(Word, Duration),
    /// The lock is the seeker's. A stale entry comes along if there is one that the seeker does not have: it can be validated.
    Won { lease: Lease, stale: Option<Bytes> },
    /// Somebody else has the lock, for that long unless it is renewed. `arriving`: parts of the response can be read.
    Held { left: Duration, arriving: Option<Token> },
}

/// A fetch that brought nothing to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    Uncacheable,
    /// What to answer, in a form that only the nodes read.
    Failed(String),
}

/// A lock that was won.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub slot: Slot,
    pub token: Token,
    /// Grows with each taking of any lock of the region.
    pub fence: u64,
    /// The last purge of the region when the lock was taken.
    pub epoch: Epoch,
}

/// A response, packed for the region.
#[derive(Debug, Clone)]
pub struct Packed {
    pub parts: Vec<Bytes>,
    /// What it belongs to: a purge of any of these after the lease's epoch keeps it out.
    pub scopes: Vec<Scope>,
    /// When a node made it of an origin's answer. (Not by the answer's Age: that of a younger one can say that it is older.)
    pub created_ms: u64,
    pub fresh_until_ms: u64,
    /// The end of its stale-while-revalidate window; `fresh_until_ms` when there is none.
    pub stale_until_ms: u64,
    /// For how long the region keeps it at most.
    pub keep: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    Stored,
    /// The lock went to somebody else meanwhile.
    Lost,
    /// It was purged meanwhile.
    Purged,
}

/// What became of parts that were to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// They are there; so many in all.
    There(usize),
    /// The lock is somebody else's, or nobody's.
    LockLost,
    /// Those before them are gone: a response with a hole must not be shown.
    PartsLost,
}

/// Parts of a response that is arriving, from the one that was asked for on.
#[derive(Debug, Clone)]
pub struct Parts {
    pub parts: Vec<Bytes>,
    pub end: PartsEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartsEnd {
    /// More will come.
    Open,
    /// That was all of it.
    Whole,
    /// It was cut, or its holder lost the lock.
    Cut,
}

/// The store of the region does not answer, or not in time, or is not asked because of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable;

/// What the store of a region does for the nodes. Each operation is atomic and has a deadline of its own.
pub trait Region: Send + Sync + 'static {
    /// Looks for an entry, a word, and takes the lock if there is neither and it is free.
    fn seek(&self, ask: &Ask) -> impl Future<Output = Result<Sought, Unavailable>> + Send;

    /// Keeps the lock for `LEASE` from now on. False: it is lost.
    fn renew(&self, lease: &Lease) -> impl Future<Output = Result<bool, Unavailable>> + Send;

    /// Stores the response, forgets a word, gives the lock back and wakes all who wait, if the lock is still held and nothing was purged.
    /// A lock that is held is given back in any case.
    fn commit(&self, lease: &Lease, entry: &Packed) -> impl Future<Output = Result<Committed, Unavailable>> + Send;

    /// Gives the lock back, if it is still held, and wakes all who wait. A word is left for as long as it holds; `Failed` only if some
    /// other node waited: who is alone with a failure may try again at once. `Uncacheable` takes an older entry along.
    fn release(&self, lease: &Lease, word: Option<Word>) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Appends parts of the response that is being fetched, for the nodes that wait. `from`: so many are there already, as the last push
    /// said; what is there of these already, as its answer was lost, is not appended twice. (A store may cut a part in pieces and count
    /// these: only its own numbers are given back to it.)
    fn push(
        &self,
        lease: &Lease,
        from: usize,
        parts: &Parts,
    ) -> impl Future<Output = Result<Pushed, Unavailable>> + Send;

    /// Says while the lock is held that the response is not to be cached: who seeks it from now on does not wait for its end.
    fn announce_uncacheable(&self, lease: &Lease) -> impl Future<Output = Result<(), Unavailable>> + Send;

    /// Parts of the response that the holder of `token` is fetching, from number `from` on.
    fn pull(&self, slot: &Slot, token: &Token, from: usize) -> impl Future<Output = Result<Parts, Unavailable>> + Send;

    /// Ends at the next message about the slot, which may be lost. Counts from the call on, not from the first poll: who calls asks the
    /// region in between. (So an `async fn` cannot be it.)
    fn message(&self, slot: &Slot) -> impl Future<Output = ()> + Send;
}

/// What a seeker does with an entry that the region has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    Take,
    /// It is purged or unreadable: only a younger one will do.
    Younger {
        than_ms: u64,
    },
}

/// How it ended.
pub enum Collapsed<R: Region> {
    /// `waited`: for another node's fetch.
    Found {
        entry: Bytes,
        waited: bool,
    },
    /// Another node is fetching it; its parts can be read by this token.
    Arriving(Token),
    Word(Word, Duration),
    /// This node fetches. Without a lease: the region is not there, or the time to wait is over.
    Lead {
        lease: Option<Holding<R>>,
        stale: Option<Bytes>,
        timed_out: bool,
    },
}

/// Finds the response in the region, or the right to fetch it, and waits for other nodes until `deadline`.
pub async fn collapse<R: Region>(
    region: &Arc<R>,
    mut ask: Ask,
    deadline: Instant,
    mut judge: impl FnMut(&Bytes) -> Judgement + Send,
) -> Collapsed<R> {
    let alone = |timed_out| Collapsed::Lead { lease: None, stale: None, timed_out };
    let mut pauses = PAUSES.iter().copied().chain(std::iter::repeat(PAUSES[PAUSES.len() - 1]));
    let (mut waited, mut rejected) = (false, 0);
    // Until then the lock is somebody else's, as far as is known.
    let mut held_until = Instant::now();
    loop {
        // Registered before the region is asked, or a message in between would be lost.
        let message = region.message(&ask.slot);
        tokio::pin!(message);
        let left = match region.seek(&ask).await {
            // One look that failed must not send all nodes to the origin: the lock is held for as long as it was when seen last.
            Err(Unavailable) => match held_until.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return alone(false),
                left => left,
            },
            Ok(Sought::Word(word, holds)) => return Collapsed::Word(word, holds),
            Ok(Sought::Won { lease, stale }) => {
                let lease = Some(Holding::new(region.clone(), lease));
                return Collapsed::Lead { lease, stale, timed_out: false };
            }
            Ok(Sought::Entry(entry)) => match judge(&entry) {
                Judgement::Take => return Collapsed::Found { entry, waited },
                Judgement::Younger { than_ms } if rejected < REJECTED_MAX => {
                    rejected += 1;
                    ask.have_ms = ask.have_ms.max(than_ms);
                    continue;
                }
                Judgement::Younger { .. } => return alone(false),
            },
            Ok(Sought::Held { arriving: Some(token), .. }) => return Collapsed::Arriving(token),
            Ok(Sought::Held { left, arriving: None }) => {
                held_until = Instant::now() + left;
                left
            }
        };
        waited = true;
        let now = Instant::now();
        if now >= deadline {
            return alone(true);
        }
        let look = now + pauses.next().unwrap_or_default().min(left.max(Duration::from_millis(1)));
        // A message, or the time to look by oneself: the same is done.
        let _ = timeout_at(look.min(deadline), message).await;
    }
}

/// Reads a response along that another node is fetching, from its first part on.
pub struct Following<R: Region> {
    region: Arc<R>,
    slot: Slot,
    token: Token,
    read: usize,
    unread: VecDeque<Bytes>,
    end: PartsEnd,
}

/// It was cut: its holder is gone, or the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut;

impl<R: Region> Following<R> {
    pub fn new(region: Arc<R>, slot: Slot, token: Token) -> Following<R> {
        Following { region, slot, token, read: 0, unread: VecDeque::new(), end: PartsEnd::Open }
    }

    /// The next part; `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Cut> {
        let mut patience = Instant::now() + PART_PATIENCE;
        loop {
            if let Some(part) = self.unread.pop_front() {
                return Ok(Some(part));
            }
            match self.end {
                PartsEnd::Whole => return Ok(None),
                PartsEnd::Cut => return Err(Cut),
                PartsEnd::Open => {}
            }
            let message = self.region.message(&self.slot);
            tokio::pin!(message);
            match self.region.pull(&self.slot, &self.token, self.read).await {
                Ok(news) => {
                    self.read += news.parts.len();
                    self.unread.extend(news.parts);
                    self.end = news.end;
                    patience = Instant::now() + PART_PATIENCE;
                }
                Err(Unavailable) if Instant::now() >= patience => return Err(Cut),
                Err(Unavailable) => {}
            }
            if self.unread.is_empty() && self.end == PartsEnd::Open {
                // A message, or the time to look by oneself: the same is done.
                let _ = timeout_at(Instant::now() + PART_PAUSE, message).await;
            }
        }
    }
}

/// A lock that this node holds: renewed as long as this value lives, given back when it is dropped.
pub struct Holding<R: Region> {
    region: Arc<R>,
    lease: Lease,
    renewal: JoinHandle<()>,
    ended: bool,
}

impl<R: Region> Holding<R> {
    fn new(region: Arc<R>, lease: Lease) -> Holding<R> {
        let renewal = tokio::spawn({
            let region = region.clone();
            async move {
                let mut ticks = interval_at(Instant::now() + RENEWAL, RENEWAL);
                loop {
                    ticks.tick().await;
                    // Lost for good when somebody else has it; a store that does not answer may answer the next time.
                    if region.renew(&lease).await == Ok(false) {
                        return;
                    }
                }
            }
        });
        Holding { region, lease, renewal, ended: false }
    }

    pub fn epoch(&self) -> Epoch {
        self.lease.epoch
    }

    /// Stores the response for the region and gives the lock back.
    pub async fn commit(mut self, entry: &Packed) -> Result<Committed, Unavailable> {
        let committed = self.region.commit(&self.lease, entry).await;
        self.ended = committed.is_ok();
        committed
    }

    /// Gives the lock back, with what the other nodes should know.
    pub async fn release(mut self, word: Option<Word>) {
        self.ended = true;
        // Unavailable: the lock ends by itself.
        let _ = self.region.release(&self.lease, word).await;
    }

    /// Shows parts of the response to the nodes that wait for it: see `Region::push`. After an error the same ones are to be shown again,
    /// first of all.
    pub async fn push(&self, from: usize, parts: &Parts) -> Result<Pushed, Unavailable> {
        self.region.push(&self.lease, from, parts).await
    }

    /// The response will not be stored, and goes on.
    pub async fn announce_uncacheable(&self) {
        // Unavailable: others wait for the end in vain, and learn it then.
        let _ = self.region.announce_uncacheable(&self.lease).await;
    }
}

impl<R: Region> Drop for Holding<R> {
    fn drop(&mut self) {
        self.renewal.abort();
        if self.ended {
            return;
        }
        let (region, lease) = (self.region.clone(), self.lease);
        // Outside of a runtime the process is at its end, and so is the lock after LEASE.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = region.release(&lease, None).await;
            });
        }
    }
}
