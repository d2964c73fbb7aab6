// Events that are held: when they come back, in which order they go on, and that none is left for ever.
import { randomUUID } from 'node:crypto';
import type { PoolClient } from 'pg';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { defineConsumer, runConsumer } from '../../src/consumer/index.ts';
import type { ConsumerDefinition, TransactionOptions } from '../../src/consumer/index.ts';
import type { Database } from '../../src/database/index.ts';
import { defineEvent, on } from '../../src/event/index.ts';
import type { Stamp } from '../../src/event/index.ts';
import { apply, ensureInboxPartition, hold } from '../../src/inbox/index.ts';
import type { Arrival, Verdict } from '../../src/inbox/index.ts';
import { sleep } from '../../src/lifecycle/index.ts';
import type { Service } from '../../src/lifecycle/index.ts';
import { waitFor } from '../support/index.ts';
import { consumerBed } from './fixtures/consumer-bed.ts';
import type { ConsumerBed } from './fixtures/consumer-bed.ts';
import { messageOf, orderSchema } from './fixtures/consumer.ts';
import type { Given, Order } from './fixtures/consumer.ts';

let { broker, pool, topic, events, logger, services, send, effects, untilEffects } = {} as ConsumerBed;
let stop: ConsumerBed['stop'];
const plainType = 'orders.order-noted';

beforeEach(async () => {
  ({ broker, pool, topic, events, logger, services, send, effects, untilEffects, stop } = await consumerBed());
});

afterEach(() => stop());

const numbered = (number: number): Pick<Given, 'routes'> => {
  const stamp: Stamp = { consumer: 'email', route: 'event', epoch: 1, shadow: false, turn: { generation: 1, number } };
  return { routes: [stamp] };
};
/** Of another type that no switchover knows: ordered by its key, without a number. */
const plain = { type: plainType };

type Handle = (order: Order, context: { tx: PoolClient; signal: AbortSignal }) => Promise<void>;

async function start(
  handle: Handle,
  { sweepEveryMs = 20, ...options }: Partial<TransactionOptions<PoolClient>> & { sweepEveryMs?: number } = {},
  db: Database<PoolClient> = pgDatabase(pool),
): Promise<Service> {
  const leave: Handle = async (order, context) => {
    await handle(order, context);
    await context.tx.query('insert into effect (order_id, step) values ($1, $2)', [order.orderId, order.step]);
  };
  const plainly = defineEvent({
    name: plainType,
    version: 1,
    topic,
    schema: orderSchema,
    key: (order) => order.orderId,
  });
  const definition: ConsumerDefinition<PoolClient> = defineConsumer(db, {
    name: 'email',
    from: 'beginning',
    inSwitchover: [events.placed],
    retry: { attempts: 1 },
    handlers: [
      on(events.placed, (event, context) => leave(event.data, context)),
      on(plainly, (event, context) => leave(event.data, context)),
    ],
    ...options,
  });
  const service = runConsumer(definition, { source: broker.source(), logger, sweepEveryMs });
  services.push(service);
  await service.start();
  return service;
}

interface Row {
  reason: string;
  step: number;
  error: string | null;
  effectKey: string;
}

async function held(): Promise<Row[]> {
  const { rows } = await pool.query<Row>(
    `select reason, ((message ->> 'value')::jsonb ->> 'step')::integer as step, error, effect_key as "effectKey" from turnout.held order by id`,
  );
  return rows;
}

const inLine = async (): Promise<string[]> => (await held()).map(({ reason, step }) => `${step} ${reason}`);
const untilHeld = (...expected: string[]): Promise<unknown> =>
  waitFor(async () => (await inLine()).join() === expected.join(), { what: `held: ${expected.join()}` });

async function operator(name: 'retry_parked' | 'skip_parked', step: number): Promise<boolean> {
  const row = (await held()).find((each) => each.step === step)!;
  const reason = name === 'skip_parked' ? [`looked at it`] : [];
  const { rows } = await pool.query<{ done: boolean }>(
    `select turnout.${name}('email', $1${reason.length > 0 ? ', $2' : ''}) as done`,
    [row.effectKey, ...reason],
  );
  return rows[0]!.done;
}

function arrivalOf(number: number, key: string, id: string = randomUUID(), occurredAt = new Date()): Arrival {
  return {
    consumer: 'email',
    effectKey: `email.${id}`,
    eventId: id,
    eventType: events.placed.name,
    source: 'orders',
    topic,
    key,
    occurredAt,
    path: 'rpc',
    turn: { generation: 1, number },
  };
}

/** What a wrapped endpoint does with a call. */
async function call(arrival: Arrival): Promise<Verdict> {
  const db = pgDatabase(pool);
  await ensureInboxPartition(db, arrival.occurredAt);
  return db.transaction((tx) => apply(db.within(tx), arrival, async () => ({ outcome: 'applied' })));
}

describe('what has had its effect by the other path does not come back', () => {
  /** The call comes between the handler's failure and what is written about it: when the consumer asks whether the database is there. */
  async function startWithCallBetween(arrival: Arrival, whether: () => boolean): Promise<void> {
    const db = pgDatabase(pool);
    await start(
      async ({ step }) => {
        if (step === 1) throw new Error('not here');
      },
      {},
      {
        ...db,
        async query(text, values) {
          if (text === 'select 1' && whether()) await call(arrival);
          return db.query(text, values);
        },
      },
    );
  }

  test('when a consumer gives up on it at that moment', async () => {
    const [id, time] = [randomUUID(), new Date()];
    await send({ orderId: 'a', step: 1, id, time, ...numbered(1) }, { orderId: 'a', step: 2, ...numbered(2) });
    await startWithCallBetween(arrivalOf(1, 'a', id, time), () => true);
    await waitFor(async () => (await effects()).length === 1 || (await held()).length > 1);
    expect(await held()).toEqual([]);
    expect(await effects()).toEqual(['a 2']);
    expect(logger.lines.filter(({ level }) => level === 'error')).toEqual([]);
  });

  test('when an attempt at the held event fails at that moment', async () => {
    const [id, time] = [randomUUID(), new Date()];
    await send({ orderId: 'a', step: 1, id, time, ...numbered(1) });
    let calls = false;
    await startWithCallBetween(arrivalOf(1, 'a', id, time), () => calls);
    await untilHeld('1 parked');
    const { length } = logger.lines;
    calls = true;
    await operator('retry_parked', 1);
    await waitFor(() => logger.lines.length > length, { what: 'another failure' });
    expect(await held()).toEqual([]);
  });

  test('by the function that holds it, which takes the lock of its effect', async () => {
    const db = pgDatabase(pool);
    const arrival = arrivalOf(1, 'a');
    const message = { topic, partition: 0, offset: 0n, key: 'a', value: Buffer.from('{"step":1}'), headers: {} };
    await ensureInboxPartition(db, arrival.occurredAt);
    await db.transaction(async (tx) => {
      await apply(db.within(tx), arrival, async () => ({ outcome: 'applied' }));
      expect(await hold(pool, arrival, message, 'parked')).toBe('busy');
    });
    expect(await hold(pool, arrival, message, 'parked')).toBe('done');
    expect(await held()).toEqual([]);
  });
});

describe('one line for events with a number and without', () => {
  test.each([
    ['a plain one waits behind a parked numbered one', [numbered(1), plain, numbered(2)]],
    ['numbered ones wait behind a parked plain one', [plain, numbered(1), plain]],
  ])('%s', async (_what, kinds) => {
    let broken = true;
    await start(async ({ step }) => {
      if (step === 1 && broken) throw new Error('broken');
    });
    await send(...kinds.map((kind, index) => ({ orderId: 'a', step: index + 1, ...kind })), {
      orderId: 'b',
      step: 9,
      ...plain,
    });
    await untilEffects('b 9');
    expect((await held()).map(({ step }) => step)).toEqual([1, 2, 3]);
    // The sweep has looked at them in vain.
    const { length } = logger.lines;
    await operator('retry_parked', 1);
    await waitFor(() => logger.lines.length > length, { what: 'another attempt' });
    await untilHeld(...(await inLine()));
    expect(await effects()).toEqual(['b 9']);
    broken = false;
    await waitFor(async () => (await held())[0]?.reason === 'parked');
    await operator('retry_parked', 1);
    await untilEffects('b 9', 'a 1', 'a 2', 'a 3');
    expect(await held()).toEqual([]);
  });

  test('a plain one does not wait for a number that has not come', async () => {
    await start(async () => undefined);
    await send({ orderId: 'a', step: 2, ...numbered(2) }, { orderId: 'a', step: 3, ...plain });
    await untilEffects('a 3');
    expect(await inLine()).toEqual(['2 early']);
  });

  test('nobody waits for each other when a number comes late', async () => {
    let broken = true;
    await start(async ({ step }) => {
      if (step === 0 && broken) throw new Error('broken');
    });
    await send(
      { orderId: 'a', step: 0, ...plain },
      { orderId: 'a', step: 2, ...numbered(2) },
      { orderId: 'a', step: 3, ...plain },
      { orderId: 'a', step: 1, ...numbered(1) },
    );
    await waitFor(async () => (await held()).length === 4);
    broken = false;
    await operator('retry_parked', 0);
    await untilEffects('a 0', 'a 3', 'a 1', 'a 2');
  });
});

describe('no dead end', () => {
  test('a halted key goes on where it stood', async () => {
    await start(async () => undefined);
    await send({ orderId: 'a', step: 1, ...numbered(1) });
    await untilEffects('a 1');
    await send(
      { orderId: 'a', step: 99, ...numbered(1) },
      { orderId: 'a', step: 2, ...numbered(2) },
      { orderId: 'a', step: 98, ...numbered(1) },
      { orderId: 'a', step: 3, ...numbered(3) },
    );
    await untilHeld('99 parked', '2 behind', '98 behind', '3 behind');
    const resume = (): Promise<unknown> =>
      pool.query(`select turnout.resume_key('email', 'orders', $1, 'a', 'looked')`, [topic]);
    await resume();
    // The second stranger halts the key again, since it is one: it is not forgotten.
    await untilHeld('2 behind', '98 parked', '3 behind');
    expect(await effects()).toEqual(['a 1']);
    await resume();
    await untilEffects('a 1', 'a 2', 'a 3');
    expect(await held()).toEqual([]);
  });

  test('what can’t be read or handled is parked again, and can be skipped', async () => {
    await start(async () => undefined);
    await send(
      { orderId: 'a', step: 1, type: 'orders.order-changed', ...numbered(1) },
      { orderId: 'b', step: 2, refused: 'too large', ...numbered(1) },
      { orderId: 'c', step: 3, routes: 'garbage' },
      { orderId: 'd', step: 4, type: 'orders.order-changed', ...numbered(1) },
    );
    await untilHeld('1 parked', '2 parked', '3 parked', '4 parked');
    const before = (await held()).map(({ error }) => error);
    for (const step of [1, 2, 3]) expect(await operator('retry_parked', step)).toBe(true);
    await untilHeld('1 parked', '2 parked', '3 parked', '4 parked');
    expect((await held()).map(({ error }) => error)).toEqual(before);
    await services[0]!.stop();
    // Nobody sweeps: they are behind.
    for (const step of [1, 2, 3, 4]) await operator('retry_parked', step);
    expect((await held())[0]!.reason).toBe('behind');
    for (const step of [1, 2, 3, 4]) expect(await operator('skip_parked', step)).toBe(true);
    expect(await held()).toEqual([]);
  });

  test('a message whose time is none can be skipped', async () => {
    const publisher = broker.publisher();
    await publisher.connect();
    const message = messageOf(topic, { orderId: 'a', step: 1 });
    await publisher.send([
      { topic, partition: 0, messages: [{ ...message, headers: { ...message.headers, ce_time: 'yesterday?' } }] },
    ]);
    await start(async () => undefined);
    await untilHeld('1 parked');
    expect(await operator('skip_parked', 1)).toBe(true);
    expect(await held()).toEqual([]);
  });

  test('many that fail don’t keep the sweep from the others', async () => {
    await start(
      async ({ orderId }) => {
        if (orderId !== 'zz') throw new Error('broken');
      },
      { retry: { attempts: 5, firstDelayMs: 60_000, maxDelayMs: 60_000 } },
    );
    const db = pgDatabase(pool);
    await ensureInboxPartition(db, new Date());
    for (let index = 0; index < 110; index++) {
      const { key, value, headers } = messageOf(topic, { orderId: `k${index}`, step: 1, ...numbered(1) });
      const arrival = arrivalOf(1, `k${index}`, headers['ce_id']);
      await hold(pool, arrival, { topic, partition: 0, offset: 0n, key, value, headers }, 'behind');
    }
    await send({ orderId: 'zz', step: 2, ...numbered(2) });
    await waitFor(async () => (await held()).length === 111);
    await call(arrivalOf(1, 'zz'));
    await untilEffects('zz 2');
  });
});

describe('the sweep', () => {
  test('goes through a key at one go', async () => {
    let broken = true;
    const handle: Handle = async ({ step }) => {
      if (step === 0 && broken) throw new Error('broken');
    };
    const first = await start(handle);
    await send(...Array.from({ length: 12 }, (_, step) => ({ orderId: 'a', step, ...plain })));
    await waitFor(async () => (await held()).length === 12);
    await first.stop();
    broken = false;
    const db = pgDatabase(pool);
    let rounds = 0;
    const counting: typeof db = {
      ...db,
      query: (text, values) => {
        if (text.includes('h.id > $2::bigint')) rounds++;
        return db.query(text, values);
      },
    };
    await operator('retry_parked', 0);
    const inRound: number[] = [];
    const noting: Handle = async () => void inRound.push(rounds);
    await start(noting, {}, counting);
    await waitFor(async () => (await effects()).length === 12, { what: 'all effects', deadlineMs: 30_000 });
    expect(await effects()).toEqual(Array.from({ length: 12 }, (_, step) => `a ${step}`));
    expect(inRound).toEqual(Array.from({ length: 12 }, () => inRound[0]));
    expect(rounds).toBeGreaterThan(0);
  });

  test('aborts a held handler that takes too long when the consumer is stopped', async () => {
    let hangs = false;
    let inside = false;
    const service = await start(
      async (_order, { signal }) => {
        if (!hangs) throw new Error('broken');
        inside = true;
        await new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(new Error('aborted'))));
      },
      { graceMs: 50 },
    );
    await send({ orderId: 'a', step: 1, ...numbered(1) });
    await untilHeld('1 parked');
    hangs = true;
    await operator('retry_parked', 1);
    await waitFor(() => inside, { what: 'the handler' });
    await expect(Promise.race([service.stop().then(() => 'stopped'), sleep(5_000).then(() => 'hangs')])).resolves.toBe(
      'stopped',
    );
    // Its attempt was not its failure.
    expect(await inLine()).toEqual(['1 behind']);
  });
});
