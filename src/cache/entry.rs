//! A stored response: an immutable value that many readers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use http::header::{HeaderName, HeaderValue};
use pingora_http::ResponseHeader;

use super::directives;
use super::freshness::Lifetime;
use super::purge::{Judged, Logs, Position, Scope};

/// Bytes that an entry costs besides its fields and body: the `Arc`, the map slots, what the allocator adds to each piece.
const OVERHEAD_BYTES: u64 = 1024;
/// And what each place in its table of fields costs, taken or not.
const FIELD_BYTES: usize = 112;

/// Fields that are not stored: they belong to one connection, or to one answer (RFC 9111 section 3.1), or are written anew for each.
const NOT_STORED: [&str; 12] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "proxy-authenticate",
    "proxy-authentication-info",
    "age",
    "date",
    "server",
];

/// What an entry belongs to: how it is found, and by which purges it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The key without the variant.
    pub primary: [u8; 16],
    /// The hash of the request fields that selected this variant.
    pub variance: Option<[u8; 16]>,
    /// Variants are found by way of the primary entry and die with it: they carry its number.
    pub family: u64,
    /// The deployment.
    pub owner: Scope,
    /// A file of a deployment: it never changes, so it is never served stale.
    pub fixed: bool,
    pub tags: Arc<[Box<str>]>,
    /// How far the logs of purges had been read when its fetch began.
    pub began: Position,
    scopes: Arc<[Scope]>,
}

impl Place {
    pub fn new(primary: [u8; 16], family: u64, owner: Scope, began: Position, tags: Arc<[Box<str>]>) -> Place {
        let scopes = [owner, Scope::key(&primary)].into_iter().chain(tags.iter().map(|tag| Scope::tag(tag))).collect();
        Place { primary, variance: None, family, owner, fixed: false, tags, began, scopes }
    }

    /// One of the variants of the primary entry.
    pub fn variant(self, variance: Option<[u8; 16]>) -> Place {
        Place { variance, ..self }
    }

    /// For a file, which does not vary.
    pub fn fixed(self) -> Place {
        Place { fixed: true, ..self }
    }

    /// By which purges it is reached, besides that of everything.
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    /// What the purges made of it. A file cannot be refreshed: it is read again.
    pub fn judge(&self, purges: &Logs) -> Judged {
        match purges.judge(self.began, &self.scopes) {
            Judged::Stale(_) if self.fixed => Judged::Deleted,
            judged => judged,
        }
    }
}

/// From where an entry came into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A function, an upstream, or a file of the deployment.
    Origin,
    /// The disk that the processes of this node share.
    Node,
    /// The store of the region.
    Region,
    /// Another node of the region, whose fetch was waited for.
    Neighbour,
}

#[derive(Debug)]
pub struct Entry {
    /// No two entries of a process have the same.
    pub number: u64,
    /// Built without the table of original spellings: that halves what a hit costs in clones.
    pub header: ResponseHeader,
    pub body: Bytes,
    pub lifetime: Lifetime,
    /// What the client may see of Cache-Control, made once.
    pub client_cache_control: HeaderValue,
    pub place: Place,
    pub source: Source,
    pub stored_at: SystemTime,
    /// The version of the purges at which it was last found valid.
    valid_at: AtomicU64,
}

impl Entry {
    /// `header` as it came from the origin.
    pub fn new(header: &ResponseHeader, body: Bytes, lifetime: Lifetime, place: Place, now: SystemTime) -> Entry {
        let mut header = stored_header(header);
        let length = HeaderValue::from(body.len());
        header.insert_header(http::header::CONTENT_LENGTH, length).expect("a number is a valid field value");
        Entry::stored(header, body, lifetime, place, Source::Origin, now)
    }

    /// `header` as it is stored.
    pub fn stored(
        header: ResponseHeader,
        body: Bytes,
        lifetime: Lifetime,
        place: Place,
        source: Source,
        now: SystemTime,
    ) -> Entry {
        Entry {
            number: next_number(),
            client_cache_control: directives::for_client(&header.headers),
            header,
            body,
            lifetime,
            place,
            source,
            stored_at: now,
            valid_at: AtomicU64::new(0),
        }
    }

    /// The same response with other fields, times and tags: what a 304 makes of it.
    pub fn validated(&self, header: ResponseHeader, lifetime: Lifetime, place: Place, now: SystemTime) -> Entry {
        Entry::stored(header, self.body.clone(), lifetime, place, Source::Origin, now)
    }

    /// What the purges made of it. One comparison where none came since it was asked last.
    pub fn judge(&self, purges: &Logs) -> Judged {
        let version = purges.version();
        if self.valid_at.load(Ordering::Relaxed) == version {
            return Judged::Valid;
        }
        let judged = self.place.judge(purges);
        if judged == Judged::Valid {
            self.valid_at.store(version, Ordering::Relaxed);
        }
        judged
    }

    /// What it costs to keep, in bytes.
    pub fn weight(&self) -> u64 {
        let texts: usize = self.header.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let fields = texts + self.header.headers.capacity() * FIELD_BYTES;
        let tags: usize = self.place.tags.iter().map(|tag| tag.len() + 48).sum();
        (self.body.len() + fields + tags) as u64 + OVERHEAD_BYTES
    }
}

fn next_number() -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    NUMBERS.fetch_add(1, Ordering::Relaxed)
}

/// The fields of a response that may be stored. Their values are copied, all into one piece: they were parts of the buffer that the
/// response was read into, and would keep all of it alive for as long as the entry lives.
pub fn stored_header(header: &ResponseHeader) -> ResponseHeader {
    let nominated = nominated(header);
    let is_kept = |name: &HeaderName| !NOT_STORED.contains(&name.as_str()) && !nominated.contains(name);
    let kept = || header.headers.iter().filter(|(name, _)| is_kept(name));
    let mut values = BytesMut::with_capacity(kept().map(|(_, value)| value.len()).sum());
    kept().for_each(|(_, value)| values.extend_from_slice(value.as_bytes()));
    let mut values = values.freeze();
    // One more: an entry always has a Content-Length.
    let mut stored =
        ResponseHeader::build_no_case(header.status, Some(kept().count() + 1)).expect("the status was valid before");
    for (name, value) in kept() {
        let value = HeaderValue::from_maybe_shared(values.split_to(value.len())).expect("the value was valid before");
        stored.append_header(name.clone(), value).expect("the field was valid before");
    }
    stored
}

/// Fields that `Connection` names belong to one connection as well (RFC 9110 section 7.6.1).
pub fn nominated(header: &ResponseHeader) -> Vec<HeaderName> {
    header
        .headers
        .get_all(http::header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::freshness;
    use std::time::SystemTime;

    #[test]
    fn what_belongs_to_one_connection_is_not_stored() {
        let mut header = ResponseHeader::build(200, None).expect("200 is a status");
        for (name, value) in [
            ("connection", "x-hop, close"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("date", "x"),
            ("age", "7"),
            ("cache-control", "s-maxage=5"),
            ("x-kept", "1"),
        ] {
            header.append_header(name, value).expect("valid");
        }
        let lifetime = freshness::lifetime(SystemTime::UNIX_EPOCH, 1, 0, None, None);
        let place = Place::new([1; 16], 1, Scope::deployment("d"), Position::default(), Arc::default());
        let entry = Entry::new(&header, Bytes::from_static(b"hello"), lifetime, place, SystemTime::UNIX_EPOCH);
        let mut names: Vec<&str> = entry.header.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["cache-control", "content-length", "x-kept"]);
        assert_eq!(entry.header.headers["content-length"], "5");
        assert_eq!(entry.client_cache_control, directives::CLIENT_DEFAULT);
    }
}
