//! The log of purges: order, acknowledgements, losses.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use perigee::cache::purge::{Epoch, Mode, Scope};
use perigee::lock::region::{Region, Sought, Unavailable};

use crate::node::{Node, Recorder, SLOT, address, ask, eventually, timed};
use crate::server::Server;

fn scopes(names: &[&str]) -> Vec<Scope> {
    names.iter().map(|name| Scope::tag(name)).collect()
}

#[tokio::test]
async fn all_nodes_take_all_purges_in_order() {
    let server = Server::start(&[]);
    let (a, b) = (Node::of(&server, "a/1").await, Node::of(&server, "b/1").await);
    let mut epochs = Vec::new();
    for i in 0..500 {
        let mode = if i % 2 == 0 { Mode::Delete } else { Mode::Invalidate };
        let node = if i % 3 == 0 { &b } else { &a };
        epochs.push(node.purge(&scopes(&[&i.to_string(), "all of them"]), mode, Epoch(0)).await.expect("answered"));
    }
    assert!(epochs.is_sorted_by(|a, b| a < b));
    let last = *epochs.last().expect("there are some");
    for node in [&a, &b] {
        eventually("read", || node.sink.position.load(Ordering::Relaxed) == last.0).await;
        let purges = node.sink.purges.lock().expect("no panic").clone();
        assert_eq!(purges.iter().map(|purge| purge.epoch).collect::<Vec<_>>(), epochs);
        assert_eq!(purges[3].scopes, scopes(&["3", "all of them"]));
        assert_eq!((purges[3].mode, purges[4].mode), (Mode::Invalidate, Mode::Delete));
        assert_eq!(node.sink.losses(), 0);
    }
    // The epoch of a lease is the end of the log.
    match a.seek(&ask(SLOT)).await {
        Ok(Sought::Won { lease, .. }) => assert_eq!(lease.epoch, last),
        other => panic!("{other:?}"),
    }
    // One that comes later reads them all, a few pages, before it is of use.
    let late = Node::of(&server, "c/1").await;
    assert_eq!((late.sink.scopes().len(), late.sink.losses()), (1_000, 0));
}

#[tokio::test]
async fn a_purge_is_later_than_it_has_to_be() {
    let server = Server::start(&[]);
    let node = Node::of(&server, "a/1").await;
    let first = node.purge(&scopes(&["a"]), Mode::Delete, Epoch(0)).await.expect("answered");
    let ahead = Epoch::new(first.ms() + 60_000, 5);
    let second = node.purge(&scopes(&["b"]), Mode::Delete, ahead).await.expect("answered");
    assert_eq!(second, Epoch::new(ahead.ms() + 1, 0));
    let third = node.purge(&scopes(&["c"]), Mode::Delete, Epoch(0)).await.expect("answered");
    assert_eq!(third, Epoch::new(ahead.ms() + 1, 1), "the log does not go back");
    let many: Vec<Scope> = (0..5_000).map(|i| Scope::tag(&i.to_string())).collect();
    let fourth = node.purge(&many, Mode::Delete, Epoch(0)).await.expect("answered");
    assert_eq!(fourth, Epoch::new(ahead.ms() + 1, 6), "five records");
    eventually("read", || node.sink.position.load(Ordering::Relaxed) == fourth.0).await;
    assert_eq!(node.sink.scopes().len(), 5_003);
    assert_eq!(node.sink.losses(), 0);
}

#[tokio::test]
async fn acknowledgements_come_quickly_and_from_those_who_are_there() {
    let server = Server::start(&[]);
    let (a, b) = (Node::of(&server, "a/1").await, Node::of(&server, "b/1").await);
    let mut worst = Duration::ZERO;
    for _ in 0..20 {
        let epoch = a.purge(&scopes(&["x"]), Mode::Delete, Epoch(0)).await.expect("answered");
        let (acks, took) = timed(a.acknowledged(epoch, Duration::from_secs(1))).await;
        assert!(acks.iter().all(|ack| ack.acknowledged), "{acks:?}");
        let mut members: Vec<&str> = acks.iter().map(|ack| &*ack.member).collect();
        members.sort_unstable();
        assert_eq!(members, ["a/1", "b/1"]);
        worst = worst.max(took);
    }
    println!("acknowledged by all within {worst:?}");
    assert!(worst < Duration::from_millis(500), "{worst:?}");

    let future = Epoch::new(u64::MAX >> 22, 0);
    let (acks, took) = timed(a.acknowledged(future, Duration::from_millis(50))).await;
    assert!(acks.len() == 2 && acks.iter().all(|ack| !ack.acknowledged));
    assert!(took <= Duration::from_millis(500), "{took:?}");

    // Gone in good order, silent, forgotten.
    b.shut_down().await;
    let members = "perigee:{test}:members";
    let time: Vec<u64> = server.command(&["TIME"]);
    let ago = |seconds: u64| format!("0-0 {}", (time[0] - seconds) * 1_000);
    let _: () = server.command(&["HSET", members, "silent/1", &ago(6), "forgotten/1", &ago(3_700), "odd", "odd"]);
    let acks = a.acknowledged(Epoch(0), Duration::from_secs(1)).await;
    assert_eq!(acks.iter().map(|ack| &*ack.member).collect::<Vec<_>>(), ["a/1"]);
    let mut left: Vec<String> = server.command(&["HKEYS", members]);
    left.sort();
    assert_eq!(left, ["a/1", "silent/1"]);
}

#[tokio::test]
async fn a_server_that_came_back_empty_is_a_loss_once() {
    let mut server = Server::start(&[]);
    let (a, b) = (Node::of(&server, "a/1").await, Node::of(&server, "b/1").await);
    let first = a.purge(&scopes(&["a"]), Mode::Delete, Epoch(0)).await.expect("answered");
    assert_eq!(a.acknowledged(first, Duration::from_secs(1)).await.len(), 2);
    let log = a.log_id();
    server.kill();
    a.is_lost().await;
    b.is_lost().await;
    server.resume_from_nothing();
    a.is_connected().await;
    b.is_connected().await;
    assert_ne!(a.log_id(), log);
    // What a had purged in the last minute is in the new log, and reaches b again.
    eventually("issued again", || b.sink.scopes().len() == 2).await;
    assert_eq!(b.sink.scopes(), scopes(&["a", "a"]));
    let (from_a, from_b) = (a.sink.lost.lock().expect("no panic")[0], b.sink.lost.lock().expect("no panic")[0]);
    assert!(from_a > first && from_b > first);
    // Whoever fetches from now on counts as later than the loss, for every node.
    let lease = a.win(SLOT).await;
    assert!(lease.epoch >= from_a && lease.epoch >= from_b);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((a.sink.losses(), b.sink.losses()), (1, 1));
    let second = b.purge(&scopes(&["b"]), Mode::Delete, Epoch(0)).await.expect("answered");
    assert!(a.acknowledged(second, Duration::from_secs(1)).await.iter().all(|ack| ack.acknowledged));
}

#[tokio::test]
async fn a_log_that_is_emptied_under_a_connection_is_a_loss_once() {
    let server = Server::start(&[]);
    let node = Node::of(&server, "a/1").await;
    node.purge(&scopes(&["a"]), Mode::Delete, Epoch(0)).await.expect("answered");
    eventually("read", || node.sink.scopes().len() == 1).await;
    for (turn, command) in [(1, vec!["FLUSHALL"]), (2, vec!["DEL", "perigee:{test}:purges"])] {
        let _: () = server.command(&command);
        eventually("noticed", || node.sink.losses() == turn).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(node.sink.losses(), turn, "{command:?}");
        assert!(node.state().connected);
    }
}

#[tokio::test]
async fn a_node_that_starts_again_reads_the_log_again_and_sees_what_it_missed() {
    let server = Server::start(&[]);
    let a = Node::of(&server, "a/1").await;
    let epoch = a.purge(&scopes(&["a"]), Mode::Delete, Epoch(0)).await.expect("answered");
    let log = a.log_id();
    for (known_log, position, losses, read) in [
        (log.clone(), epoch, 0, 1),
        (log.clone(), Epoch(0), 0, 1),
        (None, Epoch(0), 0, 1),
        (None, epoch, 1, 1),
        (Some("another".into()), epoch, 1, 1),
        (log, Epoch::new(epoch.ms() + 60_000, 0), 1, 1),
    ] {
        let sink = Arc::new(Recorder { position: position.0.into(), ..Recorder::default() });
        let b = Node::start(address(&server), "b/1", known_log.clone(), sink);
        b.is_connected().await;
        assert_eq!((b.sink.losses(), b.sink.scopes().len()), (losses, read), "{known_log:?} {position:?}");
    }
}

#[tokio::test]
#[ignore = "slow"]
async fn a_node_that_was_away_for_too_many_purges_has_lost_some() {
    let server = Server::start(&[]);
    let a = Node::of(&server, "a/1").await;
    let old = a.purge(&scopes(&["old"]), Mode::Delete, Epoch(0)).await.expect("answered");
    let log = a.log_id();
    // As many as are kept, and a thousand, of no scopes.
    let fill = "for i = 1, 100999 do redis.call('XADD', KEYS[1], '*', 's', '', 'm', 'd', 'w', 'x') end";
    let _: () = server.command(&["EVAL", fill, "1", "perigee:{test}:purges"]);
    let length = || server.command::<u64>(&["XLEN", "perigee:{test}:purges"]);
    assert_eq!(length(), 101_000);
    let end: Vec<(String, Vec<String>)> =
        server.command(&["XREVRANGE", "perigee:{test}:purges", "+", "-", "COUNT", "1"]);
    let read = || perigee::storage::regional::Sink::position(&*a.sink).ms().to_string();
    eventually("read", || end[0].0.starts_with(&read())).await;
    let last = a.purge(&scopes(&["new"]), Mode::Delete, Epoch(0)).await.expect("answered");
    assert_eq!(length(), 100_000);
    for (position, losses) in [(old, 1), (Epoch(last.0 - 1), 0)] {
        let sink = Arc::new(Recorder { position: position.0.into(), ..Recorder::default() });
        let b = Node::start(address(&server), "b/1", log.clone(), sink);
        let took = eventually("connected", || b.state().connected).await;
        println!("{losses} losses, ready after {took:?}");
        assert_eq!((b.sink.losses(), b.sink.scopes()), (losses, scopes(&["new"])));
    }
}

#[tokio::test]
async fn purges_that_found_no_region_arrive_when_it_is_back() {
    let mut server = Server::start(&[]);
    let (a, b) = (Node::of(&server, "a/1").await, Node::of(&server, "b/1").await);
    server.kill();
    a.is_lost().await;
    let at_least = Epoch::new(u64::MAX >> 23, 0);
    for name in ["x", "y"] {
        assert_eq!(a.purge(&scopes(&[name]), Mode::Delete, at_least).await, Err(Unavailable));
    }
    assert_eq!(a.state().queued_purges, 2);
    server.resume_from_nothing();
    let began = Instant::now();
    eventually("arrived", || b.sink.scopes().ends_with(&scopes(&["x", "y"]))).await;
    println!("arrived {:?} after the return", began.elapsed());
    assert_eq!(a.state().queued_purges, 0);
    assert!(b.sink.purges.lock().expect("no panic").iter().all(|purge| purge.epoch > at_least));
}

#[tokio::test]
async fn too_many_purges_for_the_queue_become_one_of_all() {
    let mut server = Server::start(&[]);
    let (a, b) = (Node::of(&server, "a/1").await, Node::of(&server, "b/1").await);
    server.kill();
    a.is_lost().await;
    let many: Vec<Scope> = (0..6_000).map(|i| Scope::tag(&i.to_string())).collect();
    for _ in 0..2 {
        assert_eq!(a.purge(&many, Mode::Delete, Epoch(0)).await, Err(Unavailable));
    }
    assert_eq!(a.state().queued_purges, 2);
    server.resume_from_nothing();
    eventually("arrived", || b.sink.scopes().len() == 6_001).await;
    let all = b.sink.purges.lock().expect("no panic")[0].clone();
    assert_eq!((all.scopes, all.mode), (vec![Scope::ALL], Mode::Invalidate));
}

#[tokio::test]
async fn a_purge_that_nobody_waits_for_any_more_arrives() {
    let server = Server::start(&[]);
    let (a, b) = (Node::of(&server, "a/1").await, Node::of(&server, "b/1").await);
    server.stop();
    let names = scopes(&["x"]);
    let purge = tokio::time::timeout(Duration::from_millis(5), a.purge(&names, Mode::Delete, Epoch(0)));
    assert!(purge.await.is_err());
    assert_eq!(a.state().queued_purges, 1);
    server.go_on();
    eventually("arrived", || b.sink.scopes().contains(&Scope::tag("x"))).await;
    eventually("not queued", || a.state().queued_purges == 0).await;
}
