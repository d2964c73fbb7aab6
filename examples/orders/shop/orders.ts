import { randomUUID } from 'node:crypto';
import type { Published, Turnout } from 'turnout';
import type { EntityManager } from 'typeorm';
import { OrderCancelled, OrderChanged, OrderPlaced } from '../events.ts';
import type { Order } from '../events.ts';
import { CustomerEntity, OrderEntity } from './entities.ts';
import type { OrderRow } from './entities.ts';

export interface NewOrder {
  readonly customerId: string;
  readonly email: string;
  readonly item: string;
  readonly quantity: number;
}

const priceCents = 1_250;

/** The business: each function is one transaction, and its event is part of it. */
export function orderBook(turnout: Turnout<EntityManager>) {
  return {
    place: (wanted: NewOrder): Promise<{ orderId: string; published: Published }> =>
      turnout.transaction(async (tx) => {
        const change = await nextChange(tx, wanted.customerId, wanted.email);
        const order: OrderRow = {
          id: randomUUID(),
          customerId: wanted.customerId,
          item: wanted.item,
          quantity: wanted.quantity,
          totalCents: wanted.quantity * priceCents,
          status: 'placed',
          version: 1,
        };
        await tx.insert(OrderEntity, order);
        return {
          orderId: order.id,
          published: await turnout.publish(tx, OrderPlaced, describe(order, wanted.email, change)),
        };
      }),

    change: (orderId: string, quantity: number): Promise<Published | undefined> =>
      turnout.transaction(async (tx) => {
        const found = await lockPlaced(tx, orderId);
        if (found === undefined) return undefined;
        const order = { ...found.order, quantity, totalCents: quantity * priceCents, version: found.order.version + 1 };
        await tx.save(OrderEntity, order);
        return turnout.publish(tx, OrderChanged, describe(order, found.email, found.change));
      }),

    cancel: (orderId: string): Promise<Published | undefined> =>
      turnout.transaction(async (tx) => {
        const found = await lockPlaced(tx, orderId);
        if (found === undefined) return undefined;
        const order: OrderRow = { ...found.order, status: 'cancelled', version: found.order.version + 1 };
        await tx.save(OrderEntity, order);
        return turnout.publish(tx, OrderCancelled, describe(order, found.email, found.change));
      }),
  };
}

export type OrderBook = ReturnType<typeof orderBook>;

/** Counts the customer's changes up, which also makes changes of one customer wait for each other. */
async function nextChange(tx: EntityManager, customerId: string, email: string): Promise<number> {
  const [row] = await tx.query<{ changes: number }[]>(
    `insert into customer (id, email, changes) values ($1, $2, 1)
       on conflict (id) do update set changes = customer.changes + 1
     returning changes`,
    [customerId, email],
  );
  if (row === undefined) throw new Error(`Customer ${customerId} could not be counted.`);
  return row.changes;
}

/** An order that may still be changed, locked until the transaction ends. */
async function lockPlaced(
  tx: EntityManager,
  orderId: string,
): Promise<{ order: OrderRow; email: string; change: number } | undefined> {
  const known = await tx.findOneBy(OrderEntity, { id: orderId });
  if (known === null) return undefined;
  const customer = await tx.findOneByOrFail(CustomerEntity, { id: known.customerId });
  // First the customer, then the order: the same sequence as everywhere, so that nobody waits in a circle.
  const change = await nextChange(tx, customer.id, customer.email);
  const order = await tx.findOne(OrderEntity, { where: { id: orderId }, lock: { mode: 'pessimistic_write' } });
  if (order?.status !== 'placed') throw new OrderClosed(orderId);
  return { order, email: customer.email, change };
}

/** The order can't be changed any more. */
export class OrderClosed extends Error {
  constructor(orderId: string) {
    super(`Order ${orderId} is cancelled.`);
  }
}

function describe(order: OrderRow, email: string, change: number): Order {
  return {
    orderId: order.id,
    version: order.version,
    customerId: order.customerId,
    change,
    email,
    item: order.item,
    quantity: order.quantity,
    totalCents: order.totalCents,
  };
}
