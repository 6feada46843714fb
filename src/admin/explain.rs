//! Says why a URL is answered as it is: which deployment, which route, which cache key, which rule decided, what each tier holds.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::purge::consider;
use super::{Answer, Answered, pairs};
use crate::admit::Admitted;
use crate::cache::entry::{Entry, Source};
use crate::deployment::Content;
use crate::exchange::{Exchange, Origin};
use crate::lock::region::Word;
use crate::proxy::Edge;
use crate::storage::Found;
use crate::storage::memory::Slot;

pub async fn explain(edge: &Edge, query: &str) -> Answered {
    let mut url = None;
    let mut method = "GET".to_owned();
    let mut fields = Vec::new();
    for (key, value) in pairs(query) {
        match key.as_str() {
            "url" => url = Some(value),
            "method" if !value.is_empty() => method = value,
            "header" => match value.split_once(':') {
                Some((name, value)) => fields.push((name.trim().to_owned(), value.trim().to_owned())),
                None => return Err(Answer::error(400, "invalid", format!("header {value:?} is not name: value"))),
            },
            _ => {}
        }
    }
    let url = url.ok_or_else(|| Answer::error(400, "invalid", "url=… is missing"))?;
    let (exchange, admitted) = consider(edge, &method, &url, &fields)?;
    Ok(Answer::json(
        200,
        &json!({
            "url": url,
            "method": method,
            "host": exchange.host(),
            "deployment": deployment(&exchange),
            "route": exchange.route,
            "answer": answer(&admitted, &exchange),
            "cache": cache(edge, &exchange, &admitted).await,
        }),
    ))
}

fn deployment(exchange: &Exchange) -> Value {
    match &exchange.deployment {
        None => json!(null),
        Some(deployment) => json!({
            "id": deployment.id,
            "name": deployment.name,
            "url": exchange.world.url(&deployment.host),
            "kind": deployment.kind(),
            "upstream": match &deployment.content {
                Content::Upstream(url) => json!(url.authority()),
                Content::Project(_) => json!(null),
            },
        }),
    }
}

fn answer(admitted: &Admitted, exchange: &Exchange) -> Value {
    match admitted {
        Admitted::ToOrigin => match &exchange.origin {
            Origin::Static(file) => {
                json!({"by": "static file", "file": file.file().map(|file| file.url.clone()).unwrap_or_default()})
            }
            Origin::Function(function) => {
                json!({"by": "function", "function": function.path, "region": exchange.region(), "query": exchange.query})
            }
            Origin::Upstream(target) => {
                json!({"by": "upstream", "upstream": target.url.authority(), "target": target.path_and_query})
            }
            Origin::None => json!({"by": "nobody"}),
        },
        Admitted::Static { file, status } => {
            let file = file.file().map(|file| file.url.clone()).unwrap_or_default();
            json!({"by": "static file, from the disk", "file": file, "status": status})
        }
        Admitted::Redirect { status, location } => json!({"by": "redirect", "status": status, "location": location}),
        Admitted::Listing { path, .. } => json!({"by": "directory listing", "folder": path}),
        Admitted::Status(status) => json!({"by": "a route's status", "status": status}),
        Admitted::Failed(code) => json!({"by": "error", "status": code.status(), "code": code.as_str()}),
    }
}

async fn cache(edge: &Edge, exchange: &Exchange, admitted: &Admitted) -> Value {
    if let Some(bypass) = exchange.bypass {
        return json!({"consulted": false, "rule": bypass.as_str()});
    }
    let (Admitted::ToOrigin, Some(key)) = (admitted, exchange.key) else {
        return json!({"consulted": false, "rule": "answered by the edge itself"});
    };
    let slot = key.0;
    let memory = match edge.tiers.find(&slot, &slot) {
        None => json!({"holds": "nothing"}),
        Some(Found::Arriving(_)) => json!({"holds": "a response that is arriving"}),
        Some(Found::Stored(entry, _)) => held(edge, exchange, &entry),
    };
    let node = match (&edge.tiers.node, edge.tiers.look_at_node(&slot).await) {
        (None, _) => json!({"holds": "nothing", "off": true}),
        (Some(_), None) => json!({"holds": "nothing"}),
        (Some(_), Some(entry)) => held(edge, exchange, &entry),
    };
    let (regional, lock) = region(edge, exchange, &slot).await;
    json!({
        "consulted": true,
        "key": key.to_string(),
        "remembered_as_uncacheable": edge.uncacheable.is_remembered(&slot, std::time::Instant::now()),
        "memory": memory,
        "node": node,
        "regional": regional,
        "lock": {"node": {"fetching": edge.lock.0.table.waiting(&slot).is_some(), "waiting": edge.lock.0.table.waiting(&slot)}, "region": lock},
        "purges_read_up_to": {"node": edge.tiers.position().node.to_string(), "region": edge.tiers.position().region.to_string()},
    })
}

/// What the store of the region says: the entry, and who holds the lock.
async fn region(edge: &Edge, exchange: &Exchange, slot: &Slot) -> (Value, Value) {
    let Some(region) = &edge.tiers.region else {
        return (json!({"holds": "nothing", "off": true}), json!(null));
    };
    let Ok(look) = region.look(slot).await else {
        return (json!({"holds": "nobody knows", "unreachable": true}), json!({"unreachable": true}));
    };
    let entry = look.entry.and_then(|packed| edge.tiers.from_region(packed).ok());
    let held = entry.map_or_else(|| json!({"holds": "nothing"}), |entry| held(edge, exchange, &entry));
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let lock = match (look.lock_holder, look.word) {
        (Some((holder, left)), _) => json!({"holder": holder, "for_ms": ms(left)}),
        (None, Some((Word::Uncacheable, left))) => json!({"word": "uncacheable", "for_ms": ms(left)}),
        (None, Some((Word::Failed(what), left))) => json!({"word": "failed", "what": what, "for_ms": ms(left)}),
        (None, None) => json!({"holder": null}),
    };
    (held, lock)
}

/// One tier's copy, with what the purges made of it.
fn held(edge: &Edge, exchange: &Exchange, entry: &Entry) -> Value {
    let Some(lifetime) = edge.tiers.lifetime(entry) else {
        return json!({"holds": "a response that was purged"});
    };
    let now = exchange.now;
    let seconds = |from: SystemTime, to: SystemTime| to.duration_since(from).map_or(0, |d| d.as_secs());
    json!({
        "holds": if lifetime.is_fresh(now) { "a fresh response" } else { "a stale response" },
        "bytes": entry.body.len(),
        "age_s": seconds(lifetime.created, now),
        "fresh_for_s": seconds(now, lifetime.fresh_until),
        "stale_for_s": seconds(lifetime.fresh_until, now),
        "stale_while_revalidate_s": lifetime.stale_while_revalidate_s,
        "stale_if_error_s": lifetime.stale_if_error_s,
        "vary": entry.header.headers.get("vary").and_then(|value| value.to_str().ok()),
        "tags": entry.place.tags.iter().map(AsRef::as_ref).collect::<Vec<&str>>(),
        "invalidated": lifetime != entry.lifetime,
        "came_from": match entry.source {
            Source::Origin => "origin",
            Source::Node => "disk",
            Source::Region => "region",
            Source::Neighbour => "another node's fetch",
        },
    })
}
