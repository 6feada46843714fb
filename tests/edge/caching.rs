//! The seed "Caching" and product.md 5, sentence by sentence: what is stored, under which key, for how long, and what is said about it.
//! Collapsing has a file of its own (`collapse.rs`), fields of requests and answers too (`headers.rs`).

use std::sync::Arc;
use std::time::Duration;

use perigee::cache::purge::Mode;

use crate::support::{Answer, Framing, Gate, Node, Origin, Reading, Reply, conf, raw, write_files};

const SHOP: &str = "shop.test";
const YEAR_S: u64 = 31_536_000;
const MB: usize = 1_048_576;

/// Two requests for the same: what `x-now-cache` said, and how often the origin was called.
async fn twice(node: &Node, origin: &Origin, path: &str, fields: &[(&str, &str)]) -> (String, String, usize) {
    let bare = path.split('?').next().unwrap_or(path);
    let before = origin.calls(bare);
    let first = node.get_with(SHOP, path, fields).await;
    node.idle().await;
    let second = node.get_with(SHOP, path, fields).await;
    assert!(first.complete && second.complete, "{path}: {first:?} {second:?}");
    assert_eq!(first.body, second.body, "{path}");
    (first.cache().to_owned(), second.cache().to_owned(), origin.calls(bare) - before)
}

fn stored(first: &str, second: &str) -> (String, String, usize) {
    (first.to_owned(), second.to_owned(), 1)
}

fn asked_again(both: &str) -> (String, String, usize) {
    (both.to_owned(), both.to_owned(), 2)
}

async fn advance(node: &Node, seconds: u64) {
    node.idle().await;
    node.clock.advance(Duration::from_secs(seconds));
}

// What is cached.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directives_decide_what_is_cached() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let check = async |reply: Reply, cached: bool| {
        origin.on("/a", reply.clone());
        node.purge_all().await;
        let expected = if cached { stored("MISS", "HIT") } else { asked_again("MISS") };
        node.edge.uncacheable.forget(&node.key("http://shop.test/a").0);
        assert_eq!(twice(&node, &origin, "/a", &[]).await, expected, "{reply:?}");
    };
    for (cache_control, cached) in [
        ("s-maxage=60", true),
        ("s-maxage=1, stale-while-revalidate", true),
        ("S-MaxAge=60", true),
        ("s-maxage=\"60\"", true),
        ("max-age=60, public", true),
        ("public, max-age=60", true),
        ("max-age=60, immutable", true),
        ("max-age=0, s-maxage=60", true),
        ("max-age=0, public, s-maxage=60", true),
        ("s-maxage=60, made-up=1", true),
        ("max-age=60", false),
        ("public", false),
        ("immutable", false),
        ("public, max-age=0, must-revalidate", false),
        ("max-age=0, public, stale-while-revalidate=60", false),
        ("s-maxage=0", false),
        ("s-maxage=0, stale-while-revalidate", false),
        ("s-maxage=0, max-age=60, public", false),
        ("s-maxage=x", false),
        ("s-maxage=-1", false),
        ("s-maxage", false),
        ("s-maxage=60, no-cache", false),
        ("no-cache, s-maxage=60", false),
        ("s-maxage=60, no-cache=\"x-a\"", false),
        ("s-maxage=60, NO-CACHE", false),
        ("s-maxage=60, no-store", false),
        ("s-maxage=60, private", false),
        ("private, max-age=60", false),
        ("", false),
    ] {
        check(Reply::cached("a", cache_control), cached).await;
    }
    check(Reply::ok("nothing said"), false).await;
    let cached = || Reply::cached("a", "s-maxage=60");
    check(cached().field("set-cookie", "a=b"), false).await;
    check(cached().field("vary", "*"), false).await;
    check(cached().field("vary", "accept, *"), false).await;
    check(cached().field("vary", "Cookie"), false).await;
    check(cached().field("vary", "accept").field("vary", "accept-language, COOKIE"), false).await;
    check(cached().field("vary", "accept"), true).await;
    check(cached().field("cache-control", "no-cache"), false).await;
    check(Reply::ok("a").field("cache-control", "max-age=60").field("cache-control", "public"), true).await;
    check(cached().field("pragma", "no-cache"), true).await;
    check(cached().field("expires", "0"), true).await;
    check(cached().field("age", "60"), false).await;
    check(cached().framing(Framing::Chunked), true).await;
    check(Reply::cached("", "s-maxage=60"), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targeted_fields_win() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let check = async |fields: &[(&str, &str)], cached: bool| {
        origin.on("/a", fields.iter().fold(Reply::ok("a"), |reply, (name, value)| reply.field(name, value)));
        node.purge_all().await;
        node.edge.uncacheable.forget(&node.key("http://shop.test/a").0);
        let expected = if cached { stored("MISS", "HIT") } else { asked_again("MISS") };
        assert_eq!(twice(&node, &origin, "/a", &[]).await, expected, "{fields:?}");
    };
    check(&[("cdn-cache-control", "max-age=60")], true).await;
    check(&[("vercel-cdn-cache-control", "max-age=60")], true).await;
    check(&[("vercel-cdn-cache-control", "s-maxage=60")], true).await;
    check(&[("cdn-cache-control", "max-age=60"), ("cache-control", "no-store")], true).await;
    check(&[("cdn-cache-control", "no-store"), ("cache-control", "s-maxage=60")], false).await;
    check(&[("vercel-cdn-cache-control", "max-age=60"), ("cdn-cache-control", "no-store")], true).await;
    check(&[("vercel-cdn-cache-control", "private"), ("cdn-cache-control", "max-age=60")], false).await;
    check(&[("cdn-cache-control", "max-age=0"), ("cache-control", "s-maxage=60")], false).await;
    check(&[("cdn-cache-control", "max-age=60"), ("set-cookie", "a=b")], false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_status_200_is_cached() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for status in [201, 203, 204, 206, 301, 302, 307, 308, 400, 401, 404, 410, 418, 429, 500, 502, 503] {
        let path = format!("/{status}");
        let body = if status == 204 { "" } else { "b" };
        origin.on(&path, Reply::cached(body, "s-maxage=60").status(status));
        assert_eq!(twice(&node, &origin, &path, &[]).await, asked_again("MISS"), "{status}");
        assert_eq!(node.get(SHOP, &path).await.status, status);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_methods_bypass_and_leave_the_entry_alone() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("a", "s-maxage=60"));
    let node = Node::before(&origin).await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"] {
        let body: &[u8] = if matches!(method, "POST" | "PUT") { b"sent" } else { b"" };
        for _ in 0..2 {
            let answer = node.request(method, SHOP, "/a", &[], body).await;
            assert_eq!((answer.status, answer.cache()), (200, "BYPASS"), "{method}");
        }
        assert_eq!((origin.last("/a").method.as_str(), origin.last("/a").body.as_slice()), (method, body));
    }
    assert_eq!(origin.calls("/a"), 12);
    assert_eq!(twice(&node, &origin, "/a", &[]).await, stored("MISS", "HIT"));
    assert_eq!(node.request("POST", SHOP, "/a", &[], b"x").await.cache(), "BYPASS");
    assert_eq!(node.get(SHOP, "/a").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_bypass_reach_the_origin_and_are_not_stored() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let check = async |path: &str, fields: &[(&str, &str)], bypasses: bool| {
        origin.on("/a", Reply::cached("a", "s-maxage=60"));
        node.purge_all().await;
        let expected = if bypasses { asked_again("BYPASS") } else { stored("MISS", "HIT") };
        assert_eq!(twice(&node, &origin, path, fields).await, expected, "{path} {fields:?}");
        if bypasses && path == "/a" {
            assert_eq!(node.get(SHOP, "/a").await.cache(), "MISS", "{fields:?} left something behind");
        }
    };
    check("/a", &[("range", "bytes=0-0")], true).await;
    check("/a", &[("Authorization", "Bearer x")], true).await;
    check("/a", &[("authorization", "")], true).await;
    check("/a", &[("cookie", "_now_no_cache=1")], true).await;
    check("/a", &[("cookie", "_vercel_no_cache=1")], true).await;
    check("/a", &[("cookie", "a=b; _now_no_cache=1; c=d")], true).await;
    check("/a", &[("cookie", "a=b"), ("cookie", "_now_no_cache=1")], true).await;
    check("/a?_now_no_cache=1", &[], true).await;
    check("/a?_vercel_no_cache=1", &[], true).await;
    check("/a?b=c&_now_no_cache=1&d=e", &[], true).await;
    check("/a", &[("cookie", "_now_no_cache=0")], false).await;
    check("/a", &[("cookie", "_now_no_cache=11")], false).await;
    check("/a", &[("cookie", "x_now_no_cache=1")], false).await;
    check("/a", &[("cookie", "a=_now_no_cache=1")], false).await;
    check("/a", &[("cookie", "session=1")], false).await;
    check("/a?_now_no_cache=0", &[], false).await;
    check("/a?_now_no_cache", &[], false).await;
    check("/a?b=_now_no_cache=1", &[], false).await;
    check("/a", &[("cache-control", "no-cache")], false).await;
    check("/a", &[("cache-control", "no-store, max-age=0")], false).await;
    check("/a", &[("proxy-authorization", "Basic x")], false).await;
    check("/a", &[("if-range", "\"a\"")], false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_with_a_body_bypasses() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("a", "s-maxage=60"));
    let node = Node::before(&origin).await;
    let answer = node.request("GET", SHOP, "/a", &[], b"graphql").await;
    assert_eq!((answer.cache(), origin.last("/a").body.as_slice()), ("BYPASS", b"graphql".as_slice()));
    let chunked = b"GET /a HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    assert_eq!(raw(node.address, chunked, false).await.cache(), "BYPASS");
    assert_eq!(node.get(SHOP, "/a").await.cache(), "MISS");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_of_a_stored_entry_bypasses_it() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("hello", "s-maxage=60"));
    let node = Node::before(&origin).await;
    node.get(SHOP, "/a").await;
    origin.on("/a", Reply::cached("el", "s-maxage=60").status(206).field("content-range", "bytes 1-2/5"));
    let part = node.get_with(SHOP, "/a", &[("range", "bytes=1-2")]).await;
    assert_eq!((part.status, part.cache(), part.text().as_str()), (206, "BYPASS", "el"));
    assert_eq!(origin.last("/a").field("range"), Some("bytes=1-2"));
    let whole = node.get(SHOP, "/a").await;
    assert_eq!((whole.status, whole.cache(), whole.text().as_str()), (200, "HIT", "hello"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_ten_mb_is_stored_and_one_byte_more_is_delivered_whole_and_not_stored() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let check = async |path: &str, bytes: usize, framing: Framing, cached: bool| {
        let body: Vec<u8> = (0..bytes).map(|n| (n / 4096) as u8).collect();
        origin.on(path, Reply::cached(body.clone(), "s-maxage=60").framing(framing));
        let first = node.get(SHOP, path).await;
        node.idle().await;
        let second = node.get(SHOP, path).await;
        for answer in [&first, &second] {
            assert!(answer.status == 200 && answer.complete, "{path}");
            assert!(answer.body == body, "{path}: {} bytes came", answer.body.len());
        }
        assert_eq!((first.cache(), second.cache()), ("MISS", if cached { "HIT" } else { "MISS" }), "{path}");
        assert_eq!(origin.calls(path), if cached { 1 } else { 2 }, "{path}");
    };
    check("/most", 10 * MB, Framing::Length, true).await;
    check("/more", 10 * MB + 1, Framing::Length, false).await;
    check("/most-chunked", 10 * MB, Framing::Chunked, true).await;
    check("/more-chunked", 10 * MB + 1, Framing::Chunked, false).await;
    check("/more-until-close", 11 * MB, Framing::Close, false).await;
}

// HEAD and GET share an entry.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_comes_first_leaves_no_empty_entry() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, framing) in [("/length", Framing::Length), ("/chunked", Framing::Chunked)] {
        origin.on(path, Reply::cached("hello", "s-maxage=60").framing(framing));
        let head = node.request("HEAD", SHOP, path, &[], b"").await;
        assert_eq!((head.status, head.cache(), head.complete), (200, "MISS", true), "{path}");
        node.idle().await;
        let get = node.get(SHOP, path).await;
        assert_eq!((get.status, get.text().as_str(), get.complete), (200, "hello", true), "{path}");
        assert_eq!((get.cache(), origin.calls(path)), ("HIT", 1), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_is_answered_from_what_a_get_stored() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("hello", "s-maxage=60").field("x-a", "1"));
    let node = Node::before(&origin).await;
    node.get(SHOP, "/a").await;
    node.idle().await;
    let head = node.request("HEAD", SHOP, "/a", &[], b"").await;
    assert_eq!((head.status, head.cache(), head.complete), (200, "HIT", true));
    assert_eq!((head.field("content-length"), head.field("x-a")), (Some("5"), Some("1")));
    assert_eq!(origin.calls("/a"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_of_something_uncacheable_stays_a_head_and_has_no_body() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("hello"));
    origin.on("/missing", Reply::ok("no").status(404));
    let node = Node::before(&origin).await;
    for (path, status) in [("/a", 200), ("/missing", 404)] {
        for _ in 0..3 {
            let head = node.request("HEAD", SHOP, path, &[], b"").await;
            assert_eq!((head.status, head.complete), (status, true), "{path}");
        }
        assert_eq!(node.get(SHOP, path).await.text(), if status == 200 { "hello" } else { "no" });
    }
}

// The key.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn path_and_query_are_keyed_and_forwarded_byte_for_byte() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let targets = [
        "/q",
        "/q?",
        "/q?a=1&b=2",
        "/q?b=2&a=1",
        "/q?a=1&b=2&",
        "/q?a=%31&b=2",
        "/q?A=1&b=2",
        "/q?a=1;b=2",
        "/q?a=1%26b=2",
        "/q?a+b",
        "/q?a%20b",
        "/Q",
        "/q/",
        "//q",
        "/%71",
        "/x/../q",
        "/q%2F",
    ];
    for target in targets {
        let bare = target.split('?').next().unwrap_or(target);
        origin.on(bare, Reply::cached("a", "s-maxage=60"));
        assert_eq!(twice(&node, &origin, target, &[]).await, stored("MISS", "HIT"), "{target}");
        assert_eq!(origin.last(bare).target, target);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_and_scheme_are_keyed() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("a", "s-maxage=60"));
    let yaml = format!(
        "deployments:\n  - upstream: http://{}\n    name: shop\n    aliases: [shop.test, other.test]\n",
        origin.address
    );
    let node = Node::start(&yaml).await;
    assert_eq!(node.get("shop.test", "/a").await.cache(), "MISS");
    assert_eq!(node.get("other.test", "/a").await.cache(), "MISS");
    assert_eq!(origin.last("/a").field("host"), Some("other.test"));
    assert_eq!(node.get("shop.test:8080", "/a").await.cache(), "MISS");
    assert_eq!(origin.calls("/a"), 3);
    for same in ["shop.test", "SHOP.test", "shop.test:80", "shop.test."] {
        assert_eq!(node.get(same, "/a").await.cache(), "HIT", "{same}");
    }
    assert_ne!(node.key("http://shop.test/a"), node.key("https://shop.test/a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_deployment_has_entries_of_its_own() {
    let (one, two) = (Origin::start().await, Origin::start().await);
    one.on("/a", Reply::cached("one", "s-maxage=60"));
    two.on("/a", Reply::cached("two", "s-maxage=60"));
    let yaml = format!(
        "deployments:\n  - {{upstream: \"http://{}\", name: one, aliases: [one.test]}}\n  - {{upstream: \"http://{}\", name: two, aliases: [two.test]}}\n",
        one.address, two.address
    );
    let node = Node::start(&yaml).await;
    assert_eq!(node.get("one.test", "/a").await.text(), "one");
    assert_eq!(node.get("one.test", "/a").await.cache(), "HIT");
    let before = node.edge.registry.world().find("one.test").expect("a deployment").id.0.clone();
    node.edge.registry.alias("one.test", "two.test").expect("pointed elsewhere");
    let after = node.get("one.test", "/a").await;
    assert_eq!((after.cache(), after.text().as_str()), ("MISS", "two"));
    node.edge.registry.alias("one.test", &before).expect("rolled back");
    let back = node.get("one.test", "/a").await;
    assert_eq!((back.cache(), back.text().as_str()), ("HIT", "one"));
}

// Variants.

const LANGUAGE: &str = "accept-language";

async fn in_language(node: &Node, language: &str) -> Answer {
    node.get_with(SHOP, "/v", &[(LANGUAGE, language)]).await
}

fn varying(body: &str, cache_control: &str) -> Reply {
    Reply::cached(body, cache_control).field("vary", "Accept-Language")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_vary_names_selects_an_entry_of_its_own() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for language in ["en", "de", "fr"] {
        origin.on("/v", varying(language, "s-maxage=60"));
        assert_eq!(in_language(&node, language).await.cache(), "MISS");
        node.idle().await;
    }
    origin.on("/v", varying("none", "s-maxage=60"));
    assert_eq!(node.get(SHOP, "/v").await.text(), "none");
    for language in ["fr", "en", "de"] {
        let answer = in_language(&node, language).await;
        assert_eq!((answer.cache(), answer.text().as_str()), ("HIT", language));
        assert_eq!(answer.field("vary"), Some("Accept-Language"));
    }
    let answer = node.get_with(SHOP, "/v", &[(LANGUAGE, "en"), ("user-agent", "other")]).await;
    assert_eq!((answer.cache(), origin.calls("/v")), ("HIT", 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_refresh_of_one_variant_leaves_the_others_alone() {
    for refreshed in ["en", "de"] {
        let kept = if refreshed == "en" { "de" } else { "en" };
        let origin = Origin::start().await;
        let node = Node::before(&origin).await;
        for language in ["en", "de"] {
            origin.on("/v", varying(language, "s-maxage=10, stale-while-revalidate=100"));
            in_language(&node, language).await;
            node.idle().await;
        }
        advance(&node, 20).await;
        origin.on("/v", varying("new", "s-maxage=1000"));
        assert_eq!(in_language(&node, refreshed).await.cache(), "STALE");
        node.until("the refresh", || origin.calls("/v") == 3).await;
        node.idle().await;
        let answer = in_language(&node, refreshed).await;
        assert_eq!((answer.cache(), answer.text().as_str()), ("HIT", "new"));
        assert_eq!(origin.last("/v").field(LANGUAGE), Some(refreshed));
        let answer = in_language(&node, kept).await;
        assert_eq!((answer.cache(), answer.text().as_str()), ("STALE", kept), "{refreshed} was refreshed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_of_the_url_takes_all_variants() {
    for (how, state) in [(Mode::Delete, "MISS"), (Mode::Invalidate, "STALE")] {
        let origin = Origin::start().await;
        let node = Node::before(&origin).await;
        for language in ["en", "de", "fr"] {
            origin.on("/v", varying(language, "s-maxage=1000"));
            in_language(&node, language).await;
            node.idle().await;
        }
        node.purge("http://shop.test/v", how).await;
        for language in ["de", "en", "fr"] {
            assert_eq!(in_language(&node, language).await.cache(), state, "{how:?} {language}");
            node.idle().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_changes_its_vary_never_gets_a_wrong_variant_served() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/v", varying("en", "s-maxage=10"));
    in_language(&node, "en").await;
    advance(&node, 20).await;
    let by_colour = |colour: &str| Reply::cached(colour, "s-maxage=1000").field("vary", "x-colour");
    for colour in ["red", "blue"] {
        origin.on("/v", by_colour(colour));
        let answer = node.get_with(SHOP, "/v", &[("x-colour", colour)]).await;
        assert_eq!((answer.cache(), answer.text().as_str()), ("MISS", colour));
        node.idle().await;
    }
    for colour in ["red", "blue"] {
        let answer = node.get_with(SHOP, "/v", &[("x-colour", colour), (LANGUAGE, "en")]).await;
        assert_eq!((answer.cache(), answer.text().as_str()), ("HIT", colour));
    }
}

// Freshness.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_expires_at_the_second() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    // How long it is fresh, and by how much the test may be late when it looks shortly before the end.
    let check = async |reply: Reply, seconds: u64| {
        const LATE_S: u64 = 8;
        origin.on("/a", reply.clone());
        node.purge_all().await;
        assert_eq!(node.get(SHOP, "/a").await.cache(), "MISS", "{reply:?}");
        advance(&node, seconds - LATE_S).await;
        assert_eq!(node.get(SHOP, "/a").await.cache(), "HIT", "{reply:?}");
        advance(&node, LATE_S).await;
        assert_eq!(node.get(SHOP, "/a").await.cache(), "MISS", "{reply:?}");
    };
    check(Reply::cached("a", "s-maxage=100"), 100).await;
    check(Reply::cached("a", "max-age=100, public"), 100).await;
    check(Reply::cached("a", "max-age=100, immutable"), 100).await;
    check(Reply::cached("a", "max-age=10, public, s-maxage=100"), 100).await;
    check(Reply::cached("a", "s-maxage=100, max-age=1000, public"), 100).await;
    check(Reply::cached("a", "s-maxage=100").field("age", "40"), 60).await;
    check(Reply::cached("a", "s-maxage=10").field("cdn-cache-control", "max-age=100"), 100).await;
    check(
        Reply::ok("a").field("cdn-cache-control", "max-age=1000").field("vercel-cdn-cache-control", "max-age=100"),
        100,
    )
    .await;
    for most in ["s-maxage=31536000", "s-maxage=31536001", "s-maxage=99999999999999999999", "max-age=99999999, public"]
    {
        check(Reply::cached("a", most), YEAR_S).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_second_is_enough_to_be_stored() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("a", "s-maxage=1"));
    let node = Node::before(&origin).await;
    let status = node.get(SHOP, "/a").await.field("cache-status").expect("a field").to_owned();
    assert!(status.starts_with("perigee;") && status.contains("stored"), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn age_counts_from_when_the_answer_was_made() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("a", "s-maxage=1000"));
    origin.on("/old", Reply::cached("a", "s-maxage=1000").field("age", "100"));
    let node = Node::before(&origin).await;
    for (path, least) in [("/a", 30), ("/old", 130)] {
        node.get(SHOP, path).await;
        advance(&node, 30).await;
        let hit = node.get(SHOP, path).await;
        let age: u64 = hit.field("age").expect("an age").parse().expect("a number");
        assert_eq!(hit.cache(), "HIT");
        assert!((least..least + 40).contains(&age), "{path}: {age}");
        assert_eq!(hit.fields.iter().filter(|(name, _)| name == "age").count(), 1);
    }
}

// Conditional requests.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hit_answers_conditional_requests() {
    const MODIFIED: &str = "Wed, 21 Oct 2015 07:28:00 GMT";
    let origin = Origin::start().await;
    origin.on(
        "/a",
        Reply::cached("hello", "s-maxage=60, max-age=5").field("etag", "\"v1\"").field("last-modified", MODIFIED),
    );
    origin.on("/bare", Reply::cached("hello", "s-maxage=60"));
    let node = Node::before(&origin).await;
    node.get(SHOP, "/a").await;
    node.get(SHOP, "/bare").await;
    node.idle().await;
    let check = async |path: &str, fields: &[(&str, &str)], status: u16| {
        let answer = node.get_with(SHOP, path, fields).await;
        assert_eq!((answer.status, answer.cache(), answer.complete), (status, "HIT", true), "{path} {fields:?}");
        assert_eq!(answer.text(), if status == 200 { "hello" } else { "" }, "{path} {fields:?}");
        if path == "/a" {
            assert_eq!(answer.field("etag"), Some("\"v1\""), "{fields:?}");
            assert_eq!(answer.field("cache-control"), Some("max-age=5"), "{fields:?}");
        }
    };
    check("/a", &[("if-none-match", "\"v1\"")], 304).await;
    check("/a", &[("if-none-match", "W/\"v1\"")], 304).await;
    check("/a", &[("if-none-match", "*")], 304).await;
    check("/a", &[("if-none-match", "\"v0\", \"v1\"")], 304).await;
    check("/a", &[("if-none-match", "\"v0\",W/\"v1\" , \"v2\"")], 304).await;
    check("/a", &[("if-none-match", "\"v0\""), ("if-none-match", "\"v1\"")], 304).await;
    check("/a", &[("if-none-match", "\"v0\"")], 200).await;
    check("/a", &[("if-none-match", "v1")], 200).await;
    check("/a", &[("if-none-match", "\"v1")], 200).await;
    check("/a", &[("if-none-match", "\"V1\"")], 200).await;
    check("/a", &[("if-modified-since", MODIFIED)], 304).await;
    check("/a", &[("if-modified-since", "Wed, 21 Oct 2015 07:27:59 GMT")], 200).await;
    check("/a", &[("if-modified-since", "not a date")], 200).await;
    check("/a", &[("if-none-match", "\"v0\""), ("if-modified-since", MODIFIED)], 200).await;
    check("/bare", &[("if-none-match", "\"v1\"")], 200).await;
    check("/bare", &[("if-none-match", "*")], 304).await;
    check("/bare", &[("if-modified-since", MODIFIED)], 200).await;
    assert_eq!((origin.calls("/a"), origin.calls("/bare")), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conditional_request_that_finds_nothing_stores_the_whole_answer() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("hello", "s-maxage=60").field("etag", "\"v1\""));
    let node = Node::before(&origin).await;
    let first = node.get_with(SHOP, "/a", &[("if-none-match", "\"v1\"")]).await;
    assert!(first.complete && (first.status == 304 || first.text() == "hello"), "{first:?}");
    assert_eq!(origin.last("/a").field("if-none-match"), None);
    node.idle().await;
    let second = node.get(SHOP, "/a").await;
    assert_eq!((second.status, second.cache(), second.text().as_str()), (200, "HIT", "hello"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_entry_is_validated_with_the_origin() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("hello", "s-maxage=10").field("etag", "\"v1\""));
    let node = Node::before(&origin).await;
    node.get(SHOP, "/a").await;
    advance(&node, 20).await;
    origin.on("/a", Reply::cached("hello", "s-maxage=1000").field("etag", "\"v1\""));
    let validated = node.get(SHOP, "/a").await;
    assert_eq!((validated.status, validated.cache(), validated.text().as_str()), (200, "MISS", "hello"));
    assert_eq!(origin.last("/a").field("if-none-match"), Some("\"v1\""));
    advance(&node, 500).await;
    let hit = node.get(SHOP, "/a").await;
    assert_eq!((hit.cache(), hit.text().as_str()), ("HIT", "hello"));
    assert_eq!(hit.field("content-length"), Some("5"));
    assert_eq!(origin.calls("/a"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_validation_that_forbids_storing_removes_the_entry() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("hello", "s-maxage=10").field("etag", "\"v1\""));
    let node = Node::before(&origin).await;
    node.get(SHOP, "/a").await;
    advance(&node, 20).await;
    origin.on("/a", Reply::cached("hello", "no-store").field("etag", "\"v1\""));
    for turn in 2..4 {
        let answer = node.get(SHOP, "/a").await;
        assert_eq!((answer.status, answer.cache(), answer.text().as_str()), (200, "MISS", "hello"));
        assert_eq!(origin.calls("/a"), turn);
        node.idle().await;
    }
}

/// RFC 9111 section 4.3.4.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_validation_updates_the_stored_fields() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let reply = |turn: &str| {
        Reply::cached("hello", "s-maxage=10").field("etag", "\"v1\"").field("x-turn", turn).field("x-kept", "1")
    };
    origin.on("/a", reply("1"));
    node.get(SHOP, "/a").await;
    advance(&node, 20).await;
    origin.on("/a", reply("2"));
    node.get(SHOP, "/a").await;
    node.idle().await;
    let hit = node.get(SHOP, "/a").await;
    assert_eq!((hit.cache(), hit.text().as_str()), ("HIT", "hello"));
    assert_eq!((hit.field("x-kept"), hit.field("x-turn")), (Some("1"), Some("2")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_validation_is_governed_by_the_targeted_fields_that_it_brings() {
    for name in ["cache-control", "cdn-cache-control", "vercel-cdn-cache-control"] {
        let origin = Origin::start().await;
        let node = Node::before(&origin).await;
        origin.on("/a", Reply::ok("hello").field(name, "max-age=10, public").field("etag", "\"v1\""));
        node.get(SHOP, "/a").await;
        advance(&node, 20).await;
        origin.on("/a", Reply::ok("hello").field(name, "no-store").field("etag", "\"v1\""));
        assert_eq!(node.get(SHOP, "/a").await.text(), "hello");
        node.idle().await;
        let next = node.get(SHOP, "/a").await;
        assert_eq!((next.cache(), origin.calls("/a")), ("MISS", 3), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_all_kinds_leave_a_connection_usable() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("hello", "s-maxage=60").field("etag", "\"v1\""));
    origin.on("/chunked", Reply::cached("streamed", "s-maxage=60").framing(Framing::Chunked));
    origin.on("/not", Reply::ok("uncached"));
    origin.on("/404", Reply::ok("missing").status(404));
    let node = Node::before(&origin).await;
    let mut connection = Reading::connect(node.address).await;
    for (method, path, lines, end) in [
        ("GET", "/a", "", "\r\n\r\nhello"),
        ("HEAD", "/a", "", "\r\n\r\n"),
        ("GET", "/a", "If-None-Match: \"v1\"\r\n", "\r\n\r\n"),
        ("GET", "/a", "", "\r\n\r\nhello"),
        ("POST", "/a", "Content-Length: 0\r\n", "hello"),
        ("HEAD", "/chunked", "", "\r\n\r\n"),
        ("GET", "/chunked", "", "streamed"),
        ("GET", "/not", "", "uncached"),
        ("HEAD", "/not", "", "\r\n\r\n"),
        ("GET", "/404", "", "missing"),
    ] {
        connection.ask(method, SHOP, path, lines).await;
        connection.until(end).await;
        node.idle().await;
    }
    connection.ask("GET", SHOP, "/a", "Connection: close\r\n").await;
    let last = connection.finish().await;
    assert_eq!((last.status, last.cache(), last.text().as_str(), last.complete), (200, "HIT", "hello", true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_the_last_of_its_connection_says_so() {
    let origin = Origin::start().await;
    origin.on("/reset", Reply::ok("").framing(Framing::Reset));
    origin.on("/503", Reply::ok("broken").status(503));
    let node = Node::before(&origin).await;
    for (host, path, end) in [
        (SHOP, "/reset", "ROUTER_EXTERNAL_TARGET_ERROR\n\n"),
        (SHOP, "/503", "broken"),
        ("nobody.test", "/", "DEPLOYMENT_NOT_FOUND\n\n"),
    ] {
        let mut connection = Reading::connect(node.address).await;
        connection.ask("GET", host, path, "").await;
        connection.until(end).await;
        if !connection.is_last() {
            connection.ask("GET", SHOP, "/unknown", "Connection: close\r\n").await;
            assert_eq!(connection.finish().await.status, 404, "{path}: closed without a word");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hit_on_a_kept_connection_is_field_for_field_what_any_other_hit_is() {
    const OF_ITS_OWN: [&str; 5] = ["age", "date", "connection", "x-now-id", "cache-status"];
    let origin = Origin::start().await;
    let reply =
        Reply::cached("hello", "s-maxage=1000, max-age=7").field("etag", "\"v1\"").field("content-type", "text/x");
    origin.on("/a", reply.field("link", "</a>; rel=a").field("link", "</b>; rel=b"));
    let node = Node::before_with(&origin, "headers: [now, vercel]").await;
    node.get(SHOP, "/a").await;
    node.idle().await;
    let expected = node.get(SHOP, "/a").await;
    let mut connection = Reading::connect(node.address).await;
    let mut ids = std::collections::HashSet::new();
    for _ in 0..4 {
        let answer = connection.get(SHOP, "/a").await;
        assert_eq!((answer.status, answer.cache(), answer.text().as_str()), (200, "HIT", "hello"));
        let same = |answer: &Answer| {
            let mut fields = answer.fields.clone();
            fields.retain(|(name, _)| !OF_ITS_OWN.contains(&name.as_str()) && name != "x-vercel-id");
            fields.sort();
            fields
        };
        assert_eq!(same(&answer), same(&expected));
        for name in OF_ITS_OWN {
            assert_eq!(answer.fields.iter().filter(|(n, _)| n == name).count(), 1, "{name}");
        }
        let id = answer.field("x-now-id").expect("an id").to_owned();
        assert_eq!(answer.field("x-vercel-id"), Some(id.replace(':', "::").as_str()));
        assert!(ids.insert(id));
        node.clock.advance(Duration::from_secs(30));
    }
    let age: u64 = connection.get(SHOP, "/a").await.field("age").expect("an age").parse().expect("a number");
    assert!((120..160).contains(&age), "{age}");
    assert_eq!(origin.calls("/a"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_sees_expiry_purges_switches_and_other_hosts() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let mut connection = Reading::connect(node.address).await;
    let warm = async |connection: &mut Reading, body: &str| {
        origin.on("/a", Reply::cached(body, "s-maxage=100, stale-while-revalidate=100"));
        assert!(matches!(connection.get(SHOP, "/a").await.cache(), "MISS" | "STALE"));
        node.idle().await;
        for _ in 0..3 {
            let answer = connection.get(SHOP, "/a").await;
            assert_eq!((answer.cache(), answer.text().as_str()), ("HIT", body));
        }
    };
    warm(&mut connection, "one").await;
    assert_eq!(connection.get("nobody.test", "/a").await.status, 404);
    assert_eq!(connection.get(SHOP, "/a?_now_no_cache=1").await.cache(), "BYPASS");
    assert_eq!(connection.get(SHOP, "/a?other").await.cache(), "MISS");
    node.clock.advance(Duration::from_secs(250));
    warm(&mut connection, "two").await;
    node.purge("http://shop.test/a", Mode::Delete).await;
    warm(&mut connection, "three").await;
    node.purge_all().await;
    warm(&mut connection, "four").await;
    node.purge("http://shop.test/a", Mode::Invalidate).await;
    origin.on("/a", Reply::cached("five", "s-maxage=100"));
    let stale = connection.get(SHOP, "/a").await;
    assert_eq!((stale.cache(), stale.text().as_str()), ("STALE", "four"));
    for (field, state) in [
        ("Range: bytes=0-1\r\n", "BYPASS"),
        ("Authorization: x\r\n", "BYPASS"),
        ("Cookie: _now_no_cache=1\r\n", "BYPASS"),
        ("Content-Length: 0\r\n", "HIT"),
        ("Pragma: no-cache\r\n", "HIT"),
    ] {
        node.idle().await;
        connection.ask("GET", SHOP, "/a", field).await;
        connection.until("\r\n\r\nfive").await;
        assert!(connection.has(&format!("x-now-cache: {state}")), "{field}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hits_that_are_asked_for_ahead_come_in_their_order() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for path in ["/a", "/b"] {
        origin.on(path, Reply::cached(path, "s-maxage=60"));
        for _ in 0..2 {
            node.get(SHOP, path).await;
            node.idle().await;
        }
    }
    let mut connection = Reading::connect(node.address).await;
    let one = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    connection.send([one("/a"), one("/b"), one("/a"), one("/b")].concat().as_bytes()).await;
    for body in ["\r\n\r\n/a", "\r\n\r\n/b", "\r\n\r\n/a", "\r\n\r\n/b"] {
        connection.until_past(body).await;
    }
}

// Bodies are whole.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hit_after_a_chunked_fill_says_its_length() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("hello", "s-maxage=60").framing(Framing::Chunked));
    let node = Node::before(&origin).await;
    let first = node.get(SHOP, "/a").await;
    assert_eq!((first.text().as_str(), first.complete), ("hello", true));
    node.idle().await;
    let hit = node.get(SHOP, "/a").await;
    assert_eq!((hit.cache(), hit.text().as_str()), ("HIT", "hello"));
    assert_eq!((hit.field("content-length"), hit.field("transfer-encoding")), (Some("5"), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_ends_with_its_connection_is_delivered_whole() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("hello", "s-maxage=60").framing(Framing::Close));
    let node = Node::before(&origin).await;
    for _ in 0..2 {
        let answer = node.get(SHOP, "/a").await;
        assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "hello", true));
        node.idle().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_body_is_cut_for_the_client_and_never_stored() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, framing) in [("/length", Framing::CutLength), ("/chunked", Framing::CutChunked)] {
        let gate = Gate::default();
        origin.on(path, Reply::cached("firstsecond", "s-maxage=60").framing(framing).held_midway(&gate));
        let mut cut = node.begin(SHOP, path).await;
        cut.until("first").await;
        gate.open();
        let cut = cut.finish().await;
        assert_eq!((cut.status, cut.complete), (200, false), "{path}");
        node.idle().await;
        origin.on(path, Reply::cached("firstsecond", "s-maxage=60"));
        let next = node.get(SHOP, path).await;
        assert_eq!((next.cache(), next.text().as_str(), next.complete), ("MISS", "firstsecond", true), "{path}");
        assert_eq!(origin.calls(path), 2, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_body_leaves_the_stale_entry() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, framing) in [("/length", Framing::CutLength), ("/chunked", Framing::CutChunked)] {
        origin.on(path, Reply::cached("old", "s-maxage=10, stale-while-revalidate"));
        node.get(SHOP, path).await;
        advance(&node, 20).await;
        origin.on(path, Reply::cached("firstsecond", "s-maxage=60").framing(framing));
        assert_eq!(node.get(SHOP, path).await.cache(), "STALE", "{path}");
        node.until("the refresh", || origin.calls(path) == 2).await;
        node.idle().await;
        let still = node.get(SHOP, path).await;
        assert_eq!((still.cache(), still.text().as_str(), still.complete), ("STALE", "old", true), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_does_not_spoil_the_fill() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, framing) in [("/length", Framing::Length), ("/chunked", Framing::Chunked)] {
        let gate = Gate::default();
        let body = ["first".repeat(100_000), "second".repeat(100_000)].concat();
        origin.on(path, Reply::cached(body.clone(), "s-maxage=60").framing(framing).held_midway(&gate));
        let mut leaving = node.begin(SHOP, path).await;
        leaving.until("first").await;
        drop(leaving);
        gate.open();
        node.idle().await;
        let next = node.get(SHOP, path).await;
        assert!(next.complete && next.text() == body, "{path}");
        assert_eq!((next.cache(), origin.calls(path)), ("HIT", 1), "{path}");
    }
}

// stale-while-revalidate.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_is_served_at_once_while_it_is_refreshed_behind() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, cache_control) in
        [("/bare", "s-maxage=10, stale-while-revalidate"), ("/limited", "s-maxage=10, stale-while-revalidate=60")]
    {
        origin.on(path, Reply::cached("old", cache_control));
        assert_eq!(node.get(SHOP, path).await.cache(), "MISS");
        advance(&node, 20).await;
        let gate = Gate::default();
        origin.on(path, Reply::cached("new", cache_control).held(&gate));
        let stale = node.get(SHOP, path).await;
        assert_eq!((stale.cache(), stale.text().as_str()), ("STALE", "old"), "{path}");
        let age: u64 = stale.field("age").expect("an age").parse().expect("a number");
        assert!(age >= 20, "{path}: {age}");
        node.until("the refresh", || origin.calls(path) == 2).await;
        assert_eq!(node.get(SHOP, path).await.cache(), "STALE", "{path}");
        gate.open();
        node.idle().await;
        let fresh = node.get(SHOP, path).await;
        assert_eq!((fresh.cache(), fresh.text().as_str()), ("HIT", "new"), "{path}");
        assert_eq!(origin.calls(path), 2, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stale_window_ends() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let check = async |reply: Reply, fresh_s: u64, window_s: u64| {
        const LATE_S: u64 = 8;
        node.purge_all().await;
        origin.on("/a", reply.clone());
        node.get(SHOP, "/a").await;
        // The refresh fails, so that the entry stays as old as it is.
        origin.on("/a", Reply::ok("broken").status(500));
        advance(&node, fresh_s + window_s - LATE_S).await;
        if window_s > LATE_S {
            assert_eq!(node.get(SHOP, "/a").await.cache(), "STALE", "{reply:?}");
        }
        advance(&node, LATE_S).await;
        origin.on("/a", Reply::ok("new"));
        let after = node.get(SHOP, "/a").await;
        assert_eq!((after.cache(), after.text().as_str()), ("MISS", "new"), "{reply:?}");
    };
    check(Reply::cached("old", "s-maxage=10"), 10, 0).await;
    check(Reply::cached("old", "s-maxage=10, stale-while-revalidate=60"), 10, 60).await;
    check(Reply::cached("old", "max-age=10, public, stale-while-revalidate=60"), 10, 60).await;
    check(Reply::cached("old", "s-maxage=10, stale-while-revalidate=0"), 10, 0).await;
    check(Reply::cached("old", "s-maxage=1, stale-while-revalidate"), 1, YEAR_S).await;
    check(Reply::cached("old", "s-maxage=1, stale-while-revalidate=99999999999"), 1, YEAR_S).await;
    check(Reply::ok("old").field("cdn-cache-control", "max-age=10, stale-while-revalidate=60"), 10, 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_refresh_keeps_the_stale_entry_until_its_window_ends() {
    for failure in ["status", "reset", "refused"] {
        let origin = Origin::start().await;
        let node = Node::before(&origin).await;
        origin.on("/a", Reply::cached("old", "s-maxage=10, stale-while-revalidate=60"));
        node.get(SHOP, "/a").await;
        advance(&node, 20).await;
        match failure {
            "status" => origin.on("/a", Reply::cached("broken", "s-maxage=60").status(500)),
            "reset" => origin.on("/a", Reply::ok("").framing(Framing::Reset)),
            _ => origin.stop().await,
        }
        for _ in 0..3 {
            let stale = node.get(SHOP, "/a").await;
            assert_eq!((stale.status, stale.cache(), stale.text().as_str()), (200, "STALE", "old"), "{failure}");
            node.idle().await;
        }
        advance(&node, 60).await;
        let over = node.get(SHOP, "/a").await;
        assert_eq!((over.status / 100, over.cache()), (5, "MISS"), "{failure}: the window is over");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_refresh_is_not_tried_again_at_once_but_a_second_later() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/a", Reply::cached("old", "s-maxage=10, stale-while-revalidate"));
    node.get(SHOP, "/a").await;
    advance(&node, 20).await;
    origin.on("/a", Reply::ok("broken").status(500));
    assert_eq!(node.get(SHOP, "/a").await.cache(), "STALE");
    node.until("the refresh", || origin.calls("/a") == 2).await;
    let failed = std::time::Instant::now();
    node.idle().await;
    let answers = node.burst(20, SHOP, "/a").await;
    assert!(answers.iter().all(|answer| answer.cache() == "STALE" && answer.text() == "old"));
    // On a machine that stands still for a second, the second try is right.
    let calls = origin.calls("/a");
    assert!(calls == 2 || failed.elapsed() >= Duration::from_secs(1), "{calls} calls");
    origin.on("/a", Reply::cached("new", "s-maxage=1000"));
    let calls = origin.calls("/a");
    while origin.calls("/a") == calls {
        assert_eq!(node.get(SHOP, "/a").await.text(), "old");
        assert!(failed.elapsed() < Duration::from_secs(10), "the refresh is not tried again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.idle().await;
    let fresh = node.get(SHOP, "/a").await;
    assert_eq!((fresh.cache(), fresh.text().as_str()), ("HIT", "new"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_is_made_for_everybody_and_carries_nobodys_credentials() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/a", Reply::cached("old", "s-maxage=10, stale-while-revalidate"));
    let mine = [("cookie", "session=mine"), ("x-kept", "1")];
    node.get_with(SHOP, "/a", &mine).await;
    assert_eq!(origin.last("/a").field("cookie"), Some("session=mine"));
    advance(&node, 20).await;
    assert_eq!(node.get_with(SHOP, "/a", &mine).await.cache(), "STALE");
    node.until("the refresh", || origin.calls("/a") == 2).await;
    let refresh = origin.last("/a");
    assert_eq!((refresh.method.as_str(), refresh.field("host")), ("GET", Some(SHOP)));
    assert_eq!((refresh.field("cookie"), refresh.field("authorization")), (None, None));
    assert!(refresh.field("x-now-id").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_or_a_conditional_request_starts_a_whole_refresh() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, method, fields) in [("/head", "HEAD", None), ("/conditional", "GET", Some(("if-none-match", "\"v1\"")))]
    {
        origin.on(path, Reply::cached("old", "s-maxage=10, stale-while-revalidate").field("etag", "\"v1\""));
        node.get(SHOP, path).await;
        advance(&node, 20).await;
        origin.on(path, Reply::cached("brand new", "s-maxage=1000").field("etag", "\"v2\""));
        let stale = node.request(method, SHOP, path, fields.as_slice(), b"").await;
        assert_eq!(stale.cache(), "STALE", "{path}");
        node.until("the refresh", || origin.calls(path) == 2).await;
        node.idle().await;
        let fresh = node.get(SHOP, path).await;
        assert_eq!((fresh.status, fresh.cache(), fresh.text().as_str()), (200, "HIT", "brand new"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_brings_something_else_removes_the_entry() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, reply) in [
        ("/404", Reply::ok("gone").status(404)),
        ("/302", Reply::ok("").status(302).field("location", "/login")),
        ("/no-store", Reply::cached("secret", "no-store")),
        ("/private", Reply::cached("secret", "private, max-age=60")),
        ("/set-cookie", Reply::cached("mine", "s-maxage=60").field("set-cookie", "a=b")),
        ("/silent", Reply::ok("no directive")),
    ] {
        origin.on(path, Reply::cached("old", "s-maxage=10, stale-while-revalidate"));
        node.get(SHOP, path).await;
        advance(&node, 20).await;
        origin.on(path, reply.clone());
        assert_eq!(node.get(SHOP, path).await.cache(), "STALE", "{path}");
        node.until("the refresh", || origin.calls(path) == 2).await;
        node.idle().await;
        let next = node.get(SHOP, path).await;
        assert_eq!((next.status, next.cache(), &next.body), (reply.status, "MISS", &reply.body), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_is_not_modified_makes_the_entry_fresh_again() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/a", Reply::cached("hello", "s-maxage=10, stale-while-revalidate").field("etag", "\"v1\""));
    node.get(SHOP, "/a").await;
    advance(&node, 20).await;
    assert_eq!(node.get(SHOP, "/a").await.cache(), "STALE");
    node.until("the refresh", || origin.calls("/a") == 2).await;
    assert_eq!(origin.last("/a").field("if-none-match"), Some("\"v1\""));
    node.idle().await;
    let fresh = node.get(SHOP, "/a").await;
    assert_eq!((fresh.status, fresh.cache(), fresh.text().as_str()), (200, "HIT", "hello"));
    assert_eq!(fresh.field("content-length"), Some("5"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidated_entry_is_served_stale_and_a_deleted_one_is_not() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/a", Reply::cached("old", "s-maxage=1000"));
    node.get(SHOP, "/a").await;
    node.idle().await;
    origin.on("/a", Reply::cached("new", "s-maxage=1000"));
    node.purge("http://shop.test/a", Mode::Invalidate).await;
    let stale = node.get(SHOP, "/a").await;
    assert_eq!((stale.cache(), stale.text().as_str()), ("STALE", "old"));
    node.until("the refresh", || origin.calls("/a") == 2).await;
    node.idle().await;
    assert_eq!(node.get(SHOP, "/a").await.text(), "new");
    node.purge("http://shop.test/a", Mode::Delete).await;
    assert_eq!(node.get(SHOP, "/a").await.cache(), "MISS");
    node.purge("http://shop.test/never", Mode::Delete).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_wins_over_a_fill_that_is_under_way() {
    for how in [Mode::Delete, Mode::Invalidate] {
        let origin = Origin::start().await;
        let node = Node::before(&origin).await;
        let (before, midway) = (Gate::default(), Gate::default());
        origin.on("/header", Reply::cached("old", "s-maxage=1000").held(&before));
        origin.on("/body", Reply::cached("old body", "s-maxage=1000").framing(Framing::Chunked).held_midway(&midway));
        let first = node.begin(SHOP, "/header").await;
        let mut second = node.begin(SHOP, "/body").await;
        second.until("old").await;
        node.until("both asked", || origin.calls("/header") + origin.calls("/body") == 2).await;
        node.purge("http://shop.test/header", how).await;
        node.purge("http://shop.test/body", how).await;
        before.open();
        midway.open();
        assert_eq!(first.finish().await.text(), "old");
        assert_eq!(second.finish().await.text(), "old body");
        node.idle().await;
        for path in ["/header", "/body"] {
            origin.on(path, Reply::cached("new", "s-maxage=1000"));
            assert_eq!(node.get(SHOP, path).await.text(), "new", "{how:?} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_wins_over_a_refresh_that_is_under_way() {
    for (how, etag) in [(Mode::Delete, "\"v1\""), (Mode::Invalidate, "\"v1\""), (Mode::Delete, "\"v2\"")] {
        let origin = Origin::start().await;
        let node = Node::before(&origin).await;
        let reply = |etag: &str| Reply::cached("old", "s-maxage=10, stale-while-revalidate").field("etag", etag);
        origin.on("/a", reply("\"v1\""));
        node.get(SHOP, "/a").await;
        advance(&node, 20).await;
        let gate = Gate::default();
        origin.on("/a", reply(etag).held(&gate));
        assert_eq!(node.get(SHOP, "/a").await.cache(), "STALE");
        node.until("the refresh", || origin.calls("/a") == 2).await;
        node.purge("http://shop.test/a", how).await;
        gate.open();
        node.idle().await;
        origin.on("/a", Reply::cached("new", "s-maxage=1000").field("etag", "\"v3\""));
        let next = node.get(SHOP, "/a").await;
        assert_ne!(next.cache(), "HIT", "{how:?} {etag}: what was fetched before the purge is not fresh after it");
    }
}

// stale-if-error.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_if_error_answers_for_a_failing_origin() {
    for (failure, cache_control) in [
        ("500", "s-maxage=10, stale-if-error=60"),
        ("503", "s-maxage=10, stale-while-revalidate=5, stale-if-error=60"),
        ("reset", "s-maxage=10, stale-if-error=60"),
        ("refused", "max-age=10, public, stale-if-error=60"),
    ] {
        let origin = Origin::start().await;
        let node = Node::before(&origin).await;
        origin.on("/a", Reply::cached("old", cache_control));
        node.get(SHOP, "/a").await;
        advance(&node, 20).await;
        match failure {
            "reset" => origin.on("/a", Reply::ok("").framing(Framing::Reset)),
            "refused" => origin.stop().await,
            status => origin.on("/a", Reply::ok("broken").status(status.parse().expect("a status"))),
        }
        for _ in 0..2 {
            let stale = node.get(SHOP, "/a").await;
            assert_eq!((stale.status, stale.cache(), stale.text().as_str()), (200, "STALE", "old"), "{failure}");
            node.idle().await;
        }
        advance(&node, 60).await;
        let over = node.get(SHOP, "/a").await;
        assert_eq!((over.status / 100, over.cache()), (5, "MISS"), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_if_error_is_for_errors_only() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/a", Reply::cached("old", "s-maxage=10, stale-if-error=60"));
    node.get(SHOP, "/a").await;
    advance(&node, 20).await;
    origin.on("/a", Reply::ok("gone").status(404));
    let answer = node.get(SHOP, "/a").await;
    assert_eq!((answer.status, answer.cache(), answer.text().as_str()), (404, "MISS", "gone"));
    origin.on("/a", Reply::ok("broken").status(500));
    assert_eq!(node.get(SHOP, "/a").await.status, 500, "the 404 removed what was stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_stale_if_error_a_failure_is_told() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/a", Reply::cached("old", "s-maxage=10"));
    node.get(SHOP, "/a").await;
    advance(&node, 20).await;
    origin.on("/a", Reply::ok("broken").status(500));
    let answer = node.get(SHOP, "/a").await;
    assert_eq!((answer.status, answer.cache(), answer.text().as_str()), (500, "MISS", "broken"));
    origin.on("/a", Reply::cached("new", "s-maxage=60"));
    assert_eq!(node.get(SHOP, "/a").await.text(), "new");
}

// Pragma: no-cache.

const PRAGMA: [(&str, &str); 1] = [("pragma", "no-cache")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pragma_revalidates_a_stale_entry_in_the_foreground() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/a", Reply::cached("old", "s-maxage=10, stale-while-revalidate"));
    let absent = node.get_with(SHOP, "/a", &PRAGMA).await;
    assert_eq!((absent.cache(), absent.text().as_str()), ("MISS", "old"));
    node.idle().await;
    let fresh = node.get_with(SHOP, "/a", &PRAGMA).await;
    assert_eq!((fresh.cache(), fresh.text().as_str(), origin.calls("/a")), ("HIT", "old", 1));
    advance(&node, 20).await;
    origin.on("/a", Reply::cached("new", "s-maxage=1000"));
    let stale = node.get_with(SHOP, "/a", &PRAGMA).await;
    assert_eq!((stale.cache(), stale.text().as_str(), origin.calls("/a")), ("REVALIDATED", "new", 2));
    node.idle().await;
    let after = node.get(SHOP, "/a").await;
    assert_eq!((after.cache(), after.text().as_str(), origin.calls("/a")), ("HIT", "new", 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pragma_means_no_cache_and_nothing_else() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, value, state) in [
        ("/a", "no-cache", "REVALIDATED"),
        ("/b", "No-Cache", "REVALIDATED"),
        ("/c", "x, no-cache", "REVALIDATED"),
        ("/d", "cache", "STALE"),
        ("/e", "", "STALE"),
    ] {
        origin.on(path, Reply::cached("a", "s-maxage=10, stale-while-revalidate"));
        node.get(SHOP, path).await;
        advance(&node, 20).await;
        assert_eq!(node.get_with(SHOP, path, &[("pragma", value)]).await.cache(), state, "{value:?}");
    }
    origin.on("/f", Reply::cached("a", "s-maxage=10, stale-while-revalidate"));
    node.get(SHOP, "/f").await;
    advance(&node, 20).await;
    assert_eq!(node.get_with(SHOP, "/f", &[("cache-control", "no-cache")]).await.cache(), "STALE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pragma_is_told_revalidated_when_the_origin_has_nothing_new() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/a", Reply::cached("hello", "s-maxage=10, stale-while-revalidate").field("etag", "\"v1\""));
    node.get(SHOP, "/a").await;
    advance(&node, 20).await;
    let answer = node.get_with(SHOP, "/a", &PRAGMA).await;
    assert_eq!((answer.status, answer.cache(), answer.text().as_str()), (200, "REVALIDATED", "hello"));
    assert_eq!(origin.last("/a").field("if-none-match"), Some("\"v1\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pragma_with_a_failing_origin_leaves_the_stale_entry() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/a", Reply::cached("old", "s-maxage=10, stale-while-revalidate"));
    node.get(SHOP, "/a").await;
    advance(&node, 20).await;
    origin.on("/a", Reply::ok("broken").status(500));
    let answer = node.get_with(SHOP, "/a", &PRAGMA).await;
    assert!(answer.status == 500 || answer.text() == "old", "{answer:?}");
    node.idle().await;
    let stale = node.get(SHOP, "/a").await;
    assert_eq!((stale.status, stale.cache(), stale.text().as_str()), (200, "STALE", "old"));
}

// Static files.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_file_is_a_miss_and_then_a_hit_for_31_days() {
    const LATE_S: u64 = 8;
    let node = Node::with_project(&[("a.txt", "hello")]).await;
    let site = "site.test";
    let first = node.get(site, "/a.txt").await;
    assert_eq!((first.status, first.cache(), first.text().as_str()), (200, "MISS", "hello"));
    assert_eq!(first.field("cache-control"), Some("public, max-age=0, must-revalidate"));
    assert_eq!(node.get(site, "/a.txt").await.cache(), "HIT");
    assert_eq!(node.get(site, "/a.txt?query=is&not=keyed").await.cache(), "HIT");
    advance(&node, 31 * 24 * 3600 - LATE_S).await;
    let last = node.get(site, "/a.txt").await;
    assert_eq!((last.cache(), last.field("cache-control")), ("HIT", Some("public, max-age=0, must-revalidate")));
    advance(&node, LATE_S).await;
    assert_eq!(node.get(site, "/a.txt").await.cache(), "MISS");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_file_has_a_strong_etag_ranges_and_a_name() {
    let node = Node::with_project(&[("a.txt", "hello")]).await;
    let first = node.get("site.test", "/a.txt").await;
    let etag = first.field("etag").expect("an etag").to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "{etag}");
    assert_eq!(first.field("content-disposition"), Some("inline; filename=\"a.txt\""));
    assert_eq!(first.field("content-type"), Some("text/plain; charset=utf-8"));
    let same = node.get_with("site.test", "/a.txt", &[("if-none-match", &etag)]).await;
    assert_eq!((same.status, same.cache(), same.field("etag")), (304, "HIT", Some(etag.as_str())));
    let part = node.get_with("site.test", "/a.txt", &[("range", "bytes=1-3")]).await;
    assert_eq!((part.status, part.cache(), part.text().as_str()), (206, "BYPASS", "ell"));
    assert_eq!(part.field("content-range"), Some("bytes 1-3/5"));
    let head = node.request("HEAD", "site.test", "/a.txt", &[], b"").await;
    assert_eq!((head.status, head.cache(), head.field("content-length")), (200, "HIT", Some("5")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_overrides_what_the_client_is_told_about_a_static_file() {
    let config = r#"{"version": 2, "routes": [{"src": "/a\\.txt", "headers": {"cache-control": "max-age=77, s-maxage=5"}, "continue": true}]}"#;
    let node = Node::with_project(&[("a.txt", "hello"), ("now.json", config)]).await;
    for state in ["MISS", "HIT"] {
        let answer = node.get("site.test", "/a.txt").await;
        assert_eq!((answer.cache(), answer.field("cache-control")), (state, Some("max-age=77")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bypassing_requests_for_static_files_say_so() {
    let node = Node::with_project(&[("a.txt", "hello")]).await;
    let site = "site.test";
    assert_eq!(node.get_with(site, "/a.txt", &[("authorization", "Bearer x")]).await.cache(), "BYPASS");
    assert_eq!(node.get(site, "/a.txt?_now_no_cache=1").await.cache(), "BYPASS");
    assert_eq!(node.get_with(site, "/a.txt", &[("cookie", "_now_no_cache=1")]).await.cache(), "BYPASS");
    assert_eq!(node.get(site, "/a.txt").await.cache(), "MISS");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_file_over_ten_mb_is_served_whole_and_not_cached() {
    let large = "x".repeat(10 * MB + 1);
    let node = Node::with_project(&[("large.txt", &large)]).await;
    for _ in 0..2 {
        let answer = node.get("site.test", "/large.txt").await;
        assert_eq!((answer.status, answer.cache(), answer.complete), (200, "MISS", true));
        assert!(answer.body == large.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_deployment_never_shows_content_of_the_one_before() {
    let node = Node::with_project(&[("a.txt", "before")]).await;
    node.get("site.test", "/a.txt").await;
    assert_eq!(node.get("site.test", "/a.txt").await.cache(), "HIT");
    write_files(&node.dir.path().join("site"), &[("a.txt", "after")]);
    let conf = conf(node.dir.path(), "deployments:\n  - path: {dir}/site\n    aliases: [site.test]\n");
    let (edge, now) = (node.edge.clone(), node.clock.now());
    let reload = tokio::task::spawn_blocking(move || edge.registry.reload(Arc::new(conf), now));
    reload.await.expect("no panic").expect("deployed again");
    let answer = node.get("site.test", "/a.txt").await;
    assert_eq!((answer.cache(), answer.text().as_str()), ("MISS", "after"));
}
