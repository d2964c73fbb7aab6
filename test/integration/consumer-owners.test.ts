// What holds a consumer up, and what looks as if it had failed: locks of paused processes, rebalances, stops, claims.
import { randomUUID } from 'node:crypto';
import type { Pool, PoolClient as Client } from 'pg';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { joinPool, pgDatabase } from '../../adapters/pg/index.ts';
import { defineConsumer, runConsumer } from '../../src/consumer/index.ts';
import type { ConsumerDefinition, DetachedOptions, TransactionOptions } from '../../src/consumer/index.ts';
import { advance, claim } from '../../src/consumer/position-store.ts';
import { on } from '../../src/event/index.ts';
import type { Stamp } from '../../src/event/index.ts';
import { apply } from '../../src/inbox/index.ts';
import type { Arrival } from '../../src/inbox/index.ts';
import type { Service } from '../../src/lifecycle/index.ts';
import { callHeaders, createEndpoint } from '../../src/switchover/index.ts';
import { waitFor } from '../support/index.ts';
import { consumerBed } from './fixtures/consumer-bed.ts';
import type { ConsumerBed } from './fixtures/consumer-bed.ts';
import { memoryLogger } from './fixtures/consumer.ts';

let { broker, bed, pool, topic, events, logger, services, send, effects, untilEffects } = {} as ConsumerBed;
let stop: ConsumerBed['stop'];

beforeEach(async () => {
  ({ broker, bed, pool, topic, events, logger, services, send, effects, untilEffects, stop } = await consumerBed({
    partitions: 2,
    rebalanceTimeoutMs: 300,
  }));
});

afterEach(() => stop());

const leaveEffect = async (tx: Client, { orderId, step }: { orderId: string; step: number }): Promise<void> =>
  void (await tx.query('insert into effect (order_id, step) values ($1, $2)', [orderId, step]));

function consumerOf(options: Partial<TransactionOptions<Client>> = {}): ConsumerDefinition<Client> {
  return defineConsumer(pgDatabase(pool), {
    name: 'email',
    from: 'beginning',
    retry: { firstDelayMs: 1, maxDelayMs: 5 },
    handlers: [on(events.placed, (event, { tx }) => leaveEffect(tx, event.data))],
    ...options,
  });
}

function detachedOf(
  handler: (step: number, attempt: number) => Promise<void> | void,
  options: Partial<DetachedOptions> = {},
): ConsumerDefinition<Client> {
  return defineConsumer(pgDatabase(pool), {
    name: 'email',
    from: 'beginning',
    mode: 'detached',
    leaseMs: 60_000,
    retry: { attempts: 2, firstDelayMs: 1, maxDelayMs: 2 },
    handlers: [on(events.placed, (event, { attempt }) => handler(event.data.step, attempt))],
    ...options,
  });
}

async function start(definition: ConsumerDefinition<Client>): Promise<Service> {
  const service = runConsumer(definition, { source: broker.source(), logger, sweepEveryMs: 50 });
  services.push(service);
  await service.start();
  return service;
}

async function one<Value>(sql: string): Promise<Value | undefined> {
  const { rows } = await pool.query<{ value: Value }>(sql);
  return rows[0]?.value;
}

const position = (): Promise<number | undefined> =>
  one('select next_offset::integer as value from turnout.position where partition = 0');
const alarms = async (): Promise<string[]> =>
  (await one<string[]>("select coalesce(json_agg(kind order by id), '[]') as value from turnout.alarm"))!;
const held = async (): Promise<string[]> =>
  (await one<string[]>("select coalesce(json_agg(reason order by id), '[]') as value from turnout.held"))!;
const hasLogged = (words: string): boolean => logger.lines.some(({ message }) => message.includes(words));

function called(key: string): Arrival {
  const id = randomUUID();
  return {
    consumer: 'email',
    effectKey: `email.${id}`,
    eventId: id,
    eventType: events.placed.name,
    source: 'orders',
    topic,
    key,
    occurredAt: new Date(),
    path: 'rpc',
    turn: { generation: 1, number: 1 },
  };
}

const routed = (number: number): Stamp[] => [
  { consumer: 'email', route: 'event', epoch: 1, shadow: false, turn: { generation: 1, number } },
];

/** A transaction of a process that was paused in it. */
async function paused(): Promise<Client> {
  const client = await bed.pool({ max: 1 }).connect();
  client.on('error', () => undefined);
  await client.query('begin');
  return client;
}

describe('a lock that is not given back', () => {
  test('holds up its own partition and nothing else, is told, and does not keep the consumer from stopping', async () => {
    const holder = await paused();
    await apply(holder, called('a'), async () => ({ outcome: 'applied' }));
    await send(
      { orderId: 'a', step: 1, routes: routed(1) },
      { orderId: 'b', step: 1, routes: routed(1) },
      { orderId: 'c', step: 1, partition: 1, number: 1, routes: routed(1) },
    );
    const definition = consumerOf({ inSwitchover: [events.placed], concurrency: 1, graceMs: 500 });
    const service = await start(definition);
    await untilEffects('c 1');
    await waitFor(() => hasLogged('at the same effect'), { what: 'a log line' });
    expect(await position()).toBe(0);
    // The lock is held until later: it stops all the same.
    await service.stop();
    expect(await position()).toBe(0);

    await holder.query('rollback');
    holder.release();
    await start(definition);
    await untilEffects('c 1', 'a 1', 'b 1');
  });

  test('ends by itself in an endpoint, a little after the time that the handler has', async () => {
    const joined = joinPool(pool);
    const endpoint = createEndpoint({
      consumer: 'email',
      database: pgDatabase(joined),
      order: 'key',
      handlerTimeoutMs: 2_000,
    });
    let setting: string | undefined;
    const { eventId, eventType, source, key, occurredAt, turn } = called('a');
    const event = { id: eventId, type: eventType, version: 1, source, topic, key, time: occurredAt };
    const headers = callHeaders('email', { ...event, data: {}, headers: {} }, turn);
    await endpoint.answer({ original: undefined, headers, body: async () => '' }, async () => {
      const { rows } = await joined.query<{ value: string }>(
        "select current_setting('idle_in_transaction_session_timeout') as value",
      );
      setting = rows[0]?.value;
      return { status: 200, headers: {}, body: Buffer.alloc(0) };
    });
    expect(setting).toBe('7s');

    const holder = bed.pool({ max: 1 });
    holder.on('error', () => undefined);
    const db = pgDatabase(holder);
    const cutOff = db.transaction((tx) =>
      apply(
        db.within(tx),
        called('b'),
        async () => {
          await waitFor(
            async () =>
              (await one(
                "select count(*)::integer as value from pg_stat_activity where datname = current_database() and state = 'idle in transaction'",
              )) === 0,
            { what: 'the end of the holder' },
          );
          return { outcome: 'applied' };
        },
        { idleMs: 200 },
      ),
    );
    await expect(cutOff).rejects.toThrow();
  });
});

describe('a detached handler', () => {
  test('that came to its end after a rebalance has its outcome, and is not run again', async () => {
    await send({ orderId: 'a', step: 1 });
    const ran: number[] = [];
    let goOn: () => void = () => undefined;
    const wait = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    const definition = detachedOf(
      async (_step, attempt) => {
        ran.push(attempt);
        await wait;
      },
      { leaseMs: 3_000 },
    );
    await start(definition);
    await waitFor(() => ran.length === 1, { what: 'the handler' });
    await start(definition);
    await waitFor(async () => (await one('select max(epoch)::integer as value from turnout.assignment')) === 2, {
      what: 'the new owner',
    });
    goOn();
    await waitFor(async () => (await position()) === 1, { what: 'the position', deadlineMs: 15_000 });
    expect(ran).toEqual([1]);
    expect(await one('select outcome as value from turnout.inbox')).toBe('applied');
    expect(await alarms()).toEqual([]);
  });

  test('that failed for a held event is tried again at once, and is nothing uncertain', async () => {
    await send({ orderId: 'a', step: 1 });
    const ran: number[] = [];
    await start(
      detachedOf((_step, attempt) => {
        ran.push(attempt);
        if (ran.length <= 3) throw new Error('not yet');
      }),
    );
    await waitFor(async () => (await held()).length === 1, { what: 'the parked event' });
    await pool.query("select turnout.retry_parked('email', effect_key) from turnout.held");
    await waitFor(async () => (await held()).length === 0, { what: 'the end of it', deadlineMs: 15_000 });
    expect(ran).toEqual([1, 2, 3, 4]);
    expect(await alarms()).toEqual([]);
  });
});

describe('an event that waits for its next attempt', () => {
  const failing = (times: number, ran: number[], attempts: number): ConsumerDefinition<Client> =>
    consumerOf({
      retry: { attempts, firstDelayMs: 60_000, maxDelayMs: 60_000 },
      handlers: [
        on(events.placed, async (event, { tx, attempt }) => {
          ran.push(attempt);
          if (ran.length <= times) throw new Error('not yet');
          await leaveEffect(tx, event.data);
        }),
      ],
    });

  async function startAgain(definition: ConsumerDefinition<Client>, ran: number[], times: number): Promise<void> {
    for (let life = 1; life <= times; life++) {
      const service = await start(definition);
      await waitFor(() => ran.length === life, { what: `attempt ${life}` });
      await service.stop();
    }
  }

  test('is not taken for one that ends the process, however often it is stopped meanwhile', async () => {
    await send({ orderId: 'a', step: 1 });
    const ran: number[] = [];
    const definition = failing(7, ran, 10);
    await startAgain(definition, ran, 7);
    expect(await held()).toEqual([]);
    await start(definition);
    await untilEffects('a 1');
    expect(ran).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  test('has the attempts that the policy gives it, over all owners', async () => {
    await send({ orderId: 'a', step: 1 });
    const ran: number[] = [];
    await startAgain(failing(9, ran, 3), ran, 3);
    expect(await held()).toEqual(['parked']);
  });
});

describe('a claim', () => {
  const silent = memoryLogger();
  const claimOf = (from: Pool, graceMs: number) =>
    claim(pgDatabase(from), 'email', randomUUID(), [{ topic, partition: 0 }], { logger: silent, graceMs });

  test('lets the transaction of the earlier owner have its time to finish', async () => {
    await send({ orderId: 'a', step: 1 });
    let begun = false;
    const claiming = bed.pool({ max: 1 });
    let tries = 0;
    claiming.on('acquire', () => tries++);
    await start(
      consumerOf({
        graceMs: 20_000,
        handlers: [
          on(events.placed, async (event, { tx }) => {
            begun = true;
            await waitFor(() => tries >= 4, { what: 'a claim that has waited three times', deadlineMs: 20_000 });
            await leaveEffect(tx, event.data);
          }),
        ],
      }),
    );
    await waitFor(() => begun, { what: 'the handler' });
    await claimOf(claiming, 20_000);
    expect(await effects()).toEqual(['a 1']);
    expect(await position()).toBe(1);
  });

  test('ends transactions that have fenced themselves, and none but those', async () => {
    const [owned] = await (async () => {
      await pool.query(
        "insert into turnout.position (consumer, topic, partition, next_offset, since) values ('email', $1, 0, 0, 0)",
        [topic],
      );
      return claimOf(pool, 0);
    })();
    const migration = await paused();
    await migration.query('lock table turnout.assignment in access exclusive mode');
    const first = claimOf(pool, 0);
    await waitFor(() => silent.lines.some(({ message }) => message.includes('can’t be claimed yet')), {
      what: 'the claim to have looked for transactions to end',
    });
    await migration.query('commit');
    migration.release();
    const [again] = await first;
    expect(again!.epoch).toBe(owned!.epoch + 1n);

    const zombie = await paused();
    await advance(zombie, again!, { next: 0n, sequences: new Map(), alarms: [] });
    const both = await Promise.all([claimOf(pool, 0), claimOf(pool, 0)]);
    expect(new Set(both.map(([each]) => each!.epoch - again!.epoch))).toEqual(new Set([1n, 2n]));
    await expect(zombie.query('commit')).rejects.toThrow();
    zombie.release(true);
  });

  test('needs no second connection to end one', async () => {
    const small = bed.pool({ max: 2 });
    const inHand = await small.connect();
    await pool.query(
      "insert into turnout.position (consumer, topic, partition, next_offset, since) values ('email', $1, 0, 0, 0)",
      [topic],
    );
    const [owned] = await claimOf(small, 0);
    const zombie = await paused();
    await advance(zombie, owned!, { next: 0n, sequences: new Map(), alarms: [] });
    const [again] = await claimOf(small, 0);
    expect(again!.epoch).toBe(owned!.epoch + 1n);
    inHand.release();
    zombie.release(true);
  });
});

describe('an event that may be a repeat', () => {
  const old = new Date(Date.now() - 40 * 24 * 3600 * 1000);

  test('is skipped with an alarm if no sequence proves that it is new and the inbox has forgotten its time', async () => {
    await send({ orderId: 'a', step: 1, number: undefined, time: old }, { orderId: 'b', step: 1, number: undefined });
    await start(consumerOf());
    await untilEffects('b 1');
    expect(await alarms()).toEqual(['skipped-old']);
  });

  test.each([
    ['apply', ['a 1', 'a 2', 'a 3', 'a 4']],
    ['skip', ['a 1', 'a 2', 'a 4']],
  ])('and is not known can be let go on by an operator: %s', async (how, expected) => {
    await send(
      { orderId: 'a', step: 1, number: 1 },
      { orderId: 'a', step: 2, number: 2 },
      { orderId: 'a', step: 3, number: 1 },
      { orderId: 'a', step: 4, number: 3 },
    );
    const service = await start(consumerOf());
    const error = (await service.failed()) as { code: string; details: { effectKey: string } };
    expect(error.code).toBe('TURNOUT_UNKNOWN_REPEAT');
    const { effectKey } = error.details;
    const accept = (key: string, what: string, reason: string): Promise<boolean | undefined> =>
      pool
        .query<{ done: boolean }>("select turnout.accept_repeat('email', $1, $2, $3) as done", [key, what, reason])
        .then(({ rows }) => rows[0]?.done);
    await expect(accept(effectKey, how, ' ')).rejects.toMatchObject({ code: 'TU012' });
    await expect(accept(effectKey, 'forget', 'looked')).rejects.toThrow('apply');
    expect(await accept('email.unheard-of', how, 'looked')).toBe(false);
    expect(await accept(effectKey, how, 'its handler came later')).toBe(true);
    await start(consumerOf());
    await untilEffects(...expected);
  });
});
