import type { Pool } from 'pg';
import type { Order } from '../events.ts';
import { confirmation } from './template.ts';

/** The e-mail service as it was before Turnout: it knows a pool, and nothing of transactions or events. */
export function mailboxOn(pool: Pool) {
  return {
    async confirm(order: Order, template = confirmation): Promise<{ mailId: string }> {
      const { subject, text } = template(order);
      const { rows } = await pool.query<{ id: string }>(
        'insert into mail (order_id, recipient, subject, text) values ($1, $2, $3, $4) returning id::text as id',
        [order.orderId, order.email, subject, text],
      );
      return { mailId: rows[0]?.id ?? '' };
    },
  };
}

export type Mailbox = ReturnType<typeof mailboxOn>;
