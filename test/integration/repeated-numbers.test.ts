// Two key numbers for one effect: its event was published twice under one id. The effect happens once, and the key goes on.
import { randomUUID } from 'node:crypto';
import type { Pool, PoolClient } from 'pg';
import { describe, expect, test } from 'vitest';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { defineConsumer, runConsumer } from '../../src/consumer/index.ts';
import { formatRoutes, on } from '../../src/event/index.ts';
import type { Turn } from '../../src/event/index.ts';
import { apply, hold, intend, nextHeld, release, settle } from '../../src/inbox/index.ts';
import type { Arrival } from '../../src/inbox/index.ts';
import { defineSwitchover, rpcSweeper } from '../../src/switchover/index.ts';
import { inMemoryBroker } from '../../src/testing/index.ts';
import { migrated } from '../support/migrated.ts';
import { uniqueName, waitFor } from '../support/index.ts';
import { database } from '../support/vitest.ts';
import { eventsOf, memoryLogger, messageOf } from './fixtures/consumer.ts';
import { OrderPlaced, producer } from './fixtures/switchover-world.ts';

const pool: Pool = (await database({ template: migrated('consumer') })).pool({ max: 8 });
await pool.query('create table effects (id bigint generated always as identity, what text)');

async function inTransaction<Result>(work: (tx: PoolClient) => Promise<Result>): Promise<Result> {
  const tx = await pool.connect();
  try {
    await tx.query('begin');
    const result = await work(tx);
    await tx.query('commit');
    return result;
  } catch (error) {
    await tx.query('rollback');
    throw error;
  } finally {
    tx.release();
  }
}

interface Event {
  readonly id: string;
  readonly key: string;
  readonly time: Date;
}

type Took = 'applied' | 'repeated' | 'held';

/** One way to bring events to their effects. */
interface Way {
  readonly take: (event: Event, turn: Turn) => Promise<Took>;
  /** Applies what is held and can go on; gives how many. */
  readonly drain: (key: string) => Promise<number>;
}

const arrivalOf = ({ id, key, time }: Event, turn: Turn): Arrival => ({
  consumer: 'email',
  effectKey: `email.${id}`,
  eventId: id,
  eventType: 'orders.order-placed',
  source: 'orders',
  topic: 'orders',
  key,
  occurredAt: time,
  path: 'event',
  turn,
});

const headersOf = ({ id, time }: Event, turn: Turn) => ({
  ce_id: id,
  ce_type: 'orders.order-placed',
  ce_source: 'orders',
  ce_time: time.toISOString(),
  'turnout-routes': formatRoutes([{ consumer: 'email', route: 'event', epoch: 1, shadow: false, turn }]),
});

const leave = (tx: PoolClient, id: string) => tx.query('insert into effects (what) values ($1)', [id]);

/** `effect` brings a numbered event to its end, or says that it is early. */
function inTypeScript(effect: (arrival: Arrival) => Promise<'applied' | 'repeated' | 'early'>): Way {
  return {
    async take(event, turn) {
      const arrival = arrivalOf(event, turn);
      const took = await effect(arrival);
      if (took !== 'early') return took;
      const message = { topic: 'orders', partition: 0, offset: 0n, key: event.key, value: Buffer.from('{}') };
      const headers = headersOf(event, turn);
      const held = await inTransaction((tx) => hold(tx, arrival, { ...message, headers }, 'early'));
      return held === 'done' ? 'repeated' : 'held';
    },
    async drain(key) {
      for (let n = 0; ; n++) {
        const held = await nextHeld(pool, { consumer: 'email', source: 'orders', topic: 'orders', key });
        if (held === undefined) return n;
        const { headers } = held.message;
        const event = { id: headers['ce_id']!, key, time: new Date(headers['ce_time']!) };
        if ((await effect(arrivalOf(event, held.turn!))) === 'repeated') await release(pool, 'email', held.effectKey);
      }
    },
  };
}

const ways: Record<string, Way> = {
  'TypeScript, in the transaction': inTypeScript((arrival) =>
    inTransaction(async (tx) => {
      const verdict = await apply(tx, arrival, async () => {
        await leave(tx, arrival.eventId);
        return { outcome: 'applied' };
      });
      if (verdict.kind === 'early') return 'early';
      if (verdict.kind !== 'done') throw new Error(JSON.stringify(verdict));
      return verdict.repeated ? 'repeated' : 'applied';
    }),
  ),
  'TypeScript, detached': inTypeScript(async (arrival): Promise<'applied' | 'repeated' | 'early'> => {
    const begun = await inTransaction((tx) => intend(tx, arrival));
    if (begun.kind === 'early') return 'early';
    if (begun.kind === 'done') return 'repeated';
    if (begun.kind !== 'go') throw new Error(JSON.stringify(begun));
    await inTransaction(async (tx) => {
      await leave(tx, arrival.eventId);
      await settle(tx, arrival, { outcome: 'applied' }, begun.attempt);
    });
    return 'applied';
  }),
  SQL: {
    take: (event, turn) =>
      inTransaction(async (tx) => {
        const record = {
          topic: 'orders',
          partition: 0,
          offset: 0,
          key: event.key,
          value: '{}',
          headers: headersOf(event, turn),
        };
        const { rows } = await tx.query<{ action: string; why: string; effect: object }>(
          `select * from turnout.begin_event('email', $1)`,
          [record],
        );
        const { action, effect } = rows[0]!;
        if (action === 'duplicate') return 'repeated';
        if (action === 'held') return 'held';
        if (action !== 'apply') throw new Error(JSON.stringify(rows[0]));
        await leave(tx, event.id);
        await tx.query('select turnout.finish_effect($1)', [effect]);
        return 'applied';
      }),
    async drain() {
      for (let n = 0; ; n++) {
        const isOver = await inTransaction(async (tx) => {
          const { rows } = await tx.query<{ effect: { eventId: string } }>(`select * from turnout.next_held('email')`);
          if (rows[0] === undefined) return true;
          await leave(tx, rows[0].effect.eventId);
          await tx.query('select turnout.finish_effect($1)', [rows[0].effect]);
          return false;
        });
        if (isOver) return n;
      }
    },
  },
};

let keys = 0;
const at = (number: number, generation = 1): Turn => ({ generation, number });

/** Events of one key of its own, by name. */
function eventsOfKey(): { key: string; event: (name: string) => Event; effects: () => Promise<string[]> } {
  const key = `key-${++keys}`;
  const byName = new Map<string, Event>();
  return {
    key,
    event(name) {
      const known = byName.get(name) ?? { id: randomUUID(), key, time: new Date() };
      byName.set(name, known);
      return known;
    },
    async effects() {
      const names = new Map([...byName].map(([name, { id }]) => [id, name]));
      const { rows } = await pool.query<{ what: string }>('select what from effects order by id');
      return rows.flatMap(({ what }) => names.get(what) ?? []);
    },
  };
}

const gate = async (key: string) =>
  (
    await pool.query<{ at: string }>(`select generation || '.' || last_number as at from turnout.gate where key = $1`, [
      key,
    ])
  ).rows[0]?.at;

const alarms = async (key: string) =>
  (
    await pool.query<{ kind: string; number: number }>(
      `select kind, (detail -> 'number')::integer as number from turnout.alarm where detail ->> 'key' = $1 order by id`,
      [key],
    )
  ).rows;

const leftOver = async (key: string) =>
  (
    await pool.query(
      `select key from turnout.held where key = $1 union all select key from turnout.spare_number where key = $1`,
      [key],
    )
  ).rowCount;

describe.each(Object.entries(ways))('%s', (_, { take, drain }) => {
  test('a repeat with the next number: it is passed, once, and an alarm says so', async () => {
    const { key, event, effects } = eventsOfKey();
    expect(await take(event('x'), at(1))).toBe('applied');
    expect(await take(event('x'), at(1))).toBe('repeated');
    expect(await alarms(key)).toEqual([]);
    expect(await take(event('x'), at(2))).toBe('repeated');
    expect(await take(event('x'), at(2))).toBe('repeated');
    expect(await take(event('y'), at(3))).toBe('applied');
    expect(await effects()).toEqual(['x', 'y']);
    expect(await alarms(key)).toEqual([{ kind: 'repeated-id', number: 2 }]);
    expect(await leftOver(key)).toBe(0);
  });

  test('a repeat that overtakes an event: its number is passed when its turn has come, and not before', async () => {
    const { key, event, effects } = eventsOfKey();
    await take(event('x'), at(1));
    expect(await take(event('x'), at(3))).toBe('repeated');
    expect(await gate(key)).toBe('1.1');
    expect(await take(event('z'), at(4))).toBe('held');
    expect(await take(event('y'), at(2))).toBe('applied');
    expect(await gate(key)).toBe('1.3');
    expect(await drain(key)).toBe(1);
    expect(await effects()).toEqual(['x', 'y', 'z']);
    expect(await leftOver(key)).toBe(0);
  });

  test.each([
    [2, 3],
    [3, 2],
  ])('two early copies, number %i first: neither number is lost', async (first, second) => {
    const { key, event, effects } = eventsOfKey();
    expect(await take(event('x'), at(first))).toBe('held');
    expect(await take(event('x'), at(second))).toBe('held');
    expect(await take(event('z'), at(4))).toBe('held');
    await take(event('a'), at(1));
    expect(await drain(key)).toBe(2);
    expect(await effects()).toEqual(['a', 'x', 'z']);
    expect(await gate(key)).toBe('1.4');
    expect(await leftOver(key)).toBe(0);
  });

  test.each([
    ['the same way', take],
    // Such as a call: held events are not asked there.
    ['another way', ways['TypeScript, in the transaction']!.take],
  ])('a copy that is held while the other one comes with its turn, by %s', async (_how, takeOther) => {
    const { key, event, effects } = eventsOfKey();
    await take(event('x'), at(3));
    await take(event('a'), at(1));
    expect(await gate(key)).toBe('1.1');
    await takeOther(event('x'), at(2));
    await drain(key);
    expect(await gate(key)).toBe('1.3');
    expect(await take(event('y'), at(4))).toBe('applied');
    expect(await effects()).toEqual(['a', 'x', 'y']);
    expect(await leftOver(key)).toBe(0);
  });

  test('a repeat with the first number of a new generation', async () => {
    const { key, event, effects } = eventsOfKey();
    await take(event('x'), at(1));
    expect(await take(event('x'), at(1, 2))).toBe('repeated');
    expect(await take(event('y'), at(2, 2))).toBe('applied');
    expect(await gate(key)).toBe('2.2');
    expect(await effects()).toEqual(['x', 'y']);
  });
});

test('a call that comes again with another number: the next call of the key is not early', async () => {
  const { key, event, effects } = eventsOfKey();
  const call = (name: string, number: number) =>
    inTransaction(async (tx) => {
      const { id, time } = event(name);
      const headers = {
        'idempotency-key': `"email.${id}"`,
        'turnout-consumer': 'email',
        'turnout-event-id': id,
        'turnout-event-type': 'orders.order-placed',
        'turnout-event-source': 'orders',
        'turnout-event-topic': 'orders',
        'turnout-event-time': time.toISOString(),
        'turnout-event-key': key,
        'turnout-key-number': `1.${number}`,
      };
      const { rows } = await tx.query<{ action: string; status: number | null; effect: object }>(
        `select * from turnout.begin_call('email', $1, 'h', true)`,
        [headers],
      );
      if (rows[0]!.action === 'apply') {
        await leave(tx, id);
        await tx.query('select turnout.finish_effect($1)', [rows[0]!.effect]);
      }
      return [rows[0]!.action, rows[0]!.status];
    });
  expect(await call('x', 1)).toEqual(['apply', null]);
  expect(await call('x', 2)).toEqual(['answer', 200]);
  expect(await call('y', 3)).toEqual(['apply', null]);
  expect(await effects()).toEqual(['x', 'y']);
});

test('a running consumer goes on behind an event that came twice', async () => {
  const own = (await database({ template: migrated('consumer') })).pool({ max: 8 });
  await own.query('create table effect (id bigint generated always as identity, order_id text, step integer)');
  const topic = uniqueName('orders');
  const broker = inMemoryBroker();
  await broker.topics().create([{ name: topic, partitions: 1 }]);
  const { placed } = eventsOf(topic);
  const definition = defineConsumer(pgDatabase(own), {
    name: 'email',
    from: 'beginning',
    inSwitchover: [placed],
    handlers: [
      on(placed, async ({ data }, { tx }) => {
        await tx.query('insert into effect (order_id, step) values ($1, $2)', [data.orderId, data.step]);
      }),
    ],
  });
  const running = runConsumer(definition, { source: broker.source(), logger: memoryLogger(), sweepEveryMs: 20 });
  await running.start();
  const publisher = broker.publisher();
  await publisher.connect();
  const [twice, early] = [randomUUID(), randomUUID()];
  const sent: [string, number, number][] = [
    [twice, 1, 1],
    [twice, 1, 2],
    [early, 2, 4],
    [early, 2, 5],
    [randomUUID(), 3, 6],
    [randomUUID(), 4, 3],
  ];
  const messages = sent.map(([id, step, number], index) =>
    messageOf(topic, {
      id,
      orderId: 'a',
      step,
      number: index + 1,
      routes: [{ consumer: 'email', route: 'event', epoch: 1, shadow: false, turn: at(number) }],
    }),
  );
  await publisher.send([{ topic, partition: 0, messages }]);
  const steps = async () =>
    (await own.query<{ step: number }>('select step from effect order by id')).rows.map(({ step }) => step);
  await waitFor(async () => (await steps()).length === 4, { what: 'all effects', deadlineMs: 10_000 });
  expect(await steps()).toEqual([1, 4, 2, 3]);
  await publisher.disconnect();
  await running.stop();
});

test('the publisher tells of a call that finds events of its key missing again and again', async () => {
  const orders = await producer();
  const definition = defineSwitchover({
    name: 'order-email',
    consumer: 'email',
    order: 'key',
    rpc: [
      on(OrderPlaced, ({ data }) =>
        data.step === 1
          ? { status: 200, headers: { 'turnout-outcome': 'duplicate' }, body: {} }
          : {
              status: 425,
              headers: { 'turnout-error': 'TURNOUT_EFFECT_EARLY', 'turnout-last-number': '1.0' },
              body: {},
            },
      ),
    ],
  });
  await orders.register(definition);
  await orders.pool.query(
    `select turnout.publish('orders', 'orders.order-placed', 1, 'a', json_build_object('orderId', 'a', 'step', n), switchovers => '{order-email}')
       from generate_series(1, 2) n`,
  );
  await orders.pool.query('update turnout.rpc_delivery set attempts = 3 where number = 2');
  const logger = memoryLogger();
  const retry = { attempts: 1, firstDelayMs: 1, maxDelayMs: 60_000 };
  const sweeper = rpcSweeper({
    source: 'orders',
    database: orders.database,
    switchovers: [definition],
    logger,
    pollMs: 10,
    retry,
  });
  await sweeper.start();
  const told = () => logger.lines.filter(({ message }) => message === 'A call is still owed.');
  await waitFor(() => told().length > 0, { what: 'the warning', deadlineMs: 10_000 });
  await sweeper.stop();
  expect(told()[0]!.fields).toMatchObject({ attempt: 5, why: expect.stringContaining('“When a key waits”') as string });
});

describe('turnout.pass_number', () => {
  const pass = (key: string, turn: Turn, reason = 'its topic was deleted') =>
    pool.query(`select turnout.pass_number('email', 'orders', 'orders', $1, $2, $3, $4)`, [
      key,
      turn.generation,
      turn.number,
      reason,
    ]);
  const { take, drain } = ways['TypeScript, in the transaction']!;

  test('moves the gate past the next number, and says who did and why', async () => {
    const { key, event, effects } = eventsOfKey();
    await take(event('a'), at(1));
    await take(event('c'), at(3));
    await take(event('c'), at(4));
    await take(event('d'), at(5));
    await pass(key, at(2));
    expect(await drain(key)).toBe(2);
    expect(await effects()).toEqual(['a', 'c', 'd']);
    const { rows } = await pool.query(
      `select seen_by is not null as seen, seen_reason, (detail -> 'number')::integer as number
         from turnout.alarm where kind = 'number-passed' and detail ->> 'key' = $1`,
      [key],
    );
    expect(rows).toEqual([{ seen: true, seen_reason: 'its topic was deleted', number: 2 }]);
    // If it comes after all, somebody has to look again.
    await expect(take(event('b'), at(2))).rejects.toThrow('halted');
  });

  test('refuses another number, one that is held, and no reason', async () => {
    const { key, event } = eventsOfKey();
    await take(event('a'), at(1));
    for (const turn of [at(1), at(3), at(0, 2), at(2, 2), at(2, 0)])
      await expect(pass(key, turn)).rejects.toMatchObject({ code: 'TU036' });
    await expect(pass(`${key} unknown`, at(2))).rejects.toMatchObject({ code: 'TU036' });
    await expect(pass(key, at(2), ' ')).rejects.toMatchObject({ code: 'TU012' });
    await pool.query(
      `insert into turnout.held (consumer, effect_key, reason, source, topic, partition, "offset", key, generation, number, message)
       values ('email', 'email.parked', 'parked', 'orders', 'orders', 0, 0, $1, 1, 2, '{}')`,
      [key],
    );
    await expect(pass(key, at(2))).rejects.toMatchObject({ code: 'TU037' });
    expect(await gate(key)).toBe('1.1');
  });
});
