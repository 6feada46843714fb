//! Keeps away from a store that fails or is slow. Pure: `now` is given. Unlike `lock::breaker` it also opens when every other operation
//! fails, and is closed early by what is asked in any case: the look at the log, or a new connection.
//!
//! ```text
//!   Closed ── 5 failures in a row, or 10 of the last 20 ──▶ Open(1 s) ── over ──▶ Probing ── success ──▶ Closed
//!     ▲                                                      │  ▲                    │ failure
//!     └── an answer to what was asked after it opened ───────┘  └── twice as long ◀──┘   (30 s at most, ± a fifth)
//! ```

use std::time::{Duration, Instant};

use parking_lot::Mutex;

const IN_A_ROW: u32 = 5;
const WINDOW: u32 = 20;
const OPEN_MIN: Duration = Duration::from_secs(1);
const OPEN_MAX: Duration = Duration::from_secs(30);
/// A probe that was dropped by its caller makes room for another: an operation does not take that long.
const PROBE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Breaker {
    /// Guards the state, for a few instructions.
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// The last outcomes, the newest in the lowest bit, a failure is a 1.
    Closed {
        outcomes: u32,
    },
    Open {
        since: Instant,
        until: Instant,
        open_for: Duration,
    },
    Probing {
        since: Instant,
        open_for: Duration,
    },
}

impl Default for State {
    fn default() -> State {
        State::Closed { outcomes: 0 }
    }
}

impl Breaker {
    pub fn admits(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        match *state {
            State::Closed { .. } => true,
            State::Open { until, .. } if now < until => false,
            State::Probing { since, .. } if now < since + PROBE => false,
            State::Open { open_for, .. } | State::Probing { open_for, .. } => {
                *state = State::Probing { since: now, open_for };
                true
            }
        }
    }

    pub fn is_open(&self) -> bool {
        !matches!(*self.state.lock(), State::Closed { .. })
    }

    pub fn close(&self) {
        *self.state.lock() = State::default();
    }

    /// `began`: when the operation did.
    pub fn succeeded(&self, began: Instant) {
        let mut state = self.state.lock();
        match &mut *state {
            State::Closed { outcomes } => *outcomes = (*outcomes << 1) & ((1 << WINDOW) - 1),
            // It was let through before it opened: that is no news.
            State::Open { since, .. } if began <= *since => {}
            State::Open { .. } | State::Probing { .. } => *state = State::default(),
        }
    }

    /// True when this is what opened it.
    pub fn failed(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        let open_for = match *state {
            State::Closed { outcomes } => {
                let outcomes = ((outcomes << 1) | 1) & ((1 << WINDOW) - 1);
                if outcomes.trailing_ones() < IN_A_ROW && outcomes.count_ones() < WINDOW / 2 {
                    *state = State::Closed { outcomes };
                    return false;
                }
                OPEN_MIN
            }
            State::Probing { open_for, .. } => (open_for * 2).min(OPEN_MAX),
            State::Open { .. } => return false,
        };
        *state = State::Open { since: now, until: now + open_for.mul_f64(0.8 + 0.4 * fastrand::f64()), open_for };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(outcomes: &str) -> (Breaker, Instant) {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for outcome in outcomes.chars() {
            match outcome {
                '+' => breaker.succeeded(now),
                _ => _ = breaker.failed(now),
            }
        }
        (breaker, now)
    }

    #[test]
    fn it_opens_after_five_in_a_row_or_half_of_twenty() {
        for (outcomes, open) in [
            ("----", false),
            ("-----", true),
            ("----+----+", false),
            ("-+-+-+-+-+-+-+-+-+", false),
            ("-+-+-+-+-+-+-+-+-+-", true),
            ("-++-++-++-++-++-++-++-++-++-++-++", false),
        ] {
            assert_eq!(after(outcomes).0.is_open(), open, "{outcomes}");
        }
    }

    #[test]
    fn it_probes_with_one_and_stays_away_twice_as_long_each_time() {
        let (breaker, mut now) = after("-----");
        assert!(!breaker.admits(now));
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            let at = |part: f64| now + Duration::from_secs_f64(f64::from(seconds) * part);
            assert!(!breaker.admits(at(0.79)), "{seconds}");
            assert!(breaker.admits(at(1.21)), "{seconds}: one probe");
            assert!(!breaker.admits(at(1.21)), "{seconds}: and no other");
            now = at(1.21);
            assert!(breaker.failed(now));
        }
        breaker.close();
        assert!(breaker.admits(now));
    }

    #[test]
    fn a_probe_that_succeeds_closes_it_and_one_that_got_lost_is_replaced() {
        let (breaker, now) = after("-----");
        let later = now + 2 * OPEN_MIN;
        assert!(breaker.admits(later));
        assert!(breaker.admits(later + PROBE));
        breaker.succeeded(later);
        assert!(!breaker.is_open());
    }

    #[test]
    fn what_was_asked_after_it_opened_and_answered_closes_it() {
        let (breaker, opened) = after("-----");
        breaker.succeeded(opened);
        assert!(breaker.is_open());
        breaker.succeeded(opened + Duration::from_millis(1));
        assert!(!breaker.is_open());
    }
}
