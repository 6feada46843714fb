//! Decides whether a stored response was purged. Pure: positions in a log of purges, no clock.
//!
//! ```text
//!   log of purges      … 7: tag a, delete    8: all, invalidate    9: tag b, delete   …
//!   an entry           began = 8: its fetch was begun by somebody who had read the log up to 8
//!   is it valid?       for each of its scopes: was that purged later than 8?              O(tags), no scan
//! ```
//! A purge is one record of the log (a Redis stream in a region, a file on a node alone), and takes the same time whether one entry or a
//! million carry the tag. An entry remembers how far the log had been read when its fetch began: what was purged after that position
//! may have been made from what is old, and is not served as fresh. Positions, not times: clocks of nodes differ.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;

/// A position in the log of purges: unix milliseconds and a sequence number (a Redis stream id in one number). 0: before all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

impl Epoch {
    const SEQUENCE_BITS: u32 = 20;

    pub fn new(ms: u64, sequence: u64) -> Epoch {
        Epoch((ms << Self::SEQUENCE_BITS) | sequence.min((1 << Self::SEQUENCE_BITS) - 1))
    }

    pub fn ms(self) -> u64 {
        self.0 >> Self::SEQUENCE_BITS
    }

    pub fn sequence(self) -> u64 {
        self.0 & ((1 << Self::SEQUENCE_BITS) - 1)
    }

    pub fn time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.ms())
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms(), self.sequence())
    }
}

/// What can be purged: everything, a deployment, a key with all its variants, a tag. A hash, so that all are of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(pub [u8; 16]);

impl Scope {
    pub const ALL: Scope = Scope([0; 16]);

    pub fn deployment(id: &str) -> Scope {
        Scope::of(b"deployment", id.as_bytes())
    }

    pub fn key(primary: &[u8; 16]) -> Scope {
        Scope::of(b"key", primary)
    }

    pub fn tag(tag: &str) -> Scope {
        Scope::of(b"tag", tag.as_bytes())
    }

    fn of(kind: &[u8], name: &[u8]) -> Scope {
        let mut hasher = blake3::Hasher::new();
        hasher.update(kind);
        hasher.update(b"\n");
        hasher.update(name);
        let mut scope = [0; 16];
        scope.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Scope(scope)
    }
}

/// What a purge does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Entries are served stale and refreshed behind the visitor's back.
    Invalidate,
    /// The next request waits for a new one.
    Delete,
}

/// One record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purge {
    pub epoch: Epoch,
    pub scopes: Vec<Scope>,
    pub mode: Mode,
}

/// How far both logs had been read. Their numbers are not compared with each other: each has its own order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    pub node: Epoch,
    pub region: Epoch,
}

/// The two logs that this process reads: the node's, and its region's.
#[derive(Default)]
pub struct Logs {
    /// Purges of a node without a region, and what holds for this node only: a region that was out of reach, a log that was damaged.
    pub node: Marks,
    pub region: Marks,
}

impl Logs {
    /// Changes with every purge.
    pub fn version(&self) -> u64 {
        // Both only grow, so their sum does not come back to a value that it had.
        self.node.version() + self.region.version()
    }

    pub fn position(&self) -> Position {
        Position { node: self.node.position(), region: self.region.position() }
    }

    pub fn judge(&self, began: Position, scopes: &[Scope]) -> Judged {
        match (self.node.judge(began.node, scopes), self.region.judge(began.region, scopes)) {
            (Judged::Valid, judged) | (judged, Judged::Valid) => judged,
            (Judged::Deleted, _) | (_, Judged::Deleted) => Judged::Deleted,
            (Judged::Stale(one), Judged::Stale(other)) => Judged::Stale(one.min(other)),
        }
    }
}

/// What the purges that came since its fetch make of a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    Valid,
    /// Invalidated then.
    Stale(SystemTime),
    Deleted,
}

/// Scopes that are remembered one by one: 500,000 take about 50 MB. Beyond, the oldest become a floor: whatever began before counts as
/// purged, which costs fetches and never serves what is old.
const SCOPES_MAX: usize = 500_000;

/// The latest purges, by scope.
pub struct Marks {
    /// Grows with each purge: what was valid at a version is valid until the next one, and a hit is one comparison.
    version: AtomicU64,
    position: AtomicU64,
    table: RwLock<Table>,
    scopes_max: usize,
}

#[derive(Default)]
struct Table {
    by_scope: HashMap<Scope, Mark>,
    /// By age; a scope that was purged again is there more than once.
    order: VecDeque<(Epoch, Scope)>,
    /// Of all that is not remembered one by one any more, and of purges of everything.
    floor: Mark,
}

#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    invalidated: Epoch,
    deleted: Epoch,
}

impl Mark {
    fn raise(&mut self, epoch: Epoch, mode: Mode) {
        let mark = match mode {
            Mode::Invalidate => &mut self.invalidated,
            Mode::Delete => &mut self.deleted,
        };
        *mark = epoch.max(*mark);
    }

    fn and(self, other: Mark) -> Mark {
        Mark { invalidated: self.invalidated.max(other.invalidated), deleted: self.deleted.max(other.deleted) }
    }

    fn latest(self) -> Epoch {
        self.invalidated.max(self.deleted)
    }
}

impl Default for Marks {
    fn default() -> Marks {
        Marks::bounded(SCOPES_MAX)
    }
}

impl Marks {
    fn bounded(scopes_max: usize) -> Marks {
        Marks {
            version: AtomicU64::new(1),
            position: AtomicU64::default(),
            table: RwLock::default(),
            scopes_max: scopes_max.max(1),
        }
    }

    /// Changes with every purge.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Up to where the log has been read: a fetch that begins now takes it along.
    pub fn position(&self) -> Epoch {
        Epoch(self.position.load(Ordering::Acquire))
    }

    /// The log has been read up to there. To be called in the order of the log, after `apply`.
    pub fn advance(&self, to: Epoch) {
        self.position.fetch_max(to.0, Ordering::AcqRel);
    }

    /// Takes a purge in; twice, or in another order, comes to the same.
    pub fn apply(&self, purge: &Purge) {
        {
            let mut table = self.table.write();
            for scope in &purge.scopes {
                if *scope == Scope::ALL {
                    table.floor.raise(purge.epoch, purge.mode);
                    table.forget_below_floor();
                    continue;
                }
                let mark = table.by_scope.entry(*scope).or_default();
                let is_news = mark.latest() < purge.epoch;
                mark.raise(purge.epoch, purge.mode);
                if is_news {
                    table.order.push_back((purge.epoch, *scope));
                }
            }
            table.bound(self.scopes_max);
        }
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Judges an entry by what its fetch had read of the log when it began.
    pub fn judge(&self, began: Epoch, scopes: &[Scope]) -> Judged {
        let table = self.table.read();
        let mark =
            scopes.iter().filter_map(|scope| table.by_scope.get(scope)).fold(table.floor, |all, mark| all.and(*mark));
        if mark.deleted > began {
            Judged::Deleted
        } else if mark.invalidated > began {
            Judged::Stale(mark.invalidated.time())
        } else {
            Judged::Valid
        }
    }

    pub fn len(&self) -> usize {
        self.table.read().by_scope.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Table {
    fn bound(&mut self, scopes_max: usize) {
        while self.by_scope.len() > scopes_max || self.order.len() > 2 * scopes_max {
            let Some((epoch, scope)) = self.order.pop_front() else { return };
            // Purged again since: a younger place in the order stands for it.
            if self.by_scope.get(&scope).is_some_and(|mark| mark.latest() == epoch) {
                let mark = self.by_scope.remove(&scope).unwrap_or_default();
                self.floor = self.floor.and(mark);
            }
        }
    }

    /// What everything was purged of later needs no mark of its own.
    fn forget_below_floor(&mut self) {
        let floor = self.floor;
        self.by_scope.retain(|_, mark| mark.invalidated > floor.invalidated || mark.deleted > floor.deleted);
        let by_scope = &self.by_scope;
        self.order.retain(|(_, scope)| by_scope.contains_key(scope));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purge(epoch: u64, scopes: &[Scope], mode: Mode) -> Purge {
        Purge { epoch: Epoch(epoch), scopes: scopes.to_vec(), mode }
    }

    #[test]
    fn what_began_before_a_purge_of_its_scopes_is_purged() {
        let marks = Marks::default();
        let (a, b) = (Scope::tag("a"), Scope::tag("b"));
        let check = |began: u64, scopes: &[Scope], expected: Judged| {
            assert_eq!(marks.judge(Epoch(began), scopes), expected, "{began} {scopes:?}");
        };
        check(0, &[a, b], Judged::Valid);
        marks.apply(&purge(5, &[a], Mode::Invalidate));
        check(4, &[a], Judged::Stale(Epoch(5).time()));
        check(4, &[b, a], Judged::Stale(Epoch(5).time()));
        check(4, &[b], Judged::Valid);
        check(5, &[a], Judged::Valid);
        marks.apply(&purge(7, &[a, b], Mode::Delete));
        check(6, &[a], Judged::Deleted);
        check(6, &[b], Judged::Deleted);
        check(7, &[a, b], Judged::Valid);
        marks.apply(&purge(6, &[b], Mode::Invalidate));
        check(6, &[b], Judged::Deleted);
        marks.apply(&purge(9, &[Scope::ALL], Mode::Invalidate));
        check(8, &[Scope::tag("never named")], Judged::Stale(Epoch(9).time()));
        check(6, &[b], Judged::Deleted);
        check(9, &[a, b], Judged::Valid);
    }

    #[test]
    fn kinds_of_scopes_do_not_meet() {
        let key = [7; 16];
        let name = std::str::from_utf8(&key).expect("ASCII");
        assert_ne!(Scope::key(&key), Scope::tag(name));
        assert_ne!(Scope::deployment("a"), Scope::tag("a"));
    }

    #[test]
    fn a_full_table_purges_too_much_rather_than_too_little() {
        let marks = Marks::bounded(10);
        for n in 1..=100_u64 {
            marks.apply(&purge(n, &[Scope::tag(&n.to_string())], Mode::Delete));
            assert!(marks.len() <= 10);
        }
        for n in 1..=100_u64 {
            assert_eq!(marks.judge(Epoch(n - 1), &[Scope::tag(&n.to_string())]), Judged::Deleted);
        }
        assert_eq!(marks.judge(Epoch(89), &[]), Judged::Deleted, "nobody knows");
        assert_eq!(marks.judge(Epoch(90), &[]), Judged::Valid);
    }

    #[test]
    fn a_scope_that_is_purged_again_and_again_takes_one_place() {
        let marks = Marks::bounded(10);
        for n in 1..=1000 {
            marks.apply(&purge(n, &[Scope::tag("a")], Mode::Invalidate));
        }
        assert_eq!(marks.len(), 1);
        assert!(marks.table.read().order.len() <= 20);
        assert_eq!(marks.judge(Epoch(0), &[]), Judged::Valid);
    }

    #[test]
    fn the_version_changes_with_each_purge_and_the_position_only_forwards() {
        let marks = Marks::default();
        let before = marks.version();
        marks.apply(&purge(3, &[Scope::tag("a")], Mode::Delete));
        assert_ne!(marks.version(), before);
        marks.advance(Epoch(3));
        marks.advance(Epoch(2));
        assert_eq!(marks.position(), Epoch(3));
    }

    #[test]
    fn an_epoch_is_a_time_and_a_number() {
        let epoch = Epoch::new(1_700_000_000_123, 7);
        assert_eq!((epoch.ms(), epoch.sequence()), (1_700_000_000_123, 7));
        assert!(Epoch::new(1_700_000_000_124, 0) > epoch);
    }
}
