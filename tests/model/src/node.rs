//! What a node does with the region: an L1, one arbiter per key, a leader who asks the origin, and a reader of the log of purges.
//!
//! The collapsing of the node is a stand-in with the rules of `lock::node`, as far as the region can tell: the first who asks starts the
//! arbiter, the others wait at most 3 s each from their own arrival, then ten at most go alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::cache::purge::{Epoch, Judged, Marks, Mode, Purge, Scope};
use crate::lock::region::{
    Ask, Collapsed, Following, Holding, Judgement, Parts, PartsEnd, Pushed, Token, Word, collapse,
};
use crate::network::{Link, Network, OPERATION};
use crate::page::{Page, number, scopes};
use crate::storage::memory::Slot;
use crate::world::{Collapsing, World, chance};

/// How long one waits for others.
pub const WAIT: Duration = Duration::from_secs(3);
const ALONE_MAX: usize = 10;
/// A failure that was shared answers for the origin that long, and a failed refresh is not tried again before.
const FAILURE_HOLD: Duration = Duration::from_secs(1);

/// One life of a node.
pub struct Node {
    pub number: usize,
    pub link: Arc<Link>,
    region: Arc<Network>,
    world: Arc<World>,
    lives: watch::Sender<bool>,
    marks: Marks,
    /// Which log of purges was read: a store that lost everything begins a new one.
    log: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    shelf: BTreeMap<Slot, Page>,
    turns: BTreeMap<Slot, Turn>,
    uncacheable: BTreeMap<Slot, Instant>,
    flights: u64,
}

enum Turn {
    Flying(Flying),
    Ready { since: Instant, lease: Option<Holding<Network>> },
    Failed { until: Instant },
    Resting { until: Instant },
}

#[derive(Default)]
struct Flying {
    flight: u64,
    waiters: Vec<oneshot::Sender<()>>,
    followers: usize,
    alone: usize,
}

enum Look {
    Fresh(Page),
    Stale(Page),
    /// All that is there was created then.
    Nothing {
        have_ms: u64,
    },
}

enum Told {
    Arbitrate {
        flight: u64,
        word: oneshot::Receiver<()>,
    },
    Lead {
        flight: u64,
        lease: Option<Holding<Network>>,
    },
    Wait {
        word: oneshot::Receiver<()>,
    },
    Alone,
    /// Nobody needs to wait for anybody.
    Uncollapsed,
    Failed,
    GiveUp,
}

/// What a visitor gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Page(u64),
    Failed,
    Uncacheable,
    GivenUp,
}

/// What a fetch brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fetched {
    Page(Page),
    Failed,
    Uncacheable,
}

/// Whose fetch it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Visitors,
    /// The refresh of what is served stale meanwhile.
    Refresh,
}

impl Node {
    pub fn start(number: usize, world: Arc<World>, skew_ms: u64) -> Arc<Node> {
        let link = Arc::new(Link::new(world.clone(), number, skew_ms));
        // It has nothing yet that a purge could concern, but the region has.
        let (marks, log) = (Marks::default(), world.log(Epoch::default()));
        log.purges.iter().for_each(|purge| {
            marks.apply(purge);
            marks.advance(purge.epoch);
        });
        let region = Arc::new(Network(link.clone()));
        let (lives, _) = watch::channel(true);
        let node = Arc::new(Node {
            number,
            link,
            region,
            world,
            lives,
            marks,
            log: AtomicU64::new(log.number),
            state: Mutex::default(),
        });
        node.spawn(node.clone().keep_house());
        node
    }

    /// Everything ends where it is. What is dropped then has no more effect on the region: the link died first.
    pub fn die(&self) {
        self.link.die();
        self.lives.send_replace(false);
        let turns = std::mem::take(&mut self.state.lock().turns);
        drop(turns);
    }

    pub fn read(&self) -> Epoch {
        self.marks.position()
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let (mut lives, world) = (self.lives.subscribe(), self.world.clone());
        tokio::spawn(async move {
            let _alarm = Alarm(world);
            tokio::select! {
                biased;
                _ = lives.wait_for(|lives| !lives) => {}
                () = task => {}
            }
        });
    }

    /// Reads the log of purges and sweeps.
    async fn keep_house(self: Arc<Self>) {
        loop {
            sleep(Duration::from_millis(fastrand::u64(self.world.plan.network.log_pause_ms.clone()))).await;
            self.sweep();
            if self.world.plan.troubles.purges == 0.0 {
                continue;
            }
            let Some(log) = self.link.log(self.read()).await else { continue };
            if self.log.swap(log.number, Ordering::Relaxed) != log.number {
                // What was purged in the last moments of the log that is gone is known to nobody.
                let everything = vec![Scope::ALL];
                self.marks.apply(&Purge { epoch: log.read_at, scopes: everything, mode: Mode::Invalidate });
                self.marks.advance(log.read_at);
            }
            for purge in log.purges {
                self.marks.apply(&purge);
                self.marks.advance(purge.epoch);
            }
        }
    }

    fn sweep(&self) {
        let now = Instant::now();
        let over = |turn: &Turn| match turn {
            Turn::Flying(_) => false,
            Turn::Ready { since, .. } => *since + WAIT <= now,
            Turn::Failed { until } | Turn::Resting { until } => *until <= now,
        };
        self.state.lock().turns.retain(|_, turn| !over(turn));
    }

    /// A visitor comes.
    pub fn receive(self: &Arc<Self>, slot: Slot) {
        let visit = Visit::new(self.clone());
        let (node, leaves) = (self.clone(), chance(self.world.plan.leave).then(|| fastrand::u64(1..=5_000)));
        self.spawn(async move {
            let leaves = async {
                match leaves {
                    Some(after) => sleep(Duration::from_millis(after)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = leaves => drop(visit),
                answer = node.answer(slot) => visit.answered(answer),
            }
        });
    }

    async fn answer(self: &Arc<Self>, slot: Slot) -> Answer {
        self.link.moves().await;
        let (since, stood_still) = (Instant::now(), self.link.stood_still());
        let asked_ms = self.link.now_ms();
        // One who found no place among those who go alone waits a second time.
        let (mut bound, mut collapsed) = (WAIT, false);
        let waited = |bound: Duration| {
            // Times of standing still are not the protocol's; an operation that began in time may take its time.
            let waited = since.elapsed().saturating_sub(self.link.stood_still() - stood_still);
            self.world.watch(|watch, now| watch.waited(self.number, waited, bound + 2 * OPERATION, now));
        };
        loop {
            self.link.moves().await;
            let have_ms = match self.look(&slot) {
                Look::Fresh(page) => {
                    waited(bound);
                    if collapsed && page.created_ms >= asked_ms {
                        self.world.watch(|watch, _| watch.collapsed(since.elapsed()));
                    }
                    let read = self.read();
                    self.world.watch(|watch, now| watch.served_fresh(self.number, &page, read, now));
                    return Answer::Page(page.rendering);
                }
                Look::Stale(page) => {
                    waited(bound);
                    self.refresh(slot, page.created_ms);
                    return Answer::Page(page.rendering);
                }
                Look::Nothing { have_ms } => have_ms,
            };
            let word = match self.ask(&slot, since) {
                Told::Arbitrate { flight, word } => {
                    self.spawn(self.clone().arbitrate(slot, flight, have_ms, since + WAIT, For::Visitors));
                    word
                }
                Told::Wait { word } => word,
                Told::Lead { flight, lease } => {
                    waited(bound);
                    return self.lead(slot, flight, lease, For::Visitors).await.into();
                }
                Told::Alone => {
                    waited(bound);
                    return self.go_alone(slot).await.into();
                }
                Told::Uncollapsed => {
                    waited(bound);
                    return self.fetch(slot, None).await.into();
                }
                Told::Failed => {
                    waited(bound);
                    return Answer::Failed;
                }
                Told::GiveUp => {
                    waited(bound);
                    self.world.watch(|watch, _| watch.count.given_up += 1);
                    return Answer::GivenUp;
                }
            };
            collapsed = true;
            if since.elapsed() >= WAIT {
                bound = WAIT * 2;
            }
            let _ = timeout_at(since + bound, word).await;
        }
    }

    fn look(&self, slot: &Slot) -> Look {
        let now = self.link.now_ms();
        let state = self.state.lock();
        let Some(page) = state.shelf.get(slot).copied() else { return Look::Nothing { have_ms: 0 } };
        match self.marks.judge(page.began, &scopes(slot)) {
            Judged::Valid if page.fresh_until_ms > now => Look::Fresh(page),
            Judged::Valid | Judged::Stale(_) if page.stale_until_ms > now => Look::Stale(page),
            _ => Look::Nothing { have_ms: page.created_ms },
        }
    }

    fn judge(&self, entry: &[u8], who: For) -> Judgement {
        let page = Page::read(entry);
        match self.marks.judge(page.began, &scopes(&page.slot)) {
            Judged::Valid => Judgement::Take,
            Judged::Stale(_) if who == For::Visitors && page.stale_until_ms > self.link.now_ms() => Judgement::Take,
            Judged::Stale(_) | Judged::Deleted => Judgement::Younger { than_ms: page.created_ms },
        }
    }

    fn ask(&self, slot: &Slot, since: Instant) -> Told {
        let now = Instant::now();
        if self.world.plan.collapsing == Collapsing::None {
            return Told::Alone;
        }
        let mut state = self.state.lock();
        if state.uncacheable.get(slot).is_some_and(|until| now < *until) {
            return Told::Uncollapsed;
        }
        match state.turns.get_mut(slot) {
            Some(Turn::Flying(flying)) if now < since + WAIT => {
                flying.followers += 1;
                Told::Wait { word: flying.word() }
            }
            Some(Turn::Flying(flying)) if flying.alone < ALONE_MAX => {
                flying.alone += 1;
                Told::Alone
            }
            Some(Turn::Flying(_)) if now >= since + WAIT * 2 => Told::GiveUp,
            Some(Turn::Flying(flying)) => Told::Wait { word: flying.word() },
            Some(Turn::Failed { until }) if now < *until => Told::Failed,
            Some(Turn::Ready { lease, .. }) => {
                let lease = lease.take();
                Told::Lead { flight: state.fly(slot), lease }
            }
            Some(Turn::Failed { .. } | Turn::Resting { .. }) | None => {
                let flight = state.fly(slot);
                let Some(Turn::Flying(flying)) = state.turns.get_mut(slot) else { unreachable!("it just took off") };
                Told::Arbitrate { flight, word: flying.word() }
            }
        }
    }

    fn refresh(self: &Arc<Self>, slot: Slot, have_ms: u64) {
        if self.world.plan.collapsing == Collapsing::None {
            let node = self.clone();
            return self.spawn(async move {
                node.go_alone(slot).await;
            });
        }
        let mut state = self.state.lock();
        match state.turns.get(&slot) {
            Some(Turn::Flying(_) | Turn::Ready { .. }) => return,
            Some(Turn::Failed { until } | Turn::Resting { until }) if Instant::now() < *until => return,
            _ => {}
        }
        let flight = state.fly(&slot);
        drop(state);
        self.spawn(self.clone().arbitrate(slot, flight, have_ms, Instant::now() + WAIT, For::Refresh));
    }

    /// Looks into the region, once for all who wait.
    async fn arbitrate(self: Arc<Self>, slot: Slot, flight: u64, have_ms: u64, deadline: Instant, who: For) {
        let ask = Ask {
            slot,
            token: Token::random(),
            now_ms: self.link.now_ms(),
            have_ms,
            stale_will_do: who == For::Visitors,
        };
        match collapse(&self.region, ask, deadline, |entry| self.judge(entry, who)).await {
            Collapsed::Found { entry, .. } => {
                self.put(Page::read(&entry));
                self.land(&slot, flight, Landing::Over);
            }
            Collapsed::Arriving(token) => match self.read_along(&slot, &token, who).await {
                Some(page) => {
                    self.world.watch(|watch, _| watch.count.served_along += 1);
                    self.put(page);
                    self.land(&slot, flight, Landing::Over);
                }
                None => self.ready(slot, flight, None, who).await,
            },
            Collapsed::Word(Word::Uncacheable, holds) => {
                self.state.lock().uncacheable.insert(slot, Instant::now() + holds);
                self.land(&slot, flight, Landing::Over);
            }
            Collapsed::Word(Word::Failed(_), holds) => {
                self.land(&slot, flight, Landing::Failed { until: Instant::now() + holds });
            }
            Collapsed::Lead { lease, .. } => self.ready(slot, flight, lease, who).await,
        }
    }

    /// Somebody of this node has to ask the origin.
    async fn ready(self: &Arc<Self>, slot: Slot, flight: u64, lease: Option<Holding<Network>>, who: For) {
        if who == For::Refresh {
            self.lead(slot, flight, lease, who).await;
            return;
        }
        let mut state = self.state.lock();
        if state.is_flying(&slot, flight) {
            // The waiters wake up by being dropped.
            state.turns.insert(slot, Turn::Ready { since: Instant::now(), lease });
        }
    }

    /// Reads a response that another node is fetching, up to its end, if it is of use.
    async fn read_along(&self, slot: &Slot, token: &Token, who: For) -> Option<Page> {
        let mut following = Following::new(self.region.clone(), *slot, *token);
        let page = Page::read(&following.next().await.ok()??);
        if self.judge(&page.head(), who) != Judgement::Take {
            return None;
        }
        while following.next().await.ok()?.is_some() {}
        Some(page)
    }

    /// Asks the origin for all others.
    async fn lead(self: &Arc<Self>, slot: Slot, flight: u64, lease: Option<Holding<Network>>, who: For) -> Fetched {
        let mut leading = Leading { node: self.clone(), slot, flight, who, fetched: None };
        let fetched = self.fetch(slot, lease.as_ref()).await;
        leading.fetched = Some(fetched);
        drop(leading);
        let Some(lease) = lease else { return fetched };
        // Nobody waits for the region to be told.
        self.spawn(async move {
            match fetched {
                Fetched::Page(page) => {
                    let _ = lease.commit(&page.packed()).await;
                }
                Fetched::Failed => lease.release(Some(Word::Failed("502".into()))).await,
                Fetched::Uncacheable => lease.release(Some(Word::Uncacheable)).await,
            }
        });
        fetched
    }

    async fn go_alone(self: &Arc<Self>, slot: Slot) -> Fetched {
        let fetched = self.fetch(slot, None).await;
        let mut state = self.state.lock();
        if let Fetched::Page(page) = fetched {
            state.shelf.insert(slot, page);
        }
        if let Some(Turn::Flying(flying)) = state.turns.get_mut(&slot) {
            flying.alone = flying.alone.saturating_sub(1);
            if matches!(fetched, Fetched::Page(_)) {
                flying.waiters.clear();
            }
        }
        fetched
    }

    async fn fetch(&self, slot: Slot, lease: Option<&Holding<Network>>) -> Fetched {
        let origin = &self.world.plan.origin;
        let began = lease.map_or(Epoch::default(), Holding::epoch).max(self.read());
        let call = Call::begin(self, slot);
        let hangs = chance(origin.hangs);
        let time = Duration::from_millis(fastrand::u64(origin.time_ms.clone()));
        sleep(if hangs { origin.limit } else { time / 2 }).await;
        self.link.moves().await;
        if hangs || chance(origin.fails) {
            return Fetched::Failed;
        }
        if chance(origin.uncacheable) {
            sleep(time / 2).await;
            return Fetched::Uncacheable;
        }
        let created_ms = self.link.now_ms();
        let (fresh_ms, stale_ms) = (origin.lifetime)(number(&slot));
        let fresh_until_ms = created_ms + fresh_ms;
        let stale_until_ms = fresh_until_ms + stale_ms;
        let page = Page { slot, created_ms, fresh_until_ms, stale_until_ms, began, rendering: call.rendering };
        let mut shown = lease.filter(|_| chance(origin.streamed));
        let (mut sent, mut unsent) = (0, vec![page.head()]);
        if let Some(lease) = shown {
            match lease.push(0, &Parts { parts: unsent.clone(), end: PartsEnd::Open }).await {
                Ok(Pushed::There(there)) => {
                    sent = there;
                    unsent.clear();
                }
                Ok(_) => shown = None,
                // It goes with what comes next.
                Err(_) => {}
            }
        }
        sleep(time / 2).await;
        self.link.moves().await;
        if let Some(lease) = shown {
            unsent.push("body".into());
            let last = Parts { parts: unsent, end: PartsEnd::Whole };
            for _ in 0..20 {
                if lease.push(sent, &last).await.is_ok() {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Fetched::Page(page)
    }

    fn put(&self, page: Page) {
        self.state.lock().shelf.insert(page.slot, page);
    }

    fn land(&self, slot: &Slot, flight: u64, landing: Landing) {
        let now = Instant::now();
        let mut state = self.state.lock();
        if !state.is_flying(slot, flight) {
            return;
        }
        let Some(Turn::Flying(flying)) = state.turns.remove(slot) else { return };
        let turn = match landing {
            Landing::Over => None,
            Landing::Failed { until } => Some(Turn::Failed { until }),
            Landing::FailedHere if flying.followers > 0 => Some(Turn::Failed { until: now + FAILURE_HOLD }),
            Landing::FailedHere => None,
            Landing::NotRefreshed => Some(Turn::Resting { until: now + FAILURE_HOLD }),
        };
        if let Some(turn) = turn {
            state.turns.insert(*slot, turn);
        }
    }
}

enum Landing {
    Over,
    /// The region says so.
    Failed {
        until: Instant,
    },
    FailedHere,
    NotRefreshed,
}

impl State {
    fn fly(&mut self, slot: &Slot) -> u64 {
        self.flights += 1;
        let flight = self.flights;
        self.turns.insert(*slot, Turn::Flying(Flying { flight, ..Flying::default() }));
        flight
    }

    fn is_flying(&self, slot: &Slot, flight: u64) -> bool {
        matches!(self.turns.get(slot), Some(Turn::Flying(flying)) if flying.flight == flight)
    }
}

impl Flying {
    /// What ends when there is something new. The sender is dropped then.
    fn word(&mut self) -> oneshot::Receiver<()> {
        let (waiter, word) = oneshot::channel();
        self.waiters.push(waiter);
        word
    }
}

impl From<Fetched> for Answer {
    fn from(fetched: Fetched) -> Answer {
        match fetched {
            Fetched::Page(page) => Answer::Page(page.rendering),
            Fetched::Failed => Answer::Failed,
            Fetched::Uncacheable => Answer::Uncacheable,
        }
    }
}

/// The runtime would keep quiet about a task that panics.
struct Alarm(Arc<World>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.watch(|watch, now| watch.violated(now, "a task panicked".into()));
        }
    }
}

/// The leader may leave in the middle.
struct Leading {
    node: Arc<Node>,
    slot: Slot,
    flight: u64,
    who: For,
    fetched: Option<Fetched>,
}

impl Drop for Leading {
    fn drop(&mut self) {
        let landing = match self.fetched {
            Some(Fetched::Page(page)) => {
                self.node.put(page);
                Landing::Over
            }
            Some(Fetched::Uncacheable) => {
                self.node.state.lock().uncacheable.insert(self.slot, Instant::now() + Duration::from_secs(120));
                Landing::Over
            }
            Some(Fetched::Failed) if self.who == For::Refresh => Landing::NotRefreshed,
            Some(Fetched::Failed) => Landing::FailedHere,
            None => Landing::Over,
        };
        self.node.land(&self.slot, self.flight, landing);
    }
}

/// One call of the origin.
struct Call {
    world: Arc<World>,
    slot: Slot,
    rendering: u64,
}

impl Call {
    fn begin(node: &Node, slot: Slot) -> Call {
        let rendering = node.world.watch(|watch, now| watch.called(node.number, &slot, now));
        Call { world: node.world.clone(), slot, rendering }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.world.watch(|watch, _| watch.returned(&self.slot));
    }
}

/// One visitor, until answered, gone, or torn away by the death of the node.
struct Visit {
    node: Arc<Node>,
    answer: Option<Answer>,
}

impl Visit {
    fn new(node: Arc<Node>) -> Visit {
        node.world.visit_begins();
        Visit { node, answer: None }
    }

    fn answered(mut self, answer: Answer) {
        self.answer = Some(answer);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let answer = match self.answer {
            None => 0,
            Some(Answer::Failed) => 1,
            Some(Answer::Uncacheable) => 2,
            Some(Answer::GivenUp) => 3,
            Some(Answer::Page(rendering)) => 10 + rendering,
        };
        self.node.world.visit_ends(self.node.number, answer);
    }
}
