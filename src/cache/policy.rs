//! Decides whether the cache is consulted for a request and whether a response may be stored. Every "no" has a reason.

use std::time::SystemTime;

use http::header::{AGE, AUTHORIZATION, CONTENT_LENGTH, COOKIE, RANGE, SET_COOKIE, TRANSFER_ENCODING, VARY};
use http::{HeaderMap, Method};

use super::directives;
use super::freshness::{self, Lifetime};

/// The largest response body that is stored: 10 MB (seed "Caching", limits).
pub const BODY_BYTES_MAX: u64 = 10 * 1_048_576;

/// Names of the switch that turns the cache off for one request, as cookie or query parameter (seed "Caching").
const SWITCHES: [&str; 2] = ["_now_no_cache", "_vercel_no_cache"];

/// Request fields that the edge writes anew for each visitor.
const PER_VISITOR: [&[u8]; 6] = [
    b"x-forwarded-for",
    b"x-real-ip",
    b"x-zeit-co-forwarded-for",
    b"x-vercel-forwarded-for",
    b"x-now-id",
    b"x-vercel-id",
];

/// Why the cache is not consulted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bypass {
    Method,
    Range,
    Authorization,
    Switch,
    /// A request to change the protocol is answered by the origin alone.
    Upgrade,
    /// A GET with a body: the body reaches the origin and is not in the key.
    Body,
}

impl Bypass {
    pub fn as_str(self) -> &'static str {
        match self {
            Bypass::Method => "method",
            Bypass::Range => "range",
            Bypass::Authorization => "authorization",
            Bypass::Switch => "no_cache_switch",
            Bypass::Upgrade => "upgrade",
            Bypass::Body => "body",
        }
    }
}

/// Whether the cache may be consulted for this request (product.md 5.1).
pub fn request(method: &Method, query: Option<&str>, headers: &HeaderMap) -> Result<(), Bypass> {
    if method != Method::GET && method != Method::HEAD {
        return Err(Bypass::Method);
    }
    if headers.contains_key(RANGE) {
        return Err(Bypass::Range);
    }
    if headers.contains_key(AUTHORIZATION) {
        return Err(Bypass::Authorization);
    }
    if headers.contains_key(http::header::UPGRADE) {
        return Err(Bypass::Upgrade);
    }
    if headers.contains_key(TRANSFER_ENCODING) || content_length(headers).is_some_and(|bytes| bytes > 0) {
        return Err(Bypass::Body);
    }
    if query.is_some_and(|query| query.split('&').any(is_switch)) {
        return Err(Bypass::Switch);
    }
    for cookies in headers.get_all(COOKIE) {
        if cookies
            .as_bytes()
            .split(|b| *b == b';')
            .any(|pair| std::str::from_utf8(pair).is_ok_and(|pair| is_switch(pair.trim())))
        {
            return Err(Bypass::Switch);
        }
    }
    Ok(())
}

fn is_switch(pair: &str) -> bool {
    pair.strip_suffix("=1").is_some_and(|name| SWITCHES.contains(&name))
}

/// Why a response is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotStored {
    Status,
    /// The origin failed (5xx): waiters share this instead of taking turns.
    OriginError,
    /// No directive allows it.
    NoDirective,
    NoStore,
    NoCache,
    Private,
    /// `s-maxage=0`, or a lifetime that its Age has used up.
    ZeroLifetime,
    SetCookie,
    VaryAll,
    /// Every visitor would have a variant of his own, and a background refresh carries no cookies.
    VaryCookie,
    /// By a field that the edge writes for each visitor: what the client sent under that name says nothing.
    VaryVisitor,
    TooLarge,
    /// More tags than can be purged by.
    TooManyTags,
}

impl NotStored {
    pub fn as_str(self) -> &'static str {
        match self {
            NotStored::Status => "status",
            NotStored::OriginError => "origin_error",
            NotStored::NoDirective => "no_directive",
            NotStored::NoStore => "no_store",
            NotStored::NoCache => "no_cache",
            NotStored::Private => "private",
            NotStored::ZeroLifetime => "zero_lifetime",
            NotStored::SetCookie => "set_cookie",
            NotStored::VaryAll => "vary_all",
            NotStored::VaryCookie => "vary_cookie",
            NotStored::VaryVisitor => "vary_visitor",
            NotStored::TooLarge => "too_large",
            NotStored::TooManyTags => "too_many_tags",
        }
    }
}

/// Whether this response to a GET or HEAD may be stored, and for how long (product.md 5.1).
///
/// `fallback` holds fields that the deployment's routes set; its caching fields speak only where the response has none of its own.
pub fn response(
    now: SystemTime,
    status: u16,
    headers: &HeaderMap,
    fallback: &HeaderMap,
) -> Result<Lifetime, NotStored> {
    if status >= 500 {
        return Err(NotStored::OriginError);
    }
    if status != 200 {
        return Err(NotStored::Status);
    }
    if headers.contains_key(SET_COOKIE) {
        return Err(NotStored::SetCookie);
    }
    vary(headers)?;
    if content_length(headers).is_some_and(|bytes| bytes > BODY_BYTES_MAX) {
        return Err(NotStored::TooLarge);
    }
    let governing =
        directives::governing(headers).or_else(|| directives::governing(fallback)).ok_or(NotStored::NoDirective)?;
    let said = &governing.directives;
    if said.no_store {
        return Err(NotStored::NoStore);
    }
    if said.no_cache {
        return Err(NotStored::NoCache);
    }
    if said.private {
        return Err(NotStored::Private);
    }
    let fresh_s = match (said.s_maxage, said.max_age) {
        (Some(seconds), _) => seconds,
        (None, Some(seconds)) if governing.targeted || said.public || said.immutable => seconds,
        _ => return Err(NotStored::NoDirective),
    };
    let lifetime = freshness::lifetime(now, fresh_s, age_s(headers), said.stale_while_revalidate, said.stale_if_error);
    if fresh_s == 0 || !(lifetime.is_fresh(now) || lifetime.is_usable_while_revalidating(now)) {
        return Err(NotStored::ZeroLifetime);
    }
    Ok(lifetime)
}

fn vary(headers: &HeaderMap) -> Result<(), NotStored> {
    for value in headers.get_all(VARY) {
        for name in value.as_bytes().split(|b| *b == b',') {
            match name.trim_ascii() {
                b"*" => return Err(NotStored::VaryAll),
                name if name.eq_ignore_ascii_case(b"cookie") => return Err(NotStored::VaryCookie),
                name if PER_VISITOR.iter().any(|ours| name.eq_ignore_ascii_case(ours)) => {
                    return Err(NotStored::VaryVisitor);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// The Age field in seconds; one that makes no sense counts as 0 (RFC 9111 section 5.1).
fn age_s(headers: &HeaderMap) -> u64 {
    headers.get(AGE).and_then(|value| value.to_str().ok()?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use std::time::Duration;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, HeaderValue::try_from(*value).expect("a test value"));
        }
        map
    }

    #[test]
    fn requests_that_bypass_say_why() {
        let check =
            |method: Method, query: Option<&str>, lines: &[(&'static str, &str)], expected: Result<(), Bypass>| {
                assert_eq!(request(&method, query, &headers(lines)), expected, "{method} {query:?} {lines:?}");
            };
        check(Method::GET, None, &[], Ok(()));
        check(Method::HEAD, None, &[], Ok(()));
        check(Method::POST, None, &[], Err(Bypass::Method));
        check(Method::OPTIONS, None, &[], Err(Bypass::Method));
        check(Method::GET, None, &[("range", "bytes=0-1")], Err(Bypass::Range));
        check(Method::GET, None, &[("authorization", "Bearer x")], Err(Bypass::Authorization));
        check(Method::GET, Some("_now_no_cache=1"), &[], Err(Bypass::Switch));
        check(Method::GET, Some("a=b&_vercel_no_cache=1"), &[], Err(Bypass::Switch));
        check(Method::GET, Some("_now_no_cache=0"), &[], Ok(()));
        check(Method::GET, Some("x_now_no_cache=1"), &[], Ok(()));
        check(Method::GET, None, &[("cookie", "a=b; _now_no_cache=1")], Err(Bypass::Switch));
        check(Method::GET, None, &[("cookie", "a=b"), ("cookie", "_vercel_no_cache=1;c=d")], Err(Bypass::Switch));
        check(Method::GET, None, &[("cookie", "a=_now_no_cache=1")], Ok(()));
        check(Method::GET, None, &[("content-length", "3")], Err(Bypass::Body));
        check(Method::GET, None, &[("content-length", "0")], Ok(()));
        check(Method::GET, None, &[("pragma", "no-cache"), ("cache-control", "no-cache")], Ok(()));
    }

    #[test]
    fn responses_are_stored_or_say_why_not() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let check = |status: u16, lines: &[(&'static str, &str)], expected: Result<u64, NotStored>| {
            let got = response(now, status, &headers(lines), &HeaderMap::new())
                .map(|l| l.fresh_until.duration_since(now).expect("in the future").as_secs());
            assert_eq!(got, expected, "{status} {lines:?}");
        };
        let cc = |value: &'static str| [("cache-control", value)];
        check(200, &[], Err(NotStored::NoDirective));
        check(200, &cc("max-age=60"), Err(NotStored::NoDirective));
        check(200, &cc("public"), Err(NotStored::NoDirective));
        check(200, &cc("s-maxage=60"), Ok(60));
        check(200, &cc("max-age=60, public"), Ok(60));
        check(200, &cc("max-age=60, immutable"), Ok(60));
        check(200, &cc("max-age=5, public, s-maxage=60"), Ok(60));
        check(200, &cc("s-maxage=99999999999"), Ok(31_536_000));
        check(200, &cc("s-maxage=0, max-age=5, public"), Err(NotStored::ZeroLifetime));
        check(200, &cc("s-maxage=0, stale-while-revalidate"), Err(NotStored::ZeroLifetime));
        check(200, &cc("s-maxage=60, no-cache"), Err(NotStored::NoCache));
        check(200, &cc("s-maxage=60, no-store"), Err(NotStored::NoStore));
        check(200, &cc("s-maxage=60, private"), Err(NotStored::Private));
        check(200, &[("cache-control", "s-maxage=60"), ("set-cookie", "a=b")], Err(NotStored::SetCookie));
        check(200, &[("cache-control", "s-maxage=60"), ("vary", "accept, *")], Err(NotStored::VaryAll));
        check(200, &[("cache-control", "s-maxage=60"), ("vary", "Cookie")], Err(NotStored::VaryCookie));
        check(200, &[("cache-control", "s-maxage=60"), ("vary", "X-Forwarded-For")], Err(NotStored::VaryVisitor));
        check(200, &[("cache-control", "s-maxage=60"), ("vary", "accept")], Ok(60));
        check(200, &[("cache-control", "s-maxage=60"), ("content-length", "10485760")], Ok(60));
        check(200, &[("cache-control", "s-maxage=60"), ("content-length", "10485761")], Err(NotStored::TooLarge));
        check(200, &[("cache-control", "s-maxage=60"), ("age", "20")], Ok(40));
        check(200, &[("cache-control", "s-maxage=60"), ("age", "60")], Err(NotStored::ZeroLifetime));
        check(200, &[("cache-control", "no-store"), ("cdn-cache-control", "max-age=7")], Ok(7));
        check(200, &[("cache-control", "s-maxage=60"), ("cdn-cache-control", "no-store")], Err(NotStored::NoStore));
        for status in [201, 204, 206, 301, 302, 304, 404, 410] {
            check(status, &cc("s-maxage=60"), Err(NotStored::Status));
        }
        check(503, &cc("s-maxage=60"), Err(NotStored::OriginError));
    }

    #[test]
    fn a_routes_header_speaks_only_where_the_response_is_silent() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let route = headers(&[("cache-control", "s-maxage=30")]);
        assert!(response(now, 200, &HeaderMap::new(), &route).is_ok());
        assert_eq!(response(now, 200, &headers(&[("cache-control", "private")]), &route), Err(NotStored::Private));
    }
}
