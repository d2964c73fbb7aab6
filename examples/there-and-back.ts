// The story of both examples: orders are placed all the time, while the e-mail service is moved from calls to events and back. Then
// plain SQL over the services' own tables says whether each order was confirmed once, and each customer's in order.
import type { Pool } from 'pg';
import { setStage } from 'turnout';
import { pgDatabase } from 'turnout/pg';
import { waitFor } from '../test/support/index.ts';

export interface Story {
  readonly switchover: string;
  readonly orders: Pool;
  readonly mail: Pool;
  placeOrder(order: { customerId: string; item: string }): Promise<unknown>;
}

export interface Counted {
  readonly ok: boolean;
  readonly orders: number;
  readonly mails: number;
  /** How the confirmations came: what the inbox of the e-mail service says. */
  readonly byCall: number;
  readonly byEvent: number;
  readonly lost: number;
  readonly doubled: number;
  readonly outOfOrder: number;
  /** Calls that are owed still. */
  readonly owed: number;
}

const customers = 10;
const perStage = 80;
const atOnce = 8;

/** Plays it; `say` hears how it goes. */
export async function thereAndBack(story: Story, say: (text: string) => void): Promise<Counted> {
  const database = pgDatabase(story.orders);
  let placed = 0;
  const place = async (count: number): Promise<void> => {
    const until = placed + count;
    const customer = async (): Promise<void> => {
      while (placed < until) {
        const number = placed++;
        await story.placeOrder({
          customerId: `customer-${number % customers}`,
          item: number % 3 === 0 ? 'lamp' : 'chair',
        });
      }
    };
    await Promise.all(Array.from({ length: atOnce }, customer));
  };
  const switchTo = async (stage: 'rpc' | 'event', reason: string): Promise<void> => {
    say(`${placed} orders; now by ${stage === 'rpc' ? 'call' : 'event'}`);
    // Forced: the checks want days of evidence, and this is a story of seconds.
    await setStage(database, 'orders', story.switchover, stage, { reason, force: stage === 'event' });
  };

  say('Orders, confirmed by call');
  await place(perStage);
  // The stage changes while orders are placed: some are stamped before, some after.
  const during = place(perStage);
  await switchTo('event', 'the example moves over');
  await during;
  const back = place(perStage);
  await switchTo('rpc', 'the example goes back');
  await back;
  say(`${placed} orders; waiting for the last confirmation`);
  let counted = await count(story);
  await waitFor(
    async () => {
      counted = await count(story);
      return counted.lost === 0 && counted.owed === 0;
    },
    { what: 'a confirmation of each order', deadlineMs: 20_000 },
  ).catch((error: unknown) => say(String(error)));
  return counted;
}

async function count({ orders, mail }: Story): Promise<Counted> {
  const [expected, sent, inbox, owed] = await Promise.all([
    orders.query<{ id: string }>('select id::text as id from "order"'),
    mail.query<{ order_id: string; late: boolean }>(
      `select order_id::text as order_id,
              number < max(number) over (partition by customer_id order by id rows between unbounded preceding and 1 preceding) as late
         from mail`,
    ),
    mail.query<{ path: string; count: number }>(
      `select path, count(*)::int as count from turnout.inbox where outcome = 'applied' group by path`,
    ),
    orders.query<{ count: number }>('select count(*)::int as count from turnout.rpc_delivery'),
  ]);
  const confirmed = new Set(sent.rows.map((row) => row.order_id));
  const by = (path: string): number => inbox.rows.find((row) => row.path === path)?.count ?? 0;
  const counts = {
    orders: expected.rows.length,
    mails: sent.rows.length,
    byCall: by('rpc'),
    byEvent: by('event'),
    lost: expected.rows.filter(({ id }) => !confirmed.has(id)).length,
    doubled: sent.rows.length - confirmed.size,
    outOfOrder: sent.rows.filter(({ late }) => late).length,
    owed: owed.rows[0]?.count ?? 0,
  };
  const wrong = counts.lost + counts.doubled + counts.outOfOrder + counts.owed;
  const ok = wrong === 0 && counts.orders === 3 * perStage && counts.byCall > 0 && counts.byEvent > 0;
  return { ok, ...counts };
}

/** Runs an example from the command line: one line of JSON with `--json`, exit code 1 if it did not come out right. */
export async function run(example: (say: (text: string) => void) => Promise<Counted>): Promise<void> {
  const json = process.argv.includes('--json');
  const began = performance.now();
  const say = (text: string): void =>
    void process.stderr.write(`${((performance.now() - began) / 1000).toFixed(1)} s  ${text}\n`);
  const counted = await example(say).catch((error: unknown) => {
    process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
    return { ok: false, error: String(error) };
  });
  if (json) process.stdout.write(`${JSON.stringify(counted)}\n`);
  else console.table(counted);
  process.exitCode = counted.ok ? 0 : 1;
}
