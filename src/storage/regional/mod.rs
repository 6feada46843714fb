//! What a region shares, in one Redis or Valkey (6.2 or later): the lock, the entries, and the log of purges. `lock::region` has the
//! protocol; here is how it is spoken.
//!
//! ```text
//!   scripts   each operation is one script, so it is atomic           address   one server, a sentinel's master, a cluster's owner
//!   link      deadlines, bounds, breaker, connections                 messages  who waits for which slot
//!   purge_log the purges of the region, read to the end               issued    purges that the region may not have
//! ```
//! It is the region's efficiency that hangs on the store, never an answer: whatever the store does (refuses, hangs, resets, comes back
//! empty, comes later than we do), an operation ends within its deadline, at once when it is known to be of no use, and the node goes on
//! alone. `run` finds it again.

mod address;
mod breaker;
mod issued;
mod link;
mod messages;
mod purge_log;
mod reply;
mod scripts;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::Value;
use tokio::time::sleep;

pub use self::address::{Address, Cause, Mode};
pub use self::link::Observer;
use self::link::{INLINE_BYTES_MAX, Lane, Link};
use self::messages::{Messages, hex, unhex};
use self::purge_log::Log;
pub use self::purge_log::{Ack, Sink};
use self::scripts::{Call, Keys};
use crate::cache::purge::{self, Epoch, Scope};
use crate::lock::region::{
    Ask, Committed, LEASE, Lease, Packed, Parts, PartsEnd, Pushed, Region, Sought, Token, Unavailable, Word,
};
use crate::storage::memory::Slot;

/// How long a word holds.
const UNCACHEABLE: Duration = Duration::from_secs(120);
const FAILED: Duration = Duration::from_secs(1);
/// For how long somebody who was told to wait counts as waiting; who does looks again sooner.
const WAITS: Duration = Duration::from_secs(5);
const PARTS_KEPT: Duration = Duration::from_secs(30);
/// After the entry was stored: for those who are still reading.
const PARTS_KEPT_AFTER: Duration = Duration::from_secs(10);
/// Between the beginnings of two tries to connect: this, and up to as much again.
const PACE: Duration = Duration::from_millis(250);
/// An entry that was replaced while it was fetched is looked for again.
const SEEKS_MAX: usize = 3;

pub struct Settings {
    pub address: Address,
    pub region: String,
    /// Names this process among the members of the region.
    pub member: String,
    /// The log that was read when the process was last running: `log_id` then.
    pub known_log: Option<String>,
    pub observer: Observer,
}

pub struct Redis {
    region: String,
    member: String,
    keys: Arc<Keys>,
    link: Arc<Link>,
    messages: Arc<Messages>,
    log: Log,
}

/// What the region has about a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    pub entry: Option<Bytes>,
    /// The member that holds the lock, and for how long unless it renews it.
    pub lock_holder: Option<(String, Duration)>,
    pub word: Option<(Word, Duration)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub connected: bool,
    pub breaker_open: bool,
    /// Purges that the region does not have yet.
    pub queued_purges: usize,
    pub operations: u64,
    /// Of the operations; `timeouts` of these.
    pub failures: u64,
    pub timeouts: u64,
    /// Of keys, arguments and answers, without the framing.
    pub bytes_read: u64,
    pub bytes_written: u64,
}

impl Redis {
    /// Does no I/O: only what is written can be wrong. `run` has to run for anything to be available.
    pub fn new(settings: Settings, sink: Arc<dyn Sink>) -> Result<Redis, Cause> {
        if settings.region.is_empty() || settings.region.contains(['{', '}']) {
            return Err(format!("{:?} is not a name for a region", settings.region));
        }
        let link = Arc::new(Link::new(settings.address.read()?, settings.observer));
        let keys = Arc::new(Keys::new(&settings.region));
        let log = Log::new(link.clone(), keys.clone(), settings.member.clone(), settings.known_log, sink);
        let (region, member) = (settings.region, settings.member);
        Ok(Redis { region, member, keys, link, messages: Arc::default(), log })
    }

    /// Keeps the connection to the region, and reads its log, until `shutdown`.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            never = self.keep_connected() => match never {},
            () = shutdown => {}
        }
        if let Some(session) = self.link.drop_session() {
            self.log.leave(&session).await;
        }
    }

    async fn keep_connected(&self) -> Infallible {
        let mut lost_since = None;
        loop {
            let began = Instant::now();
            let cause = self.connected(&mut lost_since).await;
            self.link.drop_session();
            // Who waits for a message would wait in vain.
            self.messages.wake_all();
            if lost_since.is_none() {
                log::warn!("region {}: its store is lost, this node goes on alone: {cause}", self.region);
                lost_since = Some(Instant::now());
            }
            sleep((PACE + PACE.mul_f64(fastrand::f64())).saturating_sub(began.elapsed())).await;
        }
    }

    /// One session, from its beginning to its end. Why it ended.
    async fn connected(&self, lost_since: &mut Option<Instant>) -> Cause {
        let (messages, news) = (self.messages.clone(), self.log.news.clone());
        let hear = move |message: &[u8]| match unhex(message) {
            Some(slot) => messages.wake(&slot),
            None => news.notify_one(),
        };
        let session = match self.link.connect(&self.keys.fence, &self.keys.channel, hear).await {
            Ok(session) => session,
            Err(cause) => return cause,
        };
        let ready = || {
            self.link.use_session(&session);
            self.messages.wake_all();
            match lost_since.take() {
                Some(since) => log::warn!("region {}: its store is back after {:.1?}", self.region, since.elapsed()),
                None => log::info!("region {}: connected to its store", self.region),
            }
        };
        tokio::select! {
            cause = self.log.follow(&session, ready) => cause,
            () = session.ended.notified() => "the connection broke, or the server is not the one to ask any more".into(),
        }
    }

    /// Writes a purge into the log of the region; `at_least`: its position is later than this. One that fails is queued, and written
    /// when the region is back.
    pub async fn purge(&self, scopes: &[Scope], mode: purge::Mode, at_least: Epoch) -> Result<Epoch, Unavailable> {
        self.log.purge(scopes, mode, at_least).await
    }

    /// Waits until all members have taken the purges up to `epoch`, or the time is over. Nobody: the region cannot be asked.
    pub async fn acknowledged(&self, epoch: Epoch, within: Duration) -> Vec<Ack> {
        self.log.acknowledged(epoch, within).await
    }

    /// A purge that was ordered before this process came, and that the region may not have.
    pub fn owe(&self, scopes: &[Scope], mode: purge::Mode) {
        self.log.owe(scopes, mode);
    }

    /// Names the log that is read. To be kept, and given to the next process together with the sink's position.
    pub fn log_id(&self) -> Option<String> {
        self.log.id()
    }

    pub fn state(&self) -> State {
        let counts = &self.link.counts;
        State {
            connected: self.link.is_connected(),
            breaker_open: self.link.breaker_is_open(),
            queued_purges: self.log.queued(),
            operations: counts.operations.load(Ordering::Relaxed),
            failures: counts.failures.load(Ordering::Relaxed),
            timeouts: counts.timeouts.load(Ordering::Relaxed),
            bytes_read: counts.bytes_read.load(Ordering::Relaxed),
            bytes_written: counts.bytes_written.load(Ordering::Relaxed),
        }
    }

    pub async fn look(&self, slot: &Slot) -> Result<Look, Unavailable> {
        let key = self.slot_keys(slot);
        let call = scripts::LOOK.call(&[&key("entry"), &key("lock"), &key("word")]).number(INLINE_BYTES_MAX as u64);
        let answer = self.link.call(call, Lane::Small).await?;
        let [data, lock, lock_left, word, word_left] = reply::array(answer).ok_or(Unavailable)?;
        let word = reply::bytes(word).and_then(|word| word_of(&word)).zip(left(word_left));
        // token:fence:member
        let holder = |lock: String| lock.splitn(3, ':').nth(2).map(str::to_string);
        let lock_holder = reply::text(lock).and_then(holder).zip(left(lock_left));
        let entry = match data {
            Value::Int(0) => None,
            data => self.data(&key("entry"), data).await?,
        };
        Ok(Look { entry: entry.filter(|entry| !entry.is_empty()), lock_holder, word })
    }

    /// Takes a word back: what was not to be cached is now.
    pub async fn forget_word(&self, slot: &Slot) {
        let call = Call::command("forget_word", "DEL").arg(self.slot_keys(slot)("word").as_bytes());
        // Unavailable: it ends by itself.
        let _ = self.link.call(call, Lane::Small).await;
    }

    /// Names of keys of a slot, by kind.
    fn slot_keys(&self, slot: &Slot) -> impl Fn(&str) -> String + use<'_> {
        let slot = hex(slot);
        move |kind| self.keys.of(kind, &slot)
    }

    /// The data of an entry: as it came with an answer, or fetched if only its size did. None: it is gone meanwhile.
    async fn data(&self, key: &str, value: Value) -> Result<Option<Bytes>, Unavailable> {
        let size = match value {
            Value::Int(size) => usize::try_from(size).unwrap_or_default(),
            value => return Ok(reply::bytes(value)),
        };
        let call = Call::command("fetch", "HGET").arg(key.as_bytes()).arg(b"data");
        Ok(reply::bytes(self.link.call(call, Lane::Bulk { bytes: size }).await?))
    }
}

impl Region for Redis {
    async fn seek(&self, ask: &Ask) -> Result<Sought, Unavailable> {
        let key = self.slot_keys(&ask.slot);
        for _ in 0..SEEKS_MAX {
            let call = scripts::SEEK
                .call(&[
                    &key("word"),
                    &key("entry"),
                    &key("lock"),
                    &key("waits"),
                    &self.keys.fence,
                    &self.keys.purges,
                    &key("parts"),
                ])
                .arg(hex(&ask.token.0).as_bytes())
                .arg(self.member.as_bytes())
                .number(ms(LEASE))
                .number(ask.now_ms)
                .number(ask.have_ms)
                .number(ask.stale_will_do.into())
                .number(INLINE_BYTES_MAX as u64)
                .number(ms(WAITS));
            let mut unsure = Unsure::new(self, ask);
            let answer = self.link.call(call, Lane::Small).await?;
            let (outcome, [first, second, third]) = reply::tagged(answer).ok_or(Unavailable)?;
            unsure.take();
            match outcome.as_str() {
                "word" => {
                    let word = reply::bytes(first).and_then(|word| word_of(&word));
                    let (word, left) = word.zip(left(second)).ok_or(Unavailable)?;
                    return Ok(Sought::Word(word, left));
                }
                "entry" => {
                    if let Some(entry) = self.data(&key("entry"), first).await? {
                        return Ok(Sought::Entry(entry));
                    }
                }
                "held" => {
                    let arriving = reply::bytes(second).and_then(|token| unhex(&token)).map(Token);
                    return Ok(Sought::Held { left: left(first).unwrap_or_default(), arriving });
                }
                "won" => {
                    let fence = reply::number(first).ok_or(Unavailable)?;
                    let epoch = reply::bytes(second).and_then(|id| scripts::epoch_of(&id)).ok_or(Unavailable)?;
                    let lease = Lease { slot: ask.slot, token: ask.token, fence, epoch };
                    let mut unsure = Unsure::new(self, ask);
                    // Without the stale entry the lock is worth as much.
                    let stale = self.data(&key("entry"), third).await.unwrap_or_default();
                    unsure.take();
                    return Ok(Sought::Won { lease, stale });
                }
                _ => return Err(Unavailable),
            }
        }
        Err(Unavailable)
    }

    async fn renew(&self, lease: &Lease) -> Result<bool, Unavailable> {
        let key = self.slot_keys(&lease.slot);
        let call = scripts::RENEW
            .call(&[&key("lock"), &key("parts")])
            .arg(hex(&lease.token.0).as_bytes())
            .number(ms(LEASE))
            .number(ms(PARTS_KEPT));
        self.done(call, Lane::Small).await
    }

    async fn commit(&self, lease: &Lease, entry: &Packed) -> Result<Committed, Unavailable> {
        let key = self.slot_keys(&lease.slot);
        let call = scripts::COMMIT
            .call(&[&key("lock"), &key("entry"), &key("word"), &key("waits"), &key("parts"), &self.keys.purges])
            .arg(hex(&lease.token.0).as_bytes())
            .epoch(lease.epoch)
            .arg(&purge_log::packed(&entry.scopes))
            .number(entry.created_ms)
            .number(entry.fresh_until_ms)
            .number(entry.stale_until_ms)
            .number(ms(entry.keep).max(1))
            .arg(hex(&lease.slot).as_bytes())
            .arg(self.keys.channel.as_bytes())
            .number(ms(PARTS_KEPT_AFTER))
            .joined(b"", &entry.parts);
        let lane = Lane::of(call.bytes);
        match reply::text(self.link.call(call, lane).await?).as_deref() {
            Some("stored") => Ok(Committed::Stored),
            Some("lost") => Ok(Committed::Lost),
            Some("purged") => Ok(Committed::Purged),
            _ => Err(Unavailable),
        }
    }

    async fn release(&self, lease: &Lease, word: Option<Word>) -> Result<(), Unavailable> {
        self.done(release(&self.keys, &lease.slot, &lease.token, word), Lane::Small).await.map(|_| ())
    }

    async fn push(&self, lease: &Lease, from: usize, parts: &Parts) -> Result<Pushed, Unavailable> {
        let key = self.slot_keys(&lease.slot);
        let mut call = scripts::PUSH
            .call(&[&key("lock"), &key("parts"), &key("waits")])
            .arg(hex(&lease.token.0).as_bytes())
            .arg(hex(&lease.slot).as_bytes())
            .arg(self.keys.channel.as_bytes())
            .number(ms(PARTS_KEPT))
            .number(from as u64);
        for part in &parts.parts {
            // So that a reader never has to read more at once. Where a part ends means nothing.
            let mut rest = part.clone();
            while !rest.is_empty() {
                let some = rest.split_to(rest.len().min(INLINE_BYTES_MAX));
                call = call.joined(b"p", &[some]);
            }
        }
        call = match parts.end {
            PartsEnd::Open => call,
            PartsEnd::Whole => call.arg(b"e"),
            PartsEnd::Cut => call.arg(b"x"),
        };
        let lane = Lane::of(call.bytes);
        match self.link.call(call, lane).await? {
            Value::Int(-1) => Ok(Pushed::LockLost),
            Value::Int(-2) => Ok(Pushed::PartsLost),
            Value::Int(there) => usize::try_from(there).map(Pushed::There).map_err(|_| Unavailable),
            _ => Err(Unavailable),
        }
    }

    async fn announce_uncacheable(&self, lease: &Lease) -> Result<(), Unavailable> {
        let key = self.slot_keys(&lease.slot);
        let call = scripts::ANNOUNCE
            .call(&[&key("lock"), &key("word"), &key("entry"), &key("waits")])
            .arg(hex(&lease.token.0).as_bytes())
            .arg(&text_of(Word::Uncacheable))
            .number(ms(UNCACHEABLE))
            .arg(hex(&lease.slot).as_bytes())
            .arg(self.keys.channel.as_bytes());
        self.done(call, Lane::Small).await.map(|_| ())
    }

    async fn pull(&self, slot: &Slot, token: &Token, from: usize) -> Result<Parts, Unavailable> {
        let key = self.slot_keys(slot);
        let call = scripts::PULL
            .call(&[&key("lock"), &key("parts"), &key("waits")])
            .arg(hex(&token.0).as_bytes())
            .number(from as u64)
            .number(INLINE_BYTES_MAX as u64)
            .number(ms(WAITS));
        let (end, [parts]) = reply::tagged(self.link.call(call, Lane::Small).await?).ok_or(Unavailable)?;
        let end = match end.as_str() {
            "open" => PartsEnd::Open,
            "whole" => PartsEnd::Whole,
            _ => PartsEnd::Cut,
        };
        // Without the mark in front.
        let part = |part| reply::bytes(part).filter(|part| !part.is_empty()).map(|part| part.slice(1..));
        let parts = reply::list(parts).unwrap_or_default().into_iter().map(part).collect::<Option<_>>();
        Ok(Parts { parts: parts.ok_or(Unavailable)?, end })
    }

    fn message(&self, slot: &Slot) -> impl Future<Output = ()> + Send {
        self.messages.wait(*slot)
    }
}

impl Redis {
    /// For scripts that say yes or no.
    async fn done(&self, call: Call, lane: Lane) -> Result<bool, Unavailable> {
        match self.link.call(call, lane).await? {
            Value::Int(done) => Ok(done == 1),
            _ => Err(Unavailable),
        }
    }
}

/// A lock that may have been won without anybody knowing: the answer was late, or nobody waits for it. Given back when dropped.
struct Unsure {
    redis: Option<(Arc<Link>, Arc<Keys>)>,
    slot: Slot,
    token: Token,
}

impl Unsure {
    fn new(redis: &Redis, ask: &Ask) -> Unsure {
        Unsure { redis: Some((redis.link.clone(), redis.keys.clone())), slot: ask.slot, token: ask.token }
    }

    fn take(&mut self) {
        self.redis = None;
    }
}

impl Drop for Unsure {
    fn drop(&mut self) {
        let Some((link, keys)) = self.redis.take() else { return };
        if !link.is_connected() || link.breaker_is_open() {
            return;
        }
        // Outside of a runtime the process is at its end, and so is the lock after LEASE.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let call = release(&keys, &self.slot, &self.token, None);
            runtime.spawn(async move { link.tell(call).await });
        }
    }
}

fn release(keys: &Keys, slot: &Slot, token: &Token, word: Option<Word>) -> Call {
    let slot = hex(slot);
    let (holds, only_if_somebody_waits) = match &word {
        Some(Word::Failed(_)) => (FAILED, 1),
        _ => (UNCACHEABLE, 0),
    };
    scripts::RELEASE
        .call(&[&keys.of("lock", &slot), &keys.of("word", &slot), &keys.of("waits", &slot), &keys.of("entry", &slot)])
        .arg(hex(&token.0).as_bytes())
        .arg(slot.as_bytes())
        .arg(keys.channel.as_bytes())
        .arg(&word.map(text_of).unwrap_or_default())
        .number(ms(holds))
        .number(only_if_somebody_waits)
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX >> 12)
}

fn left(value: Value) -> Option<Duration> {
    reply::number(value).map(Duration::from_millis)
}

fn text_of(word: Word) -> Vec<u8> {
    match word {
        Word::Uncacheable => b"U".to_vec(),
        Word::Failed(what) => [b"F", what.as_bytes()].concat(),
    }
}

fn word_of(text: &[u8]) -> Option<Word> {
    match text.split_first()? {
        (b'U', []) => Some(Word::Uncacheable),
        (b'F', what) => Some(Word::Failed(String::from_utf8_lossy(what).into_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_reads_as_it_was_written() {
        for word in [Word::Uncacheable, Word::Failed(String::new()), Word::Failed("502 ünreachable".into())] {
            assert_eq!(word_of(&text_of(word.clone())), Some(word));
        }
        for unknown in ["", "X", "Uncacheable"] {
            assert_eq!(word_of(unknown.as_bytes()), None, "{unknown}");
        }
    }
}
