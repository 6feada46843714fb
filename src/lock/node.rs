//! The node's lock table: who fetches a key, who waits for it, and what became of it. A state machine per key; `now` is given.
//!
//! ```text
//!                 lock                      arbitrated               taken by one requester
//!   (no slot) ──────────▶ Flying(arbiter) ─────────────▶ Ready ───────────────────────────▶ Flying(leader)
//!       ▲                     │ found below                │ not taken in time                 │
//!       │                     ▼                            ▼                                   │ released
//!       └──────────────── (no slot) ◀──────────────────────┘        done, uncacheable ◀────────┤
//!       ▲                                                                                      │ failed, with followers
//!       └──────────────────────────── hold over ◀──────── Failed ◀─────────────────────────────┘
//! ```
//! - Everyone who finds a slot Flying waits in a wave: a stub with a time limit of its own, so that each waits at most the lock timeout
//!   counted from its own arrival. (One stub for all would time out the late-comers with the first.)
//! - After the timeout a waiter goes alone, at most `ALONE_MAX` at once per key; one that finds no place waits once more, then gives up.
//! - A failure is held only when somebody shared it: with company, a storm costs two tries; alone, the next request tries again at once.
//! - The table is bounded; beyond the bound requests fetch without collapsing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use http::Extensions;
use parking_lot::Mutex;
use pingora_cache::lock::{LockStatus, LockStub, ReadLock, WritePermit};

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
/// Waiters that arrive within the same span of time share a wave.
const WAVES_PER_TIMEOUT: u32 = 12;

/// The number of a flight, in the extensions of its permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flight(pub u64);

/// Marks the permit of a request that went alone.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

pub struct Table {
    shards: Vec<Mutex<Shard>>,
    timeout: Duration,
}

#[derive(Default)]
pub struct Shard {
    slots: HashMap<Slot, State>,
    flights: u64,
}

enum State {
    Flying(Flying),
    Ready {
        since: Instant,
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
    waves: Vec<Wave>,
    followers: usize,
    alone: usize,
}

struct Wave {
    since: Instant,
    wakeup: Wakeup,
    stub: LockStub,
}

/// What one who asked for the lock is told.
pub enum Told {
    /// Nobody is at it, the asker least of all: an arbiter has to be started for this flight.
    Arbitrate { flight: u64, wait: ReadLock },
    /// It is the one who fetches.
    Lead { flight: u64, permit: WritePermit },
    /// Somebody is at it.
    Wait { read: ReadLock },
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
}

impl Table {
    pub fn new(timeout: Duration) -> Table {
        Table { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), timeout }
    }

    fn shard(&self, slot: &Slot) -> &Mutex<Shard> {
        &self.shards[usize::from(slot[15]) % SHARDS]
    }

    /// `stale_writer`: a stale entry is there (Pingora's word).
    pub fn ask(&self, slot: &Slot, asker: Asker, stale_writer: bool, now: Instant) -> Told {
        let mut shard = self.shard(slot).lock();
        shard.forget_if_over(slot, now);
        match shard.slots.get_mut(slot) {
            Some(State::Flying(flying)) => self.join(flying, asker, stale_writer, now),
            Some(State::Failed { .. } | State::Resting { .. }) if asker.may_serve_stale => {
                Told::Refreshing { read: closed() }
            }
            Some(State::Failed { failure, .. }) => Told::Share { failure: *failure, permit: detached(stale_writer) },
            Some(State::Ready { .. }) => {
                let flight = shard.fly(*slot, asker.may_serve_stale, now);
                Told::Lead { flight, permit: leading(flight, stale_writer) }
            }
            Some(State::Resting { .. }) | None => {
                if shard.slots.len() >= KEYS_MAX / SHARDS {
                    return Told::Alone { permit: detached(stale_writer) };
                }
                let flight = shard.fly(*slot, asker.may_serve_stale, now);
                if asker.may_serve_stale {
                    // Pingora has to see a writer, or it would not start the background refresh.
                    return Told::Lead { flight, permit: leading(flight, stale_writer) };
                }
                let Some(State::Flying(flying)) = shard.slots.get_mut(slot) else {
                    return Told::Alone { permit: detached(stale_writer) };
                };
                Told::Arbitrate { flight, wait: self.wave(flying, now) }
            }
        }
    }

    fn join(&self, flying: &mut Flying, asker: Asker, stale_writer: bool, now: Instant) -> Told {
        if asker.may_serve_stale {
            return Told::Refreshing { read: flying.waves.last().map_or_else(closed, |wave| wave.stub.read_lock()) };
        }
        // Waves are this much shorter than the timeout for those who join late.
        let slack = self.timeout / WAVES_PER_TIMEOUT;
        let waited = now.saturating_duration_since(asker.since) + slack;
        if waited < self.timeout {
            flying.followers += 1;
            return Told::Wait { read: self.wave(flying, now) };
        }
        if flying.alone < ALONE_MAX {
            flying.alone += 1;
            let mut extensions = Extensions::new();
            extensions.insert(Alone);
            return Told::Alone { permit: WritePermit::new(FLIGHT_AGE_MAX, stale_writer, extensions).0 };
        }
        if waited >= self.timeout * 2 {
            return Told::GiveUp { permit: detached(stale_writer) };
        }
        Told::Wait { read: self.wave(flying, now) }
    }

    /// The wave that someone who arrives now waits in.
    fn wave(&self, flying: &mut Flying, now: Instant) -> ReadLock {
        let span = self.timeout / WAVES_PER_TIMEOUT;
        if let Some(wave) = flying.waves.last()
            && now.saturating_duration_since(wave.since) < span
        {
            return wave.stub.read_lock();
        }
        // Waves that everybody left by their time limit are of no more use.
        let timeout = self.timeout;
        flying.waves.retain(|wave| now.saturating_duration_since(wave.since) <= timeout * 2);
        let (permit, stub) = WritePermit::new(timeout, false, Extensions::new());
        let read = stub.read_lock();
        flying.waves.push(Wave { since: now, wakeup: Wakeup(Some(permit)), stub });
        read
    }

    /// The arbiter found nothing below: whoever asks first becomes the leader.
    pub fn ready(&self, slot: &Slot, flight: u64, now: Instant) -> Vec<Wakeup> {
        let mut shard = self.shard(slot).lock();
        if !shard.is_flying(slot, flight) {
            return Vec::new();
        }
        let waves = wakeups(shard.slots.insert(*slot, State::Ready { since: now }));
        drop(shard);
        waves
    }

    /// The flight is over.
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
            Landing::Failed(_) if background => {
                shard.slots.insert(*slot, State::Resting { until: now + REFRESH_HOLD });
            }
            Landing::Failed(failure) if followers > 0 => {
                shard.slots.insert(*slot, State::Failed { failure, until: now + FAILURE_HOLD });
            }
            Landing::Failed(_) | Landing::Over => {}
        }
        drop(shard);
        (wakeups(over), followers)
    }

    /// One who went alone is back; with a stored answer all others may look again.
    pub fn alone_is_back(&self, slot: &Slot, stored: bool) -> Vec<Wakeup> {
        let mut shard = self.shard(slot).lock();
        let Some(State::Flying(flying)) = shard.slots.get_mut(slot) else { return Vec::new() };
        flying.alone = flying.alone.saturating_sub(1);
        if stored { flying.waves.drain(..).map(|wave| wave.wakeup).collect() } else { Vec::new() }
    }

    /// Drops what nobody came for.
    pub fn sweep(&self, now: Instant) {
        for shard in &self.shards {
            let over: Vec<State> = {
                let mut shard = shard.lock();
                let over: Vec<Slot> = shard
                    .slots
                    .iter()
                    .filter(|(_, state)| state.is_over(now, self.timeout))
                    .map(|(slot, _)| *slot)
                    .collect();
                over.iter().filter_map(|slot| shard.slots.remove(slot)).collect()
            };
            over.into_iter()
                .flat_map(|state| wakeups(Some(state)))
                .for_each(|wakeup| wakeup.wake(LockStatus::TransientError));
        }
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().slots.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For `explain`: is anybody fetching this, and how many wait.
    pub fn waiting(&self, slot: &Slot) -> Option<usize> {
        match self.shard(slot).lock().slots.get(slot) {
            Some(State::Flying(flying)) => Some(flying.followers),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Landing {
    /// Stored, or not to be shared: nobody needs the lock any more.
    Over,
    Failed(Failure),
}

/// Those who wait in one wave.
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

fn wakeups(state: Option<State>) -> Vec<Wakeup> {
    match state {
        Some(State::Flying(flying)) => flying.waves.into_iter().map(|wave| wave.wakeup).collect(),
        _ => Vec::new(),
    }
}

/// A permit that is in no table: what its holder does concerns nobody else.
fn detached(stale_writer: bool) -> WritePermit {
    WritePermit::new(FLIGHT_AGE_MAX, stale_writer, Extensions::new()).0
}

/// A read lock with nothing to wait for.
fn closed() -> ReadLock {
    let (mut permit, stub) = WritePermit::new(Duration::from_secs(1), false, Extensions::new());
    permit.unlock(LockStatus::TransientError);
    stub.read_lock()
}

fn leading(flight: u64, stale_writer: bool) -> WritePermit {
    let mut extensions = Extensions::new();
    extensions.insert(Flight(flight));
    WritePermit::new(FLIGHT_AGE_MAX, stale_writer, extensions).0
}

impl Shard {
    fn fly(&mut self, slot: Slot, background: bool, now: Instant) -> u64 {
        self.flights += 1;
        let flight = self.flights;
        let flying = Flying { flight, since: now, background, waves: Vec::new(), followers: 0, alone: 0 };
        self.slots.insert(slot, State::Flying(flying));
        flight
    }

    fn is_flying(&self, slot: &Slot, flight: u64) -> bool {
        matches!(self.slots.get(slot), Some(State::Flying(flying)) if flying.flight == flight)
    }

    fn forget_if_over(&mut self, slot: &Slot, now: Instant) {
        let over = match self.slots.get(slot) {
            Some(State::Failed { until, .. } | State::Resting { until }) => now >= *until,
            Some(State::Flying(flying)) => now.saturating_duration_since(flying.since) >= FLIGHT_AGE_MAX,
            _ => false,
        };
        if over {
            wakeups(self.slots.remove(slot)).into_iter().for_each(|wakeup| wakeup.wake(LockStatus::TransientError));
        }
    }
}

impl State {
    fn is_over(&self, now: Instant, timeout: Duration) -> bool {
        match self {
            State::Flying(flying) => now.saturating_duration_since(flying.since) >= FLIGHT_AGE_MAX,
            State::Ready { since } => now.saturating_duration_since(*since) >= timeout,
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
        table: Table,
        start: Instant,
    }

    impl Clockwork {
        fn new() -> Clockwork {
            Clockwork { table: Table::new(Duration::from_secs(3)), start: Instant::now() }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn ask(&self, ms: u64, since_ms: u64) -> Told {
            self.table.ask(&SLOT, Asker { since: self.at(since_ms), may_serve_stale: false }, false, self.at(ms))
        }

        fn ask_stale(&self, ms: u64) -> Told {
            self.table.ask(&SLOT, Asker { since: self.at(ms), may_serve_stale: true }, true, self.at(ms))
        }

        /// Brings the key to where one leads.
        fn lead(&self, ms: u64) -> (u64, WritePermit) {
            let Told::Arbitrate { flight, .. } = self.ask(ms, ms) else { panic!("the first is to arbitrate") };
            wake(self.table.ready(&SLOT, flight, self.at(ms)));
            let Told::Lead { flight, permit } = self.ask(ms, ms) else { panic!("the next one leads") };
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
        let Told::Lead { flight, permit } = c.ask_stale(0) else { panic!("the first refreshes") };
        assert!(matches!(c.ask_stale(1), Told::Refreshing { .. }));
        c.land(5, flight, permit, Landing::Failed(FAILURE));
        assert!(matches!(c.ask_stale(900), Told::Refreshing { .. }), "no other try within a second");
        let Told::Lead { permit, .. } = c.ask_stale(1_006) else { panic!("then again") };
        finish(permit);
    }

    #[test]
    fn what_nobody_came_for_is_swept_away() {
        let c = Clockwork::new();
        let Told::Arbitrate { flight, .. } = c.ask(0, 0) else { panic!("the first is to arbitrate") };
        wake(c.table.ready(&SLOT, flight, c.at(1)));
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
            let asker = Asker { since: c.start, may_serve_stale: false };
            assert!(matches!(c.table.ask(&slot, asker, false, c.start), Told::Arbitrate { .. }));
        }
        let asker = Asker { since: c.start, may_serve_stale: false };
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
