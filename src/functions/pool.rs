//! Which instance of which function does what: a state machine. Events in, actions out, the clock given; it touches nothing.
//!
//! ```text
//!                    ready                    lend                    done
//!   start ─▶ Starting ────▶ (idle or lent) ──────────▶ Busy ─────────────────────────────────▶ Idle or lent to the next
//!               │ failed, too slow                       │ crashed, out of time                  │ idle too long,
//!               ▼                                        ▼                                       ▼ or its place is needed
//!             gone ◀──────────────────────────────── Stopping ◀──────────────────────────────────┘
//! ```
//! (Frozen and thawed will be two more states between Busy and Idle.)
//!
//! - One invocation at a time in an instance; one that comes meanwhile gets another instance (seed "Functions").
//! - The instance used last is lent first, so that the others can grow old and stop: in the end none is left.
//! - Instances of all functions together are bounded. Where the bound is reached, the instance of another function that has been idle
//!   longest gives up its place; where none is idle, the invocation waits, in a bounded queue.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Which function: the deployment's id and the function's path.
pub type FunctionKey = std::sync::Arc<str>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(pub u64);

/// One invocation that wants an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Instances of all functions together.
    pub instances_max: usize,
    /// Instances that start at the same time. A start takes a core's time; more of them at once only slow each other and those that work.
    pub starting_max: usize,
    /// Invocations that wait for an instance, per function.
    pub queue_max: usize,
    /// How long an idle instance is kept.
    pub idle: Duration,
    /// How long a start may take.
    pub start: Duration,
}

#[derive(Debug)]
pub enum Event {
    Ask {
        ticket: Ticket,
        function: FunctionKey,
    },
    /// Whoever asked does not want it any more.
    Forget {
        ticket: Ticket,
        function: FunctionKey,
    },
    Ready(InstanceId),
    StartFailed(InstanceId),
    /// The function says that it has finished, with everything that it wanted to do after the answer. Whether the client has taken all
    /// of the answer does not matter: each invocation has a connection of its own, and a client that stands still holds no instance.
    Done(InstanceId),
    /// It is not to be used again.
    Condemn(InstanceId),
    Exited(InstanceId),
    /// The deployment is gone.
    Retire {
        deployment: String,
    },
    /// Time has passed.
    Tick,
    /// It is all over: nothing is started and nothing is lent any more.
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The queue is full.
    Throttled,
    /// The instance that it waited for did not start.
    StartFailed,
    /// The deployment is gone.
    Retired,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Start { instance: InstanceId, function: FunctionKey },
    Lend { ticket: Ticket, instance: InstanceId },
    Stop(InstanceId),
    Refuse { ticket: Ticket, refusal: Refusal },
}

#[derive(Debug)]
pub struct Pool {
    bounds: Bounds,
    instances: BTreeMap<InstanceId, Instance>,
    functions: HashMap<FunctionKey, Function>,
    next: u64,
    closed: bool,
}

#[derive(Debug)]
struct Instance {
    function: FunctionKey,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting { since: Instant },
    Idle { since: Instant },
    Busy,
    Stopping,
}

#[derive(Debug, Default)]
struct Function {
    /// Last used last.
    idle: Vec<InstanceId>,
    waiting: VecDeque<Ticket>,
    starting: usize,
    alive: usize,
}

/// How many instances are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    pub starting: usize,
    pub idle: usize,
    pub busy: usize,
    pub waiting: usize,
}

impl Pool {
    pub fn new(bounds: Bounds) -> Pool {
        Pool { bounds, instances: BTreeMap::new(), functions: HashMap::new(), next: 0, closed: false }
    }

    /// New bounds hold from the next event on; instances beyond them are not stopped for it.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    pub fn census(&self) -> Census {
        let mut census = Census {
            waiting: self.functions.values().map(|function| function.waiting.len()).sum(),
            ..Census::default()
        };
        for instance in self.instances.values() {
            match instance.state {
                State::Starting { .. } => census.starting += 1,
                State::Idle { .. } => census.idle += 1,
                State::Busy => census.busy += 1,
                State::Stopping => {}
            }
        }
        census
    }

    /// Whether an instance is to live.
    pub fn is_wanted(&self, id: InstanceId) -> bool {
        self.instances.get(&id).is_some_and(|instance| instance.state != State::Stopping)
    }

    pub fn apply(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Ask { ticket, function } => self.ask(ticket, function, now, &mut actions),
            Event::Forget { ticket, function } => {
                if let Some(function) = self.functions.get_mut(&function) {
                    function.waiting.retain(|waiting| *waiting != ticket);
                }
            }
            Event::Ready(id) => {
                if self.left_starting(id) {
                    self.free(id, now, &mut actions);
                    self.make_room(now, &mut actions);
                }
            }
            Event::StartFailed(id) => {
                if self.left_starting(id) {
                    self.start_failed(id, now, &mut actions);
                }
            }
            Event::Done(id) => {
                if self.instances.get(&id).is_some_and(|instance| instance.state == State::Busy) {
                    self.free(id, now, &mut actions);
                }
            }
            Event::Condemn(id) => self.stop(id, &mut actions),
            Event::Exited(id) => self.exited(id, now, &mut actions),
            Event::Retire { deployment } => self.retire(&deployment, &mut actions),
            Event::Tick => self.tick(now, &mut actions),
            Event::Close => self.close(&mut actions),
        }
        actions
    }

    fn ask(&mut self, ticket: Ticket, key: FunctionKey, now: Instant, actions: &mut Vec<Action>) {
        if self.closed {
            actions.push(Action::Refuse { ticket, refusal: Refusal::Retired });
            return;
        }
        let function = self.functions.entry(key.clone()).or_default();
        if let Some(id) = function.idle.pop() {
            self.lend(ticket, id, actions);
            return;
        }
        function.waiting.push_back(ticket);
        self.start_for(&key, now, actions);
        // An invocation that an instance is starting for does not count as queued.
        let function = self.functions.entry(key).or_default();
        if function.waiting.len() - function.starting.min(function.waiting.len()) > self.bounds.queue_max {
            function.waiting.pop_back();
            actions.push(Action::Refuse { ticket, refusal: Refusal::Throttled });
        }
    }

    /// Starts instances for those who wait and for whom none is starting yet.
    fn start_for(&mut self, key: &FunctionKey, now: Instant, actions: &mut Vec<Action>) {
        while self.functions.get(key).is_some_and(|function| function.waiting.len() > function.starting) {
            if self.functions.values().map(|function| function.starting).sum::<usize>() >= self.bounds.starting_max {
                return;
            }
            if self.instances.len() >= self.bounds.instances_max {
                // A place that is being left counts as taken until it is: who waits is started for when it has been.
                let leaving = self.instances.values().filter(|instance| instance.state == State::Stopping).count();
                let unserved: usize = self
                    .functions
                    .values()
                    .map(|function| function.waiting.len().saturating_sub(function.starting))
                    .sum();
                if leaving < unserved
                    && let Some(oldest) = self.oldest_idle()
                {
                    self.stop(oldest, actions);
                }
                return;
            }
            self.next += 1;
            let id = InstanceId(self.next);
            self.instances.insert(id, Instance { function: key.clone(), state: State::Starting { since: now } });
            let function = self.functions.entry(key.clone()).or_default();
            function.starting += 1;
            function.alive += 1;
            actions.push(Action::Start { instance: id, function: key.clone() });
        }
    }

    fn oldest_idle(&self) -> Option<InstanceId> {
        self.instances
            .iter()
            .filter_map(|(id, instance)| match instance.state {
                State::Idle { since } => Some((since, *id)),
                _ => None,
            })
            .min()
            .map(|(_, id)| id)
    }

    fn lend(&mut self, ticket: Ticket, id: InstanceId, actions: &mut Vec<Action>) {
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.state = State::Busy;
            actions.push(Action::Lend { ticket, instance: id });
        }
    }

    /// An instance has nothing to do: the next who waits gets it, or it rests.
    fn free(&mut self, id: InstanceId, now: Instant, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let Some(function) = self.functions.get_mut(&instance.function) else { return };
        if let Some(ticket) = function.waiting.pop_front() {
            self.lend(ticket, id, actions);
        } else {
            instance.state = State::Idle { since: now };
            function.idle.push(id);
            self.make_room(now, actions);
        }
    }

    /// A place or a turn to start has become free: for whom it was wanting, it is used.
    fn make_room(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let short: Vec<FunctionKey> = self
            .functions
            .iter()
            .filter(|(_, function)| function.waiting.len() > function.starting)
            .map(|(key, _)| key.clone())
            .collect();
        for key in short {
            self.start_for(&key, now, actions);
        }
    }

    fn left_starting(&mut self, id: InstanceId) -> bool {
        let Some(instance) = self.instances.get(&id) else { return false };
        if !matches!(instance.state, State::Starting { .. }) {
            return false;
        }
        if let Some(function) = self.functions.get_mut(&instance.function) {
            function.starting = function.starting.saturating_sub(1);
        }
        true
    }

    /// One that waited fails with it; all do, when there is no other instance that could serve them: they would only fail in turn.
    fn start_failed(&mut self, id: InstanceId, now: Instant, actions: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.state = State::Stopping;
        let key = instance.function.clone();
        actions.push(Action::Stop(id));
        let Some(function) = self.functions.get_mut(&key) else { return };
        let failing = if function.alive > 1 { 1 } else { function.waiting.len() };
        for ticket in function.waiting.drain(..failing.min(function.waiting.len())) {
            actions.push(Action::Refuse { ticket, refusal: Refusal::StartFailed });
        }
        self.make_room(now, actions);
    }

    fn stop(&mut self, id: InstanceId, actions: &mut Vec<Action>) {
        self.left_starting(id);
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if instance.state == State::Stopping {
            return;
        }
        instance.state = State::Stopping;
        if let Some(function) = self.functions.get_mut(&instance.function) {
            function.idle.retain(|idle| *idle != id);
        }
        actions.push(Action::Stop(id));
    }

    fn exited(&mut self, id: InstanceId, now: Instant, actions: &mut Vec<Action>) {
        if self.left_starting(id) {
            self.start_failed(id, now, actions);
        }
        let Some(instance) = self.instances.remove(&id) else { return };
        if let Some(function) = self.functions.get_mut(&instance.function) {
            function.idle.retain(|idle| *idle != id);
            function.alive = function.alive.saturating_sub(1);
            if function.alive == 0 && function.waiting.is_empty() {
                self.functions.remove(&instance.function);
            }
        }
        self.make_room(now, actions);
    }

    fn retire(&mut self, deployment: &str, actions: &mut Vec<Action>) {
        let of_it = |key: &FunctionKey| key.split_once(' ').is_some_and(|(id, _)| id == deployment);
        let ids: Vec<InstanceId> = self
            .instances
            .iter()
            .filter(|(_, instance)| of_it(&instance.function) && !matches!(instance.state, State::Busy))
            .map(|(id, _)| *id)
            .collect();
        for (_, function) in self.functions.iter_mut().filter(|(key, _)| of_it(key)) {
            for ticket in function.waiting.drain(..) {
                actions.push(Action::Refuse { ticket, refusal: Refusal::Retired });
            }
        }
        for id in ids {
            self.stop(id, actions);
        }
    }

    fn close(&mut self, actions: &mut Vec<Action>) {
        self.closed = true;
        for function in self.functions.values_mut() {
            for ticket in function.waiting.drain(..) {
                actions.push(Action::Refuse { ticket, refusal: Refusal::Retired });
            }
        }
        let ids: Vec<InstanceId> = self.instances.keys().copied().collect();
        for id in ids {
            self.stop(id, actions);
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let slow: Vec<InstanceId> = self.older(now, |state| match state {
            State::Starting { since } => Some((since, self.bounds.start)),
            _ => None,
        });
        let idle: Vec<InstanceId> = self.older(now, |state| match state {
            State::Idle { since } => Some((since, self.bounds.idle)),
            _ => None,
        });
        for id in slow {
            if self.left_starting(id) {
                self.start_failed(id, now, actions);
            }
        }
        for id in idle {
            self.stop(id, actions);
        }
    }

    fn older(&self, now: Instant, limit: impl Fn(State) -> Option<(Instant, Duration)>) -> Vec<InstanceId> {
        self.instances
            .iter()
            .filter(|(_, instance)| {
                limit(instance.state).is_some_and(|(since, most)| now.saturating_duration_since(since) >= most)
            })
            .map(|(id, _)| *id)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        instances_max: 3,
        starting_max: 3,
        queue_max: 2,
        idle: Duration::from_secs(60),
        start: Duration::from_secs(10),
    };

    /// Plays events and compares the actions, written as words: `start 1 a`, `lend 7 1`, `stop 1`, `refuse 7 Throttled`.
    struct Script {
        pool: Pool,
        start: Instant,
    }

    impl Script {
        fn new(bounds: Bounds) -> Script {
            Script { pool: Pool::new(bounds), start: Instant::now() }
        }

        fn at(&mut self, s: u64, event: Event, expected: &[&str]) {
            let told = format!("{event:?}");
            let mut actions: Vec<String> = self
                .pool
                .apply(event, self.start + Duration::from_secs(s))
                .iter()
                .map(|action| match action {
                    Action::Start { instance, function } => format!("start {} {function}", instance.0),
                    Action::Lend { ticket, instance } => format!("lend {} {}", ticket.0, instance.0),
                    Action::Stop(instance) => format!("stop {}", instance.0),
                    Action::Refuse { ticket, refusal } => format!("refuse {} {refusal:?}", ticket.0),
                })
                .collect();
            actions.sort();
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            assert_eq!(actions, expected, "at {s} s after {told}");
        }
    }

    fn ask(ticket: u64, function: &str) -> Event {
        Event::Ask { ticket: Ticket(ticket), function: function.into() }
    }

    fn id(n: u64) -> InstanceId {
        InstanceId(n)
    }

    #[test]
    fn one_at_a_time_then_reuse_then_none_is_left() {
        let mut s = Script::new(BOUNDS);
        s.at(0, ask(1, "a"), &["start 1 a"]);
        s.at(0, Event::Ready(id(1)), &["lend 1 1"]);
        s.at(0, ask(2, "a"), &["start 2 a"]);
        s.at(1, Event::Done(id(1)), &["lend 2 1"]);
        s.at(1, Event::Ready(id(2)), &[]);
        s.at(1, ask(3, "a"), &["lend 3 2"]);
        s.at(3, Event::Done(id(1)), &[]);
        s.at(4, Event::Done(id(2)), &[]);
        s.at(5, ask(4, "a"), &["lend 4 2"]);
        s.at(5, Event::Done(id(2)), &[]);
        s.at(62, Event::Tick, &[]);
        s.at(63, Event::Tick, &["stop 1"]);
        s.at(65, Event::Tick, &["stop 2"]);
        s.at(65, Event::Exited(id(1)), &[]);
        s.at(65, Event::Exited(id(2)), &[]);
        assert_eq!(s.pool.census(), Census::default());
        assert!(s.pool.functions.is_empty());
    }

    #[test]
    fn beyond_the_bounds_invocations_wait_and_then_are_refused() {
        let mut s = Script::new(BOUNDS);
        for n in 1..=3 {
            let start = format!("start {n} a");
            s.at(0, ask(n, "a"), &[start.as_str()]);
        }
        s.at(0, ask(4, "a"), &[]);
        s.at(0, ask(5, "a"), &[]);
        s.at(0, ask(6, "a"), &["refuse 6 Throttled"]);
        s.at(0, Event::Forget { ticket: Ticket(4), function: "a".into() }, &[]);
        for n in 1..=3 {
            let lend = format!("lend {n} {n}");
            s.at(1, Event::Ready(id(n)), &[lend.as_str()]);
        }
        s.at(2, Event::Done(id(1)), &["lend 5 1"]);
    }

    #[test]
    fn few_start_at_once_and_those_that_work_serve_the_others() {
        let mut s = Script::new(Bounds { starting_max: 1, ..BOUNDS });
        s.at(0, ask(1, "a"), &["start 1 a"]);
        s.at(0, ask(2, "a"), &[]);
        s.at(0, ask(3, "b"), &[]);
        s.at(0, Event::Forget { ticket: Ticket(3), function: "b".into() }, &[]);
        s.at(1, Event::Ready(id(1)), &["lend 1 1", "start 2 a"]);
        s.at(1, Event::Done(id(1)), &["lend 2 1"]);
        s.at(1, ask(4, "b"), &[]);
        s.at(2, Event::Ready(id(2)), &["start 3 b"]);
        s.at(2, ask(5, "a"), &["lend 5 2"]);
    }

    #[test]
    fn an_idle_instance_of_another_function_gives_up_its_place() {
        let mut s = Script::new(Bounds { instances_max: 1, ..BOUNDS });
        s.at(0, ask(1, "a"), &["start 1 a"]);
        s.at(0, Event::Ready(id(1)), &["lend 1 1"]);
        s.at(0, ask(2, "b"), &[]);
        s.at(1, Event::Done(id(1)), &["stop 1"]);
        s.at(1, Event::Exited(id(1)), &["start 2 b"]);
        s.at(1, Event::Ready(id(2)), &["lend 2 2"]);
        s.at(1, Event::Done(id(2)), &[]);
        s.at(2, ask(3, "a"), &["stop 2"]);
        s.at(2, Event::Exited(id(2)), &["start 3 a"]);
    }

    #[test]
    fn a_start_that_fails_fails_those_who_wait_for_it() {
        let mut s = Script::new(BOUNDS);
        s.at(0, ask(1, "a"), &["start 1 a"]);
        s.at(0, Event::StartFailed(id(1)), &["stop 1", "refuse 1 StartFailed"]);
        s.at(0, Event::Exited(id(1)), &[]);
        s.at(1, ask(2, "a"), &["start 2 a"]);
        s.at(1, Event::Exited(id(2)), &["stop 2", "refuse 2 StartFailed"]);
        s.at(2, ask(3, "a"), &["start 3 a"]);
        s.at(12, Event::Tick, &["stop 3", "refuse 3 StartFailed"]);
        s.at(12, Event::Exited(id(3)), &[]);
        assert_eq!(s.pool.census(), Census::default());
    }

    #[test]
    fn a_crash_or_a_late_word_harms_nobody() {
        let mut s = Script::new(BOUNDS);
        s.at(0, ask(1, "a"), &["start 1 a"]);
        s.at(0, Event::Ready(id(1)), &["lend 1 1"]);
        s.at(1, Event::Exited(id(1)), &[]);
        s.at(1, Event::Done(id(1)), &[]);
        s.at(1, Event::Ready(id(1)), &[]);
        s.at(1, ask(2, "a"), &["start 2 a"]);
        s.at(1, Event::Ready(id(2)), &["lend 2 2"]);
        s.at(2, Event::Condemn(id(2)), &["stop 2"]);
        s.at(2, Event::Condemn(id(2)), &[]);
        s.at(2, Event::Done(id(2)), &[]);
        s.at(3, ask(3, "a"), &["start 3 a"]);
    }

    #[test]
    fn after_the_end_nothing_starts() {
        let mut s = Script::new(Bounds { instances_max: 1, ..BOUNDS });
        s.at(0, ask(1, "a"), &["start 1 a"]);
        s.at(0, Event::Ready(id(1)), &["lend 1 1"]);
        s.at(0, ask(2, "a"), &[]);
        s.at(1, Event::Close, &["refuse 2 Retired", "stop 1"]);
        s.at(1, Event::Exited(id(1)), &[]);
        s.at(2, ask(3, "a"), &["refuse 3 Retired"]);
    }

    #[test]
    fn a_retired_deployment_keeps_no_instances() {
        let mut s = Script::new(BOUNDS);
        s.at(0, ask(1, "d1 /a"), &["start 1 d1 /a"]);
        s.at(0, Event::Ready(id(1)), &["lend 1 1"]);
        s.at(0, Event::Done(id(1)), &[]);
        s.at(1, Event::Retire { deployment: "d2".into() }, &[]);
        s.at(1, Event::Retire { deployment: "d1".into() }, &["stop 1"]);
    }
}
