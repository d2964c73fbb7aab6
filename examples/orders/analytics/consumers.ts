import type { Pool, PoolClient } from 'pg';
import { defineConsumer, on } from 'turnout';
import type { TurnoutEvent } from 'turnout';
import { pgDatabase } from 'turnout/pg';
import { OrderCancelled, OrderChanged, OrderPlaced } from '../events.ts';
import type { Order } from '../events.ts';

/** A new consumer: nobody upstream knows of it. */
export const analyticsConsumer = (pool: Pool) =>
  defineConsumer(pgDatabase(pool), {
    name: 'analytics',
    // All that the topic holds, also from before there was an analytics service.
    from: 'beginning',
    handlers: [
      on(OrderPlaced, (event, { tx }) => record(tx, event)),
      on(OrderChanged, (event, { tx }) => record(tx, event)),
      on(OrderCancelled, (event, { tx }) => record(tx, event)),
    ],
  });

async function record(tx: PoolClient, event: TurnoutEvent<Order>): Promise<void> {
  const { orderId, version, customerId, change, totalCents } = event.data;
  await tx.query(
    `insert into fact (event_id, kind, order_id, version, customer_id, change, total_cents, happened_at)
     values ($1, $2, $3, $4, $5, $6, $7, $8)`,
    [event.id, event.type, orderId, version, customerId, change, totalCents, event.time],
  );
}
