import type { Pool } from 'pg';
import type { Order } from '../events.ts';

/** The e-mail service as it was before Turnout: it knows a pool, and nothing of transactions or events. */
export function mailboxOn(pool: Pool) {
  return {
    async confirm(order: Order): Promise<{ mailId: string }> {
      const { rows } = await pool.query<{ id: string }>(
        'insert into mail (order_id, recipient, subject) values ($1, $2, $3) returning id::text as id',
        [order.orderId, order.email, `Your order of ${order.quantity} × ${order.item}`],
      );
      return { mailId: rows[0]?.id ?? '' };
    },
  };
}

export type Mailbox = ReturnType<typeof mailboxOn>;
