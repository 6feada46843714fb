//! One line a request, when it is over.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Instant;

use pingora_proxy::Session;

use crate::cache::status::Outcome;
use crate::deployment::DeploymentId;
use crate::error::Code;
use crate::exchange::{Exchange, Origin};

/// The target that the lines are logged under: `RUST_LOG=access=off` silences them, `access=info` alone shows nothing else.
const TARGET: &str = "access";

/// A path is cut at this: a line is for reading.
const PATH_BYTES_MAX: usize = 1024;

/// Whether anybody wants to know.
pub fn is_told() -> bool {
    log::log_enabled!(target: TARGET, log::Level::Info)
}

/// What a line says. Field=value, values without spaces.
pub struct Line<'a> {
    pub id: &'a str,
    pub host: &'a str,
    pub method: &'a str,
    pub path: &'a [u8],
    pub status: u16,
    pub outcome: Option<Outcome>,
    pub bytes_in: usize,
    pub bytes_out: usize,
    pub began: Instant,
    pub fetch_began: Option<Instant>,
    pub deployment: Option<&'a DeploymentId>,
    pub function: Option<&'a str>,
    pub background: bool,
    pub error: Option<Code>,
    pub client: Option<IpAddr>,
}

impl Default for Line<'_> {
    fn default() -> Self {
        Line {
            id: "-",
            host: "-",
            method: "-",
            path: b"-",
            status: 0,
            outcome: None,
            bytes_in: 0,
            bytes_out: 0,
            began: Instant::now(),
            fetch_began: None,
            deployment: None,
            function: None,
            background: false,
            error: None,
            client: None,
        }
    }
}

impl Line<'_> {
    pub fn tell(&self) {
        log::info!(target: TARGET, "{}", self.text(Instant::now()));
    }

    fn text(&self, now: Instant) -> String {
        let path = String::from_utf8_lossy(&self.path[..self.path.len().min(PATH_BYTES_MAX)]);
        let ms = |since: Instant| now.saturating_duration_since(since).as_secs_f64() * 1_000.0;
        let mut line = format!(
            "id={} host={} method={} path={} status={} cache={} reason={} bytes_in={} bytes_out={} ms={:.3}",
            self.id,
            if self.host.is_empty() { "-" } else { self.host },
            self.method,
            path.escape_debug(),
            self.status,
            self.outcome.map_or("-", |outcome| outcome.state.as_str()),
            self.outcome.map_or("-", |outcome| outcome.reason),
            self.bytes_in,
            self.bytes_out,
            ms(self.began),
        );
        let rest = [
            self.fetch_began.map(|began| format!(" origin_ms={:.3}", ms(began))),
            self.deployment.map(|deployment| format!(" deployment={deployment}")),
            self.function.map(|function| format!(" function={function}")),
            self.outcome.filter(|outcome| outcome.collapsed).map(|_| " collapsed".to_owned()),
            self.background.then(|| " background".to_owned()),
            self.error.map(|code| format!(" error={code}")),
            self.client.map(|client| format!(" client={client}")),
        ];
        rest.into_iter().flatten().for_each(|part| {
            let _ = write!(line, "{part}");
        });
        line
    }
}

/// Tells one exchange of the ProxyHttp path.
pub fn tell(session: &Session, exchange: &Exchange, status: u16) {
    if !is_told() {
        return;
    }
    let request = session.req_header();
    let downstream = session.as_downstream();
    Line {
        id: &exchange.id(),
        host: &exchange.authority,
        method: request.method.as_str(),
        path: request.raw_path(),
        status,
        outcome: exchange.outcome,
        bytes_in: downstream.body_bytes_read(),
        bytes_out: downstream.body_bytes_sent(),
        began: exchange.began,
        fetch_began: exchange.fetch_began,
        deployment: exchange.deployment.as_ref().map(|deployment| &deployment.id),
        function: match &exchange.origin {
            Origin::Function(function) => Some(&function.path),
            _ => None,
        },
        background: exchange.background,
        error: exchange.failure,
        client: exchange.client,
    }
    .tell();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cannot_be_broken_or_blown_up_by_a_path() {
        let line = Line { path: b"/a b\n\x1b[31m", ..Line::default() }.text(Instant::now());
        assert!(line.contains("path=/a b\\n\\u{1b}[31m "), "{line}");
        let long = vec![b'x'; 100_000];
        assert!(Line { path: &long, ..Line::default() }.text(Instant::now()).len() < 1_500);
    }
}
