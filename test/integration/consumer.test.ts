import { randomUUID } from 'node:crypto';
import type { PoolClient as Client } from 'pg';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { joinPool, pgDatabase } from '../../adapters/pg/index.ts';
import { defineConsumer, runConsumer } from '../../src/consumer/index.ts';
import type { ConsumerDefinition, TransactionOptions } from '../../src/consumer/index.ts';
import { advance } from '../../src/consumer/position-store.ts';
import { on } from '../../src/event/index.ts';
import type { Message, Stamp, Turn } from '../../src/event/index.ts';
import { apply, ensureInboxPartition } from '../../src/inbox/index.ts';
import { sleep } from '../../src/lifecycle/index.ts';
import type { Service } from '../../src/lifecycle/index.ts';
import { waitFor } from '../support/index.ts';
import { consumerBed } from './fixtures/consumer-bed.ts';
import type { ConsumerBed } from './fixtures/consumer-bed.ts';
import { hammer } from '../support/service-stress.ts';
import { database } from '../support/vitest.ts';
import { eventsOf, messageOf } from './fixtures/consumer.ts';
import type { Given } from './fixtures/consumer.ts';

let { broker, pool, topic, events, logger, services, send, effects, untilEffects } = {} as ConsumerBed;
let stop: ConsumerBed['stop'];

beforeEach(async () => {
  ({ broker, pool, topic, events, logger, services, send, effects, untilEffects, stop } = await consumerBed());
});

afterEach(() => stop());

async function sendRaw(message: Message): Promise<void> {
  const publisher = broker.publisher();
  await publisher.connect();
  await publisher.send([{ topic, partition: 0, messages: [message] }]);
  await publisher.disconnect();
}

async function leaveEffect(tx: Client, order: { orderId: string; step: number }, worker?: string): Promise<void> {
  await tx.query('insert into effect (order_id, step, worker) values ($1, $2, $3)', [
    order.orderId,
    order.step,
    worker ?? null,
  ]);
}

type Options = Partial<TransactionOptions<Client>>;

/** A consumer that leaves an effect for each event, quick to retry. */
function consumerOf(options: Options = {}): ConsumerDefinition<Client> {
  return defineConsumer(pgDatabase(pool), {
    name: 'email',
    from: 'beginning',
    retry: { firstDelayMs: 1, maxDelayMs: 5 },
    handlers: [
      on(events.placed, (event, { tx }) => leaveEffect(tx, event.data)),
      on(events.noted, (event, { tx }) => leaveEffect(tx, event.data)),
    ],
    ...options,
  });
}

function run(definition: ConsumerDefinition<Client>, options: { sweepEveryMs?: number } = {}): Service {
  const service = runConsumer(definition, { source: broker.source(), logger, sweepEveryMs: 20, ...options });
  services.push(service);
  return service;
}

async function start(options: Options = {}): Promise<Service> {
  const service = run(consumerOf(options));
  await service.start();
  return service;
}

async function untilPosition(next: number): Promise<void> {
  await waitFor(async () => (await position()) === next, { what: `position ${next}` });
}

async function position(partition = 0): Promise<number | undefined> {
  const { rows } = await pool.query<{ next: number }>(
    'select next_offset::integer as next from turnout.position where topic = $1 and partition = $2',
    [topic, partition],
  );
  return rows[0]?.next;
}

async function held(): Promise<{ reason: string; step: number; error: string | null; attempts: number }[]> {
  const { rows } = await pool.query<{ reason: string; step: number; error: string | null; attempts: number }>(
    `select reason, ((message ->> 'value')::jsonb ->> 'step')::integer as step, error, attempts from turnout.held order by id`,
  );
  return rows;
}

async function alarms(): Promise<{ kind: string; detail: Record<string, unknown> }[]> {
  return (
    await pool.query<{ kind: string; detail: Record<string, unknown> }>(
      'select kind, detail from turnout.alarm order by id',
    )
  ).rows;
}

function stamp(route: 'rpc' | 'event', turn?: number | Turn): Stamp {
  return {
    consumer: 'email',
    route,
    epoch: 1,
    shadow: false,
    turn: typeof turn === 'number' ? { generation: 1, number: turn } : turn,
  };
}

describe('once in effect', () => {
  test('applies each event once, in order, and moves the position with it', async () => {
    await send({ orderId: 'a', step: 1 }, { orderId: 'b', step: 1 }, { orderId: 'a', step: 2 });
    await start();
    await untilEffects('a 1', 'b 1', 'a 2');
    expect(await position()).toBe(3);
    await waitFor(async () => (await broker.source().committed('email', topic)).get(0) === 3n, {
      what: 'the committed offset',
    });
  });

  test('drops a repeat, with the same sequence or without any', async () => {
    const [first, second] = [randomUUID(), randomUUID()];
    await send({ orderId: 'a', step: 1, id: first, number: 1 }, { orderId: 'a', step: 1, id: first, number: 1 });
    await send(
      { orderId: 'b', step: 1, id: second, number: undefined },
      { orderId: 'b', step: 1, id: second, number: undefined },
      { orderId: 'c', step: 1, number: 2 },
    );
    await start();
    await untilEffects('a 1', 'b 1', 'c 1');
    expect(await alarms()).toEqual([]);
  });

  test('rolls back effect, inbox and position together when the handler fails', async () => {
    await send({ orderId: 'a', step: 1 });
    const attempts: number[] = [];
    await start({
      handlers: [
        on(events.placed, async (event, { tx, attempt, effectKey }) => {
          attempts.push(attempt);
          await leaveEffect(tx, event.data);
          expect(effectKey).toBe(`email.${event.id}`);
          if (attempt < 3) throw new Error('not yet');
        }),
      ],
    });
    await untilEffects('a 1');
    expect(attempts).toEqual([1, 2, 3]);
  });

  test('lets legacy code that has only the pool take part in the transaction', async () => {
    await send({ orderId: 'a', step: 1 });
    const legacy = joinPool(pool);
    const consumer = defineConsumer(pgDatabase(legacy), {
      name: 'email',
      from: 'beginning',
      retry: { attempts: 2, firstDelayMs: 1, maxDelayMs: 1 },
      handlers: [
        on(events.placed, async (event, { attempt }) => {
          await legacy.query('insert into effect (order_id, step) values ($1, $2)', [event.data.orderId, attempt]);
          if (attempt === 1) throw new Error('after the write');
        }),
      ],
    });
    await run(consumer).start();
    await untilEffects('a 2');
  });

  test('takes a swallowed error for a failure: nothing of it stays, and the event is not lost', async () => {
    await send({ orderId: 'a', step: 1 });
    await start({
      retry: { attempts: 2, firstDelayMs: 1, maxDelayMs: 1 },
      handlers: [
        on(events.placed, async (event, { tx }) => {
          await leaveEffect(tx, event.data);
          await tx.query('select 1 / 0').catch(() => undefined);
        }),
      ],
    });
    await waitFor(async () => (await held()).length === 1, { what: 'the parked event' });
    expect(await effects()).toEqual([]);
    expect((await held())[0]).toMatchObject({ reason: 'parked', attempts: 2 });
  });

  test('goes on where it was when it is started again, and applies nothing twice though it reads from further back', async () => {
    await send({ orderId: 'a', step: 1 }, { orderId: 'a', step: 2 });
    const first = await start();
    await untilEffects('a 1', 'a 2');
    await first.stop();
    await pool.query('update turnout.position set next_offset = 0');
    await send({ orderId: 'a', step: 3 });
    await start();
    await untilEffects('a 1', 'a 2', 'a 3');
  });

  test('commits nothing of a handler whose partition went to another owner meanwhile, and stops working on it', async () => {
    await send({ orderId: 'a', step: 1 }, { orderId: 'a', step: 2 });
    let failed = false;
    await start({
      retry: { firstDelayMs: 1_000, maxDelayMs: 1_000 },
      handlers: [
        on(events.placed, async (event, { tx }) => {
          await leaveEffect(tx, event.data);
          if (event.data.step === 1 || failed) return;
          failed = true;
          throw new Error('not yet');
        }),
      ],
    });
    // Between two attempts the partition goes to another owner.
    await waitFor(() => failed, { what: 'the first attempt at the second event' });
    await pool.query("update turnout.assignment set epoch = epoch + 1, owner = 'another'");
    await waitFor(() => logger.lines.some((line) => line.message.includes('new owner')), { what: 'the fence' });
    expect(await effects()).toEqual(['a 1']);
    expect(await position()).toBe(1);
    // The group says that it is ours all the same, so it is claimed again, later.
    await waitFor(async () => (await effects()).length === 2, { what: 'the second effect', deadlineMs: 15_000 });
    expect(await effects()).toEqual(['a 1', 'a 2']);
  });

  test('ends the transaction of an earlier owner that does not end by itself', async () => {
    await send({ orderId: 'a', step: 1 });
    await pool.query(
      "insert into turnout.assignment (consumer, topic, partition, epoch, owner) values ('email', $1, 0, 7, 'zombie')",
      [topic],
    );
    const zombie = await pool.connect();
    zombie.on('error', () => undefined);
    await zombie.query('begin');
    const owned = { consumer: 'email', topic, partition: 0, epoch: 7n, next: 0n, since: 0n, sequences: new Map() };
    await advance(zombie, owned, { next: 0n, sequences: new Map(), alarms: [] });
    await start({ graceMs: 500 });
    await waitFor(async () => (await effects()).length === 1, { what: 'the effect', deadlineMs: 15_000 });
    await expect(zombie.query('commit')).rejects.toThrow();
    zombie.release(true);
  });
});

describe('sequences', () => {
  test('raise an alarm about a hole, say where, and go on', async () => {
    await send(
      { orderId: 'a', step: 1, number: 5 },
      { orderId: 'a', step: 2, number: 6 },
      { orderId: 'a', step: 3, number: 9 },
    );
    await start();
    await untilEffects('a 1', 'a 2', 'a 3');
    expect(await alarms()).toEqual([
      {
        kind: 'sequence-hole',
        detail: expect.objectContaining({
          topic,
          partition: 0,
          offset: '2',
          source: 'orders',
          generation: 1,
          from: '7',
          to: '8',
        }),
      },
    ]);
    expect(logger.lines.filter((line) => line.level === 'error')).toHaveLength(1);
  });

  test('are counted before types are told apart', async () => {
    const other = { type: 'orders.something-else' };
    await send(
      { orderId: 'a', step: 1, number: 1 },
      { orderId: 'a', step: 2, number: 2, ...other },
      { orderId: 'a', step: 3, number: 3 },
    );
    await send({ orderId: 'a', step: 4, number: 5, ...other }, { orderId: 'a', step: 5, number: 6 });
    await start();
    await untilEffects('a 1', 'a 3', 'a 5');
    expect((await alarms()).map((alarm) => alarm.detail)).toEqual([expect.objectContaining({ from: '4', to: '4' })]);
  });

  test('of several sources in one topic are counted apart', async () => {
    await send({ orderId: 'a', step: 1, number: 1 }, { orderId: 'a', step: 2, number: 11, source: 'shop' });
    await send({ orderId: 'a', step: 3, number: 2 }, { orderId: 'a', step: 4, number: 12, source: 'shop' });
    await start();
    await untilEffects('a 1', 'a 2', 'a 3', 'a 4');
    expect(await alarms()).toEqual([]);
  });

  test('halt the consumer at an event that was passed and is not known', async () => {
    await send(
      { orderId: 'a', step: 1, number: 1 },
      { orderId: 'a', step: 2, number: 2 },
      { orderId: 'a', step: 3, number: 1 },
      { orderId: 'a', step: 4, number: 3 },
    );
    const service = await start();
    expect(await service.failed()).toMatchObject({ code: 'TURNOUT_UNKNOWN_REPEAT' });
    expect(await effects()).toEqual(['a 1', 'a 2']);
    expect(await position()).toBe(2);
    expect((await alarms()).map((alarm) => alarm.kind)).toEqual(['unknown-repeat']);
  });

  test('let an unknown repeat be dropped that is older than the inbox keeps', async () => {
    await send({ orderId: 'a', step: 1, number: 1 }, { orderId: 'a', step: 2, number: 2 });
    await send(
      { orderId: 'a', step: 3, number: 1, time: new Date(Date.now() - 40 * 24 * 3600 * 1000) },
      { orderId: 'a', step: 4, number: 3 },
    );
    await start();
    await untilEffects('a 1', 'a 2', 'a 4');
  });

  test('let a new event be applied however old it is', async () => {
    await send({ orderId: 'a', step: 1, time: new Date(Date.now() - 400 * 24 * 3600 * 1000) });
    await start();
    await untilEffects('a 1');
  });

  test('tell copies from before the start', async () => {
    await send({ orderId: 'a', step: 1, number: 8 });
    const service = await start({ from: 'now' });
    await send(
      { orderId: 'a', step: 2, number: 9 },
      { orderId: 'a', step: 1, number: 8 },
      { orderId: 'a', step: 3, number: 10 },
    );
    await untilEffects('a 2', 'a 3');
    await service.stop();
  });
});

describe('start', () => {
  test('from the beginning reads all', async () => {
    await send({ orderId: 'a', step: 1 });
    await start({ from: 'beginning' });
    await untilEffects('a 1');
  });

  test('from now reads what comes next', async () => {
    await send({ orderId: 'a', step: 1 });
    await start({ from: 'now' });
    await send({ orderId: 'a', step: 2 });
    await untilEffects('a 2');
  });

  test('takes over where the group has committed', async () => {
    await send({ orderId: 'a', step: 1 }, { orderId: 'a', step: 2 }, { orderId: 'a', step: 3 });
    await broker.source().commitWhileEmpty('email', topic, new Map([[0, 1n]]));
    await start({ from: 'now' });
    await untilEffects('a 2', 'a 3');
    const { rows } = await pool.query('select since::text from turnout.position');
    expect(rows).toEqual([{ since: '1' }]);
  });

  test('makes its positions visible at the broker', async () => {
    await broker.topics().create([{ name: `${topic}-2`, partitions: 1 }]);
    await send({ orderId: 'a', step: 1 }, { orderId: 'a', step: 2 });
    await start({ from: 'now' });
    await waitFor(async () => (await broker.source().committed('email', topic)).get(0) === 2n, {
      what: 'the committed offset',
    });
  });

  test('reads partitions that are added later from their start', async () => {
    await start({ from: 'now' });
    await send({ orderId: 'a', step: 1 });
    await untilEffects('a 1');
    // While it runs, and while it does not.
    broker.addPartitions(topic, 2);
    await send({ orderId: 'b', step: 1, partition: 1, number: 1 });
    await untilEffects('a 1', 'b 1');
    expect(await position(1)).toBe(1);
    await services[0]!.stop();
    broker.addPartitions(topic, 3);
    await send({ orderId: 'c', step: 1, partition: 2, number: 1 });
    await start({ from: 'now' });
    await untilEffects('a 1', 'b 1', 'c 1');
  });

  test('halts when its position is outside of the log', async () => {
    await send({ orderId: 'a', step: 1 }, { orderId: 'a', step: 2 });
    const first = await start();
    await untilEffects('a 1', 'a 2');
    await first.stop();
    await send({ orderId: 'a', step: 3 }, { orderId: 'a', step: 4 });
    broker.deleteBelow(topic, 0, 3n);
    const second = run(consumerOf());
    await second.start();
    expect(await second.failed()).toMatchObject({
      code: 'TURNOUT_POSITION_OUT_OF_RANGE',
      details: { position: 2n, low: 3n },
    });
    expect(await effects()).toEqual(['a 1', 'a 2']);
  });

  test('waits for a broker that is not there', async () => {
    const reach = broker.becomeUnreachable();
    const service = run(consumerOf());
    const started = service.start();
    await waitFor(() => logger.lines.some((line) => line.level === 'warn'), { what: 'a log line' });
    reach();
    await started;
    await send({ orderId: 'a', step: 1 });
    await untilEffects('a 1');
  });

  test('refuses a pool that is too small', async () => {
    const consumer = defineConsumer(pgDatabase(pool), {
      name: 'email',
      from: 'now',
      concurrency: 8,
      handlers: [on(events.placed, () => undefined)],
    });
    await expect(run(consumer).start()).rejects.toMatchObject({
      code: 'TURNOUT_POOL_TOO_SMALL',
      details: { concurrency: 8, connections: 8 },
    });
  });

  test('refuses a database without its migrations, and a topic that does not exist', async () => {
    const empty = (await database()).pool({ max: 3 });
    const lacking = defineConsumer(pgDatabase(empty), {
      name: 'email',
      from: 'now',
      handlers: [on(events.placed, () => undefined)],
    });
    await expect(run(lacking).start()).rejects.toMatchObject({ code: 'TURNOUT_MIGRATION_MISSING' });
    const missing = eventsOf('nowhere');
    await expect(run(consumerOf({ handlers: [on(missing.placed, () => undefined)] })).start()).rejects.toMatchObject({
      code: 'TURNOUT_TOPIC_MISSING',
    });
  });

  test('and stop may come from all sides', async () => {
    await send({ orderId: 'a', step: 1 });
    await hammer(run(consumerOf()), { rounds: 5 });
    await start();
    await untilEffects('a 1');
  });
});

describe('routes', () => {
  test('let an event be observed that goes by call, or that has no route in a switchover', async () => {
    await send(
      { orderId: 'a', step: 1, routes: [stamp('rpc')] },
      { orderId: 'a', step: 2 },
      { orderId: 'a', step: 3, routes: [stamp('event')] },
      { orderId: 'a', step: 4, routes: [{ ...stamp('event'), consumer: 'loyalty' }] },
    );
    await start({ inSwitchover: [events.placed] });
    await untilPosition(4);
    expect(await effects()).toEqual(['a 3']);
    expect((await pool.query('select from turnout.inbox')).rowCount).toBe(1);
  });

  test('hold an early event, and apply it when the missing number has come by call', async () => {
    const [one, two] = [randomUUID(), randomUUID()];
    await send(
      { orderId: 'a', step: 2, id: two, routes: [stamp('event', 2)] },
      { orderId: 'b', step: 1, routes: [stamp('event', 1)] },
    );
    await start({ inSwitchover: [events.placed] });
    await untilEffects('b 1');
    expect(await held()).toEqual([expect.objectContaining({ reason: 'early', step: 2 })]);
    // What the wrapped endpoint does.
    const occurredAt = new Date();
    const db = pgDatabase(pool);
    await ensureInboxPartition(db, occurredAt);
    await db.transaction((tx) =>
      apply(
        db.within(tx),
        {
          consumer: 'email',
          effectKey: `email.${one}`,
          eventId: one,
          eventType: events.placed.name,
          source: 'orders',
          topic,
          key: 'a',
          occurredAt,
          path: 'rpc',
          turn: { generation: 1, number: 1 },
        },
        async () => {
          await leaveEffect(tx, { orderId: 'a', step: 1 });
          return { outcome: 'applied' };
        },
      ),
    );
    await untilEffects('b 1', 'a 1', 'a 2');
    await waitFor(async () => (await held()).length === 0, { what: 'nothing held' });
  });

  test('drain all that waited when the missing number comes as an event', async () => {
    await send(
      { orderId: 'a', step: 3, routes: [stamp('event', 3)] },
      { orderId: 'a', step: 2, routes: [stamp('event', 2)] },
      { orderId: 'a', step: 1, routes: [stamp('event', 1)] },
    );
    // No sweep: it is the consumer of the missing one that drains.
    await run(consumerOf({ inSwitchover: [events.placed] }), { sweepEveryMs: 60_000 }).start();
    await untilEffects('a 1', 'a 2', 'a 3');
    expect(await held()).toEqual([]);
  });

  test('of a type without a handler are parked: the effect is owed', async () => {
    await send(
      { orderId: 'a', step: 1, type: 'orders.order-moved', routes: [stamp('event', 1)] },
      { orderId: 'a', step: 2, routes: [stamp('event', 2)] },
    );
    await start({ inSwitchover: [events.placed] });
    await untilPosition(2);
    expect(await held()).toEqual([
      expect.objectContaining({ reason: 'parked', step: 1, error: expect.stringContaining('TURNOUT_EVENT_UNHANDLED') }),
      expect.objectContaining({ reason: 'early', step: 2 }),
    ]);
  });
});

describe('failures', () => {
  const failing = (orderId: string) =>
    on(events.placed, async (event, { tx }: { tx: Client }) => {
      if (event.data.orderId === orderId && event.data.step === 1) throw new Error('will never work');
      await leaveEffect(tx, event.data);
    });

  test('park an event after its last attempt, with the later ones of its key, while other keys flow on', async () => {
    await send(
      { orderId: 'a', step: 1 },
      { orderId: 'b', step: 1 },
      { orderId: 'a', step: 2 },
      { orderId: 'a', step: 3 },
      { orderId: 'b', step: 2 },
    );
    await start({ handlers: [failing('a')], retry: { attempts: 3, firstDelayMs: 1, maxDelayMs: 2 } });
    await untilPosition(5);
    expect(await effects()).toEqual(['b 1', 'b 2']);
    expect(await held()).toEqual([
      { reason: 'parked', step: 1, error: 'will never work', attempts: 3 },
      { reason: 'behind', step: 2, error: null, attempts: 0 },
      { reason: 'behind', step: 3, error: null, attempts: 0 },
    ]);
  });

  test('let those behind go on in order when the parked one has its effect by call', async () => {
    const one = randomUUID();
    await send({ orderId: 'a', step: 1, id: one }, { orderId: 'a', step: 2 }, { orderId: 'a', step: 3 });
    await start({ handlers: [failing('a')], retry: { attempts: 1 } });
    await untilPosition(3);
    const db = pgDatabase(pool);
    await db.transaction((tx) =>
      apply(
        db.within(tx),
        {
          consumer: 'email',
          effectKey: `email.${one}`,
          eventId: one,
          eventType: events.placed.name,
          source: 'orders',
          topic,
          key: 'a',
          occurredAt: new Date(),
          path: 'rpc',
          turn: undefined,
        },
        async () => {
          await leaveEffect(tx, { orderId: 'a', step: 1 });
          return { outcome: 'applied' };
        },
      ),
    );
    await send({ orderId: 'a', step: 4 });
    await untilEffects('a 1', 'a 2', 'a 3', 'a 4');
    expect(await held()).toEqual([]);
  });

  test.each([
    ['numbered events', true],
    ['plain ones', false],
  ])('can be tried again, or skipped with a reason, by an operator: %s', async (_what, numbered) => {
    const [one, two] = [randomUUID(), randomUUID()];
    const routed = (step: number): Pick<Given, 'routes'> => (numbered ? { routes: [stamp('event', step)] } : {});
    let broken = true;
    await send(
      { orderId: 'a', step: 1, id: one, ...routed(1) },
      { orderId: 'a', step: 2, id: two, ...routed(2) },
      { orderId: 'a', step: 3, ...routed(3) },
    );
    await start({
      retry: { attempts: 2, firstDelayMs: 1, maxDelayMs: 1 },
      handlers: [
        on(events.placed, async (event, { tx }) => {
          if (event.data.step === 1 || broken) throw new Error('broken');
          await leaveEffect(tx, event.data);
        }),
      ],
    });
    await untilPosition(3);
    const ask = async (sql: string, values: unknown[]): Promise<unknown> =>
      (await pool.query<{ done: unknown }>(`select ${sql} as done`, values)).rows[0]!.done;

    // Tried again in vain: parked again.
    expect(await ask("turnout.retry_parked('email', $1)", [`email.${one}`])).toBe(true);
    await waitFor(async () => (await held())[0]?.attempts === 2, { what: 'the event to be parked again' });
    await expect(ask("turnout.skip_parked('email', $1, ' ')", [`email.${one}`])).rejects.toMatchObject({
      code: 'TU012',
    });
    expect(await ask("turnout.skip_parked('email', $1, 'shipped by hand')", [`email.${one}`])).toBe(true);
    expect(await ask("turnout.skip_parked('email', $1, 'shipped by hand')", [`email.${one}`])).toBe(false);
    // The next one fails as well, until it works.
    await waitFor(async () => (await held())[0]?.reason === 'parked', { what: 'the second one to be parked' });
    broken = false;
    expect(await ask("turnout.retry_parked('email', $1)", [`email.${two}`])).toBe(true);
    await untilEffects('a 2', 'a 3');
    expect(await held()).toEqual([]);
    const { rows } = await pool.query('select effect_key, reason from turnout.inbox where outcome = $1', ['skipped']);
    expect(rows).toEqual([{ effect_key: `email.${one}`, reason: 'shipped by hand' }]);
  });

  test('let nothing wait behind an unordered event', async () => {
    await send(
      { orderId: 'a', step: 1, type: events.noted.name },
      { orderId: 'a', step: 2, type: events.noted.name },
      { orderId: 'a', step: 3 },
    );
    await start({
      retry: { attempts: 1 },
      handlers: [
        on(events.placed, (event, { tx }) => leaveEffect(tx, event.data)),
        on(events.noted, async (event, { tx }) => {
          if (event.data.step === 1) throw new Error('no');
          await leaveEffect(tx, event.data);
        }),
      ],
    });
    await untilEffects('a 2', 'a 3');
    const { rows } = await pool.query<{ effect_key: string }>('select effect_key from turnout.held');
    expect(
      (
        await pool.query<{ done: boolean }>("select turnout.skip_parked('email', $1, 'no') as done", [
          rows[0]!.effect_key,
        ])
      ).rows,
    ).toEqual([{ done: true }]);
  });

  test('halt the consumer if that is its policy, and lose nothing', async () => {
    await send({ orderId: 'b', step: 1 }, { orderId: 'a', step: 1 }, { orderId: 'b', step: 2 });
    const service = await start({
      handlers: [failing('a')],
      retry: { attempts: 2, firstDelayMs: 1, maxDelayMs: 1 },
      onFailure: 'halt',
    });
    expect(await service.failed()).toMatchObject({ code: 'TURNOUT_HANDLER_FAILED' });
    expect(await position()).toBe(1);
    expect((await alarms()).map((alarm) => alarm.kind)).toEqual(['halted']);
    await start();
    await untilEffects('b 1', 'a 1', 'b 2');
  });

  test.each([
    ['data that does not fit the schema', { payload: '{"orderId":"a"}' }, 'TURNOUT_EVENT_DATA_INVALID'],
    ['data that is no JSON', { payload: '{' }, 'TURNOUT_EVENT_DATA_INVALID'],
    ['a version without a handler', { version: 2 }, 'TURNOUT_EVENT_UNHANDLED'],
    ['routes that can’t be read', { routes: 'email=maybe' }, 'TURNOUT_ROUTES_MALFORMED'],
    ['an id that is no UUID', { id: 'not-a-uuid' }, 'TURNOUT_ENVELOPE_MALFORMED'],
    ['the placeholder of a refused message', { refused: 'too large' }, 'TURNOUT_EVENT_REFUSED'],
  ])('park %s, without trying the handler', async (_what, given, code) => {
    await send({ orderId: 'a', step: 1, ...given }, { orderId: 'b', step: 1 }, { orderId: 'a', step: 2 });
    await start();
    await untilPosition(3);
    expect(await effects()).toEqual(['b 1']);
    const { rows } = await pool.query<{ reason: string; error: string }>(
      'select reason, error from turnout.held order by id',
    );
    expect(rows[0]).toEqual({ reason: 'parked', error: expect.stringContaining(code) });
  });

  test('park a message that is no event, as it came', async () => {
    await sendRaw({ key: null, value: Buffer.from([0, 255, 1]), headers: { some: 'header' } });
    await send({ orderId: 'b', step: 1 });
    await start();
    await untilEffects('b 1');
    const { rows } = await pool.query<{ error: string; effect_key: string }>(
      'select error, effect_key from turnout.held',
    );
    expect(rows[0]!.error).toContain('TURNOUT_ENVELOPE_MALFORMED');
    await pool.query("select turnout.skip_parked('email', $1, 'noise')", [rows[0]!.effect_key]);
    expect((await pool.query('select from turnout.held')).rowCount).toBe(0);
  });

  test('park an event that has ended the process again and again', async () => {
    await send({ orderId: 'a', step: 1 }, { orderId: 'b', step: 1 });
    const first = await start({ from: 'beginning', handlers: [on(events.placed, () => undefined)] });
    await untilPosition(2);
    await first.stop();
    await send({ orderId: 'a', step: 2 }, { orderId: 'b', step: 2 });
    // As five processes leave it that were killed while they were at it.
    await pool.query('update turnout.assignment set begun_offset = 2, begun = 5');
    await start();
    await untilPosition(4);
    expect(await effects()).toEqual(['b 2']);
    expect(await held()).toEqual([
      expect.objectContaining({ reason: 'parked', step: 2, error: expect.stringContaining('TURNOUT_HANDLER_FAILED') }),
    ]);
  });

  test('are waited out without an open transaction, and without holding up other partitions', async () => {
    broker.addPartitions(topic, 2);
    await send({ orderId: 'a', step: 1 }, { orderId: 'b', step: 1, partition: 1, number: 1 });
    let failed = false;
    await start({
      retry: { attempts: 2, firstDelayMs: 2_000, maxDelayMs: 2_000 },
      handlers: [
        on(events.placed, async (event, { tx }) => {
          await leaveEffect(tx, event.data);
          if (event.data.orderId === 'b' || failed) return;
          failed = true;
          throw new Error('not yet');
        }),
      ],
    });
    await untilEffects('b 1');
    await waitFor(() => failed, { what: 'the first attempt' });
    const { rows } = await pool.query(
      "select state from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'",
    );
    expect(rows).toEqual([]);
    await untilEffects('b 1', 'a 1');
  });

  test('of transactions in each other’s way are tried again and not counted', async () => {
    await send({ orderId: 'a', step: 1 });
    let calls = 0;
    await start({
      retry: { attempts: 1, firstDelayMs: 1, maxDelayMs: 2 },
      handlers: [
        on(events.placed, async (event, { tx }) => {
          await leaveEffect(tx, event.data);
          if (++calls < 4) await tx.query("do $$ begin raise 'in the way' using errcode = '40001'; end $$");
        }),
      ],
    });
    await untilEffects('a 1');
    expect(calls).toBe(4);
  });

  test('of the connection in mid-transaction lose nothing and double nothing', async () => {
    await send({ orderId: 'a', step: 1 }, { orderId: 'a', step: 2 }, { orderId: 'a', step: 3 });
    let killed = 0;
    await start({
      retry: { attempts: 1 },
      handlers: [
        on(events.placed, async (event, { tx }) => {
          await leaveEffect(tx, event.data);
          if (event.data.step === 2 && killed++ < 2) {
            const { rows } = await tx.query<{ pid: number }>('select pg_backend_pid() as pid');
            await pool.query('select pg_terminate_backend($1)', [rows[0]!.pid]);
          }
        }),
      ],
    });
    await untilEffects('a 1', 'a 2', 'a 3');
    expect(killed).toBe(3);
  });
});

describe('stop', () => {
  test('lets the event in hand come to its end', async () => {
    await send({ orderId: 'a', step: 1 }, { orderId: 'a', step: 2 });
    let entered: () => void = () => undefined;
    const inHand = new Promise<void>((resolve) => {
      entered = resolve;
    });
    let go: () => void = () => undefined;
    const wait = new Promise<void>((resolve) => {
      go = resolve;
    });
    const service = await start({
      handlers: [
        on(events.placed, async (event, { tx, signal }) => {
          entered();
          await wait;
          expect(signal.aborted).toBe(false);
          await leaveEffect(tx, event.data);
        }),
      ],
    });
    await inHand;
    let isStopped = false;
    const stopped = service.stop().then(() => {
      isStopped = true;
    });
    await sleep(50);
    expect(isStopped).toBe(false);
    go();
    await stopped;
    expect(await effects()).toEqual(['a 1']);
    expect(await position()).toBe(1);
    expect((await broker.source().committed('email', topic)).get(0)).toBe(1n);
  });

  test('aborts a handler that takes too long, whose event is not lost', async () => {
    await send({ orderId: 'a', step: 1 });
    let entered: () => void = () => undefined;
    const inHand = new Promise<void>((resolve) => {
      entered = resolve;
    });
    const service = await start({
      graceMs: 50,
      handlers: [
        on(events.placed, async (_event, { signal }) => {
          entered();
          await new Promise((_resolve, reject) =>
            signal.addEventListener('abort', () => reject(signal.reason as Error)),
          );
        }),
      ],
    });
    await inHand;
    await service.stop();
    expect(await position()).toBe(0);
    await start();
    await untilEffects('a 1');
  });
});

describe('detached handlers', () => {
  function detached(
    handler: (step: number, attempt: number) => Promise<void> | void,
    leaseMs = 200,
  ): ConsumerDefinition<Client> {
    return defineConsumer(pgDatabase(pool), {
      name: 'email',
      from: 'beginning',
      mode: 'detached',
      leaseMs,
      retry: { attempts: 3, firstDelayMs: 1, maxDelayMs: 2 },
      handlers: [on(events.placed, (event, { attempt }) => handler(event.data.step, attempt))],
    });
  }

  const outcomes = async (): Promise<string[]> =>
    (await pool.query<{ outcome: string }>('select outcome from turnout.inbox order by finished_at')).rows.map(
      (row) => row.outcome,
    );

  test('have an intent before, and an outcome after', async () => {
    await send({ orderId: 'a', step: 1 }, { orderId: 'a', step: 2 });
    const seen: string[][] = [];
    await run(detached(async () => void seen.push(await outcomes()))).start();
    await untilPosition(2);
    expect(seen).toEqual([['running'], ['applied', 'running']]);
    expect(await outcomes()).toEqual(['applied', 'applied']);
    expect(await alarms()).toEqual([]);
  });

  test('are tried again by the same process without being reported as uncertain', async () => {
    await send({ orderId: 'a', step: 1 });
    const attempts: number[] = [];
    await run(
      detached((_step, attempt) => {
        attempts.push(attempt);
        if (attempts.length < 3) throw new Error('not yet');
      }, 60_000),
    ).start();
    await untilPosition(1);
    expect(attempts).toEqual([1, 2, 3]);
    expect(await alarms()).toEqual([]);
  });

  test('that were begun and whose outcome is not known are run again, and reported', async () => {
    const id = randomUUID();
    await send({ orderId: 'a', step: 1, id });
    // As a process leaves it that was killed while the handler ran.
    await pool.query(
      `insert into turnout.inbox (consumer, effect_key, occurred_at, event_id, event_type, source, topic, key, path, outcome)
       values ('email', $1, clock_timestamp(), $2, 'orders.order-placed', 'orders', $3, 'a', 'event', 'running')`,
      [`email.${id}`, id, topic],
    );
    const attempts: number[] = [];
    await run(detached((_step, attempt) => void attempts.push(attempt))).start();
    await untilPosition(1);
    expect(attempts).toEqual([2]);
    expect(await alarms()).toEqual([
      { kind: 'uncertain', detail: expect.objectContaining({ effectKey: `email.${id}` }) },
    ]);
  });

  test('are parked after their last attempt, like others', async () => {
    await send({ orderId: 'a', step: 1 }, { orderId: 'a', step: 2 }, { orderId: 'b', step: 3 });
    const done: number[] = [];
    await run(
      detached((step) => {
        if (step === 1) throw new Error('never');
        done.push(step);
      }),
    ).start();
    await untilPosition(3);
    expect(done).toEqual([3]);
    expect((await held()).map((each) => each.reason)).toEqual(['parked', 'behind']);
  });

  test('hold early events and drain them', async () => {
    await send(
      { orderId: 'a', step: 2, routes: [stamp('event', 2)] },
      { orderId: 'a', step: 1, routes: [stamp('event', 1)] },
    );
    const done: number[] = [];
    await run(detached((step) => void done.push(step))).start();
    await waitFor(() => done.length === 2, { what: 'both' });
    expect(done).toEqual([1, 2]);
  });
});

describe('several processes of one name', () => {
  test('share the partitions, and lose and double nothing while members come and go', async () => {
    const partitions = 4;
    await broker.topics().create([{ name: `${topic}-shared`, partitions }]);
    const shared = eventsOf(`${topic}-shared`);
    const perPartition = 40;
    const publisher = broker.publisher();
    await publisher.connect();
    const consumer = (worker: string) =>
      defineConsumer(pgDatabase(pool), {
        name: 'email',
        from: 'beginning',
        concurrency: 2,
        handlers: [on(shared.placed, (event, { tx }) => leaveEffect(tx, event.data, worker))],
      });
    const members = ['one', 'two', 'three'].map((worker) => run(consumer(worker)));
    await members[0]!.start();
    for (let step = 1; step <= perPartition; step++) {
      for (let partition = 0; partition < partitions; partition++) {
        await publisher.send([
          {
            topic: `${topic}-shared`,
            partition,
            messages: [messageOf(`${topic}-shared`, { orderId: `p${partition}`, step, number: step })],
          },
        ]);
      }
      if (step === 10) await members[1]!.start();
      if (step === 20) await members[2]!.start();
      if (step === 30) await members[0]!.stop();
    }
    await waitFor(async () => (await effects()).length >= partitions * perPartition, {
      what: 'all effects',
      deadlineMs: 20_000,
    });
    const { rows } = await pool.query<{ order_id: string; steps: number[]; workers: string }>(
      'select order_id, array_agg(step order by id) as steps, count(distinct worker) as workers from effect group by order_id order by order_id',
    );
    expect(rows.map((row) => row.order_id)).toEqual(['p0', 'p1', 'p2', 'p3']);
    for (const { steps } of rows) expect(steps).toEqual(Array.from({ length: perPartition }, (_, index) => index + 1));
    const { rows: workers } = await pool.query<{ worker: string }>(
      'select distinct worker from effect order by worker',
    );
    expect(workers.length).toBeGreaterThan(1);
    expect(await alarms()).toEqual([]);
  });
});
