// The origin of scripts/collapse.sh: slow, failing or hanging as the path says, and counting its calls.
//
//   node origin.mjs PORT
//   /KIND/ID        answers as BEHAVIOURS[KIND] says; calls are counted for each path
//   /calls/KIND/ID  how many there were
//   /drop           ends what hangs
//
// GET without a body, over sockets: a thousand calls at once cost node:http so much that its own time would be what is measured.

import net from 'node:net';

import { ORIGIN_MS, SLOW_BODY } from './scenarios.mjs';

const FRESH = 'cache-control: public, s-maxage=600';
const SOON_STALE = 'cache-control: public, s-maxage=1, stale-while-revalidate=600';
const PRIVATE = 'cache-control: private, max-age=600';
const BODY = 'x'.repeat(1024);
const REASONS = { 200: 'OK', 404: 'Not Found', 500: 'Internal Server Error' };
const HEAD_BYTES_MAX = 64 * 1024;

const calls = new Map();
const hanging = new Set();

const after = (ms, act) => (ms === 0 ? act() : setTimeout(act, ms));

/** The number of the call tells the clients' side whose answer it got. */
const head = (call, status, length, field) =>
  `HTTP/1.1 ${status} ${REASONS[status]}\r\nDate: ${new Date().toUTCString()}\r\nContent-Length: ${length}\r\nX-Call: ${call}\r\n${field}\r\n\r\n`;

const answer = (socket, call, ms, status, field, body = BODY) =>
  after(ms, () => socket.write(head(call, status, body.length, field) + body));

const failsBy500 = (socket, call) => answer(socket, call, ORIGIN_MS, 500, PRIVATE);
/** The first call fills the cache, the others find out whether the origin is still well. */
const thenFails = (fail) => (socket, call) => (call === 1 ? answer(socket, call, 0, 200, SOON_STALE) : fail(socket, call));

const BEHAVIOURS = {
  warm: (socket, call) => answer(socket, call, 0, 200, FRESH),
  cold: (socket, call) => answer(socket, call, ORIGIN_MS, 200, FRESH),
  private: (socket, call) => answer(socket, call, ORIGIN_MS, 200, PRIVATE),
  stale: (socket, call) => answer(socket, call, call === 1 ? 0 : ORIGIN_MS, 200, SOON_STALE),
  stale500: thenFails(failsBy500),
  stalereset: thenFails((socket) => after(ORIGIN_MS, () => socket.resetAndDestroy())),
  e500: failsBy500,
  dies: (socket) => after(ORIGIN_MS, () => socket.destroy()),
  slow: (socket, call) => {
    const { headersAt, parts, pause, bytes } = SLOW_BODY;
    const part = 'x'.repeat(bytes / parts);
    after(headersAt, () => {
      socket.write(head(call, 200, bytes, FRESH) + part);
      let sent = 1;
      const timer = setInterval(() => {
        socket.write(part);
        sent += 1;
        if (sent === parts || socket.destroyed) clearInterval(timer);
      }, pause);
    });
  },
  hangs: (socket) => {
    hanging.add(socket);
    socket.on('close', () => hanging.delete(socket));
  },
};

function asked(socket, path) {
  const [, kind, id] = path.split('/');
  if (kind === 'calls') return answer(socket, 0, 0, 200, PRIVATE, String(calls.get(path.slice('/calls'.length)) ?? 0));
  if (kind === 'drop') {
    hanging.forEach((hangs) => hangs.destroy());
    return answer(socket, 0, 0, 200, PRIVATE);
  }
  if (!id || !BEHAVIOURS[kind]) return answer(socket, 0, 0, 404, PRIVATE);
  const call = (calls.get(path) ?? 0) + 1;
  calls.set(path, call);
  return BEHAVIOURS[kind](socket, call);
}

function accepted(socket) {
  let request = '';
  socket.setEncoding('latin1');
  socket.setNoDelay(true);
  // A cache that goes away closes its connection: what would still be written is of no use.
  socket.on('error', () => socket.destroy());
  socket.on('data', (text) => {
    request += text;
    if (request.length > HEAD_BYTES_MAX) return socket.destroy();
    if (!request.endsWith('\r\n\r\n')) return;
    const path = request.split(' ', 2)[1] ?? '';
    request = '';
    asked(socket, path);
  });
}

net.createServer(accepted).listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096 });
