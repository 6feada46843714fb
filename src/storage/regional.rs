//! stub
use super::memory::Slot;
use crate::cache::purge::{Epoch, Mode, Purge, Scope};
use crate::conf::{self, Conf};
use crate::lock::region::*;
use crate::metrics::Metrics;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
pub struct Redis;
pub trait Sink: Send + Sync + 'static {
    fn purged(&self, purge: &Purge);
    fn lost(&self, from: Epoch);
    fn position(&self) -> Epoch;
}
pub struct Ack {
    pub member: String,
    pub acknowledged: bool,
    pub after: Duration,
}
pub struct Look {
    pub entry: Option<Bytes>,
    pub lock_holder: Option<(String, Duration)>,
    pub word: Option<(Word, Duration)>,
}
pub struct State {
    pub connected: bool,
    pub breaker_open: bool,
    pub queued_purges: usize,
}
pub fn connect(
    _: &Conf,
    _: &conf::Regional,
    _: Arc<dyn Sink>,
    _: &tokio::runtime::Handle,
    _: Arc<Metrics>,
) -> Result<Arc<Redis>, String> {
    Ok(Arc::new(Redis))
}
impl Redis {
    pub async fn purge(&self, _: &[Scope], _: Mode, _: Epoch) -> Result<Epoch, Unavailable> {
        Err(Unavailable)
    }
    pub async fn acknowledged(&self, _: Epoch, _: Duration) -> Vec<Ack> {
        Vec::new()
    }
    pub async fn look(&self, _: &Slot) -> Result<Look, Unavailable> {
        Err(Unavailable)
    }
    pub fn state(&self) -> State {
        State { connected: false, breaker_open: true, queued_purges: 0 }
    }
}
impl Region for Redis {
    async fn seek(&self, _: &Ask) -> Result<Sought, Unavailable> {
        Err(Unavailable)
    }
    async fn renew(&self, _: &Lease) -> Result<bool, Unavailable> {
        Err(Unavailable)
    }
    async fn commit(&self, _: &Lease, _: &Packed) -> Result<Committed, Unavailable> {
        Err(Unavailable)
    }
    async fn release(&self, _: &Lease, _: Option<Word>) -> Result<(), Unavailable> {
        Err(Unavailable)
    }
    async fn push(&self, _: &Lease, _: &Parts) -> Result<bool, Unavailable> {
        Err(Unavailable)
    }
    async fn pull(&self, _: &Slot, _: &Token, _: usize) -> Result<Parts, Unavailable> {
        Err(Unavailable)
    }
    async fn message(&self, _: &Slot) {}
}
