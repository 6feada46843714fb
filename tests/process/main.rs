//! Black-box tests of the program: its commands, its signals, its end, and what is left on the disk.

#[path = "../edge/support/mod.rs"]
mod edge;
mod support;

mod commands;
mod deploying;
mod signals;
