// How long a customer waits for an order that e-mail is called for: as before Turnout, and in stage rpc. Shop and e-mail are processes
// of their own; blocks of both kinds take turns.
import { setTimeout as delay } from 'node:timers/promises';
import { Agent, request } from 'node:http';
import { Client } from 'pg';
import { createDatabase, spawnNode } from '../../test/support/index.ts';
import type { Database, NodeProcess } from '../../test/support/index.ts';
import { migrated } from '../../test/support/migrated.ts';
import { median, quantile, rounded } from './statistics.ts';

export interface OrderLatencyResult {
  readonly ordersPerSecond: number;
  /** Milliseconds; medians of the rounds. */
  readonly plain: Times;
  readonly turnout: Times;
  readonly p50Ratio: number;
  readonly p99Ratio: number;
}

interface Times {
  readonly p50: number;
  readonly p99: number;
}

const ordersPerSecond = 50;
/** 1,000 orders: the ten slowest are above p99. */
const blockSeconds = 20;

export async function benchOrderLatency({
  postgres,
  rounds,
  say,
}: {
  postgres: { readonly url: string };
  rounds: number;
  say: (text: string) => void;
}): Promise<OrderLatencyResult> {
  const databases: Database[] = [];
  const running: NodeProcess[] = [];
  try {
    const shop = await createDatabase(postgres, { template: migrated('producer') });
    const mail = await createDatabase(postgres, { template: migrated('consumer') });
    databases.push(shop, mail);
    await prepare(shop.url, mail.url);
    const started = async (name: string, argument: object): Promise<string> => {
      const child = spawnNode(new URL(`./${name}-process.ts`, import.meta.url), [JSON.stringify(argument)]);
      running.push(child);
      const [, port] = await child.line(/^listening (\d+)$/, { deadlineMs: 30_000 });
      return `http://127.0.0.1:${port}`;
    };
    const mailUrl = await started('mail', { url: mail.url });
    const shopUrl = await started('shop', { url: shop.url, mail: mailUrl });

    const kinds = ['plain', 'turnout'] as const;
    const times: Record<(typeof kinds)[number], number[][]> = { plain: [], turnout: [] };
    for (const kind of kinds) await block(`${shopUrl}/${kind}`, 3);
    for (let round = 0; round < rounds; round++) {
      for (const kind of round % 2 === 0 ? kinds : kinds.toReversed())
        times[kind].push(await block(`${shopUrl}/${kind}`, blockSeconds));
      const shown = kinds.map((kind) => `${kind} ${rounded(quantile(times[kind].at(-1)!, 0.99), 1)} ms`).join(', ');
      say(`latency: round ${round + 1} of ${rounds}, p99: ${shown}`);
    }
    const summary = (kind: (typeof kinds)[number]): Times => ({
      p50: rounded(median(times[kind].map((block) => quantile(block, 0.5))), 2),
      p99: rounded(median(times[kind].map((block) => quantile(block, 0.99))), 2),
    });
    const [plain, turnout] = [summary('plain'), summary('turnout')];
    return {
      ordersPerSecond,
      plain,
      turnout,
      p50Ratio: rounded(turnout.p50 / plain.p50),
      p99Ratio: rounded(turnout.p99 / plain.p99),
    };
  } finally {
    await Promise.all(running.map((child) => child.kill('SIGKILL')));
    await Promise.all(databases.map((database) => database.drop()));
  }
}

async function prepare(shop: string, mail: string): Promise<void> {
  await withClient(shop, async (client) => {
    await client.query('create table orders (id text primary key, note text not null)');
    await client.query(`select turnout.register_events('bench', $1, $2)`, [
      JSON.stringify([{ name: 'bench', partitions: 6, maxBytes: 900_000 }]),
      JSON.stringify([{ name: 'bench.order-placed', version: 1, topic: 'bench', aggregate: 'bench', ordering: 'key' }]),
    ]);
    await client.query(
      `select turnout.register_switchover('bench', 'confirmation', 'email', '{bench.order-placed}', 'none', 'bench')`,
    );
  });
  await withClient(mail, (client) => client.query('create table mail (order_id text not null)'));
}

async function withClient(url: string, work: (client: Client) => Promise<unknown>): Promise<void> {
  const client = new Client({ connectionString: url });
  await client.connect();
  try {
    await work(client);
  } finally {
    await client.end();
  }
}

const agent = new Agent({ keepAlive: true });

/** Milliseconds of each order of `seconds`, placed at a steady rate whether or not earlier ones are answered. */
async function block(url: string, seconds: number): Promise<number[]> {
  const times: number[] = [];
  const began = performance.now();
  const orders: Promise<void>[] = [];
  for (let n = 0; n < ordersPerSecond * seconds; n++) {
    const wait = began + (n * 1_000) / ordersPerSecond - performance.now();
    if (wait > 0.5) await delay(wait);
    orders.push(place(url).then((ms) => void times.push(ms)));
  }
  await Promise.all(orders);
  return times;
}

function place(url: string): Promise<number> {
  const body = JSON.stringify({ id: crypto.randomUUID(), note: 'x'.repeat(360) });
  const began = performance.now();
  return new Promise((resolve, reject) => {
    const sent = request(
      url,
      { method: 'POST', agent, headers: { 'content-type': 'application/json', 'content-length': body.length } },
      (response) => {
        response.resume().on('end', () => {
          if (response.statusCode === 201) resolve(performance.now() - began);
          else reject(new Error(`An order was answered ${response.statusCode}.`));
        });
      },
    );
    sent.on('error', reject).end(body);
  });
}
