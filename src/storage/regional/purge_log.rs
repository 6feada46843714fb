//! The log of purges of a region: a stream that every node reads to its end, and goes on reading.
//!
//! ```text
//!   node A                     store of the region                        node B
//!   purge(tag a) ──────────▶   purges: … 1700-0 {tag a, delete}
//!        ◀── 1700-0            news ──────── "purge" ──────────────────▶  tail: records after what was read
//!                              members: B = 1700-0, heard of now    ◀──  taken by its sink, told
//!   acknowledged(1700-0) ──▶   who is at 1700-0 or later?
//! ```
//! - *A node is woken, and looks every 100 ms all the same*: messages may be lost. The look is also what notices a dead server, a demoted
//!   one and another log, and it carries the heartbeat.
//! - *A region is used by requests only after its log was read to the end*: an entry of the region that was purged while this node was
//!   away would be taken for a good one.
//! - *A log can be lost* (restarted empty, failed over to a replica that was behind, cut off at the front). A node that notices writes a
//!   mark, a record without scopes, and counts all that began before it as invalidated. The mark moves the log's end, so that what is
//!   fetched from then on has a position that counts as later, whatever the new server's clock says.
//! - *A process that starts reads the log from its beginning*: entries of the region may be older than what its node remembers.
//! - *What is read after a loss is taken at the mark*, not at its own position: no record is given an epoch below the node's position.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::Value;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::address::Cause;
use super::issued::Issued;
use super::link::{DEADLINE, Lane, Link, Session};
use super::reply;
use super::scripts::{self, Keys};
use crate::cache::purge::{Epoch, Mode, Purge, Scope};
use crate::lock::region::Unavailable;

/// The log is looked at this often when nobody says that there is something.
const PAUSE: Duration = Duration::from_millis(100);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A member that was not heard of for that long is not waited for.
const SILENCE: Duration = Duration::from_secs(5);
const MEMBER_AGE_MAX: Duration = Duration::from_secs(60 * 60);
/// Somebody waits for a purge to be sure of it.
const PURGE_DEADLINE: Duration = Duration::from_secs(1);
/// 16 kB. A purge of more is several records.
const RECORD_SCOPES_MAX: usize = 1_024;
/// Read at once: about a thousand small records; up to 1.6 MB more when they are large.
const READ_BYTES: u64 = 64 * 1024;
/// The log is cut to the second number when it has more records than the first: seldom, as that takes time.
const RECORDS_MAX: u64 = 101_000;
const RECORDS_KEPT: u64 = 100_000;
/// Looks in a row that fail before the session is given up. One may be a hiccup.
const MISSES_MAX: u32 = 2;
/// Acknowledgements are looked for after so many milliseconds; the last one repeats.
const LOOKS_MS: [u64; 4] = [1, 2, 4, 8];

/// Where the purges of a region go on this node. Called in order, by one task.
pub trait Sink: Send + Sync + 'static {
    /// The position is that of the purge from now on, unless it is further: a process that starts is told all of the log again.
    fn purged(&self, purge: &Purge);

    /// Purges may have been missed: what began before `from` counts as invalidated. The position is `from` from now on.
    fn lost(&self, from: Epoch);

    fn position(&self) -> Epoch;

    /// The log was read to its end for the first time in a session.
    fn joined(&self) {}
}

/// Whether a member took a purge in time, and after how long it was known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    pub member: String,
    pub acknowledged: bool,
    pub after: Duration,
}

pub struct Log {
    link: Arc<Link>,
    keys: Arc<Keys>,
    member: String,
    sink: Arc<dyn Sink>,
    /// Woken by messages about purges.
    pub news: Arc<Notify>,
    /// Guards what this process gave to the region.
    issued: Mutex<Issued>,
    /// Guards how far the log was read. Changed by the one task that reads.
    read: Mutex<Read>,
}

#[derive(Debug, Clone)]
struct Read {
    /// Which log it was.
    log: Option<String>,
    /// The last record. Behind the sink's position at the beginning, and while what was left by a loss is read.
    up_to: Epoch,
    /// What is read was left by a loss, up to the sink's position.
    lost: bool,
}

/// What a look at the log shows.
struct Page {
    log: String,
    floor: Epoch,
    last: Epoch,
    records: Vec<(Epoch, Vec<Scope>, Mode)>,
}

impl Log {
    pub fn new(
        link: Arc<Link>,
        keys: Arc<Keys>,
        member: String,
        known_log: Option<String>,
        sink: Arc<dyn Sink>,
    ) -> Log {
        // All of it is read again, whatever the position: entries of the region may be older than what this node remembers of its purges.
        let read = Read { log: known_log, up_to: Epoch::default(), lost: false };
        Log { link, keys, member, sink, news: Arc::default(), issued: Mutex::default(), read: Mutex::new(read) }
    }

    pub fn id(&self) -> Option<String> {
        self.read.lock().log.clone()
    }

    pub fn owe(&self, scopes: &[Scope], mode: Mode) {
        let mut issued = self.issued.lock();
        let number = issued.begin(scopes, mode, Epoch::default());
        issued.failed(number);
    }

    pub fn queued(&self) -> usize {
        self.issued.lock().queued()
    }

    pub async fn purge(&self, scopes: &[Scope], mode: Mode, at_least: Epoch) -> Result<Epoch, Unavailable> {
        // Whatever becomes of it, also when nobody waits for it any more: it is not forgotten.
        let mut asking = Asking { log: self, number: Some(self.issued.lock().begin(scopes, mode, at_least)) };
        let session = self.link.session().ok_or(Unavailable)?;
        let epoch = timeout(PURGE_DEADLINE, self.append(&session, scopes, mode, at_least));
        let epoch = epoch.await.map_err(|_| Unavailable)??;
        if let Some(number) = asking.number.take() {
            self.issued.lock().issued(number, epoch, Instant::now());
        }
        Ok(epoch)
    }

    /// Writes records, one unless there are very many scopes; the position of the last.
    async fn append(
        &self,
        session: &Session,
        scopes: &[Scope],
        mode: Mode,
        at_least: Epoch,
    ) -> Result<Epoch, Unavailable> {
        let mut rest = scopes;
        loop {
            let (some, more) = rest.split_at(rest.len().min(RECORD_SCOPES_MAX));
            let epoch = self.record(session, some, mode, at_least).await?;
            if more.is_empty() {
                return Ok(epoch);
            }
            rest = more;
        }
    }

    async fn record(
        &self,
        session: &Session,
        scopes: &[Scope],
        mode: Mode,
        at_least: Epoch,
    ) -> Result<Epoch, Unavailable> {
        let keys = &self.keys;
        let call = scripts::PURGE
            .call(&[&keys.purges, &keys.floor, &keys.log])
            .number(at_least.ms())
            .number(at_least.sequence())
            .arg(&packed(scopes))
            .arg(if mode == Mode::Delete { b"d" } else { b"i" })
            .arg(self.member.as_bytes())
            .arg(keys.channel.as_bytes())
            .arg(new_log().as_bytes())
            .number(RECORDS_MAX)
            .number(RECORDS_KEPT);
        let id = self.link.call_regardless(session, call, Lane::Patient(PURGE_DEADLINE)).await?;
        reply::bytes(id).and_then(|id| scripts::epoch_of(&id)).ok_or(Unavailable)
    }

    /// Who has taken the purges up to `epoch`: waits until all members have that are alive, or the time is over.
    pub async fn acknowledged(&self, epoch: Epoch, within: Duration) -> Vec<Ack> {
        let began = Instant::now();
        let mut acks: Vec<Ack> = Vec::new();
        let mut looks = LOOKS_MS.iter().copied().chain(std::iter::repeat(LOOKS_MS[LOOKS_MS.len() - 1]));
        loop {
            let members = self.members().await;
            let after = began.elapsed();
            let mut waiting = members.is_err();
            for (member, taken, silent) in members.unwrap_or_default() {
                if silent > SILENCE {
                    continue;
                }
                let at = acks.iter().position(|ack| ack.member == member).unwrap_or_else(|| {
                    acks.push(Ack { member, acknowledged: false, after });
                    acks.len() - 1
                });
                let ack = &mut acks[at];
                if !ack.acknowledged {
                    (ack.acknowledged, ack.after) = (taken >= epoch, after);
                }
                waiting |= !ack.acknowledged;
            }
            let pause = Duration::from_millis(looks.next().unwrap_or_default());
            if !waiting || after + pause > within {
                acks.iter_mut().filter(|ack| !ack.acknowledged).for_each(|ack| ack.after = after);
                return acks;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// The members, how far each has read, and for how long it has not been heard of.
    async fn members(&self) -> Result<Vec<(String, Epoch, Duration)>, Unavailable> {
        let session = self.link.session().ok_or(Unavailable)?;
        let call = scripts::MEMBERS.call(&[&self.keys.members]).number(MEMBER_AGE_MAX.as_millis() as u64);
        let members = self.link.call_regardless(&session, call, Lane::Patient(DEADLINE)).await?;
        let member = |member| {
            let [name, taken, silent] = reply::array(member)?;
            let taken = scripts::epoch_of(&reply::bytes(taken)?)?;
            // A clock that was set back.
            let silent = reply::number(silent).unwrap_or_default();
            Some((reply::text(name)?, taken, Duration::from_millis(silent)))
        };
        reply::list(members).and_then(|members| members.into_iter().map(member).collect()).ok_or(Unavailable)
    }

    /// Brings the log up to date with us and us with the log, calls `ready`, and goes on for as long as the session works.
    pub async fn follow(&self, session: &Session, mut ready: impl FnMut()) -> Cause {
        let unanswered = || Cause::from("no answer to the log of purges");
        if self.restore(session).await.is_err() {
            return unanswered();
        }
        let (mut misses, mut is_ready, mut told, mut heard) = (0, false, None, Instant::now());
        loop {
            let up_to = self.read.lock().up_to;
            let tell = (told != Some(up_to) || heard.elapsed() >= HEARTBEAT).then_some(up_to);
            let Ok(page) = self.look(session, up_to, tell).await else {
                misses += 1;
                if misses == MISSES_MAX || !is_ready {
                    return unanswered();
                }
                continue;
            };
            misses = 0;
            if let Some(up_to) = tell {
                (told, heard) = (Some(up_to), Instant::now());
            }
            let Ok(at_the_end) = self.take(session, page).await else { return unanswered() };
            if !at_the_end {
                continue;
            }
            if !is_ready {
                is_ready = true;
                self.sink.joined();
                ready();
            }
            if self.queued() > 0 {
                // Not answered in time, by a server that is there: one try more each time.
                let _ = self.issue_queued(session).await;
            }
            let _ = timeout(PAUSE, self.news.notified()).await;
        }
    }

    /// Takes the member off the list of those who are waited for.
    pub async fn leave(&self, session: &Session) {
        let call = scripts::LEAVE.call(&[&self.keys.members]).arg(self.member.as_bytes());
        let _ = self.link.call_regardless(session, call, Lane::Patient(DEADLINE)).await;
    }

    /// One look: records after `up_to`. `tell`: how far this node has read.
    async fn look(&self, session: &Session, up_to: Epoch, tell: Option<Epoch>) -> Result<Page, Unavailable> {
        let keys = &self.keys;
        let call = scripts::TAIL
            .call(&[&keys.purges, &keys.floor, &keys.log, &keys.members])
            .epoch(up_to)
            .number(READ_BYTES)
            .arg(new_log().as_bytes())
            .arg(self.member.as_bytes())
            .arg(tell.map(scripts::id_of).unwrap_or_default().as_bytes());
        let page = self.link.call_regardless(session, call, Lane::Patient(DEADLINE)).await?;
        page_of(page).ok_or(Unavailable)
    }

    /// Gives a page to the sink. True when there is nothing more to read.
    async fn take(&self, session: &Session, page: Page) -> Result<bool, Unavailable> {
        if let Some(read) = self.loss(&page) {
            let at_least = self.sink.position().max(read.up_to);
            let from = self.record(session, &[], Mode::Invalidate, at_least).await?;
            log::warn!(
                "region: purges may have been missed; what began before {} is invalidated",
                scripts::id_of(from)
            );
            self.sink.lost(from);
            *self.read.lock() = read;
            return Ok(false);
        }
        if self.sink.position() == Epoch::default() && page.floor > Epoch::default() {
            // A node that is new here cannot know what was purged before the log begins.
            self.sink.purged(&Purge { epoch: page.floor, scopes: vec![Scope::ALL], mode: Mode::Invalidate });
        }
        self.read.lock().log = Some(page.log);
        for (epoch, scopes, mode) in &page.records {
            let lost = self.read.lock().lost;
            let epoch_taken = if lost { (*epoch).max(self.sink.position()) } else { *epoch };
            self.sink.purged(&Purge { epoch: epoch_taken, scopes: scopes.clone(), mode: *mode });
            self.read.lock().up_to = *epoch;
        }
        Ok(page.records.is_empty())
    }

    /// Whether there may have been records that cannot be read any more; from where to read on then.
    fn loss(&self, page: &Page) -> Option<Read> {
        let (read, position) = (self.read.lock().clone(), self.sink.position());
        let first_contact = read.log.is_none() && position == Epoch::default();
        let same = read.log.as_ref() == Some(&page.log);
        if first_contact || (same && position >= page.floor && position <= page.last) {
            return None;
        }
        let up_to = if same { read.up_to.min(page.last) } else { Epoch::default() };
        Some(Read { log: Some(page.log.clone()), up_to, lost: true })
    }

    /// Gives the log what it should have of us: purges that did not arrive, and those that it lost.
    async fn restore(&self, session: &Session) -> Result<(), Unavailable> {
        let recent = self.issued.lock().recent(Instant::now());
        for some in recent.chunks(1_000) {
            let mut call = scripts::MISSING.call(&[&self.keys.purges]).arg(self.member.as_bytes());
            for (_, epoch) in some {
                call = call.epoch(*epoch);
            }
            let missing = self.link.call_regardless(session, call, Lane::Patient(PURGE_DEADLINE)).await?;
            for at in reply::list(missing).ok_or(Unavailable)? {
                let at = reply::number(at).and_then(|at| some.get(at as usize)).ok_or(Unavailable)?;
                self.issued.lock().failed(at.0);
            }
        }
        self.issue_queued(session).await
    }

    async fn issue_queued(&self, session: &Session) -> Result<(), Unavailable> {
        if self.issued.lock().overflowed() {
            self.record(session, &[Scope::ALL], Mode::Invalidate, self.sink.position()).await?;
            self.issued.lock().made_up();
        }
        let batches = self.issued.lock().batches(RECORD_SCOPES_MAX);
        for batch in batches {
            let epoch = self.append(session, &batch.scopes, batch.mode, batch.at_least).await?;
            let mut issued = self.issued.lock();
            for number in batch.numbers {
                issued.issued(number, epoch, Instant::now());
            }
        }
        Ok(())
    }
}

/// A purge that is being given to the region; queued when dropped with its number.
struct Asking<'a> {
    log: &'a Log,
    number: Option<u64>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number.take() {
            self.log.issued.lock().failed(number);
        }
    }
}

fn new_log() -> String {
    format!("{:032x}", fastrand::u128(..))
}

pub fn packed(scopes: &[Scope]) -> Vec<u8> {
    scopes.iter().flat_map(|scope| scope.0).collect()
}

fn page_of(value: Value) -> Option<Page> {
    let [log, floor, last, records] = reply::array(value)?;
    let record = |record| {
        let [id, fields] = reply::array(record)?;
        let [_, scopes, _, mode, ..]: [Value; 6] = reply::array(fields)?;
        let scopes = reply::bytes(scopes)?;
        let (scopes, _) = scopes.as_chunks::<16>();
        let mode = if &reply::bytes(mode)?[..] == b"i" { Mode::Invalidate } else { Mode::Delete };
        Some((scripts::epoch_of(&reply::bytes(id)?)?, scopes.iter().copied().map(Scope).collect(), mode))
    };
    Some(Page {
        log: reply::text(log)?,
        floor: scripts::epoch_of(&reply::bytes(floor)?)?,
        last: scripts::epoch_of(&reply::bytes(last)?)?,
        records: reply::list(records)?.into_iter().map(record).collect::<Option<_>>()?,
    })
}
