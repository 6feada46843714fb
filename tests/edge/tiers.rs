//! The cache on disk that the processes of a node share, and the tags by which entries are purged, on one node.

use std::sync::Arc;
use std::time::Duration;

use perigee::cache::purge::{Mode, Scope};

use crate::support::{Framing, Gate, Node, Origin, Reply, eventually, until};

const SHOP: &str = "shop.test";

/// Processes of one node in front of an origin: each has a memory of its own, and they share the folder.
async fn processes(origin: &Origin, count: usize) -> Vec<Node> {
    let dir = Arc::new(tempfile::tempdir().expect("a folder"));
    let mut processes = Vec::new();
    for _ in 0..count {
        processes.push(process(origin, &dir, "").await);
    }
    processes
}

async fn process(origin: &Origin, dir: &Arc<tempfile::TempDir>, yaml: &str) -> Node {
    let yaml = format!(
        "{yaml}\ndeployments:\n  - upstream: http://{}\n    name: shop\n    aliases: [shop.test]\n",
        origin.address
    );
    Node::start_in(dir.clone(), &yaml).await
}

fn status(answer: &crate::support::Answer) -> &str {
    answer.field("cache-status").unwrap_or_default()
}

/// Waits until a response is on the disk.
async fn stored(node: &Node, path: &str) {
    let slot = node.key(&format!("http://{SHOP}{path}")).0;
    let disk = node.edge.tiers.node.clone().expect("a cache on disk");
    until("it is on its way to the disk", || disk.get(&slot).is_some()).await;
    assert!(disk.flush(Duration::from_secs(5)));
    node.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_one_process_fetched_is_a_hit_in_the_other() {
    let origin = Origin::start().await;
    let nodes = processes(&origin, 2).await;
    origin.on("/a", Reply::cached("hello", "s-maxage=60").field("x-own", "1").field("cache-tag", "t"));
    assert_eq!(nodes[0].get(SHOP, "/a").await.cache(), "MISS");
    stored(&nodes[0], "/a").await;
    let there = nodes[1].get(SHOP, "/a").await;
    assert_eq!((there.cache(), there.text().as_str(), there.field("x-own")), ("HIT", "hello", Some("1")));
    assert!(status(&there).contains("hit") && status(&there).contains("detail=node"), "{}", status(&there));
    assert!(status(&nodes[1].get(SHOP, "/a").await).contains("detail=memory"));
    assert_eq!(origin.calls("/a"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_finds_what_was_cached() {
    let origin = Origin::start().await;
    let dir = Arc::new(tempfile::tempdir().expect("a folder"));
    origin.on("/a", Reply::cached("hello", "s-maxage=60"));
    origin.on("/b", Reply::cached("two", "s-maxage=60").field("vary", "accept-language"));
    let before = process(&origin, &dir, "").await;
    before.get(SHOP, "/a").await;
    before.get_with(SHOP, "/b", &[("accept-language", "de")]).await;
    before.get_with(SHOP, "/b", &[("accept-language", "fr")]).await;
    stored(&before, "/a").await;
    assert!(before.edge.tiers.node.as_ref().expect("a disk").flush(Duration::from_secs(5)));
    drop(before);
    let after = process(&origin, &dir, "").await;
    assert_eq!(after.get(SHOP, "/a").await.cache(), "HIT");
    for language in ["de", "fr"] {
        assert_eq!(after.get_with(SHOP, "/b", &[("accept-language", language)]).await.cache(), "HIT", "{language}");
    }
    assert_eq!((origin.calls("/a"), origin.calls("/b")), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_reaches_the_other_processes_and_outlives_them() {
    for how in [Mode::Delete, Mode::Invalidate] {
        let origin = Origin::start().await;
        let nodes = processes(&origin, 2).await;
        origin.on("/a", Reply::cached("old", "s-maxage=60").field("cache-tag", "one, two"));
        nodes[0].get(SHOP, "/a").await;
        stored(&nodes[0], "/a").await;
        assert_eq!(nodes[1].get(SHOP, "/a").await.cache(), "HIT");
        let gate = Gate::default();
        origin.on("/a", Reply::cached("new", "s-maxage=60").held(&gate));
        nodes[0].purge_scope(Scope::tag("two"), how).await;
        let third = process(&origin, &nodes[0].dir, "").await;
        let seen = |node: &Node| node.edge.tiers.position() == nodes[0].edge.tiers.position();
        until("the purge is known", || seen(&nodes[1]) && seen(&third)).await;
        if how == Mode::Delete {
            gate.open();
        }
        for node in [&nodes[1], &third] {
            let answer = node.get(SHOP, "/a").await;
            let expected = if how == Mode::Delete { "new" } else { "old" };
            assert_eq!(answer.text(), expected, "{how:?} {}", status(&answer));
            assert_ne!((answer.cache(), answer.text().as_str()), ("HIT", "old"), "{how:?}");
        }
        gate.open();
        for node in [&nodes[0], &nodes[1], &third] {
            eventually("it is refreshed", async || node.get(SHOP, "/a").await.text() == "new").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_refreshes_for_all() {
    let origin = Origin::start().await;
    let nodes = processes(&origin, 2).await;
    origin.on("/a", Reply::cached("old", "s-maxage=10, stale-while-revalidate"));
    nodes[0].get(SHOP, "/a").await;
    stored(&nodes[0], "/a").await;
    assert_eq!(nodes[1].get(SHOP, "/a").await.cache(), "HIT");
    origin.on("/a", Reply::cached("new", "s-maxage=10, stale-while-revalidate"));
    nodes.iter().for_each(|node| node.clock.advance(Duration::from_secs(20)));
    assert_eq!(nodes[0].get(SHOP, "/a").await.cache(), "STALE");
    eventually("it is refreshed", async || nodes[0].get(SHOP, "/a").await.text() == "new").await;
    let disk = nodes[0].edge.tiers.node.as_ref().expect("a disk");
    assert!(disk.flush(Duration::from_secs(5)));
    assert_eq!(nodes[1].get(SHOP, "/a").await.cache(), "STALE");
    eventually("the other one has it", async || nodes[1].get(SHOP, "/a").await.text() == "new").await;
    assert_eq!(origin.calls("/a"), 2, "the second process read what the first one fetched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_are_the_operators_and_not_the_clients() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let tags =
        |reply: Reply| reply.field("vercel-cache-tag", "a,b").field("cache-tag", "c").field("surrogate-key", "d e");
    origin.on("/cached", tags(Reply::cached("x", "s-maxage=60")));
    origin.on("/private", tags(Reply::ok("x")));
    for path in ["/cached", "/cached", "/private"] {
        let answer = node.get(SHOP, path).await;
        for field in ["vercel-cache-tag", "cache-tag", "surrogate-key"] {
            assert_eq!(answer.field(field), None, "{path}");
        }
    }
    for (n, tag) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        assert_eq!(node.get(SHOP, "/cached").await.cache(), "HIT");
        node.purge_scope(Scope::tag(tag), Mode::Delete).await;
        assert_eq!(node.get(SHOP, "/cached").await.cache(), "MISS", "{tag}");
        assert_eq!(origin.calls("/cached"), n + 2);
        node.purge_scope(Scope::tag("none of them"), Mode::Delete).await;
        node.idle().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_with_more_tags_than_can_be_purged_by_is_not_stored() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let list = |count: usize| (0..count).map(|n| format!("t{n}")).collect::<Vec<_>>().join(",");
    for (path, tags, expected) in [
        ("/128", list(128), "HIT"),
        ("/129", list(129), "MISS"),
        ("/256", "x".repeat(256), "HIT"),
        ("/257", "x".repeat(257), "MISS"),
    ] {
        origin.on(path, Reply::cached("x", "s-maxage=60").field("cache-tag", &tags));
        let first = node.get(SHOP, path).await;
        node.idle().await;
        assert_eq!(node.get(SHOP, path).await.cache(), expected, "{path}");
        assert_eq!(status(&first).contains("too_many_tags"), expected == "MISS", "{path}: {}", status(&first));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_304_may_bring_other_tags() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let reply = |tag: &str| Reply::cached("x", "s-maxage=10").field("etag", "\"v\"").field("cache-tag", tag);
    origin.on("/a", reply("one"));
    node.get(SHOP, "/a").await;
    node.idle().await;
    node.clock.advance(Duration::from_secs(20));
    origin.on("/a", reply("two").status(304));
    node.get(SHOP, "/a").await;
    node.idle().await;
    node.purge_scope(Scope::tag("one"), Mode::Delete).await;
    assert_eq!(node.get(SHOP, "/a").await.cache(), "HIT", "it has that tag no more");
    origin.on("/a", reply("two"));
    node.purge_scope(Scope::tag("two"), Mode::Delete).await;
    assert_eq!(node.get(SHOP, "/a").await.cache(), "MISS");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_fetched_again() {
    let origin = Origin::start().await;
    let dir = Arc::new(tempfile::tempdir().expect("a folder"));
    origin.on("/a", Reply::cached("hello", "s-maxage=60"));
    let before = process(&origin, &dir, "").await;
    before.get(SHOP, "/a").await;
    stored(&before, "/a").await;
    let slot = before.key("http://shop.test/a").to_string();
    let file = dir.path().join("data/cache/v1").join(&slot[..2]).join(&slot);
    let mut bytes = std::fs::read(&file).expect("the entry's file");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).expect("written");
    let after = process(&origin, &dir, "").await;
    let answer = after.get(SHOP, "/a").await;
    assert_eq!((answer.cache(), answer.text().as_str()), ("MISS", "hello"));
    assert_eq!(origin.calls("/a"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_cache_on_disk_memory_is_all_there_is() {
    let origin = Origin::start().await;
    let dir = Arc::new(tempfile::tempdir().expect("a folder"));
    origin.on("/a", Reply::cached("hello", "s-maxage=60"));
    let node = process(&origin, &dir, "cache: {node: off}").await;
    node.get(SHOP, "/a").await;
    assert_eq!(node.get(SHOP, "/a").await.cache(), "HIT");
    node.purge("http://shop.test/a", Mode::Delete).await;
    assert_eq!(node.get(SHOP, "/a").await.cache(), "MISS");
    assert!(!dir.path().join("data/cache").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_whose_client_went_away_stops_waiting() {
    let origin = Origin::start().await;
    let node = Node::before_with(&origin, "cache: {lock_timeout: 60s}").await;
    let gate = Gate::default();
    origin.on("/a", Reply::cached("hello", "s-maxage=60").framing(Framing::Length).held(&gate));
    let slot = node.key("http://shop.test/a").0;
    let leader = node.begin(SHOP, "/a").await;
    node.until("the call", || origin.calls("/a") == 1).await;
    let mut waiters = Vec::new();
    for _ in 0..20 {
        waiters.push(node.begin(SHOP, "/a").await);
    }
    node.until("all wait", || node.edge.lock.0.table.waiting(&slot) == Some(20)).await;
    waiters.truncate(1);
    node.until("one is left", || node.edge.lock.0.table.waiting(&slot) == Some(1)).await;
    node.until("the others are done with", || node.edge.in_flight() == 2).await;
    gate.open();
    assert_eq!(leader.finish().await.text(), "hello");
    assert_eq!(waiters.remove(0).finish().await.text(), "hello");
    assert_eq!(origin.calls("/a"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variant_whose_first_one_was_evicted_is_fetched_once_more_and_cached() {
    let origin = Origin::start().await;
    let dir = Arc::new(tempfile::tempdir().expect("a folder"));
    origin.on("/b", Reply::cached("two", "s-maxage=60").field("vary", "accept-language"));
    let before = process(&origin, &dir, "").await;
    for language in ["de", "fr"] {
        before.get_with(SHOP, "/b", &[("accept-language", language)]).await;
    }
    stored(&before, "/b").await;
    let disk = before.edge.tiers.node.clone().expect("a disk");
    disk.remove(&before.key("http://shop.test/b").0).expect("removed");
    drop(before);
    let after = process(&origin, &dir, "").await;
    after.get_with(SHOP, "/b", &[("accept-language", "de")]).await;
    after.get_with(SHOP, "/b", &[("accept-language", "fr")]).await;
    after.idle().await;
    for language in ["de", "fr"] {
        assert_eq!(after.get_with(SHOP, "/b", &[("accept-language", language)]).await.cache(), "HIT", "{language}");
    }
    assert_eq!(origin.calls("/b"), 4);
}
