//! The rules for serving one file, and the page that lists a folder: types, names, validators, conditions, ranges.
//! Pure: no socket, no file, no clock. The caller has the bytes, these functions say which of them to send and why.

use std::{
    fmt::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::{Code, escape_html};

/// More is refused: each range costs a part head and a seek, and no honest client asks for this many.
const RANGES_MAX: usize = 16;

/// RFC 3986 unreserved characters stay, which also makes a value of RFC 8187 (it allows more).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The media type by the name's extension, with a charset where a browser would otherwise guess one.
pub fn content_type(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    // A name such as `.env` is all name and no extension.
    let extension = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => extension.to_ascii_lowercase(),
        _ => return "application/octet-stream".to_owned(),
    };
    let media_type = corrected_type(&extension)
        .or_else(|| mime_guess::from_ext(&extension).first_raw())
        .unwrap_or("application/octet-stream");
    if is_text(media_type) { format!("{media_type}; charset=utf-8") } else { media_type.to_owned() }
}

/// Shown in the browser, and saved under its own name (RFC 6266).
pub fn content_disposition(file_name: &str) -> String {
    let mut value = String::with_capacity(file_name.len() + 24);
    value.push_str("inline; filename=\"");
    for c in file_name.chars() {
        match c {
            '"' | '\\' => value.extend(['\\', c]),
            ' '..='~' => value.push(c),
            // A header cannot hold it, or (outside ASCII) different browsers would read it differently.
            _ => value.push('_'),
        }
    }
    value.push('"');
    // Some browsers decode `%41` inside `filename`; `filename*` takes precedence and leaves no doubt.
    if !file_name.is_ascii() || file_name.contains('%') {
        value.push_str("; filename*=UTF-8''");
        value.extend(utf8_percent_encode(file_name, ENCODED));
    }
    value
}

/// A strong entity tag: 32 hexadecimal digits of the content's hash.
pub fn etag(content_hash: &[u8]) -> String {
    let mut tag = String::with_capacity(34);
    tag.push('"');
    for byte in content_hash.iter().take(16) {
        // Writing to a string does not fail.
        let _ = write!(tag, "{byte:02x}");
    }
    tag.push('"');
    tag
}

/// What a request's preconditions say about the file as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conditional {
    Proceed,
    /// 304
    NotModified,
    /// 412
    PreconditionFailed,
}

/// RFC 9110 section 13.2.2: tags before dates, and a date counts only where its tag is absent. `If-Range`, the fifth
/// step, belongs to [`plan_ranges`]. `etag` may be weak (`W/"…"`), as it is for a compressed answer.
pub fn evaluate(method: &Method, headers: &HeaderMap, etag: &str, last_modified: SystemTime) -> Conditional {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    if headers.contains_key(header::IF_MATCH) {
        if !names_tag(headers, header::IF_MATCH, etag, is_same_strongly) {
            return Conditional::PreconditionFailed;
        }
    } else if let Some(date) = date(headers, header::IF_UNMODIFIED_SINCE)
        && seconds(last_modified) > seconds(date)
    {
        return Conditional::PreconditionFailed;
    }

    if headers.contains_key(header::IF_NONE_MATCH) {
        return match (names_tag(headers, header::IF_NONE_MATCH, etag, is_same_weakly), reads) {
            (false, _) => Conditional::Proceed,
            (true, true) => Conditional::NotModified,
            (true, false) => Conditional::PreconditionFailed,
        };
    }
    match date(headers, header::IF_MODIFIED_SINCE) {
        Some(date) if reads && seconds(last_modified) <= seconds(date) => Conditional::NotModified,
        _ => Conditional::Proceed,
    }
}

/// Bytes `start..=end_inclusive` of a file that has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub end_inclusive: u64,
}

impl Range {
    /// In bytes; at least one.
    pub fn length(self) -> u64 {
        self.end_inclusive - self.start + 1
    }

    /// The value of `Content-Range` of a 206.
    pub fn content_range(self, file_length: u64) -> String {
        format!("bytes {}-{}/{file_length}", self.start, self.end_inclusive)
    }
}

/// The value of `Content-Range` of a 416.
pub fn unsatisfied_content_range(file_length: u64) -> String {
    format!("bytes */{file_length}")
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangePlan {
    /// 200
    Whole,
    /// 206
    One(Range),
    /// 206 with a [`Multipart`] body, in the order asked
    Many(Vec<Range>),
    /// 416
    Unsatisfiable(Code),
}

/// Decides what a `Range` field means for this file. For GET after [`evaluate`] said proceed; RFC 9110 gives `Range` no
/// meaning for other methods. A malformed field is a 416, as on the platform; RFC 9110 would have it ignored.
pub fn plan_ranges(
    range: Option<&str>,
    if_range: Option<&str>,
    etag: &str,
    last_modified: SystemTime,
    length: u64,
) -> RangePlan {
    let Some(range) = range else {
        return RangePlan::Whole;
    };
    if if_range.is_some_and(|validator| !is_unchanged(validator, etag, last_modified)) {
        return RangePlan::Whole;
    }
    parse_ranges(range, length).unwrap_or_else(RangePlan::Unsatisfiable)
}

/// A `multipart/byteranges` body. Send each part's head and then its bytes of the file, and `closing` at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multipart {
    /// `multipart/byteranges; boundary=…`
    pub content_type: String,
    /// Of heads, bytes and closing together.
    pub content_length: u64,
    pub parts: Vec<Part>,
    pub closing: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub head: Bytes,
    pub range: Range,
}

impl Multipart {
    /// `content_type` is the file's own; `boundary` from [`boundary`], anew for each answer.
    pub fn new(ranges: &[Range], content_type: &str, file_length: u64, boundary: &str) -> Self {
        let parts: Vec<Part> = ranges
            .iter()
            .enumerate()
            .map(|(index, &range)| {
                // The line break before a delimiter belongs to the delimiter; the first one has nothing to end.
                let break_before = if index == 0 { "" } else { "\r\n" };
                let content_range = range.content_range(file_length);
                let head = format!(
                    "{break_before}--{boundary}\r\nContent-Type: {content_type}\r\n\
                     Content-Range: {content_range}\r\n\r\n"
                );
                Part { head: head.into(), range }
            })
            .collect();
        let closing = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        let parts_length: u64 = parts.iter().map(|part| part.head.len() as u64 + part.range.length()).sum();
        Multipart {
            content_type: format!("multipart/byteranges; boundary={boundary}"),
            content_length: parts_length + closing.len() as u64,
            parts,
            closing,
        }
    }
}

/// 24 random characters: a file cannot hold what nobody knew when it was written.
pub fn boundary() -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(24).collect()
}

/// One output of a deployment, as its listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    pub name: String,
    pub is_dir: bool,
    pub is_function: bool,
}

/// Lists a folder: folders first, then by name, functions with a λ. `path` is the folder's, not percent-encoded; it may or
/// may not end in a slash, so links are absolute.
pub fn listing_page(path: &str, entries: &[ListEntry]) -> Bytes {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let here = folder_href(&segments);

    let mut sorted: Vec<&ListEntry> = entries.iter().collect();
    sorted.sort_by_cached_key(|entry| (!entry.is_dir, entry.name.to_lowercase(), &entry.name));

    let mut items = String::new();
    if let Some((_, parents)) = segments.split_last() {
        push_item(&mut items, "", &folder_href(parents), "../");
    }
    for entry in sorted {
        let slash = if entry.is_dir { "/" } else { "" };
        let mark = if entry.is_function { "λ" } else { "" };
        let href = format!("{here}{}{slash}", utf8_percent_encode(&entry.name, ENCODED));
        push_item(&mut items, mark, &href, &format!("{}{slash}", entry.name));
    }
    if entries.is_empty() {
        items.push_str("<li class=\"empty\">Nothing here</li>\n");
    }

    let mut title = String::from("/");
    for segment in &segments {
        title.extend([segment, "/"]);
    }
    let title = escape_html(&title);
    Bytes::from(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>Index of {title}</title>\n<style>{LISTING_STYLE}</style>\n</head>\n\
         <body>\n<main>\n<h1><span>Index of </span>{title}</h1>\n<ul>\n{items}</ul>\n\
         </main>\n</body>\n</html>\n"
    ))
}

/// What mime_guess does not know, or says otherwise than the registry that browsers and the platform follow.
fn corrected_type(extension: &str) -> Option<&'static str> {
    Some(match extension {
        // RFC 9239; one type for all of JavaScript.
        "js" | "mjs" | "cjs" => "text/javascript",
        "jsx" => "text/jsx",
        "mdx" => "text/mdx",
        "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "wasm" => "application/wasm",
        "toml" => "application/toml",
        "yaml" | "yml" => "text/yaml",
        "vcf" => "text/vcard",
        "manifest" | "appcache" => "text/cache-manifest",
        // XML says its encoding inside; `text/xml` would overrule that.
        "xml" | "xsl" => "application/xml",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "otf" => "font/otf",
        "ico" => "image/vnd.microsoft.icon",
        "avif" | "avifs" => "image/avif",
        "m4a" => "audio/mp4",
        // HTTP Live Streaming, far more often than TypeScript sources.
        "ts" => "video/mp2t",
        "m4s" => "video/iso.segment",
        "m3u8" => "application/vnd.apple.mpegurl",
        "usdz" => "model/vnd.usdz+zip",
        "tgz" => "application/gzip",
        "zst" => "application/zstd",
        _ => return None,
    })
}

/// As the mime-types package decides: text, and the few application types that are text without saying so.
fn is_text(media_type: &str) -> bool {
    media_type.starts_with("text/") || matches!(media_type, "application/json" | "application/manifest+json")
}

fn seconds(time: SystemTime) -> u64 {
    // A file from before 1970 has a clock problem; it counts as old.
    time.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}

/// A date that is malformed or given twice is as good as absent (RFC 9110 section 13.1.3).
fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    match values.next() {
        None => httpdate::parse_http_date(value.trim()).ok(),
        Some(_) => None,
    }
}

fn is_same_strongly(a: &[u8], b: &[u8]) -> bool {
    a == b && !a.starts_with(b"W/")
}

fn is_same_weakly(a: &[u8], b: &[u8]) -> bool {
    a.strip_prefix(b"W/").unwrap_or(a) == b.strip_prefix(b"W/").unwrap_or(b)
}

/// Whether the list in this field has the tag, or is `*`. What follows a malformed element is not looked at.
fn names_tag(headers: &HeaderMap, name: HeaderName, etag: &str, is_same: fn(&[u8], &[u8]) -> bool) -> bool {
    headers.get_all(name).iter().any(|value| {
        let mut rest = value.as_bytes().trim_ascii();
        if rest == b"*" {
            return true;
        }
        while let Some((tag, after)) = next_tag(rest) {
            if is_same(tag, etag.as_bytes()) {
                return true;
            }
            rest = after;
        }
        false
    })
}

/// Takes one entity tag off a list. A comma may stand inside the quotes, so splitting at commas would not do.
fn next_tag(list: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = list.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b','))?;
    let list = &list[start..];
    let prefix = if list.starts_with(b"W/") { 2 } else { 0 };
    if list.get(prefix) != Some(&b'"') {
        return None;
    }
    let opaque = prefix + 1;
    let end = opaque + list[opaque..].iter().position(|&byte| byte == b'"')? + 1;
    Some(list.split_at(end))
}

/// `If-Range` compares strongly: parts of two versions must never be joined (RFC 9110 section 13.1.5).
fn is_unchanged(validator: &str, etag: &str, last_modified: SystemTime) -> bool {
    let validator = validator.trim();
    if validator.starts_with('"') || validator.starts_with("W/") {
        return is_same_strongly(validator.as_bytes(), etag.as_bytes());
    }
    httpdate::parse_http_date(validator).is_ok_and(|date| seconds(date) == seconds(last_modified))
}

fn parse_ranges(field: &str, length: u64) -> Result<RangePlan, Code> {
    let (unit, set) = field.split_once('=').ok_or(Code::RangeMissingUnit)?;
    match unit.trim() {
        "" => return Err(Code::RangeMissingUnit),
        unit if !unit.eq_ignore_ascii_case("bytes") => return Err(Code::RangeUnitNotSupported),
        _ => {}
    }
    // Empty list elements are allowed and mean nothing (RFC 9110 section 5.6.1.2).
    let groups = set.split(',').map(str::trim).filter(|group| !group.is_empty());
    let groups: Vec<&str> = groups.take(RANGES_MAX + 1).collect();
    if groups.is_empty() {
        return Err(Code::RangeGroupNotValid);
    }
    if groups.len() > RANGES_MAX {
        return Err(Code::TooManyRanges);
    }
    let wishes = groups.into_iter().map(Wish::parse).collect::<Result<Vec<_>, _>>()?;

    // An empty file has no byte to name in a Content-Range; all of it is the answer to any part of it.
    if length == 0 {
        return Ok(RangePlan::Whole);
    }
    let ranges: Vec<Range> = wishes.into_iter().filter_map(|wish| wish.within(length)).collect();
    let asked: u128 = ranges.iter().map(|range| u128::from(range.length())).sum();
    match ranges[..] {
        [] => Err(Code::RangeStartNotValid),
        [one] => Ok(RangePlan::One(one)),
        // Overlaps that add up to more than the file are an amplification, not a wish (RFC 9110 section 17.15).
        _ if asked > u128::from(length) => Err(Code::TooManyRanges),
        _ => Ok(RangePlan::Many(ranges)),
    }
}

/// One element of the field, before it is known whether the file is that long.
enum Wish {
    From(u64),
    FromTo(u64, u64),
    Last(u64),
}

impl Wish {
    fn parse(group: &str) -> Result<Wish, Code> {
        let (start, end) = group.split_once('-').ok_or(Code::RangeGroupNotValid)?;
        match (start, end) {
            ("", "") => Err(Code::RangeGroupNotValid),
            ("", last) => number(last).map(Wish::Last).ok_or(Code::RangeEndNotValid),
            (start, "") => number(start).map(Wish::From).ok_or(Code::RangeStartNotValid),
            (start, end) => {
                let start = number(start).ok_or(Code::RangeStartNotValid)?;
                let end = number(end).ok_or(Code::RangeEndNotValid)?;
                if end < start {
                    return Err(Code::RangeEndNotValid);
                }
                Ok(Wish::FromTo(start, end))
            }
        }
    }

    /// What of it a file of this length, which is not 0, can give.
    fn within(self, length: u64) -> Option<Range> {
        let (start, end) = match self {
            Wish::From(start) => (start, length - 1),
            Wish::FromTo(start, end) => (start, end.min(length - 1)),
            Wish::Last(0) => return None,
            Wish::Last(last) => (length.saturating_sub(last), length - 1),
        };
        (start < length).then_some(Range { start, end_inclusive: end })
    }
}

/// Digits only (`parse` alone would take a plus sign); a number too large is past the end of every file.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

/// Always begins with one slash: `//name/` would be a link to another host.
fn folder_href(segments: &[&str]) -> String {
    let mut href = String::from("/");
    for segment in segments {
        href.extend(utf8_percent_encode(segment, ENCODED));
        href.push('/');
    }
    href
}

fn push_item(items: &mut String, mark: &str, href: &str, label: &str) {
    let label = escape_html(label);
    let mark = match mark {
        "" => String::from("<i></i>"),
        mark => format!("<i title=\"function\">{mark}</i>"),
    };
    // Writing to a string does not fail; `href` is percent-encoded, so it needs no escaping.
    let _ = writeln!(items, "<li><a href=\"{href}\">{mark}{label}</a></li>");
}

const LISTING_STYLE: &str = "
:root{--ink:#171717;--soft:#666;--line:#e5e5e5;--hover:#f5f5f5;--paper:#fff}
@media (prefers-color-scheme:dark){:root{--ink:#ededed;--soft:#a1a1a1;--line:#2e2e2e;--hover:#1a1a1a;--paper:#0a0a0a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.6 system-ui,sans-serif}
main{max-width:44rem;margin:0 auto;padding:4rem 1.5rem;overflow-wrap:anywhere}
h1{margin:0 0 1.5rem;font-size:1.25rem;font-weight:600;letter-spacing:-.01em}
h1 span{color:var(--soft);font-weight:400}
ul{margin:0;padding:0;list-style:none;border:1px solid var(--line);border-radius:8px;overflow:hidden}
li+li{border-top:1px solid var(--line)}
a,.empty{display:flex;padding:.5rem 1rem;color:inherit;text-decoration:none;font:.875rem/1.6 ui-monospace,monospace}
a:hover,a:focus-visible{background:var(--hover)}
i{flex:none;width:1.5rem;color:var(--soft);font-style:normal}
.empty{color:var(--soft)}
";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TAG: &str = "\"0123456789abcdef0123456789abcdef\"";
    /// Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110, and a bit: files know more than headers can say.
    const MODIFIED: Duration = Duration::from_millis(784_111_777_900);
    const SAME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    #[test]
    fn content_type_follows_the_extension() {
        let check = |path: &str, expected: &str| {
            assert_eq!(content_type(path), expected, "path: {path:?}");
        };
        check("", "application/octet-stream");
        check("LICENSE", "application/octet-stream");
        check("/v1.2/binary", "application/octet-stream");
        check(".html", "application/octet-stream");
        check("a.", "application/octet-stream");
        check("a.unheard-of", "application/octet-stream");
        check("a.html.", "application/octet-stream");
        check("/index.html", "text/html; charset=utf-8");
        check("/INDEX.HTML", "text/html; charset=utf-8");
        check("a.b.css", "text/css; charset=utf-8");
        check("a.js", "text/javascript; charset=utf-8");
        check("a.mjs", "text/javascript; charset=utf-8");
        check("a.cjs", "text/javascript; charset=utf-8");
        check("a.js.map", "application/json; charset=utf-8");
        check("a.json", "application/json; charset=utf-8");
        check("site.webmanifest", "application/manifest+json; charset=utf-8");
        check("a.md", "text/markdown; charset=utf-8");
        check("robots.txt", "text/plain; charset=utf-8");
        check("sitemap.xml", "application/xml");
        check("a.svg", "image/svg+xml");
        check("a.wasm", "application/wasm");
        check("a.avif", "image/avif");
        check("a.webp", "image/webp");
        check("favicon.ico", "image/vnd.microsoft.icon");
        check("a.woff", "font/woff");
        check("a.woff2", "font/woff2");
        check("a.pdf", "application/pdf");
        check("seg-1.ts", "video/mp2t");
        check("a.mp4", "video/mp4");
    }

    #[test]
    fn content_disposition_cannot_be_broken_out_of() {
        let check = |name: &str, expected: &str| {
            let value = content_disposition(name);
            assert_eq!(value, format!("inline; {expected}"), "name: {name:?}");
            assert!(http::HeaderValue::from_str(&value).is_ok(), "name: {name:?}");
        };
        check("a\r\nset-cookie: x", "filename=\"a__set-cookie: x\"");
        check("a\"; x=\"b", "filename=\"a\\\"; x=\\\"b\"");
        check("a\\b", "filename=\"a\\\\b\"");
        check("a\0\u{7f}", "filename=\"a__\"");
        check("", "filename=\"\"");
        check("naïve €.txt", "filename=\"na_ve _.txt\"; filename*=UTF-8''na%C3%AFve%20%E2%82%AC.txt");
        check("100%.txt", "filename=\"100%.txt\"; filename*=UTF-8''100%25.txt");
        check("it's (1).txt", "filename=\"it's (1).txt\"");
        check("manifest.json", "filename=\"manifest.json\"");
    }

    #[test]
    fn etag_is_strong_and_has_32_digits() {
        let tag = etag(blake3::hash(b"hello").as_bytes());
        assert_eq!(tag, "\"ea8f163db38682925e4491c5e58d4bb3\"");
        assert_eq!(etag(&[0x0a; 16]), format!("\"{}\"", "0a".repeat(16)));
    }

    #[test]
    fn preconditions_are_weighed_in_order() {
        use Conditional::{NotModified, PreconditionFailed, Proceed};
        let check = |method: Method, tag: &str, fields: &[(&str, &str)], expected: Conditional| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                let name: HeaderName = name.parse().unwrap();
                headers.append(name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            let found = evaluate(&method, &headers, tag, UNIX_EPOCH + MODIFIED);
            assert_eq!(found, expected, "{method} {tag} {fields:?}");
        };
        let get = |fields: &[(&str, &str)], expected| check(Method::GET, TAG, fields, expected);
        let weak = format!("W/{TAG}");
        let list = format!("\"a\", , \"b,c\" ,{weak}");

        // Malformed
        get(&[("if-none-match", "")], Proceed);
        get(&[("if-none-match", "0123456789abcdef0123456789abcdef")], Proceed);
        get(&[("if-none-match", "\"0123456789abcdef0123456789abcdef")], Proceed);
        get(&[("if-none-match", "w/\"x\", *")], Proceed);
        get(&[("if-none-match", "naïve")], Proceed);
        get(&[("if-match", "")], PreconditionFailed);
        get(&[("if-modified-since", "yesterday")], Proceed);
        get(&[("if-modified-since", AFTER), ("if-modified-since", AFTER)], Proceed);
        get(&[("if-unmodified-since", "yesterday")], Proceed);

        // Tags
        get(&[("if-none-match", TAG)], NotModified);
        get(&[("if-none-match", &weak)], NotModified);
        get(&[("if-none-match", &list)], NotModified);
        get(&[("if-none-match", " * ")], NotModified);
        get(&[("if-none-match", "\"a\"")], Proceed);
        get(&[("if-none-match", "\"a\""), ("if-none-match", TAG)], NotModified);
        get(&[("if-match", TAG)], Proceed);
        get(&[("if-match", "*")], Proceed);
        get(&[("if-match", &weak)], PreconditionFailed);
        get(&[("if-match", "\"a\"")], PreconditionFailed);
        check(Method::HEAD, TAG, &[("if-none-match", TAG)], NotModified);
        check(Method::POST, TAG, &[("if-none-match", TAG)], PreconditionFailed);
        check(Method::POST, TAG, &[("if-none-match", "\"a\"")], Proceed);
        check(Method::GET, &weak, &[("if-none-match", TAG)], NotModified);
        check(Method::GET, &weak, &[("if-match", &weak)], PreconditionFailed);

        // Dates
        get(&[("if-modified-since", SAME)], NotModified);
        get(&[("if-modified-since", AFTER)], NotModified);
        get(&[("if-modified-since", BEFORE)], Proceed);
        get(&[("if-modified-since", "Sunday, 06-Nov-94 08:49:37 GMT")], NotModified);
        check(Method::POST, TAG, &[("if-modified-since", SAME)], Proceed);
        get(&[("if-unmodified-since", SAME)], Proceed);
        get(&[("if-unmodified-since", BEFORE)], PreconditionFailed);

        // Together
        get(&[("if-none-match", "\"a\""), ("if-modified-since", AFTER)], Proceed);
        get(&[("if-match", TAG), ("if-unmodified-since", BEFORE)], Proceed);
        get(&[("if-match", "\"a\""), ("if-none-match", TAG)], PreconditionFailed);
        get(&[("if-match", TAG), ("if-none-match", TAG)], NotModified);
        get(&[("if-unmodified-since", BEFORE), ("if-none-match", TAG)], PreconditionFailed);
        get(&[], Proceed);
    }

    fn plan(range: &str, length: u64) -> RangePlan {
        plan_ranges(Some(range), None, TAG, UNIX_EPOCH + MODIFIED, length)
    }

    #[test]
    fn bad_ranges_have_a_code() {
        let check = |range: &str, length: u64, expected: Code| {
            assert_eq!(plan(range, length), RangePlan::Unsatisfiable(expected), "range: {range:?}");
        };
        check("", 100, Code::RangeMissingUnit);
        check("0-10", 100, Code::RangeMissingUnit);
        check("=0-10", 100, Code::RangeMissingUnit);
        check("items=0-10", 100, Code::RangeUnitNotSupported);
        check("bytes=", 100, Code::RangeGroupNotValid);
        check("bytes=, ,", 100, Code::RangeGroupNotValid);
        check("bytes=5", 100, Code::RangeGroupNotValid);
        check("bytes=-", 100, Code::RangeGroupNotValid);
        check("bytes=a-5", 100, Code::RangeStartNotValid);
        check("bytes=+1-5", 100, Code::RangeStartNotValid);
        check("bytes=1.5-5", 100, Code::RangeStartNotValid);
        check("bytes=0-1,x-", 100, Code::RangeStartNotValid);
        check("bytes=1-b", 100, Code::RangeEndNotValid);
        check("bytes=1-2-3", 100, Code::RangeEndNotValid);
        check("bytes=--5", 100, Code::RangeEndNotValid);
        check("bytes=5-4", 100, Code::RangeEndNotValid);
        check("bytes=100-", 100, Code::RangeStartNotValid);
        check("bytes=-0", 100, Code::RangeStartNotValid);
        check("bytes=99999999999999999999999-", 100, Code::RangeStartNotValid);
        check("bytes=200-300,400-", 100, Code::RangeStartNotValid);
        check("bytes=x-", 0, Code::RangeStartNotValid);
        check("bytes=0-,0-", 100, Code::TooManyRanges);
        check("bytes=0-50,50-99", 100, Code::TooManyRanges);
        check(&format!("bytes={}", vec!["0-0"; 17].join(",")), 100, Code::TooManyRanges);
        check(&format!("bytes={}", "x,".repeat(5_000)), 100, Code::TooManyRanges);
        check("bytes=0-,0-", u64::MAX, Code::TooManyRanges);
    }

    #[test]
    fn good_ranges_are_cut_to_the_file() {
        let check = |range: &str, expected: &[(u64, u64)]| {
            let found = match plan(range, 100) {
                RangePlan::One(range) => vec![range],
                RangePlan::Many(ranges) => ranges,
                other => panic!("{range:?}: {other:?}"),
            };
            let found: Vec<_> = found.iter().map(|r| (r.start, r.end_inclusive)).collect();
            assert_eq!(found, expected, "range: {range:?}");
        };
        check("bytes=0-0", &[(0, 0)]);
        check("Bytes = 0-9", &[(0, 9)]);
        check("bytes=0-", &[(0, 99)]);
        check("bytes=99-", &[(99, 99)]);
        check("bytes=90-18446744073709551616", &[(90, 99)]);
        check("bytes=-1", &[(99, 99)]);
        check("bytes=-500", &[(0, 99)]);
        check("bytes=500-,-10", &[(90, 99)]);
        check("bytes=50-99, 0-49", &[(50, 99), (0, 49)]);
        check("bytes=,0-0,,\t2-2,", &[(0, 0), (2, 2)]);
        assert_eq!(plan(&format!("bytes=0-0{}", ",1-1".repeat(15)), 16), {
            let mut ranges = vec![Range { start: 1, end_inclusive: 1 }; 16];
            ranges[0] = Range { start: 0, end_inclusive: 0 };
            RangePlan::Many(ranges)
        });
        assert_eq!(plan("bytes=0-", 0), RangePlan::Whole);
        assert_eq!(plan("bytes=5-9", 0), RangePlan::Whole);
    }

    #[test]
    fn if_range_compares_strongly() {
        let check = |range: &str, if_range: Option<&str>, whole: bool| {
            let plan = plan_ranges(Some(range), if_range, TAG, UNIX_EPOCH + MODIFIED, 100);
            assert_eq!(plan == RangePlan::Whole, whole, "{range:?} {if_range:?}");
        };
        check("bytes=0-9", Some(""), true);
        check("bytes=0-9", Some("\"a\""), true);
        check("bytes=0-9", Some(&format!("W/{TAG}")), true);
        check("bytes=0-9", Some("*"), true);
        check("bytes=0-9", Some("tomorrow"), true);
        check("bytes=0-9", Some(BEFORE), true);
        check("bytes=0-9", Some(AFTER), true);
        check("nonsense", Some("\"a\""), true);
        check("nonsense", Some(TAG), false);
        check("bytes=0-9", Some(TAG), false);
        check("bytes=0-9", Some(SAME), false);
        check("bytes=0-9", None, false);
        let none = plan_ranges(None, Some(TAG), TAG, UNIX_EPOCH + MODIFIED, 100);
        assert_eq!(none, RangePlan::Whole);
    }

    #[test]
    fn multipart_is_as_long_as_it_says() {
        let file = b"0123456789";
        let ranges = [Range { start: 0, end_inclusive: 1 }, Range { start: 9, end_inclusive: 9 }];
        let multipart = Multipart::new(&ranges, "text/plain; charset=utf-8", 10, "XX");
        let mut body = Vec::new();
        for part in &multipart.parts {
            body.extend_from_slice(&part.head);
            body.extend_from_slice(&file[part.range.start as usize..=part.range.end_inclusive as usize]);
        }
        body.extend_from_slice(&multipart.closing);

        assert_eq!(multipart.content_type, "multipart/byteranges; boundary=XX");
        assert_eq!(body.len() as u64, multipart.content_length);
        assert_eq!(
            std::str::from_utf8(&body).unwrap(),
            "--XX\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: bytes 0-1/10\r\n\r\n01\r\n\
             --XX\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: bytes 9-9/10\r\n\r\n9\r\n\
             --XX--\r\n"
        );
        assert_eq!(boundary().len(), 24);
        assert_ne!(boundary(), boundary());
        assert_eq!(unsatisfied_content_range(10), "bytes */10");
    }

    fn entry(name: &str) -> ListEntry {
        ListEntry { name: name.to_owned(), is_dir: false, is_function: false }
    }

    #[test]
    fn listing_escapes_names_and_encodes_links() {
        let check = |path: &str, entry: ListEntry, expected: &str| {
            let page = listing_page(path, &[entry]);
            let html = std::str::from_utf8(&page).unwrap();
            assert!(html.contains(expected), "path: {path:?}\n{html}");
            assert!(!html.contains("<script"), "{html}");
        };
        check(
            "/",
            entry("<script>\"'&.txt"),
            "<a href=\"/%3Cscript%3E%22%27%26.txt\"><i></i>&lt;script&gt;&quot;&#39;&amp;.txt</a>",
        );
        check("/", entry("javascript:alert(1)"), "href=\"/javascript%3Aalert%281%29\"");
        check("/", entry("a/b?c#d%41 é"), "href=\"/a%2Fb%3Fc%23d%2541%20%C3%A9\"");
        check("//evil.example", entry("a"), "href=\"/evil.example/a\"");
        check("/<script>/", entry("a"), "<title>Index of /&lt;script&gt;/</title>");
        check("/docs", entry("a"), "<a href=\"/\"><i></i>../</a>");
        check("/docs/über uns/", entry("a"), "<a href=\"/docs/\"><i></i>../</a>");
        check("/docs/über uns/", entry("a"), "href=\"/docs/%C3%BCber%20uns/a\"");
    }

    #[test]
    fn listing_has_folders_first_and_marks_functions() {
        let entries = [
            entry("b.txt"),
            ListEntry { is_function: true, ..entry("date") },
            entry("A.txt"),
            ListEntry { is_dir: true, ..entry("z") },
            ListEntry { is_dir: true, ..entry("api") },
        ];
        let page = listing_page("/", &entries);
        let html = std::str::from_utf8(&page).unwrap();
        let labels: Vec<&str> = html
            .lines()
            .filter_map(|line| line.strip_suffix("</a></li>"))
            .filter_map(|line| line.rsplit_once("</i>"))
            .map(|(_, label)| label)
            .collect();
        assert_eq!(labels, ["api/", "z/", "A.txt", "b.txt", "date"]);
        assert!(html.contains("<i title=\"function\">λ</i>date"), "{html}");
        assert!(!html.contains("../"), "the root has no parent");
        assert!(!html.contains("Nothing here"));

        let empty = listing_page("/empty/", &[]);
        assert!(std::str::from_utf8(&empty).unwrap().contains("Nothing here"));
    }
}
