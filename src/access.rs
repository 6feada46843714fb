//! One line a request, when it is over.

use std::fmt::Write;
use std::time::Instant;

use pingora_proxy::Session;

use crate::exchange::{Exchange, Origin};

/// The target that the lines are logged under: `RUST_LOG=access=off` silences them, `access=info` alone shows nothing else.
const TARGET: &str = "access";

/// A path is cut at this: a line is for reading.
const PATH_BYTES_MAX: usize = 1024;

/// Tells one exchange. Field=value, values without spaces.
pub fn tell(session: &Session, exchange: &Exchange, status: u16, now: Instant) {
    if !log::log_enabled!(target: TARGET, log::Level::Info) {
        return;
    }
    let request = session.req_header();
    let path = String::from_utf8_lossy(request.raw_path());
    let path = path.get(..PATH_BYTES_MAX).unwrap_or(&path).escape_debug();
    let mut line = String::with_capacity(256);
    let ms = |since: Instant| now.saturating_duration_since(since).as_secs_f64() * 1_000.0;
    let result = write!(
        line,
        "id={} host={} method={} path={path} status={status} cache={} reason={} bytes_in={} bytes_out={} ms={:.3}",
        exchange.id(),
        if exchange.authority.is_empty() { "-" } else { &exchange.authority },
        request.method,
        exchange.outcome.map_or("-", |outcome| outcome.state.as_str()),
        exchange.outcome.map_or("-", |outcome| outcome.reason),
        session.as_downstream().body_bytes_read(),
        session.as_downstream().body_bytes_sent(),
        ms(exchange.began),
    );
    let rest = [
        exchange.fetch_began.map(|began| format!(" origin_ms={:.3}", ms(began))),
        exchange.deployment.as_ref().map(|deployment| format!(" deployment={}", deployment.id)),
        match &exchange.origin {
            Origin::Function(function) => Some(format!(" function={}", function.path)),
            _ => None,
        },
        exchange.outcome.filter(|outcome| outcome.collapsed).map(|_| " collapsed".to_owned()),
        exchange.background.then(|| " background".to_owned()),
        exchange.failure.map(|code| format!(" error={}", code.as_str())),
        exchange.client.map(|client| format!(" client={client}")),
    ];
    if result.is_ok() {
        rest.into_iter().flatten().for_each(|part| line.push_str(&part));
        log::info!(target: TARGET, "{line}");
    }
}
