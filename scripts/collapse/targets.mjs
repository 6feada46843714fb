// What Perigee shall reach. A line each: ok or missed, with the figures it was judged by.

import { HANG, ORIGIN_MS, SLOW_BODY } from './scenarios.mjs';

const ms = (value) => (value === null || value === undefined ? '-' : `${value.toFixed(value < 100 ? 1 : 0)} ms`);

const ratio = (a, b) => (a / b).toFixed(2);

const onlyAnswers = (row, pattern) => Object.keys(row.answers).every((answer) => pattern.test(answer));

const told = (row) => Object.entries(row.answers).map(([answer, { count }]) => `${count}x ${answer}`).join(', ');

/** The cache's lock_timeout, and the others of its bounds (ARCHITECTURE.md). */
const GIVES_UP_MS = 6_000;
const ALONE_MAX = 10;

/**
 * of(scenario, burst) -> what was seen of Perigee, direct(scenario, burst) -> of the origin itself, by the same crowd in the same run.
 * The origin's own time is what it says or, on a machine that is busy, what direct clients saw of it: a server in between cannot be
 * faster than that.
 */
export function judge({ of, direct, hang, nodes }) {
  const lines = [];
  const line = (isMet, text) => lines.push(`${isMet ? 'ok    ' : 'missed'}  ${text}`);
  const own = (scenario, at) => Math.max(ORIGIN_MS, direct(scenario, at).p99);

  const cold = of('cold', 0);
  line(
    cold.originCalls === 1 && cold.p99 <= 1.03 * own('cold', 0) && onlyAnswers(cold, /^200$/),
    `cold key: 1 call, p99 at most 1.03 of the origin's own: ${cold.originCalls}, ${ms(cold.p99)}, ${ratio(cold.p99, own('cold', 0))} of direct's`
      + ` ${ms(direct('cold', 0).p99)}, ${ratio(cold.p99, ORIGIN_MS)} of ${ORIGIN_MS} ms`,
  );
  const hit = of('cold', 1);
  line(hit.originCalls === 0 && onlyAnswers(hit, /^200$/), `second burst: no call: ${hit.originCalls}, p99 ${ms(hit.p99)}`);

  const slow = of('slow', 0);
  line(
    slow.originCalls === 1 && slow.firstP99 <= SLOW_BODY.headersAt + 50 && onlyAnswers(slow, /^200$/),
    `slow body: 1 call, first byte within 50 ms of its arrival at ${SLOW_BODY.headersAt} ms: ${slow.originCalls},`
      + ` p50 ${ms(slow.firstP50)}, p99 ${ms(slow.firstP99)}`,
  );

  const [first, second] = [of('private', 0), of('private', 1)];
  const [firstMax, secondMax] = [1.05 * (ORIGIN_MS + own('private', 0)), 1.06 * own('private', 1)];
  line(
    first.p99 <= firstMax && onlyAnswers(first, /^200$/),
    `uncacheable: all released at the first header, p99 at most ${ms(firstMax)} (1.05 of the origin's own and ${ORIGIN_MS} ms):`
      + ` ${ms(first.p99)}`,
  );
  line(
    second.p99 <= secondMax && onlyAnswers(second, /^200$/),
    `uncacheable, known: p99 at most ${ms(secondMax)} (1.06 of the origin's own): ${ms(second.p99)}`,
  );

  const stale = of('stale', 0);
  const staleMax = Math.max(25, direct('stale', 0).p99);
  line(
    stale.originCalls === 1 && stale.p99 <= staleMax && onlyAnswers(stale, /^200$/),
    `stale: 1 call, p99 at most 25 ms, or what an origin takes that answers at once (${ms(direct('stale', 0).p99)}):`
      + ` ${stale.originCalls}, ${ms(stale.p99)}`,
  );

  // Two: a connection that is reset may have been an old one, and is tried again on a new one.
  for (const [name, what] of [['stale500', '500'], ['stalereset', 'reset']]) {
    const bursts = [of(name, 0), of(name, 1)];
    line(
      bursts.every((row) => onlyAnswers(row, /^200$/) && row.calls.every((call) => call === '1') && row.originCalls <= 2),
      `failing refresh (${what}): the entry stays, at most 2 calls a burst:`
        + ` ${bursts.map((row) => `${row.originCalls} (${told(row)})`).join('; ')}`,
    );
  }
  for (const [name, what] of [['e500', 'says 500'], ['dies', 'closes']]) {
    const row = of(name, 0);
    line(
      row.originCalls <= 2 && onlyAnswers(row, /^5\d\d$/),
      `cold key, origin ${what}: at most 2 calls, the failure is shared: ${row.originCalls} (${told(row)}), p99 ${ms(row.p99)}`,
    );
  }
  for (const [name, what] of [['leaves', 'before the header'], ['leavesbody', 'in mid-body']]) {
    const row = of(name, 0);
    line(
      row.originCalls === 1 && onlyAnswers(row, /^200$/) && row.p99 <= 1.05 * row.own,
      `first client leaves ${what}: 1 call, the others notice nothing: ${row.originCalls} (${told(row)}),`
        + ` p99 ${ms(row.p99)} of ${row.own} ms`,
    );
  }

  // The first and those who went alone hang with the origin. A node that has waited for another one's lock in vain asks by itself.
  const late = Object.entries(hang.answers).filter(([answer, { to }]) => !answer.startsWith('unanswered') && to > GIVES_UP_MS + 500);
  const unanswered = hang.answers.unanswered?.most ?? 0;
  const asking = (1 + ALONE_MAX) * nodes;
  line(
    late.length === 0 && hang.originCalls <= asking && unanswered <= hang.originCalls,
    `hanging origin: at most ${asking} calls, everybody else is answered within ${GIVES_UP_MS / 1000} s:`
      + ` ${hang.originCalls}, ${unanswered} of ${HANG.count} not answered`,
  );
  return lines;
}
