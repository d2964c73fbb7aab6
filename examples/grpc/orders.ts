// The order service: it used to call the mailer after each order, and now says so in a switchover.
import { randomUUID } from 'node:crypto';
import { Metadata } from '@grpc/grpc-js';
import type { PoolClient } from 'pg';
import { defineSwitchover, on } from 'turnout';
import type { Published, Turnout } from 'turnout';
import { rpcGrpc } from 'turnout/grpc';
import { OrderPlaced } from './events.ts';
import type { MailerClient } from './protocol.ts';

const credentials = new Metadata();
credentials.set('authorization', 'Bearer order-service');

/** The call that was always made, with what the mailer knows its effect by. */
export const confirmationBy = (mailer: MailerClient) =>
  defineSwitchover({
    name: 'order-confirmation',
    consumer: 'email',
    // A customer's confirmations come in the order of their orders.
    order: 'key',
    timeoutMs: 5_000,
    rpc: [
      on(OrderPlaced, ({ data }, call) =>
        rpcGrpc(call, (metadata, options, callback) => mailer.SendConfirmation(data, metadata, options, callback), {
          metadata: credentials,
        }),
      ),
    ],
  });

/** One transaction: the order, and its event. */
export const placeOrderWith =
  (turnout: Turnout<PoolClient>) =>
  ({ customerId, item }: { customerId: string; item: string }): Promise<Published> =>
    turnout.transaction(async (tx) => {
      const { rows } = await tx.query<{ number: number }>(
        `insert into customer (id, orders) values ($1, 1)
           on conflict (id) do update set orders = customer.orders + 1
         returning orders as number`,
        [customerId],
      );
      const order = { orderId: randomUUID(), customerId, number: rows[0]!.number, item };
      await tx.query('insert into "order" (id, customer_id, number, item) values ($1, $2, $3, $4)', [
        order.orderId,
        customerId,
        order.number,
        item,
      ]);
      return turnout.publish(tx, OrderPlaced, order);
    });
