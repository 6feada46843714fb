//! The purges that this process knows of, and how they reach the others: the processes of the node by a file, the nodes of the region by
//! a stream of its store. What a purge makes of an entry is decided in `cache::purge`.
//!
//! ```text
//!   order ──▶ stream of the region ──▶ every process of every node: marks of the region, acknowledged; and the file, for a restart
//!         └─▶ file of the node ──────▶ every process of the node: marks of the node             (a node without a region)
//! ```
//! A node that was away is told what it missed. If the stream does not reach back that far, or is another one, everything that began
//! before counts as invalidated, or as deleted if this process was not there meanwhile: slower, never wrong.
//!
//! While the region is out of reach a purge holds on this node at once, in the node's own log, and is given to the region when it is back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::purge_log::{Kept, PurgeLog};
use super::regional::{Redis, Sink};
use crate::cache::packed;
use crate::cache::purge::{Epoch, Logs, Mode, Purge, Scope};
use crate::clock::Clock;

/// How long an order waits for the nodes of the region to say that they have it.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(1);
/// Purges of the region on their way into the file. Beyond, one is left out: after a restart the region tells it again.
const KEPT_QUEUED_MAX: usize = 10_000;
/// Trouble with the file is told this often.
const TELL_AFTER: Duration = Duration::from_secs(60);

pub struct Purges {
    pub logs: Logs,
    /// Absent without a cache on disk: what is in memory dies with the process, and so may its purges.
    file: Option<File>,
    /// Up to where the file has the region's purges: a process that starts reads all of the stream again.
    kept: AtomicU64,
    /// This process has read the region's log to its end once.
    joined: AtomicBool,
    clock: Clock,
}

/// The node's file, and what is written beside the answers.
struct File {
    log: Arc<Mutex<PurgeLog>>,
    keeper: SyncSender<Kept>,
    /// Holds the name of the region's log that was read.
    region_log: PathBuf,
    /// What was ordered here while the region was out of reach, by processes that are gone.
    owed: Vec<(Vec<Scope>, Mode)>,
    /// The name that `region_log` holds.
    known_log: Mutex<Option<String>>,
}

/// What became of an order.
pub struct Receipt {
    pub epoch: Epoch,
    pub reached: Reached,
    /// This process cannot keep it over a restart, because of that.
    pub not_kept: Option<String>,
}

pub enum Reached {
    /// There is no region: this node.
    Alone,
    Region(Vec<Acknowledged>),
    /// It holds here, and is given to the region when that is back.
    Queued,
}

pub struct Acknowledged {
    pub node: String,
    pub acknowledged: bool,
    pub after: Duration,
}

impl Purges {
    pub fn in_memory(clock: Clock) -> Purges {
        Purges { logs: Logs::default(), file: None, kept: AtomicU64::default(), joined: AtomicBool::default(), clock }
    }

    /// Reads what was purged before this process came.
    pub fn open(folder: &Path, clock: Clock) -> io::Result<Purges> {
        let mut log = PurgeLog::open(folder, clock.now())?;
        let news = log.read();
        let region_log = folder.join("region-log");
        let known_log = fs::read_to_string(&region_log).ok().map(|name| name.trim().to_owned());
        let log = Arc::new(Mutex::new(log));
        let (keeper, queued) = sync_channel(KEPT_QUEUED_MAX);
        let (writer, now) = (log.clone(), clock.clone());
        std::thread::Builder::new().name("purges".into()).spawn(move || keep_all(&queued, &writer, &now))?;
        let owed = owed(&news.purges);
        let file = File { log, keeper, region_log, owed, known_log: Mutex::new(known_log) };
        let purges = Purges { file: Some(file), ..Purges::in_memory(clock) };
        purges.take_news(news);
        // Fetches of this process begin after what the file says of the region, whether that can be reached or not.
        purges.logs.region.advance(Epoch(purges.kept.load(Ordering::Relaxed)));
        Ok(purges)
    }

    /// The region's log that this node has read, by an earlier process.
    pub fn known_log(&self) -> Option<String> {
        self.file.as_ref()?.known_log.lock().clone()
    }

    /// Writes down which log is read now, if it is another one. Blocks for a small file.
    pub fn note_log(&self, name: String) {
        let Some(file) = &self.file else { return };
        let mut known = file.known_log.lock();
        if known.as_ref() == Some(&name) {
            return;
        }
        let fresh = file.region_log.with_extension("new");
        if let Err(error) = fs::write(&fresh, &name).and_then(|()| fs::rename(&fresh, &file.region_log)) {
            // Once: the next process takes the log for another one, which is the safe side.
            log::warn!(
                "{}: {error}; after a restart the cache on disk will be fetched again",
                file.region_log.display()
            );
        }
        *known = Some(name);
    }

    /// What the region may not have of this node's orders.
    pub fn owed(&self) -> &[(Vec<Scope>, Mode)] {
        self.file.as_ref().map_or(&[], |file| &file.owed)
    }

    /// Takes in what other processes of the node wrote.
    pub fn read_file(&self) {
        // Somebody writes: there will be news the next time.
        let Some(mut log) = self.file.as_ref().and_then(|file| file.log.try_lock()) else { return };
        let news = log.read();
        drop(log);
        self.take_news(news);
    }

    fn take_news(&self, news: super::purge_log::News) {
        if let Some(floor) = news.floor {
            self.hold_here(&Purge { epoch: floor, scopes: vec![Scope::ALL], mode: Mode::Delete });
        }
        for Kept { epoch, scopes, mode, regional } in news.purges {
            let purge = Purge { epoch, scopes, mode };
            match regional {
                // The position in the stream is the stream's to say.
                true => {
                    self.kept.fetch_max(purge.epoch.0, Ordering::Relaxed);
                    self.logs.region.apply(&purge);
                }
                false => self.hold_here(&purge),
            }
        }
        if news.lost {
            log::warn!(
                "the log of purges was damaged: everything cached so far is refreshed before it is served as fresh"
            );
            let epoch = Epoch(self.logs.node.position().0 + 1);
            self.hold_here(&Purge { epoch, scopes: vec![Scope::ALL], mode: Mode::Invalidate });
        }
    }

    fn hold_here(&self, purge: &Purge) {
        self.logs.node.apply(purge);
        self.logs.node.advance(purge.epoch);
    }

    /// Carries out a purge here and, where there is a region, everywhere in it.
    pub async fn order(self: &Arc<Self>, region: Option<&Arc<Redis>>, scopes: &[Scope], mode: Mode) -> Receipt {
        let Some(region) = region else {
            let (epoch, not_kept) = self.clone().order_behind(scopes.to_vec(), mode).await;
            return Receipt { epoch, reached: Reached::Alone, not_kept };
        };
        let began = Instant::now();
        match region.purge(scopes, mode, self.logs.region.position()).await {
            Ok(epoch) => {
                // Holds here before the stream brings it back; the position moves in the stream's order only.
                self.logs.region.apply(&Purge { epoch, scopes: scopes.to_vec(), mode });
                let left = ACKNOWLEDGED_WITHIN.saturating_sub(began.elapsed());
                let acknowledged = region.acknowledged(epoch, left).await;
                let nodes = acknowledged
                    .into_iter()
                    .map(|ack| Acknowledged { node: ack.member, acknowledged: ack.acknowledged, after: ack.after })
                    .collect();
                Receipt { epoch, reached: Reached::Region(nodes), not_kept: None }
            }
            Err(_) => {
                let (epoch, not_kept) = self.clone().order_behind(scopes.to_vec(), mode).await;
                Receipt { epoch, reached: Reached::Queued, not_kept }
            }
        }
    }

    /// The disk is slow, and another process may hold the file's lock: not on a thread that serves.
    async fn order_behind(self: Arc<Self>, scopes: Vec<Scope>, mode: Mode) -> (Epoch, Option<String>) {
        let here = self.clone();
        let ordered = tokio::task::spawn_blocking(move || here.order_here(&scopes, mode)).await;
        ordered.unwrap_or_else(|error| (self.logs.node.position(), Some(error.to_string())))
    }

    /// Carries out a purge on this node. The file gives the order of its processes; without one, there is this process.
    fn order_here(&self, scopes: &[Scope], mode: Mode) -> (Epoch, Option<String>) {
        let (position, now) = (self.logs.node.position(), self.clock.now());
        let mut news = None;
        let written = self.file.as_ref().map(|file| {
            let mut log = file.log.lock();
            let written = log.append(scopes, mode, position, now);
            // Another process may have written one before it: that is read first, as the position moves in the file's order.
            news = Some(log.read());
            written
        });
        let (epoch, not_kept) = match written {
            Some(Ok(epoch)) => (epoch, None),
            Some(Err(error)) => (next(position, now), Some(error.to_string())),
            None => (next(position, now), None),
        };
        news.into_iter().for_each(|news| self.take_news(news));
        self.hold_here(&Purge { epoch, scopes: scopes.to_vec(), mode });
        (epoch, not_kept)
    }

    /// Has it written down, for a restart.
    fn keep(&self, purge: &Purge) {
        let Some(file) = &self.file else { return };
        if purge.scopes.is_empty() || self.kept.fetch_max(purge.epoch.0, Ordering::Relaxed) >= purge.epoch.0 {
            return;
        }
        let Purge { epoch, scopes, mode } = purge.clone();
        // Full: the disk stands still. The region tells it again after a restart.
        let _ = file.keeper.try_send(Kept { epoch, scopes, mode, regional: true });
    }
}

/// Writes down what came from the region, for as long as there is somebody to take it in.
fn keep_all(queued: &Receiver<Kept>, log: &Mutex<PurgeLog>, clock: &Clock) {
    let mut told: Option<Instant> = None;
    while let Ok(kept) = queued.recv() {
        let written = log.lock().keep(&kept, clock.now());
        if let Err(error) = written
            && told.is_none_or(|told| told.elapsed() >= TELL_AFTER)
        {
            told = Some(Instant::now());
            log::warn!("purges of the region cannot be written down: {error}");
        }
    }
}

/// Orders of this node that no later line says the region has.
fn owed(lines: &[Kept]) -> Vec<(Vec<Scope>, Mode)> {
    let covers = |later: &Kept, line: &Kept| {
        later.regional
            && (later.mode == Mode::Delete || line.mode == Mode::Invalidate)
            && line.scopes.iter().all(|scope| later.scopes.contains(scope))
    };
    lines
        .iter()
        .enumerate()
        .filter(|(at, line)| !line.regional && !lines[at + 1..].iter().any(|later| covers(later, line)))
        .map(|(_, line)| (line.scopes.clone(), line.mode))
        .collect()
}

fn next(position: Epoch, now: SystemTime) -> Epoch {
    Epoch(position.0 + 1).max(Epoch::new(packed::unix_ms(now), 0))
}

impl Sink for Purges {
    fn purged(&self, purge: &Purge) {
        self.logs.region.apply(purge);
        self.keep(purge);
        self.logs.region.advance(purge.epoch);
    }

    fn lost(&self, from: Epoch) {
        // While it ran, this process heard of all purges up to the loss, and those who ordered them order them again. One that was not
        // there when they were ordered knows nothing.
        let mode = if self.joined.load(Ordering::Relaxed) { Mode::Invalidate } else { Mode::Delete };
        let effect = match mode {
            Mode::Invalidate => "is refreshed before it is served as fresh",
            Mode::Delete => "is fetched again",
        };
        log::warn!("purges of the region may have been missed: everything cached so far {effect}");
        self.purged(&Purge { epoch: from, scopes: vec![Scope::ALL], mode });
    }

    fn position(&self) -> Epoch {
        self.logs.region.position()
    }

    fn joined(&self) {
        self.joined.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_later_line_of_the_region_covers_is_owed_to_it() {
        let line = |tag: &str, mode, regional| Kept { epoch: Epoch(1), scopes: vec![Scope::tag(tag)], mode, regional };
        use Mode::{Delete, Invalidate};
        let lines = [
            line("a", Delete, false),
            line("b", Invalidate, false),
            line("c", Delete, false),
            line("b", Delete, true),
            line("c", Invalidate, true),
            line("d", Delete, true),
            line("d", Delete, false),
        ];
        let owed: Vec<Scope> = owed(&lines).into_iter().flat_map(|(scopes, _)| scopes).collect();
        assert_eq!(owed, [Scope::tag("a"), Scope::tag("c"), Scope::tag("d")]);
    }
}
