//! Signals: taking on a new configuration without a visitor noticing, and ending without one noticing.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::edge::{is_alive, request, until, write_files};
use crate::support::{Place, Server, Url};

/// Writes its process into one file and answers as soon as another is there.
const HELD: &str = "const fs = require('fs');
module.exports = (req, res) => {
  fs.writeFileSync(req.query.began, String(process.pid));
  const look = () => fs.existsSync(req.query.gate) ? res.send('done') : setTimeout(look, 5);
  look();
};";

async fn process_in(file: &Path) -> u32 {
    until("the function has begun", || std::fs::read_to_string(file).is_ok_and(|text| !text.is_empty())).await;
    std::fs::read_to_string(file).ok().and_then(|text| text.parse().ok()).expect("a process id")
}

async fn reload(server: &Server, said: &str, times: usize) {
    server.signal(Signal::SIGHUP);
    server.said(said, times).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_takes_on_what_the_file_says_now() {
    let place = Place::new();
    for name in ["one", "two"] {
        write_files(&place.path(name), &[("a.txt", name)]);
    }
    place.configure("deployments: [{path: \"{dir}/one\", aliases: [www.test]}]");
    let server = place.start().await;
    assert_eq!(server.get("www.test", "/a.txt").await.text(), "one");

    place.configure(
        "deployments:\n  - {path: \"{dir}/one\", aliases: [one.test]}\n  - {path: \"{dir}/two\", aliases: [www.test, two.test]}",
    );
    reload(&server, "taken on", 1).await;
    for (host, text) in [("www.test", "two"), ("two.test", "two"), ("one.test", "one")] {
        assert_eq!(server.get(host, "/a.txt").await.text(), text, "{host}");
    }

    // The folder's content has changed: that is another deployment.
    write_files(&place.path("two"), &[("a.txt", "two, changed")]);
    reload(&server, "taken on", 2).await;
    assert_eq!(server.get("www.test", "/a.txt").await.text(), "two, changed");
    assert_eq!(server.deployments().await.len(), 3);

    // What cannot be changed while it runs is told, and the rest is taken on.
    place.configure("cache: {memory: 64MB}\ndeployments: [{path: \"{dir}/one\", aliases: [www.test]}]");
    reload(&server, "taken on", 3).await;
    assert!(server.stderr().contains("cache.memory"), "{}", server.stderr());
    assert_eq!(server.get("www.test", "/a.txt").await.text(), "one");
}

/// conf/reference.yaml marks what takes a restart; `functions.max_duration` and `domain` are not marked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_takes_on_the_time_limit_of_functions() {
    let place = Place::new();
    let hangs = "module.exports = (req, res) => { if (!req.query.hang) res.send('ok') }";
    write_files(&place.path("site"), &[("api/hangs.js", hangs)]);
    let deployments = "deployments: [{path: \"{dir}/site\", aliases: [www.test]}]";
    place.configure(deployments);
    let server = place.start().await;
    assert_eq!(server.get("www.test", "/api/hangs").await.text(), "ok");
    place.configure(&format!("functions: {{max_duration: 1s}}\n{deployments}"));
    reload(&server, "taken on", 1).await;
    let address = server.http;
    let hanging = tokio::spawn(async move { request(address, "GET", "www.test", "/api/hangs?hang=1", &[], b"").await });
    until("the new limit holds", || hanging.is_finished()).await;
    assert_eq!(hanging.await.expect("no panic").status, 504);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_with_another_domain_is_taken_on_or_told() {
    let place = Place::new();
    write_files(&place.path("site"), &[("a.txt", "a")]);
    place.configure("deployments: [{path: \"{dir}/site\", name: site, aliases: [www.test]}]");
    let server = place.start().await;
    let text = std::fs::read_to_string(place.file()).expect("a file");
    std::fs::write(place.file(), text.replace("now.test", "new.test")).expect("a file");
    reload(&server, "taken on", 1).await;
    let listed = server.deployments().await;
    let url = Url::of(listed.last().and_then(|last| last["url"].as_str()).expect("a URL"));
    assert_eq!(server.get(&url.host, "/a.txt").await.status, 200, "what is listed answers");
    let name_and_uid = url.host.split('.').next().expect("a label").to_owned();
    server.run(&["alias", "www.test", &name_and_uid]).succeeded();
    let told = server.stderr().lines().any(|line| line.contains("domain") && line.contains("restart"));
    assert!(told || url.host.ends_with(".new.test"), "{url:?}: {}", server.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_with_a_mistake_changes_nothing() {
    let place = Place::new();
    write_files(&place.path("one"), &[("a.txt", "one")]);
    write_files(&place.path("bad"), &[("now.json", r#"{"routs": []}"#)]);
    let good = "deployments: [{path: \"{dir}/one\", aliases: [www.test]}]";
    place.configure(good);
    let server = place.start().await;
    let mut refused = 0;
    for (bad, said) in [
        ("deployments: [{path: \"{dir}/one\", aliases: [new.test]}]\nunknown: 1", "unknown"),
        (
            "deployments: [{path: \"{dir}/one\", aliases: [new.test]}, {path: \"{dir}/bad\", aliases: [bad.test]}]",
            "now.json: routs",
        ),
        ("deployments: [{path: \"{dir}/one\", aliases: [new.test]}, {path: \"{dir}/gone\"}]", "gone"),
        ("deployments: [", "perigee.yaml"),
    ] {
        place.configure(bad);
        refused += 1;
        reload(&server, "nothing was changed", refused).await;
        server.said(said, 1).await;
        assert_eq!(server.get("www.test", "/a.txt").await.text(), "one", "{said}");
        assert_eq!(server.get("new.test", "/a.txt").await.status, 404, "{said}");
        assert_eq!(server.deployments().await.len(), 1, "{said}");
    }
    std::fs::remove_file(place.file()).expect("it was there");
    reload(&server, "nothing was changed", refused + 1).await;
    let metrics = server.admin("GET", "/metrics", b"").await.text();
    assert!(metrics.contains("perigee_reloads_total{result=\"refused\"} 5"), "{metrics}");
    place.configure(good);
    reload(&server, "taken on", 1).await;
    assert_eq!(server.get("www.test", "/a.txt").await.text(), "one");
}

/// A client that keeps its connection and asks again and again. Counts answers; the first failure is its result.
async fn keep_asking(address: SocketAddr, path: &str, stop: &AtomicBool, answers: &AtomicUsize) -> Result<(), String> {
    let asked = format!("GET {path} HTTP/1.1\r\nHost: www.test\r\n\r\n");
    let told = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| format!("{what}: {error}")
    };
    let mut stream = tokio::net::TcpStream::connect(address).await.map_err(told("connecting"))?;
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(asked.as_bytes()).await.map_err(told("sending"))?;
        let mut received = Vec::new();
        let (end, length) = loop {
            if let Some(end) = received.windows(4).position(|part| part == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&received[..end]).to_ascii_lowercase();
                if !head.starts_with("http/1.1 200") || head.contains("connection: close") {
                    return Err(head);
                }
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
                break (end + 4, length.ok_or(head)?);
            }
            if stream.read_buf(&mut received).await.map_err(told("reading"))? == 0 {
                return Err(format!("the connection ended after {} bytes", received.len()));
            }
        };
        while received.len() < end + length {
            if stream.read_buf(&mut received).await.map_err(told("reading"))? == 0 {
                return Err("the connection ended in a body".to_owned());
            }
        }
        answers.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_hangups_under_load_fail_nobody() {
    let place = Place::new();
    write_files(
        &place.path("one"),
        &[("a.txt", "one"), ("api/pid.js", "module.exports = (req, res) => res.send(String(process.pid))")],
    );
    let conf = |n: usize| format!("deployments: [{{path: \"{{dir}}/one\", aliases: [www.test, n{n}.test]}}]");
    place.configure(&conf(0));
    let server = place.start().await;
    let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..8)
        .map(|n| {
            let (stop, answers, address) = (stop.clone(), answers.clone(), server.http);
            let path = if n < 6 { "/a.txt" } else { "/api/pid" };
            tokio::spawn(async move { keep_asking(address, path, &stop, &answers).await })
        })
        .collect();
    for n in 1..=20 {
        place.configure(&conf(n));
        let before = answers.load(Ordering::Relaxed);
        reload(&server, "taken on", n).await;
        assert_eq!(server.get(&format!("n{n}.test"), "/a.txt").await.text(), "one");
        until("the clients go on", || answers.load(Ordering::Relaxed) > before + 8).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert_eq!(client.await.expect("no panic"), Ok(()));
    }
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_termination_lets_requests_finish_and_leaves_nothing() {
    let place = Place::new();
    write_files(&place.path("site"), &[("api/held.js", HELD), ("a.txt", "a")]);
    place.configure("grace: 20s\ndeployments: [{path: \"{dir}/site\", aliases: [www.test]}]");
    let mut server = place.start().await;
    // A visitor who has been answered and keeps the connection does not hold anything up.
    let mut resting = tokio::net::TcpStream::connect(server.http).await.expect("a connection");
    resting.write_all(b"GET /a.txt HTTP/1.1\r\nHost: www.test\r\n\r\n").await.expect("sent");
    assert!(resting.read(&mut [0; 1024]).await.expect("an answer") > 0);

    let (gate, began) = (place.path("gate"), place.path("began"));
    let path = format!("/api/held?gate={}&began={}", gate.display(), began.display());
    let address = server.http;
    let slow = tokio::spawn(async move { request(address, "GET", "www.test", &path, &[], b"").await });
    let process = process_in(&began).await;
    server.signal(Signal::SIGTERM);
    server.said("SIGTERM", 1).await;
    until("no new visitor is let in", || TcpStream::connect(address).is_err()).await;
    assert!(is_alive(server.pid()) && !slow.is_finished(), "the slow one is waited for");
    std::fs::write(&gate, "").expect("a file");
    let answer = slow.await.expect("no panic");
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "done", true));
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.stderr());
    until("the function's process is gone", || !is_alive(process)).await;
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_termination_ends_in_its_time_whatever_hangs() {
    let place = Place::new();
    write_files(&place.path("site"), &[("api/held.js", HELD)]);
    place.configure("grace: 1s\ndeployments: [{path: \"{dir}/site\", aliases: [www.test]}]");
    let mut server = place.start().await;
    let began = place.path("began");
    let path = format!("/api/held?gate=/nothing/there&began={}", began.display());
    let address = server.http;
    let slow = tokio::spawn(async move { request(address, "GET", "www.test", &path, &[], b"").await });
    let process = process_in(&began).await;
    let told = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.stderr());
    assert!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
    assert!(!slow.await.expect("no panic").complete);
    until("the function's process is gone", || !is_alive(process)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_termination_without_traffic_is_quick() {
    let place = Place::new();
    place.configure("");
    for _ in 0..2 {
        let mut server = place.start().await;
        let told = Instant::now();
        server.signal(Signal::SIGTERM);
        assert_eq!(server.ended().await.code(), Some(0), "{}", server.stderr());
        assert!(told.elapsed() < Duration::from_secs(10), "the grace of 30 s is not slept through");
    }
}

/// Ends a process that a failed test would leave behind.
struct Reaper(u32);

impl Drop for Reaper {
    fn drop(&mut self) {
        if is_alive(self.0) {
            let _ = kill(Pid::from_raw(i32::try_from(self.0).expect("a process id")), Signal::SIGKILL);
        }
    }
}

/// A node with functions that have begun: those that are named, in this order.
async fn node_with_functions(names: &[&str]) -> (Place, Server, Vec<Reaper>) {
    let place = Place::new();
    let spins = "module.exports = (req, res) => { require('fs').writeFileSync(req.query.began, String(process.pid)); for (;;); }";
    write_files(&place.path("site"), &[("api/held.js", HELD), ("api/idle.js", HELD), ("api/spins.js", spins)]);
    place.configure("deployments: [{path: \"{dir}/site\", aliases: [www.test]}]");
    let server = place.start().await;
    let mut processes = Vec::new();
    for name in names {
        let began = place.path(name);
        let gate = if *name == "idle" { place.dir.path() } else { Path::new("/nothing/there") };
        let path = format!("/api/{name}?gate={}&began={}", gate.display(), began.display());
        let address = server.http;
        let asked = tokio::spawn(async move { request(address, "GET", "www.test", &path, &[], b"").await });
        processes.push(Reaper(process_in(&began).await));
        if *name == "idle" {
            assert_eq!(asked.await.expect("no panic").status, 200);
        }
    }
    assert!(processes.iter().all(|process| is_alive(process.0)));
    (place, server, processes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_do_not_outlive_a_killed_node() {
    let (_place, mut server, processes) = node_with_functions(&["idle", "held"]).await;
    server.kill().await;
    until("they are gone", || !processes.iter().any(|process| is_alive(process.0))).await;
}

/// This one looks at no socket and at no timer, so that nobody but the system can end it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_never_comes_to_rest_does_not_outlive_a_killed_node() {
    let (_place, mut server, processes) = node_with_functions(&["spins"]).await;
    server.kill().await;
    until("it is gone", || !processes.iter().any(|process| is_alive(process.0))).await;
}
