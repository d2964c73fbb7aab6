import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { Client, type Pool, type PoolClient } from 'pg';
import { afterAll, describe, expect, test } from 'vitest';
import {
  apply,
  ensureInboxPartition,
  heldThatCanGoOn,
  hold,
  intend,
  nextHeld,
  settle,
  type Arrival,
  type Effect,
  type Verdict,
} from '../../src/inbox/index.ts';
import { waitFor } from '../support/index.ts';
import { database } from '../support/vitest.ts';

const template = {
  key: 'inbox-test',
  prepare: async (url: string) => {
    const client = new Client({ connectionString: url });
    await client.connect();
    await client.query(await readFile(new URL('../../migrations/consumer/000001_inbox.sql', import.meta.url), 'utf8'));
    await client.query('create table effects (id bigint generated always as identity, name text)');
    await client.end();
  },
};

const pool: Pool = (await database({ template })).pool({ max: 12 });
afterAll(() => pool.end());

const day = 24 * 60 * 60 * 1000;
let keys = 0;

/** A key of its own for each test: they share the database. */
function newKey(): string {
  return `order-${++keys}`;
}

function arrival(more: Partial<Arrival> = {}): Arrival {
  const eventId = more.eventId ?? randomUUID();
  return {
    consumer: 'email',
    effectKey: `email.${eventId}`,
    eventId,
    eventType: 'orders.order-placed',
    source: 'orders',
    topic: 'orders',
    key: 'unset',
    occurredAt: new Date(),
    path: 'event',
    turn: undefined,
    ...more,
  };
}

/** Events 1 … count of one key. */
function series(count: number, more: Partial<Arrival> = {}): Arrival[] {
  const key = newKey();
  return Array.from({ length: count }, (_, index) =>
    arrival({ key, turn: { generation: 1, number: index + 1 }, ...more }),
  );
}

async function transaction<Result>(work: (client: PoolClient) => Promise<Result>): Promise<Result> {
  const client = await pool.connect();
  try {
    await client.query('begin');
    const result = await work(client);
    await client.query('commit');
    return result;
  } catch (error) {
    await client.query('rollback');
    throw error;
  } finally {
    client.release();
  }
}

/** Applies with an effect that writes the event's id down. */
function applyOnce(what: Arrival, effect: Effect = { outcome: 'applied' }): Promise<Verdict> {
  return transaction((client) =>
    apply(client, what, async () => {
      await client.query('insert into effects (name) values ($1)', [what.eventId]);
      return effect;
    }),
  );
}

async function effectsOf(arrivals: readonly Arrival[]): Promise<string[]> {
  const { rows } = await pool.query<{ name: string }>(
    'select name from effects where name = any ($1) order by effects.id',
    [arrivals.map(({ eventId }) => eventId)],
  );
  return rows.map(({ name }) => name);
}

const ids = (arrivals: readonly Arrival[]): string[] => arrivals.map(({ eventId }) => eventId);
const lastNumber = async (key: string | null): Promise<number> =>
  Number(
    (await pool.query<{ n: string }>('select last_number::text as n from turnout.gate where key = $1', [key])).rows[0]
      ?.n ?? 0,
  );
const message = (of: Arrival) => ({
  topic: 'orders',
  partition: 0,
  offset: 5n,
  key: of.key,
  value: Buffer.from('{"a":1}'),
  headers: { ce_id: of.eventId },
});
const alarmsOf = async (effectKey: string): Promise<string[]> =>
  (
    await pool.query<{ kind: string }>(`select kind from turnout.alarm where detail ->> 'effectKey' = $1`, [effectKey])
  ).rows.map(({ kind }) => kind);

describe('one apply', () => {
  test('applies once and gives the stored answer to a repeat, over either path', async () => {
    const one = arrival();
    const answer = { status: 201, body: '{"b":1,"a":2}' };
    expect(await applyOnce(one, { outcome: 'applied', answer })).toEqual({
      kind: 'done',
      outcome: 'applied',
      answer,
      repeated: false,
    });
    expect(await applyOnce(one)).toEqual({ kind: 'done', outcome: 'applied', answer, repeated: true });
    expect(await applyOnce({ ...one, path: 'rpc', requestHash: 'x' })).toMatchObject({ repeated: true });
    expect(await effectsOf([one])).toHaveLength(1);
  });

  test('recognises an effect whose time a caller cut off', async () => {
    const one = arrival({ occurredAt: new Date('2026-11-20T10:00:00.123Z') });
    await ensureInboxPartition(poolDatabase(), one.occurredAt);
    await applyOnce(one);
    expect(await applyOnce({ ...one, occurredAt: new Date('2026-11-20T10:00:00.000Z') })).toMatchObject({
      repeated: true,
    });
  });

  test('refuses an effect key with another event or another body', async () => {
    const one = arrival({ path: 'rpc', requestHash: 'x' });
    await applyOnce(one);
    expect(await applyOnce({ ...one, eventId: randomUUID() })).toEqual({ kind: 'reused', what: 'event id' });
    expect(await applyOnce({ ...one, requestHash: 'y' })).toEqual({ kind: 'reused', what: 'request body' });
    expect(await effectsOf([one])).toHaveLength(1);
  });

  test('takes back what a refusing handler wrote, and consumes its number', async () => {
    const [one, two] = series(2) as [Arrival, Arrival];
    expect(await applyOnce(one, { outcome: 'rejected', answer: { status: 422 } })).toMatchObject({
      outcome: 'rejected',
    });
    expect(await effectsOf([one])).toEqual([]);
    expect(await applyOnce(one)).toEqual({
      kind: 'done',
      outcome: 'rejected',
      answer: { status: 422 },
      repeated: true,
    });
    expect(await applyOnce(two)).toMatchObject({ outcome: 'applied' });
    expect(await lastNumber(one.key)).toBe(2);
  });

  test('keeps nothing of a handler that fails, and tries again', async () => {
    const [one] = series(1) as [Arrival];
    const failing = transaction((client) =>
      apply(client, one, async () => {
        await client.query('insert into effects (name) values ($1)', [one.eventId]);
        throw new Error('mail server down');
      }),
    );
    await expect(failing).rejects.toThrow('mail server down');
    expect(await lastNumber(one.key)).toBe(0);
    await applyOnce(one);
    expect(await effectsOf([one])).toEqual(ids([one]));
  });

  test('keeps nothing of a handler that swallowed a failed statement', async () => {
    const one = arrival();
    const swallowing = transaction((client) =>
      apply(client, one, async () => {
        await client.query('select 1 / 0').catch(() => undefined);
        return { outcome: 'applied' };
      }),
    );
    await expect(swallowing).rejects.toThrow(/aborted/);
    expect(await applyOnce(one)).toMatchObject({ repeated: false });
  });

  test('skips what is older than the inbox, with one alarm', async () => {
    const old = arrival({ occurredAt: new Date(Date.now() - 31 * day) });
    expect(await applyOnce(old)).toMatchObject({ kind: 'done', outcome: 'skipped' });
    expect(await applyOnce(old)).toMatchObject({ outcome: 'skipped' });
    expect(await effectsOf([old])).toEqual([]);
    expect(await alarmsOf(old.effectKey)).toEqual(['skipped-old']);
  });
});

describe('key numbers', () => {
  test('hold back what is ahead until the missing one is there', async () => {
    const [one, two, three] = series(3) as [Arrival, Arrival, Arrival];
    await applyOnce(one);
    const verdict = await transaction(async (client) => {
      const early = await apply(client, three, () => Promise.reject(new Error('not its turn')));
      await hold(client, three, message(three), 'early');
      return early;
    });
    expect(verdict).toEqual({ kind: 'early', generation: 1, lastNumber: 1 });
    const place = { consumer: 'email', source: 'orders', topic: 'orders', key: three.key! };
    expect(await nextHeld(pool, place)).toBeUndefined();
    await applyOnce({ ...two, path: 'rpc' });
    const next = await nextHeld(pool, place);
    expect(next).toEqual({
      id: expect.any(BigInt),
      effectKey: three.effectKey,
      reason: 'early',
      source: 'orders',
      key: three.key,
      turn: three.turn,
      message: message(three),
      error: undefined,
      attempts: 0,
    });
    expect(await heldThatCanGoOn(pool, 'email', { after: 0n, limit: 10 })).toContainEqual(next);
    await applyOnce(three);
    expect(await effectsOf([one, two, three])).toEqual(ids([one, two, three]));
    expect((await pool.query('select from turnout.held where effect_key = $1', [three.effectKey])).rowCount).toBe(0);
  });

  test('a parked event leaves when the call applied it, and its successor follows', async () => {
    const [one, two] = series(2) as [Arrival, Arrival];
    await transaction(async (client) => {
      await hold(client, one, message(one), 'parked', { error: 'no\0pe', attempts: 5 });
      await hold(client, two, { ...message(two), value: Buffer.from([0, 255]) }, 'behind');
    });
    const place = { consumer: 'email', source: 'orders', topic: 'orders', key: one.key! };
    expect(await nextHeld(pool, place)).toBeUndefined();
    await applyOnce({ ...one, path: 'rpc' });
    expect(await nextHeld(pool, place)).toMatchObject({
      effectKey: two.effectKey,
      message: { value: Buffer.from([0, 255]), offset: 5n },
    });
  });

  test('an unknown effect at or below the last number halts its key and no other', async () => {
    const [one, two] = series(2) as [Arrival, Arrival];
    await applyOnce(one);
    const stranger = arrival({ key: one.key, turn: { generation: 1, number: 1 } });
    expect(await applyOnce(stranger)).toMatchObject({ kind: 'halted' });
    expect(await alarmsOf(stranger.effectKey)).toEqual(['unknown-repeat']);
    expect(await applyOnce(two)).toMatchObject({ kind: 'halted' });
    expect(await applyOnce(one)).toMatchObject({ repeated: true });
    const [other] = series(1) as [Arrival];
    expect(await applyOnce(other)).toMatchObject({ outcome: 'applied' });
    // An operator looks, and lets the key go on.
    await pool.query(`select turnout.resume_key('email', 'orders', 'orders', $1, 'looked at it')`, [one.key]);
    expect(await applyOnce(stranger)).toMatchObject({ outcome: 'skipped', repeated: true });
    expect(await applyOnce(two)).toMatchObject({ outcome: 'applied' });
    expect(await effectsOf([one, two, stranger])).toEqual(ids([one, two]));
  });

  test('an unknown effect below the last number, older than the inbox, is a duplicate', async () => {
    const [one] = series(1) as [Arrival];
    await applyOnce(one);
    const old = arrival({
      key: one.key,
      turn: { generation: 1, number: 1 },
      occurredAt: new Date(Date.now() - 31 * day),
    });
    expect(await applyOnce(old)).toMatchObject({ kind: 'done', repeated: true });
    expect(await effectsOf([old])).toEqual([]);
  });

  test('a higher generation starts again at 1', async () => {
    const [one, two] = series(2) as [Arrival, Arrival];
    await applyOnce(one);
    await applyOnce(two);
    const anew = arrival({ key: one.key, turn: { generation: 2, number: 1 } });
    expect(await applyOnce({ ...anew, turn: { generation: 2, number: 2 } })).toMatchObject({
      kind: 'early',
      generation: 2,
      lastNumber: 0,
    });
    expect(await applyOnce(anew)).toMatchObject({ outcome: 'applied' });
    expect(await applyOnce(arrival({ key: one.key, turn: { generation: 1, number: 3 } }))).toMatchObject({
      kind: 'halted',
    });
  });

  test('the gate itself refuses any step but the next', async () => {
    const [one] = series(1) as [Arrival];
    await applyOnce(one);
    const forged = pool.query(
      `select turnout.record_outcome('email', 'email.x', clock_timestamp(), $1, 't', 'orders', 'orders', $2, 1, 3, 'rpc', 'applied', null, null, null, 1)`,
      [randomUUID(), one.key],
    );
    await expect(forged).rejects.toThrow(/not the next/);
  });
});

describe('two connections', () => {
  /** Begins to apply and stops inside the effect, until told how to end. */
  async function begin(what: Arrival): Promise<{ commit(): Promise<Verdict>; fail(): Promise<void> }> {
    let end: (how: Effect | Error) => void = () => undefined;
    const ending = new Promise<Effect | Error>((resolve) => (end = resolve));
    let inside: () => void = () => undefined;
    const entered = new Promise<void>((resolve) => (inside = resolve));
    const running = transaction((client) =>
      apply(client, what, async () => {
        await client.query('insert into effects (name) values ($1)', [what.eventId]);
        inside();
        const how = await ending;
        if (how instanceof Error) throw how;
        return how;
      }),
    );
    await Promise.race([entered, running]);
    return {
      commit: () => (end({ outcome: 'applied' }), running),
      fail: () => (
        end(new Error('failed')),
        running.then(
          () => undefined,
          () => undefined,
        )
      ),
    };
  }
  const waitUntilBlocked = () =>
    waitFor(
      async () => (await pool.query(`select from pg_locks where locktype = 'advisory' and not granted`)).rowCount,
      { what: 'a waiting lock' },
    );

  test('the same effect by both paths: the event waits for the call, and is a repeat', async () => {
    for (const one of [arrival(), ...series(1)]) {
      const call = await begin({ ...one, path: 'rpc' });
      const event = applyOnce(one);
      await waitUntilBlocked();
      await call.commit();
      expect(await event).toMatchObject({ repeated: true });
      expect(await effectsOf([one])).toHaveLength(1);
    }
  });

  test('the same effect by both paths: a failed call leaves it to the event', async () => {
    const one = arrival();
    const call = await begin({ ...one, path: 'rpc' });
    const event = applyOnce(one);
    await waitUntilBlocked();
    await call.fail();
    expect(await event).toMatchObject({ repeated: false });
    expect(await effectsOf([one])).toHaveLength(1);
  });

  test('the same effect by both paths: the call is told that it is running', async () => {
    for (const one of [arrival(), ...series(1)]) {
      const event = await begin(one);
      expect(await applyOnce({ ...one, path: 'rpc' })).toEqual({ kind: 'running' });
      await event.commit();
      expect(await applyOnce({ ...one, path: 'rpc' })).toMatchObject({ repeated: true });
    }
  });

  test('the next number waits for the one before it, and is applied after it', async () => {
    const [one, two] = series(2) as [Arrival, Arrival];
    const first = await begin({ ...one, path: 'rpc' });
    const second = applyOnce(two);
    await waitUntilBlocked();
    await first.commit();
    expect(await second).toMatchObject({ outcome: 'applied' });
    expect(await effectsOf([one, two])).toEqual(ids([one, two]));
  });

  test('many arrivals of a few keys over both paths at once: each once and in order', async () => {
    const all = Array.from({ length: 4 }, () => series(8));
    const place = (key: string) => ({ consumer: 'email', source: 'orders', topic: 'orders', key });
    const byKey = new Map(all.flat().map((each) => [each.effectKey, each]));
    const drain = async (key: string): Promise<void> => {
      for (let next = await nextHeld(pool, place(key)); next !== undefined; next = await nextHeld(pool, place(key))) {
        await applyOnce(byKey.get(next.effectKey)!);
      }
    };
    const arrive = async (what: Arrival): Promise<void> => {
      const verdict = await transaction(async (client) => {
        const got = await apply(client, what, async () => {
          await client.query('insert into effects (name) values ($1)', [what.eventId]);
          return { outcome: 'applied' };
        });
        if (got.kind === 'early' && what.path === 'event') await hold(client, what, message(what), 'early');
        return got;
      });
      if (verdict.kind === 'done') await drain(what.key!);
    };
    const shuffled = all
      .flat()
      .flatMap((each) => [each, { ...each, path: 'rpc' as const }])
      .map((each) => ({ each, place: Math.random() }))
      .toSorted((a, b) => a.place - b.place)
      .map(({ each }) => each);
    const queues = Array.from({ length: 8 }, (_, index) => shuffled.filter((__, at) => at % 8 === index));
    await Promise.all(
      queues.map(async (queue) => {
        for (const each of queue) await arrive(each);
      }),
    );
    for (const key of all) expect(await effectsOf(key)).toEqual(ids(key));
  });
});

describe('detached', () => {
  test('an intent goes before the effect, its outcome after', async () => {
    const [one, two] = series(2) as [Arrival, Arrival];
    expect(await transaction((client) => intend(client, one))).toEqual({ kind: 'go', attempt: 1, uncertain: false });
    expect(await transaction((client) => intend(client, one))).toEqual({ kind: 'running' });
    expect(await transaction((client) => intend(client, two))).toMatchObject({ kind: 'early', lastNumber: 0 });
    expect(await transaction((client) => settle(client, one, { outcome: 'applied', answer: 7 }, 1))).toMatchObject({
      repeated: false,
    });
    expect(await transaction((client) => intend(client, one))).toEqual({
      kind: 'done',
      outcome: 'applied',
      answer: 7,
      repeated: true,
    });
    expect(await transaction((client) => intend(client, two))).toEqual({ kind: 'go', attempt: 1, uncertain: false });
  });

  test('an intent that was left is taken up again, and counted', async () => {
    const one = arrival();
    await transaction((client) => intend(client, one));
    expect(await transaction((client) => intend(client, one, { leaseMs: -1 }))).toEqual({
      kind: 'go',
      attempt: 2,
      uncertain: true,
    });
    await transaction((client) => settle(client, one, { outcome: 'applied' }, 2));
    expect(await transaction((client) => settle(client, one, { outcome: 'dead' }, 1))).toMatchObject({
      outcome: 'applied',
      repeated: true,
    });
  });
});

function poolDatabase(): Parameters<typeof ensureInboxPartition<unknown>>[0] {
  return { query: (text: string, values?: unknown[]) => pool.query(text, values) } as never;
}

test('partitions of the inbox are made for the time of an event, once', async () => {
  const at = new Date('2031-05-04T12:00:00Z');
  const target = poolDatabase();
  await Promise.all([ensureInboxPartition(target, at), ensureInboxPartition(target, at)]);
  expect((await pool.query(`select to_regclass('turnout.inbox_20310428') as there`)).rows[0]).toEqual({
    there: 'turnout.inbox_20310428',
  });
});

test('outcomes leave by the partition, and an event of a dropped week can still be applied', async () => {
  const old = new Date(Date.now() - 60 * day);
  const held = new Date(Date.now() - 90 * day);
  const db = { query: (text: string, values?: unknown[]) => pool.query(text, values) } as never;
  const weeksOf = async (): Promise<string[]> => {
    const { rows } = await pool.query<{ name: string }>(
      `select c.relname as name from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'turnout.inbox'::regclass order by 1`,
    );
    return rows.map(({ name }) => name);
  };
  const before = await weeksOf();
  await ensureInboxPartition(db, old);
  await ensureInboxPartition(db, held);
  await pool.query(
    `insert into turnout.inbox (consumer, effect_key, occurred_at, event_id, event_type, source, path, outcome)
     values ('keeper', 'keeper.running', $1, gen_random_uuid(), 'x', 's', 'event', 'running'),
            ('keeper', 'keeper.applied', $2, gen_random_uuid(), 'x', 's', 'event', 'applied')`,
    [held.toISOString(), old.toISOString()],
  );
  expect(await weeksOf()).toHaveLength(before.length + 2);

  const drop = async (than: string): Promise<number> =>
    (await pool.query<{ n: number }>('select turnout.drop_inbox_partitions($1::interval) as n', [than])).rows[0]!.n;
  await transaction(async (client) => {
    const { rows } = await client.query<{ n: number }>(`select turnout.drop_inbox_partitions('80 days') as n`);
    expect(rows).toEqual([{ n: 0 }]); // the one with an intent stays
    // And nobody had to wait for that.
    const locks = await client.query(
      `select from pg_locks where pid = pg_backend_pid() and mode = 'AccessExclusiveLock' and relation is not null`,
    );
    expect(locks.rowCount).toBe(0);
  });
  const another = new Date(old.getTime() - 7 * day);
  await ensureInboxPartition(db, another);
  expect(await drop('30 days')).toBe(1);
  expect(await drop('30 days')).toBe(1);
  expect(await drop('30 days')).toBe(0);
  expect(await weeksOf()).toHaveLength(before.length + 1);
  await expect(drop('0 days')).rejects.toThrow('a day at least');

  await ensureInboxPartition(db, old);
  expect(await weeksOf()).toHaveLength(before.length + 2);
});
