//! The time of day, given as a value so that a test can let it pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Reads the system's clock, plus what a test has let pass. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicU64>,
}

impl Clock {
    pub fn now(&self) -> SystemTime {
        SystemTime::now() + self.ahead()
    }

    /// Lets time pass at once.
    pub fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A moment of this clock as the system's clock would call it: for Pingora, which reads that one.
    pub fn to_system(&self, time: SystemTime) -> SystemTime {
        time.checked_sub(self.ahead()).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn ahead(&self) -> Duration {
        Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }
}
