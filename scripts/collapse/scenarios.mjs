// What is played: one key each, asked for by a crowd, once or twice.

/** How long the origin takes, where nothing else is said. */
export const ORIGIN_MS = 500;
/** A body that arrives in parts, the first one with the header. */
export const SLOW_BODY = { headersAt: 100, parts: 17, pause: 100, bytes: 17 * 4096 };
const SLOW_BODY_MS = SLOW_BODY.headersAt + (SLOW_BODY.parts - 1) * SLOW_BODY.pause;

/** The first client asks so long before all others. */
const AHEAD_MS = 100;

/**
 * kind     what the origin does (`origin.mjs`)
 * primed   asked for once at each node, and then left to become stale
 * direct   also played against the origin itself, with this kind: what the clients and the origin cost without anything between them
 * bursts   label; own: from the request to the origin's last byte, for a client that waits for it; leaver, limit: see `burst.mjs`
 */
export const SCENARIOS = {
  cold: {
    kind: 'cold', count: 1000, direct: 'cold',
    bursts: [{ label: 'cold key', own: ORIGIN_MS }, { label: 'cold key, second burst' }],
  },
  private: {
    kind: 'private', count: 1000, direct: 'private',
    bursts: [{ label: 'uncacheable (private)', own: ORIGIN_MS }, { label: 'uncacheable, second burst', own: ORIGIN_MS }],
  },
  stale: {
    kind: 'stale', count: 1000, primed: true, direct: 'warm',
    bursts: [{ label: 'stale-while-revalidate' }],
  },
  stale500: {
    kind: 'stale500', count: 1000, primed: true,
    bursts: [{ label: 'stale, refresh gets 500' }, { label: 'stale, refresh gets 500, again' }],
  },
  stalereset: {
    kind: 'stalereset', count: 1000, primed: true,
    bursts: [{ label: 'stale, refresh is reset' }, { label: 'stale, refresh is reset, again' }],
  },
  slow: {
    kind: 'slow', count: 200, direct: 'slow',
    bursts: [{ label: 'slow body', own: SLOW_BODY_MS }],
  },
  e500: {
    kind: 'e500', count: 200,
    bursts: [{ label: 'cold key, origin says 500', own: ORIGIN_MS }],
  },
  dies: {
    kind: 'dies', count: 200,
    bursts: [{ label: 'cold key, origin closes', own: ORIGIN_MS }],
  },
  leaves: {
    kind: 'cold', count: 200,
    bursts: [{ label: 'first client leaves, no header', own: ORIGIN_MS - AHEAD_MS, leaver: { ahead: AHEAD_MS, stays: 250 } }],
  },
  leavesbody: {
    kind: 'slow', count: 200,
    bursts: [{ label: 'first client leaves, mid-body', own: SLOW_BODY_MS - AHEAD_MS, leaver: { ahead: AHEAD_MS, stays: 600 } }],
  },
};

/** Played at all servers at the same time: it is about seconds, and costs no CPU. */
export const HANG = { kind: 'hangs', count: 50, limit: 15_000 };
