// Which events `turnout.redrive` takes, by what the ticks of the relay say; and whom it keeps waiting.
import { describe, expect, test } from 'vitest';
import { createRelay, rebaseRelay } from '../../src/relay/index.ts';
import { silentLogger } from '../../src/lifecycle/index.ts';
import { redrive, setStage, stepBack } from '../../src/switchover/index.ts';
import { inMemoryBroker } from '../../src/testing/index.ts';
import { waitFor } from '../support/wait-for.ts';
import { emailSwitchover, OrderPlaced, producer } from './fixtures/switchover-world.ts';

async function world() {
  const from = await producer();
  const email = emailSwitchover(() => 'http://127.0.0.1:1');
  await from.register(email);
  await from.pool.query('update turnout.topic set partitions = 1');
  await setStage(from.database, 'orders', email.name, 'event', { reason: 'test', force: true });
  const broker = inMemoryBroker();
  await broker.topics().create([{ name: 'orders', partitions: 1 }]);
  let published = 0;
  return {
    ...from,
    email,
    async publish(...keys: string[]) {
      published += keys.length;
      for (const key of keys)
        await from.pool.query(
          `select turnout.publish('orders', $1, 1, $2, '{"orderId": "x", "step": 1}', switchovers => '{order-email}')`,
          [OrderPlaced.name, key],
        );
    },
    /** A relay publishes all there is, and stops: its last tick says so. */
    async relay() {
      const relay = createRelay({ database: from.database, publisher: broker.publisher(), logger: silentLogger });
      await relay.start();
      await waitFor(async () => {
        const [bounds] = await broker.source().bounds('orders');
        return Number(bounds!.high) === published;
      });
      await relay.stop();
    },
    /** The keys that are owed, after it was asked from here. */
    async taken(generation: number, sequence: number) {
      await from.pool.query('delete from turnout.rpc_delivery');
      await redrive(from.database, 'orders', email.name, {
        consumed: [{ topic: 'orders', partition: 0, source: 'orders', generation, sequence: String(sequence) }],
      });
      const { rows } = await from.pool.query<{ key: string }>('select key from turnout.rpc_delivery order by seq');
      return rows.map(({ key }) => key).join(' ');
    },
  };
}

describe('what the consumer may not have had', () => {
  test('reaches back before a rebase, whatever the ticks after it have counted', async () => {
    const w = await world();
    for (const pair of [
      ['a1', 'a2'],
      ['a3', 'a4'],
      ['a5', 'a6'],
    ]) {
      await w.publish(...pair);
      await w.relay();
    }
    expect(await w.taken(1, 3)).toBe('a3 a4 a5 a6');
    await rebaseRelay(w.database, 'restored');
    await w.publish('b1', 'b2');
    await w.relay();
    await w.publish('b3');
    await w.relay();
    expect(await w.taken(1, 3)).toBe('a3 a4 a5 a6 b1 b2 b3');
    expect(await w.taken(1, 6)).toMatch(/b1 b2 b3$/);
    expect(await w.taken(2, 2)).toMatch(/b3$/);
    expect(await w.taken(2, 2)).not.toMatch(/a[1-4]/);
    // One that has read nothing yet.
    expect(await w.taken(1, 0)).toBe('a1 a2 a3 a4 a5 a6 b1 b2 b3');
  });

  test('is everything after a copy into another cluster, whose transaction numbers mean nothing here', async () => {
    const w = await world();
    await w.publish('a1', 'a2');
    await w.relay();
    await w.publish('a3');
    await w.relay();
    await w.pool.query(`insert into turnout.relay_tick (shard, tick, lo, hi, numbers, relay)
      select 0, max(tick) + 1, '1:1:', '1:1:', '{}', 'rebase' from turnout.relay_tick`);
    expect(await w.taken(1, 2)).toBe('a1 a2 a3');
  });

  test('counts a partition of which nothing was read, however far the others are', async () => {
    const w = await world();
    await w.publish('a1', 'a2');
    await w.pool.query(`update turnout.topic set partitions = 2`);
    await w.pool.query(`insert into turnout.relay_tick (shard, tick, lo, hi, numbers, relay) values
      (0, 1, '1:1:', pg_current_snapshot(), '{}', 'x'),
      (0, 2, pg_current_snapshot(), pg_current_snapshot(), '{"orders/2": {"orders": [2]}}', 'x')`);
    // Of generation 1 of the other one nobody can tell any more.
    expect(await w.taken(2, 9)).toBe('a1 a2');
  });
});

test('nobody waits for a redrive: a guardrail steps back while it is at work', async () => {
  const w = await world();
  await w.publish('a1');
  const redriving = await w.pool.connect();
  await redriving.query('begin');
  await redriving.query(`select turnout.redrive('orders', 'order-email')`);
  await stepBack(w.database, 'orders', w.email.name, 'rpc', { reason: 'errors' });
  // But not `done`: what it owes would be owed for ever.
  await setStage(w.database, 'orders', w.email.name, 'event', { reason: 'test', force: true });
  await expect(
    setStage(w.database, 'orders', w.email.name, 'done', { reason: 'test', force: true }),
  ).rejects.toMatchObject({ code: 'TURNOUT_CALLS_OPEN' });
  await redriving.query('rollback');
  redriving.release();
});

test('what the consumer has had is found in many ticks without reading them all', async () => {
  const w = await world();
  await w.pool.query(`insert into turnout.relay_tick (shard, tick, lo, hi, numbers, relay)
    select 0, g, (g || ':' || g || ':')::pg_snapshot, '1:1:', jsonb_build_object('orders/1', jsonb_build_object('orders', json_build_array(g))), 'x'
    from generate_series(1, 3000) g`);
  await w.pool.query('vacuum analyze turnout.relay_tick');
  const { rows } = await w.pool.query<{ done: string }>(
    `select turnout.consumed_snapshot('orders', 'orders', $1)::text as done from generate_series(0, 3001, 250) n`,
    [JSON.stringify([{ topic: 'orders', partition: 0, source: 'orders', generation: 1, sequence: '1234' }])],
  );
  expect(new Set(rows.map(({ done }) => done))).toEqual(new Set(['1234:1234:']));
});
