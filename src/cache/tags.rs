//! Reads the tags of a response: the names by which an application purges what it rendered.
//! `Vercel-Cache-Tag` and `Cache-Tag` hold lists with commas, `Surrogate-Key` one with spaces. All three count, and none is the client's.

use http::HeaderMap;
use http::header::HeaderName;

pub const TAGS_MAX: usize = 128;
pub const TAG_BYTES_MAX: usize = 256;

/// The fields that carry tags, with what stands between two of them.
const FIELDS: [(HeaderName, u8); 3] = [
    (HeaderName::from_static("vercel-cache-tag"), b','),
    (HeaderName::from_static("cache-tag"), b','),
    (HeaderName::from_static("surrogate-key"), b' '),
];

/// More tags than `TAGS_MAX`, a longer one than `TAG_BYTES_MAX`, or one that is no text. Such a response is not stored: a purge by the tag
/// that was left out would not find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

/// The tags of a response, each once, in the order of the fields.
pub fn tags(headers: &HeaderMap) -> Result<Vec<&str>, TooMany> {
    let mut tags = Vec::new();
    for (field, separator) in &FIELDS {
        for value in headers.get_all(field) {
            let value = value.to_str().map_err(|_| TooMany)?;
            for tag in value.split(char::from(*separator)).map(str::trim).filter(|tag| !tag.is_empty()) {
                if tag.len() > TAG_BYTES_MAX || (tags.len() == TAGS_MAX && !tags.contains(&tag)) {
                    return Err(TooMany);
                }
                if !tags.contains(&tag) {
                    tags.push(tag);
                }
            }
        }
    }
    Ok(tags)
}

/// Takes the fields out of an answer.
pub fn strip(headers: &mut pingora_http::ResponseHeader) {
    for (field, _) in &FIELDS {
        headers.remove_header(field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn check(lines: &[(&'static str, &str)], expected: Result<&[&str], TooMany>) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        assert_eq!(tags(&headers), expected.map(<[&str]>::to_vec), "{lines:?}");
    }

    #[test]
    fn tags_come_from_three_fields() {
        check(&[], Ok(&[]));
        check(&[("cache-tag", "a, b,,c ,a")], Ok(&["a", "b", "c"]));
        check(&[("surrogate-key", "a  b/c"), ("vercel-cache-tag", "x y,z")], Ok(&["x y", "z", "a", "b/c"]));
        check(&[("cache-tag", "a"), ("cache-tag", "b"), ("surrogate-key", "a")], Ok(&["a", "b"]));
    }

    #[test]
    fn too_many_and_too_long_ones_are_refused() {
        let list = |n: usize| (0..n).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        let mut headers = HeaderMap::new();
        headers.insert("cache-tag", HeaderValue::from_str(&format!("{},5", list(TAGS_MAX))).expect("a value"));
        assert_eq!(tags(&headers).map(|tags| tags.len()), Ok(TAGS_MAX));
        check(&[("cache-tag", &list(TAGS_MAX + 1))], Err(TooMany));
        check(&[("cache-tag", &"x".repeat(TAG_BYTES_MAX + 1))], Err(TooMany));
        check(&[("surrogate-key", "a\u{e9}")], Err(TooMany));
    }
}
