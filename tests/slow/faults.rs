//! A region under constant load whose store flaps, hangs, is slow or is gone for good (FT-4, FT-5): no request fails, hits do not notice,
//! and nothing outlives its purge by more than 5 s that the store was there.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::load::{self, Client, Pace, times};
use crate::nodes::{Region, fault_time};
use crate::redis_server;

const NODES: usize = 3;
const TAGS: usize = 5;
/// Pages of each tag.
const PAGES: usize = 4;
/// Each a connection, at 40 requests a second.
const CLIENTS_PER_NODE: usize = 2;
const PACE: u32 = 40;
/// Nothing is served for longer after its purge, when the store is there.
const PURGED_WITHIN: Duration = Duration::from_secs(5);
/// What a store that is away or slow may cost a hit. Held against the median: the p99 of a few thousand requests on a busy machine is its
/// scheduler's, and is printed to be read.
const COST_MAX: Duration = Duration::from_millis(1);

/// What the origin says now, by tag: raised just before each purge.
type Versions = Arc<[AtomicU64; TAGS]>;

/// A purge that was ordered.
struct Order {
    tag: usize,
    /// What the origin said from then on.
    version: u64,
    node: usize,
    ordered: Instant,
    answered: Instant,
}

/// An answer with a tag.
struct Told {
    tag: usize,
    version: u64,
    node: usize,
    /// When it was asked for.
    asked: Instant,
}

#[derive(Default)]
struct Seen {
    requests: u64,
    failed: Vec<String>,
    told: Vec<Told>,
    orders: Vec<Order>,
    hits: Vec<(Instant, Duration)>,
    cold: Vec<(Instant, Duration)>,
}

/// When the store was away or slow: from, to. The last one may be open.
#[derive(Default)]
struct Away(Vec<(Instant, Option<Instant>)>);

impl Away {
    fn begin(&mut self) {
        self.0.push((Instant::now(), None));
    }

    fn end(&mut self) {
        self.0.last_mut().expect("it began").1 = Some(Instant::now());
    }

    fn at(&self, moment: Instant) -> bool {
        self.0.iter().any(|(from, to)| moment >= *from && to.is_none_or(|to| moment < to))
    }

    /// When a purge has to be known to all: after 5 s, or when the store was there again for 5 s without a break. `None`: it never was.
    fn deadline(&self, ordered: Instant) -> Option<Instant> {
        let mut deadline = ordered + PURGED_WITHIN;
        for (from, to) in &self.0 {
            if *from < deadline && to.is_none_or(|to| to > ordered) {
                deadline = (*to)? + PURGED_WITHIN;
            }
        }
        Some(deadline)
    }
}

/// An origin with pages that are always fresh, soon stale, asked for once, and tagged.
fn origin(versions: Versions) -> SocketAddr {
    load::origin(move |target| {
        let (directives, body) = match target.split('/').nth(1) {
            Some("hit") => ("s-maxage=3600", "x".repeat(2_000)),
            Some("stale") => ("s-maxage=1, stale-while-revalidate", "x".repeat(2_000)),
            Some("tag") => {
                let tag: usize = target[5..6].parse().expect("a tag");
                let version = versions[tag].load(Ordering::SeqCst);
                // Long enough for a purge to come in between now and then.
                sleep(Duration::from_millis(20));
                let fields = format!("cache-control: s-maxage=3600\r\ncache-tag: t{tag}\r\n");
                return load::answer(&fields, version.to_string().as_bytes());
            }
            _ => ("s-maxage=60", "x".repeat(2_000)),
        };
        sleep(Duration::from_millis(5));
        load::answer(&format!("cache-control: {directives}\r\n"), body.as_bytes())
    })
}

/// 40 % hits, 20 % each of stale, cold and tagged ones.
fn ask(node: usize, address: SocketAddr, stop: &AtomicBool, seen: &Mutex<Seen>) {
    static COLD: AtomicU64 = AtomicU64::new(0);
    let (mut client, mut pace) = (Client::of(address), Pace::per_second(PACE));
    while !stop.load(Ordering::Relaxed) {
        pace.keep();
        let (kind, tag) = (fastrand::u8(0..10), fastrand::usize(0..TAGS));
        let path = match kind {
            0..4 => format!("/hit/{}", fastrand::u8(0..50)),
            4..6 => format!("/stale/{}", fastrand::u8(0..20)),
            6..8 => format!("/cold/{}", COLD.fetch_add(1, Ordering::Relaxed)),
            _ => format!("/tag/{tag}/{}", fastrand::usize(0..PAGES)),
        };
        let asked = Instant::now();
        let got = client.get(&path);
        let mut seen = seen.lock();
        seen.requests += 1;
        match got {
            Ok(got) if got.status == 200 => match kind {
                0..4 if got.is_hit() => seen.hits.push((asked, got.took)),
                6..8 => seen.cold.push((asked, got.took)),
                8.. => match got.text().parse() {
                    Ok(version) => seen.told.push(Told { tag, version, node, asked }),
                    Err(_) => seen.failed.push(format!("{path} at {node}: {:?}", got.text())),
                },
                _ => {}
            },
            Ok(got) => seen.failed.push(format!("{path} at {node}: {} after {:?}", got.status, got.took)),
            Err(error) => seen.failed.push(format!("{path} at {node}: {error} after {:?}", asked.elapsed())),
        }
    }
}

/// Purges a tag every second, at any of the nodes.
fn purge(admins: &[SocketAddr], versions: &Versions, stop: &AtomicBool, seen: &Mutex<Seen>) {
    let mut pace = Pace::per_second(1);
    while !stop.load(Ordering::Relaxed) {
        pace.keep();
        let (tag, node) = (fastrand::usize(0..TAGS), fastrand::usize(0..admins.len()));
        let version = versions[tag].fetch_add(1, Ordering::SeqCst) + 1;
        let ordered = Instant::now();
        let got = Client::of(admins[node]).post("/v1/purge", &format!(r#"{{"tags": ["t{tag}"], "mode": "delete"}}"#));
        match got {
            Ok(got) if matches!(got.status, 200 | 202) => {
                seen.lock().orders.push(Order { tag, version, node, ordered, answered: Instant::now() });
            }
            other => seen.lock().failed.push(format!("purge at {node}: {other:?}")),
        }
    }
}

/// Runs the load for as long as the store is done something to by `fault`, and judges what was seen.
fn judge(
    name: &str,
    region: &mut Region,
    versions: &Versions,
    fault: impl FnOnce(&mut redis_server::Server, &mut Away),
) {
    let (stop, seen, mut away) = (AtomicBool::new(false), Mutex::new(Seen::default()), Away::default());
    let Region { redis, nodes, .. } = region;
    let admins: Vec<SocketAddr> = nodes.iter().map(|node| node.admin).collect();
    thread::scope(|scope| {
        for (node, server) in nodes.iter().enumerate() {
            for _ in 0..CLIENTS_PER_NODE {
                let (address, stop, seen) = (server.http, &stop, &seen);
                scope.spawn(move || ask(node, address, stop, seen));
            }
        }
        // All pages are cached before anything is done.
        sleep(Duration::from_secs(3));
        seen.lock().hits.clear();
        seen.lock().cold.clear();
        scope.spawn(|| purge(&admins, versions, &stop, &seen));
        sleep(fault_time() / 2);
        fault(redis, &mut away);
        sleep(PURGED_WITHIN + Duration::from_secs(3));
        stop.store(true, Ordering::Relaxed);
    });
    let seen = seen.into_inner();

    let split = |all: &[(Instant, Duration)]| {
        let of = |bad: bool| times(all.iter().filter(|(at, _)| away.at(*at) == bad).map(|(_, took)| *took));
        (of(false), of(true))
    };
    let ((hits_well, hits_bad), (cold_well, cold_bad)) = (split(&seen.hits), split(&seen.cold));
    println!("{name}: {} requests, {} failed, {} purges", seen.requests, seen.failed.len(), seen.orders.len());
    println!("  hits, store well: {hits_well}\n  hits, away/slow:  {hits_bad}");
    println!("  cold, store well: {cold_well}\n  cold, away/slow:  {cold_bad}");

    let (mut latest, mut late, mut old_at_once) = (Duration::ZERO, Vec::new(), Vec::new());
    for told in &seen.told {
        for order in seen.orders.iter().filter(|order| order.tag == told.tag && order.version > told.version) {
            let after = told.asked.saturating_duration_since(order.ordered);
            let what = || {
                format!(
                    "t{} version {} at node {}, asked {after:?} after the purge to {} at node {}, which took {:?}",
                    told.tag,
                    told.version,
                    told.node,
                    order.version,
                    order.node,
                    order.answered - order.ordered
                )
            };
            latest = latest.max(after);
            if told.node == order.node && told.asked > order.answered {
                old_at_once.push(what());
            }
            if away.deadline(order.ordered).is_some_and(|deadline| told.asked > deadline) {
                late.push(what());
            }
        }
    }
    println!(
        "  an old version was last asked for {latest:?} after its purge; too late: {}, where it was ordered: {}",
        late.len(),
        old_at_once.len()
    );
    assert!(seen.failed.is_empty(), "{name}: {:#?}", &seen.failed[..seen.failed.len().min(10)]);
    assert!(
        old_at_once.is_empty(),
        "{name}: old where the purge was ordered: {:#?}",
        &old_at_once[..old_at_once.len().min(10)]
    );
    assert!(late.is_empty(), "{name}: old too late: {:#?}", &late[..late.len().min(10)]);
    assert!(seen.told.len() > 100 && hits_bad.count > 50, "there was a load");
    assert!(hits_bad.p50 <= hits_well.p50 + COST_MAX, "{name}: hits noticed: {hits_well}; {hits_bad}");
}

fn versions() -> Versions {
    Arc::new(std::array::from_fn(|_| AtomicU64::new(1)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn a_store_that_is_killed_every_two_seconds_and_comes_back_empty() {
    let versions = versions();
    let mut region = Region::of(NODES, origin(versions.clone())).await;
    judge("flapping", &mut region, &versions, |redis, away| {
        let began = Instant::now();
        while began.elapsed() < fault_time() {
            away.begin();
            redis.kill();
            sleep(Duration::from_millis(500));
            redis.resume_from_nothing();
            away.end();
            sleep(Duration::from_millis(1_500));
        }
    });
    region.is_whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn a_store_that_is_stopped_for_five_seconds_again_and_again() {
    let versions = versions();
    let mut region = Region::of(NODES, origin(versions.clone())).await;
    judge("stopped", &mut region, &versions, |redis, away| {
        let began = Instant::now();
        while began.elapsed() < fault_time() {
            away.begin();
            redis.stop();
            sleep(Duration::from_secs(5));
            redis.go_on();
            away.end();
            sleep(Duration::from_secs(5));
        }
    });
    region.is_whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn a_store_that_is_slow() {
    let versions = versions();
    let redis = redis_server::Server::start(&[]);
    let slow = Arc::new(AtomicBool::new(false));
    let relay = relay(SocketAddr::from(([127, 0, 0, 1], redis.port)), slow.clone());
    let mut region = Region::by_way_of(NODES, origin(versions.clone()), redis, &format!("redis://{relay}")).await;
    judge("slow", &mut region, &versions, |_, away| {
        let began = Instant::now();
        while began.elapsed() < fault_time() {
            away.begin();
            slow.store(true, Ordering::Relaxed);
            sleep(Duration::from_secs(5));
            slow.store(false, Ordering::Relaxed);
            away.end();
            sleep(Duration::from_secs(5));
        }
    });
    region.is_whole().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn a_store_that_is_gone_for_good() {
    let versions = versions();
    let mut region = Region::of(NODES, origin(versions.clone())).await;
    judge("gone", &mut region, &versions, |redis, away| {
        away.begin();
        redis.kill();
        sleep(fault_time());
    });
}

/// A way to a server on which each byte takes 200 ms longer, in both directions, while it is slow.
fn relay(to: SocketAddr, slow: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let pass = |mut from: TcpStream, mut to: TcpStream, slow: Arc<AtomicBool>| {
        let mut bytes = vec![0; 1 << 20];
        thread::spawn(move || {
            while let Ok(read @ 1..) = from.read(&mut bytes) {
                if slow.load(Ordering::Relaxed) {
                    sleep(Duration::from_millis(200));
                }
                if to.write_all(&bytes[..read]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Both);
            let _ = from.shutdown(std::net::Shutdown::Both);
        });
    };
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(to) else { continue };
            for stream in [&near, &far] {
                let _ = stream.set_nodelay(true);
            }
            let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
            pass(clone(&near), clone(&far), slow.clone());
            pass(far, near, slow.clone());
        }
    });
    address
}
