//! What is known about one request so far. Made when its header has been read, asked by every phase, told as the access line.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::cache::entry::Entry;
use crate::cache::freshness::Lifetime;
use crate::cache::key::Key;
use crate::cache::policy::{Bypass, NotStored};
use crate::cache::status::Outcome;
use crate::deployment::Deployment;
use crate::deployment::alias::World;
use crate::error::Code;
use crate::functions::{Function, Loan};
use crate::lock::claim::Claim;
use crate::static_origin::StaticRef;
use crate::upstream::Target;

/// Who answers when the cache does not.
#[derive(Clone)]
pub enum Origin {
    /// Nobody yet, or the edge itself.
    None,
    Static(StaticRef),
    Function(Arc<Function>),
    Upstream(Arc<Target>),
}

pub struct Exchange {
    pub world: Arc<World>,
    /// When it began, for times that pass and for times of day.
    pub began: Instant,
    pub now: SystemTime,
    /// `<5 chars>-<unix ms>-<12 hex>`.
    stamp: String,
    pub scheme: &'static str,
    /// As the client used it, in its one form: lower case, without the usual port.
    pub authority: String,
    pub client: Option<IpAddr>,
    /// The refresh of a stale entry, started by a request and outliving it.
    pub background: bool,

    pub deployment: Option<Arc<Deployment>>,
    pub origin: Origin,
    /// The query that a function sees, where routing changed it.
    pub query: Option<String>,
    /// Fields that routes add to the response; they speak where the origin is silent.
    pub route_fields: HeaderMap,
    /// The same, but they win over the origin's.
    pub route_fields_important: HeaderMap,
    /// Index of the deciding route.
    pub route: Option<usize>,
    /// A status that a route demands of a function's answer.
    pub route_status: Option<u16>,

    pub key: Option<Key>,
    pub bypass: Option<Bypass>,
    pub claim: Option<Arc<Claim>>,
    /// The client wants a stale entry to be revalidated before it is answered.
    pub pragma: bool,
    /// A stale entry was there, and `pragma` kept it from being served.
    pub revalidates: bool,
    pub stored: Option<(Arc<Entry>, Lifetime)>,
    pub lifetime: Option<Lifetime>,
    pub not_stored: Option<NotStored>,
    /// The fields of the 304 that validated the stored response.
    pub validation: Option<HeaderMap>,
    pub outcome: Option<Outcome>,

    pub loan: Option<Loan>,
    pub failure: Option<Code>,
    pub retry_after_s: Option<u64>,
    pub request_body_bytes: u64,
    pub fetch_began: Option<Instant>,
    pub extra_fields: Vec<(HeaderName, HeaderValue)>,
    /// Counts it among those in flight until it is dropped.
    counted: Option<InFlight>,
}

struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Exchange {
    pub fn begin(world: Arc<World>, pod: &str, now: SystemTime) -> Exchange {
        Exchange {
            world,
            began: Instant::now(),
            now,
            stamp: stamp(pod, now),
            scheme: "http",
            authority: String::new(),
            client: None,
            background: false,
            deployment: None,
            origin: Origin::None,
            query: None,
            route_fields: HeaderMap::new(),
            route_fields_important: HeaderMap::new(),
            route: None,
            route_status: None,
            key: None,
            bypass: None,
            claim: None,
            pragma: false,
            revalidates: false,
            stored: None,
            lifetime: None,
            not_stored: None,
            validation: None,
            outcome: None,
            loan: None,
            failure: None,
            retry_after_s: None,
            request_body_bytes: 0,
            fetch_began: None,
            extra_fields: Vec::new(),
            counted: None,
        }
    }

    /// The same, counted among those in flight.
    pub fn counted(mut self, count: &Arc<AtomicUsize>) -> Exchange {
        count.fetch_add(1, Ordering::Relaxed);
        self.counted = Some(InFlight(count.clone()));
        self
    }

    pub fn region(&self) -> &str {
        &self.world.conf.region
    }

    /// `x-now-id`: the region that took the request in, the one that ran a function if one ran, and the stamp.
    pub fn id(&self) -> String {
        let region = self.region();
        let ran = matches!(self.origin, Origin::Function(_)) && self.fetch_began.is_some();
        let mut id = String::with_capacity(2 * region.len() + self.stamp.len() + 2);
        for part in [Some(region), ran.then_some(region)].into_iter().flatten() {
            id.push_str(part);
            id.push(':');
        }
        id.push_str(&self.stamp);
        id
    }

    /// The host without the port: what deployments are found by.
    pub fn host(&self) -> &str {
        host_of(&self.authority)
    }

    /// Adds a field to an answer of the edge's own.
    pub fn extra_field(&mut self, name: HeaderName, value: String) {
        if let Ok(value) = HeaderValue::try_from(value) {
            self.extra_fields.push((name, value));
        }
    }

    /// Why there is no answer from the origin. The followers learn it by the claim.
    pub fn fail(&mut self, code: Code) {
        self.failure = Some(code);
        if let Some(claim) = &self.claim {
            claim.fail(crate::lock::claim::Failure::Code(code));
        }
    }
}

/// `[::1]:8080` and `a.example:8080` without the port.
pub fn host_of(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    }
}

/// `<5 chars>-<unix ms>-<12 hex>`, different for each request.
pub fn stamp(pod: &str, now: SystemTime) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let ms =
        now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    let mut stamp = String::with_capacity(pod.len() + 28);
    stamp.push_str(pod);
    stamp.push('-');
    stamp.push_str(itoa::Buffer::new().format(ms));
    stamp.push('-');
    let random = fastrand::u64(..);
    for nibble in 0..12 {
        stamp.push(char::from(HEX[usize::try_from((random >> (nibble * 4)) & 0xf).expect("four bits")]));
    }
    stamp
}

/// Five characters that stand for this node in request ids.
pub fn pod(node: &str) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    blake3::hash(node.as_bytes()).as_bytes()[..5]
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(*byte) % 32]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_the_authority_without_its_port() {
        for (authority, host) in [("a", "a"), ("a:80", "a"), ("[::1]", "[::1]"), ("[::1]:80", "[::1]")] {
            assert_eq!(host_of(authority), host);
        }
    }

    #[test]
    fn stamps_look_like_the_platforms() {
        let stamp = stamp(&pod("node-a"), SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_580_887_666_054));
        let parts: Vec<&str> = stamp.split('-').collect();
        assert_eq!((parts.len(), parts[0].len(), parts[1], parts[2].len()), (3, 5, "1580887666054", 12));
        assert_ne!(stamp, super::stamp(&pod("node-a"), SystemTime::UNIX_EPOCH));
    }
}
