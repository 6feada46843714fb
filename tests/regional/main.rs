//! The region against real servers. Wants `redis-server` (7.0), and `openssl` for TLS.

mod differential;
mod faults;
mod lock;
mod node;
mod places;
mod purges;
mod server;
mod speed;
