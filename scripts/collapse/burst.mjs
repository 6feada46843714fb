// A crowd that asks for one thing at the same moment: opens all connections, then writes all requests, and notes what each client saw.
// Sockets and a few lines of HTTP/1.1, because a client library costs more per answer than the servers under test do.

import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

const CONNECT_AT_ONCE = 100;
const CONNECT_MS_MAX = 10_000;
/** After the last connection, so that the servers have accepted them all. */
const SETTLE_MS = 150;
const HEAD_BYTES_MAX = 64 * 1024;

/** Shared by all connections: a read is looked at before the next one happens. */
const readBuffer = Buffer.alloc(64 * 1024);

/** One client: its connection, its one request, and when which part of the answer came (ms of `performance.now`). */
class Client {
  wroteAt = 0;
  /** The first byte of the body: a server that sends its header early and then holds the body gains nothing. */
  bodyAt = null;
  endedAt = null;
  status = null;
  call = null;
  /** Why there is no complete answer. */
  broken = null;
  #head = '';
  #left = null;
  #chunkedTail = null;
  #over;

  constructor(port) {
    this.port = port;
    this.isOver = new Promise((resolve) => { this.#over = resolve; });
  }

  connect() {
    return new Promise((resolve, reject) => {
      const onread = { buffer: readBuffer, callback: (bytes, buffer) => this.#read(buffer.subarray(0, bytes)) };
      this.socket = net.connect({ port: this.port, host: '127.0.0.1', noDelay: true, onread });
      const timer = setTimeout(() => this.socket.destroy(new Error('not accepted')), CONNECT_MS_MAX);
      this.socket.once('connect', () => { clearTimeout(timer); resolve(); });
      this.socket.once('error', reject);
      this.socket.on('error', () => this.#end('reset'));
      this.socket.on('close', () => this.#end(this.status === null ? 'closed' : 'truncated'));
    });
  }

  ask(bytes) {
    this.wroteAt = performance.now();
    this.socket.write(bytes);
  }

  leave(why) {
    this.#end(why);
    this.socket.destroy();
  }

  #read(bytes) {
    const now = performance.now();
    if (this.status === null) {
      const text = bytes.latin1Slice();
      this.#head += text;
      const end = this.#head.indexOf('\r\n\r\n');
      if (end < 0) {
        if (this.#head.length > HEAD_BYTES_MAX) this.leave('no end of its header');
        return true;
      }
      const before = this.#head.length - text.length;
      this.#understand(this.#head.slice(0, end));
      bytes = bytes.subarray(end + 4 - before);
    }
    if (bytes.length > 0) this.bodyAt ??= now;
    if (this.#chunkedTail !== null) {
      this.#chunkedTail = (this.#chunkedTail + bytes.latin1Slice(Math.max(0, bytes.length - 5))).slice(-5);
      if (this.#chunkedTail === '0\r\n\r\n') this.#end(null, now);
    } else if (this.#left !== null) {
      this.#left -= bytes.length;
      if (this.#left <= 0) this.#end(null, now);
    }
    return true;
  }

  #understand(head) {
    this.status = Number(head.slice(9, 12));
    const field = (name) => head.match(new RegExp(`^${name}:[ \\t]*([^\\r\\n]*)`, 'im'))?.[1];
    this.call = field('x-call') ?? null;
    const length = field('content-length');
    if (length !== undefined) this.#left = Number(length);
    else if (/chunked/i.test(field('transfer-encoding') ?? '')) this.#chunkedTail = '';
  }

  #end(broken, now = performance.now()) {
    if (this.endedAt !== null) return;
    this.endedAt = now;
    this.broken = broken;
    this.#over();
  }
}

/** `values` must be sorted. */
export const percentile = (values, p) => values[Math.min(values.length - 1, Math.floor((values.length * p) / 100))];

const ascending = (values) => values.sort((a, b) => a - b);

/**
 * `count` requests for `path`, spread over `ports`.
 * leaver: one more client, that asks first (`ahead` ms before the others) and goes away `stays` ms after its request.
 * limit: after so many ms, those who have no answer yet leave.
 */
export async function burst({ ports, path, count, leaver = null, limit = 15_000 }) {
  const clients = Array.from({ length: count }, (_, i) => new Client(ports[i % ports.length]));
  const first = leaver && new Client(ports[0]);
  const all = first ? [first, ...clients] : clients;
  for (let i = 0; i < all.length; i += CONNECT_AT_ONCE) {
    await Promise.all(all.slice(i, i + CONNECT_AT_ONCE).map((client) => client.connect()));
  }
  await sleep(SETTLE_MS);
  globalThis.gc?.();
  const request = Buffer.from(`GET ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n`);
  if (first) {
    first.ask(request);
    setTimeout(() => first.leave('left'), leaver.stays);
    await sleep(leaver.ahead);
  }
  clients.forEach((client) => client.ask(request));
  const timer = setTimeout(() => clients.forEach((client) => client.endedAt ?? client.leave('unanswered')), limit);
  await Promise.all(clients.map((client) => client.isOver));
  clearTimeout(timer);
  all.forEach((client) => client.socket.destroy());
  return { ...tell(clients), writing: clients.at(-1).wroteAt - clients[0].wroteAt };
}

function tell(clients) {
  const took = (client) => client.endedAt - client.wroteAt;
  const times = ascending(clients.map(took));
  const firsts = ascending(clients.filter((client) => client.bodyAt !== null).map((client) => client.bodyAt - client.wroteAt));
  // What was answered (`200`, `502`, `truncated 200`, `closed`): how often, and when the first and the last one.
  const answers = new Map();
  for (const client of clients) {
    const name = [client.broken, client.status].filter((word) => word !== null).join(' ');
    const answer = answers.get(name) ?? { count: 0, from: Infinity, to: 0 };
    answer.count += 1;
    answer.from = Math.min(answer.from, took(client));
    answer.to = Math.max(answer.to, took(client));
    answers.set(name, answer);
  }
  return {
    p50: percentile(times, 50),
    p99: percentile(times, 99),
    max: times.at(-1),
    firstP50: firsts.length ? percentile(firsts, 50) : null,
    firstP99: firsts.length ? percentile(firsts, 99) : null,
    answers: Object.fromEntries(answers),
    calls: [...new Set(clients.map((client) => client.call))],
    ports: Object.fromEntries([...new Set(clients.map((c) => c.port))].map((port) => {
      const times = ascending(clients.filter((client) => client.port === port).map(took));
      return [port, { p50: percentile(times, 50), p99: percentile(times, 99) }];
    })),
  };
}
