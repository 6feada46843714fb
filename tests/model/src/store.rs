//! The store of a region as a pure state machine: an operation and the time go in, the reply comes out. The rules are those that the
//! documentation of `lock::region::Region` gives; the Redis scripts follow the same ones.
//!
//! `Flaws` are ways to get it wrong, for the tests that show that the checks can fail.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::purge::{Epoch, Mode, Purge, Scope};
use super::region::{Ask, Committed, LEASE, Lease, Packed, Parts, PartsEnd, Pushed, Sought, Token, Word};
use super::storage::memory::Slot;

/// For how long it is known that somebody waits.
const WAITS: u64 = 5_000;
const UNCACHEABLE_HOLDS: u64 = 120_000;
const FAILED_HOLDS: u64 = 1_000;
/// Parts can be read for this long after the last one came.
const PARTS_KEPT: u64 = 30_000;
/// And for this long after a commit, whatever came of it.
const PARTS_KEPT_AFTER: u64 = 10_000;

#[derive(Debug, Clone)]
pub enum Op {
    Seek(Ask),
    Renew(Lease),
    Commit(Lease, Packed),
    Release(Lease, Option<Word>),
    Push(Lease, usize, Parts),
    Announce(Lease),
    Pull { slot: Slot, token: Token, from: usize },
    Purge { scopes: Vec<Scope>, mode: Mode, at_least: Epoch },
}

#[derive(Debug, Clone)]
pub enum Reply {
    Sought(Sought),
    Renewed(bool),
    Committed(Committed),
    Released,
    Pushed(Pushed),
    Announced,
    Parts(Parts),
    Purged(Epoch),
}

/// What the store gets wrong on purpose.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flaws {
    /// Who commits or releases is not asked for its token.
    pub ignores_tokens: bool,
    /// Purges are no reason to refuse an entry.
    pub ignores_purges: bool,
    /// Locks are for good.
    pub locks_never_expire: bool,
    /// Whoever asks gets the lock.
    pub locks_nobody_out: bool,
    /// Words are not kept.
    pub forgets_words: bool,
    /// Any entry will do, however old.
    pub serves_expired: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Store {
    locks: BTreeMap<Slot, Lock>,
    entries: BTreeMap<Slot, Entry>,
    words: BTreeMap<Slot, (Word, u64)>,
    /// Until when it is known that somebody waits.
    waits: BTreeMap<Slot, u64>,
    parts: BTreeMap<Slot, Arriving>,
    fence: u64,
    purges: Vec<Purge>,
    flaws: Flaws,
}

#[derive(Debug, Clone, Copy)]
struct Lock {
    token: Token,
    until: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    data: Bytes,
    created: u64,
    fresh: u64,
    stale: u64,
    until: u64,
}

#[derive(Debug, Clone)]
struct Arriving {
    token: Token,
    parts: Vec<Bytes>,
    end: PartsEnd,
    /// How many came, the end and what came after it included.
    there: usize,
    until: u64,
}

impl Store {
    pub fn new(flaws: Flaws) -> Store {
        Store { flaws, ..Store::default() }
    }

    /// It lost everything: the same as a new one.
    pub fn restart(&mut self) {
        *self = Store::new(self.flaws);
    }

    /// The reply, and the slot that a message goes out about.
    pub fn apply(&mut self, op: &Op, now: u64) -> (Reply, Option<Slot>) {
        match op {
            Op::Seek(ask) => (Reply::Sought(self.seek(ask, now)), None),
            Op::Renew(lease) => (Reply::Renewed(self.renew(lease, now)), None),
            Op::Commit(lease, packed) => {
                let (committed, tell) = self.commit(lease, packed, now);
                (Reply::Committed(committed), tell.then_some(lease.slot))
            }
            Op::Release(lease, word) => (Reply::Released, self.release(lease, word, now).then_some(lease.slot)),
            Op::Push(lease, from, parts) => {
                let pushed = self.push(lease, *from, parts, now);
                let is_there = matches!(pushed, Pushed::There(_));
                (Reply::Pushed(pushed), (is_there && self.is_waited_for(&lease.slot, now)).then_some(lease.slot))
            }
            Op::Announce(lease) => {
                let announced = self.is_held_by(&lease.slot, &lease.token, now);
                if announced && !self.flaws.forgets_words {
                    self.words.insert(lease.slot, (Word::Uncacheable, now + UNCACHEABLE_HOLDS));
                    self.entries.remove(&lease.slot);
                }
                (Reply::Announced, (announced && self.is_waited_for(&lease.slot, now)).then_some(lease.slot))
            }
            Op::Pull { slot, token, from } => (Reply::Parts(self.pull(slot, token, *from, now)), None),
            Op::Purge { scopes, mode, at_least } => (Reply::Purged(self.purge(scopes, *mode, *at_least, now)), None),
        }
    }

    fn is_waited_for(&self, slot: &Slot, now: u64) -> bool {
        self.waits.get(slot).is_some_and(|until| now < *until)
    }

    fn seek(&mut self, ask: &Ask, now: u64) -> Sought {
        let slot = &ask.slot;
        let younger = self.entries.get(slot).filter(|entry| now < entry.until && entry.created > ask.have_ms);
        if let Some(entry) = younger
            && (entry.fresh > ask.now_ms
                || (ask.stale_will_do && entry.stale > ask.now_ms)
                || self.flaws.serves_expired)
        {
            return Sought::Entry(entry.data.clone());
        }
        let stale = younger.map(|entry| entry.data.clone());
        if let Some((word, until)) = self.words.get(slot)
            && now < *until
        {
            return Sought::Word(word.clone(), Duration::from_millis(until - now));
        }
        if let Some(lock) = self.lock(slot, now)
            && !self.flaws.locks_nobody_out
        {
            let left = Duration::from_millis(lock.until.saturating_sub(now));
            let arriving = self.arriving(slot, now).filter(|arriving| arriving.token == lock.token);
            let arriving = arriving.map(|arriving| arriving.token);
            self.waits.insert(*slot, now + WAITS);
            return Sought::Held { left, arriving };
        }
        self.fence += 1;
        self.locks.insert(*slot, Lock { token: ask.token, until: now + ms(LEASE) });
        let lease = Lease { slot: *slot, token: ask.token, fence: self.fence, epoch: self.last_purge() };
        Sought::Won { lease, stale }
    }

    fn renew(&mut self, lease: &Lease, now: u64) -> bool {
        if !self.is_held_by(&lease.slot, &lease.token, now) {
            return false;
        }
        self.locks.insert(lease.slot, Lock { token: lease.token, until: now + ms(LEASE) });
        if let Some(arriving) = self.parts.get_mut(&lease.slot)
            && arriving.token == lease.token
            && now < arriving.until
        {
            arriving.until = now + PARTS_KEPT;
        }
        true
    }

    /// What became of it, and whether somebody has to be told.
    fn commit(&mut self, lease: &Lease, packed: &Packed, now: u64) -> (Committed, bool) {
        let slot = lease.slot;
        if !self.is_held_by(&slot, &lease.token, now) {
            return (Committed::Lost, false);
        }
        self.locks.remove(&slot);
        let waited = self.waits.remove(&slot).is_some_and(|until| now < until);
        if let Some(arriving) = self.parts.get_mut(&slot).filter(|arriving| now < arriving.until) {
            arriving.until = now + PARTS_KEPT_AFTER;
        }
        if !self.flaws.ignores_purges && self.was_purged_since(lease.epoch, &packed.scopes) {
            return (Committed::Purged, waited);
        }
        self.words.remove(&slot);
        self.entries.insert(
            slot,
            Entry {
                data: packed.parts.concat().into(),
                created: packed.created_ms,
                fresh: packed.fresh_until_ms,
                stale: packed.stale_until_ms,
                until: now + ms(packed.keep),
            },
        );
        (Committed::Stored, waited)
    }

    /// Whether somebody has to be told.
    fn release(&mut self, lease: &Lease, word: &Option<Word>, now: u64) -> bool {
        let slot = lease.slot;
        if !self.is_held_by(&slot, &lease.token, now) {
            return false;
        }
        self.locks.remove(&slot);
        let waited = self.waits.remove(&slot).is_some_and(|until| now < until);
        // The origin has a new answer and does not want it kept: the old one must not outlive it.
        if *word == Some(Word::Uncacheable) {
            self.entries.remove(&slot);
        }
        let holds = match word {
            Some(Word::Uncacheable) => UNCACHEABLE_HOLDS,
            Some(Word::Failed(_)) if waited => FAILED_HOLDS,
            _ => 0,
        };
        if let Some(word) = word
            && holds > 0
            && !self.flaws.forgets_words
        {
            self.words.insert(slot, (word.clone(), now + holds));
        }
        waited
    }

    fn push(&mut self, lease: &Lease, from: usize, pushed: &Parts, now: u64) -> Pushed {
        if !self.is_held_by(&lease.slot, &lease.token, now) {
            return Pushed::LockLost;
        }
        let is_there = self.parts.get(&lease.slot).is_some_and(|there| there.token == lease.token && now < there.until);
        if !is_there {
            if from > 0 {
                return Pushed::PartsLost;
            }
            self.parts.insert(lease.slot, Arriving::of(lease.token));
        }
        let arriving = self.parts.entry(lease.slot).or_insert_with(|| Arriving::of(lease.token));
        if arriving.there < from {
            return Pushed::PartsLost;
        }
        // What is empty is no part; the end counts as one.
        let parts = pushed.parts.iter().filter(|part| !part.is_empty()).cloned().map(Some);
        let end = (pushed.end != PartsEnd::Open).then_some(None);
        for part in parts.chain(end).skip(arriving.there - from) {
            arriving.there += 1;
            // What comes after the end is not seen.
            match part {
                _ if arriving.end != PartsEnd::Open => {}
                Some(part) => arriving.parts.push(part),
                None => arriving.end = pushed.end,
            }
        }
        arriving.until = now + PARTS_KEPT;
        Pushed::There(arriving.there)
    }

    fn pull(&mut self, slot: &Slot, token: &Token, from: usize, now: u64) -> Parts {
        let arriving = self.arriving(slot, now).filter(|arriving| arriving.token == *token);
        let Some(arriving) = arriving else { return Parts { parts: Vec::new(), end: PartsEnd::Cut } };
        let (parts, end) = (arriving.parts.iter().skip(from).cloned().collect(), arriving.end);
        if end != PartsEnd::Open {
            return Parts { parts, end };
        }
        if !self.is_held_by(slot, token, now) {
            return Parts { parts, end: PartsEnd::Cut };
        }
        self.waits.insert(*slot, now + WAITS);
        Parts { parts, end }
    }

    fn purge(&mut self, scopes: &[Scope], mode: Mode, at_least: Epoch, now: u64) -> Epoch {
        let next = Epoch::new(now, 0).max(Epoch(self.last_purge().0 + 1));
        let epoch = if next > at_least { next } else { Epoch::new(at_least.ms() + 1, 0) };
        self.purges.push(Purge { epoch, scopes: scopes.to_vec(), mode });
        epoch
    }

    /// The purges after the one that was read last, oldest first.
    pub fn log(&self, after: Epoch) -> Vec<Purge> {
        self.purges.iter().filter(|purge| purge.epoch > after).cloned().collect()
    }

    fn last_purge(&self) -> Epoch {
        self.purges.last().map_or(Epoch::default(), |purge| purge.epoch)
    }

    pub fn holder(&self, slot: &Slot, now: u64) -> Option<Token> {
        self.lock(slot, now).map(|lock| lock.token)
    }

    pub fn locks(&self, now: u64) -> usize {
        self.locks.keys().filter(|slot| self.lock(slot, now).is_some()).count()
    }

    fn lock(&self, slot: &Slot, now: u64) -> Option<Lock> {
        self.locks.get(slot).copied().filter(|lock| now < lock.until || self.flaws.locks_never_expire)
    }

    fn is_held_by(&self, slot: &Slot, token: &Token, now: u64) -> bool {
        self.flaws.ignores_tokens || self.lock(slot, now).is_some_and(|lock| lock.token == *token)
    }

    fn arriving(&self, slot: &Slot, now: u64) -> Option<&Arriving> {
        self.parts.get(slot).filter(|arriving| now < arriving.until)
    }

    fn was_purged_since(&self, epoch: Epoch, scopes: &[Scope]) -> bool {
        let concerns = |scope: &Scope| *scope == Scope::ALL || scopes.contains(scope);
        self.purges.iter().rev().take_while(|purge| purge.epoch > epoch).any(|purge| purge.scopes.iter().any(concerns))
    }
}

impl Arriving {
    fn of(token: Token) -> Arriving {
        Arriving { token, parts: Vec::new(), end: PartsEnd::Open, there: 0, until: 0 }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("times of the protocol are short")
}
