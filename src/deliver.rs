//! What the client gets: the fields that every answer carries, and the answers that the edge gives by itself.

use bytes::Bytes;
use http::Method;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, SERVER,
};
use pingora_cache::{CachePhase, NoCacheReason};
use pingora_error::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use crate::cache::directives::{self, TARGETED};
use crate::cache::entry::Source;
use crate::cache::status::{Outcome, State, Tier};
use crate::cache::tags;
use crate::error::{self, Code, Format, Page};
use crate::exchange::Exchange;
use crate::functions::bridge;
use crate::routing::ListEntry;
use crate::static_files;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const X_NOW_CACHE: HeaderName = HeaderName::from_static("x-now-cache");
const X_NOW_ID: HeaderName = HeaderName::from_static("x-now-id");
const X_NOW_TRACE: HeaderName = HeaderName::from_static("x-now-trace");
const X_NOW_ERROR: HeaderName = HeaderName::from_static("x-now-error");
const X_VERCEL_CACHE: HeaderName = HeaderName::from_static("x-vercel-cache");
const X_VERCEL_ID: HeaderName = HeaderName::from_static("x-vercel-id");
const X_VERCEL_ERROR: HeaderName = HeaderName::from_static("x-vercel-error");

/// Fields of an origin's answer that are the platform's to say.
const OURS: [HeaderName; 7] =
    [X_NOW_CACHE, X_NOW_ID, X_NOW_TRACE, X_NOW_ERROR, X_VERCEL_CACHE, X_VERCEL_ID, X_VERCEL_ERROR];

/// Finds out how the answer came about (product.md 5.4).
pub fn outcome(phase: CachePhase, exchange: &Exchange) -> Outcome {
    if let Some(bypass) = exchange.bypass {
        return Outcome::new(State::Bypass, bypass.as_str());
    }
    let waited = exchange.claim.as_ref().is_some_and(|claim| claim.waited());
    let follower = exchange.claim.as_ref().is_some_and(|claim| claim.is_follower());
    let not_stored = exchange.not_stored.map(|reason| reason.as_str());
    let source = exchange.stored.as_ref().map(|(entry, _)| entry.source);
    let tier = match source {
        Some(Source::Node) if waited => Some(Tier::Node),
        Some(Source::Region | Source::Neighbour) if waited => Some(Tier::Regional),
        _ => Some(Tier::Memory),
    };
    let mut outcome = match phase {
        CachePhase::Hit | CachePhase::Expired | CachePhase::Revalidated | CachePhase::RevalidatedNoCache(_)
            if exchange.revalidates =>
        {
            Outcome::new(State::Revalidated, "pragma")
        }
        CachePhase::Hit => match source {
            Some(Source::Node) if waited => Outcome::hit(Tier::Node),
            Some(Source::Region) if waited => Outcome::hit(Tier::Regional),
            _ if follower => Outcome::new(State::Miss, "collapsed"),
            _ if waited => Outcome::new(State::Miss, "cold"),
            _ => Outcome::hit(Tier::Memory),
        },
        CachePhase::Miss => Outcome::new(State::Miss, "cold"),
        CachePhase::Expired => Outcome::new(State::Miss, "expired"),
        CachePhase::Revalidated | CachePhase::RevalidatedNoCache(_) => Outcome::new(State::Miss, "validated"),
        CachePhase::Stale => Outcome { tier, ..Outcome::new(State::Stale, "stale_error") },
        CachePhase::StaleUpdating => Outcome { tier, ..Outcome::new(State::Stale, "stale_time") },
        CachePhase::Bypass => Outcome::new(State::Miss, not_stored.unwrap_or("uncacheable")),
        CachePhase::Disabled(NoCacheReason::CacheLockGiveUp) => {
            Outcome::new(State::Miss, not_stored.unwrap_or("uncacheable"))
        }
        _ => {
            Outcome::new(State::Miss, not_stored.unwrap_or(if exchange.failure.is_some() { "error" } else { "direct" }))
        }
    };
    outcome.collapsed = follower && outcome.state == State::Miss;
    outcome.stored = matches!(phase, CachePhase::Miss | CachePhase::Expired | CachePhase::Revalidated);
    outcome.ttl_s =
        exchange.lifetime.filter(|_| matches!(outcome.state, State::Hit | State::Stale)).map(|lifetime| match lifetime
            .fresh_until
            .duration_since(exchange.now)
        {
            Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            Err(past) => -i64::try_from(past.duration().as_secs()).unwrap_or(i64::MAX),
        });
    outcome
}

/// Puts the fields on that every answer carries, and takes off what is not the client's to know.
pub fn dress(header: &mut ResponseHeader, exchange: &Exchange) -> Result<()> {
    for name in OURS.iter().chain(&TARGETED) {
        if header.headers.contains_key(name) {
            header.remove_header(name);
        }
    }
    header.remove_header(&bridge::ERROR);
    cache_control(header, exchange)?;
    for (name, value) in &exchange.route_fields {
        if name != CACHE_CONTROL && !header.headers.contains_key(name) && !TARGETED.contains(name) {
            header.append_header(name.clone(), value.clone())?;
        }
    }
    for (name, value) in &exchange.route_fields_important {
        if name != CACHE_CONTROL {
            header.insert_header(name.clone(), value.clone())?;
        }
    }
    tags::strip(header);
    header.insert_header(SERVER, HeaderValue::from_static("now"))?;
    let id = exchange.id();
    if exchange.world.conf.headers.vercel {
        header.insert_header(X_VERCEL_ID, id.replace(':', "::"))?;
    }
    header.insert_header(X_NOW_ID, id)?;
    header.insert_header(X_NOW_TRACE, exchange.region())?;
    if let Some(outcome) = &exchange.outcome {
        header.insert_header(X_NOW_CACHE, HeaderValue::from_static(outcome.state.as_str()))?;
        if exchange.world.conf.headers.vercel {
            header.insert_header(X_VERCEL_CACHE, HeaderValue::from_static(outcome.state.as_str()))?;
        }
        header.insert_header(CACHE_STATUS, outcome.cache_status())?;
    }
    Ok(())
}

/// The client's Cache-Control: a route's important one, the origin's own, a route's, the default, in this order; each without what was
/// meant for this cache.
fn cache_control(header: &mut ResponseHeader, exchange: &Exchange) -> Result<()> {
    let own = header.headers.contains_key(CACHE_CONTROL);
    let value = if exchange.route_fields_important.contains_key(CACHE_CONTROL) {
        directives::for_client(&exchange.route_fields_important)
    } else if own {
        match &exchange.stored {
            Some((entry, _)) => entry.client_cache_control.clone(),
            None => directives::for_client(&header.headers),
        }
    } else {
        directives::for_client(&exchange.route_fields)
    };
    header.insert_header(CACHE_CONTROL, value)?;
    Ok(())
}

/// Sends the header of an answer that does not come through the cache's phases. `end`: there is no body.
pub async fn header(
    session: &mut Session,
    exchange: &mut Exchange,
    mut header: ResponseHeader,
    end: bool,
) -> Result<()> {
    if exchange.outcome.is_none()
        && let Some(bypass) = exchange.bypass
    {
        exchange.outcome = Some(Outcome::new(State::Bypass, bypass.as_str()));
    }
    for (name, value) in std::mem::take(&mut exchange.extra_fields) {
        header.insert_header(name, value)?;
    }
    dress(&mut header, exchange)?;
    session.write_response_header(Box::new(header), end).await
}

pub async fn header_only(session: &mut Session, exchange: &mut Exchange, head: ResponseHeader) -> Result<()> {
    header(session, exchange, head, true).await
}

async fn page(session: &mut Session, exchange: &mut Exchange, mut head: ResponseHeader, page: Page) -> Result<()> {
    head.insert_header(CONTENT_TYPE, page.content_type)?;
    whole(session, exchange, head, page.body).await
}

/// A whole answer of the edge's own.
async fn whole(session: &mut Session, exchange: &mut Exchange, mut head: ResponseHeader, body: Bytes) -> Result<()> {
    head.insert_header(CONTENT_LENGTH, body.len())?;
    let end = session.req_header().method == Method::HEAD;
    header(session, exchange, head, end).await?;
    if !end {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(())
}

fn format(session: &Session) -> Format {
    Format::negotiate(session.req_header().headers.get(http::header::ACCEPT).and_then(|value| value.to_str().ok()))
}

/// A failure of the platform: its code in the field and on the page, nothing of the cause.
pub async fn error(session: &mut Session, exchange: &mut Exchange, code: Code) -> Result<()> {
    let mut head = ResponseHeader::build_no_case(code.status(), Some(16))?;
    head.insert_header(X_NOW_ERROR, code.as_str())?;
    if exchange.world.conf.headers.vercel {
        head.insert_header(X_VERCEL_ERROR, code.as_str())?;
    }
    if code == Code::InvalidRequestMethod {
        head.insert_header(ALLOW, "GET, HEAD")?;
    }
    if let Some(seconds) = exchange.retry_after_s {
        head.insert_header(RETRY_AFTER, seconds)?;
    }
    let body = error::page(format(session), code, &exchange.id());
    // `dress` takes an origin's codes off; this one is ours.
    let code_field = HeaderValue::from_static(code.as_str());
    exchange.route_fields_important.insert(X_NOW_ERROR, code_field.clone());
    if exchange.world.conf.headers.vercel {
        exchange.route_fields_important.insert(X_VERCEL_ERROR, code_field);
    }
    page(session, exchange, head, body).await
}

/// A bare status: a route's, or a failure that was shared.
pub async fn status(session: &mut Session, exchange: &mut Exchange, status: u16) -> Result<()> {
    let head = ResponseHeader::build_no_case(status, Some(16))?;
    let body = error::status_page(format(session), status, &exchange.id());
    page(session, exchange, head, body).await
}

pub async fn redirect(session: &mut Session, exchange: &mut Exchange, status: u16, location: &str) -> Result<()> {
    let mut head = ResponseHeader::build_no_case(status, Some(16))?;
    head.insert_header(LOCATION, location)?;
    exchange.route_fields.remove(LOCATION);
    exchange.route_fields_important.remove(LOCATION);
    let body = error::redirect_page(format(session), status, location);
    page(session, exchange, head, body).await
}

pub async fn listing(session: &mut Session, exchange: &mut Exchange, path: &str, entries: &[ListEntry]) -> Result<()> {
    let entries: Vec<static_files::ListEntry> = entries
        .iter()
        .map(|entry| static_files::ListEntry {
            name: entry.name.clone(),
            is_dir: entry.is_dir,
            is_function: entry.is_function,
        })
        .collect();
    let mut head = ResponseHeader::build_no_case(200, Some(16))?;
    head.insert_header(CONTENT_TYPE, "text/html; charset=utf-8")?;
    whole(session, exchange, head, static_files::listing_page(path, &entries)).await
}
