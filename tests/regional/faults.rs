//! The store refuses, hangs, flaps, comes late: no operation takes longer than its deadline, and the region is back soon after it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use perigee::cache::purge::{Epoch, Mode, Scope};
use perigee::lock::region::{Lease, Parts, PartsEnd, Region, Token, Unavailable, Word};

use crate::node::{Node, SLOT, address, ask, eventually, packed, timed};
use crate::server::Server;

const LEASE: Lease = Lease { slot: SLOT, token: Token([1; 16]), fence: 1, epoch: Epoch(0) };

/// How long each operation took to say that it is unavailable.
async fn unavailable(node: &Node) -> Vec<(&'static str, Duration)> {
    let mut times = Vec::new();
    macro_rules! check {
        ($name:literal, $operation:expr) => {
            let (result, took) = timed($operation).await;
            assert!(matches!(result, Err(Unavailable)), "{}", $name);
            times.push(($name, took));
        };
    }
    check!("seek", node.seek(&ask(SLOT)));
    check!("renew", node.renew(&LEASE));
    check!("commit", node.commit(&LEASE, &packed(b"x", &[])));
    check!("release", node.release(&LEASE, Some(Word::Uncacheable)));
    check!("push", node.push(&LEASE, 0, &Parts { parts: vec![], end: PartsEnd::Open }));
    check!("pull", node.pull(&SLOT, &LEASE.token, 0));
    check!("look", node.look(&SLOT));
    times
}

#[tokio::test]
#[ignore = "measures times, and so runs alone: make slow"]
async fn a_server_that_hangs_costs_one_deadline_and_then_nothing() {
    let server = Server::start(&[]);
    let node = Arc::new(Node::of(&server, "a/1").await);
    server.stop();
    for (name, took) in unavailable(&node).await {
        assert!(took < Duration::from_millis(120), "{name}: {took:?}");
    }
    // By now the session is given up, or the breaker is open.
    for (name, took) in unavailable(&node).await {
        assert!(took < Duration::from_millis(2), "{name}: {took:?}");
    }
    let operations = node.state().operations;
    let began = Instant::now();
    for _ in 0..10_000 {
        assert!(node.seek(&ask(SLOT)).await.is_err());
    }
    println!("unavailable at once: {:?} each", began.elapsed() / 10_000);
    assert!(node.state().operations < operations + 10, "without asking");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    server.go_on();
    let took = eventually("back", || node.state().connected && !node.state().breaker_open).await;
    println!("back {took:?} after SIGCONT");
    assert!(took < Duration::from_secs(1), "{took:?}");
    node.win(SLOT).await;
    assert_eq!(node.sink.losses(), 0, "it hung, it lost nothing");
}

#[tokio::test]
#[ignore = "measures times, and so runs alone: make slow"]
async fn many_at_once_to_a_server_that_hangs_all_end_in_time() {
    let server = Server::start(&[]);
    let node = Node::of(&server, "a/1").await;
    server.stop();
    let began = Instant::now();
    let seeks: Vec<_> = (0..10_000u32)
        .map(|i| {
            let redis = node.redis.clone();
            tokio::spawn(async move {
                let mut slot = SLOT;
                slot[..4].copy_from_slice(&i.to_le_bytes());
                redis.seek(&ask(slot)).await.is_err()
            })
        })
        .collect();
    for seek in seeks {
        assert!(seek.await.expect("no panic"));
    }
    println!("10,000 ended within {:?}", began.elapsed());
    // Making ten thousand tasks and asking is in it, in a build for debugging.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(node.state().operations < 4_096 + 100, "more than are under way at once are turned away");
    server.go_on();
    node.is_connected().await;
    eventually("back", || !node.state().breaker_open).await;
}

#[tokio::test]
#[ignore = "measures times, and so runs alone: make slow"]
async fn a_server_that_comes_later_is_found() {
    let mut server = Server::prepare(&[]);
    let node = Node::start(address(&server), "a/1", None, Arc::default());
    tokio::time::sleep(Duration::from_millis(50)).await;
    for (name, took) in unavailable(&node).await {
        assert!(took < Duration::from_millis(2), "{name}: {took:?}");
    }
    assert!(node.purge(&[Scope::tag("x")], Mode::Delete, Epoch(0)).await.is_err());
    assert!(node.acknowledged(Epoch(1), Duration::from_millis(30)).await.is_empty());
    server.resume_from_nothing();
    let took = eventually("connected", || node.state().connected).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    eventually("purged", || node.sink.scopes() == [Scope::tag("x")]).await;
}

#[tokio::test]
#[ignore = "measures times, and so runs alone: make slow"]
async fn a_server_that_is_killed_is_lost_at_once() {
    let mut server = Server::start(&[]);
    let node = Node::of(&server, "a/1").await;
    let (message, lease) = (node.message(&SLOT), node.win(SLOT).await);
    server.kill();
    let took = eventually("lost", || !node.state().connected).await;
    println!("lost after {took:?}");
    assert!(took < Duration::from_millis(50));
    message.await;
    assert_eq!(node.renew(&lease).await, Err(Unavailable));
    server.resume_from_nothing();
    let took = eventually("connected", || node.state().connected).await;
    println!("connected again {took:?} after the start");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(node.renew(&lease).await, Ok(false), "it came back empty");
}

#[tokio::test]
#[ignore = "measures times, and so runs alone: make slow"]
async fn a_server_that_flaps_never_costs_more_than_a_deadline() {
    let mut server = Server::start(&[]);
    let node = Node::of(&server, "a/1").await;
    let (redis, sink) = (node.redis.clone(), node.sink.clone());
    let asking = tokio::spawn(async move {
        let (mut worst, mut answered, until) = (Duration::ZERO, 0, Instant::now() + Duration::from_secs(4));
        while Instant::now() < until {
            let (result, took) = timed(redis.seek(&ask([answered as u8; 16]))).await;
            (worst, answered) = (worst.max(took), answered + u64::from(result.is_ok()));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (worst, answered)
    });
    for turn in 0..4 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        if turn % 2 == 0 {
            server.stop();
            tokio::time::sleep(Duration::from_millis(400)).await;
            server.go_on();
        } else {
            server.kill();
            tokio::time::sleep(Duration::from_millis(400)).await;
            server.resume_from_nothing();
        }
    }
    let (worst, answered) = asking.await.expect("no panic");
    println!("worst {worst:?}, {answered} answered");
    assert!(worst < Duration::from_millis(130), "{worst:?}");
    node.is_connected().await;
    assert_eq!(sink.losses(), 2, "it came back empty twice");
}

#[tokio::test]
#[ignore = "measures times, and so runs alone: make slow"]
async fn a_server_that_may_not_be_written_to_is_not_used() {
    let server = Server::start(&[]);
    let node = Node::of(&server, "a/1").await;
    // Of nobody: it refuses writes from now on.
    let _: () = server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    node.is_lost().await;
    let _: () = server.command(&["REPLICAOF", "NO", "ONE"]);
    node.is_connected().await;
    node.win(SLOT).await;
}

#[tokio::test]
#[ignore = "measures times, and so runs alone: make slow"]
async fn memory_that_is_full_makes_it_unavailable_and_nothing_else() {
    let server = Server::start(&[]);
    let node = Node::of(&server, "a/1").await;
    let _: () = server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    assert!(node.seek(&ask(SLOT)).await.is_err());
    node.is_lost().await;
    let _: () = server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    node.is_connected().await;
    node.win(SLOT).await;
}
