// What the order service tells the world: the one thing that both services share, beside mailer.proto.
import { defineEvent, defineTopic } from 'turnout';
import { z } from 'zod';

export const OrderPlaced = defineEvent({
  name: 'orders.order-placed',
  version: 1,
  topic: defineTopic({ name: 'orders', partitions: 6 }),
  schema: z.object({
    orderId: z.string(),
    customerId: z.string(),
    /** Counts the customer's orders. */
    number: z.int().positive(),
    item: z.string(),
  }),
  key: (order) => order.customerId,
});
