//! A flood of URLs that are asked for once (DS-25): it must not grow the process, nor push out what is asked for often.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::load::{self, Client, Pace};
use crate::process::{Place, Server};

const BUDGET_BYTES: u64 = 128 << 20;
const BODY_BYTES: usize = 10_000;
const HOT: usize = 500;
/// Requests for the hot set a second, before the flood and during it: each of its URLs twice a second.
const HOT_PACE: u32 = 1_000;
const CONNECTIONS: u64 = 8;

fn rss_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The hits among requests for the hot set, at a pace, until told to stop.
fn ask_hot(server: &Server, stop: &AtomicBool) -> f64 {
    let (mut client, mut pace, mut random) =
        (Client::of(server.http), Pace::per_second(HOT_PACE), fastrand::Rng::new());
    let (mut asked, mut hits) = (0_u32, 0_u32);
    while !stop.load(Ordering::Relaxed) {
        pace.keep();
        let got = client.get(&format!("/hot/{}", random.usize(0..HOT))).expect("answered");
        assert_eq!((got.status, got.body.len()), (200, BODY_BYTES));
        asked += 1;
        hits += u32::from(got.is_hit());
    }
    f64::from(hits) * 100.0 / f64::from(asked.max(1))
}

#[tokio::test]
#[ignore = "takes minutes, measures"]
async fn urls_that_are_asked_once_neither_grow_the_process_nor_push_out_what_is_hot() {
    let urls: u64 = std::env::var("FLOOD_URLS").ok().and_then(|urls| urls.parse().ok()).unwrap_or(150_000);
    let reply = load::answer("content-type: text/plain\r\ncache-control: s-maxage=3600\r\n", &[b'x'; BODY_BYTES]);
    let origin = load::origin(move |_| reply.clone());
    let mut place = Place::new();
    place.log = "warn";
    place.configure(&load::shop(origin, "memory: 128MB, node: off"));
    let server = place.start().await;
    let base = rss_bytes(server.pid());

    let mut client = Client::of(server.http);
    (0..3 * HOT).for_each(|n| drop(client.get(&format!("/hot/{}", n % HOT)).expect("answered")));
    let warm = rss_bytes(server.pid());
    let (stop, next, rss_max) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (before, during, took) = std::thread::scope(|scope| {
        let hot = scope.spawn(|| ask_hot(&server, &stop));
        std::thread::sleep(Duration::from_secs(3));
        stop.store(true, Ordering::Relaxed);
        let before = hot.join().expect("no panic");
        stop.store(false, Ordering::Relaxed);

        let began = Instant::now();
        let hot = scope.spawn(|| ask_hot(&server, &stop));
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                rss_max.fetch_max(rss_bytes(server.pid()), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS {
                scope.spawn(|| {
                    let mut client = Client::of(server.http);
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= urls {
                            return;
                        }
                        let got = client.get(&format!("/once/{n}")).expect("answered");
                        assert_eq!((got.status, got.body.len()), (200, BODY_BYTES));
                    }
                });
            }
        });
        let took = began.elapsed();
        stop.store(true, Ordering::Relaxed);
        (before, hot.join().expect("no panic"), took)
    });
    let rss_max = rss_max.into_inner();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = rss_bytes(server.pid());
    let metrics = server.admin("GET", "/metrics", b"").await.text();
    let gauges: HashMap<&str, &str> = metrics.lines().filter_map(|line| line.rsplit_once(' ')).collect();
    let held = |what| gauges.get(format!("perigee_cache_{what}{{tier=\"memory\"}}").as_str()).copied().unwrap_or("-");
    let mut told = String::new();
    writeln!(
        told,
        "{urls} URLs of {BODY_BYTES} bytes in {took:.1?} ({:.0} a second)\n\
         budget {:.1} MB, +10 % {:.1} MB; RSS at the start {:.1} MB, with the hot set {:.1} MB, at most {:.1} MB, 2 s after {:.1} MB\n\
         hot set: {before:.2} % hits before, {during:.2} % during; memory tier: {} bytes in {} entries",
        urls as f64 / took.as_secs_f64(),
        mb(BUDGET_BYTES),
        mb(BUDGET_BYTES) * 1.1,
        mb(base),
        mb(warm),
        mb(rss_max),
        mb(after),
        held("bytes"),
        held("entries"),
    )
    .expect("a String takes everything");
    println!("{told}");
    assert!(during >= before - 2.0, "the hot set was pushed out: {told}");
    assert!(rss_max <= BUDGET_BYTES + BUDGET_BYTES / 10, "the process outgrew its budget: {told}");
}
