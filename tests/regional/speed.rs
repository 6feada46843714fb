//! What it costs. Run in release mode, by name: `cargo test --release --test regional speed -- --ignored --nocapture`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use perigee::cache::purge::{Epoch, Mode, Scope};
use perigee::lock::region::{Region, Sought};

use crate::node::{Node, ask, packed};
use crate::server::Server;

fn slot(number: u64) -> [u8; 16] {
    let mut slot = [0; 16];
    slot[..8].copy_from_slice(&number.to_le_bytes());
    slot
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_micros();
    println!("{what:24} p50 {:>5} µs  p99 {:>5} µs  max {:>6} µs", at(50), at(99), at(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn speed() {
    let server = Server::start(&[]);
    let (a, b) = (Node::of(&server, "a/1").await, Node::of(&server, "b/1").await);
    for size in [2_000, 100_000, 1 << 20] {
        let rounds = if size > 500_000 { 200 } else { 3_000 };
        let entry = packed(&vec![b'x'; size], &[Scope::tag("a"), Scope::tag("b")]);
        let (mut seeks, mut commits, mut hits) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..rounds {
            let at = slot(i + ((size as u64) << 32));
            let began = Instant::now();
            let lease = a.win(at).await;
            seeks.push(began.elapsed());
            let began = Instant::now();
            a.commit(&lease, &entry).await.expect("answered");
            commits.push(began.elapsed());
            let began = Instant::now();
            assert!(matches!(b.seek(&ask(at)).await, Ok(Sought::Entry(_))));
            hits.push(began.elapsed());
        }
        report("seek: won", &mut seeks);
        report(&format!("commit {size}"), &mut commits);
        report(&format!("seek: entry {size}"), &mut hits);
    }
    let (mut delivered, mut acknowledged) = (Vec::new(), Vec::new());
    for _ in 0..300 {
        let began = Instant::now();
        let epoch = a.purge(&[Scope::tag("a")], Mode::Delete, Epoch(0)).await.expect("answered");
        while perigee::storage::regional::Sink::position(&*b.sink) < epoch {
            tokio::task::yield_now().await;
        }
        delivered.push(began.elapsed());
        a.acknowledged(epoch, Duration::from_secs(1)).await;
        acknowledged.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    report("purge, other node", &mut delivered);
    report("purge, acknowledged", &mut acknowledged);
    let redis = Arc::new(a);
    let began = Instant::now();
    let tasks: Vec<_> = (0..64u64)
        .map(|task| {
            let redis = redis.clone();
            tokio::spawn(async move {
                let entry = packed(&[b'x'; 2_000], &[Scope::tag("c")]);
                for i in 0..1_000 {
                    let lease = redis.win(slot((task << 40) | (i << 20) | 1)).await;
                    redis.commit(&lease, &entry).await.expect("answered");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    println!("64 at once: {:.0} operations/s", 128_000.0 / began.elapsed().as_secs_f64());
    let (before, began) = (redis.state().operations, Instant::now());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = redis.state().operations - before;
    println!("idle: {:.1} operations/s a node", idle as f64 / began.elapsed().as_secs_f64());
}
