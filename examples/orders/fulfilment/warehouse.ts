import type { Order } from '../events.ts';

/** A pool, or a client with an open transaction. */
interface Sql {
  query(text: string, values: unknown[]): Promise<unknown>;
}

/** Tells the warehouse to pack an order, or to pack it anew after a change. */
export async function ship(sql: Sql, order: Order): Promise<void> {
  await addStep(sql, order, order.version === 1 ? 'pack' : 'repack');
}

/** Tells the warehouse to put everything back. */
export async function stopShipping(sql: Sql, order: Order): Promise<void> {
  await addStep(sql, order, 'stop');
}

async function addStep(sql: Sql, order: Order, step: 'pack' | 'repack' | 'stop'): Promise<void> {
  await sql.query(
    'insert into shipment_step (order_id, version, customer_id, change, step, quantity) values ($1, $2, $3, $4, $5, $6)',
    [order.orderId, order.version, order.customerId, order.change, step, order.quantity],
  );
}
