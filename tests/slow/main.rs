//! What takes long, starts processes, or needs the rights of a superuser.
//!
//! `PERIGEE=target/release/perigee cargo test --test slow -- --ignored --nocapture --test-threads=1`: those that start nodes are meant for
//! the release build, and print what they measure.

#[path = "../edge/support/mod.rs"]
mod edge;
#[allow(dead_code)]
#[path = "../process/support.rs"]
mod process;
#[allow(dead_code)]
#[path = "../regional/server.rs"]
mod redis_server;

mod load;
mod nodes;

mod disk;
mod faults;
mod flood;
mod node;
mod purge_log;
mod region;
mod storm;
