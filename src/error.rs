//! Every failure that a client can see: its status, its public code and the page that shows it.
//! The client learns the code and the request id and nothing else; the cause goes to the log, at the place that knows it.

use std::{borrow::Cow, fmt};

use bytes::Bytes;

/// One row a code: the enum, the status and the name on the wire cannot drift apart.
macro_rules! codes {
    ($($variant:ident $status:literal $name:literal,)+) => {
        /// A public code, as sent in `x-now-error` and shown on the page.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($variant,)+
        }

        impl Code {
            const ALL: &[Code] = &[$(Code::$variant,)+];

            /// The code of that name on the wire.
            pub fn named(name: &str) -> Option<Code> {
                Code::ALL.iter().copied().find(|code| code.as_str() == name)
            }

            pub fn status(self) -> u16 {
                match self {
                    $(Code::$variant => $status,)+
                }
            }

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Code::$variant => $name,)+
                }
            }
        }
    };
}

// Absent on purpose: images, middleware, edge functions and sandboxes, which Perigee does not have, and the codes of
// billing and of the firewall (DEPLOYMENT_BLOCKED, DEPLOYMENT_DISABLED).
codes! {
    // The request
    MalformedRequestHeader 400 "MALFORMED_REQUEST_HEADER",
    InvalidRequestMethod 405 "INVALID_REQUEST_METHOD",
    UrlTooLong 414 "URL_TOO_LONG",
    RequestHeaderTooLarge 431 "REQUEST_HEADER_TOO_LARGE",
    RangeMissingUnit 416 "RANGE_MISSING_UNIT",
    RangeUnitNotSupported 416 "RANGE_UNIT_NOT_SUPPORTED",
    RangeStartNotValid 416 "RANGE_START_NOT_VALID",
    RangeEndNotValid 416 "RANGE_END_NOT_VALID",
    RangeGroupNotValid 416 "RANGE_GROUP_NOT_VALID",
    TooManyRanges 416 "TOO_MANY_RANGES",

    // What it asks for
    NotFound 404 "NOT_FOUND",
    ResourceNotFound 404 "RESOURCE_NOT_FOUND",
    DeploymentNotFound 404 "DEPLOYMENT_NOT_FOUND",
    DeploymentDeleted 410 "DEPLOYMENT_DELETED",
    DeploymentPaused 503 "DEPLOYMENT_PAUSED",

    // Functions
    FunctionPayloadTooLarge 413 "FUNCTION_PAYLOAD_TOO_LARGE",
    FunctionInvocationFailed 500 "FUNCTION_INVOCATION_FAILED",
    FunctionResponsePayloadTooLarge 500 "FUNCTION_RESPONSE_PAYLOAD_TOO_LARGE",
    NoResponseFromFunction 502 "NO_RESPONSE_FROM_FUNCTION",
    BodyNotAStringFromFunction 502 "BODY_NOT_A_STRING_FROM_FUNCTION",
    FunctionThrottled 503 "FUNCTION_THROTTLED",
    FunctionInvocationTimeout 504 "FUNCTION_INVOCATION_TIMEOUT",

    // Routing, and what it forwards to
    RouterCannotMatch 502 "ROUTER_CANNOT_MATCH",
    RouterTooManyHasSelections 502 "ROUTER_TOO_MANY_HAS_SELECTIONS",
    TooManyFilesystemChecks 502 "TOO_MANY_FILESYSTEM_CHECKS",
    TooManyForks 502 "TOO_MANY_FORKS",
    RouterExternalTargetConnectionError 502 "ROUTER_EXTERNAL_TARGET_CONNECTION_ERROR",
    RouterExternalTargetHandshakeError 502 "ROUTER_EXTERNAL_TARGET_HANDSHAKE_ERROR",
    RouterExternalTargetError 502 "ROUTER_EXTERNAL_TARGET_ERROR",
    DnsHostnameEmpty 502 "DNS_HOSTNAME_EMPTY",
    DnsHostnameNotFound 502 "DNS_HOSTNAME_NOT_FOUND",
    DnsHostnameResolveFailed 502 "DNS_HOSTNAME_RESOLVE_FAILED",
    DnsHostnameResolvedPrivate 404 "DNS_HOSTNAME_RESOLVED_PRIVATE",
    DnsHostnameServerError 502 "DNS_HOSTNAME_SERVER_ERROR",
    InfiniteLoopDetected 508 "INFINITE_LOOP_DETECTED",

    // Ours: the log has the cause
    InternalCacheError 500 "INTERNAL_CACHE_ERROR",
    InternalCacheKeyTooLong 500 "INTERNAL_CACHE_KEY_TOO_LONG",
    InternalCacheLockFull 500 "INTERNAL_CACHE_LOCK_FULL",
    InternalCacheLockTimeout 500 "INTERNAL_CACHE_LOCK_TIMEOUT",
    InternalDeploymentFetchFailed 500 "INTERNAL_DEPLOYMENT_FETCH_FAILED",
    InternalFunctionInvocationFailed 500 "INTERNAL_FUNCTION_INVOCATION_FAILED",
    InternalFunctionInvocationTimeout 500 "INTERNAL_FUNCTION_INVOCATION_TIMEOUT",
    InternalFunctionNotFound 500 "INTERNAL_FUNCTION_NOT_FOUND",
    InternalFunctionNotReady 500 "INTERNAL_FUNCTION_NOT_READY",
    InternalFunctionServiceUnavailable 500 "INTERNAL_FUNCTION_SERVICE_UNAVAILABLE",
    InternalRouterCannotParsePath 500 "INTERNAL_ROUTER_CANNOT_PARSE_PATH",
    InternalStaticRequestFailed 500 "INTERNAL_STATIC_REQUEST_FAILED",
    InternalUnarchiveFailed 500 "INTERNAL_UNARCHIVE_FAILED",
    InternalUnexpectedError 500 "INTERNAL_UNEXPECTED_ERROR",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the client can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
    Html,
}

impl Format {
    /// The platform looks for a word in `Accept` and does not weigh; so a client that names JSON at all gets JSON.
    pub fn negotiate(accept: Option<&str>) -> Format {
        let accept = accept.unwrap_or_default().to_ascii_lowercase();
        if accept.contains("json") {
            Format::Json
        } else if accept.contains("html") {
            Format::Html
        } else {
            Format::Text
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; charset=utf-8",
            Format::Json => "application/json; charset=utf-8",
            Format::Html => "text/html; charset=utf-8",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub content_type: &'static str,
    pub body: Bytes,
}

/// The page of a failure of the platform.
pub fn page(format: Format, code: Code, request_id: &str) -> Page {
    error_page(format, code.status(), code.as_str(), request_id)
}

/// The page of a status that a route asks for without naming anything to show.
pub fn status_page(format: Format, status: u16, request_id: &str) -> Page {
    error_page(format, status, status_name(status), request_id)
}

/// The body that goes with a `Location`, for those who do not follow it by themselves.
pub fn redirect_page(format: Format, status: u16, location: &str) -> Page {
    let body = match format {
        Format::Text => "Redirecting...\n".to_owned(),
        // The status is a string here: the platform's own shape.
        Format::Json => {
            let status = status.to_string();
            format!("{}\n", serde_json::json!({"redirect": location, "status": status}))
        }
        Format::Html => redirect_html(status, location),
    };
    Page { content_type: format.content_type(), body: body.into() }
}

/// Makes text safe inside an element and inside an attribute in double or single quotes.
pub(crate) fn escape_html(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

fn error_page(format: Format, status: u16, code: &str, request_id: &str) -> Page {
    let message = message(status);
    let body = match format {
        Format::Text => format!("{message}\n\n{code}\n\n{request_id}\n"),
        Format::Json => {
            let error = serde_json::json!({"code": code, "message": message, "id": request_id});
            format!("{}\n", serde_json::json!({"error": error}))
        }
        Format::Html => error_html(status, message, code, request_id),
    };
    Page { content_type: format.content_type(), body: body.into() }
}

/// The platform has a sentence for these statuses only; for the others the code says enough.
fn message(status: u16) -> &'static str {
    match status {
        400 => "Bad request",
        402 => "Payment required",
        403 => "You don't have the required permissions",
        404 => "The page could not be found",
        405 => "Method not allowed",
        410 => "The deployment has been removed",
        413 => "Request Entity Too Large",
        429 => "Rate limited",
        500 => "A server error has occurred",
        501 => "Not implemented",
        502 => "An error occurred with this application",
        503 => "The deployment is currently unavailable",
        504 => "An error occurred with your deployment",
        508 => "Infinite loop detected",
        _ => "Error occurred",
    }
}

/// What stands where the code would be when there is only a status.
fn status_name(status: u16) -> &'static str {
    match status {
        400 => "BAD_REQUEST",
        402 => "PAYMENT_REQUIRED",
        403 => "FORBIDDEN",
        404 => "NOT_FOUND",
        405 => "NOT_ALLOWED",
        410 => "GONE",
        413 => "PAYLOAD_TOO_LARGE",
        429 => "RATE_LIMITED",
        500 => "INTERNAL_SERVER_ERROR",
        501 => "NOT_IMPLEMENTED",
        502 => "BAD_GATEWAY",
        503 => "SERVICE_UNAVAILABLE",
        504 => "GATEWAY_TIMEOUT",
        508 => "INFINITE_LOOP",
        _ => "UNKNOWN_ERROR",
    }
}

fn error_html(status: u16, message: &str, code: &str, request_id: &str) -> String {
    let message = escape_html(message);
    let code = escape_html(code);
    let id = escape_html(request_id);
    let content = format!(
        "<h1>{status}<span>: {code}</span></h1>\n<p>{message}.</p>\n\
         <dl>\n<div><dt>Code: </dt><dd>{code}</dd></div>\n<div><dt>ID: </dt><dd>{id}</dd></div>\n</dl>"
    );
    document(&format!("{status}: {code}"), &content)
}

fn redirect_html(status: u16, location: &str) -> String {
    let shown = escape_html(location);
    let target = if is_link(location) { format!("<a href=\"{shown}\">{shown}</a>") } else { shown.into_owned() };
    document(&format!("Redirecting ({status})"), &format!("<h1>Redirecting ({status})</h1>\n<p>{target}</p>"))
}

/// A location can hold what a visitor typed; `javascript:` in a link would run it in the deployment's origin.
fn is_link(location: &str) -> bool {
    let head = location.split(['/', '?', '#']).next().unwrap_or_default();
    match head.split_once(':') {
        None => true,
        Some((scheme, _)) => scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"),
    }
}

/// `title` and `content` are escaped already. Nothing external: the page must work when nothing else does.
fn document(title: &str, content: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n\
         <body>\n<main>\n{content}\n</main>\n</body>\n</html>\n"
    )
}

const STYLE: &str = "
:root{--ink:#171717;--soft:#666;--line:#e5e5e5;--paper:#fff}
@media (prefers-color-scheme:dark){:root{--ink:#ededed;--soft:#a1a1a1;--line:#2e2e2e;--paper:#0a0a0a}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--paper);color:var(--ink);font:16px/1.6 system-ui,sans-serif}
main{width:100%;max-width:38rem;padding:2rem;overflow-wrap:anywhere}
h1{margin:0;font-size:1.5rem;font-weight:600;letter-spacing:-.02em}
h1 span{color:var(--soft);font-weight:400}
p{margin:.5rem 0 0}
a{color:inherit}
dl{margin:2rem 0 0;padding-top:1rem;border-top:1px solid var(--line);color:var(--soft);font:.8125rem/1.8 ui-monospace,monospace}
dt,dd{display:inline;margin:0}
";

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sfo1::sfo1:abcde-1573000000000-0123456789ab";

    fn text_of(page: &Page) -> &str {
        std::str::from_utf8(&page.body).unwrap()
    }

    #[test]
    fn accept_is_searched_for_a_word() {
        let check = |accept: Option<&str>, expected: Format| {
            assert_eq!(Format::negotiate(accept), expected, "accept: {accept:?}");
        };
        check(None, Format::Text);
        check(Some(""), Format::Text);
        check(Some("*/*"), Format::Text);
        check(Some("image/avif,*/*;q=0.8"), Format::Text);
        check(Some("text/html,application/xhtml+xml,*/*;q=0.8"), Format::Html);
        check(Some("TEXT/HTML"), Format::Html);
        check(Some("text/html, application/json"), Format::Json);
        check(Some("application/problem+json"), Format::Json);
    }

    #[test]
    fn each_code_is_an_error_with_a_name_of_its_own() {
        let mut names = std::collections::HashSet::new();
        for code in Code::ALL {
            assert!((400..=599).contains(&code.status()), "{code}: {}", code.status());
            assert!(code.as_str().bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{code}");
            assert!(names.insert(code.as_str()), "{code} twice");
            // RESOURCE_NOT_FOUND and ResourceNotFound must be the same words, else a row is mixed up.
            let variant = format!("{code:?}").to_uppercase();
            assert_eq!(variant, code.as_str().replace('_', ""));
        }
    }

    #[test]
    fn text_is_message_code_and_id() {
        let check = |page: Page, expected: &str| {
            assert_eq!(page.content_type, "text/plain; charset=utf-8");
            assert_eq!(text_of(&page), format!("{expected}\n\n{ID}\n"));
        };
        check(page(Format::Text, Code::NotFound, ID), "The page could not be found\n\nNOT_FOUND");
        check(
            page(Format::Text, Code::FunctionInvocationTimeout, ID),
            "An error occurred with your deployment\n\nFUNCTION_INVOCATION_TIMEOUT",
        );
        check(page(Format::Text, Code::TooManyRanges, ID), "Error occurred\n\nTOO_MANY_RANGES");
        check(status_page(Format::Text, 405, ID), "Method not allowed\n\nNOT_ALLOWED");
        check(status_page(Format::Text, 410, ID), "The deployment has been removed\n\nGONE");
        check(status_page(Format::Text, 418, ID), "Error occurred\n\nUNKNOWN_ERROR");
    }

    #[test]
    fn json_holds_whatever_the_id_is() {
        let page = page(Format::Json, Code::FunctionThrottled, "a\"}\n");
        let value: serde_json::Value = serde_json::from_slice(&page.body).unwrap();
        assert_eq!(page.content_type, "application/json; charset=utf-8");
        assert_eq!(value["error"]["code"], "FUNCTION_THROTTLED");
        assert_eq!(value["error"]["message"], "The deployment is currently unavailable");
        assert_eq!(value["error"]["id"], "a\"}\n");
    }

    #[test]
    fn html_shows_the_code_and_escapes_the_id() {
        let page = page(Format::Html, Code::NotFound, "<script>alert('x')</script>&\"");
        let html = text_of(&page);
        assert!(!html.contains("<script"), "{html}");
        assert!(!html.contains("http:") && !html.contains("https:") && !html.contains("url("), "{html}");
        assert!(html.contains("<title>404: NOT_FOUND</title>"), "{html}");
        assert!(html.contains("The page could not be found"), "{html}");
        assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;"), "{html}");
    }

    #[test]
    fn redirect_bodies_are_the_platforms() {
        let location = "/a?b=\"<1>\"&c";
        assert_eq!(text_of(&redirect_page(Format::Text, 308, location)), "Redirecting...\n");

        let json = redirect_page(Format::Json, 308, location);
        assert_eq!(text_of(&json), "{\"redirect\":\"/a?b=\\\"<1>\\\"&c\",\"status\":\"308\"}\n");

        let html = redirect_page(Format::Html, 307, location);
        let escaped = "/a?b=&quot;&lt;1&gt;&quot;&amp;c";
        assert!(text_of(&html).contains("<h1>Redirecting (307)</h1>"));
        assert!(text_of(&html).contains(&format!("<a href=\"{escaped}\">{escaped}</a>")));
    }

    #[test]
    fn only_the_web_is_linked() {
        let check = |location: &str, linked: bool| {
            let page = redirect_page(Format::Html, 302, location);
            assert_eq!(text_of(&page).contains("href="), linked, "location: {location:?}");
        };
        check("javascript:alert(1)", false);
        check("JavaScript:alert(1)//", false);
        check("\tjava\nscript:alert(1)", false);
        check("data:text/html,x", false);
        check("/path:with/colon", true);
        check("?next=javascript:x", true);
        check("//other.example/", true);
        check("HTTPS://other.example/", true);
    }
}
