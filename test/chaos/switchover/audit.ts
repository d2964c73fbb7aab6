// What a run is judged by: plain SQL over the services' own tables against the shop's. None of it asks Turnout.
import type { Pool } from 'pg';
import { services } from './services.ts';
import type { ServicePlan } from './services.ts';

export interface Audit {
  readonly applied: number;
  readonly lost: number;
  readonly doubled: number;
  /** Effects that came after a later one of their customer; of ordered services only. */
  readonly outOfOrder: number;
  readonly byRpc: number;
  readonly byEvent: number;
  /** The first of what is wrong. */
  readonly examples: readonly string[];
}

export type Pools = Readonly<Record<string, Pool>>;

export async function audit(shop: Pool, pools: Pools): Promise<Record<string, Audit>> {
  const { rows: ordered } = await shop.query<{ customer: string; step: number }>('select customer, step from ordered');
  const results: Record<string, Audit> = {};
  for (const service of services) results[service.name] = await auditOne(pools[service.name]!, service, ordered);
  return results;
}

async function auditOne(pool: Pool, { order }: ServicePlan, ordered: readonly object[]): Promise<Audit> {
  const client = await pool.connect();
  try {
    await client.query('begin');
    await client.query('create temporary table expected (customer text, step integer) on commit drop');
    await client.query(
      'insert into expected select o.customer, o.step from jsonb_to_recordset($1::jsonb) as o (customer text, step integer)',
      [JSON.stringify(ordered)],
    );
    const { rows } = await client.query<Omit<Audit, 'examples'> & { examples: string[] | null }>(
      `with counted as (select e.customer, e.step, count(*)::integer as times from effect e group by e.customer, e.step),
            compared as (select customer, step, w.step is not null as wanted, coalesce(c.times, 0) as times
                           from (select customer, step, step as wanted_step from expected) as w (customer, step, wanted_step)
                           full join counted c using (customer, step)),
            sequence as (select e.customer, e.step,
                                max(e.step) over (partition by e.customer order by e.id rows between unbounded preceding and 1 preceding) as before
                           from effect e where $1 = 'key')
       select (select count(*) from compared where wanted and times > 0)::integer as applied,
              (select count(*) from compared where wanted and times = 0)::integer as lost,
              (select coalesce(sum(times - case when wanted then 1 else 0 end), 0) from compared where times > 0)::integer as doubled,
              (select count(*) from sequence where step < before)::integer as "outOfOrder",
              (select count(*) from effect where path = 'rpc')::integer as "byRpc",
              (select count(*) from effect where path = 'event')::integer as "byEvent",
              (select array_agg(e.text) from (
                 (select format('%s step %s: %s times', customer, step, times) as text from compared where times <> case when wanted then 1 else 0 end limit 5)
                 union all
                 (select format('%s step %s after step %s', customer, step, before) from sequence where step < before limit 5)) e) as examples`,
      [order],
    );
    await client.query('commit');
    const [row] = rows;
    return { ...row!, examples: row!.examples ?? [] };
  } finally {
    client.release();
  }
}

/** Whether everything has come to rest: no call is owed, nothing waits, every order has all its effects. */
export async function isSettled(shop: Pool, pools: Pools): Promise<boolean> {
  const { rows } = await shop.query<{ owed: number }>('select count(*)::integer as owed from turnout.rpc_delivery');
  if (rows[0]!.owed > 0) return false;
  for (const { name } of services) {
    const { rows: held } = await pools[name]!.query<{ held: number }>(
      'select count(*)::integer as held from turnout.held',
    );
    if (held[0]!.held > 0) return false;
  }
  return Object.values(await audit(shop, pools)).every(({ lost }) => lost === 0);
}

/** What went on inside, of which a run has to have had some of each kind. */
export async function insideCounts(pools: Pools): Promise<{ rebalances: number; alarms: string[]; parked: number }> {
  let rebalances = 0;
  let parked = 0;
  const alarms: string[] = [];
  for (const { name } of services) {
    const { rows } = await pools[name]!.query<{
      epochs: number;
      partitions: number;
      parked: number;
      alarms: string[] | null;
    }>(
      `select (select coalesce(sum(a.epoch), 0) from turnout.assignment a)::integer as epochs,
              (select count(*) from turnout.assignment)::integer as partitions,
              (select count(*) from turnout.held h where h.reason = 'parked')::integer as parked,
              (select array_agg(a.kind || ': ' || a.detail) from turnout.alarm a) as alarms`,
    );
    const row = rows[0]!;
    // The first assignment is none.
    rebalances += row.epochs - row.partitions;
    parked += row.parked;
    alarms.push(...(row.alarms ?? []).map((alarm) => `${name}: ${alarm}`));
  }
  return { rebalances, alarms, parked };
}

/** Milliseconds from each stage change to the first effect of an event that was stamped under it; all by one server's clock. */
export async function flipsToEffect(shop: Pool, pools: Pools): Promise<number[]> {
  const { rows: stamped } = await shop.query<{ consumer: string; effect_key: string; epoch: string; at: string }>(
    `select s.consumer, d.effect_key, h.epoch::text as epoch, (extract(epoch from h.at) * 1000)::text as at
       from turnout.switchover_history h
       join turnout.switchover s on s.source = h.source and s.name = h.switchover
       cross join lateral (
         select s.consumer || '.' || o.id as effect_key from turnout.outbox o
          where o.routes ~ (s.consumer || '=(rpc|event);epoch=' || h.epoch || '(;|,|$)')
          order by o.seq limit 5) d`,
  );
  const times: number[] = [];
  for (const { name } of services) {
    const mine = stamped.filter(({ consumer }) => consumer === name);
    const { rows } = await pools[name]!.query<{ effect_key: string; at: string }>(
      `select i.effect_key, (extract(epoch from i.finished_at) * 1000)::text as at from turnout.inbox i
        where i.consumer = $1 and i.effect_key = any ($2)`,
      [name, mine.map(({ effect_key }) => effect_key)],
    );
    const finished = new Map(rows.map(({ effect_key, at }) => [effect_key, Number(at)]));
    const byEpoch = new Map<string, number>();
    for (const { effect_key, epoch, at } of mine) {
      const ms = (finished.get(effect_key) ?? Number.POSITIVE_INFINITY) - Number(at);
      byEpoch.set(epoch, Math.min(byEpoch.get(epoch) ?? Number.POSITIVE_INFINITY, ms));
    }
    times.push(...[...byEpoch.values()].filter(Number.isFinite));
  }
  return times.sort((one, other) => one - other);
}
