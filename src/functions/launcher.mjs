// Runs inside every function instance: loads the user's entry file and answers HTTP on a Unix socket.
//
// Perigee starts `node launcher.mjs` once per instance and speaks to it over two sockets:
//   PERIGEE_SOCKET   the launcher listens here; one HTTP/1.1 request is one invocation.
//   PERIGEE_CONTROL  Perigee listens here; the launcher reports on it, one JSON object a line:
//                    ready, start-failed, end (an invocation is over), error (for the log).
// Time limits, body limits and freezing are Perigee's business. The launcher only has to say truthfully when an
// invocation is over, because Perigee freezes the process right after that.
//
// One file without dependencies, because Perigee embeds it and writes it out; plain Node >= 18, because the user
// chooses the Node.

import { AsyncLocalStorage } from 'node:async_hooks';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { stat } from 'node:fs/promises';
import http from 'node:http';
import net from 'node:net';
import { parse as parseForm } from 'node:querystring';
import { pathToFileURL } from 'node:url';
import { inspect } from 'node:util';

const LISTEN_WAIT_MS = 1_000;
// Perigee refuses bodies far below this. Above it the raw stream still works, only `req.body` does not.
const BODY_BYTES_MAX = 64 * 1024 * 1024;
// Perigee has limited the header section already; Node's 16 KiB would be a second, lower limit.
const HEADER_BYTES_MAX = 256 * 1024;
const REPORT_CHARS_MAX = 16 * 1024;

const METHODS = ['GET', 'HEAD', 'OPTIONS', 'POST', 'PUT', 'DELETE', 'PATCH'];
const OUR_HEADERS = /^x-perigee-/i;
const INVOCATION_HEADER = 'x-perigee-invocation';
// What describes the connection and not the message (RFC 9110 section 7.6.1); Node writes its own.
const CONNECTION_HEADERS = new Set(['connection', 'keep-alive', 'proxy-connection', 'te', 'trailer', 'transfer-encoding', 'upgrade']);

const invocations = new AsyncLocalStorage();
const settings = takeSettings();
let control;
let state = 'loading'; // loading -> started -> exiting

async function main() {
  control = await connectControl(settings.control);
  process.on('uncaughtException', crash);
  process.on('unhandledRejection', crash);
  process.on('exit', (code) => {
    if (state === 'loading') tell({ type: 'start-failed', message: `The process exited with code ${code} while the function was loading`, stack: '' });
  });
  globalThis[Symbol.for('@vercel/request-context')] = { get: () => invocations.getStore()?.context };

  try {
    const served = await load(settings);
    const server = createServer(served);
    // The unpatched `listen`: user code, or our own capture below, may have replaced the one on the prototype.
    realListen.call(server, settings.socket);
    await once(server, 'listening');
  } catch (error) {
    return startFailed(error);
  }
  if (state !== 'loading') return;
  state = 'started';
  tell({ type: 'ready' });
}

/** Reads the PERIGEE_* variables and removes them: user code and its children must not see them. */
function takeSettings() {
  const { PERIGEE_SOCKET, PERIGEE_CONTROL, PERIGEE_ENTRY, PERIGEE_HELPERS, PERIGEE_WEB_API } = process.env;
  for (const name of Object.keys(process.env)) {
    if (name.startsWith('PERIGEE_')) delete process.env[name];
  }
  process.env.NODE_ENV ??= 'production';
  for (const [name, value] of Object.entries({ PERIGEE_SOCKET, PERIGEE_CONTROL, PERIGEE_ENTRY })) {
    if (!value) {
      process.stderr.write(`launcher: ${name} is not set; this file is started by Perigee, not by hand\n`);
      process.exit(1);
    }
  }
  // Programs that look at their own command line expect to find themselves there.
  process.argv.splice(1, 1, PERIGEE_ENTRY);
  return {
    socket: PERIGEE_SOCKET,
    control: PERIGEE_CONTROL,
    entry: PERIGEE_ENTRY,
    helpers: PERIGEE_HELPERS !== '0',
    webApi: PERIGEE_WEB_API === '1', // `useWebApi` of a .vc-config.json: a default function is (Request) => Response
  };
}

// ---------------------------------------------------------------------------------------------------------------
// Control socket, errors, exit

async function connectControl(path) {
  const socket = net.connect(path);
  try {
    await once(socket, 'connect');
  } catch (error) {
    process.stderr.write(`launcher: no connection to Perigee at ${path}: ${error.message}\n`);
    process.exit(1);
  }
  // Perigee is gone, so nobody will freeze, limit or stop this process. SIGKILL, because `process.exit` runs the
  // user's exit handlers, and one of those may never come back.
  const orphaned = () => state !== 'exiting' && process.kill(process.pid, 'SIGKILL');
  socket.on('error', orphaned).on('close', orphaned).resume();
  return socket;
}

function tell(message) {
  control.write(`${JSON.stringify(message)}\n`);
}

function report(error, invocation) {
  tell({ type: 'error', id: invocation?.id ?? null, ...describe(error) });
}

/** Anything may be thrown: strings, null, proxies with throwing getters. */
function describe(error) {
  try {
    const message = error instanceof Error ? `${error.name}: ${error.message}` : inspect(error);
    const stack = inspect(error); // Unlike `error.stack`, this has the causes.
    return { message: message.slice(0, REPORT_CHARS_MAX), stack: stack.slice(0, REPORT_CHARS_MAX) };
  } catch {
    return { message: 'A value that cannot be printed was thrown', stack: '' };
  }
}

function startFailed(error) {
  if (state === 'exiting') return;
  state = 'exiting';
  tell({ type: 'start-failed', ...describe(error) });
  exit();
}

/** An error that belongs to no handler's promise: the state of the process is unknown, as in Lambda it has to go. */
function crash(error) {
  if (state === 'loading') return startFailed(error);
  if (state === 'exiting') return;
  state = 'exiting';
  report(error, invocations.getStore());
  process.stderr.write(`${describe(error).stack}\n`);
  exit();
}

function exit() {
  // A write to a Unix socket is done at once unless Perigee has stopped reading; then it gets a moment.
  if (control.writableLength === 0) process.exit(1);
  setTimeout(() => process.exit(1), 500);
  control.end(() => process.exit(1));
}

// ---------------------------------------------------------------------------------------------------------------
// Loading: from the entry file to something that serves a request

/**
 * Imports the entry and returns what serves it:
 * `{ handle(req, res), helpers, server? }`; `server` is the user's own, for its upgrade listeners.
 */
async function load({ entry, helpers, webApi }) {
  const capture = captureListen();
  const module = await importEntry(entry);

  for (const exported of unwrap(module)) {
    if (isWebModule(exported)) return { handle: webHandler(webModule(exported)) };
    if (typeof exported === 'function') {
      if (webApi) return { handle: webHandler(exported) };
      // An app (Express, Connect) brings its own `res.send` and `req.query`.
      return { handle: nodeHandler(exported), helpers: helpers && typeof exported.listen !== 'function' };
    }
    if (isHttpServer(exported)) return { handle: serverHandler(exported), server: exported };
  }

  const server = await capture.within(LISTEN_WAIT_MS);
  if (server) return { handle: serverHandler(server), server };
  throw new Error(
    `Can't detect a way to handle requests in ${entry}: export a function (req, res), functions named after HTTP ` +
      `methods (GET, POST, ...) or \`fetch\`, or an HTTP server, or call \`listen\` on one within ${LISTEN_WAIT_MS} ms`,
  );
}

async function importEntry(entry) {
  const found = await stat(entry).catch(() => null);
  if (!found?.isFile()) throw new Error(`The entry file ${entry} does not exist`);
  try {
    return await import(pathToFileURL(entry).href);
  } catch (error) {
    const untold = error?.code === 'ERR_UNKNOWN_FILE_EXTENSION' || error?.code === 'ERR_UNSUPPORTED_TYPESCRIPT_SYNTAX';
    if (untold && /\.(?:[cm]?tsx?|jsx)$/.test(entry)) {
      throw new Error(`Node ${process.version} cannot load ${entry} as it is: build it to JavaScript first`, { cause: error });
    }
    throw error;
  }
}

/**
 * The module and what is under its nested `default`s (TypeScript compiled to CommonJS nests them), innermost first.
 * The outer levels are looked at too, for `export const GET` next to a `default` that is only data.
 */
function unwrap(module) {
  const levels = [module];
  for (let depth = 0; depth < 5 && levels[0]?.default; depth++) levels.unshift(levels[0].default);
  return levels.filter((level) => level !== null && ['object', 'function'].includes(typeof level));
}

function isWebModule(exported) {
  return [...METHODS, 'fetch'].some((name) => typeof exported[name] === 'function');
}

/** `http.Server` and `https.Server` have no common class below `net.Server`, but this method. */
function isHttpServer(value) {
  return value instanceof net.Server && typeof value.closeIdleConnections === 'function';
}

const realListen = net.Server.prototype.listen;

/**
 * Catches the server of a program that calls `listen` itself. It never really listens: requests reach it through our
 * own server, and two instances that both wanted port 3000 would only break each other.
 *
 * The patch stays for the life of the process, because `connectDatabase().then(() => app.listen(3000))` comes late.
 * Swallowed are the first server that listens outside of any invocation, and others on the same port (Fastify binds
 * ::1 and 127.0.0.1 apart). Any other `listen` is real.
 */
function captureListen() {
  let captured = null;
  let announce;
  const announced = new Promise((resolve) => (announce = resolve));

  net.Server.prototype.listen = function listen(...args) {
    const port = portOf(args);
    const isFirst = captured === null && invocations.getStore() === undefined;
    const isTwin = captured !== null && (captured.server === this || (port !== 0 && captured.port === port));
    if (!isHttpServer(this) || !(isFirst || isTwin)) return realListen.apply(this, args);

    if (isFirst) {
      captured = { server: this, port };
      announce(this);
    }
    // Programs print these, or wait for them.
    const listening = { value: true, configurable: true, writable: true };
    const address = { value: () => ({ address: '127.0.0.1', family: 'IPv4', port: port || 3000 }), configurable: true, writable: true };
    Object.defineProperties(this, { listening, address });
    const callback = args.at(-1);
    if (typeof callback === 'function') this.once('listening', callback);
    process.nextTick(() => this.emit('listening'));
    return this;
  };

  return {
    within: (ms) => {
      let timer;
      const late = new Promise((resolve) => (timer = setTimeout(resolve, ms, null)));
      return Promise.race([announced, late]).finally(() => clearTimeout(timer));
    },
  };
}

function portOf([first]) {
  const port = Number(typeof first === 'object' && first !== null ? first.port : first);
  return Number.isInteger(port) ? port : 0;
}

// ---------------------------------------------------------------------------------------------------------------
// Serving: one request, one invocation

function createServer({ handle, helpers = false, server: userServer = null }) {
  const classes = helpers ? { IncomingMessage: HelpedRequest, ServerResponse: HelpedResponse } : {};
  const server = http.createServer({ ...classes, maxHeaderSize: HEADER_BYTES_MAX });
  // Perigee enforces the time limits. A timer here would cut slow streams, and all timers fire at once after a thaw.
  server.requestTimeout = 0;
  server.headersTimeout = 0;
  server.keepAliveTimeout = 0;
  server.timeout = 0;

  server.on('request', (req, res) => serve(handle, req, res));
  server.on('upgrade', (req, socket, head) => upgrade(userServer, req, socket, head));
  return server;
}

/**
 * One request from the point of view of the process. It is over when nothing holds it any more:
 *
 *   response --- finished -------------------------------.
 *      '-------- client gone --- handler has settled ----+--> end
 *   waitUntil promises --- settled ----------------------'
 */
class Invocation {
  #holds = 0;
  #isOver = false;

  constructor(req) {
    this.id = takeHeader(req, INVOCATION_HEADER);
    this.context = {
      waitUntil: (promise) => this.waitUntil(promise),
      headers: req.headers,
      url: urlOf(req),
    };
  }

  /** Keeps the invocation open until the returned function is called. */
  hold() {
    this.#holds += 1;
    let isHeld = true;
    return () => {
      if (!isHeld) return;
      isHeld = false;
      this.#holds -= 1;
      if (this.#holds > 0 || this.#isOver) return;
      this.#isOver = true;
      if (this.id !== null) tell({ type: 'end', id: this.id });
    };
  }

  waitUntil(promise) {
    if (typeof promise?.then !== 'function') throw new TypeError('waitUntil takes a promise');
    const release = this.hold();
    Promise.resolve(promise).then(release, (error) => {
      report(error, this);
      release();
    });
  }
}

/** Removes a header from all places that show it, and returns its value. */
function takeHeader(req, name) {
  const value = req.headers[name] ?? null;
  // Node derives both from the raw headers on first use and counts on their old number: first these, then those.
  delete req.headers[name];
  delete req.headersDistinct?.[name];
  for (let i = req.rawHeaders.length - 2; i >= 0; i -= 2) {
    if (req.rawHeaders[i].toLowerCase() === name) req.rawHeaders.splice(i, 2);
  }
  return value;
}

function serve(handle, req, res) {
  const invocation = new Invocation(req);
  const release = invocation.hold();
  let isFinished = false;
  let settled;
  res.once('finish', () => (isFinished = true));
  res.once('close', () => (isFinished ? release() : settled.finally(release)));
  keepOurHeaders(res);
  settled = invocations.run(invocation, async () => {
    try {
      await handle(req, res, invocation);
    } catch (error) {
      fail(error, req, res, invocation);
    }
  });
}

/** Headers in our name are ours: with `x-perigee-error` a function could pass its own answer off as our verdict. */
function keepOurHeaders(res) {
  const writeHead = res.writeHead;
  // On the instance, because Express replaces the prototype. Implicit headers come through here as well.
  res.writeHead = function (...args) {
    for (const name of this.getHeaderNames()) {
      if (OUR_HEADERS.test(name)) this.removeHeader(name);
    }
    const last = args.length - 1;
    if (typeof args[last] === 'object' && args[last] !== null) args[last] = withoutOurs(args[last]);
    return writeHead.apply(this, args);
  };
}

/** The three forms that `writeHead` takes: object, list of pairs, flat list. */
function withoutOurs(headers) {
  if (!Array.isArray(headers)) return Object.fromEntries(Object.entries(headers).filter(([name]) => !OUR_HEADERS.test(name)));
  if (Array.isArray(headers[0])) return headers.filter(([name]) => !OUR_HEADERS.test(name));
  return headers.filter((_, i) => !OUR_HEADERS.test(headers[i - (i % 2)]));
}

/** The client learns that it failed; why is told to the log only. */
function fail(error, req, res, invocation) {
  if (error instanceof RequestError && !res.headersSent) return refuse(res, error);
  report(error, invocation);
  if (!res.headersSent) return answerFailure(res);
  // Half an answer is out. Only a broken connection tells the client that the rest is missing.
  if (!res.writableEnded) req.socket.destroy();
}

// The methods of the class and not of `res`: middleware wraps those of `res` to compress, to count, to set cookies.
const { writeHead: plainWriteHead, end: plainEnd } = http.ServerResponse.prototype;

function answerFailure(res) {
  for (const name of res.getHeaderNames()) res.removeHeader(name);
  const headers = { 'x-perigee-error': 'FUNCTION_INVOCATION_FAILED', 'content-length': 0 };
  plainWriteHead.call(res, 500, http.STATUS_CODES[500], headers);
  plainEnd.call(res);
}

function refuse(res, { statusCode, message }) {
  for (const name of res.getHeaderNames()) res.removeHeader(name);
  const headers = { 'content-type': 'text/plain; charset=utf-8', 'content-length': Buffer.byteLength(message) };
  plainWriteHead.call(res, statusCode, http.STATUS_CODES[statusCode], headers);
  plainEnd.call(res, message);
}

function upgrade(userServer, req, socket, head) {
  const invocation = new Invocation(req);
  const release = invocation.hold();
  socket.once('close', release);
  socket.on('error', () => socket.destroy()); // A client that vanishes must not take the process with it.
  if (!userServer?.listenerCount('upgrade')) {
    // RFC 9110 section 15.5.22 wants the protocol that would do; the one we speak is the only one.
    socket.end('HTTP/1.1 426 Upgrade Required\r\nUpgrade: HTTP/1.1\r\nConnection: Upgrade, close\r\nContent-Length: 0\r\n\r\n');
    return;
  }
  invocations.run(invocation, async () => {
    try {
      await callListeners(userServer, 'upgrade', req, socket, head);
    } catch (error) {
      report(error, invocation);
      socket.destroy();
    }
  });
}

// ---------------------------------------------------------------------------------------------------------------
// Handlers: (req, res) functions and servers

function nodeHandler(handler) {
  return async (req, res) => {
    if (req instanceof HelpedRequest && !(await req[READ_BODY]())) return; // The client left while sending it.
    const returned = await handler(req, res);
    // It looks like an answer but would only hang until the time limit.
    if (isResponse(returned) && !res.headersSent && !res.writableEnded) {
      throw new TypeError('A default export is called with (req, res) and may not return a Response: export it as `fetch`, or under the name of a method (GET, POST, ...)');
    }
  };
}

function serverHandler(server) {
  return async (req, res) => {
    if (server.listenerCount('request') === 0) throw new Error('The server has no "request" listener');
    await callListeners(server, 'request', req, res);
  };
}

/** `emit`, except that promises returned by the listeners are awaited, so that their rejections are a handler's. */
async function callListeners(server, event, ...args) {
  await Promise.all(server.rawListeners(event).map(async (listener) => listener.apply(server, args)));
}

// ---------------------------------------------------------------------------------------------------------------
// Handlers: (Request) => Response

function webModule(exported) {
  if (typeof exported.fetch === 'function') return (request, context) => exported.fetch(request, context);
  const allow = METHODS.filter((method) => typeof exported[method] === 'function' || (method === 'HEAD' && typeof exported.GET === 'function'));
  return (request, context) => {
    const name = request.method === 'HEAD' && typeof exported.HEAD !== 'function' ? 'GET' : request.method;
    if (!METHODS.includes(name) || typeof exported[name] !== 'function') {
      return new Response(null, { status: 405, headers: { allow: allow.join(', ') } });
    }
    return exported[name](request, context);
  };
}

function webHandler(handler) {
  return async (req, res, invocation) => {
    const client = new AbortController();
    let isFinished = false;
    res.once('finish', () => (isFinished = true));
    res.once('close', () => isFinished || client.abort());
    // The Fetch standard forbids these two methods in a Request.
    if (req.method === 'TRACE' || req.method === 'CONNECT') return void res.writeHead(405).end();

    const { waitUntil } = invocation.context;
    const response = await handler(toRequest(req, client.signal), { waitUntil });
    if (!isResponse(response)) throw new TypeError(`The handler did not return a Response but ${inspect(response, { depth: 0 })}`);
    await sendResponse(response, req, res);
  };
}

/** By its looks: a bundle may bring its own Response class. */
function isResponse(value) {
  const hasBody = value?.body === null || typeof value?.body?.getReader === 'function';
  return hasBody && typeof value.status === 'number' && typeof value.headers?.get === 'function';
}

function toRequest(req, signal) {
  const headers = new Headers();
  for (let i = 0; i < req.rawHeaders.length; i += 2) headers.append(req.rawHeaders[i], req.rawHeaders[i + 1]);
  const mayHaveBody = req.method !== 'GET' && req.method !== 'HEAD';
  const hasBody = 'transfer-encoding' in req.headers || Number(req.headers['content-length']) > 0;
  const body = mayHaveBody && hasBody ? toWebStream(req) : null;
  return new Request(urlOf(req), { method: req.method, headers, body, signal, duplex: 'half', redirect: 'manual' });
}

/** As the visitor sees it. Built by joining, not by resolving: a path of `//host/` must stay a path. */
function urlOf(req) {
  const scheme = req.headers['x-forwarded-proto']?.startsWith('https') ? 'https' : 'http';
  const path = req.url.startsWith('/') ? req.url : '/';
  for (const host of [req.headers.host, 'localhost']) {
    if (!host || /[/?#@\\]/.test(host)) continue;
    try {
      return new URL(`${scheme}://${host}${path}`).href;
    } catch {
      // Not a host name: fall through to the one that always is.
    }
  }
  return `http://localhost${path}`;
}

/** `Readable.toWeb` would close the connection when the handler stops reading; an answer may still have to go out. */
function toWebStream(req) {
  const chunks = req.iterator({ destroyOnReturn: false });
  return new ReadableStream(
    {
      async pull(controller) {
        const { done, value } = await chunks.next();
        if (done) controller.close();
        else controller.enqueue(new Uint8Array(value));
      },
      async cancel() {
        await chunks.return();
        req.resume(); // What still comes is read and dropped, so that the connection stays in step.
      },
    },
    { highWaterMark: 0 },
  );
}

async function sendResponse(response, req, res) {
  const reader = response.body?.getReader(); // Throws if the body is used up, so before anything is sent.
  writeWebHead(response, res);
  if (!reader || req.method === 'HEAD') {
    reader?.cancel().catch(() => {});
    res.end();
    return;
  }
  res.flushHeaders(); // The first byte of the body may be seconds away.
  const gone = new Promise((resolve) => res.once('close', resolve));
  // A read that waits for a slow source must not outlive the client.
  gone.then(() => reader.cancel(new Error('The client has closed the connection'))).catch(() => {});
  for (;;) {
    const { done, value } = await reader.read();
    if (done || res.destroyed) break;
    if (!res.write(value)) await Promise.race([once(res, 'drain'), gone]);
  }
  res.end();
}

function writeWebHead(response, res) {
  // `return fetch(url)`: the body has been decoded on the way, so these two no longer describe it.
  const isDecoded = response.url !== '' && response.headers.has('content-encoding');
  const cookies = [];
  for (const [name, value] of response.headers) {
    if (CONNECTION_HEADERS.has(name)) continue;
    if (isDecoded && (name === 'content-encoding' || name === 'content-length')) continue;
    if (name === 'set-cookie') cookies.push(value);
    else res.setHeader(name, value);
  }
  if (cookies.length > 0) res.setHeader('set-cookie', cookies);
  res.statusCode = response.status;
  if (response.statusText) res.statusMessage = response.statusText;
}

// ---------------------------------------------------------------------------------------------------------------
// Helpers of (req, res) functions: req.query, req.cookies, req.body, res.status, res.send, res.json, res.redirect.
// On prototypes and not on every object, so that a framework that brings its own (Express) replaces them cleanly.

/** An error that is the client's; it becomes the answer unless user code catches it. */
class RequestError extends Error {
  constructor(statusCode, message) {
    super(message);
    this.name = 'ApiError';
    this.statusCode = statusCode;
  }
}

const BODY_TYPES = new Set(['application/json', 'application/octet-stream', 'application/x-www-form-urlencoded', 'text/plain']);
const READ_BODY = Symbol('read the body');
const BODY = Symbol('body');

class HelpedRequest extends http.IncomingMessage {
  get query() {
    const start = this.url.indexOf('?');
    return remember(this, 'query', parseQuery(start < 0 ? '' : this.url.slice(start + 1)));
  }
  set query(value) {
    remember(this, 'query', value);
  }

  get cookies() {
    return remember(this, 'cookies', parseCookies(this.headers.cookie ?? ''));
  }
  set cookies(value) {
    remember(this, 'cookies', value);
  }

  get body() {
    return remember(this, 'body', parseBody(this[BODY], mediaType(this)));
  }
  set body(value) {
    remember(this, 'body', value);
  }

  /**
   * `req.body` is a property, so its bytes have to be there before the handler runs; but code that reads `req` as the
   * stream that it is must find them too. So the parser's `push` is watched: the chunks pile up in the stream's own
   * buffer as ever, and are remembered here. Nothing is replayed and every way of reading works.
   *
   * Resolves to false when the client left before the end.
   */
  [READ_BODY]() {
    if (!BODY_TYPES.has(mediaType(this))) return true;
    return new Promise((resolve) => {
      const chunks = [];
      let bytes = 0;
      const stop = (isThere) => {
        delete this.push;
        this.off('close', left);
        resolve(isThere);
      };
      const left = () => stop(false);
      this.once('close', left);
      this.push = (chunk, encoding) => {
        const hasRoom = super.push(chunk, encoding);
        if (chunk === null) {
          this[BODY] = Buffer.concat(chunks);
          stop(true);
          return hasRoom;
        }
        chunks.push(chunk);
        bytes += chunk.length;
        if (bytes <= BODY_BYTES_MAX) return true; // "No room" would stop the socket, and nobody reads yet.
        this[BODY] = null;
        stop(true);
        return hasRoom;
      };
    });
  }
}

class HelpedResponse extends http.ServerResponse {
  status(code) {
    this.statusCode = code;
    return this;
  }

  redirect(statusOrUrl, url) {
    const [status, location] = typeof statusOrUrl === 'string' ? [307, statusOrUrl] : [statusOrUrl, url];
    if (typeof status !== 'number' || typeof location !== 'string') {
      throw new TypeError("res.redirect takes a URL, as in res.redirect('/there'), or a status and a URL, as in res.redirect(301, '/there')");
    }
    this.writeHead(status, { Location: location }).end();
    return this;
  }

  json(value) {
    if (!this.getHeader('content-type')) this.setHeader('content-type', 'application/json; charset=utf-8');
    return sendBody(this, JSON.stringify(value));
  }

  send(value) {
    const isBytes = Buffer.isBuffer(value);
    if (value === null) return sendBody(this, '');
    if (!isBytes && ['object', 'number', 'boolean'].includes(typeof value)) return this.json(value);
    if (!this.getHeader('content-type')) {
      if (isBytes) this.setHeader('content-type', 'application/octet-stream');
      if (typeof value === 'string') this.setHeader('content-type', 'text/html');
    }
    return sendBody(this, value);
  }
}

/** `body` is a string, a Buffer, or undefined for none. */
function sendBody(res, body) {
  if (body !== undefined && typeof body !== 'string' && !Buffer.isBuffer(body)) {
    throw new TypeError(`res.send takes a string, an object, a number, a boolean, a Buffer or null, but not a ${typeof body}`);
  }
  const type = res.getHeader('content-type');
  if (typeof body === 'string' && typeof type === 'string') res.setHeader('content-type', withUtf8(type));
  if (body !== undefined) {
    const bytes = Buffer.from(body);
    res.setHeader('content-length', bytes.length);
    if (!res.getHeader('etag')) res.setHeader('etag', weakEtag(bytes));
  }
  const hasNoBody = res.statusCode === 204 || res.statusCode === 304;
  if (hasNoBody) {
    for (const name of ['content-type', 'content-length', 'transfer-encoding']) res.removeHeader(name);
  }
  if (hasNoBody || res.req.method === 'HEAD' || body === undefined) res.end();
  else res.end(body);
  return res;
}

function withUtf8(type) {
  return `${type.replace(/;\s*charset\s*=\s*(?:"[^"]*"|[^;]*)/gi, '')}; charset=utf-8`;
}

/** The form that the platform's functions have always had: length in hexadecimal, SHA-1 cut to 27 characters. */
function weakEtag(bytes) {
  const hash = createHash('sha1').update(bytes).digest('base64').slice(0, 27);
  return `W/"${bytes.length.toString(16)}-${hash}"`;
}

function mediaType(req) {
  return req.headers['content-type']?.split(';', 1)[0].trim().toLowerCase();
}

function parseBody(bytes, type) {
  if (bytes === null) throw new RequestError(413, 'Request Entity Too Large');
  switch (type) {
    case undefined:
      return '';
    case 'application/json':
      try {
        return bytes.length > 0 ? JSON.parse(bytes.toString()) : {};
      } catch {
        throw new RequestError(400, 'Invalid JSON');
      }
    case 'application/x-www-form-urlencoded':
      return parseForm(bytes.toString());
    case 'application/octet-stream':
      return bytes;
    case 'text/plain':
      return bytes.toString();
  }
}

function parseQuery(text) {
  const query = {};
  for (const [name, value] of new URLSearchParams(text)) {
    const before = Object.hasOwn(query, name) ? query[name] : undefined;
    remember(query, name, before === undefined ? value : [].concat(before, value));
  }
  return query;
}

/** RFC 6265 section 5.4 sends the more specific cookie first, so the first of a name wins. */
function parseCookies(header) {
  const cookies = {};
  for (const pair of header.split(';')) {
    const middle = pair.indexOf('=');
    if (middle < 0) continue;
    const name = pair.slice(0, middle).trim();
    if (Object.hasOwn(cookies, name)) continue;
    const value = pair.slice(middle + 1).trim().replace(/^"(.*)"$/, '$1');
    remember(cookies, name, decode(value));
  }
  return cookies;
}

function decode(value) {
  try {
    return decodeURIComponent(value);
  } catch {
    return value;
  }
}

/** Assignment that also works for `__proto__` and hides an accessor of the prototype. */
function remember(object, name, value) {
  Object.defineProperty(object, name, { value, enumerable: true, configurable: true, writable: true });
  return value;
}

// Last, because everything above has to be initialised before it is used.
await main();
