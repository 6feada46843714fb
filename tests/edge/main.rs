//! Black-box tests of the edge: real sockets, a real origin that counts, real Node functions.

mod support;

mod caching;
mod collapse;
mod functions;
mod headers;
mod routing;
mod static_files;
mod tiers;
