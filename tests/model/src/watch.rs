//! What must never happen. The watch sees every operation with its reply, every call of an origin and every answer to a visitor, and
//! notes what breaks an invariant (I1 to I5 of the specification); it does not look into the store.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cache::purge::{Epoch, Scope};
use crate::lock::region::{Committed, LEASE, Pushed, Sought, Token, Word};
use crate::page::{Page, number, scopes};
use crate::storage::memory::Slot;
use crate::store::{Op, Reply};
use crate::world::Origin;

#[derive(Debug, Default)]
pub struct Watch {
    pub violations: Vec<String>,
    /// One origin call per key and validity period is demanded: nothing fails and nobody is slow.
    strict: bool,
    pub count: Count,
    pub waits: Vec<u64>,
    /// Until when the last response is fresh where every key is fetched once per validity period.
    ideal: BTreeMap<Slot, u64>,
    holders: BTreeMap<Slot, Holder>,
    stored: BTreeMap<Slot, Stored>,
    purges: Vec<Purged>,
    calls: BTreeMap<Slot, Calls>,
    /// Numbers what happens, in the order in which it happens.
    happened: u64,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Count {
    pub operations: u64,
    pub visitors: u64,
    pub calls: u64,
    /// Calls if every key were fetched once per validity period.
    pub calls_ideal: u64,
    pub stored: u64,
    pub lost: u64,
    pub purged: u64,
    pub words: u64,
    pub won: u64,
    pub given_up: u64,
    pub served_along: u64,
    pub longest_wait: Duration,
    /// The most calls for one key within a second.
    pub calls_per_second: usize,
}

#[derive(Debug)]
struct Holder {
    token: Token,
    until: u64,
}

#[derive(Debug)]
struct Stored {
    fence: u64,
    page: Page,
}

#[derive(Debug)]
struct Purged {
    epoch: Epoch,
    scopes: Vec<Scope>,
    happened: u64,
}

#[derive(Debug, Default)]
struct Calls {
    open: usize,
    lately: Vec<u64>,
}

impl Watch {
    pub fn new(strict: bool) -> Watch {
        Watch { strict, ..Watch::default() }
    }

    pub fn applied(&mut self, node: usize, op: &Op, reply: &Reply, now: u64) {
        self.count.operations += 1;
        match (op, reply) {
            (Op::Seek(ask), Reply::Sought(Sought::Won { lease, .. })) => {
                self.count.won += 1;
                if let Some(holder) = self.holder(&lease.slot, now) {
                    let other = holder.token;
                    self.violated(now, format!("node {node} got a lock that {other:?} holds"));
                }
                self.holders.insert(lease.slot, Holder { token: ask.token, until: now + ms(LEASE) });
            }
            (Op::Seek(ask), Reply::Sought(Sought::Held { .. })) if self.holder(&ask.slot, now).is_none() => {
                self.violated(now, "a lock outlived its holder by more than its lease".into());
            }
            (Op::Seek(ask), Reply::Sought(Sought::Entry(entry))) => {
                let page = Page::read(entry);
                let until = if ask.stale_will_do { page.stale_until_ms } else { page.fresh_until_ms };
                if until <= ask.now_ms || page.created_ms <= ask.have_ms {
                    self.violated(now, format!("node {node} was given an entry that is of no use to it"));
                }
            }
            (Op::Renew(lease), Reply::Renewed(true)) => {
                self.must_hold(&lease.slot, &lease.token, "renewed", now);
                self.holders.insert(lease.slot, Holder { token: lease.token, until: now + ms(LEASE) });
            }
            (Op::Commit(lease, packed), Reply::Committed(Committed::Stored)) => {
                self.must_hold(&lease.slot, &lease.token, "stored", now);
                self.holders.remove(&lease.slot);
                self.store(Stored { fence: lease.fence, page: Page::read(&packed.parts[0]) }, now);
            }
            (Op::Commit(lease, _), Reply::Committed(Committed::Purged)) => {
                self.count.purged += 1;
                self.holders.remove(&lease.slot);
            }
            (Op::Commit(..), Reply::Committed(Committed::Lost)) => self.count.lost += 1,
            (Op::Release(lease, word), _) if self.holds(&lease.slot, &lease.token, now) => {
                self.count.words += u64::from(matches!(word, Some(Word::Uncacheable | Word::Failed(_))));
                self.holders.remove(&lease.slot);
            }
            (Op::Push(lease, ..), Reply::Pushed(Pushed::There(_))) => {
                self.must_hold(&lease.slot, &lease.token, "pushed", now)
            }
            (Op::Purge { scopes, .. }, Reply::Purged(epoch)) => {
                if self.purges.last().is_some_and(|last| last.epoch >= *epoch) {
                    self.violated(now, "the log of purges went back".into());
                }
                let happened = self.happens();
                self.purges.push(Purged { epoch: *epoch, scopes: scopes.clone(), happened });
            }
            _ => {}
        }
    }

    /// The store lost everything.
    pub fn restarted(&mut self) {
        self.holders.clear();
        self.stored.clear();
    }

    /// A node asks the origin. The number of the rendering.
    pub fn called(&mut self, node: usize, slot: &Slot, now: u64) -> u64 {
        self.count.calls += 1;
        let calls = self.calls.entry(*slot).or_default();
        calls.open += 1;
        calls.lately.retain(|at| at + 1_000 > now);
        calls.lately.push(now);
        self.count.calls_per_second = self.count.calls_per_second.max(calls.lately.len());
        let others = calls.open - 1;
        if self.strict {
            if others > 0 {
                self.violated(now, format!("node {node} asks the origin while {others} others do"));
            }
            let rendered = self.stored.get(slot).filter(|stored| stored.page.fresh_until_ms > now);
            if rendered.is_some_and(|stored| !self.was_purged_after(&stored.page, Epoch(u64::MAX))) {
                self.violated(now, format!("node {node} asks the origin for what the region has"));
            }
        }
        self.happens()
    }

    pub fn returned(&mut self, slot: &Slot) {
        if let Some(calls) = self.calls.get_mut(slot) {
            calls.open -= 1;
        }
    }

    /// A visitor got a page as a fresh one, from a node that has read the log up to there.
    pub fn served_fresh(&mut self, node: usize, page: &Page, read: Epoch, now: u64) {
        if self.was_purged_after(page, read) {
            self.violated(now, format!("node {node} served as fresh what it knows to be purged: {page:?}"));
        }
    }

    /// A visitor waited that long for others before it got an answer or went for it by itself.
    pub fn waited(&mut self, node: usize, waited: Duration, bound: Duration, now: u64) {
        self.count.longest_wait = self.count.longest_wait.max(waited);
        if waited > bound {
            self.violated(now, format!("a visitor of node {node} waited {waited:?}, the bound is {bound:?}"));
        }
    }

    /// A visitor comes to the region.
    pub fn comes(&mut self, slot: &Slot, origin: &Origin, now: u64) {
        let until = self.ideal.entry(*slot).or_default();
        if *until <= now {
            let time = origin.time_ms.start().midpoint(*origin.time_ms.end());
            *until = now + time + (origin.lifetime)(number(slot)).0;
            self.count.calls_ideal += 1;
        }
    }

    /// Somebody else's fetch answered a visitor.
    pub fn collapsed(&mut self, waited: Duration) {
        self.waits.push(ms(waited));
    }

    pub fn violated(&mut self, now: u64, what: String) {
        // One broken rule breaks others.
        if self.violations.len() < 5 {
            self.violations.push(format!("at {} ms: {what}", now % crate::world::START_MS));
        }
    }

    pub fn open_calls(&self) -> usize {
        self.calls.values().map(|calls| calls.open).sum()
    }

    fn store(&mut self, stored: Stored, now: u64) {
        self.count.stored += 1;
        if self.was_purged_after(&stored.page, Epoch(u64::MAX)) {
            self.violated(now, format!("stored what was purged since it was begun: {:?}", stored.page));
        }
        if let Some(before) = self.stored.get(&stored.page.slot)
            && (before.fence >= stored.fence || before.page.rendering >= stored.page.rendering)
        {
            self.violated(now, "an older rendering took the place of a younger one".into());
        }
        self.stored.insert(stored.page.slot, stored);
    }

    fn was_purged_after(&self, page: &Page, read: Epoch) -> bool {
        let scopes = scopes(&page.slot);
        self.purges.iter().rev().take_while(|purge| purge.happened > page.rendering).any(|purge| {
            purge.epoch <= read && purge.scopes.iter().any(|scope| *scope == Scope::ALL || scopes.contains(scope))
        })
    }

    fn holder(&self, slot: &Slot, now: u64) -> Option<&Holder> {
        self.holders.get(slot).filter(|holder| now < holder.until)
    }

    fn holds(&self, slot: &Slot, token: &Token, now: u64) -> bool {
        self.holder(slot, now).is_some_and(|holder| holder.token == *token)
    }

    fn must_hold(&mut self, slot: &Slot, token: &Token, what: &str, now: u64) {
        if !self.holds(slot, token, now) {
            self.violated(now, format!("{token:?} {what} without holding the lock"));
        }
    }

    fn happens(&mut self) -> u64 {
        self.happened += 1;
        self.happened
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("times of the protocol are short")
}
