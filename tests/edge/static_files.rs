//! Static files as a visitor sees them: what they are called, how they are kept, in which parts they come, and what is never shown.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use perigee::clock::Clock;
use perigee::proxy::Edge;

use crate::support::{Answer, Node, conf, raw, write_files};

const DAY: Duration = Duration::from_secs(86_400);
const DEFAULT: &str = "public, max-age=0, must-revalidate";

/// What must never be seen from outside. Each file that is not to be served holds it.
const SECRET: &str = "DO-NOT-SHOW";

/// A node with a folder that `prepare` has filled by hand.
async fn node_with(prepare: impl FnOnce(&Path)) -> Node {
    let dir = Arc::new(tempfile::tempdir().expect("a folder"));
    let site = dir.path().join("site");
    std::fs::create_dir_all(&site).expect("a folder");
    prepare(&site);
    Node::start_in(dir, "deployments:\n  - path: {dir}/site\n    aliases: [site.test]\n").await
}

/// Why a folder that `prepare` has filled is not served.
async fn refusal(prepare: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    let site = dir.path().join("site");
    std::fs::create_dir_all(&site).expect("a folder");
    prepare(&site);
    let conf = conf(dir.path(), "deployments:\n  - path: {dir}/site\n    aliases: [site.test]\n");
    let runtime = tokio::runtime::Handle::current();
    let built = tokio::task::spawn_blocking(move || Edge::build(conf, Clock::default(), runtime).map(drop));
    built.await.expect("no panic").expect_err("it must be refused")
}

async fn get(node: &Node, path: &str) -> Answer {
    node.get("site.test", path).await
}

async fn get_with(node: &Node, path: &str, fields: &[(&str, &str)]) -> Answer {
    node.get_with("site.test", path, fields).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_tell_the_content_type() {
    let table = [
        ("page.html", "text/html; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("app.js", "text/javascript; charset=utf-8"),
        ("app.mjs", "text/javascript; charset=utf-8"),
        ("data.json", "application/json; charset=utf-8"),
        ("logo.svg", "image/svg+xml"),
        ("photo.PNG", "image/png"),
        ("code.wasm", "application/wasm"),
        ("note.txt", "text/plain; charset=utf-8"),
        ("font.woff2", "font/woff2"),
        ("feed.xml", "application/xml"),
        ("LICENSE", "application/octet-stream"),
        ("thing.nobodyknows", "application/octet-stream"),
    ];
    let files: Vec<(&str, &str)> = table.iter().map(|(name, _)| (*name, "x")).collect();
    let node = Node::with_project(&files).await;
    for (name, expected) in table {
        let answer = get(&node, &format!("/{name}")).await;
        assert_eq!((answer.status, answer.field("content-type")), (200, Some(expected)), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_carries_what_browsers_need() {
    let node = Node::with_project(&[("a.txt", "hello"), ("b.txt", "world"), ("copy/a.txt", "hello")]).await;
    let answer = get(&node, "/a.txt").await;
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "hello", true));
    assert_eq!(answer.field("cache-control"), Some(DEFAULT));
    assert_eq!(answer.field("content-length"), Some("5"));
    assert_eq!(answer.field("content-disposition"), Some("inline; filename=\"a.txt\""));
    assert_eq!(answer.field("accept-ranges"), Some("bytes"));
    assert_eq!(answer.field("server"), Some("now"));
    assert!(answer.field("last-modified").is_some() && answer.field("date").is_some());
    let etag = answer.field("etag").expect("an etag").to_owned();
    let inner = etag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or_default();
    assert!(inner.len() == 32 && inner.bytes().all(|b| b.is_ascii_hexdigit()), "strong, 32 digits: {etag}");
    assert_ne!(get(&node, "/b.txt").await.field("etag"), Some(etag.as_str()));
    assert_eq!(get(&node, "/copy/a.txt").await.field("etag"), Some(etag.as_str()), "the same content");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_hard_to_say_come_through() {
    let node = Node::with_project(&[("a b.txt", "1"), ("é.txt", "2"), ("100%.txt", "3"), ("q\"uote.txt", "4")]).await;
    for (path, body, disposition) in [
        ("/a%20b.txt", "1", "inline; filename=\"a b.txt\""),
        ("/%C3%A9.txt", "2", "inline; filename=\"_.txt\"; filename*=UTF-8''%C3%A9.txt"),
        ("/100%25.txt", "3", "inline; filename=\"100%.txt\"; filename*=UTF-8''100%25.txt"),
        ("/q%22uote.txt", "4", "inline; filename=\"q\\\"uote.txt\""),
    ] {
        let answer = get(&node, path).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, body), "{path}");
        assert_eq!(answer.field("content-disposition"), Some(disposition), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_the_file_is_told_so() {
    let node = Node::with_project(&[("cold.txt", "cold"), ("warm.txt", "warm")]).await;
    let warm = get(&node, "/warm.txt").await;
    let etag = warm.field("etag").expect("an etag").to_owned();
    let modified = warm.field("last-modified").expect("a date").to_owned();
    let weak = format!("W/{etag}");
    let list = format!("\"other\", {etag}");
    let check = async |path: &str, fields: &[(&str, &str)], status: u16| {
        let answer = get_with(&node, path, fields).await;
        assert_eq!(answer.status, status, "{path} {fields:?}");
        assert!(answer.complete, "{path} {fields:?}");
        assert_eq!(answer.body.is_empty(), status != 200, "{path} {fields:?}");
        answer
    };
    // The other side first: what must not be a 304.
    check("/warm.txt", &[("if-none-match", "\"other\"")], 200).await;
    check("/warm.txt", &[("if-none-match", "nonsense")], 200).await;
    check("/warm.txt", &[("if-modified-since", "Thu, 01 Jan 1970 00:00:00 GMT")], 200).await;
    check("/warm.txt", &[("if-modified-since", "yesterday")], 200).await;
    check("/warm.txt", &[("if-none-match", "\"other\""), ("if-modified-since", &modified)], 200).await;
    for fields in [
        [("if-none-match", etag.as_str())],
        [("if-none-match", weak.as_str())],
        [("if-none-match", list.as_str())],
        [("if-none-match", "*")],
        [("if-modified-since", modified.as_str())],
    ] {
        let answer = check("/warm.txt", &fields, 304).await;
        assert_eq!(answer.field("etag"), Some(etag.as_str()), "{fields:?}");
        assert_eq!(answer.field("cache-control"), Some(DEFAULT), "{fields:?}");
        assert_eq!(answer.cache(), "HIT", "{fields:?}");
    }
    // Nobody has asked for this one yet: the condition is the client's, the fetch is the cache's.
    check("/cold.txt", &[("if-none-match", "*")], 304).await;
    let answer = check("/cold.txt", &[], 200).await;
    assert_eq!((answer.text().as_str(), answer.cache()), ("cold", "HIT"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_is_get_without_the_body() {
    let node = Node::with_project(&[("a.txt", "hello")]).await;
    let head = node.request("HEAD", "site.test", "/a.txt", &[], b"").await;
    assert_eq!((head.status, head.field("content-length"), head.complete), (200, Some("5"), true));
    assert_eq!(head.cache(), "MISS");
    let answer = get(&node, "/a.txt").await;
    assert_eq!((answer.text().as_str(), answer.cache()), ("hello", "HIT"), "they share an entry");
    let again = node.request("HEAD", "site.test", "/a.txt", &[], b"").await;
    assert_eq!((again.status, again.cache(), again.complete), (200, "HIT", true));
    assert_eq!(again.field("etag"), answer.field("etag"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_are_served_beside_the_cache() {
    let node = Node::with_project(&[("a.txt", "0123456789"), ("empty.txt", "")]).await;
    let etag = get(&node, "/a.txt").await.field("etag").expect("an etag").to_owned();
    for (range, content_range, body) in [
        ("bytes=0-0", "bytes 0-0/10", "0"),
        ("bytes=2-4", "bytes 2-4/10", "234"),
        ("bytes=7-", "bytes 7-9/10", "789"),
        ("bytes=-3", "bytes 7-9/10", "789"),
        ("bytes=-99", "bytes 0-9/10", "0123456789"),
        ("bytes=5-99", "bytes 5-9/10", "56789"),
        ("bytes=99-, 8-", "bytes 8-9/10", "89"),
    ] {
        let answer = get_with(&node, "/a.txt", &[("range", range)]).await;
        assert_eq!((answer.status, answer.text().as_str(), answer.complete), (206, body, true), "{range}");
        assert_eq!(answer.field("content-range"), Some(content_range), "{range}");
        assert_eq!(answer.field("etag"), Some(etag.as_str()), "{range}");
        assert_eq!(answer.field("content-type"), Some("text/plain; charset=utf-8"), "{range}");
        assert_eq!(answer.cache(), "BYPASS", "{range}");
    }
    assert_eq!(get(&node, "/a.txt").await.cache(), "HIT", "a range takes nothing away");
    let head = node.request("HEAD", "site.test", "/a.txt", &[("range", "bytes=0-0")], b"").await;
    assert_eq!((head.status, head.field("content-length")), (200, Some("10")), "a range is GET's alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_ranges_come_in_parts() {
    let node = Node::with_project(&[("a.txt", "0123456789")]).await;
    let answer = get_with(&node, "/a.txt", &[("range", "bytes=0-1, -2")]).await;
    assert_eq!((answer.status, answer.complete, answer.cache()), (206, true, "BYPASS"));
    let boundary = answer
        .field("content-type")
        .and_then(|value| value.strip_prefix("multipart/byteranges; boundary="))
        .expect("a boundary")
        .to_owned();
    let part = |range: &str, body: &str| {
        format!("\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: {range}\r\n\r\n{body}\r\n")
    };
    let expected = format!(
        "--{boundary}{}--{boundary}{}--{boundary}--\r\n",
        part("bytes 0-1/10", "01"),
        part("bytes 8-9/10", "89")
    );
    assert_eq!(answer.text(), expected);
    assert_eq!(answer.field("content-range"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_that_cannot_be_are_refused_by_name() {
    let node = Node::with_project(&[("a.txt", "0123456789")]).await;
    let many = format!("bytes={}", vec!["0-0"; 17].join(","));
    for (range, code) in [
        ("bytes=10-", "RANGE_START_NOT_VALID"),
        ("bytes=99-100", "RANGE_START_NOT_VALID"),
        ("bytes=-0", "RANGE_START_NOT_VALID"),
        ("bytes=x-1", "RANGE_START_NOT_VALID"),
        ("bytes=4-2", "RANGE_END_NOT_VALID"),
        ("bytes=0-x", "RANGE_END_NOT_VALID"),
        ("bytes=", "RANGE_GROUP_NOT_VALID"),
        ("bytes=-", "RANGE_GROUP_NOT_VALID"),
        ("bytes=5", "RANGE_GROUP_NOT_VALID"),
        ("items=0-1", "RANGE_UNIT_NOT_SUPPORTED"),
        ("0-1", "RANGE_MISSING_UNIT"),
        ("=0-1", "RANGE_MISSING_UNIT"),
        (many.as_str(), "TOO_MANY_RANGES"),
        ("bytes=0-9,0-9", "TOO_MANY_RANGES"),
        ("bytes=99999999999999999999-", "RANGE_START_NOT_VALID"),
    ] {
        let answer = get_with(&node, "/a.txt", &[("range", range)]).await;
        assert_eq!((answer.status, answer.field("x-now-error")), (416, Some(code)), "{range}");
        assert_eq!(answer.field("content-range"), Some("bytes */10"), "{range}");
        assert_eq!(answer.cache(), "BYPASS", "{range}");
        assert!(answer.complete && answer.text().contains(code), "{range}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_two_versions_are_never_joined() {
    let node = Node::with_project(&[("a.txt", "0123456789")]).await;
    let whole = get(&node, "/a.txt").await;
    let etag = whole.field("etag").expect("an etag").to_owned();
    let modified = whole.field("last-modified").expect("a date").to_owned();
    let weak = format!("W/{etag}");
    for (validator, status) in [
        ("\"other\"", 200),
        (weak.as_str(), 200),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 200),
        ("nonsense", 200),
        (etag.as_str(), 206),
        (modified.as_str(), 206),
    ] {
        let answer = get_with(&node, "/a.txt", &[("range", "bytes=0-1"), ("if-range", validator)]).await;
        assert_eq!((answer.status, answer.complete), (status, true), "{validator}");
        assert_eq!(answer.text(), if status == 206 { "01" } else { "0123456789" }, "{validator}");
        assert_eq!(answer.cache(), "BYPASS", "{validator}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_is_a_miss_and_the_rest_are_hits_for_31_days() {
    let node = Node::with_project(&[("a.txt", "hello")]).await;
    assert_eq!(get(&node, "/a.txt").await.cache(), "MISS");
    let hit = get(&node, "/a.txt").await;
    assert_eq!((hit.cache(), hit.text().as_str(), hit.field("cache-control")), ("HIT", "hello", Some(DEFAULT)));
    assert!(hit.field("age").is_some(), "cached answers tell their age");
    node.clock.advance(30 * DAY);
    let hit = get(&node, "/a.txt").await;
    let age: u64 = hit.field("age").and_then(|age| age.parse().ok()).unwrap_or_default();
    assert_eq!(hit.cache(), "HIT");
    assert!(age >= 30 * 86_400, "{age}");
    node.clock.advance(DAY + Duration::from_secs(1));
    let miss = get(&node, "/a.txt").await;
    assert_eq!((miss.cache(), miss.text().as_str()), ("MISS", "hello"));
    assert_eq!(get(&node, "/a.txt").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_and_hosts_do_not_split_a_file() {
    let node = Node::with_project(&[("a.txt", "hello"), ("now.json", r#"{"version":2,"alias":["other.test"]}"#)]).await;
    assert_eq!(get(&node, "/a.txt?v=1").await.cache(), "MISS");
    for path in ["/a.txt", "/a.txt?v=2", "/a.txt?", "/a.txt?v=1&v=1"] {
        let answer = get(&node, path).await;
        assert_eq!((answer.status, answer.cache(), answer.text().as_str()), (200, "HIT", "hello"), "{path}");
    }
    assert_eq!(node.get("other.test", "/a.txt").await.cache(), "HIT");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_cold_requests_are_all_answered() {
    let node = Node::with_project(&[("a.txt", "hello")]).await;
    let answers = node.burst(100, "site.test", "/a.txt").await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.complete && answer.text() == "hello"));
    assert!(answers.iter().all(|answer| matches!(answer.cache(), "MISS" | "HIT")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_its_index() {
    let node = Node::with_project(&[
        ("index.html", "home"),
        ("about/index.html", "about"),
        ("about/index.txt", "not this"),
        ("notes/index.md", "notes"),
        ("both.txt", "file"),
        ("both.txt.d/x", "x"),
    ])
    .await;
    for (path, body) in [
        ("/", "home"),
        ("/index.html", "home"),
        ("/about", "about"),
        ("/about/", "about"),
        ("/about/index.html", "about"),
        ("/about?x", "about"),
        ("/notes/", "notes"),
        ("/both.txt", "file"),
    ] {
        let answer = get(&node, path).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, body), "{path}");
    }
    assert_eq!(get(&node, "/about").await.field("content-type"), Some("text/html; charset=utf-8"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn public_is_the_site_where_there_is_one() {
    let node = Node::with_project(&[("public/a.txt", "public"), ("a.txt", SECRET), ("README.md", SECRET)]).await;
    assert_eq!(get(&node, "/a.txt").await.text(), "public");
    for path in ["/README.md", "/public/a.txt", "/public/../README.md"] {
        assert_eq!(get(&node, path).await.status, 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_404() {
    let node = Node::with_project(&[("index.html", "home"), ("a.txt", "x")]).await;
    for (path, accept, expected_type) in [
        ("/nothing", "", "text/plain; charset=utf-8"),
        ("/a.txt/b", "text/html", "text/html; charset=utf-8"),
        ("/A.TXT", "application/json", "application/json; charset=utf-8"),
    ] {
        let answer = get_with(&node, path, &[("accept", accept)]).await;
        assert_eq!((answer.status, answer.field("x-now-error")), (404, Some("NOT_FOUND")), "{path}");
        assert_eq!(answer.field("content-type"), Some(expected_type), "{path}");
        assert_eq!(answer.field("cache-control"), Some(DEFAULT), "{path}");
        let id = answer.field("x-now-id").expect("an id");
        assert!(answer.complete && answer.text().contains(id), "{path}: {}", answer.text());
    }
    let unknown = node.get("nobody.test", "/").await;
    assert_eq!((unknown.status, unknown.field("x-now-error")), (404, Some("DEPLOYMENT_NOT_FOUND")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_project_has_its_own_404_page_but_not_under_api() {
    let node = Node::with_project(&[
        ("index.html", "home"),
        ("404.html", "<p>ours</p>"),
        ("api/date.js", "module.exports = (req, res) => res.send('x')"),
    ])
    .await;
    for path in ["/nothing", "/a/b/c", "/nothing.txt"] {
        for _ in 0..2 {
            let answer = get(&node, path).await;
            assert_eq!((answer.status, answer.text().as_str()), (404, "<p>ours</p>"), "{path}");
            assert_eq!(answer.field("content-type"), Some("text/html; charset=utf-8"), "{path}");
            assert_ne!(answer.cache(), "HIT", "{path}: only 200 is cached");
        }
    }
    let api = get(&node, "/api/nothing").await;
    assert_eq!((api.status, api.field("x-now-error")), (404, Some("NOT_FOUND")));
    assert!(!api.text().contains("ours"));
    let page = get(&node, "/404.html").await;
    assert_eq!((page.status, page.text().as_str()), (200, "<p>ours</p>"));
    let head = node.request("HEAD", "site.test", "/nothing", &[], b"").await;
    assert_eq!((head.status, head.complete), (404, true));
    // A condition or a range is about a file that was asked for, and this one was not.
    let etag = page.field("etag").expect("an etag").to_owned();
    assert_eq!(get_with(&node, "/nothing", &[("if-none-match", &etag)]).await.status, 404);
    assert_eq!(get_with(&node, "/nothing", &[("range", "bytes=0-1")]).await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_without_an_index_is_listed_with_its_functions() {
    let files = [
        ("docs/a b.txt", "x"),
        ("docs/<script>.txt", "x"),
        ("api/date.js", "module.exports = (req, res) => res.send('x')"),
        ("api/_lib.js", ""),
        ("package.json", "{}"),
        (".env", SECRET),
    ];
    let node = Node::with_project(&files).await;
    let root = get(&node, "/").await;
    assert_eq!((root.status, root.field("content-type")), (200, Some("text/html; charset=utf-8")));
    let text = root.text();
    assert!(text.contains("docs/") && text.contains("api/"), "{text}");
    assert!(!text.contains("package.json") && !text.contains(".env"), "{text}");
    for path in ["/api", "/api/"] {
        let text = get(&node, path).await.text();
        assert!(text.contains("date.js") && text.contains('λ'), "{path}: {text}");
        assert!(text.contains("href=\"/api/date.js\""), "{path}: {text}");
        assert!(!text.contains("_lib"), "{path}: {text}");
    }
    let docs = get(&node, "/docs/").await.text();
    assert!(docs.contains("/docs/a%20b.txt") && !docs.contains("λ") && !docs.contains("<script>"), "{docs}");
    assert_eq!(get(&node, "/nothing/").await.status, 404);
    let head = node.request("HEAD", "site.test", "/docs/", &[], b"").await;
    assert_eq!((head.status, head.complete), (200, true));

    let mut files = files.to_vec();
    files.push(("now.json", r#"{"version":2,"directoryListing":false}"#));
    let node = Node::with_project(&files).await;
    for path in ["/", "/docs/", "/api", "/api/"] {
        assert_eq!(get(&node, path).await.status, 404, "{path}");
    }
    assert_eq!(get(&node, "/docs/a%20b.txt").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_read_and_nothing_else() {
    let node = Node::with_project(&[("a.txt", "hello"), ("docs/b.txt", "x")]).await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        for path in ["/a.txt", "/docs/"] {
            let answer = node.request(method, "site.test", path, &[], b"").await;
            assert_eq!(
                (answer.status, answer.field("x-now-error"), answer.field("allow")),
                (405, Some("INVALID_REQUEST_METHOD"), Some("GET, HEAD")),
                "{method} {path}"
            );
        }
    }
    assert_eq!(node.request("POST", "site.test", "/nothing", &[], b"x").await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_too_large_for_the_cache_is_served_all_the_same() {
    const BYTES: u64 = 10 * 1_048_576 + 1;
    let node = node_with(|site| {
        let large = std::fs::File::create(site.join("large.bin")).expect("a file");
        large.set_len(BYTES).expect("room");
        std::os::unix::fs::FileExt::write_all_at(&large, b"end", BYTES - 3).expect("room");
        let limit = std::fs::File::create(site.join("limit.bin")).expect("a file");
        limit.set_len(BYTES - 1).expect("room");
    })
    .await;
    for _ in 0..2 {
        let answer = get(&node, "/large.bin").await;
        assert_eq!((answer.status, answer.complete, answer.cache()), (200, true, "MISS"));
        assert_eq!(answer.body.len() as u64, BYTES);
        assert!(answer.body.ends_with(b"\0end"));
    }
    let range = format!("bytes={}-", BYTES - 4);
    let part = get_with(&node, "/large.bin", &[("range", &range)]).await;
    assert_eq!((part.status, part.body.as_slice(), part.cache()), (206, &b"\0end"[..], "BYPASS"));
    assert_eq!(part.field("content-range"), Some(format!("bytes {}-{}/{BYTES}", BYTES - 4, BYTES - 1).as_str()));
    let etag = part.field("etag").expect("an etag").to_owned();
    assert_eq!(get_with(&node, "/large.bin", &[("if-none-match", &etag)]).await.status, 304);
    let head = node.request("HEAD", "site.test", "/large.bin", &[], b"").await;
    assert_eq!((head.status, head.field("content-length")), (200, Some(BYTES.to_string().as_str())));
    // 10 MB to the byte still fit.
    assert_eq!(get(&node, "/limit.bin").await.cache(), "MISS");
    let limit = get(&node, "/limit.bin").await;
    assert_eq!((limit.cache(), limit.complete), ("HIT", true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_path_leads_to_what_is_not_served() {
    let now = format!(r#"{{"version":2,"env":{{"KEY":"{SECRET}"}}}}"#);
    let source = format!("module.exports = (req, res) => res.send('ran') // {SECRET}");
    let dir = Arc::new(tempfile::tempdir().expect("a folder"));
    write_files(dir.path(), &[("outside.txt", SECRET), ("site/ok/a.txt", "fine")]);
    write_files(
        &dir.path().join("site"),
        &[
            ("now.json", &now),
            ("package.json", &format!(r#"{{"name":"{SECRET}"}}"#)),
            ("package-lock.json", SECRET),
            ("tsconfig.json", SECRET),
            (".env", SECRET),
            (".git/config", SECRET),
            ("ok/.hidden", SECRET),
            ("api/date.js", &source),
            ("api/date.js.map", SECRET),
            ("api/_hidden.js", SECRET),
            ("api/_lib/x.js", SECRET),
            ("api/data.json", SECRET),
            ("node_modules/x/index.js", SECRET),
        ],
    );
    let node = Node::start_in(dir, "deployments:\n  - path: {dir}/site\n    aliases: [site.test]\n").await;
    assert_eq!(get(&node, "/ok/a.txt").await.text(), "fine");
    assert_eq!(get(&node, "/api/date.js").await.text(), "ran", "the function runs, its source is not shown");
    let paths: &[&[u8]] = &[
        b"/now.json",
        b"/now.json/",
        b"/%6eow.json",
        b"/NOW.json",
        b"/vercel.json",
        b"/package.json",
        b"/package-lock.json",
        b"/tsconfig.json",
        b"/.env",
        b"/%2eenv",
        b"/.git/config",
        b"/ok/.hidden",
        b"/ok/%2ehidden",
        b"/api/date.js.map",
        b"/api/_hidden",
        b"/api/_hidden.js",
        b"/api/_lib/x.js",
        b"/api/data.json",
        b"/node_modules/x/index.js",
        b"/node_modules/x/",
        b"/../outside.txt",
        b"/../x",
        b"/%2e%2e/outside.txt",
        b"/%2e%2e/x",
        b"/..%2foutside.txt",
        b"/..%2fnow.json",
        b"/ok/../now.json",
        b"/ok/..%2fnow.json",
        b"/ok/%2e%2e/now.json",
        b"/ok/%2e%2e%2fnow.json",
        b"/ok/..;/now.json",
        b"/./now.json",
        b"/.//now.json",
        b"//now.json",
        b"///now.json",
        b"//etc/passwd",
        b"/../../../../../../etc/passwd",
        b"/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        b"/%252e%252e/now.json",
        b"/ok\\..\\now.json",
        b"/..\\now.json",
        b"/..%5cnow.json",
        b"/ok/%5c..%5cnow.json",
        b"/%c0%ae%c0%ae/now.json",
        b"/%c0%ae%c0%ae%c0%afnow.json",
        b"/%e0%80%ae%e0%80%ae/now.json",
        b"/\xc0\xae\xc0\xae/now.json",
        b"/static/%00",
        b"/ok/a.txt%00.html",
        b"/now.json%00",
        b"/now.json%00.txt",
        b"/ok/a.txt\0",
        b"/%",
        b"/%zz",
        b"/%ff",
        b"/now.json%20",
        b"/now.json.",
        b"/now.json;a=b",
        b"/now.json#x",
        b"http://site.test/now.json",
        b"file:///etc/passwd",
        b"/manifest.json",
        b"/../manifest.json",
        b"/files/now.json",
        b"/_src",
    ];
    for path in paths {
        for method in ["GET", "HEAD"] {
            let shown = format!("{method} {}", path.escape_ascii());
            let bytes =
                [method.as_bytes(), b" ", path, b" HTTP/1.1\r\nHost: site.test\r\nConnection: close\r\n\r\n"].concat();
            let answer = raw(node.address, &bytes, method == "HEAD").await;
            let text = answer.text();
            assert!(!text.contains(SECRET) && !text.contains("root:") && !text.contains("dpl_"), "{shown}: {text}");
            assert!((400..500).contains(&answer.status), "{shown}: {} {text}", answer.status);
        }
    }
    assert_eq!(get(&node, "/ok/a.txt").await.cache(), "HIT", "it is well all the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_are_followed_inside_of_the_project_only() {
    let node = node_with(|site| {
        write_files(site, &[("real/a.txt", "real")]);
        symlink("real/a.txt", site.join("link.txt")).expect("a link");
        symlink("real", site.join("folder")).expect("a link");
    })
    .await;
    for path in ["/link.txt", "/folder/a.txt"] {
        let answer = get(&node, path).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "real"), "{path}");
    }

    let told = refusal(|site| {
        write_files(site, &[("a.txt", "x"), ("../outside.txt", SECRET)]);
        symlink("../outside.txt", site.join("leak.txt")).expect("a link");
    })
    .await;
    assert!(told.contains("leak.txt") && told.contains("outside") && !told.contains(SECRET), "{told}");
    let told = refusal(|site| {
        write_files(site, &[("a.txt", "x")]);
        symlink("/etc", site.join("etc")).expect("a link");
    })
    .await;
    assert!(told.contains("etc") && told.contains("outside"), "{told}");
    let told = refusal(|site| {
        write_files(site, &[("a.txt", "x")]);
        symlink("nothing", site.join("dangling")).expect("a link");
    })
    .await;
    assert!(told.contains("dangling"), "{told}");
    let told = refusal(|site| {
        write_files(site, &[("sub/a.txt", "x")]);
        symlink("..", site.join("sub/loop")).expect("a link");
    })
    .await;
    assert!(told.contains("loop"), "{told}");
}
