// What an order costs with none, one, three and ten switchovers declared: one transaction that writes the order and publishes its
// event. Calls are not made here, only owed.
import { Pool } from 'pg';
import type { PoolClient } from 'pg';
import { z } from 'zod';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { defineEvent } from '../../src/event/index.ts';
import { publishEvents, registerEvents } from '../../src/outbox/index.ts';
import { createDatabase } from '../../test/support/index.ts';
import { producerTemplate } from '../../test/support/producer.ts';
import { median, rounded } from './statistics.ts';

const OrderPlaced = defineEvent({
  name: 'bench.order-placed',
  version: 1,
  topic: 'bench',
  schema: z.object({ id: z.string(), note: z.string() }),
  key: (order) => order.id,
});
const note = 'x'.repeat(360);

interface Setting {
  readonly switchovers: number;
  readonly order: 'none' | 'key';
  readonly route: 'rpc' | 'event';
  readonly connections: number;
  /** Undefined: a new key for every order. */
  readonly hotKeys?: number;
}

export interface PublishResult {
  /** Median time of a transaction with three unordered switchovers against none: the worst of all settings. */
  readonly worstOfThree: number;
  readonly settings: readonly (Setting & {
    /** Median of the rounds, in milliseconds for one transaction on one connection. */
    readonly ms: number;
    /** Against a block of the same without switchovers right before it; median of the rounds. */
    readonly ratio: number;
  })[];
}

const settings: readonly Setting[] = ([4, 32] as const).flatMap((connections) => [
  { switchovers: 0, order: 'none', route: 'event', connections } as const,
  ...(['event', 'rpc'] as const).flatMap((route) =>
    (['none', 'key'] as const).flatMap((order) =>
      ([1, 3, 10] as const).map((switchovers) => ({ switchovers, order, route, connections })),
    ),
  ),
  { switchovers: 0, order: 'none', route: 'event', connections, hotKeys: 64 } as const,
  { switchovers: 3, order: 'none', route: 'rpc', connections, hotKeys: 64 } as const,
  { switchovers: 3, order: 'key', route: 'rpc', connections, hotKeys: 64 } as const,
]);

export async function benchPublish({
  postgres,
  rounds,
  seconds,
  say,
}: {
  postgres: { readonly url: string };
  rounds: number;
  seconds: number;
  say: (text: string) => void;
}): Promise<PublishResult> {
  const created = await createDatabase(postgres, { template: producerTemplate });
  const pool = new Pool({ connectionString: created.url, max: 33 });
  const database = pgDatabase(pool);
  await registerEvents(database, 'bench', [OrderPlaced]);
  await pool.query('create table orders (id text primary key, note text not null)');
  for (const route of ['rpc', 'event'] as const)
    for (const order of ['none', 'key'] as const)
      for (let n = 0; n < 10; n++) await register(pool, nameOf({ route, order }, n), order, route);

  const times: number[][] = settings.map(() => []);
  const ratios: number[][] = settings.map(() => []);
  const measure = async (setting: Setting, warming: boolean): Promise<number> => {
    const ms = await block(pool, database, setting, warming ? 0.2 : seconds);
    await pool.query('truncate turnout.rpc_delivery, orders');
    return ms;
  };
  try {
    // The first round warms up.
    for (let round = 0; round <= rounds; round++) {
      const order = settings.map((_, index) => index);
      if (round % 2 === 1) order.reverse();
      for (const index of order) {
        const setting = settings[index]!;
        // Each beside a block without switchovers: what else the machine does changes from minute to minute.
        const base = setting.switchovers > 0 ? await measure({ ...setting, switchovers: 0 }, round === 0) : undefined;
        const ms = await measure(setting, round === 0);
        if (round === 0) continue;
        times[index]!.push(ms);
        ratios[index]!.push(ms / (base ?? ms));
      }
      say(`publish: round ${round} of ${rounds}`);
    }
  } finally {
    await pool.end();
    await created.drop();
  }

  const measured = settings.map((setting, index) => ({
    ...setting,
    ms: rounded(median(times[index]!)),
    ratio: rounded(median(ratios[index]!)),
  }));
  for (const { switchovers, order, route, connections, hotKeys, ms, ratio } of measured) {
    const keys = hotKeys === undefined ? '' : `, ${hotKeys} hot keys`;
    const what = switchovers === 0 ? 'no switchover' : `${switchovers} by ${route}, order ${order}`;
    say(`publish: ${connections} connections${keys}, ${what}: ${ms} ms, ${ratio} ×`);
  }
  const threes = measured.filter(({ switchovers, order }) => switchovers === 3 && order === 'none');
  return { worstOfThree: Math.max(...threes.map(({ ratio }) => ratio)), settings: measured };
}

function nameOf({ route, order }: Pick<Setting, 'route' | 'order'>, n: number): string {
  return `${route}-${order}-${n}`;
}

async function register(pool: Pool, name: string, order: 'none' | 'key', route: 'rpc' | 'event'): Promise<void> {
  await pool.query(`select turnout.register_switchover('bench', $1, $1, '{bench.order-placed}', $2, 'bench')`, [
    name,
    order,
  ]);
  if (route === 'rpc') return;
  await pool.query(`select turnout.record_since('bench', $1, '{"bench": ["0"]}')`, [name]);
  await pool.query(`select turnout.set_stage('bench', $1, 'event', 'bench', force => true)`, [name]);
}

/** Milliseconds that a transaction takes on one of the connections, all of them busy for `seconds`. */
async function block(
  pool: Pool,
  database: ReturnType<typeof pgDatabase<Pool>>,
  setting: Setting,
  seconds: number,
): Promise<number> {
  const { switchovers: count, connections, hotKeys } = setting;
  const switchovers = Array.from({ length: count }, (_, n) => ({
    name: nameOf(setting, n),
    eventTypes: [OrderPlaced.name],
  }));
  const prefix = crypto.randomUUID();
  let orders = 0;
  const until = performance.now() + seconds * 1_000;
  const clients: PoolClient[] = await Promise.all(Array.from({ length: connections }, () => pool.connect()));
  const began = performance.now();
  await Promise.all(
    clients.map(async (client) => {
      while (performance.now() < until) {
        const n = orders++;
        const id = `${prefix}-${n}`;
        await client.query('begin');
        await client.query('insert into orders (id, note) values ($1, $2)', [id, note]);
        const key = hotKeys === undefined ? id : `key-${n % hotKeys}`;
        await publishEvents(database.within(client), { source: 'bench', switchovers, deliver: true }, [
          { definition: OrderPlaced, data: { id: key, note } },
        ]);
        await client.query('commit');
      }
    }),
  );
  const ms = performance.now() - began;
  for (const client of clients) client.release();
  return (ms * connections) / orders;
}
