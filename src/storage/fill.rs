//! A response on its way into the cache, readable while it arrives.
//!
//! ```text
//!            write              finish
//!   Filling ───────▶ Filling ───────────▶ Complete     the entry is in memory, readers end
//!      │ larger than an entry may be
//!      ▼
//!   Overflown ─ not stored, no new readers; chunks are dropped as soon as all readers have had them
//!      │ dropped without finish (from any state)
//!      ▼
//!   Failed ─ readers get an error: a cut response is never taken for a whole one
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use tokio::sync::Notify;

use crate::cache::entry::Place;
use crate::cache::freshness::Lifetime;
use crate::cache::policy::BODY_BYTES_MAX;

/// A response that outgrew an entry may be this far ahead of its slowest reader before the origin is slowed down, …
const BACKLOG_BYTES_SLOW: u64 = 16 * 1_048_576;
/// … and this far before it is given up: a reader that stands still must not fill the memory.
const BACKLOG_BYTES_MAX: u64 = 128 * 1_048_576;

pub struct Fill {
    pub header: ResponseHeader,
    pub lifetime: Lifetime,
    pub place: Place,
    state: Mutex<State>,
    arrived: Notify,
}

struct State {
    phase: Phase,
    chunks: VecDeque<Bytes>,
    /// How many chunks were dropped from the front.
    dropped: usize,
    /// Bytes received in all, and bytes held now.
    bytes_total: u64,
    bytes_held: u64,
    /// The next chunk of each reader.
    readers: HashMap<u64, usize>,
    readers_ever: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Filling,
    Overflown,
    Complete,
    Failed,
}

impl Fill {
    pub fn new(header: ResponseHeader, lifetime: Lifetime, place: Place) -> Fill {
        let state = State {
            phase: Phase::Filling,
            chunks: VecDeque::new(),
            dropped: 0,
            bytes_total: 0,
            bytes_held: 0,
            readers: HashMap::new(),
            readers_ever: 0,
        };
        Fill { header, lifetime, place, state: Mutex::new(state), arrived: Notify::new() }
    }

    /// Adds to the body. Errs when the slowest reader is hopelessly behind; waits a little when it is far behind.
    pub async fn write(&self, chunk: Bytes) -> Result<()> {
        let backlog = {
            let mut state = self.state.lock();
            state.bytes_total += chunk.len() as u64;
            state.bytes_held += chunk.len() as u64;
            state.chunks.push_back(chunk);
            if state.phase == Phase::Filling && state.bytes_total > BODY_BYTES_MAX {
                state.phase = Phase::Overflown;
            }
            state.drop_read();
            if state.phase == Phase::Overflown { state.bytes_held } else { 0 }
        };
        self.arrived.notify_waiters();
        if backlog > BACKLOG_BYTES_MAX {
            return Err(Error::explain(
                ErrorType::WriteError,
                "the reader of an uncacheably large response stands still",
            ));
        }
        if backlog > BACKLOG_BYTES_SLOW {
            // Not a wait for the reader: it may be served by this very task. Slowing down gives it time.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Ends the body. The whole of it when it may be stored.
    pub fn complete(&self) -> Option<Bytes> {
        let body = {
            let mut state = self.state.lock();
            let whole = (state.phase == Phase::Filling).then(|| state.whole());
            state.phase = Phase::Complete;
            whole
        };
        self.arrived.notify_waiters();
        body
    }

    /// Ends the body in the middle.
    pub fn fail(&self) {
        {
            let mut state = self.state.lock();
            if state.phase != Phase::Complete {
                state.phase = Phase::Failed;
            }
        }
        self.arrived.notify_waiters();
    }

    /// Whether a new reader would get all of it.
    pub fn is_readable(&self) -> bool {
        let state = self.state.lock();
        state.dropped == 0 && !matches!(state.phase, Phase::Overflown | Phase::Failed)
    }

    /// Whether it outgrew an entry.
    pub fn is_too_large(&self) -> bool {
        self.state.lock().bytes_total > BODY_BYTES_MAX
    }

    /// A new reader from the first byte; `None` once the beginning may be gone or the response was cut.
    pub fn reader(self: &Arc<Fill>) -> Option<FillReader> {
        let mut state = self.state.lock();
        if state.dropped > 0 || matches!(state.phase, Phase::Overflown | Phase::Failed) {
            return None;
        }
        state.readers_ever += 1;
        let id = state.readers_ever;
        state.readers.insert(id, 0);
        Some(FillReader { fill: self.clone(), id })
    }
}

impl State {
    fn whole(&self) -> Bytes {
        match self.chunks.len() {
            0 => Bytes::new(),
            // Always copied: a chunk may share a much larger buffer, which it would keep alive for as long as the entry lives.
            _ => {
                let mut body = BytesMut::with_capacity(usize::try_from(self.bytes_total).unwrap_or(0));
                self.chunks.iter().for_each(|chunk| body.extend_from_slice(chunk));
                body.freeze()
            }
        }
    }

    fn drop_read(&mut self) {
        if self.phase != Phase::Overflown {
            return;
        }
        let read = self.readers.values().copied().min().unwrap_or(usize::MAX);
        while self.dropped < read {
            let Some(chunk) = self.chunks.pop_front() else { break };
            self.dropped += 1;
            self.bytes_held -= chunk.len() as u64;
        }
    }
}

pub struct FillReader {
    fill: Arc<Fill>,
    id: u64,
}

impl FillReader {
    pub fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    /// The next part of the body; `None` at its end; an error when it was cut.
    pub async fn read(&mut self) -> Result<Option<Bytes>> {
        loop {
            let arrived = self.fill.arrived.notified();
            tokio::pin!(arrived);
            // Registered before the state is looked at, or a notification in between would be lost.
            arrived.as_mut().enable();
            {
                let mut state = self.fill.state.lock();
                let next = state.readers.get(&self.id).copied().unwrap_or(usize::MAX);
                if let Some(chunk) = next.checked_sub(state.dropped).and_then(|i| state.chunks.get(i)).cloned() {
                    state.readers.insert(self.id, next + 1);
                    state.drop_read();
                    return Ok(Some(chunk));
                }
                match state.phase {
                    Phase::Complete => return Ok(None),
                    Phase::Failed => {
                        return Err(Error::explain(
                            ErrorType::ReadError,
                            "the response was cut on its way into the cache",
                        ));
                    }
                    Phase::Filling | Phase::Overflown => {}
                }
            }
            arrived.await;
        }
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        let mut state = self.fill.state.lock();
        state.readers.remove(&self.id);
        state.drop_read();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::freshness;
    use crate::cache::purge::{Position, Scope};
    use std::time::SystemTime;

    fn fill() -> Arc<Fill> {
        let header = ResponseHeader::build(200, None).expect("200 is a status");
        let place = Place::new([1; 16], 1, Scope::deployment("d"), Position::default(), Arc::default());
        Arc::new(Fill::new(header, freshness::lifetime(SystemTime::UNIX_EPOCH, 1, 0, None, None), place))
    }

    #[tokio::test]
    async fn readers_follow_the_writer_and_see_its_end() {
        let fill = fill();
        let mut early = fill.reader().expect("a reader");
        fill.write(Bytes::from_static(b"ab")).await.expect("written");
        let mut late = fill.reader().expect("a reader");
        assert_eq!(early.read().await.expect("a chunk"), Some(Bytes::from_static(b"ab")));
        let waiting = tokio::spawn(async move { early.read().await.expect("a chunk") });
        fill.write(Bytes::from_static(b"c")).await.expect("written");
        assert_eq!(waiting.await.expect("no panic"), Some(Bytes::from_static(b"c")));
        assert_eq!(fill.complete(), Some(Bytes::from_static(b"abc")));
        assert_eq!(late.read().await.expect("a chunk"), Some(Bytes::from_static(b"ab")));
        assert_eq!(late.read().await.expect("a chunk"), Some(Bytes::from_static(b"c")));
        assert_eq!(late.read().await.expect("the end"), None);
    }

    #[tokio::test]
    async fn a_cut_response_is_an_error_and_never_an_end() {
        let fill = fill();
        let mut reader = fill.reader().expect("a reader");
        fill.write(Bytes::from_static(b"ab")).await.expect("written");
        fill.fail();
        assert!(reader.read().await.expect("the chunk that did arrive").is_some());
        assert!(reader.read().await.is_err());
        assert!(fill.reader().is_none());
    }

    #[tokio::test]
    async fn what_is_too_large_is_streamed_on_and_not_kept() {
        let fill = fill();
        let mut reader = fill.reader().expect("a reader");
        let chunk = Bytes::from(vec![0; 1 << 20]);
        for _ in 0..15 {
            fill.write(chunk.clone()).await.expect("written");
        }
        assert!(fill.reader().is_none(), "the beginning may be gone");
        for _ in 0..15 {
            assert!(reader.read().await.expect("a chunk").is_some());
        }
        assert_eq!(fill.state.lock().bytes_held, 0);
        assert_eq!(fill.complete(), None);
        assert_eq!(reader.read().await.expect("the end"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stands_still_does_not_fill_the_memory() {
        let fill = fill();
        let _reader = fill.reader().expect("a reader");
        let chunk = Bytes::from(vec![0; 1 << 20]);
        let mut written = 0;
        while fill.write(chunk.clone()).await.is_ok() {
            written += 1;
        }
        assert_eq!(written, BACKLOG_BYTES_MAX >> 20);
    }
}
