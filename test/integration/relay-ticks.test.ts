import type { Pool } from 'pg';
import { describe, expect, onTestFinished, test } from 'vitest';
import { pgDatabase } from '../../adapters/pg/index.ts';
import type { Session } from '../../src/database/index.ts';
import {
  appendTick,
  beginning,
  openPages,
  pollTick,
  prepareSession,
  readNewestTick,
  readPage,
} from '../../src/relay/tick-store.ts';
import type { Row } from '../../src/relay/tick-store.ts';
import { producerTemplate } from '../support/producer.ts';
import { database } from '../support/vitest.ts';

async function outbox() {
  const pool = (await database({ template: producerTemplate })).pool();
  await pool.query(`select turnout.register_events('orders', '[{"name": "orders", "partitions": 1}]',
    '[{"name": "orders.placed", "version": 1, "topic": "orders", "aggregate": "orders", "ordering": "key"}]')`);
  return {
    pool,
    publish: (count: number, on: Pick<Pool, 'query'> = pool, key = 'k') =>
      on.query(
        `select turnout.publish('orders', 'orders.placed', 1, $2 || n, '{}') from generate_series(1, $1::integer) n`,
        [count, key],
      ),
    session: async (): Promise<Session> => {
      const session = await pgDatabase(pool).connect();
      onTestFinished(() => session.release(true));
      await prepareSession(session, 'turnout relay');
      return session;
    },
  };
}

const from = { lo: beginning, known: 0n, numbers: {}, relay: 'one', limit: 100, lastSeq: 0n };
const seqs = (rows: readonly Row[]): number[] => rows.map((row) => Number(row[0]));

describe('a tick', () => {
  test('is durable when its rows are handed out, and reads the same again, whatever was committed since', async () => {
    const { pool, publish, session } = await outbox();
    const relay = await session();
    const late = await pool.connect();
    await late.query('begin');
    await publish(1, late, 'late');
    await publish(30);
    const { hi, rows } = await pollTick(relay, { ...from, limit: 10 });
    expect(rows).toHaveLength(10);
    await late.query('commit');
    late.release();
    await publish(5);
    const tick = await readNewestTick(relay);
    expect(tick).toMatchObject({ tick: 1n, lo: beginning, hi, afterSeq: 0n });
    const again = await readPage(relay, tick!, 1_000);
    expect(seqs(again)).toEqual(Array.from({ length: 30 }, (_, index) => index + 2));
    const paged: Row[] = [];
    for await (const page of await openPages(await session(), tick!, 7)) paged.push(...page);
    expect(paged).toEqual(again);
    // What came late, and what came after, is the next tick: each row is in one of them.
    const next = await pollTick(relay, { ...from, lo: hi, known: 1n });
    expect(seqs(next.rows)).toEqual([1, 32, 33, 34, 35, 36]);
  });

  test('is not written when there is nothing in it', async () => {
    const { session } = await outbox();
    const relay = await session();
    expect((await pollTick(relay, from)).rows).toEqual([]);
    expect(await readNewestTick(relay)).toBeUndefined();
  });
});

describe('the fence', () => {
  test('stops a relay that does not know the newest tick, before it has anything to publish', async () => {
    const { publish, session } = await outbox();
    const [one, other] = [await session(), await session()];
    await publish(1);
    await pollTick(one, from);
    await publish(1);
    await expect(pollTick(other, from)).rejects.toMatchObject({ code: 'TURNOUT_RELAY_FENCED' });
    await expect(
      appendTick(other, 0n, { lo: beginning, hi: beginning, afterSeq: 0n, numbers: {}, relay: 'other' }),
    ).rejects.toMatchObject({
      code: 'TURNOUT_RELAY_FENCED',
    });
  });

  test('lets one of two through that write at the same time', async () => {
    const { pool, publish, session } = await outbox();
    const [one, other] = [await session(), await session()];
    await publish(1);
    // As if `other` had read that there is no tick before `one` wrote it: one waits for the other's commit, and then for nothing.
    const holder = await pool.connect();
    await holder.query('begin');
    await holder.query(
      `insert into turnout.relay_tick (shard, tick, lo, hi, numbers, relay) values (0, 1, '1:1:', '1:1:', '{}', 'holder')`,
    );
    const waiting = Promise.allSettled([pollTick(one, from), pollTick(other, from)]);
    await holder.query('rollback');
    holder.release();
    const outcomes = await waiting;
    expect(outcomes.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
    expect(outcomes.find(({ status }) => status === 'rejected')).toMatchObject({
      reason: { code: 'TURNOUT_RELAY_FENCED' },
    });
  });

  test('holds for ticks that have been deleted since', async () => {
    const { pool, publish, session } = await outbox();
    const [one, paused] = [await session(), await session()];
    let known = 0n;
    for (let n = 0; n < 5; n++) {
      await publish(1);
      await pollTick(one, { ...from, known });
      known++;
    }
    await pool.query('delete from turnout.relay_tick where tick < 5');
    await publish(1);
    await expect(pollTick(paused, { ...from, known: 1n })).rejects.toMatchObject({ code: 'TURNOUT_RELAY_FENCED' });
  });
});
