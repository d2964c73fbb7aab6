// The e-mail service: an old gRPC method, now behind a gate, and the consumer it moves to.
import { Server, ServerCredentials, status } from '@grpc/grpc-js';
import type { handleUnaryCall, ServerUnaryCall } from '@grpc/grpc-js';
import type { Pool } from 'pg';
import { createEndpoint, defineConsumer, drainHeld, on } from 'turnout';
import { switchedOver } from 'turnout/grpc';
import { pgDatabase } from 'turnout/pg';
import { OrderPlaced } from './events.ts';
import { Mailer, SendConfirmation } from './protocol.ts';
import type { Confirmation, Queued } from './protocol.ts';

/** As it always was: it knows a pool, and nothing of transactions or events. */
export function mailboxOn(pool: Pool) {
  return async ({ orderId, customerId, number, item }: Confirmation): Promise<Queued> => {
    const { rows } = await pool.query<{ mailId: string }>(
      `insert into mail (order_id, customer_id, number, recipient, subject) values ($1, $2, $3, $4, $5)
       returning id::text as "mailId"`,
      [orderId, customerId, number, `${customerId}@example.org`, `Your ${item}`],
    );
    return rows[0]!;
  };
}

/** The same effect from an event. */
export const mailConsumer = (pool: Pool) => {
  const sendMail = mailboxOn(pool);
  return defineConsumer(pgDatabase(pool), {
    name: 'email',
    // A new mailer must not mail all history.
    from: 'now',
    inSwitchover: [OrderPlaced],
    handlers: [on(OrderPlaced, async (event) => void (await sendMail(event.data)))],
  });
};

/** The server, and the port it listens on. */
export async function serveMailer(pool: Pool): Promise<{ port: number; close(): void }> {
  const sendMail = mailboxOn(pool);
  const sendConfirmation: handleUnaryCall<Confirmation, Queued> = ({ request }, callback) => {
    if (request.customerId === '') return callback({ code: status.INVALID_ARGUMENT, details: 'no customer' });
    sendMail(request).then(callback.bind(undefined, null), callback);
  };

  const endpoint = createEndpoint({
    consumer: 'email',
    database: pgDatabase(pool),
    order: 'key',
    // In real life: mutual TLS, or a signed token.
    authenticate: (call: ServerUnaryCall<unknown, unknown>) =>
      call.metadata.get('authorization')[0] === 'Bearer order-service',
    drain: drainHeld(mailConsumer(pool)),
  });
  const server = new Server();
  // `switchedOver` is what was added to it.
  server.addService(Mailer.service, { SendConfirmation: switchedOver(endpoint, SendConfirmation, sendConfirmation) });
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error === null ? resolve(bound) : reject(error),
    ),
  );
  return { port, close: () => server.forceShutdown() };
}
