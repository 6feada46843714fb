//! Routes of a project, from the configuration's text to what the visitor, the function or the other origin sees.

use serde_json::Value;

use crate::support::{Answer, Node, Origin, Reply};

const DEFAULT: &str = "public, max-age=0, must-revalidate";

/// Tells what it was asked.
const ECHO: &str = "module.exports = (req, res) => res.json({
  method: req.method, url: req.url, query: req.query, headers: req.headers, file: __filename.split('/').pop() })";

async fn get(node: &Node, path: &str) -> Answer {
    node.get("site.test", path).await
}

/// What the echoing function was asked.
async fn echoed(node: &Node, path: &str) -> Value {
    let answer = get(node, path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{path}: {error}: {}", answer.text()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_are_followed_in_their_order() {
    let node = Node::with_project(&[
        (
            "now.json",
            r#"{"version": 2, "routes": [
                {"src": "/.*", "headers": {"x-all": "yes", "x-first": "1"}, "continue": true},
                {"src": "/named/(?<slug>[^/]+)/(?<rest>.*)", "dest": "/api/echo?slug=$slug&rest=$rest&fixed=a%20b"},
                {"src": "/numbered/([a-z]+)", "dest": "/api/echo?n=$1", "headers": {"x-first": "2", "x-word": "w-$1"}},
                {"src": "/form", "methods": ["POST"], "dest": "/api/echo?by=form"},
                {"src": "/form", "dest": "/a.txt"},
                {"src": "/hidden.txt", "status": 404},
                {"src": "/gone", "status": 410},
                {"src": "/made", "status": 201, "dest": "/api/echo"},
                {"src": "/page", "status": 203, "dest": "/a.txt"},
                {"src": "/moved/(.*)", "status": 302, "headers": {"Location": "/to/$1"}},
                {"src": "/away", "status": 301, "headers": {"Location": "https://elsewhere.test/x?y=1"}},
                {"handle": "filesystem"},
                {"src": "/a.txt", "dest": "/b.txt"},
                {"src": "/fallback/.*", "dest": "/b.txt"},
                {"src": "/case/UPPER", "dest": "/b.txt"}
            ]}"#,
        ),
        ("a.txt", "a"),
        ("b.txt", "b"),
        ("hidden.txt", "hidden"),
        ("api/echo.js", ECHO),
    ])
    .await;

    let seen = echoed(&node, "/named/one/two/three?own=1").await;
    assert_eq!(seen["query"]["slug"], "one");
    assert_eq!(seen["query"]["rest"], "two/three");
    assert_eq!(seen["query"]["fixed"], "a b");
    assert_eq!(seen["query"]["own"], "1", "the visitor's own query stays");
    let answer = get(&node, "/numbered/abc").await;
    assert_eq!(
        (answer.field("x-word"), answer.field("x-first"), answer.field("x-all")),
        (Some("w-abc"), Some("1"), Some("yes"))
    );
    assert_eq!(get(&node, "/numbered/ABC9").await.status, 404);

    // What the visitor sends stays a value where it is put into a URL.
    let seen = echoed(&node, "/named/a%26evil%3D1/x").await;
    assert_eq!(seen["query"]["slug"], "a&evil=1");
    assert_eq!(seen["query"]["evil"], Value::Null);

    let form = node.request("POST", "site.test", "/form", &[], b"").await;
    assert_eq!(serde_json::from_slice::<Value>(&form.body).expect("JSON")["query"]["by"], "form");
    assert_eq!(get(&node, "/form").await.text(), "a");

    for path in ["/hidden.txt", "/nothing"] {
        let answer = get(&node, path).await;
        assert_eq!((answer.status, answer.field("x-now-error")), (404, Some("NOT_FOUND")), "{path}");
        assert!(!answer.text().contains("hidden"));
    }
    assert_eq!(get(&node, "/gone").await.status, 410);
    assert_eq!(get(&node, "/made").await.status, 201);
    let page = get(&node, "/page").await;
    assert_eq!((page.status, page.text().as_str()), (203, "a"));
    assert_ne!(get(&node, "/page").await.cache(), "HIT", "only 200 is cached");

    for (path, status, location) in [
        ("/moved/x/y", 302, "/to/x/y"),
        ("/moved/x?q=1", 302, "/to/x?q=1"),
        ("/moved//evil.test/", 302, "/to//evil.test/"),
        ("/away", 301, "https://elsewhere.test/x?y=1"),
    ] {
        let answer = get(&node, path).await;
        assert_eq!((answer.status, answer.field("location")), (status, Some(location)), "{path}");
        assert_eq!(answer.field("cache-control"), Some(DEFAULT), "{path}");
        assert!(answer.complete, "{path}");
    }

    // Files go before what follows `handle: filesystem`.
    assert_eq!(get(&node, "/a.txt").await.text(), "a");
    assert_eq!(get(&node, "/fallback/x/y").await.text(), "b");
    assert_eq!(get(&node, "/a.txt").await.field("x-all"), Some("yes"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_never_leads_to_a_host_that_the_visitor_named() {
    let node = Node::with_project(&[("vercel.json", r#"{"trailingSlash": false}"#), ("a.txt", "a")]).await;
    for path in ["//evil.test/", "/\\evil.test/", "/%2fevil.test/", "/%5cevil.test/", "//evil.test/%2e%2e/"] {
        let answer = get(&node, path).await;
        let location = answer.field("location").unwrap_or("/");
        assert!(location.starts_with('/') && !location[1..].starts_with(['/', '\\']), "{path} -> {location}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_choose_among_routes() {
    let node = Node::with_project(&[
        (
            "vercel.json",
            r#"{"rewrites": [
                {"source": "/p", "has": [{"type": "header", "key": "x-beta", "value": "on"}], "destination": "/beta.txt"},
                {"source": "/p", "has": [{"type": "cookie", "key": "who", "value": "me"}], "destination": "/mine.txt"},
                {"source": "/p", "has": [{"type": "query", "key": "page", "value": "(?<n>\\d+)"}], "destination": "/:n.txt"},
                {"source": "/p", "has": [{"type": "host", "value": "other.test"}], "destination": "/other.txt"},
                {"source": "/p", "missing": [{"type": "header", "key": "x-known"}], "destination": "/unknown.txt"},
                {"source": "/p", "destination": "/known.txt"}
            ], "alias": ["other.test"]}"#,
        ),
        ("beta.txt", "beta"),
        ("mine.txt", "mine"),
        ("7.txt", "seven"),
        ("other.txt", "other"),
        ("unknown.txt", "unknown"),
        ("known.txt", "known"),
    ])
    .await;
    for (host, path, fields, body) in [
        ("site.test", "/p", &[("x-beta", "on")][..], "beta"),
        ("site.test", "/p", &[("x-beta", "onward"), ("x-known", "")], "known"),
        ("site.test", "/p", &[("cookie", "a=b; who=me")], "mine"),
        ("site.test", "/p", &[("cookie", "who=you"), ("x-known", "1")], "known"),
        ("site.test", "/p?page=7", &[], "seven"),
        ("other.test", "/p", &[], "other"),
        ("site.test", "/p", &[], "unknown"),
        ("site.test", "/p", &[("x-known", "1")], "known"),
    ] {
        // Twice: the choice must not be cached for those who bring something else.
        for _ in 0..2 {
            let answer = node.get_with(host, path, fields).await;
            assert_eq!((answer.status, answer.text().as_str()), (200, body), "{host}{path} {fields:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_rewrites_and_headers_are_routes_too() {
    let node = Node::with_project(&[
        (
            "vercel.json",
            r#"{
                "redirects": [
                    {"source": "/a/:id", "destination": "/b/:id", "permanent": false},
                    {"source": "/for-good", "destination": "/b", "permanent": true},
                    {"source": "/plain", "destination": "/b"},
                    {"source": "/code", "destination": "https://elsewhere.test/:splat?x=1", "statusCode": 301, "has": [{"type": "query", "key": "to", "value": "(?<splat>\\w+)"}]},
                    {"source": "/all/:path*", "destination": "/new/:path*"}
                ],
                "rewrites": [
                    {"source": "/blog/:slug", "destination": "/api/echo"},
                    {"source": "/shop/:kind/:id", "destination": "/api/echo?item=:id"},
                    {"source": "/text", "destination": "/a.txt"}
                ],
                "headers": [
                    {"source": "/(.*)", "headers": [{"key": "X-Frame-Options", "value": "DENY"}]},
                    {"source": "/a.txt", "headers": [{"key": "X-Text", "value": "yes"}]}
                ]
            }"#,
        ),
        ("a.txt", "a"),
        ("api/echo.js", ECHO),
    ])
    .await;
    for (path, status, location) in [
        ("/a/7", 307, "/b/7"),
        ("/a/7?q=1", 307, "/b/7?q=1"),
        ("/for-good", 308, "/b"),
        ("/plain", 308, "/b"),
        ("/code?to=there", 301, "https://elsewhere.test/there?x=1&to=there"),
        ("/all/x/y/z", 308, "/new/x/y/z"),
        ("/all", 308, "/new"),
    ] {
        let answer = get(&node, path).await;
        let location = (status, Some(location));
        assert_eq!((answer.status, answer.field("location").map(|l| l.trim_end_matches('/'))), location, "{path}");
    }
    let posted = node.request("POST", "site.test", "/a/7", &[], b"body").await;
    assert_eq!((posted.status, posted.field("location")), (307, Some("/b/7")));
    let json = node.get_with("site.test", "/plain", &[("accept", "application/json")]).await;
    let told: Value = serde_json::from_slice(&json.body).expect("JSON");
    assert_eq!((&told["redirect"], &told["status"]), (&Value::from("/b"), &Value::from("308")));

    assert_eq!(echoed(&node, "/blog/hello?own=1").await["query"], serde_json::json!({"own": "1", "slug": "hello"}));
    let shop = echoed(&node, "/shop/shoes/9").await;
    assert_eq!(shop["query"]["item"], "9");
    let text = get(&node, "/text").await;
    assert_eq!((text.status, text.text().as_str(), text.field("x-frame-options")), (200, "a", Some("DENY")));
    assert_eq!(text.field("x-text"), None, "the header is the visitor's path's");
    assert_eq!(get(&node, "/a.txt").await.field("x-text"), Some("yes"));
    assert_eq!(get(&node, "/api/echo").await.field("x-frame-options"), Some("DENY"));
    assert_eq!(get(&node, "/nothing").await.field("x-frame-options"), Some("DENY"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clean_urls_and_slashes_have_one_form() {
    let files = [
        ("index.html", "home"),
        ("about.html", "about"),
        ("docs/index.html", "docs"),
        ("a.txt", "a"),
        ("api/date.js", "module.exports = (req, res) => res.send('date')"),
    ];
    let check = async |config: &str, table: &[(&str, u16, &str)]| {
        let mut files = files.to_vec();
        files.push(("vercel.json", config));
        let node = Node::with_project(&files).await;
        for (path, status, expected) in table {
            let answer = get(&node, path).await;
            let got = answer.field("location").map_or_else(|| answer.text(), str::to_owned);
            assert_eq!((answer.status, got.as_str()), (*status, *expected), "{config} {path}");
        }
    };
    check(
        r#"{"cleanUrls": true}"#,
        &[
            ("/", 200, "home"),
            ("/about", 200, "about"),
            ("/about.html", 308, "/about"),
            ("/about.html?x=1", 308, "/about?x=1"),
            ("/index.html", 308, "/"),
            ("/docs/index.html", 308, "/docs"),
            ("/docs", 200, "docs"),
            ("/a.txt", 200, "a"),
            ("/api/date", 200, "date"),
            ("/api/date.js", 308, "/api/date"),
        ],
    )
    .await;
    check(
        r#"{"trailingSlash": true}"#,
        &[
            ("/docs", 308, "/docs/"),
            ("/docs/", 200, "docs"),
            ("/docs?x=1", 308, "/docs/?x=1"),
            ("/a.txt", 200, "a"),
            ("/a.txt/", 308, "/a.txt"),
            ("/api/date/", 200, "date"),
        ],
    )
    .await;
    check(
        r#"{"trailingSlash": false, "cleanUrls": true}"#,
        &[("/docs/", 308, "/docs"), ("/docs", 200, "docs"), ("/about/", 308, "/about"), ("/", 200, "home")],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_with_brackets_take_what_their_path_leaves_open() {
    let node = Node::with_project(&[
        ("api/users/[name].js", ECHO),
        ("api/users/me.js", ECHO),
        ("api/users/[name]/posts/[id].js", ECHO),
        ("api/files/[...rest].js", ECHO),
        ("api/index.js", ECHO),
        ("api/[any].js", ECHO),
        ("index.html", "home"),
    ])
    .await;
    for (path, file, query) in [
        ("/api/users/ada", "[name].js", r#"{"name":"ada"}"#),
        ("/api/users/a%20b%2Fc?x=1", "[name].js", r#"{"x":"1","name":"a b/c"}"#),
        ("/api/users/me", "me.js", "{}"),
        ("/api/users/ada/posts/7", "[id].js", r#"{"name":"ada","id":"7"}"#),
        ("/api/files/a/b/c", "[...rest].js", r#"{"rest":"a/b/c"}"#),
        ("/api", "index.js", "{}"),
        ("/api/", "index.js", "{}"),
        ("/api/thing", "[any].js", r#"{"any":"thing"}"#),
        ("/api/users/me.js", "me.js", "{}"),
    ] {
        let seen = echoed(&node, path).await;
        assert_eq!(seen["file"], file, "{path}");
        assert_eq!(seen["query"], serde_json::from_str::<Value>(query).expect("JSON"), "{path}");
        assert_eq!(seen["url"].as_str().and_then(|url| url.split('?').next()), path.split('?').next(), "{path}");
    }
    assert_eq!(get(&node, "/api/users/ada/posts").await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewrite_to_another_host_is_a_request_to_it() {
    let origin = Origin::start().await;
    origin.on("/x/one", Reply::cached("cached", "s-maxage=60, max-age=5"));
    origin.on("/x/live", Reply::ok("live"));
    origin.on("/x/bad", Reply::ok("bad").status(500));
    let config = format!(
        r#"{{"version": 2, "routes": [
            {{"src": "/ext/(.*)", "dest": "http://{0}/x/$1?fixed=1", "headers": {{"x-route": "yes"}}}},
            {{"src": "/down", "dest": "http://127.0.0.1:1/x"}}
        ]}}"#,
        origin.address
    );
    let node = Node::with_project(&[("now.json", &config), ("a.txt", "a")]).await;

    let first = get(&node, "/ext/one?own=2").await;
    assert_eq!((first.status, first.text().as_str(), first.cache()), (200, "cached", "MISS"));
    assert_eq!(first.field("cache-control"), Some("max-age=5"));
    assert_eq!(first.field("x-route"), Some("yes"));
    let seen = origin.last("/x/one");
    assert_eq!(seen.field("host"), Some(origin.address.to_string().as_str()));
    assert_eq!(seen.field("x-forwarded-host"), Some("site.test"));
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    let mut query: Vec<&str> = seen.target.split('?').nth(1).unwrap_or_default().split('&').collect();
    query.sort_unstable();
    assert_eq!(query, ["fixed=1", "own=2"], "{}", seen.target);
    let second = get(&node, "/ext/one?own=2").await;
    assert_eq!((second.cache(), second.field("x-route")), ("HIT", Some("yes")));
    assert_eq!(origin.calls("/x/one"), 1);
    assert_eq!(get(&node, "/ext/one?own=3").await.cache(), "MISS", "another query is another key");

    for _ in 0..2 {
        assert_eq!(get(&node, "/ext/live").await.cache(), "MISS");
    }
    assert_eq!(origin.calls("/x/live"), 2);
    let posted = node.request("POST", "site.test", "/ext/live", &[], b"body").await;
    assert_eq!((posted.status, origin.last("/x/live").body.as_slice()), (200, &b"body"[..]));
    assert_eq!(get(&node, "/ext/bad").await.status, 500);
    let down = get(&node, "/down").await;
    assert_eq!((down.status, down.field("x-now-error")), (502, Some("ROUTER_EXTERNAL_TARGET_CONNECTION_ERROR")));
    assert!(!down.text().contains("127.0.0.1"), "{}", down.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_may_say_what_a_function_does_not_about_caching() {
    let node = Node::with_project(&[
        (
            "now.json",
            r#"{"version": 2, "routes": [
                {"src": "/api/count", "headers": {"cache-control": "s-maxage=60"}, "continue": true},
                {"src": "/api/both", "headers": {"cache-control": "s-maxage=60, max-age=10"}, "continue": true},
                {"src": "/api/own", "headers": {"cache-control": "s-maxage=60"}, "continue": true}
            ]}"#,
        ),
        ("api/count.js", "let n = 0; module.exports = (req, res) => res.send('n' + ++n)"),
        ("api/both.js", "let n = 0; module.exports = (req, res) => res.send('n' + ++n)"),
        (
            "api/own.js",
            "let n = 0; module.exports = (req, res) => { res.setHeader('cache-control', 'no-store'); res.send('n' + ++n) }",
        ),
    ])
    .await;
    for (path, client) in [("/api/count", DEFAULT), ("/api/both", "max-age=10")] {
        for cache in ["MISS", "HIT"] {
            let answer = get(&node, path).await;
            assert_eq!((answer.status, answer.text().as_str(), answer.cache()), (200, "n1", cache), "{path}");
            assert_eq!(answer.field("cache-control"), Some(client), "{path} {cache}");
        }
    }
    for body in ["n1", "n2"] {
        let answer = get(&node, "/api/own").await;
        assert_eq!((answer.text().as_str(), answer.cache()), (body, "MISS"), "the function's own word goes first");
        assert_eq!(answer.field("cache-control"), Some("no-store"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_may_say_how_long_browsers_keep_a_file() {
    let node = Node::with_project(&[
        (
            "now.json",
            r#"{"version": 2, "routes": [
                {"src": "/assets/.*", "headers": {"Cache-Control": "public, max-age=3600, s-maxage=60, stale-while-revalidate=5", "x-asset": "1"}, "continue": true},
                {"src": "/edge/.*", "headers": {"cache-control": "s-maxage=60"}, "continue": true}
            ]}"#,
        ),
        ("assets/a.js", "a"),
        ("edge/b.txt", "b"),
        ("c.txt", "c"),
    ])
    .await;
    for (path, client) in [("/assets/a.js", "public, max-age=3600"), ("/edge/b.txt", DEFAULT), ("/c.txt", DEFAULT)] {
        for cache in ["MISS", "HIT"] {
            let answer = get(&node, path).await;
            assert_eq!((answer.status, answer.cache()), (200, cache), "{path}");
            assert_eq!(answer.field("cache-control"), Some(client), "{path} {cache}");
        }
    }
    let etag = get(&node, "/assets/a.js").await.field("etag").expect("an etag").to_owned();
    let known = node.get_with("site.test", "/assets/a.js", &[("if-none-match", &etag)]).await;
    assert_eq!((known.status, known.field("cache-control")), (304, Some("public, max-age=3600")));
    let part = node.get_with("site.test", "/assets/a.js", &[("range", "bytes=0-0")]).await;
    assert_eq!(
        (part.status, part.field("cache-control"), part.field("x-asset")),
        (206, Some("public, max-age=3600"), Some("1"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_that_chase_each_other_end() {
    let node = Node::with_project(&[
        (
            "now.json",
            r#"{"version": 2, "routes": [
                {"handle": "filesystem"},
                {"src": "/ping(.*)", "dest": "/pong$1x", "check": true},
                {"src": "/pong(.*)", "dest": "/ping$1x", "check": true}
            ]}"#,
        ),
        ("a.txt", "a"),
    ])
    .await;
    let answer = get(&node, "/ping").await;
    assert!(matches!(answer.status, 404 | 502), "{answer:?}");
    assert_eq!(get(&node, "/a.txt").await.text(), "a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targets_that_a_cookie_chooses_do_not_share_an_entry() {
    let (stable, beta) = (Origin::start().await, Origin::start().await);
    for (origin, text) in [(&stable, "stable"), (&beta, "beta")] {
        origin.on("/page", Reply::cached(text, "s-maxage=60"));
    }
    let config = format!(
        r#"{{"routes": [
            {{"src": "/(.*)", "has": [{{"type": "cookie", "key": "beta"}}], "dest": "http://{}/$1"}},
            {{"src": "/(.*)", "dest": "http://{}/$1"}}
        ]}}"#,
        beta.address, stable.address
    );
    let node = Node::with_project(&[("now.json", &config), ("a.txt", "a")]).await;
    for _ in 0..3 {
        assert_eq!(node.get("site.test", "/page").await.text(), "stable");
        assert_eq!(node.get_with("site.test", "/page", &[("cookie", "beta=1")]).await.text(), "beta");
        node.idle().await;
    }
    assert_eq!((stable.calls("/page"), beta.calls("/page")), (1, 1), "each has an entry of its own");
}
