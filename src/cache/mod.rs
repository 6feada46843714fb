//! The rules of caching. Pure: no file, no socket, no clock; everything a rule needs is passed in and every "no" has a reason.

pub mod directives;
pub mod entry;
pub mod freshness;
pub mod key;
pub mod packed;
pub mod policy;
pub mod purge;
pub mod status;
pub mod tags;
pub mod vary;
