//! What an origin of the simulation answers, and what is stored of it: when, and by which rendering it came to be.

use std::time::Duration;

use bytes::Bytes;

use crate::cache::purge::{Epoch, Scope};
use crate::lock::region::Packed;
use crate::storage::memory::Slot;

/// Slots that share a tag.
const TAGS: u64 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    pub slot: Slot,
    pub created_ms: u64,
    pub fresh_until_ms: u64,
    pub stale_until_ms: u64,
    /// How far the log of purges had been read when its fetch began.
    pub began: Epoch,
    /// Its place among all that happened: a purge that happened later concerns it, whatever the epochs say.
    pub rendering: u64,
}

impl Page {
    pub fn packed(&self) -> Packed {
        Packed {
            parts: vec![self.head(), Bytes::from_static(b"body")],
            scopes: scopes(&self.slot).to_vec(),
            created_ms: self.created_ms,
            fresh_until_ms: self.fresh_until_ms,
            stale_until_ms: self.stale_until_ms,
            keep: Duration::from_millis(self.stale_until_ms.saturating_sub(self.created_ms) + 10_000),
        }
    }

    /// The part that comes first and says what it is.
    pub fn head(&self) -> Bytes {
        let numbers = [self.created_ms, self.fresh_until_ms, self.stale_until_ms, self.began.0, self.rendering];
        let mut head = self.slot.to_vec();
        numbers.iter().for_each(|number| head.extend_from_slice(&number.to_le_bytes()));
        head.into()
    }

    pub fn read(bytes: &[u8]) -> Page {
        let (slot, numbers) = bytes.split_first_chunk::<16>().expect("a page begins with its slot");
        let number =
            |at: usize| u64::from_le_bytes(numbers[at * 8..at * 8 + 8].try_into().expect("eight bytes are a number"));
        Page {
            slot: *slot,
            created_ms: number(0),
            fresh_until_ms: number(1),
            stale_until_ms: number(2),
            began: Epoch(number(3)),
            rendering: number(4),
        }
    }
}

pub fn slot(number: u64) -> Slot {
    let mut slot = [0; 16];
    slot[..8].copy_from_slice(&number.to_be_bytes());
    slot
}

pub fn number(slot: &Slot) -> u64 {
    u64::from_be_bytes(slot[..8].try_into().expect("a slot begins with its number"))
}

/// Everything that a purge of this slot may name, apart from `Scope::ALL`.
pub fn scopes(slot: &Slot) -> [Scope; 2] {
    let (mut key, mut tag) = (*slot, [0; 16]);
    key[15] = 1;
    tag[0] = u8::try_from(number(slot) % TAGS).expect("there are a few tags");
    tag[15] = 2;
    [Scope(key), Scope(tag)]
}
