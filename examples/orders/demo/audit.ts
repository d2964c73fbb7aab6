// What the run is judged by: plain SQL on the services' own tables against the shop's orders. None of it asks Turnout.
import type { Pool } from 'pg';
import type { Consumer, World } from './world.ts';
import { consumers } from './world.ts';

export interface Audit {
  /** Effects that are expected and there. */
  readonly applied: number;
  /** Effects that are expected and not there. */
  readonly lost: number;
  /** Effects that are there once more than they should be, or were never asked for. */
  readonly doubled: number;
  /** Effects that came after a later one of the same customer (for e-mail: of the same order). */
  readonly outOfOrder: number;
}

interface Effects {
  /** What was effected, one row an effect, `place` growing in the order in which it happened. */
  readonly query: string;
  /** What of an order is expected: each of its versions, or its placing only. */
  readonly expected: 'every version' | 'version 1';
  /** What keeps its order: all that happened to a customer's orders. A confirmation is unordered, so there it is the order itself. */
  readonly orderedBy: 'customer_id' | 'order_id';
}

const effectsOf: Readonly<Record<Consumer, Effects>> = {
  email: {
    query: `select id as place, order_id, 1 as version, null::text as customer_id, 1 as change from mail`,
    expected: 'version 1',
    orderedBy: 'order_id',
  },
  fulfilment: {
    query: `select id as place, order_id, version, customer_id, change from shipment_step`,
    expected: 'every version',
    orderedBy: 'customer_id',
  },
  loyalty: {
    query: `select id as place, order_id, version, customer_id, change from ledger`,
    expected: 'every version',
    orderedBy: 'customer_id',
  },
  analytics: {
    query: `select id as place, order_id, version, customer_id, change from fact`,
    expected: 'every version',
    orderedBy: 'customer_id',
  },
};

/** The comparison of one service's effects with `expected`, a copy of what the shop's orders ask for. */
export function auditQuery(consumer: Consumer): string {
  const { query, orderedBy } = effectsOf[consumer];
  return `
    with effect as (${query}),
         counted as (select order_id, version, count(*)::int as times from effect group by order_id, version),
         compared as (select e.order_id is not null as wanted, coalesce(c.times, 0) as times
                        from expected e full join counted c using (order_id, version)),
         sequence as (select change, max(change) over (partition by ${orderedBy} order by place rows between unbounded preceding and 1 preceding) as before
                        from effect)
    select (select count(*) from compared where wanted and times > 0)::int as applied,
           (select count(*) from compared where wanted and times = 0)::int as lost,
           (select coalesce(sum(times - case when wanted then 1 else 0 end), 0) from compared where times > 0)::int as doubled,
           (select count(*) from sequence where change < before)::int as "outOfOrder"`;
}

/** Compares what every service did with the shop's orders, as they are now. */
export async function audit(world: Pick<World, 'shop' | 'databases'>): Promise<Record<Consumer, Audit>> {
  const { rows: orders } = await world.shop.query<{ id: string; version: number }>(
    'select id::text as id, version from "order"',
  );
  const results = await Promise.all(
    consumers.map(async (consumer) => [consumer, await auditOne(world.databases[consumer], consumer, orders)] as const),
  );
  return Object.fromEntries(results) as Record<Consumer, Audit>;
}

async function auditOne(
  pool: Pool,
  consumer: Consumer,
  orders: readonly { id: string; version: number }[],
): Promise<Audit> {
  const client = await pool.connect();
  try {
    await client.query('begin');
    await client.query('create temporary table expected (order_id uuid, version integer) on commit drop');
    await client.query(
      `insert into expected
       select o.id, v from jsonb_to_recordset($1::jsonb) as o (id uuid, version integer), generate_series(1, ${
         effectsOf[consumer].expected === 'version 1' ? '1' : 'o.version'
       }) v`,
      [JSON.stringify(orders)],
    );
    const { rows } = await client.query<Audit>(auditQuery(consumer));
    await client.query('commit');
    const [result] = rows;
    if (result === undefined) throw new Error(`The audit of ${consumer} gave nothing.`);
    return result;
  } finally {
    client.release();
  }
}

/** Whether every service has caught up: the audit finds nothing missing, and no call is owed any more. */
export async function isSettled(world: World): Promise<boolean> {
  const [{ rows }, result] = await Promise.all([
    world.shop.query<{ owed: number }>('select count(*)::int as owed from turnout.rpc_delivery'),
    audit(world),
  ]);
  return rows[0]?.owed === 0 && consumers.every((consumer) => result[consumer].lost === 0);
}

/** How often another relay went on where one had stopped: the names in the ticks tell. */
export async function countTakeovers(shop: Pool): Promise<number> {
  const { rows } = await shop.query<{ takeovers: number }>(
    `select count(*)::int as takeovers
       from (select t.relay, lag(t.relay) over (order by t.shard, t.tick) as before from turnout.relay_tick t) ticks
      where relay <> before`,
  );
  return rows[0]?.takeovers ?? 0;
}

/** The orders whose confirmation the shop owes: the call was made in vain, or not yet. */
export async function owedConfirmations(shop: Pool): Promise<string[]> {
  const { rows } = await shop.query<{ id: string }>(
    `select o.payload ->> 'orderId' as id
       from turnout.rpc_delivery d join turnout.outbox o on o.seq = d.seq
      where d.consumer = 'email'`,
  );
  return rows.map((row) => row.id);
}

/** How many of these orders have their confirmation by now. */
export async function confirmed(email: Pool, orderIds: readonly string[]): Promise<number> {
  const { rows } = await email.query<{ count: number }>(
    'select count(distinct order_id)::int as count from mail where order_id = any ($1::uuid[])',
    [orderIds],
  );
  return rows[0]?.count ?? 0;
}

/** Mails with another sum than their own subject asks for: what a wrong template would have sent. */
export async function countWrongMails(email: Pool): Promise<number> {
  const { rows } = await email.query<{ count: number }>(
    `select count(*)::int as count from mail
      where text is distinct from
            'In all ' || to_char(substring(subject from 'order of (\\d+) ×')::integer * 12.50, 'FM999990.00') || ' €.'`,
  );
  return rows[0]?.count ?? 0;
}

/** The stages that each switchover went through, the first one first. */
export async function stagesGoneThrough(shop: Pool): Promise<Record<string, string[]>> {
  const { rows } = await shop.query<{ switchover: string; stages: string[] }>(
    `select h.switchover,
            array_agg(h.to_stage || case when h.to_stage = 'ramp' then ' ' || round(h.percent) || ' %' else '' end
                                 || case when h.automatic then ' (automatic)' when h.forced then ' (forced)' else '' end order by h.id) as stages
       from turnout.switchover_history h
      where not coalesce(h.detail ? 'redriven', false)
      group by h.switchover order by h.switchover`,
  );
  return Object.fromEntries(rows.map(({ switchover, stages }) => [switchover, stages]));
}

/** Why guardrails stepped back by themselves, each time once. */
export async function automaticStepBacks(shop: Pool): Promise<string[]> {
  const { rows } = await shop.query<{ reason: string }>(
    'select h.reason from turnout.switchover_history h where h.automatic order by h.id',
  );
  return rows.map(({ reason }) => reason);
}
