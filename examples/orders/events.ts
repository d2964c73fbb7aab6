// What the shop tells the world about its orders: the one thing that publisher and consumers share. In real life this is a
// small package of its own.
import { defineEvent, defineTopic } from 'turnout';
import { z } from 'zod';

const topic = defineTopic({ name: 'shop.orders', partitions: 6 });

const order = z.object({
  orderId: z.string(),
  /** Counts the changes of this order: 1 is its placing. */
  version: z.int().positive(),
  customerId: z.string(),
  /** Counts everything that happened to this customer's orders. */
  change: z.int().positive(),
  email: z.string(),
  item: z.string(),
  quantity: z.int().positive(),
  totalCents: z.int().nonnegative(),
});

export type Order = z.infer<typeof order>;

/** Events of one customer keep their order. */
const key = (data: Order): string => data.customerId;

export const OrderPlaced = defineEvent({ name: 'shop.order-placed', version: 1, topic, schema: order, key });
export const OrderChanged = defineEvent({ name: 'shop.order-changed', version: 1, topic, schema: order, key });
export const OrderCancelled = defineEvent({ name: 'shop.order-cancelled', version: 1, topic, schema: order, key });
