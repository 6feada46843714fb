//! Says until when a response is fresh, and how long it may be used after that (RFC 9111 section 4.2, RFC 5861).

use std::time::{Duration, SystemTime};

use super::directives::Window;

/// The longest time that anything is kept: 1 year (seed "Caching", limits).
pub const LIFETIME_S_MAX: u64 = 31_536_000;

/// Static files stay at the edge for 31 days (seed "Caching").
pub const STATIC_S: u64 = 31 * 24 * 3600;

/// The two times and two windows of a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// When the response was generated, as far as its Age field tells.
    pub created: SystemTime,
    pub fresh_until: SystemTime,
    /// Seconds after `fresh_until` during which it may be served while it is revalidated.
    pub stale_while_revalidate_s: u32,
    /// Seconds after `fresh_until` during which it may be served when the origin fails.
    pub stale_if_error_s: u32,
}

/// `fresh_s` is the freshness lifetime in seconds, `age_s` what the Age field of the response said (RFC 9111 section 4.2.3).
pub fn lifetime(
    now: SystemTime,
    fresh_s: u64,
    age_s: u64,
    stale_while_revalidate: Option<Window>,
    stale_if_error: Option<Window>,
) -> Lifetime {
    let fresh_s = fresh_s.min(LIFETIME_S_MAX);
    let age_s = age_s.min(LIFETIME_S_MAX);
    let created = now.checked_sub(Duration::from_secs(age_s)).unwrap_or(SystemTime::UNIX_EPOCH);
    Lifetime {
        created,
        fresh_until: created + Duration::from_secs(fresh_s),
        stale_while_revalidate_s: window_s(stale_while_revalidate),
        stale_if_error_s: window_s(stale_if_error),
    }
}

fn window_s(window: Option<Window>) -> u32 {
    let seconds = match window {
        None => 0,
        Some(Window::Unbounded) => LIFETIME_S_MAX,
        Some(Window::Seconds(seconds)) => seconds.min(LIFETIME_S_MAX),
    };
    u32::try_from(seconds).expect("a year of seconds fits")
}

impl Lifetime {
    pub fn is_fresh(&self, now: SystemTime) -> bool {
        now < self.fresh_until
    }

    pub fn is_usable_while_revalidating(&self, now: SystemTime) -> bool {
        self.within(now, self.stale_while_revalidate_s)
    }

    pub fn is_usable_on_error(&self, now: SystemTime) -> bool {
        self.within(now, self.stale_if_error_s)
    }

    fn within(&self, now: SystemTime, window_s: u32) -> bool {
        window_s > 0 && now < self.fresh_until + Duration::from_secs(u64::from(window_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freshness_ends_and_the_windows_follow() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |seconds: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(1_000_000 + seconds).expect("small"))
        };
        let l = lifetime(now, 10, 0, Some(Window::Seconds(5)), None);
        for (seconds, fresh, stale) in
            [(0, true, true), (9, true, true), (10, false, true), (14, false, true), (15, false, false)]
        {
            assert_eq!(
                (l.is_fresh(at(seconds)), l.is_usable_while_revalidating(at(seconds))),
                (fresh, stale),
                "{seconds}"
            );
        }
        assert!(!l.is_usable_on_error(at(11)));
        // Age counts against freshness.
        assert_eq!(lifetime(now, 10, 4, None, None).fresh_until, at(6));
        assert!(!lifetime(now, 10, 40, None, None).is_fresh(now));
        // A year is the most, for each of them.
        let most = lifetime(now, u64::MAX, 0, Some(Window::Unbounded), Some(Window::Seconds(u64::MAX)));
        assert_eq!(most.fresh_until, at(31_536_000));
        assert_eq!((most.stale_while_revalidate_s, most.stale_if_error_s), (31_536_000, 31_536_000));
        // An age from the beginning of time is not a panic.
        assert!(!lifetime(SystemTime::UNIX_EPOCH, 10, u64::MAX, None, None).is_fresh(now));
    }
}
