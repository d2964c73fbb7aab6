import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { consumerEvidence, createEndpoint } from 'turnout';
import { pgDatabase } from 'turnout/pg';
import { callerRecorder } from '../../src/switchover/endpoint/callers.ts';
import { effectKeyOf } from '../../src/event/index.ts';
import { uniqueName, waitFor } from '../support/index.ts';
import { migrated } from '../support/migrated.ts';
import { database } from '../support/vitest.ts';
import { memoryLogger } from './fixtures/consumer.ts';

const created = await database({ template: migrated('consumer') });
const pool = created.pool();
const db = pgDatabase(pool);

const answered = () => Promise.resolve({ status: 200, headers: {}, body: Buffer.from('{}') });
const request = (given: {
  headers?: Record<string, string>;
  endpoint?: string;
  address?: string;
  consumer?: string;
}) => {
  const eventId = randomUUID();
  const { consumer, headers = {}, ...place } = given;
  const keyed =
    consumer === undefined
      ? {}
      : {
          'idempotency-key': `"${effectKeyOf(consumer, eventId)}"`,
          'turnout-consumer': consumer,
          'turnout-event-id': eventId,
          'turnout-event-type': 'orders.order-placed',
          'turnout-event-source': 'orders',
          'turnout-event-topic': 'orders',
          'turnout-event-time': new Date().toISOString(),
        };
  return {
    original: { name: headers['x-service'] },
    headers: { ...keyed, ...headers },
    body: async () => ({}),
    ...place,
  };
};

describe('a wrapped endpoint', () => {
  test('tells who calls it without Turnout, by service and address, and when it was last called with', async () => {
    const consumer = uniqueName('email').replaceAll('_', '-');
    const endpoint = createEndpoint<unknown, { name: string | undefined }>({
      consumer,
      database: db,
      order: 'none',
      caller: ({ name }) => {
        if (name === 'broken') throw new Error('no name');
        return name;
      },
    });
    const called = { endpoint: 'POST /confirmations', address: '10.0.0.7' };
    for (let calls = 0; calls < 3; calls++) {
      const verdict = await endpoint.answer(request({ ...called, headers: { 'x-service': 'billing' } }), answered);
      expect(verdict).toEqual({ kind: 'pass' });
    }
    await endpoint.answer(request({ ...called, headers: { 'user-agent': 'curl/8', 'x-service': 'broken' } }), answered);
    await endpoint.answer(request({ endpoint: 'POST /reminders', consumer }), answered);
    const seen = () => consumerEvidence(db, consumer);
    await waitFor(async () => (await seen()).endpoints.length === 2, { what: 'the counts to be written' });
    const { callers, endpoints, outcomes } = await seen();
    expect(callers.toSorted((a, b) => b.calls - a.calls)).toMatchObject([
      { endpoint: 'POST /confirmations', service: 'billing', address: '10.0.0.7', calls: 3 },
      { endpoint: 'POST /confirmations', service: 'curl/8', address: '10.0.0.7', calls: 1 },
    ]);
    expect(callers[0]!.ageMs).toBeLessThan(60_000);
    expect(endpoints).toMatchObject([
      { endpoint: 'POST /confirmations', firstAt: expect.any(String), unkeyedAt: expect.any(String) },
      { endpoint: 'POST /reminders', firstAt: expect.any(String), keyedAt: expect.any(String) },
    ]);
    expect(endpoints.map((each) => Object.keys(each).length)).toEqual([3, 3]);
    expect(outcomes).toMatchObject([{ path: 'rpc', outcome: 'applied', count: 1 }]);
  });

  test('says nothing of itself when it is told not to', async () => {
    const consumer = uniqueName('email').replaceAll('_', '-');
    const endpoint = createEndpoint({ consumer, database: db, order: 'none', recordCallers: false });
    await endpoint.answer(request({ endpoint: 'POST /quiet' }), answered);
    const other = callerRecorder(db, consumer);
    other.note({ keyed: false, endpoint: 'POST /loud' });
    await other.flush();
    expect((await consumerEvidence(db, consumer)).endpoints.map((each) => each.endpoint)).toEqual(['POST /loud']);
  });
});

describe('callerRecorder', () => {
  test('adds up over processes and writes, keeps what could not be written, and takes any text', async () => {
    const consumer = uniqueName('email').replaceAll('_', '-');
    let away = true;
    const logger = memoryLogger();
    const shaky = {
      query: (text: string, values?: unknown[]) => (away ? Promise.reject(new Error('away')) : db.query(text, values)),
    };
    const recorder = callerRecorder(shaky as never, consumer, { logger });
    recorder.note({ keyed: false, endpoint: 'POST /a', service: 'x\0\ud800'.repeat(200), address: 'ä' });
    await recorder.flush();
    expect(logger.lines).toHaveLength(1);
    recorder.note({ keyed: false, endpoint: 'POST /a', service: 'y', address: undefined });
    away = false;
    await recorder.flush();
    const second = callerRecorder(db, consumer);
    second.note({ keyed: false, endpoint: 'POST /a', service: 'y', address: '' });
    second.note({ keyed: true, endpoint: 'POST /a' });
    const [first] = (await consumerEvidence(db, consumer)).endpoints;
    await second.flush();
    await second.flush();
    const { callers, endpoints } = await consumerEvidence(db, consumer);
    // Since when it is watched does not move.
    expect(endpoints[0]!.firstAt).toBe(first!.firstAt);
    expect(callers.map(({ calls }) => calls).toSorted((a, b) => a - b)).toEqual([1, 2]);
    expect(endpoints).toMatchObject([
      { endpoint: 'POST /a', keyedAt: expect.any(String), unkeyedAt: expect.any(String) },
    ]);
  });

  test('neither memory nor table is filled by addresses that are always new', async () => {
    const consumer = uniqueName('email').replaceAll('_', '-');
    for (let round = 0; round < 6; round++) {
      const recorder = callerRecorder(db, consumer);
      for (let call = 0; call < 1_200; call++)
        recorder.note({ keyed: false, endpoint: 'POST /a', service: 'pod', address: `10.${round}.${call}` });
      await recorder.flush();
    }
    const { rows } = await pool.query<{ rows: number; calls: number }>(
      'select count(*)::int as rows, sum(calls)::int as calls from turnout.unknown_caller where consumer = $1',
      [consumer],
    );
    expect(rows[0]!.calls).toBe(7_200);
    expect(rows[0]!.rows).toBeLessThanOrEqual(6_010);
  });
});

describe('consumerEvidence', () => {
  test('reads what is new, not what an inbox has kept for weeks', async () => {
    const consumer = uniqueName('email').replaceAll('_', '-');
    const old = new Date(Date.now() - 3_600_000 * 3);
    await pool.query(
      `insert into turnout.inbox (consumer, effect_key, occurred_at, event_id, event_type, source, topic, path, outcome, finished_at)
       select $1, $1 || '.' || n, $2::timestamptz, gen_random_uuid(), 't', 'orders', 'orders', 'event', 'applied', $2::timestamptz + n * interval '1 ms'
         from generate_series(1, 40000) n`,
      [consumer, old],
    );
    await pool.query(
      `insert into turnout.inbox (consumer, effect_key, occurred_at, event_id, event_type, source, topic, path, outcome)
       select $1, $1 || '.new' || n, clock_timestamp(), gen_random_uuid(), 't', 'orders', 'orders', 'event',
              case when n = 1 then 'dead' else 'applied' end from generate_series(1, 10) n`,
      [consumer],
    );
    await pool.query('vacuum analyze turnout.inbox');
    const evidence = await consumerEvidence(db, consumer, { withinMs: 60_000 });
    expect(evidence.outcomes).toMatchObject([
      { path: 'event', outcome: 'applied', count: 9 },
      { path: 'event', outcome: 'dead', count: 1 },
    ]);
    expect(evidence.dead).toBe(1);
    expect((await consumerEvidence(db, consumer, { withinMs: 86_400_000 })).outcomes[0]!.count).toBe(40_009);

    // The plan of the function's statement, by how many pages it reads.
    const client = await pool.connect();
    try {
      await client.query('set enable_seqscan = off; set enable_indexscan = off; set enable_indexonlyscan = off');
      const { rows } = await client.query<{ 'QUERY PLAN': [{ Plan: Record<string, number> }] }>(
        `explain (analyze, buffers, format json)
         select * from (select i.path from turnout.inbox i where i.consumer = '${consumer}' and i.finished_at > statement_timestamp() - interval '1 minute' limit 100000) r`,
      );
      const plan = rows[0]!['QUERY PLAN'][0].Plan;
      const pages = plan['Shared Hit Blocks']! + plan['Shared Read Blocks']!;
      const { rows: sizes } = await client.query<{ pages: number }>(
        `select sum(pg_relation_size(i.inhrelid) / 8192)::int as pages from pg_inherits i where i.inhparent = 'turnout.inbox'::regclass`,
      );
      expect(sizes[0]!.pages).toBeGreaterThan(500);
      expect(pages).toBeLessThan(sizes[0]!.pages / 5);
    } finally {
      client.release(true);
    }
  });

  test('an inbox that was indexed before its migration is not indexed again, and new partitions are indexed', async () => {
    const own = (await database({ template: migrated('consumer') })).pool({ max: 1 });
    const indexes = async () =>
      (
        await own.query<{ partition: string; brin: number }>(
          `select c.relname as partition, count(*) filter (where m.amname = 'brin')::int as brin
             from pg_inherits i join pg_class c on c.oid = i.inhrelid
             join pg_index x on x.indrelid = c.oid join pg_class n on n.oid = x.indexrelid join pg_am m on m.oid = n.relam
            where i.inhparent = 'turnout.inbox'::regclass group by c.relname order by c.relname`,
        )
      ).rows;
    const before = await indexes();
    await own.query('drop index turnout.inbox_finished');
    for (const { partition } of before) {
      const options = '(pages_per_range = 16, autosummarize = on)';
      await own.query(`create index concurrently on turnout.${partition} using brin (finished_at) with ${options}`);
    }
    const file = readFileSync(new URL('../../migrations/consumer/000003_callers.sql', import.meta.url), 'utf8');
    await own.query(/create index inbox_finished [^;]*;/.exec(file)![0]);
    await own.query(`select turnout.make_inbox_partition(clock_timestamp() + interval '60 days')`);
    const after = await indexes();
    expect(after).toHaveLength(before.length + 1);
    expect(after.map(({ brin }) => brin)).toEqual(after.map(() => 1));
  });
});
