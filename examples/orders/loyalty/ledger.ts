import type { Order } from '../events.ts';

/** A pool, or a client with an open transaction. */
interface Sql {
  query<Row extends Record<string, unknown>>(text: string, values: unknown[]): Promise<{ rows: Row[] }>;
}

export interface Balance {
  readonly balance: number;
}

/** One point for each euro of the order as it is now; what it gave before is taken back. */
export function creditOrder(sql: Sql, order: Order): Promise<Balance> {
  return book(sql, order, Math.floor(order.totalCents / 100));
}

/** Takes back all that an order gave. */
export function revokeOrder(sql: Sql, order: Order): Promise<Balance> {
  return book(sql, order, 0);
}

async function book(sql: Sql, order: Order, worth: number): Promise<Balance> {
  const { rows } = await sql.query<{ balance: number }>(
    `with before as (
       select coalesce((select l.balance from ledger l where l.customer_id = $1 order by l.id desc limit 1), 0) as balance,
              coalesce((select sum(l.points) from ledger l where l.customer_id = $1 and l.order_id = $3), 0)::int as points
     )
     insert into ledger (customer_id, change, order_id, version, points, balance)
     select $1, $2, $3, $4, $5 - before.points, before.balance + $5 - before.points from before
     returning balance`,
    [order.customerId, order.change, order.orderId, order.version, worth],
  );
  return { balance: rows[0]?.balance ?? 0 };
}
