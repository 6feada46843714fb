//! Request collapsing: one fetch for many, and what the others get when it fails, hangs, or brings something that is not for all
//! (seed "Vercel CDN", product.md 5.4, 5.5, 5.9, 5.10).

use std::time::{Duration, Instant};

use crate::support::{Answer, Framing, Gate, Node, Origin, Reply, until};

const SHOP: &str = "shop.test";
const WINDOW: &str = "s-maxage=10, stale-while-revalidate";

/// So many requests in one burst, all of them begun before the origin answers.
async fn burst_at(
    node: &Node,
    count: usize,
    path: &str,
    fields: &[(&str, &str)],
    gate: &Gate,
    origin: &Origin,
) -> Vec<Answer> {
    let calls = origin.calls(path);
    let answers = node.burst_with(count, SHOP, path, fields);
    let opener = async {
        node.until("all have begun", || node.edge.in_flight() >= count && origin.calls(path) > calls).await;
        gate.open();
    };
    tokio::join!(answers, opener).0
}

async fn make_stale(node: &Node, origin: &Origin, path: &str, cache_control: &str) {
    origin.on(path, Reply::cached("old", cache_control));
    node.get(SHOP, path).await;
    node.idle().await;
    node.clock.advance(Duration::from_secs(20));
}

// Success.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_cold_requests_cost_one_call() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, framing) in [("/length", Framing::Length), ("/chunked", Framing::Chunked)] {
        let gate = Gate::default();
        origin.on(path, Reply::cached("hello", "s-maxage=60").framing(framing).held(&gate));
        let answers = burst_at(&node, 200, path, &[], &gate, &origin).await;
        assert_eq!(origin.calls(path), 1, "{path}");
        for answer in &answers {
            assert_eq!((answer.status, answer.complete, answer.text().as_str()), (200, true, "hello"), "{path}");
            assert!(matches!(answer.cache(), "MISS" | "HIT"), "{path}: {answer:?}");
        }
        assert_eq!(node.get(SHOP, path).await.cache(), "HIT");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_says_miss_and_that_it_was_collapsed() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let gate = Gate::default();
    origin.on("/a", Reply::cached("hello", "s-maxage=60").held(&gate));
    let key = node.key("http://shop.test/a").0;
    let leader = node.begin(SHOP, "/a").await;
    node.until("the call", || origin.calls("/a") == 1).await;
    let follower = node.begin(SHOP, "/a").await;
    node.until("one waits", || node.edge.lock.0.table.waiting(&key) == Some(1)).await;
    gate.open();
    let (leader, follower) = (leader.finish().await, follower.finish().await);
    let status = |answer: &Answer| answer.field("cache-status").unwrap_or_default().to_owned();
    assert_eq!((leader.cache(), follower.cache()), ("MISS", "MISS"));
    assert!(status(&leader).contains("stored") && !status(&leader).contains("collapsed"), "{}", status(&leader));
    assert!(status(&follower).contains("collapsed"), "{}", status(&follower));
    assert_eq!(origin.calls("/a"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_and_gets_share_one_call() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let gate = Gate::default();
    origin.on("/a", Reply::cached("hello", "s-maxage=60").held(&gate));
    let key = node.key("http://shop.test/a").0;
    let head = node.request("HEAD", SHOP, "/a", &[], b"");
    let rest = async {
        node.until("the call", || origin.calls("/a") == 1).await;
        let get = node.begin(SHOP, "/a").await;
        node.until("one waits", || node.edge.lock.0.table.waiting(&key) == Some(1)).await;
        gate.open();
        get.finish().await
    };
    let (head, get) = tokio::join!(head, rest);
    assert_eq!((head.status, head.complete), (200, true));
    assert_eq!((get.status, get.text().as_str(), get.complete), (200, "hello", true));
    assert_eq!(origin.calls("/a"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_get_the_body_as_it_comes() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, framing) in [("/length", Framing::Length), ("/chunked", Framing::Chunked), ("/close", Framing::Close)] {
        let gate = Gate::default();
        origin.on(path, Reply::cached("firstsecond", "s-maxage=60").framing(framing).held_midway(&gate));
        let mut all = Vec::new();
        for _ in 0..5 {
            all.push(node.begin(SHOP, path).await);
        }
        for reading in &mut all {
            reading.until("first").await;
        }
        // One that comes when half of it is there begins with the first byte as well.
        let mut late = node.begin(SHOP, path).await;
        late.until("first").await;
        all.push(late);
        gate.open();
        for reading in all {
            let answer = reading.finish().await;
            assert_eq!((answer.text().as_str(), answer.complete), ("firstsecond", true), "{path}");
        }
        assert_eq!(origin.calls(path), 1, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_or_a_conditional_follower_does_not_wait_for_the_body() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let gate = Gate::default();
    let reply = Reply::cached("firstsecond", "s-maxage=60").field("etag", "\"v1\"");
    origin.on("/a", reply.framing(Framing::Chunked).held_midway(&gate));
    let mut leader = node.begin(SHOP, "/a").await;
    leader.until("first").await;
    let head = node.request("HEAD", SHOP, "/a", &[], b"").await;
    assert_eq!((head.status, head.complete), (200, true));
    let same = node.get_with(SHOP, "/a", &[("if-none-match", "\"v1\"")]).await;
    assert_eq!((same.status, same.complete), (304, true));
    gate.open();
    assert_eq!(leader.finish().await.text(), "firstsecond");
    assert_eq!(origin.calls("/a"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn different_urls_do_not_wait_for_each_other() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let gate = Gate::default();
    origin.on("/slow", Reply::cached("slow", "s-maxage=60").held(&gate));
    origin.on("/quick", Reply::cached("quick", "s-maxage=60"));
    let slow = node.begin(SHOP, "/slow").await;
    node.until("the call", || origin.calls("/slow") == 1).await;
    assert_eq!(node.get(SHOP, "/quick").await.text(), "quick");
    let other = node.begin(SHOP, "/slow?other").await;
    node.until("a call of its own", || origin.calls("/slow") == 2).await;
    gate.open();
    assert_eq!(other.finish().await.text(), "slow");
    assert_eq!(slow.finish().await.text(), "slow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_bypass_are_not_collapsed() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let gate = Gate::default();
    origin.on("/a", Reply::cached("hello", "s-maxage=60").held(&gate));
    let fields = [("authorization", "Bearer x")];
    let opener = async {
        node.until("a call each", || origin.calls("/a") == 20).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(node.burst_with(20, SHOP, "/a", &fields), opener);
    assert!(answers.iter().all(|answer| (answer.status, answer.cache()) == (200, "BYPASS")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_for_a_static_file_are_all_answered_whole() {
    let text = "hello".repeat(100_000);
    let node = Node::with_project(&[("a.txt", &text)]).await;
    let answers = node.burst(100, "site.test", "/a.txt").await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.complete && answer.text() == text));
    assert!(answers.iter().all(|answer| matches!(answer.cache(), "MISS" | "HIT")));
    assert!(answers.iter().any(|answer| answer.cache() == "MISS"));
}

// Stale entries.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_storm_is_answered_at_once_and_costs_one_refresh() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    make_stale(&node, &origin, "/a", WINDOW).await;
    let gate = Gate::default();
    origin.on("/a", Reply::cached("new", "s-maxage=1000").held(&gate));
    // The gate is closed: an answer that waits for the refresh would not come.
    let answers = node.burst(60, SHOP, "/a").await;
    assert!(answers.iter().all(|answer| (answer.cache(), answer.text().as_str()) == ("STALE", "old")));
    node.until("the refresh", || origin.calls("/a") == 2).await;
    gate.open();
    node.idle().await;
    let fresh = node.get(SHOP, "/a").await;
    assert_eq!((fresh.cache(), fresh.text().as_str(), origin.calls("/a")), ("HIT", "new", 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_expired_is_fetched_once_for_all() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    make_stale(&node, &origin, "/a", "s-maxage=10").await;
    let gate = Gate::default();
    origin.on("/a", Reply::cached("new", "s-maxage=1000").held(&gate));
    let answers = burst_at(&node, 50, "/a", &[], &gate, &origin).await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.complete && answer.text() == "new"));
    assert!(answers.iter().all(|answer| matches!(answer.cache(), "MISS" | "HIT")));
    assert_eq!(origin.calls("/a"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_validation_is_made_once_for_all() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let reply = || Reply::cached("hello", "s-maxage=10").field("etag", "\"v1\"");
    origin.on("/a", reply());
    node.get(SHOP, "/a").await;
    node.idle().await;
    node.clock.advance(Duration::from_secs(20));
    let gate = Gate::default();
    origin.on("/a", reply().held(&gate));
    let answers = burst_at(&node, 50, "/a", &[], &gate, &origin).await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.complete && answer.text() == "hello"));
    assert_eq!(origin.calls("/a"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_with_pragma_on_a_stale_entry_cost_one_call_and_are_all_revalidated() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    make_stale(&node, &origin, "/a", WINDOW).await;
    let gate = Gate::default();
    origin.on("/a", Reply::cached("new", "s-maxage=1000").held(&gate));
    let slot = node.key("http://shop.test/a").0;
    let opener = async {
        node.until("all others wait", || node.edge.lock.0.table.waiting(&slot) == Some(29)).await;
        gate.open();
    };
    let answers = tokio::join!(node.burst_with(30, SHOP, "/a", &[("pragma", "no-cache")]), opener).0;
    for answer in &answers {
        assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "new", true));
    }
    let states: Vec<&str> = answers.iter().map(Answer::cache).collect();
    assert_eq!(states, ["REVALIDATED"; 30]);
    assert_eq!(origin.calls("/a"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_revalidates_by_pragma_the_others_get_the_stale_entry() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    make_stale(&node, &origin, "/a", WINDOW).await;
    let gate = Gate::default();
    origin.on("/a", Reply::cached("new", "s-maxage=1000").held(&gate));
    let pragma = [("pragma", "no-cache")];
    let others = async {
        node.until("the call", || origin.calls("/a") == 2).await;
        let answers = node.burst(10, SHOP, "/a").await;
        gate.open();
        answers
    };
    let (one, others) = tokio::join!(node.get_with(SHOP, "/a", &pragma), others);
    assert_eq!((one.cache(), one.text().as_str()), ("REVALIDATED", "new"));
    assert!(others.iter().all(|answer| (answer.cache(), answer.text().as_str()) == ("STALE", "old")));
    assert_eq!(origin.calls("/a"), 2);
}

// Uncacheable.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn visitors_of_something_uncacheable_do_not_take_turns() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, reply) in [
        ("/silent", Reply::ok("mine")),
        ("/cookie", Reply::cached("mine", "s-maxage=60").field("set-cookie", "a=b")),
        ("/404", Reply::cached("mine", "s-maxage=60").status(404)),
    ] {
        origin.on(path, reply.clone().after(300));
        let began = Instant::now();
        let answers = node.burst(60, SHOP, path).await;
        let took = began.elapsed();
        assert!(took < Duration::from_secs(3), "{path}: one after the other would take 18 s; it took {took:?}");
        for answer in &answers {
            assert_eq!((answer.status, answer.cache(), answer.complete), (reply.status, "MISS", true), "{path}");
        }
        assert_eq!(origin.calls(path), 60, "{path}: to each his own");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_entry_that_turns_out_uncacheable_does_not_make_its_visitors_take_turns() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    make_stale(&node, &origin, "/a", "s-maxage=10").await;
    let gate = Gate::default();
    origin.on("/a", Reply::cached("mine", "no-store").after(200).held(&gate));
    let answers = burst_at(&node, 40, "/a", &[], &gate, &origin).await;
    for answer in &answers {
        assert_eq!((answer.status, answer.cache(), answer.text().as_str()), (200, "MISS", "mine"));
        assert!(answer.took < Duration::from_secs(4), "took {:?}", answer.took);
    }
    assert_eq!(origin.calls("/a"), 41);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uncacheable_is_remembered_for_two_minutes_and_forgotten_by_one_cacheable_answer() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let key = node.key("http://shop.test/a").0;
    origin.on("/a", Reply::ok("mine"));
    node.get(SHOP, "/a").await;
    let (soon, late) = (Duration::from_secs(110), Duration::from_secs(121));
    assert!(node.edge.uncacheable.is_remembered(&key, Instant::now() + soon));
    assert!(!node.edge.uncacheable.is_remembered(&key, Instant::now() + late));
    // Nobody waits for anybody: all calls are there before the first is answered.
    origin.on("/a", Reply::ok("mine"));
    node.get(SHOP, "/a").await;
    let gate = Gate::default();
    origin.on("/a", Reply::ok("mine").held(&gate));
    let calls = origin.calls("/a");
    let opener = async {
        node.until("a call each", || origin.calls("/a") == calls + 20).await;
        gate.open();
    };
    tokio::join!(node.burst(20, SHOP, "/a"), opener);
    origin.on("/a", Reply::cached("ours", "s-maxage=60"));
    assert_eq!(node.get(SHOP, "/a").await.text(), "ours");
    node.idle().await;
    assert!(!node.edge.uncacheable.is_remembered(&key, Instant::now()));
    node.get(SHOP, "/a").await;
    node.idle().await;
    assert_eq!(node.get(SHOP, "/a").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_not_remembered_as_uncacheable() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/a", Reply::ok("broken").status(500));
    node.get(SHOP, "/a").await;
    assert!(!node.edge.uncacheable.is_remembered(&node.key("http://shop.test/a").0, Instant::now()));
    origin.on("/a", Reply::cached("ours", "s-maxage=60"));
    assert_eq!(node.get(SHOP, "/a").await.cache(), "MISS");
    node.idle().await;
    assert_eq!(node.get(SHOP, "/a").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_visitors_of_a_body_that_turns_out_too_large_all_get_it_whole() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let body = "0123456789abcdef".repeat(11 * 65_536);
    origin.on("/a", Reply::cached(body.clone(), "s-maxage=60").framing(Framing::Chunked));
    for answer in node.burst(6, SHOP, "/a").await {
        assert!(answer.status == 200 && answer.complete, "{} bytes", answer.body.len());
        assert!(answer.text() == body, "{} bytes", answer.body.len());
    }
}

// Failure.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_shared_with_those_who_waited() {
    for (failure, status, code) in [
        ("reset", 502, Some("ROUTER_EXTERNAL_TARGET_ERROR")),
        ("refused", 502, Some("ROUTER_EXTERNAL_TARGET_CONNECTION_ERROR")),
        ("503", 503, None),
        ("500", 500, None),
    ] {
        let origin = Origin::start().await;
        let node = Node::before(&origin).await;
        let gate = Gate::default();
        let answers = match failure {
            "refused" => {
                origin.stop().await;
                node.burst(40, SHOP, "/a").await
            }
            "reset" => {
                origin.on("/a", Reply::ok("").framing(Framing::Reset).held(&gate));
                burst_at(&node, 40, "/a", &[], &gate, &origin).await
            }
            _ => {
                origin.on("/a", Reply::cached("broken", "s-maxage=60").status(status).held(&gate));
                burst_at(&node, 40, "/a", &[], &gate, &origin).await
            }
        };
        for answer in &answers {
            assert_eq!((answer.status, answer.complete, answer.cache()), (status, true, "MISS"), "{failure}");
            assert_eq!(answer.field("x-now-error"), code, "{failure}");
        }
        assert!(origin.calls("/a") <= 2, "{failure}: {} calls", origin.calls("/a"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failure_that_nobody_shared_the_next_request_tries_again_at_once() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, failing) in [
        ("/reset", Reply::ok("").framing(Framing::Reset)),
        ("/503", Reply::ok("broken").status(503)),
        ("/cut", Reply::cached("hello", "s-maxage=60").framing(Framing::CutLength)),
    ] {
        origin.on(path, failing);
        node.get(SHOP, path).await;
        node.idle().await;
        origin.on(path, Reply::cached("whole", "s-maxage=60"));
        let next = node.get(SHOP, path).await;
        assert_eq!((next.status, next.cache(), next.text().as_str()), (200, "MISS", "whole"), "{path}");
        assert_eq!(origin.calls(path), 2, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_failure_does_not_answer_for_long() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let gate = Gate::default();
    origin.on("/a", Reply::ok("broken").status(503).held(&gate));
    burst_at(&node, 20, "/a", &[], &gate, &origin).await;
    origin.on("/a", Reply::cached("whole", "s-maxage=60"));
    let began = Instant::now();
    while node.get(SHOP, "/a").await.text() != "whole" {
        assert!(began.elapsed() < Duration::from_secs(5), "the failure still answers for the origin");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_of_a_failure_that_may_be_covered_get_the_stale_entry() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, failing) in
        [("/503", Reply::ok("broken").status(503)), ("/reset", Reply::ok("").framing(Framing::Reset))]
    {
        make_stale(&node, &origin, path, "s-maxage=10, stale-if-error=1000").await;
        let gate = Gate::default();
        origin.on(path, failing.held(&gate));
        let answers = burst_at(&node, 20, path, &[], &gate, &origin).await;
        for answer in &answers {
            let got = (answer.status, answer.cache(), answer.text());
            assert_eq!(got, (200, "STALE", "old".to_owned()), "{path}");
        }
        assert!(origin.calls(path) <= 3, "{path}: {} calls", origin.calls(path));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_of_a_cut_fill_never_gets_a_short_answer_that_looks_whole() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, framing) in [("/length", Framing::CutLength), ("/chunked", Framing::CutChunked)] {
        let gate = Gate::default();
        origin.on(path, Reply::cached("firstsecond", "s-maxage=60").framing(framing).held_midway(&gate));
        let mut all = Vec::new();
        for _ in 0..10 {
            all.push(node.begin(SHOP, path).await);
        }
        for reading in &mut all {
            reading.until("first").await;
        }
        assert_eq!(origin.calls(path), 1, "{path}");
        gate.open();
        for reading in all {
            let answer = reading.finish().await;
            assert_eq!((answer.status, answer.complete), (200, false), "{path}: {answer:?}");
        }
        node.idle().await;
        origin.on(path, Reply::cached("firstsecond", "s-maxage=60"));
        let next = node.get(SHOP, path).await;
        assert_eq!((next.text().as_str(), next.complete), ("firstsecond", true), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_on_a_cut_body_never_gets_a_short_answer_that_looks_whole() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, framing) in [("/length", Framing::CutLength), ("/chunked", Framing::CutChunked)] {
        let gate = Gate::default();
        origin.on(path, Reply::cached("firstsecond", "s-maxage=60").framing(framing).held(&gate));
        for answer in burst_at(&node, 40, path, &[], &gate, &origin).await {
            assert!(answer.status == 502 || !answer.complete, "{path}: {answer:?}");
        }
    }
}

// Hanging origins, and clients that leave.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_of_a_hanging_fetch_go_alone_ten_at_a_time_and_nobody_waits_for_ever() {
    let origin = Origin::start().await;
    let node = Node::before_with(&origin, "cache: {lock_timeout: 300ms}").await;
    origin.on("/a", Reply::ok("").framing(Framing::Hang));
    let bursting = node.burst(40, SHOP, "/a");
    let rest = async {
        // The leader and the ten hang; the others are told in the end, one way or another.
        node.until("ten go alone", || origin.calls("/a") == 11).await;
        node.until("the others give up", || node.edge.in_flight() <= 11).await;
        assert_eq!(origin.calls("/a"), 11);
        origin.stop().await;
    };
    let (answers, ()) = tokio::join!(bursting, rest);
    let of = |code: &str| answers.iter().filter(|answer| answer.field("x-now-error") == Some(code)).count();
    assert_eq!((of("INTERNAL_CACHE_LOCK_TIMEOUT"), of("ROUTER_EXTERNAL_TARGET_ERROR")), (29, 11));
    assert!(answers.iter().all(|answer| answer.complete));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_that_went_alone_helps_all_the_others() {
    let origin = Origin::start().await;
    let node = Node::before_with(&origin, "cache: {lock_timeout: 300ms}").await;
    origin.on("/a", Reply::ok("").framing(Framing::Hang));
    let leader = node.begin(SHOP, "/a").await;
    node.until("the call", || origin.calls("/a") == 1).await;
    origin.on("/a", Reply::cached("hello", "s-maxage=60"));
    let answers = node.burst(40, SHOP, "/a").await;
    assert!(answers.iter().all(|answer| (answer.status, answer.text().as_str()) == (200, "hello")), "{answers:?}");
    assert!(origin.calls("/a") <= 11, "{} calls", origin.calls("/a"));
    assert_eq!(node.get(SHOP, "/a").await.cache(), "HIT");
    drop(leader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_is_answered_when_the_leader_leaves() {
    let origin = Origin::start().await;
    let node = Node::before_with(&origin, "cache: {lock_timeout: 300ms}").await;
    let key = node.key("http://shop.test/a").0;
    origin.on("/a", Reply::ok("").framing(Framing::Hang));
    let leader = node.begin(SHOP, "/a").await;
    node.until("the call", || origin.calls("/a") == 1).await;
    let follower = node.begin(SHOP, "/a").await;
    node.until("one waits", || node.edge.lock.0.table.waiting(&key) == Some(1)).await;
    origin.on("/a", Reply::cached("hello", "s-maxage=60"));
    drop(leader);
    let answer = follower.finish().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_that_leave_do_not_disturb_the_others() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let gate = Gate::default();
    origin.on("/a", Reply::cached("firstsecond", "s-maxage=60").framing(Framing::Chunked).held_midway(&gate));
    let mut all = Vec::new();
    for _ in 0..10 {
        let mut reading = node.begin(SHOP, "/a").await;
        reading.until("first").await;
        all.push(reading);
    }
    all.drain(..9).for_each(drop);
    gate.open();
    let answer = all.remove(0).finish().await;
    assert_eq!((answer.text().as_str(), answer.complete), ("firstsecond", true));
    node.idle().await;
    assert_eq!((node.get(SHOP, "/a").await.cache(), origin.calls("/a")), ("HIT", 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_in_the_lock_table() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/cached", Reply::cached("a", "s-maxage=60"));
    origin.on("/private", Reply::cached("a", "private"));
    origin.on("/reset", Reply::ok("").framing(Framing::Reset));
    origin.on("/cut", Reply::cached("hello", "s-maxage=60").framing(Framing::CutChunked));
    for path in ["/cached", "/private", "/reset", "/cut"] {
        node.burst(10, SHOP, path).await;
    }
    // A shared failure is held for a second; then the sweep comes.
    until("an empty table", || node.edge.lock.0.table.is_empty()).await;
}

// Variants.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_variant_is_collapsed_by_itself() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let vary = |body: &str| Reply::cached(body, "s-maxage=60").field("vary", "accept-language");
    // One that is known already, so that the edge knows what varies.
    origin.on("/v", vary("en"));
    node.get_with(SHOP, "/v", &[("accept-language", "en")]).await;
    node.idle().await;
    let gate = Gate::default();
    origin.on("/v", vary("other").held(&gate));
    let opener = async {
        node.until("all have begun", || node.edge.in_flight() >= 40 && origin.calls("/v") == 3).await;
        gate.open();
    };
    let (german, french) = ([("accept-language", "de")], [("accept-language", "fr")]);
    let (german, french, ()) =
        tokio::join!(node.burst_with(20, SHOP, "/v", &german), node.burst_with(20, SHOP, "/v", &french), opener);
    assert!(german.iter().chain(&french).all(|answer| (answer.status, answer.text().as_str()) == (200, "other")));
    assert_eq!(origin.calls("/v"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_burst_for_two_variants_gives_each_its_own() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let gate = Gate::default();
    let vary = |body: &str| Reply::cached(body, "s-maxage=60").field("vary", "accept-language");
    origin.on("/v", vary("first").held(&gate));
    let rest = async {
        node.until("all wait for the first", || node.edge.in_flight() >= 40 && origin.calls("/v") == 1).await;
        origin.on("/v", vary("second"));
        gate.open();
    };
    let (german, french) = ([("accept-language", "de")], [("accept-language", "fr")]);
    let (german, french, ()) =
        tokio::join!(node.burst_with(20, SHOP, "/v", &german), node.burst_with(20, SHOP, "/v", &french), rest);
    assert!(german.iter().all(|answer| answer.status == 200 && answer.text() == german[0].text()));
    assert!(french.iter().all(|answer| answer.status == 200 && answer.text() == french[0].text()));
    assert_ne!(german[0].text(), french[0].text());
    assert_eq!(origin.calls("/v"), 2);
}
