// An hour's worth of calls, owed and answered, while somebody holds a snapshot: nothing that was deleted can be cleaned up. How
// the tables grow, and what a step costs at the beginning and at the end.
import { Client, Pool } from 'pg';
import { createDatabase } from '../../test/support/index.ts';
import { producerTemplate } from '../../test/support/producer.ts';
import { median, rounded } from './statistics.ts';

export interface DeliveriesResult {
  readonly deliveries: number;
  /** Bytes with indexes, before and after. */
  readonly tables: Readonly<
    Record<string, { readonly before: number; readonly after: number; readonly liveRows: number }>
  >;
  /** Median milliseconds of a step in the first and in the last tenth: an order with its stamps; the answer to a call; a look of the sweeper. */
  readonly steps: Readonly<Record<string, { readonly first: number; readonly last: number; readonly ratio: number }>>;
  /** Calls that were left. */
  readonly owed: number;
}

const connections = 8;
const hotKeys = 64;
const tables = ['rpc_delivery', 'key_number', 'stamp', 'rpc_open'] as const;

export async function benchDeliveries({
  postgres,
  deliveries,
  say,
}: {
  postgres: { readonly url: string };
  deliveries: number;
  say: (text: string) => void;
}): Promise<DeliveriesResult> {
  const created = await createDatabase(postgres, { template: producerTemplate });
  const pool = new Pool({ connectionString: created.url, max: connections + 1 });
  const holder = new Client({ connectionString: created.url });
  await holder.connect();
  try {
    await pool.query(`select turnout.register_events('bench', $1, $2)`, [
      JSON.stringify([{ name: 'bench', partitions: 6, maxBytes: 900_000 }]),
      JSON.stringify([{ name: 'bench.event', version: 1, topic: 'bench', aggregate: 'bench', ordering: 'key' }]),
    ]);
    for (const [name, order] of [
      ['unordered', 'none'],
      ['ordered', 'key'],
    ])
      await pool.query(`select turnout.register_switchover('bench', $1, $1, '{bench.event}', $2, 'bench')`, [
        name,
        order,
      ]);
    const before = await sizes(pool);
    await holder.query('begin isolation level repeatable read');
    await holder.query('select count(*) from turnout.rpc_delivery');

    const orders = Math.ceil(deliveries / 2);
    const times = { publish: [] as number[], answer: [] as number[], sweep: [] as number[] };
    const timed = async (into: number[], work: () => Promise<unknown>): Promise<void> => {
      const began = performance.now();
      await work();
      into.push(performance.now() - began);
    };
    let next = 0;
    await Promise.all(
      Array.from({ length: connections }, async () => {
        for (let n = next++; n < orders; n = next++) {
          await timed(times.publish, () =>
            pool.query(`select from turnout.publish_events('bench', $1::text::json, deliver => true)`, [
              JSON.stringify([eventOf(n)]),
            ]),
          );
          for (const consumer of ['unordered', 'ordered'])
            await timed(times.answer, () => pool.query(answer, [`${consumer}.${idOf(n)}`]));
          if (n % 50 === 0) await timed(times.sweep, () => pool.query(adopt));
          if (n % Math.ceil(orders / 10) === 0) say(`deliveries: ${n * 2} of ${orders * 2}`);
        }
      }),
    );
    const after = await sizes(pool);
    const { rows } = await pool.query<{ owed: number }>('select count(*)::integer as owed from turnout.rpc_delivery');
    const result: DeliveriesResult = {
      deliveries: orders * 2,
      tables: Object.fromEntries(
        tables.map((name) => [
          name,
          { before: before.get(name)!.bytes, after: after.get(name)!.bytes, liveRows: after.get(name)!.rows },
        ]),
      ),
      steps: Object.fromEntries(Object.entries(times).map(([name, all]) => [name, firstAndLast(all)])),
      owed: rows[0]!.owed,
    };
    for (const [name, table] of Object.entries(result.tables))
      say(`deliveries: ${name} ${table.before} to ${table.after} bytes, ${table.liveRows} rows`);
    for (const [name, step] of Object.entries(result.steps))
      say(`deliveries: ${name} ${step.first} ms at first, ${step.last} ms at last, ${step.ratio} ×`);
    return result;
  } finally {
    await holder.end();
    await pool.end();
    await created.drop();
  }
}

/** As in src/switchover/calls/deliver-call.ts. */
const answer = `delete from turnout.rpc_delivery where effect_key = $1 returning set_config('synchronous_commit', 'off', true)`;

/** What the sweeper looks for each second; see src/switchover/calls/sweeper.ts. */
const adopt = `select c.effect_key from turnout.rpc_delivery c
  where c.source = 'bench' and c.switchover = 'ordered' and c.due_at is null limit 1000`;

function idOf(n: number): string {
  return `00000000-0000-4000-8000-${n.toString(16).padStart(12, '0')}`;
}

function eventOf(n: number): object {
  return {
    id: idOf(n),
    type: 'bench.event',
    version: 1,
    key: `key-${n % hotKeys}`,
    data: { n, note: 'x'.repeat(360) },
    switchovers: ['unordered', 'ordered'],
  };
}

async function sizes(pool: Pool): Promise<Map<string, { bytes: number; rows: number }>> {
  const all = new Map<string, { bytes: number; rows: number }>();
  for (const name of tables) {
    const { rows } = await pool.query<{ bytes: string; count: number }>(
      `select pg_total_relation_size('turnout.${name}')::text as bytes, count(*)::integer as count from turnout.${name}`,
    );
    all.set(name, { bytes: Number(rows[0]!.bytes), rows: rows[0]!.count });
  }
  return all;
}

function firstAndLast(times: readonly number[]): { first: number; last: number; ratio: number } {
  const tenth = Math.max(1, Math.floor(times.length / 10));
  const first = median(times.slice(0, tenth));
  const last = median(times.slice(-tenth));
  return { first: rounded(first), last: rounded(last), ratio: rounded(last / first) };
}
