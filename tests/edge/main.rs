//! Black-box tests of the edge: real sockets, a real origin that counts, real Node functions.

mod support;

mod caching;
