//! Brings a response that is being fetched to the other nodes of the region: to those who wait while it arrives, and into the store once
//! it is whole. Behind the answer: a reader of the fill like any other, so the clients of this node do not wait for it.
//!
//! ```text
//!   reading ── whole within SHOW_AFTER ───────────────────▶ commit: the lock of the region goes back
//!      │ slower                                                ▲ lost or purged: it leaves this node as well
//!      ▼                                                       │
//!   showing, part by part as they come ── whole ───────────────┘
//!      ├ cut ──▶ the parts end as cut
//!      └ the region does not answer ──▶ the same parts are shown again with the next ones
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use super::fill::{Fill, FillReader};
use super::memory::Slot;
use super::{Filling, RegionalLease, Tiers};
use crate::cache::entry::Entry;
use crate::cache::packed;
use crate::cache::purge::Judged;
use crate::lock::region::{Committed, Packed, Parts, PartsEnd, Pushed, Unavailable, Word};

/// Most responses are whole by then, and are sent once.
const SHOW_AFTER: Duration = Duration::from_millis(10);
/// What is put together into one message.
const PART_BYTES: usize = 64 * 1024;
/// A response that turns out too large to be stored is shown up to here to those who read it along already; then they see it as cut.
const SHOWN_BYTES_MAX: u64 = 64 * 1_048_576;
/// How often the end of a response is shown to a region that does not answer, and the pause between: 3 s, as those who read along wait.
const LAST_TRIES: usize = 20;
const LAST_PAUSE: Duration = Duration::from_millis(50);
/// No entry stays in the region for longer, as its store is bounded by operators and not by us.
const KEEP_MAX: Duration = Duration::from_secs(31 * 24 * 3600);

/// Starts to read along. The sender is for the writer: the entry, once it is one.
pub fn start(tiers: &'static Tiers, filling: &Filling, lease: RegionalLease) -> oneshot::Sender<Option<Arc<Entry>>> {
    let (done, entry) = oneshot::channel();
    let (slot, fill) = (filling.slot, filling.fill.clone());
    if let Some(reader) = fill.reader() {
        tokio::spawn(async move {
            let is_purged = || fill.place.judge(&tiers.purges.logs) != Judged::Valid;
            match read_along(&fill, reader, &lease, is_purged).await {
                // Whether it is an entry is known a moment after its last byte.
                Ok(PartsEnd::Whole) => match entry.await.ok().flatten() {
                    Some(entry) => commit(tiers, slot, entry, lease).await,
                    None if fill.is_too_large() => lease.release(Some(Word::Uncacheable)).await,
                    None => lease.release(None).await,
                },
                // Another node fetched it anew meanwhile: this one is the older of the two.
                Err(Lost) => {
                    if let Ok(Some(entry)) = entry.await {
                        tiers.remove_this(&slot, &entry);
                    }
                }
                // Cut, purged, or larger than what is shown: nobody waits for its end.
                Ok(_) if fill.is_too_large() => lease.release(Some(Word::Uncacheable)).await,
                Ok(_) => lease.release(None).await,
            }
        });
    }
    done
}

/// Reads to the end, and shows what takes long to the other nodes. How it ended.
async fn read_along(
    fill: &Fill,
    mut reader: FillReader,
    lease: &RegionalLease,
    is_purged: impl Fn() -> bool,
) -> Result<PartsEnd, Lost> {
    let mut shown =
        Shown { lease, state: Showing::NotYet, sent: 0, unsent: Vec::new(), unsent_bytes: 0, bytes_total: 0 };
    let show_at = Instant::now() + SHOW_AFTER;
    let mut announced = false;
    let end = loop {
        let read = if shown.state == Showing::NotYet {
            match timeout_at(show_at, reader.read()).await {
                Ok(read) => read,
                Err(_) => {
                    shown.begin(fill);
                    shown.send(PartsEnd::Open).await?;
                    continue;
                }
            }
        } else {
            reader.read().await
        };
        match read {
            Ok(Some(chunk)) => shown.take(chunk),
            Ok(None) => break PartsEnd::Whole,
            Err(_) => break PartsEnd::Cut,
        }
        if fill.is_too_large() {
            // Who came before reads on to the end; nobody else is to wait for what will not be shared.
            if !announced {
                announced = true;
                lease.announce_uncacheable().await;
            }
            if shown.state == Showing::NotYet || shown.bytes_total > SHOWN_BYTES_MAX {
                break PartsEnd::Cut;
            }
        }
        // Nobody is to wait for it any more. But who reads it along has its first bytes, and gets the last.
        if shown.state == Showing::NotYet && is_purged() {
            break PartsEnd::Cut;
        }
        // What is there already goes into the same message.
        while shown.unsent_bytes < PART_BYTES
            && let Some(Ok(Some(chunk))) = reader.read().now_or_never()
        {
            shown.take(chunk);
        }
        shown.send(PartsEnd::Open).await?;
    };
    shown.send_last(end).await?;
    Ok(end)
}

/// What the other nodes were shown so far.
struct Shown<'a> {
    lease: &'a RegionalLease,
    state: Showing,
    /// As the region counts.
    sent: usize,
    unsent: Vec<Bytes>,
    unsent_bytes: usize,
    bytes_total: u64,
}

#[derive(PartialEq, Eq)]
enum Showing {
    NotYet,
    Begun,
    Over,
}

/// The lock of the region is lost.
struct Lost;

impl Shown<'_> {
    /// The first part is the head.
    fn begin(&mut self, fill: &Fill) {
        self.state = Showing::Begun;
        let head = packed::pack_head(&fill.header, &fill.lifetime, &fill.place, fill.lifetime.created);
        self.unsent.insert(0, head);
    }

    fn take(&mut self, chunk: Bytes) {
        self.bytes_total += chunk.len() as u64;
        if self.state != Showing::Over {
            self.unsent_bytes += chunk.len();
            self.unsent.push(chunk);
        }
    }

    /// True when it arrived. What did not goes with what comes next.
    async fn send(&mut self, end: PartsEnd) -> Result<bool, Lost> {
        if self.state != Showing::Begun {
            return Ok(true);
        }
        let parts = Parts { parts: std::mem::take(&mut self.unsent), end };
        match self.lease.push(self.sent, &parts).await {
            Ok(Pushed::There(sent)) => {
                (self.sent, self.unsent_bytes) = (sent, 0);
                Ok(true)
            }
            Ok(Pushed::LockLost) => Err(Lost),
            // Those who read along are cut. It is stored all the same when it is whole.
            Ok(Pushed::PartsLost) => {
                self.state = Showing::Over;
                Ok(true)
            }
            Err(Unavailable) => {
                self.unsent = parts.parts;
                Ok(false)
            }
        }
    }

    /// Without the end, all who read along would be cut.
    async fn send_last(&mut self, end: PartsEnd) -> Result<(), Lost> {
        for _ in 0..LAST_TRIES {
            if self.send(end).await? {
                return Ok(());
            }
            sleep(LAST_PAUSE).await;
        }
        Ok(())
    }
}

/// Stores an entry for the region. One that may not be stored there is not to be served here either: another node has a younger one, or
/// it was purged.
pub async fn commit(tiers: &'static Tiers, slot: Slot, entry: Arc<Entry>, lease: RegionalLease) {
    match lease.commit(&pack(&entry)).await {
        Ok(Committed::Stored) => {}
        Ok(Committed::Lost | Committed::Purged) => tiers.remove_this(&slot, &entry),
        // Unavailable: the node has it, and the lock ends by itself.
        Err(_) => {}
    }
}

fn pack(entry: &Entry) -> Packed {
    let lifetime = &entry.lifetime;
    let windows_s = u64::from(lifetime.stale_while_revalidate_s.max(lifetime.stale_if_error_s));
    let usable =
        lifetime.fresh_until.duration_since(entry.stored_at).unwrap_or_default() + Duration::from_secs(windows_s);
    let stale_until = lifetime.fresh_until + Duration::from_secs(u64::from(lifetime.stale_while_revalidate_s));
    Packed {
        parts: packed::pack(entry).to_vec(),
        scopes: entry.place.scopes().to_vec(),
        created_ms: packed::unix_ms(entry.stored_at),
        fresh_until_ms: packed::unix_ms(lifetime.fresh_until),
        stale_until_ms: packed::unix_ms(stale_until),
        // A little longer than it can be served: it can still be validated.
        keep: (usable + Duration::from_secs(60)).min(KEEP_MAX),
    }
}
