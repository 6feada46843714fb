//! Functions as the seed describes them, with a real Node: how they are written, how often they run, how they fail, and how they end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::support::{Answer, Node, eventually, is_alive, raw, request, until};

/// Answers with its process, after the file that the query names is there.
const HELD: &str = "const fs = require('fs');
module.exports = (req, res) => {
  if (req.query.began) fs.writeFileSync(req.query.began, String(process.pid));
  const look = () => fs.existsSync(req.query.gate) ? res.json({ pid: process.pid }) : setTimeout(look, 5);
  look();
};";

/// Answers with its process at once.
const PID: &str = "let n = 0; module.exports = (req, res) => res.json({ pid: process.pid, n: ++n })";

async fn get(node: &Node, path: &str) -> Answer {
    node.get("site.test", path).await
}

fn json(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

fn pid(answer: &Answer) -> u32 {
    assert_eq!(answer.status, 200, "{answer:?}");
    json(answer)["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a process id")
}

/// A file that functions wait for.
struct FileGate(PathBuf);

impl FileGate {
    fn new(node: &Node, name: &str) -> FileGate {
        FileGate(node.dir.path().join(name))
    }

    /// Another URL each time: who asks for the same one waits for the first answer, since that might be for all.
    fn path(&self, function: &str) -> String {
        format!("{function}?gate={}&nonce={}", self.0.display(), fastrand::u64(..))
    }

    fn open(&self) {
        std::fs::write(&self.0, "").expect("a file");
    }
}

fn ask(node: &Node, path: &str) -> JoinHandle<Answer> {
    let (address, path) = (node.address, path.to_owned());
    tokio::spawn(async move { request(address, "GET", "site.test", &path, &[], b"").await })
}

/// What a file that a function writes says, as soon as it is there.
async fn written(path: &Path) -> String {
    until("the function has written its file", || std::fs::read_to_string(path).is_ok_and(|text| !text.is_empty()))
        .await;
    std::fs::read_to_string(path).expect("it was there")
}

fn assert_failed(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.field("x-now-error")), (status, Some(code)), "{answer:?}");
    let id = answer.field("x-now-id").expect("an id").to_owned();
    assert!(answer.complete && answer.text().contains(code) && answer.text().contains(&id), "{answer:?}");
    let all = format!("{answer:?} {}", answer.text());
    for secret in ["SECRET", "at Object", "node:", ".js:", "/site/", "perigee-"] {
        assert!(!all.contains(secret), "{secret}: {all}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_to_write_one_works() {
    let server = "require('http').createServer((req, res) => res.end('server ' + req.url)).listen(3000)";
    let node = Node::with_project(&[
        ("api/date.js", "module.exports = (req, res) => {\n  res.send(new Date())\n}"),
        ("api/cjs.cjs", "module.exports = (req, res) => res.end('cjs')"),
        ("api/esm.mjs", "import { name } from './_lib.mjs'; export default (req, res) => res.send(name)"),
        ("api/_lib.mjs", "export const name = 'esm'"),
        ("api/typed/package.json", r#"{"type":"module"}"#),
        ("api/typed/index.js", "export default async function (req, res) { res.send('typed') }"),
        (
            "api/web.mjs",
            "export const GET = (request) => new Response('web ' + new URL(request.url).pathname, { headers: { 'x-web': 'yes' } });
             export const POST = async (request) => Response.json({ got: await request.json() }, { status: 201 });",
        ),
        ("api/fetch.mjs", "export default { fetch: (request) => new Response(request.method) }"),
        ("api/server.js", server),
        ("api/module.js", "module.exports = (req, res) => res.send(require('left').name)"),
        ("node_modules/left/index.js", "exports.name = 'left'"),
    ])
    .await;
    for (path, body) in [
        ("/api/cjs", "cjs"),
        ("/api/esm", "esm"),
        ("/api/typed", "typed"),
        ("/api/web?x=1", "web /api/web"),
        ("/api/fetch", "GET"),
        ("/api/server?a=b", "server /api/server?a=b"),
        ("/api/module", "left"),
    ] {
        let answer = get(&node, path).await;
        assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, body, true), "{path}");
        assert_eq!(answer.cache(), "MISS", "{path}");
    }
    let date = get(&node, "/api/date").await;
    assert_eq!(date.field("content-type"), Some("application/json; charset=utf-8"));
    assert!(date.text().starts_with("\"20") && date.text().ends_with("Z\""), "{}", date.text());
    assert_eq!(get(&node, "/api/web").await.field("x-web"), Some("yes"));
    let posted =
        node.request("POST", "site.test", "/api/web", &[("content-type", "application/json")], b"{\"a\":1}").await;
    assert_eq!((posted.status, json(&posted)), (201, serde_json::json!({"got": {"a": 1}})));
    let put = node.request("PUT", "site.test", "/api/web", &[], b"").await;
    assert_eq!((put.status, put.field("allow")), (405, Some("GET, HEAD, POST")));
    let head = node.request("HEAD", "site.test", "/api/web", &[], b"").await;
    assert_eq!((head.status, head.field("x-web"), head.complete), (200, Some("yes"), true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helpers_help() {
    let node = Node::with_project(&[(
        "api/helped.js",
        "module.exports = (req, res) => {
               switch (req.query.do) {
                 case 'body': return res.json({ body: req.body === undefined ? 'undefined' : req.body });
                 case 'cookies': return res.json(req.cookies);
                 case 'query': return res.json(req.query);
                 case 'status': return res.status(418).send('teapot');
                 case 'redirect': return res.redirect('/there');
                 case 'redirect301': return res.redirect(301, '/there');
                 case 'buffer': return res.send(Buffer.from([0, 1, 2]));
                 case 'null': return res.send(null);
                 case 'empty': return res.status(204).send('');
                 case 'cookie': res.setHeader('set-cookie', ['a=1', 'b=2']); return res.send('x');
               }
             }",
    )])
    .await;
    let query = json(&get(&node, "/api/helped?do=query&a=1&a=2&b=%C3%A9&c").await);
    assert_eq!(query, serde_json::json!({"do": "query", "a": ["1", "2"], "b": "é", "c": ""}));
    let cookies = node.get_with("site.test", "/api/helped?do=cookies", &[("cookie", "a=1; b=x%20y")]).await;
    assert_eq!(json(&cookies), serde_json::json!({"a": "1", "b": "x y"}));
    for (content_type, sent, status, got) in [
        ("application/json", "{\"a\":[1]}", 200, r#"{"a":[1]}"#),
        ("application/json; charset=utf-8", "", 200, "{}"),
        ("application/json", "{nonsense", 400, ""),
        ("application/x-www-form-urlencoded", "a=1&b=x+y", 200, r#"{"a":"1","b":"x y"}"#),
        ("text/plain", "hello", 200, "\"hello\""),
        ("image/png", "hello", 200, "\"undefined\""),
    ] {
        let fields = [("content-type", content_type)];
        let answer = node.request("POST", "site.test", "/api/helped?do=body", &fields, sent.as_bytes()).await;
        assert_eq!(answer.status, status, "{content_type} {sent:?}: {answer:?}");
        if status == 200 {
            assert_eq!(json(&answer)["body"], serde_json::from_str::<Value>(got).expect("JSON"), "{content_type}");
        }
    }
    assert_eq!(get(&node, "/api/helped?do=status").await.status, 418);
    for (path, status) in [("/api/helped?do=redirect", 307), ("/api/helped?do=redirect301", 301)] {
        let answer = get(&node, path).await;
        assert_eq!((answer.status, answer.field("location")), (status, Some("/there")));
    }
    let buffer = get(&node, "/api/helped?do=buffer").await;
    assert_eq!(
        (buffer.field("content-type"), buffer.body.as_slice()),
        (Some("application/octet-stream"), &[0, 1, 2][..])
    );
    let null = get(&node, "/api/helped?do=null").await;
    assert_eq!((null.status, null.body.len(), null.complete), (200, 0, true));
    let empty = get(&node, "/api/helped?do=empty").await;
    assert_eq!((empty.status, empty.complete), (204, true));
    let cookies = get(&node, "/api/helped?do=cookie").await;
    let set: Vec<&str> =
        cookies.fields.iter().filter(|(name, _)| name == "set-cookie").map(|(_, value)| value.as_str()).collect();
    assert_eq!(set, ["a=1", "b=2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_arrives_while_it_is_made() {
    let node = Node::with_project(&[
        (
            "api/node.js",
            "const fs = require('fs'); module.exports = (req, res) => { res.write('first');
               const look = () => fs.existsSync(req.query.gate) ? res.end('last') : setTimeout(look, 5); look(); }",
        ),
        (
            "api/web.mjs",
            "import fs from 'node:fs'; export const GET = (request) => { const gate = new URL(request.url).searchParams.get('gate');
               return new Response(new ReadableStream({ start(c) { const text = new TextEncoder(); c.enqueue(text.encode('first'));
                 const look = () => fs.existsSync(gate) ? (c.enqueue(text.encode('last')), c.close()) : setTimeout(look, 5); look(); } })); }",
        ),
    ])
    .await;
    for function in ["/api/node", "/api/web"] {
        let gate = FileGate::new(&node, function.rsplit('/').next().unwrap_or_default());
        let mut answer = node.begin("site.test", &gate.path(function)).await;
        answer.until("first").await;
        gate.open();
        let answer = answer.finish().await;
        assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "firstlast", true), "{function}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_instance_has_one_request_at_a_time_and_is_used_again() {
    let node = Node::with_project(&[("api/held.js", HELD), ("api/pid.js", PID)]).await;
    let gate = FileGate::new(&node, "gate");
    let asked: Vec<_> = (0..3).map(|_| ask(&node, &gate.path("/api/held"))).collect();
    node.until("three work at once", || node.edge.functions.census().busy == 3).await;
    gate.open();
    let mut pids = BTreeSet::new();
    for answer in asked {
        pids.insert(pid(&answer.await.expect("no panic")));
    }
    assert_eq!(pids.len(), 3, "an instance for each");
    node.until("all are idle", || node.edge.functions.census().idle == 3).await;
    for _ in 0..3 {
        assert!(pids.contains(&pid(&get(&node, &gate.path("/api/held")).await)), "a warm one is taken");
        node.until("it rests", || node.edge.functions.census().idle == 3).await;
    }
    // State of the module survives; another function has another process.
    let first = get(&node, "/api/pid").await;
    node.until("it rests", || node.edge.functions.census().idle == 4).await;
    let second = get(&node, "/api/pid").await;
    assert_eq!((pid(&first), json(&second)["n"].as_u64()), (pid(&second), Some(2)));
    assert!(!pids.contains(&pid(&first)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_traffic_no_instance_is_left() {
    let node = Node::with_project_and(&[("api/pid.js", PID)], "functions: {idle: 1s}").await;
    let process = pid(&get(&node, "/api/pid").await);
    assert!(is_alive(process));
    node.until("it is idle", || node.edge.functions.census().idle == 1).await;
    node.until("none is left", || node.edge.functions.census().idle == 0).await;
    node.until("its process is gone", || !is_alive(process)).await;
    assert_ne!(pid(&get(&node, "/api/pid").await), process, "a cold boot follows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_told_without_its_cause_and_harms_no_later_request() {
    let node = Node::with_project(&[
        (
            "api/fails.js",
            "module.exports = async (req, res) => {
               switch (req.query.how) {
                 case 'rejects': throw new Error('SECRET in a promise');
                 case 'throws-string': throw 'SECRET';
                 case 'throws-null': throw null;
                 case 'detached': Promise.reject(new Error('SECRET detached')); return;
                 case 'timer': setTimeout(() => { throw new Error('SECRET in a timer') }, 1); return;
                 case 'exit': process.exit(1);
                 case 'signal': process.kill(process.pid, 'SIGKILL'); return;
                 case 'bad-header': res.setHeader('x-bad', 'a\\r\\nSECRET: 1'); return;
                 default: res.send('fine');
               }
             }",
        ),
        ("api/sync.js", "module.exports = (req, res) => { if (req.query.how) throw new Error('SECRET'); res.send('fine') }"),
        (
            "api/web.mjs",
            "export const GET = (request) => { if (request.url.includes('?')) throw new Error('SECRET'); return new Response('fine') }",
        ),
        ("api/quiet.js", "module.exports = (req, res) => req.query.how ? process.exit(0) : res.send('fine')"),
    ])
    .await;
    let check = async |path: &str, status: u16, code: &str| {
        for accept in ["text/plain", "application/json"] {
            let answer = node.get_with("site.test", path, &[("accept", accept)]).await;
            assert_failed(&answer, status, code);
        }
        let fine = get(&node, path.split('?').next().unwrap_or(path)).await;
        assert_eq!((fine.status, fine.text().as_str()), (200, "fine"), "after {path}");
    };
    for how in ["rejects", "throws-string", "throws-null", "detached", "timer", "exit", "signal", "bad-header"] {
        check(&format!("/api/fails?how={how}"), 500, "FUNCTION_INVOCATION_FAILED").await;
    }
    check("/api/sync?how=throws", 500, "FUNCTION_INVOCATION_FAILED").await;
    check("/api/web?how=throws", 500, "FUNCTION_INVOCATION_FAILED").await;
    check("/api/quiet?how=exit0", 502, "NO_RESPONSE_FROM_FUNCTION").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_is_not_complete() {
    let node = Node::with_project(&[
        (
            "api/cut.js",
            "module.exports = (req, res) => { res.write('half'); setTimeout(() => { throw new Error('SECRET') }, 20) }",
        ),
        (
            "api/cached.js",
            "let n = 0; module.exports = (req, res) => { res.setHeader('cache-control', 's-maxage=60');
               if (n++ > 0) return res.send('whole'); res.write('half'); setTimeout(() => process.exit(1), 20) }",
        ),
    ])
    .await;
    let cut = get(&node, "/api/cut").await;
    assert!(!cut.complete && !cut.text().contains("SECRET"), "{cut:?}");
    let cut = get(&node, "/api/cached").await;
    assert!(!cut.complete, "{cut:?}");
    let next = get(&node, "/api/cached").await;
    assert_ne!(next.cache(), "HIT", "half an answer is not kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_does_not_start_is_a_failure() {
    let node = Node::with_project(&[
        ("api/throws.js", "throw new Error('SECRET at load')"),
        ("api/syntax.js", "module.exports = (req, res => SECRET"),
        ("api/nothing.js", "exports.data = 1"),
        ("api/exits.js", "process.exit(0)"),
        ("api/missing.js", "require('./SECRET-is-not-there')"),
        ("api/fine.js", "module.exports = (req, res) => res.send('fine')"),
    ])
    .await;
    for path in ["/api/throws", "/api/syntax", "/api/nothing", "/api/exits", "/api/missing"] {
        assert_failed(&get(&node, path).await, 500, "FUNCTION_INVOCATION_FAILED");
    }
    assert_eq!(get(&node, "/api/fine").await.text(), "fine");
    node.until("the failed ones are gone", || {
        let census = node.edge.functions.census();
        (census.starting, census.busy, census.waiting, census.idle) == (0, 0, 0, 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_takes_too_long_is_ended() {
    let node = Node::with_project_and(
        &[
            (
                "api/hangs.js",
                "module.exports = (req, res) => { require('fs').writeFileSync(req.query.began, String(process.pid)) }",
            ),
            (
                "api/spins.js",
                "module.exports = (req, res) => { require('fs').writeFileSync(req.query.began, String(process.pid)); for (;;); }",
            ),
            ("api/child.js", "const { spawn } = require('child_process'); module.exports = (req, res) => {
                require('fs').writeFileSync(req.query.began, String(spawn('sleep', ['600']).pid)) }"),
        ],
        "functions: {max_duration: 1s}",
    )
    .await;
    for name in ["hangs", "spins", "child"] {
        let began = node.dir.path().join(name);
        let answer = get(&node, &format!("/api/{name}?began={}", began.display())).await;
        assert_failed(&answer, 504, "FUNCTION_INVOCATION_TIMEOUT");
        assert!(answer.took >= Duration::from_secs(1), "{:?}", answer.took);
        let process = written(&began).await.parse().expect("a process id");
        node.until("it is gone, with what it started", || !is_alive(process)).await;
    }
    node.until("nothing is left", || node.edge.functions.census().busy == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_up_to_the_limit_is_taken_and_no_byte_more() {
    const LIMIT: usize = 4096;
    let size = "module.exports = (req, res) => { let n = 0; req.on('data', (d) => n += d.length).on('end', () => res.json({ n })) }";
    let node = Node::with_project_and(&[("api/size.js", size)], "functions: {request_body: 4KB}").await;
    let chunked = |bytes: usize| {
        let mut text =
            "POST /api/size HTTP/1.1\r\nHost: site.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
                .to_owned();
        for _ in 0..bytes / 1024 {
            text.push_str(&format!("400\r\n{}\r\n", "x".repeat(1024)));
        }
        if !bytes.is_multiple_of(1024) {
            text.push_str(&format!("{:x}\r\n{}\r\n", bytes % 1024, "x".repeat(bytes % 1024)));
        }
        text + "0\r\n\r\n"
    };
    for bytes in [0, 1, LIMIT] {
        let posted = node.request("POST", "site.test", "/api/size", &[], &vec![b'x'; bytes]).await;
        assert_eq!(json(&posted)["n"], bytes);
        let posted = raw(node.address, chunked(bytes).as_bytes(), false).await;
        assert_eq!(json(&posted)["n"], bytes, "chunked");
    }
    for bytes in [LIMIT + 1, 3 * LIMIT] {
        let posted = node.request("POST", "site.test", "/api/size", &[], &vec![b'x'; bytes]).await;
        assert_failed(&posted, 413, "FUNCTION_PAYLOAD_TOO_LARGE");
        let posted = raw(node.address, chunked(bytes).as_bytes(), false).await;
        assert_failed(&posted, 413, "FUNCTION_PAYLOAD_TOO_LARGE");
    }
    let posted = node.request("POST", "site.test", "/api/size", &[], b"x").await;
    assert_eq!(json(&posted)["n"], 1, "the visitor's mistake is not the function's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_megabytes_are_the_limit_where_nothing_else_is_said() {
    let node = Node::with_project(&[(
        "api/size.js",
        "module.exports = (req, res) => { let n = 0; req.on('data', (d) => n += d.length).on('end', () => res.json({ n })) }",
    )])
    .await;
    let most = vec![b'x'; 5 * 1_048_576];
    let posted = node.request("POST", "site.test", "/api/size", &[], &most).await;
    assert_eq!(json(&posted)["n"], most.len());
    let fields = [("content-length", "5242881")];
    assert_failed(
        &node.request("GET", "site.test", "/api/size", &fields, b"").await,
        413,
        "FUNCTION_PAYLOAD_TOO_LARGE",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_is_the_projects_and_nothing_of_ours() {
    let node = Node::with_project(&[
        ("now.json", r#"{"version": 2, "env": {"GREETING": "hello", "NODE_OPTIONS_X": "y"}}"#),
        (
            "api/env.js",
            "module.exports = (req, res) => res.json({ env: process.env, argv: process.argv, cwd: process.cwd() })",
        ),
        ("data.txt", "data"),
        ("api/read.js", "module.exports = (req, res) => res.send(require('fs').readFileSync('data.txt', 'utf8'))"),
    ])
    .await;
    let told = json(&get(&node, "/api/env").await);
    let env = told["env"].as_object().expect("an object");
    assert_eq!((env["GREETING"].as_str(), env["NOW_REGION"].as_str()), (Some("hello"), Some("sfo1")));
    assert_eq!(env["NODE_ENV"], "production");
    let documented = ["PATH", "HOME", "LANG", "TZ", "NODE_ENV", "NOW_REGION", "GREETING", "NODE_OPTIONS_X"];
    for name in env.keys() {
        assert!(documented.contains(&name.as_str()) || name.starts_with("VERCEL"), "{name}");
    }
    assert!(told["argv"][1].as_str().is_some_and(|entry| entry.ends_with("api/env.js")), "{}", told["argv"]);
    assert_eq!(get(&node, "/api/read").await.text(), "data", "files of the project are there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_request_is_told_as_the_platform_tells_it() {
    let node = Node::with_project(&[(
        "api/seen.js",
        "module.exports = (req, res) => res.json({ headers: req.headers, raw: req.rawHeaders.filter((_, i) => i % 2 === 0), url: req.url, method: req.method })",
    )])
    .await;
    let spoofed = [
        ("x-now-id", "spoofed"),
        ("x-now-trace", "spoofed"),
        ("x-now-deployment-url", "spoofed"),
        ("x-forwarded-host", "spoofed"),
        ("x-forwarded-proto", "spoofed"),
        ("x-forwarded-for", "spoofed"),
        ("x-real-ip", "spoofed"),
        ("x-zeit-co-forwarded-for", "spoofed"),
        ("x-vercel-id", "spoofed"),
        ("forwarded", "for=spoofed"),
        ("x-perigee-invocation", "spoofed"),
        ("x_forwarded_for", "spoofed"),
        ("x-mine", "stays"),
    ];
    for host in ["site.test", "SITE.test:8080"] {
        let answer = node.get_with(host, "/api/seen?a=%20b&c", &spoofed).await;
        let seen = json(&answer);
        let field = |name: &str| seen["headers"][name].as_str().unwrap_or("-").to_owned();
        let expected = host.to_ascii_lowercase();
        assert_eq!((field("host"), field("x-forwarded-host")), (expected.clone(), expected), "{host}");
        assert_eq!(field("x-forwarded-proto"), "http");
        for name in ["x-forwarded-for", "x-real-ip", "x-zeit-co-forwarded-for"] {
            assert_eq!(field(name), "127.0.0.1", "{name}");
        }
        assert_eq!(field("x-now-trace"), "sfo1");
        assert_eq!(Some(field("x-now-id").as_str()), answer.field("x-now-id"));
        assert_eq!(answer.field("x-now-trace"), Some("sfo1"));
        let id = field("x-now-id");
        let parts: Vec<&str> =
            id.strip_prefix("sfo1:sfo1:").expect("where it came in, and where it ran").split('-').collect();
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [5, 13, 12], "{id}");
        let own = field("x-now-deployment-url");
        assert!(own.starts_with("site-") && own.ends_with(".now.test"), "{own}");
        assert_eq!(node.get(&own, "/api/seen").await.status, 200, "the deployment answers by its own name");
        assert_eq!(field("x-mine"), "stays");
        assert_eq!((seen["url"].as_str(), seen["method"].as_str()), (Some("/api/seen?a=%20b&c"), Some("GET")));
        let text = answer.text();
        assert!(!text.contains("spoofed") && !text.to_ascii_lowercase().contains("x-perigee"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_visitor_who_leaves_takes_nothing_along() {
    let node = Node::with_project(&[("api/held.js", HELD)]).await;
    let at_rest = async || {
        let rests = || {
            let census = node.edge.functions.census();
            (census.busy, census.idle) == (0, 1)
        };
        node.until("the instance rests", rests).await;
        node.idle().await;
    };
    let (gate, began) = (FileGate::new(&node, "gate"), node.dir.path().join("began"));
    let leaving = node.begin("site.test", &format!("{}&began={}", gate.path("/api/held"), began.display())).await;
    let process: u32 = written(&began).await.parse().expect("a process id");
    drop(leaving);
    // Its answer might be for others too, so it is waited for.
    gate.open();
    at_rest().await;

    let (gate, began) = (FileGate::new(&node, "gate-of-post"), node.dir.path().join("began-of-post"));
    let path = format!("{}&began={}", gate.path("/api/held"), began.display());
    let mut leaving = TcpStream::connect(node.address).await.expect("a connection");
    let asked = format!("POST {path} HTTP/1.1\r\nHost: site.test\r\nContent-Length: 0\r\n\r\n");
    leaving.write_all(asked.as_bytes()).await.expect("sent");
    assert_eq!(written(&began).await, process.to_string());
    drop(leaving);
    // This one is for nobody else: it is over at once.
    at_rest().await;
    gate.open();
    assert_eq!(pid(&get(&node, &gate.path("/api/held")).await), process, "nothing was wrong with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_fails_again_and_again_is_left_alone_for_a_while() {
    let node = Node::with_project(&[
        (
            "api/fails.js",
            "const fs = require('fs'); module.exports = (req, res) => {
               if (!fs.existsSync(req.query.gate)) throw new Error('SECRET'); res.send('fine') }",
        ),
        ("api/other.js", "module.exports = (req, res) => res.send('other')"),
    ])
    .await;
    let gate = FileGate::new(&node, "gate");
    let path = gate.path("/api/fails");
    for _ in 0..5 {
        assert_failed(&get(&node, &path).await, 500, "FUNCTION_INVOCATION_FAILED");
    }
    let refused = get(&node, &path).await;
    assert_failed(&refused, 503, "FUNCTION_THROTTLED");
    let wait: u64 = refused.field("retry-after").and_then(|value| value.parse().ok()).expect("when to come again");
    assert!((1..=30).contains(&wait), "{wait}");
    assert_eq!(get(&node, "/api/other").await.text(), "other", "others are not to blame");
    gate.open();
    eventually("it is tried again", async || get(&node, &path).await.status == 200).await;
    for _ in 0..5 {
        assert_eq!(get(&node, &path).await.text(), "fine");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_bound_requests_wait_their_turn() {
    let node = Node::with_project_and(&[("api/held.js", HELD)], "functions: {instances: 2}").await;
    let gate = FileGate::new(&node, "gate");
    let asked: Vec<_> = (0..8).map(|_| ask(&node, &gate.path("/api/held"))).collect();
    node.until("two work and six wait", || {
        let census = node.edge.functions.census();
        (census.busy, census.waiting) == (2, 6)
    })
    .await;
    gate.open();
    let mut pids = BTreeSet::new();
    for answer in asked {
        pids.insert(pid(&answer.await.expect("no panic")));
    }
    assert!(pids.len() <= 2, "{pids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_told_at_once() {
    let node = Node::with_project_and(&[("api/held.js", HELD)], "functions: {instances: 1, queue: 1}").await;
    let gate = FileGate::new(&node, "gate");
    let first = ask(&node, &gate.path("/api/held"));
    node.until("it works", || node.edge.functions.census().busy == 1).await;
    let second = ask(&node, &gate.path("/api/held"));
    node.until("it waits", || node.edge.functions.census().waiting == 1).await;
    let third = get(&node, &gate.path("/api/held")).await;
    assert_failed(&third, 503, "FUNCTION_THROTTLED");
    assert!(third.field("retry-after").is_some());
    gate.open();
    for answer in [first, second] {
        assert_eq!(answer.await.expect("no panic").status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_functions_idle_instance_makes_room() {
    let node = Node::with_project_and(&[("api/a.js", PID), ("api/b.js", PID)], "functions: {instances: 1}").await;
    for _ in 0..2 {
        for path in ["/api/a", "/api/b"] {
            assert_eq!(get(&node, path).await.status, 200, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_function_allows_is_cached() {
    let node = Node::with_project(&[
        (
            "api/cached.js",
            "let n = 0; module.exports = (req, res) => { res.setHeader('cache-control', 's-maxage=60'); res.send('n' + ++n) }",
        ),
        (
            "api/swr.js",
            "let n = 0; module.exports = (req, res) => { res.setHeader('cache-control', 's-maxage=60, stale-while-revalidate'); res.send('n' + ++n) }",
        ),
        ("api/not.js", "let n = 0; module.exports = (req, res) => res.send('n' + ++n)"),
    ])
    .await;
    let check = async |path: &str, body: &str, cache: &str| {
        let answer = get(&node, path).await;
        assert_eq!((answer.status, answer.text().as_str(), answer.cache()), (200, body, cache), "{path}");
        assert_eq!(answer.field("cache-control"), Some("public, max-age=0, must-revalidate"), "{path}");
        answer
    };
    let miss = check("/api/cached", "n1", "MISS").await;
    assert!(miss.field("x-now-id").is_some_and(|id| id.starts_with("sfo1:sfo1:")));
    let hit = check("/api/cached", "n1", "HIT").await;
    assert!(hit.field("x-now-id").is_some_and(|id| id.split(':').count() == 2), "nothing ran: {hit:?}");
    check("/api/not", "n1", "MISS").await;
    node.until("it rests", || node.edge.functions.census().busy == 0).await;
    check("/api/not", "n2", "MISS").await;

    check("/api/swr", "n1", "MISS").await;
    check("/api/swr", "n1", "HIT").await;
    node.clock.advance(Duration::from_secs(61));
    check("/api/swr", "n1", "STALE").await;
    eventually("the refresh has taken place", async || get(&node, "/api/swr").await.cache() == "HIT").await;
    check("/api/swr", "n2", "HIT").await;
    check("/api/cached", "n2", "MISS").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_function_does_not_take_the_stale_answer_away() {
    let node = Node::with_project(&[(
        "api/swr.js",
        "const fs = require('fs'); let n = 0; module.exports = (req, res) => { if (fs.existsSync(req.query.gate)) throw new Error('SECRET');
           res.setHeader('cache-control', 's-maxage=60, stale-while-revalidate'); res.send('n' + ++n) }",
    )])
    .await;
    let gate = FileGate::new(&node, "gate");
    let path = gate.path("/api/swr");
    assert_eq!(get(&node, &path).await.cache(), "MISS");
    gate.open();
    node.clock.advance(Duration::from_secs(61));
    for _ in 0..3 {
        let answer = get(&node, &path).await;
        assert_eq!((answer.status, answer.text().as_str(), answer.cache()), (200, "n1", "STALE"));
        node.idle().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shut_down_ends_every_process_and_starts_none() {
    let node = Node::with_project_and(
        &[
            ("api/held.js", HELD),
            ("api/pid.js", PID),
            (
                "api/child.js",
                "const { spawn } = require('child_process'); module.exports = (req, res) => res.json({ pid: spawn('sleep', ['600']).pid })",
            ),
        ],
        "functions: {instances: 3}",
    )
    .await;
    let gate = FileGate::new(&node, "gate");
    let began = node.dir.path().join("began");
    let idle = pid(&get(&node, "/api/pid").await);
    let child = pid(&get(&node, "/api/child").await);
    let busy = ask(&node, &format!("{}&began={}", gate.path("/api/held"), began.display()));
    let process: u32 = written(&began).await.parse().expect("a process id");
    assert!([idle, child, process].iter().all(|pid| is_alive(*pid)));
    node.edge.functions.shut_down();
    node.until("all are gone", || ![idle, child, process].iter().any(|pid| is_alive(*pid))).await;
    assert_failed(&busy.await.expect("no panic"), 500, "FUNCTION_INVOCATION_FAILED");
    let census = node.edge.functions.census();
    assert_eq!((census.starting, census.busy, census.waiting), (0, 0, 0));
}

/// "Nothing is lent afterwards that was not before" (functions/mod.rs, `shut_down`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_when_all_is_shut_down_gets_no_new_process() {
    let node = Node::with_project_and(&[("api/held.js", HELD)], "functions: {instances: 1}").await;
    let gate = FileGate::new(&node, "gate");
    let (first, second) = (node.dir.path().join("first"), node.dir.path().join("second"));
    let busy = ask(&node, &format!("{}&began={}", gate.path("/api/held"), first.display()));
    written(&first).await;
    let waiting = ask(&node, &format!("{}&began={}", gate.path("/api/held"), second.display()));
    node.until("one waits", || node.edge.functions.census().waiting == 1).await;
    node.edge.functions.shut_down();
    assert_eq!(busy.await.expect("no panic").status, 500);
    node.until("nobody waits any more", || node.edge.functions.census().waiting == 0).await;
    gate.open();
    let answer = waiting.await.expect("no panic");
    assert!(!second.exists() && answer.status >= 500, "{answer:?}");
}

#[test]
fn no_process_outlives_the_edge() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let first = runtime();
    let (dir, process) = first.block_on(async {
        let node = Node::with_project(&[("api/pid.js", PID)]).await;
        let process = pid(&get(&node, "/api/pid").await);
        (Arc::clone(&node.dir), process)
    });
    assert!(is_alive(process));
    first.shutdown_timeout(Duration::from_secs(5));
    runtime().block_on(until("it is gone", || !is_alive(process)));
    drop(dir);
}
