//! The admin interface: HTTP and JSON, for the operator and the client commands (product.md section 4).

mod explain;
mod purge;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, ORIGIN, WWW_AUTHENTICATE};
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use pingora_http::ResponseHeader;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::cache::purge::{Mode, Scope};
use crate::cache::status::Tier;
use crate::conf;
use crate::deployment::DeploymentId;
use crate::deployment::alias::{Unchanged, World};
use crate::deployment::store::{self, Refused};
use crate::proxy::Edge;

/// A JSON body is not larger than this.
const JSON_BYTES_MAX: usize = 1 << 20;
/// An upload is not larger than this.
const UPLOAD_BYTES_MAX: u64 = 2 << 30;
/// Somebody who sends nothing for this long is not waited for.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Admin {
    edge: Arc<Edge>,
}

/// What is said in answer.
struct Answer {
    status: u16,
    content_type: &'static str,
    body: Bytes,
}

type Answered = Result<Answer, Answer>;

impl Answer {
    fn json(status: u16, value: &Value) -> Answer {
        let mut body = serde_json::to_vec_pretty(value).unwrap_or_default();
        body.push(b'\n');
        Answer { status, content_type: "application/json; charset=utf-8", body: body.into() }
    }

    fn text(status: u16, text: String) -> Answer {
        Answer { status, content_type: "text/plain; charset=utf-8", body: text.into() }
    }

    fn error(status: u16, code: &str, message: impl std::fmt::Display) -> Answer {
        Answer::json(status, &json!({"error": {"code": code, "message": message.to_string()}}))
    }
}

impl From<Unchanged> for Answer {
    fn from(unchanged: Unchanged) -> Answer {
        match &unchanged {
            Unchanged::Refused(Refused::Project(_)) => Answer::error(422, "project_refused", unchanged),
            Unchanged::Refused(Refused::Io(_)) => Answer::error(400, "not_deployed", unchanged),
            Unchanged::NotFound(_) => Answer::error(404, "not_found", unchanged),
            Unchanged::InUse(_) => Answer::error(409, "in_use", unchanged),
            Unchanged::Invalid(_) => Answer::error(400, "invalid", unchanged),
        }
    }
}

impl Admin {
    pub fn new(edge: Arc<Edge>) -> Admin {
        Admin { edge }
    }

    async fn answer(&self, session: &mut ServerSession) -> Answered {
        let request = session.req_header();
        let path = request.uri.path().to_owned();
        let query = request.uri.query().unwrap_or("").to_owned();
        let method = request.method.clone();
        // Health is for whoever watches over us; everything else is for the operator.
        match (&method, path.as_str()) {
            (&Method::GET | &Method::HEAD, "/healthz") => return Ok(Answer::text(200, "ok\n".to_owned())),
            (&Method::GET | &Method::HEAD, "/readyz") => return Ok(self.ready()),
            _ => {}
        }
        self.authorize(session)?;
        // Any page that the operator has open could send a form here. Browsers say where a POST comes from; the commands say nothing.
        if method != Method::GET && method != Method::HEAD && session.req_header().headers.contains_key(ORIGIN) {
            return Err(Answer::error(403, "forbidden", "web pages may not give orders to the admin interface"));
        }
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (&method, parts.as_slice()) {
            (&Method::GET | &Method::HEAD, [""]) => Ok(Answer::text(200, overview())),
            (&Method::GET | &Method::HEAD, ["metrics"]) => Ok(self.metrics()),
            (&Method::GET, ["v1", "deployments"]) => Ok(self.deployments()),
            (&Method::POST, ["v1", "deployments"]) => self.deploy(session, &query).await,
            (&Method::GET, ["v1", "deployments", id]) => self.deployment(&decode(id)),
            (&Method::DELETE, ["v1", "deployments", id]) => self.remove(decode(id)).await,
            (&Method::PUT, ["v1", "aliases", host]) => self.alias(session, decode(host)).await,
            (&Method::POST, ["v1", "purge"]) => {
                let order = read_json(session).await?;
                purge::carry_out(&self.edge, &order).await
            }
            (&Method::GET, ["v1", "explain"]) => explain::explain(&self.edge, &query).await,
            (_, ["v1", "deployments" | "purge" | "explain"] | ["v1", "deployments" | "aliases", _]) => {
                Err(Answer::error(405, "method_not_allowed", format!("{method} is not what {path} takes")))
            }
            _ => Err(Answer::error(404, "not_found", format!("there is nothing at {path}; GET / lists what there is"))),
        }
    }

    /// Checks the token, where there is one.
    fn authorize(&self, session: &ServerSession) -> Result<(), Answer> {
        let world = self.edge.registry.world();
        let Some(token) = &world.conf.admin_token else { return Ok(()) };
        let given = session.req_header().headers.get(AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        let given = given.strip_prefix(b"Bearer ").or_else(|| given.strip_prefix(b"bearer ")).unwrap_or(b"");
        // Digests compare in constant time, so that the answer's timing tells nothing.
        if blake3::hash(given) == blake3::hash(token.as_bytes()) {
            Ok(())
        } else {
            Err(Answer::error(
                401,
                "unauthorized",
                "the admin interface wants the token of admin.token (PERIGEE_TOKEN for the commands)",
            ))
        }
    }

    fn ready(&self) -> Answer {
        if !self.edge.ready.load(std::sync::atomic::Ordering::Acquire) {
            return Answer::text(503, "not ready: starting, or draining\n".to_owned());
        }
        let deployments = self.edge.registry.world().deployments().len();
        Answer::text(200, format!("ready, {deployments} deployments\n"))
    }

    fn metrics(&self) -> Answer {
        let metrics = &self.edge.metrics;
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.tiers();
        metrics.keys_in_flight.set(gauge(self.edge.lock.0.table.len()));
        metrics.deployments.set(gauge(self.edge.registry.world().deployments().len()));
        let census = self.edge.functions.census();
        for (state, count) in [("starting", census.starting), ("idle", census.idle), ("busy", census.busy)] {
            metrics.function_instances.get_or_create(&vec![("state", state)]).set(gauge(count));
        }
        metrics.function_waiting.set(gauge(census.waiting));
        Answer {
            status: 200,
            content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
            body: metrics.text().into(),
        }
    }

    /// Reads the gauges of the tiers.
    fn tiers(&self) {
        let (metrics, tiers) = (&self.edge.metrics, &self.edge.tiers);
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        metrics.tier_holds(Tier::Memory, tiers.memory.bytes(), tiers.memory.len() as u64);
        metrics.purge_marks.set(gauge((tiers.purges.logs.node.len() + tiers.purges.logs.region.len()) as u64));
        if let Some(node) = &tiers.node {
            let state = node.state();
            metrics.tier_holds(Tier::Node, state.bytes, state.entries);
            metrics.node_writable.set(i64::from(state.writable));
            metrics.node_dropped.set(gauge(state.puts_dropped + state.put_failures));
            metrics.node_corrupt.set(gauge(state.corrupt));
            metrics.node_evictions.set(gauge(state.evictions));
        }
        if let Some(region) = &tiers.region {
            let state = region.state();
            metrics.region_up.set(i64::from(state.connected && !state.breaker_open));
            metrics.region_queued_purges.set(gauge(state.queued_purges as u64));
        }
    }

    /// Takes all entries of a deployment out of service.
    async fn forget(&self, id: &DeploymentId) {
        let tiers = &self.edge.tiers;
        tiers.purges.order(tiers.region.as_ref(), &[Scope::deployment(&id.0)], Mode::Delete).await;
    }

    fn deployments(&self) -> Answer {
        let world = self.edge.registry.world();
        let all: Vec<Value> = world.deployments().iter().map(|deployment| describe(&world, deployment)).collect();
        Answer::json(200, &json!({"deployments": all}))
    }

    fn deployment(&self, name: &str) -> Answered {
        let world = self.edge.registry.world();
        match world.named(name) {
            Some(deployment) => {
                let mut value = describe(&world, deployment);
                value["functions"] = deployment.functions().iter().map(|function| function.path.clone()).collect();
                Ok(Answer::json(200, &value))
            }
            None => Err(Answer::error(404, "not_found", format!("there is no deployment {name:?}"))),
        }
    }

    async fn deploy(&self, session: &mut ServerSession, query: &str) -> Answered {
        let pairs = pairs(query);
        let name = pairs.iter().find(|(key, _)| key == "name").map(|(_, value)| value.clone());
        let name =
            name.ok_or_else(|| Answer::error(400, "invalid", "name=… is missing: what the deployment is called"))?;
        let name = conf::deployment_name(&name)
            .map_err(|why| Answer::error(400, "invalid", format!("name {name:?}, {why}")))?;
        let aliases: Vec<String> =
            pairs.into_iter().filter(|(key, _)| key == "alias").map(|(_, value)| value).collect();
        let io = |error: std::io::Error| {
            Answer::error(507, "not_stored", format!("the node cannot store the upload: {error}"))
        };
        let scratch = self.edge.registry.store().scratch().map_err(io)?;
        let archive = scratch.path().join("upload.tar");
        receive(session, &archive).await?;
        let edge = self.edge.clone();
        let made = blocking(move || {
            let files = scratch.path().join("files");
            std::fs::create_dir(&files).map_err(|error| Unchanged::Refused(Refused::Io(error.to_string())))?;
            store::unpack(&archive, &files)?;
            std::fs::remove_file(&archive).map_err(|error| Unchanged::Refused(Refused::Io(error.to_string())))?;
            edge.registry.deploy(&name, scratch, &aliases, edge.clock.now())
        })
        .await?;
        // "If you ever need to invalidate the CDN cache, you can always re-deploy" (seed "Caching"): the same content has the same id.
        self.forget(&made.deployment.id).await;
        let world = self.edge.registry.world();
        let mut value = describe(&world, &made.deployment);
        value["warnings"] = made.warnings.into();
        log::info!("deployed {} as {}", made.deployment.name, made.deployment.id);
        Ok(Answer::json(201, &value))
    }

    async fn remove(&self, name: String) -> Answered {
        let edge = self.edge.clone();
        let removed = blocking(move || edge.registry.remove(&name)).await?;
        self.edge.functions.retire(&removed.id);
        self.forget(&removed.id).await;
        log::info!("removed {}", removed.id);
        Ok(Answer::json(200, &json!({"removed": removed.id})))
    }

    async fn alias(&self, session: &mut ServerSession, host: String) -> Answered {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Order {
            deployment: String,
        }
        let order: Order = read_json(session).await?;
        let edge = self.edge.clone();
        let alias = host.clone();
        let (deployment, previous) = blocking(move || edge.registry.alias(&alias, &order.deployment)).await?;
        log::info!("{host} answers with {deployment} (before: {})", previous.as_ref().map_or("nothing", |id| &id.0));
        Ok(Answer::json(200, &json!({"alias": host, "deployment": deployment, "previous": previous})))
    }
}

fn describe(world: &World, deployment: &crate::deployment::Deployment) -> Value {
    json!({
        "id": deployment.id,
        "name": deployment.name,
        "url": world.url(&deployment.host),
        "aliases": world.aliases_of(&deployment.id),
        "created": rfc3339(deployment.created),
        "kind": deployment.kind(),
    })
}

fn overview() -> String {
    "Perigee admin\n\n\
     GET    /healthz /readyz /metrics\n\
     GET    /v1/deployments            all deployments\n\
     POST   /v1/deployments?name=&alias=  a tar (plain, gzip, zstd) as body\n\
     GET    /v1/deployments/ID         DELETE removes it\n\
     PUT    /v1/aliases/HOST           {\"deployment\": ID}\n\
     POST   /v1/purge                  {\"urls\": [], \"tags\": [], \"deployment\": ID, \"all\": false, \"mode\": \"invalidate\" | \"delete\"}\n\
     GET    /v1/explain?url=&method=&header=\n"
        .to_owned()
}

/// The disk is slow: not on a thread that serves requests.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Unchanged> + Send + 'static,
) -> Result<T, Answer> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Answer::from),
        Err(error) => Err(Answer::error(500, "internal", error)),
    }
}

/// The next part of a request's body.
async fn read(session: &mut ServerSession) -> Result<Option<Bytes>, Answer> {
    match tokio::time::timeout(READ_TIMEOUT, session.read_request_body()).await {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(error)) => Err(Answer::error(400, "cut_body", format!("the body did not arrive: {error}"))),
        Err(_) => Err(Answer::error(408, "slow_body", format!("nothing arrived for {READ_TIMEOUT:?}"))),
    }
}

async fn read_json<T: for<'de> Deserialize<'de>>(session: &mut ServerSession) -> Result<T, Answer> {
    let mut body = Vec::new();
    while let Some(chunk) = read(session).await? {
        body.extend_from_slice(&chunk);
        if body.len() > JSON_BYTES_MAX {
            return Err(Answer::error(
                413,
                "too_large",
                format!("a body of this kind has at most {JSON_BYTES_MAX} bytes"),
            ));
        }
    }
    serde_json::from_slice(&body)
        .map_err(|error| Answer::error(400, "invalid", format!("the body is not what is expected: {error}")))
}

/// Takes an upload down to a file.
async fn receive(session: &mut ServerSession, target: &std::path::Path) -> Result<(), Answer> {
    let too_large = || Answer::error(413, "too_large", format!("an upload has at most {} MB", UPLOAD_BYTES_MAX >> 20));
    let io =
        |error: std::io::Error| Answer::error(507, "not_stored", format!("the node cannot store the upload: {error}"));
    let headers = &session.req_header().headers;
    if crate::cache::policy::content_length(headers).is_some_and(|bytes| bytes > UPLOAD_BYTES_MAX) {
        return Err(too_large());
    }
    if headers.get(http::header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        session.write_continue_response().await.map_err(|error| Answer::error(400, "cut_body", error))?;
    }
    let mut file = tokio::fs::File::create(target).await.map_err(io)?;
    let mut bytes = 0;
    while let Some(chunk) = read(session).await? {
        bytes += chunk.len() as u64;
        if bytes > UPLOAD_BYTES_MAX {
            return Err(too_large());
        }
        file.write_all(&chunk).await.map_err(io)?;
    }
    file.flush().await.map_err(io)
}

/// The pairs of a query, decoded.
fn pairs(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(&value.replace('+', " ")))
        })
        .collect()
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// `2026-11-22T04:36:46Z`
fn rfc3339(time: std::time::SystemTime) -> String {
    let seconds = time.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (i64::try_from(seconds / 86_400).unwrap_or(0), seconds % 86_400);
    // Civil date from days, after Howard Hinnant's algorithm: years begin in March, so that the leap day is the last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3_600, second / 60 % 60, second % 60)
}

#[async_trait]
impl HttpServerApp for Admin {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        match session.read_request().await {
            Ok(true) => {}
            _ => return None,
        }
        session.set_keepalive(if *shutdown.borrow() { None } else { Some(60) });
        let answer = self.answer(&mut session).await.unwrap_or_else(|answer| answer);
        let head = session.req_header().method == Method::HEAD;
        let mut header = ResponseHeader::build(answer.status, Some(4)).ok()?;
        header.insert_header(CONTENT_TYPE, answer.content_type).ok()?;
        header.insert_header(CONTENT_LENGTH, answer.body.len()).ok()?;
        if answer.status == 401 {
            header.insert_header(WWW_AUTHENTICATE, "Bearer").ok()?;
        }
        // A body that nobody read would be taken for the next request.
        if !session.is_body_done() {
            session.set_keepalive(None);
        }
        session.write_response_header(Box::new(header)).await.ok()?;
        if !head {
            session.write_response_body(answer.body, true).await.ok()?;
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let stream = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_rfc_3339() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_322_206, "2026-11-22T04:36:46Z"),
        ] {
            assert_eq!(rfc3339(std::time::UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
