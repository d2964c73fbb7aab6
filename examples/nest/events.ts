// What the order service tells the world: the one thing that both applications share.
import { defineEvent, defineTopic } from 'turnout';
import { z } from 'zod';

const order = z.object({
  orderId: z.string(),
  customerId: z.string(),
  /** Counts the customer's orders. */
  number: z.int().positive(),
  item: z.string(),
});

export type Order = z.infer<typeof order>;

export const OrderPlaced = defineEvent({
  name: 'orders.order-placed',
  version: 1,
  topic: defineTopic({ name: 'orders', partitions: 6 }),
  schema: order,
  key: (placed) => placed.customerId,
});
