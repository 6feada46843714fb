//! The counters that `/metrics` shows, a row each: name with unit, labels of few values, help that says what a rise means.
//!
//! Handles are kept here, so that counting on the hot path is one relaxed addition.

use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::cache::entry::Source;
use crate::cache::status::{State, Tier};

/// Where requests are collapsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Node,
    Region,
}

impl Level {
    const ALL: [Level; 2] = [Level::Node, Level::Region];

    fn as_str(self) -> &'static str {
        match self {
            Level::Node => "node",
            Level::Region => "region",
        }
    }
}

/// What was collapsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Miss,
    Revalidation,
}

impl Kind {
    const ALL: [Kind; 2] = [Kind::Miss, Kind::Revalidation];

    fn as_str(self) -> &'static str {
        match self {
            Kind::Miss => "miss",
            Kind::Revalidation => "revalidation",
        }
    }
}

pub struct Metrics {
    registry: Registry,
    requests: [Counter; State::ALL.len()],
    requests_direct: Counter,
    pub responses_5xx: Counter,
    pub request_seconds: Histogram,
    pub fetch_seconds: Histogram,
    pub body_bytes: Counter,
    /// By level, then by kind.
    collapsed: [[Counter; Kind::ALL.len()]; Level::ALL.len()],
    lock_wait_seconds: [Histogram; Level::ALL.len()],
    lock_timeouts: [Counter; Level::ALL.len()],
    pub lock_given_up: Counter,
    pub lock_clients_gone: Counter,
    hits: [Counter; Tier::ALL.len()],
    tier_read_bytes: Labelled<Counter>,
    tier_bytes: Labelled<Gauge>,
    tier_entries: Labelled<Gauge>,
    pub node_writable: Gauge,
    pub node_dropped: Gauge,
    pub node_corrupt: Gauge,
    pub node_evictions: Gauge,
    pub region_up: Gauge,
    pub region_queued_purges: Gauge,
    pub region_operations: Family<Vec<(&'static str, &'static str)>, Counter>,
    pub region_operation_seconds: Histogram,
    pub purge_marks: Gauge,
    pub keys_in_flight: Gauge,
    pub function_instances: Family<Vec<(&'static str, &'static str)>, Gauge>,
    pub function_waiting: Gauge,
    pub function_starts: Counter,
    pub function_start_seconds: Histogram,
    pub function_seconds: Histogram,
    pub functions_throttled: Counter,
    pub breaker_refusals: Counter,
    purges: Family<Vec<(&'static str, &'static str)>, Counter>,
    pub reloads: Family<Vec<(&'static str, &'static str)>, Counter>,
    pub deployments: Gauge,
}

/// 100 µs to about 100 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.5, 16))
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("perigee");
        let by_state: Family<Vec<(&'static str, &'static str)>, Counter> = Family::default();
        registry.register(
            "http_requests",
            "Requests by x-now-cache; DIRECT: answered without the cache, such as redirects and errors of the edge",
            by_state.clone(),
        );
        let requests = State::ALL.map(|state| by_state.get_or_create_owned(&vec![("cache", state.as_str())]));
        let requests_direct = by_state.get_or_create_owned(&vec![("cache", "DIRECT")]);
        macro_rules! row {
            ($metric:expr, $name:literal, $help:literal) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        let collapsed: Family<Vec<(&'static str, &'static str)>, Counter> = row!(
            Family::default(),
            "collapsed_requests",
            "Requests that were answered by another one's fetch; level region: by another node's"
        );
        let waits: Family<Vec<(&'static str, &'static str)>, Histogram> = row!(
            Family::new_with_constructor(seconds as fn() -> Histogram),
            "lock_wait_seconds",
            "How long requests waited for another one's fetch; level region: a node for another node's"
        );
        let timeouts: Family<Vec<(&'static str, &'static str)>, Counter> = row!(
            Family::default(),
            "lock_timeouts",
            "Waits that ended at cache.lock_timeout: origins are slower than that"
        );
        let hits: Family<Vec<(&'static str, &'static str)>, Counter> =
            row!(Family::default(), "cache_hits", "Requests answered from a tier of the cache, stale answers included");
        let read_bytes: Family<Vec<(&'static str, &'static str)>, Counter> =
            row!(Family::default(), "cache_read_bytes", "Body bytes read into memory from a tier below it");
        let bytes: Family<Vec<(&'static str, &'static str)>, Gauge> = row!(
            Family::default(),
            "cache_bytes",
            "Bytes held by a tier of the cache; what the region holds is its store's to say"
        );
        let entries: Family<Vec<(&'static str, &'static str)>, Gauge> =
            row!(Family::default(), "cache_entries", "Responses held by a tier of the cache");
        Metrics {
            responses_5xx: row!(
                Counter::default(),
                "http_responses_5xx",
                "Answers with a 5xx status: origins or functions fail"
            ),
            request_seconds: row!(
                seconds(),
                "http_request_duration_seconds",
                "From the request's header to the end of the answer"
            ),
            fetch_seconds: row!(
                seconds(),
                "origin_fetch_duration_seconds",
                "Requests that went to a function or an upstream, whole"
            ),
            body_bytes: row!(Counter::default(), "http_response_body_bytes", "Body bytes sent to clients"),
            collapsed: Level::ALL.map(|level| {
                Kind::ALL.map(|kind| {
                    collapsed.get_or_create_owned(&vec![("level", level.as_str()), ("kind", kind.as_str())])
                })
            }),
            lock_wait_seconds: Level::ALL.map(|level| waits.get_or_create_owned(&vec![("level", level.as_str())])),
            lock_timeouts: Level::ALL.map(|level| timeouts.get_or_create_owned(&vec![("level", level.as_str())])),
            lock_given_up: row!(
                Counter::default(),
                "lock_given_up",
                "Requests that found no place among those who fetch by themselves: an origin hangs"
            ),
            lock_clients_gone: row!(
                Counter::default(),
                "lock_clients_gone",
                "Requests that stopped waiting because their client went away"
            ),
            hits: by_tier(&hits),
            tier_read_bytes: read_bytes,
            tier_bytes: bytes,
            tier_entries: entries,
            node_writable: row!(
                Gauge::default(),
                "cache_node_writable",
                "1 when the cache on disk takes writes; 0: the disk is full, read-only or broken, and is served from what is there"
            ),
            node_dropped: row!(
                Gauge::default(),
                "cache_node_writes_dropped",
                "Responses that were not written to disk since the start, because it was too slow or failed"
            ),
            node_corrupt: row!(
                Gauge::default(),
                "cache_node_corrupt",
                "Files of the cache on disk that did not match their checksum since the start: the disk is failing"
            ),
            node_evictions: row!(
                Gauge::default(),
                "cache_node_evictions",
                "Responses evicted from disk since the start, by this process"
            ),
            region_up: row!(
                Gauge::default(),
                "region_up",
                "1 when the store of the region answers; 0: this node is a region of its own until it does"
            ),
            region_queued_purges: row!(
                Gauge::default(),
                "region_queued_purges",
                "Purges that hold on this node and wait for the region to come back"
            ),
            region_operations: row!(
                Family::default(),
                "region_operations",
                "Operations on the store of the region by result; failed ones cost a few milliseconds each until the breaker opens"
            ),
            region_operation_seconds: row!(
                seconds(),
                "region_operation_duration_seconds",
                "How long the store of the region took"
            ),
            purge_marks: row!(Gauge::default(), "purge_marks", "Scopes whose purges are remembered one by one"),
            keys_in_flight: row!(Gauge::default(), "lock_keys", "Keys that are being fetched"),
            function_instances: row!(Family::default(), "function_instances", "Function instances by state"),
            function_waiting: row!(Gauge::default(), "function_waiting", "Invocations that wait for an instance"),
            function_starts: row!(Counter::default(), "function_starts", "Instances started (cold boots)"),
            function_start_seconds: row!(
                seconds(),
                "function_start_duration_seconds",
                "From the start of a process to its being ready"
            ),
            function_seconds: row!(
                seconds(),
                "function_duration_seconds",
                "How long instances were on loan for one invocation"
            ),
            functions_throttled: row!(
                Counter::default(),
                "functions_throttled",
                "Invocations refused because too many waited: raise functions.instances"
            ),
            breaker_refusals: row!(
                Counter::default(),
                "breaker_refusals",
                "Invocations refused because a function failed again and again"
            ),
            purges: row!(Family::default(), "purges", "Purges ordered at this node, by scope and mode"),
            reloads: row!(Family::default(), "reloads", "Reloads of the configuration by result"),
            deployments: row!(Gauge::default(), "deployments", "Deployments that this node can serve"),
            registry,
            requests,
            requests_direct,
        }
    }
}

type Labelled<M> = Family<Vec<(&'static str, &'static str)>, M>;

fn by_tier(family: &Labelled<Counter>) -> [Counter; Tier::ALL.len()] {
    Tier::ALL.map(|tier| family.get_or_create_owned(&vec![("tier", tier.as_str())]))
}

impl Metrics {
    /// Requests that another one's fetch answered.
    pub fn collapsed(&self, level: Level, kind: Kind, requests: usize) {
        self.collapsed[level as usize][kind as usize].inc_by(requests as u64);
    }

    pub fn lock_waited(&self, level: Level, waited: Duration) {
        self.lock_wait_seconds[level as usize].observe(waited.as_secs_f64());
    }

    pub fn lock_timed_out(&self, level: Level) {
        self.lock_timeouts[level as usize].inc();
    }

    /// A request was answered from this tier.
    pub fn hit(&self, tier: Tier) {
        self.hits[tier as usize].inc();
    }

    /// A tier below memory gave a response to it.
    pub fn tier_read(&self, source: Source, body_bytes: usize) {
        let tier = match source {
            Source::Node => Tier::Node,
            Source::Region | Source::Neighbour => Tier::Regional,
            Source::Origin => Tier::Memory,
        };
        self.tier_read_bytes.get_or_create_owned(&vec![("tier", tier.as_str())]).inc_by(body_bytes as u64);
    }

    pub fn tier_holds(&self, tier: Tier, bytes: u64, entries: u64) {
        let label = vec![("tier", tier.as_str())];
        self.tier_bytes.get_or_create_owned(&label).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.tier_entries.get_or_create_owned(&label).set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// An operation on the store of the region.
    pub fn region_operation(&self, operation: &'static str, took: Duration, answered: bool) {
        let result = if answered { "ok" } else { "failed" };
        self.region_operations.get_or_create_owned(&vec![("operation", operation), ("result", result)]).inc();
        self.region_operation_seconds.observe(took.as_secs_f64());
    }

    /// So many purges were ordered here.
    pub fn purged(&self, scope: &'static str, mode: &'static str, number: usize) {
        if number > 0 {
            self.purges.get_or_create_owned(&vec![("scope", scope), ("mode", mode)]).inc_by(number as u64);
        }
    }

    /// Counts one answer.
    pub fn request(&self, state: Option<State>) {
        match state {
            Some(state) => self.requests[state as usize].inc(),
            None => self.requests_direct.inc(),
        };
    }

    /// The OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }
}
