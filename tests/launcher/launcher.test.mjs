// The real launcher, on real Unix sockets, asked over real HTTP: `node --test tests/launcher/launcher.test.mjs`.
// Nothing sleeps: a test waits for a message on the control socket, for a byte, for a line of output, or for the exit.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

const LAUNCHER = fileURLToPath(new URL('../../src/functions/launcher.mjs', import.meta.url));
const FIXTURES = fileURLToPath(new URL('./fixtures/', import.meta.url));

// ---------------------------------------------------------------------------------------------------------------
// Support: what Perigee does

/** One instance. `message(check)` is the first control message, past or future, that passes `check`. */
class Instance {
  static async start(fixture, env = {}) {
    const instance = new Instance();
    await instance.#spawn(fixture, env);
    return instance;
  }

  static async ready(fixture, env) {
    const instance = await Instance.start(fixture, env);
    const first = await instance.message(() => true);
    assert.equal(first.type, 'ready', first.stack);
    return instance;
  }

  messages = [];
  #waiting = [];
  #lines = [];
  #lineWaiting = [];
  #ids = 0;

  async #spawn(fixture, env) {
    this.dir = mkdtempSync(join(tmpdir(), 'launcher-'));
    this.socket = join(this.dir, 'http.sock');
    const controlPath = join(this.dir, 'control.sock');
    this.controlServer = net.createServer().listen(controlPath);
    await once(this.controlServer, 'listening');
    const connected = once(this.controlServer, 'connection');

    this.stderr = '';
    const { NODE_ENV, NODE_OPTIONS, NODE_TEST_CONTEXT, ...inherited } = process.env;
    this.process = spawn(process.execPath, [LAUNCHER], {
      cwd: this.dir,
      env: { ...inherited, PERIGEE_SOCKET: this.socket, PERIGEE_CONTROL: controlPath, PERIGEE_ENTRY: join(FIXTURES, fixture), PERIGEE_HELPERS: '1', ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.exited = once(this.process, 'exit').then(([code, signal]) => ({ code, signal }));
    this.process.stderr.setEncoding('utf8').on('data', (text) => (this.stderr += text));
    createInterface({ input: this.process.stdout }).on('line', (line) => settleFirst(this.#lines, this.#lineWaiting, line));

    [this.control] = await connected;
    this.control.on('error', () => {});
    createInterface({ input: this.control }).on('line', (line) => settleFirst(this.messages, this.#waiting, JSON.parse(line)));
  }

  message(check) {
    return firstOf(this.messages, this.#waiting, check);
  }

  end(id) {
    return this.message(({ type, id: ended }) => type === 'end' && ended === id);
  }

  /** That an invocation is not over: messages come in order, so one that was started later is let end first. */
  async stillOpen(id, path) {
    const { id: later } = await this.ask(path);
    await this.end(later);
    assert.ok(!this.messages.some((message) => message.type === 'end' && message.id === id));
  }

  error(id) {
    return this.message(({ type, id: failed }) => type === 'error' && failed === id);
  }

  output(line) {
    return firstOf(this.#lines, this.#lineWaiting, (seen) => seen === line);
  }

  /** Sends a request and resolves at the response's header; `.text()` reads the rest. */
  async open(path, { method = 'GET', headers = {}, body, id = `i${++this.#ids}`, agent } = {}) {
    const request = http.request({ socketPath: this.socket, path, method, agent, headers: { 'x-perigee-invocation': id, ...headers } });
    request.end(body);
    const [response] = await once(request, 'response');
    response.setEncoding('utf8');
    return Object.assign(response, { id, sent: request, text: () => readAll(response) });
  }

  async ask(path, options) {
    const response = await this.open(path, options);
    return Object.assign(response, { body: await response.text() });
  }

  async stop() {
    this.process.kill('SIGKILL');
    await this.exited;
    this.control?.destroy();
    this.controlServer.close();
    rmSync(this.dir, { recursive: true, force: true });
  }
}

function settleFirst(seen, waiting, value) {
  seen.push(value);
  const i = waiting.findIndex(({ check }) => check(value));
  if (i >= 0) waiting.splice(i, 1)[0].resolve(value);
}

function firstOf(seen, waiting, check) {
  const known = seen.find(check);
  return known ? Promise.resolve(known) : new Promise((resolve) => waiting.push({ check, resolve }));
}

async function readAll(stream) {
  let all = '';
  for await (const chunk of stream) all += chunk;
  return all;
}

/** The instance of a `describe` block, started once. */
function instanceOf(fixture, env) {
  const holder = {};
  before(async () => (holder.it = await Instance.ready(fixture, env)));
  after(() => holder.it?.stop());
  return holder;
}

async function startFailure(fixture, env) {
  const instance = await Instance.start(fixture, env);
  try {
    const message = await instance.message(() => true);
    assert.equal(message.type, 'start-failed');
    const { code } = await instance.exited;
    return { ...message, code };
  } finally {
    await instance.stop();
  }
}

function assertFailed(response, body) {
  assert.equal(response.statusCode, 500);
  assert.equal(response.statusMessage, 'Internal Server Error');
  assert.equal(response.headers['x-perigee-error'], 'FUNCTION_INVOCATION_FAILED');
  assert.equal(body, '');
  assert.doesNotMatch(JSON.stringify(response.rawHeaders), /secret/);
}

// ---------------------------------------------------------------------------------------------------------------

describe('start fails', { concurrency: 4 }, () => {
  const rows = [
    ['module that throws', 'throws-on-load.cjs', {}, /no database/],
    ['module that throws after its first tick', 'throws-later-on-load.mjs', {}, /no database, later/],
    ['module that ends the process', 'exits-on-load.js', {}, /exited with code 3 while the function was loading/, 3],
    ['syntax error', 'syntax.mjs', {}, /SyntaxError/],
    ['no file', 'missing.js', {}, /missing\.js does not exist/],
    ['folder', '.', {}, /does not exist/],
    ['nothing that serves', 'unusable.mjs', {}, /Can't detect a way to handle requests/],
    ['TypeScript', 'typed.ts', {}, /build it to JavaScript first/],
    ['socket in a folder that is not there', 'esm.mjs', { PERIGEE_SOCKET: '/nonexistent/x.sock' }, /listen/],
  ];
  for (const [name, fixture, env, pattern, code = 1] of rows) {
    test(name, async () => {
      const failure = await startFailure(fixture, env);
      assert.match(failure.message, pattern);
      assert.equal(typeof failure.stack, 'string');
      assert.equal(failure.code, code);
    });
  }

  test('without its settings it says so', async () => {
    const child = spawn(process.execPath, [LAUNCHER], { env: {}, stdio: ['ignore', 'ignore', 'pipe'] });
    const exited = once(child, 'exit');
    assert.match(await readAll(child.stderr.setEncoding('utf8')), /PERIGEE_SOCKET is not set/);
    assert.equal((await exited)[0], 1);
  });
});

describe('a failing handler', () => {
  const app = instanceOf('handler.js');

  for (const path of ['/throws', '/rejects', '/throws-null', '/returns-response', '/symbol', '/redirect-bad']) {
    test(`${path} is a bare 500, is reported, and the next request is served`, async () => {
      const response = await app.it.ask(path);
      assertFailed(response, response.body);
      const { message, stack } = await app.it.error(response.id);
      assert.ok(message.length > 0 && stack.length > 0);
      await app.it.end(response.id);
      assert.equal((await app.it.ask('/date')).statusCode, 200);
    });
  }

  test('after the header the connection breaks', async () => {
    const response = await app.it.open('/half-then-throws');
    assert.equal(response.statusCode, 200);
    await assert.rejects(response.text(), { code: 'ECONNRESET' });
    assert.match((await app.it.error(response.id)).message, /secret/);
    await app.it.end(response.id);
  });

  test('after the end the answer stays whole', async () => {
    const response = await app.it.ask('/throws-after-end');
    assert.equal(response.body, 'whole');
    assert.match((await app.it.error(response.id)).message, /too late/);
  });

  test('the error comes before the end', async () => {
    const { id } = await app.it.ask('/throws');
    await app.it.end(id);
    const types = app.it.messages.filter((message) => message.id === id).map(({ type }) => type);
    assert.deepEqual(types, ['error', 'end']);
  });
});

describe('outside a handler', { concurrency: 4 }, () => {
  for (const path of ['/uncaught', '/unhandled']) {
    test(`${path} error ends the process, with its invocation named`, async () => {
      const instance = await Instance.ready('handler.js');
      try {
        const request = http.get({ socketPath: instance.socket, path, headers: { 'x-perigee-invocation': 'last' } });
        const [error] = await once(request, 'error');
        assert.equal(error.code, 'ECONNRESET');
        assert.match((await instance.error('last')).message, /outside/);
        assert.equal((await instance.exited).code, 1);
        assert.match(instance.stderr, /Error: outside[\s\S]*handler\.js/);
      } finally {
        await instance.stop();
      }
    });
  }

  test('the process dies with the control connection', async () => {
    const instance = await Instance.ready('handler.js');
    try {
      const response = await instance.open('/hangs');
      response.on('error', () => {});
      instance.control.destroy();
      assert.equal((await instance.exited).signal, 'SIGKILL');
    } finally {
      await instance.stop();
    }
  });
});

describe('a client that leaves', () => {
  const app = instanceOf('handler.js');

  test('is seen by the handler, and the invocation lasts until the handler has settled', async () => {
    const response = await app.it.open('/hangs');
    const [chunk] = await once(response, 'data');
    assert.equal(chunk, 'first');
    response.on('error', () => {});
    response.sent.destroy();
    await app.it.output('client left');
    await app.it.stillOpen(response.id, '/date');
    await app.it.ask('/let-go');
    await app.it.end(response.id);
    assert.equal((await app.it.ask('/date')).statusCode, 200);
  });

  test('while sending its body never reaches the handler', async () => {
    const calls = Number((await app.it.ask('/calls')).body);
    const request = http.request({
      socketPath: app.it.socket,
      path: '/calls',
      method: 'POST',
      headers: { 'x-perigee-invocation': 'left', 'content-type': 'application/json', 'content-length': 100, expect: '100-continue' },
    });
    request.on('error', () => {});
    request.flushHeaders();
    await once(request, 'continue'); // The launcher has the header now.
    request.destroy();
    await app.it.end('left');
    assert.equal(Number((await app.it.ask('/calls')).body), calls + 1);
  });
});

describe('req', () => {
  const app = instanceOf('handler.js');
  const json = async (path, options) => JSON.parse((await app.it.ask(path, options)).body);
  const post = (path, type, body) => json(path, { method: 'POST', body, headers: type ? { 'content-type': type } : {} });

  test('invalid JSON is 400, without a report, unless the handler catches it', async () => {
    for (const body of ['{', '{"a":}', 'nul']) {
      const options = { method: 'POST', body, headers: { 'content-type': 'application/json' } };
      const refused = await app.it.ask('/body', options);
      assert.equal(refused.statusCode, 400);
      assert.equal(refused.body, 'Invalid JSON');
      assert.equal(refused.headers['x-perigee-error'], undefined);
      await app.it.end(refused.id);
      assert.ok(!app.it.messages.some(({ type, id }) => type === 'error' && id === refused.id));

      const caught = await app.it.ask('/body-caught', options);
      assert.equal(caught.statusCode, 422);
      assert.deepEqual(JSON.parse(caught.body), { status: 400, message: 'Invalid JSON' });
    }
  });

  const bodies = [
    ['application/json', '{"a":[1]}', 'object', { a: [1] }],
    ['Application/JSON; charset=utf-8', '"ü"', 'string', 'ü'],
    ['application/json', '', 'object', {}],
    ['application/x-www-form-urlencoded', 'a=1&a=2&b=%20', 'object', { a: ['1', '2'], b: ' ' }],
    ['text/plain', 'words', 'string', 'words'],
    ['text/plain;charset=utf-8', '', 'string', ''],
    ['application/octet-stream', 'AB', 'buffer', '4142'],
    ['text/html', '<p>', 'undefined', undefined],
    ['application/ld+json', '{}', 'undefined', undefined],
    ['', 'unnamed', 'string', ''],
  ];
  for (const [type, sent, expectedType, value] of bodies) {
    test(`body of type "${type}" ${sent ? '' : '(empty) '}is ${expectedType}`, async () => {
      const seen = await post('/body', type, sent);
      assert.equal(seen.type, expectedType);
      assert.deepEqual(seen.value, value);
      assert.ok(seen.same);
    });
  }

  test('body can be read as a stream too, after, before, or instead of req.body', async () => {
    assert.deepEqual(await post('/body-and-stream', 'application/json', '{"a":1}'), { body: { a: 1 }, stream: '{"a":1}' });
    const events = await app.it.ask('/stream-by-events', { method: 'POST', body: 'ü'.repeat(9), headers: { 'content-type': 'text/plain' } });
    assert.equal(events.body, 'ü'.repeat(9));
  });

  for (const type of ['text/plain', 'video/mp4']) {
    test(`large ${type} body arrives whole, read or not, and the connection stays usable`, async () => {
      const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
      const body = Buffer.alloc(5 * 1024 * 1024, 'x');
      const options = { method: 'POST', body, agent, headers: { 'content-type': type } };
      assert.deepEqual(await json('/stream-length', options), { bytes: body.length });
      assert.equal((await app.it.ask('/ignore-body', options)).body, 'ignored');
      assert.equal((await app.it.ask('/date', { agent })).statusCode, 200);
      agent.destroy();
    });
  }

  test('body and query can be assigned', async () => {
    assert.deepEqual(await json('/body-assigned'), [{ mine: true }, { mine: 1 }]);
  });

  const queries = [
    ['', {}],
    ['?a=1&b=&c', { a: '1', b: '', c: '' }],
    ['?a=1&a=2&a=3', { a: ['1', '2', '3'] }],
    ['?a=%C3%BC+x&%zz=1', { a: 'ü x', '%zz': '1' }],
    ['?constructor=1&toString=2&toString=3', { constructor: '1', toString: ['2', '3'] }],
  ];
  for (const [query, value] of queries) {
    test(`query ${query || '(none)'}`, async () => assert.deepEqual(await json(`/query${query}`), value));
  }

  test('query named __proto__ is a key like any other', async () => {
    assert.equal((await app.it.ask('/query?__proto__=1')).body, '{"__proto__":"1"}');
  });

  test('cookies: the first of a name wins, broken ones are tolerated', async () => {
    assert.deepEqual(await json('/cookies'), {});
    const cookie = 'a=1; b="q"; a=2; c=%C3%BC; d=%zz; nonsense; e=x=y; =z';
    assert.deepEqual(await json('/cookies', { headers: { cookie } }), { a: '1', b: 'q', c: 'ü', d: '%zz', e: 'x=y', '': 'z' });
  });

  test("Perigee's header and variables are gone", async () => {
    const seen = await json('/headers', { headers: { 'x-kept': '1' } });
    assert.equal(seen.headers['x-kept'], '1');
    assert.ok(seen.distinct.includes('x-kept'));
    assert.doesNotMatch(JSON.stringify(seen), /x-perigee/i);
    assert.deepEqual(await json('/env'), { perigee: [], mode: 'production', main: join(FIXTURES, 'handler.js') });
  });
});

describe('res', () => {
  const app = instanceOf('handler.js');
  const JSON_TYPE = 'application/json; charset=utf-8';
  const rows = [
    // path, status, body, content-type, etag
    ['/date', 200, '"1970-01-01T00:00:00.000Z"', JSON_TYPE, 'W/"1a-ngLRKDZRZUTYZSmaNhIE2wXoK8w"'],
    ['/string', 200, 'grüße', 'text/html; charset=utf-8'],
    ['/typed-string', 200, 'a{}', 'text/css; charset=utf-8'],
    ['/buffer', 200, '\x01\x02\x03', 'application/octet-stream'],
    ['/boolean', 200, 'true', JSON_TYPE],
    ['/null', 200, '', undefined, 'W/"0-2jmj7l5rSw0yVb/vlWAYkK/YBwk"'],
    ['/undefined', 200, '', undefined, null],
    ['/own-etag', 200, 'x', 'text/html; charset=utf-8', '"mine"'],
    ['/no-content', 204, '', undefined],
    ['/not-modified', 304, '', undefined],
    ['/ends-later', 200, 'later', undefined, null],
  ];
  for (const [path, status, body, type, etag] of rows) {
    test(path, async () => {
      const response = await app.it.ask(path);
      assert.equal(response.statusCode, status);
      assert.equal(response.body, body);
      assert.equal(response.headers['content-type'], type);
      if (etag === null) assert.equal(response.headers.etag, undefined);
      else if (etag) assert.equal(response.headers.etag, etag);
      else assert.match(response.headers.etag, /^W\/"[0-9a-f]+-[\w+/]{27}"$/);
      if (status === 200 && etag !== null) assert.equal(Number(response.headers['content-length']), Buffer.byteLength(body));
    });
  }

  test('HEAD has the length and the tag, and no body', async () => {
    const [head, get] = [await app.it.ask('/string', { method: 'HEAD' }), await app.it.ask('/string')];
    assert.equal(head.body, '');
    for (const name of ['content-length', 'etag', 'content-type']) assert.equal(head.headers[name], get.headers[name]);
  });

  test('redirect: 307 by default, location as given', async () => {
    const there = await app.it.ask('/redirect');
    assert.deepEqual([there.statusCode, there.headers.location, there.body], [307, '/there?a=b c', '']);
    const moved = await app.it.ask('/redirect-301');
    assert.deepEqual([moved.statusCode, moved.headers.location], [301, '/there']);
  });

  for (const path of ['/forges', '/forges-flat', '/forges-implicit']) {
    test(`${path}: headers in Perigee's name are dropped, others kept`, async () => {
      const { rawHeaders } = await app.it.ask(path);
      assert.doesNotMatch(rawHeaders.join(), /x-perigee/i);
      if (path !== '/forges-implicit') assert.match(rawHeaders.join(), /x-kept/);
    });
  }

  test('the connection is kept or closed as asked', async () => {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const kept = await app.it.ask('/date', { agent });
    assert.equal(kept.headers.connection, 'keep-alive');
    assert.equal(kept.headers['keep-alive'], undefined); // No limit is promised, because there is none.
    await app.it.ask('/date', { agent });
    agent.destroy();
    const closed = await app.it.ask('/date', { headers: { connection: 'close' } });
    assert.equal(closed.headers.connection, 'close');
  });
});

describe('export shapes', { concurrency: 4 }, () => {
  const rows = [
    ['nested.cjs', '/', {}, 'nested'],
    ['esm.mjs', '/?name=ada', {}, '{"from":"esm","name":"ada"}'],
    ['mixed.mjs', '/', {}, 'beside'],
    ['web-default.mjs', '/a', { PERIGEE_WEB_API: '1' }, 'web /a'],
    ['app.js', '/', {}, '{"send":"undefined","query":"undefined"}'],
    ['listens-late.mjs', '/', {}, 'late'],
    ['server.mjs', '/', {}, 'plain'],
  ];
  for (const [fixture, path, env, body] of rows) {
    test(`${fixture} ${JSON.stringify(env)}`, async () => {
      const instance = await Instance.ready(fixture, env);
      try {
        assert.equal((await instance.ask(path)).body, body);
      } finally {
        await instance.stop();
      }
    });
  }

  test('no helpers when switched off', async () => {
    const instance = await Instance.ready('handler.js', { PERIGEE_HELPERS: '0' });
    try {
      const response = await instance.ask('/date');
      assertFailed(response, response.body);
      assert.match((await instance.error(response.id)).message, /res\.send is not a function/);
    } finally {
      await instance.stop();
    }
  });
});

describe('a captured server', () => {
  const app = instanceOf('listens.cjs');

  test('is asked without listening itself', async () => {
    const seen = JSON.parse((await app.it.ask('/a?b')).body);
    assert.deepEqual(seen, { url: '/a?b', send: 'undefined', port: 3000, listening: true, called: true });
  });

  test('with a rejecting listener answers 500 and lives', async () => {
    const response = await app.it.ask('/rejects');
    assertFailed(response, response.body);
    assert.equal((await app.it.ask('/')).statusCode, 200);
  });

  test('without upgrade listeners refuses upgrades', async () => {
    const socket = net.connect(app.it.socket);
    socket.write('GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-perigee-invocation: up\r\n\r\n');
    assert.match(await readAll(socket.setEncoding('utf8')), /^HTTP\/1\.1 426 /);
    await app.it.end('up');
  });
});

describe('an exported server with upgrade listeners', () => {
  const app = instanceOf('server.mjs');
  const upgrade = (path, id) => {
    const headers = { connection: 'upgrade', upgrade: 'echo', 'x-perigee-invocation': id };
    const request = http.get({ socketPath: app.it.socket, path, headers });
    return request;
  };

  test('gets them, and the invocation lasts as long as the connection', async () => {
    const [, socket, head] = await once(upgrade('/', 'long'), 'upgrade');
    socket.setEncoding('utf8');
    let seen = head.toString();
    socket.write('ping');
    while (!seen.includes('ping')) seen += (await once(socket, 'data'))[0];
    assert.equal(seen, 'no id\nping');
    await app.it.stillOpen('long', '/');
    socket.destroy();
    await app.it.end('long');
  });

  test('survives a listener that throws', async () => {
    const [error] = await once(upgrade('/throws', 'thrown'), 'error');
    assert.equal(error.code, 'ECONNRESET');
    assert.match((await app.it.error('thrown')).message, /secret/);
    await app.it.end('thrown');
    assert.equal((await app.it.ask('/')).body, 'plain');
  });
});

describe('web handlers by method', () => {
  const app = instanceOf('methods.mjs');

  for (const method of ['PUT', 'DELETE']) {
    test(`${method} that gives no Response is a bare 500`, async () => {
      const response = await app.it.ask('/', { method });
      assertFailed(response, response.body);
      assert.match((await app.it.error(response.id)).message, method === 'PUT' ? /did not return a Response but 'not a response'/ : /secret/);
    });
  }

  test('a method without a handler is 405', async () => {
    for (const method of ['PATCH', 'OPTIONS', 'TRACE', 'PROPFIND']) {
      const response = await app.it.ask('/', { method });
      assert.equal(response.statusCode, 405);
      assert.equal(response.headers['x-perigee-error'], undefined);
      if (method === 'PATCH') assert.equal(response.headers.allow, 'GET, HEAD, POST, PUT, DELETE');
    }
  });

  test('URL and cookies', async () => {
    const headers = { host: 'shop.example', 'x-forwarded-proto': 'https' };
    const response = await app.it.ask('//a/b?c', { headers });
    assert.equal(response.body, 'GET GET https://shop.example//a/b?c');
    assert.deepEqual(response.headers['set-cookie'], ['a=1', 'b=2; Path=/']);
    assert.doesNotMatch(response.rawHeaders.join(), /x-perigee/i);
    for (const host of ['a b', 'x@y', 'a/b']) {
      assert.equal((await app.it.ask('/', { headers: { host } })).body, 'GET GET http://localhost/');
    }
  });

  test('HEAD falls back to GET, without its body', async () => {
    const response = await app.it.ask('/', { method: 'HEAD' });
    assert.deepEqual([response.statusCode, response.body], [200, '']);
    assert.equal(response.headers['set-cookie'].length, 2);
  });

  test('POST has the body, status and reason', async () => {
    for (const headers of [{ 'content-type': 'text/plain' }, { 'transfer-encoding': 'chunked', 'content-type': 'text/plain' }]) {
      const response = await app.it.ask('/', { method: 'POST', body: 'ü', headers });
      assert.deepEqual([response.statusCode, response.statusMessage], [201, 'Made']);
      assert.deepEqual(JSON.parse(response.body), { body: 'ü', type: 'text/plain' });
    }
    assert.equal(JSON.parse((await app.it.ask('/', { method: 'POST' })).body).body, '');
  });
});

describe('a web handler named fetch', () => {
  const app = instanceOf('fetch.mjs');

  test('that returns a used body is a bare 500', async () => {
    const response = await app.it.ask('/used');
    assertFailed(response, response.body);
  });

  test('whose body breaks breaks the connection', async () => {
    const response = await app.it.open('/breaks');
    await assert.rejects(response.text(), { code: 'ECONNRESET' });
    assert.match((await app.it.error(response.id)).message, /secret/);
    await app.it.end(response.id);
  });

  test('learns that the client left', async () => {
    const response = await app.it.open('/aborted');
    await once(response, 'data');
    response.on('error', () => {});
    response.sent.destroy();
    await app.it.output('cancelled, aborted true');
    await app.it.end(response.id);
  });

  test('streams both ways at once', async () => {
    const request = http.request({ socketPath: app.it.socket, path: '/echo', method: 'POST', headers: { 'x-perigee-invocation': 'echo' } });
    request.flushHeaders();
    const [response] = await once(request, 'response'); // The header is out before a byte of the body is in.
    response.setEncoding('utf8');
    for (const word of ['one', 'two', 'three']) {
      request.write(word);
      assert.equal((await once(response, 'data'))[0], word);
    }
    request.end();
    await once(response, 'end');
    await app.it.end('echo');
  });

  test('passes much data on without holding it', async () => {
    const body = 'x'.repeat(3 * 1024 * 1024);
    const response = await app.it.ask('/echo', { method: 'POST', body });
    assert.equal(response.body.length, body.length);
  });

  test('may answer without reading the body, or all of it, and the connection stays usable', async () => {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const body = 'x'.repeat(1024 * 1024);
    assert.equal((await app.it.ask('/early', { method: 'POST', body, agent })).statusCode, 413);
    assert.equal((await app.it.ask('/peek', { method: 'POST', body, agent })).body, 'saw true');
    assert.equal((await app.it.ask('/prefix', { agent, headers: { host: 'h' } })).body, 'echo:http://h/prefix');
    agent.destroy();
  });

  test('may work on after the answer', async () => {
    const response = await app.it.ask('/late');
    assert.equal(response.statusCode, 204);
    await app.it.end(response.id);
    await app.it.output('late work');
  });

  test('may return what fetch gave it, although that has been decoded', async () => {
    const origin = http.createServer((req, res) => res.setHeader('content-encoding', 'gzip').end(gzipSync('unpacked'))).listen(0, '127.0.0.1');
    await once(origin, 'listening');
    const response = await app.it.ask(`/gzip?from=http://127.0.0.1:${origin.address().port}/`);
    assert.equal(response.body, 'unpacked');
    assert.equal(response.headers['content-encoding'], undefined);
    origin.closeAllConnections();
    origin.close();
  });
});

describe('request context', () => {
  const app = instanceOf('context.mjs');

  test('concurrent requests have their own', async () => {
    const names = ['a', 'b', 'c'];
    const open = await Promise.all(names.map((name) => app.it.open(`/wait?name=${name}`, { headers: { host: 'h', 'x-name': name } })));
    for (const name of [...names].reverse()) await app.it.ask(`/open?name=${name}`);
    for (const [i, name] of names.entries()) assert.equal(await open[i].text(), `waiting http://h/wait?name=${name} ${name}`);
  });

  test('waitUntil keeps the invocation open after the answer', async () => {
    const response = await app.it.ask('/background?name=bg');
    assert.equal(response.body, 'sent');
    await app.it.stillOpen(response.id, '/background-rejects');
    await app.it.ask('/open?name=bg');
    await app.it.end(response.id);
  });

  test('a rejected background promise is reported and harmless, a wrong one is an error', async () => {
    const rejected = await app.it.ask('/background-rejects');
    assert.match((await app.it.error(rejected.id)).message, /lost work/);
    await app.it.end(rejected.id);
    const misused = await app.it.ask('/background-misused');
    assertFailed(misused, misused.body);
  });
});
