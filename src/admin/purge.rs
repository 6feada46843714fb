//! Takes entries out of service: by URL, by deployment, or all.

use pingora_http::RequestHeader;
use serde::Deserialize;
use serde_json::json;

use super::{Answer, Answered};
use crate::admit;
use crate::cache::key::Key;
use crate::exchange::Exchange;
use crate::proxy::Edge;
use crate::storage::Purge;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    #[serde(default)]
    urls: Vec<String>,
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

pub fn carry_out(edge: &Edge, order: &Order) -> Answered {
    if order.urls.is_empty() && order.deployment.is_none() && !order.all {
        return Err(Answer::error(
            400,
            "invalid",
            "nothing to purge: name \"urls\", a \"deployment\", or \"all\": true",
        ));
    }
    let owner = match &order.deployment {
        None => None,
        Some(name) => match edge.registry.world().named(name) {
            Some(deployment) => Some(deployment.number),
            None => return Err(Answer::error(404, "not_found", format!("there is no deployment {name:?}"))),
        },
    };
    let keys = order.urls.iter().map(|url| find(edge, url)).collect::<Result<Vec<_>, _>>()?;
    let how = match order.mode {
        Mode::Invalidate => Purge::Invalidate,
        Mode::Delete => Purge::Delete,
    };
    let mut purged = keys.iter().filter(|key| edge.tiers.purge(key, how)).count();
    if let Some(owner) = owner {
        purged += edge.tiers.purge_owner(owner, how);
    }
    if order.all {
        purged += edge.tiers.purge_all();
    }
    edge.metrics.purges.inc();
    let node = &edge.registry.world().conf.node;
    Ok(Answer::json(200, &json!({"nodes": [{"node": node, "purged": purged}]})))
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
