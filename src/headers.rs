//! Fields of requests: what is refused, what a client may not say, and what the origin is told instead.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE, HOST, HeaderName, HeaderValue};
use pingora_error::Result;
use pingora_http::{RequestHeader, ResponseHeader};

use crate::cache::entry;
use crate::error::Code;
use crate::exchange::{Exchange, Origin};

/// Longer URLs are refused (platform-facts 8: 14 KB).
const URL_BYTES_MAX: usize = 14 * 1024;
/// One field, all fields with their names, and their number (platform-facts 8; robustness DS-20).
const FIELD_BYTES_MAX: usize = 16 * 1024;
const FIELDS_BYTES_MAX: usize = 32 * 1024;
const FIELDS_MAX: usize = 100;

/// Names that only the platform may say, with their beginnings.
const OURS_BEGIN: [&str; 8] =
    ["x-now-", "x-vercel-", "x-zeit-", "x-forwarded-", "x-perigee-", "x-middleware-", "x-invoke-", "x-prerender-"];
const OURS: [&str; 8] = [
    "forwarded",
    "x-real-ip",
    "x-matched-path",
    "x-forwarded",
    "x-original-url",
    "x-rewrite-url",
    "x-host",
    "x-http-method-override",
];

/// Refuses what is too large (the rest of what is refused, Pingora refuses).
pub fn check(request: &RequestHeader) -> std::result::Result<(), Code> {
    if request.raw_path().len() > URL_BYTES_MAX {
        return Err(Code::UrlTooLong);
    }
    // RFC 9112 section 3.2: origin form or the asterisk; the absolute form has been made the former.
    let target = request.raw_path();
    if !target.starts_with(b"/") && target != b"*" {
        return Err(Code::MalformedRequestHeader);
    }
    let mut bytes = 0;
    for (name, value) in &request.headers {
        if value.len() > FIELD_BYTES_MAX {
            return Err(Code::RequestHeaderTooLarge);
        }
        bytes += name.as_str().len() + value.len();
    }
    if bytes > FIELDS_BYTES_MAX || request.headers.len() > FIELDS_MAX {
        return Err(Code::RequestHeaderTooLarge);
    }
    Ok(())
}

/// Makes the origin form of the absolute one (RFC 9112 section 3.2.2), if its authority is the one in `Host`: two that differ are a trick.
/// Pingora keeps the absolute form beside a URI that has the path alone.
pub fn to_origin_form(request: &mut RequestHeader) {
    let absolute = std::str::from_utf8(request.raw_path()).ok().and_then(|target| target.parse::<http::Uri>().ok());
    let Some(authority) = absolute.as_ref().and_then(http::Uri::authority) else { return };
    let host = request.headers.get(HOST).map_or(&b""[..], |host| host.as_bytes());
    if host.eq_ignore_ascii_case(authority.as_str().as_bytes()) {
        let uri = request.uri.clone();
        request.set_uri(uri);
    }
}

/// The authority that the client asked for, in its one form: lower case, no final dot, no usual port. `None` when it makes no sense.
pub fn authority(request: &RequestHeader, scheme: &str) -> Option<String> {
    let raw = match request.uri.authority() {
        Some(authority) => authority.as_str(),
        None => request.headers.get(HOST)?.to_str().ok()?,
    };
    if raw.is_empty() || raw.contains(['@', '/', ' ']) {
        return None;
    }
    let authority: http::uri::Authority = raw.parse().ok()?;
    let mut host = authority.host().to_ascii_lowercase();
    if let Some(without) = host.strip_suffix('.') {
        host = without.to_owned();
    }
    if host.is_empty() {
        return None;
    }
    match (authority.port_u16(), scheme) {
        // `host:` and `host:99999` are no ports.
        (None, _) if authority.as_str().len() != authority.host().len() => None,
        (None, _) | (Some(80), "http") | (Some(443), "https") => Some(host),
        (Some(port), _) => Some(format!("{host}:{port}")),
    }
}

/// Whether a field may not come from a client. `_` counts as `-`: to some origins they are the same.
fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    let matches = |name: &str| OURS.contains(&name) || OURS_BEGIN.iter().any(|begin| name.starts_with(begin));
    matches(name) || (name.contains('_') && matches(&name.replace('_', "-")))
}

/// Takes out what a client may not say.
pub fn strip(headers: &mut pingora_http::RequestHeader) {
    let ours: Vec<HeaderName> = headers.headers.keys().filter(|name| is_ours(name)).cloned().collect();
    for name in &ours {
        headers.remove_header(name);
    }
}

/// Makes the request that the origin gets out of the one that the client sent (seed "Headers").
pub fn for_origin(request: &mut RequestHeader, exchange: &Exchange) -> Result<()> {
    strip(request);
    if exchange.background {
        // The refresh is made for everybody, whoever started it.
        request.remove_header(&COOKIE);
        request.remove_header(&AUTHORIZATION);
    }
    let host = HeaderValue::try_from(exchange.authority.as_str()).unwrap_or(HeaderValue::from_static("localhost"));
    match &exchange.origin {
        Origin::Upstream(target) if target.rewritten => request.insert_header(HOST, target.url.authority())?,
        _ => request.insert_header(HOST, host.clone())?,
    };
    request.insert_header("x-forwarded-host", host)?;
    request.insert_header("x-forwarded-proto", exchange.scheme)?;
    if let Some(client) = exchange.client {
        let client = client_address(client);
        for name in ["x-forwarded-for", "x-real-ip", "x-zeit-co-forwarded-for"] {
            request.insert_header(name, client.as_str())?;
        }
        if exchange.world.conf.headers.vercel {
            request.insert_header("x-vercel-forwarded-for", client.as_str())?;
        }
    }
    let id = exchange.id();
    let deployment = exchange.deployment.as_ref().map_or("", |deployment| deployment.host.as_str());
    request.insert_header("x-now-id", id.as_str())?;
    request.insert_header("x-now-trace", exchange.region())?;
    request.insert_header("x-now-deployment-url", deployment)?;
    if exchange.world.conf.headers.vercel {
        request.insert_header("x-vercel-id", id.replace(':', "::"))?;
        request.insert_header("x-vercel-deployment-url", deployment)?;
    }
    Ok(())
}

/// An IPv4 address that came over an IPv6 socket is told as what it is.
fn client_address(address: IpAddr) -> String {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or_else(|| v6.to_string(), |v4| v4.to_string()),
        IpAddr::V4(v4) => v4.to_string(),
    }
}

/// Whether the client asks for a revalidation (seed "Caching").
pub fn wants_revalidation(headers: &HeaderMap) -> bool {
    headers.get_all(http::header::PRAGMA).iter().any(|value| {
        value.as_bytes().split(|b| *b == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(b"no-cache"))
    })
}

/// `If-None-Match: *`: nothing is wanted if there is anything (RFC 9110 section 13.1.2). Pingora answers it only where there is an etag.
pub fn asks_for_none_at_all(headers: &HeaderMap) -> bool {
    headers.get(http::header::IF_NONE_MATCH).is_some_and(|value| value.as_bytes().trim_ascii() == b"*")
}

/// Fields that belong to the connection with the origin and end with it (RFC 9110 section 7.6.1).
const HOP_BY_HOP: [&str; 4] = ["keep-alive", "proxy-connection", "te", "trailer"];

/// Takes out what an origin said about its connection, and what it said that it said about it.
pub fn drop_hop_by_hop(response: &mut ResponseHeader) {
    for name in entry::nominated(response) {
        // The framing and the change of the protocol are Pingora's to translate.
        if !matches!(name.as_str(), "transfer-encoding" | "content-length" | "upgrade" | "close") {
            response.remove_header(&name);
        }
    }
    for name in HOP_BY_HOP {
        response.remove_header(name);
    }
}

/// A stored response with the fields that a 304 brought (RFC 9111 section 3.2): all but those that describe the body it came without, and
/// but `Vary`, by which it was found. Pingora takes over a few by name.
pub fn validated(stored: &ResponseHeader, fields: &HeaderMap) -> ResponseHeader {
    const KEPT: [&str; 9] = [
        "content-length",
        "content-encoding",
        "content-type",
        "content-range",
        "transfer-encoding",
        "connection",
        "vary",
        "date",
        "server",
    ];
    let mut response = stored.clone();
    for name in fields.keys().filter(|name| !KEPT.contains(&name.as_str())) {
        response.remove_header(name);
        for value in fields.get_all(name) {
            // Both came from valid responses; one that is too many is not worth an error.
            let _ = response.append_header(name.clone(), value.clone());
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_has_one_form_or_none() {
        let check = |host: &str, scheme: &str, expected: Option<&str>| {
            let mut request = RequestHeader::build("GET", b"/", None).expect("a request");
            request.insert_header(HOST, host).expect("a field");
            assert_eq!(authority(&request, scheme).as_deref(), expected, "{host}");
        };
        check("Example.COM", "http", Some("example.com"));
        check("example.com.", "http", Some("example.com"));
        check("example.com:80", "http", Some("example.com"));
        check("example.com:80", "https", Some("example.com:80"));
        check("example.com:443", "https", Some("example.com"));
        check("localhost:8080", "http", Some("localhost:8080"));
        check("[::1]:8080", "http", Some("[::1]:8080"));
        check("", "http", None);
        check("a@b", "http", None);
        check("a/b", "http", None);
        check("a:99999", "http", None);
        check("a:", "http", None);
        check(".", "http", None);
    }

    #[test]
    fn a_client_cannot_speak_for_the_platform() {
        let mut request = RequestHeader::build("GET", b"/", None).expect("a request");
        for name in [
            "x-now-id",
            "X-Vercel-IP-Country",
            "x_forwarded_for",
            "x-forwarded_host",
            "Forwarded",
            "x-real-ip",
            "x_now_trace",
        ] {
            request.append_header(name.to_owned(), "forged").expect("a field");
            request.append_header(name.to_owned(), "twice").expect("a field");
        }
        request.append_header("x-nowhere", "kept").expect("a field");
        request.append_header("x_kept", "kept").expect("a field");
        strip(&mut request);
        let mut names: Vec<&str> = request.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["x-nowhere", "x_kept"]);
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let request = |path: &str, fields: usize, bytes: usize| {
            let mut request = RequestHeader::build("GET", path.as_bytes(), None).expect("a request");
            for n in 0..fields {
                request.append_header(format!("x-{n}"), "v".repeat(bytes)).expect("a field");
            }
            check(&request)
        };
        assert_eq!(request("/", 100, 100), Ok(()));
        assert_eq!(request("/", 101, 1), Err(Code::RequestHeaderTooLarge));
        assert_eq!(request("/", 1, 16 * 1024 + 1), Err(Code::RequestHeaderTooLarge));
        assert_eq!(request("/", 3, 12 * 1024), Err(Code::RequestHeaderTooLarge));
        assert_eq!(request(&"/".repeat(14 * 1024 + 1), 0, 0), Err(Code::UrlTooLong));
    }

    #[test]
    fn only_pragma_no_cache_asks_for_revalidation() {
        let check = |value: &'static str, expected: bool| {
            let mut map = HeaderMap::new();
            map.insert("pragma", HeaderValue::from_static(value));
            assert_eq!(wants_revalidation(&map), expected, "{value}");
        };
        check("no-cache", true);
        check("x, No-Cache", true);
        check("cache", false);
        check("", false);
    }
}
