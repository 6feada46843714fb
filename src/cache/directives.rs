//! Reads Cache-Control and its targeted twins, and writes what of them the client may see.
//!
//! Pingora's own parser is not used: it reads a bare `stale-while-revalidate` as absent and drops it altogether beside `s-maxage`,
//! which are the two spellings that the platform documents (seed "Caching", RFC 5861).

use http::HeaderMap;
use http::header::{CACHE_CONTROL, HeaderName, HeaderValue};

/// What the client gets when nothing is left to say, or nothing was said (seed "Headers").
pub const CLIENT_DEFAULT: HeaderValue = HeaderValue::from_static("public, max-age=0, must-revalidate");

/// RFC 9213, the platform's own field first; a field further left hides those further right.
pub const TARGETED: [HeaderName; 2] =
    [HeaderName::from_static("vercel-cdn-cache-control"), HeaderName::from_static("cdn-cache-control")];

/// How long a stale response may be used, counted from the end of its freshness (RFC 5861).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// The directive came without a value: for as long as an entry may live.
    Unbounded,
    Seconds(u64),
}

/// The directives that this cache acts upon. Unknown ones are passed over (RFC 9111 section 5.2.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directives {
    pub no_store: bool,
    pub no_cache: bool,
    pub private: bool,
    pub public: bool,
    pub immutable: bool,
    /// Seconds.
    pub max_age: Option<u64>,
    /// Seconds.
    pub s_maxage: Option<u64>,
    pub stale_while_revalidate: Option<Window>,
    pub stale_if_error: Option<Window>,
}

/// The directives that govern this cache, and which field gave them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Governing {
    pub directives: Directives,
    /// True where a targeted field (RFC 9213) spoke: there `max-age` alone is enough.
    pub targeted: bool,
}

/// Picks the field that speaks to this cache. `None` when the response says nothing about caching.
pub fn governing(headers: &HeaderMap) -> Option<Governing> {
    for name in &TARGETED {
        if headers.contains_key(name) {
            return Some(Governing { directives: parse(headers, name), targeted: true });
        }
    }
    headers
        .contains_key(CACHE_CONTROL)
        .then(|| Governing { directives: parse(headers, &CACHE_CONTROL), targeted: false })
}

/// Reads all field lines called `name` as one list (RFC 9110 section 5.3).
pub fn parse(headers: &HeaderMap, name: &HeaderName) -> Directives {
    let mut found = Directives::default();
    for value in headers.get_all(name) {
        // Octets that are not visible ASCII cannot be part of a directive that we know.
        let text = String::from_utf8_lossy(value.as_bytes());
        for (directive, argument) in split(&text) {
            found.note(directive, argument.as_deref());
        }
    }
    found
}

impl Directives {
    fn note(&mut self, directive: &str, argument: Option<&str>) {
        let is = |name: &str| directive.eq_ignore_ascii_case(name);
        if is("no-store") {
            self.no_store = true;
        } else if is("no-cache") {
            // The qualified form (no-cache="field") is treated as the plain one: RFC 9111 section 5.2.2.4 allows that, and it is the safe side.
            self.no_cache = true;
        } else if is("private") {
            self.private = true;
        } else if is("public") {
            self.public = true;
        } else if is("immutable") {
            self.immutable = true;
        } else if is("max-age") {
            self.max_age = least(self.max_age, delta_seconds(argument));
        } else if is("s-maxage") {
            self.s_maxage = least(self.s_maxage, delta_seconds(argument));
        } else if is("stale-while-revalidate") {
            self.stale_while_revalidate = window(argument).or(self.stale_while_revalidate);
        } else if is("stale-if-error") {
            self.stale_if_error = window(argument).or(self.stale_if_error);
        }
    }
}

/// Two values for one directive: the shorter one cannot be wrong (RFC 9111 section 4.2.1 leaves the choice).
fn least(known: Option<u64>, new: u64) -> Option<u64> {
    Some(known.map_or(new, |known| known.min(new)))
}

/// An argument that is not a number counts as 0, that is, as stale at once (RFC 9111 section 4.2.1); one that is too large is a very long time.
fn delta_seconds(argument: Option<&str>) -> u64 {
    match argument {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().unwrap_or(u64::MAX)
        }
        _ => 0,
    }
}

fn window(argument: Option<&str>) -> Option<Window> {
    match argument {
        None => Some(Window::Unbounded),
        Some(_) => match delta_seconds(argument) {
            0 => None,
            seconds => Some(Window::Seconds(seconds)),
        },
    }
}

/// Splits a list of directives; commas inside quoted strings do not split.
fn split(text: &str) -> impl Iterator<Item = (&str, Option<String>)> {
    let mut quoted = false;
    text.split(move |c: char| {
        if c == '"' {
            quoted = !quoted;
        }
        c == ',' && !quoted
    })
    .filter_map(|item| {
        let item = item.trim();
        if item.is_empty() {
            return None;
        }
        Some(match item.split_once('=') {
            Some((name, argument)) => (name.trim(), Some(argument.trim().trim_matches('"').to_owned())),
            None => (item, None),
        })
    })
}

/// What the client may see of `Cache-Control`: without the directives that were meant for this cache, and the default when nothing is left
/// (seed "Headers": "the Network Layer strips the s-maxage directive").
pub fn for_client(headers: &HeaderMap) -> HeaderValue {
    let mut kept = String::new();
    let mut lines = 0;
    let mut stripped = false;
    let mut only = None;
    for value in headers.get_all(CACHE_CONTROL) {
        lines += 1;
        only = Some(value);
        let text = String::from_utf8_lossy(value.as_bytes());
        for (directive, _) in split(&text) {
            stripped |= is_for_shared_caches(directive);
        }
        for item in split_raw(&text) {
            let name = item.split('=').next().unwrap_or("").trim();
            if !is_for_shared_caches(name) {
                if !kept.is_empty() {
                    kept.push_str(", ");
                }
                kept.push_str(item);
            }
        }
    }
    match only {
        None => CLIENT_DEFAULT,
        Some(value) if lines == 1 && !stripped && !kept.is_empty() => value.clone(),
        Some(_) if kept.is_empty() => CLIENT_DEFAULT,
        Some(_) => HeaderValue::try_from(kept).unwrap_or(CLIENT_DEFAULT),
    }
}

fn split_raw(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c: char| {
        if c == '"' {
            quoted = !quoted;
        }
        c == ',' && !quoted
    })
    .map(str::trim)
    .filter(|item| !item.is_empty())
}

fn is_for_shared_caches(directive: &str) -> bool {
    ["s-maxage", "stale-while-revalidate", "stale-if-error"].iter().any(|name| directive.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, HeaderValue::try_from(*value).expect("a test value"));
        }
        map
    }

    #[test]
    fn directives_are_read_whatever_their_spelling() {
        let check = |value: &str, expected: Directives| {
            assert_eq!(parse(&headers(&[("cache-control", value)]), &CACHE_CONTROL), expected, "{value}");
        };
        let none = Directives::default();
        check("", none.clone());
        check(",, ,", none.clone());
        check("frobnicate=1", none.clone());
        check("S-MaxAge=60", Directives { s_maxage: Some(60), ..none.clone() });
        check("s-maxage=\"60\"", Directives { s_maxage: Some(60), ..none.clone() });
        check("s-maxage = 60", Directives { s_maxage: Some(60), ..none.clone() });
        check("s-maxage=-1", Directives { s_maxage: Some(0), ..none.clone() });
        check("s-maxage=1e3", Directives { s_maxage: Some(0), ..none.clone() });
        check("s-maxage", Directives { s_maxage: Some(0), ..none.clone() });
        check("s-maxage=60, s-maxage=10", Directives { s_maxage: Some(10), ..none.clone() });
        check("max-age=99999999999999999999999", Directives { max_age: Some(u64::MAX), ..none.clone() });
        check("no-cache=\"a, max-age=5\", public", Directives { no_cache: true, public: true, ..none.clone() });
        check("private=\"x\"", Directives { private: true, ..none.clone() });
        check(
            "s-maxage=1, stale-while-revalidate",
            Directives { s_maxage: Some(1), stale_while_revalidate: Some(Window::Unbounded), ..none.clone() },
        );
        check("stale-while-revalidate=0", none.clone());
        check(
            "stale-while-revalidate=59, stale-if-error=7",
            Directives {
                stale_while_revalidate: Some(Window::Seconds(59)),
                stale_if_error: Some(Window::Seconds(7)),
                ..none
            },
        );
    }

    #[test]
    fn the_most_targeted_field_governs() {
        let both = headers(&[
            ("cache-control", "no-store"),
            ("cdn-cache-control", "max-age=5"),
            ("vercel-cdn-cache-control", "max-age=9"),
        ]);
        let governing = governing(&both).expect("a field governs");
        assert!(governing.targeted);
        assert_eq!(governing.directives.max_age, Some(9));
        assert!(!governing.directives.no_store);
        assert_eq!(super::governing(&headers(&[("age", "1")])), None);
    }

    #[test]
    fn the_client_never_sees_what_was_meant_for_the_edge() {
        let check = |value: Option<&str>, expected: &str| {
            let map = value.map_or_else(HeaderMap::new, |value| headers(&[("cache-control", value)]));
            assert_eq!(for_client(&map), expected, "{value:?}");
        };
        let default = "public, max-age=0, must-revalidate";
        check(None, default);
        check(Some(""), default);
        check(Some("s-maxage=60"), default);
        check(Some("s-maxage=1, stale-while-revalidate"), default);
        check(Some("S-MAXAGE=1 , Stale-If-Error=5"), default);
        check(Some("max-age=10, s-maxage=60"), "max-age=10");
        check(Some("public, max-age=3600, s-maxage=3600"), "public, max-age=3600");
        check(Some("no-cache=\"a, s-maxage=1\""), "no-cache=\"a, s-maxage=1\"");
        check(Some("private"), "private");
    }
}
