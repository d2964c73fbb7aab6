import { Kafka, logLevel } from 'kafkajs';
import { describe, expect, onTestFinished, test } from 'vitest';
import {
  createRelay,
  defineBridge,
  defineSwitchover,
  on,
  outboxKeeper,
  recordSince,
  registerSwitchover,
  rpcSweeper,
  runConsumer,
  setStage,
  silentLogger,
} from 'turnout';
import type { BridgeOptions, RpcCall, Service, SwitchoverDefinition, TurnoutEvent } from 'turnout';
import { rpcFetch } from 'turnout/fetch';
import { kafkaJs } from 'turnout/kafkajs';
import { pgDatabase } from 'turnout/pg';
import { inMemoryBroker } from 'turnout/testing';
import { applyTopics } from '../../src/relay/index.ts';
import { spawnNode, uniqueName, waitFor } from '../support/index.ts';
import { migrated } from '../support/migrated.ts';
import { database, sharedKafka } from '../support/vitest.ts';
import { bridgeWorld } from './fixtures/bridge-world.ts';
import { legacyEndpoint } from './fixtures/legacy-endpoint.ts';
import { OrderChanged, OrderPlaced, producer } from './fixtures/switchover-world.ts';
import type { Order } from './fixtures/switchover-world.ts';

const quick = { attempts: 3, firstDelayMs: 10, maxDelayMs: 50 };

async function world(order: 'key' | 'none', options: Partial<BridgeOptions> = {}) {
  const [from, bridgeDatabase, legacy] = await Promise.all([
    producer(),
    database({ template: migrated('consumer') }),
    legacyEndpoint(),
  ]);
  const pool = bridgeDatabase.pool({ max: 6 });
  const send = (event: TurnoutEvent<Order>, call: RpcCall) =>
    rpcFetch(call, `${legacy.url}/invoices`, { json: event.data });
  const calls = [on(OrderPlaced, send), on(OrderChanged, send)];
  const switchover = defineSwitchover({
    name: 'invoices',
    consumer: 'invoicing',
    order,
    endpoint: 'bridged',
    timeoutMs: 1_000,
    rpc: calls,
  });
  await register(from, switchover);
  const broker = inMemoryBroker();
  await applyTopics(broker.topics(), [OrderPlaced, OrderChanged]);
  const bridge = defineBridge(pgDatabase(pool), {
    name: 'invoicing',
    order,
    from: 'beginning',
    calls,
    retry: quick,
    timeoutMs: 1_000,
    ...options,
  });
  const turnout = from.turnout([switchover], { retry: quick });
  const services: Service[] = [
    outboxKeeper({ database: from.database }),
    rpcSweeper({ source: 'orders', database: from.database, switchovers: [switchover], pollMs: 10, retry: quick }),
    createRelay({ database: from.database, publisher: broker.publisher(), logger: silentLogger }),
    runConsumer(bridge, { source: broker.source(), sweepEveryMs: 50 }),
  ];
  onTestFinished(async () => {
    await turnout.close();
    for (const service of services.toReversed()) await service.stop();
    await legacy.close();
  });
  for (const service of services) await service.start();
  const publish = (orderId: string, step: number) =>
    turnout.transaction((tx) => turnout.publish(tx, step === 1 ? OrderPlaced : OrderChanged, { orderId, step }));
  return {
    from,
    legacy,
    pool,
    switchover,
    turnout,
    publish,
    flip: async (stage: 'rpc' | 'event') => {
      await setStage(from.database, 'orders', switchover.name, stage, { reason: 'test', force: true });
    },
    drained: async (published: number) => {
      await waitFor(
        async () => {
          const { rows } = await pool.query<{ n: string }>(
            'select coalesce(sum(p.next_offset), 0)::text as n from turnout.position p',
          );
          return Number(rows[0]!.n) === published;
        },
        { what: 'the bridge to have passed all', deadlineMs: 15_000 },
      );
    },
    inbox: async () =>
      (
        await pool.query<{ outcome: string; reason: string | null; answer: unknown }>(
          'select i.outcome, i.reason, i.answer from turnout.inbox i order by i.finished_at',
        )
      ).rows,
    alarms: async () => (await pool.query<{ kind: string }>('select a.kind from turnout.alarm a')).rows,
  };
}

async function register(from: Awaited<ReturnType<typeof producer>>, definition: SwitchoverDefinition): Promise<void> {
  await registerSwitchover(from.database, 'orders', definition, 'test');
  await recordSince(from.database, 'orders', definition.name, { orders: [0n, 0n, 0n] });
}

describe.each(['key', 'none'] as const)('a bridged switchover, order %s', (order) => {
  test('goes from calls to events and back: each effect exactly once without faults, in order if it is ordered', async () => {
    const { from, legacy, publish, flip, drained, switchover, alarms } = await world(order);
    const keys = ['a', 'b', 'c'];
    let step = 0;
    const round = async (): Promise<void> => {
      for (let each = 0; each < 5; each++) {
        step++;
        await Promise.all(keys.map((key) => publish(key, step)));
      }
    };
    await round();
    await waitFor(async () => (await from.owed()).length === 0, { what: 'all calls to be answered' });
    await flip('event');
    await round();
    await drained(keys.length * step);
    await flip('rpc');
    const last = await publish('a', ++step);
    expect(await last.reply(switchover)).toMatchObject({ route: 'rpc', status: 'done', outcome: 'applied' });
    await round();
    await waitFor(async () => (await from.owed()).length === 0, { what: 'all calls to be answered' });
    await drained(keys.length * (step - 1) + 1);

    for (const key of keys) {
      const steps = legacy.seen<Order>().flatMap((each) => (each.orderId === key ? [each.step] : []));
      if (order === 'none') steps.sort((a, b) => a - b);
      const expected = Array.from({ length: step }, (_, index) => index + 1).filter(
        (each) => key === 'a' || each !== 11,
      );
      expect({ key, steps }).toEqual({ key, steps: expected });
    }
    const idempotencyKeys = legacy.effects.map(({ headers }) => headers['idempotency-key']);
    expect(new Set(idempotencyKeys).size).toBe(idempotencyKeys.length);
    expect(await alarms()).toEqual([]);
  });
});

test('an ordered call waits for an earlier one of its key that is owed: a bridged endpoint could not tell', async () => {
  const { from, legacy, publish } = await world('key');
  legacy.behave((_call, nth) => (nth <= 2 ? { status: 500 } : {}));
  await publish('a', 1);
  await publish('a', 2);
  await publish('a', 3);
  await waitFor(async () => (await from.owed()).length === 0, { what: 'all calls to be answered' });
  expect(legacy.seen<Order>().map(({ step }) => step)).toEqual([1, 2, 3]);
});

describe('the bridge', () => {
  test('waits a down endpoint out, however often it has to ask, and parks nothing', async () => {
    const { legacy, publish, flip, pool, inbox } = await world('none');
    await flip('event');
    legacy.behave((_call, nth) => (nth <= 4 ? { status: 503 } : nth === 5 ? { broken: true } : {}));
    await publish('a', 1);
    await waitFor(() => legacy.calls.length >= 6, { what: 'it to answer' });
    await waitFor(async () => (await inbox()).length === 1 && (await inbox())[0]!.outcome === 'applied');
    expect(new Set(legacy.calls.map(({ headers }) => headers['idempotency-key'])).size).toBe(1);
    expect((await pool.query('select from turnout.held')).rowCount).toBe(0);
  });

  test('keeps a definitive refusal as rejected, with the answer; what follows it goes on', async () => {
    const { legacy, publish, flip, inbox } = await world('key');
    await flip('event');
    legacy.behave((_call, nth) => (nth === 1 ? { status: 422, body: '{"why":"no such customer"}' } : {}));
    await publish('a', 1);
    await publish('a', 2);
    await waitFor(() => legacy.effects.length === 1, { what: 'the second call' });
    await waitFor(async () => (await inbox()).filter(({ outcome }) => outcome !== 'running').length === 2, {
      what: 'both outcomes',
    });
    expect(await inbox()).toEqual([
      {
        outcome: 'rejected',
        reason: 'the endpoint answered 422',
        answer: { status: 422, body: '{"why":"no such customer"}' },
      },
      { outcome: 'applied', reason: null, answer: { status: 200, body: '{"ok":true}' } },
    ]);
    expect(legacy.calls).toHaveLength(2);
  });

  test.each([
    ['key', []],
    ['none', [2]],
  ] as const)('parks what fails again and again; order %s', async (order, others) => {
    const { legacy, publish, flip, pool } = await world(order);
    await flip('event');
    legacy.behave((call) => ((JSON.parse(call.body) as Order).step === 1 ? { status: 500 } : {}));
    await publish('a', 1);
    await publish('a', 2);
    await publish('z', 3);
    await waitFor(
      async () => (await pool.query(`select from turnout.held h where h.reason = 'parked'`)).rowCount === 1,
      { what: 'the first to be parked' },
    );
    await waitFor(() => legacy.effects.length === others.length + 1, { what: 'the others' });
    expect(
      legacy
        .seen<Order>()
        .map(({ step }) => step)
        .toSorted((a, b) => a - b),
    ).toEqual([...others, 3]);
    expect(legacy.calls.filter(({ body }) => (JSON.parse(body) as Order).step === 1)).toHaveLength(quick.attempts);
  });

  test('heeds its rate, over all partitions', async () => {
    const { legacy, publish, flip } = await world('none', { rateLimit: { perSecond: 20, burst: 2 } });
    await flip('event');
    const began = performance.now();
    await Promise.all(Array.from({ length: 12 }, (_, index) => publish(`k${index}`, 1)));
    await waitFor(() => legacy.effects.length === 12, { what: 'all calls' });
    for (const [index, call] of legacy.calls.entries()) {
      // From before the first, which may itself be late; a timer may fire a millisecond early.
      expect(call.atMs - began).toBeGreaterThanOrEqual(((index - 2) * 1_000) / 20 - 50);
    }
    expect(performance.now() - began).toBeGreaterThanOrEqual(400);
  });
});

test('killed in the middle of a call: made again with the same key, and reported', async () => {
  const topic = uniqueName('orders');
  const { brokers } = await sharedKafka();
  const kafka = new Kafka({ clientId: topic, brokers: [...brokers], logLevel: logLevel.NOTHING });
  const created = await database({ template: migrated('producer', 'consumer') });
  const pool = created.pool({ max: 5 });
  const legacy = await legacyEndpoint();
  const { placed, turnout, db } = await bridgeWorld(pool, topic);
  await kafkaJs(kafka)
    .topics()
    .create([{ name: topic, partitions: 1 }]);
  const relay = createRelay({ database: db, publisher: kafkaJs(kafka).publisher(), logger: silentLogger });
  const start = () =>
    spawnNode(new URL('./fixtures/bridge-process.ts', import.meta.url), [
      created.url,
      brokers.join(','),
      topic,
      legacy.url,
    ]);
  let running = start();
  onTestFinished(async () => {
    await running.kill('SIGKILL');
    await relay.stop();
    await turnout.close();
    await legacy.close();
  });
  await relay.start();
  await running.line(/^ready$/, { deadlineMs: 30_000 });

  // The third call has its effect, and its answer never comes: by then the bridge is gone.
  let release: () => void = () => undefined;
  const never = new Promise<void>((resolve) => (release = resolve));
  legacy.behave((_call, nth) => (nth === 3 ? { after: never, broken: true } : {}));
  for (let step = 1; step <= 6; step++)
    await turnout.transaction((tx) => turnout.publish(tx, placed, { orderId: 'a', step }));
  await waitFor(() => legacy.calls.length === 3, { what: 'the third call', deadlineMs: 20_000 });
  await running.kill('SIGKILL');
  release();
  running = start();
  await waitFor(() => new Set(legacy.seen<Order>().map(({ step }) => step)).size === 6, {
    what: 'all effects',
    deadlineMs: 40_000,
  });

  expect(legacy.seen<Order>().map(({ step }) => step)).toEqual([1, 2, 3, 3, 4, 5, 6]);
  const keys = legacy.effects.map(({ headers }) => headers['idempotency-key']);
  expect(keys[2]).toBe(keys[3]);
  expect(new Set(keys).size).toBe(6);
  const { rows } = await pool.query<{ kind: string; key: string }>(
    `select a.kind, a.detail ->> 'effectKey' as key from turnout.alarm a`,
  );
  expect(rows).toEqual([{ kind: 'uncertain', key: JSON.parse(keys[2]!.toString()) as string }]);
}, 120_000);
