//! Which output answers a request: the deployment's routes, phase by phase, over its table of outputs.
//!
//! Pure: a [`Router`] is compiled when a deployment is loaded, and [`Router::resolve`] takes values and returns a value. The order is the one of
//! the platform's own resolver:
//!
//! ```text
//! routes before the filesystem -> filesystem -> routes after it -> miss, filesystem, rewrite, miss -> resource -> directory listing
//!   nothing found: error routes          found: hit routes, which only add headers
//! ```
//!
//! Three things differ from that resolver, on purpose. A route that has only `missing` can match. A status of 400 or more without a `dest` ends the
//! walk in the error phase, so that a route with `status: 404` hides a file instead of serving it with that status. And what a visitor sent is
//! encoded where it is put into a URL, and can never turn a redirect into one to another host.

mod filesystem;
mod matcher;

use std::borrow::Cow;
use std::fmt;

use http::header::{HeaderName, HeaderValue};

pub use filesystem::{Found, ListEntry, Output, Outputs, OutputsBuilder};
use matcher::{Captured, Facts, Index, Query, Route, Url};
pub use matcher::{ConditionKind, ConditionSpec, RouteMistake, RouteSpec, ValueSpec};

/// Look-ups in the table of outputs that a request may cause; the platform's number.
const FILESYSTEM_CHECKS_MAX: usize = 7;
/// Matching routes on the way of one request. Only `check` routes that lead to each other come near it.
const MATCHES_MAX: usize = 10_000;

/// What a request asks for, as far as routing reads it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method, in upper case.
    pub method: &'a str,
    /// The host, without the port.
    pub host: &'a str,
    /// The raw path, percent-encoded, with its leading `/`.
    pub path: &'a str,
    /// The query, without the `?`.
    pub query: Option<&'a str>,
    /// The request headers.
    pub headers: &'a http::HeaderMap,
}

/// What routing decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolution {
    /// Who answers.
    pub target: Target,
    /// The status that a route asks for, if one does.
    pub status: Option<u16>,
    /// Response headers of routes. The last [`Resolution::important`] of them also override those of a
    /// function, the others do not. A name that an important header has is not among the others.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How many of `headers`, at the end, are important.
    pub important: usize,
    /// The query that a function sees: the request's own, and after it what `dest` adds to it. `None` if that is nothing.
    pub query: Option<String>,
    /// Output path of the target, decoded.
    pub matched_path: Option<String>,
    /// The route that decided, as its place in the list that was compiled. None: the path itself named the output, or nothing did.
    pub route: Option<usize>,
}

/// Who answers a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A static file.
    Static(u32),
    /// A function.
    Function(u32),
    /// The client is sent elsewhere.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        status: u16,
        /// The `Location` header.
        location: String,
    },
    /// An absolute URL, with its query, to proxy to.
    External(String),
    /// The listing of a folder: what [`Outputs::list`] takes.
    Listing(String),
    /// A route ended with a status and nothing that would answer with it.
    Status(u16),
    /// Nothing is there.
    NotFound,
    /// The routes cannot be followed: a 502.
    Failed(RoutingError),
}

/// Why routes cannot be followed. The deployment's fault, not the visitor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutingError {
    /// More than seven look-ups for one request.
    TooManyFilesystemChecks,
    /// A pattern backtracked beyond its limit.
    CannotMatch,
}

impl RoutingError {
    /// The platform's code.
    pub fn code(self) -> &'static str {
        match self {
            RoutingError::TooManyFilesystemChecks => "TOO_MANY_FILESYSTEM_CHECKS",
            RoutingError::CannotMatch => "ROUTER_CANNOT_MATCH",
        }
    }
}

impl fmt::Display for RoutingError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            RoutingError::TooManyFilesystemChecks => "the routes look up more outputs for one request than is allowed",
            RoutingError::CannotMatch => "a route's pattern takes too many steps on this path",
        })
    }
}

impl std::error::Error for RoutingError {}

/// The parts of a route list, in the order in which they can take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Before,
    Filesystem,
    Resource,
    Miss,
    Rewrite,
    Hit,
    Error,
}

const HANDLES: [(&str, Phase); 6] = [
    ("filesystem", Phase::Filesystem),
    ("resource", Phase::Resource),
    ("miss", Phase::Miss),
    ("rewrite", Phase::Rewrite),
    ("hit", Phase::Hit),
    ("error", Phase::Error),
];
const PHASES: usize = HANDLES.len() + 1;

/// The compiled routes of a deployment.
#[derive(Debug, Default)]
pub struct Router {
    phases: [Routes; PHASES],
    /// Whether the list says `handle: filesystem`; without it the table is asked after all routes.
    has_filesystem: bool,
}

#[derive(Debug, Default)]
struct Routes {
    routes: Vec<Route>,
    index: Index,
}

impl Router {
    /// Compiles a route list, or says everything that is wrong with it.
    pub fn compile(specs: &[RouteSpec]) -> Result<Router, Vec<RouteMistake>> {
        let mut router = Router::default();
        let mut mistakes = Vec::new();
        let mut phase = Phase::Before;
        let mut seen = Vec::new();
        for (index, spec) in specs.iter().enumerate() {
            let Some(handle) = spec.handle.as_deref() else {
                check_phase_rules(index, spec, phase, &mut mistakes);
                router.phases[phase as usize].routes.extend(Route::compile(index, spec, &mut mistakes));
                continue;
            };
            let mistake = |expected: &str| RouteMistake {
                index,
                key: "handle".into(),
                found: handle.to_owned(),
                expected: expected.into(),
            };
            match HANDLES.iter().find(|(name, _)| *name == handle) {
                None => mistakes.push(mistake("filesystem, resource, miss, rewrite, hit or error")),
                Some(_) if spec.src.is_some() => mistakes.push(mistake("either `handle` or `src`")),
                Some((name, _)) if seen.contains(name) => mistakes.push(mistake("each phase once")),
                Some((name, next)) => {
                    seen.push(name);
                    phase = *next;
                }
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        router.has_filesystem = seen.contains(&"filesystem");
        for routes in &mut router.phases {
            routes.index = Index::of(&routes.routes);
        }
        Ok(router)
    }

    /// Finds who answers a request. `listing`: whether a folder without an index shows what is in it.
    pub fn resolve(&self, outputs: &Outputs, listing: bool, request: &Request<'_>) -> Resolution {
        let mut walk = Walk::new(self, outputs, request);
        if let Err(error) = walk.all(listing) {
            walk.answer = Some(Answer::Failed(error));
        }
        walk.finish()
    }
}

/// What `normalizeRoutes` of the platform asks of routes in the phases that come after the decision.
fn check_phase_rules(index: usize, spec: &RouteSpec, phase: Phase, mistakes: &mut Vec<RouteMistake>) {
    let mut mistake = |key: &str, found: &str, expected: &str| {
        mistakes.push(RouteMistake { index, key: key.into(), found: found.into(), expected: expected.into() });
    };
    match phase {
        Phase::Hit => {
            if let Some(dest) = &spec.dest {
                mistake("dest", dest, "no `dest` after `handle: hit`");
            }
            if let Some(status) = spec.status {
                mistake("status", &status.to_string(), "no `status` after `handle: hit`");
            }
            if !spec.continue_ {
                mistake("continue", "nothing", "`continue: true` after `handle: hit`");
            }
        }
        Phase::Miss if spec.dest.is_some() && !spec.check => {
            mistake("check", "nothing", "`check: true` beside `dest` after `handle: miss`")
        }
        Phase::Miss if spec.dest.is_none() && !spec.continue_ => {
            mistake("continue", "nothing", "`continue: true` or a `dest` after `handle: miss`")
        }
        _ => {}
    }
}

/// How a walk ended.
#[derive(Debug)]
enum Answer {
    Found(Output, String),
    Redirect(u16, Option<Url>),
    External(Url),
    Listing(String),
    Failed(RoutingError),
}

/// One request on its way through the phases. A step does nothing once there is an answer.
struct Walk<'r> {
    router: &'r Router,
    outputs: &'r Outputs,
    request: &'r Request<'r>,
    path: Cow<'r, str>,
    /// The query of the last `dest`. It replaces that of the one before.
    query: Query,
    status: Option<u16>,
    /// Whether a route chose the status, and not the error phase its 404.
    is_chosen: bool,
    /// Whether the status came without a `dest`, so that it stands for itself.
    status_ends: bool,
    headers: Vec<(HeaderName, HeaderValue)>,
    important: Vec<(HeaderName, HeaderValue)>,
    /// The first `Location` that a route gave; a `status` may follow in a later one.
    location: Option<Url>,
    answer: Option<Answer>,
    checks: usize,
    matches: usize,
    /// The path that was looked up last, in vain.
    missed: Option<String>,
    route: Option<usize>,
}

impl<'r> Walk<'r> {
    fn new(router: &'r Router, outputs: &'r Outputs, request: &'r Request<'r>) -> Walk<'r> {
        Walk {
            router,
            outputs,
            request,
            path: Cow::Borrowed(request.path),
            query: Query::new(),
            status: None,
            is_chosen: false,
            status_ends: false,
            headers: Vec::new(),
            important: Vec::new(),
            location: None,
            answer: None,
            checks: 0,
            matches: 0,
            missed: None,
            route: None,
        }
    }

    fn all(&mut self, listing: bool) -> Result<(), RoutingError> {
        self.run(Phase::Before)?;
        if self.router.has_filesystem {
            self.look_up()?;
        }
        self.run(Phase::Filesystem)?;
        self.check(Phase::Filesystem)?;
        self.run(Phase::Resource)?;
        if listing && self.is_open() && self.status.is_none() {
            self.answer = self.outputs.directory(&self.path).map(Answer::Listing);
        }
        if self.answer.is_none() {
            // A status below 400 without an output is an answer of its own (`status: 204`) and no error.
            match self.status {
                Some(status) if status < 400 => {}
                status => self.error(status.unwrap_or(404))?,
            }
        }
        self.hit()
    }

    /// Whether the phases before the error phase go on.
    fn is_open(&self) -> bool {
        self.answer.is_none() && !self.status_ends
    }

    fn error(&mut self, status: u16) -> Result<(), RoutingError> {
        self.status_ends = false;
        self.missed = None;
        self.checks = 0;
        self.status = Some(status);
        self.run(Phase::Error)
    }

    fn hit(&mut self) -> Result<(), RoutingError> {
        if matches!(self.answer, Some(Answer::Found(..))) { self.run(Phase::Hit) } else { Ok(()) }
    }

    /// Looks for an output behind the path once more, with the routes made for that.
    fn check(&mut self, phase: Phase) -> Result<(), RoutingError> {
        if phase != Phase::Miss {
            self.run(Phase::Miss)?;
        }
        self.look_up()?;
        self.run(Phase::Rewrite)?;
        if phase != Phase::Miss {
            self.run(Phase::Miss)?;
        }
        Ok(())
    }

    fn look_up(&mut self) -> Result<(), RoutingError> {
        if !self.is_open() || self.missed.as_deref() == Some(&*self.path) {
            return Ok(());
        }
        self.checks += 1;
        if self.checks > FILESYSTEM_CHECKS_MAX {
            return Err(RoutingError::TooManyFilesystemChecks);
        }
        match self.outputs.find(&self.path) {
            Some(found) => self.answer = Some(Answer::Found(found.output, found.path.to_owned())),
            None => self.missed = Some(self.path.to_string()),
        }
        Ok(())
    }

    /// Goes through the routes of a phase.
    fn run(&mut self, phase: Phase) -> Result<(), RoutingError> {
        if phase != Phase::Hit && !self.is_open() {
            return Ok(());
        }
        let router = self.router;
        let Some(Routes { routes, index }) =
            router.phases.get(phase as usize).filter(|routes| !routes.routes.is_empty())
        else {
            return Ok(());
        };
        let facts = Facts { host: self.request.host, query: self.request.query, headers: self.request.headers };
        let mut candidates = index.candidates(&self.path, 0).into_iter();
        while let Some(place) = candidates.next() {
            let Some(route) = routes.get(place as usize) else {
                break;
            };
            if phase == Phase::Error && route.status.is_some() && route.status != self.status {
                continue;
            }
            let path = self.path.clone();
            let Some(captured) =
                route.matches(self.request.method, &path, &facts).map_err(|_| RoutingError::CannotMatch)?
            else {
                continue;
            };
            self.matches += 1;
            if self.matches > MATCHES_MAX {
                return Err(RoutingError::TooManyFilesystemChecks);
            }
            if self.apply(route, &captured, phase)? {
                break;
            }
            if self.path != path {
                candidates = index.candidates(&self.path, place as usize + 1).into_iter();
            }
        }
        Ok(())
    }

    /// Does what a matching route says. True: it was the last one of its phase.
    fn apply(&mut self, route: &Route, captured: &Captured<'_>, phase: Phase) -> Result<bool, RoutingError> {
        self.add_headers(route, captured);
        if phase == Phase::Hit {
            return Ok(false);
        }
        let dest = route.dest.as_ref().map(|dest| dest.render(captured));
        if let Some(status) = route.status {
            self.status = Some(status);
            self.is_chosen |= phase != Phase::Error;
            self.status_ends = status >= 400 && dest.is_none() && !route.continues && phase != Phase::Error;
            self.route = Some(route.index);
            if matches!(status, 301 | 302 | 303 | 307 | 308) {
                self.answer = Some(Answer::Redirect(status, self.location.take().or(dest)));
                return Ok(true);
            }
        }
        if let Some(dest) = dest {
            self.route = Some(route.index);
            if self.is_elsewhere(&dest) {
                self.answer = Some(Answer::External(dest));
                return Ok(true);
            }
            self.path = Cow::Owned(one_slash_each(&dest.path));
            self.query = dest.query;
        }
        if route.check && phase == Phase::Rewrite {
            self.look_up()?;
            return Ok(!self.is_open());
        }
        if route.check && phase != Phase::Error {
            self.check(phase)?;
            return Ok(!self.is_open());
        }
        if route.continues {
            return Ok(false);
        }
        self.look_up()?;
        Ok(true)
    }

    /// Of two routes that set a header the first one wins, but cookies add up.
    fn add_headers(&mut self, route: &Route, captured: &Captured<'_>) {
        let headers = if route.important { &mut self.important } else { &mut self.headers };
        let before = headers.len();
        for (name, value) in &route.headers {
            let name = HeaderName::from_bytes(name.plain(captured).as_bytes());
            let value = HeaderValue::from_bytes(value.plain(captured).as_bytes());
            // A captured value that is no header value was made up by the visitor; the response goes without it.
            let (Ok(name), Ok(value)) = (name, value) else {
                continue;
            };
            let taken = headers.iter().take(before).any(|(other, _)| *other == name);
            if !taken || name == http::header::SET_COOKIE {
                headers.push((name, value));
            }
        }
        if self.location.is_none() {
            self.location = route.location.as_ref().map(|location| location.render(captured));
        }
    }

    /// Whether a `dest` is on another host. With a port it always is: another server on this machine is a usual target.
    fn is_elsewhere(&self, dest: &Url) -> bool {
        let host = dest.origin.as_deref().and_then(|origin| origin.split_once("//"));
        host.is_some_and(|(_, host)| !host.eq_ignore_ascii_case(self.request.host))
    }

    fn finish(mut self) -> Resolution {
        let mut query = None;
        let mut matched_path = None;
        let target = match self.answer.take() {
            Some(Answer::Found(output, path)) => {
                matched_path = Some(path);
                query = self.function_query();
                match output {
                    Output::Static(place) => Target::Static(place),
                    Output::Function(place) => Target::Function(place),
                }
            }
            Some(Answer::Redirect(status, Some(url))) => {
                Target::Redirect { status, location: location(url, self.request.query) }
            }
            // A redirect to nowhere: all that is known is its status.
            Some(Answer::Redirect(status, None)) => Target::Status(status),
            Some(Answer::External(url)) => external(url, self.request.query),
            Some(Answer::Listing(folder)) => Target::Listing(folder),
            Some(Answer::Failed(error)) => Target::Failed(error),
            None => {
                let status = self.status.filter(|_| self.is_chosen);
                status.map_or(Target::NotFound, Target::Status)
            }
        };
        let status = self.status.filter(|_| target != Target::NotFound);
        if let Some(location) = self.location.take().filter(|_| !matches!(target, Target::Redirect { .. })) {
            let value = HeaderValue::from_str(&self::location(location, None));
            self.headers.extend(value.ok().map(|value| (http::header::LOCATION, value)));
        }
        let important = self.important.len();
        let shadowed = |name: &HeaderName| self.important.iter().any(|(other, _)| other == name);
        let mut headers = self.headers;
        headers.retain(|(name, _)| *name == http::header::SET_COOKIE || !shadowed(name));
        headers.extend(self.important);
        Resolution { target, status, headers, important, query, matched_path, route: self.route }
    }

    fn function_query(&self) -> Option<String> {
        let own = self.request.query.unwrap_or_default();
        let merged = matcher::merge_queries(own, pairs(&self.query));
        (merged != own).then_some(merged)
    }
}

fn pairs(query: &Query) -> impl Iterator<Item = (&str, Option<&str>)> {
    query.iter().map(|(name, value)| (name.as_str(), value.as_deref()))
}

/// The path of a `dest`, with its leading slash and no doubled ones. `dest: "_render"` names an output as well.
fn one_slash_each(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 1);
    out.push('/');
    for character in path.chars() {
        let character = if character == '\\' { '/' } else { character };
        if character != '/' || !out.ends_with('/') {
            out.push(character);
        }
    }
    out
}

/// A `Location`. The request's query goes along, except for what the location names itself.
///
/// A path of ours begins with one slash. Without that, `^/(.*)/$` to `/$1` would send the visitor of `//evil.example/` there.
fn location(url: Url, request_query: Option<&str>) -> String {
    let path = if url.origin.is_none() && url.path.starts_with(['/', '\\']) {
        format!("/{}", url.path.trim_start_matches(['/', '\\']))
    } else {
        url.path
    };
    let named = matcher::merge_queries("", pairs(&url.query));
    let query = matcher::merge_queries(&named, matcher::query_pairs(request_query.unwrap_or_default()));
    let mut out = url.origin.unwrap_or_default();
    out.push_str(&path);
    if !query.is_empty() {
        out.push('?');
        out.push_str(&query);
    }
    if let Some(fragment) = url.fragment {
        out.push('#');
        out.push_str(&fragment);
    }
    visible(&out)
}

/// A URL in which whatever cannot stand in a header or a request line is encoded.
fn visible(url: &str) -> String {
    const UNSEEN: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b' ');
    percent_encoding::utf8_percent_encode(url, UNSEEN).to_string()
}

/// The URL to proxy to. A visitor cannot climb out of the path that the route names.
fn external(url: Url, request_query: Option<&str>) -> Target {
    let climbs = |segment: &str| segment.replace("%2e", ".").replace("%2E", ".") == "..";
    if url.path.split('/').any(climbs) {
        return Target::NotFound;
    }
    let query = matcher::merge_queries(request_query.unwrap_or_default(), pairs(&url.query));
    let slash = if url.path.is_empty() { "/" } else { "" };
    let mark = if query.is_empty() { "" } else { "?" };
    Target::External(visible(&format!("{}{}{slash}{mark}{query}", url.origin.unwrap_or_default(), url.path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::project::{UnknownKeys, read_routes};

    fn compile(routes: &str) -> Result<Router, Vec<RouteMistake>> {
        let (specs, mistakes) =
            read_routes(&serde_json::from_str(routes).expect("the row is JSON"), UnknownKeys::Ignored);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        Router::compile(&specs)
    }

    /// A path with λ in front is a function.
    fn table(paths: &[&str]) -> Outputs {
        let mut outputs = OutputsBuilder::new();
        for (place, path) in paths.iter().enumerate() {
            match path.strip_prefix('λ') {
                Some(path) => outputs.add(path, Output::Function(place as u32)),
                None => outputs.add(path, Output::Static(place as u32)),
            };
        }
        outputs.build()
    }

    fn headers(lines: &[&str]) -> http::HeaderMap {
        let mut headers = http::HeaderMap::new();
        for (name, value) in lines.iter().filter_map(|line| line.split_once(": ")) {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
            headers.append(name, HeaderValue::from_str(value).expect("a header value"));
        }
        headers
    }

    /// `asked` is `[METHOD ]PATH[?QUERY]`.
    fn resolve(router: &Router, outputs: &Outputs, asked: &str, lines: &[&str]) -> Resolution {
        let (method, url) = asked.split_once(' ').unwrap_or(("GET", asked));
        let (path, query) = url.split_once('?').map_or((url, None), |(path, query)| (path, Some(query)));
        router.resolve(outputs, true, &Request { method, host: "app.example", path, query, headers: &headers(lines) })
    }

    fn tell(resolution: &Resolution) -> String {
        let path = resolution.matched_path.as_deref().unwrap_or_default();
        let query = resolution.query.as_deref().map(|query| format!("?{query}")).unwrap_or_default();
        let status = resolution.status.map(|status| format!(" {status}")).unwrap_or_default();
        match &resolution.target {
            Target::Static(_) => format!("{path}{query}{status}"),
            Target::Function(_) => format!("λ{path}{query}{status}"),
            Target::Redirect { status, location } => format!("{status} {location}"),
            Target::External(url) => format!("-> {url}{status}"),
            Target::Listing(folder) => format!("list {folder}"),
            Target::Status(status) => format!("status {status}"),
            Target::NotFound => "nothing".to_owned(),
            Target::Failed(error) => error.code().to_owned(),
        }
    }

    #[track_caller]
    fn check(routes: &str, paths: &[&str], rows: &[(&str, &str)]) {
        let router = compile(routes).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        for (asked, expected) in rows {
            assert_eq!(tell(&resolve(&router, &table(paths), asked, &[])), *expected, "{asked}");
        }
    }

    #[track_caller]
    fn check_with(routes: &str, paths: &[&str], rows: &[(&str, &[&str], &str)]) {
        let router = compile(routes).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        for (asked, lines, expected) in rows {
            assert_eq!(tell(&resolve(&router, &table(paths), asked, lines)), *expected, "{asked} {lines:?}");
        }
    }

    #[track_caller]
    fn check_headers(routes: &str, paths: &[&str], asked: &str, important: usize, expected: &[&str]) {
        let router = compile(routes).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        let resolution = resolve(&router, &table(paths), asked, &[]);
        let told: Vec<String> = resolution
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("?")))
            .collect();
        assert_eq!(told, expected, "{asked}");
        assert_eq!(resolution.important, important, "{asked}");
    }

    #[test]
    fn every_broken_route_is_reported() {
        let routes = r#"[{"dest":"/x"},{"src":"("},{"handle":"nope"},{"handle":"hit"},{"src":"/x","dest":"/y"},{"handle":"miss"},{"src":"/a"},{"src":"/a","dest":"/b"},
            {"handle":"miss"},{"src":"/a","continue":true,"has":[{"type":"header"},{"type":"cookie","key":"a","value":"("},{"type":"query","key":"a","value":{"gt":"x","zz":1}},{"type":"host"}]}]"#;
        let mistakes = compile(routes).expect_err("nothing of this is right");
        let places: Vec<String> = mistakes.iter().map(|mistake| format!("{}.{}", mistake.index, mistake.key)).collect();
        assert_eq!(
            places,
            [
                "0.src",
                "1.src",
                "2.handle",
                "4.dest",
                "4.continue",
                "6.continue",
                "7.check",
                "8.handle",
                "9.has[0].key",
                "9.has[1].value",
                "9.has[2].value",
                "9.has[3].value"
            ]
        );
    }

    #[test]
    fn runaway_pattern_fails_the_request() {
        let asked = format!("/{}cb", "a".repeat(64));
        check(r#"[{"src":"/(?:(?!x)a|a)*b","dest":"/x"}]"#, &["/x"], &[(&asked, "ROUTER_CANNOT_MATCH"), ("/ab", "/x")]);
    }

    #[test]
    fn too_many_look_ups_fail_the_request() {
        let chain = |length: usize| -> String {
            let step = |number: usize| format!(r#"{{"src":"/{number}","dest":"/{}","check":true}}"#, number + 1);
            format!("[{}]", (0..length).map(step).collect::<Vec<_>>().join(","))
        };
        check(&chain(7), &["/7"], &[("/0", "/7")]);
        check(&chain(8), &["/8"], &[("/0", "TOO_MANY_FILESYSTEM_CHECKS")]);
    }

    #[test]
    fn odd_paths_find_nothing_and_are_not_redirected() {
        let paths = ["/index.html", "/a/b.txt"];
        check(
            "[]",
            &paths,
            &[
                ("//", "nothing"),
                ("/a//b.txt", "nothing"),
                ("/a%2fb.txt", "nothing"),
                ("/a/../a/b.txt", "nothing"),
                ("/a/b.txt%00", "nothing"),
                ("*", "nothing"),
                ("", "nothing"),
            ],
        );
    }

    #[test]
    fn without_routes_the_filesystem_answers() {
        let paths = ["/index.html", "/a/b.txt", "λ/api/date"];
        check(
            "[]",
            &paths,
            &[
                ("/", "/index.html"),
                ("/a/b.txt?x=1", "/a/b.txt"),
                ("/api/date", "λ/api/date"),
                ("/a", "list /a/"),
                ("/a/", "list /a/"),
                ("/api/", "list /api/"),
                ("/b", "nothing"),
            ],
        );
    }

    #[test]
    fn routes_before_the_filesystem_go_first() {
        let routes = r#"[{"src":"/about","dest":"/other.html"},{"src":"/gone.txt","status":410},{"src":"/tea","status":418,"dest":"/tea.txt"},{"src":"/empty","status":204},
            {"src":"/(.*)","dest":"/all.html","methods":["post"]}]"#;
        let paths = ["/about", "/other.html", "/gone.txt", "/tea.txt", "/all.html"];
        check(
            routes,
            &paths,
            &[
                ("/about", "/other.html"),
                ("/ABOUT", "/other.html"),
                ("/gone.txt", "status 410"),
                ("/tea", "/tea.txt 418"),
                ("/empty", "status 204"),
                ("POST /x", "/all.html"),
                ("/x", "nothing"),
            ],
        );
        check(
            r#"[{"src":"/About","dest":"/x","caseSensitive":true}]"#,
            &["/x"],
            &[("/about", "nothing"), ("/About", "/x")],
        );
        check(
            r#"[{"src":"/(.*)","dest":"/all.html"},{"handle":"filesystem"}]"#,
            &["/a", "/all.html"],
            &[("/a", "/all.html")],
        );
        check(
            r#"[{"handle":"filesystem"},{"src":"/(.*)","dest":"/all.html"}]"#,
            &["/a", "/all.html"],
            &[("/a", "/a"), ("/b", "/all.html")],
        );
    }

    #[test]
    fn status_404_hides_a_listing_and_a_file() {
        check(
            r#"[{"handle":"filesystem"},{"src":"/api(/.*)?","status":404}]"#,
            &["λ/api/date"],
            &[("/api", "status 404"), ("/api/date", "λ/api/date"), ("/", "list /")],
        );
        check(r#"[{"src":"/secret/.*","status":403}]"#, &["/secret/x"], &[("/secret/x", "status 403")]);
    }

    #[test]
    fn redirects_keep_the_query_and_stay_on_the_host() {
        let routes = r#"[{"src":"/old/(.*)","status":301,"headers":{"Location":"/new/$1"}},{"src":"/q","status":302,"headers":{"location":"/x?a=1#top"}},
            {"src":"/far","status":307,"headers":{"Location":"https://other.example/y"}},{"src":"/dest/(.*)","status":308,"dest":"/to/$1"},{"src":"/bare","status":303},
            {"src":"/(.*)/","status":308,"headers":{"Location":"/$1"}},{"src":"(/.*)~","status":308,"headers":{"Location":"$1"}}]"#;
        check(
            routes,
            &[],
            &[
                ("/old/a/b?x=1&y", "301 /new/a/b?x=1&y"),
                ("/q?a=2&b=3", "302 /x?a=1&b=3#top"),
                ("/far?a=1", "307 https://other.example/y?a=1"),
                ("/dest/z", "308 /to/z"),
                ("/bare", "status 303"),
                ("/a/?x", "308 /a?x"),
                ("//evil.example/", "308 /evil.example"),
                ("/\\evil.example/", "308 /%5Cevil.example"),
                ("//evil.example~", "308 /evil.example"),
                ("/old/a%0d%0ab", "301 /new/a%0d%0ab"),
            ],
        );
    }

    #[test]
    fn location_of_a_continuing_route_redirects_at_once() {
        // The first route of every Next.js build.
        let routes = r#"[{"src":"^(?:/((?:[^/]+?)(?:/(?:[^/]+?))*))/$","headers":{"Location":"/$1"},"status":308,"continue":true},{"src":"/(.*)","dest":"/x"}]"#;
        check(routes, &["/x"], &[("/a/b/?q=1", "308 /a/b?q=1"), ("/a", "/x")]);
        check(
            r#"[{"src":"/a","headers":{"Location":"/b"},"continue":true},{"src":"/.*","status":307}]"#,
            &[],
            &[("/a", "307 /b")],
        );
    }

    #[test]
    fn external_destinations_are_proxied() {
        let routes = r#"[{"src":"/p/(.*)","dest":"https://up.example/base/$1?k=v"},{"src":"/self","dest":"https://APP.example/x?a=1"},{"src":"/port","dest":"http://app.example:81"},
            {"src":"/h/(.*)","dest":"https://$1.up.example/"}]"#;
        check(
            routes,
            &["λ/x"],
            &[
                ("/p/a/b?q=1&k=2", "-> https://up.example/base/a/b?q=1&k=2"),
                ("/p/a", "-> https://up.example/base/a?k=v"),
                ("/p/../admin", "nothing"),
                ("/p/%2e%2E/admin", "nothing"),
                ("/self", "λ/x?a=1"),
                ("/port?x", "-> http://app.example:81/?x"),
                ("/h/evil.example%2f", "-> https://evil.example%252f.up.example/"),
                ("/h/evil.example/", "-> https://evil.example%2F.up.example/"),
            ],
        );
    }

    #[test]
    fn query_of_the_request_wins_and_that_of_dest_is_added() {
        let routes = r#"[{"src":"/u/(.*)","dest":"/f?id=$1&x=1"},{"src":"/two","dest":"/mid?a=1","continue":true},{"src":"/mid","dest":"/f?b=2"}]"#;
        check(
            routes,
            &["λ/f"],
            &[
                ("/u/7", "λ/f?id=7&x=1"),
                ("/u/7?x=2&y=%20", "λ/f?x=2&y=%20&id=7"),
                ("/u/7?%69d=8&x", "λ/f"),
                ("/u/a&x=9", "λ/f?id=a%26x%3D9&x=1"),
                ("/f?x=1", "λ/f"),
                ("/two", "λ/f?b=2"),
            ],
        );
    }

    #[test]
    fn has_and_missing_decide_and_capture() {
        let routes = r#"[
            {"src":"/h","has":[{"type":"header","key":"X-Seg","value":"/(?<seg>.+)"}],"dest":"/$seg.rsc"},
            {"src":"/c","has":[{"type":"cookie","key":"who"}],"dest":"/f?user=$who"},
            {"src":"/q","has":[{"type":"query","key":"page","value":{"gte":2,"lt":5}}],"dest":"/f"},
            {"src":"/host","has":[{"type":"host","value":"(?<sub>[a-z]+)\\.example"}],"dest":"/$sub?h=$host"},
            {"src":"/m","missing":[{"type":"header","key":"x-token","value":"ok"}],"status":401},
            {"src":"/m","dest":"/f"}]"#;
        check_with(
            routes,
            &["/a/b.rsc", "λ/f", "λ/app"],
            &[
                ("/h", &[], "nothing"),
                ("/h", &["x-seg: a/b"], "nothing"),
                ("/h", &["x-seg: /a/b"], "/a/b.rsc"),
                ("/h", &["x-seg: /../../etc/passwd?"], "nothing"),
                ("/c", &["cookie: a=1; who2=x"], "nothing"),
                ("/c", &["cookie: a=1; who=jo%26admin=1"], "λ/f?user=jo%26admin%3D1"),
                ("/q?page=1", &[], "nothing"),
                ("/q?page=x", &[], "nothing"),
                ("/q?page=4", &[], "λ/f"),
                ("/q?page=9&page=2", &[], "λ/f"),
                ("/host", &[], "λ/app?h=app.example"),
                ("/m", &["x-token: no"], "status 401"),
                ("/m", &["x-token: ok"], "λ/f"),
                ("/m", &["x-token: ok", "x-token: no"], "status 401"),
            ],
        );
    }

    #[test]
    fn headers_of_the_first_route_win_and_important_ones_come_last() {
        let routes = r#"[{"src":"/(.*)","headers":{"x-a":"1","x-path":"$1","set-cookie":"a=1"},"continue":true},{"src":"/f","headers":{"x-a":"2","x-b":"2","set-cookie":"b=2"},"continue":true},
            {"src":"/f","headers":{"x-b":"3"},"important":true,"continue":true},{"handle":"hit"},{"src":"/f","headers":{"x-hit":"1"},"continue":true}]"#;
        check_headers(
            routes,
            &["λ/f"],
            "/f",
            1,
            &["x-a: 1", "x-path: f", "set-cookie: a=1", "set-cookie: b=2", "x-hit: 1", "x-b: 3"],
        );
        check_headers(routes, &["λ/f"], "/none", 0, &["x-a: 1", "x-path: none", "set-cookie: a=1"]);
        // Not a redirect: the header is a header.
        check_headers(
            r#"[{"src":"/f","headers":{"Location":"/x"},"status":201,"dest":"/f"}]"#,
            &["λ/f"],
            "/f?q=1",
            0,
            &["location: /x"],
        );
    }

    #[test]
    fn real_zero_config_table_resolves() {
        let routes = r#"[
            {"src":"^/(?:(.+)/)?index(?:\\.html)?/?$","headers":{"Location":"/$1"},"status":308},
            {"src":"^/(.*)\\.html/?$","headers":{"Location":"/$1"},"status":308},
            {"src":"^/old(?:/((?:[^/]+?)(?:/(?:[^/]+?))*))?$","headers":{"Location":"/new/$1"},"status":307},
            {"src":"^/static(?:/((?:[^/]+?)(?:/(?:[^/]+?))*))?$","headers":{"x-s":"1"},"continue":true},
            {"src":"^/(api(?:.+)?)/index(?:\\.(?:js|mjs|ts))?/?$","headers":{"Location":"/$1"},"status":308},
            {"src":"^/api/(.+)(?:\\.(?:js|mjs|ts))/?$","headers":{"Location":"/api/$1"},"status":308},
            {"handle":"filesystem"},
            {"src":"^/u(?:/([^/]+?))$","dest":"/api/users/$1","check":true},
            {"src":"^/api/users/([^/]+)$","dest":"/api/users/[id]?id=$1","check":true},
            {"src":"^/api(/.*)?$","status":404},
            {"handle":"error"},
            {"status":404,"src":"^(?!/api).*$","dest":"/404"}]"#;
        let paths = ["/index", "/404", "/static/logo.svg", "λ/api/date", "λ/api/users/[id]"];
        check(
            routes,
            &paths,
            &[
                ("/", "/index"),
                ("/index.html", "308 /"),
                ("/docs/index", "308 /docs"),
                ("/about.html?x", "308 /about?x"),
                ("/old/a/b", "307 /new/a/b"),
                ("/api/date", "λ/api/date"),
                ("/api/date.js", "308 /api/date"),
                ("/api/index.js", "308 /api"),
                ("/api/users/7", "λ/api/users/[id]?id=7"),
                ("/u/7?z=1", "λ/api/users/[id]?z=1&id=7"),
                ("/api/users/7/8", "status 404"),
                ("/api", "status 404"),
                ("/nothing", "/404 404"),
                ("/static/logo.svg", "/static/logo.svg"),
            ],
        );
    }

    #[test]
    fn next_build_routes_resolve() {
        let routes = r#"[
            {"src":"^(?:/((?:[^/]+?)(?:/(?:[^/]+?))*))/$","headers":{"Location":"/$1"},"status":308,"continue":true},
            {"src":"/_next/__private/trace","dest":"/404","status":404,"continue":true},
            {"src":"/404/?","status":404,"continue":true,"missing":[{"type":"header","key":"x-prerender-revalidate"}]},
            {"src":"/500","status":500,"continue":true},
            {"src":"^/?","has":[{"type":"header","key":"rsc","value":"1"}],"dest":"/index.rsc","headers":{"vary":"rsc"},"continue":true,"override":true},
            {"src":"^/((?!.+\\.rsc).+?)(?:/)?$","has":[{"type":"header","key":"rsc","value":"1"},{"type":"header","key":"next-router-segment-prefetch","value":"/(?<segmentPath>.+)"}],"dest":"/$1.segments/$segmentPath.segment.rsc","continue":true},
            {"src":"^/((?!.+\\.rsc).+?)(?:/)?$","has":[{"type":"header","key":"rsc","value":"1"}],"dest":"/$1.rsc","continue":true},
            {"handle":"filesystem"},
            {"src":"/index(?:/)?","dest":"/","check":true},
            {"handle":"resource"},
            {"src":"/.*","status":404},
            {"handle":"miss"},
            {"src":"/_next/static/.+","status":404,"dest":"/_next/static/not-found.txt","headers":{"content-type":"text/plain; charset=utf-8"},"check":true},
            {"handle":"rewrite"},
            {"src":"^/_next/data/lab/(.*).json$","dest":"__next_data_catchall","check":true},
            {"src":"^/blog/(?<nxtPslug>[^/]+?)(?<suffix>\\.rsc)?(?:/)?$","dest":"/blog/[slug]$suffix?nxtPslug=$nxtPslug","check":true},
            {"src":"^/p/(?<nxtPid>[^/]+?)\\.segments/p/\\$d\\$id(?<segment>/__PAGE__\\.segment\\.rsc)$","dest":"/p/[id].segments/p/$d$id$segment?nxtPid=$nxtPid","check":true},
            {"handle":"hit"},
            {"src":"/index(?:/)?","headers":{"x-matched-path":"/"},"continue":true,"important":true},
            {"src":"/((?!index$).*?)(?:/)?","headers":{"x-matched-path":"/$1"},"continue":true,"important":true},
            {"handle":"error"},
            {"src":"/.*","dest":"/404","status":404},
            {"src":"/.*","dest":"/500","status":500}]"#;
        let paths = [
            "λ/index",
            "λ/index.rsc",
            "/404",
            "/500",
            "λ/isr",
            "λ/isr.rsc",
            "λ/isr.segments/_tree.segment.rsc",
            "/_next/static/not-found.txt",
            "/_next/static/app.js",
            "λ/blog/[slug]",
            "λ/blog/[slug].rsc",
            "λ/p/[id].segments/p/$d$id/__PAGE__.segment.rsc",
            "/__next_data_catchall",
            "/_next/__private/trace",
        ];
        check_with(
            routes,
            &paths,
            &[
                ("/", &[], "λ/index"),
                ("/", &["rsc: 1"], "λ/index.rsc"),
                ("/index", &[], "λ/index"),
                ("/isr", &["rsc: 1"], "λ/isr.rsc"),
                ("/isr", &["rsc: 1", "next-router-segment-prefetch: /_tree"], "λ/isr.segments/_tree.segment.rsc"),
                ("/isr/", &[], "308 /isr"),
                ("/blog/a%20b", &[], "λ/blog/[slug]?nxtPslug=a%20b"),
                ("/blog/one", &["rsc: 1"], "λ/blog/[slug].rsc?nxtPslug=one"),
                (
                    "/p/7.segments/p/$d$id/__PAGE__.segment.rsc",
                    &[],
                    "λ/p/[id].segments/p/$d$id/__PAGE__.segment.rsc?nxtPid=7",
                ),
                ("/_next/data/lab/x.json", &[], "/__next_data_catchall"),
                ("/_next/static/app.js", &[], "/_next/static/app.js"),
                ("/_next/static/gone.js", &[], "/_next/static/not-found.txt 404"),
                ("/_next/__private/trace", &[], "/404 404"),
                ("/nothing/here", &[], "/404 404"),
                ("/_next", &[], "/404 404"),
            ],
        );
        check_headers(routes, &paths, "/isr", 1, &["x-matched-path: /isr"]);
        check_headers(routes, &paths, "/", 1, &["x-matched-path: /"]);
        check_headers(routes, &paths, "/nothing", 1, &["x-matched-path: /404"]);
    }

    #[test]
    fn other_builds_resolve() {
        // Astro: the error phase stands before the filesystem, and outputs are named without a slash.
        let astro = r#"[{"src":"^/_astro/(.*)$","headers":{"cache-control":"x"},"continue":true},{"handle":"error"},{"src":"/nope","status":404},{"handle":"filesystem"},
            {"src":"^(/about)$","dest":"/_isr?x_astro_path=$1"},{"src":"^/ssr/?$","dest":"_render"},{"src":"^/.*$","dest":"/404.html","status":404}]"#;
        check(
            astro,
            &["λ/_isr", "λ/_render", "/404.html"],
            &[("/about", "λ/_isr?x_astro_path=/about"), ("/ssr/", "λ/_render"), ("/x", "/404.html 404")],
        );
        // SvelteKit: a slash is added and then redirected away; the first route ends the phase.
        let kit = r#"[{"src":".*","continue":true},{"src":"/prer","dest":"/prer/"},{"src":"/prer/","status":308,"headers":{"Location":"/prer"}},{"handle":"filesystem"}]"#;
        check(kit, &["/prer"], &[("/prer", "/prer"), ("/prer/", "308 /prer")]);
        // Nitro, React Router, Express, and a page that is not there.
        let nitro = r#"[{"src":"(?<__isr_route>/isr/(?:.*))","dest":"/isr/[...]-isr?__isr_route=$__isr_route"},{"src":"/swr","dest":"/swr-fn"},{"handle":"filesystem"},{"src":"/(.*)","dest":"/__fallback"}]"#;
        check(
            nitro,
            &["λ/isr/[...]-isr", "λ/__fallback", "/pre/index.html"],
            &[("/isr/b", "λ/isr/[...]-isr?__isr_route=/isr/b"), ("/pre", "/pre/index.html"), ("/swr", "λ/__fallback")],
        );
        check(
            r#"[{"handle":"filesystem"},{"src":"/post/([^/]+)","dest":"post/:slug"}]"#,
            &["λ/post/:slug"],
            &[("/post/1", "λ/post/:slug")],
        );
        check(r#"[{"handle":"filesystem"},{"src":"/(.*)","dest":"/"}]"#, &["λ/index"], &[("/users/1", "λ/index")]);
        check(
            r#"[{"handle":"error"},{"status":404,"src":"^(?!/api).*$","dest":"/404.html"}]"#,
            &["/a"],
            &[("/x", "nothing")],
        );
    }

    #[test]
    fn trailing_slash_rules_resolve() {
        let on = r#"[{"src":"^/\\.well-known(?:/.*)?$"},{"src":"^/((?:[^/]+/)*[^/\\.]+)$","headers":{"Location":"/$1/"},"status":308},{"src":"^/((?:[^/]+/)*[^/]+\\.\\w+)/$","headers":{"Location":"/$1"},"status":308}]"#;
        check(
            on,
            &["/about", "/a.css", "/.well-known/x"],
            &[
                ("/about", "308 /about/"),
                ("/about/", "/about"),
                ("/a.css/", "308 /a.css"),
                ("/a.css", "/a.css"),
                ("/.well-known/x", "/.well-known/x"),
            ],
        );
    }

    /// A small generator (SplitMix64), so that a failure comes again.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((mixed ^ (mixed >> 31)) % bound as u64) as usize
        }

        fn text(&mut self) -> String {
            const PARTS: [&str; 26] = [
                "/", "/", "a", "api", "index", ".html", "%2f", "%", "%2e", "..", "?", "&", "=", "$1", "é", "\\",
                "\u{0}", "blog", "%C3%A9", "%ff", "+", "#", ":", "[id]", ".", "//",
            ];
            let length = self.below(12);
            (0..length).map(|_| PARTS[self.below(PARTS.len())]).collect()
        }
    }

    #[test]
    fn any_request_resolves_without_panic_and_stays_on_the_host() {
        let routes = r#"[{"src":"/(.*)/","status":308,"headers":{"Location":"/$1","x-$1":"$1"},"has":[{"type":"query","key":"a"}]},{"src":"/blog/(?<x>.*)","dest":"/$x$a?$x=$1","has":[{"type":"header","key":"a"}],"check":true},
            {"src":"(?!/api)(/.*)\\.html","status":307,"headers":{"Location":"$1"}},{"handle":"filesystem"},{"src":"/([^/]*)/(.*)","dest":"/$2/$1?q=$1","check":true},
            {"src":"/(.*)%","dest":"https://up.example/$1"},{"handle":"error"},{"src":"/.*","dest":"/404"}]"#;
        let router = compile(routes).expect("they are right");
        let outputs = table(&["/index.html", "λ/api/a", "/blog/a.html", "/404", "λ/[id]"]);
        let mut random = Random(7);
        for _ in 0..20_000 {
            let (path, query, header) = (random.text(), random.text(), random.text());
            let mut headers = http::HeaderMap::new();
            headers.extend(HeaderValue::from_str(&header).ok().map(|value| (HeaderName::from_static("a"), value)));
            let query = Some(query.as_str()).filter(|query| !query.is_empty());
            let request = Request { method: "GET", host: "app.example", path: &path, query, headers: &headers };
            let resolution = router.resolve(&outputs, true, &request);
            match &resolution.target {
                Target::Redirect { location, .. } => {
                    assert!(
                        location.starts_with('/') && !location.starts_with("//") && !location.starts_with("/\\"),
                        "{path:?} to {location:?}"
                    );
                    assert!(location.bytes().all(|byte| byte > b' '), "{path:?} to {location:?}");
                }
                Target::External(url) => assert!(url.starts_with("https://up.example/"), "{path:?} to {url:?}"),
                _ => {}
            }
        }
    }

    /// 2,000 routes of the usual kinds; number 1,999 is the last.
    fn many_routes() -> Vec<RouteSpec> {
        let mut specs = Vec::new();
        for number in 0..2_000 {
            let (src, location) = match number % 4 {
                0 => (format!("^/old-{number}$"), format!("/new-{number}")),
                1 => (format!("^/section-{number}/([^/]+)$"), format!("/s/{number}/$1")),
                2 => (format!("^/([^/]+)/tag-{number}$"), format!("/t/{number}/$1")),
                _ => (format!("^/shop/(?:.*/)?item-{number}(?:/(.*))?$"), format!("/i/{number}/$1")),
            };
            specs.push(RouteSpec {
                src: Some(src),
                headers: vec![("Location".into(), location)],
                status: Some(308),
                ..RouteSpec::default()
            });
        }
        specs
    }

    #[test]
    fn each_of_2000_routes_is_found() {
        let router = Router::compile(&many_routes()).expect("they are right");
        let outputs = table(&["/index.html"]);
        for number in 0..2_000 {
            let (path, expected) = match number % 4 {
                0 => (format!("/Old-{number}"), format!("308 /new-{number}")),
                1 => (format!("/section-{number}/x"), format!("308 /s/{number}/x")),
                2 => (format!("/x/tag-{number}"), format!("308 /t/{number}/x")),
                _ => (format!("/shop/a/item-{number}/b"), format!("308 /i/{number}/b")),
            };
            let resolution = resolve(&router, &outputs, &path, &[]);
            assert_eq!((tell(&resolution), resolution.route), (expected, Some(number)));
        }
        assert_eq!(tell(&resolve(&router, &outputs, "/old-2001", &[])), "nothing");
    }
}
