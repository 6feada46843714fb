//! Where a request that the cache cannot answer goes: the instance of a function, an upstream, the target of a rewrite.
//! (The choice among regions will be made here.)

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorType};

use crate::deployment::UpstreamUrl;
use crate::error::Code;

/// An origin that stays silent for this long is given up (platform-facts 8: 120 s).
const READ_TIMEOUT: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an address is used before the name is asked for again.
const NAME_TTL: Duration = Duration::from_secs(30);
const NAME_TIMEOUT: Duration = Duration::from_secs(5);
/// Names that are remembered; beyond that all are asked for anew.
const NAMES_MAX: usize = 10_000;

/// An HTTP origin and what it is asked for.
#[derive(Debug)]
pub struct Target {
    pub url: UpstreamUrl,
    /// Path and query, where a route rewrote them; otherwise as the client asked.
    pub path_and_query: Option<String>,
    /// A route sends the request to somebody else: he is told his own name in `Host`.
    pub rewritten: bool,
}

impl Target {
    /// The target of an external rewrite: an absolute URL.
    pub fn rewrite(url: &str) -> Option<Target> {
        let upstream = UpstreamUrl::parse(url)?;
        let uri: http::Uri = url.parse().ok()?;
        let path_and_query = uri.path_and_query().map_or("/", |pq| pq.as_str()).to_owned();
        Some(Target { url: upstream, path_and_query: Some(path_and_query), rewritten: true })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.url.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.url.authority(), self.path_and_query.as_deref().unwrap_or(""))
    }
}

/// Remembers addresses of host names.
#[derive(Default)]
pub struct Names {
    known: Mutex<HashMap<(String, u16), (SocketAddr, Instant)>>,
}

impl Names {
    async fn address(&self, host: &str, port: u16) -> Result<SocketAddr, Code> {
        if let Ok(ip) = host.parse() {
            return Ok(SocketAddr::new(ip, port));
        }
        let key = (host.to_owned(), port);
        let known = self.known.lock().get(&key).copied();
        if let Some((address, asked)) = known
            && asked.elapsed() < NAME_TTL
        {
            return Ok(address);
        }
        match tokio::time::timeout(NAME_TIMEOUT, tokio::net::lookup_host((host, port))).await {
            Ok(Ok(mut found)) => {
                let address = found.next().ok_or(Code::DnsHostnameNotFound)?;
                let mut names = self.known.lock();
                if names.len() >= NAMES_MAX {
                    names.clear();
                }
                names.insert(key, (address, Instant::now()));
                Ok(address)
            }
            // A name service that fails makes us use what it said before.
            Ok(Err(error)) => known.map(|(address, _)| address).ok_or(name_error(&error)),
            Err(_) => known.map(|(address, _)| address).ok_or(Code::DnsHostnameResolveFailed),
        }
    }

    /// How to reach an upstream.
    pub async fn peer(&self, url: &UpstreamUrl) -> Result<HttpPeer, Code> {
        let address = self.address(&url.host, url.port).await?;
        let mut peer = HttpPeer::new(address, url.tls, url.host.clone());
        peer.options.connection_timeout = Some(CONNECT_TIMEOUT);
        peer.options.total_connection_timeout = Some(CONNECT_TIMEOUT * 2);
        peer.options.read_timeout = Some(READ_TIMEOUT);
        peer.options.write_timeout = Some(READ_TIMEOUT);
        // Shorter than what usual origins keep a connection for, so that a kept one is seldom found closed.
        peer.options.idle_timeout = Some(Duration::from_secs(4));
        Ok(peer)
    }
}

fn name_error(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::NotFound => Code::DnsHostnameNotFound,
        _ if error.to_string().contains("not known") => Code::DnsHostnameNotFound,
        _ => Code::DnsHostnameResolveFailed,
    }
}

/// The platform's code for what went wrong with an upstream.
pub fn failure(error: &Error) -> Code {
    match error.etype() {
        ErrorType::ConnectTimedout
        | ErrorType::ConnectRefused
        | ErrorType::ConnectNoRoute
        | ErrorType::ConnectError
        | ErrorType::ConnectProxyFailure
        | ErrorType::SocketError
        | ErrorType::BindError => Code::RouterExternalTargetConnectionError,
        ErrorType::TLSHandshakeFailure
        | ErrorType::TLSHandshakeTimedout
        | ErrorType::InvalidCert
        | ErrorType::HandshakeError => Code::RouterExternalTargetHandshakeError,
        _ => Code::RouterExternalTargetError,
    }
}
