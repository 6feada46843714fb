//! The lock, the entries and the messages: what each operation says, also when another came first.

use std::time::Duration;

use bytes::Bytes;
use perigee::cache::purge::{Epoch, Mode, Scope};
use perigee::lock::region::{Ask, Committed, Parts, PartsEnd, Pushed, Region, Sought, Unavailable, Word};
use tokio::time::timeout;

use crate::node::{NOW, Node, SLOT, ask, eventually, packed};
use crate::server::Server;

fn key(kind: &str) -> String {
    format!("perigee:{{test}}:{kind}:{}", "07".repeat(16))
}

fn text(sought: &Result<Sought, Unavailable>) -> String {
    match sought {
        Ok(Sought::Entry(entry)) => format!("entry {}", String::from_utf8_lossy(entry)),
        Ok(Sought::Word(word, left)) => format!("{word:?} {}", left.as_secs_f32().ceil()),
        Ok(Sought::Won { stale, .. }) => format!("won {stale:?}"),
        Ok(Sought::Held { left, arriving }) => {
            assert!(*left > Duration::from_millis(1_000) && *left <= Duration::from_millis(2_000), "{left:?}");
            format!("held {}", arriving.is_some())
        }
        Err(Unavailable) => "unavailable".into(),
    }
}

#[tokio::test]
async fn a_seeker_is_told_what_there_is() {
    let server = Server::start(&[]);
    let (a, b) = (Node::of(&server, "a/1").await, Node::of(&server, "b/1").await);
    let lease = a.win(SLOT).await;
    assert_eq!(text(&b.seek(&ask(SLOT)).await), "held false");
    let look = a.look(&SLOT).await.expect("answered");
    assert_eq!((look.lock_holder.map(|(member, _)| member).as_deref(), look.entry), (Some("a/1"), None));
    assert_eq!(a.commit(&lease, &packed(b"one", &[])).await, Ok(Committed::Stored));
    let seek = |now_ms, have_ms, stale_will_do| {
        let (a, b) = (&a, &b);
        async move {
            let sought = b.seek(&Ask { now_ms, have_ms, stale_will_do, ..ask(SLOT) }).await;
            let told = text(&sought);
            if let Ok(Sought::Won { lease, .. }) = sought {
                assert_eq!(a.release(&lease, None).await, Ok(()));
            }
            told
        }
    };
    for (now, have, stale_will_do, told) in [
        (NOW, 0, false, "entry one"),
        (NOW + 9, NOW - 1, false, "entry one"),
        (NOW, NOW, false, "won None"),
        (NOW + 10, 0, false, "won Some(b\"one\")"),
        (NOW + 10, 0, true, "entry one"),
        (NOW + 10, NOW, true, "won None"),
        (NOW + 20, 0, true, "won Some(b\"one\")"),
    ] {
        assert_eq!(seek(now, have, stale_will_do).await, told, "{now} {have} {stale_will_do}");
    }
    assert_eq!(a.look(&SLOT).await.expect("answered").entry.as_deref(), Some(&b"one"[..]));
    let keep: u64 = server.command(&["PTTL", &key("entry")]);
    assert!((1..=60_000).contains(&keep));
    // Fences grow, over all slots.
    let (first, second) = (a.win([1; 16]).await, b.win([2; 16]).await);
    assert!(lease.fence < first.fence && first.fence < second.fence);
}

#[tokio::test]
async fn a_lock_ends_unless_it_is_renewed() {
    let server = Server::start(&[]);
    let node = Node::of(&server, "a/1").await;
    let lease = node.win(SLOT).await;
    let _: () = server.command(&["PEXPIRE", &key("lock"), "50"]);
    assert_eq!(node.renew(&lease).await, Ok(true));
    let left: u64 = server.command(&["PTTL", &key("lock")]);
    assert!(left > 1_900);
    let _: () = server.command(&["DEL", &key("lock")]);
    assert_eq!(node.renew(&lease).await, Ok(false));
    let other = node.win(SLOT).await;
    assert_eq!(node.renew(&lease).await, Ok(false), "it is another one's");
    assert_eq!(node.renew(&other).await, Ok(true));
}

#[tokio::test]
async fn only_the_holder_stores_and_releases() {
    let server = Server::start(&[]);
    let node = Node::of(&server, "a/1").await;
    let lost = node.win(SLOT).await;
    let _: () = server.command(&["DEL", &key("lock")]);
    assert_eq!(node.commit(&lost, &packed(b"late", &[])).await, Ok(Committed::Lost), "nobody has it");
    let holder = node.win(SLOT).await;
    assert_eq!(node.commit(&lost, &packed(b"late", &[])).await, Ok(Committed::Lost), "somebody has it");
    assert_eq!(node.release(&lost, Some(Word::Uncacheable)).await, Ok(()));
    assert_eq!(
        node.push(&lost, 0, &Parts { parts: vec!["x".into()], end: PartsEnd::Open }).await,
        Ok(Pushed::LockLost),
        "it is not shown either"
    );
    assert_eq!(text(&node.seek(&ask(SLOT)).await), "held false", "no word, no parts, and the lock is where it was");
    assert_eq!(node.commit(&holder, &packed(b"good", &[])).await, Ok(Committed::Stored));
    assert_eq!(text(&node.seek(&ask(SLOT)).await), "entry good");
}

#[tokio::test]
async fn what_was_purged_meanwhile_is_not_stored() {
    let server = Server::start(&[]);
    let node = Node::of(&server, "a/1").await;
    let (own, other) = (Scope::tag("own"), Scope::tag("other"));
    let many: Vec<Scope> = (0..999).map(|i| Scope::tag(&i.to_string())).collect();
    for (purges, times, committed) in [
        (vec![], 0, Committed::Stored),
        (vec![other], 1, Committed::Stored),
        (vec![own], 1, Committed::Purged),
        (vec![other, own], 1, Committed::Purged),
        (vec![Scope::ALL], 1, Committed::Purged),
        (many.clone(), 1, Committed::Stored),
        (many, 11, Committed::Purged),
        (vec![other], 1_000, Committed::Stored),
        (vec![other], 1_001, Committed::Purged),
    ] {
        node.purge(&[own], Mode::Delete, Epoch(0)).await.expect("before the lock was taken");
        let lease = node.win(SLOT).await;
        for _ in 0..times {
            node.purge(&purges, Mode::Invalidate, Epoch(0)).await.expect("answered");
            assert_eq!(node.renew(&lease).await, Ok(true), "a thousand purges take a while");
        }
        let entry = packed(b"x", &[Scope::tag("first"), own]);
        assert_eq!(node.commit(&lease, &entry).await, Ok(committed), "{} {times}", purges.len());
        assert_eq!(node.renew(&lease).await, Ok(false), "the lock is given back in any case");
        let _: () = server.command(&["DEL", &key("entry")]);
    }
}

#[tokio::test]
async fn words_go_to_those_who_wait() {
    let server = Server::start(&[]);
    let (a, b) = (Node::of(&server, "a/1").await, Node::of(&server, "b/1").await);
    let failed = || Some(Word::Failed("502".into()));

    a.release(&a.win(SLOT).await, failed()).await.expect("answered");
    let alone = a.win(SLOT).await;
    assert_eq!(text(&b.seek(&ask(SLOT)).await), "held false");
    a.release(&alone, failed()).await.expect("answered");
    assert_eq!(text(&b.seek(&ask(SLOT)).await), "Failed(\"502\") 1");
    let _: () = server.command(&["DEL", &key("word")]);

    // Nobody waits any more: they went away with the release.
    a.release(&a.win(SLOT).await, failed()).await.expect("answered");
    a.release(&a.win(SLOT).await, Some(Word::Uncacheable)).await.expect("answered");
    assert_eq!(text(&b.seek(&ask(SLOT)).await), "Uncacheable 120");
    assert_eq!(a.look(&SLOT).await.expect("answered").word.map(|(word, _)| word), Some(Word::Uncacheable));

    // A response that can be stored takes the word away.
    let _: () = server.command(&["RENAME", &key("word"), &key("kept")]);
    let lease = a.win(SLOT).await;
    let _: () = server.command(&["RENAME", &key("kept"), &key("word")]);
    assert_eq!(a.commit(&lease, &packed(b"new", &[])).await, Ok(Committed::Stored));
    assert_eq!(text(&b.seek(&ask(SLOT)).await), "entry new");
}

#[tokio::test]
async fn large_entries_come_whole_and_let_small_ones_pass() {
    let server = Server::start(&[]);
    let node = Node::of(&server, "a/1").await;
    for size in [0, 1, 256 * 1024, 256 * 1024 + 1, 5 << 20] {
        let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let lease = node.win(SLOT).await;
        assert_eq!(node.commit(&lease, &packed(&data, &[])).await, Ok(Committed::Stored), "{size}");
        match node.seek(&ask(SLOT)).await {
            Ok(Sought::Entry(entry)) => assert!(entry == data, "{size}"),
            other => panic!("{size}: {other:?}"),
        }
        let look = node.look(&SLOT).await.expect("answered");
        assert_eq!(look.entry.map(|entry| entry.len()), Some(size).filter(|size| *size > 0));
        match node.seek(&Ask { now_ms: NOW + 50, ..ask(SLOT) }).await {
            Ok(Sought::Won { stale: Some(stale), lease }) => {
                assert!(stale == data, "{size}");
                node.release(&lease, None).await.expect("answered");
            }
            other => panic!("{size}: {other:?}"),
        }
        let _: () = server.command(&["DEL", &key("entry")]);
    }
}

#[tokio::test]
async fn parts_are_read_along_and_after() {
    let server = Server::start(&[]);
    let (a, b) = (Node::of(&server, "a/1").await, Node::of(&server, "b/1").await);
    let lease = a.win(SLOT).await;
    let push = async |from, parts: &[&'static str], end| {
        let parts = parts.iter().map(|part| Bytes::from_static(part.as_bytes())).collect();
        a.push(&lease, from, &Parts { parts, end }).await
    };
    let pull = async |from| {
        let parts = b.pull(&SLOT, &lease.token, from).await.expect("answered");
        (parts.parts.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect::<String>(), parts.end)
    };
    assert_eq!(pull(0).await, (String::new(), PartsEnd::Cut), "there is nothing yet");
    assert_eq!(push(0, &[], PartsEnd::Open).await, Ok(Pushed::There(0)));
    assert_eq!(text(&b.seek(&ask(SLOT)).await), "held true");
    assert_eq!(pull(0).await, (String::new(), PartsEnd::Open));
    assert_eq!(push(0, &["a"], PartsEnd::Open).await, Ok(Pushed::There(1)));
    assert_eq!(push(0, &["a", "b"], PartsEnd::Open).await, Ok(Pushed::There(2)), "what is there does not come twice");
    assert_eq!(push(3, &["d"], PartsEnd::Open).await, Ok(Pushed::PartsLost), "there would be a hole");
    assert_eq!(pull(0).await, ("ab".into(), PartsEnd::Open));
    assert_eq!(pull(1).await, ("b".into(), PartsEnd::Open));
    assert_eq!(push(2, &["c"], PartsEnd::Whole).await, Ok(Pushed::There(4)));
    assert_eq!(a.commit(&lease, &packed(b"abc", &[])).await, Ok(Committed::Stored));
    assert_eq!(pull(2).await, ("c".into(), PartsEnd::Whole), "after the commit");
    assert_eq!(pull(3).await, (String::new(), PartsEnd::Whole));
    let left: u64 = server.command(&["PTTL", &key("parts")]);
    assert!((5_000..=10_000).contains(&left), "{left}");

    // The next holder's parts are its own.
    let _: () = server.command(&["DEL", &key("entry")]);
    let next = a.win(SLOT).await;
    assert_eq!(text(&b.seek(&ask(SLOT)).await), "held false");
    let other = Parts { parts: vec!["z".into()], end: PartsEnd::Open };
    assert_eq!(a.push(&next, 0, &other).await, Ok(Pushed::There(1)));
    assert_eq!(pull(0).await, (String::new(), PartsEnd::Cut));
    assert_eq!(b.pull(&SLOT, &next.token, 0).await.expect("answered").end, PartsEnd::Open);
    let _: () = server.command(&["DEL", &key("lock")]);
    let cut = b.pull(&SLOT, &next.token, 0).await.expect("answered");
    assert_eq!((cut.parts, cut.end), (other.parts, PartsEnd::Cut));
}

#[tokio::test]
async fn large_parts_are_read_in_pieces() {
    let server = Server::start(&[]);
    let node = Node::of(&server, "a/1").await;
    let lease = node.win(SLOT).await;
    let data: Vec<u8> = (0..1_500_000).map(|i| (i % 253) as u8).collect();
    let parts =
        vec![Bytes::copy_from_slice(&data[..1_000_000]), Bytes::new(), Bytes::copy_from_slice(&data[1_000_000..])];
    let pushed = node.push(&lease, 0, &Parts { parts, end: PartsEnd::Whole }).await;
    assert_eq!(pushed, Ok(Pushed::There(4 + 2 + 1)), "in pieces of 256 KiB, and the end");
    let (mut read, mut from) = (Vec::<u8>::new(), 0);
    loop {
        let parts = node.pull(&SLOT, &lease.token, from).await.expect("answered");
        from += parts.parts.len();
        assert!(parts.parts.iter().map(Bytes::len).sum::<usize>() <= 256 * 1024);
        read.extend(parts.parts.iter().flat_map(|part| part.iter()));
        match parts.end {
            PartsEnd::Open => assert!(!parts.parts.is_empty()),
            PartsEnd::Whole => break,
            PartsEnd::Cut => panic!("cut"),
        }
    }
    assert!(read == data);
}

#[tokio::test]
async fn a_message_wakes_those_who_were_told_to_wait() {
    let server = Server::start(&[]);
    let (a, b) = (Node::of(&server, "a/1").await, Node::of(&server, "b/1").await);
    for turn in 0..3 {
        let lease = a.win(SLOT).await;
        let message = b.message(&SLOT);
        assert_eq!(text(&b.seek(&ask(SLOT)).await), "held false");
        match turn {
            0 => a.release(&lease, None).await.expect("answered"),
            1 => _ = a.push(&lease, 0, &Parts { parts: vec!["x".into()], end: PartsEnd::Open }).await,
            _ => _ = a.commit(&lease, &packed(b"x", &[])).await,
        }
        timeout(Duration::from_secs(5), message).await.expect("woken");
        let _ = a.release(&lease, None).await;
        let _: () = server.command(&["DEL", &key("parts")]);
    }
}

#[tokio::test]
async fn a_lock_that_nobody_knows_of_is_given_back() {
    let server = Server::start(&[]);
    let (a, b) = (Node::of(&server, "a/1").await, Node::of(&server, "b/1").await);
    // Paused for longer than an operation has: it is carried out afterwards.
    let _: () = server.command(&["CLIENT", "PAUSE", "120", "ALL"]);
    assert!(a.seek(&ask(SLOT)).await.is_err());
    tokio::time::sleep(Duration::from_millis(60)).await;
    let began = std::time::Instant::now();
    let mut sought = b.seek(&ask(SLOT)).await;
    while !matches!(sought, Ok(Sought::Won { .. })) {
        assert!(began.elapsed() < Duration::from_secs(1), "{sought:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
        sought = b.seek(&ask(SLOT)).await;
    }
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_loaded_again() {
    let server = Server::start(&[]);
    let node = Node::of(&server, "a/1").await;
    let _: () = server.command(&["SCRIPT", "FLUSH", "SYNC"]);
    let lease = node.win(SLOT).await;
    assert_eq!(node.commit(&lease, &packed(b"x", &[])).await, Ok(Committed::Stored));
    assert_eq!(node.state().failures, 0);
}

#[tokio::test]
async fn every_key_that_grows_in_number_has_a_time_to_live() {
    let server = Server::start(&[]);
    let (a, b) = (Node::of(&server, "a/1").await, Node::of(&server, "b/1").await);
    a.purge(&[Scope::tag("a")], Mode::Delete, Epoch(0)).await.expect("answered");
    let lease = a.win(SLOT).await;
    b.seek(&ask(SLOT)).await.expect("answered");
    a.push(&lease, 0, &Parts { parts: vec!["x".into()], end: PartsEnd::Open }).await.expect("answered");
    a.commit(&a.win([1; 16]).await, &packed(b"x", &[])).await.expect("answered");
    a.release(&a.win([2; 16]).await, Some(Word::Uncacheable)).await.expect("answered");
    eventually("told", || server.command::<bool>(&["EXISTS", "perigee:{test}:members"])).await;
    for key in server.command::<Vec<String>>(&["KEYS", "*"]) {
        let name = key.strip_prefix("perigee:{test}:").expect("of the region");
        let lives: i64 = server.command(&["PTTL", &key]);
        let stays = ["fence", "purges", "floor", "log", "members"].contains(&name);
        assert_eq!(lives == -1, stays, "{key} {lives}");
    }
}
