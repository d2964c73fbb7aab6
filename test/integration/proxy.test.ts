import { request as httpRequest, createServer } from 'node:http';
import { connect } from 'node:net';
import { describe, expect, onTestFinished, test } from 'vitest';
import {
  createTurnout,
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
import { spawnNode, waitFor } from '../support/index.ts';
import { migrated } from '../support/migrated.ts';
import { database } from '../support/vitest.ts';
import { legacyEndpoint } from './fixtures/legacy-endpoint.ts';
import { OrderPlaced } from './fixtures/switchover-world.ts';
import type { Order } from './fixtures/switchover-world.ts';

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
  const proxy = runProxy(
    defineProxy({
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
    }),
  );
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

  test.each(['/orders//o-1', '/orders/o-1/', '/%6Frders/o-1', '/x/../orders/o-1'])(
    'can’t be hidden by another spelling: %s',
    async (path) => {
      const { base, events } = await world();
      const { hostname, port } = new URL(base);
      // `fetch` would follow the dots itself.
      await new Promise<void>((resolve, reject) => {
        const request = httpRequest(
          { hostname, port, path, method: 'POST', headers: { 'content-type': 'application/json' } },
          (response) => void response.resume().once('end', () => resolve()),
        );
        request.once('error', reject).end('{"step":1}');
      });
      expect(await events()).toEqual([{ orderId: 'o-1', step: 1 }]);
    },
  );
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
    socket.write('GET /live HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n');
    await waitFor(() => seen.includes('101 Switching'), { what: 'the switch' });
    expect(seen).toContain('upgrade: echo');
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
