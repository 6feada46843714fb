// The origin of scripts/collapse.sh: slow, failing or hanging as the path says, and counting its calls.
//
//   node origin.mjs PORT
//   /KIND/ID        answers as BEHAVIOURS[KIND] says; calls are counted for each path
//   /calls/KIND/ID  how many there were
//   /drop           ends what hangs

import http from 'node:http';

import { ORIGIN_MS, SLOW_BODY } from './scenarios.mjs';

const FRESH = { 'cache-control': 'public, s-maxage=600' };
const SOON_STALE = { 'cache-control': 'public, s-maxage=1, stale-while-revalidate=600' };
const BODY = Buffer.alloc(1024, 'x');

const calls = new Map();
const hanging = new Set();

const after = (ms, act) => (ms === 0 ? act() : setTimeout(act, ms));

/** Answers after `ms`. The number of the call tells the clients' side whose answer it got. */
function answer(res, call, ms, status, headers, body = BODY) {
  after(ms, () => {
    res.writeHead(status, { 'content-length': body.length, 'x-call': call, ...headers });
    res.end(body);
  });
}

/** The first call fills the cache, the others find out whether the origin is still well. */
const thenFails = (fail) => (req, res, call) => (call === 1 ? answer(res, call, 0, 200, SOON_STALE) : fail(req, res, call));
const failsBy500 = (_, res, call) => answer(res, call, ORIGIN_MS, 500, {});

const BEHAVIOURS = {
  warm: (_, res, call) => answer(res, call, 0, 200, FRESH),
  cold: (_, res, call) => answer(res, call, ORIGIN_MS, 200, FRESH),
  private: (_, res, call) => answer(res, call, ORIGIN_MS, 200, { 'cache-control': 'private, max-age=600' }),
  stale: (_, res, call) => answer(res, call, call === 1 ? 0 : ORIGIN_MS, 200, SOON_STALE),
  stale500: thenFails(failsBy500),
  stalereset: thenFails((req) => after(ORIGIN_MS, () => req.socket.resetAndDestroy())),
  e500: failsBy500,
  dies: (req) => after(ORIGIN_MS, () => req.socket.destroy()),
  slow: (_, res, call) => {
    const { headersAt, parts, pause, bytes } = SLOW_BODY;
    const part = Buffer.alloc(bytes / parts, 'x');
    after(headersAt, () => {
      res.writeHead(200, { 'content-length': bytes, 'x-call': call, ...FRESH });
      res.write(part);
      let sent = 1;
      const timer = setInterval(() => {
        sent += 1;
        if (sent < parts) return res.write(part);
        clearInterval(timer);
        res.end(part);
      }, pause);
      res.on('close', () => clearInterval(timer));
    });
  },
  hangs: (req) => {
    hanging.add(req.socket);
    req.socket.on('close', () => hanging.delete(req.socket));
  },
};

const server = http.createServer((req, res) => {
  const [, kind, id] = req.url.split('/');
  if (kind === 'calls') return res.end(String(calls.get(req.url.slice('/calls'.length)) ?? 0));
  if (kind === 'drop') {
    hanging.forEach((socket) => socket.destroy());
    return res.end();
  }
  if (!id || !BEHAVIOURS[kind]) return answer(res, 0, 0, 404, {});
  const call = (calls.get(req.url) ?? 0) + 1;
  calls.set(req.url, call);
  BEHAVIOURS[kind](req, res, call);
});
server.keepAliveTimeout = 120_000;
server.requestTimeout = 0;
server.listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096 });
