// A service in Ruby on either side of a switchover: with real Kafka and Postgres, and no code of ours in it but SQL.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { Kafka, logLevel } from 'kafkajs';
import { beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import {
  createRelay,
  createTurnout,
  defineConsumer,
  defineEvent,
  defineSwitchover,
  defineTopic,
  on,
  recordSince,
  registerEvents,
  registerSwitchover,
  rpcSweeper,
  runConsumer,
  setStage,
  silentLogger,
} from 'turnout';
import type { Service, Stage } from 'turnout';
import { kafkaJs } from 'turnout/kafkajs';
import { pgDatabase } from 'turnout/pg';
import { rpcFetch } from 'turnout/fetch';
import { z } from 'zod';
import { applyTopics } from '../../src/relay/index.ts';
import { callHeaders } from '../../src/switchover/index.ts';
import { uniqueName, waitFor } from '../support/index.ts';
import { spawnProgram } from '../support/spawn-node.ts';
import { migrated } from '../support/migrated.ts';
import { database, sharedKafka } from '../support/vitest.ts';
import { consumer } from './fixtures/switchover-world.ts';

const missing =
  spawnSync('ruby', ['-e', 'require "pg"; require "webrick"']).status === 0 && spawnSync('kcat', ['-V']).status === 0
    ? undefined
    : 'Ruby with pg and webrick, or kcat, is missing: apt-get install ruby ruby-pg ruby-webrick kafkacat';
const script = (name: string): string => fileURLToPath(new URL(`../../examples/ruby/${name}`, import.meta.url));
const partitions = 2;
const keys = ['order-a', 'order-ü', 'order-c'];

/** The producer's database with a switchover on a topic of its own, its relay and its sweeper. */
async function producer(url: () => string, headers: Record<string, string> = {}) {
  expect(missing).toBeUndefined();
  const { brokers } = await sharedKafka();
  const broker = kafkaJs(new Kafka({ clientId: 'ruby-test', brokers: [...brokers], logLevel: logLevel.NOTHING }));
  const topic = defineTopic({ name: uniqueName('orders'), partitions });
  const OrderPlaced = defineEvent({
    name: 'orders.order-placed',
    version: 1,
    topic,
    schema: z.object({ orderId: z.string(), step: z.number() }),
    key: (order) => order.orderId,
  });
  const email = defineSwitchover({
    name: 'order-email',
    consumer: 'email',
    order: 'key',
    timeoutMs: 5_000,
    rpc: [
      on(OrderPlaced, (event, call) =>
        rpcFetch({ ...call, headers: { ...call.headers, ...headers } }, url(), { json: event.data }),
      ),
    ],
  });
  const created = await database({ template: migrated('producer') });
  const pool = created.pool({ max: 10 });
  const db = pgDatabase(pool);
  await pool.query('create table business (order_id text, step integer)');
  await registerEvents(db, 'orders', [OrderPlaced]);
  await registerSwitchover(db, 'orders', email, 'test');
  await recordSince(db, 'orders', email.name, { [topic.name]: Array.from({ length: partitions }, () => 0n) });
  await applyTopics(broker.topics(), [OrderPlaced]);
  const quick = { attempts: 1, firstDelayMs: 20, maxDelayMs: 200 };
  const services: Service[] = [
    createRelay({ database: db, publisher: broker.publisher(), logger: silentLogger }),
    rpcSweeper({
      source: 'orders',
      database: db,
      switchovers: [email],
      pollMs: 20,
      retry: quick,
      logger: silentLogger,
    }),
  ];
  onTestFinished(async () => {
    for (const service of services) await service.stop();
  });
  for (const service of services) await service.start();
  const owed = async (): Promise<number> => (await pool.query('select from turnout.rpc_delivery')).rowCount ?? 0;
  return {
    url: created.url,
    pool,
    database: db,
    broker,
    brokers,
    topic: topic.name,
    OrderPlaced,
    email,
    retry: quick,
    stage: (stage: Stage) => setStage(db, 'orders', email.name, stage, { reason: 'test', force: true }),
    allAnswered: () => waitFor(async () => (await owed()) === 0, { what: 'no call to be owed', deadlineMs: 20_000 }),
  };
}

async function spawnRuby(name: string, env: Record<string, string>) {
  const ruby = spawnProgram('ruby', [script(name)], env);
  onTestFinished(async () => void (await ruby.kill()));
  return ruby;
}

const stepsUpTo = (last: number): number[] => Array.from({ length: last }, (_, index) => index + 1);

// On CI it fails instead: `.ci/run` installs them.
beforeEach(({ skip }) => skip(missing !== undefined && process.env['CI'] === undefined, missing));

describe('Ruby in a switchover', () => {
  test('publishes, in rpc, in event and back: each effect once and in order; what it rolls back has none', async () => {
    const to = await consumer({ order: 'key' });
    const from = await producer(() => to.url);
    const { OrderPlaced } = from;
    const service = runConsumer(
      defineConsumer(to.database, {
        name: 'email',
        from: 'beginning',
        inSwitchover: [OrderPlaced],
        handlers: [
          on(OrderPlaced, async (event, { tx }) => {
            await tx.query('insert into effects (order_id, step, how) values ($1, $2, $3)', [
              event.data.orderId,
              event.data.step,
              'event',
            ]);
          }),
        ],
      }),
      { source: from.broker.source(), sweepEveryMs: 50, logger: silentLogger },
    );
    onTestFinished(async () => {
      await service.stop();
      await to.close();
    });
    await service.start();

    const shop = await spawnRuby('shop.rb', { DATABASE_URL: from.url });
    const place = async (order: object): Promise<void> => {
      shop.send(JSON.stringify(order));
      await shop.line(/^published/);
    };
    for (const step of stepsUpTo(9)) {
      // Flips before 4 and before 7, while earlier ones are on their way.
      if (step === 4) await from.stage('event');
      if (step === 7) await from.stage('rpc');
      for (const orderId of keys) await place({ orderId, step });
      await place({ orderId: keys[0]!, step: 100 + step, fail: true });
    }
    await waitFor(async () => (await to.effects()).length >= 9 * keys.length, {
      what: 'all effects',
      deadlineMs: 20_000,
    });
    await from.allAnswered();
    for (const key of keys) expect({ key, effects: await to.effects(key) }).toEqual({ key, effects: stepsUpTo(9) });
    const { rows } = await to.pool.query<{ how: string }>('select distinct how from effects order by how');
    expect(rows.map(({ how }) => how)).toContain('rpc');
    expect((await from.pool.query('select from business')).rowCount).toBe(9 * keys.length);
    // All routes were Ruby's to publish, and the database's to choose.
    const routes = await from.pool.query<{ route: string; n: number }>(
      'select route, count(*)::integer as n from turnout.stamp s group by route order by route',
    );
    expect(routes.rows).toEqual([
      { route: 'event', n: 9 },
      { route: 'rpc', n: 18 },
    ]);
  });

  test('its endpoint and its consumer apply, across flips, repeats, early calls and a kill: each once, in order', async () => {
    let port = 0;
    const token = { authorization: 'Bearer secret' };
    const url = (): string => `http://127.0.0.1:${port}/confirmations`;
    const from = await producer(url, token);
    const created = await database({ template: migrated('consumer') });
    const pool = created.pool({ max: 4 });
    await pool.query(
      'create table effects (id bigint generated always as identity, order_id text, step integer, how text)',
    );
    const startEmail = async () => {
      const ruby = await spawnRuby('email.rb', {
        DATABASE_URL: created.url,
        KAFKA_BROKERS: from.brokers.join(','),
        KAFKA_TOPIC: from.topic,
        KAFKA_PARTITIONS: String(partitions),
        SERVICE_TOKEN: 'secret',
      });
      port = Number((await ruby.line(/^listening (\d+)/))[1]);
      return ruby;
    };
    let email = await startEmail();
    const turnout = createTurnout({
      source: 'orders',
      database: from.database,
      switchovers: [from.email],
      retry: from.retry,
    });
    onTestFinished(() => turnout.close());
    const place = (orderId: string, step: number) =>
      turnout.transaction((tx) => turnout.publish(tx, from.OrderPlaced, { orderId, step }));
    const effects = async (key?: string): Promise<{ step: number; how: string }[]> =>
      (
        await pool.query<{ step: number; how: string }>(
          'select step, how from effects where $1::text is null or order_id = $1 order by effects.id',
          [key ?? null],
        )
      ).rows;

    // By call: with an answer, again with the stored one, refused for good, and without a token.
    const first = await place(keys[0]!, 1);
    expect(await first.reply(from.email)).toMatchObject({
      route: 'rpc',
      status: 'done',
      outcome: 'applied',
      reply: { status: 201, body: { sent: keys[0] } },
    });
    const event = {
      id: first.id,
      type: 'orders.order-placed',
      version: 1,
      source: 'orders',
      topic: from.topic,
      key: keys[0]!,
      time: first.time,
      data: {},
      headers: {},
    };
    const ask = (turn: number, body: unknown, { id = first.id, more = token }: { id?: string; more?: object } = {}) =>
      fetch(url(), {
        method: 'POST',
        headers: { ...callHeaders('email', { ...event, id }, { generation: 1, number: turn }), ...more },
        body: JSON.stringify(body),
      });
    const again = await ask(1, { orderId: keys[0], step: 1 });
    expect([again.status, again.headers.get('turnout-outcome'), await again.json()]).toEqual([
      201,
      'duplicate',
      { sent: keys[0] },
    ]);
    expect((await ask(1, { another: 'body' })).status).toBe(422);
    expect((await ask(1, { orderId: keys[0], step: 1 }, { more: {} })).status).toBe(401);
    const early = await ask(7, { orderId: keys[0], step: 7 }, { id: '00000000-0000-4000-8000-000000000007' });
    expect([early.status, early.headers.get('turnout-last-number')]).toEqual([425, '1.1']);
    expect(await (await place('refused', -1)).reply(from.email)).toMatchObject({
      status: 'rejected',
      reply: { status: 422 },
    });

    // From calls to events and back, while earlier ones are still on their way; then its process is killed.
    for (const key of keys) for (const step of stepsUpTo(3)) if (key !== keys[0] || step > 1) await place(key, step);
    await from.stage('event');
    for (const key of keys) for (const step of [4, 5]) await place(key, step);
    await waitFor(async () => (await effects()).some(({ how }) => how === 'event'), {
      what: 'the first event in Ruby',
      deadlineMs: 20_000,
    });
    await email.kill('SIGKILL');
    for (const key of keys) await place(key, 6);
    await from.stage('rpc');
    for (const key of keys) await place(key, 7);
    email = await startEmail();
    await from.allAnswered();
    await waitFor(async () => (await effects()).length >= 7 * keys.length, { what: 'all effects', deadlineMs: 20_000 });
    // Until the copies of all, calls and repeats too, have been read: 7 of each key and the refused one.
    const read = async (): Promise<number> =>
      Number(
        (await pool.query('select coalesce(sum(p.next_offset - p.since), 0)::text as n from turnout.position p'))
          .rows[0].n,
      );
    await waitFor(async () => (await read()) === 7 * keys.length + 1, {
      what: 'all copies to be read',
      deadlineMs: 20_000,
    });

    for (const key of keys)
      expect({ key, steps: (await effects(key)).map(({ step }) => step) }).toEqual({ key, steps: stepsUpTo(7) });
    expect(new Set((await effects()).map(({ how }) => how))).toEqual(new Set(['rpc', 'event']));
    expect((await pool.query('select from turnout.held')).rowCount).toBe(0);
    expect((await pool.query('select kind, detail from turnout.alarm')).rows).toEqual([]);
    const { rows } = await pool.query(
      'select outcome, count(*)::integer as n from turnout.inbox group by outcome order by outcome',
    );
    expect(rows).toEqual([
      { outcome: 'applied', n: 7 * keys.length },
      { outcome: 'rejected', n: 1 },
    ]);
  });
});
