//! A node whose disk is full or read-only (FT-7): it answers as before, says so once a minute and in a gauge, and writes again when it can.

use std::fs;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::edge::eventually;
use crate::load::{self, Client, Pace};
use crate::node::Mounted;
use crate::nodes::{fault_time, gauge};
use crate::process::{Place, Server};

const WRITABLE: &str = "perigee_cache_node_writable";
const ENTRIES: &str = "perigee_cache_entries{tier=\"node\"}";

/// A node with little memory, so that the disk matters.
async fn start(mounted: &Mounted) -> (Place, Server) {
    let origin = load::origin(|_| load::answer("cache-control: s-maxage=3600\r\ncache-tag: t\r\n", &[b'x'; 20_000]));
    let mut place = Place::new();
    place.log = "info,access=off";
    let cache = format!("memory: 1MB, node: {{path: {}, size: 64MB}}", mounted.path().display());
    place.configure(&load::shop(origin, &cache));
    let server = place.start().await;
    (place, server)
}

/// Asks for pages that were asked before, and for new ones, for some seconds.
fn ask(server: &Server, name: &str, seconds: u64) {
    let (mut client, mut pace, began) = (Client::of(server.http), Pace::per_second(100), Instant::now());
    for n in 0.. {
        if began.elapsed() > Duration::from_secs(seconds) {
            return;
        }
        pace.keep();
        for path in [format!("/first/{}", n % 100), format!("/{name}/{n}")] {
            let got = client.get(&path).expect("answered");
            assert_eq!((got.status, got.body.len()), (200, 20_000), "{path}");
        }
    }
}

async fn in_trouble(server: &Server, name: &str, time: Duration) {
    let said = || server.stderr().matches("the cache on disk cannot").count();
    let before = said();
    ask(server, name, time.as_secs());
    assert_eq!(gauge(server, WRITABLE).await, Some(0.0));
    let lines = said() - before;
    println!("{name}: {lines} lines in {time:?}: {:?}", server.stderr().lines().rfind(|line| line.contains("cannot")));
    // One each for what it cannot do: write, remove.
    assert!(lines as u64 <= 2 * (1 + time.as_secs() / 60), "{}", server.stderr());
    // A purge holds all the same.
    let purged = server.admin("POST", "/v1/purge", br#"{"tags": ["t"], "mode": "delete"}"#).await;
    println!("a purge meanwhile: {} {}", purged.status, purged.text());
    assert!(matches!(purged.status, 200 | 202));
    assert!(!Client::of(server.http).get("/first/1").expect("answered").is_hit(), "it was purged");
}

async fn well_again(server: &Server, name: &str) {
    sleep(Duration::from_millis(1_100));
    let before = gauge(server, ENTRIES).await;
    ask(server, name, 1);
    eventually("it is writable", async || gauge(server, WRITABLE).await == Some(1.0)).await;
    eventually("it writes", async || gauge(server, ENTRIES).await > before).await;
}

#[tokio::test]
#[ignore = "mounts a file system"]
async fn a_full_disk_fails_no_request() {
    let Some(mounted) = Mounted::new(24 << 20) else { return };
    let (_place, server) = start(&mounted).await;
    // Before it has entries of its own there that could make room.
    let hog = mounted.path().with_file_name("hog");
    let mut zeros = fs::File::create(&hog).expect("writable");
    io::copy(&mut io::repeat(0), &mut zeros).expect_err("it is full in the end");
    in_trouble(&server, "full", fault_time()).await;
    // Open, it would still take its room.
    drop(zeros);
    fs::remove_file(&hog).expect("there");
    well_again(&server, "again").await;
}

#[tokio::test]
#[ignore = "mounts a file system"]
async fn a_disk_that_becomes_read_only_fails_no_request() {
    let Some(mounted) = Mounted::new(64 << 20) else { return };
    let (place, mut server) = start(&mounted).await;
    ask(&server, "well", 1);
    eventually("it writes", async || gauge(&server, ENTRIES).await >= Some(50.0)).await;
    // A file that is open for writing would keep the system from it. What is started on such a disk is the next process.
    server.kill().await;
    mounted.remount("ro");
    let server = place.start().await;
    in_trouble(&server, "read-only", fault_time()).await;
    mounted.remount("rw");
    well_again(&server, "again").await;
}
