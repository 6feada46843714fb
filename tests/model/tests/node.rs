//! Runs the lock table of a node, the very file of production, through random schedules of threads that do what Pingora's loop does: look
//! up, ask, wait, look up again, lead or go alone, release; while clients leave, time passes, and the table is swept.
//!
//! Shuttle picks the schedules. It gets to choose wherever the table takes its lock, at each step of a permit, and where a thread here
//! says so; time is a number that a thread of its own pushes forward. What Pingora and `parking_lot` bring is played by the few types
//! below, which also work without Shuttle, for the unit tests that come along with the file.
//!
//! `ITERATIONS=100000 cargo test --release --test node` looks further.

extern crate self as parking_lot;
extern crate self as pingora_cache;

// Not all that it offers is asked for here.
#[allow(dead_code)]
#[path = "../../../src/lock/node.rs"]
mod node;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread::{self, JoinHandle};

use claim::Failure;
use lock::{LockStatus, ReadLock};
use node::{ALONE_MAX, Asker, Landing, Table, Told, Waiter, Wakeup};
use storage::memory::Slot;

const SLOT: Slot = [7; 16];
const TIMEOUT: Duration = Duration::from_secs(3);

mod claim {
    use crate::error::Code;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Failure {
        Code(Code),
    }
}

mod error {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Code {
        FunctionInvocationFailed,
    }
}

mod storage {
    pub mod memory {
        pub type Slot = [u8; 16];
    }
}

thread_local! {
    /// Schedules are being explored on this thread.
    static EXPLORES: Cell<bool> = const { Cell::new(false) };
    static NOW_MS: Cell<u64> = const { Cell::new(0) };
}

/// Somebody else may go on here.
fn step() {
    if EXPLORES.get() {
        thread::yield_now();
    }
}

/// `parking_lot::Mutex`.
#[derive(Default)]
pub struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Mutex<T> {
        Mutex(std::sync::Mutex::new(value))
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        step();
        loop {
            match self.0.try_lock() {
                Ok(guard) => return guard,
                Err(_) if EXPLORES.get() => thread::yield_now(),
                Err(_) => panic!("the unit tests have one thread"),
            }
        }
    }
}

/// `pingora_cache::lock`, as far as the table uses it.
pub mod lock {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use http::Extensions;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum LockStatus {
        Waiting,
        Done,
        TransientError,
    }

    struct Core {
        status: AtomicUsize,
        timeout: Duration,
        extensions: Extensions,
    }

    pub struct WritePermit(Arc<Core>);

    pub struct LockStub(Arc<Core>);

    pub struct ReadLock(Arc<Core>);

    impl WritePermit {
        pub fn new(timeout: Duration, _stale_writer: bool, extensions: Extensions) -> (WritePermit, LockStub) {
            let core = Arc::new(Core { status: AtomicUsize::new(0), timeout, extensions });
            (WritePermit(core.clone()), LockStub(core))
        }

        pub fn unlock(&mut self, reason: LockStatus) {
            super::step();
            let before = self.0.status.swap(reason as usize, Ordering::Relaxed);
            assert_eq!(before, LockStatus::Waiting as usize, "a permit is given back once");
        }

        pub fn extensions(&self) -> &Extensions {
            &self.0.extensions
        }
    }

    impl Drop for WritePermit {
        fn drop(&mut self) {
            // Pingora panics as well, in a debug build.
            let is_given_back = self.0.status.load(Ordering::Relaxed) != LockStatus::Waiting as usize;
            assert!(is_given_back || std::thread::panicking(), "a permit was dropped and not given back");
        }
    }

    impl LockStub {
        pub fn read_lock(&self) -> ReadLock {
            ReadLock(self.0.clone())
        }
    }

    impl ReadLock {
        pub fn locked(&self) -> bool {
            self.0.status.load(Ordering::Relaxed) == LockStatus::Waiting as usize
        }

        /// Until the permit is given back or the time is over.
        pub fn wait(&self) {
            let end = super::NOW_MS.get() + u64::try_from(self.0.timeout.as_millis()).expect("minutes");
            while self.locked() && super::NOW_MS.get() < end {
                super::step();
            }
        }
    }
}

/// The lock of the region, as far as the table knows it.
struct Lease(Arc<World>);

impl Lease {
    fn win(world: &Arc<World>) -> Lease {
        world.leases.fetch_add(1, Ordering::Relaxed);
        Lease(world.clone())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // It reaches out to the region: never under the lock of the table.
        step();
        self.0.leases.fetch_sub(1, Ordering::Relaxed);
    }
}

struct World {
    table: Table<Lease>,
    start: Instant,
    /// The answer is in memory.
    fresh: AtomicBool,
    /// One that may be served while it is refreshed is.
    stale: AtomicBool,
    /// Arbiters and leaders at work.
    leading: AtomicUsize,
    alone: AtomicUsize,
    leases: AtomicUsize,
    visitors: AtomicUsize,
    longest_ms: AtomicU64,
}

/// Counts itself among those at work, at most so many at once.
struct AtWork<'a>(&'a AtomicUsize);

impl AtWork<'_> {
    fn begin<'a>(count: &'a AtomicUsize, most: usize, what: &str) -> AtWork<'a> {
        let at_work = count.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(at_work <= most, "{at_work} {what} at once");
        AtWork(count)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl World {
    fn new() -> World {
        World {
            table: Table::new(TIMEOUT),
            start: Instant::now(),
            fresh: AtomicBool::default(),
            stale: AtomicBool::default(),
            leading: AtomicUsize::default(),
            alone: AtomicUsize::default(),
            leases: AtomicUsize::default(),
            visitors: AtomicUsize::default(),
            longest_ms: AtomicU64::default(),
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(NOW_MS.get())
    }

    fn store(&self) {
        self.fresh.store(true, Ordering::Relaxed);
    }

    /// What Pingora's loop does for one visitor.
    fn visit(self: &Arc<World>) {
        let (since, mut before, gone) = (self.now(), None, Arc::new(AtomicBool::new(false)));
        let mut helpers = Vec::new();
        loop {
            step();
            if self.fresh.load(Ordering::Relaxed) || gone.load(Ordering::Relaxed) {
                break;
            }
            let may_serve_stale = self.stale.load(Ordering::Relaxed);
            let asker = Asker { since, may_serve_stale, before };
            let (read, waiter) = match self.table.ask(&SLOT, asker, may_serve_stale, self.now()) {
                Told::Arbitrate { flight, wait, waiter } => {
                    let at_work = self.leading.fetch_add(1, Ordering::Relaxed);
                    assert_eq!(at_work, 0, "an arbiter is started beside another one or a leader");
                    let world = self.clone();
                    helpers.push(thread::spawn(move || world.arbitrate(flight)));
                    (wait, waiter)
                }
                Told::Wait { read, waiter } => (read, waiter),
                Told::Lead { flight, permit, lease } => {
                    self.lead(flight, permit, lease);
                    break;
                }
                Told::Alone { permit } => {
                    self.go_alone(permit);
                    break;
                }
                Told::Share { mut permit, .. } | Told::GiveUp { mut permit } => {
                    permit.unlock(LockStatus::Done);
                    break;
                }
                Told::Refreshing { read } => {
                    read.wait();
                    break;
                }
            };
            before = Some(waiter);
            self.wait(&read, waiter, &gone, &mut helpers);
        }
        let waited = self.now().duration_since(since);
        self.longest_ms.fetch_max(u64::try_from(waited.as_millis()).expect("seconds"), Ordering::Relaxed);
        self.visitors.fetch_sub(1, Ordering::Relaxed);
        helpers.into_iter().for_each(join);
    }

    fn wait(
        self: &Arc<World>,
        read: &ReadLock,
        waiter: Waiter,
        gone: &Arc<AtomicBool>,
        helpers: &mut Vec<JoinHandle<()>>,
    ) {
        if thread_rng().gen_ratio(1, 6) {
            let (world, gone) = (self.clone(), gone.clone());
            helpers.push(thread::spawn(move || {
                step();
                gone.store(true, Ordering::Relaxed);
                world.table.leave(&SLOT, waiter);
            }));
        }
        read.wait();
    }

    /// Looks below. The caller counted it among those at work.
    fn arbitrate(self: &Arc<World>, flight: u64) {
        work();
        let hold = Duration::from_millis(thread_rng().gen_range(0..2_000));
        let outcome = thread_rng().gen_range(0..8);
        if outcome == 0 {
            self.store();
        }
        self.leading.fetch_sub(1, Ordering::Relaxed);
        wake(match outcome {
            0 | 1 => self.table.land(&SLOT, flight, Landing::Over, self.now()).0,
            2 => {
                let failed = Landing::FailedElsewhere { failure: failure(), hold };
                self.table.land(&SLOT, flight, failed, self.now()).0
            }
            3 => self.table.ready(&SLOT, flight, None, self.now()),
            _ => self.table.ready(&SLOT, flight, Some(Lease::win(self)), self.now()),
        });
    }

    fn lead(self: &Arc<World>, flight: u64, mut permit: lock::WritePermit, lease: Option<Lease>) {
        let at_work = AtWork::begin(&self.leading, 1, "leaders");
        assert!(permit.extensions().get::<node::Flight>().is_some_and(|known| known.0 == flight));
        work();
        let (status, outcome) = match thread_rng().gen_range(0..4) {
            0 => (LockStatus::TransientError, Landing::Failed(failure())),
            1 => (LockStatus::TransientError, Landing::Over),
            _ => {
                self.store();
                (LockStatus::Done, Landing::Over)
            }
        };
        drop(at_work);
        permit.unlock(status);
        wake(self.table.land(&SLOT, flight, outcome, self.now()).0);
        drop(lease);
    }

    fn go_alone(&self, mut permit: lock::WritePermit) {
        let at_work = AtWork::begin(&self.alone, ALONE_MAX, "went alone");
        assert!(permit.extensions().get::<node::Alone>().is_some(), "the table is not full");
        work();
        let stored = thread_rng().gen_ratio(1, 3);
        if stored {
            self.store();
        }
        drop(at_work);
        permit.unlock(LockStatus::Done);
        wake(self.table.alone_is_back(&SLOT, stored));
    }

    /// Time passes, entries expire, what is over is swept, until all visitors are answered.
    fn pass_time(&self, most_ms: u64) {
        while self.visitors.load(Ordering::Relaxed) > 0 {
            NOW_MS.set(NOW_MS.get() + thread_rng().gen_range(0..=most_ms));
            if thread_rng().gen_ratio(1, 4) {
                self.fresh.store(false, Ordering::Relaxed);
                self.stale.store(thread_rng().gen_ratio(1, 4), Ordering::Relaxed);
            }
            if thread_rng().gen_ratio(1, 8) {
                self.table.sweep(self.now());
            }
            step();
        }
    }
}

/// Takes a while.
fn work() {
    for _ in 0..thread_rng().gen_range(0..30) {
        step();
    }
}

fn failure() -> Failure {
    Failure::Code(error::Code::FunctionInvocationFailed)
}

fn wake(wakeups: Vec<Wakeup>) {
    wakeups.into_iter().for_each(|wakeup| wakeup.wake(LockStatus::Done));
}

fn join(thread: JoinHandle<()>) {
    thread.join().expect("a thread that failed fails the schedule");
}

/// So many visitors, and steps of time of up to so many milliseconds.
fn explore(visitors: usize, most_ms: u64, iterations: usize) {
    let iterations = std::env::var("ITERATIONS").ok().and_then(|number| number.parse().ok()).unwrap_or(iterations);
    let began = Instant::now();
    shuttle::check_random(
        move || {
            EXPLORES.set(true);
            NOW_MS.set(0);
            let world = Arc::new(World::new());
            world.visitors.store(visitors, Ordering::Relaxed);
            let mut threads: Vec<JoinHandle<()>> = (0..visitors)
                .map(|_| {
                    let world = world.clone();
                    thread::spawn(move || world.visit())
                })
                .collect();
            let clock = world.clone();
            threads.push(thread::spawn(move || clock.pass_time(most_ms)));
            threads.into_iter().for_each(join);
            NOW_MS.set(NOW_MS.get() + 10_000);
            world.table.sweep(world.now());
            assert!(world.table.is_empty(), "nobody is left, but the table remembers somebody");
            assert_eq!(world.leases.load(Ordering::Relaxed), 0, "a lock of the region was not given back");
            EXPLORES.set(false);
        },
        iterations,
    );
    EXPLORES.set(false);
    println!("{iterations} schedules of {visitors} visitors in {:?}", began.elapsed());
}

#[test]
fn one_leads_at_a_time_and_everybody_is_answered() {
    explore(6, 50, 2_000);
}

#[test]
fn nobody_waits_for_ever_when_time_flies() {
    explore(8, 2_000, 2_000);
}

/// The table counts them by flight: when a flight lands while those of it who went alone are still out, the next one lets ten more go,
/// and those who come back are taken off its count.
#[test]
fn no_more_go_alone_than_may() {
    explore(30, 400, 200);
}
