//! The words for how an answer came about: `x-now-cache` and `Cache-Status` (RFC 9211), one row an outcome.

/// What `x-now-cache` says (seed "Caching").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    Hit,
    Miss,
    Bypass,
    Stale,
    Revalidated,
}

impl State {
    pub const ALL: [State; 5] = [State::Hit, State::Miss, State::Bypass, State::Stale, State::Revalidated];

    pub fn as_str(self) -> &'static str {
        match self {
            State::Hit => "HIT",
            State::Miss => "MISS",
            State::Bypass => "BYPASS",
            State::Stale => "STALE",
            State::Revalidated => "REVALIDATED",
        }
    }
}

/// A tier of the cache that answers can come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    Memory,
    Node,
    Regional,
}

impl Tier {
    pub const ALL: [Tier; 3] = [Tier::Memory, Tier::Node, Tier::Regional];

    pub fn as_str(self) -> &'static str {
        match self {
            Tier::Memory => "memory",
            Tier::Node => "node",
            Tier::Regional => "regional",
        }
    }
}

/// How the answer came about, with the reason that the operator will ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub state: State,
    /// A word for the log, `Cache-Status` and `explain`: `cold`, `collapsed`, `set_cookie`, …
    pub reason: &'static str,
    /// The tier that had the answer.
    pub tier: Option<Tier>,
    /// Seconds of freshness that are left; negative when stale.
    pub ttl_s: Option<i64>,
    /// Waited for another request's fetch.
    pub collapsed: bool,
    /// The response went into the cache.
    pub stored: bool,
}

impl Outcome {
    /// From this tier.
    pub fn hit(tier: Tier) -> Outcome {
        Outcome { tier: Some(tier), ..Outcome::new(State::Hit, tier.as_str()) }
    }

    pub fn new(state: State, reason: &'static str) -> Outcome {
        Outcome { state, reason, tier: None, ttl_s: None, collapsed: false, stored: false }
    }

    /// The member of `Cache-Status` (RFC 9211 section 2).
    pub fn cache_status(&self) -> String {
        let mut text = String::with_capacity(64);
        text.push_str("perigee");
        match self.state {
            State::Hit | State::Stale => text.push_str("; hit"),
            State::Bypass if self.reason == "method" => text.push_str("; fwd=method"),
            State::Bypass => text.push_str("; fwd=bypass"),
            State::Miss if self.reason == "expired" => text.push_str("; fwd=stale"),
            State::Miss => text.push_str("; fwd=uri-miss"),
            State::Revalidated => text.push_str("; fwd=request"),
        }
        if let Some(ttl) = self.ttl_s {
            text.push_str("; ttl=");
            text.push_str(itoa::Buffer::new().format(ttl));
        }
        if self.stored {
            text.push_str("; stored");
        }
        if self.collapsed {
            text.push_str("; collapsed");
        }
        if !self.reason.is_empty() {
            text.push_str("; detail=");
            text.push_str(self.reason);
        }
        // A stale answer says both why it is one and where it was.
        if let Some(tier) = self.tier.filter(|tier| tier.as_str() != self.reason) {
            text.push_str("; tier=");
            text.push_str(tier.as_str());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_told_in_the_words_of_rfc_9211() {
        let check = |outcome: Outcome, expected: &str| assert_eq!(outcome.cache_status(), expected);
        check(Outcome { ttl_s: Some(7), ..Outcome::new(State::Hit, "memory") }, "perigee; hit; ttl=7; detail=memory");
        check(Outcome::hit(Tier::Regional), "perigee; hit; detail=regional");
        check(
            Outcome { tier: Some(Tier::Node), ..Outcome::new(State::Stale, "stale_time") },
            "perigee; hit; detail=stale_time; tier=node",
        );
        check(
            Outcome { ttl_s: Some(-2), ..Outcome::new(State::Stale, "stale_time") },
            "perigee; hit; ttl=-2; detail=stale_time",
        );
        check(
            Outcome { stored: true, ..Outcome::new(State::Miss, "cold") },
            "perigee; fwd=uri-miss; stored; detail=cold",
        );
        check(
            Outcome { collapsed: true, ..Outcome::new(State::Miss, "collapsed") },
            "perigee; fwd=uri-miss; collapsed; detail=collapsed",
        );
        check(Outcome::new(State::Bypass, "method"), "perigee; fwd=method; detail=method");
        check(Outcome::new(State::Bypass, "range"), "perigee; fwd=bypass; detail=range");
    }
}
