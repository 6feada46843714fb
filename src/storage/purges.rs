//! The purges that this process knows of, and how they reach the others: the processes of the node by a file, the nodes of the region by
//! a stream of its store. What a purge makes of an entry is decided in `cache::purge`.
//!
//! ```text
//!   order ──▶ stream of the region ──▶ every process of every node: marks of the region, acknowledged; and the file, for a restart
//!         └─▶ file of the node ──────▶ every process of the node: marks of the node             (a node without a region)
//! ```
//! A node that was away reads on from where it stopped. If the stream does not reach back that far, or is another one, everything that
//! began before counts as invalidated: slower, never wrong.
//!
//! While the region is out of reach a purge holds on this node at once, in the node's own log, and is given to the region when it is back.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::purge_log::{Kept, PurgeLog};
use super::regional::{Redis, Sink};
use crate::cache::packed;
use crate::cache::purge::{Epoch, Logs, Mode, Purge, Scope};
use crate::clock::Clock;

/// How long an order waits for the nodes of the region to say that they have it.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(1);

pub struct Purges {
    pub logs: Logs,
    /// Absent without a cache on disk: what is in memory dies with the process, and so may its purges.
    file: Option<Mutex<PurgeLog>>,
    /// Up to where the file has the region's purges: a process that starts reads all of the stream again.
    kept: AtomicU64,
    clock: Clock,
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
        Purges { logs: Logs::default(), file: None, kept: AtomicU64::default(), clock }
    }

    /// Reads what was purged before this process came.
    pub fn open(folder: &Path, clock: Clock) -> io::Result<Purges> {
        let file = Some(Mutex::new(PurgeLog::open(folder, clock.now())?));
        let purges = Purges { logs: Logs::default(), file, kept: AtomicU64::default(), clock };
        purges.read_file();
        Ok(purges)
    }

    /// Takes in what other processes of the node wrote.
    pub fn read_file(&self) {
        let Some(file) = &self.file else { return };
        let news = file.lock().read();
        if let Some(floor) = news.floor {
            self.hold_here(&Purge { epoch: floor, scopes: vec![Scope::ALL], mode: Mode::Delete });
        }
        for Kept { epoch, scopes, mode, regional } in news.purges {
            let purge = Purge { epoch, scopes, mode };
            match regional {
                // The position in the stream is the stream's to say: after a restart it is read again from its beginning.
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
            self.invalidate_all_here();
        }
    }

    fn hold_here(&self, purge: &Purge) {
        self.logs.node.apply(purge);
        self.logs.node.advance(purge.epoch);
    }

    fn invalidate_all_here(&self) {
        let epoch = Epoch(self.logs.node.position().0 + 1);
        self.hold_here(&Purge { epoch, scopes: vec![Scope::ALL], mode: Mode::Invalidate });
    }

    /// Carries out a purge here and, where there is a region, everywhere in it.
    pub async fn order(&self, region: Option<&Arc<Redis>>, scopes: &[Scope], mode: Mode) -> Receipt {
        let Some(region) = region else {
            let (epoch, not_kept) = self.order_here(scopes, mode);
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
                let (epoch, not_kept) = self.order_here(scopes, mode);
                Receipt { epoch, reached: Reached::Queued, not_kept }
            }
        }
    }

    /// Carries out a purge on this node. The file gives the order of its processes; without one, there is this process.
    fn order_here(&self, scopes: &[Scope], mode: Mode) -> (Epoch, Option<String>) {
        let (position, now) = (self.logs.node.position(), self.clock.now());
        let written = self.file.as_ref().map(|file| file.lock().append(scopes, mode, position, now));
        let (epoch, not_kept) = match written {
            Some(Ok(epoch)) => (epoch, None),
            Some(Err(error)) => (next(position, now), Some(error.to_string())),
            None => (next(position, now), None),
        };
        // Another process may have written one before it: that is read first, as the position moves in the file's order.
        self.read_file();
        self.hold_here(&Purge { epoch, scopes: scopes.to_vec(), mode });
        (epoch, not_kept)
    }

    /// Writes down what came from the region, for a restart while that is out of reach.
    fn keep(&self, purge: &Purge) {
        let Some(file) = &self.file else { return };
        if purge.scopes.is_empty() || self.kept.fetch_max(purge.epoch.0, Ordering::Relaxed) >= purge.epoch.0 {
            return;
        }
        let Purge { epoch, scopes, mode } = purge.clone();
        let kept = file.lock().keep(&Kept { epoch, scopes, mode, regional: true }, self.clock.now());
        if let Err(error) = kept {
            log::warn!("a purge of the region cannot be written down: {error}");
        }
    }
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
        log::warn!(
            "purges of the region may have been missed: everything cached so far is refreshed before it is served as fresh"
        );
        self.purged(&Purge { epoch: from, scopes: vec![Scope::ALL], mode: Mode::Invalidate });
    }

    fn position(&self) -> Epoch {
        self.logs.region.position()
    }
}
