//! How many origin calls the collapsing saves at a size that no test machine has: 20 regions of 50 nodes, visitors who prefer some URLs,
//! lifetimes of all kinds. The same nodes, protocol and store as in the checks, in virtual time.
//!
//! `cargo run --release --bin scale`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use perigee_model::watch::Count;
use perigee_model::world::{Collapsing, Origin, Plan, Weather, run};

const REGIONS: u64 = 20;
const NODES: usize = 50;
const URLS: u64 = 100_000;
/// Of Zipf's law: what is seen on the web is between 0.7 and 1.
const EXPONENT: f64 = 0.9;
const LENGTH: Duration = Duration::from_secs(20);
const VISITORS_PER_SECOND: f64 = 3_000.0;

fn main() {
    let began = Instant::now();
    println!(
        "{REGIONS} regions of {NODES} nodes, {URLS} URLs (Zipf {EXPONENT}), {LENGTH:?} of virtual time, {VISITORS_PER_SECOND} visitors a second and \
         region, origins take 50 to 500 ms, lifetimes 5 to 300 s, half of them with stale-while-revalidate"
    );
    println!(
        "| collapsing | visitors | origin calls | of the ideal | p50 wait | p99 wait | collapsed visitors | operations |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let popularity = Arc::new(popularity());
    let modes =
        [("node and region", Collapsing::NodeAndRegion), ("node", Collapsing::Node), ("none", Collapsing::None)];
    for (name, collapsing) in modes {
        let (sum, waits) = measure(&plan(collapsing, popularity.clone()));
        let wait = |share: f64| waits.get((waits.len() as f64 * share) as usize).copied().unwrap_or(0);
        println!(
            "| {name} | {} | {} | {:.2} | {} ms | {} ms | {} | {} |",
            sum.visitors,
            sum.calls,
            sum.calls as f64 / sum.calls_ideal as f64,
            wait(0.5),
            wait(0.99),
            waits.len(),
            sum.operations,
        );
        if collapsing == Collapsing::None {
            println!(
                "| ideal: one per region, key and validity period | {} | {} | 1.00 | | | | |",
                sum.visitors, sum.calls_ideal
            );
        }
    }
    println!("in {:.0?} of real time", began.elapsed());
}

fn plan(collapsing: Collapsing, popularity: Arc<Vec<f64>>) -> Plan {
    Plan {
        nodes: NODES..=NODES,
        slots: URLS,
        length: LENGTH,
        visitors_per_second: VISITORS_PER_SECOND,
        network: Weather {
            delay_ms: 0..=1,
            message_delay_ms: 0..=1,
            log_pause_ms: 900..=1_100,
            ..Plan::default().network
        },
        origin: Origin { time_ms: 50..=500, lifetime, ..Plan::default().origin },
        collapsing,
        popularity: Some(popularity),
        ..Plan::default()
    }
}

fn lifetime(number: u64) -> (u64, u64) {
    let fresh_s = [5, 10, 30, 60, 300][(number % 5) as usize];
    let stale_s = [0, 60][(number / 5 % 2) as usize];
    (fresh_s * 1_000, stale_s * 1_000)
}

/// The shares of all URLs up to each.
fn popularity() -> Vec<f64> {
    let mut up_to: Vec<f64> = (1..=URLS)
        .scan(0.0, |sum, rank| {
            *sum += (rank as f64).powf(-EXPONENT);
            Some(*sum)
        })
        .collect();
    let all = up_to[up_to.len() - 1];
    up_to.iter_mut().for_each(|share| *share /= all);
    up_to
}

/// All regions, which have nothing to do with each other, on all processors.
fn measure(plan: &Plan) -> (Count, Vec<u64>) {
    let (next, all) = (AtomicU64::new(0), Mutex::new((Count::default(), Vec::new())));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let region = next.fetch_add(1, Ordering::Relaxed);
                    if region >= REGIONS {
                        return;
                    }
                    let outcome = run(region, plan.clone());
                    assert!(outcome.violations.is_empty(), "region {region}: {:#?}", outcome.violations);
                    let mut all = all.lock();
                    let sum = &mut all.0;
                    sum.visitors += outcome.count.visitors;
                    sum.calls += outcome.count.calls;
                    sum.calls_ideal += outcome.count.calls_ideal;
                    sum.operations += outcome.count.operations;
                    all.1.extend(outcome.waits);
                }
            });
        }
    });
    let (sum, mut waits) = all.into_inner();
    waits.sort_unstable();
    (sum, waits)
}
