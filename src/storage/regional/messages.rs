//! Messages about slots: one subscription of this process, many who wait for one slot each.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::storage::memory::Slot;

const SHARDS: usize = 16;

#[derive(Default)]
pub struct Messages {
    /// Guards who waits for which slot.
    shards: [Mutex<HashMap<Slot, Waiters>>; SHARDS],
}

struct Waiters {
    wake: Arc<Notify>,
    count: usize,
}

impl Messages {
    /// Ends at the next message about the slot. Counts from this call on, not from the first poll: who calls asks the region in between.
    pub fn wait(&self, slot: Slot) -> impl Future<Output = ()> + Send {
        let wake = {
            let mut shard = self.shard(&slot).lock();
            let waiters = shard.entry(slot).or_insert_with(|| Waiters { wake: Arc::default(), count: 0 });
            waiters.count += 1;
            waiters.wake.clone()
        };
        let leaving = Leaving { messages: self, slot };
        // `notify_waiters` reaches it even before it is polled.
        let message = wake.notified_owned();
        async move {
            let _leaving = leaving;
            message.await;
        }
    }

    pub fn wake(&self, slot: &Slot) {
        if let Some(waiters) = self.shard(slot).lock().get(slot) {
            waiters.wake.notify_waiters();
        }
    }

    /// Messages may have been lost: everybody looks again.
    pub fn wake_all(&self) {
        for shard in &self.shards {
            for waiters in shard.lock().values() {
                waiters.wake.notify_waiters();
            }
        }
    }

    /// Slots that somebody waits for.
    #[cfg(test)]
    pub fn slots(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    fn shard(&self, slot: &Slot) -> &Mutex<HashMap<Slot, Waiters>> {
        &self.shards[usize::from(slot[0]) % SHARDS]
    }
}

struct Leaving<'a> {
    messages: &'a Messages,
    slot: Slot,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut shard = self.messages.shard(&self.slot).lock();
        if let Some(waiters) = shard.get_mut(&self.slot) {
            waiters.count -= 1;
            if waiters.count == 0 {
                shard.remove(&self.slot);
            }
        }
    }
}

pub fn hex(bytes: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*bytes))
}

pub fn unhex(text: &[u8]) -> Option<[u8; 16]> {
    let digits = text.len() == 32 && text.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(text).ok().filter(|_| digits)?;
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_message_between_the_call_and_the_first_poll_is_not_lost() {
        let messages = Messages::default();
        let (first, second, other) = (messages.wait([1; 16]), messages.wait([1; 16]), messages.wait([2; 16]));
        messages.wake(&[1; 16]);
        first.await;
        second.await;
        assert!(timeout(Duration::from_millis(1), other).await.is_err());
        assert_eq!(messages.slots(), 0, "everybody left");
    }

    #[tokio::test]
    async fn the_last_to_leave_cleans_up_polled_or_not() {
        let messages = Messages::default();
        let first = messages.wait([1; 16]);
        let second = messages.wait([1; 16]);
        drop(first);
        assert_eq!(messages.slots(), 1);
        messages.wake_all();
        second.await;
        assert_eq!(messages.slots(), 0);
        messages.wake(&[1; 16]);
    }

    #[test]
    fn only_32_hex_digits_are_a_slot() {
        let slot: Slot = std::array::from_fn(|i| i as u8 * 16);
        assert_eq!(hex(&slot), "00102030405060708090a0b0c0d0e0f0");
        assert_eq!(unhex(hex(&slot).as_bytes()), Some(slot));
        for wrong in ["", "purge", "+0102030405060708090a0b0c0d0e0f0", "00102030405060708090a0b0c0d0e0f"] {
            assert_eq!(unhex(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
