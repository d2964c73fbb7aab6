import { Agent, createServer, get as httpGet, request as httpRequest } from 'node:http';
import { connect } from 'node:net';
import type { Pool } from 'pg';
import { describe, expect, onTestFinished, test } from 'vitest';
import {
  createTurnout,
  defineConfig,
  defineProxy,
  defineSwitchover,
  on,
  proxyRoute,
  recordSince,
  registerEvents,
  registerSwitchover,
  rpcSweeper,
  runProxy,
  setStage,
} from 'turnout';
import type { ProxyOptions, ProxyRouteOptions } from 'turnout';
import { rpcFetch } from 'turnout/fetch';
import { pgDatabase } from 'turnout/pg';
import { switchStage } from '../../src/cli/commands/index.ts';
import { forgetCalls } from '../../src/proxy/record-call.ts';
import { requireBridged } from '../../src/switchover/index.ts';
import { spawnNode, waitFor } from '../support/index.ts';
import { migrated } from '../support/migrated.ts';
import { database } from '../support/vitest.ts';
import { legacyEndpoint } from './fixtures/legacy-endpoint.ts';
import { OrderPlaced } from './fixtures/switchover-world.ts';
import type { Order } from './fixtures/switchover-world.ts';

const io = {
  cwd: '.',
  stdout: () => undefined,
  stderr: () => undefined,
  interactive: false,
  stopSignal: () => new AbortController().signal,
};
const quick = { attempts: 1, firstDelayMs: 10, maxDelayMs: 50 };

async function world(more: Partial<ProxyOptions<never>> = {}, route: Partial<ProxyRouteOptions<Order>> = {}) {
  const [created, legacy] = await Promise.all([database({ template: migrated('producer') }), legacyEndpoint()]);
  const pool = created.pool({ max: 8 });
  const db = pgDatabase(pool);
  await registerEvents(db, 'orders', [OrderPlaced]);
  const switchover = defineSwitchover({
    name: 'placing',
    consumer: 'shop',
    order: 'none',
    endpoint: 'bridged',
    timeoutMs: 500,
    rpc: [on(OrderPlaced, (event, call) => rpcFetch(call, `${legacy.url}/orders`, { json: event.data }))],
  });
  await registerSwitchover(db, 'orders', switchover, 'test');
  await recordSince(db, 'orders', 'placing', { orders: [0n, 0n, 0n] });
  const turnout = createTurnout({ source: 'orders', database: db, switchovers: [switchover], retry: quick });
  const definition = defineProxy({
    name: 'shop-proxy',
    source: 'orders',
    turnout,
    database: db,
    listen: { port: 0, host: '127.0.0.1' },
    target: legacy.url,
    graceMs: 1_000,
    routes: [
      proxyRoute(OrderPlaced, {
        method: 'POST',
        path: '/orders/:orderId',
        switchover,
        data: ({ params, body }) => ({ orderId: params['orderId']!, step: (body as { step: number }).step }),
        ...route,
      }),
    ],
    ...(more as object),
  });
  const proxy = runProxy(definition);
  await proxy.start();
  onTestFinished(async () => {
    await proxy.stop();
    await legacy.close();
  });
  const base = `http://127.0.0.1:${proxy.address()!.port}`;
  const sweeper = rpcSweeper({ source: 'orders', database: db, switchovers: [switchover], pollMs: 10, retry: quick });
  return {
    base,
    legacy,
    pool,
    proxy,
    /** Another process that publishes. */
    other: createTurnout({ source: 'orders', database: db, switchovers: [switchover], retry: quick }),
    switchTo: (stage: string, force: boolean) =>
      switchStage(
        defineConfig({ source: 'orders', database: db, switchovers: [switchover] }),
        { name: 'placing', stage, reason: 'test', force, percent: undefined },
        io,
      ),
    forget: (name = 'shop-proxy') => forgetCalls({ ...definition, name }),
    /** As it is written, where `fetch` and Node would mend the path. Gives the whole answer. */
    raw: (method: string, target: string, body = '', headers = 'connection: close\r\n') =>
      new Promise<string>((resolve, reject) => {
        const socket = connect(Number(new URL(base).port), '127.0.0.1');
        let seen = '';
        socket.on('data', (chunk) => (seen += chunk.toString()));
        socket.once('error', reject).once('close', () => resolve(seen));
        const length = `content-type: application/json\r\ncontent-length: ${body.length}\r\n`;
        socket.write(`${method} ${target} HTTP/1.1\r\nhost: a\r\n${headers}${length}\r\n${body}`);
      }),
    post: (path: string, body: unknown, headers: Record<string, string> = {}) =>
      fetch(`${base}${path}`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: JSON.stringify(body),
      }),
    flip: (stage: 'rpc' | 'event') => setStage(db, 'orders', 'placing', stage, { reason: 'test', force: true }),
    events: async () =>
      (await pool.query<{ payload: Order }>('select o.payload from turnout.outbox o order by o.seq')).rows.map(
        ({ payload }) => payload,
      ),
    owed: async () => (await pool.query('select from turnout.rpc_delivery')).rowCount,
    sweep: async () => {
      await sweeper.start();
      onTestFinished(() => sweeper.stop());
    },
  };
}

describe('a recorded call', () => {
  test('in stage rpc is an event and is forwarded; its caller gets the real answer', async () => {
    const { post, legacy, events, owed, proxy } = await world();
    legacy.behave(() => ({ status: 201, headers: { 'x-shop': 'old', 'set-cookie': 'a=1' }, body: '{"placed":true}' }));
    const answer = await post('/orders/o-1', { step: 1 });
    expect([answer.status, answer.headers.get('x-shop'), answer.headers.get('set-cookie')]).toEqual([201, 'old', null]);
    expect(await answer.json()).toEqual({ placed: true });
    expect(await events()).toEqual([{ orderId: 'o-1', step: 1 }]);
    expect(legacy.seen()).toEqual([{ orderId: 'o-1', step: 1 }]);
    expect(await owed()).toBe(0);
    expect(proxy.counters()).toMatchObject({ recorded: 1, asEvents: 0, passed: 0 });
  });

  test('in stage event is not forwarded', async () => {
    const { post, legacy, events, flip, proxy } = await world();
    await flip('event');
    const answer = await post('/orders/o-1', { step: 1 });
    expect(answer.status).toBe(202);
    expect(await answer.json()).toMatchObject({ status: 'accepted' });
    expect(await events()).toEqual([{ orderId: 'o-1', step: 1 }]);
    expect(legacy.calls).toEqual([]);
    expect(proxy.counters()).toMatchObject({ recorded: 1, asEvents: 1 });
  });

  test('in stage event is answered as the route says, a retry the same', async () => {
    const { post, events, flip } = await world({}, { answer: ({ key }) => ({ status: 200, body: { booked: key } }) });
    await flip('event');
    for (let each = 0; each < 2; each++) {
      const answer = await post('/orders/o-1', { step: 1 }, { 'idempotency-key': 'k-1' });
      expect([answer.status, await answer.json()]).toEqual([200, { booked: 'o-1' }]);
    }
    expect(await events()).toHaveLength(1);
  });

  test('with a key of its caller’s is one event and one call, however often it is sent, with the same answer', async () => {
    const { post, legacy, events } = await world();
    legacy.behave((_call, nth) => ({ status: 201, body: `{"nth":${nth}}` }));
    const key = { 'idempotency-key': 'k-1' };
    for (let each = 0; each < 3; each++) {
      const answer = await post('/orders/o-1', { step: 1 }, key);
      expect([answer.status, await answer.json()]).toEqual([201, { nth: 1 }]);
    }
    expect((await post('/orders/o-1', { step: 2 }, key)).status).toBe(422);
    expect(await events()).toHaveLength(1);
    expect(legacy.calls).toHaveLength(1);
    await post('/orders/o-1', { step: 1 });
    expect(await events()).toHaveLength(2);
  });

  test('sent twice at the same time under one key is one event', async () => {
    const { post, events, legacy } = await world();
    const key = { 'idempotency-key': 'k-1' };
    const answers = await Promise.all(Array.from({ length: 6 }, () => post('/orders/o-1', { step: 1 }, key)));
    expect(await events()).toHaveLength(1);
    expect(legacy.calls).toHaveLength(1);
    for (const { status } of answers) expect([200, 409]).toContain(status);
    expect(answers.some(({ status }) => status === 200)).toBe(true);
  });

  test.each([504, 202] as const)(
    'that is not answered in time is told %i, kept, and made again with the same key',
    async (onTimeout) => {
      const { post, legacy, owed, sweep } = await world({}, { onTimeout, timeoutMs: 1_000 });
      legacy.behave((_call, nth) => (nth === 1 ? { after: new Promise(() => undefined) } : {}));
      expect((await post('/orders/o-1', { step: 1 })).status).toBe(onTimeout);
      expect(await owed()).toBe(1);
      await sweep();
      await waitFor(() => legacy.effects.length === 1, { what: 'the call to be made again' });
      await waitFor(async () => (await owed()) === 0);
      expect(legacy.calls[0]!.headers['idempotency-key']).toBe(legacy.calls[1]!.headers['idempotency-key']);
    },
  );

  test('is refused while it can’t be recorded, and nothing reaches the endpoint', async () => {
    const { post, legacy, pool, proxy } = await world();
    await pool.query('alter table turnout.outbox rename to away');
    expect((await post('/orders/o-1', { step: 1 })).status).toBe(503);
    expect(legacy.calls).toEqual([]);
    await pool.query('alter table turnout.away rename to outbox');
    expect((await post('/orders/o-1', { step: 1 })).status).toBe(200);
    expect(proxy.counters()).toMatchObject({ refused: 1, recorded: 1 });
  });

  test('with a key of its caller’s is never forwarded without a record: it may have been recorded before', async () => {
    const { post, legacy, pool, proxy, owed, sweep } = await world({ onOutboxFailure: 'open' });
    const key = { 'idempotency-key': 'k-1' };
    legacy.behave(() => ({ status: 500 }));
    expect((await post('/orders/o-1', { step: 1 }, key)).status).toBe(504);
    legacy.behave(() => ({ status: 201 }));
    await pool.query('alter table turnout.proxied_call rename to away');
    expect((await post('/orders/o-1', { step: 1 }, key)).status).toBe(503);
    await pool.query('alter table turnout.away rename to proxied_call');
    await pool.query('alter table turnout.outbox rename to away');
    expect((await post('/orders/o-2', { step: 1 }, { 'idempotency-key': 'k-2' })).status).toBe(503);
    await pool.query('alter table turnout.away rename to outbox');
    expect([legacy.effects, proxy.counters().unrecorded]).toEqual([[], 0]);
    await sweep();
    await waitFor(async () => (await owed()) === 0);
    expect(legacy.effects).toHaveLength(1);
    expect((await post('/orders/o-1', { step: 1 }, key)).status).toBe(201);
    expect(legacy.effects).toHaveLength(1);
  });

  test.each([
    [422, { status: 422, headers: { 'x-why': 'gone' }, body: '{"error":"no such parcel"}' }],
    [201, { status: 201, headers: { 'x-why': 'gone' }, body: '{"ok":1}' }],
  ])('that the sweeper ended with %i is told so when its caller asks again', async (status, said) => {
    const { post, legacy, owed, sweep } = await world();
    const key = { 'idempotency-key': 'k-1' };
    legacy.behave((_call, nth) => (nth === 1 ? { status: 503 } : said));
    expect((await post('/orders/o-1', { step: 1 }, key)).status).toBe(504);
    expect((await post('/orders/o-1', { step: 1 }, key)).status).toBe(409);
    await sweep();
    await waitFor(async () => (await owed()) === 0, { what: 'the call to be over' });
    for (let each = 0; each < 2; each++) {
      const again = await post('/orders/o-1', { step: 1 }, key);
      expect([again.status, again.headers.get('x-why'), await again.text()]).toEqual([status, 'gone', said.body]);
    }
    expect(legacy.calls).toHaveLength(2);
  });

  test('that was answered after its caller had been told 504 is told that answer when the caller asks again', async () => {
    const { post, legacy, owed } = await world({}, { timeoutMs: 100 });
    const key = { 'idempotency-key': 'k-1' };
    let answer: () => void = () => undefined;
    const later = new Promise<void>((resolve) => (answer = resolve));
    legacy.behave(() => ({ status: 201, after: later }));
    expect((await post('/orders/o-1', { step: 1 }, key)).status).toBe(504);
    answer();
    await waitFor(async () => (await owed()) === 0, { what: 'the call to be over' });
    expect((await post('/orders/o-1', { step: 1 }, key)).status).toBe(201);
    expect(legacy.calls).toHaveLength(1);
  });

  test('is forwarded without a record, counted and reported, if that is asked for', async () => {
    const unrecorded: string[] = [];
    const { post, legacy, pool, proxy } = await world({
      onOutboxFailure: 'open',
      onUnrecorded: ({ method, path }) => unrecorded.push(`${method} ${path}`),
    });
    await pool.query('alter table turnout.outbox rename to away');
    expect((await post('/orders/o-1', { step: 1 })).status).toBe(200);
    expect(legacy.calls.map(({ method, path, body }) => [method, path, body])).toEqual([
      ['POST', '/orders/o-1', '{"step":1}'],
    ]);
    expect(unrecorded).toEqual(['POST /orders/o-1']);
    expect(proxy.counters()).toMatchObject({ unrecorded: 1, recorded: 0 });
  });

  test.each<[string, number, unknown, Record<string, string>, Partial<ProxyOptions<never>>]>([
    ['bad data', 400, { step: 'one' }, {}, {}],
    ['a body that is too large', 413, { step: 1, more: 'x'.repeat(2_000) }, {}, { maxBodyBytes: 1_000 }],
    [
      'an unknown caller',
      401,
      { step: 1 },
      {},
      { authenticate: ({ headers }) => headers['authorization'] === 'Bearer a' },
    ],
  ])('is refused for %s', async (_name, status, body, headers, options) => {
    const { post, legacy, events, proxy } = await world(options);
    expect((await post('/orders/o-1', body, headers)).status).toBe(status);
    expect([legacy.calls, await events()]).toEqual([[], []]);
    expect(proxy.counters().refused).toBe(1);
  });

  test('can’t be hidden by another spelling', async () => {
    const { raw, events, legacy } = await world();
    const spellings = [
      '/orders//o-1',
      '/orders/o-1/',
      '/%6Frders/o-1',
      '/x/../orders/o-1',
      '/ORDERS/o-1',
      '/orders;v=1/o-1',
      'http://elsewhere.example/orders/o-1',
    ];
    for (const target of spellings) expect(await raw('POST', target, '{"step":1}'), target).toMatch(/^HTTP\/1.1 200/);
    expect(await events()).toEqual(spellings.map(() => ({ orderId: 'o-1', step: 1 })));
    expect(legacy.calls).toHaveLength(spellings.length);
  });

  test('is refused to whom nobody knows, however it is spelled and whatever protocol it asks for', async () => {
    const { raw, events, legacy, proxy } = await world({ authenticate: () => 'a user' as never });
    for (const target of ['/orders/o-1', '/Orders/o-1', 'http://elsewhere.example/orders/o-1'])
      expect(await raw('POST', target, '{"step":1}')).toMatch(/^HTTP\/1.1 401/);
    for (const target of ['/orders%2Fo-1', '/orders/..', '/x%2F../orders/o-1', 'ftp://elsewhere.example/orders/o-1'])
      expect(await raw('POST', target, '{"step":1}')).toMatch(/^HTTP\/1.1 400/);
    for (const upgrade of ['h2c', 'websocket'])
      expect(await raw('POST', '/orders/o-1', '', `connection: upgrade, close\r\nupgrade: ${upgrade}\r\n`)).toMatch(
        /^HTTP\/1.1 401/,
      );
    expect([legacy.calls, await events(), proxy.counters().passed]).toEqual([[], [], 0]);
  });

  test('is recorded with its body though its caller would have liked HTTP/2, as Java’s does', async () => {
    const { raw, events, legacy } = await world();
    const wish = 'connection: Upgrade, HTTP2-Settings, close\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n';
    expect(await raw('POST', '/orders/o-1', '{"step":1}', wish)).toMatch(/^HTTP\/1.1 200/);
    expect(await events()).toEqual([{ orderId: 'o-1', step: 1 }]);
    const other = await raw('PUT', '/other', '{"step":2}', wish);
    expect(other).toMatch(/^HTTP\/1.1 200[^]*\{"ok":true\}/);
    expect(legacy.calls.map(({ path, body }) => [path, body])).toEqual([
      ['/orders', '{"orderId":"o-1","step":1}'],
      ['/other', '{"step":2}'],
    ]);
  });
});

describe('a caller’s key', () => {
  const key = { 'idempotency-key': 'k-1' };
  const old = (pool: Pool) =>
    pool.query(
      "update turnout.proxied_call set at = at - interval '8 days', settled_at = settled_at - interval '8 days'",
    );

  test('is kept while its call is owed, and for as long after it is over', async () => {
    const { post, legacy, pool, owed, sweep, forget } = await world();
    legacy.behave(() => ({ status: 503 }));
    await post('/orders/o-1', { step: 1 }, key);
    await old(pool);
    expect(await forget()).toBe(0);
    legacy.behave(() => ({ status: 201 }));
    await sweep();
    await waitFor(async () => (await owed()) === 0);
    expect(await forget()).toBe(0);
    expect((await post('/orders/o-1', { step: 1 }, key)).status).toBe(201);
    await old(pool);
    expect(await forget()).toBe(1);
  });

  test('is kept where nobody knows how its call ended, and the caller is not told that it was accepted', async () => {
    const { post, legacy, pool, forget } = await world();
    legacy.behave(() => ({ status: 503 }));
    await post('/orders/o-1', { step: 1 }, key);
    await pool.query('delete from turnout.rpc_delivery');
    await old(pool);
    expect(await forget()).toBe(0);
    expect((await post('/orders/o-1', { step: 1 }, key)).status).toBe(504);
    expect(legacy.calls).toHaveLength(1);
  });

  test('that was forgotten makes a new event with a call of its own', async () => {
    const { post, legacy, pool, events, forget } = await world();
    legacy.behave((_call, nth) => ({ status: 201, body: `{"nth":${nth}}` }));
    await post('/orders/o-1', { step: 1 }, key);
    await old(pool);
    expect(await forget()).toBe(1);
    expect(await (await post('/orders/o-1', { step: 1 }, key)).json()).toEqual({ nth: 2 });
    expect(await events()).toHaveLength(2);
    expect(legacy.calls[0]!.headers['idempotency-key']).not.toBe(legacy.calls[1]!.headers['idempotency-key']);
  });

  test('is forgotten by the proxy that it was told to, not by another of the same source', async () => {
    const { post, pool, forget } = await world();
    await post('/orders/o-1', { step: 1 }, key);
    await old(pool);
    expect(await forget('another-proxy')).toBe(0);
    expect(await forget()).toBe(1);
  });
});

test('a proxy whose code says another endpoint than the row doesn’t start, nor is anything published', async () => {
  const { pool, proxy, other, sweep, switchTo } = await world();
  await pool.query("update turnout.switchover set endpoint = 'wrapped'");
  const differs = expect.objectContaining({ code: 'TURNOUT_ENDPOINT_DIFFERS', retryable: true });
  await expect(other.transaction((tx) => other.publish(tx, OrderPlaced, { orderId: 'o', step: 1 }))).rejects.toEqual(
    differs,
  );
  await proxy.stop();
  await expect(proxy.start()).rejects.toEqual(differs);
  await expect(sweep()).rejects.toEqual(differs);
  await expect(switchTo('event', true)).rejects.toEqual(differs);
  await expect(switchTo('rpc', false)).rejects.toEqual(differs);
  // The way back must be open in any case.
  await switchTo('rpc', true);
  await expect(requireBridged(pgDatabase(pool), 'orders', 'shop')).rejects.toEqual(differs);
  expect((await pool.query('select from turnout.outbox')).rowCount).toBe(0);
  await switchTo('register', false);
  await requireBridged(pgDatabase(pool), 'orders', 'shop');
  await other.transaction((tx) => other.publish(tx, OrderPlaced, { orderId: 'o', step: 1 }));
  await other.close();
});

test('stop lets a caller end that keeps its connection, and answers it no further', async () => {
  const { proxy, base, legacy } = await world({ graceMs: 60_000 });
  const { hostname, port } = new URL(base);
  const agent = new Agent({ keepAlive: true });
  onTestFinished(() => agent.destroy());
  let answered = 0;
  let over = false;
  const asking = (async () => {
    for (;;)
      await new Promise<void>((resolve, reject) => {
        httpGet({ hostname, port, path: '/other', agent }, (response) => {
          response.resume().once('end', resolve);
        }).once('error', reject);
      }).then(() => answered++);
  })().catch(() => (over = true));
  await waitFor(() => answered > 3);
  await proxy.stop();
  await asking;
  expect(over).toBe(true);
  expect(legacy.calls.length).toBe(answered);
});

describe('any other request', () => {
  test('passes untouched, without what is about one connection and what only publishers may say', async () => {
    const { base, legacy, events } = await world();
    legacy.behave(() => ({ status: 203, headers: { 'set-cookie': 'a=1', connection: 'x-hop', 'x-hop': '1' } }));
    const answer = await fetch(`${base}/other?q=1`, {
      method: 'PUT',
      headers: { authorization: 'Bearer user', 'x-forwarded-for': '192.0.2.1', 'turnout-consumer': 'shop' },
      body: 'bytes',
    });
    expect([answer.status, answer.headers.get('set-cookie'), answer.headers.get('x-hop')]).toEqual([203, 'a=1', null]);
    const call = legacy.calls[0]!;
    expect([call.method, call.path, call.body]).toEqual(['PUT', '/other?q=1', 'bytes']);
    expect(call.headers).toMatchObject({
      authorization: 'Bearer user',
      'x-forwarded-for': '192.0.2.1, 127.0.0.1',
      'x-forwarded-proto': 'http',
      'x-forwarded-host': new URL(base).host,
    });
    expect(call.headers['turnout-consumer']).toBeUndefined();
    expect(await events()).toEqual([]);
  });

  test('streams both ways: the answer begins before the request has ended', async () => {
    const target = createServer((request, response) => void request.pipe(response));
    await new Promise<void>((resolve) => target.listen(0, '127.0.0.1', resolve));
    onTestFinished(() => void target.close());
    const { base } = await world({ target: `http://127.0.0.1:${(target.address() as { port: number }).port}` });
    const { hostname, port } = new URL(base);
    const request = httpRequest({ hostname, port, path: '/echo', method: 'POST' });
    request.write('first');
    const response = await new Promise<NodeJS.ReadableStream>((resolve) => request.once('response', resolve as never));
    const chunks: string[] = [];
    response.on('data', (chunk: Buffer) => chunks.push(chunk.toString()));
    await waitFor(() => chunks.join('') === 'first', { what: 'the first half back' });
    request.end('second');
    await waitFor(() => chunks.join('') === 'firstsecond', { what: 'the second half back' });
  });

  test('passes as a WebSocket would', async () => {
    const target = createServer();
    target.on('upgrade', (request, socket) => {
      socket.write(
        `HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: ${request.headers.upgrade}\r\n\r\n`,
      );
      socket.pipe(socket);
    });
    await new Promise<void>((resolve) => target.listen(0, '127.0.0.1', resolve));
    onTestFinished(() => void target.close());
    const { base } = await world({ target: `http://127.0.0.1:${(target.address() as { port: number }).port}` });
    const socket = connect(Number(new URL(base).port), '127.0.0.1');
    let seen = '';
    socket.on('data', (chunk) => (seen += chunk.toString()));
    socket.write('GET /live HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n');
    await waitFor(() => seen.includes('101 Switching'), { what: 'the switch' });
    expect(seen).toContain('upgrade: websocket');
    socket.write('ping');
    await waitFor(() => seen.endsWith('ping'), { what: 'the echo' });
    socket.destroy();
  });

  test('is told 502 when nobody is behind', async () => {
    const { base, legacy } = await world();
    await legacy.close();
    expect((await fetch(`${base}/other`)).status).toBe(502);
    await legacy.reopen();
  });
});

test('what was recorded survives a crash of the proxy between commit and call', async () => {
  const [created, legacy] = await Promise.all([database({ template: migrated('producer') }), legacyEndpoint()]);
  const pool = created.pool({ max: 3 });
  const run = () => spawnNode(new URL('./fixtures/proxy-process.ts', import.meta.url), [created.url, legacy.url]);
  const first = run();
  onTestFinished(() => legacy.close());
  const [, port] = await first.line(/^ready (\d+)$/, { deadlineMs: 20_000 });
  // The endpoint has its effect and never answers.
  legacy.behave(() => ({ after: new Promise(() => undefined) }));
  const call = fetch(`http://127.0.0.1:${port}/orders/o-1`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'idempotency-key': 'k-1' },
    body: '{"step":1}',
  }).catch(() => undefined);
  await waitFor(() => legacy.calls.length === 1, { what: 'the call' });
  await first.kill('SIGKILL');
  await call;
  expect((await pool.query('select from turnout.rpc_delivery')).rowCount).toBe(1);
  legacy.behave(() => ({}));
  const second = run();
  await second.line(/^ready (\d+)$/, { deadlineMs: 20_000 });
  await waitFor(() => legacy.effects.length === 1, { what: 'the call to be made again', deadlineMs: 20_000 });
  expect(legacy.calls[0]!.headers['idempotency-key']).toBe(legacy.calls[1]!.headers['idempotency-key']);
  const { code } = await second.kill('SIGTERM');
  expect(code).toBe(0);
  expect((await pool.query('select from turnout.outbox')).rowCount).toBe(1);
});
