//! Black-box tests of the edge: real sockets, a real origin that counts, real Node functions.

#[allow(dead_code)]
#[path = "../regional/server.rs"]
mod redis_server;
mod support;

mod caching;
mod collapse;
mod functions;
mod headers;
mod region;
mod routing;
mod static_files;
mod tiers;
