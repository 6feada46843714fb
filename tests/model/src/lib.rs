//! Checks of the two-level request collapsing (src/lock) that no test against real sockets could make: thousands of runs with a network
//! that delays and loses, a store that forgets, nodes that die or stand still, in virtual time and from one seed each.
//!
//! The protocol is the very file that production uses, `lock/region.rs`; what lies around it is played:
//! ```text
//!   visitors ─▶ node (L1, one arbiter per key) ─▶ lock/region.rs ─▶ network (delays, losses) ─▶ store (the rules of the Redis scripts)
//!                        │                                              every operation and answer ─▶ watch (the invariants)
//!                        └─▶ origin (slow, failing, uncacheable, hanging)
//! ```
//! - `store`: what the store of a region does, as a pure state machine. The same rules as the scripts, written a second time.
//! - `network`: how nodes reach it. `node`: what a node does with it. `world`: one run of all that, from a seed.
//! - `watch`: what must never happen. It sees operations and answers only, and knows nothing of the rules of the store.

#[path = "../../../src/cache/purge.rs"]
pub mod purge;
#[path = "../../../src/lock/region.rs"]
pub mod region;

pub mod network;
pub mod node;
pub mod page;
pub mod store;
pub mod watch;
pub mod world;

/// The places where the files of production look for each other.
pub mod cache {
    pub use crate::purge;
}

pub mod lock {
    pub use crate::region;
}

pub mod storage {
    pub mod memory {
        pub type Slot = [u8; 16];
    }
}
