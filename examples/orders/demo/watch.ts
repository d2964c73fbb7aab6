import { setTimeout as delay } from 'node:timers/promises';
import { calledServices, consumers, switchoverOf } from './world.ts';
import type { CalledService, Consumer, World } from './world.ts';

export interface Standing {
  readonly orders: number;
  readonly events: number;
  /** From the database; analytics only ever has events. */
  readonly stage: Readonly<Record<CalledService, string>>;
  readonly effects: Readonly<Record<Consumer, number>>;
  readonly owedCalls: Readonly<Record<CalledService, number>>;
  readonly held: Readonly<Record<Consumer, number>>;
  /** Events whose handler has failed for good. */
  readonly parked: Readonly<Record<Consumer, number>>;
}

/** Looks at the databases twice a second. */
export interface Watch {
  readonly standing: Standing | undefined;
  /** Events that were seen waiting for their turn at any time, by effect key: such rows are gone once they had it. */
  readonly heldEarly: ReadonlySet<string>;
  stop(): Promise<void>;
}

const effectTable: Readonly<Record<Consumer, string>> = {
  email: 'mail',
  fulfilment: 'shipment_step',
  loyalty: 'ledger',
  analytics: 'fact',
};

export function watch(world: World, onChange: (standing: Standing) => void): Watch {
  const heldEarly = new Set<string>();
  const stop = new AbortController();
  let standing: Standing | undefined;

  async function look(): Promise<void> {
    const [shop, ...services] = await Promise.all([
      lookAtShop(world),
      ...consumers.map((consumer) => lookAtService(world, consumer)),
    ]);
    const effects: Partial<Record<Consumer, number>> = {};
    const held: Partial<Record<Consumer, number>> = {};
    const parked: Partial<Record<Consumer, number>> = {};
    for (const { consumer, count, early, failed } of services) {
      effects[consumer] = count;
      held[consumer] = early.length;
      parked[consumer] = failed;
      for (const key of early) heldEarly.add(key);
    }
    standing = {
      ...shop,
      effects: effects as Record<Consumer, number>,
      held: held as Record<Consumer, number>,
      parked: parked as Record<Consumer, number>,
    };
    onChange(standing);
  }

  const looking = (async () => {
    while (!stop.signal.aborted) {
      // A database may be restarting, or going away at the end.
      await look().catch(() => undefined);
      await delay(500, undefined, { signal: stop.signal }).catch(() => undefined);
    }
  })();

  return {
    get standing() {
      return standing;
    },
    heldEarly,
    async stop() {
      stop.abort();
      await looking;
    },
  };
}

async function lookAtShop(world: World): Promise<Pick<Standing, 'orders' | 'events' | 'stage' | 'owedCalls'>> {
  const { rows } = await world.shop.query<{
    orders: number;
    events: number;
    stages: Record<string, string>;
    owed: Record<string, number> | null;
  }>(
    `select (select count(*) from "order")::int as orders,
            (select coalesce(sum(version), 0) from "order")::int as events,
            (select jsonb_object_agg(s.name, s.stage) from turnout.switchover s) as stages,
            (select jsonb_object_agg(d.consumer, d.owed) from (select consumer, count(*)::int as owed from turnout.rpc_delivery group by consumer) d) as owed`,
  );
  const row = rows[0] ?? { orders: 0, events: 0, stages: {}, owed: null };
  const stage: Partial<Record<CalledService, string>> = {};
  const owedCalls: Partial<Record<CalledService, number>> = {};
  for (const service of calledServices) {
    stage[service] = row.stages[switchoverOf[service]] ?? 'none';
    owedCalls[service] = row.owed?.[service] ?? 0;
  }
  return {
    orders: row.orders,
    events: row.events,
    stage: stage as Record<CalledService, string>,
    owedCalls: owedCalls as Record<CalledService, number>,
  };
}

async function lookAtService(
  world: World,
  consumer: Consumer,
): Promise<{ consumer: Consumer; count: number; early: string[]; failed: number }> {
  const { rows } = await world.databases[consumer].query<{ count: number; early: string[]; failed: number }>(
    `select (select count(*) from ${effectTable[consumer]})::int as count,
            array(select h.effect_key from turnout.held h where h.reason = 'early') as early,
            (select count(*) from turnout.held h where h.reason = 'parked')::int as failed`,
  );
  return { consumer, count: rows[0]?.count ?? 0, early: rows[0]?.early ?? [], failed: rows[0]?.failed ?? 0 };
}
