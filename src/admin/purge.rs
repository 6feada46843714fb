//! Takes entries out of service: by URL, by tag, by deployment, or all; on this node, or everywhere in its region.

use pingora_http::RequestHeader;
use serde::Deserialize;
use serde_json::json;

use super::{Answer, Answered};
use crate::admit;
use crate::cache::key::Key;
use crate::cache::purge::{self, Scope};
use crate::cache::tags::TAG_BYTES_MAX;
use crate::exchange::Exchange;
use crate::proxy::Edge;
use crate::storage::purges::{Reached, Receipt};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    #[serde(default)]
    urls: Vec<String>,
    #[serde(default)]
    tags: Vec<String>,
    deployment: Option<String>,
    #[serde(default)]
    all: bool,
    #[serde(default)]
    mode: Mode,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Invalidate,
    Delete,
}

/// Scopes in one order. A tag takes 16 bytes in the log of purges.
const SCOPES_MAX: usize = 10_000;

pub async fn carry_out(edge: &Edge, order: &Order) -> Answered {
    let scopes = scopes(edge, order)?;
    let (mode, mode_name) = match order.mode {
        Mode::Invalidate => (purge::Mode::Invalidate, "invalidate"),
        Mode::Delete => (purge::Mode::Delete, "delete"),
    };
    for (scope, named) in [
        ("url", order.urls.len()),
        ("tag", order.tags.len()),
        ("deployment", usize::from(order.deployment.is_some())),
        ("all", usize::from(order.all)),
    ] {
        edge.metrics.purged(scope, mode_name, named);
    }
    let receipt = edge.tiers.purges.order(edge.tiers.region.as_ref(), &scopes, mode).await;
    if order.all && mode == purge::Mode::Delete {
        edge.tiers.clear().await;
    }
    log::info!(
        "purged ({mode_name}): urls={} tags={} deployment={} all={} as {}",
        order.urls.len(),
        order.tags.len(),
        order.deployment.as_deref().unwrap_or("-"),
        order.all,
        receipt.epoch,
    );
    Ok(answer(edge, &receipt, mode_name))
}

/// Who has it. 200: all do. 202: it holds here, and the others get it when they, or the region, are back.
fn answer(edge: &Edge, receipt: &Receipt, mode: &str) -> Answer {
    let own = &edge.registry.world().conf.node;
    let alone = || vec![json!({"node": own, "acknowledged": true, "after_ms": 0})];
    let (region, everywhere, nodes) = match &receipt.reached {
        Reached::Alone => ("none", true, alone()),
        Reached::Queued => ("unreachable", false, alone()),
        Reached::Region(nodes) => {
            let told = nodes.iter().map(|node| {
                let after_ms = u64::try_from(node.after.as_millis()).unwrap_or(u64::MAX);
                json!({"node": node.node, "acknowledged": node.acknowledged, "after_ms": after_ms})
            });
            ("reached", !nodes.is_empty() && nodes.iter().all(|node| node.acknowledged), told.collect())
        }
    };
    let mut told = json!({"id": receipt.epoch, "mode": mode, "region": region, "nodes": nodes});
    if let Some(why) = &receipt.not_kept {
        told["warning"] = json!(format!("it holds until this process ends, as it cannot be written down: {why}"));
    }
    Answer::json(if everywhere { 200 } else { 202 }, &told)
}

/// What an order names, as the purges name it.
fn scopes(edge: &Edge, order: &Order) -> Result<Vec<Scope>, Answer> {
    let invalid = |what: String| Answer::error(400, "invalid", what);
    if order.urls.is_empty() && order.tags.is_empty() && order.deployment.is_none() && !order.all {
        return Err(invalid("nothing to purge: name \"urls\", \"tags\", a \"deployment\", or \"all\": true".into()));
    }
    if order.urls.len() + order.tags.len() > SCOPES_MAX {
        return Err(invalid(format!("more than {SCOPES_MAX} urls and tags in one order; make several of it")));
    }
    let mut scopes = Vec::new();
    for url in &order.urls {
        scopes.push(Scope::key(&find(edge, url)?.0));
    }
    for tag in order.tags.iter().map(|tag| tag.trim()) {
        if tag.is_empty() || tag.len() > TAG_BYTES_MAX {
            return Err(invalid(format!("tag {tag:?} is not of 1 to {TAG_BYTES_MAX} bytes")));
        }
        scopes.push(Scope::tag(tag));
    }
    if let Some(name) = &order.deployment {
        match edge.registry.world().named(name) {
            Some(deployment) => scopes.push(Scope::deployment(&deployment.id.0)),
            None => return Err(Answer::error(404, "not_found", format!("there is no deployment {name:?}"))),
        }
    }
    if order.all {
        scopes.push(Scope::ALL);
    }
    Ok(scopes)
}

/// The key that a GET of this URL has.
fn find(edge: &Edge, url: &str) -> Result<Key, Answer> {
    let (exchange, _) = consider(edge, "GET", url, &[])?;
    match exchange.key {
        Some(key) => Ok(key),
        None => Err(Answer::error(
            404,
            "not_found",
            format!("{url}: is not answered through the cache; `perigee explain` says why"),
        )),
    }
}

/// Takes a URL as far as a request for it would come before anybody is asked.
pub fn consider(
    edge: &Edge,
    method: &str,
    url: &str,
    fields: &[(String, String)],
) -> Result<(Exchange, admit::Admitted), Answer> {
    let invalid = |what: String| Answer::error(400, "invalid", what);
    let uri: http::Uri = url.parse().map_err(|error| invalid(format!("{url}: {error}")))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(invalid(format!("{url}: is not a whole URL; write http://host/path")));
    };
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = RequestHeader::build(method, path.as_bytes(), None)
        .map_err(|error| invalid(format!("{method} {url}: {error}")))?;
    let field = |error: Box<pingora_error::Error>| invalid(format!("a header field cannot be used: {error}"));
    request.insert_header(http::header::HOST, authority.as_str()).map_err(field)?;
    for (name, value) in fields {
        request.append_header(name.clone(), value.as_str()).map_err(field)?;
    }
    let mut exchange = Exchange::begin(edge.registry.world().clone(), &edge.pod, edge.clock.now());
    exchange.scheme = match scheme {
        "https" => "https",
        _ => "http",
    };
    let admitted = admit::consider(&request, &mut exchange);
    Ok((exchange, admitted))
}
