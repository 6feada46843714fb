//! The purges that this process gave to the region: those that did not arrive yet, and those of the last minute, which a failover may
//! have lost. Pure: `now` is given.
//!
//! ```text
//!   begin ──▶ Asking ── answered ──▶ Issued ── 60 s ──▶ forgotten
//!                │ failed, or dropped  │ not in the log of the server that there is now
//!                └─────▶ Queued ◀──────┘
//!                          └─ issued again when the region is there
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cache::purge::{Epoch, Mode, Scope};

/// A failover loses what was not replicated, which is a second's worth, not a minute's.
const REMEMBERED: Duration = Duration::from_secs(60);
/// In each of Queued and Issued. 160 kB.
const SCOPES_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub struct Issued {
    next: u64,
    purges: BTreeMap<u64, Ours>,
    /// A purge did not fit: everything has to be invalidated in its stead.
    overflowed: bool,
}

#[derive(Debug)]
struct Ours {
    scopes: Vec<Scope>,
    mode: Mode,
    at_least: Epoch,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asking,
    Queued,
    Issued { at: Instant, epoch: Epoch },
}

/// Purges that go into the log as one record.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    pub numbers: Vec<u64>,
    pub scopes: Vec<Scope>,
    pub mode: Mode,
    pub at_least: Epoch,
}

impl Issued {
    pub fn begin(&mut self, scopes: &[Scope], mode: Mode, at_least: Epoch) -> u64 {
        self.next += 1;
        self.purges.insert(self.next, Ours { scopes: scopes.to_vec(), mode, at_least, stage: Stage::Asking });
        self.next
    }

    pub fn issued(&mut self, number: u64, epoch: Epoch, now: Instant) {
        self.forget(now);
        if let Some(ours) = self.purges.get_mut(&number) {
            ours.stage = Stage::Issued { at: now, epoch };
        }
        // The region has them: the oldest only lose their second chance.
        self.bound(|stage| matches!(stage, Stage::Issued { .. }));
    }

    /// It did not arrive, or may not have, or is not there any more.
    pub fn failed(&mut self, number: u64) {
        if let Some(ours) = self.purges.get_mut(&number) {
            ours.stage = Stage::Queued;
        }
        self.overflowed |= self.bound(|stage| stage == Stage::Queued);
    }

    /// Everything was invalidated in the stead of those that did not fit.
    pub fn made_up(&mut self) {
        self.overflowed = false;
    }

    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    pub fn queued(&self) -> usize {
        let queued = self.purges.values().filter(|ours| ours.stage == Stage::Queued).count();
        queued + usize::from(self.overflowed)
    }

    /// Those of the last minute, and where they are in the log.
    pub fn recent(&mut self, now: Instant) -> Vec<(u64, Epoch)> {
        self.forget(now);
        let epoch = |ours: &Ours| match ours.stage {
            Stage::Issued { epoch, .. } => Some(epoch),
            _ => None,
        };
        self.purges.iter().filter_map(|(number, ours)| Some((*number, epoch(ours)?))).collect()
    }

    /// What is queued, in order, as few records of at most `scopes_max` scopes (unless one alone has more).
    pub fn batches(&self, scopes_max: usize) -> Vec<Batch> {
        let mut batches: Vec<Batch> = Vec::new();
        for (number, ours) in self.purges.iter().filter(|(_, ours)| ours.stage == Stage::Queued) {
            let fits =
                |batch: &&mut Batch| batch.mode == ours.mode && batch.scopes.len() + ours.scopes.len() <= scopes_max;
            match batches.last_mut().filter(fits) {
                Some(batch) => {
                    batch.numbers.push(*number);
                    batch.scopes.extend(&ours.scopes);
                    batch.at_least = batch.at_least.max(ours.at_least);
                }
                None => batches.push(Batch {
                    numbers: vec![*number],
                    scopes: ours.scopes.clone(),
                    mode: ours.mode,
                    at_least: ours.at_least,
                }),
            }
        }
        batches
    }

    fn forget(&mut self, now: Instant) {
        self.purges.retain(|_, ours| !matches!(ours.stage, Stage::Issued { at, .. } if now > at + REMEMBERED));
    }

    /// Drops the oldest of that stage until the rest fits. True if there was one.
    fn bound(&mut self, stage: impl Fn(Stage) -> bool) -> bool {
        let mut scopes = 0;
        let mut dropped = Vec::new();
        for (number, ours) in self.purges.iter().rev().filter(|(_, ours)| stage(ours.stage)) {
            scopes += ours.scopes.len();
            if scopes > SCOPES_MAX {
                dropped.push(*number);
            }
        }
        for number in &dropped {
            self.purges.remove(number);
        }
        !dropped.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(name: &str) -> Scope {
        Scope::tag(name)
    }

    #[test]
    fn what_failed_is_issued_again_in_order_and_in_few_records() {
        let mut issued = Issued::default();
        for (name, mode, at_least) in
            [("a", Mode::Delete, 3), ("b", Mode::Delete, 1), ("c", Mode::Invalidate, 2), ("d", Mode::Delete, 0)]
        {
            let number = issued.begin(&[scope(name)], mode, Epoch(at_least));
            issued.failed(number);
        }
        assert_eq!(issued.queued(), 4);
        let batches = issued.batches(100);
        let seen: Vec<_> = batches.iter().map(|batch| (batch.scopes.len(), batch.mode, batch.at_least)).collect();
        assert_eq!(seen, [(2, Mode::Delete, Epoch(3)), (1, Mode::Invalidate, Epoch(2)), (1, Mode::Delete, Epoch(0))]);
        assert_eq!(issued.batches(1).len(), 4);
        for number in batches.iter().flat_map(|batch| &batch.numbers) {
            issued.issued(*number, Epoch(9), Instant::now());
        }
        assert_eq!((issued.queued(), issued.recent(Instant::now()).len()), (0, 4));
    }

    #[test]
    fn a_purge_is_remembered_for_a_minute() {
        let (mut issued, now) = (Issued::default(), Instant::now());
        let number = issued.begin(&[scope("a")], Mode::Delete, Epoch(0));
        assert_eq!(issued.recent(now), [], "it is still asked for");
        issued.issued(number, Epoch(5), now);
        assert_eq!(issued.recent(now + REMEMBERED), [(number, Epoch(5))]);
        assert_eq!(issued.recent(now + REMEMBERED + Duration::from_millis(1)), []);
        issued.failed(number);
        assert_eq!(issued.queued(), 0, "forgotten is forgotten");
    }

    #[test]
    fn too_many_are_made_up_for_by_one_that_purges_all() {
        let (mut issued, now) = (Issued::default(), Instant::now());
        let many: Vec<Scope> = (0..4_000).map(|i| scope(&i.to_string())).collect();
        let numbers: Vec<u64> = (0..3).map(|_| issued.begin(&many, Mode::Delete, Epoch(0))).collect();
        for number in &numbers[..2] {
            issued.failed(*number);
        }
        assert_eq!((issued.queued(), issued.overflowed()), (2, false));
        issued.failed(numbers[2]);
        assert_eq!((issued.queued(), issued.overflowed()), (3, true), "two, and the one for the oldest");
        issued.made_up();
        let kept: Vec<u64> = issued.batches(1).into_iter().flat_map(|batch| batch.numbers).collect();
        assert_eq!(kept, numbers[1..]);
        // Of those that arrived the oldest are forgotten, and that is all.
        for number in kept {
            issued.issued(number, Epoch(1), now);
        }
        let number = issued.begin(&many, Mode::Delete, Epoch(0));
        issued.issued(number, Epoch(2), now);
        assert_eq!((issued.recent(now).len(), issued.overflowed()), (2, false));
    }
}
