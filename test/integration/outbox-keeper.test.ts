import type { Pool } from 'pg';
import { afterEach, describe, expect, test } from 'vitest';
import { pgDatabase } from '../../adapters/pg/index.ts';
import type { Database } from '../../src/database/index.ts';
import type { Service } from '../../src/lifecycle/index.ts';
import { createRelay, outboxKeeper, type OutboxKeeperOptions } from '../../src/relay/index.ts';
import { inMemoryBroker } from '../../src/testing/index.ts';
import { waitFor } from '../support/index.ts';
import { producerTemplate } from '../support/producer.ts';
import { hammer } from '../support/service-stress.ts';
import { database } from '../support/vitest.ts';

const first = 'outbox_00000000';

const running: Service[] = [];
afterEach(async () => {
  await Promise.all(running.splice(0).map((each) => each.stop()));
});

/** A producer whose first partition holds ten published events and is closed: the sequence stands in the second one. */
async function producer(options: { published?: boolean } = {}) {
  const pool = (await database({ template: producerTemplate })).pool();
  await pool.query(`select turnout.register_events('orders', '[{"name": "orders", "partitions": 1}]',
    '[{"name": "orders.placed", "version": 1, "topic": "orders", "aggregate": "orders", "ordering": "key"}]')`);
  const broker = inMemoryBroker();
  await broker.topics().create([{ name: 'orders', partitions: 1 }]);
  const publish = (on: Pick<Pool, 'query'> = pool, count = 1): Promise<unknown> =>
    on.query(`select turnout.publish('orders', 'orders.placed', 1, 'k', '{}') from generate_series(1, $1::integer)`, [
      count,
    ]);
  await publish(pool, 10);
  const relay = createRelay({ database: pgDatabase(pool), publisher: broker.publisher() });
  if (options.published !== false) {
    await relay.start();
    await waitFor(() => relay.counts().published === 10);
    await relay.stop();
  }
  running.push(relay);
  await pool.query(`select setval('turnout.outbox_seq_seq', 1500000)`);
  return {
    pool,
    broker,
    relay,
    publish,
    kept: async (): Promise<number> =>
      (await pool.query<{ n: number }>('select count(*)::integer as n from turnout.outbox')).rows[0]!.n,
    rows: async (partition: string): Promise<number> =>
      (await pool.query<{ n: number }>(`select count(*)::integer as n from turnout.${partition}`)).rows[0]!.n,
    empty: async (retention = '0'): Promise<string> =>
      (
        await pool.query<{ outcome: string }>('select turnout.empty_outbox_partition($1, $2::interval) as outcome', [
          first,
          retention,
        ])
      ).rows[0]!.outcome,
  };
}

async function owe(pool: Pool, seq: number): Promise<void> {
  await pool.query(`select turnout.register_switchover('orders', 'mail', 'mailer', '{orders.placed}', 'none', 'test')`);
  await pool.query(
    `insert into turnout.rpc_delivery (effect_key, source, switchover, stripe, consumer, event_id, seq, xid, topic, epoch)
     values ('mailer.1', 'orders', 'mail', 0, 'mailer', gen_random_uuid(), $1, pg_current_xact_id(), 'orders', 1)`,
    [seq],
  );
}

function keeperOf(on: Pool | Database, more: Omit<OutboxKeeperOptions, 'database'> = {}) {
  const log: string[] = [];
  const note = (message: string): void => void log.push(message);
  const keeper = outboxKeeper({
    database: 'transaction' in on ? on : pgDatabase(on),
    everyMs: 20,
    logger: { info: note, warn: note, error: note },
    ...more,
  });
  running.push(keeper);
  return { keeper, log };
}

describe('a closed partition', () => {
  test('is emptied once it is older than retention and published', async () => {
    const { pool, kept } = await producer();
    const { keeper, log } = keeperOf(pool, { retentionMs: 0 });
    await keeper.start();
    await waitFor(async () => (await kept()) === 0);
    await waitFor(() => log.includes('A partition of the outbox was emptied.'));
  });

  test('is left alone while it is young', async () => {
    const { empty, rows } = await producer();
    expect(await empty('1 hour')).toBe('young');
    expect(await rows(first)).toBe(10);
  });

  test('is left alone while one of its events is not published', async () => {
    const { pool, kept, relay } = await producer({ published: false });
    const { keeper, log } = keeperOf(pool, { retentionMs: 0 });
    await keeper.start();
    await waitFor(() => log.some((line) => line.includes('not published')));
    expect(await kept()).toBe(10);
    await relay.start();
    await waitFor(async () => (await kept()) === 0);
    expect(relay.counts().published).toBe(10);
  });

  test('is left alone while its tick may still be replayed', async () => {
    const { pool, empty } = await producer();
    // As after a crash: the last tick was not closed.
    await pool.query('delete from turnout.relay_tick where tick > 1');
    expect(await empty()).toBe('unpublished');
  });

  test('is left alone while a call is owed for one of its events', async () => {
    const { pool, empty, rows } = await producer();
    await owe(pool, 3);
    expect(await empty()).toBe('owed');
    expect(await rows(first)).toBe(10);
    await pool.query('delete from turnout.rpc_delivery');
    expect(await empty()).toBe('emptied');
  });

  test('is not locked to find out that it stays', async () => {
    const { pool, publish, empty } = await producer();
    await pool.query(`select setval('turnout.outbox_seq_seq', 20)`);
    const busy = await pool.connect();
    await busy.query('begin');
    await publish(busy);
    await pool.query(`select setval('turnout.outbox_seq_seq', 1500000)`);
    expect(await empty('1 hour')).toBe('young');
    await owe(pool, 3);
    expect(await empty()).toBe('owed');
    await pool.query('delete from turnout.relay_tick');
    expect(await empty()).toBe('unpublished');
    await busy.query('rollback');
    busy.release();
  });

  test('is looked at again under the lock', async () => {
    const { pool, publish, empty, rows } = await producer();
    const commitWhileItWaits = async (): Promise<string> => {
      await pool.query(`select setval('turnout.outbox_seq_seq', 20)`);
      const late = await pool.connect();
      await late.query('begin');
      await publish(late);
      await pool.query(`select setval('turnout.outbox_seq_seq', 1500000)`);
      let ended = false;
      const outcome = empty().finally(() => (ended = true));
      await waitFor(async () => {
        const { rowCount } = await late.query(
          `select from pg_locks where relation = $1::regclass and mode = 'AccessExclusiveLock' and not granted`,
          [`turnout.${first}`],
        );
        return rowCount === 1 || ended;
      });
      await late.query('commit');
      late.release();
      return outcome;
    };
    // It waits for a tenth of a second, in which a slow machine may not get to the commit.
    let outcome = await commitWhileItWaits();
    for (let attempt = 1; outcome === 'busy' && attempt < 10; attempt++) {
      await pool.query(`delete from turnout.${first} where seq > 10`);
      outcome = await commitWhileItWaits();
    }
    expect(outcome).toBe('unpublished');
    expect(await rows(first)).toBe(11);
  });

  test('is not emptied in a transaction that can not see what came last', async () => {
    const { pool } = await producer();
    const client = await pool.connect();
    for (const statement of [
      `select turnout.empty_outbox_partition('${first}', '0')`,
      'select turnout.drop_empty_outbox_partitions()',
    ]) {
      await client.query('begin isolation level repeatable read');
      await expect(client.query(statement)).rejects.toThrow(/read committed/);
      await client.query('rollback');
    }
    client.release();
  });

  test('loses no event of a transaction that has drawn its number there and commits late', async () => {
    const { pool, publish, broker, relay, empty } = await producer();
    await pool.query(`select setval('turnout.outbox_seq_seq', 20)`);
    const late = await pool.connect();
    await late.query('begin');
    await publish(late);
    await pool.query(`select setval('turnout.outbox_seq_seq', 1500000)`);
    expect(await empty()).toBe('busy');
    await late.query('commit');
    late.release();
    expect(await empty()).toBe('unpublished');
    await relay.start();
    await waitFor(() => broker.messages('orders').length === 11);
    await waitFor(async () => (await empty()) === 'emptied');
  });

  test('that is empty is dropped, and publishing goes on', async () => {
    const { pool, empty, publish, rows } = await producer();
    expect(await empty()).toBe('emptied');
    expect(await empty()).toBe('empty');
    expect((await pool.query('select turnout.drop_empty_outbox_partitions() as n')).rows).toEqual([{ n: 1 }]);
    await expect(rows(first)).rejects.toThrow(/does not exist/);
    await publish();
    expect(await rows('outbox_00000001')).toBe(1);
  });

  test('is not dropped while somebody publishes, who does not wait for it', async () => {
    const { pool, empty, publish } = await producer();
    await empty();
    const busy = await pool.connect();
    await busy.query('begin');
    await publish(busy);
    expect((await pool.query('select turnout.drop_empty_outbox_partitions() as n')).rows).toEqual([{ n: 0 }]);
    await busy.query('commit');
    busy.release();
  });
});

describe('the keeper', () => {
  test('makes partitions ahead of the sequence', async () => {
    const { pool } = await producer();
    const upper = async (): Promise<number> =>
      (
        await pool.query<{ n: number }>(
          `select count(*)::integer as n from pg_inherits where inhparent = 'turnout.outbox'::regclass`,
        )
      ).rows[0]!.n;
    const before = await upper();
    await pool.query(`select setval('turnout.outbox_seq_seq', 4500000)`);
    const { keeper } = keeperOf(pool);
    await keeper.start();
    expect(await upper()).toBe(before + 4);
  });

  test('keeps the stamps of a partition that stays, and deletes those of one that does not', async () => {
    const { pool, relay } = await producer();
    await pool.query(
      `select turnout.register_switchover('orders', 'mail', 'mailer', '{orders.placed}', 'key', 'test')`,
    );
    const stamp = async (key: string, lastSeq: number): Promise<void> => {
      await pool.query(`select setval('turnout.outbox_seq_seq', $1)`, [lastSeq]);
      await pool.query(
        `select turnout.publish('orders', 'orders.placed', 1, $1, '{}', switchovers => '{mail}') from generate_series(1, 3)`,
        [key],
      );
    };
    await stamp('a', 20);
    await stamp('b', 1_500_000);
    await stamp('c', 2_500_000);
    await pool.query(`delete from turnout.rpc_delivery where key = 'b' or number > 1`);
    await relay.start();
    await waitFor(() => relay.counts().published === 19);
    await relay.stop();

    const { keeper, log } = keeperOf(pool, { retentionMs: 0 });
    await keeper.start();
    const keys = async (): Promise<string[]> =>
      (await pool.query<{ key: string }>('select distinct s.key from turnout.stamp s order by s.key')).rows.map(
        (row) => row.key,
      );
    await waitFor(async () => !(await keys()).includes('b'));
    expect(log.some((line) => line.includes('still owed'))).toBe(true);
    expect(await keys()).toEqual(['a', 'c']);
    const { rows } = await pool.query(
      `select m.number::integer from turnout.missing_events('mailer', 'orders', 'orders', 'a', 1, 0, 3, 10) m order by m.number`,
    );
    expect(rows).toEqual([{ number: 1 }, { number: 2 }]);
  });

  test('empties a partition again that it has seen empty', async () => {
    const { pool, relay, publish, kept } = await producer();
    const { keeper, log } = keeperOf(pool, { retentionMs: 0 });
    const emptied = (): number => log.filter((line) => line.includes('emptied')).length;
    // So that it can't be dropped.
    const reader = await pool.connect();
    await reader.query('begin');
    await reader.query('lock table only turnout.outbox in access share mode');
    await keeper.start();
    await waitFor(() => emptied() === 1);
    await pool.query(`select setval('turnout.outbox_seq_seq', 20)`);
    await publish();
    await pool.query(`select setval('turnout.outbox_seq_seq', 1500000)`);
    await relay.start();
    await waitFor(async () => (await kept()) === 0);
    await waitFor(() => emptied() === 2);
    await reader.query('rollback');
    reader.release();
  });

  test('waits for a lock once in a round', async () => {
    const { pool, relay, publish } = await producer();
    await publish();
    await relay.start();
    await waitFor(() => relay.counts().published === 11);
    await relay.stop();
    await pool.query(`select setval('turnout.outbox_seq_seq', 2500000)`);
    const reader = await pool.connect();
    await reader.query('begin');
    await reader.query('select count(*) from turnout.outbox');

    const statements: string[] = [];
    const own = pgDatabase(pool);
    const recorded: Database = {
      ...own,
      query: (text, values) => {
        statements.push(text);
        return own.query(text, values);
      },
    };
    const { keeper } = keeperOf(recorded, { retentionMs: 0, everyMs: 60_000 });
    await keeper.start();
    await waitFor(() => statements.some((text) => text.includes('delete_old_ticks')));
    expect(statements.filter((text) => text.includes('empty_outbox_partition'))).toHaveLength(1);
    await reader.query('rollback');
    reader.release();
  });

  test('deletes old ticks, and the relay goes on counting', async () => {
    const { pool, relay, publish, broker } = await producer();
    await pool.query(`
      insert into turnout.relay_tick (shard, tick, lo, hi, numbers, relay, at)
        select 0, t.tick + n, t.hi, t.hi, t.numbers, 'test', now() - interval '2 days'
        from (select * from turnout.relay_tick order by tick desc limit 1) t, generate_series(1, 3000) n`);
    const { keeper } = keeperOf(pool);
    await keeper.start();
    const count = async (): Promise<number> =>
      (
        await pool.query<{ n: number }>(
          "select count(*)::integer as n from turnout.relay_tick where at < now() - interval '1 day'",
        )
      ).rows[0]!.n;
    await waitFor(async () => (await count()) <= 1_001);
    await relay.start();
    await publish();
    await waitFor(() => broker.messages('orders').length === 11);
    expect(broker.messages('orders').at(-1)?.headers['ce_sequence']).toMatch(/-0*11$/);
  });

  test('waits for a database that fails, with a log line', async () => {
    const { pool } = await producer();
    const { keeper, log } = keeperOf(pool);
    await keeper.start();
    await pool.query('alter schema turnout rename to away');
    await waitFor(() => log.some((line) => line.includes('could not be kept')));
    await pool.query('alter schema away rename to turnout');
  });

  test('may be started and stopped at any time', async () => {
    const { pool } = await producer();
    await hammer(keeperOf(pool).keeper, { rounds: 5 });
  });
});
