// Plays all scenarios at all servers, in turn, and prints what the clients saw. Called by scripts/collapse.sh, which starts the servers:
//
//   node --expose-gc run.mjs ORIGIN_PORT NAME=PORT[,PORT...] ...
//   ROUNDS: medians of so many. ONLY=cold,stale: these scenarios alone, and no targets.
//   VERBOSE=1: also each node of a region, and how long the clients needed to write.

import http from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';

import { burst } from './burst.mjs';
import { HANG, SCENARIOS } from './scenarios.mjs';
import { judge } from './targets.mjs';

const ROUNDS = Number(process.env.ROUNDS ?? 1);
/** s-maxage=1 is over after two seconds also for a cache that counts in whole ones. */
const STALE_AFTER_MS = 2_200;
/** A background refresh is over then (500 ms), and so is the second in which a failed one is not tried again. */
const BETWEEN_BURSTS_MS = 1_800;
/** Before each burst: the one before has closed its connections. */
const PAUSE_MS = 300;
const WELL_WITHIN_MS = 10_000;

const originPort = Number(process.argv[2]);
const servers = process.argv.slice(3).map((argument) => {
  const [name, ports] = argument.split('=');
  return { name, ports: ports.split(',').map(Number) };
});
const direct = { name: 'direct', ports: [originPort] };
const only = process.env.ONLY?.split(',');
const chosen = Object.entries(SCENARIOS).filter(([id]) => !only || only.includes(id));

/** One request; its status, or null when there is no answer. */
function get(port, path) {
  return new Promise((resolve) => {
    const request = http.get({ port, host: '127.0.0.1', path, agent: false, headers: { host: '127.0.0.1' }, timeout: 5_000 }, (res) => {
      let text = '';
      res.on('data', (part) => { text += part; });
      res.on('end', () => resolve({ status: res.statusCode, text }));
      res.on('error', () => resolve({ status: null }));
    });
    request.on('timeout', () => request.destroy());
    request.on('error', () => resolve({ status: null }));
  });
}

const originCalls = async (path) => Number((await get(originPort, `/calls${path}`)).text);

let keys = 0;
const newPath = (kind) => `/${kind}/${process.pid}-${(keys += 1)}`;

/** A scenario must not suffer from what the one before did to the server, so each begins with a node that answers. */
async function isWell({ name, ports }) {
  for (const port of ports) {
    const until = performance.now() + WELL_WITHIN_MS;
    for (;;) {
      const { status } = await get(port, newPath('warm'));
      if (status === 200) break;
      if (performance.now() > until) throw new Error(`${name} does not answer on port ${port}: ${status}`);
      await sleep(100);
    }
  }
}

const results = new Map();
const note = (scenario, at, server, row) => {
  const key = `${scenario}/${at}/${server.name}`;
  results.set(key, [...(results.get(key) ?? []), row]);
};

async function play(id, scenario, order) {
  const players = [];
  for (const server of scenario.direct ? [direct, ...order] : order) {
    await isWell(server);
    players.push({ server, path: newPath(server === direct ? scenario.direct : scenario.kind), before: 0 });
  }
  if (scenario.primed) {
    for (const player of players) {
      for (const port of player.server.ports) await get(port, player.path);
      player.before = await originCalls(player.path);
    }
    await sleep(STALE_AFTER_MS);
  }
  for (const [at, asked] of scenario.bursts.entries()) {
    const rows = new Map();
    for (const player of players) {
      // The origin has no second burst to answer from a cache.
      if (player.server === direct && at > 0 && !asked.own) continue;
      await sleep(PAUSE_MS);
      rows.set(player, await burst({ ...asked, ports: player.server.ports, path: player.path, count: scenario.count }));
    }
    if (scenario.primed) await sleep(BETWEEN_BURSTS_MS);
    for (const [player, row] of rows) {
      const calls = await originCalls(player.path);
      note(id, at, player.server, { ...row, originCalls: calls - player.before, own: asked.own ?? null });
      player.before = calls;
    }
  }
}

async function playHang(order) {
  await Promise.all(order.map(async (server) => {
    await isWell(server);
    const path = newPath(HANG.kind);
    const row = await burst({ ports: server.ports, path, count: HANG.count, limit: HANG.limit });
    note('hangs', 0, server, { ...row, originCalls: await originCalls(path) });
  }));
  await get(originPort, '/drop');
}

function median(values) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  if (sorted.length === 0) return null;
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Times are medians of the rounds; of calls the most in one, and of answers all that ever were (`most`: in one round). */
function summed(scenario, at, server) {
  const rows = results.get(`${scenario}/${at}/${server.name}`);
  if (!rows) return null;
  const of = (name) => median(rows.map((row) => row[name]));
  const answers = {};
  for (const row of rows) {
    for (const [answer, { count, from, to }] of Object.entries(row.answers)) {
      const all = (answers[answer] ??= { count: 0, most: 0, from: Infinity, to: 0 });
      all.count += count;
      all.most = Math.max(all.most, count);
      all.from = Math.min(all.from, from);
      all.to = Math.max(all.to, to);
    }
  }
  return {
    p50: of('p50'), p99: of('p99'), max: of('max'), firstP50: of('firstP50'), firstP99: of('firstP99'),
    own: rows[0].own, writing: of('writing'), originCalls: Math.max(...rows.map((row) => row.originCalls)),
    answers, calls: [...new Set(rows.flatMap((row) => row.calls))], ports: rows.at(-1).ports,
  };
}

const whole = (value) => (value === null ? '-' : value.toFixed(0));
const columns = (cells) => {
  const [label, server, ...figures] = cells;
  const answers = figures.pop();
  return `${label.padEnd(37)} ${server.padEnd(11)}${figures.map((cell) => String(cell).padStart(7)).join('')}  ${answers}`;
};
const seconds = ({ from, to }) => {
  const [first, last] = [(from / 1000).toFixed(1), (to / 1000).toFixed(1)];
  return first === last ? `${first} s` : `${first} to ${last} s`;
};

function print() {
  console.log(columns(['scenario (clients)', 'server', 'calls', 'p50', 'p99', 'max', 'first', 'ratio', 'answers']));
  for (const [id, scenario] of chosen) {
    for (const [at, asked] of scenario.bursts.entries()) {
      let label = `${asked.label} (${scenario.count})`;
      for (const server of [direct, ...servers]) {
        const row = summed(id, at, server);
        if (!row) continue;
        const answers = Object.entries(row.answers).map(([answer, { count }]) => `${count}x ${answer}`).join(', ');
        const ratio = row.own ? (row.p99 / row.own).toFixed(2) : '-';
        const first = scenario.kind === 'slow' ? whole(row.firstP50) : '-';
        console.log(columns([label, server.name, row.originCalls, whole(row.p50), whole(row.p99), whole(row.max), first, ratio, answers]));
        if (process.env.VERBOSE) {
          const nodes = Object.values(row.ports).map(({ p50, p99 }) => `${whole(p50)}/${whole(p99)}`);
          console.log(`${''.padEnd(50)}requests written within ${whole(row.writing)} ms; p50/p99 of each node: ${nodes.join(', ')}`);
        }
        label = '';
      }
    }
  }
  let label = `origin that hangs (${HANG.count})`;
  for (const server of servers) {
    const row = summed('hangs', 0, server);
    if (!row) continue;
    const answers = Object.entries(row.answers).map(([answer, all]) => `${all.count}x ${answer} at ${seconds(all)}`);
    console.log(columns([label, server.name, row.originCalls, '', '', '', '', '', answers.join(', ')]));
    label = '';
  }
}

// Once without a look at the figures: compiled code here, threads and buffers there.
for (const server of [direct, ...servers]) {
  await isWell(server);
  const path = newPath('warm');
  for (let i = 0; i < 2; i += 1) await burst({ ports: server.ports, path, count: 1000 });
}
for (let round = 0; round < ROUNDS; round += 1) {
  const turn = round % servers.length;
  const order = [...servers.slice(turn), ...servers.slice(0, turn)];
  for (const [id, scenario] of chosen) {
    await play(id, scenario, order);
    console.error(`round ${round + 1} of ${ROUNDS}: ${id}`);
  }
  if (!only || only.includes('hangs')) await playHang(order);
}
print();
if (!only) {
  for (const server of servers.filter(({ name }) => name.startsWith('perigee'))) {
    console.log(`\n${server.name}, targets`);
    const lines = judge({
      of: (scenario, at) => summed(scenario, at, server),
      direct: (scenario, at) => summed(scenario, at, direct),
      hang: summed('hangs', 0, server),
      nodes: server.ports.length,
    });
    lines.forEach((line) => console.log(line));
  }
}
