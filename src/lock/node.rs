//! The node's lock table: who fetches a key, who waits for it, and what became of it. A state machine per key; `now` is given.
//!
//! ```text
//!                 lock                      arbitrated               taken by one requester
//!   (no slot) ──────────▶ Flying(arbiter) ─────────────▶ Ready ───────────────────────────▶ Flying(leader)
//!       ▲                     │ found below, or            │ not taken in time                 │
//!       │                     ▼ arriving elsewhere         ▼                                   │ released
//!       └──────────────── (no slot) ◀──────────────────────┘        done, uncacheable ◀────────┤
//!       ▲                                                                                      │ failed, with followers;
//!       └──────────────────────────── hold over ◀──────── Failed ◀─────────────────────────────┘ or failed elsewhere
//! ```
//! - Everyone who finds a slot Flying waits by a permit of its own, so that each waits at most the lock timeout counted from its own
//!   arrival, and one whose client went away can leave without the others.
//! - `Ready` may hold the lock of the region (`L`): it goes to the one who leads, and is given back when nobody comes.
//! - After the timeout a waiter goes alone, at most `ALONE_MAX` at once per key; one that finds no place waits once more, then gives up.
//! - A failure is held only when somebody shared it: with company, a storm costs two tries; alone, the next request tries again at once.
//! - The table is bounded; beyond the bound requests fetch without collapsing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use http::Extensions;
use parking_lot::Mutex;
use pingora_cache::lock::{LockStatus, ReadLock, WritePermit};

use super::claim::Failure;
use crate::storage::memory::Slot;

const SHARDS: usize = 64;
/// Keys in flight at once, in all shards.
const KEYS_MAX: usize = 65_536;
/// Waiters that ask the origin by themselves, at once, per key (product.md 5.9).
pub const ALONE_MAX: usize = 10;
/// How long a shared failure answers for the origin.
pub const FAILURE_HOLD: Duration = Duration::from_secs(1);
/// A failed background refresh is not tried again within this time (product.md 5.6).
pub const REFRESH_HOLD: Duration = Duration::from_secs(1);
/// A lock that nobody released (its request died in a way that ran no code) is forgotten after this.
const FLIGHT_AGE_MAX: Duration = Duration::from_secs(15 * 60);

/// The number of a flight, in the extensions of its permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flight(pub u64);

/// Marks the permit of a request that went alone.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

/// One who waits in a flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiter {
    flight: u64,
    number: u64,
}

/// `L`: the lock of the region.
pub struct Table<L> {
    shards: Vec<Mutex<Shard<L>>>,
    timeout: Duration,
}

struct Shard<L> {
    slots: HashMap<Slot, State<L>>,
    /// How many ask the origin by themselves, by key and not by flight: they may outlive the one that they waited for. And since when.
    alone: HashMap<Slot, (usize, Instant)>,
    flights: u64,
}

enum State<L> {
    Flying(Flying),
    Ready {
        since: Instant,
        lease: Option<L>,
    },
    Failed {
        failure: Failure,
        until: Instant,
    },
    /// A background refresh failed: stale answers go on, without another try until then.
    Resting {
        until: Instant,
    },
}

struct Flying {
    flight: u64,
    since: Instant,
    /// Refreshes an entry that is served stale meanwhile.
    background: bool,
    waiting: HashMap<u64, Wakeup>,
    waiters_ever: u64,
    followers: usize,
}

/// What one who asked for the lock is told.
pub enum Told<L> {
    /// Nobody is at it, the asker least of all: an arbiter has to be started for this flight.
    Arbitrate { flight: u64, wait: ReadLock, waiter: Waiter },
    /// It is the one who fetches.
    Lead { flight: u64, permit: WritePermit, lease: Option<L> },
    /// Somebody is at it.
    Wait { read: ReadLock, waiter: Waiter },
    /// It waited long enough and asks the origin by itself.
    Alone { permit: WritePermit },
    /// The fetch that it waited for failed, or one that others shared a moment ago.
    Share { failure: Failure, permit: WritePermit },
    /// It waited long enough, and there is no place among those who go alone.
    GiveUp { permit: WritePermit },
    /// A refresh is under way or was tried a moment ago: serve the stale entry.
    Refreshing { read: ReadLock },
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// Since when it has been asking.
    pub since: Instant,
    /// It found a stale entry that it may serve.
    pub may_serve_stale: bool,
    /// What it was told to wait as before.
    pub before: Option<Waiter>,
}

impl<L> Table<L> {
    pub fn new(timeout: Duration) -> Table<L> {
        let shard = || Mutex::new(Shard { slots: HashMap::new(), alone: HashMap::new(), flights: 0 });
        Table { shards: (0..SHARDS).map(|_| shard()).collect(), timeout }
    }

    fn shard(&self, slot: &Slot) -> &Mutex<Shard<L>> {
        &self.shards[usize::from(slot[15]) % SHARDS]
    }

    /// `stale_writer`: a stale entry is there (Pingora's word).
    pub fn ask(&self, slot: &Slot, asker: Asker, stale_writer: bool, now: Instant) -> Told<L> {
        let mut shard = self.shard(slot).lock();
        let over = shard.forget_if_over(slot, now);
        let told = self.tell(&mut shard, slot, asker, stale_writer, now);
        drop(shard);
        drop(over);
        told
    }

    fn tell(&self, shard: &mut Shard<L>, slot: &Slot, asker: Asker, stale_writer: bool, now: Instant) -> Told<L> {
        match shard.slots.get_mut(slot) {
            Some(State::Flying(flying)) => {
                let alone = shard.alone.entry(*slot).or_insert((0, now));
                let told = self.join(flying, &mut alone.0, asker, stale_writer, now);
                if alone.0 == 0 {
                    shard.alone.remove(slot);
                }
                told
            }
            Some(State::Failed { .. } | State::Resting { .. }) if asker.may_serve_stale => {
                Told::Refreshing { read: nothing_to_wait_for() }
            }
            Some(State::Failed { failure, .. }) => Told::Share { failure: *failure, permit: detached(stale_writer) },
            Some(State::Ready { lease, .. }) => {
                let lease = lease.take();
                let flight = shard.fly(*slot, asker.may_serve_stale, now).flight;
                Told::Lead { flight, permit: leading(flight, stale_writer), lease }
            }
            Some(State::Resting { .. }) | None => {
                if shard.slots.len() >= KEYS_MAX / SHARDS {
                    return Told::Alone { permit: detached(stale_writer) };
                }
                let flying = shard.fly(*slot, asker.may_serve_stale, now);
                let flight = flying.flight;
                if asker.may_serve_stale {
                    // Pingora has to see a writer, or it would not start the background refresh.
                    return Told::Lead { flight, permit: leading(flight, stale_writer), lease: None };
                }
                let (wait, waiter) = flying.wait(self.timeout);
                Told::Arbitrate { flight, wait, waiter }
            }
        }
    }

    fn join(&self, flying: &mut Flying, alone: &mut usize, asker: Asker, stale_writer: bool, now: Instant) -> Told<L> {
        if asker.may_serve_stale {
            return Told::Refreshing { read: nothing_to_wait_for() };
        }
        let known = asker.before.filter(|before| before.flight == flying.flight);
        if let Some(before) = known {
            flying.waiting.remove(&before.number);
        }
        let waited = now.saturating_duration_since(asker.since);
        if waited < self.timeout {
            flying.followers += usize::from(known.is_none());
            let (read, waiter) = flying.wait(self.timeout - waited);
            return Told::Wait { read, waiter };
        }
        if *alone < ALONE_MAX {
            *alone += 1;
            let mut extensions = Extensions::new();
            extensions.insert(Alone);
            return Told::Alone { permit: WritePermit::new(FLIGHT_AGE_MAX, stale_writer, extensions).0 };
        }
        if waited >= self.timeout * 2 {
            return Told::GiveUp { permit: detached(stale_writer) };
        }
        let (read, waiter) = flying.wait(self.timeout * 2 - waited);
        Told::Wait { read, waiter }
    }

    /// One who waits does not want to any more: it looks again at once.
    pub fn leave(&self, slot: &Slot, waiter: Waiter) {
        let left = match self.shard(slot).lock().slots.get_mut(slot) {
            Some(State::Flying(flying)) if flying.flight == waiter.flight => flying.waiting.remove(&waiter.number),
            _ => None,
        };
        if let Some(wakeup) = left {
            wakeup.wake(LockStatus::TransientError);
        }
    }

    /// The arbiter found nothing below: whoever asks first becomes the leader, with the lock of the region if the arbiter won that.
    pub fn ready(&self, slot: &Slot, flight: u64, lease: Option<L>, now: Instant) -> Vec<Wakeup> {
        let mut shard = self.shard(slot).lock();
        if !shard.is_flying(slot, flight) {
            drop(shard);
            return Vec::new();
        }
        // Nobody is left to lead: the lock of the region must not wait for somebody.
        let is_wanted = matches!(shard.slots.get(slot), Some(State::Flying(flying)) if !flying.waiting.is_empty());
        if !is_wanted {
            let before = shard.slots.remove(slot);
            drop(shard);
            drop((before, lease));
            return Vec::new();
        }
        let before = shard.slots.insert(*slot, State::Ready { since: now, lease });
        drop(shard);
        wakeups(before)
    }

    /// The flight is over. How many it answered besides its leader comes back as well.
    pub fn land(&self, slot: &Slot, flight: u64, outcome: Landing, now: Instant) -> (Vec<Wakeup>, usize) {
        let mut shard = self.shard(slot).lock();
        if !shard.is_flying(slot, flight) {
            return (Vec::new(), 0);
        }
        let over = shard.slots.remove(slot);
        let (followers, background) = match &over {
            Some(State::Flying(flying)) => (flying.followers, flying.background),
            _ => (0, false),
        };
        match outcome {
            Landing::Failed(_) | Landing::FailedElsewhere { .. } if background => {
                shard.slots.insert(*slot, State::Resting { until: now + REFRESH_HOLD });
            }
            Landing::Failed(failure) if followers > 0 => {
                shard.slots.insert(*slot, State::Failed { failure, until: now + FAILURE_HOLD });
            }
            Landing::FailedElsewhere { failure, hold } => {
                shard.slots.insert(*slot, State::Failed { failure, until: now + hold.min(FAILURE_HOLD) });
            }
            Landing::Failed(_) | Landing::Over => {}
        }
        drop(shard);
        (wakeups(over), followers)
    }

    /// There is an answer that did not come by this flight: all who wait for it may look again.
    pub fn look_again(&self, slot: &Slot) -> Vec<Wakeup> {
        match self.shard(slot).lock().slots.get_mut(slot) {
            Some(State::Flying(flying)) => flying.waiting.drain().map(|(_, wakeup)| wakeup).collect(),
            _ => Vec::new(),
        }
    }

    /// One who went alone is back; with a stored answer all others may look again.
    pub fn alone_is_back(&self, slot: &Slot, stored: bool) -> Vec<Wakeup> {
        let mut shard = self.shard(slot).lock();
        if let Some((alone, _)) = shard.alone.get_mut(slot) {
            *alone = alone.saturating_sub(1);
            if *alone == 0 {
                shard.alone.remove(slot);
            }
        }
        drop(shard);
        if stored { self.look_again(slot) } else { Vec::new() }
    }

    /// Drops what nobody came for.
    pub fn sweep(&self, now: Instant) {
        for shard in &self.shards {
            let over: Vec<State<L>> = {
                let mut shard = shard.lock();
                let over: Vec<Slot> = shard
                    .slots
                    .iter()
                    .filter(|(_, state)| state.is_over(now, self.timeout))
                    .map(|(slot, _)| *slot)
                    .collect();
                // One that died in a way that ran no code.
                shard.alone.retain(|_, (_, since)| now.saturating_duration_since(*since) < FLIGHT_AGE_MAX);
                over.iter().filter_map(|slot| shard.slots.remove(slot)).collect()
            };
            // Those who wait look again, and a lock of the region goes back.
            drop(over);
        }
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().slots.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether somebody refreshes it behind the visitors' backs, or tried a moment ago: it may be served stale without more ado.
    pub fn is_refreshed(&self, slot: &Slot, now: Instant) -> bool {
        match self.shard(slot).lock().slots.get(slot) {
            Some(State::Flying(flying)) => flying.background,
            Some(State::Resting { until }) => now < *until,
            _ => false,
        }
    }

    /// For `explain`: is anybody fetching this, and how many wait.
    pub fn waiting(&self, slot: &Slot) -> Option<usize> {
        match self.shard(slot).lock().slots.get(slot) {
            Some(State::Flying(flying)) => Some(flying.waiting.len()),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Landing {
    /// Stored, or not to be shared: nobody needs the lock any more.
    Over,
    Failed(Failure),
    /// Another node of the region failed; the failure holds that much longer.
    FailedElsewhere {
        failure: Failure,
        hold: Duration,
    },
}

/// One who waits.
pub struct Wakeup(Option<WritePermit>);

impl Wakeup {
    pub fn wake(mut self, status: LockStatus) {
        if let Some(mut permit) = self.0.take() {
            permit.unlock(status);
        }
    }
}

impl Drop for Wakeup {
    fn drop(&mut self) {
        // Nobody is left waiting for good, whatever becomes of the table.
        if let Some(mut permit) = self.0.take() {
            permit.unlock(LockStatus::TransientError);
        }
    }
}

fn wakeups<L>(state: Option<State<L>>) -> Vec<Wakeup> {
    match state {
        Some(State::Flying(flying)) => flying.waiting.into_values().collect(),
        _ => Vec::new(),
    }
}

/// A permit that is in no table: what its holder does concerns nobody else.
pub fn detached(stale_writer: bool) -> WritePermit {
    WritePermit::new(FLIGHT_AGE_MAX, stale_writer, Extensions::new()).0
}

/// A read lock with nothing to wait for.
pub fn nothing_to_wait_for() -> ReadLock {
    let (mut permit, stub) = WritePermit::new(Duration::from_secs(1), false, Extensions::new());
    permit.unlock(LockStatus::TransientError);
    stub.read_lock()
}

fn leading(flight: u64, stale_writer: bool) -> WritePermit {
    let mut extensions = Extensions::new();
    extensions.insert(Flight(flight));
    WritePermit::new(FLIGHT_AGE_MAX, stale_writer, extensions).0
}

impl Flying {
    fn wait(&mut self, at_most: Duration) -> (ReadLock, Waiter) {
        let (permit, stub) = WritePermit::new(at_most, false, Extensions::new());
        let read = stub.read_lock();
        self.waiters_ever += 1;
        self.waiting.insert(self.waiters_ever, Wakeup(Some(permit)));
        (read, Waiter { flight: self.flight, number: self.waiters_ever })
    }
}

impl<L> Shard<L> {
    fn fly(&mut self, slot: Slot, background: bool, now: Instant) -> &mut Flying {
        self.flights += 1;
        let flying = Flying {
            flight: self.flights,
            since: now,
            background,
            waiting: HashMap::new(),
            waiters_ever: 0,
            followers: 0,
        };
        self.slots.insert(slot, State::Flying(flying));
        match self.slots.get_mut(&slot) {
            Some(State::Flying(flying)) => flying,
            _ => unreachable!("it was inserted a line above"),
        }
    }

    fn is_flying(&self, slot: &Slot, flight: u64) -> bool {
        matches!(self.slots.get(slot), Some(State::Flying(flying)) if flying.flight == flight)
    }

    fn forget_if_over(&mut self, slot: &Slot, now: Instant) -> Option<State<L>> {
        let over = match self.slots.get(slot) {
            Some(State::Failed { until, .. } | State::Resting { until }) => now >= *until,
            Some(State::Flying(flying)) => now.saturating_duration_since(flying.since) >= FLIGHT_AGE_MAX,
            _ => false,
        };
        if over { self.slots.remove(slot) } else { None }
    }
}

impl<L> State<L> {
    fn is_over(&self, now: Instant, timeout: Duration) -> bool {
        match self {
            State::Flying(flying) => now.saturating_duration_since(flying.since) >= FLIGHT_AGE_MAX,
            State::Ready { since, .. } => now.saturating_duration_since(*since) >= timeout,
            State::Failed { until, .. } | State::Resting { until } => now >= *until,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    const SLOT: Slot = [7; 16];
    const FAILURE: Failure = Failure::Code(Code::FunctionInvocationFailed);

    struct Clockwork {
        table: Table<u32>,
        start: Instant,
    }

    impl Clockwork {
        fn new() -> Clockwork {
            Clockwork { table: Table::new(Duration::from_secs(3)), start: Instant::now() }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn ask(&self, ms: u64, since_ms: u64) -> Told<u32> {
            let asker = Asker { since: self.at(since_ms), may_serve_stale: false, before: None };
            self.table.ask(&SLOT, asker, false, self.at(ms))
        }

        fn ask_stale(&self, ms: u64) -> Told<u32> {
            let asker = Asker { since: self.at(ms), may_serve_stale: true, before: None };
            self.table.ask(&SLOT, asker, true, self.at(ms))
        }

        /// Brings the key to where one leads.
        fn lead(&self, ms: u64) -> (u64, WritePermit) {
            let Told::Arbitrate { flight, .. } = self.ask(ms, ms) else { panic!("the first is to arbitrate") };
            wake(self.table.ready(&SLOT, flight, None, self.at(ms)));
            let Told::Lead { flight, permit, .. } = self.ask(ms, ms) else { panic!("the next one leads") };
            (flight, permit)
        }

        fn land(&self, ms: u64, flight: u64, mut permit: WritePermit, outcome: Landing) -> usize {
            permit.unlock(LockStatus::Done);
            let (waves, followers) = self.table.land(&SLOT, flight, outcome, self.at(ms));
            wake(waves);
            followers
        }
    }

    fn wake(waves: Vec<Wakeup>) {
        waves.into_iter().for_each(|wave| wave.wake(LockStatus::Done));
    }

    fn finish(mut permit: WritePermit) {
        permit.unlock(LockStatus::Done);
    }

    #[test]
    fn one_leads_and_the_others_wait() {
        let c = Clockwork::new();
        let (flight, permit) = c.lead(0);
        for ms in 1..50 {
            assert!(matches!(c.ask(ms, ms), Told::Wait { .. }));
        }
        assert_eq!(c.land(60, flight, permit, Landing::Over), 49);
        assert!(c.table.is_empty());
    }

    #[test]
    fn a_failure_is_shared_with_those_who_waited_and_held_for_a_while() {
        let c = Clockwork::new();
        let (flight, permit) = c.lead(0);
        assert!(matches!(c.ask(1, 1), Told::Wait { .. }));
        c.land(5, flight, permit, Landing::Failed(FAILURE));
        let Told::Share { failure, permit } = c.ask(6, 1) else { panic!("the follower shares") };
        assert_eq!(failure, FAILURE);
        finish(permit);
        let Told::Share { permit, .. } = c.ask(900, 900) else { panic!("late ones share as well") };
        finish(permit);
        assert!(matches!(c.ask(1_006, 1_006), Told::Arbitrate { .. }), "then the origin gets another chance");
    }

    #[test]
    fn a_failure_that_nobody_waited_for_is_not_held() {
        let c = Clockwork::new();
        let (flight, permit) = c.lead(0);
        c.land(5, flight, permit, Landing::Failed(FAILURE));
        assert!(matches!(c.ask(6, 6), Told::Arbitrate { .. }));
    }

    #[test]
    fn after_the_timeout_ten_go_alone_and_the_rest_gives_up_in_the_end() {
        let c = Clockwork::new();
        let (flight, permit) = c.lead(0);
        let mut alone = Vec::new();
        for _ in 0..ALONE_MAX {
            match c.ask(3_000, 0) {
                Told::Alone { permit } => alone.push(permit),
                _ => panic!("the first ten go alone"),
            }
        }
        assert!(matches!(c.ask(3_000, 0), Told::Wait { .. }));
        assert!(matches!(c.ask(3_000, 2_000), Told::Wait { .. }), "a late-comer has its own three seconds");
        let Told::GiveUp { permit: none } = c.ask(6_000, 0) else { panic!("two timeouts are the bound") };
        finish(none);
        wake(c.table.alone_is_back(&SLOT, false));
        let Told::Alone { permit: next } = c.ask(3_001, 0) else { panic!("a place is free again") };
        alone.push(next);
        alone.into_iter().for_each(finish);
        c.land(7_000, flight, permit, Landing::Over);
    }

    #[test]
    fn a_stale_entry_is_refreshed_once_and_a_failed_refresh_rests() {
        let c = Clockwork::new();
        let Told::Lead { flight, permit, .. } = c.ask_stale(0) else { panic!("the first refreshes") };
        assert!(matches!(c.ask_stale(1), Told::Refreshing { .. }));
        c.land(5, flight, permit, Landing::Failed(FAILURE));
        assert!(matches!(c.ask_stale(900), Told::Refreshing { .. }), "no other try within a second");
        let Told::Lead { permit, .. } = c.ask_stale(1_006) else { panic!("then again") };
        finish(permit);
    }

    #[test]
    fn the_lock_of_the_region_goes_to_the_one_who_leads() {
        let c = Clockwork::new();
        let Told::Arbitrate { flight, .. } = c.ask(0, 0) else { panic!("the first is to arbitrate") };
        wake(c.table.ready(&SLOT, flight, Some(7), c.at(1)));
        let Told::Lead { lease: Some(7), permit, .. } = c.ask(2, 0) else {
            panic!("the next one leads, with the lease")
        };
        assert!(matches!(c.ask(3, 3), Told::Wait { .. }));
        finish(permit);
    }

    #[test]
    fn one_who_leaves_is_woken_and_the_others_are_not() {
        let c = Clockwork::new();
        let (_, permit) = c.lead(0);
        let Told::Wait { read: leaves, waiter } = c.ask(1, 1) else { panic!("it waits") };
        let Told::Wait { read: stays, .. } = c.ask(1, 1) else { panic!("it waits") };
        c.table.leave(&SLOT, waiter);
        assert!(!leaves.locked());
        assert!(stays.locked());
        assert_eq!(c.table.waiting(&SLOT), Some(1));
        finish(permit);
    }

    #[test]
    fn who_asks_again_is_counted_once() {
        let c = Clockwork::new();
        let (flight, permit) = c.lead(0);
        let mut before = None;
        for ms in 1..10 {
            let asker = Asker { since: c.at(1), may_serve_stale: false, before };
            let Told::Wait { waiter, .. } = c.table.ask(&SLOT, asker, false, c.at(ms)) else { panic!("it waits") };
            before = Some(waiter);
        }
        assert_eq!(c.table.waiting(&SLOT), Some(1));
        assert_eq!(c.land(20, flight, permit, Landing::Over), 1);
    }

    #[test]
    fn a_failure_of_another_node_is_shared_by_all() {
        let c = Clockwork::new();
        let Told::Arbitrate { flight, .. } = c.ask(0, 0) else { panic!("the first is to arbitrate") };
        let failed = Landing::FailedElsewhere { failure: FAILURE, hold: Duration::from_millis(300) };
        let (waves, _) = c.table.land(&SLOT, flight, failed, c.at(1));
        wake(waves);
        let Told::Share { permit, .. } = c.ask(300, 0) else { panic!("it is shared") };
        finish(permit);
        assert!(matches!(c.ask(301, 301), Told::Arbitrate { .. }), "no longer than it holds in the region");
    }

    #[test]
    fn what_nobody_came_for_is_swept_away() {
        let c = Clockwork::new();
        let Told::Arbitrate { flight, .. } = c.ask(0, 0) else { panic!("the first is to arbitrate") };
        wake(c.table.ready(&SLOT, flight, Some(7), c.at(1)));
        c.table.sweep(c.at(2_000));
        assert_eq!(c.table.len(), 1);
        c.table.sweep(c.at(3_001));
        assert!(c.table.is_empty());
    }

    #[test]
    fn a_full_table_lets_requests_through() {
        let c = Clockwork::new();
        for n in 0..u64::try_from(KEYS_MAX / SHARDS).expect("small") {
            let mut slot = [0; 16];
            slot[..8].copy_from_slice(&n.to_le_bytes());
            let asker = Asker { since: c.start, may_serve_stale: false, before: None };
            assert!(matches!(c.table.ask(&slot, asker, false, c.start), Told::Arbitrate { .. }));
        }
        let asker = Asker { since: c.start, may_serve_stale: false, before: None };
        let Told::Alone { permit } =
            c.table.ask(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], asker, false, c.start)
        else {
            panic!("there is no room")
        };
        finish(permit);
        c.table.sweep(c.at(16 * 60 * 1_000));
        assert!(c.table.is_empty());
    }
}
