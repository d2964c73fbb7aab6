// The demo's judge is judged: each kind of wrong effect must show in its numbers.
import { readFileSync } from 'node:fs';
import type { Pool } from 'pg';
import { describe, expect, it } from 'vitest';
import { audit, automaticStepBacks, countWrongMails, stagesGoneThrough } from '../../examples/orders/demo/audit.ts';
import type { Audit } from '../../examples/orders/demo/audit.ts';
import { mailboxOn } from '../../examples/orders/email/mailbox.ts';
import { eventTemplate } from '../../examples/orders/email/template.ts';
import { consumers } from '../../examples/orders/demo/world.ts';
import type { Consumer } from '../../examples/orders/demo/world.ts';
import { migrated } from '../support/migrated.ts';
import { database } from '../support/vitest.ts';

const first = '00000000-0000-4000-8000-000000000001';
const second = '00000000-0000-4000-8000-000000000002';

/** A customer placed two orders and changed the first: changes 1 (first v1), 2 (second v1), 3 (first v2). */
async function shopAndServices(): Promise<{ shop: Pool; databases: Record<Consumer, Pool> }> {
  const shop = (await database()).pool();
  await shop.query('create table "order" (id uuid, version integer)');
  await shop.query('insert into "order" values ($1, 2), ($2, 1)', [first, second]);
  const databases: Partial<Record<Consumer, Pool>> = {};
  for (const consumer of consumers) {
    const pool = (await database()).pool();
    const table = { email: 'mail', fulfilment: 'shipment_step', loyalty: 'ledger', analytics: 'fact' }[consumer];
    await pool.query(
      `create table ${table} (id bigint generated always as identity, order_id uuid, version integer, customer_id text, change integer)`,
    );
    databases[consumer] = pool;
  }
  return { shop, databases: databases as Record<Consumer, Pool> };
}

type Effect = readonly [order: string, version: number, change: number];

async function judged(effects: readonly Effect[]): Promise<Audit> {
  const world = await shopAndServices();
  for (const [order, version, change] of effects) {
    await world.databases.loyalty.query(
      `insert into ledger (order_id, version, customer_id, change) values ($1, $2, 'ann', $3)`,
      [order, version, change],
    );
  }
  return (await audit(world)).loyalty;
}

describe('the audit of the demo', () => {
  it.each<{ what: string; effects: readonly Effect[]; expected: Audit }>([
    {
      what: 'everything right',
      effects: [
        [first, 1, 1],
        [second, 1, 2],
        [first, 2, 3],
      ],
      expected: { applied: 3, lost: 0, doubled: 0, outOfOrder: 0 },
    },
    {
      what: 'one effect lost',
      effects: [
        [first, 1, 1],
        [first, 2, 3],
      ],
      expected: { applied: 2, lost: 1, doubled: 0, outOfOrder: 0 },
    },
    {
      what: 'one effect doubled',
      effects: [
        [first, 1, 1],
        [second, 1, 2],
        [second, 1, 2],
        [first, 2, 3],
      ],
      expected: { applied: 3, lost: 0, doubled: 1, outOfOrder: 0 },
    },
    {
      what: 'an effect that nobody asked for',
      effects: [
        [first, 1, 1],
        [second, 1, 2],
        [first, 2, 3],
        [second, 2, 4],
      ],
      expected: { applied: 3, lost: 0, doubled: 1, outOfOrder: 0 },
    },
    {
      what: 'two effects of a customer out of order, on different orders',
      effects: [
        [second, 1, 2],
        [first, 1, 1],
        [first, 2, 3],
      ],
      expected: { applied: 3, lost: 0, doubled: 0, outOfOrder: 1 },
    },
  ])('sees $what', async ({ effects, expected }) => {
    expect(await judged(effects)).toEqual(expected);
  });

  it('asks e-mail for one confirmation of each order, and no more', async () => {
    const world = await shopAndServices();
    await world.databases.email.query('insert into mail (order_id) values ($1), ($1)', [first]);
    expect((await audit(world)).email).toEqual({ applied: 1, lost: 1, doubled: 1, outOfOrder: 0 });
  });

  it('counts each mail that a wrong template has sent, and no other', async () => {
    const pool = (await database()).pool();
    await pool.query(readFileSync(new URL('../../examples/orders/email/schema.sql', import.meta.url), 'utf8'));
    const mailbox = mailboxOn(pool);
    const order = (quantity: number) => ({
      orderId: first,
      version: 1,
      customerId: 'ann',
      change: 1,
      email: 'ann@example.org',
      item: 'lamp',
      quantity,
      totalCents: quantity * 1_250,
    });
    for (const quantity of [1, 2, 5, 100]) {
      await mailbox.confirm(order(quantity));
      await mailbox.confirm(order(quantity), eventTemplate('2'));
    }
    expect(await countWrongMails(pool)).toBe(0);
    for (const quantity of [1, 2, 5, 100]) await mailbox.confirm(order(quantity), eventTemplate('1'));
    expect(await countWrongMails(pool)).toBe(4);
    await pool.query(`insert into mail (order_id, recipient, subject, text) values ($1, 'ann', 'Hello', 'Hello')`, [
      first,
    ]);
    expect(await countWrongMails(pool)).toBe(5);
  });

  it('tells the stages of each switchover, which were forced, and which a guardrail set', async () => {
    const pool = (await database({ template: migrated('producer') })).pool();
    await pool.query(
      `insert into turnout.switchover_history (source, switchover, epoch, from_stage, to_stage, percent, reason, automatic, forced, detail) values
         ('shop', 'points', 1, null, 'rpc', 0, 'created', false, false, null),
         ('shop', 'points', 2, 'rpc', 'ramp', 10, 'ready', false, true, null),
         ('shop', 'points', 3, 'ramp', 'rpc', 0, 'parked', true, false, null),
         ('shop', 'points', 3, 'rpc', 'rpc', 0, 'backlog', false, false, '{"redriven": 3}')`,
    );
    expect(await stagesGoneThrough(pool)).toEqual({ points: ['rpc', 'ramp 10 % (forced)', 'rpc (automatic)'] });
    expect(await automaticStepBacks(pool)).toEqual(['parked']);
  });
});
