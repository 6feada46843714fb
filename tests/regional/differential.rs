//! The store of a region against its model (`tests/model/src/store.rs`), on which the simulation checks the protocol: random sequences
//! of operations on both. Replies, messages and who holds the locks must be the same, to the number of each lock and purge.
//!
//! Time is a step of the sequence: the model is given it, and in Redis it is taken off every time to live. All of these, and all steps,
//! are multiples of `TICK`, and the little that each loses by itself is given back every now and then. So the real time that a
//! sequence takes ends nothing. Where the machine is so busy that it might, or that Redis is not asked in time, the sequence has shown
//! nothing more and is begun again.
//!
//! What is not compared, because the two differ there and may:
//! - Epochs by the clock: the first purge is later than both clocks, by its `at_least`. Nor a purge of more scopes than one record has.
//! - A commit after more purges than Redis looks through.
//! - Parts from beyond the end of a response that has ended, which nobody asks for who counts what was read.
//!
//! `SEQUENCES` says how many, `SEED` where they begin: `SEED=7 SEQUENCES=1` is the one that failed with seed 7.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use futures_util::FutureExt;
use perigee::cache::purge::{self, Epoch, Mode, Scope};
use perigee::lock::region::{
    self, Ask, Lease, Packed, Parts, PartsEnd, Pushed, Region, Sought, Token, Unavailable, Word,
};
use perigee::storage;
use perigee::storage::memory::Slot;
use perigee::storage::regional::Redis;
use regex::Regex;

use self::store::{Flaws, Op, Reply, Store};
use crate::node::{Node, address};
use crate::server::Server;

#[path = "../model/src/store.rs"]
#[allow(dead_code, reason = "the simulation uses all of it")]
mod store;

const TICK: Duration = Duration::from_millis(500);
const STEPS: usize = 60;
const SLOTS: [Slot; 3] = [[1; 16], [2; 16], [3; 16]];
/// Times of entries lie around this, to both sides and equal.
const NOON: u64 = 1_000_000;
/// The first purge is later than this, and so than the clocks of both.
const AGES_HENCE: Epoch = Epoch(5_000_000_000_000 << 20);
/// The store answers with fewer parts when they are larger together.
const PULLED_BYTES_MAX: usize = 256 * 1024;

#[tokio::test]
async fn the_store_does_what_its_model_does() {
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let (first, sequences) = (number("SEED").unwrap_or(0), number("SEQUENCES").unwrap_or(100));
    let server = Server::start(&[]);
    let mut seen = Seen::new();
    for seed in first..first + sequences {
        if let Err(story) = run(&server, seed, Flaws::default(), &mut seen).await {
            panic!("SEED={seed}\n{story}");
        }
    }
    println!("{seen:?}");
    // A comparison of what never happens would be none.
    let all = [
        "word",
        "entry",
        "won",
        "won stale",
        "held",
        "held arriving",
        "renewed",
        "not renewed",
        "stored",
        "lost",
        "purged",
        "released",
        "pushed",
        "not pushed",
        "parts lost",
        "announced",
        "open",
        "whole",
        "cut",
        "bounded",
        "purge",
        "message",
    ];
    let missing: Vec<_> = all.iter().filter(|what| !seen.contains_key(**what)).collect();
    assert!(missing.is_empty() || sequences < 40, "never seen: {missing:?}");
}

#[tokio::test]
async fn a_model_that_is_wrong_is_found_out() {
    let server = Server::start(&[]);
    for flaws in [
        Flaws { ignores_tokens: true, ..Flaws::default() },
        Flaws { ignores_purges: true, ..Flaws::default() },
        Flaws { locks_never_expire: true, ..Flaws::default() },
        Flaws { locks_nobody_out: true, ..Flaws::default() },
        Flaws { forgets_words: true, ..Flaws::default() },
        Flaws { serves_expired: true, ..Flaws::default() },
    ] {
        let mut found = false;
        for seed in 0..20 {
            found = run(&server, seed, flaws, &mut Seen::new()).await.is_err();
            if found {
                break;
            }
        }
        assert!(found, "{flaws:?}");
    }
}

/// How often each kind of thing was seen.
type Seen = BTreeMap<&'static str, u64>;

/// One sequence, in a region of its own. What happened, if the two differ.
async fn run(server: &Server, seed: u64, flaws: Flaws, seen: &mut Seen) -> Result<(), String> {
    let client = redis::Client::open(server.url()).expect("a URL");
    for attempt in 0..50 {
        let region = format!("{seed}-{attempt}-{}", fastrand::u32(..));
        let node = Node::of_region(&region, address(server), "a/1", None, Arc::default());
        node.is_connected().await;
        let (store, clock) = (Store::new(flaws), client.get_connection().expect("it listens"));
        let mut both = Both { region, node, store, clock, now: NOON, settled: Instant::now(), story: Vec::new() };
        let mut author = Author { rng: Rng::with_seed(seed), ..Author::default() };
        let (mut outcome, mut seen_now) = (Ok(()), Seen::new());
        for _ in 0..STEPS {
            let step = author.step(&both.store, both.now);
            outcome = both.take(&step, &mut author, &mut seen_now).await;
            if outcome.is_err() {
                break;
            }
        }
        let Both { node, story, .. } = both;
        node.shut_down().await;
        match outcome {
            Err(Wrong::Interrupted) => continue,
            Err(Wrong::Differs(how)) => return Err(told(&story, &how)),
            Ok(()) => {}
        }
        for (what, times) in seen_now {
            *seen.entry(what).or_default() += times;
        }
        return Ok(());
    }
    panic!("SEED={seed}: the store does not answer, or the machine is too busy");
}

#[derive(Debug, Clone)]
enum Step {
    Op(Op),
    Pass(Duration),
}

/// What happened. Written out when it is wanted, which takes longer than what it tells of.
#[derive(Debug)]
enum Line {
    Step(Step),
    Reply(Reply),
}

enum Wrong {
    /// Time went by, or the store did not answer in time.
    Interrupted,
    Differs(String),
}

impl From<Unavailable> for Wrong {
    fn from(_: Unavailable) -> Wrong {
        Wrong::Interrupted
    }
}

/// The two worlds.
struct Both {
    region: String,
    node: Node,
    store: Store,
    /// Tells Redis that time passed.
    clock: redis::Connection,
    /// The model's clock.
    now: u64,
    /// When the two agreed last.
    settled: Instant,
    story: Vec<Line>,
}

impl Both {
    async fn take(&mut self, step: &Step, author: &mut Author, seen: &mut Seen) -> Result<(), Wrong> {
        self.story.push(Line::Step(step.clone()));
        let op = match step {
            Step::Op(op) => op,
            Step::Pass(time) => return if self.pass(*time) { Ok(()) } else { Err(Wrong::Interrupted) },
        };
        let redis = self.node.redis.clone();
        let messages = SLOTS.each_ref().map(|slot| redis.message(slot));
        let (model, told) = self.store.apply(op, self.now);
        let real = ask(&redis, op, &model).await?;
        // On the connection that messages come on, so they come before this answer.
        let slot = slot_of(op);
        let held = redis.look(&slot).await?.lock_holder.is_some();
        if self.settled.elapsed() > TICK / 10 && !self.pass(Duration::ZERO) {
            return Err(Wrong::Interrupted);
        }
        self.story.push(Line::Reply(model.clone()));
        if !same(&model, &real) {
            return Err(Wrong::Differs(format!("But the store: {real:?}")));
        }
        if held != self.store.holder(&slot, self.now).is_some() {
            return Err(Wrong::Differs(format!("But in the store slot {} is held: {held}", slot[0])));
        }
        for (slot, message) in SLOTS.into_iter().zip(messages) {
            let came = message.now_or_never().is_some();
            if came != (told == Some(slot)) {
                return Err(Wrong::Differs(format!("But from the store, a message about slot {}: {came}", slot[0])));
            }
        }
        for what in
            [kind(&model)].into_iter().chain(told.map(|_| "message")).chain(is_bounded(&model).then_some("bounded"))
        {
            *seen.entry(what).or_default() += 1;
        }
        author.read(&model);
        Ok(())
    }

    /// Lets time pass, also none. Not true if too much of it went by itself.
    fn pass(&mut self, time: Duration) -> bool {
        const SCRIPT: &str = "for _, key in ipairs(KEYS) do
            local left = redis.call('PTTL', key)
            if left >= 0 then redis.call('PEXPIRE', key, math.ceil(left / ARGV[1]) * ARGV[1] - ARGV[2]) end
        end";
        let mut command = redis::cmd("EVAL");
        command.arg(SCRIPT).arg(SLOTS.len() * 5);
        for slot in SLOTS {
            for kind in ["lock", "waits", "parts", "word", "entry"] {
                command.arg(format!("perigee:{{{}}}:{kind}:{:032x}", self.region, u128::from_be_bytes(slot)));
            }
        }
        command.arg(TICK.as_millis() as u64).arg(time.as_millis() as u64);
        let began = Instant::now();
        let _: () = command.query(&mut self.clock).expect("answered");
        let in_time = self.settled.elapsed() < TICK;
        (self.now, self.settled) = (self.now + time.as_millis() as u64, began);
        in_time
    }
}

/// The reply of the real one. `model`: that of the model.
async fn ask(node: &Redis, op: &Op, model: &Reply) -> Result<Reply, Unavailable> {
    Ok(match op {
        Op::Seek(ask) => Reply::Sought(node.seek(ask).await?),
        Op::Renew(lease) => Reply::Renewed(node.renew(lease).await?),
        Op::Commit(lease, packed) => Reply::Committed(node.commit(lease, packed).await?),
        Op::Release(lease, word) => {
            node.release(lease, word.clone()).await?;
            Reply::Released
        }
        Op::Push(lease, from, parts) => Reply::Pushed(node.push(lease, *from, parts).await?),
        Op::Announce(lease) => {
            node.announce_uncacheable(lease).await?;
            Reply::Announced
        }
        Op::Pull { slot, token, from } => {
            let mut all = node.pull(slot, token, *from).await?;
            let mut came = all.parts.len();
            while is_bounded(model) && all.end == PartsEnd::Open && came > 0 {
                let more = node.pull(slot, token, from + all.parts.len()).await?;
                came = more.parts.len();
                all.parts.extend(more.parts);
                all.end = more.end;
            }
            Reply::Parts(all)
        }
        Op::Purge { scopes, mode, at_least } => Reply::Purged(node.purge(scopes, *mode, *at_least).await?),
    })
}

fn slot_of(op: &Op) -> Slot {
    match op {
        Op::Seek(ask) => ask.slot,
        Op::Renew(lease) | Op::Announce(lease) => lease.slot,
        Op::Commit(lease, _) | Op::Release(lease, _) | Op::Push(lease, ..) => lease.slot,
        Op::Pull { slot, .. } => *slot,
        Op::Purge { .. } => SLOTS[0],
    }
}

/// Slots, tokens and scopes by their first byte, and what is large not to its end.
fn told(story: &[Line], how: &str) -> String {
    let mut text = String::new();
    for line in story {
        match line {
            Line::Step(step) => writeln!(text, "{:.2000}", format!("{step:?}")),
            Line::Reply(reply) => writeln!(text, "    {:.2000}", format!("{reply:?}")),
        }
        .expect("it is written to memory");
    }
    let ids = Regex::new(r"\[(\d+)(, \d+){15}\]").expect("it is valid");
    ids.replace_all(&format!("{text}{how:.2000}"), "$1").into_owned()
}

fn same(model: &Reply, real: &Reply) -> bool {
    // The real one is a little later.
    let near = |model: &Duration, real: &Duration| real <= model && *model - *real <= TICK;
    match (model, real) {
        (Reply::Sought(model), Reply::Sought(real)) => match (model, real) {
            (Sought::Entry(model), Sought::Entry(real)) => model == real,
            (Sought::Word(model, holds), Sought::Word(real, left)) => model == real && near(holds, left),
            (Sought::Won { lease, stale }, Sought::Won { lease: real, stale: old }) => lease == real && stale == old,
            (Sought::Held { left: holds, arriving }, Sought::Held { left, arriving: real }) => {
                arriving == real && near(holds, left)
            }
            _ => false,
        },
        (Reply::Renewed(model), Reply::Renewed(real)) => model == real,
        (Reply::Committed(model), Reply::Committed(real)) => model == real,
        (Reply::Released, Reply::Released) | (Reply::Announced, Reply::Announced) => true,
        (Reply::Pushed(model), Reply::Pushed(real)) => model == real,
        (Reply::Parts(model), Reply::Parts(real)) => model.parts == real.parts && model.end == real.end,
        (Reply::Purged(model), Reply::Purged(real)) => model == real,
        _ => false,
    }
}

fn is_bounded(reply: &Reply) -> bool {
    matches!(reply, Reply::Parts(parts) if parts.parts.iter().map(Bytes::len).sum::<usize>() >= PULLED_BYTES_MAX)
}

fn kind(reply: &Reply) -> &'static str {
    match reply {
        Reply::Sought(Sought::Word(..)) => "word",
        Reply::Sought(Sought::Entry(_)) => "entry",
        Reply::Sought(Sought::Won { stale: None, .. }) => "won",
        Reply::Sought(Sought::Won { stale: Some(_), .. }) => "won stale",
        Reply::Sought(Sought::Held { arriving: None, .. }) => "held",
        Reply::Sought(Sought::Held { arriving: Some(_), .. }) => "held arriving",
        Reply::Renewed(true) => "renewed",
        Reply::Renewed(false) => "not renewed",
        Reply::Committed(region::Committed::Stored) => "stored",
        Reply::Committed(region::Committed::Lost) => "lost",
        Reply::Committed(region::Committed::Purged) => "purged",
        Reply::Released => "released",
        Reply::Pushed(Pushed::There(_)) => "pushed",
        Reply::Pushed(Pushed::LockLost) => "not pushed",
        Reply::Pushed(Pushed::PartsLost) => "parts lost",
        Reply::Announced => "announced",
        Reply::Parts(Parts { end: PartsEnd::Open, .. }) => "open",
        Reply::Parts(Parts { end: PartsEnd::Whole, .. }) => "whole",
        Reply::Parts(Parts { end: PartsEnd::Cut, .. }) => "cut",
        Reply::Purged(_) => "purge",
    }
}

/// Draws what happens next, from a seed and from what was answered.
#[derive(Default)]
struct Author {
    rng: Rng,
    /// All that were ever won, and so most of them are lost.
    leases: Vec<Lease>,
    /// The one that parts were pushed for last.
    shown: Option<Lease>,
    /// How many parts there were then.
    there: usize,
    epochs: Vec<Epoch>,
    tokens: u8,
    written: u64,
}

impl Author {
    fn read(&mut self, reply: &Reply) {
        match reply {
            Reply::Sought(Sought::Won { lease, .. }) => self.leases.push(*lease),
            Reply::Purged(epoch) => self.epochs.push(*epoch),
            Reply::Pushed(Pushed::There(there)) => self.there = *there,
            _ => {}
        }
    }

    fn step(&mut self, store: &Store, now: u64) -> Step {
        let is_held = SLOTS.iter().any(|slot| store.holder(slot, now).is_some());
        // Without a lock there is little else to do.
        let what = if is_held || self.rng.bool() { self.rng.u32(..100) } else { 0 };
        Step::Op(match what {
            0..30 => Op::Seek(self.ask()),
            30..36 => Op::Renew(self.lease(store, now)),
            36..50 => Op::Commit(self.lease(store, now), self.packed()),
            50..58 => Op::Release(self.lease(store, now), self.word()),
            58..70 => {
                let lease = self.lease(store, now);
                let again = self.shown.is_some_and(|shown| shown == lease);
                self.shown = Some(lease);
                if !again {
                    self.there = 0;
                }
                // As many as there are; or fewer, as an answer was lost; or more.
                let from = match self.rng.u32(..10) {
                    0 => self.there + 1,
                    1 | 2 => self.rng.usize(..=self.there),
                    _ => self.there,
                };
                Op::Push(lease, from, self.parts())
            }
            70..82 => self.pull(store, now),
            82..90 => self.purge(),
            90 => Op::Announce(self.lease(store, now)),
            _ => return Step::Pass(self.time()),
        })
    }

    fn ask(&mut self) -> Ask {
        let token = match self.leases.last() {
            // A seeker goes on with its token when an answer was lost.
            Some(lease) if self.rng.u32(..8) == 0 => lease.token,
            _ => self.token(),
        };
        let have_ms = if self.rng.bool() { 0 } else { self.moment() };
        Ask { slot: self.slot(), token, now_ms: self.moment(), have_ms, stale_will_do: self.rng.bool() }
    }

    /// One that holds, mostly; or one that has lost, or that belongs elsewhere, or that never was.
    fn lease(&mut self, store: &Store, now: u64) -> Lease {
        // Of a slot that is held, if the second one is and the first one is not.
        let slots = [self.slot(), self.slot()];
        let slot = slots.into_iter().find(|slot| store.holder(slot, now).is_some()).unwrap_or(slots[0]);
        let nobodys = Lease { slot, token: self.token(), fence: 0, epoch: Epoch::default() };
        let holds = |lease: &&Lease| store.holder(&lease.slot, now) == Some(lease.token);
        let holder = self.leases.iter().rev().filter(|lease| lease.slot == slot).find(holds).copied();
        let any = self.rng.choice(&self.leases).copied();
        let mut lease = match self.rng.u32(..10) {
            0..8 => holder.or(any),
            8 => any,
            _ => None,
        }
        .unwrap_or(nobodys);
        match self.rng.u32(..20) {
            0 => lease.slot = slot,
            1 => lease.epoch = self.rng.choice(&self.epochs).copied().unwrap_or_default(),
            2 => lease.epoch = Epoch::default(),
            _ => {}
        }
        lease
    }

    fn packed(&mut self) -> Packed {
        let parts = (0..self.rng.usize(..3)).map(|_| self.part()).collect();
        let scopes = (0..self.rng.usize(..4)).map(|_| self.scope()).collect();
        // Some outlive a word.
        let keep = if self.rng.bool() { TICK * self.rng.u32(1..20) } else { Duration::from_secs(600) };
        let (created_ms, fresh_until_ms, stale_until_ms) = (self.moment(), self.moment(), self.moment());
        Packed { parts, scopes, created_ms, fresh_until_ms, stale_until_ms, keep }
    }

    fn word(&mut self) -> Option<Word> {
        match self.rng.u32(..5) {
            0 | 1 => Some(Word::Uncacheable),
            2 => Some(Word::Failed("502 ünreachable".into())),
            3 => Some(Word::Failed(String::new())),
            _ => None,
        }
    }

    fn parts(&mut self) -> Parts {
        let end = match self.rng.u32(..8) {
            0 => PartsEnd::Whole,
            1 => PartsEnd::Cut,
            _ => PartsEnd::Open,
        };
        // Seldom, as they take their time.
        let large = (self.rng.u32(..30) == 0).then(|| Bytes::from(vec![b'x'; PULLED_BYTES_MAX / 2]));
        let mut parts: Vec<Bytes> = large.into_iter().cycle().take(3).collect();
        parts.extend((0..self.rng.usize(..12)).map(|_| self.part()));
        Parts { parts, end }
    }

    /// Bytes that no other part has, or none.
    fn part(&mut self) -> Bytes {
        self.written += 1;
        match self.rng.u32(..200) {
            0..10 => Bytes::new(),
            // Parts that begin like the marks that the store puts before them.
            10..20 => Bytes::from(format!("e{}", self.written)),
            20..30 => Bytes::from(format!("x{}", self.written)),
            _ => Bytes::from(self.written.to_string()),
        }
    }

    fn pull(&mut self, store: &Store, now: u64) -> Op {
        let lease = self.lease(store, now);
        let Lease { slot, token, .. } = self.shown.filter(|_| self.rng.bool()).unwrap_or(lease);
        let mut from = if self.rng.bool() { 0 } else { self.rng.usize(..30) };
        // A copy is asked: who pulls counts as waiting.
        let all = store.clone().apply(&Op::Pull { slot, token, from: 0 }, now).0;
        if let Reply::Parts(Parts { parts, end: PartsEnd::Whole | PartsEnd::Cut }) = all {
            from = from.min(parts.len());
        }
        Op::Pull { slot, token, from }
    }

    fn purge(&mut self) -> Op {
        let scopes = (0..self.rng.usize(..3)).map(|_| self.scope()).collect();
        let mode = if self.rng.bool() { Mode::Delete } else { Mode::Invalidate };
        let at_least = match (self.epochs.last(), self.rng.u32(..6)) {
            (None, _) => AGES_HENCE,
            (Some(_), 0..3) => Epoch::default(),
            (Some(last), 3) => *last,
            (Some(last), 4) => Epoch(last.0 + self.rng.u64(..4_000_000)),
            (Some(_), _) => self.rng.choice(&self.epochs).copied().unwrap_or_default(),
        };
        Op::Purge { scopes, mode, at_least }
    }

    fn time(&mut self) -> Duration {
        match self.rng.u32(..20) {
            0..3 => Duration::from_secs(120),
            3 => Duration::from_secs(30),
            4..6 => Duration::from_secs(10),
            6..8 => Duration::from_secs(5),
            _ => TICK * self.rng.u32(1..5),
        }
    }

    fn slot(&mut self) -> Slot {
        SLOTS[self.rng.usize(..SLOTS.len())]
    }

    /// A new one.
    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token([self.tokens; 16])
    }

    /// Few, so that they are often the same.
    fn moment(&mut self) -> u64 {
        NOON - 3 + self.rng.u64(..7)
    }

    fn scope(&mut self) -> Scope {
        match self.rng.u32(..9) {
            0 => Scope::ALL,
            number => Scope::tag(&number.to_string()),
        }
    }
}
