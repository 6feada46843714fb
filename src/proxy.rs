//! Pingora's phases in their order, each a paragraph of calls. Tells the story of a request and decides nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use pingora_cache::key::{CacheKey, HashBinary};
use pingora_cache::{CacheMeta, CacheOptionOverrides, ForcedFreshness, HitHandler, NoCacheReason, RespCacheable};
use pingora_core::modules::http::HttpModules;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use crate::access;
use crate::admit::{self, Admitted, BodyRefused};
use crate::cache::policy::{self, NotStored};
use crate::cache::{tags, vary};
use crate::clock::Clock;
use crate::deliver;
use crate::deployment::alias::Registry;
use crate::error::Code;
use crate::exchange::{Exchange, Origin};
use crate::front::Index;
use crate::functions::{Functions, NotLent, bridge};
use crate::headers;
use crate::lock::claim::{Failure, Verdict};
use crate::lock::uncacheable::Uncacheable;
use crate::lock::{NodeLock, ORIGIN_ERROR, REFRESHED, Refresh};
use crate::metrics::{Level, Metrics};
use crate::static_origin;
use crate::storage::{Arriving, Hit, Tiers};
use crate::upstream::Names;

/// How long an idle connection of a client is kept. Pingora would keep it for good after the first request.
pub const KEEPALIVE_S: u64 = 75;

/// A client that takes nothing for this long is given up. Pingora would wait for good.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// A requester may be woken to look again this often: by the arbiter, by a leader, and by each of the ten who go alone.
const LOCK_RETRIES_MAX: usize = 64;

/// The parts that all requests share.
pub struct Edge {
    pub registry: Arc<Registry>,
    pub tiers: &'static Tiers,
    pub lock: &'static NodeLock,
    pub uncacheable: &'static Uncacheable,
    pub functions: Arc<Functions>,
    pub metrics: Arc<Metrics>,
    pub names: Names,
    pub index: Index,
    pub clock: Clock,
    pub pod: String,
    /// Requests that have begun and not ended, background refreshes included.
    pub in_flight: Arc<AtomicUsize>,
    /// Visitors are let in.
    pub ready: AtomicBool,
}

impl Edge {
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

pub struct Proxy(pub Arc<Edge>);

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        Exchange::begin(self.0.registry.world().clone(), &self.0.pod, self.0.clock.now()).counted(&self.0.in_flight)
    }

    /// No modules: compression is not done per answer.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<bool> {
        session.as_downstream_mut().set_write_timeout(Some(WRITE_TIMEOUT));
        if session.as_downstream().get_keepalive().is_some() {
            session.as_downstream_mut().set_keepalive(Some(KEEPALIVE_S));
        }
        if session.as_downstream().supports_proxy_task_api() {
            session.set_proxy_tasks_enabled(true);
        }
        headers::to_origin_form(session.req_header_mut());
        match admit::request(session, exchange) {
            Admitted::ToOrigin => return Ok(false),
            Admitted::Failed(code) => deliver::error(session, exchange, code).await?,
            Admitted::Status(status) => deliver::status(session, exchange, status).await?,
            Admitted::Redirect { status, location } => deliver::redirect(session, exchange, status, &location).await?,
            Admitted::Listing { path, entries } => deliver::listing(session, exchange, &path, &entries).await?,
            Admitted::Static { file, status } => static_origin::serve(session, exchange, &file, status).await?,
        }
        Ok(true)
    }

    fn request_cache_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<()> {
        if exchange.key.is_some() && exchange.bypass.is_none() {
            let mut overrides = CacheOptionOverrides::default();
            overrides.max_lock_retries = Some(LOCK_RETRIES_MAX);
            session.cache.enable(self.0.tiers, None, Some(self.0.uncacheable), Some(self.0.lock), Some(overrides));
        }
        Ok(())
    }

    fn cache_key_callback(&self, session: &Session, exchange: &mut Exchange) -> Result<CacheKey> {
        let primary = exchange
            .key
            .ok_or_else(|| Error::explain(ErrorType::InternalError, "a request without a key asked for the cache"))?;
        let claim = admit::claim(&self.0, session, exchange);
        let mut key = CacheKey::new(Vec::new(), "");
        key.set_primary_bin_override(primary.0);
        key.extensions.insert(claim);
        Ok(key)
    }

    fn cache_vary_filter(&self, meta: &CacheMeta, _: &mut Exchange, request: &RequestHeader) -> Option<HashBinary> {
        vary::variance(meta.headers(), &request.headers)
    }

    async fn cache_hit_filter(
        &self,
        session: &mut Session,
        _: &CacheMeta,
        handler: &mut HitHandler,
        is_fresh: bool,
        exchange: &mut Exchange,
    ) -> Result<Option<ForcedFreshness>> {
        let handler = handler.as_any();
        if let Some(hit) = handler.downcast_ref::<Hit>() {
            exchange.stored = Some((hit.entry.clone(), hit.lifetime));
            exchange.lifetime = Some(hit.lifetime);
        } else if let Some(arriving) = handler.downcast_ref::<Arriving>() {
            exchange.stored = None;
            exchange.lifetime = Some(arriving.lifetime());
        }
        if let Some(claim) = &exchange.claim {
            claim.answered();
        }
        if is_fresh {
            // Somebody refreshed it before us. Pingora would drop the permit that the background refresh was handed.
            if let Some(refresh) = session.subrequest_ctx.as_mut() {
                refresh.release_write_lock();
            }
        } else {
            exchange.revalidates |= exchange.pragma;
            if let Some(claim) = &exchange.claim {
                claim.set_may_serve_stale(admit::may_serve_stale(&self.0, exchange));
            }
        }
        Ok(None)
    }

    fn cache_not_modified_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        _: &mut Exchange,
    ) -> Result<bool> {
        Ok(headers::asks_for_none_at_all(&session.req_header().headers)
            || pingora_core::protocols::http::conditional_filter::not_modified_filter(session.req_header(), response))
    }

    async fn proxy_upstream_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<bool> {
        exchange.stored = None;
        if exchange.background && !self.refreshes(session, exchange).await? {
            return Ok(false);
        }
        match (&exchange.origin, exchange.claim.as_ref().map(|claim| claim.verdict())) {
            // The arbiter could not read the file; what is to be said is said here, as there is nobody to forward to.
            (Origin::Static(file), None | Some(Verdict::Fetch)) => {
                let file = file.clone();
                exchange.outcome = Some(deliver::outcome(session.cache.phase(), exchange));
                static_origin::serve(session, exchange, &file, None).await?;
                Ok(false)
            }
            _ => Ok(true),
        }
    }

    async fn upstream_peer(&self, _: &mut Session, exchange: &mut Exchange) -> Result<Box<HttpPeer>> {
        match exchange.claim.as_ref().map(|claim| claim.verdict()) {
            Some(Verdict::Share(failure)) => return Err(shared(exchange, failure)),
            Some(Verdict::GiveUp) => {
                return Err(failed(exchange, Code::InternalCacheLockTimeout, "waited for others for too long"));
            }
            Some(Verdict::Gone) => {
                let why = Some("the client went away while its request waited".into());
                return Err(Error::create(ErrorType::ConnectionClosed, ErrorSource::Downstream, why, None));
            }
            Some(Verdict::Fetch) | None => {}
        }
        exchange.fetch_began.get_or_insert_with(Instant::now);
        match exchange.origin.clone() {
            Origin::Function(function) => self.lend(exchange, &function).await,
            Origin::Upstream(target) => match self.0.names.peer(&target.url).await {
                Ok(peer) => Ok(Box::new(peer)),
                Err(code) => Err(failed(exchange, code, "cannot find the address of the upstream")),
            },
            Origin::Static(_) | Origin::None => {
                Err(failed(exchange, Code::InternalUnexpectedError, "there is nobody to forward to"))
            }
        }
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        request: &mut RequestHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        headers::for_origin(request, exchange)?;
        admit::target_uri(request, exchange)?;
        if let Some(loan) = &mut exchange.loan {
            request.insert_header(bridge::INVOCATION, loan.invocation())?;
            request.insert_header(http::header::CONNECTION, "close")?;
            loan.mark_sent();
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        exchange: &mut Exchange,
    ) -> Result<()> {
        exchange.request_body_bytes += body.as_ref().map_or(0, |body| body.len() as u64);
        match admit::body(exchange, end, Instant::now()) {
            Ok(()) => Ok(()),
            Err(BodyRefused::TooLarge) => {
                exchange.fail(Code::FunctionPayloadTooLarge);
                Err(Error::explain(
                    ErrorType::HTTPStatus(413),
                    "the request body is larger than functions.request_body",
                ))
            }
            Err(BodyRefused::TooSlow) => {
                let why = Some("the request body comes too slowly".into());
                Err(Error::create(ErrorType::HTTPStatus(408), ErrorSource::Downstream, why, None))
            }
        }
    }

    async fn upstream_response_filter(
        &self,
        _: &mut Session,
        response: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        if let Origin::Function(function) = &exchange.origin {
            if let Some(code) = bridge::failure(&response.headers) {
                function.breaker.failed(Instant::now());
                return Err(failed(exchange, code, "the function failed; its log says why"));
            }
            function.breaker.succeeded();
            if let Some(status) = exchange.route_status {
                response.set_status(status)?;
            }
        }
        headers::drop_hop_by_hop(response);
        if response.status == StatusCode::NOT_MODIFIED {
            exchange.validation = Some(response.headers.iter().map(|(n, v)| (n.clone(), v.clone())).collect());
        }
        Ok(())
    }

    fn response_cache_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<RespCacheable> {
        let validated = exchange.validation.take().map(|fields| headers::validated(response, &fields));
        let response = validated.as_ref().unwrap_or(response);
        let status = response.status.as_u16();
        Ok(match policy::response(self.0.clock.now(), status, &response.headers, &exchange.route_fields) {
            Ok(lifetime) => {
                exchange.lifetime = Some(lifetime);
                match tagged(&response.headers, &exchange.route_fields) {
                    Ok(tags) => {
                        if let Some(claim) = &exchange.claim {
                            claim.set_lifetime(lifetime);
                            claim.set_tags(tags);
                        }
                        RespCacheable::Cacheable(self.0.tiers.meta(response.clone(), &lifetime, None))
                    }
                    Err(tags::TooMany) => {
                        let reason = NotStored::TooManyTags;
                        RespCacheable::Uncacheable(self.not_stored(session, exchange, status, reason))
                    }
                }
            }
            Err(reason) => RespCacheable::Uncacheable(self.not_stored(session, exchange, status, reason)),
        })
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        let outcome = deliver::outcome(session.cache.phase(), exchange);
        exchange.outcome = Some(outcome);
        deliver::dress(response, exchange)
    }

    fn should_serve_stale(&self, _: &mut Session, exchange: &mut Exchange, error: Option<&Error>) -> bool {
        match error {
            None => admit::may_serve_stale(&self.0, exchange),
            Some(_) => exchange.lifetime.is_some_and(|lifetime| lifetime.is_usable_on_error(self.0.clock.now())),
        }
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        exchange: &mut Exchange,
        client_reused: bool,
    ) -> Box<Error> {
        let mut error = error.more_context(format!("Peer: {peer}"));
        let again = matches!(exchange.origin, Origin::Upstream(_))
            && session.req_header().method.is_idempotent()
            && !session.as_ref().retry_buffer_truncated();
        // An invocation is never repeated behind the client's back.
        if again {
            error.retry.decide_reuse(client_reused);
        } else {
            error.set_retry(false);
        }
        if !error.retry() {
            admit::note_failure(exchange, &error);
        }
        error
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        exchange: &mut Exchange,
        mut error: Box<Error>,
    ) -> Box<Error> {
        error.set_retry(false);
        admit::note_failure(exchange, &error);
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, exchange: &mut Exchange) -> FailToProxy {
        let answered = session.response_written().is_some();
        let client_gone =
            *error.esource() == ErrorSource::Downstream && exchange.failure.is_none() && !is_clients_fault(error);
        if answered || client_gone {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        }
        let status = match (exchange.claim.as_ref().map(|claim| claim.verdict()), error.etype()) {
            (Some(Verdict::Share(Failure::Status(status))), _) => Some(status),
            (_, ErrorType::HTTPStatus(408)) => Some(408),
            _ => None,
        };
        let code = admit::code(exchange, error).await;
        exchange.outcome = Some(deliver::outcome(session.cache.phase(), exchange));
        // Pingora closes the connection after a failure; the client is told.
        session.as_downstream_mut().set_keepalive(None);
        let told = match status {
            Some(status) => deliver::status(session, exchange, status).await,
            None => deliver::error(session, exchange, code).await,
        };
        if let Err(error) = told {
            log::debug!("a client did not take its error page: {error}");
        }
        FailToProxy { error_code: status.unwrap_or(code.status()), can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, exchange: &mut Exchange) {
        let now = Instant::now();
        let status = session.response_written().map_or(0, |header| header.status.as_u16());
        access::tell(session, exchange, status);
        self.0.index.keep(&self.0, session, exchange);
        let metrics = &self.0.metrics;
        if let Some(began) = exchange.fetch_began {
            metrics.fetch_seconds.observe(now.saturating_duration_since(began).as_secs_f64());
        }
        // A refresh behind the visitor's back is nobody's request.
        if !exchange.background {
            metrics.request(exchange.outcome.map(|outcome| outcome.state));
            if let Some(tier) = exchange.outcome.and_then(|outcome| outcome.tier) {
                metrics.hit(tier);
            }
            if exchange.claim.as_ref().is_some_and(|claim| claim.waited())
                && let Some(waited) = session.cache.lock_duration()
            {
                metrics.lock_waited(Level::Node, waited);
            }
            metrics.request_seconds.observe(now.saturating_duration_since(exchange.began).as_secs_f64());
            metrics.body_bytes.inc_by(session.as_downstream().body_bytes_sent() as u64);
            if status >= 500 {
                metrics.responses_5xx.inc();
            }
        }
        exchange.loan = None;
    }

    /// Told by the access line, which has the code; the cause of a failure is logged where it is known.
    fn suppress_error_log(&self, _: &Session, _: &Exchange, error: &Error) -> bool {
        *error.esource() == ErrorSource::Downstream
    }

    fn request_summary(&self, session: &Session, exchange: &Exchange) -> String {
        format!("id={} {} {}", exchange.id(), session.req_header().method, session.req_header().uri)
    }
}

impl Proxy {
    /// An instance for this invocation, unless its function fails again and again.
    async fn lend(&self, exchange: &mut Exchange, function: &Arc<crate::functions::Function>) -> Result<Box<HttpPeer>> {
        if let Err(wait) = function.breaker.admit(Instant::now()) {
            self.0.metrics.breaker_refusals.inc();
            exchange.retry_after_s = Some(wait.as_secs().max(1));
            return Err(failed(exchange, Code::FunctionThrottled, "the function failed again and again"));
        }
        match self.0.functions.lend(function).await {
            Ok(loan) => {
                let peer = bridge::peer(loan.socket(), loan.max_duration())?;
                exchange.loan = Some(loan);
                Ok(Box::new(peer))
            }
            Err(NotLent::Throttled(wait)) => {
                exchange.retry_after_s = Some(wait.as_secs().max(1));
                Err(failed(exchange, Code::FunctionThrottled, "too many invocations wait"))
            }
            Err(NotLent::StartFailed) => {
                function.breaker.failed(Instant::now());
                Err(failed(exchange, Code::FunctionInvocationFailed, "the function does not start; its log says why"))
            }
        }
    }

    /// Whether a background refresh has to ask the origin. If not, its permit is given back and nobody is answered.
    async fn refreshes(&self, session: &mut Session, exchange: &mut Exchange) -> Result<bool> {
        let Some(claim) = exchange.claim.clone().filter(|_| session.cache.enabled()) else { return Ok(true) };
        let reason = match self.0.lock.0.refresh(session.cache.cache_key(), &claim).await {
            Refresh::Fetch => return Ok(true),
            Refresh::Done => REFRESHED,
            Refresh::Failed(failure) => {
                claim.fail(failure);
                ORIGIN_ERROR
            }
        };
        session.cache.disable(NoCacheReason::Custom(reason));
        // Nobody reads it; Pingora would say 502.
        session.write_response_header(Box::new(ResponseHeader::build(StatusCode::NO_CONTENT, None)?), true).await?;
        Ok(false)
    }

    /// Draws the consequences of a response that may not be stored; says how the waiters are to take it.
    fn not_stored(&self, session: &Session, exchange: &mut Exchange, status: u16, reason: NotStored) -> NoCacheReason {
        exchange.not_stored = Some(reason);
        if reason == NotStored::OriginError {
            if let Some(claim) = &exchange.claim {
                claim.fail(Failure::Status(status));
            }
            return NoCacheReason::Custom(ORIGIN_ERROR);
        }
        // The origin has a new answer and does not want it kept: the old one must not outlive it.
        if status != 304 && session.cache.enabled() {
            self.0.tiers.remove(&pingora_cache::key::CacheHashKey::combined_bin(session.cache.cache_key()));
        }
        NoCacheReason::OriginNotCache
    }
}

/// The tags by which a response can be purged: its own, and those that the deployment's routes give it.
fn tagged(own: &HeaderMap, route: &HeaderMap) -> std::result::Result<Arc<[Box<str>]>, tags::TooMany> {
    let mut all = tags::tags(own)?;
    all.extend(tags::tags(route)?);
    if all.len() > tags::TAGS_MAX {
        return Err(tags::TooMany);
    }
    Ok(all.into_iter().map(Box::from).collect())
}

fn is_clients_fault(error: &Error) -> bool {
    !matches!(
        error.etype(),
        ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed | ErrorType::WriteTimedout
    )
}

fn failed(exchange: &mut Exchange, code: Code, why: &'static str) -> Box<Error> {
    exchange.fail(code);
    Error::create(ErrorType::HTTPStatus(code.status()), ErrorSource::Upstream, Some(why.into()), None)
}

fn shared(exchange: &mut Exchange, failure: Failure) -> Box<Error> {
    let status = match failure {
        Failure::Code(code) => {
            exchange.fail(code);
            code.status()
        }
        Failure::Status(status) => status,
    };
    Error::create(
        ErrorType::HTTPStatus(status),
        ErrorSource::Upstream,
        Some("the fetch that it waited for failed".into()),
        None,
    )
}
