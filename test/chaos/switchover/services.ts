// What the shop and its services agree on: two event types that share topic and key, and four consumers of them.
import { defineEvent, defineSwitchover, defineTopic, on } from 'turnout';
import type { SwitchoverDefinition } from 'turnout';
import { rpcFetch } from 'turnout/fetch';
import { z } from 'zod';

export const source = 'shop';
export const topic = defineTopic({ name: 'shop.orders', partitions: 4 });
const schema = z.object({ customer: z.string(), step: z.number(), note: z.string() });
const definition = { version: 1, topic, schema, key: (order: z.infer<typeof schema>) => order.customer } as const;

export const OrderPlaced = defineEvent({ name: 'shop.order-placed', ...definition });
export const OrderChanged = defineEvent({ name: 'shop.order-changed', ...definition });
export const events = [OrderPlaced, OrderChanged] as const;
export type Order = z.infer<typeof schema>;

export interface ServicePlan {
  readonly name: string;
  readonly order: 'key' | 'none';
  /** Processes that serve its old endpoint, and processes that consume. */
  readonly endpoints: number;
  readonly consumers: number;
}

export const services: readonly ServicePlan[] = [
  { name: 'mail', order: 'none', endpoints: 1, consumers: 1 },
  { name: 'audit', order: 'none', endpoints: 1, consumers: 1 },
  { name: 'points', order: 'key', endpoints: 2, consumers: 2 },
  { name: 'stock', order: 'key', endpoints: 1, consumers: 2 },
];

/** The switchover of each service, named after it; `urls` by service. */
export function switchoversTo(urls: Readonly<Record<string, string>>): SwitchoverDefinition[] {
  return services.map(({ name, order }) =>
    defineSwitchover({
      name: `${name}-over`,
      consumer: name,
      order,
      timeoutMs: 2_000,
      rpc: events.map((event) => on(event, (each, call) => rpcFetch(call, urls[name] ?? '', { json: each.data }))),
    }),
  );
}
