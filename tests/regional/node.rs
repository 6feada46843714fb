//! A node of a region: the client, what its sink was given, and its clock.

use std::future::Future;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use perigee::cache::purge::{Epoch, Purge, Scope};
use perigee::lock::region::{Ask, Lease, Packed, Region, Sought, Token};
use perigee::storage::memory::Slot;
use perigee::storage::regional::{Address, Mode, Redis, Settings, Sink};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::server::Server;

pub const SLOT: Slot = [7; 16];
pub const NOW: u64 = 1_000_000;

#[derive(Default)]
pub struct Recorder {
    pub purges: Mutex<Vec<Purge>>,
    pub lost: Mutex<Vec<Epoch>>,
    pub position: AtomicU64,
}

impl Sink for Recorder {
    fn purged(&self, purge: &Purge) {
        // What lies before the position comes again when a node starts.
        self.position.fetch_max(purge.epoch.0, Ordering::Relaxed);
        // Marks say nothing.
        if !purge.scopes.is_empty() {
            self.purges.lock().expect("no panic").push(purge.clone());
        }
    }

    fn lost(&self, from: Epoch) {
        assert!(from > self.position(), "a loss moves on");
        self.position.store(from.0, Ordering::Relaxed);
        self.lost.lock().expect("no panic").push(from);
    }

    fn position(&self) -> Epoch {
        Epoch(self.position.load(Ordering::Relaxed))
    }
}

impl Recorder {
    pub fn scopes(&self) -> Vec<Scope> {
        self.purges.lock().expect("no panic").iter().flat_map(|purge| purge.scopes.clone()).collect()
    }

    pub fn losses(&self) -> usize {
        self.lost.lock().expect("no panic").len()
    }
}

pub struct Node {
    pub redis: Arc<Redis>,
    pub sink: Arc<Recorder>,
    leave: Option<oneshot::Sender<()>>,
    run: Option<JoinHandle<()>>,
}

impl Deref for Node {
    type Target = Redis;

    fn deref(&self) -> &Redis {
        &self.redis
    }
}

pub fn address(server: &Server) -> Address {
    Address { urls: vec![server.url()], mode: Mode::Single, username: None, password: None, ca_pem: None }
}

impl Node {
    /// Connected and ready.
    pub async fn of(server: &Server, member: &str) -> Node {
        let node = Node::start(address(server), member, None, Arc::default());
        node.is_connected().await;
        node
    }

    pub fn start(address: Address, member: &str, known_log: Option<String>, sink: Arc<Recorder>) -> Node {
        Node::of_region("test", address, member, known_log, sink)
    }

    pub fn of_region(
        region: &str,
        address: Address,
        member: &str,
        known_log: Option<String>,
        sink: Arc<Recorder>,
    ) -> Node {
        let settings = Settings {
            address,
            region: region.into(),
            member: member.into(),
            known_log,
            observer: Arc::new(|_, _, _| ()),
        };
        let redis = Arc::new(Redis::new(settings, sink.clone()).expect("the address is right"));
        let (leave, left) = oneshot::channel();
        let run = tokio::spawn({
            let redis = redis.clone();
            async move { redis.run(async { _ = left.await }).await }
        });
        Node { redis, sink, leave: Some(leave), run: Some(run) }
    }

    pub async fn shut_down(mut self) {
        let _ = self.leave.take().expect("once").send(());
        self.run.take().expect("once").await.expect("no panic");
    }

    pub async fn is_connected(&self) {
        eventually("connected", || self.state().connected).await;
    }

    pub async fn is_lost(&self) {
        eventually("lost", || !self.state().connected).await;
    }

    pub async fn win(&self, slot: Slot) -> Lease {
        match self.seek(&ask(slot)).await {
            Ok(Sought::Won { lease, .. }) => lease,
            other => panic!("{:.100}", format!("{other:?}")),
        }
    }
}

pub fn ask(slot: Slot) -> Ask {
    Ask { slot, token: Token::random(), now_ms: NOW, have_ms: 0, stale_will_do: false }
}

/// Created now, fresh for ten, stale for twenty.
pub fn packed(data: &[u8], scopes: &[Scope]) -> Packed {
    Packed {
        parts: data.chunks(100_000).map(Bytes::copy_from_slice).collect(),
        scopes: scopes.to_vec(),
        created_ms: NOW,
        fresh_until_ms: NOW + 10,
        stale_until_ms: NOW + 20,
        keep: Duration::from_secs(60),
    }
}

pub async fn eventually(what: &str, mut is: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(30), "never {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    began.elapsed()
}

pub async fn timed<T>(what: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    (what.await, began.elapsed())
}
