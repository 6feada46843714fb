//! Perigee: a self-hosted Smart CDN on Pingora. The modules in the order in which a newcomer reads them; ARCHITECTURE.md has the story.

pub mod cli;
pub mod conf;
pub mod reload;
pub mod server;

pub mod admit;
pub mod deliver;
pub mod error;
pub mod exchange;
pub mod front;
pub mod headers;
pub mod proxy;

pub mod deployment;
pub mod routing;

pub mod cache;
pub mod clock;
pub mod lock;
pub mod storage;

pub mod functions;
pub mod static_files;
pub mod static_origin;
pub mod upstream;

pub mod access;
pub mod admin;
pub mod metrics;
