//! The middle of a request's way: which deployment, which route, whether the cache may be asked, under which key, and in the end, which
//! code stands for what went wrong. No waiting, no sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use pingora_error::{Error, ErrorSource, ErrorType, OrErr, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use crate::cache::key::{Key, Kind, Parts};
use crate::cache::policy;
use crate::cache::purge::Scope;
use crate::deployment::{Content, Deployment, Project};
use crate::error::Code;
use crate::exchange::{Exchange, Origin};
use crate::headers;
use crate::lock::claim::{Claim, Claimant};
use crate::proxy::Edge;
use crate::routing::{self, ListEntry, Resolution, RoutingError, Target as RouteTarget};
use crate::static_origin::{self, StaticRef};
use crate::upstream::{self, Target};

/// A request body may be slow for this long, and has to come this fast on the whole afterwards, or it would hold an instance.
const UPLOAD_GRACE: Duration = Duration::from_secs(30);
const UPLOAD_BYTES_PER_S_MIN: u64 = 16 * 1024;

/// What becomes of a request.
pub enum Admitted {
    /// The cache is asked, then the origin.
    ToOrigin,
    Static {
        file: StaticRef,
        status: Option<u16>,
    },
    Redirect {
        status: u16,
        location: String,
    },
    Listing {
        path: String,
        entries: Vec<ListEntry>,
    },
    Status(u16),
    Failed(Code),
}

/// Finds out who asks, over what, and then what for.
pub fn request(session: &Session, exchange: &mut Exchange) -> Admitted {
    arrive(session, exchange);
    consider(session.req_header(), exchange)
}

/// Finds out everything that can be known from the request alone.
pub fn consider(request: &RequestHeader, exchange: &mut Exchange) -> Admitted {
    if let Err(code) = headers::check(request) {
        return Admitted::Failed(code);
    }
    let Some(authority) = headers::authority(request, exchange.scheme) else {
        return Admitted::Failed(Code::MalformedRequestHeader);
    };
    exchange.authority = authority;
    let Some(deployment) = exchange.world.find(exchange.host()).cloned() else {
        return Admitted::Failed(Code::DeploymentNotFound);
    };
    exchange.deployment = Some(deployment.clone());
    exchange.bypass = policy::request(&request.method, request.uri.query(), &request.headers).err();
    exchange.pragma = headers::wants_revalidation(&request.headers) && !exchange.background;
    let admitted = resolve(&deployment, request, exchange);
    if matches!(admitted, Admitted::ToOrigin) {
        exchange.key = key(exchange, request.uri.path(), request.uri.query());
        if let Some(code) = too_large(exchange, &request.headers) {
            return Admitted::Failed(code);
        }
    }
    admitted
}

/// Who sent it, and over what.
fn arrive(session: &Session, exchange: &mut Exchange) {
    let downstream = session.as_downstream();
    exchange.background = downstream.is_subrequest();
    exchange.client = downstream.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip());
    if exchange.background {
        // It is made for everybody; Pingora hands on the address of whoever started it.
        exchange.client = None;
    }
    if downstream.digest().is_some_and(|digest| digest.ssl_digest.is_some()) {
        exchange.scheme = "https";
    }
}

fn resolve(deployment: &Arc<Deployment>, request: &RequestHeader, exchange: &mut Exchange) -> Admitted {
    match &deployment.content {
        Content::Upstream(url) => {
            exchange.origin =
                Origin::Upstream(Arc::new(Target { url: url.clone(), path_and_query: None, rewritten: false }));
            Admitted::ToOrigin
        }
        Content::Project(project) => {
            let resolution = route(project, request, exchange);
            take(deployment, project, request, resolution, exchange)
        }
    }
}

fn route(project: &Project, request: &RequestHeader, exchange: &Exchange) -> Resolution {
    let asked = routing::Request {
        method: request.method.as_str(),
        host: exchange.host(),
        path: request.uri.path(),
        query: request.uri.query(),
        headers: &request.headers,
    };
    project.router.resolve(&project.outputs, project.listing, &asked)
}

/// Takes over what the routes decided.
fn take(
    deployment: &Arc<Deployment>,
    project: &Project,
    request: &RequestHeader,
    resolution: Resolution,
    exchange: &mut Exchange,
) -> Admitted {
    let (normal, important) =
        resolution.headers.split_at(resolution.headers.len() - resolution.important.min(resolution.headers.len()));
    exchange.route_fields = fields(normal);
    exchange.route_fields_important = fields(important);
    exchange.query = resolution.query;
    exchange.route = resolution.route;
    match resolution.target {
        RouteTarget::Static(index) => take_static(deployment, request, index, resolution.status, exchange),
        RouteTarget::Function(index) => match deployment.function(index) {
            Some(function) => {
                exchange.origin = Origin::Function(function.clone());
                exchange.route_status = resolution.status.filter(|status| *status != 200);
                Admitted::ToOrigin
            }
            None => Admitted::Failed(Code::InternalFunctionNotFound),
        },
        RouteTarget::Redirect { status, location } => Admitted::Redirect { status, location },
        RouteTarget::External(url) => match Target::rewrite(&url) {
            Some(target) => {
                exchange.origin = Origin::Upstream(Arc::new(target));
                Admitted::ToOrigin
            }
            None => Admitted::Failed(Code::RouterCannotMatch),
        },
        RouteTarget::Listing(path) if static_origin::is_read(&request.method) => {
            let entries = project.outputs.list(&path).unwrap_or_default();
            Admitted::Listing { path, entries }
        }
        RouteTarget::Listing(_) => Admitted::Failed(Code::InvalidRequestMethod),
        RouteTarget::Status(404) | RouteTarget::NotFound => Admitted::Failed(Code::NotFound),
        RouteTarget::Status(status) => Admitted::Status(status),
        RouteTarget::Failed(RoutingError::TooManyFilesystemChecks) => Admitted::Failed(Code::TooManyFilesystemChecks),
        RouteTarget::Failed(_) => Admitted::Failed(Code::RouterCannotMatch),
    }
}

/// A file that fits goes through the cache; the others come from the disk.
fn take_static(
    deployment: &Arc<Deployment>,
    request: &RequestHeader,
    index: u32,
    status: Option<u16>,
    exchange: &mut Exchange,
) -> Admitted {
    let file = StaticRef::new(deployment.clone(), index);
    let status = status.filter(|status| *status != 200);
    let cacheable = file.file().is_ok_and(static_origin::is_cacheable);
    // A method that files do not know is no way around the cache, it is a mistake.
    if !static_origin::is_read(&request.method) {
        exchange.bypass = None;
        return Admitted::Failed(Code::InvalidRequestMethod);
    }
    if status.is_none() && cacheable && exchange.bypass.is_none() {
        exchange.origin = Origin::Static(file);
        return Admitted::ToOrigin;
    }
    if exchange.bypass.is_none() {
        let reason = if cacheable { "status" } else { "too_large" };
        exchange.outcome = Some(crate::cache::status::Outcome::new(crate::cache::status::State::Miss, reason));
    }
    Admitted::Static { file, status }
}

fn fields(list: &[(HeaderName, HeaderValue)]) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(list.len());
    for (name, value) in list {
        map.append(name.clone(), value.clone());
    }
    map
}

/// The cache key of an admitted request.
fn key(exchange: &Exchange, path: &str, query: Option<&str>) -> Option<Key> {
    let deployment = exchange.deployment.as_ref()?;
    let query = exchange.query.as_deref().or(query);
    let rewritten;
    let (kind, origin) = match &exchange.origin {
        Origin::None => return None,
        Origin::Static(file) => (Kind::Static, file.file().ok()?.url.as_str()),
        Origin::Function(function) => (Kind::Function, function.path.as_str()),
        Origin::Upstream(target) if target.rewritten => {
            // Routes can choose the target's host by cookies and other fields: all of it belongs to the key.
            rewritten = target.to_string();
            (Kind::Upstream, rewritten.as_str())
        }
        Origin::Upstream(_) => (Kind::Upstream, ""),
    };
    Some(Key::of(&Parts {
        deployment: &deployment.id.0,
        kind,
        origin,
        scheme: exchange.scheme,
        authority: &exchange.authority,
        path,
        query,
    }))
}

/// A body that is announced too large is refused before a function starts.
fn too_large(exchange: &Exchange, headers: &HeaderMap) -> Option<Code> {
    let limit = exchange.world.conf.functions.request_body;
    let announced = policy::content_length(headers)?;
    (matches!(exchange.origin, Origin::Function(_)) && announced > limit).then_some(Code::FunctionPayloadTooLarge)
}

/// Why the rest of a request body is not waited for.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyRefused {
    TooLarge,
    TooSlow,
}

/// Whether a function is to be given more of the request body (the bytes so far are counted in the exchange).
pub fn body(exchange: &Exchange, end: bool, now: Instant) -> std::result::Result<(), BodyRefused> {
    if !matches!(exchange.origin, Origin::Function(_)) {
        return Ok(());
    }
    let bytes = exchange.request_body_bytes;
    if bytes > exchange.world.conf.functions.request_body {
        return Err(BodyRefused::TooLarge);
    }
    let allowed = UPLOAD_GRACE + Duration::from_secs(bytes / UPLOAD_BYTES_PER_S_MIN);
    if !end && now.saturating_duration_since(exchange.began) > allowed {
        return Err(BodyRefused::TooSlow);
    }
    Ok(())
}

/// Makes the claim of a request that goes to the cache.
pub fn claim(edge: &Edge, session: &Session, exchange: &mut Exchange) -> Arc<Claim> {
    // A stream of HTTP/2 has no socket of its own, and a background refresh no client.
    let client = session.as_downstream().stream().filter(|_| !exchange.background).map(|stream| stream.id());
    let below = match &exchange.origin {
        Origin::Static(file) => Some(file.clone()),
        _ => None,
    };
    let claim = Arc::new(Claim::new(Claimant {
        background: exchange.background,
        owner: exchange.deployment.as_ref().map_or(Scope::ALL, |deployment| Scope::deployment(&deployment.id.0)),
        began: edge.tiers.position(),
        below,
        stale_will_do: !exchange.pragma && !exchange.background,
        client,
    }));
    exchange.claim = Some(claim.clone());
    claim
}

/// Whether the stale entry that was found may be served while it is refreshed.
pub fn may_serve_stale(edge: &Edge, exchange: &Exchange) -> bool {
    !exchange.pragma
        && !exchange.background
        && exchange.lifetime.is_some_and(|lifetime| lifetime.is_usable_while_revalidating(edge.clock.now()))
}

/// Gives the request the path and query that its origin is to see: the client's path, byte for byte, unless a route sends it elsewhere.
pub fn target_uri(request: &mut RequestHeader, exchange: &Exchange) -> Result<()> {
    let target = match (&exchange.origin, &exchange.query) {
        (Origin::Upstream(target), _) if target.path_and_query.is_some() => {
            target.path_and_query.clone().unwrap_or_default()
        }
        (Origin::Function(_), Some(query)) => {
            let path = request.uri.path();
            if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
        }
        _ => request.uri.path_and_query().map_or("/", |asked| asked.as_str()).to_owned(),
    };
    let uri: http::Uri = target.parse().or_err(ErrorType::InvalidHTTPHeader, "the target of a route is not a path")?;
    request.set_uri(uri);
    Ok(())
}

/// Notes why a fetch failed, as soon as it is known: the lock is released before the client is answered.
pub fn note_failure(exchange: &mut Exchange, error: &Error) {
    if exchange.failure.is_some() || *error.esource() == ErrorSource::Downstream {
        return;
    }
    let code = match &exchange.origin {
        Origin::Function(function) => {
            function.breaker.failed(Instant::now());
            match &exchange.loan {
                Some(loan) if loan.timed_out() => Code::FunctionInvocationTimeout,
                _ => Code::FunctionInvocationFailed,
            }
        }
        Origin::Upstream(_) => upstream::failure(error),
        Origin::Static(_) => Code::InternalStaticRequestFailed,
        Origin::None => Code::InternalUnexpectedError,
    };
    exchange.fail(code);
}

/// The public code for a request that could not be answered.
pub async fn code(exchange: &mut Exchange, error: &Error) -> Code {
    if let (Some(loan), Some(Code::FunctionInvocationFailed)) = (&exchange.loan, exchange.failure)
        && loan.ended_quietly().await
    {
        exchange.failure = Some(Code::NoResponseFromFunction);
    }
    match (exchange.failure, error.etype(), error.esource()) {
        (Some(code), ..) => code,
        (None, ErrorType::HTTPStatus(413), _) => Code::FunctionPayloadTooLarge,
        (None, _, ErrorSource::Downstream) => Code::MalformedRequestHeader,
        (None, _, ErrorSource::Upstream) => Code::RouterExternalTargetError,
        (None, ..) => Code::InternalUnexpectedError,
    }
}
