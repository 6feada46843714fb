//! Runs the protocol of the region through thousands of small histories, one class of trouble after the other, and all at once.
//!
//! `SEEDS=100000 cargo test --release` looks further; `SEED=17 cargo test a_name` runs one history again.

use std::time::{Duration, Instant};

use perigee_model::store::Flaws;
use perigee_model::watch::Count;
use perigee_model::world::{Origin, Plan, Troubles, Weather, run};

/// What the default suite spends on each class.
const SECONDS: f64 = 1.0;

/// Runs histories until the time is over, or as many as `SEEDS` says, and holds each against the invariants.
fn check(name: &str, plan: Plan) -> Vec<Count> {
    let number = |name: &str| std::env::var(name).ok().and_then(|seeds| seeds.parse::<u64>().ok());
    let (seeds, only) = (number("SEEDS"), number("SEED"));
    let (mut counts, began) = (Vec::new(), Instant::now());
    for seed in only.unwrap_or(0).. {
        let outcome = run(seed, plan.clone());
        assert!(outcome.violations.is_empty(), "{name}, SEED={seed}: {:#?}", outcome.violations);
        counts.push(outcome.count);
        let enough = match seeds {
            Some(seeds) => seed + 1 >= seeds,
            None => began.elapsed().as_secs_f64() >= SECONDS,
        };
        if enough || only.is_some() {
            break;
        }
    }
    let sum = |of: fn(&Count) -> u64| counts.iter().map(of).sum::<u64>();
    let most = |of: fn(&Count) -> usize| counts.iter().map(of).max().unwrap_or(0);
    println!(
        "{name}: {} seeds, {:.0} a minute; {} visitors, {} origin calls (up to {} a second and key), {} operations, {} locks won, \
         {} stored, {} lost, {} purged, {} words, {} read along, {} given up, longest wait {:?}",
        counts.len(),
        counts.len() as f64 / began.elapsed().as_secs_f64() * 60.0,
        sum(|count| count.visitors),
        sum(|count| count.calls),
        most(|count| count.calls_per_second),
        sum(|count| count.operations),
        sum(|count| count.won),
        sum(|count| count.stored),
        sum(|count| count.lost),
        sum(|count| count.purged),
        sum(|count| count.words),
        sum(|count| count.served_along),
        sum(|count| count.given_up),
        counts.iter().map(|count| count.longest_wait).max().unwrap_or_default(),
    );
    counts
}

/// Nothing goes wrong, and no response is older than it may be when it is whole: one call per key and validity period is demanded.
fn calm() -> Plan {
    let lifetime = |_| (fastrand::u64(1_500..=4_000), fastrand::u64(0..=3_000));
    Plan { origin: Origin { lifetime, ..Plan::default().origin }, strict: true, ..Plan::default() }
}

/// The network of a bad day.
fn storm() -> Weather {
    Weather {
        late: 0.05,
        late_ms: 20..=400,
        lost: 0.03,
        message_lost: 0.3,
        message_delay_ms: 0..=300,
        log_pause_ms: 5..=1_000,
        ..Plan::default().network
    }
}

fn troubles() -> Troubles {
    Troubles { crashes: 0.2, standstills: 0.2, cuts: 0.2, restarts: 0.05, purges: 0.5 }
}

/// All that can go wrong.
fn everything() -> Plan {
    Plan {
        network: storm(),
        troubles: troubles(),
        leave: 0.1,
        skew_ms: 300,
        origin: Origin { fails: 0.1, uncacheable: 0.03, hangs: 0.02, time_ms: 1..=5_000, ..Plan::default().origin },
        ..Plan::default()
    }
}

#[test]
fn the_same_seed_tells_the_same_story() {
    for seed in 0..20 {
        let (one, other) = (run(seed, everything()), run(seed, everything()));
        assert_eq!((one.trace, &one.count), (other.trace, &other.count), "SEED={seed}");
        assert_ne!(one.trace, run(seed + 1, everything()).trace, "SEED={seed}");
    }
}

#[test]
fn without_faults_there_is_one_call_per_key_and_validity_period() {
    check("no faults", calm());
}

#[test]
fn fifty_nodes_share_one_call() {
    let plan = Plan { nodes: 50..=50, slots: 1, visitors_per_second: 300.0, length: Duration::from_secs(5), ..calm() };
    check("fifty nodes", plan);
}

#[test]
fn lost_messages_only_cost_a_pause() {
    let network = Weather { message_lost: 1.0, ..Plan::default().network };
    check("no messages", Plan { network, ..calm() });
}

#[test]
fn a_slow_and_lossy_network_breaks_no_rule() {
    check("storm", Plan { network: storm(), ..Plan::default() });
}

/// One answer in 500 comes after its deadline, as when the store forks for a snapshot. A waiter looks a dozen times while a response of two
/// seconds is rendered, and with the first look that fails it goes to the origin by itself.
#[test]
fn a_late_answer_lets_no_herd_out() {
    let network = Weather { late: 0.002, late_ms: 101..=200, ..Plan::default().network };
    let lifetime = |_| (20_000, 0);
    let origin = Origin { time_ms: 2_000..=2_500, lifetime, streamed: 0.0, ..Plan::default().origin };
    let length = Duration::from_secs(5);
    let plan =
        Plan { nodes: 20..=20, slots: 1, visitors_per_second: 100.0, length, network, origin, ..Plan::default() };
    let counts = check("late answers", plan);
    let calls: u64 = counts.iter().map(|count| count.calls).sum();
    assert!(calls <= 2 * counts.len() as u64, "{calls} calls for {} responses", counts.len());
}

#[test]
fn nodes_that_are_cut_off_are_regions_of_their_own() {
    check("cuts", Plan { troubles: Troubles { cuts: 0.5, ..Troubles::default() }, ..Plan::default() });
}

#[test]
fn a_store_that_forgets_everything_breaks_no_rule() {
    let troubles = Troubles { restarts: 0.5, purges: 0.5, ..Troubles::default() };
    check("restarts", Plan { troubles, ..Plan::default() });
}

#[test]
fn waiters_outlive_a_holder_that_dies() {
    check("crashes", Plan { troubles: Troubles { crashes: 0.8, ..Troubles::default() }, ..Plan::default() });
}

#[test]
fn a_holder_that_stood_still_writes_nothing() {
    let origin = Origin { streamed: 0.5, ..Plan::default().origin };
    let troubles = Troubles { standstills: 0.8, ..Troubles::default() };
    let counts = check("standstills", Plan { origin, troubles, ..Plan::default() });
    assert!(counts.iter().any(|count| count.lost > 0), "somebody has to come back too late");
}

#[test]
fn what_was_purged_is_not_stored_and_not_served() {
    let troubles = Troubles { purges: 3.0, ..Troubles::default() };
    let counts = check("purges", Plan { troubles, ..Plan::default() });
    assert!(counts.iter().any(|count| count.purged > 0), "some fetches have to be purged");
}

#[test]
fn visitors_who_leave_take_nothing_with_them() {
    check("leaving", Plan { leave: 0.5, ..Plan::default() });
}

#[test]
fn clocks_that_differ_break_no_rule() {
    let troubles = Troubles { purges: 0.5, ..Troubles::default() };
    check("skew", Plan { skew_ms: 1_000, troubles, ..Plan::default() });
}

#[test]
fn a_failing_origin_is_asked_a_few_times_a_second() {
    let origin = Origin { fails: 1.0, time_ms: 10..=500, ..Plan::default().origin };
    let plan = Plan { slots: 1, visitors_per_second: 200.0, length: Duration::from_secs(5), origin, ..Plan::default() };
    for count in check("failures", plan) {
        assert!(count.calls_per_second <= 8, "{count:?}");
    }
}

#[test]
fn nodes_do_not_take_turns_with_an_uncacheable_response() {
    let origin = Origin { uncacheable: 1.0, ..Plan::default().origin };
    let plan = Plan { slots: 1, visitors_per_second: 100.0, length: Duration::from_secs(5), origin, ..Plan::default() };
    for count in check("uncacheable", plan) {
        assert_eq!(count.won, 1, "one lock within the 120 s that the word holds: {count:?}");
    }
}

#[test]
fn a_hanging_origin_holds_nobody_for_longer_than_the_wait() {
    let origin = Origin { hangs: 0.3, ..Plan::default().origin };
    check("hanging", Plan { origin, ..Plan::default() });
}

#[test]
fn everything_at_once() {
    check("everything", everything());
}

/// The checks are worth something if they find what is broken on purpose.
#[test]
fn each_flaw_of_a_store_is_found() {
    let none = Flaws::default;
    let flaws = [
        ("ignores tokens", Flaws { ignores_tokens: true, ..none() }),
        ("ignores purges", Flaws { ignores_purges: true, ..none() }),
        ("locks never expire", Flaws { locks_never_expire: true, ..none() }),
        ("locks nobody out", Flaws { locks_nobody_out: true, ..none() }),
        ("serves what is expired", Flaws { serves_expired: true, ..none() }),
    ];
    for (name, flaws) in flaws {
        let found = (0..50).find(|seed| !run(*seed, Plan { flaws, ..everything() }).violations.is_empty());
        println!("{name}: found by seed {found:?}");
        assert!(found.is_some(), "{name} was not found");
    }
    let origin = Origin { uncacheable: 1.0, ..Plan::default().origin };
    let plan = Plan { slots: 1, origin, flaws: Flaws { forgets_words: true, ..none() }, ..Plan::default() };
    assert!(run(0, plan).count.won > 1, "nodes take turns when words are forgotten");
}
