//! Several nodes of a region with one real Redis: one fetch for all of them, whatever happens to the fetch, to a node or to the store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use perigee::cache::purge::{Mode, Scope};

use crate::redis_server::Server;
use crate::support::{Answer, Framing, Gate, Node, Origin, Reply, eventually, until};

const SHOP: &str = "shop.test";

/// Regions at a time: the store's deadline is 100 ms, and a machine that runs all tests at once would miss it.
static REGIONS: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(2);

/// Nodes of one region in front of one origin.
struct Region {
    _turn: tokio::sync::SemaphorePermit<'static>,
    origin: Origin,
    redis: Server,
    nodes: Vec<Node>,
}

impl Region {
    async fn of(count: usize) -> Region {
        Region::with(count, "cache: {node: off, regional: {redis: \"{redis}\"}}").await
    }

    async fn with(count: usize, yaml: &str) -> Region {
        let turn = REGIONS.acquire().await.expect("never closed");
        let redis = Server::start(&[]);
        let origin = Origin::start().await;
        let yaml = yaml.replace("{redis}", &redis.url());
        let mut nodes = Vec::new();
        for _ in 0..count {
            nodes.push(node(&origin, &yaml).await);
        }
        let region = Region { _turn: turn, origin, redis, nodes };
        region.is_whole().await;
        region
    }

    async fn is_whole(&self) {
        for node in &self.nodes {
            let region = node.edge.tiers.region.as_ref().expect("a region");
            until("the node is connected", || region.state().connected && !region.state().breaker_open).await;
        }
    }

    /// Operations that the store did not answer within its deadline of 100 ms.
    fn late(&self) -> u64 {
        self.nodes.iter().filter_map(|node| node.edge.tiers.region.as_ref()).map(|region| region.state().failures).sum()
    }

    /// Counts the origin's calls during a scenario in which the store kept its deadlines: a machine too busy for that makes each node a
    /// region of its own, as it should, and the scenario is tried again.
    async fn calls_of(&self, path: &str, scenario: impl AsyncFn()) -> usize {
        for _ in 0..10 {
            let (calls, late) = (self.origin.calls(path), self.late());
            scenario().await;
            if self.late() == late {
                return self.origin.calls(path) - calls;
            }
            self.is_whole().await;
        }
        panic!("the machine is too busy");
    }

    /// So many requests at each node at once.
    async fn burst(&self, each: usize, path: &str) -> Vec<Answer> {
        let bursts = self.nodes.iter().map(|node| node.burst(each, SHOP, path));
        futures_util::future::join_all(bursts).await.into_iter().flatten().collect()
    }

    /// Waits until the region has what was fetched: nobody holds its lock any more.
    async fn settled(&self, path: &str) {
        let node = &self.nodes[0];
        let slot = node.key(&format!("http://{SHOP}{path}")).0;
        let region = node.edge.tiers.region.clone().expect("a region");
        eventually("the lock of the region is free", async || {
            region.look(&slot).await.is_ok_and(|look| look.lock_holder.is_none())
        })
        .await;
        for node in &self.nodes {
            node.idle().await;
        }
    }

    async fn order(&self, at: usize, scope: Scope, mode: Mode) -> Vec<(bool, Duration)> {
        let tiers = self.nodes[at].edge.tiers;
        let receipt = tiers.purges.order(tiers.region.as_ref(), &[scope], mode).await;
        match receipt.reached {
            perigee::storage::purges::Reached::Region(nodes) => {
                nodes.into_iter().map(|node| (node.acknowledged, node.after)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn advance(&self, seconds: u64) {
        self.nodes.iter().for_each(|node| node.clock.advance(Duration::from_secs(seconds)));
    }
}

async fn node(origin: &Origin, yaml: &str) -> Node {
    node_in(origin, &Arc::new(tempfile::tempdir().expect("a folder")), yaml).await
}

async fn node_in(origin: &Origin, dir: &Arc<tempfile::TempDir>, yaml: &str) -> Node {
    let yaml = format!(
        "{yaml}\ndeployments:\n  - upstream: http://{}\n    name: shop\n    aliases: [shop.test]\n",
        origin.address
    );
    Node::start_in(dir.clone(), &yaml).await
}

fn status(answer: &Answer) -> &str {
    answer.field("cache-status").unwrap_or_default()
}

// One fetch.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cold_requests_at_three_nodes_cost_one_call() {
    let region = Region::of(3).await;
    for framing in [Framing::Length, Framing::Chunked] {
        let path = format!("/{framing:?}");
        region.origin.on(&path, Reply::cached("hello", "s-maxage=60").framing(framing).after(200));
        let calls = region
            .calls_of(&path, async || {
                region.order(0, Scope::ALL, Mode::Delete).await;
                let answers = region.burst(60, &path).await;
                assert_eq!(answers.len(), 180);
                for answer in &answers {
                    let (body, whole) = (answer.text(), answer.complete);
                    assert_eq!((answer.status, whole, body.as_str()), (200, true, "hello"), "{answer:?}");
                    assert_eq!(answer.cache(), "MISS", "{}", status(answer));
                }
                let leaders = answers.iter().filter(|answer| !status(answer).contains("collapsed")).count();
                assert!(leaders <= 3, "{leaders}");
                region.settled(&path).await;
            })
            .await;
        assert_eq!(calls, 1);
        assert!(region.burst(2, &path).await.iter().all(|answer| answer.cache() == "HIT"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_fetched_is_a_hit_at_the_others() {
    let region = Region::of(2).await;
    region.origin.on("/a", Reply::cached("hello", "s-maxage=60").field("vary", "accept-language"));
    let large = "x".repeat(3 << 20);
    region.origin.on("/large", Reply::cached(large.clone(), "s-maxage=60"));
    for path in ["/a", "/large"] {
        region.nodes[0].get(SHOP, path).await;
        region.settled(path).await;
        let there = region.nodes[1].get(SHOP, path).await;
        assert_eq!((there.cache(), there.complete), ("HIT", true), "{}", status(&there));
        assert!(status(&there).contains("detail=regional"), "{}", status(&there));
        assert_eq!(region.origin.calls(path), 1);
    }
    assert!(region.nodes[1].get(SHOP, "/large").await.text() == large);
    // Variants are found by way of the first one.
    let german = [("accept-language", "de")];
    assert_eq!(region.nodes[0].get_with(SHOP, "/a", &german).await.cache(), "MISS");
    region.nodes[0].idle().await;
    eventually("the variant is there as well", async || {
        region.nodes[1].get_with(SHOP, "/a", &german).await.cache() == "HIT"
    })
    .await;
    assert!(region.origin.calls("/a") <= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_answers_at_three_nodes_cost_one_refresh() {
    let region = Region::of(3).await;
    region.origin.on("/a", Reply::cached("old", "s-maxage=10, stale-while-revalidate"));
    region.burst(1, "/a").await;
    region.settled("/a").await;
    for _ in 1..=3 {
        let calls = region
            .calls_of("/a", async || {
                region.advance(20);
                let gate = Gate::default();
                region.origin.on("/a", Reply::cached("new", "s-maxage=10, stale-while-revalidate").held(&gate));
                // All are answered before the origin is.
                let answers = region.burst(50, "/a").await;
                assert!(
                    answers.iter().all(|answer| answer.cache() == "STALE" && answer.status == 200),
                    "{:?}",
                    answers[0]
                );
                gate.open();
                region.settled("/a").await;
                for node in &region.nodes {
                    eventually("the node has it", async || node.get(SHOP, "/a").await.cache() == "HIT").await;
                    assert_eq!(node.get(SHOP, "/a").await.text(), "new");
                }
            })
            .await;
        assert_eq!(calls, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_304_refreshes_the_region() {
    let region = Region::of(2).await;
    let reply = || Reply::cached("body", "s-maxage=10, stale-while-revalidate").field("etag", "\"v\"");
    region.origin.on("/a", reply());
    region.burst(1, "/a").await;
    region.settled("/a").await;
    region.advance(20);
    region.origin.on("/a", reply().status(304));
    assert!(region.burst(5, "/a").await.iter().all(|answer| answer.cache() == "STALE"));
    region.settled("/a").await;
    for node in &region.nodes {
        eventually("the node has it", async || node.get(SHOP, "/a").await.cache() == "HIT").await;
        assert_eq!(node.get(SHOP, "/a").await.text(), "body");
    }
    assert_eq!(region.origin.calls("/a"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pragma_revalidates_a_stale_entry_once_for_the_region() {
    let region = Region::of(2).await;
    region.origin.on("/a", Reply::cached("old", "s-maxage=10, stale-while-revalidate"));
    region.burst(1, "/a").await;
    region.settled("/a").await;
    region.advance(20);
    region.origin.on("/a", Reply::cached("new", "s-maxage=10, stale-while-revalidate").after(200));
    let pragma = [("pragma", "no-cache")];
    let bursts = region.nodes.iter().map(|node| node.burst_with(10, SHOP, "/a", &pragma));
    let answers: Vec<Answer> = futures_util::future::join_all(bursts).await.into_iter().flatten().collect();
    assert!(answers.iter().all(|answer| answer.text() == "new"), "{:?}", answers[0]);
    assert_eq!(region.origin.calls("/a"), 2);
    assert!(answers.iter().all(|answer| answer.cache() == "REVALIDATED"), "{}", status(&answers[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_body_is_read_along_at_the_other_nodes() {
    let region = Region::of(2).await;
    let gate = Gate::default();
    region.origin.on("/a", Reply::cached("first second", "s-maxage=60").framing(Framing::Chunked).held_midway(&gate));
    let mut leader = region.nodes[0].begin(SHOP, "/a").await;
    leader.until("first").await;
    let mut follower = region.nodes[1].begin(SHOP, "/a").await;
    follower.until("first").await;
    assert_eq!(region.origin.calls("/a"), 1);
    gate.open();
    let (leader, follower) = (leader.finish().await, follower.finish().await);
    assert_eq!((leader.text(), follower.text()), ("first second".to_owned(), "first second".to_owned()));
    assert!(leader.complete && follower.complete);
    assert!(follower.cache() == "MISS" && status(&follower).contains("collapsed"), "{}", status(&follower));
    region.settled("/a").await;
    assert!(region.burst(1, "/a").await.iter().all(|answer| answer.cache() == "HIT"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_body_is_cut_for_all_and_stored_by_nobody() {
    let region = Region::of(2).await;
    region.origin.on("/a", Reply::cached("0123456789", "s-maxage=60").framing(Framing::CutChunked).pausing(150));
    let answers = region.burst(5, "/a").await;
    assert!(answers.iter().all(|answer| !answer.complete), "{answers:?}");
    let calls = region.origin.calls("/a");
    assert!(calls <= 4, "{calls}");
    region.settled("/a").await;
    region.origin.on("/a", Reply::cached("whole", "s-maxage=60"));
    for node in &region.nodes {
        assert_eq!(node.get(SHOP, "/a").await.text(), "whole");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_still_waits_after_the_time_limit_gets_what_the_other_node_fetched() {
    let yaml = "cache: {node: off, lock_timeout: 2s, regional: {redis: \"{redis}\"}}";
    let region = Region::with(2, yaml).await;
    let (first, others) = (Gate::default(), Gate::default());
    region.origin.on("/a", Reply::cached("first", "s-maxage=60").held(&first));
    let leader = region.nodes[0].begin(SHOP, "/a").await;
    until("the call", || region.origin.calls("/a") == 1).await;
    region.origin.on("/a", Reply::cached("other", "s-maxage=60").held(&others));
    // Of thirty at the other node, one leads and ten go alone when the time is over; the others wait on.
    let release = async {
        until("they went on by themselves", || region.origin.calls("/a") == 12).await;
        first.open();
        let slot = region.nodes[1].key("http://shop.test/a").0;
        until("nobody waits any more", || region.nodes[1].edge.lock.0.table.waiting(&slot) == Some(0)).await;
        others.open();
    };
    let answers = tokio::join!(region.nodes[1].burst(30, SHOP, "/a"), release).0;
    assert_eq!(leader.finish().await.text(), "first");
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| answer.text() == "first").count(), 19);
    assert_eq!(region.origin.calls("/a"), 12);
}

// Outcomes that are not entries.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_to_be_cached_is_known_to_all_nodes_at_once() {
    let region = Region::of(3).await;
    let gate = Gate::default();
    let private = Reply::ok("mine").field("cache-control", "private");
    region.origin.on("/a", private.clone().after(100));
    let answers = region.burst(20, "/a").await;
    assert!(answers.iter().all(|answer| answer.text() == "mine" && answer.cache() == "MISS"));
    let calls = region.origin.calls("/a");
    region.origin.on("/a", private.held(&gate));
    let all_at_once = async {
        until("nobody waits for another one", || region.origin.calls("/a") == calls + 60).await;
        gate.open();
    };
    tokio::join!(region.burst(20, "/a"), all_at_once);
    region.origin.on("/a", Reply::cached("for all", "s-maxage=60"));
    for node in &region.nodes {
        node.get(SHOP, "/a").await;
        eventually("it is cached again", async || node.get(SHOP, "/a").await.cache() == "HIT").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_shared_by_the_nodes() {
    let region = Region::of(3).await;
    region.origin.on("/a", Reply::cached("broken", "s-maxage=60").status(500).after(200));
    let answers = region.burst(20, "/a").await;
    assert!(answers.iter().all(|answer| answer.status == 500), "{:?}", answers[0]);
    assert!(region.origin.calls("/a") <= 2, "{}", region.origin.calls("/a"));
    region.origin.on("/a", Reply::cached("whole", "s-maxage=60"));
    eventually("the origin gets another chance", async || {
        region.burst(1, "/a").await.iter().all(|answer| answer.text() == "whole")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_refresh_keeps_the_stale_entry_everywhere() {
    let region = Region::of(2).await;
    region.origin.on("/a", Reply::cached("old", "s-maxage=10, stale-while-revalidate"));
    region.burst(1, "/a").await;
    region.settled("/a").await;
    region.advance(20);
    region.origin.on("/a", Reply::ok("broken").status(500));
    for _ in 0..3 {
        let answers = region.burst(10, "/a").await;
        assert!(answers.iter().all(|answer| (answer.cache(), answer.text().as_str()) == ("STALE", "old")));
    }
    assert!(region.origin.calls("/a") <= 3, "{}", region.origin.calls("/a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_not_kept_takes_the_regions_entry_with_it() {
    let region = Region::of(2).await;
    region.origin.on("/a", Reply::cached("old", "s-maxage=10, stale-while-revalidate"));
    region.burst(1, "/a").await;
    region.settled("/a").await;
    region.advance(20);
    region.origin.on("/a", Reply::ok("mine").field("cache-control", "private"));
    region.burst(1, "/a").await;
    for node in &region.nodes {
        eventually("the old one is gone", async || node.get(SHOP, "/a").await.text() == "mine").await;
    }
}

// Purges.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purges_reach_all_nodes_and_are_acknowledged() {
    let region = Region::of(3).await;
    let deployment = region.nodes[0].edge.registry.world().deployments()[0].id.0.clone();
    for (n, (scope, mode)) in [
        (Scope::tag("t"), Mode::Delete),
        (Scope::tag("t"), Mode::Invalidate),
        (Scope::key(&region.nodes[0].key("http://shop.test/a").0), Mode::Delete),
        (Scope::deployment(&deployment), Mode::Delete),
        (Scope::ALL, Mode::Invalidate),
    ]
    .into_iter()
    .enumerate()
    {
        region.origin.on("/a", Reply::cached(format!("{n}"), "s-maxage=60").field("cache-tag", "t"));
        for node in &region.nodes {
            eventually("all have it", async || node.get(SHOP, "/a").await.text() == n.to_string()).await;
        }
        region.settled("/a").await;
        region.origin.on("/a", Reply::cached(format!("{}", n + 1), "s-maxage=60").field("cache-tag", "t"));
        let acks = region.order(n % 3, scope, mode).await;
        assert_eq!(acks.len(), 3, "{acks:?}");
        assert!(acks.iter().all(|(acknowledged, _)| *acknowledged), "{acks:?}");
        for node in &region.nodes {
            let answer = node.get(SHOP, "/a").await;
            if mode == Mode::Delete {
                assert_eq!(answer.text(), (n + 1).to_string(), "{n}: {}", status(&answer));
            } else {
                assert!(answer.cache() == "STALE" || answer.text() == (n + 1).to_string(), "{n}: {}", status(&answer));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_at_one_node_wins_over_a_fill_at_another() {
    for mode in [Mode::Delete, Mode::Invalidate] {
        let region = Region::of(2).await;
        let gate = Gate::default();
        region.origin.on("/a", Reply::cached("old", "s-maxage=60").field("cache-tag", "t").held(&gate));
        let first = region.nodes[0].begin(SHOP, "/a").await;
        until("the call", || region.origin.calls("/a") == 1).await;
        region.order(1, Scope::tag("t"), mode).await;
        gate.open();
        assert_eq!(first.finish().await.text(), "old");
        region.settled("/a").await;
        region.origin.on("/a", Reply::cached("new", "s-maxage=60").field("cache-tag", "t"));
        for node in region.nodes.iter().rev() {
            assert_eq!(node.get(SHOP, "/a").await.text(), "new", "{mode:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_later_knows_what_was_purged_before() {
    let mut region = Region::of(2).await;
    region.origin.on("/a", Reply::cached("old", "s-maxage=60").field("cache-tag", "t"));
    region.burst(1, "/a").await;
    region.settled("/a").await;
    region.order(0, Scope::tag("t"), Mode::Delete).await;
    region.origin.on("/a", Reply::cached("new", "s-maxage=60"));
    let yaml = format!("cache: {{node: off, regional: {{redis: \"{}\"}}}}", region.redis.url());
    region.nodes.push(node(&region.origin, &yaml).await);
    region.is_whole().await;
    assert_eq!(region.nodes[2].get(SHOP, "/a").await.text(), "new");
}

// Faults.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_store_each_node_is_a_region_of_its_own() {
    let mut region = Region::of(2).await;
    region.origin.on("/a", Reply::cached("hello", "s-maxage=60").after(100));
    region.redis.kill();
    let answers = region.burst(20, "/a").await;
    assert!(answers.iter().all(|answer| (answer.status, answer.text().as_str()) == (200, "hello")));
    assert!(region.origin.calls("/a") <= 2, "{}", region.origin.calls("/a"));
    region.origin.on("/a", Reply::cached("new", "s-maxage=60"));
    assert!(region.order(0, Scope::ALL, Mode::Delete).await.is_empty(), "nobody else could acknowledge it");
    assert_eq!(region.nodes[0].get(SHOP, "/a").await.text(), "new", "it holds where it was ordered");
    region.redis.resume_from_nothing();
    region.is_whole().await;
    eventually("the other node gets to know it", async || region.nodes[1].get(SHOP, "/a").await.text() == "new").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_hangs_costs_hits_nothing_and_misses_little() {
    let region = Region::of(2).await;
    region.origin.on("/hit", Reply::cached("hello", "s-maxage=60"));
    region.burst(2, "/hit").await;
    region.settled("/hit").await;
    region.redis.stop();
    let began = Instant::now();
    assert!(region.burst(50, "/hit").await.iter().all(|answer| answer.cache() == "HIT"));
    for n in 0..20 {
        let path = format!("/miss{n}");
        region.origin.on(&path, Reply::cached("x", "s-maxage=60"));
        let answer = region.nodes[0].get(SHOP, &path).await;
        assert_eq!(answer.status, 200);
    }
    // Twenty misses that each waited for a deadline would take two seconds; with the breaker, five of them do.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let state = region.nodes[0].edge.tiers.region.as_ref().expect("a region").state();
    assert!(state.timeouts < 15, "{state:?}");
    region.redis.go_on();
    region.is_whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_outlive_a_node_that_fetches_and_dies() {
    let region = Region::of(2).await;
    let gate = Gate::default();
    region.origin.on("/a", Reply::cached("never", "s-maxage=60").held(&gate));
    // What a dead node leaves: a lock that nobody renews.
    let slot = region.nodes[0].key("http://shop.test/a").0;
    let dead = perigee::lock::region::Token::random();
    let hex: String = slot.iter().map(|byte| format!("{byte:02x}")).collect();
    let token: String = dead.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let _: String = region.redis.command(&[
        "SET",
        &format!("perigee:{{sfo1}}:lock:{hex}"),
        &format!("{token}:1:dead/1"),
        "PX",
        "2000",
    ]);
    region.origin.on("/a", Reply::cached("hello", "s-maxage=60").after(100));
    let began = Instant::now();
    let answers = region.burst(20, "/a").await;
    let took = began.elapsed();
    assert!(answers.iter().all(|answer| (answer.status, answer.text().as_str()) == (200, "hello")));
    assert!(took > Duration::from_millis(1_500), "they waited for the one that is dead: {took:?}");
    assert_eq!(region.origin.calls("/a"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_pauses_cuts_nobody_who_reads_along() {
    let region = Region::of(2).await;
    let gate = Gate::default();
    region.origin.on("/a", Reply::cached("first second", "s-maxage=60").framing(Framing::Chunked).held_midway(&gate));
    let mut leader = region.nodes[0].begin(SHOP, "/a").await;
    leader.until("first").await;
    let mut follower = region.nodes[1].begin(SHOP, "/a").await;
    follower.until("first").await;
    region.redis.stop();
    let late = region.late();
    until("somebody was not answered", || region.late() > late + 1).await;
    gate.open();
    region.redis.go_on();
    for answer in [leader.finish().await, follower.finish().await] {
        assert_eq!((answer.complete, answer.text().as_str()), (true, "first second"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_in_mid_body_cuts_nobody_and_is_served_to_nobody_else() {
    let region = Region::of(2).await;
    let gate = Gate::default();
    region.origin.on("/a", Reply::cached("first second", "s-maxage=60").framing(Framing::Chunked).held_midway(&gate));
    let mut leader = region.nodes[0].begin(SHOP, "/a").await;
    leader.until("first").await;
    let mut follower = region.nodes[1].begin(SHOP, "/a").await;
    follower.until("first").await;
    region.order(1, Scope::ALL, Mode::Delete).await;
    region.origin.on("/a", Reply::cached("new", "s-maxage=60"));
    gate.open();
    for answer in [leader.finish().await, follower.finish().await] {
        assert_eq!((answer.complete, answer.text().as_str()), (true, "first second"));
    }
    for node in &region.nodes {
        assert_eq!(node.get(SHOP, "/a").await.text(), "new");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_failed_at_other_nodes_hides_no_stale_entry() {
    let region = Region::of(3).await;
    region.origin.on("/a", Reply::cached("old", "s-maxage=10, stale-while-revalidate"));
    region.nodes[0].get(SHOP, "/a").await;
    region.settled("/a").await;
    assert_eq!(region.nodes[1].get(SHOP, "/a").await.cache(), "HIT");
    region.advance(20);
    region.origin.on("/a", Reply::ok("broken").status(500).after(100));
    for node in &region.nodes[..2] {
        assert_eq!(node.get(SHOP, "/a").await.cache(), "STALE");
    }
    for node in &region.nodes {
        node.idle().await;
    }
    let there = region.nodes[2].get(SHOP, "/a").await;
    assert_eq!((there.status, there.cache(), there.text().as_str()), (200, "STALE", "old"), "{}", status(&there));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_while_its_node_waits_leaves_no_lock_behind() {
    let region = Region::of(2).await;
    region.origin.on("/a", Reply::cached("x", "s-maxage=60"));
    let slot = region.nodes[0].key("http://shop.test/a").0;
    let hex: String = slot.iter().map(|byte| format!("{byte:02x}")).collect();
    let key = format!("perigee:{{sfo1}}:lock:{hex}");
    let _: String = region.redis.command(&["SET", &key, &format!("{}:1:other/1", "0".repeat(32)), "PX", "60000"]);
    let leaving = region.nodes[0].begin(SHOP, "/a").await;
    let table = &region.nodes[0].edge.lock.0.table;
    until("it waits", || table.waiting(&slot) == Some(1)).await;
    drop(leaving);
    until("it is gone", || table.waiting(&slot) == Some(0)).await;
    let _: u64 = region.redis.command(&["DEL", &key]);
    let began = Instant::now();
    assert_eq!(region.nodes[1].get(SHOP, "/a").await.text(), "x");
    assert!(began.elapsed() < Duration::from_secs(2), "nobody had to wait for a lock of nobody: {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_a_purge_meets_stays_collapsed() {
    let region = Region::of(2).await;
    let (first, second) = (Gate::default(), Gate::default());
    region.origin.on("/a", Reply::cached("old", "s-maxage=60").held(&first));
    let purge = async {
        until("the call", || region.origin.calls("/a") == 1).await;
        region.origin.on("/a", Reply::cached("new", "s-maxage=60").held(&second));
        region.order(1, Scope::ALL, Mode::Delete).await;
        first.open();
        until("it is fetched again", || region.origin.calls("/a") > 1).await;
        second.open();
    };
    let answers = tokio::join!(region.burst(40, "/a"), purge).0;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert!(answers.iter().filter(|answer| answer.text() == "old").count() <= 40, "nobody shares what was purged");
    assert!(region.origin.calls("/a") <= 4, "{}", region.origin.calls("/a"));
}

// Restarts.

/// A region whose nodes keep what they know on disk.
const KEPT: &str = "cache: {regional: {redis: \"{redis}\"}}";

impl Region {
    /// Ends a node in an orderly way; its folder is for its successor.
    async fn end(&mut self, at: usize) -> Arc<tempfile::TempDir> {
        let node = self.nodes.remove(at);
        node.idle().await;
        // What it knows of the region is written down within moments.
        let purges = &node.edge.tiers.purges;
        let region = node.edge.tiers.region.as_ref().expect("a region");
        until("the log is noted", || purges.known_log() == region.log_id()).await;
        node.edge.tiers.close(Duration::from_secs(2)).await;
        node.dir.clone()
    }

    async fn start_again(&mut self, dir: &Arc<tempfile::TempDir>) {
        let yaml = KEPT.replace("{redis}", &self.redis.url());
        self.nodes.push(node_in(&self.origin, dir, &yaml).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_that_the_region_could_not_be_told_outlives_a_restart() {
    let mut region = Region::with(2, KEPT).await;
    region.origin.on("/a", Reply::cached("old", "s-maxage=600").field("cache-tag", "t"));
    region.burst(1, "/a").await;
    region.settled("/a").await;
    let lost = region.nodes[0].edge.tiers.region.clone().expect("a region");
    region.redis.stop();
    until("the region is lost", || !lost.state().connected).await;
    assert!(region.order(0, Scope::tag("t"), Mode::Delete).await.is_empty());
    region.origin.on("/a", Reply::cached("new", "s-maxage=600").field("cache-tag", "t"));
    let dir = region.end(0).await;
    region.redis.go_on();
    region.start_again(&dir).await;
    region.is_whole().await;
    for node in &region.nodes {
        eventually("the node knows of the delete", async || node.get(SHOP, "/a").await.text() == "new").await;
    }
    assert_eq!(region.nodes[1].get(SHOP, "/a").await.text(), "new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_while_its_store_was_lost_serves_nothing_from_before() {
    let mut region = Region::with(2, KEPT).await;
    region.origin.on("/a", Reply::cached("old", "s-maxage=600").field("cache-tag", "t"));
    region.burst(1, "/a").await;
    region.settled("/a").await;
    let dir = region.end(0).await;
    region.order(0, Scope::tag("t"), Mode::Delete).await;
    region.origin.on("/a", Reply::cached("new", "s-maxage=600").field("cache-tag", "t"));
    drop(region.end(0).await);
    region.redis.kill();
    region.redis.resume_from_nothing();
    region.start_again(&dir).await;
    region.is_whole().await;
    assert_eq!(region.nodes[0].get(SHOP, "/a").await.text(), "new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_without_its_store_caches_what_was_once_purged() {
    let mut region = Region::with(1, KEPT).await;
    region.origin.on("/a", Reply::cached("x", "s-maxage=60"));
    region.order(0, Scope::ALL, Mode::Invalidate).await;
    let dir = region.end(0).await;
    region.redis.kill();
    region.start_again(&dir).await;
    region.nodes[0].get(SHOP, "/a").await;
    region.nodes[0].idle().await;
    assert_eq!(region.nodes[0].get(SHOP, "/a").await.cache(), "HIT");
    region.redis.resume_from_nothing();
    region.is_whole().await;
    eventually("it caches with an empty store, too", async || region.nodes[0].get(SHOP, "/a").await.cache() == "HIT")
        .await;
}
