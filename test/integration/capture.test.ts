import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import express from 'express';
import type { Request, RequestHandler } from 'express';
import { expect, onTestFinished, test } from 'vitest';
import {
  createCapture,
  createEndpoint,
  createTurnout,
  defineSwitchover,
  on,
  recordSince,
  registerEvents,
  registerSwitchover,
} from 'turnout';
import type { CaptureOptions } from 'turnout';
import { switchedOver } from 'turnout/express';
import { rpcFetch } from 'turnout/fetch';
import { joinPool, pgDatabase } from 'turnout/pg';
import { waitFor } from '../support/index.ts';
import { migrated } from '../support/migrated.ts';
import { database } from '../support/vitest.ts';
import { legacyEndpoint } from './fixtures/legacy-endpoint.ts';
import { OrderPlaced } from './fixtures/switchover-world.ts';
import type { Order } from './fixtures/switchover-world.ts';

type Options = Partial<CaptureOptions<string, Order, Order, Request>>;

/** An old shop whose route is captured, and what stands behind its event. */
async function shop(handler: (write: (how: string) => Promise<void>) => RequestHandler, options: Options = {}) {
  const created = await database({ template: migrated('producer', 'consumer') });
  const pool = created.pool({ max: 6 });
  const db = pgDatabase(pool);
  await pool.query('create table "order" (order_id text, how text)');
  await registerEvents(db, 'orders', [OrderPlaced]);
  const legacy = await legacyEndpoint();
  const switchover = defineSwitchover({
    name: 'mail',
    consumer: 'email',
    order: 'none',
    endpoint: 'bridged',
    rpc: [on(OrderPlaced, (event, call) => rpcFetch(call, legacy.url, { json: event.data }))],
  });
  await registerSwitchover(db, 'orders', switchover, 'test');
  await recordSince(db, 'orders', 'mail', { orders: [0n, 0n, 0n] });
  const turnout = createTurnout({ source: 'orders', database: db, switchovers: [switchover] });
  const oldPool = joinPool(pool);
  const write = async (how: string): Promise<void> => {
    // Old code: it has a transaction of its own.
    const client = await oldPool.connect();
    await client.query('begin');
    await client.query('insert into "order" (order_id, how) values ($1, $2)', ['o-1', how]);
    await client.query('commit');
    client.release();
  };
  const capture = createCapture(turnout, {
    event: OrderPlaced,
    data: ({ body }, answer) => ({ ...(body as { orderId: string }), step: (answer.json() as { step: number }).step }),
    ...(options as object),
  });
  const app = express();
  app.post('/orders', express.json(), switchedOver(capture), handler(write));
  const gate = createEndpoint<never, Request>({ consumer: 'shop', database: db as never, order: 'none' });
  app.post('/nested', express.json(), switchedOver(gate), switchedOver(capture), handler(write));
  app.post('/in-front', express.json(), switchedOver(capture), switchedOver(gate), handler(write));
  app.use(((error: unknown, _request, response, _next) =>
    response.status(500).json({ error: String(error) })) as express.ErrorRequestHandler);
  const server = await new Promise<Server>((resolve) => {
    const listening = app.listen(0, '127.0.0.1', () => resolve(listening));
  });
  onTestFinished(async () => {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    await turnout.close();
    await legacy.close();
  });
  const { port } = server.address() as AddressInfo;
  return {
    legacy,
    pool,
    post: (path = '/orders', headers: Record<string, string> = {}, body: unknown = { orderId: 'o-1' }) =>
      fetch(`http://127.0.0.1:${port}${path}`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: JSON.stringify(body),
      }),
    orders: async () => (await pool.query<{ how: string }>('select o.how from "order" o')).rows.map(({ how }) => how),
    events: async () =>
      (await pool.query<{ payload: unknown }>('select o.payload from turnout.outbox o')).rows.map(
        ({ payload }) => payload,
      ),
  };
}

const placing = (write: (how: string) => Promise<void>): RequestHandler => {
  return (_request, response, next) => {
    write('placed').then(() => void response.status(201).set('x-shop', 'old').json({ step: 7 }), next);
  };
};

test('a successful call commits with its event, is answered as before, and then the calls that the event owes are made', async () => {
  const { post, orders, events, legacy } = await shop(placing);
  const answer = await post();
  expect(answer.status).toBe(201);
  expect(answer.headers.get('x-shop')).toBe('old');
  expect(await answer.json()).toEqual({ step: 7 });
  expect(await orders()).toEqual(['placed']);
  expect(await events()).toEqual([{ orderId: 'o-1', step: 7 }]);
  await waitFor(() => legacy.effects.length === 1, { what: 'the call' });
  expect(legacy.seen()).toEqual([{ orderId: 'o-1', step: 7 }]);
});

test.each<[string, number, Options, string[]]>([
  ['a refusal keeps what was written on its way', 422, {}, ['tried']],
  ['a server error takes it back', 500, {}, []],
  ['a server error keeps it, if that is asked for', 500, { rollsBack: () => false }, ['tried']],
  ['a redirect counts as a refusal', 303, {}, ['tried']],
])('%s, and none of it is an event', async (_name, status, options, left) => {
  const { post, orders, events } = await shop(
    (write) => (_request, response, next) => {
      write('tried').then(() => void response.status(status).json({ why: 'no' }), next);
    },
    options,
  );
  const answer = await post();
  expect(answer.status).toBe(status);
  expect(await answer.json()).toEqual({ why: 'no' });
  expect(await orders()).toEqual(left);
  expect(await events()).toEqual([]);
});

test('a handler that throws is rolled back', async () => {
  const { post, orders, events } = await shop((write) => () => {
    // Express takes what an async handler rejects with.
    return write('tried').then(() => Promise.reject(new Error('broken')));
  });
  expect((await post()).status).toBe(500);
  expect([await orders(), await events()]).toEqual([[], []]);
});

test('one that never answers is rolled back when its time is over', async () => {
  const { post, orders } = await shop((write) => () => void write('tried'), { handlerTimeoutMs: 200 });
  expect((await post()).status).toBe(503);
  expect(await orders()).toEqual([]);
});

test('an event that can’t be published fails the call, and nothing is committed', async () => {
  const { post, orders, events } = await shop(placing, { data: () => ({ orderId: 7 }) as never });
  const answer = await post();
  expect(answer.status).toBe(500);
  expect(answer.headers.get('turnout-error')).toBe('TURNOUT_EVENT_DATA_INVALID');
  expect(answer.headers.get('x-shop')).toBeNull();
  expect([await orders(), await events()]).toEqual([[], []]);
});

test('a call of which the capture wants no event is committed without one', async () => {
  const { post, orders, events } = await shop(placing, { data: () => undefined });
  expect((await post()).status).toBe(201);
  expect([await orders(), await events()]).toEqual([['placed'], []]);
});

test('a commit that fails is answered with 503, and the handler doesn’t run twice', async () => {
  let runs = 0;
  const { post, orders, events, pool } = await shop((write) => (request, response, next) => {
    runs++;
    void placing(write)(request, response, next);
  });
  // Fails at the commit, as a serialization failure may.
  await pool.query(
    `create function fail() returns trigger language plpgsql as $$ begin raise exception 'no' using errcode = '40001'; end $$`,
  );
  await pool.query(
    'create constraint trigger fails after insert on "order" deferrable initially deferred for each row execute function fail()',
  );
  const answer = await post();
  expect(answer.status).toBe(503);
  expect(answer.headers.get('retry-after')).toBe('1');
  expect(runs).toBe(1);
  expect([await orders(), await events()]).toEqual([[], []]);
});

test.each(['/nested', '/in-front'])('on one route with a gate, a repeat is no second event: %s', async (path) => {
  const { post, orders, events } = await shop(placing);
  const id = '7d9f2c1e-0000-4000-8000-000000000001';
  const headers = {
    'idempotency-key': `"shop.${id}"`,
    'turnout-consumer': 'shop',
    'turnout-event-id': id,
    'turnout-event-type': 'web.clicked',
    'turnout-event-source': 'web',
    'turnout-event-topic': 'web',
    'turnout-event-time': new Date().toISOString(),
  };
  for (const outcome of ['applied', 'duplicate']) {
    const answer = await post(path, headers);
    expect([answer.status, answer.headers.get('turnout-outcome')]).toEqual([201, outcome]);
    expect(await answer.json()).toEqual({ step: 7 });
  }
  expect((await post(path)).status).toBe(201);
  expect(await orders()).toEqual(['placed', 'placed']);
  expect(await events()).toHaveLength(2);
});
