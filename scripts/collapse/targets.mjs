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
 * of(scenario, burst) -> the medians of Perigee, direct(scenario, burst) -> those without a server between.
 * Judged with the direct run beside it where the figure is mostly that of the clients and the origin.
 */
export function judge({ of, direct, hang, nodes }) {
  const lines = [];
  const line = (isMet, text) => lines.push(`${isMet ? 'ok    ' : 'missed'}  ${text}`);

  const cold = of('cold', 0);
  line(
    cold.originCalls === 1 && cold.p99 <= 1.03 * ORIGIN_MS && onlyAnswers(cold, /^200$/),
    `cold key: 1 call, p99 at most 1.03 of the origin's ${ORIGIN_MS} ms: ${cold.originCalls}, ${ms(cold.p99)} = ${ratio(cold.p99, ORIGIN_MS)}`
      + ` (${ratio(cold.p99, direct('cold', 0).p99)} of direct)`,
  );
  const hit = of('cold', 1);
  line(hit.originCalls === 0 && onlyAnswers(hit, /^200$/), `second burst: no call: ${hit.originCalls}, p99 ${ms(hit.p99)}`);

  const slow = of('slow', 0);
  line(
    slow.originCalls === 1 && slow.firstP99 <= SLOW_BODY.headersAt + 50 && onlyAnswers(slow, /^200$/),
    `slow body: 1 call, first byte within 50 ms of its arrival at ${SLOW_BODY.headersAt} ms: ${slow.originCalls}, p50 ${ms(slow.firstP50)}, p99 ${ms(slow.firstP99)}`,
  );

  // The origin's share of 1,000 calls at once is in the direct run; what is Perigee's is the difference.
  const [first, second] = [of('private', 0), of('private', 1)];
  line(
    first.p99 <= 2.1 * ORIGIN_MS && onlyAnswers(first, /^200$/),
    `uncacheable: all released at the first header, p99 at most ${ms(2.1 * ORIGIN_MS)}: ${ms(first.p99)} (direct and ${ORIGIN_MS}: ${ms(ORIGIN_MS + direct('private', 0).p99)})`,
  );
  line(
    second.p99 <= 1.06 * ORIGIN_MS && onlyAnswers(second, /^200$/),
    `uncacheable, known: p99 at most ${ms(1.06 * ORIGIN_MS)}: ${ms(second.p99)} (direct: ${ms(direct('private', 1).p99)})`,
  );

  const stale = of('stale', 0);
  line(
    stale.originCalls === 1 && stale.p99 <= 25 && onlyAnswers(stale, /^200$/),
    `stale: 1 call, p99 at most 25 ms: ${stale.originCalls}, ${ms(stale.p99)} (direct, an origin that answers at once: ${ms(direct('stale', 0).p99)})`,
  );

  for (const [name, what] of [['stale500', '500'], ['stalereset', 'reset']]) {
    const bursts = [of(name, 0), of(name, 1)];
    line(
      bursts.every((row) => onlyAnswers(row, /^200$/) && row.calls.every((call) => call === '1') && row.originCalls <= 1),
      `failing refresh (${what}): the entry stays, at most 1 call a burst: ${bursts.map((row) => `${row.originCalls} (${told(row)})`).join('; ')}`,
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
      `first client leaves ${what}: 1 call, the others notice nothing: ${row.originCalls} (${told(row)}), p99 ${ms(row.p99)} of ${row.own} ms`,
    );
  }

  const late = Object.entries(hang.answers).filter(([answer, { to }]) => !answer.startsWith('unanswered') && to > GIVES_UP_MS + 500);
  const unanswered = hang.answers.unanswered?.count ?? 0;
  const asking = 1 + ALONE_MAX * nodes;
  line(
    late.length === 0 && hang.originCalls <= asking && unanswered <= hang.originCalls,
    `hanging origin: at most ${asking} calls, everybody else is answered within ${GIVES_UP_MS / 1000} s:`
      + ` ${hang.originCalls}, ${unanswered} of ${HANG.count} not answered`,
  );
  return lines;
}
