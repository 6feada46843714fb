//! Says why a URL is answered as it is: which deployment, which route, which cache key, which rule decided, what each tier holds.

use serde_json::{Value, json};

use super::purge::consider;
use super::{Answer, Answered, pairs};
use crate::admit::Admitted;
use crate::deployment::Content;
use crate::exchange::{Exchange, Origin};
use crate::proxy::Edge;
use crate::storage::Found;

pub fn explain(edge: &Edge, query: &str) -> Answered {
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
            "cache": cache(edge, &exchange, &admitted),
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

fn cache(edge: &Edge, exchange: &Exchange, admitted: &Admitted) -> Value {
    if let Some(bypass) = exchange.bypass {
        return json!({"consulted": false, "rule": bypass.as_str()});
    }
    let (Admitted::ToOrigin, Some(key)) = (admitted, exchange.key) else {
        return json!({"consulted": false, "rule": "answered by the edge itself"});
    };
    let memory = match edge.tiers.find(&key.0, &key.0) {
        None => json!({"holds": "nothing"}),
        Some(Found::Arriving(_)) => json!({"holds": "a response that is arriving"}),
        Some(Found::Stored(entry, lifetime)) => {
            let now = exchange.now;
            let seconds = |from: std::time::SystemTime, to: std::time::SystemTime| {
                to.duration_since(from).map_or(0, |d| d.as_secs())
            };
            json!({
                "holds": if lifetime.is_fresh(now) { "a fresh response" } else { "a stale response" },
                "bytes": entry.body.len(),
                "age_s": seconds(lifetime.created, now),
                "fresh_for_s": seconds(now, lifetime.fresh_until),
                "stale_for_s": seconds(lifetime.fresh_until, now),
                "stale_while_revalidate_s": lifetime.stale_while_revalidate_s,
                "stale_if_error_s": lifetime.stale_if_error_s,
                "vary": entry.header.headers.get("vary").and_then(|value| value.to_str().ok()),
            })
        }
    };
    json!({
        "consulted": true,
        "key": key.to_string(),
        "remembered_as_uncacheable": edge.uncacheable.is_remembered(&key.0, std::time::Instant::now()),
        "memory": memory,
        "being_fetched_with_waiters": edge.lock.0.table.waiting(&key.0),
    })
}
