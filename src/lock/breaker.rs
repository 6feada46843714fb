//! Stops a storm against something that fails again and again (product.md 5.9). Pure: `now` is given.
//!
//! ```text
//!   Closed ── 5 failures in a row ──▶ Open(1 s) ── over ──▶ HalfOpen ── success ──▶ Closed
//!     ▲  success                        ▲                      │ failure
//!     └── clears the count              └── twice as long ◀────┘   (30 s at most)
//! ```

use std::time::{Duration, Instant};

use parking_lot::Mutex;

const FAILURES_TO_OPEN: u32 = 5;
const OPEN_MIN: Duration = Duration::from_secs(1);
const OPEN_MAX: Duration = Duration::from_secs(30);
/// A probe that never reports back (its request was dropped) makes room for another after this.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub struct Breaker {
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant, open_for: Duration },
    HalfOpen { since: Instant, open_for: Duration },
}

impl Default for State {
    fn default() -> State {
        State::Closed { failures: 0 }
    }
}

impl Breaker {
    /// May one more try? If not: how long to stay away.
    pub fn admit(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock();
        match *state {
            State::Closed { .. } => Ok(()),
            State::Open { until, .. } if now < until => Err(until - now),
            State::HalfOpen { since, open_for } if now < since + PROBE_TIMEOUT => Err(open_for),
            State::Open { open_for, .. } | State::HalfOpen { open_for, .. } => {
                *state = State::HalfOpen { since: now, open_for };
                Ok(())
            }
        }
    }

    pub fn succeeded(&self) {
        *self.state.lock() = State::default();
    }

    pub fn failed(&self, now: Instant) {
        let mut state = self.state.lock();
        *state = match *state {
            State::Closed { failures } if failures + 1 < FAILURES_TO_OPEN => State::Closed { failures: failures + 1 },
            State::Closed { .. } => State::Open { until: now + OPEN_MIN, open_for: OPEN_MIN },
            State::HalfOpen { open_for, .. } => {
                let open_for = (open_for * 2).min(OPEN_MAX);
                State::Open { until: now + open_for, open_for }
            }
            // One that was let through before it opened.
            open @ State::Open { .. } => open,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_five_failures_in_a_row_and_probes_with_one() {
        let breaker = Breaker::default();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        for _ in 0..4 {
            breaker.failed(at(0));
        }
        breaker.succeeded();
        for _ in 0..4 {
            breaker.failed(at(0));
        }
        assert!(breaker.admit(at(0)).is_ok(), "not in a row");
        breaker.failed(at(0));
        assert_eq!(breaker.admit(at(400)), Err(Duration::from_millis(600)));
        assert!(breaker.admit(at(1_000)).is_ok(), "one probe");
        assert!(breaker.admit(at(1_000)).is_err(), "and no other");
        breaker.failed(at(1_100));
        assert!(breaker.admit(at(3_000)).is_err(), "twice as long");
        assert!(breaker.admit(at(3_100)).is_ok());
        assert!(breaker.admit(at(13_100)).is_ok(), "a probe that got lost is replaced");
        breaker.succeeded();
        assert!(breaker.admit(at(13_101)).is_ok());
        for _ in 0..5 {
            breaker.failed(at(20_000));
        }
        for _ in 0..10 {
            let wait = breaker.admit(at(20_000)).expect_err("open");
            assert!(wait <= OPEN_MAX);
        }
    }
}
