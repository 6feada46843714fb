//! The counters that `/metrics` shows, a row each: name with unit, labels of few values, help that says what a rise means.
//!
//! Handles are kept here, so that counting on the hot path is one relaxed addition.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::cache::status::State;

pub struct Metrics {
    registry: Registry,
    requests: [Counter; State::ALL.len()],
    requests_direct: Counter,
    pub responses_5xx: Counter,
    pub request_seconds: Histogram,
    pub fetch_seconds: Histogram,
    pub body_bytes: Counter,
    pub collapsed_misses: Counter,
    pub collapsed_revalidations: Counter,
    pub lock_wait_seconds: Histogram,
    pub lock_timeouts: Counter,
    pub lock_given_up: Counter,
    pub memory_bytes: Gauge,
    pub memory_entries: Gauge,
    pub keys_in_flight: Gauge,
    pub function_instances: Family<Vec<(&'static str, &'static str)>, Gauge>,
    pub function_waiting: Gauge,
    pub function_starts: Counter,
    pub function_start_seconds: Histogram,
    pub function_seconds: Histogram,
    pub functions_throttled: Counter,
    pub breaker_refusals: Counter,
    pub purges: Counter,
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
            collapsed_misses: row!(
                Counter::default(),
                "collapsed_misses",
                "Requests that waited for another one's fetch instead of fetching"
            ),
            collapsed_revalidations: row!(
                Counter::default(),
                "collapsed_revalidations",
                "Stale answers given without starting a refresh, as one was under way"
            ),
            lock_wait_seconds: row!(seconds(), "lock_wait_seconds", "How long requests waited for another one's fetch"),
            lock_timeouts: row!(
                Counter::default(),
                "lock_timeouts",
                "Requests that fetched by themselves after waiting: origins are slower than cache.lock_timeout"
            ),
            lock_given_up: row!(
                Counter::default(),
                "lock_given_up",
                "Requests that found no place among those who fetch by themselves: an origin hangs"
            ),
            memory_bytes: row!(Gauge::default(), "cache_memory_bytes", "Bytes held by the process's cache"),
            memory_entries: row!(Gauge::default(), "cache_memory_entries", "Responses held by the process's cache"),
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
            purges: row!(Counter::default(), "purges", "Purges carried out"),
            reloads: row!(Family::default(), "reloads", "Reloads of the configuration by result"),
            deployments: row!(Gauge::default(), "deployments", "Deployments that this node can serve"),
            registry,
            requests,
            requests_direct,
        }
    }
}

impl Metrics {
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
