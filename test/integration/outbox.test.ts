import { execFile, spawnSync } from 'node:child_process';
import { promisify } from 'node:util';
import { Client, Pool, types, type PoolClient } from 'pg';
import { beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { defineEvent, defineTopic, type AnyEventDefinition } from '../../src/event/index.ts';
import {
  lockKeys,
  publishEvents,
  registerEvents,
  runTransaction,
  type DeclaredSwitchover,
  type PublishRequest,
} from '../../src/outbox/index.ts';
import { waitFor } from '../support/index.ts';
import { migrated } from '../support/migrated.ts';
import { database } from '../support/vitest.ts';

const orders = defineTopic({ name: 'orders', maxBytes: 2_000 });
const schema = z.object({ orderId: z.string(), n: z.number().optional(), text: z.string().optional() });
const OrderPlaced = defineEvent({
  name: 'orders.order-placed',
  version: 1,
  topic: orders,
  schema,
  key: (order) => order.orderId,
});
const OrderCancelled = defineEvent({
  name: 'orders.order-cancelled',
  version: 1,
  topic: orders,
  schema,
  key: (order) => order.orderId,
});
const PageSeen = defineEvent({ name: 'orders.page-seen', version: 1, topic: 'pages', schema, order: 'none' });
const Unregistered = defineEvent({
  name: 'orders.unregistered',
  version: 1,
  topic: orders,
  schema,
  key: (order) => order.orderId,
});

async function newOutbox(max = 10) {
  const created = await database({ template: migrated('producer') });
  const pool: Pool = created.pool({ max });
  const db = pgDatabase(pool, { connectTimeoutMs: 5_000 });
  await registerEvents(db, 'orders', [OrderPlaced, OrderCancelled, PageSeen]);
  return { pool, db, url: created.url };
}

// For tests that write nothing.
const shared = await newOutbox(2);

/** Elsewhere than where servers run in Docker, psql comes with the server. */
const hasPsql = spawnSync('psql', ['--version']).status === 0;

const plain = { source: 'orders', switchovers: [], deliver: false };
const mail: DeclaredSwitchover = { name: 'mail', eventTypes: [OrderPlaced.name] };
const points: DeclaredSwitchover = { name: 'points', eventTypes: [OrderPlaced.name] };
const pointsForAll: DeclaredSwitchover = { name: 'points', eventTypes: [OrderPlaced.name, OrderCancelled.name] };
const placed = (orderId: string, more: object = {}): PublishRequest => ({
  definition: OrderPlaced,
  data: { orderId, ...more },
});
const event = (definition: AnyEventDefinition, orderId: string): PublishRequest => ({ definition, data: { orderId } });

interface OutboxRow {
  seq: string;
  id: string;
  aggregateid: string | null;
  type: string;
  payload: string;
  routes: string | null;
}

async function outbox(pool: Pool): Promise<OutboxRow[]> {
  const { rows } = await pool.query<OutboxRow>(
    'select seq::text, id, aggregateid, type, payload::text, routes from turnout.outbox o order by o.seq',
  );
  return rows;
}

const keysIn = async (pool: Pool): Promise<(string | null)[]> => (await outbox(pool)).map((row) => row.aggregateid);

describe('an event is in the outbox if and only if its transaction was committed', () => {
  test('commit, rollback, rollback to a savepoint', async () => {
    const { pool, db } = await newOutbox();
    await db.transaction((tx) => publishEvents(db.within(tx), plain, [placed('committed')]));
    const rolledBack = db.transaction(async (tx) => {
      await publishEvents(db.within(tx), plain, [placed('rolled back')]);
      throw new Error('no stock');
    });
    await expect(rolledBack).rejects.toThrow('no stock');
    await db.transaction(async (tx) => {
      await tx.query('savepoint one');
      await publishEvents(db.within(tx), plain, [placed('rolled back to a savepoint')]);
      await tx.query('rollback to savepoint one');
      await publishEvents(db.within(tx), plain, [placed('after it')]);
    });
    expect(await keysIn(pool)).toEqual(['committed', 'after it']);
  });

  test('a failure that was swallowed is an error at the commit', async () => {
    const { pool, db } = await newOutbox();
    const swallowed = db.transaction(async (tx) => {
      await publishEvents(db.within(tx), plain, [placed('lost')]);
      await tx.query('select 1/0').catch(() => undefined);
    });
    await expect(swallowed).rejects.toMatchObject({ code: 'TURNOUT_TRANSACTION_ABORTED' });
    const publishedAfter = db.transaction(async (tx) => {
      await tx.query('select 1/0').catch(() => undefined);
      await publishEvents(db.within(tx), plain, [placed('never')]);
    });
    await expect(publishedAfter).rejects.toMatchObject({ code: 'TURNOUT_TRANSACTION_ABORTED' });
    expect(await keysIn(pool)).toEqual([]);
  });

  test('publishing outside a transaction is refused', async () => {
    const { pool, db } = await newOutbox();
    const client = await pool.connect();
    expect(() => db.within(client)).toThrow(expect.objectContaining({ code: 'TURNOUT_TRANSACTION_REQUIRED' }));
    expect(() => db.within(pool as never)).toThrow(expect.objectContaining({ code: 'TURNOUT_TRANSACTION_REQUIRED' }));
    await client.query('begin');
    await publishEvents(db.within(client), plain, [placed('mine')]);
    await client.query('commit');
    client.release();
    expect(await keysIn(pool)).toEqual(['mine']);
  });
});

describe('what publish gives back', () => {
  test('is what was written, in the order given', async () => {
    const { pool, db } = await newOutbox();
    const requests = Array.from({ length: 50 }, (_, n) =>
      n % 3 === 0 ? event(PageSeen, `${n}`) : placed(`order-${50 - n}`, { n }),
    );
    const published = await db.transaction((tx) =>
      publishEvents(db.within(tx), plain, [
        ...requests,
        { ...placed('last'), id: '0c7d3c9e-3f0a-4a39-9f39-4f1a2f9f2a11', headers: { tenant: 'é' } },
      ]),
    );
    const rows = await outbox(pool);
    expect(rows.map((row) => row.seq)).toEqual(published.map((each) => each.seq.toString()));
    expect(rows.map((row) => row.id)).toEqual(published.map((each) => each.id));
    expect(rows.map((row) => JSON.parse(row.payload))).toEqual([
      ...requests.map((each) => each.data),
      { orderId: 'last' },
    ]);
    const seqs = published.map((each) => each.seq);
    expect(seqs).toEqual([...seqs].sort((a, b) => Number(a - b)));
    expect(published.at(-1)).toMatchObject({
      id: '0c7d3c9e-3f0a-4a39-9f39-4f1a2f9f2a11',
      key: 'last',
      topic: 'orders',
      headers: { tenant: 'é' },
      stamps: [],
    });
    expect(published[0]).toMatchObject({ key: null, topic: 'pages' });
    const { rows: times } = await pool.query<{ ms: number }>(
      'select (extract(epoch from occurred_at) * 1000)::float8 as ms from turnout.outbox o order by o.seq desc limit 1',
    );
    expect(published.at(-1)!.time.getTime()).toBe(times[0]!.ms);
  });

  test('does not depend on how the user has types parsed', async () => {
    const { db, pool, url } = await newOutbox();
    const own = new Pool({
      connectionString: url,
      max: 1,
      types: {
        getTypeParser: ((oid: number, format: 'text') =>
          [
            types.builtins.INT8,
            types.builtins.NUMERIC,
            types.builtins.TIMESTAMPTZ,
            types.builtins.UUID,
            types.builtins.JSONB,
          ].includes(oid)
            ? (text: string) => ({ parsedByUser: text })
            : types.getTypeParser(oid, format)) as typeof types.getTypeParser,
      },
    });
    try {
      const changed = pgDatabase(own);
      const [one] = await changed.transaction((tx) => publishEvents(changed.within(tx), plain, [placed('a')]));
      const [other] = await db.transaction((tx) => publishEvents(db.within(tx), plain, [placed('a')]));
      expect(typeof one!.seq).toBe('bigint');
      expect(one!.seq + 1n).toBe(other!.seq);
      expect(Math.abs(other!.time.getTime() - one!.time.getTime())).toBeLessThan(10_000);
      expect((await outbox(pool))[0]!.id).toBe(one!.id);
    } finally {
      await own.end();
    }
  });
});

describe('what is refused leaves nothing behind', () => {
  test.each<[string, string, Partial<typeof plain>, PublishRequest]>([
    ['an unknown event type', 'TURNOUT_EVENT_TYPE_UNREGISTERED', {}, event(Unregistered, 'a')],
    ['an unknown source', 'TURNOUT_SOURCE_UNREGISTERED', { source: 'nobody' }, placed('a')],
    [
      'an unknown switchover',
      'TURNOUT_SWITCHOVER_UNKNOWN',
      { switchovers: [{ name: 'nothing', eventTypes: [OrderPlaced.name] }] as never[] },
      placed('a'),
    ],
    ['invalid data', 'TURNOUT_EVENT_DATA_INVALID', {}, { definition: OrderPlaced, data: { orderId: 1 } }],
    [
      'a payload over the limit of its topic',
      'TURNOUT_PAYLOAD_TOO_LARGE',
      {},
      placed('a', { text: 'x'.repeat(2_000) }),
    ],
  ])('%s', async (_, code, options, request) => {
    const { db, pool } = await newOutbox();
    const publishing = db.transaction((tx) =>
      publishEvents(db.within(tx), { ...plain, ...options }, [request, placed('b')]),
    );
    await expect(publishing).rejects.toMatchObject({ code, retryable: false });
    expect(await keysIn(pool)).toEqual([]);
  });

  test('headers over the limit of the topic, published with SQL', async () => {
    const { pool } = await newOutbox();
    const publish = (bytes: number): Promise<unknown> =>
      pool.query(
        `select turnout.publish('orders', 'orders.order-placed', 1, 'a', '{"orderId": "a"}',
                                headers => jsonb_build_object('trace', repeat('x', $1::integer)))`,
        [bytes],
      );
    await expect(publish(2_000)).rejects.toMatchObject({ code: 'TU004' });
    expect(await keysIn(pool)).toEqual([]);
    await publish(1_900);
    expect(await keysIn(pool)).toEqual(['a']);
  });

  test('too many keys in one transaction', async () => {
    const { db } = await newOutbox();
    const many = Array.from({ length: 1_001 }, (_, n) => placed(`order-${n}`));
    const refused = db.transaction((tx) => publishEvents(db.within(tx), plain, many));
    await expect(refused).rejects.toMatchObject({
      code: 'TURNOUT_TOO_MANY_KEYS',
      details: { keys: 1_001, limit: 1_000 },
    });
    await expect(db.transaction((tx) => publishEvents(db.within(tx), plain, many.slice(1)))).resolves.toHaveLength(
      1_000,
    );
    const unkeyed = Array.from({ length: 5_000 }, (_, n) => event(PageSeen, `page-${n}`));
    await expect(db.transaction((tx) => publishEvents(db.within(tx), plain, unkeyed))).resolves.toHaveLength(5_000);
    const keys = many.map((_, n) => `key-${n}`);
    await expect(db.transaction((tx) => lockKeys(db.within(tx), 'orders', keys))).rejects.toMatchObject({
      code: 'TURNOUT_TOO_MANY_KEYS',
    });
  });

  test('what the recorded definition contradicts', async () => {
    const { db } = await newOutbox();
    const more = defineEvent({
      name: 'orders.more',
      version: 1,
      topic: defineTopic({ name: 'orders', partitions: 7 }),
      schema,
      order: 'none',
    });
    await expect(registerEvents(db, 'orders', [more])).rejects.toMatchObject({
      code: 'TURNOUT_TOPIC_PARTITIONS_CHANGED',
    });
    const moved = defineEvent({ name: OrderPlaced.name, version: 1, topic: 'elsewhere', schema, order: 'none' });
    await expect(registerEvents(db, 'orders', [moved])).rejects.toMatchObject({ code: 'TURNOUT_EVENT_TYPE_CHANGED' });
    await expect(registerEvents(db, 'orders', [OrderPlaced, more])).rejects.toMatchObject({
      code: 'TURNOUT_DEFINITION_INVALID',
    });
    await expect(registerEvents(db, 'Orders!', [OrderPlaced])).rejects.toMatchObject({
      code: 'TURNOUT_DEFINITION_INVALID',
    });
    await registerEvents(db, 'orders', [OrderPlaced]);
  });
});

describe('the order of a key', () => {
  /** Resolves when a session waits for an advisory lock. */
  const someoneWaits = (pool: Pool): Promise<unknown> =>
    waitFor(
      async () =>
        (
          await pool.query(
            "select from pg_stat_activity where datname = current_database() and wait_event = 'advisory'",
          )
        ).rowCount === 1,
    );

  test('is that of the locks, even for who publishes before the business lock is taken', async () => {
    const { db, pool } = await newOutbox();
    const order: string[] = [];
    let firstMayEnd = (): void => undefined;
    const firstHasPublished = new Promise<void>((published) => {
      void db.transaction(async (tx) => {
        await publishEvents(db.within(tx), plain, [placed('a', { text: 'first' })]);
        published();
        await new Promise<void>((resolve) => (firstMayEnd = resolve));
        order.push('first');
      });
    });
    await firstHasPublished;
    const second = db.transaction(async (tx) => {
      await publishEvents(db.within(tx), plain, [placed('a', { text: 'second' })]);
      order.push('second');
    });
    await someoneWaits(pool);
    // Another key passes.
    await db.transaction((tx) => publishEvents(db.within(tx), plain, [placed('b')]));
    firstMayEnd();
    await second;
    expect(order).toEqual(['first', 'second']);
    const ofKey = (await outbox(pool))
      .filter((row) => row.aggregateid === 'a')
      .map((row) => JSON.parse(row.payload) as { text: string });
    expect(ofKey.map((payload) => payload.text)).toEqual(['first', 'second']);
  });

  test('holds across two sources that share a topic', async () => {
    const { db, pool } = await newOutbox();
    await registerEvents(db, 'billing', [OrderPlaced]);
    const client = await pool.connect();
    await client.query('begin');
    await publishEvents(db.within(client), plain, [placed('a')]);
    const other = db.transaction((tx) => publishEvents(db.within(tx), { ...plain, source: 'billing' }, [placed('a')]));
    await someoneWaits(pool);
    await client.query('commit');
    client.release();
    const [event] = await other;
    const { rows } = await pool.query('select source, seq::text from turnout.outbox o order by o.seq');
    expect(rows).toEqual([
      { source: 'orders', seq: String(event!.seq - 1n) },
      { source: 'billing', seq: String(event!.seq) },
    ]);
  });

  test('publishing many keys at once never deadlocks, whatever order they are given in', async () => {
    const { db, pool } = await newOutbox(8);
    const keys = Array.from({ length: 30 }, (_, n) => `order-${n}`);
    const rounds = Array.from({ length: 24 }, (_, n) => {
      const mixed = n % 2 === 0 ? keys : [...keys].reverse();
      return db.transaction((tx) =>
        publishEvents(
          db.within(tx),
          plain,
          [...mixed.slice(n), ...mixed.slice(0, n)].map((key) => placed(key)),
        ),
      );
    });
    await Promise.all(rounds);
    expect(await keysIn(pool)).toHaveLength(24 * 30);
  });

  test('keys that are locked early can be published in any order', async () => {
    const { db } = await newOutbox(4);
    const work = (keys: string[]) => async (tx: PoolClient) => {
      await lockKeys(db.within(tx), 'orders', ['a', 'b', 'c']);
      for (const key of keys) await publishEvents(db.within(tx), plain, [placed(key)]);
    };
    await Promise.all(
      Array.from({ length: 12 }, (_, n) => db.transaction(work(n % 2 === 0 ? ['a', 'b', 'c'] : ['c', 'b', 'a']))),
    );
  });
});

describe('runTransaction', () => {
  test('begins anew after a deadlock', async () => {
    const { db, pool } = await newOutbox(4);
    let attempts = 0;
    let meet = 0;
    const both = waitFor(() => meet >= 2, { deadlineMs: 10_000 });
    const crossing = (first: string, then: string) =>
      runTransaction(db, async (tx) => {
        attempts++;
        await publishEvents(db.within(tx), plain, [placed(first)]);
        meet++;
        await both;
        await publishEvents(db.within(tx), plain, [placed(then)]);
      });
    await Promise.all([crossing('a', 'b'), crossing('b', 'a')]);
    expect(attempts).toBe(3);
    expect(await keysIn(pool)).toHaveLength(4);
  });

  test('begins anew after a serialization failure, and gives up after its attempts', async () => {
    const { db, pool } = await newOutbox(4);
    await pool.query('create table stock (id integer primary key, n integer); insert into stock values (1, 0)');
    let attempts = 0;
    const work = (failures: number) => async (tx: PoolClient) => {
      attempts++;
      await tx.query('select n from stock');
      if (attempts <= failures) await pool.query('update stock set n = n + 1');
      await tx.query(
        "do $$ begin if current_setting('transaction_isolation') <> 'repeatable read' then raise 'isolation'; end if; end $$",
      );
      await tx.query('update stock set n = n + 100');
      await publishEvents(db.within(tx), plain, [placed('a')]);
    };
    await pool.query(
      'alter database ' + (await currentDatabase(pool)) + " set default_transaction_isolation = 'repeatable read'",
    );
    const strict = new Pool({ ...(pool.options as object), max: 2 });
    try {
      const strictDb = pgDatabase(strict);
      await runTransaction(strictDb, work(2));
      expect(attempts).toBe(3);
      attempts = 0;
      await expect(runTransaction(strictDb, work(9), { attempts: 2 })).rejects.toMatchObject({ code: '40001' });
      expect(attempts).toBe(2);
    } finally {
      await strict.end();
    }
    expect(await keysIn(pool)).toEqual(['a']);
  });

  // What `done` does, as soon as it exists: rows deleted and stage set in one transaction.
  const close = "with closed as (delete from turnout.rpc_open) update turnout.switchover set stage = 'done'";
  const switchedOver = { ...plain, switchovers: [points] };
  async function withSwitchover() {
    const made = await newOutbox(4);
    await made.pool.query(
      "select turnout.register_switchover('orders', 'points', 'loyalty', '{orders.order-placed}', 'key', 'test')",
    );
    return made;
  }

  test('begins anew when a switchover was closed while a call was being stamped', async () => {
    const { db, pool } = await withSwitchover();
    await db.transaction((tx) => publishEvents(db.within(tx), switchedOver, [placed('a')]));
    await pool.query('delete from turnout.rpc_delivery');
    const holder = await pool.connect();
    await holder.query('begin; select from turnout.key_number for update');
    const failures: unknown[] = [];
    const publishing = runTransaction(db, async (tx) => {
      try {
        return await publishEvents(db.within(tx), switchedOver, [placed('a')]);
      } catch (error) {
        failures.push((error as { code?: unknown }).code);
        throw error;
      }
    });
    // It has read the stage, and waits for the number.
    await waitFor(
      async () =>
        (
          await pool.query(
            "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%publish_events%'",
          )
        ).rowCount === 1,
    );
    await pool.query(close);
    await holder.query('commit');
    holder.release();
    const [published] = await publishing;
    expect(failures).toEqual(['23503']);
    expect(published!.stamps).toEqual([
      expect.objectContaining({ route: 'event', turn: { generation: 1, number: 2 } }),
    ]);
    expect(await keysIn(pool)).toEqual(['a', 'a']);
  });

  test('begins anew when a switchover was closed under a transaction with an older snapshot', async () => {
    const { db, pool } = await withSwitchover();
    let attempts = 0;
    const published = await runTransaction(db, async (tx) => {
      if (++attempts === 1) {
        await tx.query('set transaction isolation level repeatable read');
        await tx.query('select from turnout.switchover');
        await pool.query(close);
      }
      return publishEvents(db.within(tx), switchedOver, [placed('a')]);
    });
    expect(attempts).toBe(2);
    expect(published[0]!.stamps.map((stamp) => stamp.route)).toEqual(['event']);
  });

  test('does not repeat what will fail again', async () => {
    const { db } = await newOutbox(2);
    let attempts = 0;
    const failing = runTransaction(db, async (tx) => {
      attempts++;
      await tx.query('select 1/0');
    });
    await expect(failing).rejects.toThrow('division by zero');
    expect(attempts).toBe(1);
  });
});

async function currentDatabase(pool: Pool): Promise<string> {
  return (await pool.query<{ name: string }>('select current_database() as name')).rows[0]!.name;
}

describe('switchovers', () => {
  async function withSwitchovers() {
    const made = await newOutbox();
    for (const [name, consumer, types, ordering] of [
      ['mail', 'email', '{orders.order-placed}', 'none'],
      ['points', 'loyalty', '{orders.order-placed,orders.order-cancelled}', 'key'],
    ]) {
      await made.pool.query('select turnout.register_switchover($1, $2, $3, $4, $5, $6)', [
        'orders',
        name,
        consumer,
        types,
        ordering,
        'test',
      ]);
    }
    return made;
  }
  const declared = { source: 'orders', switchovers: [pointsForAll, mail], deliver: true };

  test('each event is stamped for those that have its type, numbered by key, and the call is owed', async () => {
    const { db, pool } = await withSwitchovers();
    const publish = (requests: PublishRequest[]) =>
      db.transaction((tx) => publishEvents(db.within(tx), declared, requests));
    const published = await publish([
      placed('a'),
      event(OrderCancelled, 'b'),
      placed('a'),
      event(PageSeen, 'a'),
      event(OrderCancelled, 'a'),
    ]);
    const shape = published.map((each) =>
      each.stamps.map((stamp) => `${stamp.consumer} ${stamp.route} ${stamp.turn?.generation}.${stamp.turn?.number}`),
    );
    expect(shape).toEqual([
      ['email rpc undefined.undefined', 'loyalty rpc 1.1'],
      ['loyalty rpc 1.1'],
      ['email rpc undefined.undefined', 'loyalty rpc 1.2'],
      [],
      ['loyalty rpc 1.3'],
    ]);
    expect((await publish([placed('a')]))[0]!.stamps[1]!.turn).toEqual({ generation: 1, number: 4 });
    const rows = await outbox(pool);
    expect(rows.map((row) => row.routes)).toEqual([
      'email=rpc;epoch=1, loyalty=rpc;epoch=1;generation=1;number=1',
      'loyalty=rpc;epoch=1;generation=1;number=1',
      'email=rpc;epoch=1, loyalty=rpc;epoch=1;generation=1;number=2',
      null,
      'loyalty=rpc;epoch=1;generation=1;number=3',
      'email=rpc;epoch=1, loyalty=rpc;epoch=1;generation=1;number=4',
    ]);
    const { rows: owed } = await pool.query<{ effect_key: string; due: boolean }>(
      'select effect_key, due_at is not null as due from turnout.rpc_delivery d order by d.seq, d.consumer',
    );
    expect(owed.map((row) => row.effect_key)).toEqual(
      published
        .flatMap((each) => each.stamps.map((stamp) => stamp.effectKey))
        .concat(owed.slice(-2).map((row) => row.effect_key)),
    );
    expect(owed.every((row) => !row.due)).toBe(true);
    const { rows: stamps } = await pool.query(
      'select key, number::integer, seq::text, event_id from turnout.stamp s order by s.seq',
    );
    expect(stamps).toHaveLength(5);
    expect(stamps[0]).toEqual({ key: 'a', number: 1, seq: published[0]!.seq.toString(), event_id: published[0]!.id });
  });

  test('a stage change counts from the next transaction on; an undeclared consumer gets no route', async () => {
    const { db, pool } = await withSwitchovers();
    await pool.query("update turnout.switchover set stage = 'event', epoch = 2 where name = 'points'");
    const publish = (switchovers: DeclaredSwitchover[]) =>
      db.transaction((tx) => publishEvents(db.within(tx), { ...declared, switchovers, deliver: false }, [placed('a')]));
    expect((await publish([points]))[0]!.stamps).toEqual([
      expect.objectContaining({ consumer: 'loyalty', route: 'event', epoch: 2, turn: { generation: 1, number: 1 } }),
    ]);
    expect((await publish([mail]))[0]!.stamps.map((stamp) => stamp.consumer)).toEqual(['email']);
    expect((await publish([]))[0]!.stamps).toEqual([]);
    const { rows } = await pool.query('select consumer, due_at is not null as due from turnout.rpc_delivery');
    expect(rows).toEqual([{ consumer: 'email', due: true }]);
  });

  test('an event is stamped for what is declared for its type, whatever other types the switchover has', async () => {
    const { db, pool } = await withSwitchovers();
    const publish = (switchovers: DeclaredSwitchover[]) =>
      db.transaction((tx) =>
        publishEvents(db.within(tx), { ...declared, switchovers }, [placed('a'), event(OrderCancelled, 'a')]),
      );
    // An older version of the code: it cancels by a call of its own.
    expect((await publish([points])).map((each) => each.stamps.length)).toEqual([1, 0]);
    expect((await publish([pointsForAll])).map((each) => each.stamps[0]?.turn?.number)).toEqual([2, 3]);
    // A newer one: it has given a call away that nobody would make.
    const newer = { ...mail, eventTypes: pointsForAll.eventTypes };
    await expect(publish([points, newer])).rejects.toMatchObject({
      code: 'TURNOUT_SWITCHOVER_TYPE_MISSING',
      retryable: true,
      details: { switchover: 'mail', type: 'orders.order-cancelled' },
    });
    expect(await outbox(pool)).toHaveLength(4);
  });

  test('a new generation counts from 1 again', async () => {
    const { db, pool } = await withSwitchovers();
    const publish = () =>
      db.transaction((tx) =>
        publishEvents(db.within(tx), { ...declared, switchovers: [points] }, [placed('a'), placed('a')]),
      );
    await publish();
    await pool.query("update turnout.switchover set generation = 2 where name = 'points'");
    expect((await publish()).map((each) => each.stamps[0]!.turn)).toEqual([
      { generation: 2, number: 1 },
      { generation: 2, number: 2 },
    ]);
  });

  test('the ramp stamps by key, the same for every event of one', async () => {
    const { db, pool } = await withSwitchovers();
    await pool.query("update turnout.switchover set stage = 'ramp', percent = 50 where name = 'points'");
    const keys = Array.from({ length: 200 }, (_, n) => `order-${n}`);
    const publish = () =>
      db.transaction((tx) =>
        publishEvents(
          db.within(tx),
          { ...declared, switchovers: [points] },
          keys.map((key) => placed(key)),
        ),
      );
    const routes = (await publish()).map((each) => each.stamps[0]!.route);
    expect((await publish()).map((each) => each.stamps[0]!.route)).toEqual(routes);
    const events = routes.filter((route) => route === 'event').length;
    expect(events).toBeGreaterThan(60);
    expect(events).toBeLessThan(140);
    const { rowCount } = await pool.query("select from turnout.rpc_delivery where consumer = 'loyalty'");
    expect(rowCount).toBe(2 * (200 - events));
  });
});

describe('from SQL', () => {
  const run = promisify(execFile);
  const psql = (url: string, ...statements: string[]) =>
    run('psql', ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', url, ...statements.flatMap((sql) => ['-c', sql])]);

  test.skipIf(!hasPsql)('psql writes the same rows as TypeScript, routes and owed calls included', async () => {
    const { db, pool, url } = await newOutbox();
    await pool.query(
      "select turnout.register_switchover('orders', 'points', 'loyalty', '{orders.order-placed}', 'key', 'test')",
    );
    const [published] = await db.transaction((tx) =>
      publishEvents(db.within(tx), { source: 'orders', switchovers: [points], deliver: false }, [
        { ...placed('order-1', { n: 1.5, text: 'é' }), headers: { tenant: 'acme' } },
      ]),
    );
    const { stdout } = await psql(
      url,
      `begin; select turnout.publish('orders', 'orders.order-placed', 1, 'order-1', '{"orderId":"order-1","n":1.5,"text":"é"}',
         headers => '{"tenant": "acme"}', switchovers => '{points}'); commit`,
    );
    const { rows } = await pool.query<Record<string, unknown>>(
      'select o.*, o.seq::text as seq, o.payload::text as payload, o.headers::text as headers from turnout.outbox o order by o.seq',
    );
    expect(rows).toHaveLength(2);
    expect(rows.map((row) => row['id'])).toEqual([published!.id, stdout.trim()]);
    const same = ({
      source,
      topic,
      aggregatetype,
      aggregateid,
      type,
      version,
      payload,
      headers,
    }: Record<string, unknown>) => ({ source, topic, aggregatetype, aggregateid, type, version, payload, headers });
    expect(same(rows[1]!)).toEqual(same(rows[0]!));
    expect(rows.map((row) => row['routes'])).toEqual([1, 2].map((n) => `loyalty=rpc;epoch=1;generation=1;number=${n}`));
    const { rows: owed } = await pool.query(
      'select number::integer, due_at is not null as due, effect_key from turnout.rpc_delivery d order by d.number',
    );
    expect(owed).toEqual([
      { number: 1, due: true, effect_key: `loyalty.${published!.id}` },
      { number: 2, due: true, effect_key: `loyalty.${stdout.trim()}` },
    ]);
  });

  test.skipIf(!hasPsql)('a rolled back transaction of psql publishes nothing', async () => {
    const { pool, url } = await newOutbox();
    await psql(url, "begin; select turnout.publish('orders', 'orders.order-placed', 1, 'a', '{}'); rollback");
    expect(await keysIn(pool)).toEqual([]);
  });

  beforeAll(async () => {
    await shared.pool.query(
      "select turnout.register_switchover('orders', 'only-placed', 'fax', '{orders.order-placed}', 'key', 'test')",
    );
  });

  test.each([
    ['TU001', `turnout.publish(null, 'orders.order-placed', 1, 'a', '{}')`],
    ['TU001', `turnout.publish('nobody', 'orders.order-placed', 1, 'a', '{}')`],
    ['TU002', `turnout.publish('orders', 'orders.order-placed', 1, 'a', '{}', switchovers => array[null])`],
    ['TU018', `turnout.publish('orders', 'orders.order-cancelled', 1, 'a', '{}', switchovers => '{only-placed}')`],
    [
      'TU018',
      `turnout.publish_events('orders', '[{"type": "orders.order-placed", "version": 1, "key": "a", "data": {}}, {"type": "orders.order-cancelled", "version": 1, "key": "a", "data": {}, "switchovers": ["only-placed"]}]')`,
    ],
    ['TU003', `turnout.publish('orders', null, 1, 'a', '{}')`],
    ['TU003', `turnout.publish('orders', 'orders.order-placed', 2, 'a', '{}')`],
    ['TU004', `turnout.publish('orders', 'orders.order-placed', 1, 'a', json_build_object('x', repeat('x', 2000)))`],
    ['TU005', `turnout.publish('orders', 'orders.order-placed', 1, null, '{}')`],
    ['TU005', `turnout.publish('orders', 'orders.order-placed', 1, '', '{}')`],
    [
      'TU006',
      `turnout.publish_events('orders', (select json_agg(json_build_object('type', 'orders.order-placed', 'version', 1, 'key', 'k' || n, 'data', '{}'::json)) from generate_series(1, 1001) n))`,
    ],
    ['TU009', `turnout.publish('orders', 'orders.order-placed', 1, 'a', null)`],
    ['TU009', `turnout.publish('orders', 'orders.order-placed', 1, 'a', 'null')`],
    ['TU009', `turnout.publish('orders', 'orders.order-placed', 1, repeat('k', 1001), '{}')`],
    ['TU009', `turnout.publish('orders', 'orders.order-placed', 1, 'a', '{}', headers => '{"CE_ID": "x"}')`],
    ['TU009', `turnout.publish('orders', 'orders.order-placed', 1, 'a', '{}', headers => '{"n": 1}')`],
    ['TU009', `turnout.publish('orders', 'orders.order-placed', 1, 'a', '{}', headers => '["n"]')`],
    ['TU009', `turnout.publish_events('orders', null)`],
    [
      'TU009',
      `turnout.publish_events('orders', '[{"id":"0c7d3c9e-3f0a-4a39-9f39-4f1a2f9f2a11","type":"orders.page-seen","version":1,"data":1},{"id":"0c7d3c9e-3f0a-4a39-9f39-4f1a2f9f2a11","type":"orders.page-seen","version":1,"data":1}]')`,
    ],
  ])('%s for %s', async (sqlState, call) => {
    const { pool } = shared;
    await expect(pool.query(`select * from ${call}`)).rejects.toMatchObject({ code: sqlState });
  });
  test('switchovers that are null are none, and no events are none', async () => {
    const { pool } = shared;
    const { rows } = await pool.query(
      `select stamps::text from turnout.publish_events('orders', '[{"type":"orders.page-seen","version":1,"data":1}]', null, null)`,
    );
    expect(rows).toEqual([{ stamps: '[]' }]);
    expect((await pool.query("select from turnout.publish_events('orders', '[]')")).rowCount).toBe(0);
  });

  test('a role that may only publish can publish, with its calls, and nothing else', async () => {
    const created = await database({ template: migrated('producer', 'roles') });
    const pool = created.pool({ max: 2 });
    await registerEvents(pgDatabase(pool), 'orders', [OrderPlaced]);
    await pool.query(
      "select turnout.register_switchover('orders', 'points', 'loyalty', '{orders.order-placed}', 'key', 'test')",
    );
    const client = new Client({ connectionString: created.url });
    await client.connect();
    try {
      await client.query('set role turnout_publisher');
      const events = '[{"type": "orders.order-placed", "version": 1, "key": "a", "data": {}}]';
      await client.query("select from turnout.publish_events('orders', $1, '{points}', true)", [events]);
      await client.query("select turnout.lock_keys('orders', '{a}')");
      await client.query(
        "select turnout.publish('orders', 'orders.order-placed', 1, 'a', '{}', switchovers => '{points}')",
      );
      for (const forbidden of [
        "insert into turnout.source (name) values ('x')",
        'delete from turnout.outbox',
        "select turnout.set_stage('orders', 'points', 'event', 'because', force => true)",
        'select from turnout.relay_tick',
      ]) {
        await expect(client.query(forbidden)).rejects.toMatchObject({ code: '42501' });
      }
    } finally {
      await client.end();
    }
  });
});

test('several sources in one database count and stamp each for itself', async () => {
  const { db, pool } = await newOutbox();
  await registerEvents(db, 'shop', [OrderPlaced]);
  await pool.query(
    "select turnout.register_switchover('orders', 'points', 'loyalty', '{orders.order-placed}', 'key', 'test')",
  );
  await pool.query(
    "select turnout.register_switchover('shop', 'points', 'loyalty', '{orders.order-placed}', 'key', 'test')",
  );
  const publish = (source: string) =>
    db.transaction((tx) =>
      publishEvents(db.within(tx), { source, switchovers: [points], deliver: false }, [placed('a')]),
    );
  const numbers = [];
  for (const source of ['orders', 'shop', 'orders']) numbers.push((await publish(source))[0]!.stamps[0]!.turn!.number);
  expect(numbers).toEqual([1, 1, 2]);
});
