// Stage shadow at the consumer: the Kafka copies of events whose effect came by call are noted as they come.
import { randomUUID } from 'node:crypto';
import type { Pool } from 'pg';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { defineConsumer, runConsumer } from '../../src/consumer/index.ts';
import { effectKeyOf, on } from '../../src/event/index.ts';
import { bucketOf, deleteOldShadow, sampleOf } from '../../src/inbox/index.ts';
import type { Service } from '../../src/lifecycle/index.ts';
import { shadowReport } from '../../src/switchover/index.ts';
import { inMemoryBroker } from '../../src/testing/index.ts';
import type { InMemoryBroker } from '../../src/testing/index.ts';
import { uniqueName, waitFor } from '../support/index.ts';
import { database } from '../support/vitest.ts';
import { consumerTemplate, eventsOf, memoryLogger, messageOf } from './fixtures/consumer.ts';
import type { Given } from './fixtures/consumer.ts';

let broker: InMemoryBroker;
let pool: Pool;
let topic: string;
let logger: ReturnType<typeof memoryLogger>;
let service: Service | undefined;
let sequence: number;

beforeEach(async () => {
  broker = inMemoryBroker();
  pool = (await database({ template: consumerTemplate })).pool({ max: 8 });
  topic = uniqueName('orders');
  logger = memoryLogger();
  sequence = 0;
  await broker.topics().create([{ name: topic, partitions: 1 }]);
});

afterEach(() => service?.stop());

interface Shadowed extends Partial<Given> {
  turn?: number | undefined;
  epoch?: number;
  shadow?: boolean;
  route?: 'rpc' | 'event';
}

/** Sends an event as it is stamped in stage shadow; gives its effect key. */
async function send({ turn, epoch = 2, shadow = true, route = 'rpc', ...given }: Shadowed = {}): Promise<string> {
  const id = given.id ?? randomUUID();
  const turnOf = turn === undefined ? undefined : { generation: 1, number: turn };
  const message = messageOf(topic, {
    orderId: 'order-1',
    step: 1,
    number: ++sequence,
    ...given,
    id,
    routes: [{ consumer: 'email', route, epoch, shadow, turn: turnOf }],
  });
  const publisher = broker.publisher();
  await publisher.connect();
  await publisher.send([{ topic, partition: 0, messages: [message] }]);
  await publisher.disconnect();
  return effectKeyOf('email', id);
}

async function run(options: { shadowSample?: number } = {}): Promise<void> {
  const { placed, noted } = eventsOf(topic);
  const definition = defineConsumer(pgDatabase(pool), {
    name: 'email',
    from: 'beginning',
    handlers: [
      on(placed, (event, { tx }) =>
        tx.query('insert into effect (order_id, step) values ($1, $2)', [event.data.orderId, event.data.step]),
      ),
      on(noted, () => undefined),
    ],
    ...options,
  });
  service = runConsumer(definition, { source: broker.source(), logger, sweepEveryMs: 20 });
  await service.start();
}

async function untilPosition(next: number): Promise<void> {
  await waitFor(
    async () =>
      (await pool.query<{ at: string }>('select next_offset as at from turnout.position')).rows[0]?.at === String(next),
    { what: `position ${next}` },
  );
}

/** As an endpoint tells of its calls. */
async function called(...effectKeys: string[]): Promise<void> {
  const calls = effectKeys.map((effectKey) => ({
    effectKey,
    eventType: 'orders.order-placed',
    ago: 0,
    bucket: bucketOf(effectKey),
    sample: sampleOf(1),
  }));
  await pool.query("select turnout.record_shadow('email', '', $1)", [JSON.stringify({ calls })]);
}

const report = (options: { promisedDelayMs?: number; since?: Date } = {}) =>
  shadowReport(pgDatabase(pool), 'email', options);

test('notes what came, and misses what did not', async () => {
  const came = await send();
  const notCalled = await send();
  await send({ shadow: false });
  await called(came, effectKeyOf('email', randomUUID()));
  await run();
  await untilPosition(3);
  expect((await report()).deliveries).toMatchObject({
    expected: 2,
    arrived: 1,
    missing: 0,
    waiting: 1,
    undecodable: 0,
  });
  const { deliveries } = await report({ promisedDelayMs: -1 });
  expect(deliveries).toMatchObject({ missing: 1, waiting: 0, late: 1 });
  expect(deliveries.delayMs.p99).toBeGreaterThanOrEqual(0);
  expect((await pool.query('select effect_key from turnout.shadow_arrival order by effect_key')).rows).toEqual(
    [came, notCalled].sort().map((effect_key) => ({ effect_key })),
  );
  // They were observed, and nothing more.
  expect((await pool.query('select from effect')).rowCount).toBe(0);
  expect((await pool.query('select from turnout.inbox')).rowCount).toBe(0);
});

test('notes it once, however often it comes, and before an effect moves the position past it', async () => {
  const id = randomUUID();
  await send({ id });
  await send({ id, number: 1 });
  await send({ route: 'event', shadow: false, number: 2 });
  await run();
  await untilPosition(3);
  expect((await pool.query('select from turnout.shadow_arrival')).rowCount).toBe(1);
  expect((await pool.query('select from effect')).rowCount).toBe(1);
});

test('says why an event could not have had its effect, and never what it holds', async () => {
  await send({ payload: JSON.stringify({ orderId: 'secret', step: 'one' }) });
  await send({ payload: 'no json' });
  await send({ version: 2 });
  await send({ type: 'orders.unknown' });
  await send({ refused: 'too large' });
  await run();
  await untilPosition(5);
  const { deliveries } = await report();
  expect(deliveries.undecodable).toBe(5);
  expect(deliveries.problems).toEqual(
    expect.arrayContaining([
      { problem: 'TURNOUT_EVENT_DATA_INVALID: data.step', count: 1 },
      { problem: 'TURNOUT_EVENT_DATA_INVALID: data', count: 1 },
      { problem: 'TURNOUT_EVENT_UNHANDLED', count: 2 },
      { problem: 'TURNOUT_EVENT_REFUSED', count: 1 },
    ]),
  );
  expect(JSON.stringify(deliveries)).not.toContain('secret');
});

test('sees what came out of the order of its key: by key numbers, or by place in the outbox', async () => {
  for (const turn of [1, 2, 4, 3]) await send({ turn });
  for (const turn of [1, 2]) await send({ turn, orderId: 'order-2' });
  await run();
  await untilPosition(6);
  expect((await report()).deliveries.outOfOrder).toBe(1);
});

test('takes the same sample on both sides, whatever the calls were told of', async () => {
  const keys: string[] = [];
  for (let nth = 0; nth < 60; nth++) keys.push(await send());
  await called(...keys);
  await run({ shadowSample: 0.5 });
  await untilPosition(60);
  const { expected, arrived, missing } = (await report({ promisedDelayMs: -1 })).deliveries;
  expect(expected).toBe(keys.filter((key) => bucketOf(key) < 5_000).length);
  expect([arrived, missing]).toEqual([expected, 0]);
});

test('counts from the newest stage change on', async () => {
  await send({ epoch: 2, time: new Date(Date.now() - 3_600_000) });
  await send({ epoch: 4 });
  await run();
  await untilPosition(2);
  const { since, sinceWhy } = await report();
  expect(sinceWhy).toBe('stage');
  expect(new Date(since!).getTime()).toBeGreaterThan(Date.now() - 600_000);
});

test('goes on if it can’t note anything', async () => {
  await pool.query('drop function turnout.record_shadow_arrivals');
  await send();
  await send({ route: 'event', shadow: false });
  await run();
  await untilPosition(2);
  expect((await pool.query('select from effect')).rowCount).toBe(1);
  expect(logger.lines.filter((line) => line.message.includes('stage shadow'))).toHaveLength(1);
});

test('forgets in small steps', async () => {
  await pool.query(
    `insert into turnout.shadow_arrival (consumer, effect_key, event_type, source, topic, partition, "offset", epoch, occurred_at, arrived_at, bucket, sample)
       select 'email', 'email.' || n, 'a', 'orders', 't', 0, n, 1, now(), now() - interval '8 days', 0, 10000 from generate_series(1, 1500) n`,
  );
  await called('email.new');
  const db = pgDatabase(pool);
  expect([
    await deleteOldShadow(db, 'email'),
    await deleteOldShadow(db, 'email'),
    await deleteOldShadow(db, 'email'),
  ]).toEqual([1000, 500, 0]);
  expect((await pool.query('select from turnout.shadow_call')).rowCount).toBe(1);
});
