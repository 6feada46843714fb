//! What waits to be written: bounded in bytes and entries, and the latest word about a slot is the one that counts.
//!
//! A job keeps its entry in the table while it is worked on. So `remove` during the work finds it, takes it away, and the writer, who asks
//! `is_current` with the group's lock in hand right before the file gets its name, lets it be.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::file::payload_bytes;
use crate::storage::memory::Slot;

pub const BYTES_MAX: usize = 64 * 1_048_576;
pub const ENTRIES_MAX: usize = 4096;

#[derive(Default)]
pub struct Queue {
    /// Held for a few lookups in tables, never during I/O.
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: HashMap<Slot, Pending>,
    /// The slots whose work has not begun, by place.
    order: BTreeMap<u64, Slot>,
    bytes: usize,
    /// Tickets and places come from here.
    count: u64,
    is_closed: bool,
}

struct Pending {
    ticket: u64,
    /// `None` once it is being worked on.
    place: Option<u64>,
    act: Act,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    Put(Vec<Bytes>),
    Remove,
}

#[derive(Debug)]
pub struct Job {
    pub slot: Slot,
    pub ticket: u64,
    pub act: Act,
}

#[derive(Debug)]
pub enum Next {
    Job(Job),
    Nothing,
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    Queued,
    /// No room for it. What lies on the disk is older than what was dropped and is removed in its place, if there is room for that.
    Dropped,
}

impl Queue {
    /// A slot that is put again goes to the end: while it changes faster than the queue is worked off, it need not be written.
    pub fn push(&self, slot: Slot, parts: Vec<Bytes>) -> Pushed {
        let mut waiting = self.waiting.lock();
        waiting.forget(&slot);
        if waiting.jobs.len() >= ENTRIES_MAX || waiting.is_closed {
            return Pushed::Dropped;
        }
        let bytes = payload_bytes(&parts);
        let fits = waiting.bytes + bytes <= BYTES_MAX;
        waiting.enqueue(slot, if fits { Act::Put(parts) } else { Act::Remove });
        drop(waiting);
        self.changed.notify_all();
        if fits { Pushed::Queued } else { Pushed::Dropped }
    }

    /// Takes back what waits for the slot or is being done for it. True if there was something.
    pub fn cancel(&self, slot: &Slot) -> bool {
        let was_there = self.waiting.lock().forget(slot);
        self.changed.notify_all();
        was_there
    }

    pub fn cancel_all(&self) {
        let mut waiting = self.waiting.lock();
        waiting.jobs.clear();
        waiting.order.clear();
        waiting.bytes = 0;
        drop(waiting);
        self.changed.notify_all();
    }

    /// What will be the content of the slot, if that is still to be written.
    pub fn get(&self, slot: &Slot) -> Option<Act> {
        self.waiting.lock().jobs.get(slot).map(|pending| pending.act.clone())
    }

    /// The oldest job. Waits for one for as long as `wait`.
    pub fn next(&self, wait: Duration) -> Next {
        let deadline = Instant::now() + wait;
        let mut waiting = self.waiting.lock();
        loop {
            if waiting.is_closed {
                return Next::Closed;
            }
            if let Some(job) = waiting.begin() {
                return Next::Job(job);
            }
            if self.changed.wait_until(&mut waiting, deadline).timed_out() {
                return Next::Nothing;
            }
        }
    }

    /// Has nobody spoken about the slot since this job was queued?
    pub fn is_current(&self, slot: &Slot, ticket: u64) -> bool {
        self.waiting.lock().jobs.get(slot).is_some_and(|pending| pending.ticket == ticket)
    }

    pub fn done(&self, slot: &Slot, ticket: u64) {
        let mut waiting = self.waiting.lock();
        if waiting.jobs.get(slot).is_some_and(|pending| pending.ticket == ticket) {
            waiting.forget(slot);
        }
        drop(waiting);
        self.changed.notify_all();
    }

    /// True when nothing waits and nothing is being done any more; false when `timeout` was over first.
    pub fn wait_until_empty(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut waiting = self.waiting.lock();
        while !waiting.jobs.is_empty() {
            if self.changed.wait_until(&mut waiting, deadline).timed_out() {
                return waiting.jobs.is_empty();
            }
        }
        true
    }

    pub fn close(&self) {
        self.waiting.lock().is_closed = true;
        self.changed.notify_all();
    }
}

impl Waiting {
    fn enqueue(&mut self, slot: Slot, act: Act) {
        self.count += 1;
        self.bytes += act.bytes();
        self.order.insert(self.count, slot);
        self.jobs.insert(slot, Pending { ticket: self.count, place: Some(self.count), act });
    }

    fn begin(&mut self) -> Option<Job> {
        let (_, slot) = self.order.pop_first()?;
        let pending = self.jobs.get_mut(&slot).expect("what has a place in the order is in the table");
        pending.place = None;
        Some(Job { slot, ticket: pending.ticket, act: pending.act.clone() })
    }

    fn forget(&mut self, slot: &Slot) -> bool {
        let Some(pending) = self.jobs.remove(slot) else { return false };
        self.bytes -= pending.act.bytes();
        if let Some(place) = pending.place {
            self.order.remove(&place);
        }
        true
    }
}

impl Act {
    fn bytes(&self) -> usize {
        match self {
            Act::Put(parts) => payload_bytes(parts),
            Act::Remove => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(n: usize) -> Slot {
        u128::try_from(n).expect("fits").to_le_bytes()
    }

    fn parts(bytes: usize) -> Vec<Bytes> {
        vec![Bytes::from(vec![b'x'; bytes])]
    }

    fn next(queue: &Queue) -> Option<Job> {
        match queue.next(Duration::ZERO) {
            Next::Job(job) => Some(job),
            _ => None,
        }
    }

    #[test]
    fn beyond_the_bytes_a_put_becomes_the_removal_of_what_is_older() {
        let queue = Queue::default();
        assert_eq!(queue.push(slot(1), parts(BYTES_MAX)), Pushed::Queued);
        assert_eq!(queue.push(slot(2), parts(1)), Pushed::Dropped);
        assert_eq!(queue.get(&slot(2)), Some(Act::Remove));
        let first = next(&queue).expect("the large one");
        assert_eq!(queue.push(slot(3), parts(1)), Pushed::Dropped, "what is being written counts as well");
        queue.done(&slot(1), first.ticket);
        assert_eq!(queue.push(slot(4), parts(1)), Pushed::Queued);
    }

    #[test]
    fn beyond_the_entries_a_put_is_dropped_but_a_newer_one_of_a_waiting_slot_is_not() {
        let queue = Queue::default();
        (0..ENTRIES_MAX).for_each(|n| assert_eq!(queue.push(slot(n), parts(1)), Pushed::Queued));
        assert_eq!(queue.push(slot(ENTRIES_MAX), parts(1)), Pushed::Dropped);
        assert_eq!(queue.get(&slot(ENTRIES_MAX)), None);
        assert_eq!(queue.push(slot(7), parts(2)), Pushed::Queued);
    }

    #[test]
    fn the_latest_word_about_a_slot_counts_also_during_the_work() {
        let queue = Queue::default();
        queue.push(slot(1), parts(1));
        let old = next(&queue).expect("it waits");
        queue.push(slot(1), parts(2));
        assert!(!queue.is_current(&slot(1), old.ticket));
        queue.done(&slot(1), old.ticket);
        let new = next(&queue).expect("the newer one is left");
        assert_eq!(new.act, Act::Put(parts(2)));
        assert!(queue.cancel(&slot(1)));
        assert!(!queue.is_current(&slot(1), new.ticket));
        assert!(!queue.cancel(&slot(1)));
        assert!(queue.wait_until_empty(Duration::ZERO));
    }

    #[test]
    fn puts_and_removals_of_one_slot_leave_no_ghosts() {
        let queue = Queue::default();
        for _ in 0..10_000 {
            queue.push(slot(1), parts(10));
            queue.cancel(&slot(1));
        }
        let waiting = queue.waiting.lock();
        assert_eq!((waiting.order.len(), waiting.jobs.len(), waiting.bytes), (0, 0, 0));
    }

    #[test]
    fn the_wait_for_the_end_has_a_bound() {
        let queue = Queue::default();
        queue.push(slot(1), parts(1));
        assert!(!queue.wait_until_empty(Duration::from_millis(1)));
        queue.close();
        assert!(matches!(queue.next(Duration::ZERO), Next::Closed));
        assert_eq!(queue.push(slot(2), parts(1)), Pushed::Dropped);
    }
}
