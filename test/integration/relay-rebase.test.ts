import { describe, expect, onTestFinished, test } from 'vitest';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { migrate } from '../../src/database/index.ts';
import { silentLogger } from '../../src/lifecycle/index.ts';
import { createRelay, rebaseRelay } from '../../src/relay/index.ts';
import { inMemoryBroker } from '../../src/testing/index.ts';
import { waitFor } from '../support/index.ts';
import { producerTemplate } from '../support/producer.ts';
import { database } from '../support/vitest.ts';

async function producer() {
  const pool = (await database({ template: producerTemplate })).pool();
  await pool.query(`select turnout.register_events('orders', '[{"name": "orders", "partitions": 2}]',
    '[{"name": "orders.placed", "version": 1, "topic": "orders", "aggregate": "orders", "ordering": "key"}]')`);
  const broker = inMemoryBroker();
  await broker.topics().create([{ name: 'orders', partitions: 2 }]);
  function relayOf() {
    const relay = createRelay({ database: pgDatabase(pool), publisher: broker.publisher(), logger: silentLogger });
    onTestFinished(() => relay.stop());
    return relay;
  }
  return {
    pool,
    publish: (count: number) =>
      pool.query(
        `select turnout.publish('orders', 'orders.placed', 1, 'k' || n % 3, json_build_object('n', n)) from generate_series(1, $1::integer) n`,
        [count],
      ),
    relay: relayOf,
    /** Relays until `count` more events are there. */
    published: async (count: number) => {
      const relay = relayOf();
      await relay.start();
      await waitFor(() => relay.counts().published >= count);
      await relay.stop();
    },
    halted: () => expect(relayOf().start()).rejects.toMatchObject({ code: 'TURNOUT_DATABASE_REWOUND' }),
    /** Events that the topic has in a generation, as `turnout-seq`, each partition in its order. */
    inGeneration: (generation: number) =>
      broker
        .messages('orders')
        .filter(({ headers }) => Number(headers['ce_sequence']?.slice(0, 6)) === generation)
        .map(({ partition, headers }) => ({
          partition,
          id: headers['ce_id'],
          seq: Number(headers['turnout-seq']),
          number: Number(headers['ce_sequence']?.slice(7)),
        })),
  };
}

describe('a rebase', () => {
  test('lets a database that was put back go on, in a new generation', async () => {
    const { pool, publish, published, halted, inGeneration } = await producer();
    await publish(10);
    await published(10);
    await pool.query('truncate turnout.relay_tick, turnout.outbox');
    await halted();
    expect(await rebaseRelay(pgDatabase(pool), 'a test')).toEqual([{ source: 'orders', generation: 2, copied: false }]);
    await publish(4);
    await published(4);
    expect(inGeneration(2)).toHaveLength(4);
    const { rows } = await pool.query('select r.reason, r.copied, r.actor from turnout.rebase r');
    expect(rows).toEqual([{ reason: 'a test', copied: false, actor: 'postgres' }]);
  });

  test('lets a database that was copied from a cluster with more transactions go on, and nothing is lost', async () => {
    const { pool, publish, published, halted, inGeneration } = await producer();
    await publish(10);
    await published(10);
    await publish(5);
    // What the copy looks like from here: its transaction numbers are far ahead.
    const ahead = '900000000';
    await pool.query(`update turnout.outbox o set xid = ((o.xid::text::bigint + ${ahead})::text)::xid8`);
    await pool.query(`update turnout.relay_tick t set lo = n.s, hi = n.s from (
      select m.tick, format('%1$s:%1$s:', pg_snapshot_xmax(m.hi)::text::bigint + ${ahead})::pg_snapshot as s from turnout.relay_tick m) n
      where n.tick = t.tick`);
    await publish(7);
    await halted();
    expect(await rebaseRelay(pgDatabase(pool), 'moved')).toEqual([{ source: 'orders', generation: 2, copied: true }]);
    await published(22);
    await publish(3);
    await published(3);
    const events = inGeneration(2);
    expect(new Set(events.map(({ id }) => id)).size).toBe(25);
    for (const partition of [0, 1]) {
      const there = events.filter((each) => each.partition === partition);
      expect(there.map(({ number }) => number)).toEqual(there.map((_, index) => index + 1));
      expect(there.map(({ seq }) => seq)).toEqual(there.map(({ seq }) => seq).toSorted((a, b) => a - b));
    }
  });

  test('is for operators', async () => {
    const { pool } = await producer();
    await migrate(pgDatabase(pool), ['roles']);
    const { rows } = await pool.query(
      `select r.role from unnest(array['turnout_relay', 'turnout_operator', 'turnout_publisher']) as r (role)
        where has_function_privilege(r.role, 'turnout.rebase_relay(text)', 'execute')`,
    );
    expect(rows).toEqual([{ role: 'turnout_operator' }]);
  });

  test('is refused while a relay leads, and without a reason', async () => {
    const { pool, relay } = await producer();
    const leader = relay();
    await leader.start();
    await expect(rebaseRelay(pgDatabase(pool), 'why')).rejects.toMatchObject({ code: 'TURNOUT_RELAY_LEADING' });
    await leader.stop();
    await expect(rebaseRelay(pgDatabase(pool), ' ')).rejects.toMatchObject({ code: 'TURNOUT_REASON_MISSING' });
  });
});
