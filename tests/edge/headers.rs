//! The seed "Headers": what an origin is told, what it may not be told by a client, and what the client gets to see
//! (product.md 5.3, 5.7, 5.12).

use std::time::Duration;

use crate::support::{Answer, Framing, Gate, Node, Origin, Reply, raw};

const SHOP: &str = "shop.test";
const DEFAULT: &str = "public, max-age=0, must-revalidate";

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `<5 chars>-<unix ms>-<12 hex>`.
fn is_stamp(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [pod, ms, random] = parts.as_slice() else { return false };
    pod.len() == 5
        && pod.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && ms.len() == 13
        && ms.bytes().all(|b| b.is_ascii_digit())
        && random.len() == 12
        && is_hex(random)
}

// To the origin.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_is_told_who_asks_for_what_and_by_which_way() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("a"));
    let node = Node::before(&origin).await;
    let answer = node.get_with(SHOP, "/a?b=c", &[("accept", "text/x"), ("cookie", "a=b"), ("x-kept", "1")]).await;
    let seen = origin.last("/a");
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/a?b=c"));
    for (name, value) in [
        ("host", SHOP),
        ("x-forwarded-host", SHOP),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-real-ip", "127.0.0.1"),
        ("x-zeit-co-forwarded-for", "127.0.0.1"),
        ("x-now-trace", "sfo1"),
        ("accept", "text/x"),
        ("cookie", "a=b"),
        ("x-kept", "1"),
    ] {
        assert_eq!(seen.all(name), [value], "{name}");
    }
    let id = seen.field("x-now-id").expect("an id");
    assert!(id.strip_prefix("sfo1:").is_some_and(is_stamp), "{id}");
    assert_eq!(answer.field("x-now-id"), Some(id), "the client is told the same id");
    let url = seen.field("x-now-deployment-url").expect("the deployment");
    let uid = url.strip_prefix("shop-").and_then(|rest| rest.strip_suffix(".now.test")).unwrap_or_default();
    assert!(!uid.is_empty() && uid.bytes().all(|b| b.is_ascii_alphanumeric()), "{url}");
    assert!(seen.fields.iter().all(|(name, _)| !name.starts_with("x-vercel-")), "{:?}", seen.fields);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deployments_own_host_reaches_it_too() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("a", "s-maxage=60"));
    let node = Node::before(&origin).await;
    node.get(SHOP, "/a").await;
    let own = origin.last("/a").field("x-now-deployment-url").expect("the deployment").to_owned();
    let answer = node.get(&own, "/a").await;
    assert_eq!((answer.status, answer.cache()), (200, "MISS"));
    let seen = origin.last("/a");
    assert_eq!((seen.field("host"), seen.field("x-forwarded-host")), (Some(own.as_str()), Some(own.as_str())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_has_an_id_of_its_own() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("a", "s-maxage=60"));
    let node = Node::before(&origin).await;
    let answers = node.burst(50, SHOP, "/a").await;
    let ids: std::collections::HashSet<&str> = answers.iter().filter_map(|answer| answer.field("x-now-id")).collect();
    assert_eq!(ids.len(), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_families_of_headers_are_sent_where_both_are_wanted() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("a", "s-maxage=60"));
    let node = Node::before_with(&origin, "headers: [now, vercel]").await;
    for state in ["MISS", "HIT"] {
        let answer = node.get(SHOP, "/a").await;
        assert_eq!((answer.field("x-now-cache"), answer.field("x-vercel-cache")), (Some(state), Some(state)));
        let id = answer.field("x-now-id").expect("an id");
        assert_eq!(answer.field("x-vercel-id"), Some(id.replace(':', "::").as_str()));
        node.idle().await;
    }
    let seen = origin.last("/a");
    assert_eq!(seen.all("x-vercel-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.field("x-vercel-deployment-url"), seen.field("x-now-deployment-url"));
    assert_eq!(seen.field("x-vercel-id").map(str::to_owned), seen.field("x-now-id").map(|id| id.replace(':', "::")));
    let missing = node.get("nobody.test", "/a").await;
    assert_eq!(missing.field("x-vercel-error"), Some("DEPLOYMENT_NOT_FOUND"));
}

/// Names that only the platform may say.
const PLATFORM: [&str; 25] = [
    "x-now-id",
    "x-now-trace",
    "x-now-cache",
    "x-now-deployment-url",
    "x-now-bridge-request-id",
    "x-vercel-id",
    "x-vercel-deployment-url",
    "x-vercel-forwarded-for",
    "x-vercel-ip-country",
    "x-vercel-ip-city",
    "x-vercel-oidc-token",
    "x-vercel-ja4-digest",
    "x-zeit-co-forwarded-for",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-real-ip",
    "x-matched-path",
    "x-perigee-invocation",
    "x-invoke-path",
    "x-middleware-subrequest",
    "x-prerender-revalidate",
    "forwarded",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_the_platform_may_say_is_dropped_from_the_client() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("a"));
    let node = Node::before(&origin).await;
    let spellings: [fn(&str) -> String; 4] = [
        str::to_owned,
        |name| name.to_ascii_uppercase(),
        |name| name.replace('-', "_"),
        |name| name.replacen('-', "_", 1).to_ascii_uppercase(),
    ];
    for spelling in spellings {
        let names: Vec<String> = PLATFORM.iter().map(|name| spelling(name)).collect();
        let fields: Vec<(&str, &str)> =
            names.iter().flat_map(|name| [(name.as_str(), "forged"), (name.as_str(), "twice, forged")]).collect();
        let answer = node.get_with(SHOP, "/a", &fields).await;
        assert_eq!(answer.status, 200);
        let seen = origin.last("/a");
        let forged: Vec<&(String, String)> = seen.fields.iter().filter(|(_, value)| value.contains("forged")).collect();
        assert!(forged.is_empty(), "{forged:?}");
        assert!(answer.fields.iter().all(|(_, value)| !value.contains("forged")), "{:?}", answer.fields);
        assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(seen.all("x-forwarded-host"), [SHOP]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_field_cannot_take_the_platforms_fields_away() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::ok("a"));
    let node = Node::before(&origin).await;
    let request = b"GET /a HTTP/1.1\r\nHost: shop.test\r\nConnection: close, x-real-ip, x-forwarded-for, cookie\r\nCookie: a=b\r\n\r\n";
    let answer = raw(node.address, request, false).await;
    if answer.status == 400 {
        assert_eq!(origin.calls("/a"), 0, "refused");
        return;
    }
    assert_eq!(answer.status, 200);
    let seen = origin.last("/a");
    assert_eq!((seen.field("x-real-ip"), seen.field("x-forwarded-for")), (Some("127.0.0.1"), Some("127.0.0.1")));
    let connection = seen.field("connection").unwrap_or_default().to_ascii_lowercase();
    assert!(!connection.contains("x-real-ip"), "an origin that obeys it would lose the field: {connection}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_host_never_reaches_a_cached_page() {
    let origin = Origin::start().await;
    origin.on("/a", Reply::cached("a", "s-maxage=60"));
    let node = Node::before(&origin).await;
    let poison = [
        "x-forwarded-host",
        "x_forwarded_host",
        "X-Host",
        "x-original-url",
        "x-rewrite-url",
        "forwarded",
        "x-forwarded",
    ]
    .map(|name| (name, "evil.test"));
    assert_eq!(node.get_with(SHOP, "/a", &poison).await.cache(), "MISS");
    let seen = origin.last("/a");
    assert!(seen.fields.iter().all(|(_, value)| !value.contains("evil")), "{:?}", seen.fields);
    node.idle().await;
    assert_eq!(node.get(SHOP, "/a").await.cache(), "HIT");
    // A whole URL in the request line counts more than the Host field (RFC 9112 section 3.2.2): one of the two, and the same for all.
    let absolute = b"GET http://shop.test/b HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n";
    let answer = raw(node.address, absolute, false).await;
    if origin.calls("/b") > 0 {
        assert_eq!(origin.last("/b").field("host"), Some(SHOP));
        assert_eq!(origin.last("/b").field("x-forwarded-host"), Some(SHOP));
    } else {
        assert!(matches!(answer.status, 400 | 404), "{answer:?}");
    }
    // Where both say the same, it is a request like any other, and shares its entry.
    let same = b"GET http://shop.test/a HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";
    let answer = raw(node.address, same, false).await;
    assert_eq!((answer.status, answer.cache()), (200, "HIT"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_is_told_the_same_and_its_region_is_in_the_id() {
    let echo = "module.exports = (req, res) => { res.setHeader('cache-control', 's-maxage=60'); res.end(JSON.stringify(req.headers)) }";
    let node = Node::with_project(&[("api/echo.js", echo)]).await;
    let forged = [("x-forwarded-host", "evil.test"), ("X_Now_Id", "forged"), ("x-vercel-ip-country", "forged")];
    let answer = node.get_with("site.test", "/api/echo", &forged).await;
    assert_eq!((answer.status, answer.cache()), (200, "MISS"), "{}", answer.text());
    let text = answer.text();
    for told in [
        r#""host":"site.test""#,
        r#""x-forwarded-host":"site.test""#,
        r#""x-forwarded-proto":"http""#,
        r#""x-forwarded-for":"127.0.0.1""#,
        r#""x-real-ip":"127.0.0.1""#,
        r#""x-zeit-co-forwarded-for":"127.0.0.1""#,
        r#""x-now-trace":"sfo1""#,
    ] {
        assert!(text.contains(told), "{told} is not in {text}");
    }
    assert!(!text.contains("evil") && !text.contains("forged"), "{text}");
    let id = answer.field("x-now-id").expect("an id");
    assert!(id.strip_prefix("sfo1:sfo1:").is_some_and(is_stamp), "{id}");
    assert!(text.contains(id), "{id} is not in {text}");
    node.idle().await;
    let hit = node.get("site.test", "/api/echo").await;
    let id = hit.field("x-now-id").expect("an id");
    assert_eq!((hit.cache(), hit.text()), ("HIT", text));
    assert!(id.strip_prefix("sfo1:").is_some_and(is_stamp), "no function ran: {id}");
}

// To the client.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_says_where_it_comes_from() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/a", Reply::cached("a", "s-maxage=10, stale-while-revalidate").field("content-type", "text/x"));
    let check = |answer: &Answer, state: &str, status: u16| {
        assert_eq!((answer.status, answer.cache()), (status, state));
        assert_eq!((answer.field("server"), answer.field("x-now-trace")), (Some("now"), Some("sfo1")));
        let id = answer.field("x-now-id").expect("an id");
        assert!(id.strip_prefix("sfo1:").is_some_and(is_stamp), "{id}");
        let cache_status = answer.field("cache-status").expect("the reason");
        assert!(cache_status.starts_with("perigee; "), "{cache_status}");
        let date = answer.field("date").expect("a date");
        assert!(date.ends_with(" GMT"), "{date}");
        assert!(answer.field("content-length").is_some() || answer.field("transfer-encoding").is_some());
        for name in ["server", "date", "cache-control", "x-now-id", "x-now-cache", "x-now-trace", "content-length"] {
            assert!(answer.fields.iter().filter(|(n, _)| n == name).count() <= 1, "{name} twice");
        }
        cache_status.to_owned()
    };
    let miss = node.get(SHOP, "/a").await;
    assert_eq!(miss.field("content-type"), Some("text/x"));
    let said = check(&miss, "MISS", 200);
    assert!(said.contains("fwd=") && said.contains("stored"), "{said}");
    node.idle().await;
    let said = check(&node.get(SHOP, "/a").await, "HIT", 200);
    assert!(said.starts_with("perigee; hit") && said.contains("ttl="), "{said}");
    node.clock.advance(Duration::from_secs(20));
    let said = check(&node.get_with(SHOP, "/a", &[("pragma", "no-cache")]).await, "REVALIDATED", 200);
    assert!(said.contains("fwd="), "{said}");
    node.idle().await;
    node.clock.advance(Duration::from_secs(20));
    let said = check(&node.get(SHOP, "/a").await, "STALE", 200);
    assert!(said.starts_with("perigee; hit") && said.contains("ttl=-"), "{said}");
    let said = check(&node.request("POST", SHOP, "/a", &[], b"x").await, "BYPASS", 200);
    assert!(said.contains("fwd="), "{said}");
    check(&node.get(SHOP, "/missing").await, "MISS", 404);
    origin.on("/reset", Reply::ok("").framing(Framing::Reset));
    check(&node.get(SHOP, "/reset").await, "MISS", 502);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cache_status_has_the_reason() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let check = async |path: &str, reply: Reply, fields: &[(&str, &str)], reason: &str| {
        origin.on(path, reply);
        let said = node.get_with(SHOP, path, fields).await.field("cache-status").unwrap_or_default().to_owned();
        assert!(said.contains(reason), "{path}: {said}");
    };
    let cached = || Reply::cached("a", "s-maxage=60");
    check("/1", cached().field("set-cookie", "a=b"), &[], "set_cookie").await;
    check("/2", Reply::cached("a", "no-store"), &[], "no_store").await;
    check("/3", Reply::cached("a", "private"), &[], "private").await;
    check("/4", Reply::cached("a", "no-cache"), &[], "no_cache").await;
    check("/5", Reply::ok("a"), &[], "no_directive").await;
    check("/6", cached().field("vary", "*"), &[], "vary_all").await;
    check("/7", cached().field("vary", "cookie"), &[], "vary_cookie").await;
    check("/8", Reply::cached("a", "s-maxage=0"), &[], "zero_lifetime").await;
    check("/9", cached().status(404), &[], "status").await;
    check("/10", cached(), &[("range", "bytes=0-1")], "range").await;
    check("/11", cached(), &[("authorization", "x")], "authorization").await;
    check("/12", cached(), &[("cookie", "_now_no_cache=1")], "no_cache_switch").await;
    // The reason is told again when it is remembered.
    check("/1", cached().field("set-cookie", "a=b"), &[], "set_cookie").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_meant_for_the_edge_is_taken_out_of_cache_control() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let rows: [(&[&str], &str); 14] = [
        (&[], DEFAULT),
        (&[""], DEFAULT),
        (&["s-maxage=60"], DEFAULT),
        (&["s-maxage=1, stale-while-revalidate"], DEFAULT),
        (&["S-MAXAGE=60, Stale-If-Error=5"], DEFAULT),
        (&["s-maxage=60", "stale-while-revalidate=10"], DEFAULT),
        (&["max-age=10, s-maxage=60"], "max-age=10"),
        (&["s-maxage=60, public, max-age=0, stale-while-revalidate=7, must-revalidate"], DEFAULT),
        (&["s-maxage=60, stale-if-error=5, immutable, max-age=5"], "immutable, max-age=5"),
        (&["max-age=10, public"], "max-age=10, public"),
        (&["no-store"], "no-store"),
        (&["private, max-age=10"], "private, max-age=10"),
        (&["no-cache, s-maxage=10"], "no-cache"),
        (&["s-maxage=60, no-cache=\"set-cookie, x-a\""], "no-cache=\"set-cookie, x-a\""),
    ];
    for (n, (lines, expected)) in rows.iter().enumerate() {
        let path = format!("/{n}");
        origin.on(&path, lines.iter().fold(Reply::ok("a"), |reply, line| reply.field("cache-control", line)));
        for _ in 0..2 {
            let answer = node.get(SHOP, &path).await;
            assert_eq!(answer.field("cache-control"), Some(*expected), "{lines:?} {}", answer.cache());
            assert_eq!(answer.fields.iter().filter(|(name, _)| name == "cache-control").count(), 1, "{lines:?}");
            node.idle().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_and_a_stale_answer_have_the_clients_cache_control_too() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let gate = Gate::default();
    let reply = Reply::cached("firstsecond", "s-maxage=10, max-age=3, stale-while-revalidate").field("set-x", "1");
    origin.on("/a", reply.framing(Framing::Chunked).held_midway(&gate));
    let mut all = [node.begin(SHOP, "/a").await, node.begin(SHOP, "/a").await];
    for reading in &mut all {
        reading.until("first").await;
    }
    gate.open();
    for reading in all {
        let answer = reading.finish().await;
        assert_eq!((answer.field("cache-control"), answer.field("set-x")), (Some("max-age=3"), Some("1")));
    }
    node.idle().await;
    node.clock.advance(Duration::from_secs(20));
    let stale = node.get(SHOP, "/a").await;
    assert_eq!((stale.cache(), stale.field("cache-control")), ("STALE", Some("max-age=3")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_cannot_speak_for_the_platform() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let names = [
        "x-now-id",
        "x-now-cache",
        "x-now-trace",
        "x-now-error",
        "X-Vercel-Id",
        "x-vercel-cache",
        "x-vercel-error",
        "server",
        "cache-status",
        "vercel-cdn-cache-control",
        "cdn-cache-control",
    ];
    let forging = |reply: Reply| names.iter().fold(reply, |reply, name| reply.field(name, "forged"));
    origin.on("/cached", forging(Reply::ok("a")).field("vercel-cdn-cache-control", "max-age=60"));
    origin.on("/uncached", forging(Reply::ok("a")));
    origin.on("/error", forging(Reply::ok("a").status(500)));
    for path in ["/cached", "/uncached", "/error"] {
        for _ in 0..2 {
            let answer = node.get(SHOP, path).await;
            let forged: Vec<_> = answer.fields.iter().filter(|(_, value)| value.contains("forged")).collect();
            assert!(forged.is_empty(), "{path} {}: {forged:?}", answer.cache());
            for targeted in ["vercel-cdn-cache-control", "cdn-cache-control"] {
                assert_eq!(answer.field(targeted), None, "{path} {}", answer.cache());
            }
            node.idle().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origins_own_fields_pass_whether_stored_or_not() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, cache_control) in [("/stored", "s-maxage=60"), ("/not", "no-store")] {
        origin.on(
            path,
            Reply::cached("a", cache_control)
                .field("x-custom", "1")
                .field("link", "</a>; rel=a")
                .field("link", "</b>; rel=b")
                .field("etag", "W/\"v1\"")
                .field("content-type", "application/x")
                .field("content-encoding", "x-own")
                .field("strict-transport-security", "max-age=1"),
        );
        for _ in 0..2 {
            let answer = node.get(SHOP, path).await;
            let links: Vec<&str> =
                answer.fields.iter().filter(|(name, _)| name == "link").map(|(_, value)| value.as_str()).collect();
            assert_eq!(links, ["</a>; rel=a", "</b>; rel=b"], "{path} {}", answer.cache());
            for (name, value) in [
                ("x-custom", "1"),
                ("etag", "W/\"v1\""),
                ("content-type", "application/x"),
                ("content-encoding", "x-own"),
                ("strict-transport-security", "max-age=1"),
            ] {
                assert_eq!(answer.field(name), Some(value), "{path} {}", answer.cache());
            }
            node.idle().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_of_the_origins_connection_end_there() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (path, cache_control) in [("/stored", "s-maxage=60"), ("/not", "no-store")] {
        origin.on(
            path,
            Reply::cached("a", cache_control)
                .field("connection", "x-hop")
                .field("x-hop", "1")
                .field("keep-alive", "timeout=5")
                .field("proxy-authenticate", "Basic"),
        );
        for _ in 0..2 {
            let answer = node.get(SHOP, path).await;
            assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "a", true));
            for name in ["x-hop", "keep-alive"] {
                assert_eq!(answer.field(name), None, "{path} {} {name}", answer.cache());
            }
            node.idle().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cookie_is_set_for_the_one_who_asked_and_for_nobody_else() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/a", Reply::cached("mine", "s-maxage=60").field("set-cookie", "a=1").field("set-cookie", "b=2"));
    let first = node.get(SHOP, "/a").await;
    assert_eq!(first.fields.iter().filter(|(name, _)| name == "set-cookie").count(), 2);
    origin.on("/a", Reply::cached("ours", "s-maxage=60"));
    let second = node.get(SHOP, "/a").await;
    assert_eq!((second.text().as_str(), second.field("set-cookie")), ("ours", None));
}

// Failures of the platform's own.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_host_is_told_so_in_the_format_that_is_asked_for() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    for (accept, content_type) in [
        (None, "text/plain; charset=utf-8"),
        (Some("*/*"), "text/plain; charset=utf-8"),
        (Some("application/json"), "application/json; charset=utf-8"),
        (Some("text/html,application/xhtml+xml,*/*;q=0.8"), "text/html; charset=utf-8"),
    ] {
        let fields = accept.map(|accept| ("accept", accept));
        let answer = node.get_with("nobody.test", "/a", fields.as_slice()).await;
        assert_eq!((answer.status, answer.complete), (404, true), "{accept:?}");
        assert_eq!(answer.field("content-type"), Some(content_type));
        assert_eq!(answer.field("x-now-error"), Some("DEPLOYMENT_NOT_FOUND"));
        assert_eq!(answer.field("cache-control"), Some(DEFAULT));
        assert_eq!(answer.field("server"), Some("now"));
        let id = answer.field("x-now-id").expect("an id");
        let text = answer.text();
        assert!(text.contains("DEPLOYMENT_NOT_FOUND") && text.contains(id), "{text}");
        if content_type.starts_with("application/json") {
            let json: serde_json::Value = serde_json::from_str(&text).expect("json");
            assert_eq!(json["error"]["code"], "DEPLOYMENT_NOT_FOUND");
        }
    }
    let head = node.request("HEAD", "nobody.test", "/a", &[], b"").await;
    assert_eq!((head.status, head.complete), (404, true));
    assert_eq!(origin.calls("/a"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_or_makes_no_sense_is_refused_before_anybody_is_asked() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    let long = "v".repeat(17 * 1024);
    let large = node.get_with(SHOP, "/a", &[("x-large", &long)]).await;
    assert_eq!((large.status, large.field("x-now-error")), (431, Some("REQUEST_HEADER_TOO_LARGE")));
    let third = "v".repeat(12 * 1024);
    let together = node.get_with(SHOP, "/a", &[("x-1", &third), ("x-2", &third), ("x-3", &third)]).await;
    assert_eq!((together.status, together.field("x-now-error")), (431, Some("REQUEST_HEADER_TOO_LARGE")));
    let many: Vec<String> = (0..120).map(|n| format!("x-{n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "v")).collect();
    assert_eq!(node.get_with(SHOP, "/a", &many).await.status, 431);
    let url = format!("/a?{}", "q".repeat(15 * 1024));
    let long = node.get(SHOP, &url).await;
    assert_eq!((long.status, long.field("x-now-error")), (414, Some("URL_TOO_LONG")));
    for host in ["", "a@shop.test", "shop.test/x", "shop.test:99999"] {
        let refused = node.get(host, "/a").await;
        assert_eq!(refused.status, 400, "{host:?}");
    }
    let huge = "v".repeat(2 * 1024 * 1024);
    let refused = node.get_with(SHOP, "/a", &[("x-huge", &huge)]).await;
    assert!(matches!(refused.status, 0 | 400 | 431), "{}", refused.status);
    assert_eq!(origin.calls("/a"), 0);
    origin.on("/a", Reply::ok("a"));
    assert_eq!(node.get(SHOP, "/a").await.status, 200, "and goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_fails_is_told_by_a_code_and_not_by_its_cause() {
    let origin = Origin::start().await;
    let node = Node::before(&origin).await;
    origin.on("/reset", Reply::ok("").framing(Framing::Reset));
    for method in ["GET", "POST"] {
        let answer = node.request(method, SHOP, "/reset", &[("accept", "application/json")], b"").await;
        assert_eq!((answer.status, answer.field("x-now-error")), (502, Some("ROUTER_EXTERNAL_TARGET_ERROR")));
        let text = answer.text();
        assert!(text.contains(answer.field("x-now-id").expect("an id")), "{text}");
        assert!(!text.contains("127.0.0.1"), "{text}");
    }
    assert_eq!(origin.calls("/reset"), 2, "nothing is sent twice");
    origin.stop().await;
    // A child of another test that is between fork and exec may hold the listener open for a moment longer.
    let mut refused = node.get(SHOP, "/refused").await;
    for _ in 0..100 {
        if refused.field("x-now-error") == Some("ROUTER_EXTERNAL_TARGET_CONNECTION_ERROR") {
            break;
        }
        refused = node.get(SHOP, "/refused").await;
    }
    assert_eq!((refused.status, refused.field("x-now-error")), (502, Some("ROUTER_EXTERNAL_TARGET_CONNECTION_ERROR")));
}
