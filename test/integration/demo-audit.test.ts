// The demo's judge is judged: each kind of wrong effect must show in its numbers.
import type { Pool } from 'pg';
import { describe, expect, it } from 'vitest';
import { audit } from '../../examples/orders/demo/audit.ts';
import type { Audit } from '../../examples/orders/demo/audit.ts';
import { consumers } from '../../examples/orders/demo/world.ts';
import type { Consumer } from '../../examples/orders/demo/world.ts';
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
});
