//! Finds the variant of a stored response that a request selects (RFC 9111 section 4.1).

use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, HeaderName, VARY};

/// The hash of the request fields that `Vary` names; `None` when the response does not vary.
pub fn variance(response: &HeaderMap, request: &HeaderMap) -> Option<[u8; 16]> {
    if !response.contains_key(VARY) {
        return None;
    }
    let mut names: Vec<HeaderName> = response
        .get_all(VARY)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    if names.is_empty() {
        return None;
    }
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    let mut hasher = blake3::Hasher::new();
    for name in &names {
        hasher.update(name.as_str().as_bytes());
        hasher.update(b"\n");
        if name == ACCEPT_ENCODING {
            hasher.update(&[codings(request)]);
        } else {
            for value in request.get_all(name) {
                hasher.update(&(value.len() as u64).to_le_bytes());
                hasher.update(value.as_bytes());
            }
        }
        hasher.update(b"\n");
    }
    let mut variance = [0; 16];
    variance.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Some(variance)
}

/// Which of the codings in use the client accepts, as a set: browsers spell the same wish in a dozen ways, and each spelling would
/// otherwise be a variant of its own.
fn codings(request: &HeaderMap) -> u8 {
    let mut set = 0;
    for value in request.get_all(ACCEPT_ENCODING) {
        for item in value.as_bytes().split(|b| *b == b',') {
            let mut parts = item.split(|b| *b == b';').map(<[u8]>::trim_ascii);
            let coding = parts.next().unwrap_or_default();
            let refused = parts.any(|p| matches!(p, b"q=0" | b"q=0." | b"q=0.0" | b"q=0.00" | b"q=0.000" | b"Q=0"));
            let bit = match coding.to_ascii_lowercase().as_slice() {
                b"gzip" | b"x-gzip" => 1,
                b"br" => 2,
                b"zstd" => 4,
                b"deflate" => 8,
                b"*" => 16,
                b"" | b"identity" => 0,
                _ => 32,
            };
            if !refused {
                set |= bit;
            } else if coding == b"identity" || coding == b"*" {
                set |= 64;
            }
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn requests_select_by_what_vary_names() {
        let vary = map(&[("vary", "Accept, x-a")]);
        let same = |a: &[(&'static str, &'static str)], b: &[(&'static str, &'static str)]| {
            variance(&vary, &map(a)) == variance(&vary, &map(b))
        };
        assert!(same(&[], &[]));
        assert!(same(&[("x-b", "1")], &[("x-b", "2")]));
        assert!(!same(&[("x-a", "1")], &[("x-a", "2")]));
        assert!(!same(&[("x-a", "1")], &[]));
        assert!(!same(&[("x-a", "")], &[]));
        assert!(!same(&[("accept", "1")], &[("x-a", "1")]));
        assert_eq!(variance(&HeaderMap::new(), &map(&[("accept", "x")])), None);
        assert_eq!(
            variance(&map(&[("vary", "a"), ("vary", "b")]), &map(&[])),
            variance(&map(&[("vary", "B, A,a")]), &map(&[]))
        );
    }

    #[test]
    fn accept_encoding_counts_by_what_is_accepted() {
        let vary = map(&[("vary", "accept-encoding")]);
        let of = |value: &'static str| variance(&vary, &map(&[("accept-encoding", value)]));
        assert_eq!(of("gzip, br"), of("br;q=0.5,gzip"));
        assert_eq!(of("gzip, br;q=0"), of("gzip"));
        assert_ne!(of("gzip"), of("br"));
        assert_ne!(of("identity;q=0"), of(""));
        assert_eq!(of("identity"), variance(&vary, &map(&[])));
    }
}
