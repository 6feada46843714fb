//! The wire to a function instance: HTTP/1.1 over its Unix socket, one connection an invocation. What crosses it besides the request and
//! the response are two fields, one each way; the function sees neither.

use std::time::Duration;

use http::HeaderMap;
use http::header::HeaderName;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::Result;

use crate::error::Code;

/// Request: which invocation this is; the launcher says with it when the invocation is over.
pub const INVOCATION: HeaderName = HeaderName::from_static("x-perigee-invocation");

/// Response: the function failed, and how. Comes with an empty body.
pub const ERROR: HeaderName = HeaderName::from_static("x-perigee-error");

/// How to reach an instance.
pub fn peer(socket: &str, limit: Duration) -> Result<HttpPeer> {
    let mut peer = HttpPeer::new_uds(socket, false, String::new())?;
    peer.options.connection_timeout = Some(Duration::from_secs(5));
    peer.options.total_connection_timeout = Some(Duration::from_secs(5));
    // The invocation's own time limit comes first; these end what hangs on although the instance is gone.
    peer.options.read_timeout = Some(limit + Duration::from_secs(5));
    peer.options.write_timeout = Some(limit + Duration::from_secs(5));
    // A connection serves one invocation: a kept one could break in the middle of the next, which must not be repeated.
    peer.options.idle_timeout = Some(Duration::ZERO);
    Ok(peer)
}

/// The failure that a response stands for.
pub fn failure(headers: &HeaderMap) -> Option<Code> {
    headers.get(ERROR).map(|value| match value.as_bytes() {
        b"NO_RESPONSE_FROM_FUNCTION" => Code::NoResponseFromFunction,
        _ => Code::FunctionInvocationFailed,
    })
}
