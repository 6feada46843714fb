//! One run: a region of nodes with its store, its origins, its visitors and its troubles, in virtual time. All that is random comes from
//! one generator, so that a seed tells the whole story.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use crate::cache::purge::{Epoch, Mode, Purge, Scope};
use crate::lock::region::{LEASE, Pushed, Sought};
use crate::node::Node;
use crate::page::{scopes, slot};
use crate::storage::memory::Slot;
use crate::store::{Flaws, Op, Reply, Store};
use crate::watch::{Count, Watch};

/// When runs begin, in unix milliseconds.
pub const START_MS: u64 = 1_700_000_000_000;
/// No visitor is in the house any longer after that: two waits, the longest fetch, standing still.
const END: Duration = Duration::from_secs(60);

/// What a run is like.
#[derive(Debug, Clone)]
pub struct Plan {
    pub nodes: RangeInclusive<usize>,
    pub slots: u64,
    pub length: Duration,
    pub visitors_per_second: f64,
    /// Visitors who leave before they are answered.
    pub leave: f64,
    pub network: Weather,
    pub origin: Origin,
    pub troubles: Troubles,
    /// Clocks of the nodes differ by up to that.
    pub skew_ms: u64,
    pub flaws: Flaws,
    pub collapsing: Collapsing,
    /// The shares of all slots up to each, if they are not asked for alike.
    pub popularity: Option<Arc<Vec<f64>>>,
    /// One origin call per key and validity period is demanded.
    pub strict: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collapsing {
    None,
    Node,
    NodeAndRegion,
}

/// What the network does to operations and messages.
#[derive(Debug, Clone)]
pub struct Weather {
    pub delay_ms: RangeInclusive<u64>,
    /// The chance to be delayed by as much as `late_ms` instead.
    pub late: f64,
    pub late_ms: RangeInclusive<u64>,
    pub lost: f64,
    pub message_lost: f64,
    pub message_delay_ms: RangeInclusive<u64>,
    /// How often a node reads the log of purges.
    pub log_pause_ms: RangeInclusive<u64>,
}

#[derive(Debug, Clone)]
pub struct Origin {
    pub time_ms: RangeInclusive<u64>,
    pub fails: f64,
    pub uncacheable: f64,
    /// Does not answer before the time limit.
    pub hangs: f64,
    pub limit: Duration,
    /// For how long a response of a slot is fresh, and then usable while it is refreshed, in milliseconds.
    pub lifetime: fn(u64) -> (u64, u64),
    /// Responses that are shown to the other nodes while they arrive.
    pub streamed: f64,
}

/// How many of each come in a second.
#[derive(Debug, Clone, Default)]
pub struct Troubles {
    pub crashes: f64,
    pub standstills: f64,
    pub cuts: f64,
    pub restarts: f64,
    pub purges: f64,
}

impl Default for Plan {
    /// Nothing goes wrong.
    fn default() -> Plan {
        Plan {
            nodes: 2..=8,
            slots: 2,
            length: Duration::from_secs(12),
            visitors_per_second: 20.0,
            leave: 0.0,
            network: Weather {
                delay_ms: 0..=4,
                late: 0.0,
                late_ms: 0..=0,
                lost: 0.0,
                message_lost: 0.0,
                message_delay_ms: 0..=10,
                log_pause_ms: 5..=100,
            },
            origin: Origin {
                time_ms: 1..=2_000,
                fails: 0.0,
                uncacheable: 0.0,
                hangs: 0.0,
                limit: Duration::from_secs(10),
                lifetime: |_| (fastrand::u64(500..=4_000), fastrand::u64(0..=3_000)),
                streamed: 0.3,
            },
            troubles: Troubles::default(),
            skew_ms: 0,
            flaws: Flaws::default(),
            collapsing: Collapsing::NodeAndRegion,
            popularity: None,
            strict: false,
        }
    }
}

impl Plan {
    /// What a visitor asks for.
    fn number(&self) -> u64 {
        let Some(popularity) = &self.popularity else { return fastrand::u64(0..self.slots) };
        let share = fastrand::f64();
        popularity.partition_point(|up_to| *up_to < share) as u64
    }
}

impl Weather {
    /// How long it takes one way; nothing when it is lost.
    pub fn way(&self) -> Option<Duration> {
        if chance(self.lost) {
            return None;
        }
        let range = if chance(self.late) { &self.late_ms } else { &self.delay_ms };
        Some(Duration::from_millis(fastrand::u64(range.clone())))
    }
}

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    pub violations: Vec<String>,
    pub count: Count,
    /// How long visitors waited whom somebody else's fetch answered, in milliseconds, sorted.
    pub waits: Vec<u64>,
    /// Of all operations, replies and answers with their times.
    pub trace: u64,
}

pub struct World {
    pub plan: Plan,
    began: Instant,
    state: Mutex<State>,
}

struct State {
    store: Store,
    watch: Watch,
    trace: DefaultHasher,
    /// Who is to be woken by a message, by node.
    subscribers: BTreeMap<(Slot, usize), Vec<oneshot::Sender<()>>>,
    open_visits: u64,
    /// Logs of purges that began, each with a store that lost the one before.
    logs: u64,
}

/// What a node reads of the log of purges.
pub struct Log {
    pub number: u64,
    pub read_at: Epoch,
    pub purges: Vec<Purge>,
}

/// One run.
pub fn run(seed: u64, plan: Plan) -> Outcome {
    fastrand::seed(seed);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("no system is asked");
    let world = runtime.block_on(async {
        let world = Arc::new(World::new(plan));
        play(&world).await;
        world
    });
    // What is still under way ends with the runtime, before the run is judged.
    drop(runtime);
    let mut state = world.state.lock();
    let mut waits = std::mem::take(&mut state.watch.waits);
    waits.sort_unstable();
    Outcome {
        waits,
        violations: state.watch.violations.clone(),
        count: state.watch.count.clone(),
        trace: state.trace.finish(),
    }
}

async fn play(world: &Arc<World>) {
    let plan = &world.plan;
    let nodes: Vec<Mutex<Arc<Node>>> = (0..fastrand::usize(plan.nodes.clone()))
        .map(|number| Mutex::new(Node::start(number, world.clone(), fastrand::u64(0..=plan.skew_ms))))
        .collect();
    let nodes = Arc::new(nodes);
    let troubles = tokio::spawn(trouble(world.clone(), nodes.clone()));
    let mut next = Instant::now();
    let end = next + plan.length;
    loop {
        next += gap(plan.visitors_per_second);
        if next >= end {
            break;
        }
        // Timers are of whole milliseconds: several may come at once.
        if next > Instant::now() {
            sleep_until(next).await;
        }
        let slot = slot(plan.number());
        let node = nodes[fastrand::usize(0..nodes.len())].lock().clone();
        world.watch(|watch, now| watch.comes(&slot, &plan.origin, now));
        node.receive(slot);
    }
    troubles.abort();
    let last = Instant::now() + END;
    while world.open_visits() > 0 && Instant::now() < last {
        sleep(Duration::from_millis(100)).await;
    }
    // Leases that nobody came for are swept, and locks whose holders died end by themselves.
    sleep(Duration::from_secs(20)).await;
    world.closed();
}

async fn trouble(world: Arc<World>, nodes: Arc<Vec<Mutex<Arc<Node>>>>) {
    let rates = &world.plan.troubles;
    let all = [rates.crashes, rates.standstills, rates.cuts, rates.restarts, rates.purges];
    let sum: f64 = all.iter().sum();
    if sum == 0.0 {
        return;
    }
    loop {
        sleep(gap(sum)).await;
        let number = fastrand::usize(0..nodes.len());
        let node = nodes[number].lock().clone();
        let mut dice = fastrand::f64() * sum;
        let which = all.iter().position(|rate| {
            dice -= rate;
            dice < 0.0
        });
        match which {
            Some(0) => {
                node.die();
                let skew_ms = fastrand::u64(0..=world.plan.skew_ms);
                *nodes[number].lock() = Node::start(number, world.clone(), skew_ms);
            }
            Some(1) => node.link.stand_still(Duration::from_millis(fastrand::u64(1..=10_000))),
            Some(2) => node.link.cut(Duration::from_millis(fastrand::u64(1..=8_000))),
            Some(3) => world.restart(),
            _ => {
                let slot = slot(fastrand::u64(0..world.plan.slots));
                let scope = match fastrand::u8(0..5) {
                    0 => Scope::ALL,
                    1 | 2 => scopes(&slot)[0],
                    _ => scopes(&slot)[1],
                };
                let mode = if fastrand::bool() { Mode::Delete } else { Mode::Invalidate };
                tokio::spawn(async move { node.link.purge(vec![scope], mode, node.read()).await });
            }
        }
    }
}

impl World {
    pub fn new(plan: Plan) -> World {
        let (store, watch) = (Store::new(plan.flaws), Watch::new(plan.strict));
        let trace = DefaultHasher::new();
        let state = State { store, watch, trace, subscribers: BTreeMap::new(), open_visits: 0, logs: 0 };
        World { plan, began: Instant::now(), state: Mutex::new(state) }
    }

    pub fn now_ms(&self) -> u64 {
        START_MS + u64::try_from(self.began.elapsed().as_millis()).expect("runs are short")
    }

    /// The operation arrives at the store.
    pub fn apply(self: &Arc<World>, node: usize, op: &Op) -> Reply {
        let now = self.now_ms();
        let mut state = self.state.lock();
        let (reply, message) = state.store.apply(op, now);
        state.watch.applied(node, op, &reply, now);
        note(&mut state.trace, now, node, op, &reply);
        if let Some(slot) = message {
            self.publish(&mut state, &slot);
        }
        reply
    }

    fn publish(self: &Arc<World>, state: &mut State, slot: &Slot) {
        let nodes: Vec<usize> =
            state.subscribers.range((*slot, 0)..=(*slot, usize::MAX)).map(|((_, node), _)| *node).collect();
        for node in nodes {
            if chance(self.plan.network.message_lost) {
                continue;
            }
            let delay = Duration::from_millis(fastrand::u64(self.plan.network.message_delay_ms.clone()));
            let (world, slot) = (self.clone(), *slot);
            tokio::spawn(async move {
                sleep(delay).await;
                let woken = world.state.lock().subscribers.remove(&(slot, node));
                woken.into_iter().flatten().for_each(|subscriber| {
                    let _ = subscriber.send(());
                });
            });
        }
    }

    pub fn subscribe(&self, node: usize, slot: &Slot) -> oneshot::Receiver<()> {
        let (subscriber, message) = oneshot::channel();
        let mut state = self.state.lock();
        let subscribers = state.subscribers.entry((*slot, node)).or_default();
        subscribers.retain(|subscriber| !subscriber.is_closed());
        subscribers.push(subscriber);
        message
    }

    pub fn log(&self, after: Epoch) -> Log {
        let state = self.state.lock();
        // Before all that the store will call a purge of this millisecond.
        let read_at = Epoch(Epoch::new(self.now_ms(), 0).0 - 1);
        Log { number: state.logs, read_at, purges: state.store.log(after) }
    }

    pub fn restart(&self) {
        let mut state = self.state.lock();
        state.store.restart();
        state.logs += 1;
        state.watch.restarted();
    }

    /// Something for the watch to judge.
    pub fn watch<T>(&self, see: impl FnOnce(&mut Watch, u64) -> T) -> T {
        let now = self.now_ms();
        see(&mut self.state.lock().watch, now)
    }

    pub fn visit_begins(&self) {
        let mut state = self.state.lock();
        state.watch.count.visitors += 1;
        state.open_visits += 1;
    }

    pub fn visit_ends(&self, node: usize, answer: u64) {
        let now = self.now_ms();
        let mut state = self.state.lock();
        state.open_visits -= 1;
        (now, node, answer).hash(&mut state.trace);
    }

    fn open_visits(&self) -> u64 {
        self.state.lock().open_visits
    }

    fn closed(&self) {
        let now = self.now_ms();
        let mut state = self.state.lock();
        let (visits, locks) = (state.open_visits, state.store.locks(now));
        let calls = state.watch.open_calls();
        if visits > 0 {
            state.watch.violated(now, format!("{visits} visitors were never answered"));
        }
        if calls == 0 && locks > 0 {
            state.watch.violated(now, format!("{locks} locks are held by nobody, {LEASE:?} after the last one left"));
        }
    }
}

fn note(trace: &mut DefaultHasher, now: u64, node: usize, op: &Op, reply: &Reply) {
    let (kind, slot, token) = match op {
        Op::Seek(ask) => (0, ask.slot, ask.token.0),
        Op::Renew(lease) => (1, lease.slot, lease.token.0),
        Op::Commit(lease, _) => (2, lease.slot, lease.token.0),
        Op::Release(lease, _) => (3, lease.slot, lease.token.0),
        Op::Push(lease, ..) => (4, lease.slot, lease.token.0),
        Op::Announce(lease) => (7, lease.slot, lease.token.0),
        Op::Pull { slot, token, .. } => (5, *slot, token.0),
        Op::Purge { scopes, .. } => (6, scopes[0].0, [0; 16]),
    };
    let told: u64 = match reply {
        Reply::Sought(Sought::Entry(entry)) => 10 + entry.len() as u64,
        Reply::Sought(Sought::Word(_, left)) => 1_000 + left.as_millis() as u64,
        Reply::Sought(Sought::Won { lease, .. }) => lease.fence,
        Reply::Sought(Sought::Held { left, .. }) => 2_000_000 + left.as_millis() as u64,
        Reply::Renewed(done) => u64::from(*done),
        Reply::Pushed(pushed) => u64::from(matches!(pushed, Pushed::There(_))),
        Reply::Announced => 8,
        Reply::Committed(committed) => *committed as u64,
        Reply::Released => 0,
        Reply::Parts(parts) => parts.parts.len() as u64,
        Reply::Purged(epoch) => epoch.0,
    };
    (now, node, kind, slot, token, told).hash(trace);
}

pub fn chance(of: f64) -> bool {
    of > 0.0 && fastrand::f64() < of
}

/// The time between two of what happens so often in a second.
fn gap(per_second: f64) -> Duration {
    Duration::from_secs_f64((-(1.0 - fastrand::f64()).ln() / per_second).min(60.0))
}
